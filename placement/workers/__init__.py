"""Jobs on other processes and machines: one protocol, and who serves it.

A job is plain data: the name of a function of this project, its arguments, and the digest of what many jobs share, most
often a problem. What is shared travels to each worker once. Results come as they are done; whoever asks puts them in
order, so that none depends on which worker was quicker. A job whose worker is lost is done again.

``open_workers("2")`` gives local processes, ``open_workers("ray")`` Ray on this machine, and
``open_workers("ray://HOST:PORT")`` a cluster that runs elsewhere.
"""

from __future__ import annotations

import re

from graphs.errors import InputError
from graphs.extras import check_ray
from placement.workers.base import MOST_WORKERS, Done, Job, Shared, Workers

__all__ = ["Done", "Job", "Shared", "Workers", "open_workers"]


def open_workers(spec: str | int) -> Workers:
    """Start workers, or join those that run.

    Args:
        spec: A number of local processes; ``"local"`` for one a core; ``"ray"`` for a Ray of this process's own, one
            worker a core, and ``"ray:8"`` for eight; ``"ray://HOST:PORT"``, or ``"ray:auto"`` in a job of a cluster,
            for a Ray that runs.

    Returns:
        A context manager: at its end the processes that it started are gone.

    Raises:
        InputError: The text is none of these, or Ray is not installed or not reached.
    """
    text = str(spec).strip()
    number = re.fullmatch(r"(?:local|local:)?(\d*)", text)
    ray = re.fullmatch(r"ray(?::(\d+|auto)|(://[^\s/]+:\d+))?", text)
    if ray is None and (number is None or text in ("", "local:")):
        raise InputError(f"workers '{text}' is none of: a number of processes, local, ray, ray:8, ray://HOST:PORT")
    count = (ray[1] if ray else number[1] if number else None) or None
    if count not in (None, "auto") and not 1 <= int(count) <= MOST_WORKERS:
        raise InputError(f"workers '{text}' asks for {count}; it must be from 1 to {MOST_WORKERS}")
    if ray is None:
        from placement.workers.local import LocalWorkers

        return LocalWorkers(None if count is None else int(count))
    check_ray(f"workers '{text}'")
    from placement.workers.ray_workers import RayWorkers

    if count == "auto":
        return RayWorkers(address="auto")
    return RayWorkers(None if count is None else int(count), address=f"ray{ray[2]}" if ray[2] else None)
