"""The step of a placement where a copy takes the time of the core that receives it: a diagnosis for the fidelity study.

The simulator lets a transfer overlap computing, which is right where something else than the device moves the bytes.
Between two cores of a CPU the receiving core copies, and computes nothing meanwhile. Here every tensor that is sent
becomes an op of the receiver, which has the priority of its most urgent reader and takes the time of the bytes; the
rest of a transfer, its latency, overlaps as before. Devices that share memory and cache also slow each other, which
`step_time_s` takes into account where a profile says by how much. The step is that of `envs.simulator`, of a larger
graph that is rebuilt for each placement: some milliseconds, so this is for checking placements, not for searching.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from envs.measured.profile import ALONE, BESIDE, others_share
from envs.problem import PlacementProblem
from envs.simulator.input import SimulatorInput
from envs.simulator.simulate import simulate
from envs.simulator.trace import Trace

Floats = NDArray[np.float64]

_ROUNDS = 3


def step_time_s(
    problem: PlacementProblem,
    op_device: NDArray[np.integer],
    *,
    op_time_s: Floats | None = None,
    latency: bool = True,
    contention: bool = False,
) -> float:
    """Seconds of a step in which receivers make copies themselves.

    Args:
        problem: Graph and cluster; its schedule must be ``priority`` or ``fifo``.
        op_device: ``int[N]``, device numbers.
        op_time_s: ``float64[N]``, other times of the ops where they are placed.
        latency: False where a copy shall be there as soon as its bytes are.
        contention: Let an op take as long as the share of its time asks for in which other devices work: between its
            times alone and in parallel with others, which the graph must have for each device's spec. Who works when is
            taken from the step before, beginning with the ordinary op times.
    """
    place = np.asarray(op_device)
    ops = np.arange(problem.graph.num_ops)
    times = problem.op_time_s[place, ops] if op_time_s is None else op_time_s
    trace = _trace(problem, place, times, latency=latency)
    if contention:
        names = [device.spec.name for device in problem.cluster.devices]
        alone, beside = (
            np.stack([problem.graph.time_s[name + end] for name in names])[place, ops] for end in (ALONE, BESIDE)
        )
        for _ in range(_ROUNDS):
            share = others_share(trace.op_start_s, trace.op_end_s, trace.op_device, problem.num_devices)[: len(ops)]
            trace = _trace(problem, place, alone + (beside - alone) * share, latency=latency)
    return trace.step_time_s


def _trace(problem: PlacementProblem, place: NDArray[np.integer], op_time_s: Floats, *, latency: bool) -> Trace:
    """The step, with copies as ops behind the others."""
    given = problem.simulator_input
    sends = _sends(given, place)
    copies = np.array(list(sends), dtype=np.int64).reshape(-1, 2)
    source = place[given.tensor_producer[copies[:, 0]]]
    copy_s = given.tensor_bytes[copies[:, 0]] / given.route_bytes_per_s[source, copies[:, 1]]
    expanded = _expanded(given, place, sends, np.concatenate([op_time_s, copy_s]), latency=latency)
    return simulate(expanded, np.concatenate([place, copies[:, 1]]).astype(np.int32))


def _sends(given: SimulatorInput, place: NDArray[np.integer]) -> dict[tuple[int, int], list[int]]:
    """By tensor and other device: the ops that read it there."""
    edge_tensor = np.repeat(np.arange(len(given.tensor_bytes)), np.diff(given.consumer_offsets))
    home = place[given.tensor_producer[edge_tensor]]
    reader_device = place[given.consumers]
    sends: dict[tuple[int, int], list[int]] = defaultdict(list)
    for edge in np.flatnonzero(home != reader_device):
        sends[int(edge_tensor[edge]), int(reader_device[edge])].append(int(given.consumers[edge]))
    return sends


def _expanded(
    given: SimulatorInput,
    place: NDArray[np.integer],
    sends: dict[tuple[int, int], list[int]],
    time_s: Floats,
    *,
    latency: bool,
) -> SimulatorInput:
    """The problem in which sent tensors are read by copy ops, numbered from ``N`` on."""
    num_ops, num_tensors = given.num_ops, len(given.tensor_bytes)
    total = num_ops + len(sends)
    readers: list[list[int]] = []
    copies_of: dict[int, list[int]] = defaultdict(list)
    for number, (tensor, _) in enumerate(sends):
        copies_of[tensor].append(num_ops + number)
    for tensor in range(num_tensors):
        here = place[given.tensor_producer[tensor]]
        all_readers = given.consumers[given.consumer_offsets[tensor] : given.consumer_offsets[tensor + 1]]
        readers.append([*all_readers[place[all_readers] == here].tolist(), *copies_of[tensor]])
    readers += sends.values()
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in readers])])
    consumers = np.array([op for r in readers for op in r], dtype=np.int32)
    order = np.argsort(consumers, kind="stable")
    num_inputs = np.bincount(consumers, minlength=total)
    remaining = given.remaining_path_s
    urgency = [max(remaining[op] for op in ops) for ops in sends.values()]
    sent = np.array([tensor for tensor, _ in sends], dtype=np.int64)
    devices = given.num_devices
    return SimulatorInput(
        schedule=given.schedule,
        visits=None,
        op_time_s=np.tile(time_s, (1, 1)),
        device_spec=np.zeros(devices, dtype=np.int32),
        # Just before the reader: the next larger number.
        remaining_path_s=np.concatenate([remaining, np.nextafter(urgency, np.inf)]),
        resident_bytes=np.zeros(total, dtype=np.int64),
        num_inputs=num_inputs.astype(np.int32),
        input_offsets=np.concatenate([[0], np.cumsum(num_inputs)]).astype(np.int32),
        input_edges=order.astype(np.int32),
        tensor_offsets=np.concatenate([given.tensor_offsets, np.arange(1, len(sends) + 1) + num_tensors]).astype(
            np.int32
        ),
        tensor_bytes=np.concatenate([given.tensor_bytes, given.tensor_bytes[sent]]),
        tensor_transfer_s=np.full(num_tensors + len(sends), np.nan),
        tensor_resident=np.concatenate([given.tensor_resident, np.zeros(len(sends), dtype=np.bool_)]),
        consumer_offsets=offsets.astype(np.int32),
        consumers=consumers,
        # What travels is the message that the tensor is there, one after the other; its bytes are the copy's.
        route_latency_s=given.route_latency_s if latency else np.zeros((devices, devices)),
        route_bytes_per_s=np.full((devices, devices), 1e30),
        route_offsets=np.arange(devices * devices + 1, dtype=np.int32),
        route_directions=np.arange(devices * devices, dtype=np.int32),
    )
