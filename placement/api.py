"""The verbs of the command as functions: train, place, compare, simulate, explain, run, profile, machine, and so on.

The whole job::

    import placement

    problem = placement.make_problem("nmt", "k80x4")
    run = placement.train(problem, time_limit_s=60, out="runs/nmt")
    print(run.result.step_time_s, run.result.ops)
    for row in run.comparison.ranked():
        print(row.placer, row.step_time_s)

A graph may also be a `ComputationGraph`, for example from `graphs.capture.capture`, and a cluster a `Cluster`.
Importing this loads no torch; what needs it loads it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from envs.clusters.catalog import DEVICE_SPECS
from envs.clusters.cluster import Cluster
from envs.clusters.file import CLUSTER_FILE_SUFFIXES, cluster_to_yaml
from envs.machine import MachineCluster, load_topology, this_machine
from envs.make_problem import DEFAULT_GROUPS, make_problem
from envs.problem import PlacementProblem
from graphs.computation_graph import ComputationGraph
from graphs.device_kinds import restrict_kinds
from graphs.errors import InputError, unknown_name
from graphs.files import SUFFIXES, save_graph_file, write_atomically
from graphs.reading import exists
from graphs.sources import load_graph, onnx_path
from graphs.split_tables import By
from graphs.split_tables import split_tables as cut_tables
from placement.arguments import check_can_write, check_ends
from placement.exports import accelerate, onnx_devices, ops_table
from placement.exports.stage_files import export_stages as export_stages
from placement.placers import PlacerInfo
from placement.placers.base import Budget, Granularity, SearchOptions, StartAt
from placement.registry import PLACERS, get_placer
from placement.results.comparison import Comparison, Row, ask, check_seed, compare_placers
from placement.results.comparison_file import encode_comparison, read_finished
from placement.results.placement_file import (
    PlacementResult,
    check_placement,
    named_cluster,
    read_placement,
    write_placement,
)
from placement.results.reasons import explain as explaining
from placement.results.reasons.explanation import Explanation
from placement.results.reasons.remedies import TRIES
from placement.results.simulated import Simulated, simulate_ops
from placement.runs import directory, training
from placement.runs.observer import RunObserver, UpdateObserver
from placement.runs.plain import Plain, compiles_regions
from placement.runs.row_jobs import row_source
from placement.runs.steps import MeasuredSteps, ProfiledMachine, encode_steps, profile_steps, run_steps
from placement.workers import Workers, open_workers

if TYPE_CHECKING:
    from placement.learning.stats import UpdateStats
    from placement.pretrained.training import PretrainStats
    from placement.runs.measured import MeasuredRun
    from placement.runs.placing import Answer
    from placement.runs.pretraining import Pretrained
    from placement.runs.training import TrainedRun

__all__ = [
    "compare",
    "explain",
    "export",
    "import_graph",
    "load_problem",
    "machine",
    "make_problem",
    "place",
    "pretrain",
    "profile",
    "run",
    "simulate",
    "train",
    "train_measured",
]

DEFAULT_SEARCH_S = 20.0
"""Seconds that each searching placer of a comparison gets where no time limit is given."""

DEFAULT_MEASURE_S = 60.0
"""Seconds that the steps of one placement may take."""


def train(
    problem: PlacementProblem | None = None,
    *,
    time_limit_s: float | None = None,
    updates: int | None = None,
    preset: str = "default",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    start: str | Path | PlacementResult | None = None,
    on_update: Callable[[UpdateStats], None] | None = None,
    observer: RunObserver | None = None,
    workers: Workers | str | int | None = None,
    chains: int | None = None,
) -> TrainedRun:
    """Learn a placement, and compare it with the placers that do not search.

    Args:
        problem: From `make_problem`. With `resume` it may be left out: the run's directory says it.
        time_limit_s: Seconds in all, those of the other placers included; by default a minute where `updates` is None,
            too. The default preset starts from what the other placers answer.
        updates: Updates in all. Only where they alone limit the run does the same seed give the same placement.
        preset: A name in `placement.learning.config.PRESETS`.
        seed: Seeds all random numbers.
        out: The run directory; None writes no files.
        resume: Go on with the run in `out`: `updates` then counts those before, `time_limit_s` does not; without either
            the run goes on to the limits that it began with. Preset and seed are the run's.
        start: A placement to start from, its file, or the directory of its run: of the same graph, for this cluster or
            another.
        on_update: Called with `placement.learning.stats.UpdateStats` after each update.
        observer: Told how the run goes on, in place of `on_update`.
        workers: Walk the chains of the search on other processes or machines: see `placement.workers.open_workers`;
            None walks them in threads of this process. It changes no placement of a run that `updates` alone limit.
        chains: How many chains walk to the end, twice as many begin; by default two, or one a worker where these are
            more. A run that is resumed has those that it began with.

    Raises:
        InputError: Bad input; the message says what.
        NoFeasiblePlacementError: Nothing fits; the message says which memory is short by how much.
    """
    if on_update is not None:
        if observer is not None:
            raise InputError("train takes an observer or on_update, not both; an observer has on_update, too")
        observer = UpdateObserver(on_update)
    run_dir = None if out is None else Path(out)
    if resume:
        if run_dir is None:
            raise InputError("resume needs the run's directory: give it as out")
        if start is not None:
            raise InputError("a run that is resumed goes on from where it stopped; leave out start")
        if chains is not None:
            raise InputError("a run that is resumed has the chains that it began with; leave out chains")
        with _opened(workers) as held:
            return training.resume(
                run_dir, problem, updates=updates, time_limit_s=time_limit_s, observer=observer, workers=held
            )
    if problem is None:
        raise InputError("train needs a problem: make one with make_problem")
    with _opened(workers) as held:
        return training.train(
            problem,
            run_dir=run_dir,
            preset=preset,
            seed=seed,
            updates=updates,
            time_limit_s=time_limit_s,
            start=read_placement(start) if isinstance(start, str | Path) else start,
            observer=observer,
            workers=held,
            chains=chains,
        )


def _opened(workers: Workers | str | int | None) -> contextlib.AbstractContextManager[Workers | None]:
    """Workers by what names them, ended when the context is; or such as are open, which stay so."""
    return open_workers(workers) if isinstance(workers, str | int) else contextlib.nullcontext(workers)


def train_measured(
    graph: str | None = None,
    devices: str | None = None,
    *,
    cluster: str | Cluster | None = None,
    profile: str | Path | None = None,
    schedule: str = "priority",
    groups: int = DEFAULT_GROUPS,
    screen: bool = False,
    time_limit_s: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    plain: Plain = "eager",
    compile_regions: bool = False,
    observer: RunObserver | None = None,
    workers: Workers | str | int | None = None,
) -> MeasuredRun:
    """Learn a placement from the measured time of real steps on devices of this machine.

    Args:
        graph: What to run: a workload of the zoo, or ``python:package.module:function``.
        devices: ``"cpu:0,cpu:1"``: cores, sets of cores or GPUs.
        cluster: What the simulator takes them for; it must call them by the same names. By default this machine's
            devices with the catalogue's figures.
        profile: A graph file from `profile`, for the simulator; its cluster file goes to `cluster`.
        schedule: Which ready op a device runs first.
        groups: Wanted number of co-location groups.
        screen: Learn from the simulator, and measure what it finds best.
        time_limit_s: Seconds in all, but for starting the process that measures; by default a minute.
        seed: Seeds the learner's random numbers; what is measured is never quite the same twice.
        out: The run directory; None writes no files.
        resume: Go on with the run in `out`, which says all the rest; `time_limit_s` are seconds more.
        plain: Which plain PyTorch to run on the same cores, beside: ``"eager"``, ``"compiled"`` (`torch.compile` as
            well, which takes minutes) or ``"none"``. It does not count as time. All cores as one device are run at the
            end in any case, and are the result where that is faster.
        compile_regions: At the end run the best placements and one device with regions that PyTorch's compiler has
            compiled, too, which takes minutes and a C++ compiler. A run that is resumed knows it.
        observer: Told how the run goes on.
        workers: On whose machines, all of one kind, placements are measured at the same time, each machine one at a
            time: see `placement.workers.open_workers`; None measures on this one. What `plain` says runs on this one.

    Raises:
        InputError: Bad input; the message says what.
        NoFeasiblePlacementError: No placement could be run.
    """
    from placement.runs import measured

    run_dir = None if out is None else Path(out)
    if resume:
        if run_dir is None:
            raise InputError("resume needs the run's directory: give it as out")
        with _opened(workers) as held:
            return measured.resume_measured(
                run_dir, time_limit_s=time_limit_s, plain=plain, observer=observer, workers=held
            )
    if graph is None or devices is None:
        raise InputError("train --measured needs a GRAPH and --devices, for example --devices cpu:0,cpu:1")
    with _opened(workers) as held:
        return measured.train_source(
            graph,
            devices,
            cluster=cluster,
            profile=None if profile is None else Path(profile),
            schedule=schedule,
            groups=groups,
            screen=screen,
            time_limit_s=training.DEFAULT_TRAIN_S if time_limit_s is None else time_limit_s,
            seed=seed,
            run_dir=run_dir,
            plain=plain,
            compile_regions=compile_regions,
            observer=observer,
            workers=held,
        )


def place(
    problem: PlacementProblem,
    *,
    seed: int = 0,
    samples: int | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
) -> Answer:
    """Place a graph at once: the best of the quick heuristics' placements and the pretrained policy's.

    Nothing is trained or searched; it takes about a second, and is never behind the heuristics that it asks.

    Args:
        problem: From `make_problem`.
        seed: Seeds the policy's samples.
        samples: Placements that the policy writes, fewer on large problems; by default 64, and 0 asks the heuristics
            only.
        weights: The policy's weights, a file from `pretrain`; by default those that are shipped.
        out: The placement file to write.

    Returns:
        The placement with its simulated step, as of `simulate`; `made_by` says what made it, and `best_heuristic_s` and
        `policy_s` what the heuristics and the policy came to.

    Raises:
        InputError: The weights cannot be read, or the file cannot be written.
        NoFeasiblePlacementError: Nothing fits; the message says which memory is short by how much.
    """
    from placement.pretrained.network import load
    from placement.runs import placing
    from placement.runs.compile_ahead import compile_placing

    check_seed(seed)
    if samples is not None and samples < 0:
        raise InputError(f"samples is {samples}; it must not be negative")
    path = None if out is None else Path(out)
    check_can_write(path)
    arrays = load(weights)
    compile_placing(problem.schedule)
    answer = placing.place(problem, weights=arrays, seed=seed, samples=placing.SAMPLES if samples is None else samples)
    answer.check_feasible()
    if path is not None:
        write_placement(path, placing.result_of(answer, seed=seed))
    return answer


def pretrain(
    out: str | Path,
    *,
    time_limit_s: float | None = None,
    updates: int | None = None,
    seed: int = 0,
    resume: bool = False,
    problems: int | None = None,
    workers: Workers | str | int | None = None,
    on_update: Callable[[PretrainStats], None] | None = None,
) -> Pretrained:
    """Train the policy that `place` asks, on problems made from seeds; its best weights go into a run directory.

    Args:
        out: The directory.
        time_limit_s: Seconds; by default half an hour where `updates` is None, too.
        updates: Updates in all, those before included. Where they alone limit the training the same seed gives the
            same weights.
        seed: Of the first weights, the problems and the samples.
        resume: Go on with the training in `out`, whose seed holds.
        problems: Problems of an update, whose mean gradient makes one step of the optimizer; by default one for each
            worker. None without workers learns from one problem, with a step after each round of samples.
        workers: Go through the problems on other processes or machines: see `placement.workers.open_workers`; None
            does so here. With the same `problems` and `updates` the weights are the same whoever does.
        on_update: Called with `placement.pretrained.training.PretrainStats` after each update.

    Raises:
        InputError: Bad input, or a file cannot be written.
    """
    from placement.runs import pretraining

    with _opened(workers) as held:
        return pretraining.pretrain(
            Path(out),
            seed=seed,
            updates=updates,
            time_limit_s=time_limit_s,
            resume=resume,
            problems=problems,
            workers=held,
            on_update=on_update,
        )


def compare(
    problem: PlacementProblem,
    placers: Sequence[str | PlacerInfo] | None = None,
    *,
    time_limit_s: float | None = DEFAULT_SEARCH_S,
    evaluations: int | None = None,
    seed: int = 0,
    granularity: Granularity = "group",
    start: StartAt = "heuristics",
    json: str | Path | None = None,
    restart: bool = False,
    workers: Workers | str | int | None = None,
    on_start: Callable[[str], None] | None = None,
    on_row: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Run several placers under one budget.

    Args:
        problem: From `make_problem`.
        placers: Names in `placement.registry.PLACERS`, or placers of one's own; all by default.
        time_limit_s: Seconds that each may take; only those that search use them up.
        evaluations: Placements that each may evaluate.
        seed: Seeds each placer's random numbers.
        granularity: What the searches move: ``"group"``, or ``"op"`` for single ops within the hard constraints.
        start: Where they start: ``"heuristics"``, from the best of these, or ``"scratch"``, from a random placement.
        json: A file for the rows, written whole after each: a comparison that was killed and is started again with the
            same settings takes the finished rows from there.
        restart: Do not look at what is in that file.
        workers: Run placers at the same time: see `placement.workers.open_workers`; None runs one after the other, each
            on all cores.
        on_start: Called with a placer's name before it runs; with workers once, with all names.
        on_row: Called after each finished row with the comparison so far, whose last row is the new one; and at first
            where finished rows were taken over.

    Raises:
        InputError: A placer is unknown, a placer that searches has no limit, or the file holds something else.
    """
    chosen = [get_placer(p) if isinstance(p, str) else p for p in (PLACERS if placers is None else placers)]
    searching = [info.name for info in chosen if info.searches]
    if searching and time_limit_s is None and evaluations is None:
        raise InputError(f"placer '{searching[0]}' searches until it is stopped; give a time limit or evaluations")
    budget = Budget(time_limit_s=time_limit_s, evaluations=evaluations)
    options = SearchOptions(granularity, start)
    path = None if json is None else Path(json)
    finished: tuple[Row, ...] = ()
    if path is not None and not restart:
        finished = read_finished(path, problem, seed=seed, budget=budget, options=options)

    from placement.runs.compile_ahead import compile_for

    compile_for([info for info in chosen if info.name not in {row.placer for row in finished}], problem.schedule)

    def after_row(comparison: Comparison) -> None:
        if path is not None:
            write_atomically(path, encode_comparison(comparison))
        if on_row is not None:
            on_row(comparison)

    with _opened(workers) as held:
        comparison = compare_placers(
            problem,
            chosen,
            budget=budget,
            seed=seed,
            options=options,
            finished=finished,
            on_start=on_start,
            on_row=after_row,
            source=None if held is None else row_source(held),
        )
    if path is not None:
        write_atomically(path, encode_comparison(comparison))
    return comparison


