"""The placements that the default preset starts from: what the placers that neither learn nor search answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.placers import PLACERS
from placement.placers.base import Budget


@dataclass(frozen=True, eq=False)
class Start:
    """What the heuristics answered.

    Attributes:
        placements: ``int64[G]`` by the placer's name, in the order of `placement.placers.PLACERS`.
        evaluations: Placements that they evaluated on the way.
        search_s: Wall-clock seconds that they took.
    """

    placements: Mapping[str, NDArray[np.int64]]
    evaluations: int
    search_s: float


def heuristic_start(problem: PlacementProblem, *, evaluations: int | None, rng: np.random.Generator) -> Start:
    """Ask every placer that answers when it is done; one that cannot serve the problem is left out.

    Args:
        problem: What to place.
        evaluations: How many placements there are to evaluate for the whole run; each heuristic gets an equal part of a
            half of them, since what it answers must be evaluated, too. None for as many as they like.
        rng: For those that draw.
    """
    heuristics = [info for info in PLACERS.values() if not (info.learns or info.searches or info.exact)]
    share = None if evaluations is None else evaluations // (2 * len(heuristics))
    started = time.perf_counter()
    placements: dict[str, NDArray[np.int64]] = {}
    used = 0
    for info in heuristics:
        try:
            placed = info.function(problem, budget=Budget(evaluations=share), rng=rng)
        except InputError:  # for example: no expert rule for this workload
            continue
        placements[info.name] = placed.placement
        used += placed.evaluations
    return Start(placements, used, time.perf_counter() - started)
