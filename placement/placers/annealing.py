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

from envs.problem import PlacementProblem
from placement.placers.base import Budget, Placed, Search
from placement.placers.moves import Moves, Units, coarse_to_fine, single_units
from placement.placers.starts import start_of, try_heuristics


@dataclass(frozen=True)
class AnnealingConfig:
    """Settings of the annealer.

    Attributes:
        stages: ``(wanted units, share of the budget)`` of the coarse stages; single groups take the rest.
        hot: First temperatures of the cycles in turn, in units of the best step time over the number of movable units:
            about what one unit adds to the step. A cycle starts from the best so far; the coarse stages have one cycle
            each, at the first of these temperatures.
        cold: Last temperature of every cycle, in the same unit; in a cycle the temperature falls geometrically.
        cycle_moves: Moves an unit that one cycle takes, about; the last stage has as many cycles as the budget allows.
        largest_batch: Most moves that are evaluated together.
        batch_acceptances: How many acceptances are expected among the moves that are evaluated together.
        seeded: Whether the quick heuristics' best is the start; otherwise a random placement is.
        default_evaluations: Evaluations where the budget limits neither time nor evaluations.
    """

    stages: tuple[tuple[int, float], ...] = ((32, 0.3),)
    hot: tuple[float, ...] = (0.3, 1.2, 5.0)
    cold: float = 0.025
    cycle_moves: int = 100
    largest_batch: int = 16
    batch_acceptances: float = 0.4
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
        search.evaluate(Moves(single_units(problem), rng).scatter()[None])
    for units, share in coarse_to_fine(problem, config.stages):
        begin = search.spent_share
        if share < 1.0:
            _cycle(search, units, rng, config, config.hot[0], until=begin + (1.0 - begin) * share)
            continue
        cycle = 0
        while not search.spent and len(units.movable):
            begin = search.spent_share
            cycles_left = max(round(search.evaluations_left / (config.cycle_moves * len(units.movable))), 1)
            hot = config.hot[cycle % len(config.hot)]
            _cycle(search, units, rng, config, hot, until=begin + (1.0 - begin) / cycles_left)
            cycle += 1
    return search.placed(config=asdict(config), note=note)


def _cycle(
    search: Search,
    units: Units,
    rng: np.random.Generator,
    config: AnnealingConfig,
    hot: float,
    *,
    until: float,
) -> None:
    """Cool from the best so far while the budget's spent share rises to `until`."""
    moves = Moves(units, rng)
    placement = units.from_groups(start_of(search))
    evaluation = search.evaluate(units.to_groups(placement)[None])
    if len(evaluation.feasible) == 0 or len(units.movable) == 0:
        return
    cost_s = float(search.penalised_s(evaluation)[0])
    accepted_share = 0.5
    begin = search.spent_share
    while (spent := search.spent_share) < until:
        cooled = (spent - begin) / (until - begin)
        temperature_s = min(search.best_s, cost_s) / len(units.movable) * hot * (config.cold / hot) ** cooled
        # So few that most are looked at: those behind the first that is accepted are lost.
        size = int(np.clip(config.batch_acceptances / accepted_share, 2, config.largest_batch))
        batch = np.stack([moves.propose(placement) for _ in range(size)])
        # Metropolis' rule with its random number drawn first: accept up to this cost; what is proven slower is aborted.
        limits_s = cost_s + temperature_s * rng.exponential(size=size)
        costs_s = search.penalised_s(search.evaluate(units.to_groups(batch), abort_above_s=limits_s))
        accepted = np.flatnonzero(costs_s <= limits_s[: len(costs_s)])
        looked_at = int(accepted[0]) + 1 if len(accepted) else len(costs_s)
        accepted_share += (bool(len(accepted)) - accepted_share * looked_at) * 0.02
        accepted_share = max(accepted_share, 1e-3)
        if len(accepted):
            placement, cost_s = batch[accepted[0]], float(costs_s[accepted[0]])
