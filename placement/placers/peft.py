"""PEFT: predict earliest finish time.

Arabnejad and Barbosa, "List scheduling algorithm for heterogeneous systems by an optimistic cost table", IEEE TPDS
25(3), 2014, doi:10.1109/TPDS.2013.57. Deviations as in `placement.placers.heft`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.task_graph import TaskGraph
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.list_scheduling.schedule import (
    insertion_schedule,
    optimistic_cost_s,
    place_both_ways,
    priority_order,
)


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Tasks by mean optimistic cost, each where its end plus that cost is least; on groups and on ops."""
    return place_both_ways(Search(problem, budget), rule)


def rule(problem: PlacementProblem, tasks: TaskGraph, ports: bool) -> NDArray[np.int64]:
    """``int64[K]``: a device for each task; see `placement.placers.list_scheduling.schedule.Rule`."""
    cost_s = optimistic_cost_s(problem, tasks)  # [K, D]
    order = priority_order(tasks, cost_s.mean(axis=1))
    return insertion_schedule(problem, tasks, order, bias_s=cost_s, ports=ports)
