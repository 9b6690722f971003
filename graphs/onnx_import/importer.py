"""An ONNX model -> the computation graph of its inference step.

An `.onnx` file holds the operators of the forward pass, so the graph is one of inference. Needs the package `onnx`
(``pip install "device-placement[onnx]"``), which is imported when a file is read, not before. Nothing of the file is
executed, and weights that lie in files beside it are not read: their sizes are enough.

- *Shapes* are those of ONNX's own shape inference; a tensor whose size is not fixed is refused by name. A dimension
  that has a name in the file can be given a size: ``model.onnx:batch=8``.
- *Constants.* What is computed from initializers alone (a ConstantOfShape, an Unsqueeze of a bias) is computed once,
  when the model is loaded, and so becomes a constant itself. Floating-point and 8-bit constants are parameters, the
  running statistics of a normalisation and all others are resident constants. Shapes and axes (integers of up to 64
  elements), and single numbers, are no tensors of their own: runtimes keep them on the host.
- *Costs* are in `graphs.onnx_import.costs`. An operator from outside the ONNX standard is charged by its bytes;
  `unknown_operators` lists these.
- *Modules* come from the names that exporters give: the scopes that PyTorch's exporter records with a node, else the
  path in the node's name (``/encoder/layer.0/query/MatMul``), else the one in the name of its first output. A beginning
  that all of these have in common is dropped.
"""

from __future__ import annotations

import ast
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import prod
from pathlib import Path
from typing import Any

from graphs.computation_graph import (
    DTYPE_BYTES,
    INPUT,
    PARAMETER,
    ComputationGraph,
    OpRecord,
    Shape,
    TensorRecord,
    build,
)
from graphs.errors import InputError, unknown_name
from graphs.onnx_import.costs import VIEWS, Operand, Operator, batch_rows, bytes_accessed, flops, is_integer_product
from graphs.onnx_import.folding import infer_shapes
from graphs.reading import is_missing, read_file

SUFFIX = ".onnx"
"""How the name of an ONNX file ends."""

INSTALL = "pip install 'device-placement[onnx]'"
"""What to run where the package is missing."""

_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_NEVER_FOLDED = (
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    "DequantizeLinear",  # weights stay quantized in memory
)
_SCOPES = "pkg.torch.onnx.name_scopes"
_MOST_METADATA = 64
"""Elements up to which an integer constant is taken for a shape, axes or indices."""

_MOST_BYTES = 2**31
"""What the format allows: weights beyond that lie in other files, which are not read."""

_STRIPPED_ELEMENTS = 1024
"""Elements from which an initializer's values are dropped before shape inference, which only reads small ones."""

_OTHER_DTYPES = {
    "uint16": ("int16", 16),
    "uint32": ("int32", 32),
    "uint64": ("int64", 64),
    "int4": ("int8", 4),
    "uint4": ("int8", 4),
    "int2": ("int8", 2),
    "uint2": ("int8", 2),
    "float4e2m1": ("float16", 4),
    "float8e4m3fn": ("float16", 8),
    "float8e4m3fnuz": ("float16", 8),
    "float8e5m2": ("float16", 8),
    "float8e5m2fnuz": ("float16", 8),
    "float8e8m0": ("float16", 8),
}
"""ONNX's other types of element: the nearest of `graphs.computation_graph.DTYPES`, and their own bits."""


@dataclass(frozen=True)
class _Value:
    """A tensor of the file: its shape (None where inference found none, -1 for a free dimension) and dtype."""

    shape: Shape | None
    dtype: str
    bits: int

    @property
    def bytes(self) -> int:
        assert self.shape is not None
        return (prod(self.shape) * self.bits + 7) // 8


@dataclass
class _Model:
    """What is read of a file: tensors by name, and which of them are constant, views, inputs."""

    name: str
    values: dict[str, _Value] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    stored_bytes: dict[str, int] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)

    def resolve(self, name: str) -> str:
        """The tensor that a view, or a view of a view, hands on."""
        while name in self.alias:
            name = self.alias[name]
        return name


def load_onnx_file(path: str | os.PathLike[str], sizes: Mapping[str, int] | None = None) -> ComputationGraph:
    """Read an ONNX file.

    Args:
        path: Ends in ``.onnx``.
        sizes: A size for each named dimension that the file leaves open.

    Raises:
        InputError: The package `onnx` is not installed, the file cannot be read, or it says something that cannot be
            placed: a tensor without a fixed size, control flow, a tensor that nothing makes; one sentence names it.
    """
    path = Path(path)
    try:
        model = _read(path, dict(sizes or {}))
        return _to_graph(model)
    except InputError as error:
        raise InputError(f"ONNX file '{path}': {error}") from error.__cause__


