"""The directory of a training run: which files it holds, and the record from which it can be resumed.

========================  ==============================================================================================
``config.json``           what was asked for, and which versions did it (`RunConfig`)
``placement.json``        the best placement so far (`placement.results.placement_file`), replaced when it improves
``comparison.json``       the other placers and the learned one (`placement.results.comparison`), at the end
``checkpoint.pt``         the trainer's state
``events.out.tfevents.*``  TensorBoard's events
``.lock``                 held by the process that works on the run
========================  ==============================================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.files import write_atomically
from graphs.reading import decode_json, exists, read_file

CONFIG, PLACEMENT, COMPARISON, CHECKPOINT = "config.json", "placement.json", "comparison.json", "checkpoint.pt"

_LOCK = ".lock"

_MOST_CONFIG_BYTES = 2**20

_VERSIONS_OF = ("device-placement", "numba", "numpy", "torch")


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a training run was asked to do; the content of `config.json`.

    Attributes:
        graph: As the user named it.
        graph_sha256: Digest of what that was.
        cluster: As the user named it.
        cluster_sha256: Digest of what that was.
        schedule: The simulator's.
        groups: Wanted number of co-location groups.
        preset: Of the learning.
        seed: Of all random numbers.
        updates: Updates in all; None where only the time limits the run.
        time_limit_s: Seconds of the first run; None where only the updates do.
        versions: By package.
    """

    format: Literal["device-placement-run"] = "device-placement-run"
    version: Literal[1] = 1
    graph: str
    graph_sha256: str
    cluster: str
    cluster_sha256: str
    schedule: str
    groups: int
    preset: str
    seed: int
    updates: int | None
    time_limit_s: float | None
    versions: dict[str, str]


_DECODER = msgspec.json.Decoder(RunConfig)


def make_run_config(
    problem: PlacementProblem,
    *,
    graph: str,
    cluster: str,
    groups: int,
    preset: str,
    seed: int,
    updates: int | None,
    time_limit_s: float | None,
) -> RunConfig:
    """The record of a run that is about to begin; the arguments are `RunConfig`'s fields."""
    return RunConfig(
        graph=graph,
        graph_sha256=problem.graph.sha256,
        cluster=cluster,
        cluster_sha256=problem.cluster.sha256,
        schedule=problem.schedule,
        groups=groups,
        preset=preset,
        seed=seed,
        updates=updates,
        time_limit_s=time_limit_s,
        versions=_versions(),
    )


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Keep other processes from working on a run, and clear away half-written files of one that was killed.

    The kernel lets go of the lock when the process ends, however it ends. The directory is made where it is new.

    Raises:
        InputError: Another process works on the run, or the directory cannot be made.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / _LOCK).open("w")
    except OSError as error:
        raise InputError(f"cannot make run directory '{run_dir}': {error.strerror}; give another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process works on the run in '{run_dir}'; wait for it or stop it, or give another --out"
            ) from error
        for name in (CONFIG, PLACEMENT, COMPARISON, CHECKPOINT):
            for leftover in run_dir.glob(f".{name}.*.tmp"):
                leftover.unlink(missing_ok=True)
        yield


def create(run_dir: Path, config: RunConfig) -> None:
    """Begin a run in a directory that is held; its `config.json` is what marks it as taken.

    Raises:
        InputError: There is a run in it already, or the file cannot be written.
    """
    check_free(run_dir)
    write_atomically(
        run_dir / CONFIG, msgspec.json.format(msgspec.json.encode(config, order="sorted"), indent=2) + b"\n"
    )


def check_free(run_dir: Path) -> None:
    """Raise where a run would overwrite another.

    Raises:
        InputError: There is a run in the directory already, or it cannot be made.
    """
    if exists(run_dir / CONFIG):
        raise InputError(
            f"'{run_dir}' holds a run already; continue it with --resume {run_dir}, or give another directory to --out"
        )
    above = next((path for path in (run_dir, *run_dir.parents) if exists(path)), Path())
    if not above.is_dir():
        raise InputError(f"cannot make run directory '{run_dir}': '{above}' is a file; give another --out")
    if not os.access(above, os.W_OK):
        raise InputError(f"cannot make run directory '{run_dir}': '{above}' may not be written to; give another --out")


def read_config(run_dir: Path) -> RunConfig:
    """Read a run directory's `config.json`.

    Raises:
        InputError: There is no run there, or the file is damaged.
    """
    path = run_dir / CONFIG
    try:
        return decode_json(read_file(path, "run configuration", most_bytes=_MOST_CONFIG_BYTES), _DECODER)
    except InputError as error:
        raise InputError(f"'{run_dir}' holds no run to resume: {error}") from error
    except msgspec.DecodeError as error:
        raise InputError(f"'{path}' is not a run's configuration: {error}") from error


def check_same_problem(run_dir: Path, config: RunConfig, problem: PlacementProblem) -> None:
    """Raise where what a run was about has changed since.

    Raises:
        InputError: The graph or the cluster is not the one that the run began with.
    """
    changed = [
        f"{what} '{name}'"
        for what, name, before, now in (
            ("graph", config.graph, config.graph_sha256, problem.graph.sha256),
            ("cluster", config.cluster, config.cluster_sha256, problem.cluster.sha256),
        )
        if before != now
    ]
    if changed:
        raise InputError(
            f"cannot resume '{run_dir}': {' and '.join(changed)} changed since; start a new run with --out"
        )


def free_directory(parent: Path, name: str) -> Path:
    """The first of ``parent/name-1``, ``parent/name-2``, ... that does not exist."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _VERSIONS_OF:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
