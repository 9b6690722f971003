"""Trainings on measured time: from names, from a measured problem, and on with a run that stopped."""

from __future__ import annotations

import contextlib
from pathlib import Path

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.make_problem import make_problem
from envs.measured.machine import RealDevice, parse_devices
from envs.measured.problem import MeasuredProblem, machine_cluster, measured
from envs.problem import PlacementProblem
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError
from graphs.files import load_graph_file
from graphs.sources import check_can_run, load_graph
from placement.runs import directory
from placement.runs.compile_ahead import compile_ahead
from placement.runs.measure_jobs import HostsMeasure
from placement.runs.measured_training import MeasuredRun, MeasuredTraining
from placement.runs.measurements import read_measurements
from placement.runs.observer import RunObserver
from placement.runs.plain import Plain, PlainSteps, run_plain_beside
from placement.runs.training import left_s, reload
from placement.workers import Workers

__all__ = ["MeasuredRun", "resume_measured", "train_measured", "train_source"]


def train_source(
    source: str,
    devices: str,
    *,
    cluster: str | Cluster | None,
    profile: Path | None,
    schedule: str,
    groups: int,
    screen: bool,
    time_limit_s: float,
    seed: int,
    run_dir: Path | None,
    plain: Plain,
    compile_regions: bool,
    observer: RunObserver | None,
    workers: Workers | None = None,
) -> MeasuredRun:
    """Make a measured problem from names, and learn; the arguments are those of `placement.api.train_measured`.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: No placement could be run.
    """
    observer = observer or RunObserver()
    check_can_run(source)
    real = parse_devices(devices)
    if cluster is None:
        cluster = machine_cluster(real)
    elif isinstance(cluster, str):
        cluster = load_cluster(cluster)
    if run_dir is not None:
        directory.check_free(run_dir)
    with observer.stage(f"reading {source}"):
        graph = load_graph(source)
        if profile is not None:
            graph = _with_profile(graph, profile, cluster)
        simulated = make_problem(graph, cluster, schedule=schedule, groups=groups)
    hosts = _hosts(workers, simulated, source, real, compile_regions)
    with measured(simulated, source, real, compile_regions=compile_regions, hosts=hosts) as problem:
        observer.on_problem(problem)
        with observer.stage(f"building {source} with its weights"):
            problem.measurer.start()
        return train_measured(
            problem,
            time_limit_s=time_limit_s,
            seed=seed,
            screen=screen,
            out=run_dir,
            plain=plain,
            compile_regions=compile_regions,
            observer=observer,
        )


def resume_measured(
    run_dir: Path,
    *,
    time_limit_s: float | None = None,
    plain: Plain = "none",
    observer: RunObserver | None = None,
    workers: Workers | None = None,
) -> MeasuredRun:
    """Go on with a run: what was measured is known, and the policy goes on from its checkpoint.

    Args:
        run_dir: Its directory.
        time_limit_s: Seconds more; by default what is left of the time that the run was given at first.
        plain: Which plain PyTorch to measure beside.
        observer: Told how the run goes on.
        workers: Whose machines measure; None for this one.

    Raises:
        InputError: There is no such run, another process works on it, or a file is damaged.
        NoFeasiblePlacementError: No placement could be run.
    """
    observer = observer or RunObserver()
    config = directory.read_config(run_dir)
    settings = config.measured
    if settings is None:
        raise InputError(f"the run in '{run_dir}' does not learn from measured time; leave out --measured")
    devices = parse_devices(settings.devices)
    with directory.hold(run_dir):
        simulated = reload(run_dir, config, observer)
        directory.check_same_problem(run_dir, config, simulated)
        hosts = _hosts(workers, simulated, settings.source, devices, settings.compile_regions)
        with measured(
            simulated,
            settings.source,
            devices,
            time_limit_s=settings.limit_s,
            how=settings.protocol,
            compile_regions=settings.compile_regions,
            hosts=hosts,
        ) as problem:
            observer.on_problem(problem)
            elapsed_s = read_measurements(run_dir / directory.MEASUREMENTS, problem)
            if time_limit_s is None:
                time_limit_s = left_s(config, elapsed_s) or 0.0
            with observer.stage(f"building {settings.source} with its weights"):
                problem.measurer.start()
            _compile(problem, observer)
            ran = _plain(problem, plain, observer)
            training = MeasuredTraining(
                problem, time_limit_s, config.seed, settings.screen, run_dir, observer, settings.compile_regions
            )
            training.elapsed_s, training.plain = elapsed_s, ran
            return training.run()


