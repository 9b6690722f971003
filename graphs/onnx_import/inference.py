"""The shapes that one operator of the ONNX standard puts out, in the version that the file's operator set says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from graphs.computation_graph import Shape
from graphs.errors import InputError
from graphs.onnx_import.values import STANDARD, Tensor, Value, shown, title

Type = tuple[Shape | None, int]
"""A shape (-1 for a dimension that is not known) and ONNX's number for the type of the elements."""

_FLOAT, _INT64, _STRING = 1, 7, 8

_LIKE_FIRST = frozenset(
    {
        *("Abs", "Add", "BatchNormalization", "Ceil", "Clip", "Div", "Dropout", "Elu", "Exp", "Floor"),
        *(
            "GroupNormalization",
            "HardSigmoid",
            "InstanceNormalization",
            "LeakyRelu",
            "Log",
            "MeanVarianceNormalization",
        ),
        *("Mul", "Neg", "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sqrt", "Sub", "Tanh"),
        *("Imputer", "Normalizer", "Scaler"),
    }
)
"""Operators that in some version say nothing of the shape they put out, which is that of the first input."""


def is_standard(node: Any) -> bool:
    """Whether an operator is one of the ONNX standard."""
    return node.domain in STANDARD and _schema(node.op_type, node.domain, 2**31 - 1) is not None


@lru_cache(maxsize=4096)
def _schema(op_type: str, domain: str, version: int) -> Any:
    """The operator's definition in an operator set: the newest one where it is none of that set, None where of none.

    ONNX Runtime writes newer operators of the standard into models of older sets.
    """
    from onnx import defs

    domain = "" if domain == "ai.onnx" else domain
    for arguments in ((op_type, version, domain), (op_type, domain)):
        try:
            return defs.get_schema(*arguments)
        except (defs.SchemaError, TypeError, OverflowError):
            continue
    return None


def check_inputs(node: Any, inputs: Sequence[Value | None], opsets: Mapping[str, int]) -> None:
    """Raise where an operator of the standard lacks an input or output that it must have."""
    schema = _schema(node.op_type, node.domain, _version(node, opsets))
    least = schema.min_input
    required = [i for i, formal in enumerate(schema.inputs[:least]) if formal.option == type(formal.option).Single]
    if len(inputs) < least or any(inputs[i] is None for i in required):
        raise InputError(f"operator {title(node)} lacks an input that it must have; export the model again")
    if not any(node.output):
        raise InputError(f"operator {title(node)} puts nothing out; export the model again")
    if len(inputs) > schema.max_input or len(node.output) > schema.max_output:
        raise InputError(f"operator {title(node)} has more inputs or outputs than there are; export the model again")


def infer(node: Any, inputs: Sequence[Tensor | None], opsets: Mapping[str, int]) -> list[Type | None]:
    """The shape and type of each output, None where one is not known.

    Args:
        node: An `onnx.NodeProto` of the standard, without subgraphs.
        inputs: In its order, None where one is left out.
        opsets: The version of each domain that the file imports.

    Raises:
        InputError: The inputs do not fit the operator or each other.
    """
    from onnx import helper, numpy_helper, shape_inference

    version = _version(node, opsets)
    schema = _schema(node.op_type, node.domain, version)
    first = next((t for t in inputs if t is not None), None)
    if node.op_type in _ML and not schema.has_type_and_shape_inference_function:
        return _ML[node.op_type](helper, node, inputs)
    if not schema.has_type_and_shape_inference_function:
        if node.op_type in _LIKE_FIRST and first is not None:
            return [(first.shape, first.elem_type), *[None] * (len(node.output) - 1)]
        schema, node = _newer(node)
    types, data = {}, {}
    for name, tensor in zip(node.input, inputs, strict=True):
        if tensor is not None and name not in types:
            dims = None if tensor.shape is None else [None if d < 0 else d for d in tensor.shape]
            types[name] = helper.make_tensor_type_proto(tensor.elem_type, dims)
            if tensor.value is not None:
                data[name] = numpy_helper.from_array(tensor.value, name)
    imports = [helper.make_opsetid(domain, number) for domain, number in opsets.items()]
    try:
        found = shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=imports)
    except Exception as error:  # of several kinds, none documented
        said = " ".join(str(error).split()).rpartition("ShapeInferenceError]")[2].strip(" :")[:200]
        shapes = ", ".join(shown(t.shape) for t in inputs if t is not None)
        raise InputError(
            f"operator {title(node)} cannot work on inputs of shapes {shapes} ({said}); change the sizes given, or "
            "export the model again"
        ) from error
    return [_type(found[name]) if name in found else None for name in node.output]


