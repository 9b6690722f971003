"""The placements that the default preset starts from: what the placers that neither learn nor search answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.task_graph import vote
from graphs.errors import InputError
from placement.placers import HEURISTICS
from placement.placers.base import Budget
from placement.placers.quick_lists import quick_placements
from placement.placers.searching.starts import IN_TIME as QUICK

HALF = 0.5
"""Share of what is left of a limited time that one heuristic may take: one that searches would leave others none."""


@dataclass(frozen=True, eq=False)
class Start:
    """What the heuristics answered.

    Attributes:
        placements: ``int64[G]``, or ``int64[N]`` where it parts groups, by the placer's name, in the order of
            `placement.registry.PLACERS`.
        evaluations: Placements that they evaluated on the way.
        search_s: Wall-clock seconds that they took.
    """

    placements: Mapping[str, NDArray[np.int64]]
    evaluations: int
    search_s: float


def heuristic_start(
    problem: PlacementProblem,
    *,
    evaluations: int | None,
    rng: np.random.Generator,
    time_limit_s: float | None = None,
    on_answer: Callable[[NDArray[np.int64]], None] = lambda placement: None,
) -> Start:
    """Ask the placers that answer when they are done; one that cannot serve the problem is left out.

    Args:
        problem: What to place.
        evaluations: How many placements there are to evaluate for the whole run; each heuristic gets an equal part of a
            half of them, since what it answers must be evaluated, too. None for as many as they like.
        rng: For those that draw.
        time_limit_s: Only the quick ones are asked, those that searches start from as well, the briefest first, each
            for no more than half of what is left, and no more of them when this is over; before them, on one graph of
            the groups, the list schedulers (`placement.placers.quick_lists`). None asks all.
        on_answer: Called with each placement, ``int64[G]``, as it comes.
    """
    names = [info.name for info in HEURISTICS.values() if not (info.learns or info.searches or info.exact)]
    if time_limit_s is not None:
        names = ["single_device", *QUICK]
    share = None if evaluations is None else evaluations // (2 * len(names))
    started = time.perf_counter()
    until = started + (np.inf if time_limit_s is None else time_limit_s)
    placements: dict[str, NDArray[np.int64]] = {}
    used = 0
    for name in names:
        left_s = None if time_limit_s is None else max(time_limit_s - (time.perf_counter() - started), 0.0)
        if time_limit_s is not None and name == QUICK[0]:
            placements |= quick_placements(problem, should_stop=lambda: time.perf_counter() > until)
            left_s = max(until - time.perf_counter(), 0.0)
        if left_s == 0 and placements:
            break
        own_s = None if left_s is None else HALF * left_s
        try:
            placed = HEURISTICS[name].function(problem, budget=Budget(own_s, share), rng=rng)
        except InputError:  # for example: no expert rule for this workload
            continue
        placements[name] = placed.placement
        used += placed.evaluations
        on_answer(placed.placement)
    return Start(placements, used, time.perf_counter() - started)


def heuristic_placements(problem: PlacementProblem, *, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """What every placer that neither learns nor searches answers, for the environments' ``votes``.

    Args:
        problem: What to place.
        seed: For those that draw.

    Returns:
        ``int64[G]`` by the placer's name; of one that parts groups what most of each group voted for.
    """
    placements = heuristic_start(problem, evaluations=None, rng=np.random.default_rng(seed)).placements
    whole = (problem.num_groups,)
    return {name: row if row.shape == whole else vote(problem, row) for name, row in placements.items()}
