"""What it takes to run a captured step: the calls behind the ops of its graph, and the tensors that they pass on.

A *value* is one content of a storage, or of a slice of it (see `graphs.capture.recorder`). A call names every tensor
that it is given by the values that make it up and by how it looks at their storage, so views need no call: whoever has
the values can look at them in the same way. Nothing here runs anything; `envs.measured.engine` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from graphs.capture.batches import BatchForm
from graphs.capture.slices import Slice
from graphs.computation_graph import ComputationGraph

READ, SHAPE, WRITE = "read", "shape", "write"
"""What a call does with a tensor that it is given: reads it, looks at its shape alone, or writes it in place."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor looks at its storage.

    Attributes:
        dtype: What it takes the bytes for.
        size: Its shape.
        stride: In elements.
        offset: Of its first element, in elements.
        conjugated: It is the complex conjugate of what is stored, as ``x.conj()`` is without a copy.
        negated: It is the negative of what is stored, as ``x.conj().imag`` is.
    """

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    conjugated: bool = False
    negated: bool = False

    @staticmethod
    def of(tensor: torch.Tensor) -> Layout:
        """The layout of a tensor, fake or real."""
        size, stride, offset = tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        return Layout(tensor.dtype, size, stride, offset, tensor.is_conj(), tensor.is_neg())


@dataclass(frozen=True, slots=True)
class TensorUse:
    """A tensor that a call is given.

    Attributes:
        pieces: The values that make it up, each with the slice of it that is read (None for all of it); empty where
            the tensor has no content yet.
        layout: How it looks at the storage of all these values.
        storage_bytes: Size of that storage.
        role: `READ`, `SHAPE` or `WRITE`; a tensor that is written has pieces if its old content is read as well.
        written: The new value that a `WRITE` makes; -1 otherwise.
        storage: A number for the storage, to tell whether two values share one.
    """

    pieces: tuple[tuple[int, Slice | None], ...]
    layout: Layout
    storage_bytes: int
    role: str = READ
    written: int = -1
    storage: int = -1


@dataclass(frozen=True, slots=True)
class SparseUse:
    """A sparse tensor of coordinates that a call is given: its indices and values."""

    indices: TensorUse
    values: TensorUse
    size: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that a call makes: where in what it returns (a path of positions), its value and its layout."""

    path: tuple[int, ...]
    value: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Call:
    """One ATen op as it was called.

    Attributes:
        op: Its position in the graph.
        function: What to call: an ATen overload, or a function of this package where PyTorch cannot trace one.
        args: Its arguments, with a `TensorUse` or a `SparseUse` for each tensor, also in lists.
        kwargs: Likewise.
        made: The tensors that it makes.
        after: Ops that must have ended before, though it reads nothing of theirs.
    """

    op: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: tuple[Made, ...]
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """The optimizer's update of one parameter, which is written in place.

    Attributes:
        op: Its position in the graph.
        parameter: The op that stands for the parameter.
        optimizer: A key of `graphs.capture.build.OPTIMIZER_STATES`.
        content: The parameter as the step has left it; a `WRITE` where the step goes on and may read the new content.
        gradient: What it reads beside the parameter.
    """

    op: int
    parameter: int
    optimizer: str
    content: TensorUse
    gradient: TensorUse | SparseUse


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that exists before the step.

    Attributes:
        op: The op that stands for it.
        value: Its content at the start of the step.
        key: The name of a parameter or buffer of the model or the loss (see `graphs.capture.state`), or the path of an
            input in the batch (``"input/0"``, ``"target/0"``); for a constant, the op's name.
        kind: ``"input"``, ``"parameter"``, ``"buffer"`` or ``"constant"``.
        layout: Its layout.
        storage_bytes: Size of its storage.
        tensor: Its content where only the program knows it: a constant's, on the CPU.
        final: What its storage holds after the step (a buffer that was written), to be put back into it.
    """

    op: int
    value: int
    key: str
    kind: str
    layout: Layout
    storage_bytes: int
    tensor: torch.Tensor | None = None
    final: TensorUse | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A captured step that can be run.

    Attributes:
        graph: Its graph, the same as `graphs.capture.capture` gives.
        calls: In program order.
        updates: In program order; they come after all calls, save in a step of one's own.
        sources: Parameters, buffers, inputs and constants.
        value_op: For each value the op that makes it, by its position in the graph.
        value_bytes: For each value its size.
        value_part: For each value the slice of its storage that it is; None for all of it.
        loss: The loss; None where the step has none.
        output: What the model returned, with a `TensorUse` for each tensor.
        optimizer: A key of `graphs.capture.build.OPTIMIZER_STATES`.
        training: Whether the step updates the parameters.
        batch: What every batch must have in common with the example.
    """

    graph: ComputationGraph
    calls: tuple[Call, ...]
    updates: tuple[Update, ...]
    sources: tuple[Source, ...]
    value_op: tuple[int, ...]
    value_bytes: tuple[int, ...]
    value_part: tuple[Slice | None, ...]
    loss: TensorUse | None
    output: Any = field(repr=False)
    optimizer: str
    training: bool
    batch: BatchForm

    def source(self, op: int) -> Source:
        """The source that an op stands for."""
        return next(s for s in self.sources if s.op == op)


def uses(value: Any) -> list[TensorUse]:
    """All `TensorUse` in arguments, in order; of a sparse tensor its indices and values."""
    if isinstance(value, TensorUse):
        return [value]
    if isinstance(value, SparseUse):
        return [value.indices, value.values]
    if isinstance(value, dict):
        return [use for item in value.values() for use in uses(item)]
    if isinstance(value, (list, tuple)):
        return [use for item in value for use in uses(item)]
    return []


def sparse_bag_values(
    grad_output: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor,
    mode: int,
    per_sample_weights: torch.Tensor | None,
) -> torch.Tensor:
    """The values of the sparse gradient of a bag of embeddings: for each index the gradient of the bag that it is in.

    What `graphs.capture.sparse.sparse_bag_gradient` stands for; ``mode`` is 0 for sums, 1 for means.
    """
    positions = torch.arange(indices.numel(), device=indices.device)
    bags = torch.searchsorted(offsets.to(positions.dtype), positions, right=True) - 1
    values = grad_output.index_select(0, bags)
    if mode == 1:
        values = values / torch.bincount(bags, minlength=len(grad_output))[bags].unsqueeze(1)
    return values if per_sample_weights is None else values * per_sample_weights.unsqueeze(1)


def tensors_in(values: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors in nested arguments, sparse ones whole."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            found += tensors_in(list(value.values()))
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found
