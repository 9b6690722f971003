"""The computation graph of one training or inference step, as arrays.

A `ComputationGraph` is columnar (one array a property, one row an op), frozen, and valid: what exists has been checked.
Ops are numbered in a topological order (the program order in which they were captured), so every tensor's producer has
a smaller index than each of its consumers.

Letters: ``N`` ops, ``T`` tensors, ``E`` edges (pairs of a tensor and one op that reads it).
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs.errors import InputError

PHASES = ("forward", "backward", "update")
"""Parts of a step; `ComputationGraph.phase` indexes this tuple. Parameters and inputs count as forward."""

DTYPE_BYTES = {
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "float16": 2,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes an element of each dtype that an op may compute in."""

DTYPES = tuple(DTYPE_BYTES)
"""Names of dtypes; `ComputationGraph.dtype` indexes this tuple."""

RESIDENT_PARTS = ("parameter", "gradient", "optimizer", "constant")
"""What may stay in a device's memory over a whole step; the columns of `ComputationGraph.resident_bytes`."""

DEVICE_KINDS = ("cpu", "gpu", "tpu", "npu", "fpga")
"""Kinds of device; bit ``k`` of `ComputationGraph.allowed_kinds` allows ``DEVICE_KINDS[k]``."""

ANY_KIND = (1 << len(DEVICE_KINDS)) - 1
"""The value of `ComputationGraph.allowed_kinds` that allows every kind of device."""

_WEIGHED_BYTES_PER_S = 1e10
"""The link that seconds are turned into bytes by, where cuts are weighed without links."""

_KINDS_AT_FIRST = 3
"""How many kinds there were when digests began."""

INPUT = "input"
"""Type of the ops that stand for the step's inputs; where a cluster has a CPU they are placed on it.

One whose tensor is resident, such as a cache of keys and values, is not sent in every step: it stays where it is
placed."""

PARAMETER = "parameter"
"""Type of the ops that stand for a parameter or a buffer; they take no time, and their tensor is resident."""

