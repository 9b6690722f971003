"""Steps that are run on real devices for themselves: a placement's, to measure it, and a profile's. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from envs.clusters.catalog import DEVICE_SPECS
from envs.clusters.file import CLUSTER_FILE_SUFFIXES, cluster_to_yaml
from envs.make_problem import make_problem
from envs.measured.machine import RealDevice, parse_devices
from envs.measured.problem import Measurement, Measurer, machine_cluster
from envs.measured.process import MeasuringProcess
from envs.measured.profile import Profile, profile
from envs.measured.protocol import Protocol
from envs.problem import PlacementProblem
from graphs.errors import InputError, NoFeasiblePlacementError
from graphs.files import SUFFIXES, save_graph_file, write_atomically
from graphs.sources import check_can_run, load_graph
from placement.arguments import check_at_least_one, check_can_write, check_ends, check_positive
from placement.results.comparison import check_seed
from placement.results.placement_file import PlacementResult, check_placement
from placement.runs.observer import RunObserver
from placement.runs.one_device import OneDevice
from placement.runs.plain import Beside, Plain, can_be_one, run_plain_beside


@dataclass(frozen=True, eq=False)
class MeasuredSteps:
    """What running a placement's steps came to.

    Attributes:
        problem: What was placed; its cluster has the devices that it ran on, by the placement's names.
        result: The placement.
        devices: What it ran on, in the order of the placement's devices.
        measurement: Step times and peak memory.
        compile_regions: Whether regions were compiled.
        beside: What else the same cores were measured with.
    """

    problem: PlacementProblem
    result: PlacementResult
    devices: tuple[RealDevice, ...]
    measurement: Measurement
    compile_regions: bool = False
    beside: Beside = field(default_factory=Beside)


@dataclass(frozen=True, eq=False)
class ProfiledMachine:
    """What profiling a machine by a graph's steps came to.

    Attributes:
        devices: What was profiled.
        found: The graph with its times, the cluster, and how the machine departs from them.
        graph_file: Where the graph was written.
        cluster_file: Where the cluster was.
    """

    devices: tuple[RealDevice, ...]
    found: Profile
    graph_file: Path
    cluster_file: Path


def run_steps(
    graph: str,
    result: PlacementResult,
    devices: str,
    *,
    steps: int,
    time_limit_s: float,
    plain: Plain,
    compile_regions: bool,
    observer: RunObserver,
) -> MeasuredSteps:
    """Measure the steps of a placement; the arguments are those of `placement.api.run`.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: The steps could not be run.
    """
    check_at_least_one("steps", steps)
    check_positive("time_limit_s", time_limit_s)
    check_can_run(graph)
    real = parse_devices(devices)
    names = result.cluster.devices
    if len(real) != len(names):
        raise InputError(
            f"--devices names {len(real)} devices, but the placement is for {len(names)} ({', '.join(names)}); give "
            "one for each, in that order"
        )
    with observer.stage(f"reading {graph}"):
        loaded = load_graph(graph)
        cluster = machine_cluster(real, names=names)
        placement = check_placement(result, loaded, cluster)
        problem = make_problem(loaded, cluster, schedule=result.schedule)
    observer.on_problem(problem)
    how = Protocol(steps=steps, short_steps=steps, least_steps=steps)
    process = MeasuringProcess(
        graph, loaded.sha256, real, problem.simulator_input.remaining_path_s, compile_regions=compile_regions
    )
    measurer = Measurer(process, time_limit_s=time_limit_s, how=how)
    measurer.compile_regions = compile_regions
    with process:
        with observer.stage(f"building {graph} with its weights"):
            process.start()
        with observer.stage(f"{'compiling regions and ' if compile_regions else ''}running {steps} steps"):
            found = measurer.measure(placement, result.schedule)
    if found.reason:
        raise NoFeasiblePlacementError(f"the placement cannot be run: {found.reason}")
    ran = run_plain_beside(plain, graph, real, time_limit_s=time_limit_s, how=how, observer=observer)
    one_device = None
    if ran and can_be_one(real):
        alone = OneDevice(graph, loaded, real, time_limit_s=time_limit_s, how=how, compile_regions=compile_regions)
        with observer.stage("running all ops on one device of all cores"), alone:
            alone.measure(compile_regions=compile_regions)
            one_device = alone.result()
    return MeasuredSteps(problem, result, real, found, compile_regions, Beside(ran, one_device))


def encode_steps(measured: MeasuredSteps) -> bytes:
    """The figures as JSON."""
    found, names = measured.measurement, [device.name for device in measured.devices]
    one_device = measured.beside.one_device
    content = {
        "graph": measured.problem.graph.name,
        "devices": names,
        "schedule": measured.result.schedule,
        "compile_regions": measured.compile_regions,
        "step_time_s": found.step_time_s,
        "spread_s": found.spread_s,
        "step_times_s": found.step_times_s,
        "peak_memory_bytes": dict(zip(names, found.peak_memory_bytes, strict=True)),
        "plain": measured.beside.plain,
        "one_device_s": None if one_device is None else one_device.step_time_s,
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def profile_steps(
    graph: str,
    devices: str,
    out: Path,
    *,
    cluster_out: Path | None,
    schedule: str,
    placements: int,
    steps: int,
    seed: int,
    time_limit_s: float,
    observer: RunObserver,
) -> ProfiledMachine:
    """Profile a machine and write what was found; the arguments are those of `placement.api.profile`.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: The steps could not be run.
    """
    check_at_least_one("steps", steps)
    check_at_least_one("placements", placements)
    check_positive("time_limit_s", time_limit_s)
    check_seed(seed)
    check_can_run(graph)
    check_ends("--out", out, "graph file", SUFFIXES)
    if cluster_out is None:
        suffix = next(suffix for suffix in SUFFIXES if out.name.endswith(suffix))
        cluster_out = out.with_name(out.name.removesuffix(suffix) + ".yaml")
    check_ends("--cluster-out", cluster_out, "cluster file", CLUSTER_FILE_SUFFIXES)
    check_can_write(out, cluster_out)
    real = parse_devices(devices)
    with observer.stage(f"reading {graph}"):
        problem = make_problem(graph, machine_cluster(real), schedule=schedule)
    observer.on_problem(problem)
    process = MeasuringProcess(graph, problem.graph.sha256, real, problem.simulator_input.remaining_path_s)
    with process:
        with observer.stage(f"building {graph} with its weights"):
            process.start()
        with observer.stage("running steps"):
            found = profile(
                problem.graph,
                problem.groups,
                real,
                process,
                schedule=schedule,
                placements=placements,
                steps=steps,
                seed=seed,
                time_limit_s=time_limit_s,
            )
    save_graph_file(found.graph, out)
    write_atomically(cluster_out, cluster_to_yaml(found.cluster, DEVICE_SPECS).encode())
    return ProfiledMachine(real, found, out, cluster_out)
