"""The compiled step simulator for ``sequential``: one op or one transfer at a time on the whole cluster.

That is how a model runs whose modules are spread over devices by hooks that move tensors (Hugging Face Accelerate's
device maps): the next module begins when the one before it has ended and its inputs have been moved. Nothing competes,
so there are no events: the ops are walked in the order of their indices.

A *copy* of a tensor serves the readers of one visit (`graphs.colocation.module_visits`) on one device, and is called by
the number of the first of the edges to them.

Letters: ``N`` ops, ``E`` edges, ``T`` tensors, ``D`` devices, ``S`` distinct device specs, ``M`` modules, ``V`` visits,
``C`` contributions to sums of gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.compiling import compiled, inlined
from envs.simulator.choosing.step import EPSILON

if TYPE_CHECKING:
    from envs.simulator.input import SimulatorInput

_0, _1 = np.uint64(0), np.uint64(1)

OP = np.dtype([("start_s", np.float64), ("end_s", np.float64)], align=True)
TRANSFER = np.dtype(
    [
        ("start_s", np.float64),
        ("end_s", np.float64),
        ("tensor", np.uint32),
        ("destination", np.uint32),
        ("copy", np.int32),
    ],
    align=True,
)

HOME, CARRIED = -1, -2
"""In place of an edge's copy: the tensor was made where it is read; or it is a gradient that was added, where it was
made, to another that is sent."""

_UNKNOWN, _SEVERAL = -1, -2  # in place of a module's device


class Sequence(NamedTuple):
    """All that one thread needs to simulate: what is given, and what changes."""

    op_time_s: NDArray[np.float64]  # [S, N]
    spec: NDArray[np.uint32]  # [D], row of `op_time_s`
    resident_bytes: NDArray[np.int64]  # [N]
    first_input: NDArray[np.uint32]  # [N + 1]
    input_edges: NDArray[np.uint32]  # [E], the edges that each op reads by
    edge_tensor: NDArray[np.uint32]  # [E]
    first_tensor: NDArray[np.uint32]  # [N + 1]
    first_edge: NDArray[np.uint32]  # [T + 1]
    readers: NDArray[np.uint32]  # [E]
    producer: NDArray[np.uint32]  # [T]
    tensor_bytes: NDArray[np.int64]  # [T]
    local_bytes: NDArray[np.int64]  # [T], 0 where the tensor is resident
    priced_as: NDArray[np.uint32]  # [T], entry of the next two that says what sending takes, 0 for the route's
    latency_s: NDArray[np.float64]  # [D * D + tensors of given seconds]; see `SimulatorInput.priced_routes`
    bytes_per_s: NDArray[np.float64]
    parent: NDArray[np.int32]  # [M]; from here to `sum_edges` as in `graphs.colocation.module_visits`
    calls: NDArray[np.int32]  # [M]
    first_visit: NDArray[np.int32]  # [M + 1]
    module: NDArray[np.int32]  # [N]
    call: NDArray[np.int32]  # [N]
    decides: NDArray[np.bool_]  # [N]
    by_visit: NDArray[np.bool_]  # [T]
    sum_offsets: NDArray[np.int32]
    sum_edges: NDArray[np.uint32]  # [C]
    ops: NDArray[Any]  # OP[N]
    transfers: NDArray[Any]  # TRANSFER[E]
    module_device: NDArray[np.int32]  # [M]
    entry: NDArray[np.int32]  # [M], the outermost module that each is in and that is on one device
    stamp: NDArray[np.int32]  # [V + 1, D], the tensor, or the sum, that a visit was asked for last
    first_copy: NDArray[np.int32]  # [V + 1, D], the copy of that tensor
    copy: NDArray[np.int32]  # [E], that each edge reads, or HOME or CARRIED
    readers_left: NDArray[np.int32]  # [E], readers of each copy that have not ended
    arrived: NDArray[np.bool_]  # [E], of each copy
    readers_at_home: NDArray[np.int32]  # [T], that have not ended
    departures: NDArray[np.int32]  # [T], copies that have still to be sent
    used: NDArray[np.int64]  # [D], bytes in use
    counts: NDArray[np.uint32]  # [1], transfers


def make_work(problem: SimulatorInput) -> Sequence:
    """Allocate and fill what one thread needs."""
    num_tensors, num_edges, num_devices = len(problem.tensor_bytes), len(problem.consumers), problem.num_devices
    visits = problem.visits
    assert visits is not None, "make_input lays them out for this schedule"
    priced_as, latency_s, bytes_per_s = problem.priced_routes()
    return Sequence(
        op_time_s=problem.op_time_s,
        spec=problem.device_spec.astype(np.uint32),
        resident_bytes=problem.resident_bytes,
        first_input=problem.input_offsets.astype(np.uint32),
        input_edges=problem.input_edges.astype(np.uint32),
        edge_tensor=problem.edge_tensor.astype(np.uint32),
        first_tensor=problem.tensor_offsets.astype(np.uint32),
        first_edge=problem.consumer_offsets.astype(np.uint32),
        readers=problem.consumers.astype(np.uint32),
        producer=problem.tensor_producer.astype(np.uint32),
        tensor_bytes=problem.tensor_bytes,
        local_bytes=np.where(problem.tensor_resident, 0, problem.tensor_bytes),
        priced_as=priced_as,
        latency_s=latency_s,
        bytes_per_s=bytes_per_s,
        parent=visits.parent,
        calls=visits.calls,
        first_visit=visits.first_visit,
        module=visits.module,
        call=visits.call,
        decides=visits.decides,
        by_visit=visits.by_visit,
        sum_offsets=visits.sum_offsets,
        sum_edges=visits.sum_edges.astype(np.uint32),
        ops=np.zeros(problem.num_ops, dtype=OP),
        transfers=np.zeros(max(num_edges, 2), dtype=TRANSFER),  # a column of fewer is contiguous: another type
        module_device=np.zeros(len(visits.parent), dtype=np.int32),
        entry=np.zeros(len(visits.parent), dtype=np.int32),
        stamp=np.zeros((visits.num_visits + 1, num_devices), dtype=np.int32),
        first_copy=np.zeros((visits.num_visits + 1, num_devices), dtype=np.int32),
        copy=np.zeros(num_edges, dtype=np.int32),
        readers_left=np.zeros(num_edges, dtype=np.int32),
        arrived=np.zeros(num_edges, dtype=np.bool_),
        readers_at_home=np.zeros(num_tensors, dtype=np.int32),
        departures=np.zeros(num_tensors, dtype=np.int32),
        used=np.zeros(num_devices, dtype=np.int64),
        counts=np.zeros(1, dtype=np.uint32),
    )


def transfers_of(work: Sequence) -> NDArray[Any]:
    """The transfers of the step that was simulated last, TRANSFER, in the order in which they were made."""
    return work.transfers[: int(work.counts[0])]


def copies_of(work: Sequence) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The copy that each edge read in the step that was simulated last, and that each transfer made."""
    return work.copy.copy(), transfers_of(work)["copy"].copy()


