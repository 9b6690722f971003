"""Operators of ONNX Runtime's own, domain ``com.microsoft``: the shapes that they put out.

They are written by its tools: the optimizer of transformers fuses attention and normalisations, quantization makes
products of integers, model builders write products with packed weights. Their definitions are at
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphs.computation_graph import Shape
from graphs.errors import InputError
from graphs.onnx_import.inference import Type, infer_as, is_standard
from graphs.onnx_import.values import Tensor, shown, title

DOMAIN = "com.microsoft"

_FLOAT, _UINT8, _INT32 = 1, 2, 6

Inputs = Sequence[Tensor | None]
Attributes = Mapping[str, Any]


def is_contrib(op_type: str, domain: str) -> bool:
    """Whether an operator is one of ONNX Runtime's whose shapes are known here.

    The runtime writes some of them into the standard's domain.
    """
    return op_type in _SHAPES and domain in (DOMAIN, "")


def has_shapes(node: Any) -> bool:
    """Whether an operator is one of ONNX Runtime's whose shapes are known here."""
    return is_contrib(node.op_type, node.domain) and not is_standard(node)


def infer(node: Any, inputs: Inputs) -> list[Type | None]:
    """The shape and type of each output, None where one is not known.

    Args:
        node: An operator for which `has_shapes` holds.
        inputs: In its order, all of known size; None where one is left out.

    Raises:
        InputError: It lacks an input or an attribute, or its inputs do not fit each other.
    """
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.type in (1, 2, 3, 6, 7)}
    try:
        found = _SHAPES[node.op_type](node, inputs, attributes)
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        shapes = ", ".join(shown(t.shape) for t in inputs if t is not None)
        raise InputError(
            f"operator {title(node)} lacks an input or attribute, or cannot work on inputs of shapes {shapes}; change "
            "the sizes given, or export the model again"
        ) from error
    count = len(node.output)
    return [*found[:count], *[None] * (count - len(found))]


def _at(inputs: Inputs, index: int) -> Tensor | None:
    return inputs[index] if index < len(inputs) else None


def _shape(inputs: Inputs, index: int) -> Shape:
    tensor = inputs[index]
    assert tensor is not None
    assert tensor.shape is not None
    return tensor.shape


def _elem(inputs: Inputs, index: int, default: int = _FLOAT) -> int:
    tensor = _at(inputs, index)
    return tensor.elem_type if tensor is not None else default


