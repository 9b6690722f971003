"""The search around the best placements: moves are valid, guided, repeatable, and lead to the optimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.problem import PlacementProblem
from placement import neighbourhood
from placement.neighbourhood import NeighbourhoodSearch
from tests.placement.problems import branches, optimum_s

TEMPERATURES = (0.01, 0.1)


def search_of(
    problem: PlacementProblem, *, seed: int = 0, critical_share: float = 0.5, policy_share: float = 0.0
) -> NeighbourhoodSearch:
    search = NeighbourhoodSearch(
        problem,
        temperatures=TEMPERATURES,
        critical_share=critical_share,
        policy_share=policy_share,
        rng=np.random.default_rng(seed),
    )
    search.start(np.zeros(problem.num_groups, dtype=np.int64))
    return search


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_optimum_of_a_tiny_problem(seed: int) -> None:
    problem = branches(2, 4, seed=1)
    search = search_of(problem, seed=seed)
    found = search.run(1500, None)
    assert found.evaluations == 1500
    assert found.evaluation.step_time_s.min() == optimum_s(problem)
    again = problem.evaluate(found.placements)
    assert again.step_time_s.tolist() == found.evaluation.step_time_s.tolist()
    assert (np.diff(found.evaluation.step_time_s) < 0).all(), "each is better than all before it"


def test_a_number_of_evaluations_that_the_chains_do_not_divide_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = branches(3, 3)
    counted: list[int] = []
    evaluate = PlacementProblem.evaluate

    def counting(self: PlacementProblem, placements: np.ndarray, **kwargs: int) -> object:
        counted.append(len(placements))
        return evaluate(self, placements, **kwargs)

    search = search_of(problem)
    monkeypatch.setattr(PlacementProblem, "evaluate", counting)
    assert search.run(7, None).evaluations == 7
    assert counted == [2, 2, 2, 1]


def test_it_goes_on_from_a_state_as_if_never_stopped() -> None:
    problem = branches(3, 4, seed=3)
    whole, first = search_of(problem, seed=4), search_of(problem, seed=4)
    whole.run(100, None)
    first.run(100, None)
    second = search_of(problem, seed=99)
    second.restore(first.state())
    a, b = whole.run(100, None), second.run(100, None)
    assert a.placements.tolist() == b.placements.tolist()
    assert whole.placements.tolist() == second.placements.tolist()


def test_moves_go_where_the_policy_would_rather_have_another_device() -> None:
    """The policy is sure of all groups but one, which it would put on device 1."""
    problem = branches(4, 3)
    probability = np.zeros((2, problem.num_groups, 2), dtype=np.float32)
    probability[:, :, 0] = 1.0
    probability[:, 5] = (0.0, 1.0)
    search = search_of(problem, critical_share=0.0, policy_share=1.0)
    before = search.placements.copy()
    seen = set()
    for _ in range(20):
        search.restore({**search.state(), "placements": before})
        search.run(2, probability)
        seen |= {tuple(np.flatnonzero(row)) for row in search.placements if row.any()}
    assert seen
    assert all(5 in moved for moved in seen)


def test_moves_follow_the_critical_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two branches on a device each, the first a hundred times as long: only its groups are worth moving."""
    monkeypatch.setattr(neighbourhood, "LONGEST_RUN", 1)
    problem = branches(2, 3, seed=2)  # groups: root, the first branch, the second, sink
    flops = np.array(problem.graph.flops)
    flops[1:4] *= 100
    problem = replace(problem, graph=replace(problem.graph, flops=flops))
    placement = np.array([0, 0, 0, 0, 1, 1, 1, 0])
    seen = set()
    for seed in range(40):
        search = search_of(problem, seed=seed, critical_share=1.0)
        search.start(placement)
        search.restore({**search.state(), "cost_s": np.full(2, 1e9)})  # accept everything
        search.run(2, None)
        for row in search.placements:
            moved = np.flatnonzero(row != placement)
            if len(moved) == 1:
                seen.add(int(moved[0]))
    assert seen == {1, 2, 3}, "the second branch, the root and the sink take no time that counts"


def test_groups_stay_where_they_may_be() -> None:
    problem = branches(3, 3)
    kinds = np.array(problem.graph.allowed_kinds)
    kinds[:] = 2  # gpu alone
    kinds[4] = 1  # cpu alone
    devices = list(problem.cluster.devices)
    devices[1] = replace(devices[1], spec=replace(devices[1].spec, kind="cpu"))
    problem = replace(
        problem,
        graph=replace(problem.graph, allowed_kinds=kinds),
        cluster=replace(problem.cluster, devices=tuple(devices)),
    )
    search = search_of(problem)
    search.start(problem.allowed.argmax(axis=1))
    found = search.run(200, None)
    assert (search.placements == problem.allowed.argmax(axis=1)).all()
    assert found.evaluation.feasible.all()


def test_the_hottest_chain_takes_a_better_offer_and_no_worse_one() -> None:
    problem = branches(2, 4, seed=1)
    search = search_of(problem)
    other = np.ones(problem.num_groups, dtype=np.int64)
    search.offer(other, 1e9)
    assert (search.placements == 0).all()
    search.offer(other, 1e-9)
    assert search.placements.tolist() == [[0] * problem.num_groups, [1] * problem.num_groups]