@inlined
def _note_peak(used, peak):
    """Memory is in use over an interval of time: keep the most."""
    for d in range(np.uint64(len(used))):
        peak[d] = max(peak[d], used[d])


@inlined
def _find_entries(parent, calls, module, decides, place, module_device, entry):
    """Find the outermost called module around each that is on one device; a module without one is its own."""
    module_device[:] = _UNKNOWN
    for op in range(len(place)):
        if decides[op]:
            m = module[op]
            if module_device[m] == _UNKNOWN:
                module_device[m] = place[op]
            elif module_device[m] != place[op]:
                module_device[m] = _SEVERAL
    for m in range(len(parent) - 1, 0, -1):
        outer, device = parent[m], module_device[m]
        if device != _UNKNOWN:
            if module_device[outer] == _UNKNOWN:
                module_device[outer] = device
            elif module_device[outer] != device:
                module_device[outer] = _SEVERAL
    entry[0] = 0
    for m in range(1, len(parent)):
        outer = entry[parent[m]]
        entry[m] = outer if module_device[outer] >= 0 and calls[outer] > 0 else m


@inlined
def _visit(op, module, call, calls, first_visit, entry):
    """The visit that an op belongs to."""
    m = module[op]
    e = entry[m]
    return first_visit[e] + call[op] * calls[e] // calls[m]


@inlined
def _choose_copies(work, place):
    """Find which copy each edge reads, and count the readers and the departures."""
    edge_tensor, first_edge, readers = work.edge_tensor, work.first_edge, work.readers
    producer, parent, calls = work.producer, work.parent, work.calls
    first_visit, module, call = work.first_visit, work.module, work.call
    decides, by_visit, sum_offsets = work.decides, work.by_visit, work.sum_offsets
    sum_edges, module_device, entry = work.sum_edges, work.module_device, work.entry
    stamp, first_copy, copy = work.stamp, work.first_copy, work.copy
    readers_left, arrived, readers_at_home = work.readers_left, work.arrived, work.readers_at_home
    departures = work.departures
    _find_entries(parent, calls, module, decides, place, module_device, entry)
    copy[:] = HOME
    stamp[:] = -1
    for s in range(len(sum_offsets) - 1):
        for i in range(sum_offsets[s], sum_offsets[s + 1]):
            e = sum_edges[i]
            maker = producer[edge_tensor[e]]
            if place[maker] != place[readers[e]]:
                visit = _visit(maker, module, call, calls, first_visit, entry)
                if stamp[visit, place[maker]] == s:
                    copy[e] = CARRIED
                stamp[visit, place[maker]] = s
    stamp[:] = -1
    for t in range(len(producer)):
        home = place[producer[t]]
        readers_at_home[t] = 0
        departures[t] = 0
        for e in range(first_edge[t], first_edge[t + 1]):
            device = place[readers[e]]
            if device == home:
                readers_at_home[t] += 1
            elif copy[e] != CARRIED:
                visit = len(stamp) - 1
                if by_visit[t]:
                    visit = _visit(readers[e], module, call, calls, first_visit, entry)
                if stamp[visit, device] != t:
                    stamp[visit, device] = t
                    first_copy[visit, device] = e
                    readers_left[e] = 0
                    arrived[e] = False
                    departures[t] += 1
                copy[e] = first_copy[visit, device]
                readers_left[copy[e]] += 1


