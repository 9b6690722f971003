"""What is left of a step from each op on, under a chain's placement: a bound that rejects moves before they are tried.

From its start an op takes its own time, the transfers that the placement forces, and the longest such path from a
reader. No step is shorter than such a path, so a move after which one is longer than the chain would accept needs no
simulation, and the simulator, which asks at each op's start whether what is left still fits, stops earlier than by
paths without transfers. A move changes these figures of its ops, and of ops before them as long as they differ; they
are followed backwards, and put back where the move is rejected (`follow`, `put_back`). That pays only where paths are
what makes a step long (`begin`).

The plain version is `measure_all`; a test compares them bit for bit.

Letters: ``N`` ops, ``E`` edges, ``T`` tensors, ``D`` devices, ``S`` distinct device specs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.compiling import called, inlined, trailing_zeros
from envs.problem import PlacementProblem
from envs.simulator.choosing.step import EPSILON

_0, _1, _6, _63 = np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(63)


SHARE_OF_THE_COST = 0.8
"""Longest path, as a share of a placement's cost, from which on following is worth its time: measured, a quarter of the
simulated ops less on `inception_v3`, where it is 0.94; nothing on `nmt`, where it is half, but a tenth of the time."""


class Paths(NamedTuple):
    """What the compiled functions read, and what they change."""

    left_s: NDArray[np.float64]  # [N] by position, the simulator's own; empty where its schedule has no such bound
    position: NDArray[np.uint32]  # [N], of each op there
    least_s: NDArray[
        np.float64
    ]  # [N] by position, the same for all placements: without transfers, each op where it is fastest
    op_time_s: NDArray[np.float64]  # [S, N]
    spec: NDArray[np.uint32]  # [D]
    first_tensor: NDArray[np.uint32]  # [N + 1]
    first_edge: NDArray[np.uint32]  # [T + 1]
    readers: NDArray[np.uint32]  # [E]
    first_input: NDArray[np.uint32]  # [N + 1]
    makers: NDArray[np.uint32]  # [E], by op: the producers of what it reads
    latency_s: NDArray[np.float64]  # [D, D]
    bytes_per_s: NDArray[np.float64]  # [D, D]
    tensor_bytes: NDArray[np.int64]  # [T]
    transfer_s: NDArray[np.float64]  # [T], NaN where bytes decide
    marks: NDArray[np.uint64]  # a bit an op, the last op first: those to be looked at
    changed: NDArray[np.uint32]  # [N], ops whose figure was changed
    before_s: NDArray[np.float64]  # [N], what theirs was


def make_paths(problem: PlacementProblem, left_s: NDArray[np.float64], position: NDArray[np.uint32]) -> Paths:
    """Lay a problem out.

    Args:
        problem: What is placed.
        left_s: ``float64[N]``, where the figures are to stand; of no length where there are to be none.
        position: ``uint32[N]``, of each op there.
    """
    given = problem.simulator_input
    return Paths(
        left_s=left_s,
        position=position,
        least_s=left_s.copy(),
        op_time_s=given.op_time_s,
        spec=given.device_spec.astype(np.uint32),
        first_tensor=given.tensor_offsets.astype(np.uint32),
        first_edge=given.consumer_offsets.astype(np.uint32),
        readers=given.consumers.astype(np.uint32),
        first_input=given.input_offsets.astype(np.uint32),
        makers=given.tensor_producer[given.edge_tensor[given.input_edges]].astype(np.uint32),
        latency_s=given.route_latency_s,
        bytes_per_s=given.route_bytes_per_s,
        tensor_bytes=given.tensor_bytes,
        transfer_s=given.tensor_transfer_s,
        marks=np.zeros(-(-given.num_ops // 64), dtype=np.uint64),
        changed=np.zeros(given.num_ops, dtype=np.uint32),
        before_s=np.zeros(given.num_ops),
    )


@inlined
def _measure(paths, op_device, op):
    """What is left from an op's start, given what is left from its readers'."""
    home, longest_s = np.uint32(op_device[op]), 0.0
    for tensor in range(paths.first_tensor[op], paths.first_tensor[op + _1]):
        for e in range(paths.first_edge[tensor], paths.first_edge[np.uint64(tensor) + _1]):
            reader = paths.readers[e]
            away, path_s = np.uint32(op_device[reader]), paths.left_s[paths.position[reader]]
            if away != home:
                seconds = paths.transfer_s[tensor]
                if np.isnan(seconds):
                    seconds = paths.latency_s[home, away] + paths.tensor_bytes[tensor] / paths.bytes_per_s[home, away]
                path_s += seconds
            longest_s = max(longest_s, path_s)
    return paths.op_time_s[paths.spec[home], op] + longest_s


@called
def measure_all(paths, op_device):
    """Measure what is left from every op under a placement of ops, ``int32[N]``."""
    last = np.uint64(len(paths.left_s)) - _1
    for i in range(np.uint64(len(paths.left_s))):
        paths.left_s[paths.position[last - i]] = _measure(paths, op_device, last - i)


@called
def begin(paths, op_device, cost_s):
    """Measure a placement, or go back to what holds for all; return whether moves are to be followed."""
    if len(paths.left_s) == 0:
        return False
    measure_all(paths, op_device)
    longest_s = 0.0
    for op in range(np.uint64(len(paths.left_s))):
        longest_s = max(longest_s, paths.left_s[op])
    follows = longest_s >= SHARE_OF_THE_COST * cost_s
    if not follows:
        for op in range(np.uint64(len(paths.left_s))):
            paths.left_s[op] = paths.least_s[op]
    return follows


@inlined
def _mark(marks, last, op):
    at = last - np.uint64(op)
    marks[at >> _6] |= _1 << (at & _63)


@called
def follow(paths, op_device, op_offsets, ops_of_unit, moved, count, limit_s):
    """Bring all figures up to date after the first `count` units of `moved` have moved.

    Returns how many were changed, and whether a path is longer than `limit_s`: then some may not be up to date, and all
    must be put back.
    """
    marks, last = paths.marks, np.uint64(len(paths.left_s)) - _1
    limit_s *= 1.0 + 4.0 * len(paths.left_s) * EPSILON
    latest = _0
    for i in range(count):
        for j in range(op_offsets[moved[i]], op_offsets[moved[i] + 1]):
            op = np.uint64(ops_of_unit[j])
            latest = max(latest, op)
            _mark(marks, last, op)
            for k in range(paths.first_input[op], paths.first_input[op + _1]):
                _mark(marks, last, paths.makers[k])
    num_changed, over = 0, False
    for word in range((last - latest) >> _6, np.uint64(len(marks))):
        while marks[word] != _0:
            if over:
                marks[word] = _0
                break
            op = last - ((word << _6) + trailing_zeros(marks[word]))
            marks[word] &= marks[word] - _1
            before_s, left_s = paths.left_s[paths.position[op]], _measure(paths, op_device, op)
            if left_s != before_s:
                paths.left_s[paths.position[op]] = left_s
                paths.changed[num_changed] = op
                paths.before_s[num_changed] = before_s
                num_changed += 1
                over = left_s > limit_s
                for k in range(paths.first_input[op], paths.first_input[op + _1]):
                    _mark(marks, last, paths.makers[k])
    return num_changed, over


@inlined
def put_back(paths, count):
    """Undo the last `follow`, which changed `count` figures."""
    for i in range(count):
        paths.left_s[paths.position[paths.changed[i]]] = paths.before_s[i]
