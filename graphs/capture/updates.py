"""What a step does with gradients: clips them, and lets an optimizer update each parameter, by one fused op."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from graphs.capture.build import OPTIMIZER_STATES, update_bytes
from graphs.capture.recorder import Recorder
from graphs.capture.sparse import is_sparse, stored_bytes
from graphs.capture.tags import Tag, Tags
from graphs.capture.values import RawOp
from graphs.errors import InputError

_SUMS = {"add", "add_", "cat"}
"""Ops by which autograd sums gradients; sparse ones by concatenating their entries."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A parameter that is updated: the op that stands for it, its stand-in and its gradient."""

    op: int
    parameter: torch.Tensor
    gradient: torch.Tensor


class Updates:
    """Records the updates of parameters.

    Args:
        recorder: What was recorded so far; ops are added to it.
        tags: Where its ops belong.
        goes_on: Whether the step may read a parameter after its update, so that the update makes a new content of it;
            optimizer states are then counted as they are met.

    Attributes:
        together: Sets of ops that must share a device: a parameter, its update, and what is done with its gradient.
        count: How many updates there were.
    """

    def __init__(self, recorder: Recorder, tags: Tags, *, goes_on: bool) -> None:
        self.together: list[list[int]] = []
        self.count = 0
        self._recorder = recorder
        self._tags = tags
        self._goes_on = goes_on
        self._times: dict[tuple[int, str], int] = {}
        self._known: set[tuple[int, str]] = set()

    def add(self, trained: Sequence[Trained], optimizer: str, clip_grad_norm: float | None) -> None:
        """Record the updates of parameters from the gradients of one loss; to be called while ops are recorded.

        Args:
            trained: The parameters and their gradients.
            optimizer: A key of `OPTIMIZER_STATES`.
            clip_grad_norm: What the norm of all their gradients is clipped to; None leaves them.

        Raises:
            InputError: A gradient that is to be clipped is sparse.
        """
        self._tags.phase = "update"
        bound = self._recorder.unseen(lambda: [self._sums(each) for each in trained])
        gradients = [each.gradient for each in trained]
        if clip_grad_norm is not None and gradients:
            gradients = self._clipped(trained, bound, clip_grad_norm)

        def update() -> None:
            for each, gradient, ops in zip(trained, gradients, bound, strict=True):
                self.together.append([each.op, self._update(each, gradient, optimizer), *ops])

        self._recorder.unseen(update)

    def _sums(self, trained: Trained) -> list[int]:
        """The adds that accumulate a gradient, which belong to the parameter."""
        recorder, found = self._recorder, list[int]()
        waiting = [value for value, _ in recorder.content(trained.gradient)]
        while waiting:
            op = recorder.values[waiting.pop()].producer
            if recorder.ops[op].tag is None and recorder.ops[op].type in _SUMS:
                recorder.ops[op].tag = recorder.ops[trained.op].tag
                found.append(op)
                waiting.extend(recorder.ops[op].reads)
        return found

    def _clipped(
        self, trained: Sequence[Trained], bound: Sequence[list[int]], clip_grad_norm: float
    ) -> list[torch.Tensor]:
        """The gradients as ``torch.nn.utils.clip_grad_norm_`` leaves them, by the same ops, in memory of their own.

        The ops on a gradient are added to those that are bound to its parameter.
        """
        ops = self._recorder.ops
        for each in trained:
            if is_sparse(each.gradient):
                raise InputError(
                    f"the gradient of '{ops[each.op].name}' is sparse, and PyTorch clips no sparse gradients; leave "
                    "clip_grad_norm out, or make the embedding with sparse=False"
                )
        norms, clipped = [], []
        with torch.no_grad():
            for each, own in zip(trained, bound, strict=True):
                with self._within(ops[each.op].tag, own):
                    norms.append(torch.linalg.vector_norm(each.gradient, 2.0))
            with self._within(("", 0), []):
                total = torch.linalg.vector_norm(torch.stack(norms), 2.0)
                factor = torch.clamp(clip_grad_norm / (total + 1e-6), max=1.0)
            for each, own in zip(trained, bound, strict=True):
                with self._within(ops[each.op].tag, own):
                    # Not in place: two gradients may be the same tensor.
                    clipped.append((each.gradient * factor).to(each.gradient.dtype))
        return clipped

    @contextmanager
    def _within(self, tag: Tag | None, ops: list[int]) -> Iterator[None]:
        """Let what is done belong to a module; its ops are added to `ops`."""
        first = len(self._recorder.ops)
        self._tags.tag = tag
        yield
        self._tags.tag = None
        ops.extend(range(first, len(self._recorder.ops)))

    def _update(self, trained: Trained, gradient: torch.Tensor, optimizer: str) -> int:
        """Record the update of one parameter, which reads the parameter and its gradient; returns its op."""
        recorder, parameter, log = self._recorder, trained.parameter, self._recorder.log
        source = recorder.ops[trained.op]
        assert source.tag is not None
        if is_sparse(gradient):
            accessed = gradient._indices().nbytes + update_bytes(gradient._values().nbytes, optimizer)
        else:
            accessed = update_bytes(parameter.nbytes, optimizer)
        kind = "adam" if optimizer == "adamw" else optimizer
        times = self._times[trained.op, kind] = self._times.get((trained.op, kind), 0) + 1
        op = len(recorder.ops)
        recorder.ops.append(
            RawOp(
                f"{kind}_update",
                source.tag,
                "update",
                name=f"{source.name}/{kind}_update" + (f"_{times}" if times > 1 else ""),
                bytes_accessed=accessed,
                dtype=source.dtype,
                output_shapes=list(source.output_shapes),
            )
        )
        pieces = recorder.content(gradient)
        read = None if log is None else (log.use(recorder.content, parameter), log.use(recorder.content, gradient))
        recorder.read(op, [*recorder.content(parameter), *pieces])
        written = -1
        if self._goes_on:
            states = stored_bytes(parameter) * OPTIMIZER_STATES[optimizer]
            is_first = (trained.op, optimizer) not in self._known
            self._known.add((trained.op, optimizer))
            if is_first and states:
                source.resident_bytes["optimizer"] = source.resident_bytes.get("optimizer", 0) + states
            _, written, _ = recorder.write(op, parameter, depends=False, resident=True)
            torch.autograd.graph.increment_version(parameter)  # so that a backward that needs the old one is refused
        if log is not None and read is not None:
            log.add_update(op, trained.op, optimizer, *read, written)
        self.count += 1
        return op


def check_clip_grad_norm(value: float | None) -> None:
    """Refuse what gradients cannot be clipped to.

    Raises:
        InputError: It is no positive number.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(f"clip_grad_norm is {value!r}; give the largest norm that gradients keep, such as 1.0")
