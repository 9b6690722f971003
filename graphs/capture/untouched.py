"""Leaves no trace of a capture: what a model, its loss and its batch hold is put back as it was, at every depth.

A step that runs on fake tensors may leave them anywhere: in a cache that the first call fills, in hooks that it
installs, in an attribute of an object that a module holds. So everything that can be reached is noted before (what each
dict, list, set and object holds, not the content of tensors, which fake tensors never touch), and where something has
changed it is put back afterwards. A copy of the model would need its memory again, and many models cannot be copied.
"""

from __future__ import annotations

import functools
import logging
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import nn

_Undo = Callable[[], Any]

Holding = tuple[Any, list[Any]]
"""An object, and what it holds."""

_LEAVES = (
    *(
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        type,
        range,
        slice,
        types.ModuleType,
        types.BuiltinFunctionType,
    ),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, logging.Logger, logging.Handler),
)
"""What holds nothing that a step could change, or what is not the model's own."""

_NOT_THE_MODELS = ("torch._", "torch.fx", "torch.utils._", "threading", "multiprocessing", "concurrent", "weakref")
"""Objects of these packages (a compiler's tables, locks, workers) are left alone, unless they are modules."""


@contextmanager
def left_as_it_was(*roots: Any) -> Iterator[None]:
    """Put back what can be reached from some objects, and the state of all random generators, however the block ends.

    Args:
        *roots: A model, a loss, a batch.
    """
    undo = [*_generators(), *_snapshot(roots)]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()