def simulate(
    problem: PlacementProblem,
    placement: str | Path | PlacementResult,
    *,
    time_limit_s: float = DEFAULT_SEARCH_S,
    seed: int = 0,
    granularity: Granularity = "group",
    start: StartAt = "heuristics",
) -> Simulated:
    """Simulate one step under a placement.

    Args:
        problem: From `make_problem`.
        placement: A placement file, its content, or the name of a placer, which is then asked for one.
        time_limit_s: Seconds that a placer may take.
        seed: Seeds a placer's random numbers.
        granularity: What a search moves, as in `compare`.
        start: Where it starts, as in `compare`.

    Raises:
        InputError: The placement is of another graph, or names a device that the cluster lacks, or there is neither a
            file nor a placer of that name.
    """
    check_seed(seed)
    found = placement if isinstance(placement, PlacementResult) else load_placement(placement)
    if isinstance(found, PlacementResult):
        ops = check_placement(found, problem.graph, problem.cluster)
        made_by = f"{found.placer.name}, for cluster {found.cluster.name}, schedule {found.schedule}"
        return simulate_ops(problem, ops, made_by=made_by)
    placed = ask(
        problem,
        PLACERS[found],
        budget=Budget(time_limit_s=time_limit_s),
        rng=np.random.default_rng(seed),
        options=SearchOptions(granularity, start),
    )
    made_by = f"{found}, {placed.note}" if placed.note else found
    return simulate_ops(problem, problem.to_ops(placed.placement), made_by=made_by)


