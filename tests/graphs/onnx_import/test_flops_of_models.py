"""Whole models, each at several sizes: FLOPs, shapes and parameters against formulas worked by hand.

What a formula counts is the mathematics of the model, in the dimensions that it was made of; the model is written as
exporters write it, with shapes that it computes itself, views, and transposed weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphs.onnx_import.importer import load_onnx_file


@dataclass
class Writer:
    """Writes a model, one operator a call."""

    inputs: dict[str, tuple[list[Any], int]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def input(self, name: str, *shape: Any, kind: int = TensorProto.FLOAT) -> str:
        self.inputs[name] = (list(shape), kind)
        return name

    def weight(self, *shape: int, dtype: Any = np.float32) -> str:
        return self.constant(np.zeros(shape, dtype))

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def save(self, path: Path) -> str:
        inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in self.inputs.items()]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.outputs]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.nodes, "model", inputs, outputs, constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return str(path)

    def reshape(self, x: str, *dims: int | tuple[str, int]) -> str:
        """Reshape to sizes of which some are read from tensors, as exporters write it."""
        parts = []
        for dim in dims:
            if isinstance(dim, tuple):
                picked = self.op("Gather", self.op("Shape", dim[0]), self.constant(dim[1]), axis=0)
                parts.append(self.op("Unsqueeze", picked, self.constant([0])))
            else:
                parts.append(self.constant([dim]))
        return self.op("Reshape", x, self.op("Concat", *parts, axis=0))

    def linear(self, x: str, width: int, out: int) -> str:
        """A weight that is stored transposed."""
        turned = self.op("Transpose", self.weight(out, width), perm=[1, 0])
        return self.op("Add", self.op("MatMul", x, turned), self.weight(out))


@dataclass
class Made:
    """A model, the sizes to import it with, its FLOPs, and its parameters (None: not checked)."""

    model: Writer
    sizes: dict[str, int]
    flops: int
    parameters: int | None = None


Random = Callable[[int, int], int]


def perceptron(r: Random) -> Made:
    w, widths, batch = Writer(), [r(1, 40) for _ in range(4)], r(1, 9)
    x = w.input("x", "batch", widths[0])
    for a, b in itertools.pairwise(widths):
        x = w.op("Relu", w.linear(x, a, b))
    w.outputs = [x]
    products = sum(a * b for a, b in itertools.pairwise(widths))
    return Made(w, {"batch": batch}, 2 * batch * products, products + sum(widths[1:]))


def convolutions(r: Random) -> Made:
    """A stem, a depthwise and a pointwise convolution, pooling, a classifier."""
    w, batch, side, c, d = Writer(), r(1, 4), 8 * r(2, 5), 4 * r(1, 5), r(1, 20)
    x = w.input("x", "n", 3, "side", "side")
    x = w.op("Relu", w.op("Conv", x, w.weight(c, 3, 3, 3), w.weight(c), strides=[2, 2], pads=[1, 1, 1, 1]))
    x = w.op("Conv", x, w.weight(c, 1, 5, 5), group=c, pads=[2, 2, 2, 2])
    x = w.op("MaxPool", w.op("Conv", x, w.weight(d, c, 1, 1)), kernel_shape=[2, 2], strides=[2, 2])
    x = w.reshape(w.op("GlobalAveragePool", x), ("x", 0), -1)
    w.outputs = [w.op("Gemm", x, w.weight(10, d), w.weight(10), transB=1)]
    half = (side // 2) ** 2
    flops = 2 * batch * (c * half * 27 + c * half * 25 + d * half * c + 10 * d)
    return Made(w, {"n": batch, "side": side}, flops, c * 27 + c + c * 25 + d * c + 10 * d + 10)


def unet(r: Random) -> Made:
    """Down by a strided convolution, up by a transposed one, joined with what was before."""
    w, batch, side, c = Writer(), r(1, 4), 2 * r(3, 9), r(1, 9)
    x = w.input("x", "n", c, side, side)
    down = w.op("Conv", x, w.weight(2 * c, c, 2, 2), strides=[2, 2])
    up = w.op("ConvTranspose", down, w.weight(2 * c, c, 2, 2), strides=[2, 2])
    w.outputs = [w.op("Conv", w.op("Concat", up, x, axis=1), w.weight(1, 2 * c, 1, 1))]
    flops = 2 * batch * (2 * c * (side // 2) ** 2 * 4 * c + 2 * c * (side // 2) ** 2 * 4 * c + side**2 * 2 * c)
    return Made(w, {"n": batch}, flops, 8 * c * c + 8 * c * c + 2 * c)


def encoder(r: Random) -> Made:
    """A transformer's layer on tokens, its heads split and joined by shapes that are read in the graph."""
    w, batch, length, heads, d = Writer(), r(1, 4), r(2, 12), r(1, 4), 4 * r(1, 4)
    width, table = heads * d, r(10, 50)
    ids = w.input("ids", "batch", "length", kind=TensorProto.INT64)
    x = w.op("Gather", w.weight(table, width), ids)
    parts = []
    for _ in range(3):
        part = w.reshape(w.linear(x, width, width), ("ids", 0), ("ids", 1), heads, d)
        parts.append(w.op("Transpose", part, perm=[0, 2, 1, 3]))
    scores = w.op("MatMul", parts[0], w.op("Transpose", parts[1], perm=[0, 1, 3, 2]))
    mixed = w.op("MatMul", w.op("Softmax", w.op("Div", scores, w.constant(np.float32(d**0.5)))), parts[2])
    mixed = w.reshape(w.op("Transpose", mixed, perm=[0, 2, 1, 3]), ("ids", 0), ("ids", 1), -1)
    x = w.op("Add", w.linear(mixed, width, width), x)
    w.outputs = [w.linear(w.op("Relu", w.linear(x, width, 4 * width)), 4 * width, width)]
    tokens = batch * length
    flops = 2 * tokens * (4 * width**2 + 8 * width**2) + 2 * 2 * batch * heads * length**2 * d
    parameters = table * width + 12 * width**2 + 4 * width + 5 * width
    return Made(w, {"batch": batch, "length": length}, flops, parameters)


