"""The learned placer: a seq2seq policy trained by REINFORCE on the problem at hand."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from envs.problem import PlacementProblem
from placement.placers.base import Budget, Placed
from placement.reinforce import PRESETS, ReinforceConfig
from placement.trainer import Trainer

DEFAULT_TIME_LIMIT_S = 120.0
"""What training takes where the budget sets no limit."""


def place(problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator) -> Placed:
    """Train with the `default` preset, which starts from the heuristic placers, and answer the best placement found."""
    return _train(problem, budget, rng, PRESETS["default"])


def place_paper(problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator) -> Placed:
    """Train as published (Mirhoseini et al., ICML 2017), from nothing."""
    return _train(problem, budget, rng, PRESETS["paper"])


def _train(problem: PlacementProblem, budget: Budget, rng: np.random.Generator, config: ReinforceConfig) -> Placed:
    trainer = Trainer(problem, config=config, seed=int(rng.integers(2**31)))
    limited = budget.time_limit_s is not None or budget.evaluations is not None
    trainer.run(time_limit_s=budget.time_limit_s if limited else DEFAULT_TIME_LIMIT_S, evaluations=budget.evaluations)
    placement = trainer.best_placement
    note = ""
    if placement is None:
        placement = problem.allowed.argmax(axis=1).astype(np.int64)
        note = "the budget was spent before anything was evaluated"
    return Placed(placement, trainer.evaluations, trainer.elapsed_s, asdict(config), note)
