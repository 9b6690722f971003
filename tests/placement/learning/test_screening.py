"""Screening: the budget is kept to, runs repeat, the model is not the evaluator, and learning it helps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.evaluators import Evaluation, Simulated
from envs.measured.machine import parse_devices
from envs.measured.problem import MeasuredProblem, Measurer
from envs.measured.process import MeasuringProcess
from envs.problem import PlacementProblem
from envs.simulator.input import SimulatorInput
from graphs.colocation.groups import one_group_an_op
from placement.api import make_problem
from placement.learning.config import PRESETS
from placement.learning.placer import place, place_with
from placement.learning.screening import Screening, model_of, perturbed
from placement.placers.base import Budget, Progress
from tests.placement.problems import branches, optimum_s


@dataclass(frozen=True, eq=False)
class _Counting(Simulated):
    """A simulator that counts the placements that it is asked to evaluate."""

    asked: list[int] = field(default_factory=list)

    def evaluate(self, given: SimulatorInput, ops: NDArray[np.int32], *args: Any, **options: Any) -> Evaluation:
        self.asked.append(len(ops))
        return super().evaluate(given, ops, *args, **options)


def _counting(problem: PlacementProblem) -> tuple[PlacementProblem, list[int]]:
    """The problem, counted, and the counts."""
    evaluator = _Counting()
    return replace(problem, evaluator=evaluator), evaluator.asked


@pytest.mark.parametrize("evaluations", [1, 3, 40])
@pytest.mark.parametrize("preset", ["default", "uniform"])
def test_no_more_is_evaluated_than_the_budget_allows(evaluations: int, preset: str) -> None:
    problem, asked = _counting(branches(6, 8))
    placed = place_with(
        problem, budget=Budget(evaluations=evaluations), rng=np.random.default_rng(0), config=PRESETS[preset]
    )
    assert sum(asked) == placed.evaluations == evaluations


def test_a_budget_of_nothing_evaluates_nothing() -> None:
    problem, asked = _counting(branches(2, 2))
    placed = place(problem, budget=Budget(evaluations=0), rng=np.random.default_rng(0))
    assert placed.evaluations == sum(asked) == 0
    assert "budget" in placed.note


def test_the_same_seed_and_budget_are_the_same_run() -> None:
    problem = branches(6, 8)
    first, second = (place(problem, budget=Budget(evaluations=60), rng=np.random.default_rng(5)) for _ in range(2))
    assert first.placement.tobytes() == second.placement.tobytes()
    assert first.note == second.note


def test_the_model_is_off_by_up_to_its_share_and_never_the_evaluator() -> None:
    problem = branches(4, 5)
    model = perturbed(problem, 0.2, np.random.default_rng(1))
    busy = problem.op_time_s > 0
    ratio = model.op_time_s[busy] / problem.op_time_s[busy]
    assert 0.8 <= ratio.min() < 0.85
    assert 1.15 < ratio.max() <= 1.2
    assert (model.op_time_s[~busy] == 0).all()
    # An op's error is another one on each kind of device.
    assert not np.allclose(model.op_time_s[0] / problem.op_time_s[0], model.op_time_s[1] / problem.op_time_s[1])
    placement = np.zeros((1, problem.num_groups), dtype=np.int64)
    assert model.evaluate(placement).step_time_s[0] != problem.evaluate(placement).step_time_s[0]


def test_the_model_of_a_measured_problem_is_the_simulator() -> None:
    problem = branches(4, 5)
    process = MeasuringProcess("never:started", problem.graph.sha256, parse_devices("cpu:0"), np.zeros(0))
    about = (problem.graph, problem.groups, problem.cluster, problem.schedule)
    measured = MeasuredProblem(*about, evaluator=Measurer(process))
    model = model_of(measured, 0.2, np.random.default_rng(1))
    placement = np.zeros((1, problem.num_groups), dtype=np.int64)
    assert model.evaluate(placement).step_time_s[0] == problem.evaluate(placement).step_time_s[0]


def test_a_model_keeps_its_op_times_under_other_groups_and_schedules() -> None:
    problem = branches(4, 5)
    model = perturbed(problem, 0.2, np.random.default_rng(1))
    placement = np.zeros((1, problem.num_groups), dtype=np.int64)
    by_op = model.with_groups(one_group_an_op(problem.graph)).evaluate(problem.groups.to_ops(placement))
    assert by_op.step_time_s[0] == model.evaluate(placement).step_time_s[0]
    fifo = perturbed(problem.with_schedule("fifo"), 0.2, np.random.default_rng(1))
    assert model.with_schedule("fifo").simulator_input.schedule == "fifo"
    assert np.array_equal(model.with_schedule("fifo").op_time_s, fifo.op_time_s)
    assert not np.array_equal(model.simulated.op_time_s, model.op_time_s)


def test_bounds_of_the_model_are_its_own() -> None:
    problem = make_problem("dlrm", "mixed")
    model = perturbed(problem, 0.2, np.random.default_rng(1))
    placement = problem.allowed.argmax(axis=1)[None]
    exact_s = float(model.evaluate(placement).step_time_s[0])
    # Just above its own step time, nothing may be aborted, though the runtime's priorities are in other seconds.
    assert model.evaluate(placement, abort_above_s=exact_s * (1 + 1e-9)).step_time_s[0] == exact_s
    order = np.argsort(-problem.simulator_input.remaining_path_s, kind="stable")
    assert (np.diff(model.simulator_input.remaining_path_s[order]) <= 0).all()


def test_what_one_round_learned_the_next_one_knows() -> None:
    screening = Screening(branches(6, 8), config=PRESETS["default"], evaluations=40, seed=0)
    fresh = screening._search(0).weights
    screening.run()
    assert screening._search(1).weights != fresh
    uniform = Screening(branches(6, 8), config=PRESETS["uniform"], evaluations=40, seed=0)
    uniform.run()
    assert uniform._search(1).weights == fresh


def test_a_small_problem_is_solved_nearly_in_few_evaluations() -> None:
    problem = branches(3, 4)
    placed = place(problem, budget=Budget(evaluations=60), rng=np.random.default_rng(0))
    assert problem.evaluate_one(placed.placement).step_time_s[0] <= 1.02 * optimum_s(problem)


def test_what_it_finds_fits_where_memory_is_short() -> None:
    problem = make_problem("transformer_lm:batch=24,layers=4", "k80x4:memory_bytes=3e9")
    one = problem.evaluate(np.full((1, problem.num_groups), problem.num_devices - 1))
    assert not one.feasible[0]
    placed = place(problem, budget=Budget(evaluations=40), rng=np.random.default_rng(0))
    assert problem.evaluate_one(placed.placement).feasible[0]


def test_progress_is_told_and_only_gets_better() -> None:
    seen: list[Progress] = []
    place(branches(6, 8), budget=Budget(evaluations=50, on_progress=seen.append), rng=np.random.default_rng(0))
    assert seen[-1].evaluations == 50
    assert all(a.best_s >= b.best_s for a, b in itertools.pairwise(seen))


def test_a_time_limit_ends_it_between_rounds() -> None:
    asked = iter([False, True])
    screening = Screening(
        branches(6, 8),
        config=PRESETS["default"],
        evaluations=100,
        seed=0,
        should_stop=lambda: next(asked, True),
    )
    screening.run()
    assert 0 < screening.evaluations < 100
