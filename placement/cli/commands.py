"""What each verb of the command does: load, run, show, write."""

from __future__ import annotations

import contextlib
import os
import re
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from graphs.errors import InputError, InputWarning, printable
from placement.cli import verbs
from placement.text import clock, size

if TYPE_CHECKING:
    from envs.problem import PlacementProblem
    from placement.results.comparison import Comparison
    from placement.runs.directory import RunConfig
    from placement.runs.training import TrainedRun

# What is not `list` imports its needs inside its function: the lists should come at once.

_PLAIN_WIDTH = 100
"""Columns of a table that does not go to a terminal."""

_DETAILED = 6
"""Rows, from the fastest, whose devices are shown after a training; `comparison.json` holds all."""


def run(verb: verbs.Verb) -> int:
    """Do what a verb asks and return the exit code.

    Raises:
        InputError: Bad input; one sentence.
        NoFeasiblePlacementError: Nothing fits; one sentence.
    """
    if isinstance(verb, verbs.Train):
        return _train(verb)
    if isinstance(verb, verbs.Compare):
        return _compare(verb)
    if isinstance(verb, verbs.Simulate):
        return _simulate(verb)
    if isinstance(verb, verbs.Run):
        from placement.cli.measured import run_steps

        return run_steps(verb, _console(), _console(stderr=True))
    if isinstance(verb, verbs.Profile):
        from placement.cli.measured import profile_steps

        return profile_steps(verb, _console(), _console(stderr=True))
    if isinstance(verb, verbs.Import):
        return _import(verb)
    if isinstance(verb, verbs.Export):
        return _export(verb)
    return _list(verb)


def _list(verb: verbs.List) -> int:
    from placement.cli.listing import LISTS

    _console().print(LISTS[verb.what]())
    return 0


def _import(verb: verbs.Import) -> int:
    from graphs.files import SUFFIXES, save_graph_file
    from graphs.onnx_import.importer import unknown_operators
    from graphs.sources import load_graph

    if not verb.out.name.endswith(SUFFIXES):  # before the capture, which may take a while
        raise InputError(f"--out '{verb.out}' is not the name of a graph file: it must end in {' or '.join(SUFFIXES)}")
    _check_can_write(verb.out)
    with _console(stderr=True).status(Text(f"reading {verb.source}")):
        graph = load_graph(verb.source)
    save_graph_file(graph, verb.out)
    _console().print(
        f"{verb.out}: {graph.name}, {graph.num_ops:,} ops, {graph.num_tensors:,} tensors, "
        f"{size(graph.parameter_bytes)} of parameters, {graph.total_flops / 1e9:,.1f} GFLOP a step",
        soft_wrap=True,
    )
    unknown = ", ".join(f"{name} ({count:,})" for name, count in unknown_operators(graph).items())
    if unknown:
        _console(stderr=True).print(
            f"charged by their bytes alone, because the ONNX standard has no such operators: {unknown}", soft_wrap=True
        )
    return 0


def _export(verb: verbs.Export) -> int:
    from graphs.files import write_atomically
    from placement import api
    from placement.results import export
    from placement.results.placement_file import read_placement
    from placement.runs import directory

    _check_can_write(verb.out)
    path, graph, cluster, groups = Path(verb.placement), verb.graph, verb.cluster, verbs.Train().groups
    if path.is_dir():
        if graph is not None or cluster is not None:
            raise InputError(f"'{path}' is a run, which knows its graph and cluster; leave out GRAPH and --cluster")
        config = directory.read_config(path)
        graph, cluster, groups, path = config.graph, config.cluster, config.groups, path / directory.PLACEMENT
    elif not path.exists():
        raise InputError(f"there is no run directory or placement file '{path}'; check the path")
    if graph is None or cluster is None:
        raise InputError("export of a placement file needs its GRAPH and a --cluster; or give a run directory")
    result = read_placement(path)
    problem = _load(graph, cluster, result.schedule, groups)
    simulated = api.simulate(problem, result)
    out = _console()
    if verb.format == "device-map":
        devices = export.device_map(problem, simulated.op_placement)
        write_atomically(verb.out, export.encode_device_map(devices))
        mapped = export.simulate_device_map(problem, devices)
        out.print(export.device_map_report(simulated, mapped, devices), soft_wrap=True)
        mapped.check_feasible()
    else:
        encode = export.encode_ops_json if verb.format == "json" else export.encode_ops_csv
        write_atomically(verb.out, encode(simulated))
    out.print(f"{verb.out}: {problem.graph.num_ops:,} ops of {problem.graph.name}", soft_wrap=True)
    return 0


