"""The optimizer's update of one parameter as PyTorch's own optimizers do it, in place.

``sgd``, ``momentum``, ``adam`` and ``adamw`` are the fused kernels behind ``torch.optim.SGD(fused=True)``,
``torch.optim.Adam(fused=True)`` and ``AdamW``, one call a parameter, as the graph has one op. What has no fused kernel
that is right (see `has_fused_kernel`), and ``rmsprop``, are the ops that ``torch.optim`` calls without one, bit for
bit. Sparse gradients are those of ``torch.optim.SGD`` and ``torch.optim.SparseAdam``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graphs.errors import InputError


@dataclass(frozen=True)
class UpdateSettings:
    """What an update multiplies by; the defaults are those of `torch.optim`.

    Attributes:
        lr: The learning rate; None takes PyTorch's default of the optimizer.
        momentum: Of ``momentum``.
        betas: Of ``adam`` and ``adamw``.
        alpha: The smoothing of ``rmsprop``.
        eps: Added to a denominator.
        weight_decay: L2 penalty, of ``adamw`` the decoupled one; None takes PyTorch's default of the optimizer.
    """

    lr: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float | None = None

    def of(self, optimizer: str) -> UpdateSettings:
        """The same with PyTorch's defaults of an optimizer for what is None."""
        lr = _LEARNING_RATES[optimizer] if self.lr is None else self.lr
        usual = 1e-2 if optimizer == "adamw" else 0.0
        return replace(self, lr=lr, weight_decay=usual if self.weight_decay is None else self.weight_decay)


Current = Callable[[], UpdateSettings]
"""The settings of the step that runs, none of them None: learning rates change from step to step."""

_LEARNING_RATES = {"sgd": 1e-3, "momentum": 1e-3, "rmsprop": 1e-2, "adam": 1e-3, "adamw": 1e-3}

_MOMENTS = ("exp_avg", "exp_avg_sq")

STATES = {
    "sgd": (),
    "momentum": ("momentum_buffer",),
    "rmsprop": ("square_avg",),
    "adam": _MOMENTS,
    "adamw": _MOMENTS,
}
"""Tensors of a parameter's size that each optimizer keeps, by PyTorch's names for them."""


class ParameterState:
    """What an optimizer keeps for one parameter from step to step.

    Attributes:
        tensors: By name, see `STATES`.
        steps: How many updates there were, as the fused kernel counts them.
        updates: The same as a number, of `sgd` and `momentum`, which only ask whether it is the first.
    """

    def __init__(self, optimizer: str, parameter: Tensor) -> None:
        keep = torch.preserve_format
        with torch.inference_mode(False), torch.no_grad():  # an optimizer of PyTorch's may go on with them
            self.tensors = {name: torch.zeros_like(parameter, memory_format=keep) for name in STATES[optimizer]}
            self.steps = torch.zeros((), dtype=torch.float32, device=parameter.device)
        self.updates = 0

    def move(self, device: torch.device) -> None:
        """Be where the parameter is."""
        with torch.inference_mode(False):
            self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
            self.steps = self.steps.to(device)


def make_update(
    optimizer: str, settings: UpdateSettings | Current, parameter: Tensor, state: ParameterState
) -> Callable[[Tensor], None]:
    """A function that updates a parameter from its gradient, which it does not change.

    Args:
        optimizer: A key of `STATES`.
        settings: Those of every step, or a function that gives those of the step that runs.
        parameter: Updated in place.
        state: What is kept from step to step.

    Raises:
        InputError: The optimizer is unknown.
    """
    if optimizer not in STATES:
        raise InputError(f"optimizer '{optimizer}' cannot be run")
    if isinstance(settings, UpdateSettings):
        always = settings.of(optimizer)

        def current() -> UpdateSettings:
            return always
    else:
        current = settings
    fused = has_fused_kernel(parameter)
    if optimizer in ("sgd", "momentum"):
        dense = (_fused_sgd if fused else _sgd)(current, parameter, state, momentum=optimizer == "momentum")
    elif optimizer in ("adam", "adamw"):
        dense = (_fused_adam if fused else _adam)(current, parameter, state, decoupled=optimizer == "adamw")
    else:
        dense = _rmsprop(current, parameter, state)

    def update(gradient: Tensor) -> None:
        if gradient.layout == torch.sparse_coo:
            _sparse(optimizer, current(), parameter, state, gradient)
            return
        if gradient.stride() != parameter.stride():
            # As autograd does before it hands a gradient to the optimizer.
            gradient = torch.empty_like(parameter).copy_(gradient)
        dense(gradient)

    return update


def has_fused_kernel(parameter: Tensor) -> bool:
    """Whether the fused kernels update a parameter as PyTorch's optimizers do without them.

    There are none for complex numbers. On the CPU those for bfloat16 and float16 are not used: PyTorch 2.13's SGD
    leaves the weights as they are (pytorch/pytorch#191763), and Adam rounds otherwise than the optimizer's own ops.
    """
    return parameter.dtype in (torch.float32, torch.float64) or (
        parameter.device.type != "cpu" and parameter.is_floating_point()
    )


