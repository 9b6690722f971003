"""How far a training run is: three clocks with one question, one for each kind of limit.

A clock says how much of a run is done, 0 at its beginning and 1 at its limit; the search cools by it. A run that only
time limits goes by seconds; any other by what has been done, which repeats itself.
"""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

from placement.move_search.leg import Reach

USUAL_UPDATES = 64
"""Updates after which the search is as fine as it gets, where no limit says how long the run will be."""


class Work(NamedTuple):
    """What a run has done so far.

    Attributes:
        updates: Whole updates.
        evaluations: Placements evaluated before the update's search began.
        share: Share of the search's moves in the update under way that is done.
        moves: Those moves, of all chains.
    """

    updates: int
    evaluations: int
    share: float = 0.0
    moves: int = 0


class Clock(Protocol):
    """What the trainer asks of a clock."""

    def done(self, work: Work) -> float:
        """Share of the run that is done after some work; more than 1 beyond the limit."""
        ...

    def reach(self, work: Work) -> Reach:
        """The same as plain data, for chains that walk an update's moves elsewhere from now on."""
        ...


class SecondsClock:
    """By wall-clock time.

    Args:
        limit_s: Seconds of the run.
        began_s: When it began, by `time.perf_counter`.
        first: What is done at its beginning: 1 where it goes on after another run.
    """

    def __init__(self, limit_s: float, *, began_s: float, first: float = 0.0) -> None:
        self._limit_s = max(limit_s, 1e-3)
        self._began_s = began_s
        self._first = first

    def done(self, work: Work) -> float:
        """Share of the time that is gone; the work does not count."""
        return self._first + (time.perf_counter() - self._began_s) / self._limit_s

    def reach(self, work: Work) -> Reach:
        """A second is its share of the limit."""
        return Reach(self.done(work), a_second=1.0 / self._limit_s)


class EvaluationsClock:
    """By placements evaluated, of which a run may make ``most``; each move of the search is one."""

    def __init__(self, most: int) -> None:
        self._most = most

    def done(self, work: Work) -> float:
        """Share of the evaluations that are made."""
        return self.reach(work).at(work.share)

    def reach(self, work: Work) -> Reach:
        """The update's moves are their share of the evaluations."""
        return Reach(work.evaluations / self._most, a_leg=work.moves / self._most)


class UpdatesClock:
    """By updates, over `USUAL_UPDATES`."""

    def done(self, work: Work) -> float:
        """Share of the usual number of updates; all moves of an update are one update."""
        return self.reach(work).at(work.share)

    def reach(self, work: Work) -> Reach:
        """The update's moves are one update."""
        return Reach(work.updates / USUAL_UPDATES, a_leg=1.0 / USUAL_UPDATES)
