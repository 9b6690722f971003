"""Where cuts are expensive and memory forces a split, the learned placer is not behind annealing of single ops."""

from __future__ import annotations

import numpy as np
import pytest

from envs.problem import PlacementProblem
from placement.learning.config import PRESETS
from placement.learning.placer import place, place_with
from placement.placers import annealing
from placement.placers.base import Budget, SearchOptions
from tests.placement.placer_problems import expensive_cuts
from tests.placement.problems import with_settings


def annealed_s(problem: PlacementProblem, budget: Budget, seed: int) -> float:
    """Step time after annealing of single ops."""
    options = SearchOptions(granularity="op")
    found = annealing.place(problem, budget=budget, rng=np.random.default_rng(seed), options=options)
    return float(problem.evaluate_one(found.placement).cost_s()[0])


@pytest.mark.parametrize(("ops", "gpus", "seed", "cpu"), [(40, 4, 1, True), (40, 4, 2, False), (60, 3, 3, True)])
def test_it_is_not_behind_annealing_of_ops(ops: int, gpus: int, seed: int, cpu: bool) -> None:
    """In so many evaluations as each makes in some seconds."""
    problem = expensive_cuts(ops, gpus, seed=seed, room=1.2, cpu=cpu)
    config = with_settings(PRESETS["default"], hidden_size=16, embedding_size=4, samples=8)
    learned = place_with(problem, budget=Budget(evaluations=30_000), rng=np.random.default_rng(seed), config=config)
    evaluation = problem.evaluate_one(learned.placement)
    assert evaluation.feasible[0]
    assert evaluation.step_time_s[0] <= 1.005 * annealed_s(problem, Budget(evaluations=2_000), seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ops", "gpus", "graph", "room", "cpu"),
    [(80, 6, 0, 1.3, True), (60, 4, 1, 1.15, True), (100, 5, 2, 1.3, False), (120, 3, 3, 1.1, True)],
)
def test_in_15_s_it_is_not_behind_annealing_of_ops(
    ops: int, gpus: int, graph: int, room: float, cpu: bool, seed: int
) -> None:
    problem = expensive_cuts(ops, gpus, seed=graph, room=room, cpu=cpu)
    budget = Budget(time_limit_s=15.0)
    learned = place(problem, budget=budget, rng=np.random.default_rng(seed))
    evaluation = problem.evaluate_one(learned.placement)
    assert evaluation.feasible[0]
    assert evaluation.step_time_s[0] <= 1.005 * annealed_s(problem, budget, seed)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", range(24))
def test_on_drawn_graphs_it_is_not_behind_annealing_of_ops(drawn: int) -> None:
    """By numbers of evaluations, in the ratio of what either makes in a second on a quiet machine."""
    draw = np.random.default_rng(drawn)
    gpus = int(draw.integers(2, 7))
    problem = expensive_cuts(
        int(draw.integers(8, 26)) * gpus,
        gpus,
        seed=drawn,
        room=float(draw.uniform(1.1, 1.6)),
        cpu=bool(draw.random() < 0.75),
        schedule=str(draw.choice(["priority", "fifo", "program_order"])),
    )
    annealed = annealed_s(problem, Budget(evaluations=8_000), drawn)
    learned = place(problem, budget=Budget(evaluations=120_000), rng=np.random.default_rng(drawn))
    evaluation = problem.evaluate_one(learned.placement)
    assert evaluation.feasible[0] or not np.isfinite(annealed)
    assert evaluation.cost_s()[0] <= 1.005 * annealed
