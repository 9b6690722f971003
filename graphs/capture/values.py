"""What a recorder keeps: ops as recorded, values, and what each storage holds.

A *value* is one content of a storage. Views need no record: they share the storage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graphs.capture.slices import Slice
from graphs.capture.tags import Tag
from graphs.computation_graph import Shape


@dataclass(slots=True)
class RawOp:
    """One op as recorded; `tag` is None for what autograd does between its nodes: summing gradients."""

    type: str
    tag: Tag | None
    phase: str
    name: str = ""
    flops: int = 0
    bytes_accessed: int = 0
    dtype: str = "float32"
    batch: int = 0
    output_shapes: list[Shape] = field(default_factory=list)
    resident_bytes: dict[str, int] = field(default_factory=dict)
    reads: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Value:
    """One content of a storage (or of a slice of it), and who reads all or which part of it.

    `from_data` is False for parameters, buffers and what is computed from them alone. `part` is the slice of its
    storage that it is, None for all of it.
    """

    producer: int
    bytes: int
    from_data: bool
    resident: bool = False
    part: Slice | None = None
    whole_readers: list[int] = field(default_factory=list)
    slice_readers: dict[Slice, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Storage:
    """What a storage holds now: a value of the whole, and newer values of disjoint slices."""

    storage: Any  # held, so that no other storage gets the same address
    bytes: int
    base: int | None
    home: int | None = None
    overlays: dict[Slice, int] = field(default_factory=dict)
    overlay_bytes: int = 0
