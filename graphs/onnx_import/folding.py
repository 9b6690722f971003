"""Computing, in an ONNX model whose inputs have fixed sizes, the few numbers that its shapes are made of.

Exporters leave the arithmetic of shapes in the graph: take the shape of a tensor, pick a dimension, divide it, put it
into a Reshape. ONNX's own shape inference follows only some of it. Here every operator that makes a few numbers from
known numbers is computed with ONNX's reference implementation, and shape inference runs again, until nothing is new.
Only operators of the ONNX standard in the list below are computed.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

_COMPUTED = frozenset(
    {
        *("Abs", "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand"),
        *("Flatten", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min"),
        *("Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
        *("Reshape", "ScatterND", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze"),
        "Where",
    }
)

_MOST_ELEMENTS = 1024
"""Elements up to which a tensor is computed: more are data, not shapes."""

_MOST_ROUNDS = 100


def infer_shapes(proto: Any) -> Any:
    """The model with the shapes that can be known; operators that were computed have become initializers.

    Args:
        proto: An `onnx.ModelProto` whose inputs have fixed shapes, without subgraphs.
    """
    from onnx import shape_inference

    proto.ir_version = max(proto.ir_version, 4)  # before, every initializer had to be an input, too
    for _ in range(_MOST_ROUNDS):
        proto = shape_inference.infer_shapes(proto, data_prop=True)
        if not _is_open(proto.graph) or not _compute(proto.graph):
            break
        del proto.graph.value_info[:]
        for output in proto.graph.output:
            output.type.tensor_type.ClearField("shape")
    return proto


def _is_open(graph: Any) -> bool:
    """Whether the shape of some operator's output is not known."""
    known = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
    }
    return any(name and name not in known for node in graph.node for name in node.output)


def _compute(graph: Any) -> bool:
    """Replace the operators whose results are known by initializers; False where there is nothing new."""
    from onnx import numpy_helper

    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input)
        if value.type.tensor_type.HasField("shape")
        and all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
    }
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer if prod(t.dims) <= _MOST_ELEMENTS}
    shapes |= {t.name: list(t.dims) for t in graph.initializer}
    left, computed = [], []
    for node in graph.node:
        made = _outputs(node, shapes, values)
        if made is None:
            left.append(node)
        else:
            values |= made
            computed += [numpy_helper.from_array(value, name) for name, value in made.items()]
    if not computed:
        return False
    del graph.node[:]
    graph.node.extend(left)
    graph.initializer.extend(computed)
    return True


def _outputs(node: Any, shapes: dict[str, list[int]], values: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """What a node puts out, by name; None where it is not known, or too much."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("Shape", "Size") and node.input[0] in shapes:
        shape = np.array(shapes[node.input[0]], dtype=np.int64)
        if node.op_type == "Size":
            return {node.output[0]: np.array(shape.prod(), dtype=np.int64)}
        ends = {a.name: a.i for a in node.attribute}
        return {node.output[0]: shape[ends.get("start", 0) : ends.get("end", len(shape))]}
    if node.op_type not in _COMPUTED or not all(name in values or not name for name in node.input):
        return None
    sizes = [prod(shapes[name]) for name in node.output if name in shapes]
    if node.op_type in ("ConstantOfShape", "Expand"):
        sizes.append(prod(values[node.input[-1]].tolist()))
    if any(size > _MOST_ELEMENTS for size in sizes):
        return None
    from onnx.reference import ReferenceEvaluator

    try:
        inputs = {name: values[name] for name in node.input if name}
        made = [np.asarray(value) for value in ReferenceEvaluator(node).run(None, inputs)]
    except Exception:  # the reference implementation lacks something: the shape stays open, and is refused by name
        return None
    if any(value.size > _MOST_ELEMENTS for value in made):
        return None
    return dict(zip(node.output, made, strict=True))
