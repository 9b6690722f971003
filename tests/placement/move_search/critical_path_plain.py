"""The plain version of `placement.move_search.critical._trace_back`: written to be read, and to compare with.

Letters: ``N`` ops, ``U`` units, ``D`` devices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.simulator.trace import Trace


class CriticalPath(NamedTuple):
    """What the path back from the last op of a step spends where, in seconds."""

    computing_s: NDArray[np.float64]  # [U]
    transfer_s: NDArray[np.float64]  # [U, D], by the unit and the device at the other end; half a transfer each
    waited_s: NDArray[np.float64]  # [U], for its device while another op held it
    delayed_s: NDArray[np.float64]  # [U], how long it held a device for which another waited


def critical_path(problem: PlacementProblem, trace: Trace, unit_of_op: NDArray[np.integer]) -> CriticalPath:
    """Go back from the op that ends last to whatever each op waited for.

    That is the input that came last, or, where all inputs were there before the op started, the op that its device was
    busy with until then.

    Args:
        problem: What was simulated.
        trace: Of one placement.
        unit_of_op: ``int[N]``.
    """
    graph, (offsets, tensors) = problem.graph, problem.graph.input_tensors
    arrival_s = {
        (int(tensor), int(device)): float(end_s)
        for tensor, device, end_s in zip(
            trace.transfer_tensor, trace.transfer_destination, trace.transfer_end_s, strict=True
        )
    }
    start_s, end_s, on = trace.op_start_s, trace.op_end_s, trace.op_device
    units = int(unit_of_op.max()) + 1
    path = CriticalPath(np.zeros(units), np.zeros((units, problem.num_devices)), np.zeros(units), np.zeros(units))
    op = int(np.argmax(end_s))
    while True:
        unit = unit_of_op[op]
        path.computing_s[unit] += end_s[op] - start_s[op]
        if start_s[op] <= 0.0:
            return path
        latest_s, cause = -1.0, -1
        for tensor in tensors[offsets[op] : offsets[op + 1]]:
            maker = int(graph.tensor_producer[tensor])
            there = on[maker] == on[op]
            at_s = end_s[maker] if there else arrival_s[int(tensor), int(on[op])]
            if at_s > latest_s:
                latest_s, cause = at_s, maker
        if latest_s < start_s[op]:
            (before,) = np.flatnonzero((on == on[op]) & (end_s == start_s[op]) & (end_s > start_s))
            path.waited_s[unit] += end_s[before] - start_s[before]
            path.delayed_s[unit_of_op[before]] += end_s[before] - start_s[before]
            cause = int(before)
        elif on[cause] != on[op]:
            half_s = 0.5 * (latest_s - end_s[cause])
            path.transfer_s[unit, on[cause]] += half_s
            path.transfer_s[unit_of_op[cause], on[op]] += half_s
        op = cause
