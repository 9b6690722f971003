"""What the list schedulers share: ranks, and compiled loops that place one task after another.

A list scheduler keeps its own simple picture of a step (tasks one at a time on a device, each tensor sent once to each
device that needs it). The picture guides it; the time of its answer comes from the simulator like everyone's.

Letters: ``K`` tasks, ``U`` units, ``R`` tensors, ``D`` devices.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs import task_graph
from envs.compiling import Packed
from envs.problem import PlacementProblem
from envs.task_graph import TaskGraph
from placement.placers.base import Placed, Search
from placement.placers.list_scheduling import kernels
from placement.placers.list_scheduling.kernels import Picture, State
from placement.placers.searching.repair import repair

SPARE = 0.95
"""Share of a device's memory that the estimates may fill."""

OPS_GRAIN = 3.0
"""Scheduling an op takes about so many times as long as scheduling a group: a device's schedule is longer."""

Rule = Callable[[PlacementProblem, TaskGraph, bool], NDArray[np.int64]]
"""``rule(problem, tasks, ports) -> int64[K]``: a device for each task; `ports` as in `insertion_schedule`."""


def place_both_ways(
    search: Search, rule: Rule, *, contention: tuple[bool, ...] = (False, True), looks_at_all_ready: bool = False
) -> Placed:
    """Run a list scheduler on groups, and on single ops followed by a vote in each group; answer the best.

    A schedule cannot be broken off. So where time is limited, one is begun only where there is time for it: of groups
    always a first one, and of ops where what the groups took, times what more tasks cost, leaves time.

    Args:
        search: What evaluates and keeps the best.
        rule: The list scheduler.
        contention: Whether transfers wait for each other at a device's port: tried with each of these.
        looks_at_all_ready: Whether the rule compares all ready tasks for each that it places: its time then grows with
            the square of the tasks.
    """
    problem = search.problem
    best_s, chosen = np.inf, ""
    took_s = 0.0  # of the longest schedule so far
    for grain in ("groups", "ops, then a vote in each group"):
        if grain == "groups":
            tasks = task_graph.of_groups(problem)
        else:
            finer = problem.graph.num_ops / tasks.num_tasks
            took_s *= finer * (finer if looks_at_all_ready else OPS_GRAIN)
            if not _leaves_time(search, took_s):
                break
            tasks = task_graph.of_ops(problem)
        for ports in contention:
            if not _leaves_time(search, took_s):
                break
            began_s = search.elapsed_s
            device = rule(problem, tasks, ports)
            placement = groups_placed(problem, tasks, device) if grain == "groups" else task_graph.vote(problem, device)
            took_s = max(took_s, search.elapsed_s - began_s)
            repair(search, placement)
            if search.best_s < best_s:
                best_s = search.best_s
                chosen = f"on {grain}" + (", transfers queueing" if ports else "")
    return search.placed(note=chosen)


def groups_placed(problem: PlacementProblem, tasks: TaskGraph, device: NDArray[np.int64]) -> NDArray[np.int64]:
    """``int64[G]`` from ``int64[K]``, a device for each task of the graph of groups."""
    placement = np.zeros(problem.num_groups, dtype=np.int64)
    placement[tasks.unit] = device
    return placement


def _leaves_time(search: Search, seconds: float) -> bool:
    """Whether something that takes so long ends before the search's time does."""
    limit_s = search.budget.time_limit_s
    return limit_s is None or search.elapsed_s + seconds <= limit_s


def mean_transfer_s(problem: PlacementProblem, tasks: TaskGraph) -> NDArray[np.float64]:
    """``float64[R]``: mean over all pairs of two devices."""
    count = problem.num_devices
    if count == 1:
        return np.zeros(len(tasks.producer))
    routes = problem.cluster.routes
    pairs = count * (count - 1)
    latency_s, s_per_byte = routes.latency_s.sum() / pairs, (1.0 / routes.bytes_per_s).sum() / pairs
    return tasks.by_links * latency_s + tasks.tensor_bytes * s_per_byte + tasks.added_s


