"""The verbs of the command, for Python.

The whole job::

    import placement

    problem = placement.make_problem("nmt", "k80x4")
    run = placement.train(problem, time_limit_s=60, out="runs/nmt")
    print(run.result.step_time_s, run.result.ops)
    for row in run.comparison.ranked():
        print(row.placer, row.step_time_s)

A graph may also be a `ComputationGraph`, for example from `graphs.capture.capture`, and a cluster a `Cluster`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from envs.make_problem import make_problem
from envs.problem import PlacementProblem
from graphs.errors import InputError, unknown_name
from graphs.files import write_atomically
from placement.placers import PlacerInfo
from placement.placers.base import Budget, Granularity, SearchOptions, StartAt
from placement.registry import PLACERS, get_placer
from placement.results.comparison import Comparison, Row, ask, check_seed, compare_placers
from placement.results.comparison_file import encode_comparison, read_finished
from placement.results.placement_file import PlacementResult, check_placement, read_placement
from placement.results.simulated import Simulated, simulate_ops
from placement.runs import directory

if TYPE_CHECKING:
    from placement.learning.stats import UpdateStats
    from placement.runs.training import TrainedRun

__all__ = ["compare", "make_problem", "simulate", "train"]

DEFAULT_TRAIN_S = 60.0
"""Seconds of training where neither a time limit nor a number of updates is given."""

DEFAULT_SEARCH_S = 20.0
"""Seconds that each searching placer of a comparison gets where no time limit is given."""


def train(
    problem: PlacementProblem,
    *,
    time_limit_s: float | None = None,
    updates: int | None = None,
    preset: str = "default",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    on_update: Callable[[UpdateStats], None] | None = None,
) -> TrainedRun:
    """Learn a placement, and compare it with the placers that do not search.

    Args:
        problem: From `make_problem`.
        time_limit_s: Seconds in all, those of the other placers included; by default a minute where `updates` is None,
            too. The default preset starts from what the other placers answer.
        updates: Updates in all. Only where they alone limit the run does the same seed give the same placement.
        preset: A name in `placement.learning.reinforce.PRESETS`.
        seed: Of all random numbers.
        out: The run directory; None writes no files.
        resume: Go on with the run in `out`: `updates` then counts those before, `time_limit_s` does not.
        on_update: Called with `placement.learning.stats.UpdateStats` after each update.

    Raises:
        InputError: Bad input; the message says what.
        NoFeasiblePlacementError: Nothing fits; the message says which memory is short by how much.
    """
    from placement.runs.compile_ahead import compile_ahead  # here, because these load torch
    from placement.runs.training import compare_others, make_trainer, run_training

    if time_limit_s is None and updates is None:
        time_limit_s = DEFAULT_TRAIN_S
    run_dir = None if out is None else Path(out)
    if resume:
        if run_dir is None:
            raise InputError("resume needs the run's directory: give it as out")
        config = directory.read_config(run_dir)
        directory.check_same_problem(run_dir, config, problem)
        preset, seed = config.preset, config.seed
    elif run_dir is not None:
        directory.check_free(run_dir)
    compile_ahead(problem.schedule)
    began = time.perf_counter()
    with contextlib.ExitStack() as held:
        if resume and run_dir is not None:
            held.enter_context(directory.hold(run_dir))
        others = compare_others(problem, seed=seed, time_limit_s=time_limit_s, run_dir=run_dir if resume else None)
        trainer = make_trainer(problem, others, preset=preset, seed=seed, run_dir=run_dir, resume=resume)
        if run_dir is not None and not resume:
            config = directory.make_run_config(
                problem,
                graph=problem.graph.name,
                cluster=problem.cluster.name,
                groups=problem.num_groups,
                preset=preset,
                seed=seed,
                updates=updates,
                time_limit_s=time_limit_s,
            )
            held.enter_context(directory.hold(run_dir))
            directory.create(run_dir, config)
        return run_training(
            trainer,
            others,
            run_dir=run_dir,
            updates=updates,
            time_limit_s=time_limit_s,
            spent_s=time.perf_counter() - began,
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
    on_start: Callable[[str], None] | None = None,
    on_row: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Run several placers under one budget.

    Args:
        problem: From `make_problem`.
        placers: Names in `placement.registry.PLACERS`, or placers of one's own; all by default.
        time_limit_s: Seconds that each may take; only those that search use them up.
        evaluations: Placements that each may evaluate.
        seed: Of each placer's random numbers.
        granularity: What the searches move: ``"group"``, or ``"op"`` for single ops within the hard constraints.
        start: Where they start: ``"heuristics"``, from the best of these, or ``"scratch"``, from a random placement.
        json: A file for the rows, written whole after each: a comparison that was killed and is started again with the
            same settings takes the finished rows from there.
        restart: Do not look at what is in that file.
        on_start: As in `placement.results.comparison.compare_placers`.
        on_row: Likewise.

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

    def after_row(comparison: Comparison) -> None:
        if path is not None:
            write_atomically(path, encode_comparison(comparison))
        if on_row is not None:
            on_row(comparison)

    return compare_placers(
        problem,
        chosen,
        budget=budget,
        seed=seed,
        options=options,
        finished=finished,
        on_start=on_start,
        on_row=after_row,
    )


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
        seed: Of a placer's random numbers.
        granularity: Of a search, as in `compare`.
        start: Likewise.

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
    if not Path(name).exists() and not re.search(r"[/\\.]", name):
        raise unknown_name("placer, and there is no placement file,", name, PLACERS)
    return read_placement(name)
