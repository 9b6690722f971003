"""Workers that are processes of this machine: one that is lost or hangs is noticed, and another begun."""

from __future__ import annotations

import atexit
import hashlib
import os
import selectors
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from envs.simulator.workspace import available_cores
from placement.workers.base import MOST_ATTEMPTS, Done, Job, Shared, lost
from placement.workers.process import WorkerProcess, load_first


class LocalWorkers:
    """Processes of this machine, each on its share of the cores.

    With as many workers as cores, or more, each has one core; with fewer, the cores are dealt out in turn. So jobs that
    have the same seconds have the same cores. A process is begun when there is a first job for it.

    Args:
        count: How many; one a core by default.
        packages: Whose functions jobs may name beside those of this project.
    """

    is_here = True

    def __init__(self, count: int | None = None, *, packages: Sequence[str] = ()) -> None:
        self.count = count or available_cores()
        self._folder = Path(tempfile.mkdtemp(prefix="placement-workers-"))  # for this user alone
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        places = [cores[i :: self.count] or cores[i % max(len(cores), 1) :][:1] for i in range(self.count)]
        self._processes = [WorkerProcess(i, self._folder, places[i], packages) for i in range(self.count)]
        self._selector = selectors.DefaultSelector()
        self._runs = False
        atexit.register(self.close)  # before Python waits for the processes

    def hosts(self) -> list[str]:
        """This machine, once for each worker."""
        return ["127.0.0.1"] * self.count

    def load_first(self, function: str, argument: str) -> None:
        """Have the process call it that workers are forked from, where it is yet to begin."""
        load_first(function, argument)

    def share(self, content: bytes, decoder: str) -> Shared:
        """Keep some bytes in a private file that workers read."""
        digest = hashlib.sha256(content).hexdigest()
        path = self._folder / digest
        if not path.exists():
            path.write_bytes(content)
        return Shared(digest, decoder)

    def forget(self, shared: Shared) -> None:
        """Remove the file of some bytes."""
        (self._folder / shared.digest).unlink(missing_ok=True)

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do jobs; see `placement.workers.base.Workers.run`."""
        if self._runs:
            raise RuntimeError("these workers do jobs already; wait until they are done, or close the iterator")
        self._runs = True
        left = iter(jobs)
        again: list[tuple[Job, int]] = []
        free = self._processes[::-1]
        try:
            while True:
                while free:
                    job, attempt = again.pop() if again else (next(left, None), 1)
                    if job is None:
                        break
                    self._begin(free.pop(), job, attempt)
                if len(free) == self.count:
                    return
                for process in self._ready_or_late():
                    job, attempt = process.job, process.attempt
                    assert job is not None
                    try:
                        if process.until is not None and process.until <= time.monotonic():
                            raise EOFError
                        done = process.receive()
                    except EOFError as error:
                        how = self._end(process)
                        free.append(process)
                        if attempt >= MOST_ATTEMPTS:
                            raise lost(job, attempt, how) from error
                        again.append((job, attempt + 1))
                        continue
                    if done is None:
                        continue
                    free.append(process)
                    if isinstance(done, BaseException):
                        raise done
                    yield Done(done.key, done.value, done.error, attempt)
        finally:
            for process in self._processes:
                if process.job is not None:
                    self._end(process)
            self._runs = False

    def close(self) -> None:
        """End the processes, and remove their files."""
        atexit.unregister(self.close)
        for process in self._processes:
            self._end(process)
        self._selector.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _begin(self, process: WorkerProcess, job: Job, attempt: int) -> None:
        """Give a process a job; one that is lost meanwhile is begun anew."""
        if process.connection is not None:  # another takes its place where it is lost
            self._selector.unregister(process.connection)
        try:
            process.send(job, attempt)
        finally:
            if process.connection is not None:
                self._selector.register(process.connection, selectors.EVENT_READ, process)

    def _end(self, process: WorkerProcess) -> str:
        if process.connection is not None:
            self._selector.unregister(process.connection)
        return process.end()

    def _ready_or_late(self) -> list[WorkerProcess]:
        """Processes that have a job and have said something, are lost, or take too long; waits for one."""
        limits = [process.until for process in self._processes if process.until is not None]
        wait_s = max(min(limits) - time.monotonic(), 0.0) if limits else None
        found: list[WorkerProcess] = [key.data for key, _ in self._selector.select(wait_s)]
        for process in found:
            if process.job is None:  # lost while it had nothing to do
                self._end(process)
        found = [process for process in found if process.job is not None]
        now = time.monotonic()
        return found + [p for p in self._processes if p.until is not None and p.until <= now and p not in found]

    def __enter__(self) -> Self:
        """The workers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()
