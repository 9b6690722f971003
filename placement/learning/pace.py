"""How long the policy and the search work in each update of a training run.

A run that updates or evaluations limit counts moves, so that it repeats itself. A run that only time limits is there to
find the best placement in its time: to that the search adds more than the policy, so the search gets most of it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from placement.learning.clock import Clock, EvaluationsClock, SecondsClock, UpdatesClock
from placement.learning.config import LearningConfig
from placement.move_search.search import MoveSearch

OPS_AN_UPDATE = 32_000_000
"""Ops that each chain of the search may simulate in an update, as long as that leaves it some moves."""

LEAST_MOVES = 16
"""Moves of a chain in an update, however large the graph."""

POLICY_SHARE = 0.03
"""Seconds of the policy for each second and surviving chain, in a run that only time limits; the search takes the
rest."""

FIRST_TURN_SHARE = 0.15
"""The policy's first turn may take so large a share of such a run; where it would take more, there is no policy."""

STEPS_A_TURN, OPS_A_DECISION = 60.0, 750.0
"""How long that turn takes, about: as simulating a step so many times, for reading the graph, and as simulating so many
ops for each group of each sample, to draw and score it and to learn from it."""

START_SHARE = 0.1
"""Share of the time of such a run in which heuristics are asked, the quick ones first."""

TIMED_UPDATE_S = 0.5
"""Seconds of an update of such a run, or the policy's part of it where that takes longer."""

MANY_MOVES = 10**9
"""Moves of a chain where only time ends them."""


@dataclass(frozen=True)
class Limits:
    """The limits of a run, any of which ends it; None is no limit.

    Attributes:
        updates: Updates in all.
        time_limit_s: Seconds of the run.
        evaluations: Placements evaluated in all.
    """

    updates: int | None = None
    time_limit_s: float | None = None
    evaluations: int | None = None

    def reached(self, *, updates: int, evaluations: int, seconds: float) -> bool:
        """Whether one of them is reached."""
        return (
            (self.updates is not None and updates >= self.updates)
            or (self.evaluations is not None and evaluations >= self.evaluations)
            or (self.time_limit_s is not None and seconds >= self.time_limit_s)
        )


class PolicyTime:
    """Seconds that the policy takes, measured turn by turn.

    Attributes:
        last_s: Seconds of its last turn; 0 before the first.
        all_s: Seconds of all its turns; the first, in which all is made that the others use, counts as the second took.
        turns: How many it had.
        works: Whether it is at work.
    """

    def __init__(self) -> None:
        self.last_s = self.all_s = 0.0
        self.turns = 0
        self.works = False

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Measure a turn; one that is broken off does not count."""
        began = time.perf_counter()
        self.works = True
        try:
            yield
            self.last_s = time.perf_counter() - began
            self.turns += 1
            self.all_s = 2 * self.last_s if self.turns == 2 else self.all_s + self.last_s
        finally:
            self.works = False


class Pace(Protocol):
    """How long policy and search work in a run, and the clock that the search cools by.

    Attributes:
        clock: Says how far the run is.
        heuristics_s: Seconds in which the heuristics are asked while a chain walks; None asks all of them first.
    """

    clock: Clock
    heuristics_s: float | None

    def plan(self, chains: MoveSearch) -> None:
        """Tell the chains how many evaluations the run has for them."""
        ...

    def begin_search(self) -> None:
        """The heuristics have answered, while a chain walked; all chains begin now."""
        ...

    def policy_is_due(self) -> bool:
        """Whether the policy samples and learns in the next update."""
        ...

    def moves(self, *, evaluations: int, chains: int) -> int:
        """Moves of each of `chains` chains in the next update, after so many evaluations; 0 or less for no search."""
        ...

    def end_of_moves(self) -> Callable[[], bool]:
        """From now on, the question whether an update's search should end before its moves are made."""
        ...

    def seconds_of_moves(self) -> float | None:
        """Seconds after which an update's search ends that begins now elsewhere; None where its moves end it."""
        ...


