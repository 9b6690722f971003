"""Micro-batches: a training step as parts of its batch that go through the model one after another.

`microbatch` turns the graph of one step into that of a step in ``M`` micro-batches. Every op of the forward and the
backward pass is there ``M`` times, for an ``M``-th of the batch each; parameters, updates and the chains of additions
that are bound to them are there once. Two ways lead there:

- `microbatch` *scales* the graph of the whole batch. FLOPs are exact. Bytes of tensors and ops, shapes and the rows
  that fill a tile shrink where they depend on the batch; profiled times are divided by ``M``, as if ops took no time
  to start. It is all that can be done for a graph file or an ONNX model.
- `repeat` repeats the graph of one micro-batch, exactly. `graphs.sources.load_microbatches` captures PyTorch models
  with a batch of that size.

**Gradients** of parameters are added up where they are made: the op ``accumulate`` of micro-batch ``m`` adds a
contribution to the sum of those before, and an update (or the sum over the uses of a tied weight) reads the last sum.
So one tensor leaves the op's device, and not one a micro-batch. While a sum is made, both the sum before and the new
one take memory. Rows of sparse gradients are not summed: the update reads those of all micro-batches.

**Convolutions.** ``convolution_backward`` makes the gradients of its input and of its weight; where both are wanted it
becomes two ops (as PyTorch's ``output_mask`` allows), so that the latter can be put off. Both read the gradient that
comes, and have half of the FLOPs.

**Order.** Ops stand in the order that GPipe runs them: all forward passes, then all backward passes. All copies of an
op share a device by constraint.

Letters: ``N`` ops, ``T`` tensors, ``E`` edges, ``M`` micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.after_updates import check_updates_are_last
from graphs.colocation.groups import Groups, make_groups
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError
from graphs.microbatch_parts import Parts, find_parts, find_scaled, scaled_graph, split_convolutions

KINDS = ("forward", "input_gradient", "weight_gradient", "accumulate", "once")
"""What an op of a step in micro-batches is; `MicroBatches.kind` indexes this tuple."""

_FORWARD, _INPUT_GRADIENT, _WEIGHT_GRADIENT, _ACCUMULATE, _ONCE = range(len(KINDS))

_DOING = "be cut into micro-batches"

ACCUMULATE = "accumulate"
"""Type of the ops that add up the gradients of micro-batches."""


@dataclass(frozen=True, eq=False)
class MicroBatches:
    """A step in micro-batches.

    Attributes:
        graph: The whole step, ``N`` ops; or the first micro-batches of it, where no more were asked for.
        count: ``M``, of the whole step.
        micro_batch: ``int32[N]``, from 0; -1 for what is there once.
        kind: ``int8[N]``, index into `KINDS`. What makes gradients of activations and of parameters in one is an input
            gradient; what is no training step is forward. Parameters are there once.
        origin: ``int64[N]``: the op of the graph that was given; for an accumulation the op that makes the gradient.
    """

    graph: ComputationGraph
    count: int
    micro_batch: NDArray[np.int32]
    kind: NDArray[np.int8]
    origin: NDArray[np.int64]

    def groups(self, groups: Groups) -> Groups:
        """Groups of the step in micro-batches, from those of the graph that was given: copies share their op's group.

        Raises:
            InputError: The groups are of another graph.
        """
        if len(groups.group_of_op) <= self.origin.max():
            raise InputError(
                f"the groups cover {len(groups.group_of_op)} ops, but graph '{self.graph.name}' was made of one with "
                f"{self.origin.max() + 1}; group the graph that was given"
            )
        families = [groups.family_names[f] for f in groups.family]
        return make_groups(groups.group_of_op[self.origin], list(groups.names), families, groups.step.tolist())


def microbatch(graph: ComputationGraph, count: int, *, batches: int = 1, made: int | None = None) -> MicroBatches:
    """The step of a graph, its batch cut into micro-batches.

    Args:
        graph: The step with the whole batch.
        count: ``M``, at least 1; one micro-batch is the graph as it is.
        batches: How many batches of that size a step takes: there are ``M * batches`` micro-batches.
        made: As for `repeat`.

    Raises:
        InputError: `count` is less than 1, the batch has no such parts, or the step goes on after updates.
    """
    _check_count(graph, count)
    if count * batches == 1:
        return _one(graph)
    check_updates_are_last(graph, _DOING)
    parts = find_parts(graph)
    part = scaled_graph(graph, parts, find_scaled(graph, parts), count) if count > 1 else graph
    return _repeat(_rows_of(part, batches), count * batches, made)


def repeat(graph: ComputationGraph, count: int, *, made: int | None = None) -> MicroBatches:
    """A step of several micro-batches, each of which is the step of a graph.

    Args:
        graph: The step with the batch of one micro-batch.
        count: ``M``, at least 1; one micro-batch is the graph as it is.
        made: Make the ops of so many micro-batches only, at least 2: all that it takes to know what each costs.

    Raises:
        InputError: `count` is less than 1, or the step goes on after updates.
    """
    _check_count(graph, count)
    if count == 1:
        return _one(graph)
    check_updates_are_last(graph, _DOING)
    return _repeat(_rows_of(graph, count), count, made)


def _rows_of(graph: ComputationGraph, times: int) -> ComputationGraph:
    """The step with updates of single rows that touch so many times the rows."""
    sparse = find_parts(graph).sparse_update if times > 1 else np.zeros(0, dtype=np.bool_)
    if not sparse.any():
        return graph
    return replace(
        graph,
        flops=np.where(sparse, graph.flops * times, graph.flops),
        bytes_accessed=np.where(sparse, graph.bytes_accessed * times, graph.bytes_accessed),
    )


def _check_count(graph: ComputationGraph, count: int) -> None:
    if count < 1:
        raise InputError(f"graph '{graph.name}': the number of micro-batches is {count}; it must be at least 1")


def _one(graph: ComputationGraph) -> MicroBatches:
    parts = find_parts(graph)
    return MicroBatches(
        graph,
        1,
        np.where(parts.once, -1, 0).astype(np.int32),
        _kinds(parts),
        np.arange(graph.num_ops, dtype=np.int64),
    )


def _kinds(parts: Parts) -> NDArray[np.int8]:
    kind = np.where(parts.backward, _INPUT_GRADIENT, _FORWARD)
    kind[parts.weight_gradient] = _WEIGHT_GRADIENT
    kind[parts.once] = _ONCE
    return kind.astype(np.int8)


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Where the ops of one micro-batch go.

    Attributes:
        of_op: ``int64[N, M]``: the new number of each copy; equal in a row where an op is there once.
        of_sum: ``int64[K, M]``: of the accumulations of ``K`` gradients; micro-batch 0 has none.
    """

    of_op: NDArray[np.int64]
    of_sum: NDArray[np.int64]


