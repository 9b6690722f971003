"""A model cut into the stages of ``stages.json``, by PyTorch's own tracing (``torch.distributed.pipelining``).

A stage begins right before the first of its modules is called; what the model itself does between two modules goes with
the one before. The parameters of the stages are those of the model, so an optimizer or a checkpoint of it goes on
serving.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.pipelining import Pipe, SplitPoint
from torch.distributed.pipelining import pipeline as trace_pipeline
from torch.utils._pytree import tree_leaves, tree_map_only

from graphs.errors import InputError
from placement.exports.stages import Stages


def split_batch(example_batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """Positional arguments, keyword arguments and targets of a batch, in the forms that `graphs.capture.capture` takes.

    Raises:
        InputError: There is no tensor in the inputs, or more than one target.
    """
    inputs, targets = example_batch, ()
    if isinstance(example_batch, tuple | list):
        inputs, *rest = example_batch
        targets = tuple(rest)
    if len(targets) > 1:
        raise InputError(f"the batch has {len(targets)} targets; PyTorch's pipelines take one tensor, so join them")
    args, kwargs = (), {}
    if isinstance(inputs, Mapping):
        kwargs = dict(inputs)
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


def cut(
    model: nn.Module, stages: Stages, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Pipe, dict[str, tuple[int, ...]]]:
    """Trace a model in its stages.

    Args:
        model: It is left as it is.
        stages: What `placement.exports.stages.read_stages` reads.
        args: Positional arguments of one step, all micro-batches in one.
        kwargs: Keyword arguments likewise.

    Returns:
        The stages, with the model's parameters; and of each parameter that several stages use these stages, by its
        name.

    Raises:
        InputError: A module of the stages is not in the model, or PyTorch cannot trace or cut the model there.
    """
    known = dict(model.named_modules())
    for number, stage in enumerate(stages.stages):
        missing = [path for path in stage.modules if path not in known]
        if missing:
            raise InputError(f"stages[{number}].modules has '{missing[0]}', which the model has not; export them again")
    first = [stage.modules[0] for stage in stages.stages[1:]]
    rows = stages.batch // stages.micro_batches
    of_one: Any = tree_map_only(torch.Tensor, lambda tensor: tensor[:rows], (args, kwargs))
    with _forward_restored(known[path] for path in first), _quiet():
        try:
            split_at = dict.fromkeys(first, SplitPoint.BEGINNING)
            pipe = trace_pipeline(model, of_one[0], of_one[1], split_spec=split_at)
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise InputError(
                f"PyTorch cannot trace {type(model).__name__} in stages: {reason}; cut it elsewhere, or make its "
                "forward traceable by torch.export"
            ) from error
    if pipe.num_stages != len(stages.stages):
        raise InputError(
            f"{type(model).__name__} falls into {pipe.num_stages} stages where {len(stages.stages)} are asked for: a "
            "stage's first module is not called once in each step, or not in the order of the stages"
        )
    return pipe, _join_parameters(model, pipe)


def _join_parameters(model: nn.Module, pipe: Pipe) -> dict[str, tuple[int, ...]]:
    """Give the stages the model's own parameters; return the stages of each that several of them use, by its name.

    Tracing gives each stage a copy of a parameter that it shares with others. With the model's own in its place,
    stages of one process add their gradients to the same ``.grad``.

    Raises:
        InputError: A stage has a parameter that is not the model's.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    users: dict[str, list[int]] = {}
    for number in range(pipe.num_stages):
        module = pipe.get_stage_module(number)
        for name, parameter in list(module.named_parameters()):
            own = known.get(name)
            if own is None or own.shape != parameter.shape or own.dtype != parameter.dtype:
                raise InputError(f"parameter '{name}' of stage {number} is not the model's own after tracing; untie it")
            if own is not parameter:
                holder, _, last = name.rpartition(".")
                setattr(module.get_submodule(holder), last, own)
            users.setdefault(first_name[id(own)], []).append(number)
    distinct = {name: tuple(dict.fromkeys(numbers)) for name, numbers in users.items()}
    return {name: numbers for name, numbers in distinct.items() if len(numbers) > 1}


@contextlib.contextmanager
def _forward_restored(modules: Iterator[nn.Module]) -> Iterator[None]:
    """Take back what PyTorch puts into the modules that stages begin with."""
    before = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        yield
    finally:
        for module, forward in before:
            module.__dict__.pop("_orig_forward", None)
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing logs its progress as warnings and information."""
    loggers = [
        logging.getLogger("torch.distributed.pipelining"),
        logging.getLogger("torch.export"),
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
