"""A model cut into the stages of ``stages.json``, by PyTorch's own tracing (``torch.distributed.pipelining``).

A stage begins right before the first of its modules is called; what the model itself does between two modules goes with
the one before. The parameters and buffers of the stages are those of the model, so an optimizer or a checkpoint of it
goes on serving. Inputs of the step that later stages read, and what follows from them, do not cross
(`placement.pipelines.inputs`).
"""

from __future__ import annotations

import contextlib
import logging
import operator
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.distributed.pipelining import Pipe, SplitPoint
from torch.distributed.pipelining import pipeline as trace_pipeline
from torch.distributed.pipelining._IR import annotate_split_points
from torch.utils._pytree import TreeSpec, tree_leaves, tree_map_only, tree_unflatten

from graphs.errors import InputError
from placement.exports.stages import Stages
from placement.pipelines.inputs import read_inputs, recompute

_CALL = re.compile(r"@\d+(?=\.|$)")
"""What PyTorch's tracing adds to the path of a module that is called again."""


class Cut(NamedTuple):
    """A model in its stages.

    Attributes:
        pipe: The stages, with the model's parameters.
        users: Of each parameter that several stages use these stages, by its name.
        output: What the last stage returns, as the model returns it.
    """

    pipe: Pipe
    users: dict[str, tuple[int, ...]]
    output: Output


class Output(NamedTuple):
    """How what a model returns is made of what its last stage returns.

    Attributes:
        leaves: Of each value in what the model returns its place in the last stage's tuple, None where it returns no
            tuple; or in a list the value itself, where it is no tensor.
        form: What they are in: a tensor, tuple, dict, or another container that PyTorch knows.
    """

    leaves: tuple[int | list[Any] | None, ...]
    form: TreeSpec

    def of(self, given: Any) -> Any:
        """What the model returns, of what the last stage does."""
        made = [leaf[0] if isinstance(leaf, list) else given if leaf is None else given[leaf] for leaf in self.leaves]
        return tree_unflatten(made, self.form)


def cut(model: nn.Module, stages: Stages, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cut:
    """Trace a model in its stages.

    Args:
        model: It is left as it is.
        stages: What `placement.exports.stages.read_stages` reads.
        args: Positional arguments of one step, all micro-batches in one.
        kwargs: Keyword arguments likewise.

    Raises:
        InputError: A module of the stages is not in the model, or PyTorch cannot trace or cut the model there.
    """
    known = dict(model.named_modules())
    for path, module in known.items():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            what = f"module '{path}'" if path else "the model"
            raise InputError(f"{what} is compiled by torch.compile, but stages are traced; give it as it was before")
    for number, stage in enumerate(stages.stages):
        missing = [path for path in stage.modules if path not in known]
        if missing:
            raise InputError(f"stages[{number}].modules has '{missing[0]}', which the model has not; export them again")
    first = [stage.modules[0] for stage in stages.stages[1:]]
    rows = stages.batch // stages.micro_batches
    of_one: Any = tree_map_only(torch.Tensor, lambda tensor: tensor[:rows], (args, kwargs))
    forms: list[TreeSpec] = []

    def kept(traced: fx.GraphModule) -> fx.GraphModule:
        forms.append(traced.graph._codegen.pytree_info.out_spec)  # type: ignore[attr-defined]
        return recompute(traced)

    with _forward_restored(known[path] for path in first), _quiet():
        try:
            annotate_split_points(model, dict.fromkeys(first, SplitPoint.BEGINNING))
            pipe = trace_pipeline(model, of_one[0], of_one[1], split_policy=kept)
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            if "nonexistent attribute submod" in reason:  # what PyTorch makes of a context inside of forward
                reason = (
                    "its forward switches autocast or gradients by itself, so put torch.autocast around the pipeline"
                )
            raise InputError(
                f"PyTorch cannot trace {type(model).__name__} in stages: {reason}; cut it elsewhere, or make its "
                "forward traceable by torch.export"
            ) from error
    if pipe.num_stages != len(stages.stages):
        raise InputError(
            f"{type(model).__name__} falls into {pipe.num_stages} stages where {len(stages.stages)} are asked for: a "
            "stage's first module is not called once in each step, or not in the order of the stages"
        )
    _check_chain(model, pipe, stages)
    read_inputs(pipe)
    return Cut(pipe, _join_parameters(model, pipe), _output(model, pipe, forms[0]))


def _calls(pipe: Pipe) -> list[fx.Node]:
    """The calls of the stages."""
    return [node for node in pipe.split_gm.graph.nodes if node.op == "call_module"]


def _maker(node: fx.Node) -> tuple[fx.Node, int | None]:
    """The stage that makes a value, and its place in what that returns; None where it is all of it."""
    if node.target is operator.getitem:
        made, place = node.args
        assert isinstance(made, fx.Node)
        assert isinstance(place, int)
        return made, place
    return node, None


def _check_chain(model: nn.Module, pipe: Pipe, stages: Stages) -> None:
    """Raise where a stage reads what another than the one before makes.

    Raises:
        InputError: It names the stages and their first modules.
    """
    calls = _calls(pipe)
    for number, call in enumerate(calls):
        for given in call.all_input_nodes:
            maker, _ = _maker(given)
            if maker.op == "call_module" and calls.index(maker) != number - 1:
                raise InputError(
                    f"stage {number} of {type(model).__name__}, from '{stages.stages[number].modules[0]}' on, reads "
                    f"what stage {calls.index(maker)} makes, and PyTorch's pipelines only pass on from one stage to "
                    "the next; cut it elsewhere"
                )


def _output(model: nn.Module, pipe: Pipe, form: TreeSpec) -> Output:
    """How what the model returns is made of what the last stage does.

    Raises:
        InputError: Another stage makes a part of it.
    """
    last = _calls(pipe)[-1]
    (node,) = [node for node in pipe.split_gm.graph.nodes if node.op == "output"]
    leaves: list[int | list[Any] | None] = []
    for leaf in tree_leaves(node.args):
        if not isinstance(leaf, fx.Node):
            leaves.append([leaf])
            continue
        maker, place = _maker(leaf)
        if maker is not last:
            raise InputError(
                f"{type(model).__name__} returns a value that its last stage does not make, and only the last one has "
                "the loss; return what the loss needs alone"
            )
        leaves.append(place)
    return Output(tuple(leaves), form)


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
            own = known.get(_CALL.sub("", name))
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
    """Tracing logs its progress as warnings and information, and warns of what PyTorch itself does."""
    loggers = [
        logging.getLogger("torch.distributed.pipelining"),
        logging.getLogger("torch.export"),
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
