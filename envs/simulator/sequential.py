"""The compiled step simulator for ``sequential``: one op or one transfer at a time on the whole cluster.

That is how a model runs whose modules are spread over devices by hooks that move tensors (Hugging Face Accelerate's
device maps): the next module begins when the one before it has ended and its inputs have been moved. Nothing competes,
so there are no events: the ops are walked in the order of their indices.

Letters: ``N`` ops, ``E`` edges, ``T`` tensors, ``D`` devices, ``S`` distinct device specs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.simulator.choosing_kernel import compiled, inlined

if TYPE_CHECKING:
    from envs.simulator.input import SimulatorInput

# This file holds a copy of each constant that it shares with `choosing_kernel`: numba's cache notices changes only to
# the file of the function that it cached.
EPSILON = 2.0**-52
_0, _1 = np.uint64(0), np.uint64(1)

OP = np.dtype([("start_s", np.float64), ("end_s", np.float64)], align=True)
TRANSFER = np.dtype(
    [("start_s", np.float64), ("end_s", np.float64), ("tensor", np.uint32), ("destination", np.uint32)], align=True
)


class Sequence(NamedTuple):
    """All that one thread needs to simulate: what is given, and what changes."""

    op_time_s: NDArray[np.float64]  # [S, N]
    spec: NDArray[np.uint32]  # [D], row of `op_time_s`
    resident_bytes: NDArray[np.int64]  # [N]
    first_input: NDArray[np.uint32]  # [N + 1]
    inputs: NDArray[np.uint32]  # [E], the tensors that each op reads
    first_tensor: NDArray[np.uint32]  # [N + 1]
    first_edge: NDArray[np.uint32]  # [T + 1]
    readers: NDArray[np.uint32]  # [E]
    producer: NDArray[np.uint32]  # [T]
    tensor_bytes: NDArray[np.int64]  # [T]
    local_bytes: NDArray[np.int64]  # [T], 0 where the tensor is resident
    priced_as: NDArray[np.uint32]  # [T], entry of the next two that says what sending takes, 0 for the route's
    latency_s: NDArray[np.float64]  # [D * D + tensors of given seconds]; see `SimulatorInput.priced_routes`
    bytes_per_s: NDArray[np.float64]
    ops: NDArray[Any]  # OP[N]
    transfers: NDArray[Any]  # TRANSFER[E]
    readers_left: NDArray[np.int32]  # [T, D], readers on each device that have not ended
    departures: NDArray[np.int32]  # [T], devices that the tensor has still to be sent to
    there: NDArray[np.bool_]  # [T, D], True where a copy has arrived
    used: NDArray[np.int64]  # [D], bytes in use
    counts: NDArray[np.uint32]  # [1], transfers


def make_work(problem: SimulatorInput) -> Sequence:
    """Allocate and fill what one thread needs."""
    num_tensors, num_devices = len(problem.tensor_bytes), problem.num_devices
    priced_as, latency_s, bytes_per_s = problem.priced_routes()
    edge_tensor = np.repeat(np.arange(num_tensors, dtype=np.uint32), np.diff(problem.consumer_offsets))
    return Sequence(
        op_time_s=problem.op_time_s,
        spec=problem.device_spec.astype(np.uint32),
        resident_bytes=problem.resident_bytes,
        first_input=problem.input_offsets.astype(np.uint32),
        inputs=edge_tensor[problem.input_edges],
        first_tensor=problem.tensor_offsets.astype(np.uint32),
        first_edge=problem.consumer_offsets.astype(np.uint32),
        readers=problem.consumers.astype(np.uint32),
        producer=problem.tensor_producer.astype(np.uint32),
        tensor_bytes=problem.tensor_bytes,
        local_bytes=np.where(problem.tensor_resident, 0, problem.tensor_bytes),
        priced_as=priced_as,
        latency_s=latency_s,
        bytes_per_s=bytes_per_s,
        ops=np.zeros(problem.num_ops, dtype=OP),
        transfers=np.zeros(len(problem.consumers), dtype=TRANSFER),
        readers_left=np.zeros((num_tensors, num_devices), dtype=np.int32),
        departures=np.zeros(num_tensors, dtype=np.int32),
        there=np.zeros((num_tensors, num_devices), dtype=np.bool_),
        used=np.zeros(num_devices, dtype=np.int64),
        counts=np.zeros(1, dtype=np.uint32),
    )


def transfers_of(work: Sequence) -> NDArray[Any]:
    """The transfers of the step that was simulated last, TRANSFER, in the order in which they were made."""
    return work.transfers[: int(work.counts[0])]


@inlined
def _note_peak(used, peak):
    """Memory is in use over an interval of time: keep the most."""
    for d in range(np.uint64(len(used))):
        peak[d] = max(peak[d], used[d])


@inlined
def _simulate(work, place, limit_s, peak):
    """Simulate one placement ``[N]``; return its step time, or infinity where it is proven longer than the limit."""
    (op_time_s, spec, resident_bytes, first_input, inputs, first_tensor, first_edge, readers, producer, tensor_bytes,
     local_bytes, priced_as, latency_s, bytes_per_s, ops, transfers, readers_left, departures, there, used,
     counts) = work  # fmt: skip
    counts[_0] = 0
    for d in range(np.uint64(len(used))):
        used[d] = 0
    left_s = 0.0
    for op in range(np.uint64(len(place))):
        home = np.uint32(place[op])
        used[home] += resident_bytes[op]
        left_s += op_time_s[spec[home], op]
        for t in range(first_tensor[op], first_tensor[op + _1]):
            for d in range(np.uint64(len(used))):
                readers_left[t, d] = 0
                there[t, d] = False
            departures[t] = 0
            for e in range(first_edge[t], first_edge[t + _1]):
                target = np.uint32(place[readers[e]])
                if readers_left[t, target] == 0 and target != home:
                    departures[t] += 1
                readers_left[t, target] += 1
    for d in range(np.uint64(len(used))):
        peak[d] = used[d]
    limit_s *= 1.0 + 4.0 * len(place) * EPSILON
    now = 0.0
    for op in range(np.uint64(len(place))):
        device = np.uint32(place[op])
        for i in range(first_input[op], first_input[op + _1]):
            t = inputs[i]
            source = np.uint32(place[producer[t]])
            if source == device or there[t, device]:
                continue
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
            used[device] += tensor_bytes[t]
            if end_s > now:
                _note_peak(used, peak)
            now = end_s
            there[t, device] = True
            departures[t] -= 1
            if departures[t] == 0 and readers_left[t, source] == 0:
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
            t = inputs[i]
            readers_left[t, device] -= 1
            if readers_left[t, device] == 0:
                if there[t, device]:
                    used[device] -= tensor_bytes[t]
                elif departures[t] == 0:
                    used[device] -= local_bytes[t]
        for t in range(first_tensor[op], first_tensor[op + _1]):
            if readers_left[t, device] == 0 and departures[t] == 0:
                used[device] -= local_bytes[t]
    return now


@compiled
def simulate_many(work, placements, limit_s, step_time_s, peak_memory_bytes):
    """Simulate placements ``[B, N]`` under limits ``[B]`` into ``[B]`` and ``[B, D]``."""
    for b in range(len(placements)):
        step_time_s[b] = _simulate(work, placements[b], limit_s[b], peak_memory_bytes[b])
