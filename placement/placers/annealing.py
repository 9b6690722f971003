"""Simulated annealing over placements, coarse first and then fine.

Kirkpatrick, Gelatt and Vecchi, "Optimization by simulated annealing", Science 220, 1983,
doi:10.1126/science.220.4598.671.
Several moves are drawn from the same placement and evaluated together on all cores; the first that is accepted counts,
those behind it are dropped (speculative moves, Witte, Chamberlain and Franklin, IEEE TPDS 2(4), 1991,
doi:10.1109/71.97904): the chain of accepted placements is one that a single core could have walked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from placement.placers.base import Budget, Placed, Search
from placement.placers.moves import Moves, Units, merged_steps
from placement.placers.starts import start_of, try_heuristics


@dataclass(frozen=True)
class AnnealingConfig:
    """Settings of the annealer.

    Attributes:
        hot: First temperature, as a share of the best step time.
        cold: Last temperature, as a share of the best step time; between them the temperature falls geometrically.
        stages: ``(time steps merged, share of the budget)``, coarse to fine.
        largest_batch: Most moves that are evaluated together.
        seeded: Whether the quick heuristics' best is the start; otherwise a random placement is.
        default_evaluations: Evaluations where the budget limits neither time nor evaluations.
    """

    hot: float = 0.03
    cold: float = 1e-4
    stages: tuple[tuple[int, float], ...] = ((8, 0.25), (3, 0.25), (1, 0.5))
    largest_batch: int = 16
    seeded: bool = True
    default_evaluations: int = 20_000


def place(problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator) -> Placed:
    """Anneal from the quick heuristics' best until the budget is spent."""
    return anneal(problem, budget=budget, rng=rng, config=AnnealingConfig())


def anneal(problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, config: AnnealingConfig) -> Placed:
    """As `place`, with any settings."""
    if budget.time_limit_s is None and budget.evaluations is None:
        budget = Budget(evaluations=config.default_evaluations)
    search = Search(problem, budget)
    note = "from a random placement"
    if config.seeded:
        note = f"from {try_heuristics(search, rng)}"
    else:
        search.evaluate(Moves(merged_steps(problem, 1), rng).scatter()[None])
    current = start_of(search)
    stages = _distinct(problem, config.stages)
    begin, total = search.spent_share, sum(share for _, share in stages)
    for units, share in stages:
        end = min(begin + (1.0 - search.spent_share) * share / total, 1.0)
        _stage(search, units, current, rng, config, (search.spent_share, end))
        begin, total = end, total - share
        current = start_of(search)
    return search.placed(config=asdict(config), note=note)


def _distinct(problem: PlacementProblem, stages: tuple[tuple[int, float], ...]) -> list[tuple[Units, float]]:
    """The stages' units, without those where merging more steps than the next stage changes nothing."""
    found = [(merged_steps(problem, steps), share) for steps, share in stages]
    sizes = [len(units.allowed) for units, _ in found] + [-1]
    return [stage for stage, size, following in zip(found, sizes, sizes[1:], strict=False) if size != following]


def _stage(
    search: Search,
    units: Units,
    start: NDArray[np.int64],
    rng: np.random.Generator,
    config: AnnealingConfig,
    window: tuple[float, float],
) -> None:
    """Cool from hot to cold while the spent share of the budget goes through a window."""
    moves = Moves(units, rng)
    placement = units.from_groups(start)
    evaluation = search.evaluate(units.to_groups(placement)[None])
    if len(evaluation.feasible) == 0 or len(units.movable) == 0:
        return
    cost_s = float(search.penalised_s(evaluation)[0])
    accepted_share = 0.5
    begin, end = window
    while (spent := search.spent_share) < end:
        progress = (spent - begin) / (end - begin)
        scale_s = min(search.best_s, cost_s)
        temperature_s = scale_s * config.hot * (config.cold / config.hot) ** progress
        # As many as it takes, on average, until one is accepted: more would be dropped.
        size = int(np.clip(1.0 / accepted_share, 2, config.largest_batch))
        batch = np.stack([moves.propose(placement) for _ in range(size)])
        # Metropolis' rule with its random number drawn first: accept below this cost.
        limits_s = cost_s + temperature_s * rng.exponential(size=size)
        costs_s = search.penalised_s(search.evaluate(units.to_groups(batch)))
        accepted = np.flatnonzero(costs_s <= limits_s[: len(costs_s)])
        looked_at = int(accepted[0]) + 1 if len(accepted) else len(costs_s)
        accepted_share += (bool(len(accepted)) - accepted_share * looked_at) * 0.02
        accepted_share = max(accepted_share, 1e-3)
        if len(accepted):
            placement, cost_s = batch[accepted[0]], float(costs_s[accepted[0]])
