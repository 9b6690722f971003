"""What tensors consist of that are not stored plainly: sparse ones of coordinates, and those that wrap others.

A sparse tensor is its indices and values; a weight that a quantizing library keeps as integers and scales is these. On
fake tensors PyTorch does not know how many entries the result of a sparse op has, so the ops that occur in training
are done here by ops on indices and values, as PyTorch itself does them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from graphs.errors import InputError


def is_sparse(value: Any) -> bool:
    """Whether a value is a sparse tensor of coordinates."""
    return isinstance(value, torch.Tensor) and value.layout == torch.sparse_coo


def is_wrapper(value: Any) -> bool:
    """Whether a tensor is of a class that keeps its numbers in other tensors and says in which."""
    return bool(is_traceable_wrapper_subclass(value))


def wrapped_names(tensor: Any) -> list[str]:
    """The attributes in which a tensor of a class that wraps others keeps these."""
    return list(tensor.__tensor_flatten__()[0])


def dense_parts(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """The tensors in arguments or results, also those in lists; of one that is not stored plainly what it stores."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if is_wrapper(value):
                yield from dense_parts([getattr(value, name) for name in wrapped_names(value)])
            elif is_sparse(value):
                yield from (value._indices(), value._values())
            else:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from dense_parts(value)


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the storage, or of the storages, of a tensor."""
    return sum(int(part.untyped_storage().nbytes()) for part in dense_parts([tensor]))


_EACH_ENTRY = {"neg", "abs", "relu", "sqrt", "square", "sin", "tanh", "erf", "expm1", "log1p", "clone", "_to_copy"}
"""Ops that do to a sparse tensor what they do to its values."""

_SCALES = {"mul", "div"}
"""The same, where what follows is one number."""

_TRANSPOSES = {"t", "transpose", "numpy_T"}

_SAME_PLACES = {"detach", "alias"}


def is_by_entries(kind: str, args: Sequence[Any]) -> bool:
    """Whether `on_entries` does an op."""
    if not args or not is_sparse(args[0]):
        return False
    by_one = len(args) > 1 and (not isinstance(args[1], torch.Tensor) or args[1].dim() == 0)
    flat = args[0].sparse_dim() == 2 == args[0].dim()
    return (
        kind in {*_EACH_ENTRY, *_SAME_PLACES}
        or (kind in _SCALES and by_one)
        or (kind in {*_TRANSPOSES, "_coalesce"} and flat)
    )


def on_entries(kind: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The result of an op whose first argument is sparse, by ops on its entries."""
    first = args[0]
    indices, values, shape, coalesced = first._indices(), first._values(), first.shape, first.is_coalesced()
    if kind in _TRANSPOSES:
        indices, shape, coalesced = indices.flip(0), shape[::-1], False
    elif kind == "_coalesce":
        # As if no place occurred twice: how many do is not known.
        order = (indices[0] * shape[1] + indices[1]).argsort()
        indices, values, coalesced = indices.index_select(1, order), values.index_select(0, order), True
    elif kind not in _SAME_PLACES:
        values = func(values, *args[1:], **{key: v for key, v in kwargs.items() if key not in ("layout", "device")})
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False, is_coalesced=coalesced)


def sparse_sum(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """As PyTorch adds sparse tensors: all entries of both, uncoalesced."""
    indices = torch.cat([first._indices(), second._indices()], dim=1)
    values = torch.cat([first._values(), second._values()])
    return torch.sparse_coo_tensor(indices, values, first.shape, check_invariants=False)


def sparse_bag_gradient(grad_output: torch.Tensor, indices: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The sparse gradient of a bag of embeddings: for each index the gradient of the bag that it is in."""
    # Which bag that is does not matter to shapes, so the indices stand in for the bags' numbers.
    values = grad_output.index_select(0, indices)
    shape = (num_rows, grad_output.shape[1])
    return torch.sparse_coo_tensor(indices.unsqueeze(0), values, shape, check_invariants=False)


def check_made(kind: str, out: Any) -> None:
    """Refuse a result of an op of which it is not known what it stores.

    Raises:
        InputError: The op makes a sparse tensor of an unknown number of entries, or a tensor of another layout.
    """
    for made in out if isinstance(out, (list, tuple)) else (out,):
        if not isinstance(made, torch.Tensor):
            continue
        if made.is_nested:
            raise InputError(f"{kind} makes a nested tensor, whose sizes are not fixed; use a padded tensor and a mask")
        if made.layout not in (torch.strided, torch.sparse_coo):
            layout = str(made.layout).removeprefix("torch.")
            raise InputError(
                f"{kind} makes a tensor of layout {layout}, whose entries cannot be followed; use sparse_coo"
            )
        if is_sparse(made) and made._nnz() == 0:
            raise InputError(f"how many entries the sparse result of {kind} has depends on values; use dense tensors")
