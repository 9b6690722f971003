"""The learned placer: a seq2seq policy trained by REINFORCE on the problem at hand."""

from __future__ import annotations

import time

import numpy as np

from envs.problem import PlacementProblem
from placement.learning.config import PRESETS, LearningConfig, flatten
from placement.learning.screening import MOST_EVALUATIONS, Screening, seconds_until
from placement.learning.stats import UpdateStats
from placement.learning.trainer import Trainer
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Progress, SearchOptions

DEFAULT_TIME_LIMIT_S = 120.0
"""What training takes where the budget sets no limit."""


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Train with the `default` preset, which starts from the heuristic placers, and answer the best placement found."""
    return place_with(problem, budget=budget, rng=rng, config=PRESETS["default"])


def place_paper(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Train as published (Mirhoseini et al., ICML 2017), from nothing."""
    return place_with(problem, budget=budget, rng=rng, config=PRESETS["paper"])


def place_with(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, config: LearningConfig
) -> Placed:
    """Learn with any settings, and answer the best placement found.

    Where few evaluations are allowed, and the preset starts from the heuristics and searches, a model finds what to
    evaluate (`placement.learning.screening`).
    """
    few = budget.evaluations is not None and budget.evaluations <= MOST_EVALUATIONS
    if few and config.warm_start and config.search_moves > 0:
        return _screened(problem, budget=budget, rng=rng, config=config)
    began = time.perf_counter()
    trainer = Trainer(problem, config=config, seed=int(rng.integers(2**31)))
    limited = budget.time_limit_s is not None or budget.evaluations is not None

    def after_update(stats: UpdateStats) -> None:
        if budget.on_progress is not None:
            budget.on_progress(Progress(stats.elapsed_s, stats.evaluations, stats.best_s, stats.mean_s))

    limit_s = budget.time_limit_s if limited else DEFAULT_TIME_LIMIT_S
    trainer.run(
        time_limit_s=None if limit_s is None else max(limit_s - (time.perf_counter() - began), 0.0),
        evaluations=budget.evaluations,
        on_update=after_update,
    )
    if budget.on_progress is not None:  # the last update may have been cut short
        budget.on_progress(Progress(trainer.elapsed_s, trainer.evaluations, trainer.best_s))
    placement = trainer.best_placement
    note = ""
    if placement is None:
        placement = problem.allowed.argmax(axis=1).astype(np.int64)
        note = "the budget was spent before anything was evaluated"
    return Placed(placement, trainer.evaluations, trainer.elapsed_s, flatten(config), note)


def _screened(problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, config: LearningConfig) -> Placed:
    """Let a model find what to evaluate."""
    began = time.perf_counter()

    def after_batch(screening: Screening) -> None:
        if budget.on_progress is not None:
            elapsed_s = time.perf_counter() - began
            budget.on_progress(Progress(elapsed_s, screening.evaluations, screening.best_s))

    screening = Screening(
        problem,
        config=config,
        evaluations=budget.evaluations or 0,
        seed=int(rng.integers(2**31)),
        on_evaluated=after_batch,
        should_stop=seconds_until(budget.time_limit_s),
    )
    screening.run()
    taken_s = time.perf_counter() - began
    placement = screening.best_placement
    if placement is None:
        placement = problem.allowed.argmax(axis=1).astype(np.int64)
        return Placed(placement, 0, taken_s, flatten(config), "the budget was spent before anything was evaluated")
    note = f"found by {screening.modelled:,} steps of a model"
    return Placed(placement, screening.evaluations, taken_s, flatten(config), note)
