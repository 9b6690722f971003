"""Where a step may be cut into the stages of a pipeline, and what the parts between two cuts take.

A cut is before a module's first op, as PyTorch's tracing cuts (``SplitPoint.BEGINNING`` of
`torch.distributed.pipelining`). It may be where

- the module is called once, and no module begins inside of one that another cut begins with;
- only one tensor that gradients flow to crosses it, and no earlier cut: PyTorch refuses a value that two later stages
  read;
- no buffer that is not a parameter is read on both sides. A parameter may be (tied weights): stages on different ranks
  then hold copies, see `envs.pipelines.segments`.

The parts between neighbouring cuts are *segments*; a stage is a run of them. A segment has its forward ops, the
backward ops and parameters that belong to them, and their updates. The loss is in the last one. Inputs of the step are
read by each rank for itself, and what follows from them alone does not cross.

Letters: ``K`` segments, ``D`` devices, ``M`` micro-batches, ``N`` ops, ``S`` stages.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster
from envs.cost_model import op_times_s
from envs.pipelines.segments import Segments, Tied
from graphs.after_updates import check_not_clipped, check_updates_are_last
from graphs.colocation.whole_modules import is_loss, prefixes
from graphs.computation_graph import INPUT, PARAMETER, RESIDENT_PARTS, ComputationGraph
from graphs.errors import InputError
from graphs.microbatch import KINDS, MicroBatches

_DOING = "be cut into stages by the target torch_pipeline"

_FORWARD, _INPUT_GRADIENT, _WEIGHT_GRADIENT, _ACCUMULATE, _ONCE = range(len(KINDS))


def find_segments(micro: MicroBatches, cluster: Cluster) -> Segments:
    """Cut a training step wherever it may be.

    Args:
        micro: From `graphs.sources.load_microbatches`, of a PyTorch model.
        cluster: Where to.

    Raises:
        InputError: The step is not one of training, has no modules, clips gradients or goes on after updates.
    """
    graph = micro.graph
    if not (micro.kind == _WEIGHT_GRADIENT).any():
        raise InputError(f"graph '{graph.name}' has no gradients of parameters; a pipeline is for a step of training")
    check_updates_are_last(graph, _DOING)
    check_not_clipped(graph, _DOING)
    segment, starts = _segment_of_op(micro)
    count = len(starts)
    op_s: dict[str, NDArray[np.float64]] = {}
    for device in cluster.devices:
        if device.spec.name not in op_s:
            op_s[device.spec.name] = op_times_s(graph, device.spec)
    first = micro.micro_batch == 0
    chosen = [
        (first & (micro.kind == _FORWARD), 0),
        (first & (micro.kind == _INPUT_GRADIENT), 1),
        (first & (micro.kind == _WEIGHT_GRADIENT), 2),
        ((micro.micro_batch == 1) & (micro.kind == _ACCUMULATE), 2),
    ]
    added = chosen[-1][0]
    action_s = np.zeros((cluster.num_devices, count, 3))
    update_s, add_s = (np.zeros((cluster.num_devices, count)) for _ in range(2))
    once = micro.kind == _ONCE
    for d, device in enumerate(cluster.devices):
        times = op_s[device.spec.name]
        for mask, kind in chosen:
            action_s[d, :, kind] += np.bincount(segment[mask], times[mask], count)
        add_s[d] = np.bincount(segment[added], times[added], count)
        update_s[d] = np.bincount(segment[once], times[once], count)
    gradients = _gradients(graph)
    fixed = graph.resident_bytes.sum(axis=1) + gradients
    kept = first | once
    return Segments(
        cluster=cluster,
        micro_batches=micro.count,
        modules=_modules(micro, segment, count),
        spans=_spans(micro, segment),
        action_s=action_s,
        add_s=add_s,
        update_s=update_s,
        fixed_bytes=np.bincount(segment[kept], fixed[kept], count).astype(np.int64),
        summed_bytes=np.bincount(segment[kept], gradients[kept], count).astype(np.int64),
        tied=_tied(micro, segment, [op_s[device.spec.name] for device in cluster.devices], fixed, gradients),
        **_sizes(micro, segment, count),
    )


def _tied(
    micro: MicroBatches,
    segment: NDArray[np.int64],
    op_s: list[NDArray[np.float64]],
    fixed: NDArray[np.int64],
    gradients: NDArray[np.int64],
) -> tuple[Tied, ...]:
    """The parameters that forward ops of several segments read."""
    graph = micro.graph
    producer, consumer = graph.edge_producer, graph.consumers
    reads = (gradients[producer] > 0) & (micro.kind[consumer] == _FORWARD) & (micro.micro_batch[consumer] == 0)
    pairs = sorted(set(zip(producer[reads].tolist(), segment[consumer[reads]].tolist(), strict=True)))
    readers: dict[int, list[int]] = {}
    for parameter, number in pairs:
        readers.setdefault(parameter, []).append(number)
    found = []
    for parameter, numbers in readers.items():
        if len(numbers) > 1:
            bound = int(graph.colocation[parameter])
            own = (
                (micro.kind == _ONCE) & (graph.colocation == bound)
                if bound >= 0
                else np.arange(len(fixed)) == parameter
            )
            found.append(
                Tied(
                    graph.op_names[parameter],
                    tuple(numbers),
                    int(fixed[own].sum()),
                    int(gradients[parameter]),
                    np.array([times[own].sum() for times in op_s]),
                )
            )
    return tuple(found)


def _gradients(graph: ComputationGraph) -> NDArray[np.int64]:
    """``int64[N]``: bytes of the accumulated gradient of each parameter that is updated."""
    updated = np.zeros(graph.num_ops, dtype=np.bool_)
    updated[graph.edge_producer[graph.phase[graph.consumers] == 2]] = True
    return np.where(updated, graph.resident_bytes[:, RESIDENT_PARTS.index("parameter")], 0)


def _segment_of_op(micro: MicroBatches) -> tuple[NDArray[np.int64], list[int]]:
    """``int64[N]`` and the first forward op of each segment."""
    graph = micro.graph
    works = (micro.kind == _FORWARD) & (micro.micro_batch == 0) & ~graph.is_type(INPUT)
    forward = np.flatnonzero(works)
    starts = [int(forward[0]), *_cuts(micro, works, forward)]
    segment = np.full(graph.num_ops, -1, dtype=np.int64)
    segment[forward] = np.searchsorted(starts, forward, side="right") - 1
    # Backward ops go with the forward ops of their module, where these are in one segment.
    paths = len(graph.module_names)
    low, high = np.full(paths, len(starts)), np.full(paths, -1)
    np.minimum.at(low, graph.module[forward], segment[forward])
    np.maximum.at(high, graph.module[forward], segment[forward])
    offsets, tensors = graph.input_tensors
    last = len(starts) - 1
    for op in np.flatnonzero((micro.micro_batch == 0) & ~works).tolist():
        m = int(graph.module[op])
        if is_loss(graph.module_names[m]):
            segment[op] = last
        elif low[m] == high[m] and not graph.is_type(INPUT)[op]:
            segment[op] = low[m]
    reads = np.split(graph.tensor_producer[tensors], offsets[1:-1])
    parameters = np.flatnonzero(micro.kind == _ONCE).tolist()
    edge_producer, consumer = graph.edge_producer, graph.consumers
    by_forward = works[consumer]
    owner = np.full(graph.num_ops, len(starts))
    np.minimum.at(owner, edge_producer[by_forward], segment[consumer[by_forward]])
    for op in range(graph.num_ops):
        if segment[op] < 0 and micro.micro_batch[op] == 0:
            known = [int(segment[p]) for p in reads[op].tolist() if segment[p] >= 0]
            of_forward = [int(segment[p]) for p in reads[op].tolist() if works[p]]
            segment[op] = max(of_forward) if of_forward else known[0] if known else last
    for op in parameters:
        of_parameter = [int(owner[p]) for p in reads[op].tolist() if owner[p] < len(starts) and micro.kind[p] == _ONCE]
        segment[op] = owner[op] if owner[op] < len(starts) else of_parameter[0] if of_parameter else -1
        if segment[op] < 0:
            known = [int(segment[p]) for p in reads[op].tolist() if segment[p] >= 0]
            segment[op] = known[0] if known else 0
    inputs = np.flatnonzero(graph.is_type(INPUT))
    segment[inputs] = np.where(owner[inputs] < len(starts), owner[inputs], 0)
    # Copies of an op are where it is.
    of_origin = np.full(int(micro.origin.max()) + 1, -1, dtype=np.int64)
    placed = (micro.micro_batch <= 0) & (micro.kind != _ACCUMULATE)
    of_origin[micro.origin[placed]] = segment[placed]
    return np.where(placed, segment, of_origin[micro.origin]), starts


def _cuts(micro: MicroBatches, works: NDArray[np.bool_], forward: NDArray[np.int64]) -> list[int]:
    """The forward ops before which the step may be cut, ascending."""
    graph = micro.graph
    starts = _first_ops_of_modules(graph, forward)
    edges = np.flatnonzero(works[graph.consumers])
    producer, consumer = graph.edge_producer[edges], graph.consumers[edges]
    trained = _trained(graph, works)
    # Tensors that gradients flow to, from their producer to their last reader; buffers from first to last reader.
    flows = works[producer] & trained[producer]
    count = np.zeros(graph.num_ops + 1, dtype=np.int64)
    marker = np.zeros(graph.num_ops + 1, dtype=np.int64)
    last = np.zeros(graph.num_tensors, dtype=np.int64)
    np.maximum.at(last, graph.edge_tensor[edges[flows]], consumer[flows])
    tensors = np.unique(graph.edge_tensor[edges[flows]])
    made = graph.tensor_producer[tensors]
    for sums, amount in ((count, np.ones(len(tensors), dtype=np.int64)), (marker, tensors + 1)):
        np.add.at(sums, made + 1, amount)
        np.subtract.at(sums, last[tensors] + 1, amount)
        np.cumsum(sums, out=sums)
    shared = np.zeros(graph.num_ops + 1, dtype=np.int64)
    kept = (micro.kind == _ONCE) & (graph.resident_bytes[:, 0] > 0) & (_gradients(graph) == 0)
    own = np.flatnonzero(kept[producer])
    begin, end = np.full(graph.num_ops, graph.num_ops), np.full(graph.num_ops, -1)
    np.minimum.at(begin, producer[own], consumer[own])
    np.maximum.at(end, producer[own], consumer[own])
    used = np.flatnonzero(end >= 0)
    np.add.at(shared, begin[used] + 1, 1)
    np.subtract.at(shared, end[used] + 1, 1)
    shared = np.cumsum(shared)
    cuts: list[int] = []
    inside, crossed = starts[0][1] if starts else -1, set[int]()  # the first stage has a whole module, too
    for op, module_end in starts:
        if op <= inside or op == forward[0] or count[op] != 1 or shared[op] or marker[op] in crossed:
            continue
        cuts.append(op)
        crossed.add(int(marker[op]))
        inside = module_end
    return cuts


def _first_ops_of_modules(graph: ComputationGraph, forward: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The first and last op of each module that is called once and begins with an op of its own, ascending."""
    bounds: dict[str, list[int]] = {}
    for op in forward.tolist():
        for path in prefixes(graph.module_names[graph.module[op]]):
            bounds.setdefault(path, [op, op])[1] = op
    often = {int(graph.module[op]) for op in forward.tolist() if graph.module_call[op] > 0}
    found = []
    for op in forward.tolist():
        path = graph.module_names[graph.module[op]]
        if path and not is_loss(path) and bounds[path][0] == op and int(graph.module[op]) not in often:
            found.append((op, bounds[path][1]))
    return found


