"""How many floating-point operations an op computes, from the shapes of its tensors: `flops`.

Counted are products and what consists of them: matrix products, convolutions, attention, bilinear forms, pairwise
distances, factorizations and solvers, Fourier transforms. All others are bound by the bytes that they move.

Sources of the formulas: G. H. Golub and C. F. Van Loan, "Matrix Computations", 4th edition, 2013 (factorizations,
eigenvalues: section 8.3, singular values: figure 8.6.1); S. Blackford and J. Dongarra, "Installation guide for LAPACK",
LAPACK working note 41, 1999, appendix C (QR and what is made of it); M. Frigo and S. G. Johnson, "The design and
implementation of FFTW3", Proceedings of the IEEE 2005 (5 n log2 n of a complex transform, half of it of a real one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log2, prod
from typing import Any

import torch
from torch.utils.flop_counter import conv_flop_count, flop_registry

from graphs.capture.arguments import Arguments, op_type
from graphs.capture.attention import attention
from graphs.capture.sparse import is_sparse

_Count = Callable[[Arguments, Any], float]
"""FLOPs of a call in real numbers, from its arguments and what it returned."""


def flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Floating-point operations of one call, a multiply-add counting two; 0 for ops that are not products.

    The formulas are PyTorch's own (`torch.utils.flop_counter`) where it has a right one; a product of complex numbers
    is four of real ones.
    """
    kind = op_type(func)
    given = Arguments(func, args, kwargs)
    fused = attention(kind, given)
    if fused is not None:
        return fused.flops
    base = kind.removesuffix("_")
    stored = next((a for a in given.values() if is_sparse(a)), None)
    if stored is not None:
        count = _sparse_product(given, stored) if base in _PRODUCTS else 0
    elif base in _OWN:
        count = _OWN[base](given, out)
    elif base in _REGISTERED:
        count = _REGISTERED[base](*args, **kwargs, out_val=out)
    else:
        return 0
    if kind not in _FOURIER and any(isinstance(a, torch.Tensor) and a.is_complex() for a in given.values()):
        count *= 4
    return int(count)


def _sparse_product(given: Arguments, stored: torch.Tensor) -> float:
    """Each entry meets a row, or a column, of the other operand."""
    other = next(
        given[key] for key in ("vec", "mat2", "dense", "mat1", "self") if given.get(key) is not stored and key in given
    )
    left = stored is given.get("mat1", given.get("mat", given.get("sparse", given.get("self"))))
    columns = 1 if other.dim() == 1 else int(other.shape[-1 if left else -2])
    return 2 * int(stored._values().numel()) * columns


def _matrix(given: Arguments, *names: str) -> tuple[int, int, int]:
    """How many matrices the first of these arguments holds, and their size."""
    shape = given[next(name for name in names if name in given)].shape
    return prod(shape[:-2]), int(shape[-2]), int(shape[-1])


def _numel(name: str) -> _Count:
    return lambda given, out: 2 * int(given[name].numel())


def _rows_times_columns(first: str) -> _Count:
    """A product of which the first operand and the result are known: ``[..., k]`` and ``[..., m]``."""
    return lambda given, out: 2 * int(given[first].numel()) * int(out.shape[-1])


def _grouped_product(given: Arguments, out: Any) -> float:
    """Each row (or column) of one operand meets one matrix of the other; or groups are summed over: ``[k]`` is cut."""
    first, second = given["self"].shape, given["mat2"].shape
    if len(first) == 3 and len(second) == 2:
        return 2 * first[1] * first[2] * second[1]
    return 2 * prod(first) * second[-1]


def _batch_product(given: Arguments, out: Any) -> float:
    return 2 * int(given["batch1"].numel()) * int(given["batch2"].shape[-1])


def _each_product(given: Arguments, out: Any) -> float:
    return sum(2 * int(a.numel()) * int(b.shape[-1]) for a, b in zip(given["self"], given["mat2"], strict=True))


def _convolution_backward(given: Arguments, out: Any) -> float:
    """As many as the forward for each of the two gradients that are wanted, of the input and of the weight.

    PyTorch's own count is too high where the convolution has groups.
    """
    image, weight, wanted = given["input"], given["weight"], given["output_mask"]
    forward = conv_flop_count(
        image.shape, weight.shape, given["grad_output"].shape, transposed=bool(given["transposed"])
    )
    return int(forward) * (int(wanted[0]) + int(wanted[1]))


