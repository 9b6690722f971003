"""A genetic search with biased random keys.

Gonçalves and Resende, "Biased random-key genetic algorithms for combinatorial optimization", Journal of Heuristics 17,
2011, doi:10.1007/s10732-010-9143-1; used for device placement by Paliwal et al. (REGAL), ICLR 2020, arXiv 1905.02494.
A key in [0, 1) for each group stands for one of the devices that it may be on. The elite survives; a child takes each
key from an elite parent more often than from the other one.

Deviations: half of the children take whole stretches of an order from one parent or the other, because groups that
follow one another belong together; half of the mutants are elites after a few moves, the others random as published.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.searching.moves import STAGES, Moves, Units
from placement.placers.searching.starts import StartedSearch, start_of

POPULATION = 64
ELITE = 12
MUTANTS = 16
BIAS = 0.7
PATIENCE = 8
"""Generations without a better placement after which a new population is bred around the best."""

DEFAULT_EVALUATIONS = 20_000


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Breed from where the options say, and from random placements, until the budget is spent."""
    if budget.time_limit_s is None and budget.evaluations is None:
        budget = Budget(evaluations=DEFAULT_EVALUATIONS)
    started = StartedSearch(problem, budget, rng, options, STAGES)
    search = started.search
    generations = 0
    for units, share in started.stages:
        begin = search.spent_share
        generations += _breed(search, units, rng, until=begin + (1.0 - begin) * share)
    return started.placed({"population": POPULATION, "elite": ELITE}, f", {generations:,} generations")


def _breed(search: Search, units: Units, rng: np.random.Generator, *, until: float) -> int:
    """Generations until a share of the budget is spent; returns how many."""
    counts = np.array([len(choices) for choices in units.choices])
    table = np.zeros((len(counts), counts.max()), dtype=np.int64)  # [U, most choices]
    for unit, choices in enumerate(units.choices):
        table[unit, : len(choices)] = choices

    def decode(keys: NDArray[np.float64]) -> NDArray[np.int64]:
        return table[np.arange(len(counts)), (keys * counts).astype(np.int64)]

    def encode(placement: NDArray[np.int64]) -> NDArray[np.float64]:
        return ((table == placement[:, None]).argmax(axis=1) + 0.5) / counts

    moves = Moves(units, rng)

    def settle() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        start = units.from_groups(start_of(search))
        keys = rng.random((POPULATION, len(counts)))
        keys[0] = encode(start)
        for i in range(1, POPULATION // 2):
            keys[i] = encode(moves.propose(start))
        return keys, search.charged_s(search.evaluate(units.to_groups(decode(keys))))

    keys, costs_s = settle()
    generations, fruitless, best_s = 0, 0, search.best_s
    while not search.spent and search.spent_share < until and len(costs_s) == len(keys):
        order = np.argsort(costs_s, kind="stable")
        keys, costs_s = keys[order], costs_s[order]
        elite = keys[:ELITE]
        mutants = rng.random((MUTANTS, len(counts)))
        for i in range(MUTANTS // 2):
            mutant = decode(elite[rng.integers(ELITE)])
            for _ in range(int(rng.integers(1, 4))):
                mutant = moves.propose(mutant)
            mutants[i] = encode(mutant)
        children = _cross(units, elite, keys[ELITE:], POPULATION - ELITE - MUTANTS, rng)
        fresh = np.concatenate([mutants, children])
        # What is slower than the elite is one of the rest, however slow it is.
        worst_s = float(costs_s[ELITE - 1])
        fresh_s = search.charged_s(search.evaluate(units.to_groups(decode(fresh)), abort_above_s=worst_s))
        if len(fresh_s) < len(fresh):
            break
        keys, costs_s = np.concatenate([elite, fresh]), np.concatenate([costs_s[:ELITE], fresh_s])
        generations += 1
        fruitless = 0 if search.best_s < best_s else fruitless + 1
        best_s = search.best_s
        if fruitless == PATIENCE:
            keys, costs_s = settle()
            fruitless = 0
    return generations


def _cross(
    units: Units, elite: NDArray[np.float64], others: NDArray[np.float64], count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """``float64[count, U]``: children of an elite parent and any other."""
    width = elite.shape[1]
    mothers = elite[rng.integers(len(elite), size=count)]
    fathers = others[rng.integers(len(others), size=count)]
    from_mother = rng.random((count, width)) < BIAS
    for child in range(count // 2):
        order = units.orders[rng.integers(len(units.orders))]
        first, last = np.sort(rng.integers(0, width + 1, size=2))
        stretch = np.zeros(width, dtype=np.bool_)
        stretch[order[first:last]] = True
        from_mother[child] = stretch if 2 * (last - first) > width else ~stretch  # the elite gives the longer part
    return np.where(from_mother, mothers, fathers)
