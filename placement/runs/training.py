"""A training run from its problem to the files in its directory: the only orchestration, whoever asks for one.

It prints nothing: an observer (`placement.runs.observer`) is told how the run goes on. Importing this loads no torch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from envs.problem import PlacementProblem
from graphs.errors import InputError, unknown_name
from graphs.extras import is_installed
from graphs.files import write_atomically
from placement.exports.accelerate import check_devices, device_map, encode_device_map
from placement.learning.config import flatten
from placement.learning.stats import UpdateStats
from placement.learning.warm_start import Start
from placement.placers.base import Budget, Placed
from placement.results.carry_over import given_start
from placement.results.comparison import (
    Comparison,
    Row,
    check_seed,
    compare_placers,
    make_row,
    quick_placers,
    rows_within,
)
from placement.results.comparison_file import encode_comparison, read_record, rows_of
from placement.results.placement_file import (
    PlacementResult,
    check_graph,
    encode_placement,
    make_result,
    read_placement,
    write_placement,
)
from placement.results.reasons.explain import explain
from placement.results.reasons.explanation import Explanation
from placement.results.reasons.remedies import TRIES
from placement.results.trace_plot import load_drawing
from placement.runs import directory
from placement.runs.directory import RunConfig
from placement.runs.observer import RunObserver, TrainingPlan
from placement.runs.stopping import stop_on_sigterm
from placement.workers.base import MOST_WORKERS

if TYPE_CHECKING:
    from placement.learning.trainer import Trainer
    from placement.runs.chain_jobs import WorkersWalk
    from placement.workers import Workers

DEFAULT_TRAIN_S = 60.0
"""Seconds of training where neither a time limit nor a number of updates is given."""

LEARNED = "reinforce"
"""What results call the learned placer."""

_REFRESH_EVERY_S = 2.0

EXPLAIN_SHARE, LEAST_EXPLAIN_S, MOST_EXPLAIN_S = 0.03, 0.2, 2.0
"""Share of a training's time in which its placement is explained after it, and the least and the most of it."""

REMEDY_S_AN_OP = 2e-5
"""Seconds for each op that an explanation must have, or it leaves out what other clusters would give."""

LEAST_REPORTED_S = 1.5
"""Seconds of training from which a run leaves a report: making it takes a second or two, which is no part of its limit.
"""

_OTHERS_SHARE, _ALL_OTHERS_SHARE = 0.1, 0.25
"""Share of the time limit that one of the placers that do not search may take, and that all of them may."""


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """What a training run came to.

    Attributes:
        result: The best placement.
        comparison: The other placers' rows, and the learned one's last.
        run_dir: Where the files are; None where none were asked for.
        updates: Updates in all.
        evaluations: Placements evaluated in all.
        training_s: Seconds of training in all.
        interrupted: True where a signal ended the run before its limit.
        explanation: Why the best placement is what it is, as far as there was time; None where no files were asked for.
    """

    result: PlacementResult
    comparison: Comparison
    run_dir: Path | None
    updates: int
    evaluations: int
    training_s: float
    interrupted: bool
    explanation: Explanation | None = None


def train(
    problem: PlacementProblem,
    *,
    run_dir: Path | None = None,
    preset: str = "default",
    seed: int = 0,
    updates: int | None = None,
    time_limit_s: float | None = None,
    start: PlacementResult | None = None,
    observer: RunObserver | None = None,
    workers: Workers | None = None,
    chains: int | None = None,
) -> TrainedRun:
    """Ask the placers that do not search, learn, compare, and leave both in a run directory.

    Args:
        problem: What to place.
        run_dir: The directory, which holds no run yet; None writes no files.
        preset: A name in `placement.learning.config.PRESETS`.
        seed: Seeds all random numbers.
        updates: Updates in all.
        time_limit_s: Seconds in all, those of the other placers and of the explanation included; `DEFAULT_TRAIN_S`
            where `updates` is None, too.
        start: A placement to start from, of the same graph, for any cluster (`placement.results.carry_over`).
        observer: Told how the run goes on.
        workers: Walk the search's chains; None walks them in threads of this process.
        chains: How many of them walk to the end; by default as `chains_of` says.

    Raises:
        InputError: Bad input, or a file cannot be written; the message says what.
        NoFeasiblePlacementError: Nothing fits; the message says which memory is short by how much.
        KeyboardInterrupt: A signal came before anything was evaluated.
    """
    observer = observer or RunObserver()
    check_seed(seed)
    chains = chains_of(preset, chains, workers)
    if time_limit_s is None and updates is None:
        time_limit_s = DEFAULT_TRAIN_S
    if run_dir is not None:
        directory.check_free(run_dir)
    check_start(problem, start, preset)
    walkers = _walkers(workers, problem, observer)
    others, began_s = _ask_others(
        problem, observer, seed=seed, time_limit_s=time_limit_s, start=start, writes=run_dir is not None
    )
    with contextlib.ExitStack() as held:
        with observer.stage("starting the training"):
            trainer = make_trainer(
                problem, others, preset=preset, seed=seed, run_dir=None, chains=chains, walkers=walkers
            )
        if run_dir is not None:
            held.enter_context(directory.hold(run_dir))
            before_s = time.perf_counter()
            directory.create(
                run_dir,
                problem,
                preset=preset,
                seed=seed,
                updates=updates,
                time_limit_s=time_limit_s,
                start=None if start is None else encode_placement(start),
                chains=chains,
            )
            began_s += time.perf_counter() - before_s  # files of a large graph, written once, are no search
        limit_s = time_limit_s if run_dir is None else _without_explaining(time_limit_s)
        return _learn(trainer, others, observer, run_dir, updates, limit_s, began_s=began_s, resumed=False)


