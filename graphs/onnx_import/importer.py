"""An ONNX model -> the computation graph of its inference step.

An `.onnx` file holds the operators of the forward pass, so the graph is one of inference. Needs the package `onnx`
(``pip install "device-placement[onnx]"``), which is imported when a file is read, not before. Nothing of the file is
executed, and weights that lie in files beside it are not read: their sizes are enough.

- *Shapes* are those of ONNX's own shape inference, operator by operator, under the operator set of the file. All sizes
  that are not fixed are named at once, with the option that gives them: ``model.onnx:batch=8,x.1=4``. A dimension has a
  name, is an expression of names, or is called by its tensor and position. What the file says of tensors inside is
  taken only where nothing follows, and only if it nowhere contradicts what does.
- *Constants.* What is computed from initializers alone (a ConstantOfShape, an Unsqueeze of a bias) is computed once,
  when the model is loaded, and so becomes a constant itself. Floating-point and 8-bit constants are parameters, the
  running statistics of a normalisation and all others are resident constants. Shapes and axes (integers of up to 64
  elements), and single numbers, are no tensors of their own: runtimes keep them on the host.
- *Control flow* is walked where it is known beforehand: the branch of an If whose condition follows from shapes or
  from a number that is given for an input (``model.onnx:sr=16000``), the turns of a Loop or Scan whose number does. A
  loop of very many operators is one operator, which costs all turns. Operators that no output needs are left out.
- *Costs* are in `graphs.onnx_import.costs`. An operator from outside the ONNX standard and ONNX Runtime's own is
  charged by its bytes; `unknown_operators` lists these.
- *Modules* come from the names that exporters give: the scopes that PyTorch's exporter records with a node, else the
  path in the node's name (``/encoder/layer.0/query/MatMul``), else the one in the name of its first output. A beginning
  that all of these have in common is dropped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError
from graphs.onnx_import import functions
from graphs.onnx_import.dimensions import Sizes, missing_error
from graphs.onnx_import.frames import Emitted, Frame
from graphs.onnx_import.inference import Type
from graphs.onnx_import.to_graph import to_graph
from graphs.onnx_import.values import Missing, Tensor, tensors_of
from graphs.onnx_import.walk import MOST_EXPANDED, Walk
from graphs.reading import is_missing, read_file

SUFFIX = ".onnx"
"""How the name of an ONNX file ends."""

INSTALL = "pip install 'device-placement[onnx]'"
"""What to run where the package is missing."""

_MOST_BYTES = 2**31
"""What the format allows: weights beyond that lie in other files, which are not read."""

_STRIPPED_ELEMENTS = 1024
"""Elements from which an initializer's values are dropped: only small ones are looked at."""

_WHOLE_NUMBERS = (2, 3, 4, 5, 6, 7, 9, 12, 13)
"""ONNX's numbers for the types of whole numbers, and truth values."""


def load_onnx_file(
    path: str | os.PathLike[str], sizes: Mapping[str, int | Sequence[int]] | None = None
) -> ComputationGraph:
    """Read an ONNX file.

    Args:
        path: Ends in ``.onnx``.
        sizes: A size for each dimension that the file leaves open, by its name (``batch``), or by tensor and position
            (``x.0``); a whole shape by the tensor's name; a number for an input that holds one.

    Raises:
        InputError: The package `onnx` is not installed, the file cannot be read, or it says something that cannot be
            placed: tensors without a fixed size, a branch or a loop that depends on the step's data, a tensor that
            nothing makes; one sentence names it.
    """
    path = Path(path)
    try:
        proto = _read(path)
        name = proto.graph.name
        name = name if name and name != "main_graph" else path.name.removesuffix(SUFFIX)
        return to_graph(name, *_walk(proto, path, dict(sizes or {})))
    except InputError as error:
        raise InputError(f"ONNX file '{path}': {error}") from error.__cause__


def unknown_operators(graph: ComputationGraph) -> dict[str, int]:
    """How many ops there are of each operator from outside the ONNX standard; they are charged by their bytes alone."""
    counts = Counter(graph.op_type.tolist())
    return {name: counts[i] for i, name in enumerate(graph.type_names) if "::" in name and not name.startswith("aten")}


