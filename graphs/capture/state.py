"""The tensors that outlive a step, by name: parameters and buffers of the model and the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from graphs.capture.refusals import Failures


def named_state(model: nn.Module, loss: Any = None, *, training: bool = True) -> dict[str, torch.Tensor]:
    """All parameters, then all buffers, by the names that they have in the graph.

    Those of the model have its names for them; those of a loss that is a module, which only training calls, have
    ``"loss."`` before their names (``"loss_function."`` where the model has a part that is called ``loss``). What model
    and loss share is the model's.
    """
    parts: list[tuple[str, nn.Module]] = [("", model)]
    if training and isinstance(loss, nn.Module):
        parts.append((loss_prefix(model), loss))
    state: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for kind in ("named_parameters", "named_buffers"):
        for prefix, module in parts:
            for key, tensor in getattr(module, kind)():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    state[prefix + key] = tensor
    return state


def other_names(model: nn.Module) -> dict[str, str]:
    """Further names of parameters and buffers that have several, as tied weights have, by name the one in the graph."""
    first: dict[int, str] = {}
    others: dict[str, str] = {}
    for kind in ("named_parameters", "named_buffers"):
        for key, tensor in getattr(model, kind)(remove_duplicate=False):
            if first.setdefault(id(tensor), key) != key:
                others[key] = first[id(tensor)]
    return others


def loss_prefix(model: nn.Module) -> str:
    """What stands before the names of a loss's parameters."""
    return "loss_function." if "loss" in model._modules else "loss."


class Whole(nn.Module):
    """A whole step as a module, so that the stand-ins for parameters are in place during the backward as well.

    A checkpoint calls parts of the model again in the backward.

    Attributes:
        given_anew: By name, the tensors that the step has put in the place of parameters and buffers
            (``self.mean = 0.9 * self.mean + 0.1 * x``).
    """

    def __init__(self, model: nn.Module, loss: Any, step: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss if isinstance(loss, nn.Module) else None
        self.step = step
        self.given_anew: dict[str, torch.Tensor] = {}

    def forward(self) -> Any:
        """Run the step."""
        return self.step(self.model)

    def call(self, state: Mapping[str, torch.Tensor]) -> Any:
        """Run the step with stand-ins for its tensors, by the names of `named_state`."""
        prefix = loss_prefix(self.model)
        names = {}
        for key in state:
            of_loss = self.loss is not None and key.startswith(prefix)
            names[key] = f"loss.{key.removeprefix(prefix)}" if of_loss else f"model.{key}"
        held = {names[key]: tensor for key, tensor in state.items()}
        found = torch.func.functional_call(self, held, ())  # leaves in `held` what the modules have in the end
        self.given_anew = {key: held[names[key]] for key, tensor in state.items() if held[names[key]] is not tensor}
        return found


class StandIns(TorchFunctionMode):
    """What is different for PyTorch's functions while a step is captured.

    A parameter that is met elsewhere than in its module (in a plain list, in a loss's closure) is its stand-in, too;
    ``.to("cuda")`` and ``.cuda()`` mean nothing, also where there is no GPU.

    Args:
        real: The tensors of the model and the loss by name.
        stand_ins: Those that stand for them.
        failures: Is told which function raised.
    """

    def __init__(
        self, real: Mapping[str, torch.Tensor], stand_ins: Mapping[str, torch.Tensor], failures: Failures
    ) -> None:
        super().__init__()
        self._failures = failures
        self._held = dict(real)  # so that no other tensor gets the same address
        self._by_address = {id(tensor): stand_ins[key] for key, tensor in real.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function without the device and with stand-ins."""
        if func is torch.Tensor.cuda:
            return self._replaced(args[0])
        if func is torch.Tensor.to:
            args = tuple("cpu" if isinstance(a, (str, torch.device)) else a for a in args)
        args = tuple(self._replaced(a) for a in args)
        try:
            if func in (torch.ctc_loss, nn.functional.ctc_loss):
                return _ctc_loss(*args, **(kwargs or {}))
            return func(*args, **{key: self._replaced(a) for key, a in (kwargs or {}).items()})
        except Exception as error:
            self._failures.in_function(error, func)
            raise

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._by_address.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)([self._replaced(item) for item in value])
        return value


def _ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str | int = 1,
    zero_infinity: bool = False,
) -> torch.Tensor:
    """``torch.ctc_loss`` by the same ops; its own mean fills a tensor, which a fake one is not."""
    arguments = (log_probs, targets, input_lengths, target_lengths, blank)
    if isinstance(reduction, str):
        reduction = {"none": 0, "mean": 1, "sum": 2}[reduction]
    if reduction != 1 or isinstance(target_lengths, torch.Tensor):
        return torch.ctc_loss(*arguments, reduction, zero_infinity)
    each = torch.ctc_loss(*arguments, 0, zero_infinity)
    return (each / torch.tensor(target_lengths, dtype=each.dtype).clamp_min(1)).mean()
