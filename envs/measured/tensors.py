"""Tensors on their way into a step and out of it: the model's own, those of a batch, and what is given back."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from graphs.capture.program import Layout, Source
from graphs.errors import InputError


def model_tensor(source: Source, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tensor that a source stands for: one of the model's parameters and buffers, or of the program's constants.

    Raises:
        InputError: The model has none of that name, or another one than was captured.
    """
    if source.tensor is not None:
        return source.tensor
    if source.key not in tensors:
        raise InputError(f"the model has no {source.kind} '{source.key}', which the captured step reads")
    tensor = tensors[source.key].detach()
    if tuple(tensor.shape) != source.layout.size or tensor.dtype != source.layout.dtype:
        raise InputError(
            f"{source.kind} '{source.key}' is {tensor.dtype} of shape {list(tensor.shape)}, but the captured step has "
            f"{source.layout.dtype} of shape {list(source.layout.size)}; capture the model again"
        )
    if tensor.is_meta:
        raise InputError(f"{source.kind} '{source.key}' is on the meta device, which has no numbers to compute with")
    return tensor


def moved(tensor: torch.Tensor, layout: Layout, device: torch.device) -> torch.Tensor:
    """A copy of a tensor in a layout, on a device."""
    made = torch.empty_strided(layout.size, layout.stride, dtype=layout.dtype, device=device)
    return made.copy_(tensor)


def fed(source: Source, inputs: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    """An input of the step in the layout of the capture.

    Raises:
        InputError: The batch has none at its path, or another one than was captured.
    """
    tensor = inputs.get(source.key)
    layout = source.layout
    if tensor is None:
        raise InputError(f"the batch has no tensor at '{source.key}', which the captured step reads")
    if tuple(tensor.shape) != layout.size or tensor.dtype != layout.dtype:
        is_smaller = tensor.dtype == layout.dtype and tuple(tensor.shape)[1:] == layout.size[1:]
        raise InputError(
            f"the batch's tensor at '{source.key}' is {tensor.dtype} of shape {list(tensor.shape)}, but the step was "
            f"captured with {layout.dtype} of shape {list(layout.size)}; "
            + ("leave out a last batch that is smaller (drop_last=True of a DataLoader), or " if is_smaller else "")
            + "capture the model again with such a batch, and place that"
        )
    tensor = tensor.detach()
    fits = tensor.device == device and Layout.of(tensor) == layout
    return (
        tensor if fits and tensor.untyped_storage().nbytes() == source.storage_bytes else moved(tensor, layout, device)
    )


def outside(read: Any, slots: list[Any]) -> torch.Tensor:
    """A tensor of the step as one of its own, that autograd does not mind."""
    with torch.inference_mode():
        tensor = read if isinstance(read, torch.Tensor) else read(slots)
    return tensor.clone()


def returned(output: Any, slots: list[Any]) -> Any:
    """What the model returned, with a tensor of its own for each of the step's."""
    return tree_map_only((torch.Tensor, FunctionType), lambda read: outside(read, slots), output)
