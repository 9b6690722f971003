"""What holds for every placer: feasible answers, the same answer for the same seed, never better than the optimum."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.placers.base import Budget, Granularity, Placed, Placer, SearchOptions
from placement.registry import PLACERS, get_placer
from tests.placement.placer_problems import all_placements, cluster, optimum_s, random_problem, training_problem

SPECIAL = (
    {info.name for info in PLACERS.values() if info.only_for}
    | {"expert", "cpu", "single_device", "exact"}
    | ({"scotch"} if shutil.which("scotch_gmap") is None else set())
)
GENERAL = [name for name, info in PLACERS.items() if not info.learns and name not in SPECIAL]
"""Placers that serve any problem and place on any device."""


def place(name: str, problem: PlacementProblem, *, seed: int = 0, evaluations: int = 2000) -> Placed:
    budget = Budget(evaluations=evaluations)
    return get_placer(name).function(problem, budget=budget, rng=np.random.default_rng(seed))


def step_time_s(problem: PlacementProblem, placed: Placed) -> float:
    assert placed.placement.shape == (problem.num_groups,)
    assert placed.placement.dtype == np.int64
    assert problem.allowed[np.arange(problem.num_groups), placed.placement].all()
    return float(problem.evaluate(placed.placement[None]).cost_s()[0])


def test_importing_the_registry_loads_no_torch() -> None:
    code = "import sys, placement.placers; sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", PLACERS)
def test_all_placers_share_one_signature(name: str) -> None:
    shared = [p for p in inspect.signature(Placer.__call__).parameters.values() if p.name != "self"]
    signature = inspect.signature(get_placer(name).function)
    assert list(signature.parameters.values()) == shared
    assert signature.return_annotation == "Placed"


def test_an_unknown_placer_is_named_with_its_nearest_match() -> None:
    with pytest.raises(InputError, match=r"unknown placer 'hefft' \(did you mean 'heft'\?\); known: .*round_robin"):
        get_placer("hefft")


@pytest.mark.parametrize("name", GENERAL)
@settings(max_examples=6)
@given(seed=st.integers(0, 10**6), room=st.sampled_from([None, 0.45, 0.6, 0.8]))
def test_a_placer_finds_what_fits_and_never_beats_the_optimum(name: str, seed: int, room: float | None) -> None:
    problem = training_problem(5, 2, seed=seed, room=room, cpu=seed % 2 == 0)
    best_s = optimum_s(problem)
    found_s = step_time_s(problem, place(name, problem))
    assert found_s >= best_s
    assert np.isfinite(found_s) == np.isfinite(best_s)


@pytest.mark.parametrize("name", GENERAL)
def test_the_same_seed_gives_the_same_answer(name: str) -> None:
    problem = training_problem(9, 2, seed=1, room=0.5)
    first, second = place(name, problem, seed=3), place(name, problem, seed=3)
    assert np.array_equal(first.placement, second.placement)
    assert first.evaluations == second.evaluations


@pytest.mark.parametrize("name", [*GENERAL, "single_device"])
@pytest.mark.parametrize(
    "problem",
    [
        random_problem(1, 1, seed=0, cpu=False),
        random_problem(1, 0, seed=0),
        random_problem(7, 0, seed=0),
        random_problem(3, 63, seed=0),
        training_problem(3, 1, seed=0, schedule="fifo"),
        training_problem(9, 4, seed=0, schedule="program_order"),
    ],
    ids=["one op, one device", "one op, cpu", "cpu only", "64 devices", "fifo", "program order"],
)
def test_odd_problems_are_served(name: str, problem: PlacementProblem) -> None:
    assert np.isfinite(step_time_s(problem, place(name, problem, evaluations=300)))


@pytest.mark.parametrize("name", GENERAL)
def test_a_problem_that_nothing_fits_gets_an_answer_that_says_so(name: str) -> None:
    problem = training_problem(4, 2, seed=0, room=0.05)
    assert not np.isfinite(optimum_s(problem))
    placed = place(name, problem, evaluations=300)
    assert not np.isfinite(step_time_s(problem, placed))
    assert placed.evaluations <= 300


def test_single_device_answers_the_fastest_device_and_says_which() -> None:
    problem = random_problem(6, 2, seed=0)
    placed = place("single_device", problem)
    assert placed.note == "on gpu:0"
    assert set(placed.placement) == {1}
    assert placed.evaluations == 3


def test_single_device_leaves_pinned_groups_where_they_must_be() -> None:
    problem = training_problem(4, 2, seed=0)
    assert not problem.allowed[0, 1:].any()
    assert place("single_device", problem).placement.tolist() == [0, 1, 1, 1, 1]


def test_single_device_says_when_no_device_is_large_enough() -> None:
    placed = place("single_device", training_problem(8, 3, seed=0, room=0.6))
    assert placed.note == "the model fits on no single device"


def test_cpu_refuses_a_cluster_without_one() -> None:
    assert set(place("cpu", random_problem(5, 2, seed=0)).placement) == {0}
    with pytest.raises(InputError, match=r"placer 'cpu' needs a CPU, but cluster 'tiny2' has none"):
        place("cpu", random_problem(5, 2, seed=0, cpu=False))


def test_round_robin_deals_groups_out_in_turn_past_the_pinned_one() -> None:
    assert place("round_robin", training_problem(5, 3, seed=0)).placement.tolist() == [0, 1, 2, 3, 1, 2]


@pytest.mark.parametrize("name", ["heft", "etf"])
def test_list_schedulers_use_independent_branches(name: str) -> None:
    """Two equal chains that share nothing: each on a device of its own takes half of the time of one device."""
    from graphs.colocation.groups import one_group_an_op
    from graphs.computation_graph import OpRecord, TensorRecord, build

    ops = [OpRecord(f"op{i}", "mm", flops=10**9) for i in range(8)]
    graph = build("chains", ops, [TensorRecord(i, 10**8, [i + 2]) for i in range(6)])
    problem = PlacementProblem(graph, one_group_an_op(graph), cluster(2))
    placed = place(name, problem)
    assert sorted({tuple(placed.placement[0::2]), tuple(placed.placement[1::2])}) == [(1,) * 4, (2,) * 4]
    assert step_time_s(problem, placed) == optimum_s(problem)


def test_enumeration_respects_the_pinned_input() -> None:
    problem = training_problem(3, 2, seed=0)
    assert len(all_placements(problem)) == 3**3


SEARCHES = [name for name, info in PLACERS.items() if info.searches and not info.learns and not info.exact]


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_search_reaches_the_optimum_of_small_problems(name: str) -> None:
    """In at least 95% of 200 problems, with half of the evaluations that trying everything takes."""
    reached = 0
    for seed in range(200):
        problem = training_problem(8, 2, seed=seed, room=(None, 0.5, 0.7)[seed % 3])
        best_s = optimum_s(problem)
        found_s = step_time_s(problem, place(name, problem, seed=seed, evaluations=3**8 // 2))
        assert found_s >= best_s
        reached += found_s == best_s
    assert reached >= 190


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_stops_in_time_and_keeps_to_its_evaluations(name: str) -> None:
    problem = training_problem(20, 3, seed=0)
    limit_s = 0.4
    budget = Budget(time_limit_s=limit_s)
    placed = get_placer(name).function(problem, budget=budget, rng=np.random.default_rng(0))
    assert limit_s <= placed.search_s < limit_s + 0.6
    assert place(name, problem, evaluations=123).evaluations == 123


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_no_worse_than_where_it_starts(name: str) -> None:
    problem = training_problem(40, 3, seed=5)
    heuristics_s = min(step_time_s(problem, place(start, problem)) for start in ("single_device", "contiguous", "heft"))
    assert step_time_s(problem, place(name, problem, evaluations=3000)) < heuristics_s


def alike_then_apart() -> PlacementProblem:
    """One group of two independent equal products, on two GPUs: whole, the group takes twice as long as apart."""
    from graphs.colocation.groups import make_groups
    from graphs.computation_graph import OpRecord, build

    graph = build("pair", [OpRecord(f"op{i}", "mm", flops=10**9) for i in range(2)], [])
    groups = make_groups(np.zeros(2, dtype=np.int64), ["both"], ["both"], [0])
    return PlacementProblem(graph, groups, cluster(2, cpu=False))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_over_single_ops_divides_a_group(name: str) -> None:
    problem = alike_then_apart()
    search = get_placer(name).function
    budget, rng = Budget(evaluations=200), np.random.default_rng(0)
    whole_s = step_time_s(problem, search(problem, budget=budget, rng=rng))
    placed = search(problem, budget=budget, rng=rng, options=SearchOptions(granularity="op"))
    assert sorted(placed.placement) == [0, 1]
    assert problem.evaluate_ops(placed.placement[None]).step_time_s[0] == pytest.approx(whole_s / 2)
    assert placed.note.startswith("over single ops, from ")
    assert placed.evaluations == 200


@pytest.mark.parametrize("name", SEARCHES)
def test_single_ops_keep_to_the_hard_constraints_and_to_what_is_allowed(name: str) -> None:
    from graphs.colocation.groups import one_group_an_op
    from graphs.computation_graph import OpRecord, TensorRecord, build

    ops = [OpRecord("x", "input", output_shapes=((8,),)), *(OpRecord(f"op{i}", "mm", flops=10**9) for i in range(6))]
    graph = build("bound", ops, [TensorRecord(0, 8, [1])], [[2, 5], [1, 6]])
    problem = PlacementProblem(graph, one_group_an_op(graph), cluster(3))
    options = SearchOptions(granularity="op", start="scratch")
    budget = Budget(evaluations=400)
    placed = get_placer(name).function(problem, budget=budget, rng=np.random.default_rng(0), options=options)
    where = dict(zip(graph.op_names, placed.placement.tolist(), strict=True))
    assert where["x"] == 0
    assert where["op1"] == where["op4"]
    assert where["op0"] == where["op5"]
    # Two ops a GPU: the best there is, since two pairs are bound and the CPU is ten times slower.
    assert sorted(placed.placement[1:].tolist()) == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("granularity", ["group", "op"])
def test_a_search_from_scratch_asks_no_heuristic(
    name: str, granularity: Granularity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("placement.placers.searching.starts.HEURISTICS", ("no such placer",))
    problem = training_problem(12, 2, seed=0, room=0.6)
    options = SearchOptions(granularity, "scratch")
    answers = [
        get_placer(name).function(
            problem, budget=Budget(evaluations=300), rng=np.random.default_rng(4), options=options
        )
        for _ in range(2)
    ]
    assert "from a random placement" in answers[0].note
    assert np.array_equal(answers[0].placement, answers[1].placement)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown granularity 'ops' \(did you mean 'op'\?\)"):
        SearchOptions(granularity="ops")  # type: ignore[arg-type]


def test_annealing_begins_anew_where_the_budget_is_large() -> None:
    problem = training_problem(6, 2, seed=0)
    assert place("annealing", problem, evaluations=6000).note.endswith(" rounds")
    assert place("annealing", problem, evaluations=300).note.endswith(", 1 round")
