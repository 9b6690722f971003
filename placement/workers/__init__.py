"""Jobs on other processes and machines: one protocol, and who serves it.

A job is plain data: the name of a function of this project, its arguments, and the digest of what many jobs share, most
often a problem. What is shared travels to each worker once. Results come as they are done; whoever asks puts them in
order, so that none depends on which worker was quicker. A job whose worker is lost is done again.

``open_workers("2")`` gives local processes, ``open_workers("ray")`` Ray on this machine, and
``open_workers("ray://HOST:PORT")`` a cluster that runs elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from graphs.errors import InputError
from graphs.extras import check_ray
from placement.workers.base import MOST_WORKERS, Done, Job, Shared, Workers

__all__ = ["Done", "Job", "Shared", "Workers", "open_workers", "parse_workers"]


@dataclass(frozen=True)
class Spec:
    """Which workers a text means.

    Attributes:
        on_ray: True for Ray's, False for local processes.
        count: How many; None for one a core.
        address: Of a Ray that runs, as Ray takes it; None for none.
    """

    on_ray: bool
    count: int | None = None
    address: str | None = None


def parse_workers(text: str | int) -> Spec:
    """Read what names workers, before anything is started.

    Args:
        text: As `open_workers` takes it.

    Raises:
        InputError: It names none, or Ray is not installed.
    """
    text = str(text).strip()
    match = re.fullmatch(r"(?:local)?|(\d+)|(ray)(?::(?:(\d+)|(auto))|(://[^\s/]+:\d+))?", text)
    if match is None or not text:
        raise InputError(f"workers '{text}' is none of: a number of processes, local, ray, ray:8, ray://HOST:PORT")
    number, on_ray, tasks, auto, host = match.groups()
    count = number or tasks
    if count is not None and not 1 <= int(count) <= MOST_WORKERS:
        raise InputError(f"workers '{text}' asks for {count}; it must be from 1 to {MOST_WORKERS}")
    if on_ray:
        check_ray(f"workers '{text}'")
    return Spec(bool(on_ray), None if count is None else int(count), auto or (f"ray{host}" if host else None))


def open_workers(spec: str | int, *, packages: Sequence[str] = ()) -> Workers:
    """Start workers, or join those that run.

    Args:
        spec: A number of local processes; ``"local"`` for one a core; ``"ray"`` for a Ray of this process's own, one
            worker a core, and ``"ray:8"`` for eight; ``"ray://HOST:PORT"``, or ``"ray:auto"`` in a job of a cluster,
            for a Ray that runs.
        packages: Whose functions jobs may name beside those of this project, as in ``("scripts",)``; workers must be
            able to import them.

    Returns:
        A context manager: at its end the processes that it started are gone.

    Raises:
        InputError: The text is none of these, or Ray is not installed or not reached.
    """
    asked = parse_workers(spec)
    if asked.on_ray:
        from placement.workers.ray_workers import RayWorkers

        return RayWorkers(asked.count, address=asked.address, packages=packages)
    from placement.workers.local import LocalWorkers

    return LocalWorkers(asked.count, packages=packages)
