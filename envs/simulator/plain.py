"""The step simulator in plain Python: the oracle that the compiled one must equal bit for bit.

`envs.simulator` states the rules; this file follows them in the order in which they are stated, with a heap of events
and lists, and with nothing done for speed.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.simulator.input import SimulatorInput
from envs.simulator.receiving import lowered_bytes_per_s, op_times_s
from envs.simulator.trace import Trace, memory_steps

_OP_END, _TRANSFER_START, _TRANSFER_END = range(3)


def simulate_plain(problem: SimulatorInput, op_placement: NDArray[np.integer]) -> Trace:
    """As `envs.simulator`, slowly and readably."""
    if problem.schedule == "sequential":
        return _sequential(problem, [int(d) for d in op_placement])
    step = _Step(problem, [int(d) for d in op_placement])
    step.run()
    return step.trace()


def _sequential(problem: SimulatorInput, placement: list[int]) -> Trace:
    """The schedule ``sequential``: what happens, one thing after another; memory from the lives of tensors."""
    producer = problem.tensor_producer.tolist()
    copies = copies_read(problem, placement)
    now, sent = 0.0, dict[int, tuple[int, int, float, float]]()
    op_start_s, op_end_s = [], []
    for op, device in enumerate(placement):
        for edge in problem.input_edges[problem.input_offsets[op] : problem.input_offsets[op + 1]].tolist():
            tensor, copy = int(problem.edge_tensor[edge]), copies[edge]
            if copy >= 0 and copy not in sent:
                source = placement[producer[tensor]]
                latency_s = float(problem.route_latency_s[source, device])
                bytes_per_s = float(problem.route_bytes_per_s[source, device])
                seconds = latency_s + int(problem.tensor_bytes[tensor]) / bytes_per_s
                if not math.isnan(problem.tensor_transfer_s[tensor]):
                    seconds = float(problem.tensor_transfer_s[tensor])
                end_s = now + seconds
                sent[copy] = tensor, device, now, end_s
                now = end_s
        op_start_s.append(now)
        now += float(problem.op_time_s[problem.device_spec[device], op])
        op_end_s.append(now)
    about = (
        np.array([tensor for tensor, _, _, _ in sent.values()], dtype=np.int32),
        np.array([device for _, device, _, _ in sent.values()], dtype=np.int32),
        np.array([start_s for _, _, start_s, _ in sent.values()]),
        np.array([end_s for _, _, _, end_s in sent.values()]),
    )
    op_device = np.array(placement, dtype=np.int32)
    which = np.array(copies, dtype=np.int64), np.array(list(sent), dtype=np.int64)
    times = memory_steps(problem, op_device, np.array(op_start_s), np.array(op_end_s), *about, which)
    return Trace(
        step_time_s=now,
        peak_memory_bytes=np.array([in_use.max() for in_use in times[1]], dtype=np.int64),
        op_device=op_device,
        op_start_s=np.array(op_start_s),
        op_end_s=np.array(op_end_s),
        transfer_tensor=about[0],
        transfer_source=op_device[problem.tensor_producer[about[0]]],
        transfer_destination=about[1],
        transfer_start_s=about[2],
        transfer_end_s=about[3],
        memory_time_s=times[0],
        memory_bytes=times[1],
    )


def copies_read(problem: SimulatorInput, placement: Sequence[int]) -> list[int]:
    """The copy that each edge reads under ``sequential``, called by its first edge; negative where it reads none."""
    visits = problem.visits
    assert visits is not None
    parent, module, call = visits.parent.tolist(), visits.module.tolist(), visits.call.tolist()
    where: list[set[int]] = [set() for _ in parent]
    for op, device in enumerate(placement):
        m = module[op] if visits.decides[op] else -1
        while m >= 0:
            where[m].add(device)
            m = parent[m]

    def visit(op: int) -> tuple[int, int]:
        """The entry that an op is in, and which call of it."""
        path = [module[op]]
        while parent[path[-1]] >= 0:
            path.append(parent[path[-1]])
        entry = next((m for m in reversed(path) if len(where[m]) == 1 and visits.calls[m] > 0), path[0])
        return entry, call[op] * int(visits.calls[entry]) // int(visits.calls[module[op]])

    producer = problem.tensor_producer[problem.edge_tensor].tolist()
    reader = problem.consumers.tolist()
    copies = [-1] * len(reader)
    for edges in _rows(visits.sum_edges.tolist(), visits.sum_offsets):
        begun = set[tuple[int, tuple[int, int]]]()
        for edge in edges:
            contribution = placement[producer[edge]], visit(producer[edge])
            if placement[producer[edge]] != placement[reader[edge]]:
                copies[edge] = -2 if contribution in begun else -1
                begun.add(contribution)
    first = dict[tuple[int, int, tuple[int, int] | None], int]()
    for edge, tensor in enumerate(problem.edge_tensor.tolist()):
        if placement[producer[edge]] != placement[reader[edge]] and copies[edge] != -2:
            at = visit(reader[edge]) if visits.by_visit[tensor] else None
            copies[edge] = first.setdefault((tensor, placement[reader[edge]], at), edge)
    return copies


class _Step:
    """One step while it runs."""

    def __init__(self, problem: SimulatorInput, placement: list[int]) -> None:
        self.schedule = problem.schedule
        self.placement = placement
        self.num_devices = problem.num_devices
        num_ops, devices = problem.num_ops, range(problem.num_devices)
        self.op_time_s = op_times_s(problem, np.array(placement, dtype=np.int32)).tolist()
        self.remaining_path_s = problem.remaining_path_s.tolist()
        self.tensors_of = _rows(list(range(len(problem.tensor_bytes))), problem.tensor_offsets)
        self.readers_of = _rows(problem.consumers.tolist(), problem.consumer_offsets)
        self.bytes = problem.tensor_bytes.tolist()
        self.bytes_at_home = np.where(problem.tensor_resident, 0, problem.tensor_bytes).tolist()
        self.transfer_s = problem.tensor_transfer_s.tolist()
        self.home = [placement[op] for op in problem.tensor_producer.tolist()]
        self.route = _rows(problem.route_directions.tolist(), problem.route_offsets)
        self.latency_s = problem.route_latency_s.tolist()
        self.bytes_per_s = lowered_bytes_per_s(problem).tolist()
        self.inputs_of: list[list[int]] = [[] for _ in range(num_ops)]
        for tensor, readers in enumerate(self.readers_of):
            for reader in readers:
                self.inputs_of[reader].append(tensor)

        self.now = 0.0
        self.missing = [len(inputs) for inputs in self.inputs_of]
        self.ready: list[list[tuple[float, int]]] = [[] for _ in devices]  # heaps of (key, op), the best first
        self.program = [iter([op for op in range(num_ops) if placement[op] == d]) for d in devices]
        self.next_in_program = [next(program, -1) for program in self.program]
        self.idle = [True for _ in devices]
        self.direction_free_s = [0.0] * problem.num_directions
        self.events: list[tuple[float, int, int]] = []  # a heap of (time, kind, op or transfer)

        self.op_start_s = [0.0] * num_ops
        self.op_end_s = [0.0] * num_ops
        self.transfers: list[tuple[int, int, int, float, float]] = []  # tensor, source, destination, start, end
        self.uses: defaultdict[tuple[int, int], int] = defaultdict(int)  # of a tensor on a device: reasons to keep it
        self.memory = [0 for _ in devices]
        for op, size in enumerate(problem.resident_bytes.tolist()):
            self.memory[placement[op]] += size
        self.peak = list(self.memory)
        self.memory_steps: list[list[tuple[float, int]]] = [[(0.0, -1)] for _ in devices]
        self.changed: set[int] = set(devices)  # devices whose memory changed at this instant

    def run(self) -> None:
        for op, missing in enumerate(self.missing):
            if missing == 0:
                self.make_ready(op)
        self.start_ops()
        while self.events:
            time_s = self.events[0][0]
            if time_s > self.now:
                self.close_instant()
                for device in self.changed:
                    self.peak[device] = max(self.peak[device], self.memory[device])
                self.changed.clear()
                self.now = time_s
            while self.events and self.events[0][0] == time_s:
                _, kind, number = heapq.heappop(self.events)
                if kind == _OP_END:
                    self.end_op(number)
                elif kind == _TRANSFER_START:
                    self.start_transfer(number)
                else:
                    self.end_transfer(number)
            self.start_ops()
        self.close_instant()

    def close_instant(self) -> None:
        for device in self.changed:
            if self.memory[device] != self.memory_steps[device][-1][1]:
                self.memory_steps[device].append((self.now, self.memory[device]))

    def start_ops(self) -> None:
        for device, idle in enumerate(self.idle):
            op = self.take_best(device) if idle else None
            if op is not None:
                self.idle[device] = False
                self.op_start_s[op] = self.now
                self.op_end_s[op] = self.now + self.op_time_s[op]
                heapq.heappush(self.events, (self.op_end_s[op], _OP_END, op))
                for tensor in self.tensors_of[op]:
                    self.use_memory(device, self.bytes_at_home[tensor])

    def make_ready(self, op: int) -> None:
        key = {"priority": -self.remaining_path_s[op], "fifo": self.now, "program_order": 0.0}[self.schedule]
        heapq.heappush(self.ready[self.placement[op]], (key, op))

    def take_best(self, device: int) -> int | None:
        ready = self.ready[device]
        if not ready:
            return None
        if self.schedule == "program_order":
            if ready[0][1] != self.next_in_program[device]:
                return None
            self.next_in_program[device] = next(self.program[device], -1)
        return heapq.heappop(ready)[1]

    def end_op(self, op: int) -> None:
        device = self.placement[op]
        self.idle[device] = True
        for tensor in self.tensors_of[op]:
            destinations = {self.placement[reader] for reader in self.readers_of[tensor]} - {device}
            for destination in sorted(destinations):
                self.reserve(tensor, device, destination)
            self.uses[tensor, device] += len(destinations)
            self.arrive(tensor, device)
            self.drop_if_unused(tensor, device)
        for tensor in self.inputs_of[op]:
            self.uses[tensor, device] -= 1
            self.drop_if_unused(tensor, device)

    def reserve(self, tensor: int, source: int, destination: int) -> None:
        route = self.route[source * self.num_devices + destination]
        start_s = max([self.now, *(self.direction_free_s[direction] for direction in route)])
        duration_s = self.latency_s[source][destination] + self.bytes[tensor] / self.bytes_per_s[source][destination]
        if not math.isnan(self.transfer_s[tensor]):
            duration_s = self.transfer_s[tensor]
        end_s = start_s + duration_s
        for direction in route:
            self.direction_free_s[direction] = end_s
        heapq.heappush(self.events, (start_s, _TRANSFER_START, len(self.transfers)))
        heapq.heappush(self.events, (end_s, _TRANSFER_END, len(self.transfers)))
        self.transfers.append((tensor, source, destination, start_s, end_s))

    def start_transfer(self, number: int) -> None:
        tensor, _, destination, _, _ = self.transfers[number]
        self.use_memory(destination, self.bytes[tensor])

    def end_transfer(self, number: int) -> None:
        tensor, source, destination, _, _ = self.transfers[number]
        self.arrive(tensor, destination)
        self.uses[tensor, source] -= 1
        self.drop_if_unused(tensor, source)

    def arrive(self, tensor: int, device: int) -> None:
        """The tensor is there: its readers on the device lack one input less, and keep it until they end."""
        for reader in self.readers_of[tensor]:
            if self.placement[reader] == device:
                self.uses[tensor, device] += 1
                self.missing[reader] -= 1
                if self.missing[reader] == 0:
                    self.make_ready(reader)

    def drop_if_unused(self, tensor: int, device: int) -> None:
        if self.uses[tensor, device] == 0:
            at_home = device == self.home[tensor]
            self.use_memory(device, -(self.bytes_at_home if at_home else self.bytes)[tensor])

    def use_memory(self, device: int, size: int) -> None:
        self.memory[device] += size
        self.changed.add(device)

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
            memory_time_s=tuple(np.array([t for t, _ in steps]) for _, *steps in self.memory_steps),
            memory_bytes=tuple(np.array([b for _, b in steps], dtype=np.int64) for _, *steps in self.memory_steps),
        )


def _rows(values: list[int], offsets: NDArray[np.integer]) -> list[list[int]]:
    return [values[a:b] for a, b in itertools.pairwise(offsets.tolist())]
