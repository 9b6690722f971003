"""Workers that are Ray's: on this machine, or on all machines of a cluster that runs.

A Ray that is started here listens on 127.0.0.1 alone, and has no dashboard; other Rays of this machine are left alone,
whatever ``RAY_ADDRESS`` says. One that the program itself has started is used.
"""

from __future__ import annotations

import faulthandler
import hashlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from envs.simulator.workspace import available_cores
from graphs.errors import InputError
from placement.workers.base import MOST_ATTEMPTS, Done, Job, Shared, call, lost

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""By default on these systems, and with this on Linux, too, what Ray starts listens on 127.0.0.1 alone."""

_POLL_S = 1.0
"""Time between two looks at the clock of jobs that have a limit."""

_PATIENCE_S = 120.0
"""A worker ends itself where a job hangs; where it has not so long after, its host is taken to hang."""

ANSWER_LIMIT_S = 120.0
"""A cluster that is reached from outside and has not answered so long is taken to be gone: Ray's client would wait for
more than ten minutes."""


class RayWorkers:
    """Tasks of Ray, one core each.

    Args:
        count: Jobs at the same time; by default one a core of the cluster.
        address: Of a cluster that runs, ``"auto"`` or ``"ray://HOST:PORT"``; None starts Ray here.
        packages: Whose functions jobs may name beside those of this project.

    Raises:
        InputError: Nothing answers there.
    """

    is_here = False

    def __init__(self, count: int | None = None, *, address: str | None = None, packages: Sequence[str] = ()) -> None:
        os.environ.update(_QUIET if address else _QUIET | _LOOPBACK)  # read when Ray is imported
        if address is None or _has_token():  # by itself Ray shows its token to few clusters
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        import ray
        import ray.exceptions as errors

        self._ray = ray
        self._lost = (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
            errors.TaskCancelledError,
        )
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
        self._is_ours = not ray.is_initialized()
        try:
            if self._is_ours and address is None:
                # Placers of one's own are looked for where this process finds them.
                paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}}
                cores = count or available_cores()
                ray.init("local", num_cpus=cores, num_gpus=0, include_dashboard=False, runtime_env=paths, **quiet)
                self._check_loopback()
            elif self._is_ours:
                ray.init(address=address, **quiet)
        except (ConnectionError, errors.RayError, TimeoutError, RuntimeError, ValueError) as error:
            first = _shortly(error)
            if address is None:
                raise InputError(f"workers: Ray does not start on this machine: {first}") from error
            where = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
            raise InputError(
                f"workers: Ray at '{where}' does not answer: {first}; if it asks for a token, set RAY_AUTH_TOKEN"
            ) from error
        self.count = count or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        self._contents: dict[str, Any] = {}
        self._packages = tuple(packages)
        self._address = address
        self._is_gone = False
        # What Ray begins again by itself would not be counted.
        self._do = ray.remote(_do).options(num_cpus=1, max_retries=0)

    def _check_loopback(self) -> None:
        """Raise where a Ray that was started here would be open to other machines."""
        found = [node["NodeManagerAddress"] for node in self._ray.nodes()]
        if found != ["127.0.0.1"]:
            self._ray.shutdown()
            raise InputError(
                f"workers: Ray was imported before and would listen on {found[0]}, open to other machines; open the "
                "workers before Ray is imported, or start Ray yourself"
            )

    def hosts(self) -> list[str]:
        """The addresses of the nodes that have cores."""
        nodes = [node for node in self._ask(self._ray.nodes) if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        return sorted(node["NodeManagerAddress"] for node in nodes)

    def load_first(self, function: str, argument: str) -> None:
        """Nothing: each of Ray's processes begins on its own."""

    def share(self, content: bytes, decoder: str) -> Shared:
        """Put some bytes into Ray's store, from which each machine takes them once."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._contents:
            self._contents[digest] = self._ask(self._ray.put, content)
        return Shared(digest, decoder)

    def forget(self, shared: Shared) -> None:
        """Let Ray's store drop some bytes."""
        self._contents.pop(shared.digest, None)

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do jobs; see `placement.workers.base.Workers.run`."""
        left = iter(jobs)
        again: list[tuple[Job, int]] = []
        running: dict[Any, tuple[Job, int, float]] = {}
        try:
            while True:
                while len(running) < self.count:
                    job, attempt = again.pop() if again else (next(left, None), 1)
                    if job is None:
                        break
                    content = None if job.shared is None else self._contents[job.shared.digest]
                    do = self._do
                    if job.host is not None:  # each node has a resource by this name, of which this takes next to none
                        do = do.options(resources={f"node:{job.host}": 0.001})
                    begun = self._ask(_begun, do, job, content, self._packages)
                    running[begun] = (job, attempt, time.monotonic())
                if not running:
                    return
                finished, _ = self._ask(self._ray.wait, list(running), num_returns=1, timeout=_POLL_S)
                now = time.monotonic()
                for reference, (job, _, began) in running.items():
                    limit_s = np.inf if job.time_limit_s is None else job.time_limit_s + _PATIENCE_S
                    if now - began > limit_s and reference not in finished:
                        self._ask(self._ray.cancel, reference, force=True)
                for reference in finished:
                    job, attempt, _ = running.pop(reference)
                    try:
                        done: Done = self._ask(self._ray.get, reference)
                    except self._lost as error:
                        if attempt >= MOST_ATTEMPTS:
                            raise lost(job, attempt, str(error).strip().split("\n")[0]) from error
                        again.append((job, attempt + 1))
                    except self._ray.exceptions.RayTaskError as error:
                        raise error.as_instanceof_cause() from None
                    else:
                        yield Done(done.key, done.value, done.error, attempt)
        finally:
            for reference in () if self._is_gone else running:
                self._ask(self._ray.cancel, reference, force=True)

    def close(self) -> None:
        """Leave the cluster; end it where it was started here."""
        if self._is_gone:  # to leave it would wait for it
            return
        self._contents.clear()
        if self._is_ours:
            self._ask(self._ray.shutdown)

    def _ask(self, what: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What Ray answers; from outside of its cluster it may never.

        Raises:
            InputError: The cluster has not answered for `ANSWER_LIMIT_S`, or its connection is lost.
        """
        if not _is_outside(self._address):
            return what(*arguments, **options)
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((what(*arguments, **options), None))
            except BaseException as error:
                answers.put((None, error))

        threading.Thread(target=ask, daemon=True).start()
        try:
            found, error = answers.get(timeout=ANSWER_LIMIT_S)
        except queue.Empty:
            found, error = None, ConnectionError(f"nothing for {ANSWER_LIMIT_S:g} s")
        if isinstance(error, ConnectionError):
            self._is_gone = True
            raise InputError(
                f"workers: Ray at '{self._address}' does not answer any more ({error}); what is done is kept where the "
                "command writes a file or a run: start it again with the same --json, or with --resume"
            ) from error
        if error is not None:
            raise error
        return found

    def __enter__(self) -> Self:
        """The workers."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()


def _shortly(error: BaseException) -> str:
    """One line of an error of Ray: the first, or the last where the first only announces a traceback."""
    lines = str(error).strip().split("\n")
    return lines[-1].strip() if lines[0].endswith(":") else lines[0]


def _is_outside(address: str | None) -> bool:
    """Whether a cluster is reached by Ray's client, and not from within."""
    return address is not None and address.startswith("ray://")


def _has_token() -> bool:
    """Whether this user has a token that Ray would show to a cluster; one that asks for none takes it, too."""
    return any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or (
        Path.home().joinpath(".ray", "auth_token").is_file()
    )


def _begun(do: Any, *arguments: Any) -> Any:
    """A task that has begun: to ask Ray's client for its hash waits until the cluster has answered, or is lost."""
    reference = do.remote(*arguments)
    hash(reference)
    return reference


def _do(job: Job, content: bytes | None, packages: tuple[str, ...]) -> Done:
    if job.time_limit_s is not None:  # by a thread in C, so that it ends a job that holds the interpreter's lock, too
        faulthandler.dump_traceback_later(job.time_limit_s, exit=True)
    try:
        return call(job, lambda: content or b"", packages)
    finally:
        faulthandler.cancel_dump_traceback_later()