def _repeat(given: ComputationGraph, whole: int, made: int | None) -> MicroBatches:
    """Repeat a graph, which may need its convolutions split, for all micro-batches of the whole or the first ones."""
    count = whole if made is None else min(whole, made)
    parts = find_parts(given)
    graph, origin_of_part = split_convolutions(given, parts)
    if graph is not given:
        parts = find_parts(graph)
    summed = np.flatnonzero(parts.summed)  # [K] tensors
    numbers, origin, micro_batch, is_sum = _number(graph, parts, summed, count)
    kind = _kinds(parts)[origin]
    kind[is_sum] = _ACCUMULATE
    columns = _columns(graph, origin, micro_batch, is_sum, count)
    tensors = _tensors(graph, parts, summed, numbers, count)
    accessed = columns["bytes_accessed"]
    accessed[numbers.of_sum[:, 1:]] = 3 * graph.tensor_bytes[summed][:, None]
    new = ComputationGraph(name=f"{whole} micro-batches of {graph.name}", aliases=graph.aliases, **columns, **tensors)
    return MicroBatches(new, whole, micro_batch, kind, origin_of_part[origin])


def _number(
    graph: ComputationGraph, parts: Parts, summed: NDArray[np.int64], count: int
) -> tuple[_Numbers, NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]:
    """Number the new ops: forward passes, backward passes (accumulations right after what they add), the rest once.

    Parameters keep their place in the first forward pass.
    """
    parameter = parts.parameter
    each = ~parts.once
    first = np.flatnonzero((each & ~parts.backward) | parameter)
    forward = np.flatnonzero(each & ~parts.backward)
    backward = np.flatnonzero(each & parts.backward)
    last = np.flatnonzero(parts.once & ~parameter)
    maker = graph.tensor_producer[summed].astype(np.int64)
    # A backward pass with its accumulations: sorted by op, accumulations of an op behind it, in tensor order.
    with_sums = np.argsort(np.concatenate([2 * backward, 2 * maker + 1]), kind="stable")
    later = np.concatenate([backward, maker])[with_sums]
    later_is_sum = np.concatenate([np.zeros(len(backward), bool), np.ones(len(maker), bool)])[with_sums]

    of_op = np.full((graph.num_ops, count), -1, dtype=np.int64)
    of_sum = np.full((len(summed), count), -1, dtype=np.int64)
    blocks: list[tuple[NDArray[np.int64], int, NDArray[np.bool_] | None]] = [(first, 0, None)]
    blocks += [(forward, m, None) for m in range(1, count)]
    blocks += [(backward, 0, None), *((later, m, later_is_sum) for m in range(1, count)), (last, -1, None)]
    start = 0
    for members, m, sums in blocks:
        new = np.arange(start, start + len(members))
        start += len(members)
        if sums is None:
            of_op[members, max(m, 0)] = new
        else:
            of_op[members[~sums], m] = new[~sums]
            of_sum[with_sums[sums] - len(backward), m] = new[sums]
    of_op[parts.once] = of_op[parts.once, :1]
    origin = np.concatenate([members for members, _, _ in blocks])
    number = np.concatenate([np.full(len(members), m, dtype=np.int32) for members, m, _ in blocks])
    number[parts.once[origin]] = -1
    is_sum = np.concatenate([np.zeros(len(b), bool) if sums is None else sums for b, _, sums in blocks])
    return _Numbers(of_op, of_sum), origin, number, is_sum