def _like(*, result: int = 0, elem: int = 0) -> Callable[[Any, Inputs, Attributes], list[Type | None]]:
    """Every output is as an input is: its shape that of one, its type that of another."""

    def shapes(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
        return [(_shape(inputs, result), _elem(inputs, elem))] * len(node.output)

    return shapes


def _broadcast(*operands: int, elem: int) -> Callable[[Any, Inputs, Attributes], list[Type | None]]:
    def shapes(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
        shape = np.broadcast_shapes(*(_shape(inputs, i) for i in operands if _at(inputs, i) is not None))
        return [(tuple(shape), _elem(inputs, elem))]

    return shapes


def _transposed(shape: Shape, last: bool, batch: bool) -> Shape:
    """The shape of an operand of a fused product, as the product takes it."""
    if batch and len(shape) > 2:
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if last and len(shape) > 1 else shape


def product_shapes(a: Shape, b: Shape, attributes: Attributes) -> tuple[Shape, Shape]:
    """The operands of a fused product, transposed as it says."""
    return (
        _transposed(a, bool(attributes.get("transA")), bool(attributes.get("transBatchA"))),
        _transposed(b, bool(attributes.get("transB")), bool(attributes.get("transBatchB"))),
    )


def _multiplied(a: Shape, b: Shape) -> Shape:
    inner = b[-2] if len(b) > 1 else b[0]
    if a[-1] != inner:
        raise ValueError("inner dimensions differ")
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    return (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def _product(second: int = 1, elem: int = 0) -> Callable[[Any, Inputs, Attributes], list[Type | None]]:
    def shapes(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
        a, b = product_shapes(_shape(inputs, 0), _shape(inputs, second), attributes)
        return [(_multiplied(a, b), _elem(inputs, elem))]

    return shapes


def _q_gemm(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    a, b = product_shapes(_shape(inputs, 0), _shape(inputs, 3), attributes)
    quantized = _at(inputs, 7) is not None  # else the sums are scaled to float
    return [(_multiplied(a, b), _elem(inputs, 8, _elem(inputs, 0)) if quantized else _elem(inputs, 1))]


def _packed_product(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    a = _shape(inputs, 0)
    if a[-1] != attributes["K"]:
        raise ValueError("inner dimensions differ")
    return [((*a[:-1], int(attributes["N"])), _elem(inputs, 0))]


def _attention(scale: int | None) -> Callable[[Any, Inputs, Attributes], list[Type | None]]:
    """Attention with its projections; `scale` is the input that has the type of the output where it is quantized."""

    def shapes(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
        batch, length, _ = _shape(inputs, 0)
        columns = _shape(inputs, 1)[1]
        sizes = list(attributes.get("qkv_hidden_sizes") or [columns // 3] * 3)
        past = _at(inputs, 4 if scale is None else 8)
        heads = int(attributes["num_heads"])
        total = length + (0 if past is None else _shape([past], 0)[3])
        if past is not None and attributes.get("past_present_share_buffer"):
            total = _shape([past], 0)[3]
        elem = _elem(inputs, 0 if scale is None else scale)
        return [((batch, length, sizes[2]), elem), ((2, batch, heads, total, sizes[1] // heads), elem)]

    return shapes


def attention_heads(inputs: Sequence[Shape | None], heads: int) -> tuple[Shape, Shape, Shape]:
    """Query, key and value of `MultiHeadAttention`, each as ``[B, heads, length, size of a head]``."""
    query, key, value = ((*inputs, None, None))[:3]
    assert query is not None
    if len(query) == 5:  # all three packed: [B, S, heads, 3, size]
        one = (query[0], query[2], query[1], query[4])
        return one, one, one
    q = (query[0], heads, query[1], query[2] // heads) if len(query) == 3 else query
    if key is None:
        return q, q, q
    if len(key) == 5:  # key and value packed
        one = (key[0], key[2], key[1], key[4])
        return q, one, one
    k = (key[0], heads, key[1], key[2] // heads) if len(key) == 3 else key
    if value is None:
        return q, k, k
    v = (value[0], heads, value[1], value[2] // heads) if len(value) == 3 else value
    return q, k, v


def _multi_head(past: int) -> Callable[[Any, Inputs, Attributes], list[Type | None]]:
    def shapes(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
        heads = int(attributes["num_heads"])
        given = [t.shape if t is not None else None for t in inputs[:3]]
        q, k, v = attention_heads(given, heads)
        before = _at(inputs, past)
        total = k[2]
        if before is not None:
            shared = node.op_type.startswith("DecoderMasked") or attributes.get("past_present_share_buffer")
            total = _shape([before], 0)[2] + (0 if shared else k[2])
        elem = _elem(inputs, 0)
        kept = (k[0], heads, total, k[3]), (v[0], heads, total, v[3])
        return [((q[0], q[2], heads * v[3]), elem), (kept[0], elem), (kept[1], elem)]

    return shapes


def _grouped_query(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    batch, length, width = _shape(inputs, 0)
    heads, groups = int(attributes["num_heads"]), int(attributes["kv_num_heads"])
    packed = _at(inputs, 1) is None
    size = width // (heads + 2 * groups) if packed else width // heads
    past, told = _at(inputs, 3), _at(inputs, 6)
    before = 0 if past is None else _shape([past], 0)[2]
    total = before + length
    if told is not None and told.value is not None:
        total = max(before, int(told.value.reshape(-1)[0]))
    elem = _elem(inputs, 0)
    kept = ((batch, groups, total, size), _elem(inputs, 3, elem))
    return [((batch, length, heads * size), elem), kept, kept]


def _normalized(*, outputs_like_input: Sequence[int]) -> Callable[[Any, Inputs, Attributes], list[Type | None]]:
    """A normalisation over the last dimension: statistics are one a row."""

    def shapes(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
        shape = _shape(inputs, 0)
        whole, row = (shape, _elem(inputs, 0)), ((*shape[:-1], 1), _FLOAT)
        return [whole if i in outputs_like_input else row for i in range(len(node.output))]

    return shapes


def _embedded(scale: int | None) -> Callable[[Any, Inputs, Attributes], list[Type | None]]:
    def shapes(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
        batch, length = _shape(inputs, 0)
        made = ((batch, length, _shape(inputs, 2)[1]), _elem(inputs, 2 if scale is None else scale))
        return [made, ((batch,), _INT32), made]

    return shapes


def _halved(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    shape = _shape(inputs, 0)
    return [((*shape[:-1], shape[-1] // 2), _elem(inputs, 0))]


def _channels_first(shape: Shape) -> Shape:
    return (shape[0], shape[-1], *shape[1:-1])


def _channels_last(shape: Shape) -> Shape:
    return (shape[0], *shape[2:], shape[1])


def _convolution(weights: int, elem: int | None) -> Callable[[Any, Inputs, Attributes], list[Type | None]]:
    """A convolution, possibly of an image whose channels come last."""

    def shapes(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
        last = node.op_type.startswith("Nhwc") or bool(attributes.get("channels_last"))
        x, w = _shape(inputs, 0), _shape(inputs, weights)
        x = _channels_first(x) if last else x
        if last and w[1] * int(attributes.get("group", 1)) != x[1]:
            w = _channels_first(w)
        (made,) = infer_as("Conv", node, [(x, _FLOAT), (w, _FLOAT)])
        assert made is not None
        assert made[0] is not None
        return [(_channels_last(made[0]) if last else made[0], _elem(inputs, 0 if elem is None else elem))]

    return shapes


def _pooled(op_type: str) -> Callable[[Any, Inputs, Attributes], list[Type | None]]:
    def shapes(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
        last = node.op_type.startswith("Nhwc") or bool(attributes.get("channels_last"))
        x = _channels_first(_shape(inputs, 0)) if last else _shape(inputs, 0)
        (made,) = infer_as(op_type, node, [(x, _FLOAT)])
        assert made is not None
        assert made[0] is not None
        return [(_channels_last(made[0]) if last else made[0], _elem(inputs, 0))]

    return shapes


def _reduced(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    shape = _shape(inputs, 0)
    axes = {a % len(shape) for a in attributes.get("axes") or range(len(shape))}
    keep = attributes.get("keepdims", 1)
    kept = [1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes]
    return [(tuple(kept), _elem(inputs, 0))]


def _joined(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    """Scale and zero point of the result, then tensor, scale and zero point of each part."""
    parts = [_shape(inputs, i) for i in range(2, len(inputs), 3)]
    axis = attributes["axis"] % len(parts[0])
    shape = (*parts[0][:axis], sum(p[axis] for p in parts), *parts[0][axis + 1 :])
    return [(shape, _elem(inputs, 2))]


def _recurrent(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    length, batch, _ = _shape(inputs, 0)
    directions, size = _shape(inputs, 2)[0], int(attributes["hidden_size"])
    last = ((directions, batch, size), _FLOAT)
    return [((length, directions, batch, size), _FLOAT), last, last]


def _dequantized(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    return [(_shape(inputs, 0), _elem(inputs, 1))]


def _quantized(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    return [(_shape(inputs, 0), _elem(inputs, 2, _UINT8))]


def _looked_up(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    """Rows of a table of packed weights."""
    data, indices = list(_shape(inputs, 0)), _shape(inputs, 1)
    if _elem(inputs, 0) == _UINT8:
        data[-1] *= 8 // int(attributes.get("bits", 4))
    axis = int(attributes.get("gather_axis", 0)) % len(data)
    return [((*data[:axis], *indices, *data[axis + 1 :]), _elem(inputs, 2))]


def _distances(node: Any, inputs: Inputs, attributes: Attributes) -> list[Type | None]:
    return [((_shape(inputs, 0)[0], _shape(inputs, 1)[0]), _elem(inputs, 0))]


_SHAPES: dict[str, Callable[[Any, Inputs, Attributes], list[Type | None]]] = {
    "Attention": _attention(None),
    "BiasAdd": _like(),
    "BiasDropout": _like(),
    "BiasGelu": _like(),
    "BiasSoftmax": _like(),
    "BiasSplitGelu": _halved,
    "CDist": _distances,
    "ComplexMul": _like(),
    "ComplexMulConj": _like(),
    "DecoderMaskedMultiHeadAttention": _multi_head(5),
    "DequantizeLinear": _dequantized,
    "DynamicQuantizeLSTM": _recurrent,
    "DynamicQuantizeMatMul": _product(),
    "EmbedLayerNormalization": _embedded(None),
    "FastGelu": _like(),
    "FusedConv": _convolution(1, None),
    "FusedGemm": _product(),
    "FusedMatMul": _product(),
    "FusedMatMulActivation": _product(),
    "GatherBlockQuantized": _looked_up,
    "Gelu": _like(),
    "GemmFastGelu": _product(),
    "GroupNorm": _like(),
    "GroupQueryAttention": _grouped_query,
    "Inverse": _like(),
    "LayerNormalization": _normalized(outputs_like_input=(0,)),
    "MatMulBnb4": _packed_product,
    "MatMulIntegerToFloat": _product(1, 2),
    "MatMulNBits": _packed_product,
    "MoE": _like(),
    "MultiHeadAttention": _multi_head(6),
    "NhwcConv": _convolution(1, None),
    "NhwcFusedConv": _convolution(1, None),
    "NhwcMaxPool": _pooled("MaxPool"),
    "QAttention": _attention(3),
    "QEmbedLayerNormalization": _embedded(8),
    "QGemm": _q_gemm,
    "QLinearAdd": _broadcast(0, 3, elem=0),
    "QLinearAveragePool": _pooled("AveragePool"),
    "QLinearConcat": _joined,
    "QLinearConv": _convolution(3, None),
    "QLinearGlobalAveragePool": _pooled("GlobalAveragePool"),
    "QLinearLeakyRelu": _like(),
    "QLinearMul": _broadcast(0, 3, elem=0),
    "QLinearReduceMean": _reduced,
    "QLinearSigmoid": _like(),
    "QLinearSoftmax": _like(),
    "QLinearWhere": _broadcast(0, 1, 4, elem=1),
    "QMoE": _like(),
    "QuantizeLinear": _quantized,
    "QuickGelu": _like(),
    "RotaryEmbedding": _like(),
    "SimplifiedLayerNormalization": _normalized(outputs_like_input=(0,)),
    "SkipGroupNorm": _like(),
    "SkipLayerNormalization": _normalized(outputs_like_input=(0, 3)),
    "SkipSimplifiedLayerNormalization": _normalized(outputs_like_input=(0, 3)),
    "TransposeMatMul": _product(),
    "Trilu": _like(),
}
"""Shapes of the outputs, by operator."""
