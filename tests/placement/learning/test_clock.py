"""How far a run is, and how policy and search share it: by what was done, and by the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import pytest

from placement.learning import pace as pace_module
from placement.learning.clock import USUAL_UPDATES, Clock, EvaluationsClock, SecondsClock, UpdatesClock, Work
from placement.learning.config import PRESETS
from placement.learning.pace import (
    LEAST_MOVES,
    START_SHARE,
    TIMED_UPDATE_S,
    CountedPace,
    Limits,
    PolicyTime,
    TimedPace,
    make_pace,
)
from placement.move_search.search import MoveSearch
from tests.placement.problems import with_settings

SMALL = with_settings(PRESETS["default"], search_moves=100, samples=7)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets what `time.perf_counter` answers."""

    def at(seconds: float) -> None:
        monkeypatch.setattr(time, "perf_counter", lambda: seconds)

    at(100.0)
    return at


@pytest.mark.parametrize(
    ("clock", "work", "done"),
    [
        (UpdatesClock(), Work(0, 10**6), 0.0),
        (UpdatesClock(), Work(USUAL_UPDATES // 2, 0), 0.5),
        (UpdatesClock(), Work(3, 0, share=0.5, moves=10**6), 3.5 / USUAL_UPDATES),
        (UpdatesClock(), Work(2 * USUAL_UPDATES, 0), 2.0),
        (EvaluationsClock(400), Work(10**6, 100), 0.25),
        (EvaluationsClock(400), Work(0, 100, share=0.5, moves=200), 0.5),
    ],
)
def test_counted_clocks_go_by_what_was_done(clock: Clock, work: Work, done: float) -> None:
    assert clock.done(work) == pytest.approx(done)
    assert clock.reach(work).at(work.share, seconds=1e6) == clock.done(work), "bit for bit, whatever time it takes"


def test_the_seconds_clock_goes_by_time_alone(now: Callable[[float], None]) -> None:
    fresh, later = SecondsClock(20.0, began_s=100.0), SecondsClock(20.0, began_s=100.0, first=1.0)
    now(105.0)
    assert fresh.done(Work(0, 0)) == fresh.done(Work(50, 10**6, 0.5, 10)) == pytest.approx(0.25)
    assert later.done(Work(0, 0)) == pytest.approx(1.25)
    reach = fresh.reach(Work(0, 0))
    now(107.0)
    assert reach.at(0.9, seconds=2.0) == pytest.approx(fresh.done(Work(0, 0))) == pytest.approx(0.35)


def test_only_time_alone_gives_a_timed_pace() -> None:
    def pace(limits: Limits) -> type:
        return type(make_pace(SMALL, limits, num_ops=9, num_groups=3, began_s=0.0, policy=PolicyTime(), goes_on=False))

    assert pace(Limits(time_limit_s=5.0)) is TimedPace
    for limits in (Limits(), Limits(updates=3), Limits(evaluations=9), Limits(updates=3, time_limit_s=5.0)):
        assert pace(limits) is CountedPace


def test_each_limit_ends_a_run() -> None:
    limits = Limits(updates=3, time_limit_s=5.0, evaluations=100)
    assert not limits.reached(updates=2, evaluations=99, seconds=4.9)
    assert limits.reached(updates=3, evaluations=0, seconds=0.0)
    assert limits.reached(updates=0, evaluations=100, seconds=0.0)
    assert limits.reached(updates=0, evaluations=0, seconds=5.0)
    assert not Limits().reached(updates=10**9, evaluations=10**9, seconds=1e9)


def test_a_counted_pace_leaves_the_samples_their_evaluations() -> None:
    free = CountedPace(SMALL, num_ops=9, evaluations=None)
    assert free.moves(evaluations=10**9, chains=4) == 100
    assert CountedPace(SMALL, num_ops=10**9, evaluations=None).moves(evaluations=0, chains=4) == LEAST_MOVES
    tight = CountedPace(SMALL, num_ops=9, evaluations=1000)
    for evaluations in (0, 300, 900, 980, 995):
        moves = tight.moves(evaluations=evaluations, chains=4)
        assert moves <= 100
        assert evaluations + 4 * 2 * moves + 7 + 1 <= 1000 or moves <= 0
    assert tight.policy_is_due()
    assert not tight.end_of_moves()()


def timed(limit_s: float, policy: PolicyTime) -> TimedPace:
    return TimedPace(SMALL, groups_an_op=0.1, limit_s=limit_s, began_s=100.0, policy=policy, first=0.0)


def test_the_policy_gets_its_share_of_a_timed_run(now: Callable[[float], None]) -> None:
    policy = PolicyTime()
    pace = timed(50.0, policy)
    assert pace.policy_is_due(), "the first turn is the policy's"
    with policy.turn():
        now(102.0)
    assert policy.last_s == policy.all_s == 2.0
    now(109.0)
    assert not pace.policy_is_due(), "its first turn took more than it may"
    now(114.0)
    assert pace.policy_is_due(), "what the first turn makes is not counted for long"
    with policy.turn():
        now(115.0)
    assert policy.last_s == 1.0
    assert policy.all_s == 2.0, "the first counts as the second"
    share = pace_module.POLICY_SHARE * SMALL.search.num_surviving
    for seconds, due in ((2.0, False), (0.9 * 2 / share, False), (1.1 * 2 / share, True), (47.5, False)):
        now(100.0 + seconds)
        assert pace.policy_is_due() is due
    now(200.0)
    again = TimedPace(SMALL, groups_an_op=0.1, limit_s=50.0, began_s=200.0, policy=policy, first=1.0)
    assert again.policy_is_due(), "what it took in another run does not count"


class StepsOf:
    """Chains of whose steps it is known how long simulating one takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def expect(self, evaluations: float) -> None:
        """Nothing to plan."""

    def expect_seconds(self, limit_s: float) -> float:
        """Seconds of a step."""
        return self.seconds


@pytest.mark.parametrize("limit_s", [0.5, 2.0, 60.0])
def test_a_run_too_short_for_the_policys_first_turn_does_without(limit_s: float) -> None:
    """The turn cannot be broken off; with 8 samples and a group in ten ops it takes as long as 660 steps."""
    steps = pace_module.STEPS_A_TURN + pace_module.OPS_A_DECISION * 0.1 * 8
    assert steps == pytest.approx(660)
    for share, due in ((0.5, True), (0.99, True), (1.01, False), (30.0, False)):
        pace = timed(limit_s, PolicyTime())
        pace.plan(cast(MoveSearch, StepsOf(share * pace_module.FIRST_TURN_SHARE * limit_s / steps)))
        assert pace.policy_is_due() is due


def test_the_moves_of_a_timed_update_end_with_the_policy_and_with_the_run(now: Callable[[float], None]) -> None:
    policy = PolicyTime()
    over = timed(10.0, policy).end_of_moves()
    assert not over()
    with policy.turn():
        now(100.0 + 2 * TIMED_UPDATE_S)
        assert not over(), "the policy is still at work"
        now(110.0)
        assert over()
    now(100.0 + 2 * TIMED_UPDATE_S)
    assert over()


def test_the_clock_of_a_timed_run_begins_with_the_search(now: Callable[[float], None]) -> None:
    pace = timed(50.0, PolicyTime())
    assert pace.heuristics_s == START_SHARE * 50.0
    now(110.0)
    assert pace.clock.done(Work(0, 0)) == pytest.approx(0.2)
    pace.begin_search()
    assert pace.clock.done(Work(0, 0)) == 0.0
    now(130.0)
    assert pace.clock.done(Work(0, 0)) == pytest.approx(0.5)
    assert timed(50.0, PolicyTime()).moves(evaluations=0, chains=1) > 10**6
    alone = TimedPace(PRESETS["paper"], groups_an_op=0.1, limit_s=50.0, began_s=100.0, policy=PolicyTime(), first=0.0)
    assert alone.moves(evaluations=0, chains=1) == 0
    assert alone.heuristics_s is None