def unknown_operators(graph: ComputationGraph) -> dict[str, int]:
    """How many ops there are of each operator from outside the ONNX standard; they are charged by their bytes alone."""
    counts = Counter(graph.op_type.tolist())
    return {name: counts[i] for i, name in enumerate(graph.type_names) if "::" in name and not name.startswith("aten")}


def _read(path: Path, sizes: dict[str, int]) -> _Model:
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import inliner
    except ModuleNotFoundError as error:
        raise InputError(f"reading it needs the package '{error.name}'; install it with: {INSTALL}") from error
    try:
        proto = onnx.load_model_from_string(read_file(path, "the file", most_bytes=_MOST_BYTES))
    except InputError as error:
        raise InputError("it does not exist; check the path" if is_missing(error) else str(error)) from error
    except DecodeError as error:
        raise InputError("it is not an ONNX model, or was cut short; export or copy it again") from error
    if not proto.graph.node:
        raise InputError("it holds no operators; export the model again")
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    for node in proto.graph.node:  # before the inference, which calls those without a name n0, n1, ...
        node.name = node.name or next((name for name in node.output if name), "")
    _set_sizes(proto.graph, sizes)
    stored = _strip_weights(proto.graph)
    try:
        proto = infer_shapes(proto)
    except Exception as error:  # of several kinds, none documented
        raise InputError(f"shape inference failed ({' '.join(str(error).split())[:200]}); export it again") from error
    return _model(proto.graph, path.name.removesuffix(SUFFIX), stored)


def _set_sizes(graph: Any, sizes: dict[str, int]) -> None:
    """Give the named dimensions of the inputs their sizes; what shape inference once wrote for them is dropped."""
    named = {d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim if d.dim_param}
    for name, size in sizes.items():
        if name not in named:
            raise (
                unknown_name("dimension", name, named) if named else InputError("all its dimensions are fixed already")
            )
        if size < 1:
            raise InputError(f"dimension '{name}' is set to {size}; it must be at least 1")
    if not sizes:
        return
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in sizes:
                dimension.dim_value = sizes[dimension.dim_param]
    del graph.value_info[:]


def _strip_weights(graph: Any) -> dict[str, int]:
    """Drop the values of large initializers: they are not needed, and shape inference copies the file.

    Returns:
        Bytes of the sparse initializers, which are not what their shapes say.
    """
    for tensor in graph.initializer:
        if prod(tensor.dims) > _STRIPPED_ELEMENTS:
            for key in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(key)
    return {
        sparse.values.name: sum(
            prod(part.dims) * _dtype(part.data_type, sparse.values.name)[1] // 8
            for part in (sparse.values, sparse.indices)
        )
        for sparse in graph.sparse_initializer
    }


def _model(graph: Any, file_name: str, stored: dict[str, int]) -> _Model:
    """Read values, then walk the nodes and set aside those that cost nothing: constants and views."""
    model = _Model(graph.name if graph.name and graph.name != "main_graph" else file_name, stored_bytes=stored)
    for value in (*graph.value_info, *graph.output, *graph.input):
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            kind = value.type.tensor_type
            shape = (
                tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
                if kind.HasField("shape")
                else None
            )
            model.values[value.name] = _Value(shape, *_dtype(kind.elem_type, value.name))
    for tensor in graph.initializer:
        model.values[tensor.name] = _Value(tuple(tensor.dims), *_dtype(tensor.data_type, tensor.name))
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        model.values[name] = _Value(tuple(sparse.dims), *_dtype(sparse.values.data_type, name))
    model.constants = {t.name for t in graph.initializer} | set(stored)
    model.inputs = [i.name for i in graph.input if i.name not in model.constants]
    for name in model.inputs:
        _check_input(model, name, next(i for i in graph.input if i.name == name))
    known = {*model.constants, *model.inputs, ""}
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in graph.node:
        missing = next((name for name in node.input if name not in known), None)
        if missing is not None:
            raise InputError(f"operator {_title(node)} reads tensor '{missing}', which nothing makes; export it again")
        known.update(node.output)
        _set_aside(model, node, read)
    return model


