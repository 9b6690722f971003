"""What moving each group to each other device would do to the step, by exact evaluation.

Letters: ``G`` groups, ``N`` ops, ``D`` devices, ``B`` placements in a batch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem

_MOST_INDICES = 2**22
"""Device indices of ops that are made at once: 16 MiB."""


@dataclass(frozen=True, eq=False)
class Moves:
    """Every group on every device, the rest of the placement as it is.

    Attributes:
        step_time_s: ``float64[G, D]``: the step time if all ops of the group were there; where the group may not be,
            and where nobody asked because the time was up, NaN.
        feasible: ``bool[G, D]``: it would fit, too.
        short_bytes: ``int64[G, D]``: the memory that would be missing, over all devices and what they share.
        home: ``int64[G]``: where most of the work of the group is now; -1 where a group is on several devices.
        evaluations: Placements that were evaluated.
    """

    step_time_s: NDArray[np.float64]
    feasible: NDArray[np.bool_]
    short_bytes: NDArray[np.int64]
    home: NDArray[np.int64]
    evaluations: int

    def elsewhere(self) -> NDArray[np.bool_]:
        """``bool[G, D]``: what was evaluated and is not how it is now."""
        there = np.isfinite(self.step_time_s)
        at_home = self.home[:, None] == np.arange(there.shape[1])
        return there & ~at_home


def group_homes(problem: PlacementProblem, ops: NDArray[np.integer]) -> NDArray[np.int64]:
    """``int64[G]``: the device of each group; -1 where its ops are on several."""
    group = problem.groups.group_of_op
    low = np.full(problem.num_groups, problem.num_devices, dtype=np.int64)
    high = np.full(problem.num_groups, -1, dtype=np.int64)
    np.minimum.at(low, group, ops)
    np.maximum.at(high, group, ops)
    return np.where(low == high, low, -1)


def evaluate_moves(
    problem: PlacementProblem,
    ops: NDArray[np.integer],
    *,
    first: NDArray[np.integer] | None = None,
    time_limit_s: float | None = None,
) -> Moves:
    """Evaluate every group on every device that it may be on.

    Args:
        problem: What is placed.
        ops: ``int[N]``, the placement.
        first: Groups in the order in which they are evaluated, for when the time does not suffice; by default 0 to
            ``G - 1``.
        time_limit_s: Seconds after which no further ones are evaluated; None evaluates all.
    """
    deadline_s = None if time_limit_s is None else time.perf_counter() + time_limit_s
    group_of_op, memories = problem.groups.group_of_op, problem.cluster.memories
    ops = np.asarray(ops, dtype=np.int32)
    home = group_homes(problem, ops)
    shape = (problem.num_groups, problem.num_devices)
    step_time_s, feasible = np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
    short_bytes = np.zeros(shape, dtype=np.int64)
    now = problem.evaluate_ops(ops[None])
    whole = np.flatnonzero(home >= 0)
    step_time_s[whole, home[whole]] = now.step_time_s[0]
    feasible[whole, home[whole]] = now.feasible[0]
    short_bytes[whole, home[whole]] = memories.lacking(now.peak_memory_bytes).sum()
    order = np.arange(problem.num_groups) if first is None else np.asarray(first)
    wanted = problem.allowed[order] & (np.arange(problem.num_devices) != home[order, None])
    row, device = np.nonzero(wanted)
    group = order[row]
    at_once = max(_MOST_INDICES // problem.graph.num_ops, 1)
    at_once = min(at_once, 64) if deadline_s is not None else at_once
    done = 0
    while done < len(group) and (deadline_s is None or time.perf_counter() < deadline_s):
        some_groups, some_devices = group[done : done + at_once], device[done : done + at_once]
        moved = np.where(group_of_op == some_groups[:, None], some_devices[:, None].astype(np.int32), ops)
        evaluation = problem.evaluate_ops(moved)
        step_time_s[some_groups, some_devices] = evaluation.step_time_s
        feasible[some_groups, some_devices] = evaluation.feasible
        short_bytes[some_groups, some_devices] = memories.lacking(evaluation.peak_memory_bytes).sum(axis=1)
        done += len(some_groups)
    return Moves(step_time_s, feasible, short_bytes, home, done + 1)
