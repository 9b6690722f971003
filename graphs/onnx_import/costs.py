"""What an operator of the ONNX standard computes and moves: FLOPs, bytes and rows, from shapes and attributes alone.

Only products, convolutions, attention and recurrent layers count FLOPs (a multiply-add counts two), as everywhere in
`graphs`; other operators are charged by the bytes that they read and write. The operators are those of
https://onnx.ai/onnx/operators/, domain ``""``. Nothing here needs the package `onnx`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from graphs.computation_graph import Shape

VIEWS = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators that hand on their first input under another shape, and so cost nothing. Dropout does nothing in inference.
Transpose, Slice, Split and Expand are not among them: runtimes of ONNX keep tensors contiguous, and copy."""

_ROW_READERS = frozenset({"Compress", "Gather", "GatherElements", "GatherND", "Slice"})
"""Operators that read of their first input only what they put out."""

_SCATTERS = frozenset({"Scatter", "ScatterElements", "ScatterND", "TensorScatter"})

_QUANTIZED = {"ConvInteger": 1, "MatMulInteger": 1, "QLinearConv": 3, "QLinearMatMul": 3}
"""Operators that compute in 8-bit integers, and which input is their second operand."""


@dataclass(frozen=True)
class Operand:
    """A tensor as an operator sees it: its shape, its bytes, and whether it is a weight."""

    shape: Shape
    bytes: int
    constant: bool = False

    @property
    def elements(self) -> int:
        """How many."""
        return prod(self.shape)