def upward_rank(problem: PlacementProblem, tasks: TaskGraph) -> NDArray[np.float64]:
    """``float64[K]``: seconds from a task's start to the end of the step on the longest path, by mean times.

    Source: Topcuoglu, Hariri and Wu, IEEE TPDS 2002, equation 8, doi:10.1109/71.993206.
    """
    offsets, outputs = tasks.outputs
    transfer_s = mean_transfer_s(problem, tasks)
    rank = np.zeros(tasks.num_tasks)
    kernels.upward_rank(
        _read_only(tasks.mean_time_s, np.float64),
        _read_only(offsets, np.int64),
        _read_only(outputs, np.int32),
        _read_only(tasks.consumer_offsets, np.int64),
        _read_only(tasks.consumers, np.int32),
        _read_only(transfer_s, np.float64),
        rank,
    )
    return rank


def optimistic_cost_s(problem: PlacementProblem, tasks: TaskGraph) -> NDArray[np.float64]:
    """``float64[K, D]``: the least time from a task's end on a device to the end of the step, if nothing queued.

    Source: Arabnejad and Barbosa, IEEE TPDS 2014, equation 6, doi:10.1109/TPDS.2013.57: for the worst reader, the best
    of its devices.
    """
    offsets, outputs = tasks.outputs
    transfer_s = mean_transfer_s(problem, tasks)
    cost_s = np.zeros_like(tasks.time_s)
    kernels.optimistic_cost_s(
        _read_only(tasks.time_s, np.float64),
        _read_only(offsets, np.int64),
        _read_only(outputs, np.int32),
        _read_only(tasks.consumer_offsets, np.int64),
        _read_only(tasks.consumers, np.int32),
        _read_only(transfer_s, np.float64),
        cost_s,
    )
    return cost_s


def priority_order(tasks: TaskGraph, priority: NDArray[np.float64]) -> NDArray[np.int64]:
    """``int64[K]``: of the tasks whose inputs are all placed, always the one of highest priority, then lowest index."""
    in_offsets, _ = tasks.inputs
    out_offsets, outputs = tasks.outputs
    waiting = np.diff(in_offsets)
    ready = [(-priority[k], k) for k in np.flatnonzero(waiting == 0)]
    heapq.heapify(ready)
    order = np.empty(tasks.num_tasks, dtype=np.int64)
    for position in range(tasks.num_tasks):
        _, task = heapq.heappop(ready)
        order[position] = task
        for tensor in outputs[out_offsets[task] : out_offsets[task + 1]]:
            for consumer in tasks.consumers[tasks.consumer_offsets[tensor] : tasks.consumer_offsets[tensor + 1]]:
                waiting[consumer] -= 1
                if waiting[consumer] == 0:
                    heapq.heappush(ready, (-priority[consumer], consumer))
    return order


def insertion_schedule(
    problem: PlacementProblem,
    tasks: TaskGraph,
    order: NDArray[np.int64],
    *,
    bias_s: NDArray[np.float64] | None = None,
    ports: bool = False,
) -> NDArray[np.int64]:
    """Place tasks in a given order, each where it ends earliest, in the first gap of the device that holds it.

    Args:
        problem: The cluster's routes and memories.
        tasks: What to place.
        order: ``int64[K]``, topological.
        bias_s: ``float64[K, D]``, added to a task's end where devices are compared (PEFT's optimistic cost).
        ports: True where transfers wait for each other at the sender's and the receiver's port (contention as in
            Sinnen and Sousa, IEEE TPDS 2005, doi:10.1109/TPDS.2005.64); False as published.

    Returns:
        ``int64[K]``: a device for each task. Where the estimates fill every device, the one with most room.
    """
    bias = bias_s if bias_s is not None else np.zeros_like(tasks.time_s)
    picture, state = _pictures(problem, tasks)
    kernels.insertion_schedule(picture, state, _read_only(order, np.int64), _read_only(bias, np.float64), ports)
    return state.placed