def _read(path: Path) -> Any:
    """The model's `onnx.ModelProto`, without the values of large constants."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
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
    for tensor in proto.graph.initializer:
        if prod(tensor.dims) > _STRIPPED_ELEMENTS:
            for key in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                tensor.ClearField(key)
    _check_text(proto)
    return proto


def _check_text(message: Any) -> None:
    """Raise where a name is not text: protobuf hands such names out as bytes."""
    for descriptor, value in message.ListFields():
        repeated = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        if descriptor.type == descriptor.TYPE_STRING:
            for text in value if repeated else (value,):
                if not isinstance(text, str):
                    raise InputError(f"it is damaged: '{descriptor.name}' is not text; export or copy it again")
        elif descriptor.type == descriptor.TYPE_MESSAGE:
            for inner in value if repeated else (value,):
                if inner.DESCRIPTOR.name == "TensorProto":
                    _check_tensor_text(inner)
                else:
                    _check_text(inner)


def _check_tensor_text(tensor: Any) -> None:
    """As `_check_text`, without a copy of the data."""
    entries = [text for entry in tensor.external_data for text in (entry.key, entry.value)]
    if not all(isinstance(text, str) for text in (tensor.name, *entries)):
        raise InputError("it is damaged: the name of a constant is not text; export or copy it again")


def _walk(
    proto: Any, path: Path, given: Mapping[str, int | Sequence[int]]
) -> tuple[list[Tensor], list[Emitted], dict[str, int]]:
    """The inputs and operators of a step, and the operator sets."""
    graph = proto.graph
    opsets = {o.domain: o.version for o in proto.opset_import} or {"": 1}
    if "ai.onnx" in opsets:
        opsets.setdefault("", opsets["ai.onnx"])
    local = functions.by_key(proto.functions)
    functions.check_expansion(graph.node, local, MOST_EXPANDED)
    texts = [d.dim_param for i in graph.input for d in i.type.tensor_type.shape.dim if d.dim_param]
    initialized = {t.name for t in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    for trust in (False, True):
        sizes = Sizes(given, texts)
        walk = Walk(path, local, sizes, _notes(graph, sizes, given), trust=trust)
        frame = Frame(opsets)
        walk.initializers(frame, graph)
        inputs = [_input(walk, i) for i in graph.input if i.name not in initialized]
        for tensor in inputs:
            frame.bind(tensor.name, tensor, "an input")
        walk.run(frame, graph.node)
        outputs = [_output(frame, output.name) for output in graph.output if output.name]
        if not outputs:
            raise InputError("it has no outputs, so a step computes nothing; export the model again")
        emitted = _needed(walk.emitted, outputs)
        missing = _missing(emitted, outputs)
        if not missing or walk.contradicted or any(not m.error for m in walk.missing_inputs):
            break
    if missing:
        missing |= walk.missing_inputs
        sizes.check_spelling(m.key for m in missing)
        raise missing_error(str(path), missing)
    sizes.check_used()
    return inputs, emitted, opsets


def _input(walk: Walk, value: Any) -> Tensor:
    """One of the model's inputs, with the sizes that the user gave."""
    name, where = value.name, f"input '{value.name}'"
    if not value.type.HasField("tensor_type"):
        raise InputError(f"{where} is not a tensor, so its size is not known; export the model with tensors as inputs")
    kind, sizes = value.type.tensor_type, walk.sizes
    if not kind.HasField("shape"):
        shape = sizes.shape(name)
        missing = set() if shape is not None else {Missing(name, f"the shape of {where}", "4x5")}
        walk.missing_inputs |= missing
        return Tensor(name, kind.elem_type, shape, missing=frozenset(missing))
    dims, found = [], []
    for position, dimension in enumerate(kind.shape.dim):
        size = dimension.dim_value if dimension.HasField("dim_value") else -1
        missing_here: list[Missing] = []
        text = dimension.dim_param.strip()
        if text and text not in ("?", "None", "-1"):
            size, missing_here = sizes.named(dimension.dim_param, where)
        elif size < 0:
            size = sizes.at(name, position)
            missing_here = [Missing(f"{name}.{position}", f"dimension {position} of {where}")]
        dims.append(size)
        found += missing_here if size < 0 else []
    walk.missing_inputs.update(found)
    tensor = Tensor(name, kind.elem_type, tuple(dims), missing=frozenset(found))
    if tensor.is_known and tensor.elements == 1 and kind.elem_type in _WHOLE_NUMBERS:
        walk.choices.append(name)
        number = sizes.lookup(name)
        if number is not None:
            tensor.value = np.full(tensor.shape or (), number, dtype=np.int64).astype(tensor.dtype)
            tensor.constant = True
    return tensor


def _notes(graph: Any, sizes: Sizes, given: Mapping[str, Any]) -> dict[str, Type]:
    """What the file says of tensors that are no inputs."""
    notes: dict[str, Type] = {}
    for value in (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not value.name:
            continue
        shape = None
        if kind.HasField("shape"):
            shape = tuple(
                d.dim_value
                if d.HasField("dim_value") and d.dim_value >= 0
                else sizes.named(d.dim_param, f"tensor '{value.name}'")[0]
                if d.dim_param in given
                else -1
                for d in kind.shape.dim
            )
        notes[value.name] = (shape, kind.elem_type)
    return notes


def _output(frame: Frame, name: str) -> Any:
    value = frame.find(name)
    if value is None:
        raise InputError(f"its output '{name}' is made by no operator; export the model again")
    return value


def _needed(emitted: Iterable[Emitted], outputs: Sequence[Any]) -> list[Emitted]:
    """The operators on which the outputs depend, each with those of its outputs that something reads."""
    read = {id(tensor.origin) for value in outputs for tensor in tensors_of(value)}
    kept: list[Emitted] = []
    for op in reversed(list(emitted)):
        used = [t if t is not None and id(t) in read else None for t in op.outputs]
        if any(t is not None for t in used):
            op.outputs = [t if t is not None and (id(t) in read or t.is_known) else None for t in op.outputs]
            read.update(id(t.origin) for t in op.inputs if t is not None)
            kept.append(op)
    return kept[::-1]


def _missing(emitted: Sequence[Emitted], outputs: Sequence[Any]) -> set[Missing]:
    """The sizes that are missing for what is needed."""
    missing: set[Missing] = set()
    needed = [t for op in emitted for t in (*op.inputs, *op.outputs) if t is not None]
    for tensor in (*needed, *(t for value in outputs for t in tensors_of(value))):
        for one in (tensor, tensor.origin):
            if not one.is_known:
                missing |= one.missing or {Missing(one.name, f"the shape of tensor '{one.name}'", "4x5")}
    return missing
