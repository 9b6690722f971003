"""The graph that list schedulers walk: tasks with times, tensors between them, and what must share a device.

Two grains. In the graph of *groups* a task is one group's part in one phase of the step (its forward ops, its backward
ops, its update), because a whole group is read by and reads its neighbours: forward one way, backward the other.
In the graph of *ops* a task is one op, and the groups vote afterwards.

Letters: ``K`` tasks, ``U`` units (tasks of one unit share a device), ``R`` tensors, ``E`` pairs of a tensor and a task
that reads it, ``D`` devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.footprint import group_bytes
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op


@dataclass(frozen=True, eq=False)
class TaskGraph:
    """Tasks in a topological order, and the tensors that pass between them.

    Attributes:
        time_s: ``float64[K, D]``, infinite where a task may not run.
        unit: ``int32[K]``.
        unit_allowed: ``bool[U, D]``.
        unit_bytes: ``float64[U]``, estimate of the memory that a unit needs where it is.
        producer: ``int32[R]``, smaller than each of the tensor's consumers.
        tensor_bytes: ``float64[R]``, what goes over the links.
        by_links: ``float64[R]``, 1 where sending takes a route's latency, 0 where no part of the tensor goes by bytes.
        added_s: ``float64[R]``, seconds that sending takes besides, whatever the route.
        consumer_offsets: ``int64[R + 1]`` into `consumers`.
        consumers: ``int32[E]``.
    """

    time_s: NDArray[np.float64]
    unit: NDArray[np.int32]
    unit_allowed: NDArray[np.bool_]
    unit_bytes: NDArray[np.float64]
    producer: NDArray[np.int32]
    tensor_bytes: NDArray[np.float64]
    by_links: NDArray[np.float64]
    added_s: NDArray[np.float64]
    consumer_offsets: NDArray[np.int64]
    consumers: NDArray[np.int32]

    @property
    def num_tasks(self) -> int:
        """``K``."""
        return len(self.unit)

    @cached_property
    def mean_time_s(self) -> NDArray[np.float64]:
        """``float64[K]``: mean over the devices on which the task may run."""
        finite = np.isfinite(self.time_s)
        return np.where(finite, self.time_s, 0.0).sum(axis=1) / finite.sum(axis=1)

    @cached_property
    def inputs(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """``(offsets int64[K + 1], tensors int32[E])``: the tensors that each task reads."""
        edge_tensor = np.repeat(np.arange(len(self.producer), dtype=np.int32), np.diff(self.consumer_offsets))
        order = np.argsort(self.consumers, kind="stable")
        counts = np.bincount(self.consumers, minlength=self.num_tasks)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), edge_tensor[order]

    @cached_property
    def outputs(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """``(offsets int64[K + 1], tensors int32[R])``: the tensors that each task makes."""
        order = np.argsort(self.producer, kind="stable")
        counts = np.bincount(self.producer, minlength=self.num_tasks)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), order.astype(np.int32)

    def readers(self, task: int) -> NDArray[np.int64]:
        """The tasks that read what a task makes, in order, each once."""
        offsets, outputs = self.outputs
        tensors = outputs[offsets[task] : offsets[task + 1]]
        parts = [self.consumers[self.consumer_offsets[t] : self.consumer_offsets[t + 1]] for t in tensors]
        return np.unique(np.concatenate(parts)).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    @cached_property
    def free_source(self) -> NDArray[np.bool_]:
        """``bool[K]``: tasks that read nothing and take no time, as parameters.

        A list scheduler that placed them first would put them all on one device, where they start earliest; they go
        where their first consumer goes instead.
        """
        offsets, _ = self.inputs
        return (np.diff(offsets) == 0) & (self.mean_time_s == 0.0)


def of_ops(problem: PlacementProblem) -> TaskGraph:
    """One task an op; a unit is what the graph's hard co-location constraints bind."""
    graph = problem.graph
    units = one_group_an_op(graph)
    fine = problem.with_groups(units)
    by_links = np.isnan(graph.tensor_transfer_s)
    return TaskGraph(
        time_s=np.where(problem.op_allowed, problem.op_time_s.T, np.inf),
        unit=units.group_of_op,
        unit_allowed=fine.allowed,
        unit_bytes=group_bytes(fine).astype(np.float64),
        producer=graph.tensor_producer,
        tensor_bytes=np.where(by_links, graph.tensor_bytes, 0.0),
        by_links=by_links.astype(np.float64),
        added_s=np.where(by_links, 0.0, graph.tensor_transfer_s),
        consumer_offsets=graph.consumer_offsets,
        consumers=graph.consumers,
    )