def _set_aside(model: _Model, node: Any, read: set[str]) -> None:
    """Note what a node is: computed once, a view of another tensor, or an op."""
    standard = node.domain in _STANDARD
    if standard and node.op_type in _CONTROL_FLOW:
        raise InputError(
            f"operator {_title(node)} decides in the step what is computed, so its cost is not known beforehand; "
            "export the model without control flow, or simplify the file (onnxsim)"
        )
    outputs = [name for name in node.output if name]
    of_shape_alone = node.op_type in ("Shape", "Size")
    computed_once = all(name in model.constants or not name for name in node.input)
    if standard and (of_shape_alone or (computed_once and node.op_type not in _NEVER_FOLDED)):
        model.constants.update(outputs)
    elif standard and node.op_type in VIEWS and not read.intersection(outputs[1:]) and not _drops_out(node):
        model.alias[outputs[0]] = node.input[0]
    else:
        model.nodes.append(node)


def _drops_out(node: Any) -> bool:
    """Whether a Dropout is told to work as in training."""
    return node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])


def _to_graph(model: _Model) -> ComputationGraph:
    modules = _modules(model.nodes)
    read = {model.resolve(name) for node in model.nodes for name in node.input if name}
    batch = next((v.shape[0] for v in (model.values[i] for i in model.inputs) if v.shape), 0)
    ops: list[OpRecord] = []
    producer: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    order: list[str] = []  # of the tensors
    names: set[str] = set()

    def add(op: OpRecord, outputs: Sequence[str]) -> None:
        base, number = op.name, 1
        while op.name in names:
            op.name, number = f"{base}_{number}", number + 1
        names.add(op.name)
        for name in outputs:
            producer[name] = len(ops)
            order.append(name)
        ops.append(op)

    for node, module in zip(model.nodes, modules, strict=True):
        for name in dict.fromkeys(model.resolve(i) for i in node.input if i):
            if name not in producer and not _is_metadata(model, name):
                statistics = node.op_type == "BatchNormalization" and name in node.input[3:5]
                add(_source(model, name, module, statistics=statistics), [name])
        operands = [_operand(model, name, node) if name else None for name in node.input]
        used = [name for name in node.output if name and (name in read or _is_known(model, name))]
        if not used:
            raise _unresolved(model, next((name for name in node.output if name), ""), node)
        results = [_operand(model, name, node) if name in used else None for name in node.output]
        for name in node.input:
            if model.resolve(name) in producer:
                readers.setdefault(model.resolve(name), []).append(len(ops))
        add(_record(model, node, module, operands, results, batch), used)
    if not ops:
        raise InputError("nothing in it depends on an input, so a step computes nothing; export it again")
    tensors = [
        TensorRecord(
            producer[name],
            model.stored_bytes.get(name, model.values[name].bytes),
            readers.get(name, []),
            resident=name in model.constants,
        )
        for name in order
    ]
    return build(model.name, ops, tensors)


def _record(
    model: _Model,
    node: Any,
    module: str,
    operands: Sequence[Operand | None],
    results: Sequence[Operand | None],
    batch: int,
) -> OpRecord:
    """The op of one node."""
    known = _is_standard(node)
    outputs = [name for name, result in zip(node.output, results, strict=True) if result]
    dtype = model.values[outputs[0]].dtype
    if node.input and (dtype == "bool" or dtype.startswith("int")) and model.values[node.input[0]].dtype in _FLOATING:
        dtype = model.values[node.input[0]].dtype  # a comparison, an index of a maximum
    if is_integer_product(node.op_type):
        dtype = "int8"
    op = Operator(node.op_type, operands, results, _attributes(node))
    try:
        count, rows = (flops(op), batch_rows(op, batch)) if known else (0, 0)
    except (AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"operator {_title(node)} lacks an input, dimension or attribute that it must have") from error
    return OpRecord(
        name=node.name,
        type=node.op_type if known else f"{node.domain or 'ai.onnx'}::{node.op_type}",
        module=module,
        flops=count,
        bytes_accessed=bytes_accessed(op),
        dtype=dtype,
        batch=rows,
        output_shapes=[r.shape for r in results if r],
    )


_FLOATING = ("float16", "bfloat16", "float32", "float64")


def _source(model: _Model, name: str, module: str, *, statistics: bool) -> OpRecord:
    """The op of an input or of a constant."""
    value = model.values[name]
    if name not in model.constants:
        return OpRecord(
            name, INPUT, dtype=value.dtype, batch=(value.shape or (0,))[0], output_shapes=[value.shape or ()]
        )
    if value.shape is None or -1 in value.shape:
        raise InputError(f"constant '{name}' has no fixed shape; export the model with static shapes")
    learned = (value.dtype in _FLOATING or value.bits <= 8) and value.dtype != "bool" and not statistics
    size = model.stored_bytes.get(name, value.bytes)
    return OpRecord(
        name,
        PARAMETER,
        module=module,
        dtype=value.dtype,
        resident_bytes={"parameter" if learned else "constant": size},
        output_shapes=[value.shape],
    )


