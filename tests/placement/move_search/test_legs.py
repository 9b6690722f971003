"""A leg is plain data: whoever walks it, a chain goes the same way."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import numpy as np
import pytest

from envs.problem import PlacementProblem
from placement.move_search.chain import Walker
from placement.move_search.config import MoveConfig
from placement.move_search.leg import Ground, Reach, walk_within
from placement.move_search.search import MoveSearch
from tests.placement.placer_problems import training_problem

UPDATES = 12


def begin(problem: PlacementProblem, chains: int, seed: int) -> MoveSearch:
    search = MoveSearch(problem, config=MoveConfig(chains=chains, survivors=max(chains // 2, 1)), seed=seed)
    ops = problem.to_ops(problem.allowed.argmax(axis=1)).astype(np.int32)
    search.offer_best_of(ops[None], problem.evaluate_ops(ops[None]))
    search.expect(70 * problem.graph.num_ops)  # more than one round
    return search


def reach_of(update: int) -> Reach:
    return Reach(update / UPDATES, a_leg=1.0 / UPDATES)


@pytest.mark.parametrize("schedule", ["priority", "fifo"])
@pytest.mark.parametrize("room", [None, 0.4])
@pytest.mark.parametrize("chains", [1, 4, 5])
def test_legs_that_are_sent_away_come_to_what_they_come_to_here(schedule: str, room: float | None, chains: int) -> None:
    """By one walker for all chains, in another order each time, some of them twice."""
    problem = training_problem(40, 3, seed=chains, room=room, schedule=schedule)
    here, away = begin(problem, chains, 7), begin(problem, chains, 7)
    ground = Ground(pickle.loads(pickle.dumps(problem)))
    walker = Walker(ground.problem, MoveConfig(), [99])
    advice = np.random.default_rng(chains).normal(size=(problem.num_groups, problem.num_devices)).astype(np.float32)
    orders = list(permutations(range(chains)))
    with ThreadPoolExecutor(chains) as executor:
        for update in range(UPDATES):
            for search in (here, away):
                search.go_on(update / UPDATES)
            reach = reach_of(update)
            given = advice * update if update >= 3 else None
            here.finish(
                here.start(60, progress=reach.at, should_stop=lambda: False, log_probability=given, executor=executor)
            )
            legs = away.legs(60, log_probability=given)
            begun = [pickle.dumps((leg, away.state_of(leg.chain), reach)) for leg in legs]
            order = [i for i in orders[update % len(orders)] if i < len(begun)]
            for i in [*order, *order[:1]]:
                leg, state, how = pickle.loads(begun[i])
                walker.restore(state)
                walk_within(walker, leg, ground, how)
                walked = pickle.loads(pickle.dumps(walker.state()))
                away.take(leg.chain, walked, 1.0)
            away.finish([])
            assert here.best is not None
            assert away.best is not None
            assert here.best.ops.tolist() == away.best.ops.tolist()
    assert here.evaluations == away.evaluations > 30 * UPDATES
    for mine, theirs in zip(here.state()["chains"], away.state()["chains"], strict=True):
        for key in set(mine) - {"counts"}:
            assert pickle.dumps(mine[key]) == pickle.dumps(theirs[key]), key
        assert mine["counts"][:2].tolist() == theirs["counts"][:2].tolist()


def test_time_ends_a_leg_whose_reach_says_so() -> None:
    problem = training_problem(40, 3, seed=1)
    search = begin(problem, 1, 0)
    (leg,) = search.legs(10**9, log_probability=None)
    walker = Walker(problem, MoveConfig(), [0])
    walk_within(walker, leg, Ground(problem), Reach(0.0, a_second=0.5, seconds=0.2))
    assert 0.2 <= walker.seconds < 5.0
    assert walker.cycle is not None
    assert walker.cycle.begin <= 0.5 * walker.seconds
