"""What an operator of ONNX Runtime's own (``com.microsoft``) computes and moves; see `graphs.onnx_import.costs`."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from graphs.onnx_import.contrib import attention_heads, product_shapes
from graphs.onnx_import.costs import Operand, Operator

_INTEGER = frozenset(
    {
        *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "QGemm", "QLinearConv"),
    }
)
"""Operators that compute products in 8-bit integers."""

_LOOKUPS = {"EmbedLayerNormalization": (2, 3, 4), "GatherBlockQuantized": (0,), "QEmbedLayerNormalization": (2, 3, 4)}
"""Operators that read of these inputs only the rows that they put out."""


def computes_integers(op_type: str) -> bool:
    """Whether an operator computes its product in 8-bit integers."""
    return op_type in _INTEGER


def flops(op: Operator) -> int:
    """FLOPs of one execution, 0 for operators that bytes bound."""
    count = _FLOPS.get(op.type)
    return int(count(op)) if count else 0


def bytes_accessed(op: Operator) -> int:
    """Bytes that an operator reads and writes: all of its operands, but only the rows that a look-up touches."""
    rows = _LOOKUPS.get(op.type, ())
    written = sum(o.bytes for o in op.outputs if o is not None)
    read = 0
    for index, operand in enumerate(op.inputs):
        if operand is not None:
            share = _looked_up(op, operand) if index in rows else operand.bytes
            read += min(share, operand.bytes)
    return read + written


def batch_rows(op: Operator, batch: int) -> int:
    """Rows of data that an operator works over; 0 where there are none.

    Args:
        op: The operator.
        batch: The leading dimension of the model's first input.
    """
    shape = op.result.shape
    if op.type in ("FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv"):
        return shape[0] * prod(shape[2:] if not _channels_last(op) else shape[1:-1])
    if op.type == "DynamicQuantizeLSTM":
        return op.first.shape[1]
    if op.type in _FLOPS and op.type not in ("CDist", "DecoderMaskedMultiHeadAttention", "MoE", "QMoE"):
        if op.type in ("GroupQueryAttention", "MultiHeadAttention"):
            return shape[0] * shape[1] * int(op.attributes["num_heads"])
        return prod(shape[:-1])
    return batch if shape and shape[0] == batch else 0


def _looked_up(op: Operator, table: Operand) -> int:
    """Bytes of as many rows of a table as an operator puts out."""
    rows = prod(op.result.shape[:-1])
    return table.bytes * rows // max(1, prod(table.shape[:-1]))


def _channels_last(op: Operator) -> bool:
    return op.type.startswith("Nhwc") or bool(op.attributes.get("channels_last"))


def _shape(op: Operator, index: int) -> tuple[int, ...]:
    operand = op.input(index)
    assert operand is not None
    return operand.shape


def _product(op: Operator) -> int:
    second = 3 if op.type == "QGemm" else 1
    a, _ = product_shapes(op.first.shape, _shape(op, second), op.attributes)
    return 2 * op.result.elements * a[-1]


def _packed_product(op: Operator) -> int:
    return 2 * op.result.elements * int(op.attributes["K"])


def _attention(op: Operator) -> int:
    """The projections, the scores of every query with every key, and their sums over the values."""
    batch, length, width = op.first.shape
    columns = op.second.shape[1]
    sizes = op.attributes.get("qkv_hidden_sizes") or [columns // 3] * 3
    past = op.input(8 if op.type == "QAttention" else 4)
    shared = bool(op.attributes.get("past_present_share_buffer"))
    keys = past.shape[3] + (0 if shared else length) if past is not None else length
    return 2 * batch * length * (width * columns + keys * (sizes[0] + sizes[2]))


def _multi_head(op: Operator) -> int:
    heads = int(op.attributes["num_heads"])
    q, k, v = attention_heads([o.shape if o is not None else None for o in op.inputs[:3]], heads)
    decoder = op.type.startswith("DecoderMasked")
    past = op.input(5 if decoder else 6)
    shared = decoder or bool(op.attributes.get("past_present_share_buffer"))
    keys = k[2] if past is None else past.shape[2] + (0 if shared else k[2])
    return 2 * q[0] * heads * q[2] * keys * (q[3] + v[3])


def _grouped_query(op: Operator) -> int:
    batch, length, width = op.result.shape
    present = next((o for o in op.outputs[1:] if o is not None), None)
    past = op.input(3)
    keys = present.shape[2] if present is not None else length + (past.shape[2] if past is not None else 0)
    window = int(op.attributes.get("local_window_size", -1))
    keys = min(keys, window) if window > 0 else keys
    return 4 * batch * length * width * keys


def _convolution(op: Operator) -> int:
    weights = op.input(3 if op.type == "QLinearConv" else 1)
    assert weights is not None
    return 2 * op.result.elements * (weights.elements // weights.shape[0])


def _recurrent(op: Operator) -> int:
    steps_and_batch = prod(op.first.shape[:2])
    return 2 * steps_and_batch * sum(prod(_shape(op, i)) for i in (1, 2))


def _experts(op: Operator) -> int:
    """Each row through the weights of as many experts as it is sent to."""
    quantized = op.type == "QMoE"
    rows = prod(op.first.shape[:-1])
    weights = [o for o in (op.input(i) for i in ((2, 5, 8) if quantized else (2, 4, 6))) if o is not None]
    packed = 8 // int(op.attributes.get("expert_weight_bits", 4)) if quantized else 1
    elements = sum(prod(w.shape[1:]) for w in weights) * packed
    return 2 * rows * int(op.attributes.get("k", 1)) * elements


def _distances(op: Operator) -> int:
    return 2 * op.result.elements * op.first.shape[1]


_FLOPS: dict[str, Callable[[Operator], int]] = {
    "Attention": _attention,
    "CDist": _distances,
    "DecoderMaskedMultiHeadAttention": _multi_head,
    "DynamicQuantizeLSTM": _recurrent,
    "GroupQueryAttention": _grouped_query,
    "MatMulBnb4": _packed_product,
    "MatMulNBits": _packed_product,
    "MoE": _experts,
    "MultiHeadAttention": _multi_head,
    "QAttention": _attention,
    "QMoE": _experts,
    **dict.fromkeys(("FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv"), _convolution),
    **dict.fromkeys(("DynamicQuantizeMatMul", "FusedGemm", "FusedMatMul", "FusedMatMulActivation"), _product),
    **dict.fromkeys(("GemmFastGelu", "MatMulIntegerToFloat", "QGemm", "TransposeMatMul"), _product),
}
