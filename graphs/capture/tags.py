"""Where an op belongs: the module that is being called, and in the backward the module of the forward op.

Backward ops find their module by number: autograd's nodes carry a sequence number that grows as the forward pass makes
them, so a node belongs to the module that was running when its number was reached.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from graphs.errors import InputError

Tag = tuple[str, int]
"""Module path and the how-manieth call of that module."""


class Tags:
    """Follows the modules of a model while a step runs.

    Attributes:
        tag: Where the next op belongs; None between autograd's nodes, where it sums gradients.
        phase: Part of the step.
    """

    def __init__(self) -> None:
        self.tag: Tag | None = ("", 0)
        self.phase = "forward"
        self._outer: list[Tag | None] = []
        self._calls: dict[str, int] = {}
        self._calls_again: dict[str, int] = {}
        self._boundaries: list[int] = [0]
        self._boundary_tags: list[Tag | None] = [self.tag]

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Follow which module is being called, by hooks that are removed at the end."""
        handles = []
        try:
            for path, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(self._enter(path), prepend=True))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def set(self, tag: Tag | None) -> None:
        """Change where the following ops of the forward pass belong."""
        self.tag = tag
        self._boundaries.append(torch.autograd._get_sequence_nr())
        self._boundary_tags.append(tag)

    def begin_backward(self, loss: torch.Tensor) -> None:
        """Hook every node of autograd's graph, so that its ops get the tag of the forward op that made it.

        Raises:
            InputError: A part of the step is hidden from autograd's graph.
        """
        self.phase = "backward"
        self.tag = None
        self._calls_again = {}
        seen = {loss.grad_fn}
        waiting = [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None:
                continue
            if node.name() == "CheckpointFunctionBackward":
                raise InputError(
                    "a reentrant checkpoint hides its backward from the graph; call checkpoint with use_reentrant=False"
                )
            if isinstance(leaf := getattr(node, "variable", None), torch.Tensor) and not isinstance(leaf, FakeTensor):
                raise InputError(
                    f"the step has a gradient for a tensor of shape {list(leaf.shape)} that is no parameter of the "
                    "model or the loss, so nothing would train it; make it a parameter of the model, pass the module "
                    "that has it as the loss, or detach it"
                )
            last = bisect_right(self._boundaries, node._sequence_nr()) - 1
            node.register_prehook(self._enter_node(self._boundary_tags[last]))
            node.register_hook(self._leave_node)
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    waiting.append(following)

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._outer.append(self.tag)
            calls = self._calls.get(path, 0)
            if self.phase == "forward":
                self._calls[path] = calls + 1
                self.set((path, calls))
            else:
                # A checkpoint computes the call again; the last segment comes first.
                again = self._calls_again.get(path, 0)
                self._calls_again[path] = again + 1
                self.tag = (path, max(calls - 1 - again, 0))

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        outer = self._outer.pop()
        if self.phase == "forward":
            self.set(outer)
        else:
            self.tag = outer

    def _enter_node(self, tag: Tag | None) -> Callable[..., None]:
        def hook(grad_outputs: Any) -> None:
            self.tag = tag

        return hook

    def _leave_node(self, grad_inputs: Any, grad_outputs: Any) -> None:
        self.tag = None