def _compare(verb: verbs.Compare) -> int:
    from graphs.files import write_atomically
    from placement import api
    from placement.cli.progress import ComparisonDisplay
    from placement.cli.report import comparison_report, problem_heading
    from placement.registry import choose_placers
    from placement.results.comparison import check_seed
    from placement.results.comparison_file import encode_comparison, encode_comparison_csv

    placers = choose_placers(verb.placers)
    check_seed(verb.seed)
    _check_positive("--time-limit-s", verb.time_limit_s)
    _check_can_write(verb.json, verb.csv, verb.plot)
    out, err = _console(), _console(stderr=True)
    problem = _load(verb.graph, verb.cluster, verb.schedule, verb.groups)
    out.print(problem_heading(problem))
    out.print(_plan(placers, verb.time_limit_s), style="dim")
    with ComparisonDisplay(err, placers, time_limit_s=verb.time_limit_s) as display:

        def show(comparison: Comparison) -> None:
            if not display.running:
                taken = f"finished rows taken from {verb.json}: {len(comparison.rows)}"
                err.print(f"{taken}; --restart runs them again", style="yellow", soft_wrap=True)
            display.row(comparison)

        try:
            comparison = api.compare(
                problem,
                placers,
                time_limit_s=verb.time_limit_s,
                seed=verb.seed,
                granularity=verb.granularity,
                start=verb.start,
                json=verb.json,
                restart=verb.restart,
                on_start=display.start,
                on_row=show,
            )
        except KeyboardInterrupt:
            if display.comparison is None:
                raise
            comparison = display.comparison
            err.print(f"stopped during {display.running}; these are the rows before it", style="yellow")
    out.print()
    out.print(comparison_report(comparison, width=out.width))
    out.print()
    if verb.json is not None:
        write_atomically(verb.json, encode_comparison(comparison))
        out.print(f"rows     {verb.json}", soft_wrap=True)
    if verb.csv is not None:
        write_atomically(verb.csv, encode_comparison_csv(comparison))
        out.print(f"table    {verb.csv}", soft_wrap=True)
    if verb.plot is not None:
        from placement.cli.comparison_plot import comparison_png

        write_atomically(verb.plot, comparison_png(comparison))
        out.print(f"picture  {verb.plot}", soft_wrap=True)
    comparison.check_feasible()
    return 0


def _plan(placers: list[str], time_limit_s: float) -> str:
    """What a comparison is about to do, and how long its searches will take."""
    from envs.simulator.workspace import available_cores
    from placement.registry import PLACERS

    searching = sum(PLACERS[name].searches for name in placers)
    said = f"placers: {len(placers)}"
    if searching:
        said += (
            f"; searches: {searching} x {time_limit_s:g} s on the same {available_cores()} cores, "
            f"{clock(searching * time_limit_s)} in all"
        )
    return said


def _simulate(verb: verbs.Simulate) -> int:

    from graphs.files import write_atomically
    from placement import api
    from placement.cli.report import simulated_report
    from placement.results.comparison import check_seed
    from placement.results.simulated import encode_simulated

    _check_positive("--time-limit-s", verb.time_limit_s)
    _check_can_write(verb.json, verb.trace, verb.plot)
    check_seed(verb.seed)
    out = _console()
    placement = api.load_placement(verb.placement)  # before the graph: a typing error should not wait for a capture
    problem = _load(verb.graph, verb.cluster, verb.schedule, verb.groups)
    with _console(stderr=True).status("placing and simulating"):
        simulated = api.simulate(
            problem,
            placement,
            time_limit_s=verb.time_limit_s,
            seed=verb.seed,
            granularity=verb.granularity,
            start=verb.start,
        )
    out.print(simulated_report(simulated))
    if verb.json is not None:
        write_atomically(verb.json, encode_simulated(simulated))
    if verb.trace is not None:
        from envs.simulator.trace_file import write_chrome_trace

        write_chrome_trace(verb.trace, simulated.trace, problem.graph, problem.cluster)
    if verb.plot is not None:
        from placement.results.trace_plot import write_trace_png

        write_trace_png(verb.plot, simulated.trace, problem.graph, problem.cluster)
    simulated.check_feasible()
    return 0


