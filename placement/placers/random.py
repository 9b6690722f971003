"""The best of a fixed number of random placements: what no placer may lose to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions, accelerators_first
from placement.placers.searching.repair import repair

DRAWS = 256
"""Placements drawn: fixed, so that the row means the same whatever the time limit."""

BATCH = 32


def draw(allowed: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``int64[count, G]``: independent draws for each group, uniform over the devices it may be on."""
    key = rng.random((count, *allowed.shape))  # [count, G, D]
    return np.where(allowed, key, -1.0).argmax(axis=2)


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Draw placements over the accelerators, and over all devices where none of those fits."""
    search = Search(problem, budget)
    for allowed in (accelerators_first(problem), problem.allowed):
        for _ in range(DRAWS // BATCH):
            if not search.spent:
                search.evaluate(draw(allowed, BATCH, rng))
        if search.best_placement is not None:
            break
    if search.best_placement is None:
        repair(search, search.placed().placement)
    return search.placed(config={"draws": DRAWS})
