"""Accelerate's own dispatch and hooks on devices that are pretended: every tensor says where it would be.

The hooks move a tensor by giving its copy another tag. An op whose tensors have several tags raises, as it would on
real devices; tensors without dimensions may be anywhere, as on real devices.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any
from unittest import mock

import accelerate.big_modeling
import accelerate.hooks
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary


class OnTwoDevicesError(RuntimeError):
    """An op met tensors of more than one device."""


class _Devices(TorchDispatchMode):
    """Where each tensor is, and that no op reads from two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.where = WeakTensorKeyDictionary()
        self.copy_of = WeakTensorKeyDictionary()  # the copy that a tensor is, or a view of
        self.read = set[int]()  # the copies that an op read
        self.given = WeakTensorKeyDictionary()  # the model's inputs, and copies of them
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.dim() > 0]
        met = {self.where[t] for t in read if t in self.where}
        if len(met) > 1:
            raise OnTwoDevicesError(f"{func} reads tensors on devices {sorted(map(str, met))}")
        copies = [
            self.copy_of[t] for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t in self.copy_of
        ]
        made = func(*args, **kwargs)
        if func.is_view:
            self.copy_of.update({t: copies[0] for t in tree_leaves(made) if copies and isinstance(t, torch.Tensor)})
        else:
            self.read.update(copies)
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and met and tensor not in self.where:
                self.where[tensor] = next(iter(met))
        return made

    def send(self, value: Any, device: Any, non_blocking: bool = False, skip_keys: Any = None) -> Any:
        """In place of `accelerate.utils.send_to_device`."""

        def sent(tensor: torch.Tensor) -> torch.Tensor:
            if self.where.get(tensor) == device:
                return tensor
            with _disable_current_modes():
                made = tensor.clone()
            self.where[made] = device
            if tensor in self.given:
                self.given[made] = True
            elif tensor.is_floating_point():
                self.copy_of[made] = self.sent
                self.sent += 1
            return made

        if isinstance(value, MutableMapping) and not isinstance(value, dict):  # an output of Transformers
            for key, entry in list(value.items()):
                value[key] = self.send(entry, device)
            return value
        return tree_map_only(torch.Tensor, sent, value)

    def find(self, value: Any) -> Any:
        """In place of `accelerate.utils.find_device`."""
        found = [self.where[t] for t in tree_leaves(value) if isinstance(t, torch.Tensor) and t in self.where]
        return found[0] if found else None

    def place(self, module: nn.Module, tensor_name: str, device: Any, *args: Any, **options: Any) -> None:
        """In place of `accelerate.utils.set_module_tensor_to_device`."""
        *path, name = tensor_name.split(".")
        for part in path:
            module = getattr(module, part)
        tensor = module._parameters.get(name)
        if tensor is not None:
            made: torch.Tensor = nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
            module._parameters[name] = made  # type: ignore[assignment]
        else:
            buffer = module._buffers[name]
            assert buffer is not None
            made = module._buffers[name] = buffer.clone()
        self.where[made] = device


def outputs_under(
    model: nn.Module, batch: Mapping[str, Any], device_map: Mapping[str, int | str]
) -> list[torch.Tensor]:
    """What the model returns, run without gradients under Accelerate's hooks; its tensors in a row."""
    return run_under(model, batch, device_map)[0]


def run_under(
    model: nn.Module, batch: Mapping[str, Any], device_map: Mapping[str, int | str]
) -> tuple[list[torch.Tensor], int]:
    """As `outputs_under`, and how many copies the hooks made that an op read, of what the model computes in floats.

    Raises:
        OnTwoDevicesError: The map cannot be run.
    """
    devices = _Devices()
    main = min((d for d in device_map.values() if isinstance(d, int)), default="cpu")  # as `dispatch_model` has it
    with (
        mock.patch.object(accelerate.hooks, "send_to_device", devices.send),
        mock.patch.object(accelerate.hooks, "find_device", devices.find),
        mock.patch.object(accelerate.hooks, "set_module_tensor_to_device", devices.place),
        mock.patch.object(accelerate.big_modeling, "check_cuda_p2p_ib_support", return_value=True),
        torch.no_grad(),
    ):
        dispatched = accelerate.big_modeling.dispatch_model(copy.deepcopy(model).eval(), dict(device_map))
        with devices:
            given = {key: devices.send(value, main) for key, value in batch.items()}
            devices.given.update({tensor: True for tensor in tree_leaves(given) if isinstance(tensor, torch.Tensor)})
            devices.copy_of = WeakTensorKeyDictionary()
            made = dispatched(**given)
    return [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)], len(devices.read)


def outputs_of(model: nn.Module, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """What the plain model returns; its tensors in a row."""
    with torch.no_grad():
        return [t for t in tree_leaves(copy.deepcopy(model).eval()(**batch)) if isinstance(t, torch.Tensor)]