def _generators() -> list[_Undo]:
    """The global random generators: of PyTorch on each device in use, of NumPy, of Python."""
    undo: list[_Undo] = [
        functools.partial(torch.set_rng_state, torch.get_rng_state()),
        functools.partial(np.random.set_state, np.random.get_state()),  # noqa: NPY002 (a model may use it)
        functools.partial(random.setstate, random.getstate()),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        undo.append(functools.partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return undo


def reachable(root: Any) -> Iterator[Any]:
    """All objects that can be reached from one, itself included, save plain values and what is of PyTorch's inside."""
    seen: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _LEAVES) or id(item) in seen:
            continue
        seen[id(item)] = item
        yield item
        waiting.extend(_look(item, []))


def held_now(item: Any) -> list[Any]:
    """What an object holds: values of a list, keys and values of a dict or of an object's attributes, in turn."""
    return _look(item, [])


def _snapshot(roots: tuple[Any, ...]) -> list[_Undo]:
    """Note what can be reached; one function to put it back for each thing that can change."""
    seen: dict[int, Any] = {}  # by address; holds the objects, so that no other gets the same address
    undo: list[_Undo] = []
    waiting: list[Any] = list(roots)
    while waiting:
        item = waiting.pop()
        if isinstance(item, _LEAVES) or id(item) in seen:
            continue
        seen[id(item)] = item
        waiting.extend(_look(item, undo))
        if isinstance(item, nn.Module):
            for kind in type(item).__mro__:
                if id(kind) not in seen and not kind.__module__.startswith(("torch.", "builtins", "typing")):
                    seen[id(kind)] = kind
                    waiting.extend(_look_at_class(kind, undo))
    return undo


def _look(item: Any, undo: list[_Undo]) -> list[Any]:
    """Note one object; returns what it holds."""
    held: list[Any] = []
    if isinstance(item, dict):
        held += _look_at_dict(item, undo)
    elif isinstance(item, list):
        content = list.copy(item)
        undo.append(functools.partial(_put_back_list, item, content))
        held += content
    elif isinstance(item, (tuple, frozenset)):
        held += item
    elif isinstance(item, set):
        members = set.copy(item)
        undo.append(functools.partial(_put_back_set, item, members))
        held += members
    elif isinstance(item, deque):
        queue = list(item)
        undo.append(functools.partial(_put_back_deque, item, queue))
        held += queue
    elif isinstance(item, torch.Tensor):
        return _look_at_tensor(item, undo)
    elif isinstance(item, torch.Generator):
        undo.append(functools.partial(item.set_state, item.get_state()))
        return []
    elif isinstance(item, np.ndarray):
        if item.flags.writeable:
            undo.append(functools.partial(np.copyto, item, item.copy()))
        return []
    elif isinstance(item, random.Random):
        undo.append(functools.partial(item.setstate, item.getstate()))
        return []
    elif isinstance(item, np.random.Generator):
        return _look_at_numpy_generator(item.bit_generator, undo)
    elif isinstance(item, np.random.RandomState):
        undo.append(functools.partial(item.set_state, item.get_state()))
        return []
    elif isinstance(item, types.MethodType):
        return [item.__self__, item.__func__]
    elif isinstance(item, functools.partial):
        held += [item.func, item.args, item.keywords]
    elif isinstance(item, types.FunctionType):
        held += _look_at_function(item, undo)
    elif not isinstance(item, nn.Module) and str(type(item).__module__).startswith(_NOT_THE_MODELS):
        return []
    return held + _look_at_attributes(item, undo)


def _look_at_dict(item: dict[Any, Any], undo: list[_Undo]) -> list[Any]:
    kind = OrderedDict if isinstance(item, OrderedDict) else dict
    pairs = list(kind.items(item))
    undo.append(functools.partial(_put_back_dict, item, pairs, kind))
    return [part for pair in pairs for part in pair]


def _look_at_attributes(item: Any, undo: list[_Undo]) -> list[Any]:
    """The attributes of an object, in its dictionary and in slots."""
    held: list[Any] = []
    try:
        attributes = object.__getattribute__(item, "__dict__")
    except AttributeError:
        attributes = None
    if isinstance(attributes, dict):
        held += _look_at_dict(attributes, undo)
    slots: dict[Any, tuple[bool, Any]] = {}
    for member in _slots_of(type(item)):
        try:
            slots[member] = True, member.__get__(item)
        except AttributeError:
            slots[member] = False, None
    if slots:
        undo.append(functools.partial(_put_back_slots, item, slots))
        held += [value for _, value in slots.values()]
    return held


def _slots_of(kind: type) -> tuple[types.MemberDescriptorType, ...]:
    """The slots of a class and of those that it is made of."""
    if kind in _without_slots:
        return ()
    found = tuple(
        member
        for part in kind.__mro__
        if part.__module__ != "builtins" and "__slots__" in vars(part)
        for member in vars(part).values()
        if isinstance(member, types.MemberDescriptorType)
    )
    if not found:
        _without_slots.add(kind)
    return found


_without_slots: WeakSet[type] = WeakSet()
"""Classes that have been looked at: nearly all, thousands of times."""


def _look_at_tensor(item: torch.Tensor, undo: list[_Undo]) -> list[Any]:
    """A tensor's gradient, flag and Python attributes."""
    gradient = item.grad if item.is_leaf else None
    undo.append(functools.partial(_put_back_tensor, item, item.requires_grad, gradient))
    hooks = item._backward_hooks
    return [gradient, hooks, *_look_at_attributes(item, undo)]


def _look_at_numpy_generator(bits: Any, undo: list[_Undo]) -> list[Any]:
    undo.append(functools.partial(setattr, bits, "state", bits.state))
    return []


def _look_at_function(item: types.FunctionType, undo: list[_Undo]) -> list[Any]:
    """What a function remembers: the variables that it closes over, its defaults."""
    held: list[Any] = [item.__defaults__, item.__kwdefaults__]
    for cell in item.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not bound yet
            continue
        undo.append(functools.partial(_put_back_cell, cell, content))
        held.append(content)
    return held


def _look_at_class(kind: type, undo: list[_Undo]) -> list[Any]:
    """The attributes of a module's class, for a cache or a counter that all of its modules share."""
    before = dict(vars(kind))
    undo.append(functools.partial(_put_back_class, kind, before))
    return [value for value in before.values() if isinstance(value, (dict, list, set, deque, torch.Tensor))]


def _same(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def _put_back_dict(item: dict[Any, Any], before: list[tuple[Any, Any]], kind: type[dict[Any, Any]]) -> None:
    now = list(kind.items(item))
    if not _same([part for pair in now for part in pair], [part for pair in before for part in pair]):
        kind.clear(item)
        for key, value in before:
            kind.__setitem__(item, key, value)


def _put_back_list(item: list[Any], before: list[Any]) -> None:
    if not _same(list.copy(item), before):
        list.__setitem__(item, slice(None), before)


def _put_back_set(item: set[Any], before: set[Any]) -> None:
    if set.copy(item) != before:
        set.clear(item)
        set.update(item, before)


def _put_back_deque(item: deque[Any], before: list[Any]) -> None:
    if not _same(list(item), before):
        deque.clear(item)
        deque.extend(item, before)


def _put_back_slots(item: Any, before: Mapping[Any, tuple[bool, Any]]) -> None:
    for member, (was_set, value) in before.items():
        try:
            now, is_set = member.__get__(item), True
        except AttributeError:
            now, is_set = None, False
        if was_set and (not is_set or now is not value):
            member.__set__(item, value)
        elif is_set and not was_set:
            member.__delete__(item)


def _put_back_tensor(item: torch.Tensor, requires_grad: bool, gradient: torch.Tensor | None) -> None:
    if not item.is_leaf:
        return
    if item.requires_grad != requires_grad:
        item.requires_grad_(requires_grad)
    if item.grad is not gradient:
        item.grad = gradient


def _put_back_cell(cell: types.CellType, before: Any) -> None:
    try:
        same = cell.cell_contents is before
    except ValueError:
        same = False
    if not same:
        cell.cell_contents = before


def _put_back_class(kind: type, before: Mapping[str, Any]) -> None:
    now = dict(vars(kind))
    for key in now.keys() - before.keys():
        type.__delattr__(kind, key)
    for key, value in before.items():
        if key not in now or now[key] is not value:
            type.__setattr__(kind, key, value)
