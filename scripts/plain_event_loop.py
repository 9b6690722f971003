"""The step simulator as one tight loop of plain Python: what `scripts/benchmark_simulator.py` measures ratios against.

`envs.simulator.plain` is written to be read, and several times slower than Python need be; a ratio to it would flatter
the compiled simulator. This is the same event loop as a Python programmer in a hurry would write it: local names, lists
and `heapq`, no classes, no trace. It gives the same step time and peak memory to the last bit.
"""

from __future__ import annotations

import itertools
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.simulator.input import SimulatorInput
from envs.simulator.plain import copies_read


def as_lists(problem: SimulatorInput) -> dict[str, Any]:
    """All that does not depend on the placement, as lists; made once, as the compiled simulator makes its arrays."""
    num_ops = problem.num_ops
    readers = _rows(problem.consumers.tolist(), problem.consumer_offsets)
    inputs: list[list[int]] = [[] for _ in range(num_ops)]
    for tensor, its_readers in enumerate(readers):
        for reader in its_readers:
            inputs[reader].append(tensor)
    order = np.arange(num_ops)
    if problem.schedule == "priority":
        order = np.lexsort((order, -problem.remaining_path_s))
    rank = np.empty(num_ops, dtype=np.int64)
    rank[order] = np.arange(num_ops)
    return {
        "schedule": problem.schedule,
        "op_time_s": problem.op_time_s[problem.device_spec].tolist(),
        "tensors": _rows(list(range(len(readers))), problem.tensor_offsets),
        "readers": readers,
        "producer": problem.tensor_producer.tolist(),
        "inputs": inputs,
        "input_edges": _rows(problem.input_edges.tolist(), problem.input_offsets),
        "edge_tensor": problem.edge_tensor.tolist(),
        "problem": problem,
        "missing": problem.num_inputs.tolist(),
        "rank": rank.tolist(),
        "order": order.tolist(),
        "size": problem.tensor_bytes.tolist(),
        "size_at_home": np.where(problem.tensor_resident, 0, problem.tensor_bytes).tolist(),
        "resident": problem.resident_bytes.tolist(),
        "routes": _rows(problem.route_directions.tolist(), problem.route_offsets),
        "latency_s": problem.route_latency_s.ravel().tolist(),
        "bytes_per_s": problem.route_bytes_per_s.ravel().tolist(),
        "transfer_s": [None if np.isnan(s) else s for s in problem.tensor_transfer_s.tolist()],
        "num_devices": problem.num_devices,
        "num_directions": problem.num_directions,
    }


def simulate_in_a_loop(lists: dict[str, Any], place: list[int]) -> tuple[float, list[int], int]:
    """Step time, peak memory of each device, and how many transfers there were, of one placement of ops."""
    if lists["schedule"] == "sequential":
        return _one_thing_at_a_time(lists, place)
    op_time_s, tensors, readers, inputs = (lists[key] for key in ("op_time_s", "tensors", "readers", "inputs"))
    rank, order, size, size_at_home = (lists[key] for key in ("rank", "order", "size", "size_at_home"))
    routes, latency_s, bytes_per_s = (lists[key] for key in ("routes", "latency_s", "bytes_per_s"))
    transfer_s = lists["transfer_s"]
    fifo, program = lists["schedule"] == "fifo", lists["schedule"] == "program_order"
    num_devices, missing = lists["num_devices"], lists["missing"][:]
    memory = [0] * num_devices
    for op, resident in enumerate(lists["resident"]):
        memory[place[op]] += resident
    peak = memory[:]
    mine = [[op for op in range(len(missing)) if place[op] == d][::-1] for d in range(num_devices)] if program else []
    ready: list[list[Any]] = [[] for _ in range(num_devices)]
    for op, lacking in enumerate(missing):
        if not lacking:
            heappush(ready[place[op]], (0.0, op) if fifo else rank[op])
    free_s, idle, wake = [0.0] * lists["num_directions"], [True] * num_devices, set(range(num_devices))
    uses, copies = [0] * len(size), dict[tuple[int, int], int]()
    events: list[tuple[float, int, Any, int]] = []
    touched = set[int]()
    now, transfers = 0.0, 0
    while True:
        for d in wake:
            if idle[d] and ready[d] and not (program and ready[d][0] != mine[d][-1]):
                op = heappop(ready[d])
                op = op[1] if fifo else order[op]
                if program:
                    mine[d].pop()
                idle[d] = False
                heappush(events, (now + op_time_s[d][op], 0, op, d))
                for tensor in tensors[op]:
                    memory[d] += size_at_home[tensor]
                touched.add(d)
        wake.clear()
        if not events:
            return now, peak, transfers
        time_s = events[0][0]
        if time_s > now:
            for d in touched:
                if memory[d] > peak[d]:
                    peak[d] = memory[d]
            touched.clear()
            now = time_s
        while events and events[0][0] == time_s:
            _, kind, what, d = heappop(events)
            if kind == 0:  # an op ends
                idle[d] = True
                wake.add(d)
                for tensor in tensors[what]:
                    users = 0
                    away: dict[int, list[int]] = {}
                    for reader in readers[tensor]:
                        target = place[reader]
                        if target == d:
                            users += 1
                            missing[reader] -= 1
                            if not missing[reader]:
                                heappush(ready[d], (now, reader) if fifo else rank[reader])
                        elif target in away:
                            away[target].append(reader)
                        else:
                            away[target] = [reader]
                    for target in sorted(away):
                        pair = d * num_devices + target
                        start_s = now
                        for direction in routes[pair]:
                            if free_s[direction] > start_s:
                                start_s = free_s[direction]
                        seconds = transfer_s[tensor]
                        if seconds is None:
                            seconds = latency_s[pair] + size[tensor] / bytes_per_s[pair]
                        end_s = start_s + seconds
                        for direction in routes[pair]:
                            free_s[direction] = end_s
                        transfers += 1
                        if start_s == now:
                            memory[target] += size[tensor]
                            touched.add(target)
                        else:
                            heappush(events, (start_s, 1, size[tensor], target))
                        heappush(events, (end_s, 2, (tensor, away[target], d), target))
                    uses[tensor] = users + len(away)
                    if not uses[tensor]:
                        memory[d] -= size_at_home[tensor]
                for tensor in inputs[what]:
                    if (tensor, d) in copies:
                        copies[tensor, d] -= 1
                        if not copies[tensor, d]:
                            memory[d] -= size[tensor]
                    else:
                        uses[tensor] -= 1
                        if not uses[tensor]:
                            memory[d] -= size_at_home[tensor]
            elif kind == 1:  # a transfer starts
                memory[d] += what
                touched.add(d)
            else:  # a transfer ends
                tensor, its_readers, source = what
                copies[tensor, d] = len(its_readers)
                wake.add(d)
                for reader in its_readers:
                    missing[reader] -= 1
                    if not missing[reader]:
                        heappush(ready[d], (now, reader) if fifo else rank[reader])
                uses[tensor] -= 1
                if not uses[tensor]:
                    memory[source] -= size_at_home[tensor]


