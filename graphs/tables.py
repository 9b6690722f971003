"""Embedding tables of a graph: parameters that a step looks rows up in, and the ops that do so.

Letters: ``N`` ops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphs.computation_graph import DTYPES, INPUT, PARAMETER, PHASES, ComputationGraph

LOOKUPS = ("embedding", "_embedding_bag", "_embedding_bag_forward_only")
"""Types of the ops that look rows up."""

_INTEGERS = ("int8", "uint8", "int16", "int32", "int64", "bool")
_BACKWARD, _UPDATE = PHASES.index("backward"), PHASES.index("update")


@dataclass(frozen=True)
class Table:
    """One table; ops are given by their position in the graph.

    Attributes:
        module: Path of its module.
        parameter: The op that stands for its rows.
        rows: How many there are.
        width: Of a row.
        lookups: Ops that look rows up.
        offsets: Ops without inputs that only the look-ups read, such as where each bag begins.
        backward: Ops that make its gradient of the gradient of what was looked up, in program order.
        updates: Ops that update it.
    """

    module: str
    parameter: int
    rows: int
    width: int
    lookups: tuple[int, ...]
    offsets: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()
    updates: tuple[int, ...] = ()

    @property
    def ops(self) -> tuple[int, ...]:
        """All of them."""
        return (*self.offsets, self.parameter, *self.lookups, *self.backward, *self.updates)


def find_tables(graph: ComputationGraph) -> list[Table]:
    """The tables, in program order: parameters of rows that are read by nothing but look-ups and their own update.

    A table whose weights a product reads too (tied weights) is none.
    """
    if not set(LOOKUPS) & set(graph.type_names):
        return []
    looks_up = np.isin(np.array(graph.type_names), LOOKUPS)[graph.op_type]
    offsets, consumers = graph.consumer_offsets, graph.consumers
    found = []
    for tensor in np.flatnonzero(graph.is_type(PARAMETER)[graph.tensor_producer]).tolist():
        parameter = int(graph.tensor_producer[tensor])
        readers = consumers[offsets[tensor] : offsets[tensor + 1]]
        lookups = readers[looks_up[readers]]
        updates = readers[graph.phase[readers] == _UPDATE]
        shapes = graph.output_shapes[parameter]
        if not len(lookups) or len(lookups) + len(updates) != len(readers) or not shapes or len(shapes[0]) != 2:
            continue
        rows, width = shapes[0]
        found.append(
            Table(
                graph.module_names[graph.module[parameter]],
                parameter,
                int(rows),
                int(width),
                tuple(lookups.tolist()),
                _offsets(graph, set(lookups.tolist())),
                _backward(graph, set(updates.tolist())),
                tuple(updates.tolist()),
            )
        )
    return found


def read_tensors(graph: ComputationGraph, op: int) -> list[int]:
    """The tensors that an op reads."""
    offsets, tensors = graph.input_tensors
    found: list[int] = tensors[offsets[op] : offsets[op + 1]].tolist()
    return found


def consumers_of(graph: ComputationGraph, tensor: int) -> list[int]:
    """The ops that read a tensor."""
    found: list[int] = graph.consumers[graph.consumer_offsets[tensor] : graph.consumer_offsets[tensor + 1]].tolist()
    return found


def index_bytes(graph: ComputationGraph, op: int) -> int:
    """Bytes of the indices and offsets that an op reads: what integer ops and the step's inputs make."""
    whole = 0
    for tensor in read_tensors(graph, op):
        producer = int(graph.tensor_producer[tensor])
        is_index = DTYPES[graph.dtype[producer]] in _INTEGERS or graph.type_names[graph.op_type[producer]] == INPUT
        whole += int(graph.tensor_bytes[tensor]) if is_index else 0
    return whole


def _all_readers(graph: ComputationGraph, op: int) -> set[int]:
    first, end = graph.tensor_offsets[op : op + 2].tolist()
    return {reader for tensor in range(first, end) for reader in consumers_of(graph, tensor)}


def _offsets(graph: ComputationGraph, lookups: set[int]) -> tuple[int, ...]:
    producers = {int(graph.tensor_producer[tensor]) for op in lookups for tensor in read_tensors(graph, op)}
    special = {INPUT, PARAMETER}
    return tuple(
        op
        for op in sorted(producers)
        if graph.type_names[graph.op_type[op]] not in special
        and not read_tensors(graph, op)
        and _all_readers(graph, op) <= lookups
    )


def _backward(graph: ComputationGraph, updates: set[int]) -> tuple[int, ...]:
    """Ops of the backward pass, in one module with each other, that only the updates wait for."""
    made: set[int] = set()
    waiting = set(updates)
    while waiting:
        op = waiting.pop()
        for tensor in read_tensors(graph, op):
            producer = int(graph.tensor_producer[tensor])
            of_table = graph.module[producer] == graph.module[op]
            if producer in made or graph.phase[producer] != _BACKWARD or not of_table:
                continue
            if _all_readers(graph, producer) <= made | updates:
                made.add(producer)
                waiting.add(producer)
    return tuple(sorted(made))
