"""One simulated step under one placement of ops, as it is shown and written."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.simulator.trace import Trace
from graphs.errors import NoFeasiblePlacementError
from placement.text import size


@dataclass(frozen=True, eq=False)
class Simulated:
    """One simulated step.

    Attributes:
        problem: What was simulated, under its schedule.
        op_placement: ``int32[N]``, device indices.
        step_time_s: Simulated seconds.
        feasible: True where everything fits and every op may be where it is.
        trace: When everything happened.
        made_by: What made the placement, in words.
    """

    problem: PlacementProblem
    op_placement: NDArray[np.int32]
    step_time_s: float
    feasible: bool
    trace: Trace
    made_by: str

    @property
    def transfer_bytes(self) -> NDArray[np.int64]:
        """``int64[K]``: size of each transfer of the trace."""
        sizes: NDArray[np.int64] = self.problem.graph.tensor_bytes[self.trace.transfer_tensor]
        return sizes

    def check_feasible(self) -> None:
        """Raise where the placement is not feasible.

        Raises:
            NoFeasiblePlacementError: The message says which memory is short and by how much.
        """
        if not self.feasible:
            raise NoFeasiblePlacementError(
                f"the placement {describe_short(self.problem, self.trace.peak_memory_bytes)}"
            )


def simulate_ops(problem: PlacementProblem, op_placement: NDArray[np.int32], *, made_by: str) -> Simulated:
    """Simulate one step under a placement of ops, ``int32[N]``."""
    trace = problem.trace_once(op_placement)
    may_be_there = bool(problem.op_allowed[np.arange(len(op_placement)), op_placement].all())
    fits = bool(problem.cluster.memories.fits(trace.peak_memory_bytes[None])[0])
    return Simulated(problem, op_placement, trace.step_time_s, may_be_there and fits, trace, made_by)


def describe_short(problem: PlacementProblem, peak_memory_bytes: NDArray[np.int64]) -> str:
    """A clause that says which memory a placement is short of, and by how much.

    Args:
        problem: What was placed.
        peak_memory_bytes: ``int64[D]``, of a placement that is not feasible.
    """
    memories = problem.cluster.memories
    used, have = memories.used(peak_memory_bytes[None])[0], memories.limit_bytes
    short = np.flatnonzero(used > have)
    if short.size == 0:
        return "puts an op where it may not run"
    return ", ".join(
        f"needs {size(used[m])} {'on' if m < problem.num_devices else 'of shared memory'} {memories.names[m]}, which "
        f"has {size(have[m])}: short by {size(used[m] - have[m])}"
        for m in short
    )


def encode_simulated(simulated: Simulated) -> bytes:
    """The figures as JSON."""
    problem, trace = simulated.problem, simulated.trace
    names = problem.cluster.device_names
    content = {
        "graph": problem.graph.name,
        "cluster": problem.cluster.name,
        "schedule": problem.schedule,
        "placement": simulated.made_by,
        "step_time_s": simulated.step_time_s,
        "feasible": simulated.feasible,
        "peak_memory_bytes": dict(zip(names, trace.peak_memory_bytes.tolist(), strict=True)),
        "busy_s": dict(zip(names, trace.busy_s().tolist(), strict=True)),
        "transfers": trace.num_transfers,
        "transfer_bytes": int(simulated.transfer_bytes.sum()),
    }
    return msgspec.json.format(msgspec.json.encode(content, order="sorted"), indent=2) + b"\n"
