"""Placements of single ops made to keep what must be kept.

Letters: ``N`` ops.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem


def within_constraints(problem: PlacementProblem, ops: NDArray[np.integer]) -> NDArray[np.int32]:
    """``int32[N]``: a placement of ops in which ops that must share a device do, and each is where it may be.

    Ops that must share a device go where most of their resident bytes are, of equals where the last of them is; an op
    that may not be where it is goes to the first device on which it may be.

    Args:
        problem: What is placed; its target must run placements of single ops.
        ops: ``int[N]``, what is wanted.
    """
    graph = problem.graph
    made = np.asarray(ops, dtype=np.int32).copy()
    bound = np.flatnonzero(graph.colocation >= 0)
    if bound.size:
        held = graph.resident_bytes.sum(axis=1)[bound]
        _, number = np.unique(graph.colocation[bound], return_inverse=True)
        heaviest = np.zeros(int(number.max()) + 1, dtype=np.int64)
        heaviest[number[np.argsort(held, kind="stable")]] = bound[np.argsort(held, kind="stable")]
        made[bound] = made[heaviest][number]
    wrong = np.flatnonzero(~problem.op_allowed[np.arange(graph.num_ops), made])
    if wrong.size and bound.size:  # a set that is bound goes where all of it may be
        sets = np.unique(graph.colocation[wrong[graph.colocation[wrong] >= 0]])
        for one in sets.tolist():
            members = np.flatnonzero(graph.colocation == one)
            made[members] = problem.op_allowed[members].all(axis=0).argmax()
        wrong = wrong[graph.colocation[wrong] < 0]
    made[wrong] = problem.op_allowed[wrong].argmax(axis=1)
    return made
