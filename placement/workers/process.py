"""One local worker: a process with a pipe of its own, and what it does at the other end.

On Linux workers are forked from a template: a process that `multiprocessing` keeps, which has no threads and has loaded
what the program has of this project, and compiled functions. So a worker that was lost is begun again in a fraction of
a second.

Each worker has its own pipe, so that one that is killed while it answers leaves no lock held and no half of a message
before others. Messages are so short that they are written at once; what is longer goes by a file, which is announced
when it is whole. So whoever reads is never left waiting in the middle of one, whatever became of the writer.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from graphs.errors import InputError
from placement.workers.base import OURS, Done, Job, call
from placement.workers.template import CALLS

_FORKS = sys.platform == "linux"  # elsewhere libraries of the system do not bear it
# What has threads must not fork.
_CONTEXT: ForkServerContext | SpawnContext = (
    multiprocessing.get_context("forkserver") if _FORKS else multiprocessing.get_context("spawn")
)

_MOST_INLINE = 15_000
"""Bytes of a message that is sent as it is; the kernel takes so much at once, and Python writes it in one call."""

_READY, _INLINE, _IN_A_FILE = b"r", b"i", b"f"

_START_ATTEMPTS = 3

_TEMPLATE = "placement.workers.template"

_first: dict[tuple[str, str], None] = {}
"""What the template calls, in order."""

START_LIMIT_S = 300.0
"""Seconds in which a process must have begun; its job's time counts from then."""


class WorkerProcess:
    """A process that does one job after the other; begun when it has one, and again when it was lost.

    Args:
        number: Among its like.
        folder: What is shared, and messages that are long.
        cores: That it has; none for all.
        packages: Whose functions jobs may name.

    Attributes:
        connection: To the process; None while there is none.
        job: What it does; None for nothing.
        attempt: How often that was begun, this time included.
        until: When it is taken to hang, by `time.monotonic`; None for never.
    """

    def __init__(self, number: int, folder: Path, cores: Sequence[int], packages: Sequence[str]) -> None:
        self.connection: Connection | None = None
        self.job: Job | None = None
        self.attempt = 0
        self.until: float | None = None
        self._process: BaseProcess | None = None
        self._is_ready = False
        self._number, self._folder, self._cores, self._packages = number, folder, list(cores), tuple(packages)

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return None if self._process is None else self._process.pid

    def send(self, job: Job, attempt: int) -> None:
        """Begin a job, in a new process where there is none, or none any more."""
        content = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
        while True:
            if self.connection is None:
                self._start()
            assert self.connection is not None
            try:
                _send(self.connection, content, self._folder / f"job-{self._number}")
                break
            except OSError:  # it was lost while it had nothing to do
                if not self._folder.exists():
                    raise
                self.end()
        self.job, self.attempt = job, attempt
        self.until = self._until(job) if self._is_ready else time.monotonic() + START_LIMIT_S

    def receive(self) -> Done | BaseException | None:
        """What the job came to, or raised; None where the process has only begun.

        Raises:
            EOFError: The process is lost.
        """
        assert self.connection is not None
        try:
            message = self.connection.recv_bytes()
        except OSError as error:
            raise EOFError from error
        if message == _READY:
            self._is_ready = True
            self.until = None if self.job is None else self._until(self.job)
            return None
        found: Done | BaseException = pickle.loads(_content(message))
        self.job = self.until = None
        return found

    def end(self) -> str:
        """End the process and forget its job; says how it ended."""
        if self._process is None:
            return ""
        self._process.kill()
        self._process.join()
        code = self._process.exitcode
        self._process.close()
        assert self.connection is not None
        self.connection.close()
        self._process = self.connection = self.job = self.until = None
        return f"exit code {code}"

    @staticmethod
    def _until(job: Job) -> float | None:
        return None if job.time_limit_s is None else time.monotonic() + job.time_limit_s

    def _start(self) -> None:
        """Begin the process.

        Raises:
            InputError: It cannot be begun here.
        """
        for left in range(_START_ATTEMPTS - 1, -1, -1):
            try:
                self._start_once()
                return
            except (EOFError, ConnectionError, FileNotFoundError) as error:  # the template has just been lost
                if not left:
                    raise InputError(
                        f"workers: no process can be begun on this machine ({error}); give it more memory"
                    ) from error

    def _start_once(self) -> None:
        ours, theirs = _CONTEXT.Pipe()
        given = (theirs, self._number, self._folder, self._cores, self._packages, dict(os.environ))
        process = _CONTEXT.Process(target=_serve, args=given, name="worker")
        masks = hasattr(signal, "pthread_sigmask")
        # Ctrl-C goes to all of a terminal's processes; one that has hardly begun would print a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) if masks else ()
        try:
            if _FORKS:
                _ensure_template()
            process.start()
        finally:
            if masks:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._process, self.connection = process, ours
        self._is_ready = False


