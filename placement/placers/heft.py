"""HEFT: heterogeneous earliest finish time.

Topcuoglu, Hariri and Wu, "Performance-effective and low-complexity task scheduling for heterogeneous computing", IEEE
TPDS 13(3), 2002, doi:10.1109/71.993206.

Deviations: memory is respected by estimate; a tensor is sent once to a device however many tasks read it there; tasks
of one group share a device, which the first of them to be placed chooses; parameters go to their first reader.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.task_graph import TaskGraph
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.list_scheduling.schedule import insertion_schedule, place_both_ways, priority_order, upward_rank


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Tasks by upward rank, each where it ends earliest; on groups and on ops, with and without link contention."""
    return place_both_ways(Search(problem, budget), rule)


def rule(problem: PlacementProblem, tasks: TaskGraph, ports: bool) -> NDArray[np.int64]:
    """``int64[K]``: a device for each task; see `placement.placers.list_scheduling.schedule.Rule`."""
    order = priority_order(tasks, upward_rank(problem, tasks))
    return insertion_schedule(problem, tasks, order, ports=ports)
