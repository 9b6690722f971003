"""A GPU as a device: a thread that issues its ops, in the schedule's order, and never waits for them.

An op is issued as soon as its inputs have been issued; the stream keeps the order. Copies run on a side stream beside
the ops, and streams wait for each other by events. Only what a CPU reads of a GPU must really have been computed: a
second thread waits for that, so that the GPU's own queue goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch

from envs.measured.machine import RealDevice
from envs.measured.worker import CLOSE, Done, Job, Worker


class CudaWorker(Worker):
    """A GPU device; see `Worker` for the arguments."""

    def __init__(self, index: int, device: RealDevice, done: SimpleQueue[Done]) -> None:
        super().__init__(index, device, done)
        self._torch_device = torch.device("cuda", device.index)
        self._outgoing: SimpleQueue[Any] = SimpleQueue()
        self._issued: dict[int, torch.cuda.Event] = {}  # by place: when its content is there

    def prepare(self) -> None:
        """Make the streams, and start the thread that hands results to CPUs."""
        torch.cuda.set_device(self._torch_device)
        self.stream = torch.cuda.Stream(self._torch_device)
        self.copies = torch.cuda.Stream(self._torch_device)
        torch.cuda.set_stream(self.stream)
        self._sender = threading.Thread(target=self._send, name=f"{self.name} copies", daemon=True)
        self._sender.start()

    def finish(self) -> None:
        """Wait for the GPU."""
        self.copies.synchronize()
        self.stream.synchronize()
        self._issued.clear()

    def retire(self) -> None:
        """End the second thread."""
        self._outgoing.put(CLOSE)
        self._sender.join(timeout=5.0)

    def call(self, run: Callable[..., None], task: int, job: Job) -> None:
        """Issue a task: an op on the main stream, a copy on the other one."""
        if task < job.num_ops:
            for place in job.releases[task]:
                event = self._issued.get(place)
                if event is not None:
                    self.stream.wait_event(event)
            super().call(run, task, job)
            return
        place = job.makes[task][0]
        source = job.copy_sources[task - job.num_ops]
        event = job.events.get(source)
        if event is not None:
            self.copies.wait_event(event)
        with torch.cuda.stream(self.copies):
            sent = job.slots[source]
            run(job.slots)
            if sent.is_cuda:
                sent.record_stream(self.copies)  # its memory is not given away before the copy is done
            job.slots[place].record_stream(self.stream)
            self._issued[place] = self.copies.record_event()

    def tell(self, other: int, copy: int, job: Job) -> None:
        """Let another device make a copy: a GPU at once, behind an event; a CPU once it can read the numbers."""
        event = self.stream.record_event()
        source = job.copy_sources[copy - job.num_ops]
        job.events[source] = event
        if job.on_gpu[other]:
            self.peers[other].put(copy)
        else:
            self._outgoing.put((event, other, copy))

    def _send(self) -> None:
        while True:
            message = self._outgoing.get()
            if message is CLOSE:
                return
            event, other, copy = message
            event.synchronize()
            self.peers[other].put(copy)