def load_first(function: str, argument: str) -> None:
    """Have the template call a function of this project with an argument, where it is yet to begin."""
    _first[function, argument] = None


def _ensure_template() -> None:
    """Let the process run that workers are forked from; where it does already this takes no time.

    It has one core while it loads libraries, so that none of them has threads.
    """
    loaded = [name for name in sys.modules if name.partition(".")[0] in OURS]
    skipped = ("placement.cli", "placement.api", _TEMPLATE)  # what shows, what imports all that there is, and the last
    loaded = [name for name in sorted(loaded) if not name.startswith(skipped)]
    forkserver.set_forkserver_preload([*loaded, _TEMPLATE])
    cores = os.sched_getaffinity(0)
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # it is to load the same files
    with _environment({"PYTHONPATH": paths, CALLS: json.dumps(list(_first))}):
        os.sched_setaffinity(0, {min(cores)})  # of this thread
        try:
            forkserver.ensure_running()
        finally:
            os.sched_setaffinity(0, cores)


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    """Some variables more, for processes that are begun inside."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _send(connection: Connection, content: bytes, path: Path) -> None:
    """Send a message: itself, or the name of the file that holds it."""
    if len(content) <= _MOST_INLINE:
        connection.send_bytes(_INLINE + content)
        return
    path.write_bytes(content)
    connection.send_bytes(_IN_A_FILE + os.fsencode(path))


def _content(message: bytes) -> bytes:
    """What was sent."""
    if message[:1] == _INLINE:
        return message[1:]
    path = Path(os.fsdecode(message[1:]))
    content = path.read_bytes()
    path.unlink()
    return content


def _serve(
    connection: Connection,
    number: int,
    folder: Path,
    cores: list[int],
    packages: tuple[str, ...],
    environment: Mapping[str, str],
) -> None:
    """Do jobs until the other end is gone: what a worker's process does."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if cores:
        for thread in os.listdir("/proc/self/task"):  # before what counts them is imported
            os.sched_setaffinity(int(thread), cores)
    if "torch" in sys.modules and "OMP_NUM_THREADS" not in environment:  # the template has counted one core
        sys.modules["torch"].set_num_threads(len(cores) or os.cpu_count() or 1)
    try:
        connection.send_bytes(_READY)
        while True:
            answer = _answer(connection.recv_bytes(), folder, packages)
            _send(connection, answer, folder / f"done-{number}-{os.getpid()}")
    except (EOFError, BrokenPipeError):
        return


def _answer(message: bytes, folder: Path, packages: tuple[str, ...]) -> bytes:
    """What a job came to, as bytes."""
    try:
        job: Job = pickle.loads(_content(message))

        def read() -> bytes:
            assert job.shared is not None
            return (folder / job.shared.digest).read_bytes()

        return pickle.dumps(call(job, read, packages), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # raised to whoever asked
        error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
        return _pickled(error)


def _pickled(error: BaseException) -> bytes:
    """An error as bytes; one that cannot be pickled is told of."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
        return content
    except Exception:
        return pickle.dumps(RuntimeError("".join(traceback.format_exception(error))))


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
