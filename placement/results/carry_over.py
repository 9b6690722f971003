"""A placement made for one cluster, taken over to another: a device died, one was added, or the machine is another.

Devices are matched by name, then by kind in their order. What was on a device that is matched by none goes where it
does best among the quick heuristics' choices, by simulation.

Letters: ``N`` ops, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envs.clusters.cluster import Cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.errors import InputError
from placement.placers import HEURISTICS, PlacerInfo
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Placer, Search, SearchOptions
from placement.placers.best import as_groups, nearest_groups
from placement.placers.searching.repair import repair
from placement.placers.searching.starts import ASKED_FIRST
from placement.placers.single_device import single_device_placements
from placement.results.placement_file import PlacementResult, check_graph

START = "start"
"""What results call a placement that was given to start from."""

_UNKNOWN = -1


@dataclass(frozen=True)
class GivenStart(PlacerInfo):
    """A placer that answers with a placement that was given; make one with `given_start`."""

    result: PlacementResult | None = None

    @property
    def function(self) -> Placer:
        """Takes the placement over to the problem."""
        assert self.result is not None
        result = self.result

        def place(
            problem: PlacementProblem,
            *,
            budget: Budget,
            rng: np.random.Generator,
            options: SearchOptions = DEFAULT_OPTIONS,
        ) -> Placed:
            return carry_over(result, problem, budget=budget, rng=rng)

        return place


def given_start(result: PlacementResult) -> GivenStart:
    """The placement as a placer, so that comparisons have a row of it."""
    return GivenStart(START, "", "the placement that was given", result=result)


def match_devices(names: tuple[str, ...], cluster: Cluster) -> dict[str, int]:
    """The device of a cluster that stands for each of some devices, by its name.

    Args:
        names: Of the devices that a placement was made for.
        cluster: Where it is taken over to.

    Returns:
        Devices by name, then of the same kind, in order; without those that are matched by none.
    """
    found = {name: cluster.device_names.index(name) for name in names if name in cluster.device_names}
    free = [d for d in range(cluster.num_devices) if d not in found.values()]
    for name in names:
        if name not in found:
            kind = name.partition(":")[0]
            like = [
                d for d in free if kind in (cluster.device_names[d].partition(":")[0], cluster.devices[d].spec.kind)
            ]
            if like:
                found[name] = like[0]
                free.remove(like[0])
    return found


def carry_over(
    result: PlacementResult, problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator
) -> Placed:
    """Take a placement over to a problem.

    Args:
        result: Of the same graph, for any cluster.
        problem: What is placed now.
        budget: For the heuristics, where some ops have no device.
        rng: For heuristics that draw.

    Raises:
        InputError: It is a placement of another graph.
    """
    check_graph(result, problem.graph)
    matched = match_devices(result.cluster.devices, problem.cluster)
    ops = np.array([matched.get(result.ops[op], _UNKNOWN) for op in problem.graph.op_names], dtype=np.int64)
    lost = (ops == _UNKNOWN) | ~problem.op_allowed[np.arange(len(ops)), ops]
    bound = one_group_an_op(problem.graph).group_of_op if problem.can_part_groups else problem.groups.group_of_op
    lost = (np.bincount(bound, lost) > 0)[bound]
    search = Search(problem, budget)
    said = _said(result, matched, problem.cluster)
    if not lost.any():
        made = as_groups(problem, ops) if problem.can_part_groups else nearest_groups(problem, ops)
        fits = bool(problem.evaluate_one(made).feasible[0])
        if not fits:
            repair(search, nearest_groups(problem, ops))
            made = search.placed().placement
        return Placed(made, search.evaluations + 1, search.elapsed_s, note=said if fits else f"{said}, repaired")
    candidates = [placement for _, placement in single_device_placements(problem)]
    for name in ASKED_FIRST:
        if search.spent:
            break
        try:
            candidates.append(HEURISTICS[name].function(problem, budget=budget, rng=rng).placement)
        except InputError:  # for example: no expert's rule for this graph
            continue
    filled = np.where(lost, problem.groups.to_ops(np.stack(candidates)), ops)  # [candidates, N]
    if not problem.can_part_groups:
        filled = problem.groups.to_ops(np.stack([nearest_groups(problem, row) for row in filled]))
    evaluation = problem.evaluate_ops(filled)
    cost_s = evaluation.cost_s()
    best = filled[int(cost_s.argmin())]
    made = as_groups(problem, best)
    share = f"{int(lost.sum()):,} ops by the heuristics' choice"
    if not np.isfinite(cost_s).any():
        repair(search, nearest_groups(problem, best))
        made, share = search.placed().placement, f"{share}, repaired"
    return Placed(made, search.evaluations + len(filled), search.elapsed_s, note=f"{said}; {share}")


def _said(result: PlacementResult, matched: dict[str, int], cluster: Cluster) -> str:
    """Which devices stand for which, where that is not the same name."""
    moved = [f"{a} on {cluster.device_names[d]}" for a, d in matched.items() if cluster.device_names[d] != a]
    gone = [name for name in result.cluster.devices if name not in matched]
    parts = [f"of {result.cluster.name}"]
    if moved:
        parts.append(", ".join(moved))
    if gone:
        parts.append(f"without {', '.join(gone)}")
    return "; ".join(parts)