class CountedPace:
    """The pace of a run that updates or evaluations limit: each update has a number of moves, however long they take.

    Args:
        config: How to learn.
        num_ops: Of the graph.
        evaluations: The run's limit, if it has one.
    """

    def __init__(self, config: LearningConfig, *, num_ops: int, evaluations: int | None) -> None:
        self.clock: Clock = UpdatesClock() if evaluations is None else EvaluationsClock(evaluations)
        self.heuristics_s: float | None = None
        self._evaluations = evaluations
        self._moves = min(config.search_moves, max(OPS_AN_UPDATE // num_ops, LEAST_MOVES))
        self._sampled = (config.update.samples + 1) * config.learns

    def plan(self, chains: MoveSearch) -> None:
        """Let the chains plan for as many evaluations as the limit allows."""
        chains.expect(math.inf if self._evaluations is None else self._evaluations)

    def begin_search(self) -> None:
        """Nothing changes: time does not count."""

    def policy_is_due(self) -> bool:
        """True: the policy works in every update."""
        return True

    def moves(self, *, evaluations: int, chains: int) -> int:
        """Moves as configured, but no more than are left when the policy's samples are evaluated, too."""
        if self._evaluations is None:
            return self._moves
        left = self._evaluations - evaluations - self._sampled
        return min(self._moves, left // (2 * chains))  # a block of moves may simulate its first placement once more

    def end_of_moves(self) -> Callable[[], bool]:
        """False at any time: all moves are made."""
        return lambda: False

    def seconds_of_moves(self) -> float | None:
        """None: all moves are made."""
        return None


class TimedPace:
    """The pace of a run that only time limits: an update lasts `TIMED_UPDATE_S`, and the policy gets `POLICY_SHARE`.

    Args:
        config: How to learn.
        groups_an_op: Groups over ops of the graph.
        limit_s: Seconds of the run.
        began_s: When it began, by `time.perf_counter`.
        policy: How long the policy takes.
        first: What the clock says at the beginning: 1 where the run goes on after another.
    """

    def __init__(
        self,
        config: LearningConfig,
        *,
        groups_an_op: float,
        limit_s: float,
        began_s: float,
        policy: PolicyTime,
        first: float,
    ) -> None:
        self._steps_a_turn = STEPS_A_TURN + OPS_A_DECISION * groups_an_op * (config.update.samples + 1)
        self._first_turn_s = 0.0
        self._limit_s = max(limit_s, 1e-3)
        self._began_s = began_s
        self._first = first
        self._policy = policy
        self._before_s = policy.all_s
        self._searches = config.search_moves > 0
        self._policy_share = POLICY_SHARE * config.search.num_surviving
        self.clock: Clock = SecondsClock(limit_s, began_s=began_s, first=first)
        walks = self._searches and config.search.chains > 1
        self.heuristics_s: float | None = START_SHARE * self._limit_s if walks else None

    def plan(self, chains: MoveSearch) -> None:
        """Let the chains plan for as many evaluations as the cores manage in the time, by a measured step."""
        chains.expect(math.inf)
        if self._searches:
            self._first_turn_s = self._steps_a_turn * chains.expect_seconds(self._limit_s)

    def begin_search(self) -> None:
        """Let the clock count only the time that is left: heuristics are slow on large graphs."""
        now = time.perf_counter()
        self.clock = SecondsClock(self._limit_s - (now - self._began_s), began_s=now, first=self._first)

    def policy_is_due(self) -> bool:
        """True where the policy had no more than its share so far, and its turn would end before the run does."""
        if not self._searches:
            return True
        if self._policy.last_s == 0:
            return self._first_turn_s <= FIRST_TURN_SHARE * self._limit_s
        gone_s = time.perf_counter() - self._began_s
        share = self._policy_share if self._policy.turns > 1 else max(self._policy_share, FIRST_TURN_SHARE)
        due = self._policy.all_s - self._before_s <= share * gone_s
        return due and gone_s + 3 * self._policy.last_s < self._limit_s

    def moves(self, *, evaluations: int, chains: int) -> int:
        """More moves than there is time for: `end_of_moves` ends them."""
        return MANY_MOVES if self._searches else 0

    def end_of_moves(self) -> Callable[[], bool]:
        """True at the end of the run, and after `TIMED_UPDATE_S` unless the policy is still at work."""
        until_s, enough_s = self._began_s + self._limit_s, time.perf_counter() + TIMED_UPDATE_S

        def over() -> bool:
            now = time.perf_counter()
            return now >= until_s or (now >= enough_s and not self._policy.works)

        return over

    def seconds_of_moves(self) -> float | None:
        """`TIMED_UPDATE_S`, or the policy's last turn where that was longer and it is at work, or what is left."""
        enough_s = max(TIMED_UPDATE_S, self._policy.last_s) if self._policy.works else TIMED_UPDATE_S
        return max(min(self._began_s + self._limit_s - time.perf_counter(), enough_s), 0.0)


def make_pace(
    config: LearningConfig,
    limits: Limits,
    *,
    num_ops: int,
    num_groups: int,
    began_s: float,
    policy: PolicyTime,
    goes_on: bool,
) -> Pace:
    """The pace of a run.

    Args:
        config: How to learn.
        limits: Of the run.
        num_ops: Of the graph.
        num_groups: Of the problem.
        began_s: When the run began, by `time.perf_counter`.
        policy: How long the policy takes.
        goes_on: Whether the search has walked in a run before.
    """
    if limits.time_limit_s is None or limits.updates is not None or limits.evaluations is not None:
        return CountedPace(config, num_ops=num_ops, evaluations=limits.evaluations)
    return TimedPace(
        config,
        groups_an_op=num_groups / num_ops,
        limit_s=limits.time_limit_s,
        began_s=began_s,
        policy=policy,
        first=1.0 if goes_on else 0.0,
    )