IntArray = NDArray[np.int64]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ComputationGraph:
    """One step of a neural network as a directed acyclic graph of ops and the tensors between them.

    Make one with `build`, `graphs.capture.capture` or `graphs.files.load_graph_file`; the constructor only checks.

    Attributes:
        name: What the graph is called in results and files.
        op_names: ``N`` unique names.
        type_names: The distinct op types.
        op_type: ``int32[N]``, index into `type_names`.
        module_names: The distinct module paths; ``""`` is the model itself.
        module: ``int32[N]``, index into `module_names`: the innermost module that the op, or the forward op whose
            gradient it computes, was called in.
        module_call: ``int32[N]``, the how-manieth call of that module in the step, from 0: the time step of an
            unrolled network.
        phase: ``int8[N]``, index into `PHASES`.
        flops: ``int64[N]``, floating-point (or integer) operations of products, convolutions and attention; a
            multiply-add counts two. Other ops count 0: bytes bound them.
        bytes_accessed: ``int64[N]``, bytes read and written. An op with neither FLOPs nor bytes takes no time.
        dtype: ``int8[N]``, index into `DTYPES`: what the op computes in.
        batch: ``int32[N]``, the size of the batch dimension that the op works over, 0 where it has none.
        resident_bytes: ``int64[N, 4]``, bytes that stay on the op's device over the whole step, by `RESIDENT_PARTS`.
        allowed_kinds: ``uint8[N]``, bit mask over `DEVICE_KINDS`.
        output_shapes: ``N`` tuples of shapes, one shape an output.
        tensor_producer: ``int32[T]``, ascending: the op that makes the tensor.
        tensor_bytes: ``int64[T]``.
        tensor_resident: ``bool[T]``, True where the tensor is among its producer's resident bytes (a parameter), and
            so needs no further memory on the producer's device; a copy elsewhere does.
        consumer_offsets: ``int64[T + 1]``; tensor ``t`` is read by the ops from entry ``consumer_offsets[t]`` of
            `consumers` up to, without, entry ``consumer_offsets[t + 1]``.
        consumers: ``int32[E]``, ascending and unique within a tensor.
        tensor_transfer_s: ``float64[T]``, seconds that the tensor takes from any device to any other, whatever lies
            between them; NaN where its bytes and the links decide.
        colocation: ``int32[N]``, ops with the same number that is not -1 must share a device.
        time_s: Profiled seconds by device spec name, ``float64[N]`` each, NaN where not profiled.
        aliases: Other names in the model's ``state_dict`` of what an op stands for (tied weights), by name the op's.
        tokens: How many tokens a step of a language model reads or makes, so that its rate can be told; 0: unknown.

    Raises:
        InputError: A check failed; the message names the op.
    """

    name: str
    op_names: tuple[str, ...]
    type_names: tuple[str, ...]
    op_type: NDArray[np.int32]
    module_names: tuple[str, ...]
    module: NDArray[np.int32]
    module_call: NDArray[np.int32]
    phase: NDArray[np.int8]
    flops: NDArray[np.int64]
    bytes_accessed: NDArray[np.int64]
    dtype: NDArray[np.int8]
    batch: NDArray[np.int32]
    resident_bytes: NDArray[np.int64]
    allowed_kinds: NDArray[np.uint8]
    output_shapes: tuple[tuple[Shape, ...], ...]
    tensor_producer: NDArray[np.int32]
    tensor_bytes: NDArray[np.int64]
    tensor_resident: NDArray[np.bool_]
    consumer_offsets: NDArray[np.int64]
    consumers: NDArray[np.int32]
    tensor_transfer_s: NDArray[np.float64]
    colocation: NDArray[np.int32]
    time_s: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    tokens: int = 0

    def __post_init__(self) -> None:
        _check(self)
        for value in (*vars(self).values(), *self.time_s.values()):
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def num_ops(self) -> int:
        """``N``."""
        return len(self.op_names)

    @property
    def num_tensors(self) -> int:
        """``T``."""
        return len(self.tensor_producer)

    @property
    def num_edges(self) -> int:
        """``E``, pairs of a tensor and one op that reads it."""
        return len(self.consumers)

    @property
    def total_flops(self) -> int:
        """FLOPs of the whole step."""
        return sum(map(int, self.flops))  # in Python's integers, which cannot overflow

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters (without gradients, optimizer state and buffers)."""
        return sum(map(int, self.resident_bytes[:, RESIDENT_PARTS.index("parameter")]))

    @cached_property
    def tensor_offsets(self) -> NDArray[np.int64]:
        """``int64[N + 1]``: op ``i`` makes the tensors ``tensor_offsets[i]`` to ``tensor_offsets[i + 1]``."""
        return np.searchsorted(self.tensor_producer, np.arange(self.num_ops + 1)).astype(np.int64)

    @cached_property
    def edge_tensor(self) -> NDArray[np.int32]:
        """``int32[E]``: the tensor of each entry of `consumers`."""
        return np.repeat(np.arange(self.num_tensors, dtype=np.int32), np.diff(self.consumer_offsets))

    @cached_property
    def edge_producer(self) -> NDArray[np.int32]:
        """``int32[E]``: the op that makes the tensor of each entry of `consumers`."""
        return self.tensor_producer[self.edge_tensor]

    @cached_property
    def weighed_bytes(self) -> NDArray[np.int64]:
        """``int64[T]``: what to weigh a cut by before any links are known: bytes, or seconds in terms of them."""
        timed = ~np.isnan(self.tensor_transfer_s)
        as_bytes = np.minimum(np.where(timed, self.tensor_transfer_s, 0.0) * _WEIGHED_BYTES_PER_S, 2.0**53)
        return np.where(timed, as_bytes.astype(np.int64), self.tensor_bytes)

    @cached_property
    def input_tensors(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """``(offsets int64[N + 1], tensors int32[E])``: the tensors that each op reads, in tensor order."""
        order = np.argsort(self.consumers, kind="stable")
        counts = np.bincount(self.consumers, minlength=self.num_ops)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), self.edge_tensor[order]

    @cached_property
    def sha256(self) -> str:
        """Digest of all that can change a result: every column, name and size.

        Not of the graph's own name, aliases and number of tokens.
        """
        digest = hashlib.sha256()
        for key, value in sorted(vars(self).items()):
            if key in ("name", "aliases", "tokens") or key not in self.__dataclass_fields__:
                continue
            if key == "tensor_transfer_s" and np.isnan(value).all():
                continue  # so that digests stay what they were
            digest.update(key.encode())
            if key == "allowed_kinds":
                value = _digested_kinds(value)
            if isinstance(value, np.ndarray):
                digest.update(f"{value.dtype.str}{value.shape}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
            elif isinstance(value, Mapping):
                for spec, times in sorted(value.items()):
                    digest.update(spec.encode())
                    digest.update(np.ascontiguousarray(times).tobytes())
            else:
                digest.update(repr(value).encode())
        return digest.hexdigest()

    @cached_property
    def untimed(self) -> ComputationGraph:
        """The graph without profiled times, which belong to a machine: what placements refer to."""
        if not self.time_s and np.isnan(self.tensor_transfer_s).all():
            return self
        return replace(self, time_s={}, tensor_transfer_s=np.full(self.num_tensors, np.nan))

    @cached_property
    def is_sent_input(self) -> NDArray[np.bool_]:
        """``bool[N]``, True for inputs that every step gets anew; one whose tensor is resident stays where it is."""
        stays = np.bincount(self.tensor_producer, self.tensor_resident, self.num_ops) > 0
        return self.is_type(INPUT) & ~stays

    def is_type(self, name: str) -> NDArray[np.bool_]:
        """``bool[N]``, True for ops of a type, for example `INPUT`."""
        return np.array([type_name == name for type_name in self.type_names])[self.op_type]

    def __repr__(self) -> str:
        return (
            f"ComputationGraph('{self.name}', {self.num_ops:,} ops, {self.num_edges:,} edges, "
            f"{self.total_flops / 1e9:,.1f} GFLOP, {self.parameter_bytes / 1e6:,.1f} MB of parameters)"
        )


@dataclass
class OpRecord:
    """One op on its way into a graph; see `ComputationGraph` for the fields' meaning and units."""

    name: str
    type: str
    phase: str = "forward"
    module: str = ""
    module_call: int = 0
    flops: int = 0
    bytes_accessed: int = 0
    dtype: str = "float32"
    batch: int = 0
    resident_bytes: Mapping[str, int] = field(default_factory=dict)
    allowed_kinds: Sequence[str] | None = None
    output_shapes: Sequence[Shape] = ()
    time_s: Mapping[str, float] = field(default_factory=dict)