def resume(
    run_dir: Path,
    problem: PlacementProblem | None = None,
    *,
    updates: int | None = None,
    time_limit_s: float | None = None,
    observer: RunObserver | None = None,
    workers: Workers | None = None,
) -> TrainedRun:
    """Go on with a run where it stopped, to the same result as one that was never interrupted.

    Args:
        run_dir: Its directory.
        problem: What it places; by default the directory says it (`placement.runs.directory.load_problem`).
        updates: Updates in all, those before included. Where neither these nor a time limit are given, the run goes on
            to the limits that it began with.
        time_limit_s: Seconds more.
        observer: Told how the run goes on.
        workers: Walk the search's chains, as many as the run began with, whoever walked them before; None walks them
            in threads of this process.

    Raises:
        InputError: There is no run, another process works on it, what it places has changed, or a file is damaged.
        NoFeasiblePlacementError: Nothing that was evaluated fits.
        KeyboardInterrupt: A signal came before anything was evaluated.
    """
    observer = observer or RunObserver()
    config = directory.read_config(run_dir)
    if config.measured is not None:
        raise InputError(f"the run in '{run_dir}' learns from measured time; resume it as a measured training")
    with directory.hold(run_dir):  # before the graph: who is told to wait should not wait for that
        problem = problem or reload(run_dir, config, observer)
        directory.check_same_problem(run_dir, config, problem)
        if (run_dir / directory.CHECKPOINT).exists():
            with observer.stage("reading the checkpoint"):  # a damaged one is told of before all that takes long
                from placement.runs import checkpoint

                checkpoint.load(run_dir, problem)
        chains_of(config.preset, config.chains, workers)
        walkers = _walkers(workers, problem, observer)
        others, began_s = _ask_others(
            problem,
            observer,
            seed=config.seed,
            time_limit_s=config.time_limit_s,
            run_dir=run_dir,
            start=None if config.start_file is None else read_placement(run_dir / config.start_file),
            writes=True,
        )
        with observer.stage("starting the training"):
            trainer = make_trainer(
                problem,
                others,
                preset=config.preset,
                seed=config.seed,
                run_dir=run_dir,
                resume=True,
                chains=config.chains,
                walkers=walkers,
            )
        if updates is None and time_limit_s is None:
            given = msgspec.structs.replace(config, time_limit_s=_without_explaining(config.time_limit_s))
            updates, limit_s = config.updates, left_s(given, trainer.elapsed_s)
        else:
            limit_s = _without_explaining(time_limit_s)
        return _learn(trainer, others, observer, run_dir, updates, limit_s, began_s=began_s, resumed=True)


def reload(run_dir: Path, config: RunConfig, observer: RunObserver) -> PlacementProblem:
    """The problem of a run that is to go on.

    Raises:
        InputError: Something of it is gone or damaged.
    """
    try:
        with observer.stage(f"reading {config.graph}"):
            return directory.load_problem(run_dir, config)
    except InputError as error:
        raise InputError(f"cannot resume '{run_dir}': {error}") from error


def left_s(config: RunConfig, spent_s: float) -> float | None:
    """Seconds that are left of a run's time limit; None where it has none."""
    return None if config.time_limit_s is None else max(config.time_limit_s - spent_s, 0.0)


