"""A `torch.optim` optimizer whose updates a placed step makes: it says the settings, and keeps the states.

Its ``param_groups`` are read before each step, so learning-rate schedulers work on it; its ``state_dict`` is what it
would be had the optimizer made the steps itself, and another's can be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from envs.measured.updates import STATES, Current, ParameterState, UpdateSettings
from graphs.capture.program import Program
from graphs.errors import InputError

_KINDS: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.SGD: "sgd",
    torch.optim.RMSprop: "rmsprop",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adamw",
}

_FIXED: dict[str, dict[str, Any]] = {
    "sgd": {"nesterov": False, "dampening": 0, "maximize": False},
    "rmsprop": {"centered": False, "momentum": 0, "maximize": False},
    "adam": {"amsgrad": False, "maximize": False},
}
"""By kind, the settings that an update has no other value of."""


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """The name of what an optimizer does, a key of `STATES`.

    Raises:
        InputError: It is of another kind than updates are, or has a setting that they have not.
    """
    kind = _KINDS.get(type(optimizer))
    if kind is None:
        known = ", ".join(each.__name__ for each in _KINDS)
        raise InputError(f"an optimizer of type {type(optimizer).__name__} cannot be run by a placement; use {known}")
    for group in optimizer.param_groups:
        for key, value in _FIXED["adam" if kind == "adamw" else kind].items():
            if group.get(key, value) != value:
                raise InputError(
                    f"{type(optimizer).__name__} with {key}={group[key]} cannot be run by a placement; leave out {key}"
                )
    if kind == "adam" and all(group.get("decoupled_weight_decay", False) for group in optimizer.param_groups):
        return "adamw"
    if kind == "sgd":
        moving = {bool(group["momentum"]) for group in optimizer.param_groups}
        if len(moving) > 1:
            raise InputError("SGD with momentum for some parameters alone cannot be run by a placement; give all some")
        return "momentum" if True in moving else "sgd"
    return kind


def make_optimizer(name: str, settings: UpdateSettings, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a name, a key of `STATES`, with these settings.

    Raises:
        InputError: The optimizer is unknown.
    """
    if name not in STATES:
        raise InputError(f"optimizer '{name}' cannot be run")
    its = settings.of(name)
    lr, decay = float(its.lr or 0.0), float(its.weight_decay or 0.0)
    if name in ("adam", "adamw"):
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        return kind(parameters, lr, its.betas, its.eps, decay)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr, its.alpha, its.eps, decay)
    return torch.optim.SGD(parameters, lr, its.momentum if name == "momentum" else 0.0, weight_decay=decay)


def state_keys(program: Program) -> dict[int, str]:
    """By op of an update, what the optimizer's state of its parameter is called.

    That is the parameter's name; where several optimizers update a parameter in a step of one's own, both names,
    ``"weight/adam"``.
    """
    names = {source.op: source.key for source in program.sources}
    optimizers: dict[int, set[str]] = {}
    for update in program.updates:
        optimizers.setdefault(update.parameter, set()).add(update.optimizer)
    return {
        update.op: names[update.parameter] + (f"/{update.optimizer}" if len(optimizers[update.parameter]) > 1 else "")
        for update in program.updates
    }


class HeldOptimizer:
    """An optimizer as the engine sees it.

    Args:
        optimizer: Whose settings and states are used.
        parameters: The parameters that the step updates by it, by what their states are called (`state_keys`).

    Raises:
        InputError: It lacks one of them, or it is of no kind that can be run.

    Attributes:
        optimizer: It.
        name: What it does, a key of `STATES`.
        keys: What the states of its parameters are called.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
        self.optimizer = optimizer
        self.name = optimizer_name(optimizer)
        self.keys = tuple(parameters)
        self._parameters = dict(parameters)
        self._group_of = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        for key, parameter in parameters.items():
            if id(parameter) not in self._group_of:
                raise InputError(
                    f"the optimizer does not have parameter '{key}', which the step updates; give it all parameters "
                    "that require a gradient"
                )
        self._settings: list[UpdateSettings] = []
        self._taken: Any = None
        self._read_settings()

    def current(self, key: str) -> Current:
        """The settings of a parameter's group in the step that runs."""
        settings, group = self._settings, self._group_of[id(self._parameters[key])]
        return lambda: settings[group]

    def begin_step(self, states: Mapping[str, ParameterState]) -> None:
        """Read what schedulers have set since the last step, and states that were loaded."""
        self._read_settings()
        if self.optimizer.state is not self._taken:
            self.take(states)

    def take(self, states: Mapping[str, ParameterState]) -> None:
        """Let the engine's states be those that the optimizer has, and the optimizer have these."""
        for key, state in self._own(states):
            found = self.optimizer.state.get(self._parameters[key], {})
            for name, tensor in state.tensors.items():
                if found.get(name) is not None and found[name] is not tensor:
                    tensor.copy_(found[name])
                    state.updates = 1
            if "step" in found and found["step"] is not state.steps:
                state.steps.fill_(float(found["step"]))
                state.updates = int(state.steps)
        self._taken = self.optimizer.state
        self.give(states)

    def give(self, states: Mapping[str, ParameterState]) -> None:
        """Let the optimizer have the states of the engine, as if it had made the steps."""
        for key, state in self._own(states):
            if not state.tensors or (self.name == "momentum" and not state.updates):
                continue
            kept: dict[str, Any] = dict(state.tensors)
            if self.name != "momentum":
                kept["step"] = state.steps
            self.optimizer.state[self._parameters[key]] = kept

    def end_step(self, states: Mapping[str, ParameterState]) -> None:
        """After a step: schedulers ask whether there was one."""
        if self.name == "momentum" and len(self.optimizer.state) < len(self._parameters):
            self.give(states)
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def _own(self, states: Mapping[str, ParameterState]) -> list[tuple[str, ParameterState]]:
        """The states of its parameters."""
        return [(key, states[key]) for key in self._parameters]

    def _read_settings(self) -> None:
        self._settings[:] = [self._settings_of(group) for group in self.optimizer.param_groups]

    def _settings_of(self, group: Mapping[str, Any]) -> UpdateSettings:
        usual = UpdateSettings()
        return UpdateSettings(
            lr=float(group["lr"]),
            momentum=float(group.get("momentum", usual.momentum)),
            betas=(float(group["betas"][0]), float(group["betas"][1])) if "betas" in group else usual.betas,
            alpha=float(group.get("alpha", usual.alpha)),
            eps=float(group.get("eps", usual.eps)),
            weight_decay=float(group["weight_decay"]),
        )
