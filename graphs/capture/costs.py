"""What an ATen op costs beside its FLOPs (`graphs.capture.flops`): bytes, dtype and rows, from its tensors' shapes.

The rule for bytes: each distinct input once, as it is viewed (an expanded tensor counts its distinct elements), plus
each output. `bytes_accessed` makes the exceptions where that rule is plainly wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from graphs.capture.arguments import Arguments
from graphs.capture.attention import attention
from graphs.capture.sparse import is_sparse
from graphs.computation_graph import DTYPE_BYTES, Shape

_OTHER_DTYPES = {1: "int8", 2: "float16", 4: "float32", 8: "float64"}
"""By bytes an element, the dtype that stands for one the graph does not know (float8, uint32, ...)."""

_ROW_READERS = {"index_select": 0, "gather": 0, "index": 0, "take": 0, "take_along_dim": 0, "embedding": 0}
"""Ops that read no more of the argument at this position than they put out."""

_SCATTERS = {"index_put", "index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce", "masked_scatter"}
"""Ops that touch only the places of their first argument that an index names (and copy the rest if not in place)."""


def dtype_name(dtype: torch.dtype) -> str:
    """The graph's name of a PyTorch dtype; a dtype that the graph does not know takes the name of one of its size."""
    name = str(dtype).removeprefix("torch.")
    return name if name in DTYPE_BYTES else _OTHER_DTYPES[min(dtype.itemsize, 8)]


def compute_dtype(tensors: Sequence[torch.Tensor]) -> str:
    """What an op computes in: the dtype of its first floating-point tensor (inputs, then outputs), else the first.

    A mask is not what an op computes in where there is anything else.
    """
    for tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            return dtype_name(tensor.dtype)
    numbers = [t for t in tensors if t.dtype is not torch.bool] or list(tensors)
    return dtype_name(numbers[0].dtype) if numbers else "float32"


def distinct_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's distinct elements: an expanded dimension counts once, and never more than its storage."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if size == 0:
            return 0
        if stride != 0:
            count *= size
    return min(count * tensor.itemsize, tensor.untyped_storage().nbytes())


def bytes_accessed(
    name: str,
    args: Sequence[Any],
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    written: Sequence[torch.Tensor],
) -> int:
    """Bytes that one call reads and writes.

    Args:
        name: The op's type.
        args: Its positional arguments.
        inputs: The distinct tensors that it reads.
        outputs: The tensors that it makes.
        written: The arguments that it writes in place.
    """
    made = sum(t.untyped_storage().nbytes() for t in outputs) + sum(map(distinct_bytes, written))
    read = sum(map(distinct_bytes, inputs))
    base = name.removesuffix("_")
    if base in _ROW_READERS and isinstance(args[0], torch.Tensor):
        table = distinct_bytes(args[0])
        return read - table + min(table, made) + made
    if name in ("_embedding_bag", "_embedding_bag_forward_only"):
        table = distinct_bytes(args[0])
        return read - table + min(table, _rows_bytes(args[1], args[0])) + made
    if name in ("embedding_dense_backward", "_embedding_bag_backward", "_embedding_bag_dense_backward"):
        # A dense gradient of the whole table is filled with zeros; then a row is read and written for every index.
        return read + made + 2 * _rows_bytes(args[1], args[0])
    if base in _SCATTERS:
        target = distinct_bytes(args[0])
        values = max((distinct_bytes(t) for t in inputs if t is not args[0]), default=0)
        return (read - target + 2 * values) if written else (read + made + 2 * values)
    if name in ("nll_loss_forward", "nll_loss_backward"):
        # One element a row of the log-probabilities is read forward, none backward.
        log_probabilities = args[0] if name == "nll_loss_forward" else args[1]
        rows = log_probabilities.shape[0] * log_probabilities.itemsize if log_probabilities.dim() > 1 else 0
        return read - distinct_bytes(log_probabilities) + rows + made
    return read + made


