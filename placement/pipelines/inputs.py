"""What stages read besides the activations of the stage before: the inputs of the step, and values made from them.

PyTorch's pipelines hand a tensor from one stage to the next. An attention mask that all layers read, or rotary angles
that are computed once from positions, would have to skip over stages, which they refuse. But every process has the
whole batch. So

- each stage reads the inputs of the step by itself (`read_inputs`): they come as keyword arguments, cut into
  micro-batches, by their numbers in the flattened batch;
- what follows from inputs and buffers alone is computed again in each stage that reads it (`recompute`). Whatever has
  to do with a parameter or a random number is computed once and crosses.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.distributed.pipelining import Pipe
from torch.utils._pytree import tree_leaves

_CUT = "_pipe_split"
"""What the op that marks the beginning of a stage is called."""


def inputs_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a step by the names under which stages read them."""
    return {f"input_{number}": leaf for number, leaf in enumerate(tree_leaves((args, kwargs)))}


def recompute(traced: fx.GraphModule) -> fx.GraphModule:
    """Compute what follows from inputs and buffers alone in each stage that reads it.

    Args:
        traced: A model in which the beginnings of stages are marked; it is changed and returned.
    """
    members: list[list[fx.Node]] = [[]]
    for node in traced.graph.nodes:
        if _is_cut(node):
            members.append([])
        members[-1].append(node)
    free = _free_nodes(traced)
    there = {node for node in free if node.op != "call_function"}  # inputs and buffers are everywhere
    for mark, *others in members[1:]:
        copies = _Copies(traced.graph, mark, there | set(others))
        for node in others:
            for source in node.all_input_nodes:
                if source in free:
                    node.replace_input_with(source, copies.of(source))
    traced.graph.lint()
    traced.recompile()
    return traced


class _Copies:
    """Copies, at the beginning of a stage, of what it reads from stages before."""

    def __init__(self, graph: fx.Graph, mark: fx.Node, there: set[fx.Node]) -> None:
        self._graph, self._last, self._there = graph, mark, there
        self._known: dict[fx.Node, fx.Node] = {}

    def of(self, node: fx.Node) -> fx.Node:
        """The copy; the node itself where the stage has it."""
        if node in self._there:
            return node
        if node not in self._known:
            sources = {source: self.of(source) for source in node.all_input_nodes}
            with self._graph.inserting_after(self._last):
                made = self._graph.node_copy(node, lambda source: sources[source])
            stack = list(node.meta.get("nn_module_stack", {}).items())
            made.meta["nn_module_stack"] = dict(stack[:1])  # the model's own, not that of a module elsewhere
            self._known[node] = self._last = made
        return self._known[node]


def _is_cut(node: fx.Node) -> bool:
    return node.op == "call_function" and _CUT in str(node.target)


def _free_nodes(traced: fx.GraphModule) -> set[fx.Node]:
    """The nodes that follow from inputs and buffers alone, are no random numbers and are never written to."""
    free: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            free.add(node)
        elif node.op == "get_attr":
            if not isinstance(_attribute(traced, str(node.target)), nn.Parameter):
                free.add(node)
        elif node.op == "call_function" and not _is_cut(node) and _is_pure(node.target):
            free.update([node] if all(source in free for source in node.all_input_nodes) else [])
    for node in traced.graph.nodes:  # what is written to, whatever it is a view of, and all that follows
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None and schema.is_mutable:
            written = [node, *node.all_input_nodes]
            while written:
                one = written.pop()
                if one in free:
                    free.discard(one)
                    written += [*one.all_input_nodes, *one.users]
    return free


def _is_pure(target: Any) -> bool:
    if target is operator.getitem:
        return True
    tags, schema = getattr(target, "tags", None), getattr(target, "_schema", None)
    return (
        tags is not None
        and schema is not None
        and torch.Tag.nondeterministic_seeded not in tags
        and not schema.is_mutable
    )


def _attribute(module: nn.Module, path: str) -> Any:
    holder, _, last = path.rpartition(".")
    return getattr(module.get_submodule(holder), last)


def read_inputs(pipe: Pipe) -> None:
    """Let each stage take the inputs that it reads from keyword arguments, and only activations by position.

    Args:
        pipe: A model in its stages; it is changed.
    """
    graph = pipe.split_gm.graph
    number_of = {node: i for i, node in enumerate(node for node in graph.nodes if node.op == "placeholder")}
    for call in [node for node in graph.nodes if node.op == "call_module"]:
        stage = pipe.split_gm.get_submodule(str(call.target))
        assert isinstance(stage, fx.GraphModule)
        own = [node for node in stage.graph.nodes if node.op == "placeholder"]
        reads: dict[str, str] = {}
        for node, given in zip(own, call.args, strict=True):
            if given in number_of:
                name = f"input_{number_of[given]}"
                reads[f"_{name}"] = name
                setattr(stage, f"_{name}", None)
                with stage.graph.inserting_after(own[-1]):
                    read = stage.graph.create_node("get_attr", f"_{name}")  # no buffer: another one each time
                read.meta.update(node.meta)
                node.replace_all_uses_with(read)
        for node, given in zip(own, call.args, strict=True):
            if given in number_of:
                stage.graph.erase_node(node)
        call.args = tuple(given for given in call.args if given not in number_of)
        stage.graph.set_codegen(fx.graph.CodeGen())  # the first stage had the model's own arguments
        stage.recompile()
        stage.__dict__["forward"] = _reading(stage, stage.forward, reads)


def _reading(stage: nn.Module, forward: Callable[..., Any], reads: dict[str, str]) -> Callable[..., Any]:
    """A stage's forward pass that also takes the inputs of the step, and reads some of them."""

    def forward_with_inputs(*activations: Any, **inputs: Any) -> Any:
        for attribute, name in reads.items():
            setattr(stage, attribute, inputs[name])
        try:
            return forward(*activations)
        finally:
            for attribute in reads:
                setattr(stage, attribute, None)

    return forward_with_inputs