def check_start(problem: PlacementProblem, start: PlacementResult | None, preset: str) -> None:
    """Raise where a placement to start from is of no use.

    Raises:
        InputError: It is one of another graph, or the preset starts from nothing.
    """
    if start is None:
        return
    check_graph(start, problem.graph)
    from placement.learning.config import PRESETS

    if preset in PRESETS and not PRESETS[preset].warm_start:
        raise InputError(f"preset '{preset}' starts from nothing, so a placement to start from is of no use to it")


def chains_of(preset: str, chains: int | None, workers: Workers | None) -> int | None:
    """How many chains of a run walk to the end; None for as many as its preset says.

    Args:
        preset: A name in `placement.learning.config.PRESETS`.
        chains: As asked for; None for one a worker, but no fewer than the preset's.
        workers: Who walks them, if not this process.

    Raises:
        InputError: The preset has no chains, or there are too many.
    """
    from placement.learning.config import PRESETS

    if preset not in PRESETS or (chains is None and workers is None):
        return None
    settings = PRESETS[preset]
    if settings.search_moves == 0:
        raise InputError(f"preset '{preset}' has no search whose chains could walk; leave out workers and chains")
    usual = settings.search.num_surviving
    if chains is None:
        assert workers is not None
        return workers.count if workers.count > usual else None
    if not 1 <= chains <= MOST_WORKERS:
        raise InputError(f"chains is {chains}; it must be from 1 to {MOST_WORKERS}")
    return chains if chains != usual else None


def _walkers(workers: Workers | None, problem: PlacementProblem, observer: RunObserver) -> WorkersWalk | None:
    """Workers that know the problem and have the search compiled."""
    if workers is None:
        return None
    from placement.runs.chain_jobs import WorkersWalk

    problem.check_can_fit()
    with observer.stage(f"starting {workers.count} workers"):
        walkers = WorkersWalk(workers, problem)
        walkers.prepare()
    return walkers


def _ask_others(
    problem: PlacementProblem,
    observer: RunObserver,
    *,
    seed: int,
    time_limit_s: float | None,
    run_dir: Path | None = None,
    start: PlacementResult | None = None,
    writes: bool,
) -> tuple[Comparison, float]:
    """The other placers' rows, and when the run began, by `time.perf_counter`: what is loaded and compiled not counted.

    The first rows come before what only the search, or only a run that `writes` files, needs is loaded and compiled.
    """
    problem.check_can_fit()
    if problem.target == "accelerate":
        check_devices(problem)
    observer.on_problem(problem)
    from placement.runs.compile_ahead import compile_heuristics, compile_search, walk_beside

    with observer.stage("compiling, which only the first run has to"), walk_beside(problem.schedule):
        compile_heuristics(problem.schedule)
    began_s = time.perf_counter()
    with observer.comparing():
        others = compare_others(
            problem,
            seed=seed,
            time_limit_s=time_limit_s,
            run_dir=run_dir,
            start=start,
            on_start=observer.on_start,
            on_row=observer.on_row,
        )
    took_s = time.perf_counter() - began_s
    with observer.stage("loading PyTorch"):
        if writes:
            from placement.runs.record import draw_from_s

            if draw_from_s(time_limit_s) == 0.0:
                load_drawing()
    with observer.stage("compiling the search, which only the first run has to"):
        compile_search(problem.schedule)
    return others, time.perf_counter() - took_s


def compare_others(
    problem: PlacementProblem,
    *,
    seed: int,
    time_limit_s: float | None = None,
    run_dir: Path | None = None,
    start: PlacementResult | None = None,
    on_start: Callable[[str], None] | None = None,
    on_row: Callable[[Comparison], None] | None = None,
) -> Comparison:
    """Ask the placers that do not search: for the display, for the comparison, and for the learner to start from.

    Args:
        problem: What to place.
        seed: Seeds each placer's random numbers.
        time_limit_s: Seconds of the whole run, which includes this. Without one, the answers depend on the seed alone.
        run_dir: Where a run is to go on: once it has a checkpoint, the learner has what it starts from, and the rows of
            its `comparison.json` are taken over.
        start: A placement that was given to start from; it is a row, too.
        on_start: Called with a placer's name before it runs.
        on_row: Called after each finished row with the comparison so far; at first where rows were taken over.

    Raises:
        InputError: The seed is out of range.
        NoFeasiblePlacementError: It is proven that no placement fits.
    """
    budget = Budget(None if time_limit_s is None else _OTHERS_SHARE * time_limit_s)
    finished: tuple[Row, ...] = ()
    if run_dir is not None and all((run_dir / name).exists() for name in (directory.CHECKPOINT, directory.COMPARISON)):
        finished = rows_of(read_record(run_dir / directory.COMPARISON, remedy="delete it"), problem)
        finished = tuple(row for row in finished if row.placer != LEARNED)
    placers = quick_placers(problem)
    if start is not None:
        placers.insert(0, given_start(start))
    source = None
    if time_limit_s is not None:
        source, on_start = rows_within(_ALL_OTHERS_SHARE * time_limit_s, on_start), None
    return compare_placers(
        problem, placers, budget=budget, seed=seed, finished=finished, on_start=on_start, on_row=on_row, source=source
    )