def _rows_bytes(indices: torch.Tensor, rows: torch.Tensor) -> int:
    """Bytes of as many rows as there are indices."""
    return int(indices.numel() * rows.shape[-1] * rows.itemsize)


_PRODUCTS = {
    **dict.fromkeys(("mm", "_int_mm", "_scaled_mm", "_scaled_mm_v2"), ("self", "mat2")),
    **dict.fromkeys(("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2", "bmm"), ("self", "mat2")),
    **dict.fromkeys(("addmm", "_addmm_activation", "_sparse_addmm"), ("mat1", "mat2")),
    **dict.fromkeys(("baddbmm", "addbmm"), ("batch1", "batch2")),
}
"""Products of two matrices, or of two batches of them, and the names of both operands."""

_RIGHT_TRANSPOSED = {
    **dict.fromkeys(("linear", "mkldnn_linear"), ("input", "weight")),
    **dict.fromkeys(("_mixed_dtypes_linear", "_sparse_semi_structured_linear"), ("input", "weight")),
    **dict.fromkeys(("_weight_int8pack_mm", "_weight_int4pack_mm"), ("self", "mat2")),
    **dict.fromkeys(("_weight_int4pack_mm_for_cpu", "_weight_int4pack_mm_with_scales_and_zeros"), ("self", "mat2")),
}
"""Products with a weight that has a row for each column of the result."""


def batch_rows(
    name: str, given: Arguments, from_data: Callable[[Any], bool], outputs: Sequence[Shape], batch: int
) -> int:
    """Size of the batch dimension that an op works over, 0 where it has none.

    For a product that is how many rows stem from the data: the rows of the operand that is not a weight (of one matrix
    in a batch of them); where neither is a weight, the dimension that is summed over in a weight's gradient, and all
    rows of a batch of matrices. Attention in one op is the products of queries and keys: batch x heads x queries. A
    convolution is a product with a row for each pixel that it puts out.

    Args:
        name: The op's type.
        given: Its arguments.
        from_data: Whether a tensor is not computed from parameters and buffers alone.
        outputs: Shapes of what it makes.
        batch: The leading dimension of the example batch.
    """
    fused = attention(name, given)
    if fused is not None:
        return fused.rows
    base = name.removesuffix("_")
    if base in _PRODUCTS:
        left, right = (given[key] for key in _PRODUCTS[base])
        if is_sparse(left) or is_sparse(right):
            return int(left.shape[-2])
        return _product_rows(left.shape, right.shape, from_data(left), from_data(right))
    if base in _RIGHT_TRANSPOSED:
        left, right = (given[key] for key in _RIGHT_TRANSPOSED[base])
        return prod(left.shape[:-1]) if from_data(left) else int(right.shape[0]) if from_data(right) else 0
    if base == "_trilinear":
        return _bilinear_rows(given)
    if name in ("_cdist_forward", "_cdist_backward", "_euclidean_dist"):
        return prod(given["x1"].shape[:-1])
    if name in ("convolution", "convolution_backward"):
        grid = outputs[0] if name == "convolution" else given["grad_output"].shape
        return int(grid[0] * prod(grid[2:]))
    if name == "conv_tbc":
        return prod(outputs[0][:-1])
    return batch if outputs and outputs[0] and outputs[0][0] == batch else 0


def _product_rows(first: Shape, second: Shape, left: bool, right: bool) -> int:
    """The rows of a product of two matrices, or of batches or groups of them, and which of both is data."""
    if left and right:
        if len(first) == 2 and len(second) == 2:
            return int(first[1])
        return int(first[0] * first[1]) if len(second) == len(first) else int(first[-2])
    return int(first[-2] if left else second[-1] if right else 0)


def _bilinear_rows(given: Arguments) -> int:
    """The first dimension of a bilinear form, which all data have in common; a weight's gradient sums over it."""
    for tensor, missing in ((given["i1"], given["expand1"]), (given["i3"], given["expand3"])):
        if 0 not in missing:
            return int(tensor.shape[0])
    return 0
