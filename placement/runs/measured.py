"""Learning from the measured time of real steps.

Every placement that counts is run (`envs.measured`). Evaluations are dear, seconds each, so the placements of the
heuristics, which the simulator ranks, are measured first, and the learner starts from them. Either it then learns from
measured time alone; or it learns from the simulator and what it finds best is measured, again and again (*screening*).
In the end the best few are measured once more, so that a lucky measurement does not win.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.measured.problem import MeasuredProblem, Measurement, MeasurementsOverError
from graphs.errors import InputError, NoFeasiblePlacementError
from graphs.files import write_atomically
from placement.learning.reinforce import PRESETS
from placement.learning.trainer import Trainer
from placement.learning.warm_start import Start
from placement.results.placement_file import PlacementResult, make_result, write_placement
from placement.runs import directory
from placement.runs.training import LEARNED, compare_others, make_trainer

MEASURED = "measured.json"
"""The file of a run directory that lists what was measured."""

# A measurement takes seconds: few samples an update, an imitation that is soon over, and no search, which simulates.
_CONFIG = replace(PRESETS["default"], preset="default", samples=6, search_moves=0, imitation_updates=5)

_SHARE_START, _SHARE_SLICE, _SHARE_CONFIRM = 0.4, 0.1, 0.15
"""Of the time limit: what the heuristics' placements get at most, a round of screening, and the last measurements."""