def load_placement(text: str | Path) -> PlacementResult | str:
    """A placement file's content, or the name of a placer, whichever a text means.

    Raises:
        InputError: It is neither; or the file is not a placement file.
    """
    name = str(text)
    if name in PLACERS:
        return name
    if not exists(name) and not re.search(r"[/\\.]", name):
        raise unknown_name("placer, and there is no placement file,", name, PLACERS)
    return read_placement(name)


def run(
    graph: str,
    placement: str | Path | PlacementResult | None = None,
    devices: str | None = None,
    *,
    steps: int = 10,
    time_limit_s: float = DEFAULT_MEASURE_S,
    json: str | Path | None = None,
    plain: Plain = "eager",
    compile_regions: bool | None = None,
    observer: RunObserver | None = None,
) -> MeasuredSteps:
    """Run a placement's steps on real devices of this machine, and measure them.

    Args:
        graph: What to run: a workload of the zoo, or ``python:package.module:function``; or the directory of a run,
            which knows it.
        placement: A placement file of this graph, or its content; of a run by default what it took home.
        devices: ``"cpu:0,cpu:1"``, one for each device of the placement, in its order; by default those that the
            placement names.
        steps: Steps that count; one more goes before them, and two where regions are compiled.
        time_limit_s: Seconds that they may take; what is not done by then has failed.
        json: A file for the figures.
        plain: Which plain PyTorch to run on the same cores, beside, as in `train_measured`, and with it all cores as
            one device.
        compile_regions: Compile the regions first, which takes minutes and a C++ compiler; by default where the
            placement's own step time was measured so.
        observer: Told how it goes on.

    Raises:
        InputError: Bad input; the message says what.
        NoFeasiblePlacementError: The steps could not be run; the message says why.
    """
    path = None if json is None else Path(json)
    check_can_write(path)
    if (Path(graph) / directory.CONFIG).is_file():
        config = directory.read_config(Path(graph))
        placement = Path(graph) / directory.PLACEMENT if placement is None else placement
        graph = config.graph if config.measured is None else config.measured.source
    if placement is None:
        raise InputError("run needs a placement file beside its GRAPH; or give the directory of a run")
    result = placement if isinstance(placement, PlacementResult) else read_placement(placement)
    measured = run_steps(
        graph,
        result,
        ",".join(result.cluster.devices) if devices is None else devices,
        steps=steps,
        time_limit_s=time_limit_s,
        plain=plain,
        compile_regions=compiles_regions(result) if compile_regions is None else compile_regions,
        observer=observer or RunObserver(),
    )
    if path is not None:
        write_atomically(path, encode_steps(measured))
    return measured


