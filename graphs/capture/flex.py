"""Flex attention as one op: `torch.nn.attention.flex_attention` with its own changes to scores and masks.

On a GPU it is one kernel forward and one backward, which need a compiler; a capture compiles nothing, and PyTorch has
no backward of it on a CPU. So its parts are not looked into: the op reads queries, keys, values, what its functions
hold and the mask's blocks, and all pairs of a query and a key count, as they do in other attention with a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import flex_attention as module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from graphs.capture.recorder import Recorder, uncompiled
from graphs.errors import InputError


@contextmanager
def flex_attention_as_one_op(recorder: Recorder) -> Iterator[None]:
    """Record each call of flex attention, compiled or not, as one op forward and one backward.

    Raises:
        InputError: Inside, where a step that is to be run again calls it.
    """
    names = ("flex_attention_hop", "_validate_device", "_create_empty_block_mask")
    before = {name: getattr(module, name) for name in (*names, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG")}
    whole: list[torch.Tensor] = []  # the blocks of masks that mask nothing

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, score_mod: Any, block_mask: Any, *rest: Any
    ) -> Any:
        if recorder.log is not None:
            raise InputError(
                "a step with flex_attention cannot be run by a placement, only its graph can be captured; use "
                "torch.nn.functional.scaled_dot_product_attention"
            )
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
        others = recorder.unseen(lambda: _reads(score_mod, query.new_empty(())))
        masks = recorder.unseen(lambda: _reads(block_mask[-1]))
        masks += [t for t in tree_leaves(block_mask) if isinstance(t, torch.Tensor) and all(t is not w for w in whole)]
        return _FlexAttention.apply(recorder, masks, query, key, value, *others)

    def no_mask(query: torch.Tensor, key: torch.Tensor) -> Any:
        with uncompiled(), _disable_current_modes():
            mask = before["_create_empty_block_mask"](torch.empty(1, 1, 1, 1), torch.empty(1, 1, 1, 1))
        whole.extend(t for t in tree_leaves(mask.as_tuple()) if isinstance(t, torch.Tensor))
        return mask

    module.flex_attention_hop = attend  # type: ignore[assignment]
    module._validate_device = lambda query, key, value: None
    module._create_empty_block_mask = no_mask
    module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


class _Inputs(TorchDispatchMode):
    """Notes the tensors that ops read and that no op made."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.read: list[torch.Tensor] = []
        self._known = list(known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op and note what it reads."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and all(value is not t for t in [*self._known, *self.read]):
                self.read.append(value)
        out = func(*args, **(kwargs or {}))
        self._known += [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        return out


class _IndexByTensor(TorchFunctionMode):
    """Indexing by tensors of one number, whose values are not known, is a gather."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function."""
        if func is torch.Tensor.__getitem__:
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            if all(isinstance(place, (torch.Tensor, int)) for place in places):
                return torch.ops.aten.index.Tensor(args[0], [torch.as_tensor(place) for place in places])
        return func(*args, **(kwargs or {}))


def _reads(function: Any, *score: torch.Tensor) -> list[torch.Tensor]:
    """The tensors beside its arguments that a function of one score or one position reads."""
    numbers = (*score, *(torch.zeros((), dtype=torch.int64) for _ in range(4)))  # batch, head, query, key
    with _Inputs(numbers) as inputs, torch.no_grad(), _IndexByTensor():
        function(*numbers)
    return inputs.read


class _FlexAttention(torch.autograd.Function):
    """One call: what it makes is as large as PyTorch's; gradients for queries, keys, values and what scores read."""

    @staticmethod
    def forward(ctx: Any, recorder: Recorder, blocks: Any, query: Any, key: Any, value: Any, *others: Any) -> Any:
        rows = query.shape[:-1]

        def make() -> tuple[torch.Tensor, ...]:
            sums = query.new_empty(rows, dtype=torch.float32)
            return query.new_empty((*rows, value.shape[-1])), sums, torch.empty_like(sums)

        tensors = (query, key, value, *others)
        made = recorder.one_op(torch.ops.higher_order.flex_attention, (*tensors[:3], others, blocks), make)
        out, sums, largest = made
        ctx.recorder, ctx.blocks = recorder, blocks
        ctx.save_for_backward(out, sums, *tensors)
        ctx.mark_non_differentiable(largest)
        ctx.set_materialize_grads(False)
        return out, sums, largest

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        out, sums, query, key, value, *others = ctx.saved_tensors
        gradient = gradients[0] if gradients[0] is not None else torch.zeros_like(out)
        wanted = ctx.needs_input_grad[2:]
        tensors = (query, key, value, *others)

        def make() -> tuple[torch.Tensor, ...]:
            return tuple(torch.empty_like(t) for t, needed in zip(tensors, wanted, strict=True) if needed)

        func = torch.ops.higher_order.flex_attention_backward
        made = iter(ctx.recorder.one_op(func, (query, key, value, out, sums, gradient, others, ctx.blocks), make))
        return None, None, *(next(made) if needed else None for needed in wanted)