@dataclass
class TensorRecord:
    """One tensor on its way into a graph; ops are given by their position in the list of ops.

    `transfer_s` is what `ComputationGraph.tensor_transfer_s` is; NaN where bytes decide.
    """

    producer: int
    bytes: int
    consumers: Sequence[int]
    resident: bool = False
    transfer_s: float = math.nan


def build(
    name: str,
    ops: Sequence[OpRecord],
    tensors: Sequence[TensorRecord],
    colocation: Sequence[Sequence[int]] = (),
    aliases: Mapping[str, str] | None = None,
    tokens: int = 0,
) -> ComputationGraph:
    """Make a graph from records in any order.

    Args:
        name: The graph's name.
        ops: The ops. Where their order is not topological they are renumbered by a stable topological sort (of all ops
            that are ready, the first in `ops` comes next).
        tensors: The tensors; `TensorRecord` refers to positions in `ops`.
        colocation: Sets of ops (positions in `ops`) that must share a device; sets that overlap are merged.
        aliases: See `ComputationGraph`.
        tokens: See `ComputationGraph`.

    Raises:
        InputError: An op or tensor is not valid, or the graph has a cycle; the message names the op.
    """
    num_ops = len(ops)
    for what, indices in (
        *(("a tensor", (t.producer, *t.consumers)) for t in tensors),
        *(("a co-location constraint", members) for members in colocation),
    ):
        for index in indices:
            if not 0 <= index < num_ops:
                raise InputError(f"graph '{name}': {what} refers to op number {index}, but there are {num_ops} ops")
    rank = _topological_rank(name, ops, tensors)
    ordered: list[OpRecord] = [ops[0]] * num_ops if ops else []
    for position, op in enumerate(ops):
        ordered[rank[position]] = op

    kept = sorted(
        (
            rank[t.producer],
            position,
            t,
            sorted({rank[c] for c in t.consumers}),
        )
        for position, t in enumerate(tensors)
    )
    type_names, op_type = _intern([op.type for op in ordered])
    module_names, module = _intern([op.module for op in ordered])
    group_of = np.full(num_ops, -1, dtype=np.int32)
    for number, members in enumerate(_merge_overlapping([[rank[i] for i in c] for c in colocation])):
        group_of[members] = number
    counts = [len(consumers) for _, _, _, consumers in kept]
    return ComputationGraph(
        name=name,
        op_names=tuple(op.name for op in ordered),
        type_names=type_names,
        op_type=op_type,
        module_names=module_names,
        module=module,
        module_call=_int_column(name, ordered, "module_call", np.int32),
        phase=_choice_column(name, ordered, "phase", PHASES),
        flops=_int_column(name, ordered, "flops", np.int64),
        bytes_accessed=_int_column(name, ordered, "bytes_accessed", np.int64),
        dtype=_choice_column(name, ordered, "dtype", DTYPES),
        batch=_int_column(name, ordered, "batch", np.int32),
        resident_bytes=_resident_column(name, ordered),
        allowed_kinds=_kinds_column(name, ordered),
        output_shapes=tuple(_shapes(name, op) for op in ordered),
        tensor_producer=np.array([producer for producer, _, _, _ in kept], dtype=np.int32),
        tensor_bytes=_tensor_bytes(name, ordered, [(producer, t) for producer, _, t, _ in kept]),
        tensor_resident=np.array([t.resident for _, _, t, _ in kept], dtype=np.bool_),
        consumer_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        consumers=np.array([c for _, _, _, consumers in kept for c in consumers], dtype=np.int32),
        tensor_transfer_s=np.array([t.transfer_s for _, _, t, _ in kept], dtype=np.float64),
        colocation=group_of,
        time_s=_time_columns(ordered),
        aliases=dict(sorted((aliases or {}).items())),
        tokens=tokens,
    )