def _sgd(current: Current, parameter: Tensor, state: ParameterState, *, momentum: bool) -> Callable[[Tensor], None]:
    def update(gradient: Tensor) -> None:
        settings = current()
        if settings.weight_decay:
            gradient = gradient.add(parameter, alpha=settings.weight_decay)
        if momentum:
            buffer = state.tensors["momentum_buffer"]
            if state.updates == 0:
                buffer.copy_(gradient)
            else:
                buffer.mul_(settings.momentum).add_(gradient)
            gradient = buffer
        state.updates += 1
        parameter.add_(gradient, alpha=-_lr(settings))

    return update


def _adam(current: Current, parameter: Tensor, state: ParameterState, *, decoupled: bool) -> Callable[[Tensor], None]:
    average, square = _real(state.tensors["exp_avg"]), _real(state.tensors["exp_avg_sq"])
    weights = _real(parameter)

    def update(gradient: Tensor) -> None:
        settings = current()
        lr, (beta1, beta2) = _lr(settings), settings.betas
        state.steps += 1
        steps = float(state.steps)
        if settings.weight_decay and decoupled:
            parameter.mul_(1 - lr * settings.weight_decay)
        elif settings.weight_decay:
            gradient = gradient.add(parameter, alpha=settings.weight_decay)
        gradient = _real(gradient)
        average.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square.sqrt() / (1 - beta2**steps) ** 0.5).add_(settings.eps)
        weights.addcdiv_(average, denominator, value=-lr / (1 - beta1**steps))

    return update


def _lr(settings: UpdateSettings) -> float:
    assert settings.lr is not None
    return settings.lr


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, each of which is updated by itself."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _fused_sgd(
    current: Current, parameter: Tensor, state: ParameterState, *, momentum: bool
) -> Callable[[Tensor], None]:
    buffers = [state.tensors["momentum_buffer"]] if momentum else []

    def update(gradient: Tensor) -> None:
        settings = current()
        first = momentum and state.updates == 0
        state.updates += 1
        torch._fused_sgd_(
            [parameter],
            [gradient],
            buffers,
            weight_decay=settings.weight_decay or 0.0,
            momentum=settings.momentum if momentum else 0.0,
            lr=_lr(settings),
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=first,  # the buffer is then set, not averaged
        )

    return update


def _fused_adam(
    current: Current, parameter: Tensor, state: ParameterState, *, decoupled: bool
) -> Callable[[Tensor], None]:
    averages, squares = [state.tensors["exp_avg"]], [state.tensors["exp_avg_sq"]]
    parameters, steps = [parameter], [state.steps]
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_

    def update(gradient: Tensor) -> None:
        settings = current()
        beta1, beta2 = settings.betas
        state.steps += 1
        kernel(
            parameters,
            [gradient],
            averages,
            squares,
            [],
            steps,
            lr=_lr(settings),
            beta1=beta1,
            beta2=beta2,
            weight_decay=settings.weight_decay or 0.0,
            eps=settings.eps,
            amsgrad=False,
            maximize=False,
        )

    return update


def _rmsprop(current: Current, parameter: Tensor, state: ParameterState) -> Callable[[Tensor], None]:
    square_avg, weights = _real(state.tensors["square_avg"]), _real(parameter)

    def update(gradient: Tensor) -> None:
        settings = current()
        state.steps += 1
        if settings.weight_decay:
            gradient = gradient.add(parameter, alpha=settings.weight_decay)
        gradient = _real(gradient)
        square_avg.mul_(settings.alpha).addcmul_(gradient, gradient, value=1 - settings.alpha)
        weights.addcdiv_(gradient, square_avg.sqrt().add_(settings.eps), value=-_lr(settings))

    return update


def _sparse(
    optimizer: str, settings: UpdateSettings, parameter: Tensor, state: ParameterState, gradient: Tensor
) -> None:
    """The update of the rows that a sparse gradient names."""
    lr = _lr(settings)
    if optimizer == "sgd":
        parameter.add_(gradient, alpha=-lr)
        return
    if optimizer != "adam":
        raise InputError(f"PyTorch's {optimizer} does not update from a sparse gradient; use sgd or adam")
    # Kingma and Ba's Adam on the rows alone, as `torch.optim.SparseAdam`: rows without a gradient keep their moments.
    gradient = gradient.coalesce()
    rows, values = gradient._indices()[0], gradient._values()
    beta1, beta2 = settings.betas
    state.steps += 1
    steps = float(state.steps)
    average, square = state.tensors["exp_avg"], state.tensors["exp_avg_sq"]
    new_average = average[rows].lerp(values, 1 - beta1)
    new_square = square[rows].mul_(beta2).addcmul_(values, values, value=1 - beta2)
    average[rows], square[rows] = new_average, new_square
    step_size = lr * (1 - beta2**steps) ** 0.5 / (1 - beta1**steps)
    parameter.index_add_(0, rows, new_average / new_square.sqrt().add_(settings.eps), alpha=-step_size)
