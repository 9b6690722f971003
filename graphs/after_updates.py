"""Steps that are more than forward, backward, update: what goes on after an update, and gradients that are clipped.

What cuts a step up or repeats parts of it takes the gradients of all parameters to be ready before any is updated, and
each to be read by its update alone.
"""

from __future__ import annotations

import numpy as np

from graphs.computation_graph import PARAMETER, PHASES, ComputationGraph
from graphs.errors import InputError

_UPDATE = PHASES.index("update")


def check_updates_are_last(graph: ComputationGraph, doing: str) -> None:
    """Refuse a step that works on after an update, as one of one's own may.

    Args:
        graph: The step.
        doing: What cannot be done with it, ``"be cut into micro-batches"``.

    Raises:
        InputError: A later update, or an op that computes over the batch, depends on an earlier update.
    """
    op = _after_an_update(graph)
    if op is not None:
        raise InputError(
            f"graph '{graph.name}' goes on after it has updated parameters ('{graph.op_names[op]}' depends on an "
            f"update), as a 'step' of one's own does, so it cannot {doing}"
        )


def check_not_clipped(graph: ComputationGraph, doing: str) -> None:
    """Refuse a step that clips gradients by their norm.

    Args:
        graph: The step.
        doing: As for `check_updates_are_last`.

    Raises:
        InputError: An update reads what an op of the update makes that reads no parameter.
    """
    update = graph.phase == _UPDATE
    producer, consumer = graph.edge_producer, graph.consumers
    of_parameter = np.bincount(consumer, graph.is_type(PARAMETER)[producer], graph.num_ops) > 0
    if (update[producer] & ~of_parameter[producer] & update[consumer]).any():
        raise InputError(f"graph '{graph.name}' clips its gradients (clip_grad_norm), so it cannot {doing}")


def _after_an_update(graph: ComputationGraph) -> int | None:
    """The first op that works, or updates, with what depends on an update; None in an ordinary step."""
    update = graph.phase == _UPDATE
    producer, consumer = graph.edge_producer, graph.consumers
    if not (update[producer] & ~update[consumer]).any():
        return None
    after, is_update = [False] * graph.num_ops, update.tolist()
    works = ((graph.flops > 0) | (graph.batch > 0)).tolist()
    for first, then in zip(producer.tolist(), consumer.tolist(), strict=True):
        if (is_update[first] and not is_update[then]) or after[first]:
            after[then] = True
    return next((op for op in np.flatnonzero(after).tolist() if works[op] or is_update[op]), None)