def _is_metadata(model: _Model, name: str) -> bool:
    """Whether a constant is a shape, an axis, a scale: something that runtimes keep on the host."""
    if name not in model.constants or name in model.stored_bytes:
        return False
    value = model.values.get(name)
    if value is None or value.shape is None or -1 in value.shape:
        return False
    elements = prod(value.shape)
    return elements <= 1 or (value.dtype not in _FLOATING and value.bits > 8 and elements <= _MOST_METADATA)


def _is_known(model: _Model, name: str) -> bool:
    value = model.values.get(name)
    return value is not None and value.shape is not None and -1 not in value.shape


def _operand(model: _Model, name: str, node: Any) -> Operand:
    """A tensor as an operator sees it: in the shape that a view gave it, with the bytes of what is behind the view."""
    source = model.resolve(name)
    for needed in (source, name):
        if not _is_known(model, needed):
            raise _unresolved(model, needed, node)
    shape, value = model.values[name].shape, model.values[source]
    assert shape is not None
    size = 0 if _is_metadata(model, source) else model.stored_bytes.get(source, value.bytes)
    return Operand(shape, size, source in model.constants)


def _unresolved(model: _Model, name: str, node: Any) -> InputError:
    value = model.values.get(name)
    found = "its shape is unknown" if value is None or value.shape is None else f"its shape is {_shown(value.shape)}"
    return InputError(
        f"tensor '{name}' of operator {_title(node)} has no fixed size ({found}); export the model with static shapes"
    )


def _check_input(model: _Model, name: str, value: Any) -> None:
    shape = model.values[name].shape if name in model.values else None
    if shape is not None and -1 not in shape:
        return
    named = [d.dim_param for d in value.type.tensor_type.shape.dim if d.dim_param]
    if named:
        raise InputError(
            f"input '{name}' has the dimension '{named[0]}', which is not fixed; give it a size after the file's name, "
            f"as in model.onnx:{named[0]}=8"
        )
    raise InputError(f"input '{name}' has no fixed shape; export the model with static shapes")


def _dtype(elem_type: int, name: str) -> tuple[str, int]:
    """The project's dtype for one of ONNX's, and the bits of an element."""
    from onnx import TensorProto

    onnx_name = TensorProto.DataType.Name(elem_type).lower() if elem_type in TensorProto.DataType.values() else "?"
    onnx_name = {"float": "float32", "double": "float64"}.get(onnx_name, onnx_name)
    if onnx_name in DTYPE_BYTES:
        return onnx_name, 8 * DTYPE_BYTES[onnx_name]
    if onnx_name in _OTHER_DTYPES:
        return _OTHER_DTYPES[onnx_name]
    raise InputError(
        f"tensor '{name}' holds elements of type '{onnx_name}', which have no size; remove it from the model"
    )


def _is_standard(node: Any) -> bool:
    from onnx import defs

    return node.domain in _STANDARD and defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain)


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import AttributeProto, helper

    small = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.STRING)
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type in small}
    return {key: v.decode(errors="replace") if isinstance(v, bytes) else v for key, v in values.items()}


def _modules(nodes: Sequence[Any]) -> list[str]:
    """The module path of each node, without what all that have a path begin with, if most have one."""
    paths = [_path(node) for node in nodes]
    given = [path for path in paths if path]
    common = 0
    if 2 * len(given) > len(paths):
        first, last = min(given), max(given)
        pairs = zip(first, last, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return [".".join(path[common:]) for path in paths]


def _path(node: Any) -> list[str]:
    """The modules that a node is in, outermost first; see the module's text for where this stands."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                scopes = [str(s) for s in ast.literal_eval(entry.value)]
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                break
            inner = [s for s in scopes[:-1] if s]
            return inner[-1].split(".") if inner else []
    first_output = next((name for name in node.output if name), "")
    name = next((n for n in (node.name, first_output) if "/" in n.strip("/")), "")
    return [part for part in name.strip("/").split("/")[:-1] if part]


def _title(node: Any) -> str:
    return f"{node.op_type} '{node.name}'"


def _shown(shape: Shape) -> str:
    return f"({', '.join('?' if d < 0 else str(d) for d in shape)})"
