"""One walk over the operators of an ONNX model: what is computed in a step, on tensors of which size.

Operators are taken in the file's order, each with all that is known of its inputs, so that the size of what it puts out
is known before anything is computed. Calls of functions, the branch of an ``If`` that is taken, and the turns of a loop
whose number is known are walked where they stand; sequences are known by their elements. What is left are operators on
tensors: `Walk.emitted`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from graphs.computation_graph import Shape
from graphs.errors import InputError
from graphs.onnx_import import contrib, control_flow, functions, sequences
from graphs.onnx_import.costs import VIEWS
from graphs.onnx_import.dimensions import Sizes
from graphs.onnx_import.external import read_external
from graphs.onnx_import.folding import Folding
from graphs.onnx_import.frames import Emitted, Frame
from graphs.onnx_import.inference import Type, check_inputs, infer, is_standard
from graphs.onnx_import.values import (
    MOST_ELEMENTS,
    STANDARD,
    Missing,
    Tensor,
    Value,
    missing_of,
    shown,
    title,
)

MOST_EXPANDED = 50_000
"""Operators that functions and loops may come to, in the whole model."""

_MOST_COMPUTED_BYTES = 2**31
"""Bytes up to which a tensor that is made from the file's own numbers is taken for one that is computed when the model
is loaded; ONNX allows a tensor in a file no more."""

_NEVER_FOLDED = frozenset(
    {
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        "DequantizeLinear",  # weights stay quantized in memory
    }
)

_DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators that put out a size that depends on the numbers that go in."""

_INT64, _BOOL = 7, 9


