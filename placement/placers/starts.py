"""Where searches start: the answers of the quick heuristics, all counted against the budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.placers import contiguous, etf, heft
from placement.placers.base import Budget, Search
from placement.placers.repair import repair
from placement.placers.single_device import single_device_placements

SHARE = 0.2
"""Share of the budget that the heuristics may use before the search proper."""


def try_heuristics(search: Search, rng: np.random.Generator) -> str:
    """Evaluate the quick heuristics' placements in a search.

    Args:
        search: It keeps the best that is found.
        rng: Handed to the heuristics.

    Returns:
        The name of the best.
    """
    problem = search.problem
    search.evaluate(np.stack([placement for _, placement in single_device_placements(problem)]))
    best_s, best = search.best_s, "single_device"
    for name, place in (("contiguous", contiguous.place), ("etf", etf.place), ("heft", heft.place)):
        if _left(search, SHARE).time_limit_s == 0:
            break
        placed = place(problem, budget=_left(search, SHARE), rng=rng)
        search.evaluate(placed.placement[None])
        search.evaluations += placed.evaluations
        if search.best_s < best_s:
            best_s, best = search.best_s, name
    return best


def start_of(search: Search) -> NDArray[np.int64]:
    """The best placement so far; where nothing fits yet, the nearest to fitting, repaired as far as it goes."""
    if search.best_placement is None:
        repair(search, search.placed().placement)
    return search.placed().placement


def _left(search: Search, share: float) -> Budget:
    """What is left of a share of the search's budget."""
    limit, most = search.budget.time_limit_s, search.budget.evaluations
    return Budget(
        None if limit is None else max(limit * share - search.elapsed_s, 0.0),
        None if most is None else max(int(most * share) - search.evaluations, 0),
    )