def _convolution_over_time(given: Arguments, out: Any) -> float:
    taps, channels = given["weight"].shape[:2]
    return 2 * int(out.numel()) * int(taps * channels)


def _bilinear(given: Arguments, out: Any) -> float:
    """Two products one after another, as PyTorch does them; what only the first two have in common is summed first."""
    tensors = [given["i1"], given["i2"], given["i3"]]
    absent = [given["expand1"], given["expand2"], given["expand3"]]
    dims = len(tensors[0].shape) + len(absent[0])
    sizes = [1] * dims
    present: list[set[int]] = []
    for tensor, missing in zip(tensors, absent, strict=True):
        there = [d for d in range(dims) if d not in missing]
        present.append(set(there))
        for dim, size in zip(there, tensor.shape, strict=True):
            sizes[dim] = max(sizes[dim], int(size))
    pair = present[0] | present[1]
    left = pair - {d for d in given["sumdim"] if d not in present[2]}
    return 2 * prod(sizes[d] for d in pair) + 2 * prod(sizes[d] for d in left | present[2])


def _distances(given: Arguments, out: Any) -> float:
    """A difference and a multiply-add for each pair of points and coordinate."""
    pairs = given.get("cdist", out)
    return 3 * int(pairs.numel()) * int(given["x1"].shape[-1])


def _euclidean_distances(given: Arguments, out: Any) -> float:
    """One product, with a column each for the two norms."""
    return 2 * int(out.numel()) * (int(given["x1"].shape[-1]) + 2)


