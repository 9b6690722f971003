"""The optimizer's update of one parameter as PyTorch's own optimizers do it, in place.

``sgd``, ``momentum`` and ``adam`` are the fused kernels behind ``torch.optim.SGD(fused=True)`` and
``torch.optim.Adam(fused=True)``, one call a parameter, as the graph has one op. What has no fused kernel that is right
(see `has_fused_kernel`), and ``rmsprop``, are the ops that ``torch.optim`` calls without one, bit for bit. Sparse
gradients are those of ``torch.optim.SGD`` and ``torch.optim.SparseAdam``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graphs.errors import InputError


@dataclass(frozen=True)
class UpdateSettings:
    """What an update multiplies by; the defaults are those of `torch.optim`.

    Attributes:
        lr: The learning rate; None takes PyTorch's default of the optimizer.
        momentum: Of ``momentum``.
        betas: Of ``adam``.
        alpha: The smoothing of ``rmsprop``.
        eps: Added to a denominator.
        weight_decay: L2 penalty; of ``adam`` the coupled one, as `torch.optim.Adam` has it.
    """

    lr: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0


_LEARNING_RATES = {"sgd": 1e-3, "momentum": 1e-3, "rmsprop": 1e-2, "adam": 1e-3}

STATES = {"sgd": (), "momentum": ("momentum_buffer",), "rmsprop": ("square_avg",), "adam": ("exp_avg", "exp_avg_sq")}
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
        self.tensors = {name: torch.zeros_like(parameter, memory_format=keep) for name in STATES[optimizer]}
        self.steps = torch.zeros((), dtype=torch.float32, device=parameter.device)
        self.updates = 0

    def move(self, device: torch.device) -> None:
        """Be where the parameter is."""
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        self.steps = self.steps.to(device)


def make_update(
    optimizer: str, settings: UpdateSettings, parameter: Tensor, state: ParameterState
) -> Callable[[Tensor], None]:
    """A function that updates a parameter from its gradient, which it does not change.

    Raises:
        InputError: The optimizer is unknown.
    """
    lr = _LEARNING_RATES[optimizer] if settings.lr is None else settings.lr
    fused = has_fused_kernel(parameter)
    if optimizer in ("sgd", "momentum"):
        sgd = _fused_sgd if fused else _sgd
        dense = sgd(settings, lr, parameter, state, momentum=optimizer == "momentum")
    elif optimizer == "adam":
        dense = (_fused_adam if fused else _adam)(settings, lr, parameter, state)
    elif optimizer == "rmsprop":
        dense = _rmsprop(settings, lr, parameter, state)
    else:
        raise InputError(f"optimizer '{optimizer}' cannot be run")

    def update(gradient: Tensor) -> None:
        if gradient.layout == torch.sparse_coo:
            _sparse(optimizer, settings, lr, parameter, state, gradient)
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


def _sgd(
    settings: UpdateSettings, lr: float, parameter: Tensor, state: ParameterState, *, momentum: bool
) -> Callable[[Tensor], None]:
    def update(gradient: Tensor) -> None:
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
        parameter.add_(gradient, alpha=-lr)

    return update


def _adam(settings: UpdateSettings, lr: float, parameter: Tensor, state: ParameterState) -> Callable[[Tensor], None]:
    average, square = _real(state.tensors["exp_avg"]), _real(state.tensors["exp_avg_sq"])
    weights = _real(parameter)
    beta1, beta2 = settings.betas

    def update(gradient: Tensor) -> None:
        state.steps += 1
        steps = float(state.steps)
        if settings.weight_decay:
            gradient = gradient.add(parameter, alpha=settings.weight_decay)
        gradient = _real(gradient)
        average.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (square.sqrt() / (1 - beta2**steps) ** 0.5).add_(settings.eps)
        weights.addcdiv_(average, denominator, value=-lr / (1 - beta1**steps))

    return update


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, each of which is updated by itself."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _fused_sgd(
    settings: UpdateSettings, lr: float, parameter: Tensor, state: ParameterState, *, momentum: bool
) -> Callable[[Tensor], None]:
    buffers = [state.tensors["momentum_buffer"]] if momentum else []

    def update(gradient: Tensor) -> None:
        first = momentum and state.updates == 0
        state.updates += 1
        torch._fused_sgd_(
            [parameter],
            [gradient],
            buffers,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum if momentum else 0.0,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=first,  # the buffer is then set, not averaged
        )

    return update


def _fused_adam(
    settings: UpdateSettings, lr: float, parameter: Tensor, state: ParameterState
) -> Callable[[Tensor], None]:
    averages, squares = [state.tensors["exp_avg"]], [state.tensors["exp_avg_sq"]]
    parameters, steps = [parameter], [state.steps]
    beta1, beta2 = settings.betas

    def update(gradient: Tensor) -> None:
        state.steps += 1
        torch._fused_adam_(
            parameters,
            [gradient],
            averages,
            squares,
            [],
            steps,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=settings.weight_decay,
            eps=settings.eps,
            amsgrad=False,
            maximize=False,
        )

    return update


def _rmsprop(settings: UpdateSettings, lr: float, parameter: Tensor, state: ParameterState) -> Callable[[Tensor], None]:
    square_avg, weights = _real(state.tensors["square_avg"]), _real(parameter)

    def update(gradient: Tensor) -> None:
        if settings.weight_decay:
            gradient = gradient.add(parameter, alpha=settings.weight_decay)
        gradient = _real(gradient)
        square_avg.mul_(settings.alpha).addcmul_(gradient, gradient, value=1 - settings.alpha)
        weights.addcdiv_(gradient, square_avg.sqrt().add_(settings.eps), value=-lr)

    return update


def _sparse(
    optimizer: str, settings: UpdateSettings, lr: float, parameter: Tensor, state: ParameterState, gradient: Tensor
) -> None:
    """The update of the rows that a sparse gradient names."""
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