def _train(verb: verbs.Train) -> int:
    from envs.clusters.catalog import load_cluster
    from placement import api
    from placement.results.comparison import check_seed
    from placement.runs import directory

    _check_positive("--time-limit-s", verb.time_limit_s)
    _check_positive("--updates", verb.updates)
    check_seed(verb.seed)
    if verb.measured or verb.screen or verb.devices is not None or verb.profile is not None:
        from placement.cli.measured import train_measured

        return train_measured(verb, _console(), _console(stderr=True))
    if verb.resume is not None:
        if verb.out is not None:
            raise InputError("--resume goes on in the run's own directory; leave out --out")
        config = directory.read_config(verb.resume)
        _check_agrees(verb, config)
        with directory.hold(verb.resume):  # before the graph: who is told to wait should not wait for that
            try:
                problem = _load(config.graph, config.cluster, config.schedule, config.groups)
            except InputError as error:
                raise InputError(f"cannot resume '{verb.resume}': {error}") from error
            directory.check_same_problem(verb.resume, config, problem)
            return _run_training(problem, config, verb.resume, verb)
    if verb.graph is None or verb.cluster is None:
        raise InputError("train needs a GRAPH and a --cluster (or --resume DIR); see: placement train --help")
    cluster = load_cluster(verb.cluster)
    out = verb.out or directory.free_directory(Path("runs"), f"{_file_name(verb.graph)}-{_file_name(cluster.name)}")
    directory.check_free(out)
    problem = _load(verb.graph, verb.cluster, verb.schedule, verb.groups)
    time_limit_s = api.DEFAULT_TRAIN_S if verb.time_limit_s is None and verb.updates is None else verb.time_limit_s
    config = directory.make_run_config(
        problem,
        graph=verb.graph,
        cluster=verb.cluster,
        groups=verb.groups,
        preset=verb.preset,
        seed=verb.seed,
        updates=verb.updates,
        time_limit_s=time_limit_s,
    )
    return _run_training(problem, config, out, verb)


def _run_training(problem: PlacementProblem, config: RunConfig, run_dir: Path, verb: verbs.Train) -> int:
    """Compare the others, train, show; `run_dir` is made and held where it is new, and is held by the caller else."""
    from placement.cli.progress import ComparisonDisplay, TrainingDisplay
    from placement.cli.report import problem_heading
    from placement.runs import directory

    out, err = _console(), _console(stderr=True)
    problem.check_can_fit()
    out.print(problem_heading(problem))
    with err.status("loading PyTorch"):
        from placement.runs.compile_ahead import compile_ahead
        from placement.runs.training import compare_others, make_trainer, run_training
    with err.status("compiling, which only the first run has to"):
        compile_ahead(problem.schedule)
    with contextlib.ExitStack() as held:
        began = time.perf_counter()
        with ComparisonDisplay(err) as display:
            others = compare_others(
                problem,
                seed=config.seed,
                time_limit_s=config.time_limit_s,
                run_dir=verb.resume,
                on_start=display.start,
                on_row=display.row,
            )
        with err.status("starting the training"):
            trainer = make_trainer(
                problem, others, preset=config.preset, seed=config.seed, run_dir=run_dir, resume=verb.resume is not None
            )
        if verb.resume is None:
            held.enter_context(directory.hold(run_dir))
            directory.create(run_dir, config)
        updates, time_limit_s = _limits(verb, config, trainer.elapsed_s)
        if verb.resume is not None:
            done = (updates is not None and trainer.updates >= updates) or (
                time_limit_s is not None and time_limit_s <= 0
            )
            said = "nothing is left to do; more takes --time-limit-s or a larger --updates" if done else "going on"
            err.print(f"{trainer.updates:,} updates are done: {said}", soft_wrap=True)
        try:
            spent_s = time.perf_counter() - began
            with TrainingDisplay(err, others, updates=updates, time_limit_s=time_limit_s, spent_s=spent_s) as training:
                trained = run_training(
                    trainer,
                    others,
                    run_dir=run_dir,
                    updates=updates,
                    time_limit_s=time_limit_s,
                    spent_s=spent_s,
                    on_update=training.update,
                )
        except KeyboardInterrupt:  # one that came after the training, or a second one during it
            if not (run_dir / directory.PLACEMENT).exists():
                raise
            out.print(f"Stopped; the best placement so far is in {run_dir / directory.PLACEMENT}", soft_wrap=True)
            return 0
        _show_trained(out, trained)
        return 0


