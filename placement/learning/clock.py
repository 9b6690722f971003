"""How far a training run is: three clocks with one question, one for each kind of limit.

A clock says how much of a run is done, 0 at its beginning and 1 at its limit; the search cools by it. A run that only
time limits goes by seconds; any other by what has been done, which repeats itself.
"""

from __future__ import annotations

import time
from typing import Protocol

USUAL_UPDATES = 64
"""Updates after which the search is as fine as it gets, where no limit says how long the run will be."""


class Clock(Protocol):
    """What the trainer asks of a clock."""

    def done(self, *, updates: int, evaluations: int) -> float:
        """Share of the run that is done, given updates and evaluations so far; more than 1 beyond the limit."""
        ...

    def done_within(self, share: float, *, updates: int, evaluations: int, moves: int) -> float:
        """The same within an update, of whose `moves` by all chains the share `share` is done."""
        ...


class SecondsClock:
    """By wall-clock time.

    Args:
        limit_s: Seconds of the run.
        first: What is done at its beginning: 1 where it goes on after another run.

    Attributes:
        began_s: When it began, by `time.perf_counter`.
        limit_s: Seconds of the run, above 0.
    """

    def __init__(self, limit_s: float, *, first: float = 0.0, began_s: float | None = None) -> None:
        self.began_s = time.perf_counter() if began_s is None else began_s
        self.limit_s = max(limit_s, 1e-3)
        self._first = first
        self._answered_s = 0.0

    @property
    def until_s(self) -> float:
        """When the limit is reached, by `time.perf_counter`."""
        return self.began_s + self.limit_s

    def begin_again(self) -> None:
        """Count the rest of the time alone, now that the heuristics have answered (slow on large graphs)."""
        self._answered_s = time.perf_counter()

    def done(self, *, updates: int = 0, evaluations: int = 0) -> float:
        """Share of the time that is gone."""
        began_s = max(self.began_s, self._answered_s)
        limit_s = self.limit_s - max(self._answered_s - self.began_s, 0.0)
        return self._first + (time.perf_counter() - began_s) / max(limit_s, 1e-3)

    def done_within(self, share: float, *, updates: int, evaluations: int, moves: int) -> float:
        """Share of the time that is gone; moves do not count."""
        return self.done()


class EvaluationsClock:
    """By placements evaluated, of which a run may make ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most

    def done(self, *, updates: int, evaluations: int) -> float:
        """Share of the evaluations that are made."""
        return evaluations / self._most

    def done_within(self, share: float, *, updates: int, evaluations: int, moves: int) -> float:
        """Each move is one evaluation."""
        return evaluations / self._most + share * (moves / self._most)


class UpdatesClock:
    """By updates, over `USUAL_UPDATES`."""

    def done(self, *, updates: int, evaluations: int) -> float:
        """Share of the usual number of updates."""
        return updates / USUAL_UPDATES

    def done_within(self, share: float, *, updates: int, evaluations: int, moves: int) -> float:
        """All moves of an update are one update."""
        return updates / USUAL_UPDATES + share * (1.0 / USUAL_UPDATES)
