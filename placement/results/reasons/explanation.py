"""Why a placement is what it is, put together: the parts of its step, its groups, its limits, and what would help.

Letters: ``N`` ops, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.simulator.trace import Trace
from placement.results.reasons.differences import Difference
from placement.results.reasons.limits import Limit
from placement.results.reasons.moving import Moves
from placement.results.reasons.remedies import Remedy
from placement.results.reasons.step_parts import CriticalPath


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
        sentences: What there is to say, the most telling first; see `placement.results.reasons.sentences`.
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
    sentences: tuple[str, ...] = ()

    @property
    def step_time_s(self) -> float:
        """Of the placement, simulated."""
        return self.trace.step_time_s
