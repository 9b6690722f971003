"""m-SCT: small communication times; each task has a favourite child that should follow it on its device.

Hanen and Munier, "An approximation algorithm for scheduling dependent tasks on m processors with small communication
delays", ETFA 1995, doi:10.1109/ETFA.1995.496773; with memory as in Jeon et al., "Baechi", SoCC 2020, section 3.3,
doi:10.1145/3419111.3421302. A linear programme (solved by HiGHS) says which children are favourites; then tasks are
placed by earliest start, and a device that waits for a favourite child takes no other task before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.task_graph import TaskGraph
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions, accelerators_first
from placement.placers.list_scheduling.schedule import (
    earliest_start_schedule,
    mean_transfer_s,
    place_both_ways,
    upward_rank,
)

THRESHOLD = 0.1
"""An edge whose variable is below this makes its reader the favourite child (Baechi's rounding)."""


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Solve for favourite children, then the earliest start with devices kept free for them; on groups and on ops."""
    return place_both_ways(Search(problem, budget), _rule, contention=(True,), looks_at_all_ready=True)


def _rule(problem: PlacementProblem, tasks: TaskGraph, ports: bool) -> NDArray[np.int64]:
    return earliest_start_schedule(
        problem,
        tasks,
        upward_rank(problem, tasks),
        allowed=accelerators_first(problem, tasks.unit_allowed),
        favourite=favourite_children(problem, tasks),
        ports=ports,
    )


def favourite_children(problem: PlacementProblem, tasks: TaskGraph) -> NDArray[np.int64]:
    """``int64[K]``: each task's favourite child, or -1."""
    parent, child, transfer_s = _edges(problem, tasks)
    favourite = np.full(tasks.num_tasks, -1, dtype=np.int64)
    if len(parent):
        # Times in units of their mean, so that the solver's tolerances mean the same for every graph.
        scale_s = max(float(tasks.mean_time_s.mean()), 1e-12)
        chosen = np.flatnonzero(_solve(tasks.mean_time_s / scale_s, parent, child, transfer_s / scale_s) < THRESHOLD)
        favourite[parent[chosen]] = child[chosen]
    return favourite


def _solve(
    time: NDArray[np.float64], parent: NDArray[np.int64], child: NDArray[np.int64], transfer: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``float64[E]``: the edge variables of the linear programme.

    Minimise the makespan ``w`` over starts ``s`` and edge variables ``x`` in [0, 1], 0 where the reader is the
    favourite: ``s[j] >= s[i] + time[i] + x[i, j] * transfer[i, j]`` and ``w >= s[i] + time[i]``; of the edges out of a
    task all but one have ``x = 1`` at least in sum, and so have the edges into a task.
    """
    from scipy.optimize import linprog
    from scipy.sparse import block_array, coo_array, eye_array

    num_tasks, num_edges = len(time), len(parent)
    edge, ones = np.arange(num_edges), np.ones(num_edges)
    out = coo_array((ones, (parent, edge)), shape=(num_tasks, num_edges)).tocsr()
    into = coo_array((ones, (child, edge)), shape=(num_tasks, num_edges)).tocsr()
    w = -np.ones((num_tasks, 1))
    matrix = block_array(  # columns: s, x, w
        [
            [out.T - into.T, coo_array((transfer, (edge, edge))), None],
            [eye_array(num_tasks), None, w],
            [None, -out, None],
            [None, -into, None],
        ]
    )
    right = np.concatenate([-time[parent], -time, _all_but_one(parent, num_tasks), _all_but_one(child, num_tasks)])
    objective = np.zeros(num_tasks + num_edges + 1)
    objective[-1] = 1.0
    bounds = [(0.0, None)] * num_tasks + [(0.0, 1.0)] * num_edges + [(0.0, None)]
    answer = linprog(objective, A_ub=matrix.tocsr(), b_ub=right, bounds=bounds, method="highs")
    edges: NDArray[np.float64] = answer.x[num_tasks:-1]
    return edges


def _all_but_one(end: NDArray[np.int64], num_tasks: int) -> NDArray[np.float64]:
    """Minus the number of edges at a task but one, 0 for a task without edges."""
    return -np.maximum(np.bincount(end, minlength=num_tasks) - 1.0, 0.0)


def _edges(
    problem: PlacementProblem, tasks: TaskGraph
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """``(parent, child, transfer_s)`` of each pair of tasks, the transfers of several tensors added up."""
    tensor = np.repeat(np.arange(len(tasks.producer)), np.diff(tasks.consumer_offsets))
    keys = tasks.producer[tensor].astype(np.int64) * tasks.num_tasks + tasks.consumers
    keys = keys[~tasks.free_source[tasks.producer[tensor]]]
    seconds = mean_transfer_s(problem, tasks)[tensor][~tasks.free_source[tasks.producer[tensor]]]
    pairs, inverse = np.unique(keys, return_inverse=True)
    added = np.bincount(inverse, seconds, len(pairs)).astype(np.float64)
    return pairs // tasks.num_tasks, pairs % tasks.num_tasks, added
