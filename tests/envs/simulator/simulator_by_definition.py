"""A second simulator, written from the rules alone: no heap, no counters, no state but what has happened so far.

Whether an op is ready, a device idle or a link free is asked of the list of what has happened, by searching it; memory
is swept from the lives of tensors once the step is over. It reads the graph and the cluster, not the simulator's input,
so it checks that too. Quadratic and slow, which is no matter for graphs of some tens of ops.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from envs.problem import PlacementProblem
from envs.simulator.trace import Trace
from graphs.colocation.whole_modules import whole_modules
from graphs.computation_graph import PHASES


@dataclass(frozen=True)
class Sent:
    tensor: int
    source: int
    destination: int
    start_s: float
    end_s: float
    visit: object = None


class History:
    """What has happened in one step so far."""

    def __init__(self, problem: PlacementProblem, placement: list[int]) -> None:
        self.problem, self.graph, self.cluster = problem, problem.graph, problem.cluster
        self.placement = placement
        self.ops = range(problem.graph.num_ops)
        self.devices = range(problem.cluster.num_devices)
        self.start_s: dict[int, float] = {}
        self.end_s: dict[int, float] = {}  # of every op that has started
        self.ended: set[int] = set()
        self.sent: list[Sent] = []
        self.served: dict[tuple[int, int], object] = {}  # under ``sequential``, whose copy an op reads
        self.remaining_s = cache(self._remaining_s)

    def readers(self, tensor: int) -> list[int]:
        begin, end = self.graph.consumer_offsets[tensor : tensor + 2]
        return self.graph.consumers[begin:end].tolist()

    def made_by(self, op: int) -> list[int]:
        return np.flatnonzero(self.graph.tensor_producer == op).tolist()

    def read_by(self, op: int) -> list[int]:
        return [t for t in range(self.graph.num_tensors) if op in self.readers(t)]

    def _remaining_s(self, op: int) -> float:
        fastest = min(self.problem.op_time_s[d, op] for d in self.devices if self.problem.op_allowed[op, d])
        after = [self.remaining_s(reader) for tensor in self.made_by(op) for reader in self.readers(tensor)]
        return float(fastest) + max(after, default=0.0)

    def there_since(self, tensor: int, device: int, now: float) -> float | None:
        """Since when the tensor has been on the device, or None where it is not there yet."""
        producer = int(self.graph.tensor_producer[tensor])
        if self.placement[producer] == device:
            return self.end_s[producer] if producer in self.ended else None
        arrivals = [s.end_s for s in self.sent if (s.tensor, s.destination) == (tensor, device)]
        return arrivals[0] if arrivals and arrivals[0] <= now else None

    def ready_since(self, op: int, now: float) -> float | None:
        since = [self.there_since(tensor, self.placement[op], now) for tensor in self.read_by(op)]
        return None if None in since else max([0.0, *(s for s in since if s is not None)])

    def directions(self, source: int, destination: int) -> list[int]:
        routes, pair = self.cluster.routes, source * len(self.devices) + destination
        return routes.directions[routes.offsets[pair] : routes.offsets[pair + 1]].tolist()

    def send(self, tensor: int, source: int, destination: int, now: float) -> None:
        mine = set(self.directions(source, destination))
        before = [s.end_s for s in self.sent if mine & set(self.directions(s.source, s.destination))]
        start_s = max([now, *before])
        links = [self.cluster.links[direction // 2] for direction in self.directions(source, destination)]
        latency_s = math.fsum(link.latency_s for link in links)
        seconds = latency_s + int(self.graph.tensor_bytes[tensor]) / min(link.bytes_per_s for link in links)
        given_s = float(self.graph.tensor_transfer_s[tensor])
        seconds = seconds if math.isnan(given_s) else given_s
        self.sent.append(Sent(tensor, source, destination, start_s, start_s + seconds))

    def choose(self, device: int, now: float) -> int | None:
        """The op that the idle device starts now."""
        left = [op for op in self.ops if self.placement[op] == device and op not in self.start_s]
        ready = {op: since for op in left if (since := self.ready_since(op, now)) is not None}
        if self.problem.schedule == "program_order":
            return left[0] if left and left[0] in ready else None
        if self.problem.schedule == "fifo":
            return min(ready, key=lambda op: (ready[op], op), default=None)
        return min(ready, key=lambda op: (-self.remaining_s(op), op), default=None)

    def round(self, now: float) -> None:
        for op in sorted(op for op in self.start_s if op not in self.ended and self.end_s[op] == now):
            self.ended.add(op)
            source = self.placement[op]
            for tensor in self.made_by(op):
                for destination in self.devices:
                    wanted = destination in {self.placement[reader] for reader in self.readers(tensor)}
                    if wanted and destination != source:
                        self.send(tensor, source, destination, now)
        for device in self.devices:
            busy = any(self.placement[op] == device and op not in self.ended for op in self.start_s)
            chosen = None if busy else self.choose(device, now)
            if chosen is not None:
                self.start_s[chosen] = now
                self.end_s[chosen] = now + float(self.problem.op_time_s[device, chosen])

    def reads_copy(self, tensor: int, op: int, copy: Sent) -> bool:
        """Whether an op on the copy's device reads it: always, but under ``sequential``."""
        return self.problem.schedule != "sequential" or self.served.get((tensor, op), "none") == copy.visit

    def lives(self) -> Iterator[tuple[int, float, float, int]]:
        """``(device, start, end, bytes)`` of every tensor in every memory."""
        for tensor in range(self.graph.num_tensors):
            producer, size = int(self.graph.tensor_producer[tensor]), int(self.graph.tensor_bytes[tensor])
            home = self.placement[producer]
            last_read = {
                d: max([self.end_s[r] for r in self.readers(tensor) if self.placement[r] == d], default=0.0)
                for d in self.devices
            }
            copies = [s for s in self.sent if s.tensor == tensor]
            until = max([self.end_s[producer], last_read[home], *(s.end_s for s in copies)])
            yield home, self.start_s[producer], until, 0 if self.graph.tensor_resident[tensor] else size
            for s in copies:
                mine = [
                    self.end_s[r]
                    for r in self.readers(tensor)
                    if self.placement[r] == s.destination and self.reads_copy(tensor, r, s)
                ]
                yield s.destination, s.start_s, max(mine), size