def train_measured(
    problem: MeasuredProblem,
    *,
    time_limit_s: float,
    seed: int = 0,
    screen: bool = False,
    out: str | Path | None = None,
    plain: Plain = "none",
    compile_regions: bool = False,
    observer: RunObserver | None = None,
) -> MeasuredRun:
    """Learn a placement from the measured time of real steps.

    Ctrl-C and SIGTERM end the training; what was measured is kept.

    Args:
        problem: From `envs.measured.problem.measured`.
        time_limit_s: Seconds in all, but for starting the process that measures and for compiling.
        seed: Seeds the learner's random numbers; what is measured is never quite the same twice.
        screen: Learn from the simulator and measure what it finds best.
        out: The run directory; None writes no files.
        plain: Which plain PyTorch to measure beside; it is not in the time. All cores as one device are measured in the
            end, and are the result where that is faster; nor is this.
        compile_regions: Run the best placements and one device with regions that are compiled, too, when the time is
            over.
        observer: Told of each measurement, with who proposed the placement.

    Raises:
        InputError: There is a run in the directory already, or the model cannot be built.
        NoFeasiblePlacementError: No placement could be run.
        KeyboardInterrupt: A signal came before anything was measured.
    """
    run_dir = None if out is None else Path(out)
    if run_dir is not None:
        directory.check_free(run_dir)
    observer = observer or RunObserver()
    process = problem.measurer.process
    problem.measurer.start()
    _compile(problem, observer)
    with contextlib.ExitStack() as held:
        if run_dir is not None:
            held.enter_context(directory.hold(run_dir))
            settings = directory.MeasuredSettings(
                source=process.source,
                devices=tuple(device.name for device in process.devices),
                screen=screen,
                limit_s=problem.measurer.time_limit_s,
                protocol=problem.measurer.how,
                compile_regions=compile_regions,
            )
            directory.create(
                run_dir, problem, preset="default", seed=seed, time_limit_s=time_limit_s, measured=settings
            )
        ran = _plain(problem, plain, observer)
        training = MeasuredTraining(problem, time_limit_s, seed, screen, run_dir, observer, compile_regions)
        training.plain = ran
        return training.run()


def _hosts(
    workers: Workers | None,
    simulated: PlacementProblem,
    source: str,
    devices: tuple[RealDevice, ...],
    compile_regions: bool,
) -> HostsMeasure | None:
    """The machines of workers as what measures."""
    if workers is None:
        return None
    path_s = simulated.simulator_input.remaining_path_s
    return HostsMeasure(workers, source, simulated.graph.untimed.sha256, devices, path_s, compile_regions)


def _plain(problem: MeasuredProblem, plain: Plain, observer: RunObserver) -> tuple[PlainSteps, ...]:
    measurer = problem.measurer
    return run_plain_beside(
        plain,
        measurer.process.source,
        measurer.process.devices,
        time_limit_s=measurer.time_limit_s,
        how=measurer.how,
        observer=observer,
    )


def _compile(problem: MeasuredProblem, observer: RunObserver) -> None:
    """Compile what the clock should not count."""
    with observer.stage("compiling, which only the first run has to"):
        compile_ahead(problem.schedule)


def _with_profile(graph: ComputationGraph, path: Path, cluster: Cluster) -> ComputationGraph:
    """The graph with the times of a profile.

    Raises:
        InputError: The profile is of another graph, or of no device of the cluster.
    """
    timed = load_graph_file(path)
    if timed.untimed.sha256 != graph.untimed.sha256:
        raise InputError(f"profile '{path}' is of another graph than '{graph.name}'; profile this graph")
    missing = [d.spec.name for d in cluster.devices if d.spec.name not in timed.time_s]
    if missing:
        raise InputError(
            f"profile '{path}' has no times for device spec '{missing[0]}' of cluster '{cluster.name}'; give --cluster "
            "the cluster file that was written with it"
        )
    return timed