def _one_thing_at_a_time(lists: dict[str, Any], place: list[int]) -> tuple[float, list[int], int]:
    """The schedule ``sequential``, in which there are no events."""
    op_time_s, tensors = lists["op_time_s"], lists["tensors"]
    input_edges, edge_tensor = lists["input_edges"], lists["edge_tensor"]
    latency_s, bytes_per_s, num_devices = (lists[key] for key in ("latency_s", "bytes_per_s", "num_devices"))
    size, size_at_home, producer = (lists[key] for key in ("size", "size_at_home", "producer"))
    memory = [0] * num_devices
    for op, resident in enumerate(lists["resident"]):
        memory[place[op]] += resident
    peak = memory[:]
    copies = copies_read(lists["problem"], place)
    left = dict[int, int]()  # readers of a copy that have not ended
    at_home, away = [0] * len(size), [0] * len(size)  # readers where a tensor was made; copies still to be sent
    for edge, copy in enumerate(copies):
        if copy >= 0:
            away[edge_tensor[edge]] += copy not in left
            left[copy] = left.get(copy, 0) + 1
        elif copy == -1:
            at_home[edge_tensor[edge]] += 1
    now, sent = 0.0, set[int]()

    def wait_until(end_s: float) -> None:
        nonlocal now
        if end_s > now:
            peak[:] = map(max, peak, memory)
        now = end_s

    for op, d in enumerate(place):
        for edge in input_edges[op]:
            tensor, copy = edge_tensor[edge], copies[edge]
            if copy >= 0 and copy not in sent:
                source = place[producer[tensor]]
                sent.add(copy)
                memory[d] += size[tensor]
                pair = source * num_devices + d
                seconds = lists["transfer_s"][tensor]
                wait_until(now + (latency_s[pair] + size[tensor] / bytes_per_s[pair] if seconds is None else seconds))
                away[tensor] -= 1
                if not away[tensor] and not at_home[tensor]:
                    memory[source] -= size_at_home[tensor]
        memory[d] += sum(size_at_home[tensor] for tensor in tensors[op])
        wait_until(now + op_time_s[d][op])
        for edge in input_edges[op]:
            tensor, copy = edge_tensor[edge], copies[edge]
            if copy >= 0:
                left[copy] -= 1
                if not left[copy]:
                    memory[d] -= size[tensor]
            elif copy == -1:
                at_home[tensor] -= 1
                if not at_home[tensor] and not away[tensor]:
                    memory[d] -= size_at_home[tensor]
        memory[d] -= sum(size_at_home[t] for t in tensors[op] if not away[t] and not at_home[t])
    return now, peak, len(sent)


def _rows(values: list[int], offsets: NDArray[np.integer]) -> list[list[int]]:
    return [values[a:b] for a, b in itertools.pairwise(offsets.tolist())]