def infer_as(op_type: str, node: Any, inputs: Sequence[Type]) -> list[Type | None]:
    """What an operator of the standard would put out, with those attributes of `node` that it has."""
    from onnx import helper

    schema = _schema(op_type, "", 2**31 - 1)
    names = [f"i{i}" for i in range(len(inputs))]
    standard = helper.make_node(op_type, names, ["o"], name=node.name)
    standard.attribute.extend(a for a in node.attribute if a.name in schema.attributes)
    tensors = [Tensor(name, elem_type, shape) for name, (shape, elem_type) in zip(names, inputs, strict=True)]
    return infer(standard, tensors, {"": schema.since_version})


def _version(node: Any, opsets: Mapping[str, int]) -> int:
    return opsets.get("" if node.domain == "ai.onnx" else node.domain, opsets.get(node.domain, 1))


def _type(proto: Any) -> Type | None:
    if not proto.HasField("tensor_type"):
        return None
    kind = proto.tensor_type
    shape = (
        tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else -1 for d in kind.shape.dim)
        if kind.HasField("shape")
        else None
    )
    return shape, kind.elem_type


def _newer(node: Any) -> tuple[Any, Any]:
    """An operator of a version without shapes as one of the newest, whose attributes are the same but for a few."""
    from onnx import NodeProto, TensorProto, helper

    copy = NodeProto()
    copy.CopyFrom(node)
    names = {a.name for a in copy.attribute}
    if node.op_type == "Concat" and "axis" not in names:
        copy.attribute.append(helper.make_attribute("axis", 1))
    for attribute in copy.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.s:
            number = dict(TensorProto.DataType.items()).get(attribute.s.decode(errors="replace"), 1)
            attribute.CopyFrom(helper.make_attribute("to", number))
    return _schema(node.op_type, node.domain, 2**31 - 1), copy


def _attribute(helper: Any, node: Any, name: str) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def _rows(inputs: Sequence[Tensor | None]) -> int:
    shape = inputs[0].shape if inputs and inputs[0] is not None else None
    return -1 if shape is None else shape[0] if len(shape) > 1 else 1


def _regressor(helper: Any, node: Any, inputs: Sequence[Tensor | None]) -> list[Type | None]:
    """A score for each row and target."""
    return [
        ((_rows(inputs), _attribute(helper, node, "n_targets") or _attribute(helper, node, "targets") or 1), _FLOAT)
    ]


def _classifier(helper: Any, node: Any, inputs: Sequence[Tensor | None]) -> list[Type | None]:
    """A label for each row, and a score for each row and label."""
    labels = [
        _attribute(helper, node, f"class{e}_{k}") for e in ("labels", "es") for k in ("strings", "int64s", "ints")
    ]
    count = max((len(found) for found in labels if found), default=1)
    text = any(_attribute(helper, node, name) for name in ("classlabels_strings", "classes_strings"))
    return [((_rows(inputs),), _STRING if text else _INT64), ((_rows(inputs), count), _FLOAT)]


def _vectorizer(helper: Any, node: Any, inputs: Sequence[Tensor | None]) -> list[Type | None]:
    columns = _attribute(helper, node, "inputdimensions")
    return [((_rows(inputs), sum(columns)) if columns else None, _FLOAT)]


_ML: dict[str, Callable[[Any, Any, Sequence[Tensor | None]], list[Type | None]]] = {
    "FeatureVectorizer": _vectorizer,
    "LinearRegressor": _regressor,
    "SVMRegressor": _regressor,
    "TreeEnsembleClassifier": _classifier,
    "TreeEnsembleRegressor": _regressor,
}
"""Operators of classical learning of whose shapes the standard says nothing."""