def decoder_step(r: Random) -> Made:
    """One token of a decoder with its cache, whose length is an expression."""
    w, batch, past, heads, d = Writer(), r(1, 4), r(1, 30), r(1, 4), 4 * r(1, 4)
    width = heads * d
    x = w.input("x", "batch", 1, width)
    keys = w.input("keys", "batch", heads, "past", d)
    values = w.input("values", "batch", heads, "past", d)
    mask = w.input("mask", "batch", 1, 1, "past + 1")
    split = [w.op("Transpose", w.reshape(w.linear(x, width, width), 0, 1, heads, d), perm=[0, 2, 1, 3]) for _ in "qkv"]
    keys = w.op("Concat", keys, split[1], axis=2)
    values = w.op("Concat", values, split[2], axis=2)
    scores = w.op("Add", w.op("MatMul", split[0], w.op("Transpose", keys, perm=[0, 1, 3, 2])), mask)
    out = w.op("MatMul", w.op("Softmax", scores), values)
    w.outputs = [w.linear(w.reshape(w.op("Transpose", out, perm=[0, 2, 1, 3]), 0, 1, -1), width, width), keys, values]
    flops = 2 * batch * 4 * width**2 + 2 * 2 * batch * heads * (past + 1) * d
    return Made(w, {"batch": batch, "past": past}, flops, 4 * width**2 + 4 * width)


def recurrent(r: Random) -> Made:
    w, batch, steps, a, h, k = Writer(), r(1, 5), r(1, 9), r(1, 12), r(1, 12), r(1, 3)
    x = w.input("x", "steps", "batch", a)
    both, *_ = w.op("LSTM", x, w.weight(2, 4 * h, a), w.weight(2, 4 * h, h), outputs=3, hidden_size=h)
    w.nodes[-1].attribute.append(helper.make_attribute("direction", "bidirectional"))
    x = w.reshape(w.op("Transpose", both, perm=[0, 2, 1, 3]), 0, 0, -1)
    one, _ = w.op("GRU", x, w.weight(1, 3 * k, 2 * h), w.weight(1, 3 * k, k), outputs=2, hidden_size=k)
    w.outputs = [one]
    flops = 2 * steps * batch * (2 * 4 * h * (a + h) + 3 * k * (2 * h + k))
    return Made(w, {"steps": steps, "batch": batch}, flops, 2 * 4 * h * (a + h) + 3 * k * (2 * h + k))


