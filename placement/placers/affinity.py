"""How many bytes groups exchange: the graph that partitioners cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem


def exchanged_bytes(problem: PlacementProblem) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of groups that exchange tensors.

    A tensor counts once for each group that reads it, as it is sent once however many of the group's ops read it.

    Returns:
        ``(a int64[P], b int64[P], bytes float64[P])`` with ``a < b``, sorted, each pair once, both directions together.
    """
    graph, groups = problem.graph, problem.groups
    reader = groups.group_of_op[graph.consumers].astype(np.int64)
    maker = groups.group_of_op[graph.edge_producer].astype(np.int64)
    sent = np.unique(graph.edge_tensor.astype(np.int64) * groups.num_groups + reader, return_index=True)[1]
    sent = sent[maker[sent] != reader[sent]]
    low, high = np.minimum(maker[sent], reader[sent]), np.maximum(maker[sent], reader[sent])
    pair, inverse = np.unique(low * groups.num_groups + high, return_inverse=True)
    sizes = np.bincount(inverse, graph.weighed_bytes[graph.edge_tensor[sent]], len(pair)).astype(np.float64)
    return pair // groups.num_groups, pair % groups.num_groups, sizes