def earliest_start_schedule(
    problem: PlacementProblem,
    tasks: TaskGraph,
    priority: NDArray[np.float64],
    *,
    allowed: NDArray[np.bool_] | None = None,
    favourite: NDArray[np.int64] | None = None,
    ports: bool = False,
) -> NDArray[np.int64]:
    """Place, again and again, the ready task that can start first on any device; ties by priority.

    Args:
        problem: The cluster's routes and memories.
        tasks: What to place.
        priority: ``float64[K]``; of pairs that start equally early the task of highest priority goes first.
        allowed: ``bool[U, D]``, narrower than `TaskGraph.unit_allowed`; a unit that finds no memory there may go
            anywhere that it is allowed.
        favourite: ``int64[K]``, each task's favourite child or -1: while that child waits only for this task, no other
            task may take its place on this task's device (m-SCT).
        ports: As in `insertion_schedule`.

    Returns:
        ``int64[K]``: a device for each task.
    """
    picture, state = _pictures(problem, tasks)
    narrow = tasks.unit_allowed if allowed is None else allowed
    children = favourite if favourite is not None else np.full(tasks.num_tasks, -1, dtype=np.int64)
    kernels.earliest_start_schedule(
        picture,
        state,
        _read_only(priority, np.float64),
        _read_only(narrow, np.bool_),
        _read_only(children, np.int64),
        ports,
    )
    return state.placed


def _read_only(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """A view or copy in the one form that the loops are compiled for: numba would compile again for every other."""
    view = np.ascontiguousarray(array, dtype=dtype).view()
    view.setflags(write=False)
    return view


def _pictures(problem: PlacementProblem, tasks: TaskGraph) -> tuple[Packed, Packed]:
    """What the compiled loops read, a `Picture`, and what they write, a `State`, before anything is placed."""
    in_offsets, inputs = tasks.inputs
    out_offsets, outputs = tasks.outputs
    routes = problem.cluster.routes
    count = problem.num_devices
    picture = Picture(
        time_s=_read_only(tasks.time_s, np.float64),
        unit=_read_only(tasks.unit, np.int32),
        unit_allowed=_read_only(tasks.unit_allowed, np.bool_),
        unit_bytes=_read_only(tasks.unit_bytes, np.float64),
        free_source=_read_only(tasks.free_source, np.bool_),
        producer=_read_only(tasks.producer, np.int32),
        tensor_bytes=_read_only(tasks.tensor_bytes, np.float64),
        by_links=_read_only(tasks.by_links, np.float64),
        added_s=_read_only(tasks.added_s, np.float64),
        in_offsets=_read_only(in_offsets, np.int64),
        inputs=_read_only(inputs, np.int32),
        out_offsets=_read_only(out_offsets, np.int64),
        outputs=_read_only(outputs, np.int32),
        consumer_offsets=_read_only(tasks.consumer_offsets, np.int64),
        consumers=_read_only(tasks.consumers, np.int32),
        latency_s=_read_only(routes.latency_s, np.float64),
        s_per_byte=_read_only(1.0 / routes.bytes_per_s, np.float64),
    )
    state = State(
        placed=np.full(tasks.num_tasks, -1, dtype=np.int64),
        unit_device=np.full(len(tasks.unit_bytes), -1, dtype=np.int64),
        end_s=np.zeros(tasks.num_tasks),
        copied_s=np.full((len(tasks.producer), count), np.inf),
        bytes_left=(problem.cluster.memory_bytes * SPARE).astype(np.float64),
        out_free_s=np.zeros(count),
        in_free_s=np.zeros(count),
        slot_start_s=np.zeros((count, tasks.num_tasks)),
        slot_end_s=np.zeros((count, tasks.num_tasks)),
        slots=np.zeros(count, dtype=np.int64),
        free_s=np.zeros(count),
        ready_s=np.zeros((tasks.num_tasks, count)),
        waiting=np.diff(in_offsets),
        ready=np.empty(tasks.num_tasks, dtype=np.int64),
        kept_for=np.full(count, -1, dtype=np.int64),
    )
    return Packed(picture), Packed(state)
