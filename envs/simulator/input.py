"""A problem laid out for the simulator: data only."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster
from envs.simulator.remaining import remaining_paths_s
from graphs.colocation.module_visits import ModuleVisits, module_visits
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, unknown_name

SCHEDULES = ("priority", "fifo", "program_order", "sequential")
"""Names of the schedules."""


@dataclass(frozen=True, eq=False)
class SimulatorInput:
    """What the simulator reads, as arrays; make one with `make_input`.

    Attributes:
        schedule: One of `SCHEDULES`.
        op_time_s: ``float64[S, N]``.
        device_spec: ``int32[D]``, row of `op_time_s` of each device.
        remaining_path_s: ``float64[N]``, see the schedule ``priority``.
        resident_bytes: ``int64[N]``.
        num_inputs: ``int32[N]``, tensors that each op reads.
        input_offsets: ``int32[N + 1]`` and
        input_edges: ``int32[E]``: op ``i`` reads by the edges ``input_edges[input_offsets[i]:input_offsets[i + 1]]``;
            an edge is a position in `consumers`.
        tensor_offsets: ``int32[N + 1]``; op ``i`` makes tensors ``tensor_offsets[i]`` to ``tensor_offsets[i + 1]``.
        tensor_bytes: ``int64[T]``.
        tensor_resident: ``bool[T]``.
        tensor_transfer_s: ``float64[T]``, seconds of a transfer whatever its route; NaN where bytes decide.
        consumer_offsets: ``int32[T + 1]`` and
        consumers: ``int32[E]``, as in the graph.
        route_latency_s: ``float64[D, D]``.
        route_bytes_per_s: ``float64[D, D]``.
        route_offsets: ``int32[D * D + 1]`` and
        route_directions: ``int32[...]``, as in `envs.clusters.cluster.Routes`.
        receive_s_per_byte: ``float64[D, D]``, seconds of the receiver that a byte takes where it copies itself; 0 where
            it does not.
        visits: Which reads share a copy under the schedule ``sequential``; None under the others.
    """

    schedule: str
    op_time_s: NDArray[np.float64]
    device_spec: NDArray[np.int32]
    remaining_path_s: NDArray[np.float64]
    resident_bytes: NDArray[np.int64]
    num_inputs: NDArray[np.int32]
    input_offsets: NDArray[np.int32]
    input_edges: NDArray[np.int32]
    tensor_offsets: NDArray[np.int32]
    tensor_bytes: NDArray[np.int64]
    tensor_resident: NDArray[np.bool_]
    tensor_transfer_s: NDArray[np.float64]
    consumer_offsets: NDArray[np.int32]
    consumers: NDArray[np.int32]
    route_latency_s: NDArray[np.float64]
    route_bytes_per_s: NDArray[np.float64]
    route_offsets: NDArray[np.int32]
    route_directions: NDArray[np.int32]
    receive_s_per_byte: NDArray[np.float64]
    visits: ModuleVisits | None

    def __post_init__(self) -> None:
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def num_ops(self) -> int:
        """``N``."""
        return len(self.num_inputs)

    @property
    def num_devices(self) -> int:
        """``D``."""
        return len(self.device_spec)

    @property
    def num_directions(self) -> int:
        """One more than the largest number of a link direction that any route crosses."""
        return int(self.route_directions.max(initial=-1)) + 1

    @cached_property
    def tensor_producer(self) -> NDArray[np.int32]:
        """``int32[T]``."""
        return np.repeat(np.arange(self.num_ops, dtype=np.int32), np.diff(self.tensor_offsets))

    def priced_routes(self) -> tuple[NDArray[np.uint32], NDArray[np.float64], NDArray[np.float64]]:
        """What the kernels look the time of a transfer up by: ``latency + bytes / rate`` of an entry.

        Returns:
            ``(entry uint32[T], latency_s, bytes_per_s)``: the entries 0 to ``D * D - 1`` are the routes, which count
            where a tensor's entry is 0; behind them is one of the seconds, at an infinite rate, for each tensor whose
            transfers take a given time.
        """
        timed = np.flatnonzero(~np.isnan(self.tensor_transfer_s))
        entry = np.zeros(len(self.tensor_bytes), dtype=np.uint32)
        entry[timed] = self.num_devices**2 + np.arange(len(timed))
        latency_s = np.concatenate([self.route_latency_s.ravel(), self.tensor_transfer_s[timed]])
        return entry, latency_s, np.concatenate([self.route_bytes_per_s.ravel(), np.full(len(timed), np.inf)])

    @cached_property
    def edge_tensor(self) -> NDArray[np.int32]:
        """``int32[E]``."""
        return np.repeat(np.arange(len(self.tensor_bytes), dtype=np.int32), np.diff(self.consumer_offsets))

    def with_schedule(self, schedule: str, graph: ComputationGraph) -> SimulatorInput:
        """The same under another schedule.

        Args:
            schedule: One of `SCHEDULES`.
            graph: The graph that this was laid out from.
        """
        return replace(self, schedule=schedule, visits=_visits(graph, schedule))

    @cached_property
    def receives(self) -> bool:
        """Whether any device copies what it receives itself, which is lowered as `envs.simulator.receiving` says."""
        return self.schedule != "sequential" and bool(self.receive_s_per_byte.any())

    @cached_property
    def copied_bytes(self) -> NDArray[np.int64]:
        """``int64[T]``: bytes of each tensor that a receiver copies; 0 of one whose transfers take a given time."""
        return np.where(np.isnan(self.tensor_transfer_s), self.tensor_bytes, 0)

    @cached_property
    def reading_order(self) -> NDArray[np.int64]:
        """``int64[N]``: of the readers of a tensor on a device, the one that has the least of these is the first."""
        order = np.arange(self.num_ops)
        if self.schedule == "priority":
            order[np.lexsort((np.arange(self.num_ops), -self.remaining_path_s))] = np.arange(self.num_ops)
        return order

    @cached_property
    def by_priority(self) -> tuple[SimulatorInput, NDArray[np.int64], NDArray[np.int64]]:
        """The same with its ops by remaining path, the longest first, and then by index.

        Devices that go by priority run them about in this order, so what they need next lies close by in memory.

        Returns:
            ``(input, order int64[N], tensor_order int64[T])``: the op and the tensor here at each position there.
        """
        order = np.lexsort((np.arange(self.num_ops), -self.remaining_path_s))
        position = np.argsort(order)
        tensor_order, tensor_offsets = _rows_in_order(self.tensor_offsets, order)
        edge_order, consumer_offsets = _rows_in_order(self.consumer_offsets, tensor_order)
        consumers = position[self.consumers[edge_order]].astype(np.int32)
        num_inputs = self.num_inputs[order]
        there = replace(
            self,
            op_time_s=np.ascontiguousarray(self.op_time_s[:, order]),
            remaining_path_s=self.remaining_path_s[order],
            resident_bytes=self.resident_bytes[order],
            num_inputs=num_inputs,
            input_offsets=np.concatenate([[0], np.cumsum(num_inputs)]).astype(np.int32),
            input_edges=np.argsort(consumers, kind="stable").astype(np.int32),
            tensor_offsets=tensor_offsets,
            tensor_bytes=self.tensor_bytes[tensor_order],
            tensor_resident=self.tensor_resident[tensor_order],
            tensor_transfer_s=self.tensor_transfer_s[tensor_order],
            consumer_offsets=consumer_offsets,
            consumers=consumers,
        )
        return there, order, tensor_order

    @cached_property
    def idle_workspaces(self) -> list[Any]:
        """Workspaces that no thread has just now; `envs.simulator.workspace` hands them out."""
        return []

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()


def make_input(
    graph: ComputationGraph,
    cluster: Cluster,
    times: NDArray[np.float64],
    device_spec: NDArray[np.int32],
    op_allowed: NDArray[np.bool_],
    schedule: str,
) -> SimulatorInput:
    """Lay a problem out for the simulator.

    Args:
        graph: The step.
        cluster: The devices and routes.
        times: ``float64[S, N]``, op times by distinct device spec.
        device_spec: ``int32[D]``, row of `times` of each device.
        op_allowed: ``bool[N, D]``; only the remaining paths of ``priority`` depend on it.
        schedule: One of `SCHEDULES`.

    Raises:
        InputError: The schedule is unknown; an op time is not a number, infinite or negative; an op may run nowhere;
            the step is too long for float64 or needs more memory than int64 counts.
    """
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    bad = np.argwhere(~(np.isfinite(times) & (times >= 0)))
    if len(bad):
        row, op = bad[0]
        device = cluster.devices[int(np.argmax(device_spec == row))].name
        raise InputError(
            f"graph '{graph.name}': op '{graph.op_names[op]}' would take {times[row, op]} s on device '{device}'; "
            "op times must be finite and not negative"
        )
    fastest = np.where(op_allowed.T, times[device_spec], np.inf).min(axis=0)  # [N]
    nowhere = np.flatnonzero(np.isinf(fastest))
    if nowhere.size:
        raise InputError(
            f"graph '{graph.name}': op '{graph.op_names[nowhere[0]]}' may run on no device of cluster '{cluster.name}'"
        )
    _check_magnitudes(graph, cluster, times, schedule)
    routes = cluster.routes
    order = np.argsort(graph.consumers, kind="stable").astype(np.int32)
    num_inputs = np.bincount(graph.consumers, minlength=graph.num_ops).astype(np.int32)
    tensor_offsets = graph.tensor_offsets.astype(np.int32)
    consumer_offsets = graph.consumer_offsets.astype(np.int32)
    remaining_path_s = remaining_paths_s(fastest, tensor_offsets, consumer_offsets, np.array(graph.consumers))
    return SimulatorInput(
        schedule=schedule,
        op_time_s=np.array(times, dtype=np.float64, order="C"),
        device_spec=np.array(device_spec, dtype=np.int32),
        remaining_path_s=remaining_path_s,
        resident_bytes=graph.resident_bytes.sum(axis=1),
        num_inputs=num_inputs,
        input_offsets=np.concatenate([[0], np.cumsum(num_inputs)]).astype(np.int32),
        input_edges=order,
        tensor_offsets=tensor_offsets,
        tensor_bytes=np.array(graph.tensor_bytes),
        tensor_resident=np.array(graph.tensor_resident),
        tensor_transfer_s=np.array(graph.tensor_transfer_s),
        consumer_offsets=consumer_offsets,
        consumers=np.array(graph.consumers),
        route_latency_s=np.array(routes.latency_s),
        route_bytes_per_s=np.array(routes.bytes_per_s),
        route_offsets=np.array(routes.offsets),
        route_directions=np.array(routes.directions),
        receive_s_per_byte=np.where(routes.receiver_copies, 1.0 / routes.bytes_per_s, 0.0),
        visits=_visits(graph, schedule),
    )


def _rows_in_order(offsets: NDArray[np.int32], order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Of rows that begin at `offsets`, taken in an order: which entry is then where, and where the rows then begin."""
    lengths = np.diff(offsets)[order]
    begins = np.concatenate([[0], np.cumsum(lengths)])
    return np.repeat(offsets[:-1][order] - begins[:-1], lengths) + np.arange(begins[-1]), begins.astype(np.int32)


