"""Data parallelism as a graph: copies of a training step that sum their gradients around a ring.

`replicate` turns the graph of one step into that of ``k`` replicas, each on inputs of its own, so the global batch is
``k`` times the captured one. What PyTorch's DistributedDataParallel does with a collective stands in the graph as
ordinary ops and tensors, which can be placed, simulated and beaten like any others.

**The all-reduce.** The gradients of a replica are laid end to end in buckets, in the order in which the backward pass
makes them (Li et al., "PyTorch Distributed", VLDB 2020, arXiv 2006.15704, section 3.2.3; 25 MB by default, as there). A
bucket of ``S`` bytes is cut into ``k`` chunks, and each chunk goes around the ring of replicas twice (Patarasuk and
Yuan, "Bandwidth optimal all-reduce algorithms", 2009, doi:10.1016/j.jpdc.2008.09.002; Gibiansky, Baidu, 2017):

- *reduce-scatter*, ``k - 1`` steps: each replica adds its own part to what comes from the replica before it, and sends
  the sum on; after them replica ``c - 1`` holds the sum of chunk ``c``;
- *all-gather*, ``k - 1`` steps: each replica keeps what comes and passes it on.

So every replica sends ``2 (k - 1) / k * S`` bytes to the next one. Layers wait for nothing but their own chunks.

**What is charged.** An addition reads two chunks and writes one. Laying gradients into a bucket and passing a chunk on
take no time (buckets are views of the gradients, and links copy by themselves), but like every op they need their
device's turn: a device that runs one op at a time does not pass chunks on while it computes. Dividing by the number of
replicas is part of the update. Under ``program_order`` no bucket is summed before the backward pass has ended.

**What is not copied.** Each replica keeps parameters, buffers and optimizer state of its own and computes its own
statistics (batch normalisation), as data-parallel training does unless told otherwise.

Letters: ``N`` ops, ``k`` replicas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from graphs.after_updates import check_not_clipped, check_updates_are_last
from graphs.computation_graph import (
    DTYPES,
    INPUT,
    PARAMETER,
    PHASES,
    RESIDENT_PARTS,
    ComputationGraph,
    OpRecord,
    TensorRecord,
    build,
)
from graphs.errors import InputError
from graphs.records import op_record, tensor_record

BUCKET_BYTES = 25_000_000
"""Size of a bucket of gradients where nobody says otherwise."""

_REPLICA = re.compile(r"replica([0-9]+)/")
_UPDATE = PHASES.index("update")


def replicate(graph: ComputationGraph, replicas: int, *, bucket_bytes: int = BUCKET_BYTES) -> ComputationGraph:
    """The step of several replicas that train one model together, or infer side by side.

    Op ``fc/mm_0`` of module ``fc`` becomes ``replica0/fc/mm_0`` of module ``replica0.fc``, and so on; the ops of bucket
    ``b`` are those of module ``replica0.all_reduce.b``. So replicas are families of co-location groups, and
    `replica_of_op` tells them apart.

    Args:
        graph: The step of one replica. Where nothing is updated (inference) nothing is summed.
        replicas: ``k``, at least 1; one replica is the graph as it is.
        bucket_bytes: A bucket is closed before it would exceed this; a larger gradient is a bucket of its own.

    Raises:
        InputError: `replicas` or `bucket_bytes` is less than 1, or a gradient is sparse: other replicas' rows differ,
            so it cannot be summed chunk by chunk; or gradients are clipped, or the step goes on after updates.
    """
    if replicas < 1:
        raise InputError(f"the number of replicas is {replicas}; it must be at least 1")
    if bucket_bytes < 1:
        raise InputError(f"bucket_bytes is {bucket_bytes}; it must be at least 1")
    if replicas == 1:
        return graph
    check_updates_are_last(graph, "be replicated")
    check_not_clipped(graph, "be replicated")
    updates = _updates(graph)
    made = _Made()
    copies = [_copy(graph, updates, made, replica) for replica in range(replicas)]
    for number, bucket in enumerate(_buckets(updates, bucket_bytes)):
        _all_reduce(made, bucket, copies, number)
    # Ops in program order: the backward passes, the sums, the updates.
    last = [made.ops[i].phase == "update" for i in range(len(made.ops))]
    order = sorted(range(len(made.ops)), key=lambda i: last[i])
    rank = {op: position for position, op in enumerate(order)}
    tensors = [replace(t, producer=rank[t.producer], consumers=[rank[c] for c in t.consumers]) for t in made.tensors]
    return build(
        f"{replicas} x {graph.name}",
        [made.ops[i] for i in order],
        tensors,
        [[rank[copy.op[i]] for i in members] for copy in copies for members in _bound(graph)],
        tokens=replicas * graph.tokens,
    )


def replica_of_op(graph: ComputationGraph) -> NDArray[np.int64]:
    """``int64[N]``: the replica of each op of a graph that `replicate` made, 0 for all of any other graph."""
    found = [_REPLICA.match(name) for name in graph.op_names]
    return np.array([int(match[1]) if match else 0 for match in found], dtype=np.int64)


def replica_placement(graph: ComputationGraph, devices: Sequence[int], *, host: int | None = None) -> NDArray[np.int64]:
    """The data-parallel expert's placement: replica ``i`` on device ``devices[i]``.

    Args:
        graph: From `replicate`.
        devices: A device index for each replica, in the order of the ring.
        host: The device index of the step's inputs; None leaves them with their replicas.

    Returns:
        ``int64[N]``, a device index for each op, as `PlacementProblem.evaluate_ops` and placement files take it.

    Raises:
        InputError: There are not as many devices as replicas.
    """
    replica = replica_of_op(graph)
    if len(devices) != replica.max() + 1:
        raise InputError(f"graph '{graph.name}' has {replica.max() + 1} replicas, but {len(devices)} devices are given")
    placement = np.asarray(devices, dtype=np.int64)[replica]
    if host is not None and INPUT in graph.type_names:
        placement[graph.op_type == graph.type_names.index(INPUT)] = host
    return placement


@dataclass(frozen=True)
class _Update:
    """One parameter's update.

    Attributes:
        op: The op that updates it.
        bytes: Of the parameter, and so of its gradient.
        gradients: The tensors that the gradient consists of.
        ready: The last op that makes one of them.
        dtype: Of the parameter.
    """

    op: int
    bytes: int
    gradients: tuple[int, ...]
    ready: int
    dtype: str


@dataclass
class _Made:
    """The new graph so far; ops and tensors are known by their position."""

    ops: list[OpRecord] = field(default_factory=list)
    tensors: list[TensorRecord] = field(default_factory=list)

    def op(self, record: OpRecord) -> int:
        """Add an op."""
        self.ops.append(record)
        return len(self.ops) - 1

    def tensor(self, producer: int, size: int, consumers: Sequence[int] = ()) -> int:
        """Add a tensor."""
        self.tensors.append(TensorRecord(producer, size, list(consumers)))
        return len(self.tensors) - 1

    def read(self, tensor: int, reader: int) -> None:
        """Let an op read a tensor."""
        self.tensors[tensor].consumers = [*self.tensors[tensor].consumers, reader]


@dataclass(frozen=True)
class _Copy:
    """One replica: the new position of each op and tensor of the original."""

    op: range
    tensor: range


def _updates(graph: ComputationGraph) -> list[_Update]:
    """The updates of parameters, by when their gradients are ready."""
    offsets, inputs = graph.input_tensors
    is_parameter = np.array([name == PARAMETER for name in graph.type_names])[graph.op_type]
    parameter_bytes = graph.resident_bytes[:, RESIDENT_PARTS.index("parameter")]
    updates = []
    for op in np.flatnonzero(graph.phase == _UPDATE):
        read = inputs[offsets[op] : offsets[op + 1]]
        from_parameter = is_parameter[graph.tensor_producer[read]]
        gradients = read[~from_parameter]
        size = int(parameter_bytes[np.unique(graph.tensor_producer[read[from_parameter]])].sum())
        if size == 0 or gradients.size == 0:
            continue
        if graph.bytes_accessed[op] < 3 * size:
            raise InputError(
                f"graph '{graph.name}': '{graph.op_names[op]}' updates only some rows of its parameter, so its "
                "gradient is sparse and cannot be summed over replicas; capture the model with dense gradients"
            )
        ready = int(graph.tensor_producer[gradients].max())
        updates.append(_Update(int(op), size, tuple(map(int, gradients)), ready, DTYPES[graph.dtype[op]]))
    return sorted(updates, key=lambda update: (update.ready, update.op))


def _buckets(updates: Sequence[_Update], bucket_bytes: int) -> list[list[_Update]]:
    """Updates whose gradients are summed together: neighbours of one dtype."""
    buckets: list[list[_Update]] = []
    open_bucket: dict[str, list[_Update]] = {}
    for update in updates:
        bucket = open_bucket.get(update.dtype)
        if bucket is None or sum(u.bytes for u in bucket) + update.bytes > bucket_bytes:
            bucket = open_bucket[update.dtype] = []
            buckets.append(bucket)
        bucket.append(update)
    return buckets


def _copy(graph: ComputationGraph, updates: Sequence[_Update], made: _Made, replica: int) -> _Copy:
    """Add one replica, whose updates do not read the gradients yet."""
    first_op, first_tensor = len(made.ops), len(made.tensors)
    for op in range(graph.num_ops):
        made.op(_record(graph, op, replica))
    own_gradient = {(tensor, update.op) for update in updates for tensor in update.gradients}
    for tensor in range(graph.num_tensors):
        record = tensor_record(graph, tensor)
        readers = [first_op + reader for reader in record.consumers if (tensor, reader) not in own_gradient]
        made.tensors.append(replace(record, producer=first_op + record.producer, consumers=readers))
    return _Copy(range(first_op, len(made.ops)), range(first_tensor, len(made.tensors)))


def _record(graph: ComputationGraph, op: int, replica: int) -> OpRecord:
    record = op_record(graph, op)
    module = f"replica{replica}.{record.module}" if record.module else f"replica{replica}"
    return replace(record, name=f"replica{replica}/{record.name}", module=module)


def _bound(graph: ComputationGraph) -> list[list[int]]:
    """The original's sets of ops that must share a device."""
    sets: dict[int, list[int]] = {}
    for op in np.flatnonzero(graph.colocation >= 0):
        sets.setdefault(int(graph.colocation[op]), []).append(int(op))
    return list(sets.values())


