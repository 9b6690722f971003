"""From recorded ops to a `ComputationGraph`: names, slices as tensors of their own, constraints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphs.capture.recorder import Recorder
from graphs.capture.slices import disjoint, slice_bytes
from graphs.capture.values import RawOp, Value
from graphs.computation_graph import INPUT, PARAMETER, ComputationGraph, OpRecord, TensorRecord, build

OPTIMIZER_STATES = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
"""Known optimizers, and how many tensors of a parameter's size each keeps from step to step for it.

``sgd`` is plain; ``momentum`` is SGD with momentum; ``rmsprop`` is without momentum, not centered; ``adamw`` is Adam
with decoupled weight decay. Its updates cost what Adam's do, and the graphs of both are the same."""

_PREFIXES = {"forward": "", "backward": "bwd/", "update": "update/"}


def update_bytes(size: int, optimizer: str) -> int:
    """Bytes a fused update accesses: it reads parameter, gradient and states, and writes parameter and states."""
    return size * (3 + 2 * OPTIMIZER_STATES[optimizer])


def to_graph(
    recorder: Recorder, name: str, together: Sequence[Sequence[int]], aliases: Mapping[str, str]
) -> ComputationGraph:
    """Make the graph of what was recorded.

    Args:
        recorder: What was recorded.
        name: The graph's name.
        together: Sets of ops that must share a device.
        aliases: Other names of parameters and buffers, by name the one that their op has.
    """
    _tag_leftovers(recorder)
    order = _order(recorder)
    position = {op: i for i, op in enumerate(order)}
    names = _names([recorder.ops[op] for op in order])
    ops = [_record(recorder.ops[op], names[i]) for i, op in enumerate(order)]
    tensors = [tensor for value in recorder.values for tensor in _tensor_records(value, position)]
    constraints = [[position[op] for op in members] for members in [*together, *recorder.at_home]]
    known = {alias: key for alias, key in aliases.items() if key in set(names)}
    return build(name, ops, tensors, constraints, known)


def names_of(recorder: Recorder) -> dict[int, str]:
    """The name that each recorded op has in the graph, after `to_graph` has made it."""
    order = _order(recorder)
    return dict(zip(order, _names([recorder.ops[op] for op in order]), strict=True))


def _tag_leftovers(recorder: Recorder) -> None:
    """What autograd does between its nodes (sums of gradients, the first gradient) belongs to what reads the result."""
    reader: dict[int, int] = {}
    for index in range(len(recorder.ops) - 1, -1, -1):
        for value in recorder.ops[index].reads:
            reader[recorder.values[value].producer] = index
        op = recorder.ops[index]
        if op.tag is None:
            op.tag = recorder.ops[reader[index]].tag if index in reader else ("", 0)


def _order(recorder: Recorder) -> list[int]:
    """Program order, with each parameter, buffer and input right before the first op that reads it."""
    first: dict[int, int] = {}
    last_of_step = len(recorder.ops)  # where the last updates begin
    while last_of_step and recorder.ops[last_of_step - 1].phase == "update":
        last_of_step -= 1
    for index, op in enumerate(recorder.ops):
        for value in op.reads:
            first.setdefault(recorder.values[value].producer, index)
    keys = []
    for index, op in enumerate(recorder.ops):
        if op.type in (INPUT, PARAMETER):
            keys.append((min(first.get(index, last_of_step), last_of_step), 0, index))
        else:
            keys.append((index, 1, index))
    return [index for _, _, index in sorted(keys)]


def _names(ops: Sequence[RawOp]) -> list[str]:
    """A unique name for each op: its own, or ``module/type_number``, with the phase before the type after the forward.

    Those are ``bwd/`` and, of what is done with gradients, ``update/``.
    """
    counts: dict[str, int] = {}
    used = {op.name for op in ops if op.name}
    names = []
    for op in ops:
        if op.name:
            names.append(op.name)
            continue
        assert op.tag is not None
        prefix = f"{op.tag[0] or '.'}/{_PREFIXES[op.phase]}{op.type}"
        candidate = ""
        while not candidate or candidate in used:
            candidate = f"{prefix}_{counts.get(prefix, 0)}"
            counts[prefix] = counts.get(prefix, 0) + 1
        names.append(candidate)
    return names


def _record(op: RawOp, name: str) -> OpRecord:
    assert op.tag is not None
    return OpRecord(
        name=name,
        type=op.type,
        phase=op.phase,
        module=op.tag[0],
        module_call=op.tag[1],
        flops=op.flops,
        bytes_accessed=op.bytes_accessed,
        dtype=op.dtype,
        batch=op.batch,
        resident_bytes=op.resident_bytes,
        output_shapes=op.output_shapes,
    )


def _tensor_records(value: Value, position: Mapping[int, int]) -> list[TensorRecord]:
    """The tensors of one value: itself, or the slices that are read, so that not the whole is sent for one of them.

    Slices that do not overlap become tensors of their own, and what no slice covers is one more tensor; an op that
    reads the whole reads all of them. Where slices overlap, or cannot be told apart, all is one tensor: memory is then
    exact and a transfer is at most too large. A resident value needs no memory for slices, so it has whole and slices.
    """
    producer = position[value.producer]

    def tensor(size: int, *readers: Sequence[int]) -> TensorRecord:
        consumers = sorted({position[op] for part in readers for op in part})
        return TensorRecord(producer, size, consumers, resident=value.resident)

    slices = value.slice_readers
    if not slices:
        return [tensor(value.bytes, value.whole_readers)]
    if value.resident:
        parts = [tensor(slice_bytes(part), readers) for part, readers in slices.items()]
        return [tensor(value.bytes, value.whole_readers), *parts]
    if not disjoint(list(slices), value.bytes):
        return [tensor(value.bytes, value.whole_readers, *slices.values())]
    parts = [tensor(slice_bytes(part), readers, value.whole_readers) for part, readers in slices.items()]
    rest = value.bytes - sum(map(slice_bytes, slices))
    return [*parts, tensor(rest, value.whole_readers)] if rest else parts
