"""The plan of a search by moves: which units move when, and how hot; from coarse to fine, once or in rounds.

Letters: ``N`` ops, ``G`` groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from envs.problem import PlacementProblem
from graphs.colocation.coarsening import coarsen, merge_types
from graphs.colocation.groups import Groups, one_group_an_op

COARSE_UNITS = 32
"""Units of the first stage."""

STAGES = (("coarse", 0.08, 2), ("groups", 0.17, 3), ("twofold", 0.2, 3), ("sixfold", 0.25, 4), ("ops", 0.3, 4))
"""Stages of the search with the share of a round that each takes, and its cycles of cooling."""

TYPES_STAGE = ("types", 0.25, 4)
"""Stage in place of coarse units and groups where a chain goes by types (`goes_by_types`)."""

MOVES_AN_OP_BY_TYPES = 10
"""Chains go by types only in a run that can move every op so often; where it can twice, they do so in two rounds."""

LEAST_GROUPS_A_TYPE = 1.5
"""Nor where groups are fewer than so many a type: types are hardly coarser than groups, then."""

LEAST_TYPES_AN_ACCELERATOR = 3
"""Nor where types are fewer: a few of them cannot be spread, and chains that begin with them bring nothing."""

LEAST_ACCELERATORS_BY_TYPES = 3
"""Nor between fewer devices that are no CPUs."""

UNITS_A_GROUP = {"twofold": 2, "sixfold": 6}
"""Units of the stages between groups and single ops, for each group; they split groups, so that moving them goes on
from what groups had found, and does not begin with the nearest placement of other units."""

LEAST_OPS_A_UNIT = 1.5
"""Such a stage is left out where its units would be smaller: the next one moves about the same."""

LEAST_MOVES_A_UNIT = 1.5
"""A stage of units finer than groups is also left out where the run has fewer moves than that for each of them."""

MAKING_STEPS = 1_600
"""Making the units of such a stage takes about as long as simulating a third as many steps: where time is limited, it
is also left out where it would have fewer moves."""

AFTER_SHARE = 0.25
"""Where a run goes on after its end, cycles of the last stage follow, each so long."""

HOT = (0.3, 1.0)
"""First temperatures of the cycles, in turn; in units of the best step time over the number of units that can move:
about what one unit adds to the step."""

COLD = 0.02
"""Last temperature of every cycle, in the same unit."""

MOVES_AN_OP = 30
"""A run has another round for each time that it can move every op so often."""

MOST_ROUNDS = 4

MANY_MOVES_AN_OP, MOST_OF_MANY_ROUNDS = 1_000, 64
"""Where there is time for it, a run has a round for each time that it can move every op so often, up to so many: a
round ends in a valley however slowly it cools, and the next one begins elsewhere."""


@dataclass(frozen=True)
class Cycle:
    """One cooling.

    Attributes:
        stage: What moves, one of `STAGES`, or `TYPES_STAGE`.
        begin: Where in the run it begins, from 0 to 1.
        end: Where it ends.
        hot: Its first temperature, in the unit of `HOT`.
        alone: Whether a chain begins it at the best placement that it met itself, not at the best that is known.
    """

    stage: str
    begin: float
    end: float
    hot: float
    alone: bool

    def temperature(self, progress: float) -> float:
        """At some progress of the run, in the unit of `HOT`."""
        cooled = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.hot * (COLD / self.hot) ** cooled


@dataclass(frozen=True)
class Plan:
    """Rounds from coarse to fine, of the same length, one after the other.

    Attributes:
        rounds: The cycles of each.
    """

    rounds: tuple[tuple[Cycle, ...], ...]

    def round_at(self, progress: float) -> tuple[int, float]:
        """The round that a run is in, from its progress, and how much of the round is over."""
        number = min(int(progress * len(self.rounds)), len(self.rounds) - 1)
        return number, progress * len(self.rounds) - number

    def cycle_at(self, progress: float, number: int) -> Cycle:
        """The cycle at some progress of the run, as long as a round lasts; cycles of its last stage follow the last."""
        cycles = self.rounds[number]
        for cycle in cycles:
            if progress < cycle.end:
                return cycle
        last = cycles[-1]
        if number + 1 < len(self.rounds):
            return last
        after = int((progress - last.end) / AFTER_SHARE)
        begin = last.end + after * AFTER_SHARE
        return Cycle(last.stage, begin, begin + AFTER_SHARE, HOT[after % len(HOT)], last.alone)


def make_plan(
    problem: PlacementProblem,
    *,
    finest: str,
    evaluations: float,
    rounds: int = 1,
    by_types: bool = False,
    in_time: bool = False,
) -> Plan:
    """Lay out a run.

    Args:
        problem: What is placed.
        finest: ``"groups"`` plans no finer stage.
        evaluations: Of the whole run, about; finer stages for which they are too few are left out.
        rounds: How often to go from coarse to fine.
        by_types: Whether to begin each with types of op instead of coarse units and groups.
        in_time: Whether time limits the run: then making a stage's units must be worth what it takes, too.
    """
    asked = (TYPES_STAGE, *(stage for stage in STAGES if stage[0] not in ("coarse", "groups"))) if by_types else STAGES
    stages = [
        stage
        for stage in asked
        if _is_wanted(problem, finest, stage[0], stage[1] * evaluations / rounds)
        and (not in_time or stage[0] not in UNITS_A_GROUP or stage[1] * evaluations >= MAKING_STEPS)
    ]
    total = sum(share for _, share, _ in stages)
    made = []
    at = 0.0
    for number in range(rounds):
        cycles = []
        for name, share, count in stages:
            alone = number < rounds - 1 or name != stages[-1][0]
            for i in range(count):
                length = share / total / count / rounds
                cycles.append(Cycle(name, at, at + length, HOT[i % len(HOT)], alone))
                at += length
        made.append(tuple(cycles))
    return Plan(tuple(made))


def rounds_within(evaluations: float, problem: PlacementProblem, *, by_types: bool = False) -> int:
    """How many rounds a run of about so many evaluations has room for; 1 where that is not known (infinite).

    Where some of its chains go by types it has two as soon as each has room for that: what they find differs by luck.
    """
    if math.isinf(evaluations):
        return 1
    moves_an_op = evaluations / problem.graph.num_ops
    least = 2 if by_types and moves_an_op >= 2 * MOVES_AN_OP_BY_TYPES else 1
    many = min(int(moves_an_op / MANY_MOVES_AN_OP), MOST_OF_MANY_ROUNDS)
    return max(min(max(int(moves_an_op / MOVES_AN_OP), least), MOST_ROUNDS), many)


def goes_by_types(problem: PlacementProblem, *, finest: str, evaluations: float) -> bool:
    """Whether some chains of a run of about so many evaluations begin with types of op.

    Chains that begin so end farther apart, and the best of them ends lower, where a network is unrolled over time, on
    more than two accelerators, in runs that can move every op ten times: measured, see docs/notebook.md.
    """
    graph, cluster = problem.graph, problem.cluster
    accelerators = sum(device.spec.kind != "cpu" for device in cluster.devices)
    if finest != "ops" or not problem.can_part_groups or accelerators < LEAST_ACCELERATORS_BY_TYPES:
        return False
    if math.isinf(evaluations) or evaluations < MOVES_AN_OP_BY_TYPES * graph.num_ops:
        return False
    types = merge_types(graph, problem.groups).num_groups
    return LEAST_TYPES_AN_ACCELERATOR * accelerators <= types <= problem.num_groups / LEAST_GROUPS_A_TYPE


def units_of(problem: PlacementProblem, stage: str) -> Groups:
    """What moves in a stage."""
    graph, groups = problem.graph, problem.groups
    if stage == "groups":
        return groups
    if stage == "coarse":
        return problem.part(coarsen(graph, groups, COARSE_UNITS), by_group=True)
    if stage == "types":
        return problem.part(merge_types(graph, groups))
    ops = one_group_an_op(graph)
    if stage == "ops":
        return ops
    return problem.part(coarsen(graph, ops, UNITS_A_GROUP[stage] * groups.num_groups, within=groups))


def _is_wanted(problem: PlacementProblem, finest: str, stage: str, moves: float) -> bool:
    """Whether a stage that would have about so many moves is worth its time."""
    if stage == "coarse":
        return problem.num_groups >= 2 * COARSE_UNITS
    if stage in ("groups", "types"):
        return True
    if finest != "ops" or not problem.can_part_groups:
        return False
    num_ops = problem.graph.num_ops
    units = UNITS_A_GROUP[stage] * problem.num_groups if stage in UNITS_A_GROUP else num_ops
    small = stage in UNITS_A_GROUP and units * LEAST_OPS_A_UNIT > num_ops
    return not small and moves >= LEAST_MOVES_A_UNIT * units
