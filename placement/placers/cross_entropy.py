"""The cross-entropy method: an independent categorical distribution for each group, moved towards the best samples.

Rubinstein, "The cross-entropy method for combinatorial and continuous optimization", Methodology and Computing in
Applied Probability 1, 1999, doi:10.1023/A:1010091220143; used for device placement by Gao, Chen and Li (Post), NeurIPS
2018.

Deviations: the distribution starts around the quick heuristics' best, coarse units first and then fine; when it has
collapsed it is opened again around the best.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.searching.moves import STAGES, Units
from placement.placers.searching.starts import StartedSearch, start_of

SAMPLES = 64
ELITE = 8
STEP = 0.3
"""How far the distribution moves towards the elite's frequencies each time."""

OPENNESS = (0.1, 0.3, 0.7)
"""Probability that a group leaves the start's device when the distribution is opened, in turn."""

COLLAPSED = 0.5
"""Expected number of groups that leave their likeliest device, below which the distribution has collapsed."""

DEFAULT_EVALUATIONS = 20_000


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Sample, keep the elite, move the distribution; until the budget is spent."""
    if budget.time_limit_s is None and budget.evaluations is None:
        budget = Budget(evaluations=DEFAULT_EVALUATIONS)
    started = StartedSearch(problem, budget, rng, options, STAGES)
    search = started.search
    for units, share in started.stages:
        begin = search.spent_share
        _sharpen(search, units, rng, until=begin + (1.0 - begin) * share)
    return started.placed({"samples": SAMPLES, "elite": ELITE, "step": STEP})


def _sharpen(search: Search, units: Units, rng: np.random.Generator, *, until: float) -> None:
    """Iterate until a share of the budget is spent."""
    opened = 0
    probability = _around(units, units.from_groups(start_of(search)), OPENNESS[0])
    elite = np.zeros((0, len(units.allowed)), dtype=np.int64)
    elite_s = np.zeros(0)
    while not search.spent and search.spent_share < until and len(units.movable):
        samples = _draw(probability, rng)
        worst_s = float(elite_s.max()) if len(elite_s) == ELITE else None
        costs_s = search.charged_s(search.evaluate(units.to_groups(samples), abort_above_s=worst_s))
        # The elite of all iterations since the opening, not of this one alone: a good sample is not forgotten.
        pool, pool_s = np.concatenate([elite, samples[: len(costs_s)]]), np.concatenate([elite_s, costs_s])
        best = np.argsort(pool_s, kind="stable")[:ELITE]
        elite, elite_s = pool[best], pool_s[best]
        frequency = np.stack([(elite == device).mean(axis=0) for device in range(probability.shape[1])], axis=1)
        probability += STEP * (frequency - probability)
        if (1.0 - probability.max(axis=1)).sum() < COLLAPSED:
            opened += 1
            probability = _around(units, units.from_groups(start_of(search)), OPENNESS[opened % len(OPENNESS)])
            elite, elite_s = elite[:0], elite_s[:0]


def _around(units: Units, placement: NDArray[np.int64], openness: float) -> NDArray[np.float64]:
    """``float64[U, D]``: mostly a placement, and with a little probability any other allowed device."""
    others = units.allowed.copy()
    others[np.arange(len(placement)), placement] = False
    count = others.sum(axis=1, keepdims=True)
    probability = np.where(others, openness / np.maximum(count, 1), 0.0)
    probability[np.arange(len(placement)), placement] = 1.0 - probability.sum(axis=1)
    return probability


def _draw(probability: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """``int64[SAMPLES, U]``."""
    # The largest of log probabilities plus Gumbel noise is a draw that no rounding sends to a device of probability 0.
    logs = np.where(probability > 0.0, np.log(np.maximum(probability, 1e-300)), -np.inf)
    return (logs + rng.gumbel(size=(SAMPLES, *probability.shape))).argmax(axis=2)