def profile(
    graph: str,
    devices: str,
    out: str | Path,
    *,
    cluster_out: str | Path | None = None,
    schedule: str = "priority",
    placements: int = 8,
    steps: int = 10,
    seed: int = 0,
    time_limit_s: float = DEFAULT_MEASURE_S,
    observer: RunObserver | None = None,
) -> ProfiledMachine:
    """Measure what each op and copy of a graph's step takes on devices of this machine, for the simulator to use.

    Args:
        graph: What to run: a workload of the zoo, or ``python:package.module:function``.
        devices: ``"cpu:0,cpu:1"``: cores, sets of cores or GPUs.
        out: The graph file to write, with the times of its ops.
        cluster_out: The cluster file to write, with the devices and what copies between them take; by default named as
            `out`, with ``.yaml``.
        schedule: Which ready op a device runs first.
        placements: Random placements to run, after each device alone.
        steps: Steps of each that count; one more goes before them.
        seed: Seeds the random placements.
        time_limit_s: Seconds that the steps of one placement may take.
        observer: Told how it goes on.

    Raises:
        InputError: Bad input; the message says what.
        NoFeasiblePlacementError: The steps could not be run; the message says why.
    """
    return profile_steps(
        graph,
        devices,
        Path(out),
        cluster_out=None if cluster_out is None else Path(cluster_out),
        schedule=schedule,
        placements=placements,
        steps=steps,
        seed=seed,
        time_limit_s=time_limit_s,
        observer=observer or RunObserver(),
    )