_AT_ONCE = 4
"""Placements that are measured after each round of screening, and once more in the end."""


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
        result: The best placement; its step time is measured.
        rows: The heuristics' placements and, last, the best one.
        measured: Placements that were run.
        failures: How many of them failed.
        updates: Updates of the policy.
        run_dir: Where the files are; None where none were asked for.
        interrupted: True where Ctrl-C ended it.
    """

    result: PlacementResult
    rows: tuple[MeasuredRow, ...]
    measured: int
    failures: int
    updates: int
    run_dir: Path | None
    interrupted: bool


def train_measured(
    problem: MeasuredProblem,
    *,
    time_limit_s: float,
    seed: int = 0,
    screen: bool = False,
    out: str | Path | None = None,
    on_measure: Callable[[str, Measurement], None] | None = None,
) -> MeasuredRun:
    """Learn a placement from the measured time of real steps.

    Args:
        problem: From `envs.measured.problem.measured`.
        time_limit_s: Seconds in all, but for starting the process that measures.
        seed: Of the learner's random numbers; what is measured is never quite the same twice.
        screen: Learn from the simulator and measure what it finds best.
        out: A directory for `placement.json` and `measured.json`; None writes no files.
        on_measure: Called after each measurement with who proposed the placement.

    Raises:
        InputError: There is a run in the directory already, or the model cannot be built.
        NoFeasiblePlacementError: No placement could be run.
    """
    run_dir = None if out is None else Path(out)
    if run_dir is not None:
        directory.check_free(run_dir)
        if (run_dir / directory.PLACEMENT).exists():
            raise InputError(f"'{run_dir}' holds a placement already; give another directory to --out")
    problem.measurer.process.start()
    training = _MeasuredTraining(problem, time_limit_s, seed, on_measure)
    interrupted = False
    try:
        training.measure_heuristics()
        if screen:
            training.screen()
        else:
            training.learn()
    except MeasurementsOverError:
        pass
    except KeyboardInterrupt:
        interrupted = True
    run = training.finish(screen=screen, run_dir=run_dir, interrupted=interrupted)
    if run_dir is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_placement(run_dir / directory.PLACEMENT, run.result)
        write_atomically(
            run_dir / MEASURED, msgspec.json.format(msgspec.json.encode({"rows": run.rows}), indent=2) + b"\n"
        )
    return run


class _MeasuredTraining:
    """A training that is under way: what was measured, and the best of it."""

    def __init__(
        self,
        problem: MeasuredProblem,
        time_limit_s: float,
        seed: int,
        on_measure: Callable[[str, Measurement], None] | None,
    ) -> None:
        self.problem = problem
        self.simulated = problem.simulated
        self.time_limit_s = time_limit_s
        self.seed = seed
        self.updates = 0
        self._until = time.monotonic() + time_limit_s
        self._proposer = ""
        self._heuristics: dict[str, NDArray[np.int64]] = {}
        if on_measure is not None:
            problem.measurer.on_measure = lambda found: on_measure(self._proposer, found)

    def measure_heuristics(self) -> None:
        """Measure what the placers that do not search answer, best first by the simulator."""
        self._limit(_SHARE_CONFIRM)
        comparison = compare_others(self.simulated, seed=self.seed, time_limit_s=self.time_limit_s)
        until = time.monotonic() + _SHARE_START * self.time_limit_s
        ranked = [row for row in comparison.ranked() if row.placement is not None and row.feasible]
        # Single devices first: whether any other placement is worth its copies is the first question.
        ranked.sort(key=lambda row: not row.placer.startswith("single_device"))
        seen: set[bytes] = set()
        for row in ranked:
            assert row.placement is not None
            if row.placement.tobytes() in seen or (time.monotonic() > until and len(seen) >= 2):
                continue
            seen.add(row.placement.tobytes())
            self._proposer = row.placer
            self.problem.evaluate(row.placement[None])
            self._heuristics[row.placer] = row.placement
        self._comparison = comparison

    def learn(self) -> None:
        """Learn from measured time until the time is over."""
        self._proposer = LEARNED
        start = Start(self._heuristics, len(self._heuristics), 0.0)
        trainer = Trainer(self.problem, config=_CONFIG, seed=self.seed, start=start)
        try:
            trainer.run(time_limit_s=self._left_s(_SHARE_CONFIRM))
        finally:
            self.updates = trainer.updates
        if trainer.interrupted:
            raise KeyboardInterrupt

    def screen(self) -> None:
        """Learn from the simulator, and now and then measure the best that it has found."""
        self._proposer = LEARNED
        trainer = make_trainer(self.simulated, self._comparison, preset="default", seed=self.seed, run_dir=None)
        while self._left_s(_SHARE_CONFIRM) > 0:
            try:
                trainer.run(time_limit_s=min(_SHARE_SLICE * self.time_limit_s, self._left_s(_SHARE_CONFIRM)))
            finally:
                self.updates = trainer.updates
            if trainer.interrupted:
                raise KeyboardInterrupt
            new = [placement for placement in trainer.best_placements() if not self._is_known(placement)]
            for placement in new[:_AT_ONCE]:
                self.problem.evaluate_one(placement)

    def finish(self, *, screen: bool, run_dir: Path | None, interrupted: bool) -> MeasuredRun:
        """Measure the best few once more, and say what came out."""
        measurer = self.problem.measurer
        measurer.until_s = self._until
        best = measurer.best(self.problem.schedule)[:_AT_ONCE]
        if not best:
            if not measurer.count:
                raise NoFeasiblePlacementError("the time was over before any placement was run; give more of it")
            reasons = "; ".join(sorted({found.reason for found in measurer.failed()})[:3])
            raise NoFeasiblePlacementError(f"none of the {measurer.count} placements could be run: {reasons}")
        self._proposer = "again"
        if not interrupted:
            try:
                for op_placement in best:
                    measurer.measure(op_placement, self.problem.schedule, again=True)
            except MeasurementsOverError:
                pass
        measurer.until_s = math.inf
        chosen = measurer.best(self.problem.schedule)[0]
        config = {"measured": measurer.count, "screen": screen, "updates": self.updates}
        result = make_result(self.problem, chosen, placer=LEARNED, seed=self.seed, config=config)
        rows = [self._row(name, placement) for name, placement in self._heuristics.items()]
        return MeasuredRun(
            result=result,
            rows=(*rows, self._row(LEARNED, chosen)),
            measured=measurer.count,
            failures=measurer.failures,
            updates=self.updates,
            run_dir=run_dir,
            interrupted=interrupted,
        )

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
