"""The parts of a training step, as micro-batches need them: what is done once, what makes which gradients, what scales.

Letters: ``N`` ops, ``T`` tensors, ``M`` micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from graphs.computation_graph import (
    DTYPE_BYTES,
    DTYPES,
    INPUT,
    PARAMETER,
    PHASES,
    RESIDENT_PARTS,
    ComputationGraph,
    Shape,
)
from graphs.errors import InputError

CONVOLUTION_BACKWARD = "convolution_backward"

_BACKWARD, _UPDATE = PHASES.index("backward"), PHASES.index("update")


@dataclass(frozen=True, eq=False)
class Parts:
    """What each op of a step is.

    Attributes:
        parameter: ``bool[N]``.
        once: ``bool[N]``: parameters, updates, the additions that are bound to them, and what follows.
        backward: ``bool[N]``: of the backward pass, or after something of it; not what is done once.
        weight_gradient: ``bool[N]``: of these those that make nothing but gradients of parameters.
        summed: ``bool[T]``: contributions to gradients, which are added up over micro-batches.
        sparse_update: ``bool[N]``: updates of the rows that the batch touches.
    """

    parameter: NDArray[np.bool_]
    once: NDArray[np.bool_]
    backward: NDArray[np.bool_]
    weight_gradient: NDArray[np.bool_]
    summed: NDArray[np.bool_]
    sparse_update: NDArray[np.bool_]


def find_parts(graph: ComputationGraph) -> Parts:
    """Find the parts of a step."""
    consumer, edge_tensor = graph.consumers, graph.edge_tensor
    parameter = graph.is_type(PARAMETER)
    once = (graph.phase == _UPDATE) & ~parameter
    sparse = _sparse_updates(graph, parameter, once)
    bound = graph.colocation
    chain = np.isin(bound, bound[once & (bound >= 0)]) & (graph.phase == _BACKWARD) & ~parameter
    readers = _rows(graph)
    is_once = once.tolist()
    for op in np.flatnonzero(chain)[::-1].tolist():  # an addition is done once where all that reads it is
        if readers[op] and all(is_once[r] for r in readers[op]):
            is_once[op] = True
    after = (graph.phase != 0).tolist()
    for op, following in enumerate(readers):
        if is_once[op]:
            for reader in following:
                is_once[reader] = True
        if after[op] and not parameter[op]:
            for reader in following:
                after[reader] = True
    after_once = np.array(is_once)
    once = after_once | parameter
    backward = np.array(after) & ~once
    to_once = np.zeros(graph.num_tensors, dtype=np.bool_)
    to_once[edge_tensor[after_once[consumer]]] = True
    sparse_tensor = np.zeros(graph.num_tensors, dtype=np.bool_)
    sparse_tensor[edge_tensor[sparse[consumer]]] = True
    summed = to_once & backward[graph.tensor_producer] & ~sparse_tensor
    weight = _weight_gradients(graph, backward, after_once, readers)
    return Parts(parameter, once, backward, weight, summed, sparse)


def _rows(graph: ComputationGraph) -> list[list[int]]:
    """The ops that read what each op makes."""
    edge_offsets = graph.consumer_offsets[graph.tensor_offsets].tolist()
    consumers = graph.consumers.tolist()
    return [consumers[a:b] for a, b in pairwise(edge_offsets)]


def _sparse_updates(
    graph: ComputationGraph, parameter: NDArray[np.bool_], update: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Updates that access less than the parameter, its gradient and the result, or that read which rows are meant."""
    producer, consumer = graph.edge_producer, graph.consumers
    size = graph.resident_bytes[:, RESIDENT_PARTS.index("parameter")]
    edges = np.flatnonzero(parameter[producer] & update[consumer])
    updated = np.bincount(consumer[edges], size[producer[edges]], graph.num_ops)
    few = (graph.bytes_accessed > 0) & (graph.bytes_accessed < 3 * updated)
    rows = np.bincount(consumer, (graph.phase[producer] == 0) & ~parameter[producer], graph.num_ops) > 0
    return update & (updated > 0) & (few | rows)


