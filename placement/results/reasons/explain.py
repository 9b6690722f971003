"""Explaining a placement: everything of `placement.results.reasons` in one call."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.bounds import lower_bound_s
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.errors import NoFeasiblePlacementError
from placement.results.reasons.differences import differences
from placement.results.reasons.explanation import Explanation
from placement.results.reasons.limits import find_limits
from placement.results.reasons.moving import evaluate_moves
from placement.results.reasons.remedies import TRIES, Remedy, try_remedies
from placement.results.reasons.sentences import say
from placement.results.reasons.step_parts import (
    arrivals,
    critical_path,
    device_parts,
    group_seconds,
    link_seconds,
)


def explain(
    problem: PlacementProblem,
    op_placement: NDArray[np.integer],
    *,
    against: NDArray[np.integer] | None = None,
    tries: int = TRIES,
    bound_s: float | None = None,
    time_limit_s: float | None = None,
) -> Explanation:
    """Explain a placement: what its step is made of, why each group is where it is, and what would help.

    Args:
        problem: What is placed; it is simulated, also where steps are measured.
        op_placement: ``int[N]``, device indices of ops, or ``int[G]``, of groups.
        against: Another placement, ``int[N]`` or ``int[G]``: what changed from it to this one.
        tries: Placements that are tried on each better cluster; 0 tries no other cluster.
        bound_s: The lower bound, where it is known; by default it is computed unless there is a time limit.
        time_limit_s: Seconds, about, after which moves and better clusters that are not evaluated yet are left out; the
            clusters have half of what is left when the step has been taken apart.

    Raises:
        InputError: The shape or a device index is wrong.
    """
    began_s = time.perf_counter()

    def left_s(share: float) -> float | None:
        return None if time_limit_s is None else max(began_s + time_limit_s - time.perf_counter(), 0.0) * share

    problem = problem.simulated
    ops = problem.to_ops(op_placement)
    trace = problem.trace(ops)
    arrived = arrivals(problem, trace)
    path = critical_path(problem, trace, arrived)
    of_groups = group_seconds(problem, path)
    first = np.argsort(-of_groups.sum(axis=1), kind="stable")
    moves = evaluate_moves(problem, ops, first=first, time_limit_s=left_s(0.5 if tries else 1.0))
    if bound_s is None and time_limit_s is None:
        # Where nothing fits there is no bound; what is short is said of the placement.
        with contextlib.suppress(NoFeasiblePlacementError):
            bound_s = lower_bound_s(problem.with_groups(one_group_an_op(problem.graph)))
    remedies: tuple[Remedy, ...] = ()
    if tries:
        in_use = link_seconds(problem, trace)
        remedies = try_remedies(
            problem,
            ops,
            busiest_device=int(trace.busy_s().argmax()),
            busiest_link=int(in_use.argmax()) // 2 if in_use.any() else None,
            tries=tries,
            time_limit_s=left_s(1.0),
        )
    feasible = bool(problem.evaluate_ops(ops[None]).feasible[0])
    found = Explanation(
        problem=problem,
        op_placement=ops,
        trace=trace,
        feasible=feasible,
        path=path,
        device_s=device_parts(problem, trace, arrived),
        group_s=of_groups,
        moves=moves,
        lower_bound_s=bound_s,
        limits=find_limits(problem, trace, moves, feasible=feasible),
        remedies=remedies,
        difference=None if against is None else differences(problem, problem.to_ops(against), ops),
    )
    return replace(found, sentences=tuple(say(found)))
