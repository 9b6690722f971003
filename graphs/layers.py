"""The row of repeated layers of a model, such as a language model's decoder layers, by its module paths.

Letters: ``N`` ops.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphs.computation_graph import PARAMETER, ComputationGraph

_NUMBERED = re.compile(r"(.*?[^.\d][^.]*)\.(\d+)(?:\.|$)")
"""The outermost numbered module of a path: what holds it, and its number."""


@dataclass(frozen=True, eq=False)
class Layers:
    """Where each op is in the row of layers.

    Attributes:
        name: The module that holds the layers, for example ``"model.layers"``.
        count: How many there are.
        of_op: ``int64[N]``: -1 before the first layer (embeddings, masks, inputs), the layer's number, or `count`
            behind the last one (the last normalisation and the head). An op that is in no layer is before them where it
            comes before the last layer's end in the program, as what all layers read does.
    """

    name: str
    count: int
    of_op: NDArray[np.int64]


def find_layers(graph: ComputationGraph) -> Layers | None:
    """The row of layers in which most of the resident bytes are; None where no two layers are in a row.

    A parameter is where what reads it is. One that is read on both sides of the layers (tied embeddings) is behind
    them, and so is what reads it before them: it exists once.
    """
    matches = [_NUMBERED.match(path) for path in graph.module_names]
    held = graph.resident_bytes.sum(axis=1).astype(np.float64)
    weight = np.bincount(graph.module, held, len(matches)) + 1e-9 * np.bincount(graph.module, minlength=len(matches))
    rows: dict[str, dict[int, float]] = {}
    for match, bytes_held in zip(matches, weight.tolist(), strict=True):
        if match:
            numbers = rows.setdefault(match[1], {})
            numbers[int(match[2])] = numbers.get(int(match[2]), 0.0) + bytes_held
    rows = {name: numbers for name, numbers in rows.items() if len(numbers) > 1}
    if not rows:
        return None
    name = max(rows, key=lambda row: sum(rows[row].values()))
    order = sorted(rows[name])
    rank = {number: i for i, number in enumerate(order)}
    of_module = np.array([rank[int(m[2])] if m and m[1] == name else -1 for m in matches], dtype=np.int64)
    of_op = of_module[graph.module]
    computes = (graph.flops > 0) | (graph.bytes_accessed > 0)
    inside = np.flatnonzero((of_op >= 0) & computes)
    last = int(inside[-1]) if len(inside) else -1
    outside = of_module[graph.module] < 0
    of_op[outside & (np.arange(graph.num_ops) > last)] = len(order)
    _follow_readers(graph, of_op, outside, len(order))
    return Layers(name, len(order), of_op)


def _follow_readers(graph: ComputationGraph, of_op: NDArray[np.int64], outside: NDArray[np.bool_], behind: int) -> None:
    """Put parameters outside the layers where what reads them is, in place."""
    offsets = graph.consumer_offsets
    parameter = graph.is_type(PARAMETER)
    for tensor in np.flatnonzero(parameter[graph.tensor_producer] & outside[graph.tensor_producer]).tolist():
        readers = graph.consumers[offsets[tensor] : offsets[tensor + 1]]
        readers = readers[outside[readers]]
        if (of_op[readers] == behind).any():
            of_op[graph.tensor_producer[tensor]] = behind
            of_op[readers] = behind
