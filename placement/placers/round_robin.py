"""Groups dealt out to the accelerators in turn, as the parameter servers' default device function did."""

from __future__ import annotations

import numpy as np

from envs.problem import PlacementProblem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions, accelerators_first
from placement.placers.searching.repair import repair


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Give each group, in program order, the next accelerator that it may be on."""
    search = Search(problem, budget)
    allowed = accelerators_first(problem)
    placement = np.zeros(problem.num_groups, dtype=np.int64)
    turn = 0
    for group in problem.groups.program_order:
        if allowed[group].sum() == 1:  # pinned: it uses up nobody's turn
            placement[group] = allowed[group].argmax()
            continue
        choices = np.roll(allowed[group], -turn)
        placement[group] = (turn + int(choices.argmax())) % problem.num_devices
        turn = (placement[group] + 1) % problem.num_devices
    repair(search, placement)
    return search.placed()
