"""The directory of a run: which files it holds, and all that is needed to go on with it or to use its placement.

==========================  ============================================================================================
``config.json``             what was asked for, and which versions did it (`RunConfig`)
``graph.graph.json.gz``     the graph, where no name says it: it was an object, or carries the times of a profile
``cluster.yaml``            the cluster, where no name says it
``start.json``              the placement that it was told to start from, if any
``groups.json``             the co-location groups, where they are not what graph, cluster and their number make
``placement.json``          the best placement so far (`placement.results.placement_file`), replaced when it improves;
                            of a training on measured time, where that was faster, `one_device.json`
``comparison.json``         the other placers and the learned one (`placement.results.comparison`), at the end
``report.html``             why the placement is what it is, on one page, where the extra `report` is installed
``checkpoint.pt``           the trainer's state
``measurements.jsonl``      of a training on measured time: every placement that was run (`placement.runs.measurements`)
``measured.json``           and at its end the rows
``one_device.json``         every op on one device of all cores, measured at the end (`placement.runs.plain`)
``one_device.yaml``         the cluster of that device
``split.json``              the best placement on several devices, where `placement.json` is `one_device.json`
``events.out.tfevents.*``   TensorBoard's events
``.lock``                   held by the process that works on the run
==========================  ============================================================================================

This module alone knows how a run's problem is written down and made again: whoever made the run, `load_problem` gives
its problem.
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

from envs.clusters.catalog import DEVICE_SPECS, load_cluster
from envs.clusters.file import cluster_to_yaml
from envs.constraints import Constraints, reserve_memory
from envs.make_problem import make_problem
from envs.measured.protocol import Protocol
from envs.problem import PlacementProblem, ProblemNames
from graphs.colocation.groups import Groups
from graphs.errors import InputError
from graphs.files import save_graph_file, write_atomically
from graphs.reading import decode_json, exists, read_file
from graphs.sources import load_graph
from placement.results.placement_file import PLACEMENT, STAGES, read_placement
from placement.runs.problem_content import decode_groups, encode_groups

CONFIG, COMPARISON, CHECKPOINT = "config.json", "comparison.json", "checkpoint.pt"
MEASUREMENTS, MEASURED = "measurements.jsonl", "measured.json"
ONE_DEVICE, ONE_DEVICE_CLUSTER, SPLIT = "one_device.json", "one_device.yaml", "split.json"
DEVICE_MAP = "device_map.json"
REPORT = "report.html"

GRAPH: Literal["graph.graph.json.gz"] = "graph.graph.json.gz"
CLUSTER: Literal["cluster.yaml"] = "cluster.yaml"
GROUPS: Literal["groups.json"] = "groups.json"
START: Literal["start.json"] = "start.json"

_LOCK = ".lock"

_MOST_CONFIG_BYTES = 2**20

_VERSIONS_OF = ("device-placement", "numba", "numpy", "torch")


class MeasuredSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a training on measured time runs steps.

    Attributes:
        source: What the model is built from: a workload of the zoo or ``python:module:function``.
        devices: Names of real devices.
        screen: True where the policy learns from the simulator, and what it finds is measured.
        limit_s: Seconds that one measurement may take.
        protocol: How many steps.
        compile_regions: Whether the best placements are run with regions that are compiled, too.
    """

    source: str
    devices: tuple[str, ...]
    screen: bool
    limit_s: float
    protocol: Protocol
    compile_regions: bool = False


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a training run was asked to do; the content of `config.json`.

    Attributes:
        graph: As the user named it; the graph's own name where it was given as an object.
        graph_sha256: Digest of what that was.
        graph_file: The file in the run directory that holds it; None where the name says it.
        cluster: As the user named it; the cluster's own name where it was given as an object.
        cluster_sha256: Digest of what that was.
        cluster_file: The file in the run directory that holds it; None where the name says it.
        schedule: The simulator's.
        groups: Wanted number of co-location groups.
        groups_file: The file in the run directory that holds them; None where their number says it.
        preset: How the policy learns: a name in `placement.learning.config.PRESETS`.
        seed: Seeds all random numbers.
        updates: Updates in all; None where only the time limits the run.
        time_limit_s: Seconds of the first run; None where only the updates do.
        measured: How a training on measured time runs steps; None where step times are simulated.
        constraints: Pins, forbidden devices and reserved memory, as they were given.
        start_file: The file in the run directory that holds the placement to start from; None where there is none.
        chains: How many of the search's chains walk to the end; None for as many as the preset says.
        versions: By package.
    """

    format: Literal["device-placement-run"] = "device-placement-run"
    version: Literal[1, 2] = 2
    graph: str
    graph_sha256: str
    graph_file: Literal["graph.graph.json.gz"] | None = None
    cluster: str
    cluster_sha256: str
    cluster_file: Literal["cluster.yaml"] | None = None
    schedule: str
    groups: int
    groups_file: Literal["groups.json"] | None = None
    preset: str
    seed: int
    updates: int | None
    time_limit_s: float | None
    measured: MeasuredSettings | None = None
    constraints: Constraints = Constraints()
    start_file: Literal["start.json"] | None = None
    chains: int | None = None
    versions: dict[str, str]


_DECODER = msgspec.json.Decoder(RunConfig)


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
        names = (CONFIG, PLACEMENT, COMPARISON, CHECKPOINT, MEASURED, GRAPH, CLUSTER, GROUPS, START, REPORT)
        for name in (*names, ONE_DEVICE, ONE_DEVICE_CLUSTER, SPLIT):
            for leftover in run_dir.glob(f".{name}.*.tmp"):
                leftover.unlink(missing_ok=True)
        yield


def create(
    run_dir: Path,
    problem: PlacementProblem,
    *,
    preset: str,
    seed: int,
    updates: int | None = None,
    time_limit_s: float | None = None,
    measured: MeasuredSettings | None = None,
    start: bytes | None = None,
    chains: int | None = None,
) -> RunConfig:
    """Begin a run in a directory that is held: write down the problem and what is asked for.

    What has no name is kept in files of its own; `config.json`, which marks the directory as taken, is written last.

    Args:
        run_dir: The directory.
        problem: What is to be placed.
        preset: A name in `placement.learning.config.PRESETS`.
        seed: Seeds all random numbers.
        updates: Updates in all, if they limit the run.
        time_limit_s: Seconds in all, if they do.
        measured: How a training on measured time runs steps. The graph and cluster of such a run are always kept in
            files, so that it can be used where the model's code is not.
        start: The placement file to start from, if any.
        chains: How many of the search's chains walk to the end; None for as many as the preset says.

    Raises:
        InputError: There is a run in it already, or a file cannot be written.
    """
    check_free(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    names = problem.names or ProblemNames(None, None, problem.num_groups)
    keeps_graph, keeps_cluster = (measured is not None or name is None for name in (names.graph, names.cluster))
    if keeps_graph:
        save_graph_file(problem.graph, run_dir / GRAPH)
    if keeps_cluster:
        write_atomically(run_dir / CLUSTER, cluster_to_yaml(problem.cluster, DEVICE_SPECS).encode())
    if problem.names is None:
        write_atomically(run_dir / GROUPS, encode_groups(problem.groups))
    if start is not None:
        write_atomically(run_dir / START, start)
    config = RunConfig(
        graph=names.graph or (problem.graph.name if measured is None else measured.source),
        graph_sha256=problem.graph.sha256,
        graph_file=GRAPH if keeps_graph else None,
        cluster=names.cluster or problem.cluster.name,
        cluster_sha256=problem.cluster.sha256,
        cluster_file=CLUSTER if keeps_cluster else None,
        schedule=problem.schedule,
        groups=names.groups,
        groups_file=GROUPS if problem.names is None else None,
        preset=preset,
        seed=seed,
        updates=updates,
        time_limit_s=time_limit_s,
        measured=measured,
        constraints=problem.constraints,
        start_file=None if start is None else START,
        chains=chains,
        versions=_versions(),
    )
    write_atomically(
        run_dir / CONFIG, msgspec.json.format(msgspec.json.encode(config, order="sorted"), indent=2) + b"\n"
    )
    return config


def check_free(run_dir: Path) -> None:
    """Raise where a run would overwrite another.

    Raises:
        InputError: There is a run in the directory already, or it cannot be made.
    """
    if (run_dir / CONFIG).exists():
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
    if (run_dir / STAGES).exists() and not path.exists():
        raise InputError(
            f"'{run_dir}' holds the stages of a pipeline ({STAGES}), no placement of ops; give a run of another target"
        )
    if run_dir.is_dir() and not os.path.lexists(path):  # a link to nowhere is there, and is said to be one
        raise InputError(f"'{run_dir}' holds no run: there is no {CONFIG} in it; give a directory that train wrote")
    try:
        return decode_json(read_file(path, "run configuration", most_bytes=_MOST_CONFIG_BYTES), _DECODER)
    except InputError as error:
        raise InputError(f"'{run_dir}' holds no run to resume: {error}") from error
    except msgspec.DecodeError as error:
        raise InputError(f"'{path}' is not a run's configuration: {error}") from error


def load_problem(run_dir: Path, config: RunConfig) -> PlacementProblem:
    """Make a run's problem again, from its own files or from what the user named.

    Raises:
        InputError: Something of it is gone or damaged.
    """
    graph = config.graph if config.graph_file is None else load_graph(str(run_dir / config.graph_file))
    cluster = config.cluster if config.cluster_file is None else load_cluster(str(run_dir / config.cluster_file))
    asked = config.constraints
    if config.groups_file is None:
        return make_problem(
            graph,
            cluster,
            schedule=config.schedule,
            groups=config.groups,
            pin=asked.pin,
            forbid=asked.forbid,
            reserve=asked.reserve,
        )
    return PlacementProblem(
        load_graph(graph) if isinstance(graph, str) else graph,
        _read_groups(run_dir / config.groups_file),
        reserve_memory(load_cluster(cluster) if isinstance(cluster, str) else cluster, asked),
        config.schedule,
        constraints=asked,
    )


def load_placed_problem(run_dir: Path, config: RunConfig) -> PlacementProblem:
    """The problem that a run's `placement.json` answers: the run's own, or the same graph on one device of all cores.

    Raises:
        InputError: Something of it is gone or damaged.
    """
    problem = load_problem(run_dir, config)
    if not (run_dir / ONE_DEVICE_CLUSTER).exists() or not (run_dir / PLACEMENT).exists():
        return problem
    cluster = load_cluster(str(run_dir / ONE_DEVICE_CLUSTER))
    if read_placement(run_dir / PLACEMENT).cluster.sha256 != cluster.sha256:
        return problem
    return make_problem(problem.graph, cluster, schedule=config.schedule, groups=config.groups)


def run_of(placement: Path) -> Path | None:
    """The run directory that a path means: itself, or the one that the placement file stands in; None where neither."""
    for path in (placement, placement.parent):
        if (path / CONFIG).is_file() and path / PLACEMENT in (placement, placement / PLACEMENT):
            return path
    return None


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


def _read_groups(path: Path) -> Groups:
    """Read the groups of a run.

    Raises:
        InputError: The file cannot be read or is damaged.
    """
    try:
        return decode_groups(read_file(path, "groups of a run"))
    except (msgspec.DecodeError, OverflowError, ValueError) as error:
        raise InputError(f"'{path}' does not hold the groups of a run ({error}); start a new run") from error


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _VERSIONS_OF:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
