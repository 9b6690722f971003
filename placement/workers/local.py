"""Workers that are processes of this machine; pebble keeps them: it notices one that is lost, and starts another."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pebble import ProcessExpired, ProcessPool

from envs.simulator.workspace import available_cores
from placement.workers.base import MOST_ATTEMPTS, Done, Job, Shared, call, lost

_PR_SET_PDEATHSIG = 1
"""Of `prctl(2)`."""


class LocalWorkers:
    """Processes of this machine, each on its share of the cores.

    With as many workers as cores, or more, each has one core; with fewer, the cores are dealt out in turn. So jobs that
    have the same seconds have the same cores.

    Args:
        count: How many; one a core by default.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or available_cores()
        self._folder = Path(tempfile.mkdtemp(prefix="placement-workers-"))  # for this user alone
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._places = [cores[i :: self.count] or cores[i % max(len(cores), 1) :][:1] for i in range(self.count)]
        self._pool = ProcessPool(
            max_workers=self.count,
            context=multiprocessing.get_context("spawn"),  # what has threads must not fork
            initializer=_begin,
            initargs=(os.getpid(),),
        )

    def share(self, content: bytes, decoder: str) -> Shared:
        """Keep some bytes in a private file that workers read."""
        digest = hashlib.sha256(content).hexdigest()
        path = self._folder / digest
        if not path.exists():
            path.write_bytes(content)
        return Shared(digest, decoder)

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do jobs; see `placement.workers.base.Workers.run`."""
        left = iter(jobs)
        again: list[tuple[Job, int]] = []
        running: dict[Any, tuple[Job, int, list[int]]] = {}
        try:
            while True:
                while len(running) < self.count:
                    job, attempt = again.pop() if again else (next(left, None), 1)
                    if job is None:
                        break
                    cores = self._places.pop()
                    arguments = (job, str(self._folder), cores)
                    running[self._pool.schedule(_do, args=arguments, timeout=job.time_limit_s)] = (job, attempt, cores)
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    job, attempt, cores = running.pop(future)
                    self._places.append(cores)
                    try:
                        done: Done = future.result()
                    except (ProcessExpired, TimeoutError) as error:
                        if attempt >= MOST_ATTEMPTS:
                            raise lost(job, attempt, " ".join(str(error).split()) or "it hung") from error
                        again.append((job, attempt + 1))
                    else:
                        yield Done(done.key, done.value, done.error, attempt)
        finally:
            for future, (_, _, cores) in running.items():
                future.cancel()
                self._places.append(cores)

    def close(self) -> None:
        """End the processes, and remove their files."""
        self._pool.stop()
        self._pool.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """The workers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()


def _begin(parent: int) -> None:
    """What a worker does first: leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(1)


def _do(job: Job, folder: str, cores: list[int]) -> Done:
    if cores:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), cores)
    return call(job, lambda: (Path(folder) / job.shared.digest).read_bytes() if job.shared else b"")
