"""What every step of a plan starts from, as lists by task and by place, and the order in which devices run tasks."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.measured.compiled.segments import RegionCompiler, Segment
from envs.measured.plan import Plan, program_ops, reports_departure
from envs.measured.regions import Users, split, write_functions
from envs.measured.worker import FifoQueue, Job, ProgramOrderQueue, Queue


class Template:
    """What each step of a plan starts from."""

    def __init__(self, plan: Plan, runs: list[Any], remaining: NDArray[np.float64], on_gpu: list[bool]) -> None:
        self.on_gpu = on_gpu
        num_ops = program_ops(plan)
        tasks = plan.tasks
        self.plan = plan
        self.runs = runs
        self.missing = [0 if t is None else t.waits for t in tasks]
        self.readies = [[] if t is None else t.readies for t in tasks]
        self.sends = [[] if t is None else [(device, copy) for copy, device in t.sends] for t in tasks]
        self.releases = [[] if t is None else t.releases for t in tasks]
        self.makes = [[] if t is None else t.makes for t in tasks]
        self.made_bytes = [0 if t is None else t.made_bytes for t in tasks]
        self.writer = [plan.writer.get(place, -1) for place in range(len(plan.place_value))]
        self.departs: list[tuple[int, int] | None] = [None] * num_ops
        self.departs += [
            (plan.place_device[c.source], c.source) if reports_departure(plan, c) else None for c in plan.copies
        ]
        self.todo = list(plan.departures)
        for task in tasks:
            if task is not None:
                self.todo[task.device] += 1
        graph = plan.program.graph
        resident = np.zeros(plan.num_devices, dtype=np.int64)
        np.add.at(resident, plan.op_device, graph.resident_bytes.sum(axis=1))
        at_start = [plan.home[s.value] for s in plan.program.sources if s.kind == "input"]
        np.add.at(resident, [plan.place_device[p] for p in at_start], [plan.place_bytes[p] for p in at_start])
        self.live_bytes = resident.tolist()
        first_reader = [copy.first_reader for copy in plan.copies]
        # A copy comes before the most urgent of its readers.
        urgent: list[tuple[float, float]] = [(-float(s), float(i)) for i, s in enumerate(remaining)]
        for number, each in enumerate(plan.copies):
            task = tasks[num_ops + number]
            assert task is not None
            seconds, op = min(urgent[reader] for reader in [*task.readies, each.first_reader])
            urgent.append((seconds, op - 0.5))
        self.by_rank = sorted(range(len(urgent)), key=urgent.__getitem__)
        self.rank = [0] * len(urgent)
        for rank, task_number in enumerate(self.by_rank):
            self.rank[task_number] = rank
        self.first_reader = first_reader
        self.uses = list(plan.uses)
        self.first = plan.first
        self.members: dict[int, list[int]] = {}
        self.excess_bytes: dict[int, int] = {}
        self.order = [
            [i for i in range(num_ops) if tasks[i] is not None and plan.op_device[i] == d]
            for d in range(plan.num_devices)
        ]

    def in_regions(
        self, start_s: Sequence[float], end_s: Sequence[float], compiler: RegionCompiler | None = None
    ) -> Template:
        """The same step with the ops in regions, in the order in which they ran; see `envs.measured.regions`.

        Args:
            start_s: By task, when it began in a step of this template.
            end_s: By task, when it ended.
            compiler: Of the regions; None leaves their ops as they are.
        """
        plan, num_ops = self.plan, program_ops(self.plan)
        found = split(plan, start_s, end_s)
        segments = [[Segment(ops)] if compiler is None else compiler.segments(ops) for ops in found]
        regions = [[op for segment in each for op in segment.ops] for each in segments]
        users = Users(plan, regions)
        made = copy(self)
        made.runs = list(self.runs)
        for first, function in write_functions(plan, segments, self.runs, users).items():
            made.runs[first] = function
        made.uses = [0 if p in users.inner else len(users.by_place[p]) for p in range(len(plan.uses))]
        made.members = {ops[0]: ops for ops in regions}
        made.excess_bytes = {}
        made.missing, made.made_bytes = list(self.missing), list(self.made_bytes)
        made.readies, made.sends = [[] for _ in plan.tasks], [[] for _ in plan.tasks]
        made.releases, made.makes = [[] for _ in plan.tasks], [[] for _ in plan.tasks]
        made.rank, made.by_rank = list(self.rank), list(self.by_rank)
        made.writer = [users.of_op.get(op, -1) for op in self.writer]
        made.todo = list(plan.departures)
        for number, task in enumerate(plan.tasks):
            if task is None or (number < num_ops and users.of_op[number] != number):
                continue
            made.todo[task.device] += 1
            ops = made.members.get(number, [number])
            made.missing[number] = 0
            for op in ops:
                self._merge(made, number, op, users)
            if number < num_ops:
                made.rank[number] = min(self.rank[op] for op in ops)
                made.by_rank[made.rank[number]] = number
                made.made_bytes[number], made.excess_bytes[number] = _peak_of(plan, ops, users)
            made.releases[number] = list(dict.fromkeys(made.releases[number]))
        for place, writer in enumerate(made.writer):
            if writer >= 0 and self.plan.uses[place] > 1 and made.uses[place] <= 1:
                made.missing[writer] -= 1  # all that it waits for is in its own region
        active = [i for i, task in enumerate(plan.tasks) if task is not None and users.of_op.get(i, i) == i]
        made.first = [
            [i for i in active if made.missing[i] == 0 and _device(plan, i) == device]
            for device in range(plan.num_devices)
        ]
        made.order = [[ops[0] for ops in regions if plan.op_device[ops[0]] == d] for d in range(plan.num_devices)]
        return made

    def _merge(self, made: Template, number: int, op: int, users: Users) -> None:
        """Add what happens before and after one of its ops to a task."""
        inside = sum(users.of_op.get(ready, ready) == number for ready in self.readies[op])
        made.missing[number] += self.missing[op] - inside
        made.readies[number] += [
            users.of_op.get(ready, ready) for ready in self.readies[op] if users.of_op.get(ready, ready) != number
        ]
        made.sends[number] += self.sends[op]
        made.releases[number] += [place for place in self.releases[op] if place not in users.inner]
        made.makes[number] += [place for place in self.makes[op] if place not in users.inner]

    def job(self, slots: list[Any], schedule: str) -> Job:
        """A step that has not begun."""
        plan = self.plan
        count = len(plan.tasks)
        return Job(
            runs=self.runs,
            slots=slots,
            missing=self.missing.copy(),
            uses=self.uses.copy(),
            readies=self.readies,
            sends=self.sends,
            releases=self.releases,
            makes=self.makes,
            made_bytes=self.made_bytes,
            kept=plan.kept,
            writer=self.writer,
            place_bytes=plan.place_bytes,
            departs=self.departs,
            copy_sources=[copy.source for copy in plan.copies],
            on_gpu=self.on_gpu,
            num_ops=program_ops(plan),
            members=self.members,
            excess_bytes=self.excess_bytes,
            first=self.first,
            todo=self.todo,
            queues=[self._queue(device, schedule) for device in range(plan.num_devices)],
            live_bytes=self.live_bytes,
            start_s=[float("nan")] * count,
            end_s=[float("nan")] * count,
        )

    def _queue(self, device: int, schedule: str) -> Any:
        if schedule == "fifo":
            return FifoQueue()
        if schedule == "program_order":
            return ProgramOrderQueue(self.order[device], self.first_reader, program_ops(self.plan))
        return Queue(self.rank, self.by_rank)


def _device(plan: Plan, number: int) -> int:
    task = plan.tasks[number]
    assert task is not None
    return task.device


def _peak_of(plan: Plan, ops: list[int], users: Users) -> tuple[int, int]:
    """The most bytes that a region takes at a time, and how many of them are free again when it ends."""
    live = peak = 0
    last: dict[int, int] = {}
    for op in ops:
        for place in _places(plan, op):
            last[place] = op
    for op in ops:
        task = plan.tasks[op]
        assert task is not None
        live += task.made_bytes
        peak = max(peak, live)
        live -= sum(
            plan.place_bytes[place] for place in _places(plan, op) if last[place] == op and place in users.inner
        )
    return peak, peak - live


def _places(plan: Plan, op: int) -> list[int]:
    """What an op reads and makes, each once."""
    task = plan.tasks[op]
    assert task is not None
    return list(dict.fromkeys([*task.releases, *task.makes]))
