"""What an ATen op costs: FLOPs, bytes read and written, dtype and batch size, from the shapes of its tensors.

The rule for bytes: each distinct input once, as it is viewed (an expanded tensor counts its distinct elements), plus
each output. `bytes_accessed` makes the exceptions where that rule is plainly wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count

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


def flops(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Floating-point operations of one call, a multiply-add counting two; 0 for ops that are not products.

    The formulas are PyTorch's own (`torch.utils.flop_counter`), and ours for the products that it lacks and for the
    backward of a convolution, which it overcounts where the convolution has groups.
    """
    packet = func._overloadpacket
    formula = _OWN_FLOPS.get(op_type(func))
    if formula:
        return formula(args)
    return int(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0


def op_type(func: torch._ops.OpOverload) -> str:
    """The type of an op: its ATen name without overload, ``aten.add.Tensor`` being ``add``."""
    return str(func._overloadpacket).removeprefix("aten.")


def _matrix_vector_flops(args: Sequence[Any]) -> int:
    return 2 * int(args[0].numel())


def _grouped_mm_flops(args: Sequence[Any]) -> int:
    """``[n, k] x [e, k, m]`` where each row meets one of the ``e`` matrices, or ``[e, n, k] x [e, k, m]``."""
    first, second = args[0].shape, args[1].shape
    if len(first) == 2 and len(second) == 2:
        return 2 * first[0] * first[1] * second[1]
    return 2 * int(args[0].numel()) * int(second[-1])


def _attention_flops(args: Sequence[Any]) -> int:
    return int(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))


def _attention_backward_flops(args: Sequence[Any]) -> int:
    """Five products where the forward pass has two: the scores are computed again (Dao 2022, arXiv 2205.14135)."""
    query, key, value = args[1].shape, args[2].shape, args[3].shape
    batch, heads, length_q, width = query
    length_k, width_v = key[-2], value[-1]
    return 2 * batch * heads * length_q * length_k * (3 * width + 2 * width_v)


def _convolution_backward_flops(args: Sequence[Any]) -> int:
    """As many as the forward for each of the two gradients that are wanted, of the input and of the weight."""
    grad_output, image, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    forward = conv_flop_count(image.shape, weight.shape, grad_output.shape, transposed=transposed)
    return int(forward) * (int(wanted[0]) + int(wanted[1]))


_OWN_FLOPS = {
    "convolution_backward": _convolution_backward_flops,
    "mv": _matrix_vector_flops,
    "addmv": lambda args: 2 * int(args[1].numel()),
    "dot": _matrix_vector_flops,
    "vdot": _matrix_vector_flops,
    "_grouped_mm": _grouped_mm_flops,
    "_int_mm": lambda args: 2 * int(args[0].numel()) * int(args[1].shape[-1]),
    "_scaled_dot_product_flash_attention_for_cpu": _attention_flops,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward_flops,
}


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


def batch_rows(name: str, args: Sequence[Any], from_data: Sequence[bool], outputs: Sequence[Shape], batch: int) -> int:
    """Size of the batch dimension that an op works over, 0 where it has none.

    For a product that is how many rows stem from the data: the rows of the operand that is not a weight (of one matrix
    in a batch of them); where neither is a weight, the dimension that is summed over in a weight's gradient, and all
    rows of a batch of matrices (attention). A convolution is a product with a row for each pixel that it puts out.

    Args:
        name: The op's type.
        args: Its positional arguments.
        from_data: For each of `args`, whether it is a tensor that is not computed from parameters and buffers alone.
        outputs: Shapes of what it makes.
        batch: The leading dimension of the example batch.
    """
    if name in ("mm", "addmm", "bmm", "baddbmm", "_int_mm"):
        skip = 1 if name in ("addmm", "baddbmm") else 0
        first, second = args[skip].shape, args[skip + 1].shape
        left, right = from_data[skip], from_data[skip + 1]
        if left and right:
            return int(first[0] * first[1] if len(first) == 3 else first[1])
        return int(first[-2] if left else second[-1] if right else 0)
    if name in ("convolution", "convolution_backward"):
        grid = outputs[0] if name == "convolution" else args[0].shape
        return int(grid[0] * prod(grid[2:]))
    return batch if outputs and outputs[0] and outputs[0][0] == batch else 0