def explain(
    problem: PlacementProblem,
    placement: str | Path | PlacementResult | NDArray[np.integer],
    *,
    against: str | Path | PlacementResult | NDArray[np.integer] | None = None,
    tries: int = TRIES,
    bound_s: float | None = None,
    time_limit_s: float | None = None,
) -> Explanation:
    """Explain a placement: what its step is made of, why each group is where it is, and what would help.

    Args:
        problem: From `make_problem` or `load_problem`; it is simulated, also where steps are measured.
        placement: Device indices of ops, ``int[N]``, or of groups, ``int[G]``; or a placement file or its content.
        against: Another placement: what changed from it to this one.
        tries: Placements that are tried on each better cluster; 0 tries no other cluster.
        bound_s: The lower bound, where it is known; by default it is computed unless there is a time limit.
        time_limit_s: Seconds, about, for evaluating moves and better clusters; what is not evaluated then is left out.

    Raises:
        InputError: The placement is of another graph, or its shape or a device is wrong.
    """

    def ops_of(given: str | Path | PlacementResult | NDArray[np.integer]) -> NDArray[np.integer]:
        if isinstance(given, np.ndarray):
            return given
        result = given if isinstance(given, PlacementResult) else read_placement(given)
        return check_placement(result, problem.graph, problem.cluster)

    return explaining.explain(
        problem,
        ops_of(placement),
        against=None if against is None else ops_of(against),
        tries=tries,
        bound_s=bound_s,
        time_limit_s=time_limit_s,
    )


