"""The step simulator in plain Python: the oracle that the compiled one must equal bit for bit.

`envs.simulator` states the rules; this file follows them in the order in which they are stated, with a heap of events
and lists, and with nothing done for speed.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from envs.simulator import SimulatorInput
from envs.trace import Trace

_OP_END, _TRANSFER_START, _TRANSFER_END = range(3)


def simulate_plain(problem: SimulatorInput, op_placement: NDArray[np.integer]) -> Trace:
    """As `envs.simulator.simulate`, slowly and readably."""
    step = _Step(problem, [int(d) for d in op_placement])
    step.run()
    return step.trace()


class _Step:
    """One step while it runs."""

    def __init__(self, problem: SimulatorInput, placement: list[int]) -> None:
        self.problem = problem
        self.placement = placement
        num_ops, devices = problem.num_ops, range(problem.num_devices)
        self.tensors_of = _rows(list(range(len(problem.tensor_bytes))), problem.tensor_offsets)
        self.readers_of = _rows(problem.consumers.tolist(), problem.consumer_offsets)
        self.route = _rows(problem.route_directions.tolist(), problem.route_offsets)
        self.producer = [op for op in range(num_ops) for _ in self.tensors_of[op]]
        self.inputs_of: list[list[int]] = [[] for _ in range(num_ops)]
        for tensor, readers in enumerate(self.readers_of):
            for reader in readers:
                self.inputs_of[reader].append(tensor)

        self.missing = [len(inputs) for inputs in self.inputs_of]
        self.ready_s = [0.0] * num_ops
        self.ready: list[set[int]] = [set() for _ in devices]
        self.program = [[op for op in range(num_ops) if placement[op] == d] for d in devices]
        self.running: list[int | None] = [None for _ in devices]
        self.direction_free_s = [0.0] * problem.num_directions
        self.events: list[tuple[float, int, int]] = []

        self.op_start_s = [0.0] * num_ops
        self.op_end_s = [0.0] * num_ops
        self.transfers: list[tuple[int, int, int, float, float]] = []  # tensor, source, destination, start, end
        self.uses: defaultdict[tuple[int, int], int] = defaultdict(int)  # of a tensor on a device: reasons to keep it
        self.memory = [sum(int(problem.resident_bytes[op]) for op in program) for program in self.program]
        self.peak = list(self.memory)
        self.memory_steps: list[list[tuple[float, int]]] = [[] for _ in devices]

    def run(self) -> None:
        for op, missing in enumerate(self.missing):
            if missing == 0:
                self.ready[self.placement[op]].add(op)
        now = 0.0
        self.start_ops(now)
        while self.events:
            if self.events[0][0] > now:
                self.close_instant(now)
                now = self.events[0][0]
                self.peak = [max(pair) for pair in zip(self.peak, self.memory, strict=True)]
            while self.events and self.events[0][0] == now:
                _, kind, number = heapq.heappop(self.events)
                if kind == _OP_END:
                    self.end_op(number, now)
                elif kind == _TRANSFER_START:
                    self.start_transfer(number)
                else:
                    self.end_transfer(number, now)
            self.start_ops(now)
        self.close_instant(now)

    def close_instant(self, now: float) -> None:
        for device, used in enumerate(self.memory):
            steps = self.memory_steps[device]
            if not steps or steps[-1][1] != used:
                steps.append((now, used))

    def start_ops(self, now: float) -> None:
        for device, running in enumerate(self.running):
            op = self.best_ready(device) if running is None else None
            if op is None:
                continue
            self.ready[device].remove(op)
            self.running[device] = op
            self.op_start_s[op] = now
            self.op_end_s[op] = now + float(self.problem.op_time_s[self.problem.device_spec[device], op])
            heapq.heappush(self.events, (self.op_end_s[op], _OP_END, op))
            for tensor in self.tensors_of[op]:
                self.memory[device] += self.size_on(tensor, device)

    def best_ready(self, device: int) -> int | None:
        ready = self.ready[device]
        if self.problem.schedule == "program_order":
            op = self.program[device][0] if self.program[device] else None
            if op in ready:
                self.program[device].pop(0)
                return op
            return None
        if self.problem.schedule == "fifo":
            return min(ready, key=lambda op: (self.ready_s[op], op), default=None)
        return min(ready, key=lambda op: (-self.problem.remaining_path_s[op], op), default=None)

    def end_op(self, op: int, now: float) -> None:
        device = self.placement[op]
        self.running[device] = None
        for tensor in self.tensors_of[op]:
            destinations = sorted({self.placement[reader] for reader in self.readers_of[tensor]})
            for destination in destinations:
                if destination != device:
                    self.reserve(tensor, device, destination, now)
            self.uses[tensor, device] += sum(d != device for d in destinations)
            self.arrive(tensor, device, now)
            self.drop_if_unused(tensor, device)
        for tensor in self.inputs_of[op]:
            self.uses[tensor, device] -= 1
            self.drop_if_unused(tensor, device)

    def reserve(self, tensor: int, source: int, destination: int, now: float) -> None:
        route = self.route[source * self.problem.num_devices + destination]
        start_s = max([now, *(self.direction_free_s[direction] for direction in route)])
        bandwidth = float(self.problem.route_bytes_per_s[source, destination])
        latency_s = float(self.problem.route_latency_s[source, destination])
        end_s = start_s + (latency_s + int(self.problem.tensor_bytes[tensor]) / bandwidth)
        for direction in route:
            self.direction_free_s[direction] = end_s
        heapq.heappush(self.events, (start_s, _TRANSFER_START, len(self.transfers)))
        heapq.heappush(self.events, (end_s, _TRANSFER_END, len(self.transfers)))
        self.transfers.append((tensor, source, destination, start_s, end_s))

    def start_transfer(self, number: int) -> None:
        tensor, _, destination, _, _ = self.transfers[number]
        self.memory[destination] += self.size_on(tensor, destination)

    def end_transfer(self, number: int, now: float) -> None:
        tensor, source, destination, _, _ = self.transfers[number]
        self.arrive(tensor, destination, now)
        self.uses[tensor, source] -= 1
        self.drop_if_unused(tensor, source)

    def arrive(self, tensor: int, device: int, now: float) -> None:
        """The tensor is there: its readers on the device lack one input less, and keep it until they end."""
        for reader in self.readers_of[tensor]:
            if self.placement[reader] == device:
                self.uses[tensor, device] += 1
                self.missing[reader] -= 1
                if self.missing[reader] == 0:
                    self.ready_s[reader] = now
                    self.ready[device].add(reader)

    def drop_if_unused(self, tensor: int, device: int) -> None:
        if self.uses[tensor, device] == 0:
            self.memory[device] -= self.size_on(tensor, device)

    def size_on(self, tensor: int, device: int) -> int:
        """Bytes beyond the residents that the tensor takes there: none where it is itself resident."""
        resident = self.problem.tensor_resident[tensor] and self.placement[self.producer[tensor]] == device
        return 0 if resident else int(self.problem.tensor_bytes[tensor])

    def trace(self) -> Trace:
        columns = zip(*self.transfers, strict=True) if self.transfers else [()] * 5
        tensor, source, destination, start_s, end_s = map(list, columns)
        return Trace(
            step_time_s=max(self.op_end_s),
            peak_memory_bytes=np.array(self.peak, dtype=np.int64),
            op_device=np.array(self.placement, dtype=np.int32),
            op_start_s=np.array(self.op_start_s),
            op_end_s=np.array(self.op_end_s),
            transfer_tensor=np.array(tensor, dtype=np.int32),
            transfer_source=np.array(source, dtype=np.int32),
            transfer_destination=np.array(destination, dtype=np.int32),
            transfer_start_s=np.array(start_s, dtype=np.float64),
            transfer_end_s=np.array(end_s, dtype=np.float64),
            memory_time_s=tuple(np.array([t for t, _ in steps]) for steps in self.memory_steps),
            memory_bytes=tuple(np.array([b for _, b in steps], dtype=np.int64) for steps in self.memory_steps),
        )


def _rows(values: list[int], offsets: NDArray[np.integer]) -> list[list[int]]:
    return [values[a:b] for a, b in itertools.pairwise(offsets.tolist())]
