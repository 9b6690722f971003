"""The arguments of an op by the names that its schema gives them, however it was called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch


class Arguments(Mapping[str, Any]):
    """What an op was called with, by name; what was left out is missing.

    Args:
        func: An overload of an op, or an operator of higher order (flex attention).
        args: Its positional arguments.
        kwargs: The others.

    >>> import torch
    >>> Arguments(torch.ops.aten.mm.default, ["a"], {"mat2": "b"})["mat2"]
    'b'
    """

    def __init__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._given = {**dict(zip(_names(func), args, strict=False)), **kwargs}

    def __getitem__(self, name: str) -> Any:
        """The argument of this name."""
        return self._given[name]

    def __iter__(self) -> Iterator[str]:
        """The names of what was given."""
        return iter(self._given)

    def __len__(self) -> int:
        """How many were given."""
        return len(self._given)

    def tensor(self, *names: str) -> torch.Tensor | None:
        """The first of these arguments that is there and is a tensor."""
        for name in names:
            if isinstance(self._given.get(name), torch.Tensor):
                return self._given[name]
        return None


def op_type(func: Any) -> str:
    """The type of an op: its ATen name without overload, ``aten.add.Tensor`` being ``add``."""
    packet = getattr(func, "_overloadpacket", func)
    return str(packet).removeprefix("aten.")


@functools.cache
def _names(func: Any) -> tuple[str, ...]:
    schema = getattr(func, "_schema", None)
    if schema is not None:
        return tuple(argument.name for argument in schema.arguments)
    return tuple(inspect.signature(func.__call__).parameters)
