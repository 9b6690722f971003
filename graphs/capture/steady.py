"""Whether every step of a model is like the first: what goes from step to step must be in what a program carries.

A program runs the same calls in each step. Parameters and buffers go from one to the next; a counter in an attribute, a
list that grows or a tensor that is no buffer does not. Where the first step has changed something that a model holds,
a second step is recorded, and must come to the same calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from graphs.capture.recorder import Recorder
from graphs.capture.untouched import Holding, held_now, reachable
from graphs.errors import InputError


class Held:
    """What can be reached from some objects, as it was when this was made.

    Args:
        *roots: A model, a loss.
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots
        self._before: list[Holding] = [(item, held_now(item)) for root in roots for item in reachable(root)]

    def changes(self) -> list[str]:
        """Names of what holds something else now, ``"encoder.cache"``; empty where nothing does."""
        return list(dict.fromkeys(self._changes()))

    def _changes(self) -> Iterator[str]:
        names = dict(self._attributes())
        for item, before in self._before:
            now = held_now(item)
            if _are_same(now, before):
                continue
            if isinstance(item, nn.Module):
                yield from self._of_module(item, now, before)
            else:
                yield names.get(id(item), f"a {type(item).__name__}")

    def _attributes(self) -> Iterator[tuple[int, str]]:
        """Each attribute of each module, by its address."""
        for root in self._roots:
            for path, module in root.named_modules() if isinstance(root, nn.Module) else ():
                for key, value in vars(module).items():
                    yield id(value), f"{path}.{key}".lstrip(".")

    def _of_module(self, module: nn.Module, now: Sequence[Any], before: Sequence[Any]) -> Iterator[str]:
        paths = [
            path
            for root in self._roots
            if isinstance(root, nn.Module)
            for path, m in root.named_modules()
            if m is module
        ]
        old = {key: value for key, value in zip(before[::2], before[1::2], strict=True) if isinstance(key, str)}
        for key, value in zip(now[::2], now[1::2], strict=True):
            if isinstance(key, str) and (key not in old or old[key] is not value):
                yield f"{paths[0] if paths else ''}.{key}".lstrip(".")


def check_steady(first: Recorder, second: Recorder, changes: Sequence[str]) -> None:
    """Raise where a second step of the model is not like the first.

    Args:
        first: What recorded the first step, with its calls.
        second: Likewise the second.
        changes: Names of what the first step has changed.

    Raises:
        InputError: They differ.
    """
    if _are_alike(_told(first), _told(second)):
        return
    shown = ", ".join(f"'{name}'" for name in changes[:3])
    raise InputError(
        f"the model changes {shown} in a step, and the next step depends on it, so a placement would repeat the first "
        "one; keep what goes from step to step in a buffer (register_buffer), or, if only the first call differs, call "
        "the model once before"
    )


def _told(recorder: Recorder) -> tuple[Any, ...]:
    """What decides a step: its ops, what they are called with, and which tensors it has from elsewhere."""
    assert recorder.log is not None
    ops = [(op.type, op.tag, op.phase, op.output_shapes) for op in recorder.ops]
    calls = [(call.op, call.function, call.args, call.kwargs) for call in recorder.log.calls]
    return ops, calls, sorted(recorder.log.constants)


def _are_same(now: Sequence[Any], before: Sequence[Any]) -> bool:
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def _are_alike(one: Any, other: Any) -> bool:
    """Equality of nested arguments, where a number that is none equals itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)) and not hasattr(one, "_fields"):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_are_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return one is other or bool(one == other)
