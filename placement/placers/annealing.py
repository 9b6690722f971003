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
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.searching.moves import STAGES, Moves, Units, single_units
from placement.placers.searching.starts import StartedSearch, start_of


@dataclass(frozen=True)
class AnnealingConfig:
    """Settings of the annealer.

    Attributes:
        stages: ``(wanted units, share of a round)`` of the coarse stages; single groups take the rest.
        hot: First temperatures of the cycles in turn, in units of the best step time over the number of movable units:
            about what one unit adds to the step. A cycle starts from the round's best; the coarse stages have one cycle
            each, at the first of these temperatures.
        cold: Last temperature of every cycle, in the same unit; in a cycle the temperature falls geometrically.
        cycle_moves: Moves an unit that one cycle takes, about; a round's last stage has as many cycles as fit into it.
        round_moves: Moves a group that one round takes, about. Rounds are independent, coarse to fine each, because one
            round ends in a valley that no longer cooling gets out of; the first, third, ... start where the options
            say, the others from a random placement.
        largest_batch: Most moves that are evaluated together.
        batch_acceptances: How many acceptances are expected among the moves that are evaluated together.
        default_evaluations: Evaluations where the budget limits neither time nor evaluations.
    """

    stages: tuple[tuple[int, float], ...] = STAGES
    hot: tuple[float, ...] = (0.3, 1.2, 5.0)
    cold: float = 0.025
    cycle_moves: int = 100
    round_moves: int = 240
    largest_batch: int = 16
    batch_acceptances: float = 0.4
    default_evaluations: int = 20_000


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Anneal until the budget is spent."""
    return anneal(problem, budget=budget, rng=rng, config=AnnealingConfig(), options=options)


def anneal(
    problem: PlacementProblem,
    *,
    budget: Budget,
    rng: np.random.Generator,
    config: AnnealingConfig,
    options: SearchOptions = DEFAULT_OPTIONS,
) -> Placed:
    """Anneal with any settings, coarse to fine, in rounds until the budget is spent."""
    if budget.time_limit_s is None and budget.evaluations is None:
        budget = Budget(evaluations=config.default_evaluations)
    started = StartedSearch(problem, budget, rng, options, config.stages)
    search = started.search
    finest = started.stages[-1][0]
    start, rounds = start_of(search), 0
    while not search.spent and len(finest.movable):
        begin = search.spent_share
        rounds_left = max(round(search.evaluations_left / (config.round_moves * len(finest.movable))), 1)
        home = start if rounds % 2 == 0 else Moves(single_units(search.problem), rng).scatter()
        _round(search, started.stages, rng, config, home, until=begin + (1.0 - begin) / rounds_left)
        rounds += 1
    return started.placed(asdict(config), f", {rounds:,} round{'' if rounds == 1 else 's'}")


def _round(
    search: Search,
    stages: list[tuple[Units, float]],
    rng: np.random.Generator,
    config: AnnealingConfig,
    home: NDArray[np.int64],
    *,
    until: float,
) -> None:
    """One way from coarse to fine, from a placement, while the budget's spent share rises to `until`."""
    for units, share in stages:
        begin = search.spent_share
        if share < 1.0:
            end = begin + (until - begin) * share
            home = _cycle(search, units, rng, config, config.hot[0], home, until=end)
            continue
        cycle = 0
        while search.spent_share < until and not search.spent:
            begin = search.spent_share
            moves_left = search.evaluations_left * (until - begin) / max(1.0 - begin, 1e-9)
            cycles_left = max(round(moves_left / (config.cycle_moves * len(units.movable))), 1)
            hot = config.hot[cycle % len(config.hot)]
            home = _cycle(search, units, rng, config, hot, home, until=begin + (until - begin) / cycles_left)
            cycle += 1


def _cycle(
    search: Search,
    units: Units,
    rng: np.random.Generator,
    config: AnnealingConfig,
    hot: float,
    home: NDArray[np.int64],
    *,
    until: float,
) -> NDArray[np.int64]:
    """Cool from a placement ``int64[G]`` while the budget's spent share rises to `until`; the best that was seen."""
    moves = Moves(units, rng)
    placement = units.from_groups(home)
    # Coarse units may not be able to stand where the placement is: then it stays the best until a better one is seen.
    evaluation = search.evaluate(np.stack([home, units.to_groups(placement)]))
    if len(evaluation.feasible) < 2 or len(units.movable) == 0:
        return home
    best_s, cost_s = (float(cost) for cost in search.charged_s(evaluation))
    best = home
    if cost_s < best_s:
        best, best_s = units.to_groups(placement), cost_s
    accepted_share = 0.5
    begin = search.spent_share
    while (spent := search.spent_share) < until:
        cooled = (spent - begin) / (until - begin)
        temperature_s = min(best_s, cost_s) / len(units.movable) * hot * (config.cold / hot) ** cooled
        # So few that most are looked at: those behind the first that is accepted are lost.
        size = int(np.clip(config.batch_acceptances / accepted_share, 2, config.largest_batch))
        batch = np.stack([moves.propose(placement) for _ in range(size)])
        # Metropolis' rule with its random number drawn first: accept up to this cost; what is proven slower is aborted.
        limits_s = cost_s + temperature_s * rng.exponential(size=size)
        costs_s = search.charged_s(search.evaluate(units.to_groups(batch), abort_above_s=limits_s))
        accepted = np.flatnonzero(costs_s <= limits_s[: len(costs_s)])
        looked_at = int(accepted[0]) + 1 if len(accepted) else len(costs_s)
        accepted_share += (bool(len(accepted)) - accepted_share * looked_at) * 0.02
        accepted_share = max(accepted_share, 1e-3)
        if len(accepted):
            placement, cost_s = batch[accepted[0]], float(costs_s[accepted[0]])
            if cost_s < best_s:
                best, best_s = units.to_groups(placement), cost_s
    return best
