"""The operators of an ONNX model's step, with their tensors -> a computation graph."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from graphs.computation_graph import INPUT, PARAMETER, ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.onnx_import import contrib_costs
from graphs.onnx_import.contrib import has_shapes
from graphs.onnx_import.costs import Operand, Operator, batch_rows, bytes_accessed, flops, is_integer_product
from graphs.onnx_import.frames import Emitted
from graphs.onnx_import.inference import is_standard
from graphs.onnx_import.values import FLOATING, Tensor, title

_SCOPES = "pkg.torch.onnx.name_scopes"
_MOST_METADATA = 64
"""Elements up to which an integer constant is taken for a shape, axes or indices."""

_STATISTICS = {"BatchNormalization": (3, 4)}
"""Operators of which some inputs are running statistics, which are not learned."""


def to_graph(
    name: str, inputs: Sequence[Tensor], emitted: Sequence[Emitted], opsets: Mapping[str, int]
) -> ComputationGraph:
    """Make the graph.

    Args:
        name: What it is called.
        inputs: The model's inputs; those that are read become ops.
        emitted: The operators, in an order in which they can be computed.
        opsets: The version of each domain that the file imports.
    """
    modules = _modules(emitted)
    batch = next((t.shape[0] for t in inputs if t.shape), 0)
    ops: list[OpRecord] = []
    producer: dict[Tensor, int] = {}
    readers: dict[Tensor, list[int]] = {}
    names: set[str] = set()
    numbers: dict[str, int] = {}

    def add(op: OpRecord, outputs: Sequence[Tensor]) -> None:
        base = op.name
        while op.name in names:
            numbers[base] = numbers.get(base, 0) + 1
            op.name = f"{base}_{numbers[base]}"
        names.add(op.name)
        producer.update(dict.fromkeys(outputs, len(ops)))
        ops.append(op)

    for op, module in zip(emitted, modules, strict=True):
        for position, tensor in enumerate(op.inputs):
            source = tensor.origin if tensor is not None else None
            if source is not None and source not in producer and not _is_metadata(source):
                statistics = position in _STATISTICS.get(op.node.op_type, ())
                add(_source(source, module, statistics=statistics), [source])
        for tensor in op.inputs:
            if tensor is not None and tensor.origin in producer:
                readers.setdefault(tensor.origin, []).append(len(ops))
        add(_record(op, module, batch, opsets), [t for t in op.outputs if t is not None])
    if not ops:
        raise InputError(
            "a step computes nothing: all that it puts out is constant, or an input itself; export it again"
        )
    tensors = [
        TensorRecord(number, tensor.bytes, readers.get(tensor, []), resident=tensor.constant)
        for tensor, number in producer.items()
    ]
    return build(name, ops, tensors)


def _record(op: Emitted, module: str, batch: int, opsets: Mapping[str, int]) -> OpRecord:
    """The op of one operator."""
    node, outputs = op.node, [t for t in op.outputs if t is not None]
    dtype, first = outputs[0].dtype, op.inputs[0] if op.inputs else None
    if first is not None and (dtype == "bool" or dtype.startswith("int")) and first.dtype in FLOATING:
        dtype = first.dtype  # a comparison, an index of a maximum
    known = is_standard(node) or has_shapes(node)
    count, accessed, rows = _costs(op, batch)
    if op.parts:
        dtype = _main_dtype(op, batch) or dtype
    elif (contrib_costs.computes_integers if has_shapes(node) else is_integer_product)(node.op_type):
        dtype = "int8"
    return OpRecord(
        name=op.name,
        type=node.op_type if known else f"{node.domain or 'ai.onnx'}::{node.op_type}",
        module=module,
        flops=count,
        bytes_accessed=accessed,
        dtype=dtype,
        batch=rows,
        output_shapes=[t.shape or () for t in outputs],
    )


def _costs(op: Emitted, batch: int) -> tuple[int, int, int]:
    """FLOPs, bytes and rows of one operator."""
    if op.parts:
        costs = [_costs(part, batch) for part in op.parts]
        return op.times * sum(c[0] for c in costs), op.times * sum(c[1] for c in costs), max(c[2] for c in costs)
    node = op.node
    operator = Operator(
        node.op_type,
        [_operand(t) if t is not None else None for t in op.inputs],
        [_operand(t) if t is not None else None for t in op.outputs],
        _attributes(node),
    )
    try:
        if has_shapes(node):
            counts = contrib_costs.flops(operator), contrib_costs.bytes_accessed(operator)
            return *counts, contrib_costs.batch_rows(operator, batch)
        known = is_standard(node)
        count, rows = (flops(operator), batch_rows(operator, batch)) if known else (0, 0)
        return count, bytes_accessed(operator), rows
    except (AssertionError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"operator {title(node)} lacks an input, dimension or attribute that it must have") from error


def _main_dtype(op: Emitted, batch: int) -> str:
    """The type in which most of a loop is computed."""
    best = max(op.parts, key=lambda part: _costs(part, batch)[:2])
    if best.parts:
        return _main_dtype(best, batch)
    return next((t.dtype for t in best.outputs if t is not None), "")


def _source(tensor: Tensor, module: str, *, statistics: bool) -> OpRecord:
    """The op of an input or of a constant."""
    shape = tensor.shape or ()
    if not tensor.constant:
        return OpRecord(tensor.name, INPUT, dtype=tensor.dtype, batch=(shape or (0,))[0], output_shapes=[shape])
    learned = (tensor.dtype in FLOATING or tensor.bits <= 8) and tensor.dtype != "bool" and not statistics
    return OpRecord(
        tensor.name,
        PARAMETER,
        module=module,
        dtype=tensor.dtype,
        resident_bytes={"parameter" if learned else "constant": tensor.bytes},
        output_shapes=[shape],
    )


def _is_metadata(tensor: Tensor) -> bool:
    """Whether a constant is a shape, an axis, a scale: something that runtimes keep on the host."""
    if not tensor.constant or tensor.stored_bytes is not None:
        return False
    whole = tensor.dtype not in FLOATING and tensor.bits > 8
    return tensor.elements <= 1 or (whole and tensor.elements <= _MOST_METADATA)


def _operand(tensor: Tensor) -> Operand:
    """A tensor as an operator sees it: in the shape that a view gave it, with the bytes of what is behind the view."""
    source = tensor.origin
    return Operand(tensor.shape or (), 0 if _is_metadata(source) else source.bytes, source.constant)


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import AttributeProto, helper

    small = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.STRING)
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type in small}
    return {key: v.decode(errors="replace") if isinstance(v, bytes) else v for key, v in values.items()}


def _modules(emitted: Sequence[Emitted]) -> list[str]:
    """The module path of each operator, without what all that have a path begin with, if most have one."""
    paths = [_path(op) for op in emitted]
    given = [path for path in paths if path]
    common = 0
    if 2 * len(given) > len(paths):
        first, last = min(given), max(given)
        pairs = zip(first, last, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return [".".join(path[common:]) for path in paths]


def _path(op: Emitted) -> list[str]:
    """The modules that an operator is in, outermost first; see `graphs.onnx_import.importer` for where this stands."""
    for node in op.scopes:
        for entry in node.metadata_props:
            if entry.key == _SCOPES:
                try:
                    scopes = [str(s) for s in ast.literal_eval(entry.value)]
                except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                    break
                inner = [s for s in scopes[:-1] if s]
                return inner[-1].split(".") if inner else []
    first_output = next((name for name in op.node.output if name), "")
    name = next((n for n in (op.name, first_output) if "/" in n.strip("/")), "")
    return [part for part in name.strip("/").split("/")[:-1] if part]
