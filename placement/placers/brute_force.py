"""Every placement, for problems so small that all can be tried: the truth that tests compare with."""

from __future__ import annotations

import math

import numpy as np

from envs.problem import PlacementProblem
from graphs.errors import NotServedError
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions

MOST_PLACEMENTS = 2**22
BATCH = 1024


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Evaluate all placements; the first of the best in counting order is the answer.

    Raises:
        NotServedError: There are too many.
    """
    choices = [np.flatnonzero(row) for row in problem.allowed]
    count = math.prod(len(c) for c in choices)
    if count > MOST_PLACEMENTS:
        raise NotServedError(
            f"placer 'brute_force' tries at most {MOST_PLACEMENTS:,} placements, but graph '{problem.graph.name}' in "
            f"{problem.num_groups} groups on cluster '{problem.cluster.name}' has about 10^{math.log10(count):.0f}; "
            "ask for fewer groups",
            reason=f"tries at most {MOST_PLACEMENTS:,} placements",
        )
    search = Search(problem, budget)
    tried = 0
    while tried < count and not search.spent:
        number = np.arange(tried, min(tried + BATCH, count))
        batch = np.empty((len(number), problem.num_groups), dtype=np.int64)
        for group in reversed(range(problem.num_groups)):
            number, digit = np.divmod(number, len(choices[group]))
            batch[:, group] = choices[group][digit]
        search.evaluate(batch)
        tried += len(batch)
    if search.evaluations < count:
        return search.placed(note=f"stopped after {search.evaluations:,} of {count:,} placements: not proved optimal")
    return search.placed(note="optimal: all placements were tried")
