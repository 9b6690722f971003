"""Why a placement is what it is, put together: the parts of its step, its groups, its limits, and what would help.

Letters: ``N`` ops, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.bounds import lower_bound_s
from envs.problem import PlacementProblem
from envs.simulator.trace import Trace
from graphs.colocation.groups import one_group_an_op
from placement.results.reasons.differences import Difference, differences
from placement.results.reasons.limits import Limit, find_limits
from placement.results.reasons.moving import Moves, evaluate_moves
from placement.results.reasons.remedies import TRIES, Remedy, try_remedies
from placement.results.reasons.step_parts import (
    CriticalPath,
    arrivals,
    critical_path,
    device_parts,
    group_seconds,
    link_seconds,
)


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a placement is what it is.

    Attributes:
        problem: What is placed, evaluated by the simulator.
        op_placement: ``int32[N]``.
        trace: One simulated step.
        feasible: Whether the placement is.
        path: The critical path of the step.
        device_s: ``float64[D, 4]``: seconds of each device by `step_parts.DEVICE_KINDS`; a row adds up to the step.
        group_s: ``float64[G, 4]``: seconds of the critical path that are each group's, by `step_parts.PATH_KINDS`.
        moves: Every group on every device.
        lower_bound_s: Seconds that no placement can beat; None where it was not asked for.
        limits: What the step cannot be shorter than, the tightest first.
        remedies: The cluster as it is, then what would help, the best first; empty where that was not asked for.
        difference: To the placement that this one was compared with; None where there was none.
    """

    problem: PlacementProblem
    op_placement: NDArray[np.int32]
    trace: Trace
    feasible: bool
    path: CriticalPath
    device_s: NDArray[np.float64]
    group_s: NDArray[np.float64]
    moves: Moves
    lower_bound_s: float | None
    limits: tuple[Limit, ...]
    remedies: tuple[Remedy, ...]
    difference: Difference | None = None

    @property
    def step_time_s(self) -> float:
        """Of the placement, simulated."""
        return self.trace.step_time_s

    def sentences(self, most: int | None = None) -> list[str]:
        """What there is to say, the most telling first; see `sentences.say`."""
        from placement.results.reasons.sentences import say

        return say(self)[:most]


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
        time_limit_s: Seconds, about, for moves and better clusters together; what is not evaluated then is left out.

    Raises:
        InputError: The shape or a device index is wrong.
    """
    problem = problem.simulated
    ops = problem.to_ops(op_placement)
    trace = problem.trace(ops)
    arrived = arrivals(problem, trace)
    path = critical_path(problem, trace, arrived)
    of_groups = group_seconds(problem, path)
    first = np.argsort(-of_groups.sum(axis=1), kind="stable")
    half_s = None if time_limit_s is None else time_limit_s / 2
    moves = evaluate_moves(problem, ops, first=first, time_limit_s=half_s)
    if bound_s is None and time_limit_s is None:
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
            time_limit_s=half_s,
        )
    return Explanation(
        problem=problem,
        op_placement=ops,
        trace=trace,
        feasible=bool(problem.evaluate_ops(ops[None]).feasible[0]),
        path=path,
        device_s=device_parts(problem, trace, arrived),
        group_s=of_groups,
        moves=moves,
        lower_bound_s=bound_s,
        limits=find_limits(problem, trace, moves),
        remedies=remedies,
        difference=None if against is None else differences(problem, problem.to_ops(against), ops),
    )
