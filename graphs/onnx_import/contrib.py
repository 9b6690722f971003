"""Operators of ONNX Runtime's own (``com.microsoft``): shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graphs.onnx_import.inference import Type
from graphs.onnx_import.values import Tensor

DOMAIN = "com.microsoft"

_SHAPES: dict[str, Callable[[Any, Sequence[Tensor | None]], list[Type | None]]] = {}


def has_shapes(node: Any) -> bool:
    """Whether an operator is one whose shapes are known here."""
    return node.domain == DOMAIN and node.op_type in _SHAPES


def infer(node: Any, inputs: Sequence[Tensor | None]) -> list[Type | None]:
    """The shape and type of each output, None where one is not known."""
    return _SHAPES[node.op_type](node, inputs)