def _limits(verb: verbs.Train, config: RunConfig, elapsed_s: float) -> tuple[int | None, float | None]:
    """Updates in all and seconds more: as asked for now, or else what is left of what was asked for at first."""
    if verb.resume is None:
        return config.updates, config.time_limit_s
    if verb.updates is not None or verb.time_limit_s is not None:
        return verb.updates, verb.time_limit_s
    left_s = None if config.time_limit_s is None else max(config.time_limit_s - elapsed_s, 0.0)
    return config.updates, left_s


def _show_trained(out: Console, trained: TrainedRun) -> None:
    from placement.cli.report import comparison_report, summary

    out.print()
    learned = trained.comparison.rows[-1]
    out.print(comparison_report(trained.comparison, width=out.width, detailed=_DETAILED, always=learned))
    out.print()
    out.print(summary(trained.comparison, learned), style="bold")
    if trained.interrupted:
        out.print("Stopped before the limit; the best placement so far is kept.", style="yellow")
    out.print(f"placement   {trained.run_dir}/placement.json", soft_wrap=True)
    out.print(f"go on       placement train --resume {trained.run_dir} --time-limit-s 60", soft_wrap=True)
    out.print(f"watch       tensorboard --logdir {trained.run_dir}", soft_wrap=True)


def _check_agrees(verb: verbs.Train, config: RunConfig) -> None:
    """Raise where a resumed run is asked to be another one.

    Raises:
        InputError: A setting is given that differs from the run's.
    """
    defaults = verbs.Train()
    for name in ("graph", "cluster", "schedule", "groups", "preset", "seed"):
        wanted, was = getattr(verb, name), getattr(config, name)
        if wanted not in (getattr(defaults, name), was):
            raise InputError(
                f"cannot resume '{verb.resume}' with {name} '{wanted}': the run has '{was}'; leave it out, or start a "
                "new run with --out"
            )


def _load(graph: str, cluster: str, schedule: str, groups: int) -> PlacementProblem:
    err = _console(stderr=True)
    with warnings.catch_warnings(record=True) as caught, err.status(Text(f"reading {graph}")):
        warnings.simplefilter("always", InputWarning)
        from placement import api

        problem = api.make_problem(graph, cluster, schedule=schedule, groups=groups)
    for warning in caught:
        if issubclass(warning.category, InputWarning):
            err.print(Text(printable(str(warning.message))), style="yellow", soft_wrap=True)
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    return problem


def _console(*, stderr: bool = False) -> Console:
    """A console that shows names as they are: brackets and colons in them are no markup."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    return console


def _check_positive(option: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise InputError(f"{option} is {value}; it must be positive")


def _check_can_write(*paths: Path | None) -> None:
    """Raise before a long search, not after it.

    Raises:
        InputError: A file cannot be written where it should be.
    """
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise InputError(f"cannot write '{path}': there is no directory '{path.parent}'; make it first")
        if path is not None and path.is_dir():
            raise InputError(f"cannot write '{path}': it is a directory; give the name of a file")


def _file_name(name: str) -> str:
    """A name that is safe in a path: of a file its name without the endings, of others what is left of odd signs."""
    stem = Path(name).name if name.endswith((".json", ".gz", ".yaml", ".yml")) else name
    stem = re.sub(r"\.(graph\.json(\.gz)?|ya?ml)$", "", stem)
    return re.sub(r"[^A-Za-z0-9_.=,-]+", "-", stem).strip("-.") or "run"
