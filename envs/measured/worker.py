"""The thread that is a device: it runs the ops that are placed on it, and makes the copies that it receives.

Workers share no lock. What an op needs is counted by the worker of its device alone; all that one worker must tell
another is a number in the other's mailbox: a copy that can be made now, or (negative) a copy that has been made, so
that the original may be freed.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import torch

from envs.measured.machine import RealDevice

ABORT, CLOSE = "abort", "close"
"""What may come into a mailbox beside numbers and jobs."""


@dataclass(slots=True)
class Job:
    """One step: what all workers share of it. Lists are by task or by place; see `envs.measured.plan`.

    A task with `members` is a region of these ops (`envs.measured.regions`): its run takes the step's ends and uses,
    too, and writes the ends of its ops itself. `made_bytes` of it is its peak, of which `excess_bytes` is free again.
    """

    runs: list[Callable[[list[Any]], None] | None]
    slots: list[Any]
    missing: list[int]
    uses: list[int]
    readies: list[list[int]]
    sends: list[list[tuple[int, int]]]
    releases: list[list[int]]
    makes: list[list[int]]
    made_bytes: list[int]
    kept: list[bool]
    writer: list[int]
    place_bytes: list[int]
    departs: list[tuple[int, int] | None]
    copy_sources: list[int]
    on_gpu: list[bool]
    num_ops: int
    members: dict[int, list[int]]
    excess_bytes: dict[int, int]
    first: list[list[int]]
    todo: list[int]
    queues: list[Queue]
    live_bytes: list[int]
    start_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    events: dict[int, Any] = field(default_factory=dict)  # of GPUs, by place: when its content is there


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker reports at the end of a step: when it was, what memory it took, or what failed in which task."""

    device: int
    end_s: float = 0.0
    peak_bytes: int = 0
    error: BaseException | None = None
    task: int = -1


class Aborted(Exception):
    """Another worker failed."""


class Queue:
    """Ready tasks of a device, the one with the smallest rank first.

    Args:
        rank: By task.
        by_rank: The task of each rank.
    """

    def __init__(self, rank: list[int], by_rank: list[int]) -> None:
        self._rank = rank
        self._by_rank = by_rank
        self._heap: list[int] = []

    def push(self, task: int) -> None:
        """Add a ready task."""
        heapq.heappush(self._heap, self._rank[task])

    def pop(self) -> int:
        """The task to run next, -1 where none may run."""
        return self._by_rank[heapq.heappop(self._heap)] if self._heap else -1


