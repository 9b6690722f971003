"""Learning from the measured time of real steps: what a training does between its problem and its result.

Every placement that counts is run (`envs.measured`). Evaluations are expensive, seconds each, so the placements of the
heuristics, which the simulator ranks, are measured first, and the learner starts from them. Either it then learns from
measured time alone; or it learns from the simulator and what it finds best is measured, again and again (*screening*).
In the end the best few are measured once more, so that a lucky measurement does not win; then, if that is asked for,
with regions that are compiled; and then all cores as one device, which is the answer where it is faster.

Each measurement is on the disk as soon as it is done (`placement.runs.measurements`), and so is the best placement: a
run that was stopped or killed goes on from there.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.clusters.catalog import DEVICE_SPECS
from envs.clusters.file import cluster_to_yaml
from envs.measured.problem import MeasuredProblem, Measurement, MeasurementsOverError
from graphs.errors import NoFeasiblePlacementError
from graphs.files import write_atomically
from placement.learning.config import PRESETS
from placement.learning.stats import UpdateStats
from placement.learning.trainer import Trainer
from placement.learning.warm_start import Start
from placement.results.placement_file import PlacementResult, make_result, read_placement, write_placement
from placement.runs import directory
from placement.runs.measurements import MeasurementFile
from placement.runs.observer import RunObserver
from placement.runs.one_device import compiled_regions, run_in_turn
from placement.runs.plain import COMPILE_REGIONS, Beside, PlainSteps, can_be_one
from placement.runs.record import TrainingRecord, draw_from_s, resume_trainer
from placement.runs.stopping import stop_on_sigterm
from placement.runs.training import LEARNED, compare_others, make_trainer

# A measurement takes seconds: few samples an update, an imitation that is soon over, and no search, which simulates.
_UPDATE = replace(PRESETS["default"].update, samples=6, imitation_updates=5)
_CONFIG = replace(PRESETS["default"], update=_UPDATE, search_moves=0)

_SHARE_START, _SHARE_SLICE, _SHARE_CONFIRM = 0.4, 0.1, 0.15
"""Shares of the time limit: of the heuristics' placements at most, of a round of screening, of the final ones."""

_AT_ONCE = 4
"""Placements that are measured after each round of screening, and once more in the end."""

_COMPILED = 2
"""Placements that are run with regions that are compiled: that takes minutes where a step has thousands of ops."""


@dataclass(frozen=True)
class MeasuredRow:
    """One placement that was measured: who found it, its measured and simulated seconds, and why it failed."""

    placer: str
    step_time_s: float | None
    spread_s: float | None
    simulated_s: float
    reason: str = ""


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """What a training on measured time came to.

    Attributes:
        result: What is fastest: the best placement, or every op on one device of all cores. Its step time is measured.
        split: The best placement on the devices that were given; `result` itself where that is faster.
        rows: The heuristics' placements and, last, the best one on these devices.
        measured: Placements that were run.
        failures: How many of them failed.
        updates: Updates of the policy.
        run_dir: Where the files are; None where none were asked for.
        beside: What else the same cores were measured with: plain PyTorch, and all of them as one device.
        interrupted: True where Ctrl-C or SIGTERM ended it.
    """

    result: PlacementResult
    split: PlacementResult
    rows: tuple[MeasuredRow, ...]
    measured: int
    failures: int
    updates: int
    run_dir: Path | None
    interrupted: bool
    beside: Beside = field(default_factory=Beside)


