"""The best placement so far, an elite of good ones to imitate, and what a placement that does not fit is charged.

Every search, the learner and the chains of moves compare placements by `charged_s`; `placement.move_search.kernel`
holds a compiled copy of it, which a test compares bit for bit.

Letters: ``B`` placements in a batch, ``N`` ops, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.bounds import upper_bound_s
from envs.clusters.memories import Memories
from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op

INFEASIBLE_RATIO = 1.1
"""What does not fit is charged at least this many times the best feasible step: so much that no search ends there, and
so little that a hot one gets through. With 1.5 fewer chains found the way from one split of memory to another."""

LEAST_REFERENCE_S = 1e-12
"""Least reference, or among steps that take no time what does not fit would be charged nothing either."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def missing_share(evaluation: Evaluation, memories: Memories) -> FloatArray:
    """``float64[B]``: bytes that each memory lacks, as a share of itself, summed over devices and what they share.

    It is 0 exactly where the placement is feasible, infinite where the evaluation was aborted (the peaks are not known
    then), and next to nothing where an op is where it may not be or a measurement failed.

    Args:
        evaluation: Of the placements.
        memories: Of the cluster; one of no bytes counts as one of a byte.
    """
    over = memories.lacking(evaluation.peak_memory_bytes)  # [B, M]
    shares = np.cumsum(over / np.maximum(memories.limit_bytes, 1), axis=1)  # a running sum adds as a loop does
    missing = shares[:, -1] if shares.shape[1] else np.zeros(len(over))
    missing = np.where(evaluation.feasible, 0.0, np.maximum(missing, np.finfo(np.float64).tiny))
    return np.where(evaluation.aborted, np.inf, missing)


def charged_s(evaluation: Evaluation, memories: Memories, *, reference_s: float) -> FloatArray:
    """``float64[B]``: the step time, and for what does not fit more than `reference_s`, the more the more is missing.

    ``max(reference_s, step time) * (1.1 + missing_share)``. The step time that a placement would have if memory were no
    limit counts only where it is longer than the reference: being fast does not make up for not fitting. No charge is
    below the step time, so a simulation may be aborted once its step exceeds a cost; then the charge is infinite.

    Args:
        evaluation: Of the placements.
        memories: Of the cluster.
        reference_s: The best feasible step that is known, or what no step exceeds: `BestKnown.reference_s`.
    """
    if evaluation.feasible.all():
        return evaluation.step_time_s
    missing = missing_share(evaluation, memories)
    charge = np.maximum(evaluation.step_time_s, reference_s) * (INFEASIBLE_RATIO + missing)
    return np.where(evaluation.feasible, evaluation.step_time_s, charge)


def step_limit_s(problem: PlacementProblem) -> float:
    """Seconds that no step exceeds, whatever op is placed where it may be: the reference while nothing fits."""
    return max(upper_bound_s(problem.with_groups(one_group_an_op(problem.graph))), LEAST_REFERENCE_S)


def ranked(evaluation: Evaluation, memories: Memories) -> IntArray:
    """``int64[B]``, rows: first what fits, the fastest first; then the rest, what lacks least memory first."""
    return np.lexsort((evaluation.step_time_s, missing_share(evaluation, memories)))


class BestKnown:
    """The best placement so far and the elite.

    Args:
        problem: What is placed.
        elites: How many different placements the elite holds at most; 0 keeps none.

    Attributes:
        placement: The best feasible placement, ``int64[G]``, or ``int64[N]`` where it parts groups; where none was
            feasible, the one that lacks least memory; None before anything was kept.
        step_time_s: Its step time, infinite where it is not feasible.
        least_overflow: Its `missing_share`, where none was feasible.
        elite: ``(step time in s, int64[G])``, best first.
    """

    def __init__(self, problem: PlacementProblem, elites: int = 0) -> None:
        self.problem = problem
        self.elites = elites
        self.placement: IntArray | None = None
        self.step_time_s = math.inf
        self.least_overflow = math.inf
        self.elite: list[tuple[float, IntArray]] = []

    def keep(self, placements: NDArray[np.integer], evaluation: Evaluation) -> bool:
        """Take note of placements, ``int[B, G]`` or ``int[B, N]``, and what they came to.

        Returns:
            True where one of them is feasible and faster than all before.
        """
        cost_s = evaluation.cost_s()
        best = int(np.argmin(cost_s))
        faster = bool(cost_s[best] < self.step_time_s)
        if faster:
            self.step_time_s = float(cost_s[best])
            self.placement = np.array(placements[best], dtype=np.int64)
        elif self.step_time_s == math.inf:
            missing = missing_share(evaluation, self.problem.cluster.memories)
            least = int(ranked(evaluation, self.problem.cluster.memories)[0])
            if missing[least] < self.least_overflow:
                self.least_overflow = float(missing[least])
                self.placement = np.array(placements[least], dtype=np.int64)
        if self.elites:
            if placements.shape[1] != self.problem.num_groups:  # the policy speaks of groups
                placements = np.stack([nearest_groups(self.problem, ops) for ops in placements])
            self._keep_elite(placements, cost_s)
        return faster

    @property
    def reference_s(self) -> float:
        """What `charged_s` measures by: the best feasible step, or what no step exceeds while none is known."""
        known_s = self.step_limit_s if math.isinf(self.step_time_s) else self.step_time_s
        return max(known_s, LEAST_REFERENCE_S)

    @cached_property
    def step_limit_s(self) -> float:
        """Seconds that no step exceeds."""
        return step_limit_s(self.problem)

    def charged_s(self, evaluation: Evaluation) -> FloatArray:
        """``float64[B]``: what placements are charged by what is known now."""
        return charged_s(evaluation, self.problem.cluster.memories, reference_s=self.reference_s)

    def _keep_elite(self, placements: NDArray[np.integer], cost_s: NDArray[np.float64]) -> None:
        worst = self.elite[-1][0] if len(self.elite) == self.elites else math.inf
        for i in np.argsort(cost_s, kind="stable")[: self.elites]:
            if not cost_s[i] < worst:
                break
            if all(time_s != cost_s[i] for time_s, _ in self.elite):  # equal times: almost surely twins
                self.elite.append((float(cost_s[i]), placements[i].astype(np.int64)))
        self.elite = sorted(self.elite, key=lambda entry: entry[0])[: self.elites]

    def placements(self) -> list[IntArray]:
        """The best placement, ``int64[G]`` or ``int64[N]``, and behind it the elite, ``int64[G]`` each, best first."""
        if self.placement is None:
            return []
        return [self.placement, *(p for _, p in self.elite if not np.array_equal(p, self.placement))]


def nearest_groups(problem: PlacementProblem, ops: NDArray[np.integer]) -> IntArray:
    """The placement ``int64[G]`` that has each group where most of its work is in one of ops, ``int[N]``."""
    votes = np.zeros((problem.num_groups, problem.num_devices))
    np.add.at(votes, (problem.groups.group_of_op, ops), 1e-9 + problem.op_time_s.min(axis=0))
    return np.where(problem.allowed, votes, -1.0).argmax(axis=1).astype(np.int64)


def as_groups(problem: PlacementProblem, ops: NDArray[np.integer]) -> IntArray:
    """A placement of ops, ``int[N]``, as one of groups, ``int64[G]``, where it parts none; else as ``int64[N]``."""
    group_of_op = problem.groups.group_of_op
    first = np.unique(group_of_op, return_index=True)[1]
    groups = ops[first].astype(np.int64)
    return groups if (groups[group_of_op] == ops).all() else ops.astype(np.int64)