def _trained(graph: ComputationGraph, works: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``bool[N]``: the forward ops that follow from a parameter that is updated: gradients flow to what they make."""
    updated = np.zeros(graph.num_ops, dtype=np.bool_)
    updated[graph.edge_producer[graph.phase[graph.consumers] == 2]] = True
    return _followers(graph, works, updated & (graph.resident_bytes[:, 0] > 0))


def _followers(graph: ComputationGraph, works: NDArray[np.bool_], roots: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``bool[N]``: some ops and the forward ops that follow from them."""
    follows = roots.tolist()
    offsets = graph.consumer_offsets[graph.tensor_offsets].tolist()
    consumers, forward = graph.consumers.tolist(), works.tolist()
    for op in range(graph.num_ops):
        if follows[op]:
            for reader in consumers[offsets[op] : offsets[op + 1]]:
                follows[reader] = follows[reader] or forward[reader]
    return np.array(follows)


def _sizes(micro: MicroBatches, segment: NDArray[np.int64], count: int) -> dict[str, NDArray[np.int64]]:
    """The columns of `Segments` in bytes but for `fixed_bytes`."""
    graph = micro.graph
    own = micro.micro_batch == 0
    forward = own & (micro.kind == _FORWARD) & ~graph.is_type(INPUT)
    backward = own & ((micro.kind == _INPUT_GRADIENT) | (micro.kind == _WEIGHT_GRADIENT))
    producer, consumer, tensor = graph.edge_producer, graph.consumers, graph.edge_tensor
    made = graph.tensor_producer
    by_forward, by_backward = (np.zeros(graph.num_tensors, dtype=np.bool_) for _ in range(2))
    by_backward[tensor[backward[consumer]]] = True
    by_forward[tensor[forward[consumer]]] = True
    furthest = np.full(graph.num_tensors, -1, dtype=np.int64)
    reached = forward[consumer] & forward[producer]
    np.maximum.at(furthest, tensor[reached], segment[consumer[reached]])
    size = np.where(graph.tensor_resident, 0, graph.tensor_bytes)
    is_forward = forward[made]
    saved = np.zeros(count, dtype=np.int64)
    np.add.at(saved, segment[made[is_forward & by_backward]], size[is_forward & by_backward])

    def crossing(which: NDArray[np.bool_]) -> NDArray[np.int64]:
        sums = np.zeros(count + 2, dtype=np.int64)
        np.add.at(sums, segment[made[which]] + 1, size[which])
        np.subtract.at(sums, furthest[which] + 1, size[which])
        crossed = np.cumsum(sums)[: count + 1]
        crossed[[0, count]] = 0
        return crossed

    # What follows from inputs alone, such as a mask, is made anew where it is read: `placement.pipelines.inputs`.
    over = is_forward & (furthest > segment[made]) & _followers(graph, forward, graph.is_type(PARAMETER))[made]
    trained = _trained(graph, forward)
    return {
        "saved_bytes": saved,
        "crossing_bytes": crossing(over),
        "gradient_bytes": crossing(over & trained[made]),
        "output_bytes": crossing(over & ~by_backward),
        "working_bytes": np.stack(
            [
                _most_alive(graph, forward, is_forward & ~by_backward, size, segment, count),
                _most_alive(graph, backward, backward[made], size, segment, count),
            ],
            axis=1,
        ),
    }


def _most_alive(
    graph: ComputationGraph,
    ops: NDArray[np.bool_],
    which: NDArray[np.bool_],
    size: NDArray[np.int64],
    segment: NDArray[np.int64],
    count: int,
) -> NDArray[np.int64]:
    """``int64[K]``: the most bytes of some tensors that are alive at an op of each segment, in program order."""
    last = graph.tensor_producer.astype(np.int64).copy()
    inside = ops[graph.consumers]
    np.maximum.at(last, graph.edge_tensor[inside], graph.consumers[inside])
    alive = np.zeros(graph.num_ops + 1, dtype=np.int64)
    np.add.at(alive, graph.tensor_producer[which], size[which])
    np.subtract.at(alive, last[which] + 1, size[which])
    alive = np.cumsum(alive)
    most = np.zeros(count, dtype=np.int64)
    chosen = np.flatnonzero(ops)
    np.maximum.at(most, segment[chosen], alive[chosen])
    return most


def _spans(micro: MicroBatches, segment: NDArray[np.int64]) -> dict[str, tuple[int, int]]:
    """Of each module the first and the last segment that has forward ops of it."""
    graph = micro.graph
    works = np.flatnonzero((micro.kind == _FORWARD) & (micro.micro_batch == 0) & ~graph.is_type(INPUT))
    spans: dict[str, tuple[int, int]] = {}
    for m, number in sorted(set(zip(graph.module[works].tolist(), segment[works].tolist(), strict=True))):
        for path in prefixes(graph.module_names[m]):
            first, last = spans.get(path, (number, number))
            spans[path] = min(first, number), max(last, number)
    return spans


def _modules(micro: MicroBatches, segment: NDArray[np.int64], count: int) -> tuple[tuple[str, ...], ...]:
    """Of each segment the outermost modules all of whose forward ops are in it, in program order."""
    graph = micro.graph
    found: dict[str, set[int]] = {}
    works = np.flatnonzero((micro.kind == _FORWARD) & (micro.micro_batch == 0) & ~graph.is_type(INPUT)).tolist()
    for op in works:
        for path in prefixes(graph.module_names[graph.module[op]]):
            found.setdefault(path, set()).add(int(segment[op]))
    listed: list[list[str]] = [[] for _ in range(count)]
    for op in works:
        path = graph.module_names[graph.module[op]]
        if is_loss(path):
            continue
        whole = next((p for p in prefixes(path) if len(found[p]) == 1), None)
        if whole is not None and whole not in listed[int(segment[op])]:
            listed[int(segment[op])].append(whole)
    return tuple(map(tuple, listed))
