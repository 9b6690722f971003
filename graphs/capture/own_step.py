"""A step of one's own: a function that computes losses, and says which parameters each of them updates and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from graphs.capture.build import OPTIMIZER_STATES
from graphs.capture.tags import Tags
from graphs.capture.updates import Trained, Updates, check_clip_grad_norm
from graphs.errors import InputError, unknown_name


class Update(Protocol):
    """What a step of one's own is given to call."""

    def __call__(
        self,
        loss: torch.Tensor,
        parameters: nn.Module | Iterable[torch.Tensor] | None = None,
        optimizer: str | None = None,
        *,
        clip_grad_norm: float | None = None,
    ) -> None:
        """Go backward from a loss to some parameters, and update these.

        Args:
            loss: One number.
            parameters: A module, for all of its parameters, or parameters; those that require no gradient stay. By
                default all of the model's.
            optimizer: Its name; every optimizer keeps states of its own for a parameter. By default that of the step.
            clip_grad_norm: What the norm of these gradients is clipped to; by default that of the step.
        """


OwnStep = Callable[[nn.Module, Any, Update], Any]
"""A function of the model, a batch and what updates; it returns what is to be seen of the step, mostly a loss."""


class RecordedUpdate:
    """Records what `Update` does, on the stand-ins of a model's parameters.

    Args:
        ops: The op that stands for each parameter, by name.
        real: The model's parameters by name.
        state: Their stand-ins.
        tags: Where ops belong.
        updates: Records the updates.
        optimizer: Of an update that names none.
        clip_grad_norm: Of an update that says none.
    """

    def __init__(
        self,
        ops: Mapping[str, int],
        real: Mapping[str, torch.Tensor],
        state: Mapping[str, torch.Tensor],
        tags: Tags,
        updates: Updates,
        *,
        optimizer: str,
        clip_grad_norm: float | None,
    ) -> None:
        self._ops = ops
        self._state = state
        self._key = {id(tensors[key]): key for tensors in (real, state) for key in ops}
        self._tags = tags
        self._updates = updates
        self._optimizer = optimizer
        self._clip_grad_norm = clip_grad_norm

    def __call__(
        self,
        loss: torch.Tensor,
        parameters: nn.Module | Iterable[torch.Tensor] | None = None,
        optimizer: str | None = None,
        *,
        clip_grad_norm: float | None = None,
    ) -> None:
        """See `Update`."""
        optimizer = self._optimizer if optimizer is None else optimizer
        if optimizer not in OPTIMIZER_STATES:
            raise unknown_name("optimizer", optimizer, OPTIMIZER_STATES)
        check_clip_grad_norm(clip_grad_norm)
        check_loss(loss)
        keys = list(self._ops)
        if parameters is not None:
            keys = list(dict.fromkeys(self._name(parameter) for parameter in parameters_in(parameters)))
        leaves = {key: self._state[key] for key in keys if self._state[key].requires_grad}
        outer = self._tags.tag
        self._tags.begin_backward(loss)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if leaves else ()
        trained = [
            Trained(self._ops[key], leaf, gradient)
            for (key, leaf), gradient in zip(leaves.items(), found, strict=True)
            if gradient is not None
        ]
        if not trained:
            raise InputError(
                "update() was given no parameter that requires a gradient and that the loss depends on; give the "
                "module, or the parameters, that this loss is to train"
            )
        clip = self._clip_grad_norm if clip_grad_norm is None else clip_grad_norm
        self._updates.add(trained, optimizer, clip)
        self._tags.phase = "forward"
        self._tags.set(outer)

    def _name(self, parameter: Any) -> str:
        key = self._key.get(id(parameter))
        if key is None:
            shown = f"a tensor of shape {list(parameter.shape)}" if isinstance(parameter, torch.Tensor) else parameter
            raise InputError(f"update() was given {shown}, which is no parameter of the model; give parameters of it")
        return key


def parameters_in(parameters: nn.Module | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The parameters that an update is given."""
    return list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)


def check_loss(loss: Any) -> None:
    """Refuse what gradients cannot be taken of.

    Raises:
        InputError: It is not one number, or depends on nothing that requires a gradient.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        shape = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise InputError(f"the loss must be a tensor of one number, not {shape}; reduce it, for example by .mean()")
    if loss.grad_fn is None:
        raise InputError(
            "the loss does not depend on any parameter that requires a gradient; capture with training=False"
        )
