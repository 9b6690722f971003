"""m-ETF: ETF within each device's memory, with transfers that queue for the devices' ports.

Jeon et al., "Baechi: fast device placement of machine learning graphs", SoCC 2020, section 3.2,
doi:10.1145/3419111.3421302, arXiv 2301.08695: of all ready ops and devices with enough memory left, the pair that
starts earliest; a device sends and receives one tensor at a time; ops that must share a device reserve its memory
together.
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
    """The ready task that can start first where it fits, again and again; on groups and on ops."""
    return place_both_ways(Search(problem, budget), rule, contention=(True,), looks_at_all_ready=True)


def rule(problem: PlacementProblem, tasks: TaskGraph, ports: bool) -> NDArray[np.int64]:
    """``int64[K]``: a device for each task; see `placement.placers.list_scheduling.schedule.Rule`."""
    allowed = accelerators_first(problem, tasks.unit_allowed)
    return earliest_start_schedule(problem, tasks, upward_rank(problem, tasks), allowed=allowed, ports=ports)