def _visits(graph: ComputationGraph, schedule: str) -> ModuleVisits | None:
    return module_visits(graph) if schedule == "sequential" else None


def _check_magnitudes(graph: ComputationGraph, cluster: Cluster, times: NDArray[np.float64], schedule: str) -> None:
    """Raise where a step could overflow: then no event could be told from "never", nor a size from a negative one."""
    routes = cluster.routes
    with np.errstate(over="ignore"):  # a sum that becomes infinite is refused below
        slowest_s = times.max(axis=0)  # [N]
        crossing_s = float(routes.latency_s.max(initial=0.0)) + graph.tensor_bytes / float(routes.bytes_per_s.min())
        crossing_s = np.where(np.isnan(graph.tensor_transfer_s), crossing_s, graph.tensor_transfer_s)
        copies = np.diff(graph.consumer_offsets).astype(np.int64)
        if schedule != "sequential":
            copies = np.minimum(copies, cluster.num_devices)
        longest_s = slowest_s.sum() + (crossing_s * copies).sum()
    if not np.isfinite(longest_s):
        raise InputError(
            f"graph '{graph.name}' on cluster '{cluster.name}': a step could last longer than float64 can count (op "
            f"'{graph.op_names[int(slowest_s.argmax())]}' alone {slowest_s.max():.3g} s, a transfer "
            f"{crossing_s.max(initial=0.0):.3g} s); look for a huge op time or latency, or a bandwidth near zero"
        )
    in_memory = sum((1 + n) * size for n, size in zip(copies.tolist(), graph.tensor_bytes.tolist(), strict=True))
    total = in_memory + sum(map(int, graph.resident_bytes.ravel()))
    if total > np.iinfo(np.int64).max:
        made = np.bincount(graph.tensor_producer, graph.tensor_bytes, graph.num_ops)
        largest = int(np.argmax(made + graph.resident_bytes.astype(np.float64).sum(axis=1)))
        raise InputError(
            f"graph '{graph.name}': its tensors and residents add up to {total:.3g} bytes, too many for int64; the op "
            f"with the most is '{graph.op_names[largest]}'"
        )