def _columns(
    graph: ComputationGraph,
    origin: NDArray[np.int64],
    micro_batch: NDArray[np.int32],
    is_sum: NDArray[np.bool_],
    count: int,
) -> dict[str, Any]:
    """The columns of ops but for the bytes that accumulations access."""
    names = graph.op_names
    starts = [*(f"micro{m}/" for m in range(count)), ""]  # the last one of what is there once: its number is -1
    op_names = [
        f"{starts[m]}{names[op]}/accumulate" if sums else f"{starts[m]}{names[op]}"
        for op, m, sums in zip(origin.tolist(), micro_batch.tolist(), is_sum.tolist(), strict=True)
    ]
    if len(set(op_names)) < len(op_names):
        _make_unique(op_names)

    def column(values: NDArray[Any], of_sum: int) -> NDArray[Any]:
        made = values[origin]
        made[is_sum] = of_sum
        return made

    # What takes memory for a whole step is there once; but each micro-batch has its own part of an input that stays.
    resident = graph.resident_bytes[origin]
    resident[(is_sum | (micro_batch > 0)) & ~graph.is_type("input")[origin]] = 0
    shapes = [graph.output_shapes[op] for op in origin.tolist()]
    for new in np.flatnonzero(is_sum).tolist():
        shapes[new] = ()
    bound = graph.colocation.astype(np.int64)
    alone = np.arange(graph.num_ops) + (int(bound.max(initial=-1)) + 1)
    bound = np.where(bound >= 0, bound, alone)[origin]
    copies = np.bincount(bound)[bound]
    bound = np.where((copies > 1) | (graph.colocation[origin] >= 0), bound, -1)
    type_names = graph.type_names if ACCUMULATE in graph.type_names else (*graph.type_names, ACCUMULATE)
    return {
        "op_names": tuple(op_names),
        "type_names": type_names,
        "op_type": column(graph.op_type, type_names.index(ACCUMULATE)),
        "module_names": graph.module_names,
        "module": graph.module[origin],
        "module_call": graph.module_call[origin],
        "phase": column(graph.phase, 1),
        "flops": column(graph.flops, 0),
        "bytes_accessed": column(graph.bytes_accessed, 0),
        "dtype": graph.dtype[origin],
        "batch": column(graph.batch, 0),
        "resident_bytes": resident,
        "allowed_kinds": graph.allowed_kinds[origin],
        "output_shapes": tuple(shapes),
        "colocation": bound.astype(np.int32),
        "time_s": {spec: np.where(is_sum, np.nan, times[origin]) for spec, times in graph.time_s.items()},
    }


