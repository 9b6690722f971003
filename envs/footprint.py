"""An estimate of the memory that each group needs where it is, for placers that must respect memory before they ask.

The simulator alone decides what fits; the estimate only guides. It counts what lives for most of a step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem


def saved_bytes(problem: PlacementProblem) -> NDArray[np.int64]:
    """``int64[G]``: bytes of the tensors of each group that a later phase of the step reads.

    These are the activations that a backward pass waits for, and the gradients that an update waits for.
    """
    graph = problem.graph
    last_phase = np.full(graph.num_tensors, -1, dtype=np.int64)
    np.maximum.at(last_phase, graph.edge_tensor, graph.phase[graph.consumers].astype(np.int64))
    saved = (last_phase > graph.phase[graph.tensor_producer]) & ~graph.tensor_resident
    totals = np.zeros(problem.num_groups, dtype=np.int64)
    np.add.at(totals, problem.groups.group_of_op[graph.tensor_producer[saved]], graph.tensor_bytes[saved])
    return totals


def largest_output_bytes(problem: PlacementProblem) -> NDArray[np.int64]:
    """``int64[G]``: the largest tensor that each group makes and that is not resident."""
    graph = problem.graph
    largest = np.zeros(problem.num_groups, dtype=np.int64)
    sizes = np.where(graph.tensor_resident, 0, graph.tensor_bytes)
    np.maximum.at(largest, problem.groups.group_of_op[graph.tensor_producer], sizes)
    return largest


def group_bytes(problem: PlacementProblem) -> NDArray[np.int64]:
    """``int64[G]``: resident bytes plus what a later phase reads, or in a graph of one phase the largest tensor."""
    resident = problem.group_resident_bytes
    if len(np.unique(problem.graph.phase)) < 2:
        return resident + largest_output_bytes(problem)
    return resident + saved_bytes(problem)
