"""Modules that networks are composed of, written on a tape.

Shapes: sequences are ``[tokens, width]`` with all sequences of a batch one after another, images
``[batch, height, width, channels]``, a recurrent step's input ``[batch, width]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from placement.pretrained.tape import Tape, Value


def embedding(tape: Tape, rows: int, width: int, tokens: int) -> Value:
    """Rows of a table."""
    return tape.apply("embedding", (tape.weight(rows, width), tape.feed(tokens, 1)), (tokens, width))


def norm(tape: Tape, x: Value) -> Value:
    """Layer normalisation."""
    return tape.pointwise(x, tape.weight(x.shape[-1]), kind="layer_norm")


def perceptron(tape: Tape, x: Value, widths: Sequence[int]) -> Value:
    """Layers with activations between."""
    for number, width in enumerate(widths):
        with tape.module(f"layer{number}"):
            x = tape.linear(x, width)
            if number + 1 < len(widths):
                x = tape.pointwise(x)
    return x


def head(tape: Tape, x: Value, classes: int, weight: Value | None = None) -> Value:
    """Logits and their loss."""
    logits = tape.linear(x, classes, weight)
    return tape.apply("cross_entropy", (logits,), (1,))


def attention(tape: Tape, x: Value, length: int, heads: int, memory: Value | None = None) -> Value:
    """Attention of many heads, to the sequence itself or to a memory."""
    other = x if memory is None else memory
    width = x.shape[-1]
    query, key, value = tape.linear(x, width), tape.linear(other, width), tape.linear(other, width)
    flops = 4 * x.shape[0] * length * width
    mixed = tape.apply("scaled_dot_product_attention", (query, key, value), x.shape, flops)
    return tape.linear(mixed, width) if heads else mixed


def feed_forward(tape: Tape, x: Value, factor: int, *, gated: bool) -> Value:
    """Two layers, or three where the first is gated."""
    width = x.shape[-1]
    hidden = tape.linear(x, factor * width)
    hidden = tape.pointwise(hidden, tape.linear(x, factor * width), kind="silu") if gated else tape.pointwise(hidden)
    return tape.linear(hidden, width)


def experts(tape: Tape, x: Value, count: int, factor: int, share: float) -> Value:
    """Expert choice: each expert takes a share of the tokens."""
    with tape.module("router"):
        scores = tape.pointwise(tape.linear(x, count), kind="softmax")
    tokens = max(int(x.shape[0] * share), 1)
    made = []
    for number in range(count):
        with tape.module(f"expert{number}"):
            taken = tape.apply("index_select", (x, scores), (tokens, x.shape[-1]))
            made.append(feed_forward(tape, taken, factor, gated=False))
    return tape.apply("index_add", (*made, scores), x.shape)


def transformer_block(
    tape: Tape,
    x: Value,
    *,
    length: int,
    heads: int,
    factor: int,
    gated: bool,
    memory: Value | None = None,
    num_experts: int = 0,
) -> Value:
    """Attention, to a memory as well where there is one, and a feed-forward part or experts."""
    with tape.module("attention"):
        x = tape.add(x, attention(tape, norm(tape, x), length, heads))
    if memory is not None:
        with tape.module("cross"):
            x = tape.add(x, attention(tape, norm(tape, x), length, heads, memory))
    with tape.module("mlp"):
        inner = norm(tape, x)
        if num_experts:
            return tape.add(x, experts(tape, inner, num_experts, factor, 2.0 / num_experts))
        return tape.add(x, feed_forward(tape, inner, factor, gated=gated))


class Cell:
    """A recurrent cell whose weights all steps share.

    Args:
        tape: What it is written on.
        name: Its module.
        inputs: Width of what it reads.
        width: Its own.
        gates: 4 for an LSTM, 3 for a GRU, 1 for a plain one.
    """

    def __init__(self, tape: Tape, name: str, inputs: int, width: int, gates: int) -> None:
        self._tape, self._name, self._width, self._gates = tape, name, width, gates
        with tape.module(name):
            self._kernel = tape.weight(inputs + width, gates * width)
        self._state: Value | None = None

    def step(self, x: Value, number: int) -> Value:
        """One time step."""
        tape = self._tape
        with tape.module(self._name, number):
            state = self._state or tape.feed(x.shape[0], self._width)
            joined = tape.concatenate([x, state])
            gates = tape.linear(joined, self._gates * self._width, self._kernel)
            self._state = tape.apply("lstm_pointwise", (gates, state), (x.shape[0], self._width))
        return self._state


def look_up(tape: Tape, states: Value, query: Value, number: int) -> Value:
    """A recurrent decoder's attention to what an encoder made, ``[batch, steps, width]``."""
    batch, steps, width = states.shape
    with tape.module("attend", number):
        scores = tape.apply("bmm", (states, query), (batch, steps), 2 * batch * steps * width)
        shares = tape.pointwise(scores, kind="softmax")
        found = tape.apply("bmm", (shares, states), (batch, width), 2 * batch * steps * width)
        return tape.pointwise(tape.linear(tape.concatenate([found, query]), query.shape[-1]), kind="tanh")


def residual(tape: Tape, x: Value, channels: int, *, stride: int, bottleneck: bool) -> Value:
    """A residual block of two or three convolutions."""
    inner = channels // 4 if bottleneck else channels
    y = tape.convolution(x, inner, kernel=1 if bottleneck else 3, stride=1 if bottleneck else stride)
    y = tape.convolution(y, inner if bottleneck else channels, stride=stride if bottleneck else 1)
    if bottleneck:
        y = tape.convolution(y, channels, kernel=1)
    if x.shape != y.shape:
        x = tape.convolution(x, channels, kernel=1, stride=stride)
    return tape.pointwise(tape.add(y, x))


def branches(tape: Tape, x: Value, depths: Sequence[int], channels: int, kernels: Sequence[int]) -> Value:
    """Chains of convolutions side by side, concatenated."""
    made = []
    for number, (depth, kernel) in enumerate(zip(depths, kernels, strict=True)):
        with tape.module(f"branch{number}"):
            y = x
            for layer in range(depth):
                with tape.module(f"conv{layer}"):
                    y = tape.convolution(y, channels, kernel=1 if layer == 0 else kernel)
            made.append(y)
    return tape.concatenate(made)


def scan(tape: Tape, x: Value, states: int) -> Value:
    """A state-space layer: projections in and out, a convolution along time, a scan that is elements only."""
    width = x.shape[-1]
    inner, gate = tape.linear(x, 2 * width), tape.linear(x, 2 * width)
    mixed = tape.apply("conv1d", (inner, tape.weight(4, 2 * width)), inner.shape, 8 * inner.size)
    steps = tape.linear(mixed, 2 * states)
    made = tape.apply("selective_scan", (mixed, steps), mixed.shape, 6 * mixed.size * states // 8)
    return tape.linear(tape.pointwise(made, gate, kind="mul"), width)
