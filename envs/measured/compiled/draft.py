"""The graph of ops that are to be compiled together, made one op after another.

What the ops read from outside is an input of the graph: tensors in places, and the model's own, whose memory never
moves. Storages that ops write in place are written there, too; a storage that is written must be seen by one input
alone, since a compiler takes its inputs to be different memory.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from envs.measured.compiled.views import AS_IT_IS, Look, aten, find_look
from envs.measured.ops import Parts
from envs.measured.plan import Plan
from graphs.capture.program import Layout, TensorUse, uses

Layouts = Callable[[int], Layout]
"""How the tensor in a place looks at its memory."""

_NOT_KNOWN_BEFORE = (
    torch.Tag.nondeterministic_seeded,
    torch.Tag.dynamic_output_shape,
    torch.Tag.data_dependent_output,
)
_LITERALS = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)

_HEAVY = {
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten.convolution_backward,
    aten.mkldnn_rnn_layer,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
}
"""What a compiler calls as it is."""


class DoesNotFitError(Exception):
    """An op cannot be compiled with those before it, or not at all."""


@dataclass(frozen=True)
class Input:
    """What a graph is given.

    Attributes:
        place: Of the tensor; -1 where it is one of the model, which does not move.
        tensor: That one.
        layout: Of either.
    """

    place: int
    tensor: torch.Tensor | None
    layout: Layout

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same tensor."""
        if self.tensor is None:
            return ("place", self.place)
        return ("tensor", self.tensor.untyped_storage().data_ptr(), self.layout)


@dataclass(frozen=True)
class _Read:
    """An argument: a tensor from a place, or one of the model's, and how it is looked at."""

    place: int
    tensor: torch.Tensor | None = None
    look: Look = AS_IT_IS


@dataclass(frozen=True)
class _Taken:
    """An argument that is written in place: the new place, and the old content that its memory has."""

    new: int
    old: int
    read: _Read


@dataclass(frozen=True)
class _New:
    """An argument in new memory: of a place, or of none, where only its shape counts."""

    place: int
    layout: Layout