@dataclass(frozen=True)
class Operator:
    """One operator with everything its costs depend on; an input or output that is left out is None.

    Attributes:
        type: For example ``"Conv"``.
        inputs: In the standard's order.
        outputs: In the standard's order.
        attributes: Those that the file gives; text as `str`.
    """

    type: str
    inputs: Sequence[Operand | None]
    outputs: Sequence[Operand | None]
    attributes: Mapping[str, Any]

    def input(self, index: int) -> Operand | None:
        """An input, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def second(self) -> Operand:
        """The second operand of a product or convolution: the right matrix or the weights."""
        operand = self.input(_QUANTIZED.get(self.type, 1))
        assert operand is not None
        return operand

    @property
    def first(self) -> Operand:
        """The first input."""
        operand = self.input(0)
        assert operand is not None
        return operand

    @property
    def result(self) -> Operand:
        """The first output that is used."""
        return next(o for o in self.outputs if o is not None)


def is_integer_product(op_type: str) -> bool:
    """Whether an operator computes its product in 8-bit integers."""
    return op_type in _QUANTIZED


def flops(op: Operator) -> int:
    """FLOPs of one execution, 0 for operators that bytes bound.

    >>> x, w, y = Operand((1, 3, 8, 8), 768), Operand((16, 3, 3, 3), 1728), Operand((1, 16, 8, 8), 4096)
    >>> flops(Operator("Conv", [x, w], [y], {})) == 2 * (16 * 8 * 8) * (3 * 3 * 3)
    True
    """
    count = _FLOPS.get(op.type)
    return int(count(op)) if count else 0


def bytes_accessed(op: Operator) -> int:
    """Bytes that an operator reads and writes: all of its operands, but only the rows that a look-up touches."""
    written = sum(o.bytes for o in op.outputs if o is not None)
    read = [o.bytes for o in op.inputs if o is not None]
    if op.type in _ROW_READERS:
        return min(read[0], op.result.bytes) + sum(read[1:]) + written
    if op.type == "SequenceAt":  # it reads one of its inputs, and the position
        return 2 * written + read[-1]
    if op.type in _SCATTERS and len(read) > 1:
        # A copy of the data, and then the updates into it.
        return read[0] + sum(read[1:]) + written + read[-1]
    return sum(read) + written


def batch_rows(op: Operator, batch: int) -> int:
    """Rows of data that an operator works over, which is what a device rounds up to its tile; 0 where there are none.

    Args:
        op: The operator.
        batch: The leading dimension of the model's first input.
    """
    if op.type in _CONVOLUTIONS:
        shape = op.result.shape
        return int(shape[0] * prod(shape[2:])) if shape else 0
    if op.type in _RECURRENT:
        return int(op.first.shape[0 if op.attributes.get("layout", 0) else 1])
    if op.type in _PRODUCTS:
        if not op.first.constant:
            if op.type == "Gemm":
                return int(op.first.shape[1 if op.attributes.get("transA", 0) else 0])
            return int(prod(op.first.shape[:-1]))
        return 0 if op.second.constant else int(op.result.shape[-1]) if op.result.shape else 0
    shape = op.result.shape
    return batch if shape and shape[0] == batch else 0


def _convolution_flops(op: Operator) -> int:
    filters = op.second.shape[0]
    return 2 * op.result.elements * (op.second.elements // filters) if filters else 0


def _transposed_convolution_flops(op: Operator) -> int:
    channels = op.second.shape[0]
    return 2 * op.first.elements * (op.second.elements // channels) if channels else 0


def _matmul_flops(op: Operator) -> int:
    return 2 * op.result.elements * (op.first.shape[-1] if op.first.shape else 1)


def _gemm_flops(op: Operator) -> int:
    return 2 * op.result.elements * op.first.shape[0 if op.attributes.get("transA", 0) else 1]


def _recurrent_flops(op: Operator) -> int:
    """The products with the weights of input and state, in every step and direction."""
    steps_and_batch = prod(op.first.shape[:2])
    recurrence = op.input(2)
    return 2 * steps_and_batch * (op.second.elements + (recurrence.elements if recurrence else 0))


def _attention_flops(op: Operator) -> int:
    """Both products: scores of every query with every key, and their sum over the values; masks save nothing."""
    past = op.input(4)
    keys = op.second.shape[-2] + (past.shape[-2] if past else 0)
    return 2 * keys * (op.first.elements + op.result.elements)


def _linear_attention_flops(op: Operator) -> int:
    """In each step an outer product into the state of each key head, and a product of each query with its state.

    The delta rules also multiply each key with its state.
    """
    state = op.outputs[1] if len(op.outputs) > 1 and op.outputs[1] else op.input(3)
    if state is None:  # neither given nor put out: its last dimensions are those of key and value heads
        heads = op.attributes["kv_num_heads"]
        values = op.input(2)
        assert values is not None
        elements = op.first.shape[0] * heads * (op.second.shape[-1] // heads) * (values.shape[-1] // heads)
    else:
        elements = state.elements
    heads_ratio = op.attributes["q_num_heads"] / op.attributes["kv_num_heads"]
    products = 1 + ("delta" in op.attributes.get("update_rule", "gated_delta")) + heads_ratio
    return int(2 * op.first.shape[1] * elements * products)


def _einsum_flops(op: Operator) -> int:
    """Two for each combination of indices of a product of two; for more operands one more each, without reordering."""
    operands = [o for o in op.inputs if o is not None]
    if len(operands) < 2:
        return 0
    terms = str(op.attributes["equation"]).replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        before, dots, after = term.partition("...")
        hidden = len(operand.shape) - len(before) - len(after)
        # Dimensions under the ellipsis are aligned at its end.
        labels = [*before, *(f"...{i}" for i in range(hidden, 0, -1) if dots), *after]
        for label, size in zip(labels, operand.shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
    return len(operands) * prod(sizes.values())


_CONVOLUTIONS = frozenset({"CausalConvWithState", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "QLinearConv"})
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_PRODUCTS = frozenset({"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"})

_FLOPS: dict[str, Callable[[Operator], int]] = {
    "Attention": _attention_flops,
    "Einsum": _einsum_flops,
    "Gemm": _gemm_flops,
    "LinearAttention": _linear_attention_flops,
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul_flops),
    **dict.fromkeys(_CONVOLUTIONS, _convolution_flops),
    "ConvTranspose": _transposed_convolution_flops,
    **dict.fromkeys(_RECURRENT, _recurrent_flops),
}