class FifoQueue:
    """Ready tasks in the order in which they became ready; of those of one instant the smallest number first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []
        self._instant = 0

    def push(self, task: int) -> None:
        """Add a ready task."""
        heapq.heappush(self._heap, (self._instant, task))

    def pop(self) -> int:
        """The task to run next, -1 where none may run. What becomes ready after this is of a later instant."""
        self._instant += 1
        return heapq.heappop(self._heap)[1] if self._heap else -1


class ProgramOrderQueue:
    """Ops strictly in their order; copies before the op that they are for, or while the next op is not ready.

    Args:
        order: The device's ops.
        first_reader: For each copy the first op that reads it.
        num_ops: Tasks from this number on are copies.
    """

    def __init__(self, order: list[int], first_reader: list[int], num_ops: int) -> None:
        self._order = order
        self._first_reader = first_reader
        self._num_ops = num_ops
        self._ready: set[int] = set()
        self._copies: list[tuple[int, int]] = []
        self._next = 0

    def push(self, task: int) -> None:
        """Add a ready task."""
        if task < self._num_ops:
            self._ready.add(task)
        else:
            heapq.heappush(self._copies, (self._first_reader[task - self._num_ops], task))

    def pop(self) -> int:
        """The task to run next, -1 where none may run."""
        if self._next < len(self._order) and self._order[self._next] in self._ready:
            self._next += 1
            return self._order[self._next - 1]
        return heapq.heappop(self._copies)[1] if self._copies else -1


class Worker(threading.Thread):
    """A CPU device: a thread that is pinned to its cores.

    Args:
        index: The device's number.
        device: What it is.
        done: Where it reports.

    Attributes:
        mailbox: Where it is told what to do.
        peers: All workers' mailboxes.
        running: The task that it is in; -1 while it waits.
    """

    def __init__(self, index: int, device: RealDevice, done: SimpleQueue[Done]) -> None:
        super().__init__(name=f"device {device.name}", daemon=True)
        self.index = index
        self.device = device
        self.mailbox: SimpleQueue[Any] = SimpleQueue()
        self.peers: list[SimpleQueue[Any]] = []
        self.running = -1
        self._unusable: Exception | None = None
        self._done = done

    def run(self) -> None:
        """Do steps until told to close."""
        try:
            self.prepare()
        except Exception as error:  # told with the first step
            self._unusable = error
        early: list[int] = []
        with torch.inference_mode():
            while True:
                message = self.mailbox.get()
                if message is CLOSE:
                    self.retire()
                    return
                if message is ABORT:
                    early.clear()
                elif isinstance(message, Job):
                    for number in early:  # sent by workers that began before this one
                        self.mailbox.put(number)
                    early.clear()
                    self._done.put(self._report(message))
                    del message
                else:
                    early.append(message)

    def prepare(self) -> None:
        """Pin the thread; threads that PyTorch makes for it inherit that."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.device.cores)
        torch.set_num_threads(len(self.device.cores))

    def finish(self) -> None:
        """Wait for what the device still computes; a CPU does nothing behind one's back."""

    def retire(self) -> None:
        """End what else belongs to the device."""

    def call(self, run: Callable[..., None], task: int, job: Job) -> None:
        """Run a task."""
        if task in job.members:
            run(job.slots, job.end_s, job.uses)
        else:
            run(job.slots)

    def tell(self, other: int, copy: int, job: Job) -> None:
        """Let another device make a copy of what was made here."""
        self.peers[other].put(copy)

    def _report(self, job: Job) -> Done:
        try:
            if self._unusable is not None:
                raise self._unusable
            peak = self._step(job)
            self.running = -1
            self.finish()
        except BaseException as error:  # the thread must live on, and the engine must know
            return Done(self.index, error=error, task=self.running)
        return Done(self.index, perf_counter(), peak)

    def _step(self, job: Job) -> int:
        """Run this device's share of a step; returns the peak of the memory that it held."""
        empty, get, call = self.mailbox.empty, self.mailbox.get, self.call
        queue, peers, tell = job.queues[self.index], self.peers, self.tell
        push, pop = queue.push, queue.pop
        runs, missing, uses, slots = job.runs, job.missing, job.uses, job.slots
        kept, writer, sizes = job.kept, job.writer, job.place_bytes
        members, excess_bytes = job.members, job.excess_bytes
        live = peak = job.live_bytes[self.index]
        todo = job.todo[self.index]

        def release(place: int) -> int:
            uses[place] -= 1
            left = uses[place]
            if left == 0:
                if kept[place]:
                    return 0
                slots[place] = None
                return sizes[place]
            if left == 1 and writer[place] >= 0:
                missing[writer[place]] -= 1
                if missing[writer[place]] == 0:
                    push(writer[place])
            return 0

        for task in job.first[self.index]:
            push(task)
        while todo:
            task = pop() if empty() else -1
            if task < 0:
                self.running = -1
                message = get()
                if message is ABORT:
                    raise Aborted
                if message >= 0:
                    push(message)
                else:
                    todo -= 1
                    live -= release(-1 - message)
                continue
            self.running = task
            live += job.made_bytes[task]
            peak = max(peak, live)
            run = runs[task]
            assert run is not None
            job.start_s[task] = perf_counter()
            call(run, task, job)
            if task in members:
                live -= excess_bytes[task]
            else:
                job.end_s[task] = perf_counter()
            todo -= 1
            for other, copy in job.sends[task]:
                tell(other, copy, job)
            for ready in job.readies[task]:
                missing[ready] -= 1
                if missing[ready] == 0:
                    push(ready)
            departed = job.departs[task]
            if departed is not None:
                peers[departed[0]].put(-1 - departed[1])
            for place in job.releases[task]:
                live -= release(place)
            for place in job.makes[task]:
                if uses[place] == 0 and not kept[place]:
                    slots[place] = None
                    live -= sizes[place]
        return peak
