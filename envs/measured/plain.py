"""A model's step as its user runs it without any placement: eager PyTorch, or `torch.compile`, and torch's optimizer.

What a placement gains is what it gains over this, on the same cores: one thread a core for the kernels of one op at a
time. The optimizer is the fused one of `torch.optim` where that is right, as in `envs.measured.updates`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from envs.measured.machine import RealDevice
from envs.measured.updates import has_fused_kernel
from graphs.capture.batches import joined_batch, split_batch
from graphs.capture.own_step import OwnStep, parameters_in
from graphs.capture.state import named_state
from graphs.errors import InputError


def make_plain_step(
    model: nn.Module,
    example_batch: Any,
    loss: Callable[..., torch.Tensor] | None = None,
    *,
    training: bool = True,
    optimizer: str = "adam",
    clip_grad_norm: float | None = None,
    step: OwnStep | None = None,
    is_compiled: bool = False,
    device: str | None = None,
) -> Callable[[], Any]:
    """A function that runs a step of a model and gives back the loss; what the model returns where it is not trained.

    Args:
        model: Whose parameters are updated where they are.
        example_batch: As in `graphs.capture.capture`; every step is given this batch.
        loss: Likewise.
        training: Likewise.
        optimizer: Likewise.
        clip_grad_norm: Likewise.
        step: Likewise; the function then gives back what this one does.
        is_compiled: Let `torch.compile` compile the model and its loss, without changing shapes.
        device: Where to, ``"cuda:0"``; by default the model stays where it is.
    """
    if device is not None:
        model = model.to(device)
        example_batch = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), example_batch)
    inputs, targets = split_batch(example_batch)
    listed, named = (), {}
    if isinstance(inputs, Mapping):
        named = dict(inputs)
    else:
        listed = inputs if isinstance(inputs, tuple) else (inputs,)
    if not training or not any(module.training for module in model.modules()):
        model.train(training)

    if step is not None:
        batch, update = joined_batch(example_batch, inputs, targets), _PlainUpdate(model, optimizer, clip_grad_norm)
        own = torch.compile(step, dynamic=False) if is_compiled else step
        return lambda: own(model, batch, update)

    def forward() -> Any:
        output = model(*listed, **named)
        return output if not training else _loss_of(output, targets, loss)

    run = torch.compile(forward, dynamic=False) if is_compiled else forward
    if not training:

        def infer() -> Any:
            with torch.inference_mode():
                return run()

        return infer
    updates = _optimizers(optimizer, model, loss)
    trained = [tensor for tensor in named_state(model, loss).values() if tensor.requires_grad]

    def train() -> torch.Tensor:
        for update in updates:
            update.zero_grad()
        found = run()
        found.backward()
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, clip_grad_norm)
        for update in updates:
            update.step()
        return found

    return train


def run_pinned(device: RealDevice, work: Callable[[], Any]) -> Any:
    """Call a function in a thread of its own that has the cores of a device, and as many threads for kernels.

    Raises:
        Exception: What the function raised.
    """
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if device.kind == "cpu":
                if hasattr(os, "sched_setaffinity"):
                    os.sched_setaffinity(0, device.cores)
                torch.set_num_threads(len(device.cores))
            found.append(work())
        except BaseException as error:  # the caller raises it
            failed.append(error)

    before = torch.get_num_threads()
    thread = threading.Thread(target=run, name=f"plain on {device.name}", daemon=True)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    if failed:
        raise failed[0]
    return found[0]


def timed(step: Callable[[], Any]) -> float:
    """Seconds that a step takes, until a GPU is done, too."""
    started_s = perf_counter()
    step()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter() - started_s


class _PlainUpdate:
    """What a step of one's own calls, by PyTorch's optimizers: one of each name, for all parameters of the model."""

    def __init__(self, model: nn.Module, optimizer: str, clip_grad_norm: float | None) -> None:
        self._model = model
        self._optimizer = optimizer
        self._clip_grad_norm = clip_grad_norm
        self._made: dict[str, list[torch.optim.Optimizer]] = {}

    @torch.compiler.disable
    def __call__(
        self,
        loss: torch.Tensor,
        parameters: nn.Module | Iterable[torch.Tensor] | None = None,
        optimizer: str | None = None,
        *,
        clip_grad_norm: float | None = None,
    ) -> None:
        """See `graphs.capture.own_step.Update`."""
        name = self._optimizer if optimizer is None else optimizer
        if name not in self._made:
            self._made[name] = _optimizers(name, self._model, None, frozen=True)
        given = self._model if parameters is None else parameters
        leaves = [parameter for parameter in parameters_in(given) if parameter.requires_grad]
        for each in self._made[name]:
            each.zero_grad()
        loss.backward(inputs=leaves)
        clip = self._clip_grad_norm if clip_grad_norm is None else clip_grad_norm
        if clip is not None:
            nn.utils.clip_grad_norm_(leaves, clip)
        for each in self._made[name]:
            each.step()
        torch.autograd.graph.increment_version(leaves)  # which fused optimizers do not


def _loss_of(output: Any, targets: Sequence[Any], loss: Callable[..., torch.Tensor] | None) -> torch.Tensor:
    if loss is not None:
        return loss(output, *targets)
    if isinstance(output, Mapping) and "loss" in output:
        return output["loss"]
    return getattr(output, "loss", output)


def _optimizers(name: str, model: nn.Module, loss: Any, *, frozen: bool = False) -> list[torch.optim.Optimizer]:
    """What updates the parameters that are trained; rows of embeddings with sparse gradients by an optimizer for these.

    Parameters that require no gradient now are among them only if `frozen`.

    Raises:
        InputError: The optimizer is unknown.
    """
    state = named_state(model, loss).items()
    trained = {key: t for key, t in state if t.requires_grad or (frozen and isinstance(t, nn.Parameter))}
    rows = {
        f"{path}.weight" if path else "weight"
        for path, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse
    }
    sparse = [tensor for key, tensor in trained.items() if key in rows]
    dense = [tensor for key, tensor in trained.items() if key not in rows]
    made: list[torch.optim.Optimizer] = []
    if dense:
        fused = all(has_fused_kernel(tensor) for tensor in dense)
        if name in ("adam", "adamw"):
            made.append((torch.optim.Adam if name == "adam" else torch.optim.AdamW)(dense, fused=fused))
        elif name == "rmsprop":
            made.append(torch.optim.RMSprop(dense, foreach=False))
        elif name in ("sgd", "momentum"):
            made.append(torch.optim.SGD(dense, momentum=0.9 if name == "momentum" else 0.0, fused=fused))
        else:
            raise InputError(f"optimizer '{name}' cannot be run")
    if sparse:
        made.append(torch.optim.SparseAdam(sparse) if name == "adam" else torch.optim.SGD(sparse))
    return made
