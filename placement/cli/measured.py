"""What the verbs do that run steps on real devices: ``run``, ``profile``, and ``train --measured``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.text import Text

from envs.clusters.catalog import DEVICE_SPECS, load_cluster
from envs.clusters.cluster import Cluster
from envs.clusters.file import CLUSTER_FILE_SUFFIXES, cluster_to_yaml
from envs.measured.machine import parse_devices
from envs.measured.problem import MeasuredProblem, Measurement, Measurer, machine_cluster, measured
from envs.measured.process import MeasuringProcess
from envs.measured.profile import profile
from envs.measured.protocol import Protocol
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, NoFeasiblePlacementError
from graphs.files import SUFFIXES, load_graph_file, save_graph_file, write_atomically
from graphs.sources import check_can_run, load_graph
from placement import api
from placement.cli import verbs
from placement.cli.report import problem_heading
from placement.results.comparison import check_seed
from placement.results.placement_file import PlacementResult, check_placement, read_placement
from placement.runs import directory
from placement.text import seconds, size, table

if TYPE_CHECKING:
    from placement.runs.measured import MeasuredRun


def run_steps(verb: verbs.Run, out: Console, err: Console) -> int:
    """Measure the steps of a placement file.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: The steps could not be run.
    """
    if verb.steps < 1:
        raise InputError(f"--steps is {verb.steps}; it must be at least 1")
    if not 0 < verb.time_limit_s < float("inf"):
        raise InputError(f"--time-limit-s is {verb.time_limit_s}; it must be positive")
    check_can_run(verb.graph)
    result = read_placement(verb.placement)
    devices = parse_devices(verb.devices)
    names = result.cluster.devices
    if len(devices) != len(names):
        raise InputError(
            f"--devices names {len(devices)} devices, but the placement is for {len(names)} ({', '.join(names)}); give "
            "one for each, in that order"
        )
    with err.status(Text(f"reading {verb.graph}")):
        graph = load_graph(verb.graph)
        cluster = machine_cluster(devices, names=names)
        placement = check_placement(result, graph, cluster)
        problem = api.make_problem(graph, cluster, schedule=result.schedule)
    out.print(problem_heading(problem))
    how = Protocol(steps=verb.steps, short_steps=verb.steps, least_steps=verb.steps)
    process = MeasuringProcess(verb.graph, graph.sha256, devices, problem.simulator_input.remaining_path_s)
    measurer = Measurer(process, time_limit_s=verb.time_limit_s, how=how)
    with process:
        with err.status(Text(f"building {verb.graph} with its weights")):
            process.start()
        with err.status(f"running {verb.steps} steps"):
            found = measurer.measure(placement, result.schedule)
    if found.reason:
        raise NoFeasiblePlacementError(f"the placement cannot be run: {found.reason}")
    _show(out, found, result, verb.devices)
    if verb.json is not None:
        content = {
            "graph": graph.name,
            "devices": [device.name for device in devices],
            "schedule": result.schedule,
            "step_time_s": found.step_time_s,
            "spread_s": found.spread_s,
            "step_times_s": found.step_times_s,
            "peak_memory_bytes": dict(zip([d.name for d in devices], found.peak_memory_bytes, strict=True)),
        }
        write_atomically(verb.json, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    return 0


def _show(out: Console, found: Measurement, result: PlacementResult, devices: str) -> None:
    out.print()
    out.print(
        Text.assemble(
            ("measured step time  ", "dim"),
            (seconds(found.step_time_s, digits=4), "bold green"),
            (f"  half of the {len(found.step_times_s)} steps within {seconds(found.spread_s)}", "dim"),
        )
    )
    count = dict.fromkeys(result.cluster.devices, 0)
    for device in result.ops.values():
        count[device] += 1
    made = table("device", "in the placement", "ops", "peak memory", right=("ops", "peak memory"))
    for name, (device, ops), peak in zip(devices.split(","), count.items(), found.peak_memory_bytes, strict=True):
        made.add_row(name.strip(), device, f"{ops:,}", size(peak))
    out.print(made)


def profile_steps(verb: verbs.Profile, out: Console, err: Console) -> int:
    """Profile the machine by a graph's steps, and write the graph with its times, and the cluster.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: The steps could not be run.
    """
    for flag, value in (("--steps", verb.steps), ("--placements", verb.placements)):
        if value < 1:
            raise InputError(f"{flag} is {value}; it must be at least 1")
    if not 0 < verb.time_limit_s < float("inf"):
        raise InputError(f"--time-limit-s is {verb.time_limit_s}; it must be positive")
    check_seed(verb.seed)
    check_can_run(verb.graph)
    suffix = next((s for s in SUFFIXES if verb.out.name.endswith(s)), None)
    if suffix is None:
        raise InputError(f"--out '{verb.out}' is not the name of a graph file: it must end in {' or '.join(SUFFIXES)}")
    cluster_out = verb.cluster_out or verb.out.with_name(verb.out.name.removesuffix(suffix) + ".yaml")
    if not cluster_out.name.endswith(CLUSTER_FILE_SUFFIXES):
        raise InputError(
            f"--cluster-out '{cluster_out}' is not the name of a cluster file: it must end in "
            f"{' or '.join(CLUSTER_FILE_SUFFIXES)}"
        )
    for path in (verb.out, cluster_out):
        if not path.parent.is_dir():
            raise InputError(f"cannot write '{path}': there is no directory '{path.parent}'; make it first")
    devices = parse_devices(verb.devices)
    with err.status(Text(f"reading {verb.graph}")):
        problem = api.make_problem(verb.graph, machine_cluster(devices), schedule=verb.schedule)
    out.print(problem_heading(problem))
    process = MeasuringProcess(verb.graph, problem.graph.sha256, devices, problem.simulator_input.remaining_path_s)
    with process:
        with err.status(Text(f"building {verb.graph} with its weights")):
            process.start()
        with err.status("running steps"):
            found = profile(
                problem.graph,
                problem.groups,
                devices,
                process,
                schedule=verb.schedule,
                placements=verb.placements,
                steps=verb.steps,
                seed=verb.seed,
                time_limit_s=verb.time_limit_s,
            )
    save_graph_file(found.graph, verb.out)
    write_atomically(cluster_out, cluster_to_yaml(found.cluster, DEVICE_SPECS).encode())
    right = ("step alone", "dispatch", "ops beside others")
    made = table("device", *right, right=right)
    for i, device in enumerate(devices):
        step_s, dispatch_s = seconds(found.solo_step_s[i], digits=4), seconds(found.dispatch_s[i])
        made.add_row(device.name, step_s, dispatch_s, f"{found.contention[i]:.2f} x")
    out.print()
    out.print(made)
    for link in found.cluster.links:
        out.print(f"{link.a} to {link.b}  {seconds(link.latency_s)} and {link.bytes_per_s / 1e9:.1f} GB/s")
    out.print(f"graph     {verb.out}", soft_wrap=True)
    out.print(f"cluster   {cluster_out}", soft_wrap=True)
    return 0


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
            "the cluster file that was written beside it"
        )
    return timed


def train_measured(verb: verbs.Train, out: Console, err: Console) -> int:
    """Learn from measured time.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: No placement could be run.
    """
    if not verb.measured:
        raise InputError("--screen, --devices and --profile are for learning from measured time; add --measured")
    if verb.resume is not None:
        raise InputError("a training on measured time cannot be resumed; leave out --resume")
    if verb.graph is None or verb.devices is None:
        raise InputError("train --measured needs a GRAPH and --devices, for example --devices cpu:0,cpu:1")
    if verb.updates is not None:
        raise InputError("a training on measured time is limited by --time-limit-s, not by --updates")
    if verb.preset != "default":
        raise InputError("a training on measured time has the preset default alone; leave out --preset")
    check_can_run(verb.graph)
    devices = parse_devices(verb.devices)
    cluster = machine_cluster(devices) if verb.cluster is None else load_cluster(verb.cluster)
    name = f"{verb.graph.partition(':')[0]}-measured"
    run_dir = verb.out or directory.free_directory(Path("runs"), name)
    directory.check_free(run_dir)
    with err.status(Text(f"reading {verb.graph}")):
        graph = load_graph(verb.graph)
        if verb.profile is not None:
            graph = _with_profile(graph, verb.profile, cluster)
        simulated = api.make_problem(graph, cluster, schedule=verb.schedule, groups=verb.groups)
    time_limit_s = verb.time_limit_s or api.DEFAULT_TRAIN_S
    with measured(simulated, verb.graph, devices) as problem:
        out.print(problem_heading(problem))
        with err.status("loading PyTorch"):
            from placement.runs import measured as measured_runs
        with err.status(Text(f"building {verb.graph} with its weights")):
            problem.measurer.process.start()
        run = measured_runs.train_measured(
            problem,
            time_limit_s=time_limit_s,
            seed=verb.seed,
            screen=verb.screen,
            out=run_dir,
            on_measure=_Teller(problem, err),
        )
    _show_run(out, run)
    return 0


class _Teller:
    """Says what was measured: each heuristic, and then whatever is better than all before."""

    def __init__(self, problem: MeasuredProblem, err: Console) -> None:
        self._measurer = problem.measurer
        self._err = err
        self._best_s = float("inf")

    def __call__(self, proposer: str, found: Measurement) -> None:
        better = not found.reason and found.step_time_s < self._best_s
        if better:
            self._best_s = found.step_time_s
        if better or proposer not in ("reinforce", "again") or found.reason:
            said = f"failed: {found.reason}" if found.reason else seconds(found.step_time_s, digits=4)
            self._err.print(f"  {self._measurer.count:>4} measured  {proposer:<24} {said}", soft_wrap=True)


def _show_run(out: Console, run: MeasuredRun) -> None:
    out.print()
    right = ("measured", "spread", "simulated")
    made = table("placer", *right, right=right)
    rows = sorted(run.rows[:-1], key=lambda row: row.step_time_s or float("inf"))
    for row in [run.rows[-1], *rows]:
        shown = "failed" if row.reason else seconds(row.step_time_s, digits=4)
        made.add_row(row.placer, shown, seconds(row.spread_s), seconds(row.simulated_s, digits=4))
    out.print(made)
    out.print()
    out.print(
        f"{run.measured:,} placements run, {run.failures:,} of them failed; {run.updates:,} updates of the policy",
        style="dim",
    )
    if run.interrupted:
        out.print("Stopped before the limit; the best placement so far is kept.", style="yellow")
    if run.run_dir is not None:
        out.print(f"placement   {run.run_dir}/{directory.PLACEMENT}", soft_wrap=True)
