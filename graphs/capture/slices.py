"""Parts of a storage: which bytes a view covers, and whether two views cover different ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

Slice = tuple[int, int, tuple[tuple[int, int], ...]]
"""``(offset, run, dims)``: runs of ``run`` bytes, the first at byte ``offset``, repeated ``size`` times at a distance
of ``stride`` bytes for each ``(stride, size)`` of ``dims``, smallest stride first. Views that differ only in the order
of their dimensions, or in how they are split, are the same slice."""

_MOST_CELLS = 1 << 20
"""Above this many cells two slices are not compared exactly but taken to overlap."""


def slice_of(tensor: torch.Tensor) -> Slice | None:
    """The slice of its storage that a view covers; None where it covers all of it (or more, as sliding windows do)."""
    itemsize = tensor.itemsize
    whole = tensor.untyped_storage().nbytes()
    sizes = tensor.shape
    strides = tensor.stride()
    if tensor.numel() * itemsize >= whole and 0 not in strides:
        return None
    dims = sorted((s * itemsize, n) for n, s in zip(sizes, strides, strict=True) if n != 1 and s != 0)
    run = itemsize
    merged: list[tuple[int, int]] = []
    for stride, size in dims:
        if not merged and stride == run:
            run *= size
        elif merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1] = (merged[-1][0], merged[-1][1] * size)
        else:
            merged.append((stride, size))
    if run * math.prod(n for _, n in merged) >= whole:
        return None
    return int(tensor.storage_offset()) * itemsize, run, tuple(merged)


def slice_bytes(part: Slice) -> int:
    """Bytes that a slice covers."""
    return part[1] * math.prod(size for _, size in part[2])


def disjoint(parts: Sequence[Slice], whole_bytes: int) -> bool:
    """True where no byte of a storage of `whole_bytes` bytes is in two of the slices (nor twice in one)."""
    if sum(map(slice_bytes, parts)) > whole_bytes or any(map(_overlaps_itself, parts)):
        return False
    if all(not dims for _, _, dims in parts):
        ordered = sorted(parts)
        return all(a[0] + a[1] <= b[0] for a, b in itertools.pairwise(ordered))
    unit = math.gcd(*(math.gcd(offset, run, *(stride for stride, _ in dims)) for offset, run, dims in parts))
    cells = -(-whole_bytes // unit)
    if cells > _MOST_CELLS:
        return False
    seen = np.zeros(cells, dtype=np.bool_)
    for offset, run, dims in parts:
        index = offset // unit + np.arange(run // unit)
        for stride, size in dims:
            index = np.add.outer(np.arange(size) * (stride // unit), index).ravel()
        if seen[index].any():
            return False
        seen[index] = True
    return True


def _overlaps_itself(part: Slice) -> bool:
    """True unless each dimension steps over all that the smaller ones cover (sliding windows do not)."""
    extent = part[1]
    for stride, size in part[2]:
        if stride < extent:
            return True
        extent += stride * (size - 1)
    return False
