"""A look at a tensor's memory as a chain of the views that a compiler understands.

Captured steps say by size, stride and offset how a tensor is looked at. A compiler that is told so must have the tensor
in memory in just this way; told of reshapes, permutations and slices it can compute through them instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from graphs.capture.program import Layout

aten = torch.ops.aten

ViewOp = tuple[Callable[..., torch.Tensor], tuple[object, ...]]
"""An ATen overload, and its arguments after the tensor."""


@dataclass(frozen=True)
class Look:
    """How a tensor is had from another one.

    Attributes:
        ops: Views, the first of which is given the tensor; empty where it is the tensor itself.
    """

    ops: tuple[ViewOp, ...]

    @property
    def to_write(self) -> tuple[ViewOp, ...]:
        """The same where something is written through it: no reshape may copy."""
        return tuple((aten.view.default if op is aten.reshape.default else op, rest) for op, rest in self.ops)


AS_IT_IS = Look(())
"""The tensor itself."""


def find_look(have: Layout, wanted: Layout) -> Look | None:
    """How a tensor of one layout is had from a tensor of another on the same storage; None where it is not known.

    Only tensors that cover their memory once, without gaps, can be looked at in other ways.
    """
    if have == wanted:
        return AS_IT_IS
    if have.dtype != wanted.dtype or 0 in have.size or 0 in wanted.size:
        return None
    order = memory_order(have)
    offset = wanted.offset - have.offset
    if order is None or offset < 0:
        return None
    count = math.prod(have.size)
    if offset + sum((n - 1) * s for n, s in zip(wanted.size, wanted.stride, strict=True)) >= count:
        return None
    digits = _digits(count, wanted, offset)
    if digits is None:
        strided = (list(wanted.size), list(wanted.stride), wanted.offset)
        return Look(((aten.as_strided.default, strided),)) if have.offset == 0 else None
    return _chain(have, wanted, order, *digits)


def memory_order(layout: Layout) -> list[int] | None:
    """The dimensions from the outermost in memory to the innermost; None where the tensor has gaps or overlaps."""
    order = sorted(range(len(layout.size)), key=lambda d: (-layout.stride[d], -layout.size[d], d))
    expected = 1
    for d in reversed(order):
        if layout.size[d] == 1:
            continue
        if layout.stride[d] != expected:
            return None
        expected *= layout.size[d]
    return order


def _digits(count: int, wanted: Layout, offset: int) -> tuple[list[int], list[int], list[tuple[int, int]]] | None:
    """See memory as numbers of mixed radix, one digit for each dimension that is wanted.

    Returns:
        The wanted dimensions from the outermost on; the radices, one more than these where something is left within
        the innermost; and for each radix the first digit and how many. None where it cannot be seen so.
    """
    dims = [d for d in range(len(wanted.size)) if wanted.size[d] > 1 and wanted.stride[d] > 0]
    if any(stride < 0 for stride in wanted.stride):
        return None
    dims.sort(key=lambda d: -wanted.stride[d])
    left = count
    radices: list[int] = []
    spans: list[tuple[int, int]] = []
    for d in dims:
        size, stride = wanted.size[d], wanted.stride[d]
        if left % stride:
            return None
        radix = left // stride
        first = offset // stride % radix
        if first + size > radix:
            return None
        radices.append(radix)
        spans.append((first, size))
        left = stride
    if left > 1 or not dims:
        radices.append(left)
        spans.append((offset % left, 1))
    return dims, radices, spans


def _chain(
    have: Layout,
    wanted: Layout,
    order: list[int],
    dims: list[int],
    radices: list[int],
    spans: list[tuple[int, int]],
) -> Look:
    ops: list[ViewOp] = []
    size = list(have.size)
    if order != list(range(len(order))):
        ops.append((aten.permute.default, (order,)))
        size = [size[d] for d in order]
    if size != radices:
        ops.append((aten.reshape.default, (radices,)))
        size = list(radices)
    for position, (first, count) in enumerate(spans):
        if count < size[position]:
            ops.append((aten.slice.Tensor, (position, first, first + count)))
            size[position] = count
    back = sorted(range(len(dims)), key=dims.__getitem__)
    if len(radices) > len(dims):
        back.append(len(dims))
    if back != list(range(len(back))):
        ops.append((aten.permute.default, (back,)))
        size = [size[p] for p in back]
    narrow = [n if stride > 0 or n == 1 else 1 for n, stride in zip(wanted.size, wanted.stride, strict=True)]
    if size != narrow:
        ops.append((aten.reshape.default, (narrow,)))
    if narrow != list(wanted.size):
        ops.append((aten.expand.default, (list(wanted.size),)))
    return Look(tuple(ops))