class Visits:
    """Which reads share a copy under the schedule ``sequential``."""

    def __init__(self, history: History) -> None:
        self.graph, self.placement = history.graph, history.placement
        found = whole_modules(self.graph)
        self.paths = [self.graph.module_names[m] for m in self.graph.module]
        self.counted = [
            op
            for op in history.ops
            if PHASES[self.graph.phase[op]] == "forward"
            and any(inside(self.paths[op], path) for path in found.members[found.group_of_op[op]])
        ]
        self.sums = self.chains()

    def calls(self, path: str) -> int:
        """How often a module is called: as its own ops say, or what divides the calls of all that is in it."""
        own = [int(self.graph.module_call[op]) + 1 for op, of in enumerate(self.paths) if of == path]
        if own:
            return max(own)
        return math.gcd(*(self.calls(of) for of in set(self.paths) if inside(of, path)))

    def is_called(self, path: str) -> bool:
        parts = {of[len(path) :].lstrip(".").split(".")[0] for of in self.paths if inside(of, path) and of != path}
        return path in {"", *self.paths} or not all(part.isdigit() for part in parts)

    def visit(self, op: int) -> tuple[str, int]:
        path = self.paths[op]
        outer = [path[:i] for i in range(len(path)) if path[i] == "."]
        for entry in dict.fromkeys(["", *outer, path]):
            on = {self.placement[o] for o in self.counted if inside(self.paths[o], entry)}
            if len(on) == 1 and self.is_called(entry):
                break
        else:
            entry = path
        return entry, int(self.graph.module_call[op]) * self.calls(entry) // self.calls(path)

    def chains(self) -> list[list[tuple[int, int]]]:
        """Sums of gradients, each as ``(contribution, the op that adds it)``."""
        graph = self.graph
        rows: dict[int, list[tuple[int, int]]] = {}
        chain: dict[int, int] = {}
        for op in range(graph.num_ops):
            if PHASES[graph.phase[op]] != "backward" or not self.reads(op):
                continue
            goes_on = [
                t
                for t in self.reads(op)
                if (before := int(graph.tensor_producer[t])) in chain
                and graph.consumer_offsets[t + 1] - graph.consumer_offsets[t] == 1
                and (self.paths[before], graph.module_call[before]) == (self.paths[op], graph.module_call[op])
            ][:1]
            chain[op] = chain[int(graph.tensor_producer[goes_on[0]])] if goes_on else op
            given = [t for t in self.reads(op) if PHASES[graph.phase[graph.tensor_producer[t]]] == "backward"]
            rows.setdefault(chain[op], []).extend((t, op) for t in given if t not in goes_on)
        return list(rows.values())

    def reads(self, op: int) -> list[int]:
        graph = self.graph
        return [
            t
            for t in range(graph.num_tensors)
            if op in graph.consumers[graph.consumer_offsets[t] : graph.consumer_offsets[t + 1]]
        ]

    def is_carried(self, tensor: int, op: int) -> bool:
        """Whether the tensor was added, where it was made, to one that the same sum was sent before."""
        maker = int(self.graph.tensor_producer[tensor])
        for contributions in self.sums:
            if (tensor, op) in contributions:
                before = contributions[: contributions.index((tensor, op))]
                return any(
                    self.placement[m] == self.placement[maker] != self.placement[reader]
                    and self.visit(m) == self.visit(maker)
                    for t, reader in before
                    for m in [int(self.graph.tensor_producer[t])]
                )
        return False

    def of(self, tensor: int, op: int) -> object:
        """What the copy that an op reads is for."""
        maker = int(self.graph.tensor_producer[tensor])
        return self.visit(op) if PHASES[self.graph.phase[maker]] == "forward" else None