def _digested_kinds(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The masks as in digests: "any kind" is what it was when there were three, so that digests stay what they were."""
    once = np.uint8((1 << _KINDS_AT_FIRST) - 1)
    swapped = np.where(mask == ANY_KIND, once, np.where(mask == once, np.uint8(ANY_KIND), mask))
    return swapped.astype(np.uint8)


def _topological_rank(name: str, ops: Sequence[OpRecord], tensors: Sequence[TensorRecord]) -> list[int]:
    """Position of each op after a stable topological sort; the identity where the order is topological already."""
    num_ops = len(ops)
    if all(t.producer < c for t in tensors for c in t.consumers):
        return list(range(num_ops))
    successors: list[list[int]] = [[] for _ in range(num_ops)]
    waiting = [0] * num_ops
    for tensor in tensors:
        for consumer in tensor.consumers:
            successors[tensor.producer].append(consumer)
            waiting[consumer] += 1
    ready = [i for i in range(num_ops) if waiting[i] == 0]
    rank = [-1] * num_ops
    done = 0
    while ready:
        op = heapq.heappop(ready)
        rank[op] = done
        done += 1
        for successor in successors[op]:
            waiting[successor] -= 1
            if waiting[successor] == 0:
                heapq.heappush(ready, successor)
    if done < num_ops:
        cycle = [ops[i].name for i in _cycle(successors, rank)]
        path = cycle if len(cycle) <= 6 else [*cycle[:4], "...", cycle[-1]]
        raise InputError(
            f"graph '{name}' has a cycle through op '{cycle[0]}' ({' -> '.join([*path, cycle[0]])}); a step has none: "
            "remove one of its tensors"
        )
    return rank


def _cycle(successors: list[list[int]], rank: list[int]) -> list[int]:
    """The ops of one cycle, in its order, from the first given: walk back from an op that was never ready."""
    predecessor = {}
    for op, targets in enumerate(successors):
        if rank[op] < 0:
            for target in targets:
                predecessor[target] = op
    op = next(i for i, r in enumerate(rank) if r < 0)
    walked: dict[int, int] = {}
    while op not in walked:
        walked[op] = len(walked)
        op = predecessor[op]
    cycle = list(walked)[walked[op] :][::-1]
    first = cycle.index(min(cycle))
    return cycle[first:] + cycle[:first]


def _merge_overlapping(sets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Union of the sets that share a member, each sorted, ordered by first member; single members dropped."""
    parent: dict[int, int] = {}

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for members in sets:
        for member in members:
            parent.setdefault(member, member)
            first, other = sorted((find(members[0]), find(member)))
            parent[other] = first
    merged: dict[int, list[int]] = {}
    for member in sorted(parent):
        merged.setdefault(find(member), []).append(member)
    return [members for members in merged.values() if len(members) > 1]


def _intern(values: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The distinct values in order of first appearance, and the index of each value among them."""
    index: dict[str, int] = {}
    column = np.array([index.setdefault(v, len(index)) for v in values], dtype=np.int32)
    return tuple(index), column


def _int_column(name: str, ops: Sequence[OpRecord], key: str, dtype: Any) -> NDArray[Any]:
    limit = np.iinfo(dtype).max
    for op in ops:
        value = getattr(op, key)
        if not is_whole(value, limit):
            raise InputError(
                f"graph '{name}': op '{op.name}' has {key} = {value}; it must be a whole number from 0 to {limit}"
            )
    return np.array([int(getattr(op, key)) for op in ops], dtype=dtype)


def is_whole(value: Any, limit: int = 2**63 - 1) -> bool:
    """Whether a size is one, as an integer or a float without a fraction, which NumPy would cut off without a word."""
    if isinstance(value, float | np.floating):
        return bool(np.isfinite(value)) and value == np.floor(value) and 0 <= int(value) <= limit
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) <= limit


def _shapes(name: str, op: OpRecord) -> tuple[Shape, ...]:
    for shape in op.output_shapes:
        for size in shape:
            if not is_whole(size) and not isinstance(size, int | np.integer):  # negative ones are found later
                raise InputError(
                    f"graph '{name}': op '{op.name}' has a dimension of {size} in its output_shapes; it must be a "
                    "whole number that is not negative"
                )
    return tuple(tuple(int(size) for size in shape) for shape in op.output_shapes)


def _time_columns(ops: Sequence[OpRecord]) -> dict[str, NDArray[np.float64]]:
    """The profiled times; NaN in a record says, as in a column, that the op was not profiled."""
    specs = sorted({spec for op in ops for spec, seconds in op.time_s.items() if not math.isnan(seconds)})
    return {spec: np.array([op.time_s.get(spec, np.nan) for op in ops], dtype=np.float64) for spec in specs}


def _choice_column(name: str, ops: Sequence[OpRecord], key: str, choices: tuple[str, ...]) -> NDArray[np.int8]:
    index = {choice: i for i, choice in enumerate(choices)}
    for op in ops:
        if getattr(op, key) not in index:
            raise InputError(
                f"graph '{name}': op '{op.name}' has {key} '{getattr(op, key)}'; it must be one of {', '.join(choices)}"
            )
    return np.array([index[getattr(op, key)] for op in ops], dtype=np.int8)


def _resident_column(name: str, ops: Sequence[OpRecord]) -> NDArray[np.int64]:
    column = np.zeros((len(ops), len(RESIDENT_PARTS)), dtype=np.int64)
    for i, op in enumerate(ops):
        for part, size in op.resident_bytes.items():
            if part not in RESIDENT_PARTS:
                raise InputError(
                    f"graph '{name}': op '{op.name}' has resident bytes of '{part}'; "
                    f"known parts: {', '.join(RESIDENT_PARTS)}"
                )
            if not is_whole(size):
                raise InputError(
                    f"graph '{name}': op '{op.name}' has {size} resident bytes of '{part}'; it must be a whole number "
                    "that is not negative"
                )
            column[i, RESIDENT_PARTS.index(part)] = int(size)
    return column


def _kinds_column(name: str, ops: Sequence[OpRecord]) -> NDArray[np.uint8]:
    column = np.full(len(ops), ANY_KIND, dtype=np.uint8)
    for i, op in enumerate(ops):
        if op.allowed_kinds is None:
            continue
        for kind in op.allowed_kinds:
            if kind not in DEVICE_KINDS:
                raise InputError(
                    f"graph '{name}': op '{op.name}' allows device kind '{kind}'; known: {', '.join(DEVICE_KINDS)}"
                )
        column[i] = sum(1 << DEVICE_KINDS.index(kind) for kind in set(op.allowed_kinds))
    return column


def _tensor_bytes(name: str, ops: Sequence[OpRecord], tensors: Sequence[tuple[int, TensorRecord]]) -> NDArray[np.int64]:
    for producer, tensor in tensors:
        if not is_whole(tensor.bytes):
            raise InputError(
                f"graph '{name}': op '{ops[producer].name}' makes a tensor of {tensor.bytes} bytes; it must be a whole "
                "number that is not negative"
            )
    return np.array([int(t.bytes) for _, t in tensors], dtype=np.int64)


_COLUMNS = {
    **dict.fromkeys(("op_type", "module", "module_call", "batch", "colocation"), (np.int32, 1)),
    **dict.fromkeys(("tensor_producer", "consumers"), (np.int32, 1)),
    **dict.fromkeys(("flops", "bytes_accessed", "tensor_bytes", "consumer_offsets"), (np.int64, 1)),
    **dict.fromkeys(("phase", "dtype"), (np.int8, 1)),
    "allowed_kinds": (np.uint8, 1),
    "resident_bytes": (np.int64, 2),
    "tensor_resident": (np.bool_, 1),
    "tensor_transfer_s": (np.float64, 1),
}
"""Type and number of dimensions of each column; NumPy would wrap or round other types only when they are used."""


def _check(graph: ComputationGraph) -> None:
    """Raise `InputError` for the first thing in the graph that is not valid."""

    def fail(message: str) -> None:
        raise InputError(f"graph '{graph.name}': {message}")

    num_ops, num_tensors = len(graph.op_names), len(graph.tensor_producer)
    if num_ops == 0:
        fail("it has no ops")
    if len(set(graph.op_names)) != num_ops:
        seen: set[str] = set()
        for op_name in graph.op_names:
            if op_name in seen:
                fail(f"two ops are called '{op_name}'; names must be unique")
            seen.add(op_name)
    for key, (dtype, dimensions) in _COLUMNS.items():
        column = getattr(graph, key)
        if column.dtype != dtype or column.ndim != dimensions:
            fail(f"column {key} is {column.dtype} in {column.ndim} dimensions, not {np.dtype(dtype)} in {dimensions}")
    if not is_whole(graph.tokens):
        fail(f"it has {graph.tokens} tokens; that must be a whole number that is not negative")
    known_names = set(graph.op_names)
    for alias, op_name in graph.aliases.items():
        if op_name not in known_names:
            fail(f"alias '{alias}' refers to op '{op_name}', which does not exist")
    per_op = ("op_type", "module", "module_call", "phase", "flops", "bytes_accessed", "dtype", "batch", "allowed_kinds")
    for key in (*per_op, "colocation", "output_shapes", "resident_bytes"):
        if len(getattr(graph, key)) != num_ops:
            fail(f"column {key} has {len(getattr(graph, key))} rows for {num_ops} ops")
    if graph.resident_bytes.shape[1] != len(RESIDENT_PARTS):
        fail(f"resident_bytes has {graph.resident_bytes.shape[1]} columns, not {len(RESIDENT_PARTS)}")
    limits = {"op_type": len(graph.type_names), "module": len(graph.module_names)}
    limits |= {"phase": len(PHASES), "dtype": len(DTYPES), "allowed_kinds": ANY_KIND + 1}
    for key in per_op:
        column = getattr(graph, key)
        bad = np.flatnonzero((column < 0) | (column > limits.get(key, np.iinfo(column.dtype).max + 1) - 1))
        if bad.size:
            fail(f"op '{graph.op_names[bad[0]]}' has {key} = {column[bad[0]]}, which is out of range")
    bad = np.flatnonzero(graph.colocation < -1)
    if bad.size:
        fail(f"op '{graph.op_names[bad[0]]}' has colocation = {graph.colocation[bad[0]]}; -1 means bound to nothing")
    bad = np.flatnonzero(graph.allowed_kinds == 0)
    if bad.size:
        fail(f"op '{graph.op_names[bad[0]]}' is allowed on no kind of device")
    bad = np.flatnonzero((graph.resident_bytes < 0).any(axis=1))
    if bad.size:
        fail(f"op '{graph.op_names[bad[0]]}' has negative resident bytes")
    negative = {shapes for shapes in set(graph.output_shapes) if any(d < 0 for shape in shapes for d in shape)}
    for i, shapes in enumerate(graph.output_shapes if negative else ()):
        if shapes in negative:
            fail(f"op '{graph.op_names[i]}' has a negative dimension in its output shapes {shapes}")
    for spec, times in graph.time_s.items():
        if times.dtype != np.float64 or times.shape != (num_ops,):
            fail(f"profiled times for '{spec}' are {times.dtype} of shape {times.shape} for {num_ops} ops")
        bad = np.flatnonzero((times < 0) | np.isinf(times))
        if bad.size:
            fail(
                f"op '{graph.op_names[bad[0]]}' has time_s {times[bad[0]]} on '{spec}'; it must be finite, not negative"
            )
    _check_tensors(graph, num_ops, num_tensors, fail)


def _check_tensors(graph: ComputationGraph, num_ops: int, num_tensors: int, fail: Any) -> None:
    """The part of `_check` that looks at tensors and edges."""
    offsets = graph.consumer_offsets
    if any(len(c) != num_tensors for c in (graph.tensor_bytes, graph.tensor_resident, graph.tensor_transfer_s)):
        fail(f"its tensor columns differ in length from the {num_tensors} producers")
    if len(offsets) != num_tensors + 1 or offsets[0] != 0 or offsets[-1] != len(graph.consumers):
        fail("consumer_offsets does not match the tensors and consumers")
    if num_tensors == 0:
        return
    if (np.diff(offsets) < 0).any():
        fail("consumer_offsets is not ascending")
    producer = graph.tensor_producer
    if producer.min() < 0 or producer.max() >= num_ops:
        fail(f"a tensor's producer is outside the {num_ops} ops")
    if (np.diff(producer) < 0).any():
        fail("tensors are not sorted by producer")
    bad = np.flatnonzero(graph.tensor_bytes < 0)
    if bad.size:
        fail(f"op '{graph.op_names[producer[bad[0]]]}' makes a tensor of {graph.tensor_bytes[bad[0]]} bytes")
    bad = np.flatnonzero((graph.tensor_transfer_s < 0) | np.isinf(graph.tensor_transfer_s))
    if bad.size:
        fail(
            f"op '{graph.op_names[producer[bad[0]]]}' makes a tensor whose transfer takes "
            f"{graph.tensor_transfer_s[bad[0]]} s; it must be finite, not negative"
        )
    if len(graph.consumers) == 0:
        return
    if graph.consumers.min() < 0 or graph.consumers.max() >= num_ops:
        fail(f"a tensor's consumer is outside the {num_ops} ops")
    bad = np.flatnonzero(graph.consumers <= graph.edge_producer)
    if bad.size:
        name = graph.op_names[graph.consumers[bad[0]]]
        fail(f"op '{name}' reads a tensor before it is made: ops are not in topological order, or there is a cycle")
    within = np.diff(graph.edge_tensor) == 0
    bad = np.flatnonzero(within & (np.diff(graph.consumers) <= 0))
    if bad.size:
        fail(
            f"consumers of a tensor of op '{graph.op_names[graph.edge_producer[bad[0]]]}' are not ascending and unique"
        )
