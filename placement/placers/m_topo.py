"""m-TOPO: groups in topological order, device after device, each filled to an equal share of the memory.

Jeon et al., "Baechi: fast device placement of machine learning graphs", SoCC 2020, section 3.1,
doi:10.1145/3419111.3421302, arXiv 2301.08695. The share is the model's bytes over the devices plus the largest op's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.task_graph import TaskGraph
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions, accelerators_first
from placement.placers.list_scheduling.schedule import SPARE, place_both_ways


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Fill the accelerators one after the other; on groups and on ops."""
    return place_both_ways(Search(problem, budget), _rule, contention=(False,))


def _rule(problem: PlacementProblem, tasks: TaskGraph, ports: bool) -> NDArray[np.int64]:
    allowed = accelerators_first(problem, tasks.unit_allowed)
    devices = np.flatnonzero(allowed.any(axis=0) & (allowed.sum(axis=0) > 1))
    if len(devices) == 0:
        devices = np.flatnonzero(allowed.any(axis=0))
    share = tasks.unit_bytes.sum() / len(devices) + tasks.unit_bytes.max()
    left = np.minimum(problem.cluster.memory_bytes * SPARE, share)  # [D]
    unit_device = np.full(len(tasks.unit_bytes), -1, dtype=np.int64)
    at = 0
    for unit in tasks.unit[~tasks.free_source]:  # in topological order; a unit's first task places it
        if unit_device[unit] >= 0:
            continue
        while at < len(devices) - 1 and left[devices[at]] < tasks.unit_bytes[unit]:
            at += 1
        choices = [d for d in [*devices[at:], *devices[:at]] if allowed[unit, d]]
        unit_device[unit] = choices[0] if choices else allowed[unit].argmax()
        left[unit_device[unit]] -= tasks.unit_bytes[unit]
    placed = unit_device[tasks.unit]
    for task in np.flatnonzero(placed < 0):  # parameters go with their first reader
        readers = tasks.readers(int(task))
        home = placed[readers[0]] if len(readers) else devices[0]
        placed[task] = home if tasks.unit_allowed[tasks.unit[task], home] else allowed[tasks.unit[task]].argmax()
    return placed
