"""What jobs are, and what all workers do with them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from graphs.errors import InputError, NoFeasiblePlacementError

MOST_WORKERS = 4096
"""More are a slip of the keyboard."""

MOST_ATTEMPTS = 20
"""Times that a job is begun before it is taken to be what ends its workers."""

OURS = ("placement", "envs", "graphs")
"""Packages whose functions jobs may name; others must be given where workers are opened."""

_MOST_KEPT = 8
"""Shared contents that a worker keeps decoded."""

Error = InputError | NoFeasiblePlacementError


@dataclass(frozen=True)
class Shared:
    """Something that many jobs read, known by its digest.

    Attributes:
        digest: SHA-256 of its bytes, in hexadecimal.
        decoder: ``"package.module:function"``: turns the bytes into the object, once a worker.
    """

    digest: str
    decoder: str


@dataclass(frozen=True)
class Job:
    """One call, as plain data.

    Attributes:
        key: By which whoever asks knows the result.
        function: ``"package.module:function"``, of this project or of a package that the workers were opened with;
            called with what is shared, if anything, and the arguments.
        arguments: Keyword arguments: numbers, strings, arrays, and tuples, dicts and data classes of them.
        shared: Its first argument; None for none.
        time_limit_s: Seconds after which its worker is taken to hang: it is ended, and the job begun again. None for
            no limit.
        host: One of `Workers.hosts`, where it has to be done; None for anywhere.
    """

    key: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shared: Shared | None = None
    time_limit_s: float | None = None
    host: str | None = None


@dataclass(frozen=True)
class Done:
    """What a job came to.

    Attributes:
        key: The job's.
        value: What the function returned; None where it raised.
        error: The error of its input that it raised; any other one is raised to whoever asked.
        attempts: Times that it was begun.
    """

    key: str
    value: Any = None
    error: Error | None = None
    attempts: int = 1

    def result(self) -> Any:
        """The value.

        Raises:
            InputError: The job raised it.
            NoFeasiblePlacementError: Likewise.
        """
        if self.error is not None:
            raise self.error
        return self.value


class Workers(Protocol):
    """Processes that do jobs.

    Attributes:
        count: How many jobs they do at the same time.
        is_here: Whether they are processes of this machine, which share its cores out.
    """

    count: int
    is_here: bool

    def hosts(self) -> list[str]:
        """Addresses of the machines, for jobs that have to be done on different ones at the same time.

        Local workers stand for a machine each, so that what runs on several can be tried on one.
        """
        ...

    def load_first(self, function: str, argument: str) -> None:
        """Say what jobs will call before all else, to load what is compiled: where workers are forked, once for all.

        Args:
            function: ``"package.module:function"``, of this project.
            argument: Its argument.
        """
        ...

    def share(self, content: bytes, decoder: str) -> Shared:
        """Let jobs read some bytes; each worker gets them once."""
        ...

    def forget(self, shared: Shared) -> None:
        """Keep some bytes no longer; no job of them may be left."""
        ...

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do jobs, each exactly once in what comes back, and give each result as it is done.

        Jobs are taken from the iterable as workers are free. Where the iterator is closed, what runs is ended.

        Raises:
            InputError: A job lost its worker `MOST_ATTEMPTS` times.
        """
        ...

    def close(self) -> None:
        """End the workers."""
        ...

    def __enter__(self) -> Self:
        """The workers."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        ...


_kept: dict[Shared, Any] = {}


def call(job: Job, read: Callable[[], bytes], packages: Sequence[str] = ()) -> Done:
    """Do a job in this process; called by workers.

    Args:
        job: The job.
        read: Gives the bytes of what is shared; not called where the worker has decoded them before.
        packages: Whose functions it may name beside those of this project.
    """
    function = find(job.function, packages)
    try:
        if job.shared is None:
            return Done(job.key, function(**job.arguments))
        return Done(job.key, function(_decoded(job.shared, read, packages), **job.arguments))
    except (InputError, NoFeasiblePlacementError) as error:
        return Done(job.key, error=error)


def lost(job: Job, attempts: int, how: str) -> InputError:
    """The error of a job that cannot be done."""
    return InputError(f"job '{job.key}' lost its worker {attempts} times ({how}); give it more memory or time")


def _decoded(shared: Shared, read: Callable[[], bytes], packages: Sequence[str]) -> Any:
    """What is shared, decoded when it is first asked for; the oldest of too many is forgotten."""
    if shared not in _kept:
        while len(_kept) >= _MOST_KEPT:
            _kept.pop(next(iter(_kept)))
        _kept[shared] = find(shared.decoder, packages)(read())
    return _kept[shared]


def find(name: str, packages: Sequence[str]) -> Callable[..., Any]:
    """A function by its name: of this project, or of a package that the workers were opened with.

    Raises:
        ValueError: It is neither; what a module has imported from elsewhere is none of its functions.
    """
    module, _, function = name.partition(":")
    if module.partition(".")[0] not in (*OURS, *packages):
        raise ValueError(f"a job names {name!r}, which is not a function of this project")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    if getattr(found, "__module__", None) != module or not callable(found):
        raise ValueError(f"a job names {name!r}, which is not a function of that module")
    return found
