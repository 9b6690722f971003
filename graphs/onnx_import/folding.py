"""Computing the few numbers that the shapes of an ONNX model are made of.

Exporters leave the arithmetic of shapes in the graph: take the shape of a tensor, pick a dimension, divide it, put it
into a Reshape. An operator that makes a few numbers from known numbers is computed with ONNX's reference
implementation, in the version that the file's operator set says. Only operators of the ONNX standard in the list below
are computed, and only where their outputs are known to be small before they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphs.onnx_import.values import MOST_ELEMENTS, Tensor

_COMPUTED = frozenset(
    {
        *("Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "Cast", "CastLike", "Ceil", "Clip", "Concat"),
        *("ConstantOfShape", "CumSum", "Div", "Equal", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "Gather"),
        *("GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less"),
        *("LessOrEqual", "Log", "MatMul", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "Pad"),
        *("Pow", "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
        *("ReduceSum", "Relu", "Reshape", "Round", "ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Sqrt"),
        *("Squeeze", "Sub", "Sum", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor"),
    }
)

_BOUNDED = frozenset({"Compress", "NonZero", "Unique"})
"""Operators whose output has a size that depends on numbers, but is never much more than those that go in."""


class Folding:
    """Computes operators, one at a time, and keeps what it has made ready for those of the same kind."""

    def __init__(self) -> None:
        self._ready: dict[tuple[Any, ...], Any] = {}

    def compute(
        self, node: Any, inputs: Sequence[Tensor | None], sizes: Sequence[int | None], opsets: Mapping[str, int]
    ) -> list[np.ndarray] | None:
        """What a node puts out; None where it is not known, or too much.

        Args:
            node: The `onnx.NodeProto`, of the ONNX standard.
            inputs: In its order, None where one is left out.
            sizes: Elements of each output, None where they are not known.
            opsets: The version of each domain that the file imports.
        """
        if node.op_type not in _COMPUTED | _BOUNDED or any(t is not None and t.value is None for t in inputs):
            return None
        if node.op_type not in _BOUNDED and any(size is None or size > MOST_ELEMENTS for size in sizes):
            return None
        try:
            with warnings.catch_warnings():  # an overflow is not ours to report
                warnings.simplefilter("ignore")
                evaluator = self._evaluator(node, inputs, opsets)
                feeds = {f"i{i}": t.value for i, t in enumerate(inputs) if t is not None}
                made = [np.asarray(value) for value in evaluator.run(None, feeds)]
        except Exception:  # the reference implementation lacks something: the shape stays open, and is refused by name
            return None
        return None if any(value.size > MOST_ELEMENTS or value.dtype == object for value in made) else made

    def _evaluator(self, node: Any, inputs: Sequence[Tensor | None], opsets: Mapping[str, int]) -> Any:
        from onnx import NodeProto, helper
        from onnx.reference import ReferenceEvaluator

        attributes = b"".join(a.SerializeToString(deterministic=True) for a in node.attribute)
        present = tuple(t.elem_type if t is not None else 0 for t in inputs)
        version = opsets.get("", 1)
        key = (node.op_type, version, attributes, present, tuple(map(bool, node.output)))
        if key not in self._ready:
            renamed = NodeProto()
            renamed.CopyFrom(node)
            renamed.domain = ""
            del renamed.input[:], renamed.output[:]
            renamed.input.extend(f"i{i}" if t is not None else "" for i, t in enumerate(inputs))
            renamed.output.extend(f"o{i}" if name else "" for i, name in enumerate(node.output))
            values = [
                helper.make_tensor_value_info(f"i{i}", t.elem_type, None) for i, t in enumerate(inputs) if t is not None
            ]
            outputs = [helper.make_empty_tensor_value_info(name) for name in renamed.output if name]
            graph = helper.make_graph([renamed], "one", values, outputs)
            self._ready[key] = ReferenceEvaluator(graph, opsets={**opsets, "": version})
        return self._ready[key]
