"""What a training leaves in its run directory while it goes on: checkpoints, and TensorBoard's events."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from placement.runs import checkpoint
from placement.learning.stats import UpdateStats

if TYPE_CHECKING:
    from placement.runs.telemetry import Telemetry
    from placement.learning.trainer import Trainer

IMAGE_INTERVAL_S = 60.0
"""Seconds between pictures of the best placement's trace, which come with a checkpoint."""


class TrainingRecord:
    """What one call of `Trainer.run` leaves behind.

    Args:
        trainer: Whose; without a run directory nothing is written.
        interval_s: Seconds between checkpoints.
    """

    def __init__(self, trainer: Trainer, interval_s: float) -> None:
        self._trainer = trainer
        self._interval_s = interval_s
        self._telemetry: Telemetry | None = None
        self._saved_at = time.perf_counter()
        self._known_s = trainer.best_s
        self._drawn_s = math.inf
        self._drawn_at = -math.inf
        if trainer.run_dir is not None:
            from placement.runs.telemetry import Telemetry  # slow to import, and placers that only search never need it

            self._telemetry = Telemetry(trainer.run_dir, first_update=trainer.updates + 1)

    def update(self, stats: UpdateStats) -> None:
        """Write the numbers of an update, and a checkpoint where one is due."""
        if self._telemetry is None:
            return
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

    def close(self, *, whole: bool) -> None:
        """Write what is left; the last checkpoint only if the trainer's state is that of a `whole` update."""
        if self._telemetry is None:
            return
        if whole and self._trainer.updates:
            self._draw()
            self._save()
        self._telemetry.close()

    def _draw(self) -> None:
        trainer = self._trainer
        self._drawn_at = time.perf_counter()
        if self._telemetry is not None and trainer.best_placement is not None and trainer.best_s < self._drawn_s:
            self._drawn_s = trainer.best_s
            self._telemetry.write_trace(trainer.problem, trainer.best_placement, trainer.updates)

    def _save(self) -> None:
        if self._telemetry is not None and self._trainer.run_dir is not None:
            self._telemetry.flush()
            checkpoint.save(self._trainer.run_dir, self._trainer.problem, self._trainer.state())