class MeasuredTraining:
    """A training that is under way: what was measured, and the best of it.

    Args:
        problem: What is placed.
        time_limit_s: Seconds from now on.
        seed: Seeds the learner's random numbers.
        is_screened: Learn from the simulator and measure what it finds best.
        run_dir: A directory that is held and has its `config.json`; None writes no files.
        observer: Told of each measurement.
        compile_regions: Run the best placements with regions that are compiled, too.

    Attributes:
        elapsed_s: Seconds of the training before this.
        updates: Updates of the policy so far.
        plain: What plain PyTorch takes on the same cores.
    """

    def __init__(
        self,
        problem: MeasuredProblem,
        time_limit_s: float,
        seed: int,
        is_screened: bool,
        run_dir: Path | None,
        observer: RunObserver,
        compile_regions: bool = False,
    ) -> None:
        self.problem = problem
        self.simulated = problem.simulated
        self.time_limit_s = time_limit_s
        self.seed = seed
        self.is_screened = is_screened
        self.run_dir = run_dir
        self.elapsed_s = 0.0
        self.updates = 0
        self.plain: tuple[PlainSteps, ...] = ()
        self._compiles = compile_regions
        self._one_device: PlacementResult | None = None
        self._observer = observer
        self._began = time.monotonic()
        self._until = self._began + time_limit_s
        self._proposer = ""
        self._proposers: dict[bytes, str] = {}  # of placements that are measured at the same time
        self._trainer: Trainer | None = None
        self._heuristics: dict[str, NDArray[np.int64]] = {}
        self._file: MeasurementFile | None = None
        self._earlier: Trainer | None = None
        self._stopped: Callable[[], bool] = lambda: False
        self._written_s = math.inf

    def run(self) -> MeasuredRun:
        """Measure the heuristics, learn, measure the best few once more, and write what came out."""
        interrupted = False
        with contextlib.ExitStack() as held, stop_on_sigterm() as stop:
            self._stopped = stop.is_set
            if self.run_dir is not None:
                self._file = held.enter_context(MeasurementFile(self.run_dir / directory.MEASUREMENTS))
            self._know_earlier()
            self.problem.measurer.on_measure = self._keep
            self.problem.measurer.version = self._version
            try:
                self._measure_heuristics()
                if self.is_screened:
                    self._screen()
                else:
                    self._learn()
            except MeasurementsOverError:
                pass
            except KeyboardInterrupt:
                interrupted = True
            run = self._finish(interrupted=interrupted or stop.is_set())
        if self.run_dir is not None:
            self._write(run, self.run_dir)
        return run

    @staticmethod
    def _write(run: MeasuredRun, run_dir: Path) -> None:
        content: dict[str, object] = {"rows": run.rows, "plain": run.beside.plain}
        if run.beside.one_device is not None:
            content["one_device_s"] = run.beside.one_device.step_time_s
            write_placement(run_dir / directory.ONE_DEVICE, run.beside.one_device)
        if run.result is run.split:
            (run_dir / directory.SPLIT).unlink(missing_ok=True)
        else:
            write_placement(run_dir / directory.SPLIT, run.split)
        write_placement(run_dir / directory.PLACEMENT, run.result)
        content |= {"answer": run.result.placer.name, "split_s": run.split.step_time_s}
        content["answer_s"] = run.result.step_time_s
        encoded = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
        write_atomically(run_dir / directory.MEASURED, encoded)

    def _know_earlier(self) -> None:
        """Take over the policy and the best placement of an earlier process of this run."""
        if self.run_dir is None:
            return
        if (self.run_dir / directory.CHECKPOINT).exists():
            self._earlier = resume_trainer(self.simulated if self.is_screened else self.problem, self.run_dir)
            self.updates = self._earlier.updates
        if (self.run_dir / directory.ONE_DEVICE).exists():
            self._one_device = read_placement(self.run_dir / directory.ONE_DEVICE)
        split = self._best()
        if split is not None:
            answer = self._faster(split)
            self._written_s = answer.step_time_s
            write_placement(self.run_dir / directory.PLACEMENT, answer)

    def _keep(self, op_placement: NDArray[np.int32], schedule: str, found: Measurement) -> None:
        """Write down a measurement, and the placement where it is the best so far."""
        if self._file is not None and self.run_dir is not None:
            elapsed_s = self.elapsed_s + time.monotonic() - self._began
            self._file.add(
                self._proposers.get(op_placement.tobytes(), self._proposer),
                op_placement,
                schedule,
                found,
                elapsed_s=elapsed_s,
                compile_regions=self.problem.measurer.compile_regions,
            )
            if not found.reason and found.step_time_s < self._written_s:
                self._written_s = found.step_time_s
                write_placement(self.run_dir / directory.PLACEMENT, self._result(op_placement))
        self._observer.on_measure(self._proposers.get(op_placement.tobytes(), self._proposer), found)

    def _result(self, op_placement: NDArray[np.integer]) -> PlacementResult:
        measurer = self.problem.measurer
        config = {"measured": measurer.count, "screen": self.is_screened, "updates": self.updates}
        if measurer.compile_regions:
            config[COMPILE_REGIONS] = True
        return make_result(self.problem, op_placement, placer=LEARNED, seed=self.seed, config=config)

    def _measure_heuristics(self) -> None:
        """Measure what the placers that do not search answer, best first by the simulator."""
        measurer = self.problem.measurer
        self._limit(_SHARE_CONFIRM)
        comparison = compare_others(self.simulated, seed=self.seed, time_limit_s=self.time_limit_s or None)
        until = time.monotonic() + _SHARE_START * self.time_limit_s
        ranked = [row for row in comparison.ranked() if row.placement is not None and row.feasible]
        # Single devices first: whether any other placement is worth its copies is the first question.
        ranked.sort(key=lambda row: not row.placer.startswith("single_device"))
        seen: set[bytes] = set()
        for number, row in enumerate(ranked):
            assert row.placement is not None
            if number % measurer.at_once == 0 and measurer.at_once > 1 and time.monotonic() <= until:
                together = ranked[number : number + measurer.at_once]
                self._measure_at_once([(r.placer, r.placement) for r in together if r.placement is not None])
            late = time.monotonic() > until and not self._is_known(row.placement)
            if row.placement.tobytes() in seen or (late and len(seen) >= 2):
                continue
            self._check_stopped()
            seen.add(row.placement.tobytes())
            self._proposer = row.placer
            self.problem.evaluate(row.placement[None])
            self._heuristics[row.placer] = row.placement
        self._comparison = comparison

    def _measure_at_once(self, proposed: Sequence[tuple[str, NDArray[np.int64]]]) -> None:
        """Measure placements on as many machines as there are, each told of with who proposed it."""
        ops = [self.problem.to_ops(placement).astype(np.int32) for _, placement in proposed]
        for (proposer, _), placement in zip(proposed, ops, strict=True):
            self._proposers.setdefault(placement.tobytes(), proposer)
        self.problem.measurer.measure_ahead(ops, self.problem.schedule)
        self._proposers.clear()

    def _version(self) -> int:
        """How many updates the policy has made that proposes now."""
        return self.updates if self._trainer is None else self._trainer.updates

    def _learn(self) -> None:
        """Learn from measured time until the time is over."""
        self._proposer = LEARNED
        trainer = self._earlier
        if trainer is None:
            start = Start(self._heuristics, len(self._heuristics), 0.0)
            trainer = Trainer(self.problem, config=_CONFIG, seed=self.seed, start=start)
        self._trainer = trainer
        # A checkpoint after every update: next to the steps that an update runs it costs nothing.
        record = None
        if self.run_dir is not None:
            drawn = draw_from_s(self.time_limit_s)
            record = TrainingRecord(trainer, self.run_dir, interval_s=0.0, draw_from_s=drawn)
        try:
            trainer.run(time_limit_s=self._left_s(_SHARE_CONFIRM), should_stop=self._stopped, observer=record)
        finally:
            self.updates = trainer.updates
        if trainer.interrupted:
            raise KeyboardInterrupt

    def _screen(self) -> None:
        """Learn from the simulator, and now and then measure the best that it has found."""
        self._proposer = LEARNED
        trainer = self._earlier or make_trainer(
            self.simulated, self._comparison, preset="default", seed=self.seed, run_dir=None
        )
        record = None
        if self.run_dir is not None:
            record = TrainingRecord(trainer, self.run_dir, draw_from_s=draw_from_s(self.time_limit_s))
        with contextlib.nullcontext() if record is None else contextlib.closing(record):
            self._screen_in_rounds(trainer, None if record is None else _RoundRecord(record))

    def _screen_in_rounds(self, trainer: Trainer, record: _RoundRecord | None) -> None:
        self._trainer = trainer
        while self._left_s(_SHARE_CONFIRM) > 0 and not self._stopped():
            round_s = min(_SHARE_SLICE * self.time_limit_s, self._left_s(_SHARE_CONFIRM))
            try:
                trainer.run(time_limit_s=round_s, should_stop=self._stopped, observer=record)
            finally:
                self.updates = trainer.updates
            if trainer.interrupted:
                raise KeyboardInterrupt
            new = [placement for placement in trainer.best_placements() if not self._is_known(placement)]
            most = max(_AT_ONCE, self.problem.measurer.at_once)
            self._check_stopped()
            self._measure_at_once([(LEARNED, placement) for placement in new[:most]])
            for placement in new[:most]:
                self._check_stopped()
                self.problem.evaluate_one(placement)

    def _finish(self, *, interrupted: bool) -> MeasuredRun:
        """Measure the best few once more, compiled and on one device of all cores, and say what came out."""
        measurer = self.problem.measurer
        measurer.until_s = self._until
        best = measurer.best(self.problem.schedule)[:_AT_ONCE]
        if not best:
            if interrupted:
                raise KeyboardInterrupt
            if not measurer.count:
                raise NoFeasiblePlacementError("the time was over before any placement was run; give more of it")
            reasons = "; ".join(sorted({found.reason for found in measurer.failed()})[:3])
            raise NoFeasiblePlacementError(f"none of the {measurer.count} placements could be run: {reasons}")
        self._proposer = "again"
        if not interrupted:
            try:
                for op_placement in best:
                    self._check_stopped()
                    measurer.measure(op_placement, self.problem.schedule, again=True)
            except MeasurementsOverError:
                pass
            except KeyboardInterrupt:
                interrupted = True
        measurer.until_s = math.inf
        try:
            if not interrupted:
                self._compare()
        except KeyboardInterrupt:
            interrupted = True
        rows = [self._row(name, placement) for name, placement in self._heuristics.items()]
        rows.append(self._row(LEARNED, measurer.best(self.problem.schedule)[0]))
        split = self._best()
        assert split is not None
        return MeasuredRun(
            result=self._faster(split),
            split=split,
            rows=tuple(rows),
            measured=measurer.count,
            failures=measurer.failures,
            updates=self.updates,
            run_dir=self.run_dir,
            interrupted=interrupted,
            beside=Beside(self.plain, self._one_device),
        )

    def _compare(self) -> None:
        """Run the best placements with compiled regions, and in turn with the best one all cores as one device."""
        measurer, schedule = self.problem.measurer, self.problem.schedule
        best = measurer.best(schedule)[:_COMPILED]
        if self._compiles:
            self._proposer = "compiled"
            with self._observer.stage("compiling the regions of the best placements"), compiled_regions(measurer):
                for op_placement in best:
                    self._check_stopped()
                    measurer.measure(op_placement, schedule, again=True)
        if not can_be_one(measurer.process.devices):
            return
        self._proposer = "again"
        with self._observer.stage("running all ops on one device of all cores"):
            found = run_in_turn(self.problem, compile_regions=self._compiles, before_each=self._check_stopped)
        if found is not None:
            self._one_device, cluster = found
            if self.run_dir is not None:
                encoded = cluster_to_yaml(cluster, DEVICE_SPECS).encode()
                write_atomically(self.run_dir / directory.ONE_DEVICE_CLUSTER, encoded)

    def _best(self) -> PlacementResult | None:
        """The best placement on the given devices, in the way in which it is faster; None where none was run."""
        schedule, found = self.problem.schedule, []
        for way in (contextlib.nullcontext(), compiled_regions(self.problem.measurer)):
            with way:
                found += [self._result(op_placement) for op_placement in self.problem.measurer.best(schedule)[:1]]
        return min(found, key=lambda each: each.step_time_s, default=None)

    def _faster(self, split: PlacementResult) -> PlacementResult:
        """A placement, or one device of all cores where that was faster."""
        one = self._one_device
        return one if one is not None and one.step_time_s < split.step_time_s else split

    def _row(self, name: str, placement: NDArray[np.integer]) -> MeasuredRow:
        found = self.problem.measurer.measure(self.problem.to_ops(placement), self.problem.schedule)
        simulated_s = float(self.simulated.evaluate_one(placement).step_time_s[0])
        if found.reason:
            return MeasuredRow(name, None, None, simulated_s, found.reason)
        return MeasuredRow(name, found.step_time_s, found.spread_s, simulated_s)

    def _limit(self, reserve: float) -> None:
        self.problem.measurer.until_s = self._until - reserve * self.time_limit_s

    def _left_s(self, reserve: float) -> float:
        return max(self._until - reserve * self.time_limit_s - time.monotonic(), 0.0)

    def _is_known(self, placement: NDArray[np.integer]) -> bool:
        return self.problem.measurer.is_known(self.problem.to_ops(placement), self.problem.schedule)

    def _check_stopped(self) -> None:
        """Raise where SIGTERM has come.

        Raises:
            KeyboardInterrupt: It has; what was measured is kept, as after Ctrl-C.
        """
        if self._stopped():
            raise KeyboardInterrupt


class _RoundRecord:
    """Records a training of several rounds: the files stay open between them."""

    def __init__(self, record: TrainingRecord) -> None:
        self._record = record

    def on_update(self, stats: UpdateStats) -> None:
        """Write the numbers of an update."""
        self._record.on_update(stats)

    def on_end(self, *, whole: bool) -> None:
        """Write a checkpoint at the end of a round."""
        if whole:
            self._record.save()
