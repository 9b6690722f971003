"""A simulated step with its state at some instants, from which placements that differ little are simulated on.

A search moves one group at a time. Until the first thing that a move changes, the step is the one that was simulated
before, so it is resumed from a copy of the simulator's state there (`choosing.resumed.resume_many`). The answer is
that of a whole simulation, to the last bit. How much it spares depends on the graph: see docs/concepts/simulator.md.

Letters: ``B`` placements in a batch, ``N`` ops, ``D`` devices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.compiling import Packed
from envs.simulator.choosing import resumed
from envs.simulator.choosing.work import make_checkpoints, make_work
from envs.simulator.input import SimulatorInput
from envs.simulator.simulate import as_placements, limits_s, simulate_batch

CHECKPOINTS = 16
"""Taken in a step: each costs about as much as 4% of it, and half of the way to the next is simulated in vain."""


class StepCheckpoints:
    """The checkpoints of one step; `PlacementProblem.checkpoints` makes them.

    In ``program_order`` devices run ahead of each other and there is no common state to keep, so whole steps are
    simulated, which that schedule makes cheap; so they are in ``sequential``, and where receivers make copies. One
    thread at a time may use an object.

    Args:
        given: What to simulate.
        op_placement: ``int[N]``, where to begin.

    Attributes:
        given: As above.
        step_time_s: Of the placement that the checkpoints are of.
        resumed_s: ``float64[B]``: up to which time each step of the last batch was known; 0 where it was not.
    """

    def __init__(self, given: SimulatorInput, op_placement: NDArray[np.integer]) -> None:
        self.given = given
        self.step_time_s = 0.0
        self.resumed_s = np.zeros(0)
        self._resumes = given.schedule in ("priority", "fifo") and not given.receives
        if self._resumes:
            work = make_work(given)
            self._work, self._kept = Packed(work), Packed(make_checkpoints(work, CHECKPOINTS))
        self.restart(op_placement)

    def restart(self, op_placement: NDArray[np.integer]) -> None:
        """Take the checkpoints of another placement, ``int[N]``; the memory is used again."""
        placements = as_placements(self.given, np.asarray(op_placement)[None])
        if self._resumes:
            peak = np.empty(self.given.num_devices, dtype=np.int64)
            simulate = resumed.simulate_with_checkpoints
            self.step_time_s = float(simulate(self._work, self._kept, placements[0], peak))
        else:
            self.step_time_s = float(simulate_batch(self.given, placements, threads=1)[0][0])

    def simulate_batch(
        self, op_placements: NDArray[np.integer], *, abort_above_s: float | NDArray[np.float64] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """As `envs.simulator.simulate.simulate_batch`, on one core and resuming where it can.

        Args:
            op_placements: ``int[B, N]``.
            abort_above_s: As there. Which of the slower steps are stopped may differ.
        """
        placements = as_placements(self.given, np.asarray(op_placements))
        count = len(placements)
        self.resumed_s = np.zeros(count)
        if not self._resumes:
            return simulate_batch(self.given, placements, threads=1, abort_above_s=abort_above_s)
        step_time_s, peak = np.empty(count), np.empty((count, self.given.num_devices), dtype=np.int64)
        resumed.resume_many(
            self._work, self._kept, placements, limits_s(abort_above_s, count), step_time_s, peak, self.resumed_s
        )
        return step_time_s, peak