def _weight_gradients(
    graph: ComputationGraph, backward: NDArray[np.bool_], after: NDArray[np.bool_], readers: Sequence[Sequence[int]]
) -> NDArray[np.bool_]:
    """Ops that only make gradients of parameters, and ops that only make what these turn into another dtype or form.

    The latter have the same number of elements; what a gradient is a sum or a product of does not count.
    """
    weight = [False] * graph.num_ops
    done, is_backward = after.tolist(), backward.tolist()
    for op in np.flatnonzero(backward)[::-1].tolist():
        following = readers[op]
        if not following:
            continue
        if all(done[r] for r in following):
            weight[op] = True
        elif all(done[r] or (is_backward[r] and weight[r]) for r in following):
            own = _elements(graph.output_shapes[op])
            weight[op] = own is not None and all(
                own == _elements(graph.output_shapes[r]) for r in following if not done[r]
            )
    return np.array(weight)


def _elements(shapes: Sequence[Shape]) -> int | None:
    return int(np.prod(shapes[0])) if len(shapes) == 1 else None


def split_convolutions(graph: ComputationGraph, parts: Parts) -> tuple[ComputationGraph, NDArray[np.int64]]:
    """The graph with ``convolution_backward`` as two ops, and for each op the one that it was.

    The gradient of the input keeps the name; that of the weight (and bias) is behind it, as ``.../weight``.
    """
    same = np.arange(graph.num_ops, dtype=np.int64)
    to_weight = parts.summed
    made_weight = np.bincount(graph.tensor_producer, to_weight, graph.num_ops) > 0
    made_other = np.bincount(graph.tensor_producer, ~to_weight, graph.num_ops) > 0
    both = graph.is_type(CONVOLUTION_BACKWARD) & made_weight & made_other
    if not both.any():
        return graph, same
    origin = np.repeat(same, 1 + both)
    second = np.zeros(len(origin), dtype=np.bool_)
    second[1:] = origin[1:] == origin[:-1]
    first_of = np.flatnonzero(~second)
    new_producer = first_of[graph.tensor_producer] + (to_weight & both[graph.tensor_producer])
    tensor_order = np.argsort(new_producer, kind="stable")
    tensor_rank = np.empty(len(tensor_order), dtype=np.int64)
    tensor_rank[tensor_order] = np.arange(len(tensor_order))

    # Which half reads what: the weight goes to the input's gradient, the input to the weight's, and what comes to both.
    producer, consumer, edge_tensor = graph.edge_producer, graph.consumers, graph.edge_tensor
    of_both = both[consumer]
    comes = parts.backward[producer]
    is_weight = np.zeros(graph.num_edges, dtype=np.bool_)
    for op in np.flatnonzero(both).tolist():
        edges = np.flatnonzero((consumer == op) & ~comes)
        own = edges[parts.parameter[producer[edges]]]
        if len(own) == 0:  # a copy of the weight in another dtype: as large as its gradient
            sizes = {int(b) for b in graph.tensor_bytes[(graph.tensor_producer == op) & to_weight]}
            own = np.array([e for e in edges.tolist() if int(graph.tensor_bytes[edge_tensor[e]]) in sizes], dtype=int)
        is_weight[own] = True
    to_first = ~of_both | comes | is_weight
    to_second = of_both & (comes | ~is_weight)
    tensor = np.concatenate([edge_tensor[to_first], edge_tensor[to_second]])
    reader = np.concatenate([first_of[consumer[to_first]], first_of[consumer[to_second]] + 1])
    order = np.lexsort((reader, tensor_rank[tensor]))
    counts = np.bincount(tensor_rank[tensor], minlength=graph.num_tensors)

    own_bytes = np.where(to_weight, 0, graph.tensor_bytes)
    first_bytes = np.bincount(graph.tensor_producer, own_bytes, graph.num_ops)
    read_first = of_both & to_first
    first_bytes += np.bincount(consumer[read_first], graph.tensor_bytes[edge_tensor[read_first]], graph.num_ops)
    only_first = first_bytes - np.bincount(
        consumer[of_both & comes], graph.tensor_bytes[edge_tensor[of_both & comes]], graph.num_ops
    )
    accessed = graph.bytes_accessed[origin]
    halved = both[origin]
    accessed = np.where(halved & ~second, np.minimum(first_bytes[origin].astype(np.int64), accessed), accessed)
    accessed = np.where(second, np.maximum(accessed - only_first[origin].astype(np.int64), 0), accessed)
    flops = np.where(halved, graph.flops[origin] // 2, graph.flops[origin])
    flops[second] += (graph.flops % 2)[origin][second]
    resident = graph.resident_bytes[origin]
    resident[second] = 0
    taken = set(graph.op_names)
    names, shapes = [], []
    for op, is_second in zip(origin.tolist(), second.tolist(), strict=True):
        name = graph.op_names[op]
        if is_second:
            name = f"{name}/weight"
            while name in taken:
                name += "_"
        names.append(name)
        made = graph.output_shapes[op]
        shapes.append(made if not both[op] else made[1:] if is_second else made[:1])
    bound = graph.colocation.astype(np.int64)
    alone = np.arange(graph.num_ops) + (int(bound.max(initial=-1)) + 1)
    bound = np.where((bound < 0) & both, alone, bound)
    made_graph = replace(
        graph,
        op_names=tuple(names),
        op_type=graph.op_type[origin],
        module=graph.module[origin],
        module_call=graph.module_call[origin],
        phase=graph.phase[origin],
        flops=flops,
        bytes_accessed=accessed,
        dtype=graph.dtype[origin],
        batch=graph.batch[origin],
        resident_bytes=resident,
        allowed_kinds=graph.allowed_kinds[origin],
        output_shapes=tuple(shapes),
        tensor_producer=new_producer[tensor_order].astype(np.int32),
        tensor_bytes=graph.tensor_bytes[tensor_order],
        tensor_resident=graph.tensor_resident[tensor_order],
        consumer_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        consumers=reader[order].astype(np.int32),
        colocation=bound[origin].astype(np.int32),
        time_s={spec: np.where(halved, times[origin] / 2, times[origin]) for spec, times in graph.time_s.items()},
    )
    return made_graph, origin


def batch_of(graph: ComputationGraph) -> int | None:
    """The size of a step's batch: the dimension of an input that most ops work over; None where inputs have no shape.

    Where no op says what it works over it is the leading dimension of the first input.
    """
    shapes = [shape for op in np.flatnonzero(graph.is_type(INPUT)).tolist() for shape in graph.output_shapes[op]]
    sizes = [int(shape[0]) for shape in shapes if shape and shape[0] > 0]
    if not sizes:
        return None
    sizes += [int(size) for shape in shapes for size in shape[1:] if size > 0]
    return max(dict.fromkeys(sizes), key=lambda size: int((graph.batch == size).sum()))


def find_scaled(graph: ComputationGraph, parts: Parts) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """``(bool[N], bool[T])``: the ops and the tensors whose size depends on that of the batch.

    An op does where it follows from an input, or works over the batch; a tensor where its shape says so.
    """
    depends = graph.is_type(INPUT) | (graph.batch > 0)
    follows = depends.tolist()
    for op, following in enumerate(_rows(graph)):
        if follows[op]:
            for reader in following:
                follows[reader] = True
    op_scales = np.array(follows) & ~parts.once
    batch = batch_of(graph)
    producer = graph.tensor_producer.tolist()
    tensor = op_scales[graph.tensor_producer] & ~parts.summed
    if batch is None:
        return op_scales, tensor
    dtype_bytes = [DTYPE_BYTES[dtype] for dtype in DTYPES]
    sizes, dtypes = graph.tensor_bytes.tolist(), graph.dtype.tolist()
    for t in np.flatnonzero(tensor).tolist():
        shapes = graph.output_shapes[producer[t]]
        if not shapes:
            continue
        if len(shapes) > 1:  # the output that it is, if sizes tell
            element = dtype_bytes[dtypes[producer[t]]]
            fitting = [s for s in shapes if int(np.prod(s)) * element == sizes[t]]
            shapes = tuple(fitting) or shapes
        tensor[t] = any(_batch_axis(shape, batch) is not None for shape in shapes)
    return op_scales, tensor


def _batch_axis(shape: Shape, batch: int) -> int | None:
    """The dimension of a shape that grows with the batch."""
    if not shape or 0 in shape:
        return None
    if shape[0] % batch == 0:
        return 0
    return next((axis for axis, size in enumerate(shape) if size == batch and batch > 1), None)


def scaled_graph(
    graph: ComputationGraph, parts: Parts, scaled: tuple[NDArray[np.bool_], NDArray[np.bool_]], count: int
) -> ComputationGraph:
    """The step with one of `count` parts of the batch.

    Raises:
        InputError: The batch cannot be divided.
    """
    batch = batch_of(graph)
    if batch is not None and batch % count:
        raise InputError(
            f"graph '{graph.name}' has a batch of {batch}, which {count} micro-batches do not divide; take a number "
            "that does, or capture another batch"
        )
    op_scales, tensor_scales = scaled
    sizes = graph.tensor_bytes.astype(np.float64)
    producer, consumer, edge_tensor = graph.tensor_producer, graph.consumers, graph.edge_tensor

    def touched(which: NDArray[np.bool_]) -> NDArray[np.float64]:
        chosen = np.where(which, sizes, 0.0)
        total: NDArray[np.float64] = np.zeros(graph.num_ops)
        total += np.bincount(producer, chosen, graph.num_ops)
        total += np.bincount(consumer, chosen[edge_tensor], graph.num_ops)
        return total

    accessed = graph.bytes_accessed.astype(np.float64)
    fixed = touched(~tensor_scales)
    rest = np.maximum(accessed - np.minimum(touched(tensor_scales), accessed), 0.0)
    fixed = np.where(rest >= fixed, fixed, 0.0)  # what reads or writes only rows of a table has as many as the batch
    accessed = np.where(op_scales, fixed + (accessed - fixed) / count, accessed)
    flops = np.where(op_scales, graph.flops // count, graph.flops)
    resident = graph.resident_bytes.copy()
    stays = graph.is_type(INPUT) & op_scales
    resident[stays] //= count
    shapes = graph.output_shapes
    if batch is not None:
        memo: dict[tuple[Shape, ...], tuple[Shape, ...]] = {}
        scales = op_scales.tolist()
        shapes = tuple(
            memo.setdefault(own, tuple(_scaled_shape(s, batch, count) for s in own)) if scales[op] else own
            for op, own in enumerate(shapes)
        )
    return replace(
        graph,
        name=f"1/{count} of {graph.name}",
        flops=flops,
        bytes_accessed=np.round(accessed).astype(np.int64),
        batch=np.where(op_scales, -(-graph.batch // count), graph.batch).astype(np.int32),
        resident_bytes=resident,
        output_shapes=shapes,
        tensor_bytes=np.where(tensor_scales, -(-graph.tensor_bytes // count), graph.tensor_bytes),
        time_s={spec: np.where(op_scales, times / count, times) for spec, times in graph.time_s.items()},
    )


def _scaled_shape(shape: Shape, batch: int, count: int) -> Shape:
    axis = _batch_axis(shape, batch)
    if axis is None:
        return shape
    return (*shape[:axis], shape[axis] // count, *shape[axis + 1 :])