def of_groups(problem: PlacementProblem) -> TaskGraph:
    """One task for each group and phase that it has ops in.

    Tasks are ordered by phase, then by first op. A tensor between two groups that runs against this order (the
    contracted graph can have cycles even within a phase) keeps its cost but is turned round.
    """
    graph, groups = problem.graph, problem.groups
    key = graph.phase.astype(np.int64) * groups.num_groups + groups.group_of_op
    used, first, task_of_op = np.unique(key, return_index=True, return_inverse=True)
    order = np.lexsort((first, used // groups.num_groups))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    task_of_op = rank[task_of_op]
    num_tasks = len(order)
    times = np.stack([np.bincount(task_of_op, t, num_tasks) for t in problem.op_time_s], axis=1)  # [K, D]
    unit = (used[order] % groups.num_groups).astype(np.int32)
    producer, figures, offsets, consumers = _contract(problem, task_of_op)
    return TaskGraph(
        time_s=np.where(problem.allowed[unit], times, np.inf),
        unit=unit,
        unit_allowed=problem.allowed,
        unit_bytes=group_bytes(problem).astype(np.float64),
        producer=producer,
        tensor_bytes=figures[:, 0],
        by_links=figures[:, 1],
        added_s=figures[:, 2],
        consumer_offsets=offsets,
        consumers=consumers,
    )


def vote(problem: PlacementProblem, op_placement: NDArray[np.integer]) -> NDArray[np.int64]:
    """``int64[G]``: the device on which most of each group's op time was placed, among those it may be on."""
    device = np.asarray(op_placement, dtype=np.int64)
    # Ops that take no time count a little, so that a group of parameters follows its parameters.
    weight = problem.op_time_s.mean(axis=0) + 1e-12
    votes = np.zeros((problem.num_groups, problem.num_devices))
    np.add.at(votes, (problem.groups.group_of_op, device), weight)
    return np.where(problem.allowed, votes, -1.0).argmax(axis=1)


def _contract(
    problem: PlacementProblem, task_of_op: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int64], NDArray[np.int32]]:
    """Tensors between tasks: those that the same task sends to the same tasks become one.

    Returns:
        ``(producer int32[R], figures float64[R, 3], consumer_offsets int64[R + 1], consumers int32[E])``; the figures
        are `TaskGraph.tensor_bytes`, `by_links` and `added_s`.
    """
    graph = problem.graph
    num_tasks = int(task_of_op.max()) + 1
    tensor, target = np.divmod(
        np.unique(graph.edge_tensor * np.int64(num_tasks) + task_of_op[graph.consumers]), num_tasks
    )
    source = task_of_op[graph.tensor_producer[tensor]]
    merged: dict[tuple[int, tuple[int, ...]], list[float]] = {}

    def merge(source: int, targets: tuple[int, ...], size: float, seconds: float) -> None:
        figures = merged.setdefault((source, targets), [0.0, 0.0, 0.0])
        if math.isnan(seconds):
            figures[0] += size
            figures[1] = 1.0
        else:
            figures[2] += seconds

    later = target > source
    tensors, first = np.unique(tensor[later], return_index=True)
    ends = [*first[1:].tolist(), int(later.sum())][: len(first)]
    targets = target[later].tolist()
    sizes = graph.tensor_bytes[tensors].astype(np.float64).tolist()
    given_s = graph.tensor_transfer_s[tensors].tolist()
    for maker, size, seconds, a, b in zip(
        source[later][first].tolist(), sizes, given_s, first.tolist(), ends, strict=True
    ):
        merge(maker, tuple(targets[a:b]), size, seconds)
    earlier = target < source
    sizes = graph.tensor_bytes[tensor[earlier]].astype(np.float64).tolist()
    given_s = graph.tensor_transfer_s[tensor[earlier]].tolist()
    for reader, maker, size, seconds in zip(
        target[earlier].tolist(), source[earlier].tolist(), sizes, given_s, strict=True
    ):
        merge(reader, (maker,), size, seconds)
    keys = sorted(merged)
    counts = [len(targets) for _, targets in keys]
    return (
        np.array([source for source, _ in keys], dtype=np.int32),
        np.array([merged[k] for k in keys], dtype=np.float64).reshape(-1, 3),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.array([t for _, targets in keys for t in targets], dtype=np.int32),
    )
