"""What every step of a plan starts from, as lists by task and by place, and the order in which devices run tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.measured.plan import Plan, program_ops, reports_departure
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
        for number, copy in enumerate(plan.copies):
            task = tasks[num_ops + number]
            assert task is not None
            seconds, op = min(urgent[reader] for reader in [*task.readies, copy.first_reader])
            urgent.append((seconds, op - 0.5))
        self.by_rank = sorted(range(len(urgent)), key=urgent.__getitem__)
        self.rank = [0] * len(urgent)
        for rank, task_number in enumerate(self.by_rank):
            self.rank[task_number] = rank
        self.first_reader = first_reader
        self.order = [
            [i for i in range(num_ops) if tasks[i] is not None and plan.op_device[i] == d]
            for d in range(plan.num_devices)
        ]

    def job(self, slots: list[Any], schedule: str) -> Job:
        """A step that has not begun."""
        plan = self.plan
        count = len(plan.tasks)
        return Job(
            runs=self.runs,
            slots=slots,
            missing=self.missing.copy(),
            uses=plan.uses.copy(),
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
            first=plan.first,
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
