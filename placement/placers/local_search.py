"""Iterated local search: first improvement over moves of one group and swaps of two, restarted from small kicks.

Lourenço, Martin and Stützle, "Iterated local search", in Handbook of Metaheuristics, 2003,
doi:10.1007/0-306-48056-5_11.
A few candidates are evaluated together on all cores; the first that improves counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.searching.moves import Moves, Units
from placement.placers.searching.starts import StartedSearch, start_of

BATCH = 8
KICK_MOVES = 3
SWAPS_PER_UNIT = 4
DEFAULT_EVALUATIONS = 20_000


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Descend, kick, descend again, until the budget is spent."""
    if budget.time_limit_s is None and budget.evaluations is None:
        budget = Budget(evaluations=DEFAULT_EVALUATIONS)
    started = StartedSearch(problem, budget, rng, options, ())
    search = started.search
    descents = 0
    for units, share in started.stages:
        begin = search.spent_share
        descents += _iterate(search, units, rng, until=begin + (1.0 - begin) * share)
    return started.placed({"kick_moves": KICK_MOVES}, f", {descents:,} descent{'' if descents == 1 else 's'}")


def _iterate(search: Search, units: Units, rng: np.random.Generator, *, until: float) -> int:
    """Descend and kick until a share of the budget is spent; returns how many descents that were."""
    moves = Moves(units, rng)
    home = units.from_groups(start_of(search))
    home_s = _cost_s(search, units, home)
    home, home_s = _descend(search, units, rng, home, home_s, until=until)
    descents = 1
    while len(units.movable) and not _over(search, until):
        kicked = home
        for _ in range(KICK_MOVES):
            kicked = moves.propose(kicked)
        found, found_s = _descend(search, units, rng, kicked, _cost_s(search, units, kicked), until=until)
        descents += 1
        if found_s <= home_s:
            home, home_s = found, found_s
    return descents


def _cost_s(search: Search, units: Units, placement: NDArray[np.int64]) -> float:
    costs_s = search.charged_s(search.evaluate(units.to_groups(placement)[None]))
    return float(costs_s[0]) if len(costs_s) else np.inf


def _descend(
    search: Search,
    units: Units,
    rng: np.random.Generator,
    placement: NDArray[np.int64],
    cost_s: float,
    *,
    until: float,
) -> tuple[NDArray[np.int64], float]:
    """Take the first improvement again and again, until none is left or a share of the budget is spent."""
    improved = True
    while improved and not _over(search, until):
        improved = False
        batch: list[NDArray[np.int64]] = []
        for candidate in _neighbours(units, rng, placement):
            batch.append(candidate)
            if len(batch) < BATCH:
                continue
            better = _first_better(search, units, batch, cost_s)
            batch = []
            if better is not None:
                placement, cost_s = better
                improved = True
                break
            if _over(search, until):
                return placement, cost_s
        if batch and not improved:
            better = _first_better(search, units, batch, cost_s)
            if better is not None:
                placement, cost_s = better
                improved = True
    return placement, cost_s


def _over(search: Search, until: float) -> bool:
    return search.spent or search.spent_share >= until


def _first_better(
    search: Search, units: Units, batch: list[NDArray[np.int64]], cost_s: float
) -> tuple[NDArray[np.int64], float] | None:
    costs_s = search.charged_s(search.evaluate(units.to_groups(np.stack(batch)), abort_above_s=cost_s))
    better = np.flatnonzero(costs_s < cost_s)
    return (batch[better[0]], float(costs_s[better[0]])) if len(better) else None


def _neighbours(units: Units, rng: np.random.Generator, placement: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Every move of one unit in random order, then some random swaps."""
    singles = [(u, d) for u in units.movable for d in units.choices[u] if d != placement[u]]
    for i in rng.permutation(len(singles)):
        unit, device = singles[i]
        candidate = placement.copy()
        candidate[unit] = device
        yield candidate
    for one, other in units.movable[rng.integers(len(units.movable), size=(SWAPS_PER_UNIT * len(units.movable), 2))]:
        allowed = units.allowed[one, placement[other]] and units.allowed[other, placement[one]]
        if allowed and placement[one] != placement[other]:
            candidate = placement.copy()
            candidate[one], candidate[other] = placement[other], placement[one]
            yield candidate
