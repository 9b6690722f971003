"""Which groups a step waits for: the path back from its last op, with the seconds that each group adds to it.

Letters: ``N`` ops, ``E`` edges, ``K`` transfers, ``D`` devices, ``G`` groups.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.trace import Trace


def critical_group_s(problem: PlacementProblem, trace: Trace) -> NDArray[np.float64]:
    """``float64[G]``: seconds of the critical path by group.

    From the op that ends last the path goes back to whatever that op waited for: the input that came last, or, where
    all inputs were there before, the op that its device was busy with. An op's seconds go to its group; those between
    the end of a producer and the arrival of its copy elsewhere go half to the producer's and half to the reader's.

    Args:
        problem: What was simulated.
        trace: Of one placement.
    """
    graph = problem.graph
    offsets, tensors = graph.input_tensors
    order = np.lexsort((trace.op_end_s, trace.op_start_s, trace.op_device))
    before = np.full(graph.num_ops, -1, dtype=np.int64)  # the op that ran just before on the same device
    same = trace.op_device[order[1:]] == trace.op_device[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    arrival = np.full(graph.num_tensors * problem.num_devices, -1.0)
    arrival[trace.transfer_tensor * problem.num_devices + trace.transfer_destination] = trace.transfer_end_s
    return _walk_back(
        problem.num_groups,
        problem.groups.group_of_op,
        trace.op_device,
        trace.op_start_s,
        trace.op_end_s,
        before,
        arrival,
        problem.num_devices,
        offsets,
        tensors,
        graph.tensor_producer,
    )


@numba.njit(cache=True, nogil=True)
def _walk_back(
    num_groups: int,
    group: NDArray[np.int32],
    device: NDArray[np.int32],
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    before: NDArray[np.int64],
    arrival: NDArray[np.float64],
    num_devices: int,
    input_offsets: NDArray[np.int64],
    input_tensors: NDArray[np.int32],
    producer: NDArray[np.int32],
) -> NDArray[np.float64]:
    seconds = np.zeros(num_groups)
    op = int(np.argmax(end_s))
    for _ in range(len(start_s)):  # ops of no time could lead in a circle; no path is longer than this
        seconds[group[op]] += end_s[op] - start_s[op]
        if start_s[op] <= 0.0:
            break
        latest_s, cause = -1.0, -1
        for i in range(input_offsets[op], input_offsets[op + 1]):
            tensor = input_tensors[i]
            maker = producer[tensor]
            at_s = end_s[maker] if device[maker] == device[op] else arrival[tensor * num_devices + device[op]]
            if at_s > latest_s:
                latest_s, cause = at_s, int(maker)
        if before[op] >= 0 and end_s[before[op]] > latest_s:
            cause = int(before[op])
        elif cause >= 0 and device[cause] != device[op]:
            seconds[group[cause]] += 0.5 * (latest_s - end_s[cause])
            seconds[group[op]] += 0.5 * (latest_s - end_s[cause])
        if cause < 0:
            break
        op = cause
    return seconds
