"""What a learner remembers of all that it evaluated: the best placement, and an elite of good ones to imitate.

Letters: ``B`` placements in a batch, ``N`` ops, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem

IntArray = NDArray[np.int64]


class BestKnown:
    """The best placement so far and the elite.

    Args:
        problem: What is placed.
        elites: How many different placements the elite holds at most; 0 keeps none.

    Attributes:
        placement: The best feasible placement, ``int64[G]``, or ``int64[N]`` where it parts groups; where none was
            feasible, the one that exceeds memory least; None before anything was kept.
        step_time_s: Its step time, infinite where it is not feasible.
        least_overflow: The share of memory that it exceeds, where none was feasible.
        elite: ``(step time in s, int64[G])``, best first.
    """

    def __init__(self, problem: PlacementProblem, elites: int) -> None:
        self.problem = problem
        self.elites = elites
        self.placement: IntArray | None = None
        self.step_time_s = math.inf
        self.least_overflow = math.inf
        self.elite: list[tuple[float, IntArray]] = []

    def keep(self, placements: IntArray, evaluation: Evaluation) -> None:
        """Take note of placements, ``int64[B, G]`` or ``int64[B, N]``, and what they came to."""
        cost_s = evaluation.cost_s()
        best = int(np.argmin(cost_s))
        if cost_s[best] < self.step_time_s:
            self.step_time_s = float(cost_s[best])
            self.placement = placements[best].copy()
        elif self.step_time_s == math.inf:
            over = overflow_share(evaluation, self.problem.cluster.memory_bytes)
            least = int(np.argmin(over))
            if over[least] < self.least_overflow:
                self.least_overflow = float(over[least])
                self.placement = placements[least].copy()
        if self.elites:
            if placements.shape[1] != self.problem.num_groups:  # the policy speaks of groups
                placements = np.stack([nearest_groups(self.problem, ops) for ops in placements])
            self._keep_elite(placements, cost_s)

    def _keep_elite(self, placements: IntArray, cost_s: NDArray[np.float64]) -> None:
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


def overflow_share(evaluation: Evaluation, memory_bytes: NDArray[np.int64]) -> NDArray[np.float64]:
    """``float64[B]``: bytes over the devices' memory (``int64[D]``), as a share of all memory."""
    over = np.maximum(evaluation.peak_memory_bytes - memory_bytes, 0).sum(axis=1)
    return over / max(int(memory_bytes.sum()), 1)
