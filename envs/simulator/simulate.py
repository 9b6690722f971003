"""One step or a batch of steps, simulated by the compiled kernels; the package states the rules."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster
from envs.simulator import choosing_kernel, choosing_work, in_order
from envs.simulator.trace import Trace, memory_steps
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, unknown_name

SCHEDULES = ("priority", "fifo", "program_order")
"""Names of the schedules."""


class _Kernel(NamedTuple):
    """The functions of one compiled simulator."""

    make_work: Callable[[SimulatorInput], Any]
    simulate_many: Callable[..., None]
    transfers_of: Callable[[Any], NDArray[Any]]


_CHOOSING = _Kernel(choosing_work.make_work, choosing_kernel.simulate_many, choosing_work.transfers_of)
_IN_ORDER = _Kernel(in_order.make_work, in_order.simulate_many, in_order.transfers_of)


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
        consumer_offsets: ``int32[T + 1]`` and
        consumers: ``int32[E]``, as in the graph.
        route_latency_s: ``float64[D, D]``.
        route_bytes_per_s: ``float64[D, D]``.
        route_offsets: ``int32[D * D + 1]`` and
        route_directions: ``int32[...]``, as in `envs.clusters.cluster.Routes`.
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
    consumer_offsets: NDArray[np.int32]
    consumers: NDArray[np.int32]
    route_latency_s: NDArray[np.float64]
    route_bytes_per_s: NDArray[np.float64]
    route_offsets: NDArray[np.int32]
    route_directions: NDArray[np.int32]

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

    @property
    def _kernel(self) -> _Kernel:
        return _IN_ORDER if self.schedule == "program_order" else _CHOOSING

    @cached_property
    def _idle_workspaces(self) -> list[Any]:
        return []

    @contextmanager
    def _workspace(self) -> Iterator[Any]:
        """A workspace that no other thread has; kept for the next call."""
        try:
            work = self._idle_workspaces.pop()
        except IndexError:
            work = self._kernel.make_work(self)
        yield work
        self._idle_workspaces.append(work)

    def make_workspace(self) -> tuple[Any, tuple[NDArray[Any], ...]]:
        """A workspace for compiled code that calls the simulator itself, and views of what it leaves there.

        The views: start and end of each op, ``float64[N]``; of each transfer the tensor and the destination,
        ``uint32``, and the end, ``float64``; and how many transfers there were, ``uint32[1]``.
        """
        work = self._kernel.make_work(self)
        ops, sent = work.ops[: self.num_ops], work.transfers
        count = work.counts[:1] if self._kernel is _IN_ORDER else work.state["transfers"]
        return work, (ops["start_s"], ops["end_s"], sent["tensor"], sent["destination"], sent["end_s"], count)

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
    _check_magnitudes(graph, cluster, times)
    routes = cluster.routes
    order = np.argsort(graph.consumers, kind="stable").astype(np.int32)
    num_inputs = np.bincount(graph.consumers, minlength=graph.num_ops).astype(np.int32)
    tensor_offsets = graph.tensor_offsets.astype(np.int32)
    consumer_offsets = graph.consumer_offsets.astype(np.int32)
    remaining_path_s = np.empty(graph.num_ops)
    choosing_kernel.remaining_paths(
        fastest, tensor_offsets, consumer_offsets, np.array(graph.consumers), remaining_path_s
    )
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
        consumer_offsets=consumer_offsets,
        consumers=np.array(graph.consumers),
        route_latency_s=np.array(routes.latency_s),
        route_bytes_per_s=np.array(routes.bytes_per_s),
        route_offsets=np.array(routes.offsets),
        route_directions=np.array(routes.directions),
    )


def _check_magnitudes(graph: ComputationGraph, cluster: Cluster, times: NDArray[np.float64]) -> None:
    """Raise where a step could overflow: then no event could be told from "never", nor a size from a negative one."""
    routes = cluster.routes
    with np.errstate(over="ignore"):  # a sum that becomes infinite is refused below
        slowest_s = times.max(axis=0)  # [N]
        crossing_s = float(routes.latency_s.max(initial=0.0)) + graph.tensor_bytes / float(routes.bytes_per_s.min())
        copies = np.minimum(np.diff(graph.consumer_offsets), cluster.num_devices)
        longest_s = slowest_s.sum() + (crossing_s * copies).sum()
    if not np.isfinite(longest_s):
        raise InputError(
            f"graph '{graph.name}' on cluster '{cluster.name}': a step could last longer than float64 can count (op "
            f"'{graph.op_names[int(slowest_s.argmax())]}' alone {slowest_s.max():.3g} s, a transfer "
            f"{crossing_s.max(initial=0.0):.3g} s); look for a huge op time or latency, or a bandwidth near zero"
        )
    total = sum(map(int, graph.tensor_bytes)) * (cluster.num_devices + 1) + sum(map(int, graph.resident_bytes.ravel()))
    if total > np.iinfo(np.int64).max:
        made = np.bincount(graph.tensor_producer, graph.tensor_bytes, graph.num_ops)
        largest = int(np.argmax(made + graph.resident_bytes.astype(np.float64).sum(axis=1)))
        raise InputError(
            f"graph '{graph.name}': its tensors and residents add up to {total:.3g} bytes, too many for int64; the op "
            f"with the most is '{graph.op_names[largest]}'"
        )


def simulate(problem: SimulatorInput, op_placement: NDArray[np.integer]) -> Trace:
    """Simulate one step and keep everything.

    Args:
        problem: What to simulate.
        op_placement: ``int[N]``, a device index for each op.
    """
    placements = as_placements(problem, np.asarray(op_placement)[None])
    step_time_s, peak = np.empty(1), np.empty((1, problem.num_devices), dtype=np.int64)
    with problem._workspace() as work:
        problem._kernel.simulate_many(work, placements, np.full(1, np.inf), step_time_s, peak)
        transfers = problem._kernel.transfers_of(work)
        tensor, destination = (transfers[key].astype(np.int32) for key in ("tensor", "destination"))
        start_s, end_s = transfers["start_s"].copy(), transfers["end_s"].copy()
        op_start_s, op_end_s = (work.ops[key][: problem.num_ops].copy() for key in ("start_s", "end_s"))
    memory_time_s, memory_bytes = memory_steps(
        problem, placements[0], op_start_s, op_end_s, tensor, destination, start_s, end_s
    )
    return Trace(
        step_time_s=float(step_time_s[0]),
        peak_memory_bytes=peak[0],
        op_device=placements[0].copy(),
        op_start_s=op_start_s,
        op_end_s=op_end_s,
        transfer_tensor=tensor,
        transfer_source=placements[0][problem.tensor_producer[tensor]],
        transfer_destination=destination,
        transfer_start_s=start_s,
        transfer_end_s=end_s,
        memory_time_s=memory_time_s,
        memory_bytes=memory_bytes,
    )


def simulate_batch(
    problem: SimulatorInput,
    op_placements: NDArray[np.integer],
    *,
    threads: int | None = None,
    abort_above_s: float | NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Step times and peak memories of a batch of placements.

    Args:
        problem: What to simulate.
        op_placements: ``int[B, N]``, a device index for each op.
        threads: Cores to use; by default all that this process may use. The result does not depend on it.
        abort_above_s: Seconds, one figure or ``float64[B]``: stop a step as soon as it is proven to take longer, by the
            longest path that is left or by what a device has left to compute. A step time that is returned is exact
            all the same. Placements must have every op on a device that it may be on.

    Returns:
        ``(step_time_s float64[B], peak_memory_bytes int64[B, D])``. A step that was stopped takes longer than it might;
        its step time is given as infinity and its peaks are those until then.

    Raises:
        InputError: The shape or a device index is wrong, or a bound is not a number.
    """
    placements = as_placements(problem, np.asarray(op_placements))
    count = len(placements)
    step_time_s = np.empty(count)
    peak = np.empty((count, problem.num_devices), dtype=np.int64)
    limit_s = limits_s(abort_above_s, count)
    parts = min(available_cores() if threads is None else max(threads, 1), count)

    def part(number: int) -> None:
        rows = slice(count * number // parts, count * (number + 1) // parts)
        with problem._workspace() as work:
            problem._kernel.simulate_many(work, placements[rows], limit_s[rows], step_time_s[rows], peak[rows])

    if count == 0:
        return step_time_s, peak
    problem._idle_workspaces  # noqa: B018 (made once, before several threads ask for it)
    others = [_pool().submit(part, number) for number in range(1, parts)]
    part(0)
    for other in others:
        other.result()
    return step_time_s, peak


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_pools: list[ThreadPoolExecutor] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # a child has none of its parent's threads


def _pool() -> ThreadPoolExecutor:
    if not _pools:
        _pools.append(ThreadPoolExecutor(max_workers=available_cores(), thread_name_prefix="simulator"))
    return _pools[0]


def limits_s(abort_above_s: float | NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    """``float64[count]``: the bounds as the kernel wants them, infinity where there is none.

    Raises:
        InputError: A bound is not a number.
    """
    limit_s = np.full(count, np.inf)
    if abort_above_s is not None:
        limit_s[:] = abort_above_s
        if np.isnan(limit_s).any():
            raise InputError("abort_above_s is not a number; give seconds, or infinity for no bound")
    return limit_s


def as_placements(problem: SimulatorInput, placements: NDArray[np.integer]) -> NDArray[np.int32]:
    """The placements as the kernel wants them: read-only, contiguous ``int32[B, N]``, every index in range."""
    if placements.ndim != 2 or placements.shape[1] != problem.num_ops or placements.dtype.kind not in "iu":
        raise InputError(
            f"placements of ops must be integers of shape [B, {problem.num_ops}], not {placements.dtype} of shape "
            f"{list(placements.shape)}"
        )
    if placements.size and not 0 <= placements.min() <= placements.max() < problem.num_devices:
        raise InputError(
            f"a placement names device {placements.min()} to {placements.max()}; there are devices 0 to "
            f"{problem.num_devices - 1}"
        )
    view = np.ascontiguousarray(placements, dtype=np.int32).view()
    view.setflags(write=False)
    return view