def _make_unique(op_names: list[str]) -> None:
    """Number names that are there twice: an op may make the gradients of several parameters."""
    seen: set[str] = set()
    for i, name in enumerate(op_names):
        number = 1
        while op_names[i] in seen:
            op_names[i] = f"{name}_{number}"
            number += 1
        seen.add(op_names[i])


def _tensors(
    graph: ComputationGraph, parts: Parts, summed: NDArray[np.int64], numbers: _Numbers, count: int
) -> dict[str, Any]:
    """The columns of tensors and edges."""
    producer, edge_tensor, consumer = graph.tensor_producer, graph.edge_tensor, graph.consumers
    once_tensor = parts.once[producer]
    alone, copied = np.flatnonzero(once_tensor), np.flatnonzero(~once_tensor)
    # Tensors so far: those there once, then [copied, M], then the sums [K, M - 1].
    start = np.cumsum([0, len(alone), len(copied) * count])
    of_tensor = np.empty((graph.num_tensors, count), dtype=np.int64)
    of_tensor[alone] = np.arange(len(alone))[:, None]
    of_tensor[copied] = start[1] + np.arange(len(copied) * count).reshape(-1, count)
    of_sum = start[2] + np.arange(len(summed) * (count - 1)).reshape(-1, count - 1)  # of micro-batches 1 to M - 1
    new_producer = np.concatenate(
        [numbers.of_op[producer[alone], 0], numbers.of_op[producer[copied]].ravel(), numbers.of_sum[:, 1:].ravel()]
    )
    sizes = [graph.tensor_bytes[alone], np.repeat(graph.tensor_bytes[copied], count)]
    stays = [graph.tensor_resident[alone], np.repeat(graph.tensor_resident[copied], count)]
    sizes.append(np.repeat(graph.tensor_bytes[summed], count - 1))
    stays.append(np.zeros(len(sizes[2]), dtype=np.bool_))
    given_s = graph.tensor_transfer_s
    takes_s = [given_s[alone], np.repeat(given_s[copied], count), np.repeat(given_s[summed], count - 1)]

    to_sum = np.full(graph.num_tensors, -1, dtype=np.int64)
    to_sum[summed] = np.arange(len(summed))
    through_sum = parts.once[consumer] & (to_sum[edge_tensor] >= 0)
    plain, via = np.flatnonzero(~through_sum), np.flatnonzero(through_sum)
    last_sum = of_sum[to_sum[edge_tensor[via]], -1]
    edges = [
        (of_tensor[edge_tensor[plain]], numbers.of_op[consumer[plain]]),
        (last_sum, numbers.of_op[consumer[via], 0]),
        (of_tensor[summed, :1], numbers.of_sum[:, 1:2]),  # the first contribution begins the sum
        (of_tensor[summed, 1:], numbers.of_sum[:, 1:]),
        (of_sum[:, :-1], numbers.of_sum[:, 2:]),
    ]
    tensor = np.concatenate([t.ravel() for t, _ in edges])
    reader = np.concatenate([np.broadcast_to(r, t.shape).ravel() for t, r in edges])
    order = np.argsort(new_producer, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    most = int(numbers.of_op.max()) + 1
    keys = np.sort(rank[tensor] * most + reader)  # by tensor, then reader
    keys = keys[np.diff(keys, prepend=-1) > 0]  # a pair once
    counts = np.bincount(keys // most, minlength=len(order))
    return {
        "tensor_producer": new_producer[order].astype(np.int32),
        "tensor_bytes": np.concatenate(sizes)[order],
        "tensor_resident": np.concatenate(stays)[order],
        "tensor_transfer_s": np.concatenate(takes_s)[order],
        "consumer_offsets": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        "consumers": (keys % most).astype(np.int32),
    }