@inlined
def _simulate(work, place, limit_s, peak):
    """Simulate one placement ``[N]``; return its step time, or infinity where it is proven longer than the limit."""
    op_time_s, spec, resident_bytes = work.op_time_s, work.spec, work.resident_bytes
    first_input, input_edges, edge_tensor = work.first_input, work.input_edges, work.edge_tensor
    first_tensor, producer, tensor_bytes = work.first_tensor, work.producer, work.tensor_bytes
    local_bytes, priced_as, latency_s = work.local_bytes, work.priced_as, work.latency_s
    bytes_per_s, ops, transfers = work.bytes_per_s, work.ops, work.transfers
    copy, readers_left, arrived = work.copy, work.readers_left, work.arrived
    readers_at_home, departures, used = work.readers_at_home, work.departures, work.used
    counts = work.counts
    counts[_0] = 0
    for d in range(np.uint64(len(used))):
        used[d] = 0
    left_s = 0.0
    for op in range(np.uint64(len(place))):
        home = np.uint32(place[op])
        used[home] += resident_bytes[op]
        left_s += op_time_s[spec[home], op]
    _choose_copies(work, place)
    for d in range(np.uint64(len(used))):
        peak[d] = used[d]
    limit_s *= 1.0 + 4.0 * len(place) * EPSILON
    now = 0.0
    for op in range(np.uint64(len(place))):
        device = np.uint32(place[op])
        for i in range(first_input[op], first_input[op + _1]):
            c = copy[input_edges[i]]
            if c < 0 or arrived[c]:
                continue
            t = edge_tensor[input_edges[i]]
            source = np.uint32(place[producer[t]])
            price = np.uint64(priced_as[t])
            if price == _0:
                price = np.uint64(source) * np.uint64(len(used)) + np.uint64(device)
            end_s = now + (latency_s[price] + tensor_bytes[t] / bytes_per_s[price])
            transfer = transfers[counts[_0]]
            counts[_0] += 1
            transfer.start_s = now
            transfer.end_s = end_s
            transfer.tensor = t
            transfer.destination = device
            transfer.copy = c
            used[device] += tensor_bytes[t]
            if end_s > now:
                _note_peak(used, peak)
            now = end_s
            arrived[c] = True
            departures[t] -= 1
            if departures[t] == 0 and readers_at_home[t] == 0:
                used[source] -= local_bytes[t]
        seconds = op_time_s[spec[device], op]
        if now + left_s > limit_s:
            return np.inf
        left_s -= seconds
        ops[op].start_s = now
        for t in range(first_tensor[op], first_tensor[op + _1]):
            used[device] += local_bytes[t]
        end_s = now + seconds
        if end_s > now:
            _note_peak(used, peak)
        now = end_s
        ops[op].end_s = now
        for i in range(first_input[op], first_input[op + _1]):
            t, c = edge_tensor[input_edges[i]], copy[input_edges[i]]
            if c >= 0:
                readers_left[c] -= 1
                if readers_left[c] == 0:
                    used[device] -= tensor_bytes[t]
            elif c == HOME:
                readers_at_home[t] -= 1
                if readers_at_home[t] == 0 and departures[t] == 0:
                    used[device] -= local_bytes[t]
        for t in range(first_tensor[op], first_tensor[op + _1]):
            if readers_at_home[t] == 0 and departures[t] == 0:
                used[device] -= local_bytes[t]
    return now


@compiled
def simulate_many(work, placements, limit_s, step_time_s, peak_memory_bytes):
    """Simulate placements ``[B, N]`` under limits ``[B]`` into ``[B]`` and ``[B, D]``."""
    for b in range(len(placements)):
        step_time_s[b] = _simulate(work, placements[b], limit_s[b], peak_memory_bytes[b])
