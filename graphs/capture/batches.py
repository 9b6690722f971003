"""Batches: which tensors one holds and by which names, and whether a later batch is of the form of the example.

A step is captured with one example batch. Its tensors are inputs of the step; everything else in it (numbers, flags,
strings, empty caches) decides what the step does, so it is a part of the step, and a later batch must have the same.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from graphs.capture.untouched import reachable
from graphs.errors import InputError

_Opened = tuple[list[tuple[str, Any]], Callable[[Sequence[Any]], Any]]
"""What a container holds, by name, and a function that makes it anew of other contents."""


@dataclass(frozen=True, slots=True)
class BatchForm:
    """What all batches of a step have in common.

    Attributes:
        tensors: The path of each tensor, and the first path of the same tensor: mostly its own.
        fixed: What is no tensor, by path, in a form to compare and to show.
    """

    tensors: Mapping[str, str]
    fixed: Mapping[str, Any]


def split_batch(batch: Any) -> tuple[Any, tuple[Any, ...]]:
    """What the model gets and what only the loss gets."""
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise InputError("the example batch is an empty tuple; give (inputs, *targets)")
        inputs = tuple(batch[0]) if isinstance(batch[0], (tuple, list)) else batch[0]
        return inputs, tuple(batch[1:])
    return (dict(batch) if isinstance(batch, Mapping) else batch), ()


def joined_batch(batch: Any, inputs: Any, targets: tuple[Any, ...]) -> Any:
    """What `split_batch` made of a batch as one again, a tuple where it was a tuple or a list."""
    return (inputs, *targets) if isinstance(batch, (tuple, list)) else inputs


def map_tensors(value: Any, path: str, function: Callable[[str, torch.Tensor], Any]) -> Any:
    """A part of a batch with each tensor replaced; the function is given its path and the tensor.

    Containers are those of PyTorch's pytree (tuples, lists, dicts, what is registered there) and dataclasses. They are
    rebuilt and keep their type, save other mappings, which become dicts.

    Raises:
        InputError: Another object holds tensors.
    """
    if isinstance(value, torch.Tensor):
        return function(path, value)
    opened = _open(value)
    if opened is None:
        _check_leaf(value, path)
        return value
    items, make = opened
    return make([map_tensors(item, f"{path}/{name}", function) for name, item in items])


def batch_form(batch: Any, training: bool) -> BatchForm:
    """The form of a batch; its targets count only in training."""
    tensors, fixed = _contents(batch, training)
    first: dict[int, str] = {}
    return BatchForm(
        {path: first.setdefault(id(tensor), path) for path, tensor in tensors.items()},
        {path: _description(value) for path, value in fixed.items()},
    )


def size_of_batch(batch: Any) -> int:
    """The leading dimension of the first tensor that has one; 0 where there is none."""
    tensors, _ = _contents(batch, training=True)
    return next((int(tensor.shape[0]) for tensor in tensors.values() if tensor.dim() > 0), 0)


def part_of_batch(batch: Any, parts: int) -> Any:
    """The first of some equal parts of a batch: every tensor whose leading dimension is the batch's is cut."""
    size = size_of_batch(batch)

    def cut(_: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[: size // parts] if tensor.dim() > 0 and tensor.shape[0] == size else tensor

    inputs, targets = split_batch(batch)
    made = map_tensors(inputs, "input", cut)
    if not isinstance(batch, (tuple, list)):
        return made
    return (made, *(map_tensors(target, f"target/{i}", cut) for i, target in enumerate(targets)))


def batch_tensors(batch: Any, training: bool, form: BatchForm | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a batch by the keys of the program's inputs: ``"input/0"``, ``"target"``, ...

    Args:
        batch: Of the same form as the example batch of the capture.
        training: Whether the step has targets.
        form: Of the example batch, to be compared; None compares nothing.

    Raises:
        InputError: The batch is of another form.
    """
    tensors, fixed = _contents(batch, training)
    if form is not None:
        _check_form(form, tensors, {path: _description(value) for path, value in fixed.items()})
    return tensors


def _check_form(form: BatchForm, tensors: Mapping[str, torch.Tensor], fixed: Mapping[str, Any]) -> None:
    for path, first in form.tensors.items():
        if path not in tensors:
            raise InputError(f"the batch has no tensor '{path}', which the example batch has")
        if tensors[path] is not tensors[first]:
            raise InputError(
                f"'{path}' and '{first}' of the batch are two tensors but were one in the example batch, so the step "
                "reads only one; capture with an example batch that has two"
            )
    for path in [*tensors, *fixed]:
        if path not in form.tensors and path not in form.fixed:
            raise InputError(f"the batch has '{path}', which the example batch does not have")
    for path, expected in form.fixed.items():
        found = fixed.get(path)
        if found != expected:
            raise InputError(
                f"'{path}' of the batch is {_shown(found)}, but the step was captured with {_shown(expected)}, and "
                "what is no tensor is a part of the step; give it as a tensor, or capture the step with this value"
            )


def _contents(batch: Any, training: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a batch and the rest, by path."""
    inputs, targets = split_batch(batch)
    tensors: dict[str, torch.Tensor] = {}
    fixed: dict[str, Any] = {}
    waiting = [("input", inputs), *([("target", targets)] if training else [])][::-1]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            tensors[path] = value
            continue
        opened = _open(value)
        if opened is None:
            _check_leaf(value, path)
            fixed[path] = value
        else:
            waiting.extend((f"{path}/{name}", item) for name, item in reversed(opened[0]))
    return tensors, fixed


def _open(value: Any) -> _Opened | None:
    """What a container holds; None where it is none."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        kind = type(value)
        return [(str(i), item) for i, item in enumerate(value)], lambda items: tuple.__new__(kind, items)
    if type(value) not in pytree.SUPPORTED_NODES:
        if isinstance(value, (tuple, list)):
            base = list if isinstance(value, list) else tuple
            return [(str(i), item) for i, item in enumerate(value)], base
        if isinstance(value, Mapping):
            keys = list(value)
            return [(str(key), value[key]) for key in keys], lambda items: dict(zip(keys, items, strict=True))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return _open_dataclass(value)
        return None
    items, spec = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
    if not items and not isinstance(value, (tuple, list, Mapping)):
        return None
    names = [str(i) for i in range(len(items))]
    if pytree.SUPPORTED_NODES[type(value)].flatten_with_keys_fn is not None:
        pairs, _ = pytree.tree_flatten_with_path(value, is_leaf=lambda part: part is not value)
        names = [_name(path[0]) for path, _ in pairs]
    return list(zip(names, items, strict=True)), lambda new: pytree.tree_unflatten(new, spec)


def _open_dataclass(value: Any) -> _Opened:
    names = [f.name for f in dataclasses.fields(value) if hasattr(value, f.name)]
    names += [name for name in getattr(value, "__dict__", {}) if name not in names]

    def make(items: Sequence[Any]) -> Any:
        new = copy.copy(value)
        for name, item in zip(names, items, strict=True):
            object.__setattr__(new, name, item)  # also of a frozen one
        return new

    return [(name, getattr(value, name)) for name in names], make


def _name(key: Any) -> str:
    """A step of a path as text: a dict's key, a list's index, an attribute."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _check_leaf(value: Any, path: str) -> None:
    """Refuse what holds data that would be fixed without a word."""
    if isinstance(value, np.ndarray):
        raise InputError(f"'{path}' of the batch is a NumPy array; give it as a tensor, by torch.from_numpy")
    if any(isinstance(held, (torch.Tensor, np.ndarray)) for held in reachable(value)):
        kind = type(value).__name__
        raise InputError(
            f"'{path}' of the batch is an object of class {kind} that holds tensors and cannot be looked into; give "
            f"tensors, tuples, lists, dicts or dataclasses, or register {kind} with torch.utils._pytree"
        )


def _description(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """What is no tensor, in a form that is equal for equal things and does not change with them."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return kind, f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (type(None), bool, int, float, complex, str, bytes, range, slice, enum.Enum, np.generic)):
        return kind, repr(value)
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return kind, repr(value)
    if id(value) in seen:
        return kind, "..."
    seen = (*seen, id(value))
    held: list[Any] = []
    if isinstance(value, Mapping):
        held += [(_description(key, seen), _description(item, seen)) for key, item in value.items()]
    elif isinstance(value, (tuple, list)):
        held += [_description(item, seen) for item in value]
    elif isinstance(value, (set, frozenset)):
        held += sorted(repr(_description(item, seen)) for item in value)
    attributes = getattr(value, "__dict__", None) or {}
    held += [(str(key), _description(item, seen)) for key, item in attributes.items()]
    return kind, tuple(held)


def _shown(description: Any) -> str:
    """A description as a user is to read it."""
    if description is None:
        return "missing"
    kind, value = description
    if isinstance(value, str):
        return value if len(value) <= 60 else value[:57] + "..."
    return f"an object of class {kind.rpartition('.')[2]} with other contents"
