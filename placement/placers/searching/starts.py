"""How searches begin: from the answers of the quick heuristics or from scratch, over groups or over single ops.

What the heuristics evaluate counts against the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.errors import InputError
from placement.placers import HEURISTICS
from placement.placers.base import Budget, Placed, Search, SearchOptions
from placement.placers.searching.moves import Moves, Units, coarse_to_fine, first_ops, single_units
from placement.placers.searching.repair import repair
from placement.placers.single_device import single_device_placements

ASKED_FIRST = ("contiguous", "etf", "heft", "mincut", "m_etf", "peft", "expert", "accelerate_auto", "m_topo")
"""Quick enough to be asked before a search, the most promising first: a short budget does not reach them all."""

BRIEF = ("expert", "mincut", "accelerate_auto")
"""Those that answer within milliseconds, and so before the others where time is short."""

IN_TIME = (*BRIEF, *(name for name in ASKED_FIRST if name not in BRIEF))
"""The same in the order in which a limited time is spent on them."""

SHARE = 0.2
"""Share of the budget that the heuristics may use before the search proper."""

GROUPS_SHARE = 0.6
"""Share of the budget for moving whole groups, where single ops are moved after them."""


class StartedSearch:
    """A search that has its start: the evaluations so far, the units to move, and the way to its answer.

    Args:
        problem: What to place.
        budget: What the whole search may spend.
        rng: For a random start.
        options: What is moved, and where the search starts.
        stages: ``(wanted units, share of the budget)`` of the coarse stages, as in `coarse_to_fine`.

    Attributes:
        search: Evaluates placements of the groups, or of the single ops.
        stages: Units from coarse to fine, each with the share of what is left of the budget that its stage may use.
        note: How it began.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        budget: Budget,
        rng: np.random.Generator,
        options: SearchOptions,
        stages: Sequence[tuple[int, float]],
    ) -> None:
        self._by_op = options.granularity == "op" and problem.can_part_groups
        finest = problem.with_groups(one_group_an_op(problem.graph)) if self._by_op else problem
        self.search = Search(finest, budget)
        self.note = "over single ops, " if self._by_op else ""
        if options.start == "scratch":
            scattered = Moves(single_units(problem), rng).scatter()
            self.search.evaluate(_of_parts(problem, finest, scattered)[None])
            self.note += "from a random placement"
        else:
            self.note += f"from {try_heuristics(self.search, problem, rng)}"
        self.search.begin_search()
        self.stages = _stages(problem, finest, stages) if self._by_op else coarse_to_fine(problem, stages)

    def placed(self, config: Mapping[str, Any], note: str = "") -> Placed:
        """The search's answer."""
        found = self.search.placed(config=config, note=f"{self.note}{note}")
        if not self._by_op:
            return found
        ops = self.search.problem.groups.to_ops(found.placement).astype(np.int64)
        return Placed(ops, found.evaluations, found.search_s, found.config, found.note)


def try_heuristics(search: Search, problem: PlacementProblem, rng: np.random.Generator) -> str:
    """Evaluate the quick heuristics' placements in a search.

    Args:
        search: It keeps the best that is found; its problem may have finer groups.
        problem: What the heuristics place.
        rng: Handed to the heuristics.

    Returns:
        The name of the best.
    """
    singles = np.stack([placement for _, placement in single_device_placements(problem)])
    search.evaluate(_of_parts(problem, search.problem, singles))
    best_s, best = search.best_s, "single_device"
    for name in ASKED_FIRST:
        left = _left(search, SHARE)
        if left.time_limit_s == 0 or left.evaluations == 0:
            break
        try:
            placed = HEURISTICS[name].function(problem, budget=left, rng=rng)
        except InputError:  # for example: no expert's rule for this graph
            continue
        search.evaluate(_of_parts(problem, search.problem, placed.placement)[None])
        search.evaluations += placed.evaluations
        if search.best_s < best_s:
            best_s, best = search.best_s, name
    return best


def start_of(search: Search) -> NDArray[np.int64]:
    """The best placement so far; where nothing fits yet, the nearest to fitting, repaired as far as it goes."""
    if search.best_placement is None:
        repair(search, search.placed().placement)
    return search.placed().placement


def _stages(
    problem: PlacementProblem, finest: PlacementProblem, stages: Sequence[tuple[int, float]]
) -> list[tuple[Units, float]]:
    """Coarse units, then groups, then single ops."""
    by_group = coarse_to_fine(problem, stages)
    found = []
    spent = 0.0
    for units, share in by_group:
        taken = GROUPS_SHARE * share * (1.0 - spent / GROUPS_SHARE)  # of the whole budget
        found.append((units.of_parts(problem.groups, finest.groups), taken / (1.0 - spent)))
        spent += taken
    return [*found, (single_units(finest), 1.0)]


def _of_parts(problem: PlacementProblem, finest: PlacementProblem, placement: NDArray[np.int64]) -> NDArray[np.int64]:
    """``int64[..., G]`` of a problem as a placement of the same problem in finer groups."""
    return placement[..., problem.groups.group_of_op[first_ops(finest.groups)]]


def _left(search: Search, share: float) -> Budget:
    """What is left of a share of the search's budget."""
    limit, most = search.budget.time_limit_s, search.budget.evaluations
    return Budget(
        None if limit is None else max(limit * share - search.elapsed_s, 0.0),
        None if most is None else max(int(most * share) - search.evaluations, 0),
    )