def graph_convolution(r: Random) -> Made:
    """Messages over a dense adjacency, by Einsum, and a gathered readout."""
    w, nodes, a, b = Writer(), r(2, 30), r(1, 20), r(1, 20)
    adjacency, x = w.input("adjacency", "n", "n"), w.input("x", "n", a)
    x = w.op("Einsum", adjacency, x, equation="ij,jd->id")
    x = w.op("Einsum", x, w.weight(a, b), equation="id,de->ie")
    w.outputs = [w.op("ReduceMean", x, axes=[0])]
    return Made(w, {"n": nodes}, 2 * nodes * nodes * a + 2 * nodes * a * b, a * b)


def quantized(r: Random) -> Made:
    """Quantized at run time, as ONNX Runtime's dynamic quantization writes it."""
    w, batch, a, b = Writer(), r(1, 9), r(1, 40), r(1, 40)
    x = w.input("x", "batch", a)
    q, scale, zero = w.op("DynamicQuantizeLinear", x, outputs=3)
    y = w.op("MatMulInteger", q, w.weight(a, b, dtype=np.int8), zero, w.constant(np.int8(0)))
    y = w.op("Cast", y, to=TensorProto.FLOAT)
    w.outputs = [w.op("Mul", y, w.op("Mul", scale, w.constant(np.float32(1))))]
    return Made(w, {"batch": batch}, 2 * batch * a * b, None)


def mixture(r: Random) -> Made:
    """Every expert on all rows, weighted by a gate: batched products."""
    w, batch, a, b, experts = Writer(), r(1, 9), r(1, 20), r(1, 20), r(2, 6)
    x = w.input("x", "batch", a)
    gate = w.op("Softmax", w.op("MatMul", x, w.weight(a, experts)))
    out = w.op("MatMul", w.op("Unsqueeze", x, w.constant([0])), w.weight(experts, a, b))
    gate = w.op("Unsqueeze", w.op("Transpose", gate, perm=[1, 0]), w.constant([2]))
    w.outputs = [w.op("ReduceSum", w.op("Mul", out, gate), w.constant([0]), keepdims=0)]
    return Made(w, {"batch": batch}, 2 * batch * a * experts * (1 + b), a * experts * (1 + b))


def tiled(r: Random) -> Made:
    """Windows of an image as rows, by Split, Reshape and Transpose, whose sizes the graph works out."""
    w, batch, side, patch, d = Writer(), r(1, 4), r(2, 5), r(1, 4), r(1, 16)
    x = w.input("x", "n", 3, side * patch, side * patch)
    x = w.reshape(x, ("x", 0), 3, side, patch, side, patch)
    x = w.reshape(w.op("Transpose", x, perm=[0, 2, 4, 1, 3, 5]), ("x", 0), side * side, -1)
    a, b = w.op("Split", x, outputs=2, axis=2) if (3 * patch * patch) % 2 == 0 else (x, x)
    width = 3 * patch * patch // (2 if a != b else 1)
    w.outputs = [w.op("Add", w.linear(a, width, d), w.linear(b, width, d))]
    return Made(w, {"n": batch}, 2 * 2 * batch * side * side * width * d, 2 * (width * d + d))


MODELS: Sequence[Callable[[Random], Made]] = (
    *(perceptron, convolutions, unet, encoder, decoder_step, recurrent, graph_convolution, quantized, mixture, tiled),
)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_flops_are_those_of_the_mathematics(tmp_path: Path, make: Callable[[Random], Made], seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = make(lambda low, high: int(rng.integers(low, high)))
    graph = load_onnx_file(made.model.save(tmp_path / "model.onnx"), made.sizes)
    assert graph.total_flops == made.flops
    if made.parameters is not None:
        # A parameter of one element counts as a number that runtimes keep on the host.
        small = sum(1 for value in made.model.constants.values() if value.dtype == np.float32 and value.size == 1)
        assert 4 * made.parameters - 4 * small <= graph.parameter_bytes <= 4 * made.parameters
