"""How a tensor looks at its memory, and at memory that holds only a slice of it, without gaps."""

from __future__ import annotations

from dataclasses import replace

import torch

from graphs.capture.program import Layout
from graphs.capture.slices import Slice

_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def mapped(layout: Layout, part: Slice | None) -> Layout:
    """The layout that a tensor has in a place that holds only a slice of its storage, one run after the other.

    The tensor must lie within the slice.
    """
    if part is None:
        return layout
    start, run, dims = part
    item = layout.dtype.itemsize
    strides = []
    for size, stride in zip(layout.size, layout.stride, strict=True):
        step = stride * item
        if size <= 1 or step == 0:
            strides.append(1 if size <= 1 else 0)
            continue
        compact, width = step, run
        for outer, count in dims:
            if step >= outer:
                compact = width * (step // outer)
            width *= count
        strides.append(compact // item)
    return replace(layout, stride=tuple(strides), offset=(layout.offset * item - start) // item)


def look(memory: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A tensor that looks at the memory of a flat one."""
    return as_seen(memory.as_strided(layout.size, layout.stride, layout.offset), layout)


def as_seen(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """What is stored as a layout has it: conjugated, negated, or as it is."""
    if layout.conjugated:
        tensor = tensor.conj()
    return torch._neg_view(tensor) if layout.negated else tensor


def flat(dtype: torch.dtype, count_bytes: int) -> Layout:
    """The layout of so many bytes, one element after the other."""
    return Layout(dtype, (count_bytes // dtype.itemsize,), (1,), 0)


def is_dense(layout: Layout, count_bytes: int) -> bool:
    """Whether a tensor covers its storage and each element once."""
    extent = 1 + sum((n - 1) * s for n, s in zip(layout.size, layout.stride, strict=True))
    count = 1
    for n in layout.size:
        count *= n
    if layout.conjugated or layout.negated:
        return False
    return layout.offset == 0 and count == extent and count * layout.dtype.itemsize == count_bytes


def unit_of(part: Slice | None, item: int) -> int:
    """Bytes of the largest unit, no larger than an element, of which a slice consists."""
    numbers = () if part is None else (part[0], part[1], *(stride for stride, _ in part[2]))
    while any(n % item for n in numbers):
        item //= 2
    return item


def elements(memory: torch.Tensor, part: Slice | None, unit: int) -> torch.Tensor:
    """What a slice covers of a storage, in units of some bytes, in the order of a compact copy."""
    units = memory.view(_BY_SIZE[unit])
    if part is None:
        return units
    offset, run, dims = part
    size = [*(n for _, n in reversed(dims)), run // unit]
    stride = [*(s // unit for s, _ in reversed(dims)), 1]
    return units.as_strided(size, stride, offset // unit)
