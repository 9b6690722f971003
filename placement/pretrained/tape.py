"""Writes down the ops of a network, and its backward pass and update, without running anything.

It is for graphs that are made by the thousand, from numbers: FLOPs, bytes and who reads what are those of the usual
kernels; nothing is traced, so that a graph of a thousand ops takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build

_FLOAT_BYTES = 4
_ADAM_TOUCHES = 7
"""Arrays of a parameter's size that an update reads and writes: gradient, parameter, two moments."""


@dataclass(frozen=True)
class Value:
    """What an op makes.

    Attributes:
        op: Its number on the tape.
        shape: Its dimensions, of float32.
    """

    op: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass
class _Node:
    type: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    flops: int
    module: str
    call: int
    weighed: bool  # whether a weight is behind it, so that it has a gradient

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _FLOAT_BYTES


class Tape:
    """Ops in the order in which they are applied.

    Args:
        name: The graph's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[_Node] = []
        self._module, self._call = "", 0

    @contextmanager
    def module(self, name: str, call: int = 0) -> Iterator[None]:
        """What is applied inside belongs to a part of the module that is open, in its given call (a time step)."""
        before = self._module, self._call
        self._module, self._call = (f"{self._module}.{name}" if self._module else name), call
        yield
        self._module, self._call = before

    def feed(self, *shape: int) -> Value:
        """An input of the step."""
        return self._add("input", (), shape, 0, weighed=False)

    def weight(self, *shape: int) -> Value:
        """A parameter; reading it from several ops shares it."""
        return self._add("parameter", (), shape, 0, weighed=True)

    def apply(self, kind: str, inputs: Sequence[Value], shape: Sequence[int], flops: int = 0) -> Value:
        """An op.

        Args:
            kind: Its type; `envs.cost_model.op_class` knows products, convolutions and attention.
            inputs: What it reads.
            shape: Of what it makes.
            flops: Of the forward op. Where it has some, there is a backward op of as many for each input.
        """
        weighed = any(self._nodes[value.op].weighed for value in inputs)
        return self._add(kind, tuple(value.op for value in inputs), tuple(shape), flops, weighed=weighed)

    def linear(self, x: Value, width: int, weight: Value | None = None) -> Value:
        """A product of the last dimension with a weight, its own where none is given."""
        shared = self.weight(x.shape[-1], width) if weight is None else weight
        return self.apply("mm", (x, shared), (*x.shape[:-1], width), 2 * x.size * width)

    def pointwise(self, *inputs: Value, kind: str = "relu") -> Value:
        """An op on elements, of the first input's shape."""
        return self.apply(kind, inputs, inputs[0].shape)

    def add(self, *inputs: Value) -> Value:
        """A sum, whose backward pass costs nothing."""
        return self.apply("add", inputs, inputs[0].shape)

    def concatenate(self, inputs: Sequence[Value]) -> Value:
        """Along the last dimension; one input stays what it is."""
        if len(inputs) == 1:
            return inputs[0]
        return self.apply("cat", inputs, (*inputs[0].shape[:-1], sum(value.shape[-1] for value in inputs)))

    def convolution(
        self, x: Value, channels: int, *, kernel: int = 3, stride: int = 1, depthwise: bool = False
    ) -> Value:
        """A convolution, batch normalisation and activation, of ``[batch, height, width, channels]``."""
        batch, height, width, before = x.shape
        shape = (batch, max(height // stride, 1), max(width // stride, 1), channels)
        fan_in = kernel * kernel * (1 if depthwise else before)
        weight = self.weight(fan_in, channels)
        made = self.apply("convolution", (x, weight), shape, 2 * math.prod(shape) * fan_in)
        return self.pointwise(made, self.weight(channels), kind="batch_norm")

    def graph(self, *, training: bool) -> ComputationGraph:
        """The step: forward, and where it trains the backward pass and Adam's update of every parameter."""
        ops = [self._record(number, node) for number, node in enumerate(self._nodes)]
        readers: list[list[int]] = [[] for _ in ops]
        sizes = [node.bytes for node in self._nodes]
        for number, node in enumerate(self._nodes):
            for source in dict.fromkeys(node.inputs):
                readers[source].append(number)
        pairs: list[tuple[int, int]] = []
        if training:
            pairs = self._differentiate(ops, readers, sizes)
        tensors = [
            TensorRecord(number, sizes[number], readers[number], resident=ops[number].type == "parameter")
            for number in range(len(ops))
            if readers[number]
        ]
        return build(self._name, ops, tensors, colocation=pairs)

    def _add(
        self, kind: str, inputs: tuple[int, ...], shape: tuple[int, ...], flops: int, *, weighed: bool
    ) -> Value:  # fmt: skip
        self._nodes.append(_Node(kind, inputs, shape, flops, self._module, self._call, weighed))
        return Value(len(self._nodes) - 1, shape)

    def _record(self, number: int, node: _Node) -> OpRecord:
        about = OpRecord(f"{node.type}_{number}", node.type, module=node.module, module_call=node.call)
        about.output_shapes = (node.shape,)
        if node.type == "parameter":
            about.resident_bytes = {"parameter": node.bytes}
        elif node.type != "input":
            about.flops = node.flops
            about.bytes_accessed = node.bytes + sum(self._nodes[source].bytes for source in node.inputs)
            if node.type == "embedding":  # reads rows, not the table
                about.bytes_accessed = 2 * node.bytes
        return about

    def _differentiate(
        self, ops: list[OpRecord], readers: list[list[int]], sizes: list[int]
    ) -> list[tuple[int, int]]:  # fmt: skip
        """Append the backward pass and the updates; the pairs of parameter and update, which share a device."""

        def append(record: OpRecord, inputs: Sequence[int], size: int) -> int:
            ops.append(record)
            readers.append([])
            sizes.append(size)
            for source in dict.fromkeys(inputs):
                readers[source].append(len(ops) - 1)
            return len(ops) - 1

        def backward(kind: str, node: _Node, inputs: Sequence[int], size: int, flops: int = 0) -> int:
            touched = size + sum(sizes[source] for source in inputs)
            record = OpRecord(
                f"{kind}_{len(ops)}", kind, phase="backward", module=node.module, module_call=node.call, flops=flops,
                bytes_accessed=touched,
            )  # fmt: skip
            return append(record, inputs, size)

        count = len(self._nodes)
        unread = [not row for row in readers[:count]]
        parts: list[list[int]] = [[] for _ in range(count)]  # contributions to each value's gradient
        pairs: list[tuple[int, int]] = []
        for number in range(count - 1, -1, -1):
            node = self._nodes[number]
            if not node.weighed:
                continue
            if unread[number]:
                gradient = backward("ones_like", node, [number], node.bytes)
            elif not parts[number]:
                continue
            elif len(parts[number]) == 1:
                gradient = parts[number][0]
            else:
                gradient = backward("add", node, parts[number], node.bytes)
            if node.type == "parameter":
                ops[number].resident_bytes = {"parameter": node.bytes, "optimizer": 2 * node.bytes}
                record = OpRecord(
                    f"adam_{len(ops)}", "adam", phase="update", module=node.module, module_call=node.call,
                    bytes_accessed=_ADAM_TOUCHES * node.bytes,
                )  # fmt: skip
                pairs.append((number, append(record, [gradient, number], 0)))
                continue
            for source in dict.fromkeys(node.inputs):
                maker = self._nodes[source]
                if not maker.weighed:
                    continue
                if node.type == "add":
                    parts[source].append(gradient)
                    continue
                others = [other for other in node.inputs if other != source] if node.flops else [source]
                if node.type == "cat":
                    others = []
                kind = "slice" if node.type == "cat" else f"{node.type}_backward"
                parts[source].append(backward(kind, node, [gradient, *others], maker.bytes, node.flops))
        return pairs
