"""Batches of a pipeline: the forms that they have, and that each is like the one that the stages were traced with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, keystr, tree_flatten_with_path, tree_leaves

from graphs.errors import InputError


def split_batch(example_batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """Positional arguments, keyword arguments and targets of a batch, in the forms that `graphs.capture.capture` takes.

    Raises:
        InputError: There is no tensor in the inputs.
    """
    inputs, targets = example_batch, ()
    if isinstance(example_batch, tuple | list):
        inputs, *rest = example_batch
        targets = tuple(rest)
    args, kwargs = (), {}
    if isinstance(inputs, Mapping):
        kwargs = {name: inputs[name] for name in sorted(inputs)}  # in the same order in every batch
    else:
        args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves((args, kwargs))):
        raise InputError("the batch has no tensor among the inputs; give it as for placement.train")
    return args, kwargs, targets


def check_rows(batch: Any, rows: int) -> None:
    """Raise where a tensor cannot be cut into micro-batches by its first dimension.

    Raises:
        InputError: It names the shape.
    """
    for leaf in tree_leaves(batch):
        if isinstance(leaf, torch.Tensor) and (leaf.dim() == 0 or len(leaf) != rows):
            raise InputError(
                f"a tensor of the batch has shape {list(leaf.shape)}, but the stages are for {rows} samples in the "
                "first dimension of each; pad the batch, or export the stages for another"
            )


@dataclass(frozen=True)
class Form:
    """What batches must have in common with the example, as it is a part of the traced stages.

    Attributes:
        container: What the values are in.
        values: Of a tensor its shape and dtype; what is no tensor itself.
    """

    container: TreeSpec
    values: tuple[Any, ...]

    @classmethod
    def of(cls, batch: Any) -> Form:
        """The form of a batch."""
        leaves, container = tree_flatten_with_path(_parts(batch))
        return cls(container, tuple(map(_value, (leaf for _, leaf in leaves))))

    def check(self, batch: Any) -> None:
        """Raise where a batch has another form.

        Raises:
            InputError: It names what differs.
        """
        leaves, container = tree_flatten_with_path(_parts(batch))
        if container != self.container:
            raise InputError("the batch has other parts than the example batch; give the same, or make a new pipeline")
        for (path, leaf), expected in zip(leaves, self.values, strict=True):
            value = _value(leaf)
            if type(value) is not type(expected) or value != expected:
                raise InputError(
                    f"batch{keystr(path)} is {_say(value)}, but {_say(expected)} in the example batch, which the "
                    "stages were traced with; pad it to that, or make a pipeline for each"
                )


def _parts(batch: Any) -> dict[str, Any]:
    args, kwargs, targets = split_batch(batch)
    return {"inputs": kwargs or args, "targets": targets}


def _value(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf


def _say(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype):
        return f"a tensor {list(value[0])} of {str(value[1]).removeprefix('torch.')}"
    return repr(value)
