"""What answers how long a step takes: the simulator, the simulator with op times of one's own, or the machine itself.

A `PlacementProblem` holds one of them. Each is given placements of ops that the problem has checked, and answers with
an `Evaluation`. `Simulated` is here; running the step on real devices is `envs.measured.problem.Measurer`.

Letters: ``B`` placements in a batch, ``N`` ops, ``D`` devices, ``S`` distinct device specs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.clusters.memories import Memories
from envs.simulator.checkpoints import StepCheckpoints
from envs.simulator.input import SimulatorInput
from envs.simulator.simulate import simulate_batch


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What evaluating a batch of placements answers; every evaluator gives this type.

    Attributes:
        step_time_s: ``float64[B]``; the step time that an infeasible placement would have if memory were no limit.
        peak_memory_bytes: ``int64[B, D]``.
        feasible: ``bool[B]``, True where no memory, of a device or shared, is short and every op may run where it is.

    An evaluation that was given a bound (`PlacementProblem.evaluate`) may have stopped early: `aborted` says where.
    """

    step_time_s: NDArray[np.float64]
    peak_memory_bytes: NDArray[np.int64]
    feasible: NDArray[np.bool_]

    @property
    def aborted(self) -> NDArray[np.bool_]:
        """``bool[B]``: True where the step was proven slower than the bound; its time is infinity, not feasible."""
        return np.isinf(self.step_time_s)

    def cost_s(self, failing_s: float = np.inf) -> NDArray[np.float64]:
        """``float64[B]``: the step time, or `failing_s` (the failing signal) where the placement is infeasible."""
        return np.where(self.feasible, self.step_time_s, failing_s)


class Evaluator(Protocol):
    """What a problem asks for step times."""

    @property
    def given(self) -> SimulatorInput | None:
        """What is simulated in place of the arrays that the problem's graph and cluster come to; None for those."""

    @property
    def measures(self) -> bool:
        """True where a step is really run: an answer takes seconds, and the simulator is a model of it."""

    def evaluate(
        self,
        given: SimulatorInput,
        ops: NDArray[np.int32],
        allowed: NDArray[np.bool_],
        memories: Memories,
        *,
        threads: int | None = None,
        abort_above_s: float | NDArray[np.float64] | None = None,
        checkpoints: StepCheckpoints | None = None,
    ) -> Evaluation:
        """Answer for a batch.

        Args:
            given: The problem's arrays.
            ops: ``int32[B, N]``, the device of each op.
            allowed: ``bool[B]``, True where every op may run where it is.
            memories: What the devices have, and what they share.
            threads: Cores to use; by default all that this process may use.
            abort_above_s: Seconds, one figure or ``float64[B]``: a step that is proven slower may be given up.
            checkpoints: Steps to go on from, of the same arrays.
        """


@dataclass(frozen=True, eq=False)
class Simulated:
    """The simulator.

    Attributes:
        given: Arrays with op times of one's own (`with_op_times`); None where those of graph and cluster hold.
    """

    given: SimulatorInput | None = None

    @property
    def measures(self) -> bool:
        """False: nothing is run."""
        return False

    def evaluate(
        self,
        given: SimulatorInput,
        ops: NDArray[np.int32],
        allowed: NDArray[np.bool_],
        memories: Memories,
        *,
        threads: int | None = None,
        abort_above_s: float | NDArray[np.float64] | None = None,
        checkpoints: StepCheckpoints | None = None,
    ) -> Evaluation:
        """As `Evaluator.evaluate`; step times that are returned are exact, whatever the bound."""
        if abort_above_s is not None:
            # What is left of a step is bounded for ops on devices that they may be on.
            abort_above_s = np.where(allowed, abort_above_s, np.inf)
        if checkpoints is None:
            step_time_s, peak = simulate_batch(given, ops, threads=threads, abort_above_s=abort_above_s)
        else:
            step_time_s, peak = checkpoints.simulate_batch(ops, abort_above_s=abort_above_s)
        return Evaluation(step_time_s, peak, allowed & memories.fits(peak) & np.isfinite(step_time_s))
