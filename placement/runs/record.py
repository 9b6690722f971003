"""What a training leaves in its run directory while it goes on: checkpoints, and TensorBoard's events."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.learning.stats import UpdateStats
from placement.runs import checkpoint

if TYPE_CHECKING:
    from placement.learning.config import LearningConfig
    from placement.learning.parallel_search import Walkers
    from placement.learning.trainer import MakeLearner, Trainer
    from placement.placers.best import BestKnown
    from placement.pretrained.learner import PretrainedLearner

IMAGE_INTERVAL_S = 60.0
"""Seconds between pictures of the best placement's trace, which come with a checkpoint."""

LEAST_DRAWN_S = 15.0
"""Seconds of training from which TensorBoard gets a picture: making one takes a second, which is no part of a limit."""

CHECKPOINT_INTERVAL_S = 20.0
"""Seconds of training between checkpoints; one is written at the end of every run, too."""


def draw_from_s(time_limit_s: float | None) -> float:
    """Seconds of training from which a run gets pictures: a time limit says at once whether there are any."""
    if time_limit_s is None:
        return LEAST_DRAWN_S
    return 0.0 if time_limit_s >= LEAST_DRAWN_S else math.inf


class TrainingRecord:
    """What one call of `Trainer.run` leaves behind: its observer.

    Args:
        trainer: Whose.
        run_dir: Where the checkpoint and TensorBoard's events go.
        interval_s: Seconds between checkpoints.
        reference_s: Step times to compare with, see `placement.runs.telemetry.Telemetry`.
        draw_from_s: Seconds of training from which TensorBoard gets a picture of the best placement's step.
    """

    def __init__(
        self,
        trainer: Trainer,
        run_dir: Path,
        *,
        interval_s: float = CHECKPOINT_INTERVAL_S,
        reference_s: Mapping[str, float] | None = None,
        draw_from_s: float = LEAST_DRAWN_S,
    ) -> None:
        from placement.runs.telemetry import Telemetry  # slow to import, and placers that only search never need it

        self._trainer = trainer
        self._run_dir = run_dir
        self._interval_s = interval_s
        with input_errors(run_dir):
            self._telemetry = Telemetry(
                run_dir,
                first_update=trainer.updates + 1,
                reference_s=reference_s,
                settings={
                    "graph": trainer.problem.graph.name,
                    "cluster": trainer.problem.cluster.name,
                    "groups": trainer.problem.num_groups,
                    "preset": trainer.config.preset,
                    "seed": trainer.seed,
                    "step schedule": trainer.problem.schedule,  # TensorBoard shows the first five at first, by name
                },
            )
        self._saved_at = time.perf_counter()
        self._known_s = trainer.best_s
        self._draw_from_s = draw_from_s
        self._drawn_s = math.inf
        self._drawn_at = -math.inf

    def on_update(self, stats: UpdateStats) -> None:
        """Write the numbers of an update, and a checkpoint where one is due."""
        with input_errors(self._run_dir):
            self._write(stats)

    def _write(self, stats: UpdateStats) -> None:
        trainer = self._trainer
        self._telemetry.write_update(stats)
        if trainer.best_s < self._known_s and trainer.best_placement is not None:
            self._known_s = trainer.best_s
            self._telemetry.write_devices(trainer.problem, trainer.best_placement, trainer.updates)
        if time.perf_counter() - self._saved_at >= self._interval_s:
            self._saved_at = time.perf_counter()
            if self._saved_at - self._drawn_at >= IMAGE_INTERVAL_S:
                self._draw()
            self._save()

    def on_end(self, *, whole: bool) -> None:
        """Write what is left; the last checkpoint only if the trainer's state is that of a `whole` update."""
        try:
            if whole:
                self.save()
        finally:
            self.close()

    def save(self) -> None:
        """Write a checkpoint, and a picture of the best placement where it is a new one."""
        if self._trainer.updates:
            with input_errors(self._run_dir):
                self._draw()
                self._save()

    def close(self) -> None:
        """End the file of TensorBoard's events."""
        with input_errors(self._run_dir):
            self._telemetry.close()

    def _draw(self) -> None:
        trainer = self._trainer
        if trainer.elapsed_s < self._draw_from_s:
            return
        self._drawn_at = time.perf_counter()
        if trainer.best_placement is not None and trainer.best_s < self._drawn_s:
            self._drawn_s = trainer.best_s
            self._telemetry.write_trace(trainer.problem, trainer.best_placement, trainer.updates)

    def _save(self) -> None:
        self._telemetry.flush()
        checkpoint.save(self._run_dir, self._trainer.problem, self._trainer.state())


@contextlib.contextmanager
def input_errors(run_dir: Path, verb: str = "train") -> Iterator[None]:
    """Turn what the system says of a file that cannot be written, for example on a full disk, into one sentence.

    Args:
        run_dir: Where the run's files are.
        verb: Which resumes it.

    Raises:
        InputError: What was written before stands, so the run can go on from there.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"the run in '{run_dir}' cannot be written ({error.strerror or error}); make room there, then go on with "
            f"placement {verb} --resume {run_dir}"
        ) from error


def resume_trainer(problem: PlacementProblem, run_dir: Path, *, walkers: Walkers | None = None) -> Trainer:
    """The trainer of a run directory's checkpoint.

    Args:
        problem: What it places.
        run_dir: The directory.
        walkers: Walk its chains in other processes; None walks them in threads of this one.

    Raises:
        InputError: There is no checkpoint, it is damaged, or it is of another graph, cluster or schedule.
    """
    from placement.learning.trainer import Trainer

    state = checkpoint.load(run_dir, problem)
    try:
        return Trainer.resume(problem, state, walkers=walkers, make_learner=learner_of(state.config))
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        # What was checked has the right types, but may still not fit together: weights of another shape, for example.
        raise InputError(
            f"{run_dir / checkpoint.FILE_NAME}: its parts do not fit together; start the run again"
        ) from error


def learner_of(config: LearningConfig) -> MakeLearner | None:
    """What makes the learner of a preset that begins with the weights that are shipped; None for the others.

    Raises:
        InputError: The weights cannot be read.
    """
    if config.preset != "pretrained":
        return None
    from placement.pretrained import learner
    from placement.pretrained.network import load

    weights = load()

    def make(problem: PlacementProblem, config: LearningConfig, seed: int, best: BestKnown) -> PretrainedLearner:
        return learner.PretrainedLearner(
            problem,
            weights=weights,
            best=best,
            samples=config.update.samples,
            learning_rate=config.update.learning_rate,
            entropy_bonus=config.update.entropy_bonus,
            clip_norm=config.update.clip_norm,
            seed=seed,
        )

    return make
