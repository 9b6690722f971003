"""Moves keep to what is allowed and change something; units merge what belongs together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from placement.placers.base import Budget, Search
from placement.placers.best import missing_share
from placement.placers.searching.moves import Moves, coarse_to_fine, coarse_units, single_units
from placement.registry import get_placer
from tests.placement.placer_problems import random_problem, training_problem


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), groups=st.integers(2, 40), gpus=st.integers(1, 5))
def test_a_move_changes_something_and_keeps_pinned_units_where_they_are(seed: int, groups: int, gpus: int) -> None:
    problem = training_problem(groups, gpus, seed=seed)
    units = single_units(problem)
    moves = Moves(units, np.random.default_rng(seed))
    placement = moves.scatter()
    for _ in range(30):
        before = placement.copy()
        moved = moves.propose(placement)
        assert np.array_equal(placement, before)
        assert not np.array_equal(moved, placement)
        assert problem.allowed[np.arange(problem.num_groups), moved].all()
        placement = moved


def test_every_placement_can_be_reached_by_moves() -> None:
    problem = training_problem(3, 1, seed=0)
    moves = Moves(single_units(problem), np.random.default_rng(0))
    placement = moves.scatter()
    seen = set()
    for _ in range(400):
        placement = moves.propose(placement)
        seen.add(tuple(placement))
    assert len(seen) == 2**3


def test_nothing_moves_where_everything_is_pinned() -> None:
    moves = Moves(single_units(random_problem(4, 1, seed=0, cpu=False)), np.random.default_rng(0))
    assert moves.propose(np.zeros(4, dtype=np.int64)).tolist() == [0] * 4


@pytest.mark.parametrize("wanted", [1, 4, 10, 100])
def test_coarse_units_cover_all_groups_and_keep_the_pinned_apart(wanted: int) -> None:
    problem = training_problem(30, 2, seed=0)
    units = coarse_units(problem, wanted)
    assert len(units.allowed) == min(max(wanted, 2), problem.num_groups)
    placement = Moves(units, np.random.default_rng(0)).scatter()
    groups = units.to_groups(placement)
    assert problem.allowed[np.arange(problem.num_groups), groups].all()
    assert np.array_equal(units.from_groups(groups), placement)
    for order in units.orders:
        assert sorted(order) == list(range(len(units.allowed)))


def test_stages_go_from_coarse_to_fine_and_share_what_is_left() -> None:
    stages = coarse_to_fine(training_problem(40, 2, seed=0), ((4, 0.2), (10, 0.4), (30, 0.1)))
    assert [(len(units.allowed), round(share, 6)) for units, share in stages] == [(4, 0.2), (10, 0.5), (41, 1.0)]


def test_what_does_not_fit_costs_more_than_what_does_and_less_when_less_is_missing() -> None:
    problem = training_problem(12, 2, seed=0, room=0.5)
    search = Search(problem, Budget())
    rng = np.random.default_rng(0)
    placements = np.stack([Moves(single_units(problem), rng).scatter() for _ in range(50)])
    placements[0, 1:], placements[1, 1:] = 1, np.arange(12) % 3
    evaluation = search.evaluate(placements)
    costs_s = search.charged_s(evaluation)
    assert evaluation.feasible.any()
    assert not evaluation.feasible.all()
    assert costs_s[~evaluation.feasible].min() > evaluation.step_time_s.max()
    missing = missing_share(evaluation, problem.cluster.memories)
    order = np.argsort(missing, kind="stable")
    assert (np.diff(costs_s[order][missing[order] > 0]) >= 0).all()


def test_early_abort_changes_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The annealer walks the same way with and without it: only placements that it rejects are aborted."""
    problem = training_problem(25, 3, seed=2, room=0.6)
    place = get_placer("annealing").function
    with_abort = place(problem, budget=Budget(evaluations=1500), rng=np.random.default_rng(1))
    aborted = 0
    evaluate = PlacementProblem.evaluate

    def without(
        self: PlacementProblem, placements: np.ndarray, *, abort_above_s: float | np.ndarray | None = None
    ) -> Evaluation:
        nonlocal aborted
        exact = evaluate(self, placements)
        if abort_above_s is not None:
            aborted += int((exact.step_time_s > abort_above_s).sum())
        return exact

    monkeypatch.setattr(PlacementProblem, "evaluate", without)
    without_abort = place(problem, budget=Budget(evaluations=1500), rng=np.random.default_rng(1))
    assert aborted > 100
    assert np.array_equal(with_abort.placement, without_abort.placement)
