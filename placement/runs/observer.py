"""Who is told how a run goes on: what a command shows, and nothing at all by default. Importing it loads no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envs.measured.problem import Measurement
    from envs.problem import PlacementProblem
    from placement.learning.stats import UpdateStats
    from placement.results.comparison import Comparison


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """What is known of a training when its first update is about to begin.

    Attributes:
        others: The rows of the other placers.
        resumed: True where a run goes on.
        updates_done: Updates before.
        updates: Updates in all at which it ends; None where only the time limits it.
        time_limit_s: Seconds after which it ends, `spent_s` included; None where only the updates do.
        spent_s: Seconds that the other placers took.
    """

    others: Comparison
    resumed: bool
    updates_done: int
    updates: int | None
    time_limit_s: float | None
    spent_s: float

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        no_updates = self.updates is not None and self.updates_done >= self.updates
        return no_updates or (self.time_limit_s is not None and self.time_limit_s <= 0)


class RunObserver:
    """Is told how a run goes on. Every method does nothing; what shows a run overrides those that it needs."""

    def stage(self, text: str) -> AbstractContextManager[object]:
        """Something that takes a while lasts as long as the context, for example ``"loading PyTorch"``."""
        return contextlib.nullcontext()

    def comparing(self) -> AbstractContextManager[object]:
        """The placers that do not search are asked as long as the context lasts."""
        return contextlib.nullcontext()

    def training(self, plan: TrainingPlan) -> AbstractContextManager[object]:
        """The policy learns as long as the context lasts."""
        return contextlib.nullcontext()

    def on_problem(self, problem: PlacementProblem) -> None:
        """The problem is loaded, and nothing proves that no placement fits."""

    def on_start(self, placer: str) -> None:
        """A placer that does not search begins."""

    def on_row(self, comparison: Comparison) -> None:
        """It has answered: the last row; at first, rows of an earlier start may have been taken over."""

    def on_update(self, stats: UpdateStats) -> None:
        """An update of the policy is done."""

    def on_measure(self, proposer: str, found: Measurement) -> None:
        """A placement was run; `proposer` is the placer that it is from, or ``"again"``."""


class UpdateObserver(RunObserver):
    """Calls a function with the numbers of each update."""

    def __init__(self, call: Callable[[UpdateStats], None]) -> None:
        self._call = call

    def on_update(self, stats: UpdateStats) -> None:
        """Pass the numbers on."""
        self._call(stats)
