"""Families of networks: each draws its sizes and writes a network on a tape.

Batch sizes and widths are those of training and inference on one to sixteen devices; depths are such that a step has a
few hundred to a few thousand ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from placement.pretrained.modules import (
    Cell,
    branches,
    embedding,
    experts,
    feed_forward,
    head,
    look_up,
    norm,
    perceptron,
    residual,
    scan,
    transformer_block,
)
from placement.pretrained.tape import Tape, Value

Family = Callable[[Tape, np.random.Generator], None]


def _one(rng: np.random.Generator, values: Sequence[int]) -> int:
    return int(values[int(rng.integers(len(values)))])


def _yes(rng: np.random.Generator, share: float = 0.5) -> bool:
    return bool(rng.random() < share)


def _image(tape: Tape, rng: np.random.Generator) -> Value:
    size = _one(rng, (64, 96, 128, 224))
    return tape.feed(_one(rng, (8, 16, 32, 64)), size, size, 3)


def _classify(tape: Tape, x: Value, classes: int = 1000) -> None:
    with tape.module("head"):
        pooled = tape.apply("mean", (x,), (x.shape[0], x.shape[-1]))
        head(tape, pooled, classes)


def _tokens(tape: Tape, rng: np.random.Generator) -> tuple[Value, int, int]:
    """Embedded tokens, the length of a sequence, the vocabulary."""
    length, batch = _one(rng, (64, 128, 256, 512)), _one(rng, (2, 4, 8, 16))
    width, vocabulary = _one(rng, (256, 512, 768, 1024)), _one(rng, (8000, 16000, 32000))
    with tape.module("embed"):
        return embedding(tape, vocabulary, width, length * batch), length, vocabulary


def _blocks(tape: Tape, rng: np.random.Generator, x: Value, length: int, depth: int, name: str, every: int = 0,
            memory: Value | None = None) -> Value:  # fmt: skip
    factor, gated, count = _one(rng, (2, 4)), _yes(rng, 0.3), _one(rng, (4, 8, 16))
    for number in range(depth):
        with tape.module(f"{name}.{number}"):
            many = count if every and number % every == every - 1 else 0
            x = transformer_block(
                tape, x, length=length, heads=8, factor=factor, gated=gated, memory=memory, num_experts=many
            )
    return x


def _language_model(every: int) -> Family:
    def family(tape: Tape, rng: np.random.Generator) -> None:
        x, length, vocabulary = _tokens(tape, rng)
        x = _blocks(tape, rng, x, length, int(rng.integers(3, 13)), "block", every)
        with tape.module("head"):
            head(tape, norm(tape, x), vocabulary)

    return family


def _translator(tape: Tape, rng: np.random.Generator) -> None:
    x, length, vocabulary = _tokens(tape, rng)
    memory = _blocks(tape, rng, x, length, int(rng.integers(2, 7)), "encoder")
    with tape.module("target"):
        y = embedding(tape, vocabulary, x.shape[-1], x.shape[0])
    y = _blocks(tape, rng, y, length, int(rng.integers(2, 7)), "decoder", memory=memory)
    with tape.module("head"):
        head(tape, y, vocabulary)


def _vision_transformer(tape: Tape, rng: np.random.Generator) -> None:
    image = _image(tape, rng)
    width = _one(rng, (384, 768))
    with tape.module("patches"):
        patches = tape.convolution(image, width, kernel=16, stride=16)
    length = patches.shape[1] * patches.shape[2]
    x = tape.apply("reshape", (patches,), (image.shape[0] * length, width))
    x = _blocks(tape, rng, x, length, int(rng.integers(4, 13)), "block")
    with tape.module("head"):
        head(tape, tape.apply("mean", (x,), (image.shape[0], width)), 1000)


def _parallel_blocks(tape: Tape, rng: np.random.Generator) -> None:
    x, length, vocabulary = _tokens(tape, rng)
    for number in range(int(rng.integers(3, 10))):
        with tape.module(f"block.{number}"):
            inner = norm(tape, x)
            with tape.module("attention"):
                from_attention = transformer_block(tape, inner, length=length, heads=8, factor=2, gated=False)
            with tape.module("mlp"):
                from_mlp = feed_forward(tape, inner, 4, gated=True)
            x = tape.add(x, from_attention, from_mlp)
    with tape.module("head"):
        head(tape, x, vocabulary)


def _state_space(every: int) -> Family:
    def family(tape: Tape, rng: np.random.Generator) -> None:
        x, length, vocabulary = _tokens(tape, rng)
        states = _one(rng, (16, 64))
        for number in range(int(rng.integers(4, 17))):
            with tape.module(f"layer.{number}"):
                if every and number % every == every - 1:
                    x = transformer_block(tape, x, length=length, heads=8, factor=4, gated=True)
                else:
                    x = tape.add(x, scan(tape, norm(tape, x), states))
        with tape.module("head"):
            head(tape, x, vocabulary)

    return family


def _expert_towers(tape: Tape, rng: np.random.Generator) -> None:
    """Many small experts and tasks (multi-gate mixture of experts)."""
    x = tape.feed(_one(rng, (512, 2048, 8192)), _one(rng, (256, 1024)))
    with tape.module("bottom"):
        x = perceptron(tape, x, (1024, 512))
    for task in range(int(rng.integers(2, 7))):
        with tape.module(f"task{task}"):
            y = experts(tape, x, _one(rng, (4, 8)), 2, 1.0 / 4)
            head(tape, perceptron(tape, y, (256, 64)), 2)


def _recurrent(gates: int, *, language: bool) -> Family:
    def family(tape: Tape, rng: np.random.Generator) -> None:
        batch, width = _one(rng, (16, 32, 64, 128)), _one(rng, (256, 512, 1024, 2048))
        steps, layers = int(rng.integers(6, 31)), int(rng.integers(1, 5))
        cells = [Cell(tape, f"layer{number}", width, width, gates) for number in range(layers)]
        table, out = tape.weight(10000, width), tape.weight(width, 10000 if language else 64)
        last = None
        for step in range(steps):
            with tape.module("embed", step):
                x = tape.apply("embedding", (table, tape.feed(batch, 1)), (batch, width))
            for cell in cells:
                x = cell.step(x, step)
            if language:
                with tape.module("head", step):
                    head(tape, x, 10000, out)
            last = x
        if not language and last is not None:
            with tape.module("head"):
                head(tape, last, 64, out)

    return family


def _seq2seq(*, attends: bool, both_ways: bool) -> Family:
    def family(tape: Tape, rng: np.random.Generator) -> None:
        batch, width = _one(rng, (32, 64, 128)), _one(rng, (256, 512, 1024))
        steps, layers = int(rng.integers(5, 21)), int(rng.integers(1, 4))
        table, out = tape.weight(16000, width), tape.weight(width, 16000)
        states = []
        ways = [list(range(steps)), list(reversed(range(steps)))] if both_ways else [list(range(steps))]
        ends: list[list[Value]] = []
        for way, order in enumerate(ways):
            cells = [Cell(tape, f"encoder{way}.{number}", width, width, 4) for number in range(layers)]
            made = []
            for step in order:
                with tape.module(f"embed{way}", step):
                    x = tape.apply("embedding", (table, tape.feed(batch, 1)), (batch, width))
                for cell in cells:
                    x = cell.step(x, step)
                made.append(x)
            ends.append(made)
        states = [value for made in ends for value in made]
        memory = tape.apply("stack", states, (batch, len(states), width))
        query = tape.add(*(made[-1] for made in ends)) if both_ways else ends[0][-1]
        cells = [Cell(tape, f"decoder.{number}", 2 * width, width, 4) for number in range(1)]
        cells += [Cell(tape, f"decoder.{number}", width, width, 4) for number in range(1, layers)]
        for step in range(steps):
            with tape.module("target", step):
                x = tape.apply("embedding", (table, tape.feed(batch, 1)), (batch, width))
            found = look_up(tape, memory, query, step) if attends else query
            x = tape.concatenate([x, found])
            for cell in cells:
                x = cell.step(x, step)
            query = x
            with tape.module("head", step):
                head(tape, x, 16000, out)

    return family


def _speech(tape: Tape, rng: np.random.Generator) -> None:
    """Convolutions, recurrent layers both ways, a loss."""
    batch, width, steps = _one(rng, (8, 16, 32)), _one(rng, (512, 1024)), int(rng.integers(8, 25))
    with tape.module("front"):
        x = tape.convolution(tape.convolution(tape.feed(batch, 4 * steps, 80, 1), 32, stride=2), 64, stride=2)
    frames = [tape.apply("select", (x,), (batch, width)) for _ in range(steps)]
    for layer in range(int(rng.integers(1, 4))):
        there = Cell(tape, f"forward{layer}", width, width, 3)
        back = Cell(tape, f"backward{layer}", width, width, 3)
        first = [there.step(frame, step) for step, frame in enumerate(frames)]
        second = [back.step(frames[step], step) for step in reversed(range(steps))][::-1]
        frames = [tape.add(a, b) for a, b in zip(first, second, strict=True)]
    with tape.module("head"):
        head(tape, tape.apply("stack", frames, (batch * steps, width)), 64)


def _residual_network(*, bottleneck: bool) -> Family:
    def family(tape: Tape, rng: np.random.Generator) -> None:
        base = _one(rng, (32, 64)) * (4 if bottleneck else 1)
        with tape.module("stem"):
            x = tape.convolution(_image(tape, rng), base // (4 if bottleneck else 1), kernel=7, stride=4)
        for stage in range(4):
            for block in range(int(rng.integers(1, 6))):
                with tape.module(f"stage{stage}.{block}"):
                    stride = 2 if stage and not block else 1
                    x = residual(tape, x, base * 2**stage, stride=stride, bottleneck=bottleneck)
        _classify(tape, x)

    return family


def _inception(tape: Tape, rng: np.random.Generator) -> None:
    with tape.module("stem"):
        x = tape.convolution(tape.convolution(_image(tape, rng), 32, stride=2), 64, stride=2)
    for stage in range(3):
        for block in range(int(rng.integers(2, 6))):
            with tape.module(f"mixed{stage}.{block}"):
                count = int(rng.integers(3, 7))
                depths, kernels = rng.integers(1, 5, count).tolist(), rng.choice([3, 3, 5], count).tolist()
                x = branches(tape, x, depths, _one(rng, (32, 64, 96)) * (stage + 1), kernels)
        with tape.module(f"reduce{stage}"):
            x = tape.convolution(x, x.shape[-1] // 2, stride=2)
    _classify(tape, x)


def _dense_network(tape: Tape, rng: np.random.Generator) -> None:
    growth = _one(rng, (16, 32, 48))
    with tape.module("stem"):
        x = tape.convolution(_image(tape, rng), 2 * growth, kernel=7, stride=4)
    for block in range(int(rng.integers(2, 5))):
        for layer in range(int(rng.integers(4, 13))):
            with tape.module(f"dense{block}.{layer}"):
                y = tape.convolution(tape.convolution(x, 4 * growth, kernel=1), growth)
                x = tape.concatenate([x, y])
        with tape.module(f"transition{block}"):
            x = tape.convolution(x, x.shape[-1] // 2, kernel=1, stride=2)
    _classify(tape, x)


def _searched_cells(tape: Tape, rng: np.random.Generator) -> None:
    """Cells of five sums of two branches, as architecture search finds them."""
    channels = _one(rng, (32, 64, 128))
    with tape.module("stem"):
        x = tape.convolution(_image(tape, rng), channels, stride=4)
    before = x
    plan = [(int(a), int(b), int(k)) for a, b, k in zip(*(rng.integers(0, n, 5) for n in (2, 3, 3)), strict=True)]
    for cell in range(int(rng.integers(4, 13))):
        with tape.module(f"cell{cell}"):
            made = [tape.convolution(x, channels, kernel=1), tape.convolution(before, channels, kernel=1)]
            for number, (first, second, kind) in enumerate(plan):
                with tape.module(f"sum{number}"):
                    a = tape.convolution(made[first], channels, kernel=(3, 5, 7)[kind], depthwise=True)
                    a = tape.convolution(a, channels, kernel=1)
                    b = tape.convolution(made[min(second, len(made) - 1)], channels, depthwise=True)
                    made.append(tape.add(a, tape.convolution(b, channels, kernel=1)))
            before, x = x, tape.concatenate(made[2:])
    _classify(tape, x)


def _mobile(tape: Tape, rng: np.random.Generator) -> None:
    with tape.module("stem"):
        x = tape.convolution(_image(tape, rng), 32, stride=2)
    for block in range(int(rng.integers(8, 18))):
        with tape.module(f"block{block}"):
            channels = 24 + 16 * (block // 2)
            y = tape.convolution(x, 6 * x.shape[-1], kernel=1)
            y = tape.convolution(y, y.shape[-1], depthwise=True, stride=2 if block in (2, 5, 9) else 1)
            y = tape.convolution(y, channels, kernel=1)
            x = tape.add(y, x) if x.shape == y.shape else y
    _classify(tape, x)


def _plain_convolutions(tape: Tape, rng: np.random.Generator) -> None:
    x = _image(tape, rng)
    for stage in range(5):
        for layer in range(int(rng.integers(1, 4))):
            with tape.module(f"conv{stage}.{layer}"):
                x = tape.convolution(x, min(64 * 2**stage, 512), stride=2 if layer == 0 else 1)
    with tape.module("classifier"):
        flat = tape.apply("mean", (x,), (x.shape[0], x.shape[-1]))
        head(tape, perceptron(tape, flat, (4096, 4096)), 1000)


def _u_shape(tape: Tape, rng: np.random.Generator) -> None:
    x = _image(tape, rng)
    base, depth, kept = _one(rng, (32, 64)), int(rng.integers(3, 6)), []
    for level in range(depth):
        with tape.module(f"down{level}"):
            for _ in range(2):
                x = tape.convolution(x, base * 2**level)
            kept.append(x)
            x = tape.convolution(x, base * 2**level, stride=2)
    for level in reversed(range(depth)):
        with tape.module(f"up{level}"):
            wide = tape.apply("upsample", (x,), (*kept[level].shape[:3], x.shape[-1]))
            x = tape.convolution(tape.concatenate([wide, kept[level]]), base * 2**level)
            x = tape.convolution(x, base * 2**level)
    with tape.module("head"):
        head(tape, x, 2)


def _pyramid(tape: Tape, rng: np.random.Generator) -> None:
    """A detector: a residual backbone, levels joined from coarse to fine, heads at each."""
    with tape.module("stem"):
        x = tape.convolution(_image(tape, rng), 64, kernel=7, stride=2)
    levels = []
    for stage in range(4):
        for block in range(int(rng.integers(1, 4))):
            with tape.module(f"stage{stage}.{block}"):
                x = residual(tape, x, 64 * 2**stage, stride=2 if not block else 1, bottleneck=False)
        levels.append(x)
    above = None
    for number, level in reversed(list(enumerate(levels))):
        with tape.module(f"lateral{number}"):
            y = tape.convolution(level, 256, kernel=1)
            if above is not None:
                y = tape.add(y, tape.apply("upsample", (above,), y.shape))
            above = y
        for task in ("boxes", "classes"):
            with tape.module(f"{task}{number}"):
                z = y
                for _ in range(int(rng.integers(1, 4))):
                    z = tape.convolution(z, 256)
                head(tape, z, 8)


def _two_players(tape: Tape, rng: np.random.Generator) -> None:
    """A generator and its critic."""
    batch, base = _one(rng, (16, 32, 64)), _one(rng, (32, 64))
    with tape.module("generator"):
        x = tape.apply("reshape", (tape.linear(tape.feed(batch, 128), 16 * 8 * base),), (batch, 4, 4, 8 * base))
        for level in range(int(rng.integers(3, 5))):
            with tape.module(f"up{level}"):
                wide = tape.apply("upsample", (x,), (batch, 2 * x.shape[1], 2 * x.shape[2], x.shape[3]))
                x = tape.convolution(tape.convolution(wide, max(x.shape[3] // 2, 8)), max(x.shape[3] // 2, 8))
    for number, seen in enumerate((x, tape.feed(*x.shape))):
        with tape.module(f"critic{number}"):
            y = seen
            while y.shape[1] > 4:
                y = tape.convolution(y, min(2 * y.shape[3], 512), stride=2)
            head(tape, tape.apply("mean", (y,), (batch, y.shape[-1])), 2)


def _recommender(tape: Tape, rng: np.random.Generator) -> None:
    """Tables, a bottom perceptron, interactions, a top perceptron."""
    batch, width = _one(rng, (1024, 2048, 8192)), _one(rng, (32, 64, 128))
    found = []
    for table in range(int(rng.integers(8, 41))):
        with tape.module(f"table{table}"):
            found.append(embedding(tape, int(10 ** rng.uniform(4, 6.5)), width, batch))
    with tape.module("bottom"):
        found.append(perceptron(tape, tape.feed(batch, 16), (512, 256, width)))
    with tape.module("interact"):
        pairs = len(found) * (len(found) - 1) // 2
        x = tape.apply("bmm", found, (batch, pairs), 2 * batch * pairs * width)
    with tape.module("top"):
        head(tape, perceptron(tape, x, (1024, 1024, 512)), 2)


def _two_towers(tape: Tape, rng: np.random.Generator) -> None:
    batch, width = _one(rng, (1024, 4096)), _one(rng, (64, 128))
    ends = []
    for tower in range(int(rng.integers(2, 5))):
        with tape.module(f"tower{tower}"):
            fields = []
            for table in range(int(rng.integers(3, 12))):
                with tape.module(f"table{table}"):
                    fields.append(embedding(tape, int(10 ** rng.uniform(4, 6.5)), width, batch))
            ends.append(perceptron(tape, tape.concatenate(fields), (1024, 512, 128)))
    with tape.module("head"):
        head(tape, tape.concatenate(ends), 2)


def _wide_and_deep(tape: Tape, rng: np.random.Generator) -> None:
    batch = _one(rng, (2048, 8192))
    with tape.module("wide"):
        wide = tape.linear(tape.feed(batch, 4096), 64)
    fields = []
    for table in range(int(rng.integers(6, 25))):
        with tape.module(f"table{table}"):
            fields.append(embedding(tape, int(10 ** rng.uniform(3, 6)), 32, batch))
    x = tape.concatenate(fields)
    with tape.module("cross"):
        y = x
        for layer in range(int(rng.integers(1, 5))):
            with tape.module(f"layer{layer}"):
                y = tape.add(tape.pointwise(tape.linear(y, x.shape[-1]), x, kind="mul"), y)
    with tape.module("deep"):
        deep = perceptron(tape, x, (1024, 512, 64))
    for task in range(int(rng.integers(1, 5))):
        with tape.module(f"task{task}"):
            head(tape, perceptron(tape, tape.concatenate([wide, y, deep]), (128,)), 2)


def _graph_network(*, attends: bool) -> Family:
    def family(tape: Tape, rng: np.random.Generator) -> None:
        nodes, edges = _one(rng, (4096, 16384)), _one(rng, (32768, 131072))
        width, relations = _one(rng, (128, 256)), int(rng.integers(1, 7))
        x = tape.feed(nodes, width)
        for layer in range(int(rng.integers(2, 7))):
            sums = []
            for relation in range(relations):
                with tape.module(f"layer{layer}.relation{relation}"):
                    sent = tape.apply("gather", (tape.linear(x, width),), (edges, width))
                    if attends:
                        sent = tape.pointwise(sent, tape.linear(sent, 8), kind="mul")
                    sums.append(tape.apply("scatter_add", (sent,), (nodes, width)))
            with tape.module(f"layer{layer}.update"):
                x = tape.pointwise(tape.add(*sums, tape.linear(x, width)))
        with tape.module("head"):
            head(tape, x, 64)

    return family


def _contrast(tape: Tape, rng: np.random.Generator) -> None:
    """Images and text, each with an encoder of its own, compared."""
    image = _image(tape, rng)
    width = _one(rng, (256, 512))
    with tape.module("image"):
        x = tape.convolution(image, 64, kernel=7, stride=4)
        for block in range(int(rng.integers(3, 9))):
            with tape.module(f"block{block}"):
                x = residual(tape, x, 64 * 2 ** (block // 2), stride=2 if block % 2 else 1, bottleneck=False)
        seen = tape.linear(tape.apply("mean", (x,), (image.shape[0], x.shape[-1])), width)
    with tape.module("text"):
        y = embedding(tape, 16000, width, 64 * image.shape[0])
    y = _blocks(tape, rng, y, 64, int(rng.integers(2, 9)), "text")
    with tape.module("compare"):
        read = tape.apply("mean", (y,), (image.shape[0], width))
        scores = tape.apply("mm", (seen, read), (image.shape[0], image.shape[0]), 2 * image.shape[0] ** 2 * width)
        tape.apply("cross_entropy", (scores,), (1,))


def _ensemble(tape: Tape, rng: np.random.Generator) -> None:
    """Networks side by side, averaged."""
    x = tape.feed(_one(rng, (512, 4096)), _one(rng, (256, 1024)))
    made = []
    for member in range(int(rng.integers(3, 13))):
        with tape.module(f"member{member}"):
            made.append(perceptron(tape, x, [_one(rng, (512, 1024, 2048))] * int(rng.integers(2, 6)) + [64]))
    with tape.module("head"):
        head(tape, tape.add(*made), 64)


def _autoencoder(tape: Tape, rng: np.random.Generator) -> None:
    x = tape.feed(_one(rng, (256, 2048)), _one(rng, (1024, 4096)))
    widths = [2048, 1024, 512, 64][: int(rng.integers(2, 5))]
    with tape.module("encoder"):
        code = perceptron(tape, x, widths)
    with tape.module("decoder"):
        made = perceptron(tape, code, [*reversed(widths), x.shape[-1]])
    with tape.module("loss"):
        tape.apply("mse_loss", (made, x), (1,))


def _mixer(tape: Tape, rng: np.random.Generator) -> None:
    """Perceptrons over tokens and over channels in turn."""
    tokens, width = _one(rng, (196, 256)) * _one(rng, (8, 16)), _one(rng, (384, 512))
    x = tape.linear(tape.feed(tokens, 768), width)
    for number in range(int(rng.integers(4, 13))):
        with tape.module(f"block.{number}"):
            with tape.module("tokens"):
                y = tape.apply("transpose", (norm(tape, x),), (width, tokens))
                y = tape.apply("transpose", (perceptron(tape, y, (256, tokens)),), (tokens, width))
                x = tape.add(x, y)
            with tape.module("channels"):
                x = tape.add(x, feed_forward(tape, norm(tape, x), 4, gated=False))
    with tape.module("head"):
        head(tape, x, 1000)


def _layered_at_random(*, images: bool) -> Family:
    """Layers of random width, each node reading some nodes of the layers just before."""

    def family(tape: Tape, rng: np.random.Generator) -> None:
        width = _one(rng, (128, 256, 512))
        x = tape.feed(_one(rng, (8, 16, 32)), 28, 28, width) if images else tape.feed(_one(rng, (512, 2048)), width)
        nodes = [x]
        for layer in range(int(rng.integers(5, 26))):
            made = []
            for number in range(int(rng.integers(1, 7))):
                with tape.module(f"layer{layer}.node{number}"):
                    count = min(int(rng.integers(1, 4)), len(nodes))
                    read = [nodes[len(nodes) - 1 - int(back) % len(nodes)] for back in rng.geometric(0.25, count) - 1]
                    joined = tape.add(*read) if len(read) > 1 else read[0]
                    kernel = _one(rng, (1, 3, 3, 5))
                    made.append(
                        tape.convolution(joined, width, kernel=kernel)
                        if images
                        else tape.pointwise(tape.linear(joined, width))
                    )
            nodes = (nodes + made)[-12:]
        with tape.module("head"):
            head(tape, tape.add(*nodes[-6:]) if len(nodes) > 1 else nodes[0], 100)

    return family


FAMILIES: dict[str, Family] = {
    "language model": _language_model(0),
    "language model, experts everywhere": _language_model(1),
    "language model, experts in turn": _language_model(2),
    "translator": _translator,
    "vision transformer": _vision_transformer,
    "parallel blocks": _parallel_blocks,
    "state space": _state_space(0),
    "state space and attention": _state_space(4),
    "expert towers": _expert_towers,
    "recurrent language model": _recurrent(4, language=True),
    "gated recurrent language model": _recurrent(3, language=True),
    "recurrent classifier": _recurrent(4, language=False),
    "plain recurrent classifier": _recurrent(1, language=False),
    "sequence to sequence": _seq2seq(attends=False, both_ways=False),
    "sequence to sequence, attention": _seq2seq(attends=True, both_ways=False),
    "sequence to sequence, both ways": _seq2seq(attends=True, both_ways=True),
    "speech": _speech,
    "residual network": _residual_network(bottleneck=False),
    "residual network, bottlenecks": _residual_network(bottleneck=True),
    "inception": _inception,
    "dense network": _dense_network,
    "searched cells": _searched_cells,
    "mobile": _mobile,
    "plain convolutions": _plain_convolutions,
    "u-shape": _u_shape,
    "pyramid": _pyramid,
    "two players": _two_players,
    "recommender": _recommender,
    "two towers": _two_towers,
    "wide and deep": _wide_and_deep,
    "graph network": _graph_network(attends=False),
    "graph attention": _graph_network(attends=True),
    "contrast": _contrast,
    "ensemble": _ensemble,
    "autoencoder": _autoencoder,
    "mixer": _mixer,
    "layers at random": _layered_at_random(images=False),
    "convolutions at random": _layered_at_random(images=True),
}
"""Every family by name."""
