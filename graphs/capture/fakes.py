"""Fake tensors that stand for real ones while a step is captured, and what of a model or batch has no stand-in."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphs.capture.sparse import is_wrapper, wrapped_names
from graphs.errors import InputError


def fake_like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU of the size and dtype of another; a fake one inside a `FakeTensorMode`.

    Dense layouts are kept; others (a part of a larger tensor) become contiguous. A sparse tensor of coordinates has as
    many entries; one of a class that wraps others is of that class, and wraps fake ones.
    """
    if is_wrapper(tensor):
        names, rest = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        inner = {name: fake_like(getattr(tensor, name)) for name in names}
        made: torch.Tensor = type(tensor).__tensor_unflatten__(inner, rest, tensor.shape, tensor.stride())  # type: ignore[attr-defined]
        return made
    if tensor.layout is torch.sparse_coo:
        with _disable_current_modes():
            entries, coalesced = tensor._nnz(), tensor.is_coalesced()
            sizes = tensor.sparse_dim(), tuple(tensor.shape[tensor.sparse_dim() :])
        indices = torch.empty((sizes[0], entries), dtype=torch.int64, device="cpu")
        values = torch.empty((entries, *sizes[1]), dtype=tensor.dtype, device="cpu")
        return torch.sparse_coo_tensor(indices, values, tensor.shape, check_invariants=False, is_coalesced=coalesced)
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.numel() == extent:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def stand_in(tensor: torch.Tensor, what: str, *, runs: bool) -> torch.Tensor:
    """The stand-in of a tensor of the batch or the model, a leaf of autograd's graph if it is to be.

    Args:
        tensor: The real tensor.
        what: What it is to the user, ``"parameter 'head.weight'"``.
        runs: Whether the step is to be run by a placement, not only captured.

    Raises:
        InputError: Nothing can stand for it.
    """
    check_stored_plainly(tensor, what, runs=runs)
    sparse = tensor.layout is torch.sparse_coo
    if sparse and tensor.requires_grad:
        raise InputError(f"{what} is sparse and wants a gradient; make a dense one of its values")
    if is_wrapper(tensor) and tensor.requires_grad:
        raise InputError(
            f"{what} is {_class(tensor)}, which stores its numbers in its own way, and wants a gradient; freeze it, or "
            "capture the model before it is converted"
        )
    sparse = sparse or is_wrapper(tensor)
    fake = fake_like(tensor)
    return fake if sparse else fake.requires_grad_(tensor.requires_grad)


def check_stored_plainly(tensor: torch.Tensor, what: str, *, runs: bool) -> None:
    """Refuse a tensor whose bytes, and so what ops on it cost, cannot be told from its shape, dtype and entries.

    The arguments are those of `stand_in`.

    Raises:
        InputError: It is of another layout, nested, quantized by a backend or spread over processes; or it is sparse or
            of a class that wraps other tensors, and the step is to be run.
    """
    if tensor.is_nested:
        raise InputError(f"{what} is a nested tensor, whose sizes are not fixed; give a padded tensor and a mask")
    if tensor.layout not in (torch.strided, torch.sparse_coo):
        layout = str(tensor.layout).removeprefix("torch.")
        raise InputError(f"{what} is of layout {layout}, whose entries cannot be followed; use its .to_sparse_coo()")
    if tensor.layout is torch.sparse_coo and runs:
        raise InputError(f"{what} is sparse, and a step that reads it can be captured but not run by a placement")
    if tensor.is_quantized or type(tensor).__module__.startswith("torch.distributed"):
        shown = f"quantized, of {tensor.dtype}" if tensor.is_quantized else _class(tensor)
        raise InputError(
            f"{what} is {shown}, which stores its numbers in its own way, so neither its bytes nor its FLOPs can be "
            "seen; capture the model before it is converted"
        )
    if is_wrapper(tensor):
        if runs:
            raise InputError(
                f"{what} is {_class(tensor)}, and a step that reads it can be captured but not run by a placement"
            )
        for name in wrapped_names(tensor):
            check_stored_plainly(getattr(tensor, name), f"'{name}' of {what}", runs=runs)


def _class(tensor: torch.Tensor) -> str:
    return f"a {type(tensor).__module__}.{type(tensor).__qualname__}"
