"""What is known of the tensors of an ONNX file: type, shape, and the few numbers that shapes are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from graphs.computation_graph import DTYPE_BYTES, Shape
from graphs.errors import InputError

MOST_ELEMENTS = 1024
"""Elements up to which the numbers of a tensor are looked at: more are data, not shapes."""

STANDARD = ("", "ai.onnx", "ai.onnx.ml")
"""Domains of the ONNX standard."""

FLOATING = ("float16", "bfloat16", "float32", "float64")

_LARGEST_BYTES = 2**60
"""Above every memory there is: sizes beyond it are a mistake, and would overflow sums."""

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
    "string": ("uint8", 256),
}
"""ONNX's other types of element: the nearest of `graphs.computation_graph.DTYPES`, and their own bits. A text is
charged as what ONNX Runtime keeps of it in the tensor: 32 bytes."""


@dataclass(frozen=True)
class Missing:
    """A size that the file does not say.

    Attributes:
        key: What to write before the ``=`` of the option that gives it.
        what: For the message, as in ``"dimension 'batch' of input 'x'"``.
        example: What to write behind the ``=``.
        error: Whether no option helps, and `what` is the whole message.
    """

    key: str
    what: str
    example: str = "8"
    error: bool = False


@dataclass(eq=False)
class Tensor:
    """A tensor of the file.

    Attributes:
        name: Its name, behind those of the loops and functions that it is in.
        elem_type: ONNX's number for the type of its elements.
        shape: None where even the rank is unknown; -1 for a dimension that is.
        value: Its numbers, where they are few and known.
        constant: Whether it is the same in every step, so that it is computed when the model is loaded.
        stored: Whether it is made from numbers of the file alone, not from the shapes of inputs.
        source: The tensor that it is a view of.
        stored_bytes: Its bytes where its shape does not say them (a sparse tensor).
        missing: The sizes that are not known, and because of which this one is not.
    """

    name: str
    elem_type: int
    shape: Shape | None
    value: np.ndarray | None = None
    constant: bool = False
    stored: bool = False
    source: Tensor | None = None
    stored_bytes: int | None = None
    missing: frozenset[Missing] = frozenset()
    dtype: str = field(init=False)
    bits: int = field(init=False)

    def __post_init__(self) -> None:
        self.dtype, self.bits = dtype_of(self.elem_type, self.name)
        if self.is_known and self.elements * self.bits > 8 * _LARGEST_BYTES:
            raise InputError(f"tensor '{self.name}' would have the shape {shown(self.shape)}, which no memory holds")

    @property
    def is_known(self) -> bool:
        """Whether its size is known."""
        return self.shape is not None and -1 not in self.shape

    @property
    def elements(self) -> int:
        """How many; only where `is_known`."""
        assert self.shape is not None
        return prod(self.shape)

    @property
    def origin(self) -> Tensor:
        """The tensor that holds the data: itself, or what it is a view (of a view) of."""
        tensor = self
        while tensor.source is not None:
            tensor = tensor.source
        return tensor

    @property
    def bytes(self) -> int:
        """Bytes that it takes, without the use of a view."""
        if self.stored_bytes is not None:
            return self.stored_bytes
        return (self.elements * self.bits + 7) // 8


@dataclass(frozen=True, eq=False)
class Items:
    """A sequence: its elements, in order."""

    items: tuple[Value, ...]
    elem_type: int = 1


@dataclass(frozen=True, eq=False)
class Nothing:
    """An optional that is empty."""


Value = Tensor | Items | Nothing


def tensors_of(value: Value | None) -> Iterator[Tensor]:
    """The tensors that a value holds."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Items):
        for item in value.items:
            yield from tensors_of(item)


def missing_of(inputs: Sequence[Value | None]) -> frozenset[Missing]:
    """The sizes because of which what is made of some values is not known.

    Those of a tensor whose shape is known count only where its numbers are the same in every step, and so could be.
    """
    found: set[Missing] = set()
    for value in inputs:
        for tensor in tensors_of(value):
            if not tensor.is_known or (tensor.constant and tensor.value is None):
                found |= tensor.missing
    return frozenset(found)


def dtype_of(elem_type: int, name: str) -> tuple[str, int]:
    """The project's dtype for one of ONNX's, and the bits of an element.

    Raises:
        InputError: Elements of that type have no size; `name` is the tensor's.
    """
    found = _dtype(elem_type)
    if isinstance(found, str):
        raise InputError(
            f"tensor '{name}' holds elements of type '{found}', which have no size; remove it from the model"
        )
    return found


@lru_cache
def _dtype(elem_type: int) -> tuple[str, int] | str:
    """As `dtype_of`; ONNX's name for the type where its elements have no size."""
    from onnx import TensorProto

    onnx_name = TensorProto.DataType.Name(elem_type).lower() if elem_type in TensorProto.DataType.values() else "?"
    onnx_name = {"float": "float32", "double": "float64"}.get(onnx_name, onnx_name)
    if onnx_name in DTYPE_BYTES:
        return onnx_name, 8 * DTYPE_BYTES[onnx_name]
    return _OTHER_DTYPES.get(onnx_name, onnx_name)


def title(node: Any) -> str:
    """An operator as messages call it."""
    return f"{node.op_type} '{node.name or next((name for name in node.output if name), '')}'"


def shown(shape: Shape | None) -> str:
    """A shape as messages show it."""
    return "unknown" if shape is None else f"({', '.join('?' if d < 0 else str(d) for d in shape)})"
