"""ETF: earliest task first.

Hwang, Chow, Anger and Lee, "Scheduling precedence graphs in systems with interprocessor communication times", SIAM
Journal on Computing 18(2), 1989, doi:10.1137/0218016.

Deviations: ETF is for like processors, so it places on the accelerators and uses the host's CPU only for what may be
nowhere else or finds no memory elsewhere; memory is respected by estimate; tasks of one group share a device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.task_graph import TaskGraph
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions, accelerators_first
from placement.placers.list_scheduling.schedule import earliest_start_schedule, place_both_ways, upward_rank


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """The ready task that can start first, again and again; on groups and on ops."""
    return place_both_ways(Search(problem, budget), rule, contention=(False,), looks_at_all_ready=True)


def rule(problem: PlacementProblem, tasks: TaskGraph, ports: bool) -> NDArray[np.int64]:
    """``int64[K]``: a device for each task; see `placement.placers.list_scheduling.schedule.Rule`."""
    return earliest_start_schedule(
        problem, tasks, upward_rank(problem, tasks), allowed=accelerators_first(problem, tasks.unit_allowed)
    )