def _own_distances(given: Arguments, out: Any) -> float:
    points, width = given["self"].shape
    return 3 * (points * (points - 1) // 2) * width


def _lu_of(rows: int, columns: int) -> float:
    least = min(rows, columns)
    return 2 * (rows * columns * least - (rows + columns) * least**2 / 2 + least**3 / 3)


def _lu(*names: str) -> _Count:
    def count(given: Arguments, out: Any) -> float:
        batch, rows, columns = _matrix(given, *names)
        return batch * _lu_of(rows, columns)

    return count


def _cubic(factor: float, *names: str) -> _Count:
    def count(given: Arguments, out: Any) -> float:
        batch, _, size = _matrix(given, *names)
        return factor * batch * size**3

    return count


def _solve(factor: float, matrix: str, right: str) -> _Count:
    """``factor * n^2`` for each right-hand side."""

    def count(given: Arguments, out: Any) -> float:
        size = int(given[matrix].shape[-1])
        solution = out[0] if isinstance(out, (tuple, list)) else out
        return factor * size * int(solution.numel())

    return count


def _solve_all(given: Arguments, out: Any) -> float:
    """A factorization, and two triangular systems for each right-hand side."""
    batch, rows, columns = _matrix(given, "A")
    return batch * _lu_of(rows, columns) + 2 * rows * int(out[0].numel())


def _reflectors(rows: int, columns: int) -> float:
    """The QR factorization as a triangle and Householder vectors."""
    most, least = max(rows, columns), min(rows, columns)
    return 2 * least**2 * (most - least / 3)


def _product_of_reflectors(rows: int, columns: int, reflectors: int) -> float:
    return 4 * rows * columns * reflectors - 2 * (rows + columns) * reflectors**2 + 4 / 3 * reflectors**3


def _qr(given: Arguments, out: Any) -> float:
    batch, rows, columns = _matrix(given, "A", "self")
    least = min(rows, columns)
    count = _reflectors(rows, columns)
    mode = given.get("mode", "r" if "A" not in given else "reduced")
    if mode != "r":
        count += _product_of_reflectors(rows, rows if mode == "complete" else least, least)
    return batch * count


def _householder_product(given: Arguments, out: Any) -> float:
    batch, rows, columns = _matrix(given, "input")
    return batch * _product_of_reflectors(rows, columns, int(given["tau"].shape[-1]))


def _times_reflectors(given: Arguments, out: Any) -> float:
    size = int(given["self"].shape[-2])
    reflectors = int(given["input2"].shape[-1])
    return 2 * (2 * size - reflectors) * reflectors * int(out.numel()) / max(size, 1)


def _least_squares(given: Arguments, out: Any) -> float:
    batch, rows, columns = _matrix(given, "self")
    least, most = min(rows, columns), max(rows, columns)
    sides = int(out[0].numel()) / max(batch * columns, 1)
    return batch * (_reflectors(rows, columns) + sides * (2 * (2 * most - least) * least + least**2))


def _singular_values(given: Arguments, out: Any) -> float:
    batch, rows, columns = _matrix(given, "A")
    m, n = max(rows, columns), min(rows, columns)
    if not given.get("compute_uv", True):
        return batch * (4 * m * n**2 - 4 / 3 * n**3)
    if given.get("full_matrices", False):
        return batch * (4 * m**2 * n + 8 * m * n**2 + 9 * n**3)
    return batch * min(14 * m * n**2 + 8 * n**3, 6 * m * n**2 + 20 * n**3)


def _symmetric_eigenvalues(given: Arguments, out: Any) -> float:
    return _cubic(9 if given.get("compute_v", True) else 4 / 3, "A")(given, out)


def _transform(tensor: Any, dims: Sequence[int], factor: float) -> float:
    return sum(factor * int(tensor.numel()) * log2(tensor.shape[d]) for d in dims if tensor.shape[d] > 1)


def _fourier(given: Arguments, out: Any) -> float:
    real = given["self"] if not given["self"].is_complex() else out if not out.is_complex() else None
    if real is None:
        return _transform(given["self"], given["dim"], 5)
    return _transform(real, given["dim"], 2.5)


_PRODUCTS = {"mm", "addmm", "_sparse_mm", "_sparse_addmm", "mv", "addmv", "bmm", "baddbmm", "smm"}
_FOURIER = {"_fft_c2c", "_fft_r2c", "_fft_c2r"}

_OWN: dict[str, _Count] = {
    "convolution_backward": _convolution_backward,
    "conv_tbc": _convolution_over_time,
    "mv": _numel("self"),
    "addmv": _numel("mat"),
    "dot": _numel("self"),
    "vdot": _numel("self"),
    "linear": _rows_times_columns("input"),
    "_addmm_activation": _rows_times_columns("mat1"),
    "addbmm": _batch_product,
    "_foreach_mm": _each_product,
    **dict.fromkeys(("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2"), _grouped_product),
    **dict.fromkeys(
        (
            *("_int_mm", "_scaled_mm_v2", "_weight_int8pack_mm", "_weight_int4pack_mm"),
            *("_weight_int4pack_mm_for_cpu", "_weight_int4pack_mm_with_scales_and_zeros", "mkldnn_linear"),
        ),
        _rows_times_columns("self"),
    ),
    **dict.fromkeys(("_mixed_dtypes_linear", "_sparse_semi_structured_linear"), _rows_times_columns("input")),
    "_trilinear": _bilinear,
    "_euclidean_dist": _euclidean_distances,
    "_cdist_forward": _distances,
    "_cdist_backward": _distances,
    "_pdist_forward": _own_distances,
    "_pdist_backward": _own_distances,
    **dict.fromkeys(
        ("linalg_lu_factor_ex", "linalg_lu", "_linalg_det", "_linalg_slogdet", "_lu_with_info"), _lu("A", "self")
    ),
    "linalg_lu_factor": _lu("A"),
    "_linalg_solve_ex": _solve_all,
    "linalg_inv_ex": _cubic(2, "A"),
    "linalg_cholesky_ex": _cubic(1 / 3, "self"),
    "cholesky": _cubic(1 / 3, "self"),
    "cholesky_inverse": _cubic(2 / 3, "self"),
    "linalg_ldl_factor_ex": _cubic(1 / 3, "self"),
    "linalg_lu_solve": _solve(2, "LU", "B"),
    "linalg_ldl_solve": _solve(2, "LD", "B"),
    "cholesky_solve": _solve(2, "input2", "self"),
    "_cholesky_solve_helper": _solve(2, "A", "self"),
    "linalg_solve_triangular": _solve(1, "self", "B"),
    "triangular_solve": _solve(1, "A", "self"),
    "linalg_lstsq": _least_squares,
    "linalg_qr": _qr,
    "geqrf": _qr,
    "linalg_householder_product": _householder_product,
    "ormqr": _times_reflectors,
    "_linalg_svd": _singular_values,
    "_linalg_eigh": _symmetric_eigenvalues,
    "linalg_eig": _cubic(25, "self"),
    "_linalg_eigvals": _cubic(10, "self"),
    "linalg_eigvals": _cubic(10, "self"),
    "linalg_matrix_exp": _cubic(10, "self"),  # five products; how often the result is squared depends on values
    **dict.fromkeys(_FOURIER, _fourier),
}

_REGISTERED = {op_type(packet): formula for packet, formula in flop_registry.items()}

COUNTED = (*_OWN, *_REGISTERED)
"""The types of the ops that have FLOPs; those of attention are there in part."""
