"""Whether a model is still what its step was captured from: a placed step uses the tensors that it found."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphs.capture.state import loss_prefix
from graphs.errors import InputError

_REMEDY = "apply the placement again"


class Unchanged:
    """Notices what was done to a model between steps that a placed step would not see.

    Args:
        model: The model, as its step was captured.
        loss: The loss, which may be a module, too; only training calls it.
        training: Whether the step trains: then each module must keep its mode, unless all were in evaluation mode.
    """

    def __init__(self, model: nn.Module, loss: Any, *, training: bool) -> None:
        named = list(model.named_modules())
        if training and isinstance(loss, nn.Module):
            prefix = loss_prefix(model)
            named += [(f"{prefix}{name}".rstrip("."), module) for name, module in loss.named_modules()]
        modes = training and any(module.training for module in model.modules())
        self._modes = [(name, module, module.training) for name, module in named] if modes else []
        self._parameters = [
            (name, module._parameters, key, tensor, _address(tensor), tensor.requires_grad)
            for name, module in named
            for key, tensor in module._parameters.items()
            if tensor is not None
        ]
        self._buffers = [
            (name, module._buffers, key, tensor)
            for name, module in named
            for key, tensor in module._buffers.items()
            if tensor is not None
        ]
        self._training = training

    def check(self) -> None:
        """Check, and take over buffers that the model's own code gave anew.

        Raises:
            InputError: A parameter was replaced, moved, frozen or no longer is, a buffer has another shape, or a module
                another mode; the message names it.
        """
        for name, module, mode in self._modes:
            if module.training is not mode:
                was, now = ("training", "evaluation") if mode else ("evaluation", "training")
                raise InputError(
                    f"module '{name or type(module).__name__}' is in {now} mode, but was in {was} mode when the "
                    f"placement was applied; put it back ({'.train()' if mode else '.eval()'}), or {_REMEDY}"
                )
        for name, held, key, tensor, address, trained in self._parameters:
            now = held.get(key)
            if now is not tensor or _address(now) != address:
                raise InputError(
                    f"parameter '{_joined(name, key)}' has been replaced or moved since the placement was applied; "
                    f"copy into it instead (copy_, load_state_dict), or {_REMEDY}"
                )
            if self._training and now.requires_grad is not trained:
                raise InputError(
                    f"parameter '{_joined(name, key)}' {'no longer requires' if trained else 'now requires'} a "
                    f"gradient, which it did{' ' if trained else ' not '}when the placement was applied; {_REMEDY}"
                )
        for name, held, key, tensor in self._buffers:
            now = held.get(key)
            if now is tensor:
                continue
            if now is None or now.shape != tensor.shape or now.dtype != tensor.dtype:
                raise InputError(
                    f"buffer '{_joined(name, key)}' has another shape or dtype than when the placement was applied; "
                    f"{_REMEDY}"
                )
            with torch.no_grad():
                tensor.copy_(now)
            held[key] = tensor


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _address(tensor: torch.Tensor) -> int:
    """Where its numbers are; 0 where it has no such place, as a sparse tensor has none."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0
