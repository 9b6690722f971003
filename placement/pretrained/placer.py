"""The pretrained policy as a placer among the others: it is asked with what the list schedulers answer."""

from __future__ import annotations

from functools import cache

import numpy as np

from envs.problem import PlacementProblem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.best import nearest_groups
from placement.placers.quick_lists import quick_placements
from placement.placers.searching.repair import repair
from placement.placers.single_device import single_device_placements
from placement.pretrained.answering import SAMPLES, written
from placement.pretrained.network import Weights, load


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Answer the best of the placements that the policy writes, and of those that it was shown."""
    search = Search(problem, budget)
    shown = [placement for _, placement in single_device_placements(problem)]
    shown += quick_placements(problem, should_stop=lambda: search.spent).values()
    search.evaluate(np.stack(shown))
    before_s, count = search.best_s, 0
    samples = SAMPLES if budget.evaluations is None else min(SAMPLES, budget.evaluations - search.evaluations)
    for rows, evaluation in written(
        problem,
        shown,
        _shipped(),
        rng=rng,
        samples=max(samples, 0),
        by_parts=options.granularity == "op",
        should_stop=lambda: search.spent,
    ):
        search.known.keep(rows, evaluation)
        search.evaluations += len(rows)
        count += len(rows)
    if search.best_placement is None:
        repair(search, nearest_groups(problem, problem.to_ops(search.placed().placement)))
    ahead = "ahead of" if search.best_s < before_s else "no better than"
    return search.placed(note=f"{count} placements written, {ahead} the list schedulers")


@cache
def _shipped() -> Weights:
    """The weights that are shipped, read once."""
    return load()