def machine(
    *,
    topology: str | None = None,
    again: bool = False,
    out: str | Path | None = None,
    on_measure: Callable[[], None] = lambda: None,
) -> MachineCluster:
    """This machine as a cluster, or another by its saved outputs.

    This machine is measured once, which takes less than a minute; what was measured of the same hardware with the same
    PyTorch is kept in the user's cache.

    Args:
        topology: Saved outputs of another machine, as after ``--topology``: ``"topo.txt:gpu=rtx_3090"``.
        again: Measure this machine again.
        out: The cluster file to write.
        on_measure: Called before it is measured.

    Returns:
        The cluster (`MachineCluster.cluster`, for `make_problem`), and what was found, measured and assumed.

    Raises:
        InputError: An output cannot be read, a device is not known, or measuring failed.

    Example:
        ``placement.make_problem("nmt", placement.machine().cluster)``
    """
    path = None if out is None else Path(out)
    if path is not None:
        check_ends("out", path, "cluster file", CLUSTER_FILE_SUFFIXES)
        check_can_write(path)
    if topology is not None and again:
        raise InputError("another machine cannot be measured from here; leave out again, or the topology")
    made = this_machine(again=again, on_measure=on_measure) if topology is None else load_topology(topology)
    if path is not None:
        write_atomically(path, cluster_to_yaml(made.cluster, DEVICE_SPECS).encode())
    return made


def import_graph(
    source: str,
    out: str | Path,
    *,
    device_kinds: Mapping[str, Sequence[str]] | None = None,
    split_tables: tuple[By, int] | None = None,
) -> ComputationGraph:
    """Turn a model into a graph file, which needs neither the model nor its code any more.

    Args:
        source: A zoo name with optional sizes, a graph file, an ONNX file, or ``python:package.module:function``.
        out: The graph file to write: ``.graph.json.gz`` or ``.graph.json``.
        device_kinds: Kinds of device that ops of a type may be on, as in ``{"TopK": ["cpu"]}``, for what a runtime
            keeps on the host; see `graphs.device_kinds.restrict_kinds`.
        split_tables: Cut embedding tables into parts by ``"rows"`` or ``"columns"``, those that keep more resident than
            so many bytes, as in ``("rows", 16 * 10**9)``; see `graphs.split_tables`.

    Raises:
        InputError: The source cannot be read, or the file cannot be written.
    """
    path = Path(out)
    check_ends("--out", path, "graph file", SUFFIXES)  # before the capture, which may take a while
    check_can_write(path)
    graph = load_graph(source)
    if device_kinds:
        graph = restrict_kinds(graph, device_kinds)
    if split_tables is not None:
        graph = cut_tables(graph, by=split_tables[0], most_bytes=split_tables[1])
    save_graph_file(graph, path)
    return graph


@dataclass(frozen=True, eq=False)
class Exported:
    """What was exported.

    Attributes:
        simulated: The step under the placement.
        device_map: The device map, where that was asked for.
        mapped: The step under it.
        settings: The value of ONNX Runtime's ``session.layer_assignment_settings``, where that was asked for.
    """

    simulated: Simulated
    device_map: accelerate.DeviceMap | None = None
    mapped: Simulated | None = None
    settings: str | None = None


