"""What differs between two placements of one problem, and what each difference is worth by itself.

Letters: ``N`` ops, ``G`` groups, ``M`` groups that are elsewhere, ``B`` placements in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from placement.results.reasons.step_parts import critical_path

_MOST_GROUPS = 256
"""Groups, those with the most work first, whose part in the difference is evaluated."""


@dataclass(frozen=True, eq=False)
class Difference:
    """Two placements, a before and an after.

    Attributes:
        before_s: Step time of the first.
        after_s: Step time of the second.
        path_before_s: Seconds of its critical path by kind of part, see `step_parts.PATH_KINDS`.
        path_after_s: Those of the second.
        groups: ``int64[M]``: groups that are elsewhere, those with the most work first.
        ops_moved: Ops that are elsewhere.
        alone_s: ``float64[M]``: the step time of the first placement with only this group placed as in the second; NaN
            beyond the first 256.
        back_s: ``float64[M]``: the step time of the second with only this group placed as in the first.
    """

    before_s: float
    after_s: float
    path_before_s: dict[str, float]
    path_after_s: dict[str, float]
    groups: NDArray[np.int64]
    ops_moved: int
    alone_s: NDArray[np.float64]
    back_s: NDArray[np.float64]


def differences(problem: PlacementProblem, before: NDArray[np.integer], after: NDArray[np.integer]) -> Difference:
    """Compare two placements of ops, ``int[N]`` each."""
    before, after = np.asarray(before, dtype=np.int32), np.asarray(after, dtype=np.int32)
    group_of_op = problem.groups.group_of_op
    moved = before != after
    work_s = np.bincount(group_of_op, np.where(moved, problem.op_time_s.min(axis=0), 0.0), problem.num_groups)
    groups = np.flatnonzero(np.bincount(group_of_op, moved, problem.num_groups))
    groups = groups[np.argsort(-work_s[groups], kind="stable")]
    alone_s, back_s = np.full(len(groups), np.nan), np.full(len(groups), np.nan)
    asked = groups[:_MOST_GROUPS]
    if len(asked):
        theirs = group_of_op == asked[:, None]
        alone_s[: len(asked)] = problem.evaluate_ops(np.where(theirs, after, before)).step_time_s
        back_s[: len(asked)] = problem.evaluate_ops(np.where(theirs, before, after)).step_time_s
    traces = problem.trace(before), problem.trace(after)
    return Difference(
        traces[0].step_time_s,
        traces[1].step_time_s,
        critical_path(problem, traces[0]).seconds,
        critical_path(problem, traces[1]).seconds,
        groups,
        int(moved.sum()),
        alone_s,
        back_s,
    )
