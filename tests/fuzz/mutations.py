"""Seeded mutations of bytes, and of what JSON, YAML, checkpoints and ONNX files hold."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import yaml

TOKENS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\ud800",
        b"\\u0000",
        b"\x00",
        b"\xff",
        b"\x1b[2J",
        b"- ",
        b"&a ",
        b"*a",
    ),
    *(b"null", b"true", b"NaN", b"1e999", b"-1", b"0", b"9" * 25, b"1.5", b"!!python/object/apply:os.system ['true']"),
]
"""What is put into bytes."""

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 7.0, 1.5, -0.0, 1e-300, 1e300, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, "", "x", "0"),
    *("cpu:0", "\x1b[2J", "\u202e", "n" * 5000, "../../x", "/dev/zero", [], {}, [[]], [1], ["x"], {"x": 1}, {"": None}),
]
"""What is put in the place of a value."""


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """A few bits, tokens and stretches of bytes changed, doubled, left out or moved."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        size = len(changed)
        at, length = draw.randrange(size + 1), min(draw.choice((1, 4, 50)), size)
        kind = draw.randrange(7)
        if kind == 0 and size:
            changed[at % size] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at:at] = draw.choice(TOKENS) * draw.choice((1, 1, 1, 2000))
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[at : at + length] * draw.choice((1, 1, 20))
        elif kind == 4:
            changed[at : at + length] = draw.choice(TOKENS)
        elif kind == 5 and draw.random() < 0.3:
            del changed[at:]
        elif size:
            other = draw.randrange(size)
            changed[at : at + length] = changed[other : other + length]
    return bytes(changed)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in nested dicts and lists."""
    inner = list(value.items()) if isinstance(value, dict) else []
    inner = list(enumerate(value)) if isinstance(value, list) else inner
    return [*([at] if at else []), *(place for key, item in inner for place in places(item, (*at, key)))]


def mutate_value(value: Any, draw: random.Random, odd: list[Any] = ODD) -> Any:
    """One to three values at any depth replaced, left out, doubled, exchanged or renamed."""
    changed = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        every = places(changed)
        if not every:
            return draw.choice(odd)
        *above, last = draw.choice(every)
        inner = _at(changed, above)
        kind = draw.randrange(8)
        if kind == 0:
            del inner[last]
        elif kind == 1 and isinstance(inner, list):
            inner.insert(last, copy.deepcopy(inner[last]))
        elif kind == 1 and isinstance(last, str):
            inner[draw.choice(("", last.upper(), last + "s", "name"))] = inner.pop(last)
        elif kind == 2:
            inner[last] = copy.deepcopy(_at(changed, draw.choice(every)))
        elif kind == 3 and type(inner[last]) in (int, float):
            inner[last] = draw.choice((-1, 10, 1e6, 2.0**40, 0)) * inner[last]
        else:
            inner[last] = copy.deepcopy(draw.choice(odd))
    return changed


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    """JSON with other values, or other bytes."""
    if draw.random() < 0.4:
        return mutate_bytes(data, draw)
    changed = json.dumps(mutate_value(json.loads(data), draw)).encode()
    return mutate_bytes(changed, draw) if draw.random() < 0.1 else changed


def mutate_yaml(data: bytes, draw: random.Random) -> bytes:
    """YAML with other values, or other bytes."""
    if draw.random() < 0.4:
        return mutate_bytes(data, draw)
    return yaml.safe_dump(mutate_value(yaml.safe_load(data), draw), sort_keys=False).encode()


def mutate_onnx(data: bytes, draw: random.Random) -> bytes:
    """An ONNX file with other sizes, names, operators, edges or attributes, or other bytes."""
    if draw.random() < 0.3:
        return mutate_bytes(data, draw)
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    for _ in range(draw.choice((1, 1, 2, 3))):
        node = draw.choice(graph.node)
        names = [name for n in graph.node for name in (*n.input, *n.output)]
        kind = draw.randrange(8)
        if kind == 0 and graph.initializer:
            tensor = draw.choice(graph.initializer)
            tensor.dims[:] = [draw.choice((0, 1, 2, -1, 2**31, 2**62)) for _ in range(draw.randrange(4))]
        elif kind == 1 and node.input:
            node.input[draw.randrange(len(node.input))] = draw.choice([*names, "", "none"])
        elif kind == 2 and node.output:
            node.output[0] = draw.choice([*names, ""])
        elif kind == 3:
            node.op_type = draw.choice(
                ("If", "Loop", "Scan", "Range", "Tile", "Expand", "Reshape", "MatMul", "\x1b", "")
            )
        elif kind == 4 and node.attribute:
            attribute = draw.choice(node.attribute)
            attribute.i, attribute.type = draw.choice((-1, 0, 10**9, 2**62)), draw.choice((0, 1, 2, 5, 7))
        elif kind == 5 and graph.input:
            shape = draw.choice(graph.input).type.tensor_type.shape
            dim = shape.dim.add() if draw.random() < 0.3 or not shape.dim else draw.choice(shape.dim)
            dim.dim_value = draw.choice((0, -1, 7, 2**31, 2**62))
        elif kind == 6 and model.opset_import:
            model.opset_import[0].version = draw.choice((-1, 0, 1, 9, 13, 99, 2**60))
        else:
            graph.node.add().CopyFrom(node)
    return bytes(model.SerializeToString())


def _at(value: Any, way: Any) -> Any:
    for key in way:
        value = value[key]
    return value