class Walk:
    """The walk; see the module.

    Args:
        path: The model's file, beside which others may lie.
        functions: The model's own, by domain, name and overload.
        sizes: What the user gave.
        notes: What the file says of tensors inside: shapes to be taken where nothing better is known.
        trust: Whether the shapes in `notes` are taken; their types always are.

    Attributes:
        emitted: The operators so far.
        missing_inputs: The sizes that the model's inputs lack.
        choices: The model's inputs that hold one whole number, which the user may give.
        contradicted: Whether some note turned out to be stale.
    """

    def __init__(
        self,
        path: Path,
        functions: Mapping[tuple[str, str, str], Any],
        sizes: Sizes,
        notes: Mapping[str, Type],
        *,
        trust: bool,
    ) -> None:
        self.path = path
        self.functions = functions
        self.sizes = sizes
        self.notes = notes
        self.trust = trust
        self.emitted: list[Emitted] = []
        self.missing_inputs: set[Missing] = set()
        self.choices: list[str] = []
        self.expanded = 0
        self.contradicted = False
        self._folding = Folding()
        self._types: dict[tuple[Any, ...], list[Type | None]] = {}
        self._constants: dict[tuple[Any, ...], list[Tensor | None]] = {}

    def run(self, frame: Frame, nodes: Sequence[Any]) -> None:
        """Walk over operators in order."""
        for node in nodes:
            self.step(frame, node)

    def step(self, frame: Frame, node: Any) -> None:
        """Walk over one operator, which binds what it puts out."""
        if frame.attributes is not None:
            node = functions.with_attributes(node, frame.attributes)
        if frame.depth:
            self.expanded += 1
            if self.expanded > MOST_EXPANDED:
                raise InputError(
                    f"its functions and loops come to more than {MOST_EXPANDED:,} operators; export a smaller model"
                )
        inputs = [frame.get(name, node) if name else None for name in node.input]
        if node.domain in STANDARD and is_standard(node):
            check_inputs(node, inputs, frame.opsets)
        function = self.functions.get((node.domain, node.op_type, getattr(node, "overload", "")))
        if function is not None:
            outputs = functions.call(self, frame, node, function, inputs)
        elif node.domain in STANDARD and node.op_type in control_flow.OPERATORS:
            outputs = control_flow.OPERATORS[node.op_type](self, frame, node, inputs)
        elif node.domain in STANDARD and node.op_type in sequences.OPERATORS:
            outputs = sequences.OPERATORS[node.op_type](self, frame, node, inputs)
        else:
            tensors: list[Tensor | None] = []
            for name, value in zip(node.input, inputs, strict=True):
                if value is not None and not isinstance(value, Tensor):
                    raise InputError(
                        f"operator {title(node)} reads '{name}', a sequence or an optional that may be empty; export "
                        "the model without it"
                    )
                tensors.append(value)
            outputs = self.operator(frame, node, tensors)
        for name, output in zip(node.output, outputs, strict=False):
            if name:
                if output is None:
                    raise InputError(f"operator {title(node)} makes no output '{name}'; export the model again")
                frame.bind(name, output, f"operator {title(node)}")

    def initializers(self, frame: Frame, graph: Any) -> None:
        """Bind the constants of a graph."""
        for proto in graph.initializer:
            frame.bind(proto.name, self.constant(frame.prefix + proto.name, proto), "an initializer")
        for sparse in graph.sparse_initializer:
            frame.bind(sparse.values.name, self.sparse(frame.prefix + sparse.values.name, sparse), "an initializer")

    def constant(self, name: str, proto: Any) -> Tensor:
        """A tensor of the file; its numbers are looked at where they are few."""
        from onnx import TensorProto, numpy_helper

        if any(d < 0 for d in proto.dims):
            raise InputError(f"constant '{name}' has the shape {shown(tuple(proto.dims))}; export the model again")
        tensor = Tensor(name, proto.data_type, tuple(proto.dims), constant=True, stored=True)
        if tensor.elements > MOST_ELEMENTS or proto.data_type == TensorProto.STRING:
            return tensor
        if proto.data_location == TensorProto.EXTERNAL:
            try:
                tensor.value = read_external(proto, self.path)
            except InputError as error:  # which matters only where a shape depends on it
                tensor.missing = frozenset({Missing(name, str(error), error=True)})
            return tensor
        try:
            tensor.value = np.asarray(numpy_helper.to_array(proto))
        except Exception as error:  # of several kinds, none documented
            raise InputError(f"constant '{name}' does not hold what its shape says; copy the file again") from error
        return tensor

    def sparse(self, name: str, proto: Any) -> Tensor:
        """A sparse tensor of the file: its numbers and where they stand."""
        tensor = Tensor(name, proto.values.data_type, tuple(proto.dims), constant=True, stored=True)
        parts = (Tensor(name, p.data_type, tuple(p.dims)) for p in (proto.values, proto.indices))
        tensor.stored_bytes = sum(part.bytes for part in parts)
        return tensor

    def emit(self, frame: Frame, node: Any, inputs: list[Tensor | None], outputs: list[Tensor | None]) -> Emitted:
        """Note an operator that a step computes."""
        name = frame.prefix + (node.name or next((n for n in node.output if n), ""))
        self.emitted.append(Emitted(node, name, (node, *frame.scopes), inputs, outputs))
        return self.emitted[-1]

    def operator(self, frame: Frame, node: Any, inputs: list[Tensor | None]) -> list[Value | None]:
        """Walk over an operator on tensors."""
        standard = is_standard(node)
        if node.op_type == "Constant" and node.domain in STANDARD:
            return [self._constant_operator(frame, node)]
        folded = self._read_shape(frame, node, inputs) if standard else None
        if folded is not None:
            return [folded]
        constant = standard and node.op_type not in _NEVER_FOLDED and all(t is None or t.constant for t in inputs)
        key: tuple[Any, ...] = ()
        if constant and frame.depth:
            attributes = b"".join(a.SerializeToString(deterministic=True) for a in node.attribute)
            key = (node.op_type, attributes, *(id(t) for t in inputs))
            if key in self._constants:
                return list(self._constants[key])
        outputs = self._outputs(frame, node, inputs, standard=standard, constant=constant)
        if key:
            self._constants[key] = outputs
        if constant:
            return list(outputs)
        first = inputs[0] if inputs else None
        if standard and node.op_type in VIEWS and first is not None and outputs[0] and not _drops_out(node):
            result = outputs[0]
            result.source = first
            if first.is_known and result.is_known and first.elements != result.elements:
                raise InputError(
                    f"operator {title(node)} cannot show a tensor of shape {shown(first.shape)} as one of shape "
                    f"{shown(result.shape)}; change the sizes given, or export the model again"
                )
            for mask in outputs[1:]:  # of a Dropout, which in inference keeps everything
                if mask is not None:
                    mask.constant = True
            return list(outputs)
        self.emit(frame, node, inputs, outputs)
        return list(outputs)

    def _constant_operator(self, frame: Frame, node: Any) -> Tensor:
        """What a Constant puts out."""
        from onnx import helper

        attribute = next((a for a in node.attribute if a.name.startswith(("value", "sparse_value"))), None)
        name = frame.prefix + next((n for n in node.output if n), "")
        if attribute is None or not name:
            raise InputError(f"operator {title(node)} lacks its value; export the model again")
        if attribute.name == "value":
            return self.constant(name, attribute.t)
        if attribute.name == "sparse_value":
            return self.sparse(name, attribute.sparse_tensor)
        value = helper.get_attribute_value(attribute)
        elem_type = {"value_float": 1, "value_floats": 1, "value_int": 7, "value_ints": 7}.get(attribute.name, 8)
        shape = (len(value),) if isinstance(value, list) else ()
        tensor = Tensor(name, elem_type, shape, constant=True, stored=True)
        if elem_type != 8 and tensor.elements <= MOST_ELEMENTS:
            tensor.value = np.array(value, dtype=tensor.dtype)
        return tensor

    def _read_shape(self, frame: Frame, node: Any, inputs: list[Tensor | None]) -> Tensor | None:
        """What an operator puts out that reads a shape alone."""
        if node.op_type not in ("Shape", "Size"):
            return None
        tensor = inputs[0]
        assert tensor is not None
        name = frame.prefix + node.output[0]
        value, count = None, -1 if tensor.shape is None else len(tensor.shape)
        ends = {a.name: a.i for a in node.attribute}
        part = tensor.shape[ends.get("start", 0) : ends.get("end", count)] if tensor.shape is not None else None
        if node.op_type == "Size":
            shape: Shape | None = ()
            value = np.array(tensor.elements, dtype=np.int64) if tensor.is_known else None
        else:
            shape = None if part is None else (len(part),)
            value = np.array(part, dtype=np.int64) if part is not None and -1 not in part else None
        missing = tensor.missing if value is None else frozenset[Missing]()
        return Tensor(name, _INT64, shape, value, constant=True, missing=missing)

    def _outputs(
        self, frame: Frame, node: Any, inputs: list[Tensor | None], *, standard: bool, constant: bool
    ) -> list[Tensor | None]:
        """The tensors that an operator puts out."""
        if node.op_type == "Identity" and standard and constant and inputs[0] is not None:
            return [inputs[0]]
        if standard:
            types = self._inferred(frame, node, inputs)
        elif contrib.has_shapes(node) and all(t is None or t.is_known for t in inputs):
            types = contrib.infer(node, inputs)
        else:
            types = [None] * len(node.output)
        values = None
        if constant and node.domain in ("", "ai.onnx") and any(node.output):
            sizes = [
                prod(t[0]) if t is not None and t[0] is not None and -1 not in t[0] else None
                for t, name in zip(types, node.output, strict=True)
                if name
            ]
            values = self._folding.compute(node, inputs, sizes, frame.opsets)
        stored = constant and all(t is None or t.stored for t in inputs)
        outputs: list[Tensor | None] = []
        made = iter(values or ())
        for name, kind in zip(node.output, types, strict=True):
            if not name:
                outputs.append(None)
                continue
            value = next(made, None)
            tensor = self._output(frame, node, name, kind, value, inputs)
            tensor.constant, tensor.stored = constant, stored
            if stored and value is None and tensor.is_known and tensor.bytes > _MOST_COMPUTED_BYTES:
                raise InputError(
                    f"operator {title(node)} makes of the file's own numbers a constant of {tensor.bytes:,} bytes, "
                    f"more than a file may hold ({_MOST_COMPUTED_BYTES:,}); export the model again"
                )
            outputs.append(tensor)
        return outputs

    def _inferred(self, frame: Frame, node: Any, inputs: list[Tensor | None]) -> list[Type | None]:
        """What ONNX infers; once for all operators that are alike, as those of a model's layers are."""
        key = (
            *(node.op_type, node.domain, tuple(map(bool, node.output)), frame.opsets.get("", 1)),
            b"".join(a.SerializeToString(deterministic=True) for a in node.attribute),
            *(
                (t.elem_type, t.shape, t.value.tobytes() if t.value is not None else None) if t is not None else None
                for t in inputs
            ),
        )
        types = self._types.get(key)
        if types is None:
            types = self._types[key] = infer(node, inputs, frame.opsets)
        return types

    def _output(
        self,
        frame: Frame,
        node: Any,
        name: str,
        kind: Type | None,
        value: np.ndarray | None,
        inputs: Sequence[Tensor | None],
    ) -> Tensor:
        """One tensor that an operator puts out, with a size that the user or the file gives where none follows."""
        full = frame.prefix + name
        first = next((t for t in inputs if t is not None), None)
        shape, elem_type = kind if kind is not None else (None, 0)
        noted = self.notes.get(full)
        if not elem_type:
            elem_type = (noted[1] if noted else 0) or (first.elem_type if first is not None else 1)
        if value is not None:
            return Tensor(full, elem_type, value.shape, value)
        shape = self._with_note(shape, noted)
        shape = self.sizes.shape(full) or shape if shape is None else shape
        if shape is not None and -1 in shape:
            shape = tuple(d if d >= 0 else self.sizes.at(full, i) for i, d in enumerate(shape))
        missing = missing_of(inputs)
        if shape is None and not missing:
            missing = frozenset({Missing(full, f"the shape of tensor '{full}' of operator {title(node)}", "4x5")})
        elif shape is not None and -1 in shape and (not missing or node.op_type in _DATA_DEPENDENT):
            missing |= {
                Missing(f"{full}.{i}", f"dimension {i} of tensor '{full}' of operator {title(node)} {shown(shape)}")
                for i, d in enumerate(shape)
                if d < 0
            }
        return Tensor(full, elem_type, shape, missing=missing)

    def _with_note(self, shape: Shape | None, noted: Type | None) -> Shape | None:
        """A shape with what the file says of it, unless that is stale."""
        if noted is None or noted[0] is None:
            return shape
        note = noted[0]
        if shape is not None:
            if len(note) != len(shape) or any(a >= 0 and b >= 0 and a != b for a, b in zip(note, shape, strict=True)):
                self.contradicted = True
                return shape
            return tuple(b if a < 0 and self.trust else a for a, b in zip(shape, note, strict=True))
        return note if self.trust else None

    def known_number(self, value: Value | None) -> Any:
        """The one number that a tensor holds, None where it is not known."""
        if isinstance(value, Tensor) and value.value is not None and value.value.size == 1:
            return value.value.reshape(-1)[0].item()
        return None

    def small(self, name: str, value: Any, elem_type: int = _INT64) -> Tensor:
        """A constant that holds a few known numbers."""
        array = np.asarray(value, dtype=bool if elem_type == _BOOL else np.int64)
        return Tensor(name, elem_type, array.shape, array, constant=True)


def _drops_out(node: Any) -> bool:
    """Whether a Dropout is told to work as in training."""
    return node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])