def make_trainer(
    problem: PlacementProblem,
    others: Comparison,
    *,
    preset: str,
    seed: int,
    run_dir: Path | None,
    resume: bool = False,
    chains: int | None = None,
    walkers: WorkersWalk | None = None,
) -> Trainer:
    """The trainer of a run.

    Args:
        problem: What to place.
        others: From `compare_others`: the default preset starts from these placements.
        preset: A name in `PRESETS`.
        seed: Seeds all random numbers.
        run_dir: Where its checkpoint is, if any.
        resume: Go on from the checkpoint in `run_dir`. A run that was killed before its first checkpoint begins anew,
            which comes to the same.
        chains: How many of the search's chains walk to the end, twice as many begin; None for the preset's.
        walkers: Walk them; None walks them in threads of this process.

    Raises:
        InputError: The preset is unknown, the seed is out of range, or the checkpoint is damaged or of another problem.
    """
    from placement.learning.config import PRESETS
    from placement.learning.trainer import Trainer
    from placement.runs.record import learner_of, resume_trainer

    check_seed(seed)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    if resume and run_dir is not None and (run_dir / directory.CHECKPOINT).exists():
        return resume_trainer(problem, run_dir, walkers=walkers)
    start = Start(
        placements={row.placer: row.placement for row in others.rows if row.placement is not None},
        evaluations=sum(row.evaluations for row in others.rows),
        search_s=sum(row.search_s for row in others.rows),
    )
    settings = PRESETS[preset]
    if chains is not None:
        settings = replace(settings, search=replace(settings.search, chains=2 * chains, survivors=chains))
    make_learner = learner_of(settings)
    return Trainer(problem, config=settings, seed=seed, start=start, walkers=walkers, make_learner=make_learner)


def _learn(
    trainer: Trainer,
    others: Comparison,
    observer: RunObserver,
    run_dir: Path | None,
    updates: int | None,
    time_limit_s: float | None,
    *,
    began_s: float,
    resumed: bool,
) -> TrainedRun:
    """Train, keep `placement.json` up to date meanwhile, and write the comparison at the end.

    Ctrl-C and SIGTERM end the training after the update under way; what was found is kept.

    Args:
        trainer: From `make_trainer`.
        others: The rows to compare with.
        observer: Told of every update.
        run_dir: Where its files go; None writes none.
        updates: Updates in all, those before a resumption included.
        time_limit_s: Seconds since `began_s` for the training.
        began_s: When this run, or what goes on with it, began, by `time.perf_counter`.
        resumed: Whether it goes on.

    Raises:
        NoFeasiblePlacementError: Nothing that was evaluated fits; the message says which memory is short by how much.
        KeyboardInterrupt: A signal came before anything was evaluated.
        InputError: There is no limit, or a file cannot be written.
    """
    from placement.runs.record import TrainingRecord, draw_from_s

    best_file = _BestPlacementFile(trainer, run_dir)
    if run_dir is not None:
        write_atomically(run_dir / directory.COMPARISON, encode_comparison(others))

    def after_update(stats: UpdateStats) -> None:
        best_file.refresh()
        observer.on_update(stats)

    spent_s = time.perf_counter() - began_s
    plan = TrainingPlan(others, resumed, trainer.updates, updates, time_limit_s, spent_s)
    with observer.training(plan), stop_on_sigterm() as stop:
        record = None
        if run_dir is not None:
            record = TrainingRecord(
                trainer, run_dir, reference_s=_references(others), draw_from_s=draw_from_s(time_limit_s)
            )
        trainer.run(
            updates=updates,
            time_limit_s=None if time_limit_s is None else max(time_limit_s - spent_s, 0.0),
            on_update=after_update,
            should_stop=stop.is_set,
            observer=record,
        )
    interrupted = trainer.interrupted or stop.is_set()
    if trainer.best_placement is None:
        if interrupted:
            raise KeyboardInterrupt
        raise InputError("the training was stopped before anything was evaluated; give it more time or updates")
    row = learned_row(trainer)
    comparison = others.with_row(row)
    replace(others, rows=(row,)).check_feasible()
    result = best_file.write()
    if run_dir is not None:
        write_atomically(run_dir / directory.COMPARISON, encode_comparison(comparison))
    explanation = None if run_dir is None else _explain(trainer, others, observer, run_dir)
    return TrainedRun(
        result=result,
        comparison=comparison,
        run_dir=run_dir,
        updates=trainer.updates,
        evaluations=trainer.evaluations,
        training_s=trainer.elapsed_s,
        interrupted=interrupted,
        explanation=explanation,
    )