def export(
    placement: str | Path,
    out: str | Path,
    *,
    graph: str | ComputationGraph | None = None,
    cluster: str | Cluster | None = None,
    format: Literal["json", "csv", "device-map", "onnxruntime", "onnx"] = "json",
) -> Exported:
    """Turn a placement into a table of ops, a device map for Hugging Face Accelerate, or an annotated ONNX model.

    Args:
        placement: A run directory, or a placement file.
        out: The file to write.
        graph: What was placed; left out for a run, which knows it.
        cluster: Where to; left out for a run, which knows it. By default the cluster that the placement names, or this
            machine where it names none that is known.
        format: Every op with its module, group and device as JSON or CSV; module path -> device; or the ``.onnx`` file
            that the graph is of, with ONNX Runtime's layer annotations or with ONNX's device configuration.

    Raises:
        InputError: Bad input; the message says what.
    """
    path = Path(out)
    check_can_write(path)
    problem, result = placed(placement, graph=graph, cluster=cluster, verb="export")
    simulated = simulate(problem, result)
    if format in ("onnxruntime", "onnx"):
        model = _onnx_model(placement, graph, format)
        onnx_devices.check_beside(model, path)
        if format == "onnx":
            write_atomically(path, onnx_devices.with_device_configuration(model, simulated))
            return Exported(simulated)
        content, settings = onnx_devices.annotated_for_onnxruntime(model, simulated)
        write_atomically(path, content)
        return Exported(simulated, settings=settings)
    if format != "device-map":
        encode = ops_table.encode_ops_json if format == "json" else ops_table.encode_ops_csv
        write_atomically(path, encode(simulated))
        return Exported(simulated)
    devices = accelerate.device_map(problem, simulated.op_placement)
    write_atomically(path, accelerate.encode_device_map(devices))
    return Exported(simulated, devices, accelerate.simulate_device_map(problem, devices))


def _onnx_model(placement: str | Path, graph: str | ComputationGraph | None, format: str) -> str:
    """The ``.onnx`` file of what was placed.

    Raises:
        InputError: It was placed from something else.
    """
    if graph is None:
        graph = directory.read_config(directory.run_of(Path(placement)) or Path(placement)).graph
    path = onnx_path(graph) if isinstance(graph, str) else None
    if path is None:
        raise InputError(f"format '{format}' is for a graph that is an .onnx file; take --format json or csv")
    return path


def placed(
    placement: str | Path,
    *,
    graph: str | ComputationGraph | None = None,
    cluster: str | Cluster | None = None,
    verb: str,
) -> tuple[PlacementProblem, PlacementResult]:
    """The problem and the placement of a run, or of a placement file with its graph and cluster.

    Args:
        placement: A run directory, or a placement file.
        graph: What was placed; left out for a run, which knows it.
        cluster: Where to; left out for a run, which knows it. By default the cluster that the placement names, or this
            machine where it names none that is known.
        verb: Who asks, for the message.

    Raises:
        InputError: Too much or too little is given, or something of it cannot be read.
    """
    given = Path(placement)
    if given.is_dir() and (graph is not None or cluster is not None):
        raise InputError(f"'{given}' is a run, which knows its graph and cluster; leave out GRAPH and --cluster")
    if not exists(given):
        raise InputError(f"there is no run directory or placement file '{given}'; check the path")
    if given.is_dir() or (graph is None and cluster is None and directory.run_of(given) is not None):
        problem = load_problem(given)
        return problem, read_placement(given)
    if graph is None:
        raise InputError(f"{verb} of a placement file needs its GRAPH; or give a run directory")
    result = read_placement(given)
    if cluster is None:
        cluster = named_cluster(result) or machine().cluster
    return make_problem(graph, cluster, schedule=result.schedule), result


def load_problem(run: str | Path) -> PlacementProblem:
    """The problem that a run's `placement.json` answers, by its directory or by that file.

    It is the run's own but for a training on measured time that took all cores as one device home.

    Raises:
        InputError: There is no run, or something of it is gone or damaged.
    """
    run_dir = directory.run_of(Path(run)) or Path(run)
    return directory.load_placed_problem(run_dir, directory.read_config(run_dir))
