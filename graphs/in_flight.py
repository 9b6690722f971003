"""A limit to how many micro-batches are in flight, for runtimes that run single ops as they become ready.

Left alone, such a runtime runs the forward pass of every micro-batch first (their paths to the end are longest), and
keeps what all of them have saved. `limit_in_flight` lets micro-batch ``m`` begin only when micro-batch ``m - L`` has
ended: a *gate*, an op that takes no time, reads an empty tensor from each last op of the one and is read by each first
op of the other. Between devices it costs the links' latency, as a message would. So any placement and schedule keeps
the limit, and none can wait for ever: the graph stays one without cycles.

Ops then stand in the order in which micro-batches are let in: ``L`` forward passes, and a backward and a forward pass
in turn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.computation_graph import INPUT, ComputationGraph
from graphs.errors import InputError
from graphs.microbatch import KINDS, MicroBatches

GATE = "gate"
"""Type of the ops that let micro-batches in."""

_FORWARD, _ONCE = KINDS.index("forward"), KINDS.index("once")


def limit_in_flight(micro: MicroBatches, limit: int) -> MicroBatches:
    """The step, of which at most `limit` micro-batches are between their first and their last op at any time.

    Args:
        micro: A step with all its micro-batches.
        limit: ``L``, at least 1; with as many as there are micro-batches the step is as it was.

    Raises:
        InputError: The limit is less than 1, or the step was made of some of its micro-batches only.
    """
    graph, count = micro.graph, micro.count
    if limit < 1:
        raise InputError(
            f"graph '{graph.name}': the limit of micro-batches in flight is {limit}; it must be at least 1"
        )
    if int(micro.micro_batch.max()) + 1 != count:
        raise InputError(
            f"graph '{graph.name}' has ops of {micro.micro_batch.max() + 1} micro-batches of {count}; make all"
        )
    if limit >= count:
        return micro
    first, last = _ends(micro)
    gates = np.arange(limit, count)  # the micro-batch that each lets in
    home = np.array([int(first[m][0]) for m in gates.tolist()])
    # Ops in a new order, gates right before what they let in.
    key = np.concatenate([_key(micro, limit), limit + 2.0 * (gates - limit) + 0.5])
    order = np.argsort(key, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))

    def column(values: NDArray[Any], of_gate: Any) -> NDArray[Any]:
        return np.concatenate([values, np.broadcast_to(of_gate, (len(gates), *values.shape[1:]))])[order].astype(
            values.dtype
        )

    names = [*graph.op_names, *(f"micro{m}/gate" for m in gates.tolist())]
    shapes = [*graph.output_shapes, *(() for _ in gates)]
    types = graph.type_names if GATE in graph.type_names else (*graph.type_names, GATE)
    new = ComputationGraph(
        name=graph.name,
        op_names=tuple(names[i] for i in order.tolist()),
        type_names=types,
        op_type=column(graph.op_type, types.index(GATE)),
        module_names=graph.module_names,
        module=column(graph.module, graph.module[home]),
        module_call=column(graph.module_call, graph.module_call[home]),
        phase=column(graph.phase, graph.phase[home]),
        flops=column(graph.flops, 0),
        bytes_accessed=column(graph.bytes_accessed, 0),
        dtype=column(graph.dtype, graph.dtype[home]),
        batch=column(graph.batch, 0),
        resident_bytes=column(graph.resident_bytes, 0),
        allowed_kinds=column(graph.allowed_kinds, graph.allowed_kinds[home]),
        output_shapes=tuple(shapes[i] for i in order.tolist()),
        colocation=column(graph.colocation, graph.colocation[home]),
        time_s={spec: column(times, np.nan) for spec, times in graph.time_s.items()},
        aliases=graph.aliases,
        tokens=graph.tokens,
        **_tensors(graph, gates - limit, first, last, rank),
    )
    return replace(
        micro,
        graph=new,
        micro_batch=column(micro.micro_batch, gates),
        kind=column(micro.kind, _FORWARD),
        origin=column(micro.origin, micro.origin[home]),
    )


def _ends(micro: MicroBatches) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """The first and the last ops of each micro-batch: those that read, or are read by, no other of its ops."""
    graph, number = micro.graph, micro.micro_batch
    works = (number >= 0) & ~graph.is_type(INPUT)
    inside = works[graph.edge_producer] & (number[graph.edge_producer] == number[graph.consumers])
    reads = np.bincount(graph.consumers[inside], minlength=graph.num_ops) > 0
    is_read = np.bincount(graph.edge_producer[inside], minlength=graph.num_ops) > 0
    first, last = works & ~reads, works & ~is_read
    each = range(micro.count)
    return [np.flatnonzero(first & (number == m)) for m in each], [np.flatnonzero(last & (number == m)) for m in each]


def _key(micro: MicroBatches, limit: int) -> NDArray[np.float64]:
    """Where each op goes: ``L`` forward passes, then a backward and a forward pass in turn."""
    number = micro.micro_batch.astype(np.float64)
    forward = micro.kind == _FORWARD
    key = np.where(forward, np.where(number < limit, number, limit + 2 * (number - limit) + 1), limit + 2 * number)
    updates = (micro.kind == _ONCE) & (np.bincount(micro.graph.consumers, minlength=micro.graph.num_ops) > 0)
    return np.where(micro.kind == _ONCE, np.where(updates, np.inf, -1.0), key)


def _tensors(
    graph: ComputationGraph,
    ended: NDArray[np.int64],
    first: list[NDArray[np.int64]],
    last: list[NDArray[np.int64]],
    rank: NDArray[np.int64],
) -> dict[str, Any]:
    """The columns of tensors and edges; gate ``i`` waits for micro-batch ``ended[i]``."""
    limit = len(first) - len(ended)
    gate = graph.num_ops + np.arange(len(ended))
    to_gate = [last[m] for m in ended.tolist()]
    producer = np.concatenate([graph.tensor_producer, *to_gate, gate])
    number = graph.num_tensors + np.arange(len(producer) - graph.num_tensors)
    out = number[-len(gate) :]
    let_in = [first[m + limit] for m in ended.tolist()]
    tensor = np.concatenate([graph.edge_tensor, number[: -len(gate)], np.repeat(out, list(map(len, let_in)))])
    reader = np.concatenate([graph.consumers, np.repeat(gate, list(map(len, to_gate))), *let_in])
    new_producer = rank[producer]
    order = np.argsort(new_producer, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    edges = np.lexsort((rank[reader], place[tensor]))
    counts = np.bincount(place[tensor], minlength=len(order))
    more = len(producer) - graph.num_tensors
    return {
        "tensor_producer": new_producer[order].astype(np.int32),
        "tensor_bytes": np.concatenate([graph.tensor_bytes, np.zeros(more, dtype=np.int64)])[order],
        "tensor_resident": np.concatenate([graph.tensor_resident, np.zeros(more, dtype=np.bool_)])[order],
        "tensor_transfer_s": np.concatenate([graph.tensor_transfer_s, np.full(more, np.nan)])[order],
        "consumer_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "consumers": rank[reader][edges].astype(np.int32),
    }