def _references(others: Comparison) -> dict[str, float]:
    """The other placers' best step time and the lower bound, by their TensorBoard tags."""
    best = others.best
    found = {"step_time/lower_bound_s": others.lower_bound_s}
    if best is not None and best.step_time_s is not None:
        found["step_time/other_s"] = best.step_time_s
    return found


def _explain(trainer: Trainer, others: Comparison, observer: RunObserver, run_dir: Path) -> Explanation | None:
    """Why the best placement is what it is, in a small share of the time that it took to find it, and its page.

    The page is left out where Bokeh is not installed, and where it would take longer than the training did:
    `placement explain RUN --html FILE` makes it at any time.

    None where Ctrl-C says that this is not wanted.
    """
    assert trainer.best_placement is not None
    limit_s = _explain_limit_s(trainer.elapsed_s)
    try:
        with observer.stage("explaining the placement"):
            found = explain(
                trainer.problem,
                trainer.best_placement,
                tries=TRIES if limit_s >= REMEDY_S_AN_OP * trainer.problem.graph.num_ops else 0,
                bound_s=others.lower_bound_s,
                time_limit_s=limit_s,
            )
            if trainer.elapsed_s >= LEAST_REPORTED_S and is_installed("bokeh"):
                from placement.runs.report import write_report

                write_report(run_dir, found)
            return found
    except KeyboardInterrupt:
        return None


def _explain_limit_s(training_s: float) -> float:
    """Seconds in which the placement of a training of so many seconds is explained."""
    return min(max(EXPLAIN_SHARE * training_s, LEAST_EXPLAIN_S), MOST_EXPLAIN_S)


def _without_explaining(time_limit_s: float | None) -> float | None:
    """What is left of a run's seconds for its training, at least half; None where they are not limited."""
    return None if time_limit_s is None else max(time_limit_s - _explain_limit_s(time_limit_s), time_limit_s / 2)


def learned_row(trainer: Trainer) -> Row:
    """The learned placer's row of the comparison."""
    assert trainer.best_placement is not None
    note = f"{trainer.updates} updates, preset {trainer.config.preset}"
    if trainer.config.search_moves > 0 and trainer.config.search.uniform_share < 1.0 and not trainer.draws_learned:
        note += "; so many evaluations that moves were drawn uniformly"
    placed = Placed(
        placement=np.asarray(trainer.best_placement, dtype=np.int64),
        evaluations=trainer.evaluations,
        search_s=trainer.elapsed_s,
        config=flatten(trainer.config),
        note=note,
    )
    return make_row(trainer.problem, LEARNED, placed)


class _BestPlacementFile:
    """The `placement.json` of a run: the best placement so far, written at most every few seconds."""

    def __init__(self, trainer: Trainer, run_dir: Path | None) -> None:
        self._trainer = trainer
        self._run_dir = run_dir
        self._written_s = np.inf
        self._written_at = -np.inf

    def refresh(self) -> None:
        """Write where the best placement improved and the last writing is some time ago."""
        now = time.perf_counter()
        if self._trainer.best_s < self._written_s and now - self._written_at >= _REFRESH_EVERY_S:
            self.write()
            self._written_at = time.perf_counter()

    def write(self) -> PlacementResult:
        """Write, and give back what was written."""
        trainer = self._trainer
        assert trainer.best_placement is not None
        result = make_result(
            trainer.problem,
            trainer.best_placement,
            placer=LEARNED,
            seed=trainer.seed,
            config=flatten(trainer.config),
        )
        if self._run_dir is not None:
            write_placement(self._run_dir / directory.PLACEMENT, result)
            if trainer.problem.target == "accelerate":
                devices = device_map(trainer.problem, trainer.problem.to_ops(trainer.best_placement))
                write_atomically(self._run_dir / directory.DEVICE_MAP, encode_device_map(devices))
        self._written_s = trainer.best_s
        return result