@dataclass
class Draft:
    """A graph that is being made.

    Args:
        plan: What runs.
        layouts: Of the places.
        device: Where it runs, as PyTorch knows it.

    Attributes:
        graph: The graph so far, without its outputs.
        inputs: In order.
        ops: The ops that are in it.
        env: By place, what it holds within the graph.
        taken: By new place, the place of a tensor from outside that it goes on in.
        fused: How many of the ops are more than a call as it is.
    """

    plan: Plan
    layouts: Layouts
    device: torch.device
    graph: fx.Graph = field(default_factory=fx.Graph)
    inputs: list[Input] = field(default_factory=list)
    ops: list[int] = field(default_factory=list)
    env: dict[int, fx.Node] = field(default_factory=dict)
    taken: dict[int, int] = field(default_factory=dict)
    fused: int = 0
    _last_input: fx.Node | None = None
    _nodes: dict[tuple[object, ...], fx.Node] = field(default_factory=dict)
    _fresh: set[int] = field(default_factory=set)
    _seen_by: dict[object, set[object]] = field(default_factory=lambda: defaultdict(set))
    _written: set[object] = field(default_factory=set)

    def add(self, op: int, parts: Parts) -> None:
        """Add an op.

        Raises:
            DoesNotFitError: It cannot be here; the graph is then as it was.
        """
        call = parts.call
        if not _is_known_before(call):
            raise DoesNotFitError
        args = [self._argument(value) for value in parts.args]
        kwargs = {key: self._argument(value) for key, value in parts.kwargs.items()}
        self._check_memory([*args, *kwargs.values()])
        node = self.graph.call_function(
            call.function, tuple(map(self._emit, args)), {key: self._emit(value) for key, value in kwargs.items()}
        )
        for path, place, _ in parts.stores:
            made = node
            for position in path:
                made = self.graph.call_function(operator.getitem, (made, position))
            self.env[place] = made
        self.ops.append(op)
        self.fused += getattr(call.function, "overloadpacket", None) not in _HEAVY

    def _argument(self, value: Any) -> Any:
        """What an argument is; nothing is added.

        Raises:
            DoesNotFitError: It is of a kind that a graph does not know.
        """
        marked: tuple[str, Any] = getattr(value, "source", ("", None))
        kind, what = marked
        if kind == "place":
            return _Read(what)
        if kind == "view":
            return _Read(what[0], None, self._look(self.layouts(what[0]), what[1]))
        if kind == "shape":
            return _New(-1, what)
        if kind == "fresh":
            self._look(self.layouts(what[0]), what[1])
            return _New(*what)
        if kind == "take":
            new, old, view = what
            read = self._argument(view)
            if not isinstance(read, _Read) or (read.look.ops and old in self.env and old not in self._fresh):
                raise DoesNotFitError
            return _Taken(new, old, read)
        if kind == "list" or isinstance(value, (list, tuple)):
            return [self._argument(each) for each in (what if kind == "list" else value)]
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            return _Read(-1, value)
        if value is None or isinstance(value, _LITERALS):
            return value
        raise DoesNotFitError

    @staticmethod
    def _look(have: Layout, wanted: Layout) -> Look:
        look = find_look(have, wanted)
        if look is None:
            raise DoesNotFitError
        return look

    def _check_memory(self, args: list[Any]) -> None:
        """Note who sees which memory.

        Raises:
            DoesNotFitError: Memory that is written would be seen by more than one input.
        """
        seen: dict[object, set[object]] = defaultdict(set)
        written: set[object] = set()
        for read, writes in _reads(args):
            if read.place in self.env:
                continue
            given = self._input(read)
            memory = self._memory(given)
            seen[memory].add(given.key)
            if writes:
                written.add(memory)
        for memory, keys in seen.items():
            if (memory in written or memory in self._written) and len(keys | self._seen_by[memory]) > 1:
                raise DoesNotFitError
        for memory, keys in seen.items():
            self._seen_by[memory] |= keys
        self._written |= written

    def _memory(self, given: Input) -> object:
        if given.tensor is None:
            return self.plan.memory[given.place]
        return "tensor", given.tensor.untyped_storage().data_ptr()

    def _input(self, read: _Read) -> Input:
        if read.tensor is not None:
            return Input(-1, read.tensor, Layout.of(read.tensor))
        return Input(read.place, None, self.layouts(read.place))

    def _emit(self, value: Any) -> Any:
        """An argument as the graph has it."""
        if isinstance(value, _Read):
            return self._looked(self._base(value), value.look.ops)
        if isinstance(value, _Taken):
            base = self._base(value.read)
            if value.old in self.taken:
                self.taken[value.new] = self.taken[value.old]
            elif value.old not in self.env:
                self.taken[value.new] = value.old
            if value.old in self._fresh:
                self._fresh.add(value.new)
            if value.read.tensor is None:
                self.env[value.new] = base
            return self._looked(base, value.read.look.to_write)
        if isinstance(value, _New):
            return self._new(value)
        if isinstance(value, list):
            return [self._emit(each) for each in value]
        return value

    def _base(self, read: _Read) -> fx.Node:
        if read.place in self.env:
            return self.env[read.place]
        given = self._input(read)
        if given.key not in self._nodes:
            with self.graph.inserting_after(self._last_input):  # None is the beginning
                self._last_input = self.graph.placeholder(f"given_{len(self.inputs)}")
            self._nodes[given.key] = self._last_input
            self.inputs.append(given)
        return self._nodes[given.key]

    def _looked(self, node: fx.Node, ops: tuple[Any, ...]) -> fx.Node:
        for function, rest in ops:
            node = self.graph.call_function(function, (node, *rest))
        return node

    def _new(self, new: _New) -> fx.Node:
        layout = new.layout
        kwargs: dict[str, Any] = {"dtype": layout.dtype, "device": self.device}
        if new.place < 0:
            return self.graph.call_function(
                aten.empty_strided.default, (list(layout.size), list(layout.stride)), kwargs
            )
        have = self.layouts(new.place)
        base = self.graph.call_function(aten.empty.memory_format, (list(have.size),), kwargs)
        self.env[new.place] = base
        self._fresh.add(new.place)
        return self._looked(base, self._look(have, layout).to_write)


def _reads(args: list[Any]) -> list[tuple[_Read, bool]]:
    """The tensors of arguments, and whether each is written."""
    found: list[tuple[_Read, bool]] = []
    for value in args:
        if isinstance(value, _Read):
            found.append((value, False))
        elif isinstance(value, _Taken):
            found.append((value.read, True))
        elif isinstance(value, list):
            found += _reads(value)
    return found


def _is_known_before(call: Any) -> bool:
    """Whether a compiler may have an op: one of ATen's own, of dense real tensors, that draws no random numbers."""
    function = call.function
    if not isinstance(function, torch._ops.OpOverload) or function.namespace != "aten":
        return False
    if any(tag in function.tags for tag in _NOT_KNOWN_BEFORE) and not _draws_nothing(call):
        return False
    layouts = [use.layout for use in uses((call.args, call.kwargs))] + [made.layout for made in call.made]
    return not any(layout.dtype.is_complex or layout.negated for layout in layouts) and all(
        0 not in layout.size for layout in layouts
    )


def _draws_nothing(call: Any) -> bool:
    """Whether an op that draws random numbers is told to drop nothing."""
    names = [argument.name for argument in call.function._schema.arguments]
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    defaults = {argument.name: argument.default_value for argument in call.function._schema.arguments}
    for name in ("dropout_p", "dropout"):
        if name in defaults:
            value = given.get(name, defaults[name])
            return not isinstance(value, TensorUse) and value == 0.0
    return False