def _all_reduce(made: _Made, bucket: Sequence[_Update], copies: Sequence[_Copy], number: int) -> None:
    """Add the sum of one bucket's gradients over all replicas, and let the updates read it."""
    count = len(copies)
    ends = np.cumsum([update.bytes for update in bucket])
    cuts = [int(ends[-1]) * chunk // count for chunk in range(count + 1)]
    sizes = np.diff(cuts).tolist()

    def op(replica: int, kind: str, name: str, accessed: int) -> int:
        record = OpRecord(f"replica{replica}/all_reduce/{number}/{name}", kind, "backward", dtype=bucket[0].dtype)
        record.module = f"replica{replica}.all_reduce.{number}"
        record.bytes_accessed = accessed
        return made.op(record)

    own = []  # the tensor of each chunk of each replica
    for replica, copy in enumerate(copies):
        start = op(replica, "bucket", "bucket", 0)
        for tensor in sorted({tensor for update in bucket for tensor in update.gradients}):
            made.read(copy.tensor[tensor], start)
        own.append([made.tensor(start, size) for size in sizes])

    latest = [own[chunk][chunk] for chunk in range(count)]  # of each chunk, the tensor that moved last
    for step in range(1, count):
        for chunk, size in enumerate(sizes):
            replica = (chunk + step) % count
            add = op(replica, "all_reduce_add", f"add_{chunk}", 3 * size)
            made.read(latest[chunk], add)
            made.read(own[replica][chunk], add)
            latest[chunk] = made.tensor(add, size)
    arrived = [[-1] * count for _ in range(count)]  # the summed tensor of each chunk on each replica
    for chunk in range(count):
        arrived[(chunk - 1) % count][chunk] = latest[chunk]
    for step in range(count - 1):
        for chunk, size in enumerate(sizes):
            replica = (chunk + step) % count
            keep = op(replica, "all_reduce_keep", f"keep_{chunk}", 0)
            made.read(arrived[(replica - 1) % count][chunk], keep)
            arrived[replica][chunk] = made.tensor(keep, size)

    for update, end in zip(bucket, ends.tolist(), strict=True):
        chunks = [c for c in range(count) if cuts[c] < end and cuts[c + 1] > end - update.bytes]
        for replica, copy in enumerate(copies):
            for chunk in chunks:
                made.read(arrived[replica][chunk], copy.op[update.op])
