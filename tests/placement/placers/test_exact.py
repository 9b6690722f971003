"""CP-SAT, brute force and the simulator agree on what the optimum is; where their rules differ, the bound says so."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest

from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.errors import InputError
from placement.placers.base import Budget, Placed
from placement.registry import get_placer
from tests.placement.placer_problems import cluster, optimum_s, random_problem, training_problem

needs_ortools = pytest.mark.skipif(importlib.util.find_spec("ortools") is None, reason="OR-tools is not installed")


def place(problem: PlacementProblem, *, time_limit_s: float = 60.0) -> Placed:
    return get_placer("exact").function(problem, budget=Budget(time_limit_s), rng=np.random.default_rng(0))


def step_time_s(problem: PlacementProblem, placed: Placed) -> float:
    return float(problem.evaluate(placed.placement[None]).cost_s()[0])


@needs_ortools
@pytest.mark.parametrize("schedule", ["priority", "fifo"])
@pytest.mark.parametrize(("seed", "room"), [(0, None), (1, 0.5), (2, None), (4, 0.6)])
def test_the_answer_is_the_optimum_and_proven(schedule: str, seed: int, room: float | None) -> None:
    problem = training_problem(5, 2, seed=seed, room=room, schedule=schedule)
    assert np.isfinite(optimum_s(problem))
    placed = place(problem)
    assert placed.note == "optimal: proven"
    assert step_time_s(problem, placed) == optimum_s(problem)


@needs_ortools
@pytest.mark.parametrize("seed", range(3))
def test_the_models_optimum_is_never_above_the_simulators(seed: int) -> None:
    from placement.placers.exact_model import ExactModel

    problem = training_problem(4, 2, seed=seed)
    solved = ExactModel(problem, horizon_s=1.0).solve(below_s=math.inf, time_limit_s=30.0, seed=0)
    assert 0.5 * optimum_s(problem) < solved.bound_s <= optimum_s(problem)


@needs_ortools
def test_where_the_schedule_is_not_the_best_the_model_is_below_the_simulator() -> None:
    """In program order the GPU waits for an op that waits for the CPU, though it could do the next op meanwhile."""
    from placement.placers.exact_model import ExactModel

    ops = [
        OpRecord("slow", "mm", flops=10**9, allowed_kinds=["cpu"]),
        OpRecord("waits", "mm", flops=10**9, allowed_kinds=["gpu"]),
        OpRecord("free", "mm", flops=10**10, allowed_kinds=["gpu"]),
    ]
    graph = build("waits", ops, [TensorRecord(0, 1000, [1])])
    problem = PlacementProblem(graph, one_group_an_op(graph), cluster(1), "program_order")
    solved = ExactModel(problem, horizon_s=1.0).solve(below_s=math.inf, time_limit_s=30.0, seed=0)
    one_after_another_s = problem.op_time_s[0, 0] + problem.op_time_s[1, 1] + problem.op_time_s[1, 2]
    assert step_time_s(problem, place(problem)) > one_after_another_s
    assert solved.bound_s < 0.6 * one_after_another_s
    # It still proves the simulator's optimum, by excluding what was simulated until nothing is left.
    assert place(problem).note == "optimal: proven"


@needs_ortools
def test_it_proves_that_nothing_fits() -> None:
    placed = place(training_problem(4, 2, seed=0, room=0.05))
    assert placed.note == "no placement fits: proven"


@needs_ortools
def test_a_small_budget_gives_a_bound() -> None:
    problem = training_problem(60, 4, seed=0)
    placed = place(problem, time_limit_s=1.5)
    assert placed.note.startswith("not proven optimal: no placement is faster than ")
    bound_s = float(placed.note.split()[-2])
    assert 0.0 <= bound_s <= step_time_s(problem, placed)


@needs_ortools
def test_a_large_problem_is_refused() -> None:
    with pytest.raises(InputError, match=r"serves at most 2,000 pairs of an op and a device, but .* has 3,000"):
        place(random_problem(1000, 2, seed=0))


def test_absence_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs OR-tools, .* pip install 'device-placement\[exact\]'"):
        place(random_problem(3, 1, seed=0))