def inside(path: str, outer: str) -> bool:
    return outer == "" or path == outer or path.startswith(f"{outer}.")


def _one_thing_at_a_time(history: History) -> None:
    """The schedule ``sequential``: all that there is to happen, in the order of the ops."""
    now, visits = 0.0, Visits(history)
    for op in history.ops:
        here = history.placement[op]
        for tensor in history.read_by(op):
            source = history.placement[int(history.graph.tensor_producer[tensor])]
            if source == here or visits.is_carried(tensor, op):
                continue
            visit = visits.of(tensor, op)
            if not any((s.tensor, s.destination, s.visit) == (tensor, here, visit) for s in history.sent):
                history.send(tensor, source, here, now)
                history.sent[-1] = replace(history.sent[-1], visit=visit)
                now = history.sent[-1].end_s
            history.served[tensor, op] = visit
        history.start_s[op] = now
        now += float(history.problem.op_time_s[here, op])
        history.end_s[op] = now
        history.ended.add(op)


def simulate_by_definition(problem: PlacementProblem, placement: list[int]) -> Trace:
    history = History(problem, placement)
    if problem.schedule == "sequential":
        _one_thing_at_a_time(history)
    now = 0.0
    while len(history.ended) < problem.graph.num_ops:
        history.round(now)
        future = [history.end_s[op] for op in history.start_s if op not in history.ended]
        future += [s.end_s for s in history.sent if s.end_s > now]
        if future:
            now = min(future)
    step_time_s = max(history.end_s.values())

    times, used, peaks = [], [], []
    lives = list(history.lives())
    for device in history.devices:
        here = [(start, end, size) for d, start, end, size in lives if d == device]
        resident = sum(int(problem.graph.resident_bytes[op].sum()) for op in history.ops if placement[op] == device)
        steps: list[tuple[float, int]] = []
        for instant in sorted({0.0, *(start for start, _, _ in here), *(end for _, end, _ in here)}):
            total = resident + sum(size for start, end, size in here if start <= instant < end)
            if not steps or steps[-1][1] != total:
                steps.append((instant, total))
        times.append(np.array([t for t, _ in steps]))
        used.append(np.array([b for _, b in steps], dtype=np.int64))
        peaks.append(max(b for _, b in steps))
    return Trace(
        step_time_s=step_time_s,
        peak_memory_bytes=np.array(peaks),
        op_device=np.array(placement, dtype=np.int32),
        op_start_s=np.array([history.start_s[op] for op in history.ops]),
        op_end_s=np.array([history.end_s[op] for op in history.ops]),
        transfer_tensor=np.array([s.tensor for s in history.sent], dtype=np.int32),
        transfer_source=np.array([s.source for s in history.sent], dtype=np.int32),
        transfer_destination=np.array([s.destination for s in history.sent], dtype=np.int32),
        transfer_start_s=np.array([s.start_s for s in history.sent], dtype=np.float64),
        transfer_end_s=np.array([s.end_s for s in history.sent], dtype=np.float64),
        memory_time_s=tuple(times),
        memory_bytes=tuple(used),
    )
