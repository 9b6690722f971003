"""What chains of moves walk over: the units that move, and what the compiled walk needs to know of them.

Letters: ``N`` ops, ``U`` units, ``G`` groups, ``D`` devices, ``T`` tensors, ``P`` ordered pairs of units that exchange
tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.colocation.groups import Groups


class Field(NamedTuple):
    """A partition of the ops into units, each of which is moved as a whole."""

    unit_of_op: NDArray[np.int32]  # [N]
    op_offsets: NDArray[np.int64]  # [U + 1]
    ops_of_unit: NDArray[np.int64]  # [N]
    group_share: NDArray[np.float64]  # [N], of its unit's ops; sums to 1 over a unit
    group_of_op: NDArray[np.int32]  # [N]
    allowed: NDArray[np.bool_]  # [U, D]
    time_s: NDArray[np.float64]  # [U, D]
    log_time: NDArray[np.float64]  # [U, D]
    near_offsets: NDArray[np.int64]  # [U + 1]
    near: NDArray[np.int64]  # [P], the units that each exchanges tensors with
    near_s: NDArray[np.float64]  # [P], seconds that these tensors take over the median route
    orders: NDArray[np.int64]  # [2, U], by program, and by (family, time step)
    rank: NDArray[np.int64]  # [2, U], the inverse
    input_offsets: NDArray[np.int64]  # [N + 1]
    input_tensors: NDArray[np.int32]
    producer: NDArray[np.int32]  # [T]
    memory_bytes: NDArray[np.int64]  # [M], of each device and of what devices share, see `envs.clusters.memories`
    memory_offsets: NDArray[np.int64]  # [M + 1]
    memory_users: NDArray[np.int64]  # the devices that use each memory

    @property
    def num_movable(self) -> int:
        """Units that may be on more than one device."""
        return int((self.allowed.sum(axis=1) > 1).sum())

    def from_ops(self, ops: NDArray[np.int32]) -> NDArray[np.int64]:
        """``int64[U]`` from ``int32[N]``: where most ops of each unit are, of the devices that it may be on."""
        votes = np.zeros(self.allowed.shape)
        np.add.at(votes, (self.unit_of_op, ops), 1.0)
        return np.where(self.allowed, votes, -1.0).argmax(axis=1).astype(np.int64)

    def of_groups(self, figures: NDArray[np.float32]) -> NDArray[np.float32]:
        """``float32[U, D]`` from ``float32[G, D]``: of each unit the mean over its ops of their groups' figures."""
        columns = [
            np.bincount(self.unit_of_op, self.group_share * column[self.group_of_op], len(self.allowed))
            for column in figures.T
        ]
        return np.stack(columns, axis=1).astype(np.float32)


def make_field(problem: PlacementProblem, units: Groups) -> Field:
    """Lay a problem out for the compiled walk.

    Args:
        problem: What to place.
        units: What is moved; ops that share a unit share a device.
    """
    graph, cluster = problem.graph, problem.cluster
    count, unit = units.num_groups, units.group_of_op
    allowed = np.ones((count, problem.num_devices), dtype=np.bool_)
    np.logical_and.at(allowed, unit, problem.op_allowed)
    times = [np.bincount(unit, times, count).astype(np.float64) for times in problem.op_time_s]
    time_s = np.stack(times, axis=1)
    sizes = np.bincount(unit, minlength=count)
    near_offsets, near, near_s = _exchanges(problem, units)
    orders = np.stack([units.program_order, units.family_order]).astype(np.int64)
    input_offsets, input_tensors = graph.input_tensors
    return Field(
        unit_of_op=np.array(unit, dtype=np.int32),
        op_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        ops_of_unit=np.argsort(unit, kind="stable").astype(np.int64),
        group_share=1.0 / sizes[unit],
        group_of_op=np.array(problem.groups.group_of_op, dtype=np.int32),
        allowed=allowed,
        time_s=time_s,
        log_time=np.log(time_s + 1e-9),
        near_offsets=near_offsets,
        near=near,
        near_s=near_s,
        orders=orders,
        rank=np.argsort(orders, axis=1),
        input_offsets=np.array(input_offsets, dtype=np.int64),
        input_tensors=np.array(input_tensors, dtype=np.int32),
        producer=np.array(graph.tensor_producer, dtype=np.int32),
        memory_bytes=cluster.memories.limit_bytes,
        memory_offsets=cluster.memories.offsets,
        memory_users=cluster.memories.users,
    )


def _exchanges(
    problem: PlacementProblem, units: Groups
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """``near_offsets``, ``near`` and ``near_s`` of a `Field`; a tensor counts once for each unit that reads it."""
    graph, routes = problem.graph, problem.cluster.routes
    count, unit = units.num_groups, units.group_of_op.astype(np.int64)
    apart = ~np.eye(problem.num_devices, dtype=np.bool_)
    latency_s, per_byte = 0.0, 0.0
    if problem.num_devices > 1:
        latency_s = float(np.median(routes.latency_s[apart]))
        per_byte = float(np.median(1.0 / routes.bytes_per_s[apart]))
    maker, reader = unit[graph.edge_producer], unit[graph.consumers]
    between = maker != reader
    sent = np.stack([graph.edge_tensor[between].astype(np.int64), maker[between], reader[between]])
    tensor, maker, reader = np.unique(sent, axis=1)
    seconds = latency_s + graph.tensor_bytes[tensor] * per_byte
    given_s = graph.tensor_transfer_s[tensor]
    seconds = np.where(np.isnan(given_s), seconds, given_s)
    pairs = np.concatenate([maker * count + reader, reader * count + maker])
    pair, which = np.unique(pairs, return_inverse=True)
    near_s = np.bincount(which.ravel(), np.concatenate([seconds, seconds]), len(pair)).astype(np.float64)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pair // count, minlength=count))])
    return offsets.astype(np.int64), pair % count, near_s
