"""ONNX files that would take a machine's time or memory: each refused in a sentence, or read, at once."""

from __future__ import annotations

import contextlib
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphs.errors import InputError
from graphs.onnx_import.importer import load_onnx_file
from tests.graphs.onnx_import.models import save

DATA = Path(os.path.dirname(onnx.__file__)) / "backend/test/data"

BIG = "<int64[1] b = {10}, int64[1] e = {%d}, int64[1] v = {1}, int64 zero = {0}, int64 one = {1}>"
BOMBS = {
    "range": "r = Range(zero, n, one)",
    "tile": "r = Tile(v, m)",
    "expand": "r = Expand(v, m)",
    "constant of shape": "r = ConstantOfShape <value = int64[1] {1}> (m)",
    "one hot": "values = Constant <value = int64[2] {0, 1}> () r = OneHot(v, m, values)",
    "pad": "z = Sub(m, m) pads = Concat <axis = 0> (m, z) r = Pad(v, pads)",
}


@pytest.mark.parametrize("exponent", [4, 7, 9, 12])
@pytest.mark.parametrize("bomb", BOMBS)
def test_sizes_are_known_before_an_operator_is_computed(tmp_path: Path, bomb: str, exponent: int) -> None:
    body = f"m = Pow(b, e) axes = Identity(zero) n = Gather(m, zero) {BOMBS[bomb]}"
    end = "q = ReduceSum <keepdims = 0> (r) c = Cast <to = 1> (q) y = Add(x, c)"
    source = save(tmp_path, f"g (float[4] x) => (float[4] y) {BIG % exponent} {{ {body} {end} }}")
    start = time.process_time()
    tracemalloc.start()
    if exponent >= 9:
        with pytest.raises(InputError, match=r"constant of|which no memory holds|cannot work"):
            load_onnx_file(source)
    else:
        load_onnx_file(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert time.process_time() - start < 10


def chain(depth: int, width: int) -> str:
    """Functions of `width` calls of the one below each: ``width ** depth`` operators."""
    text = f"g (float[4] x) => (float[4] y) {{ y = f.f{depth}(x) }}"
    text += ' <domain: "f", opset_import: ["" : 17]> f0 (a) => (o) { o = Relu(a) }'
    for level in range(1, depth + 1):
        calls = [f"t{i} = f.f{level - 1}({'a' if i == 0 else f't{i - 1}'})" for i in range(width - 1)]
        body = " ".join([*calls, f"o = f.f{level - 1}(t{width - 2})"])
        text += f' <domain: "f", opset_import: ["" : 17, "f" : 1]> f{level} (a) => (o) {{ {body} }}'
    return text


def test_functions_expand_up_to_a_cap(tmp_path: Path) -> None:
    assert load_onnx_file(save(tmp_path, chain(3, 6), domains=("f",))).num_ops == 1 + 6**3
    start = time.process_time()
    for depth, width in ((7, 10), (40, 2), (12, 12)):
        with pytest.raises(InputError, match=r"its functions come to .* operators, more than 50,000"):
            load_onnx_file(save(tmp_path, chain(depth, width), domains=("f",)))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'g (float[4] x) => (float[4] y) { y = f.r(x) } <domain: "f", opset_import: ["f" : 1]> r (a) => (o) '
            "{ o = f.r(a) }",
            "its function 'r' calls itself",
        ),
        (
            'g (float[4] x) => (float[4] y) { y = f.r(x) } <domain: "f", opset_import: ["f" : 1]> r (a) => (o) '
            '{ o = f.s(a) } <domain: "f", opset_import: ["f" : 1]> s (a) => (o) { o = f.r(a) }',
            "its function 'r' calls itself",
        ),
        ("g (float[4] x) => (float[4] y) { a = Identity(x) x = Identity(a) y = Relu(x) }", "'x' is made twice"),
        ("g (float[4] x) => (float[4] y) { h = Relu(x) h = Identity(h) y = Relu(h) }", "'h' is made twice"),
        ("g (float[4] x) => (float[4] y) <float[1] w = {1}, float[1] w = {1}> { y = Add(x, w) }", "'w' is made twice"),
        ("g (float[4] x) => (float[4] y) { h = Identity() y = Relu(h) }", "operator Identity 'h' lacks an input"),
        ("g (float[4] x) => (float[4] y) { h = Reshape(x) y = Relu(h) }", "operator Reshape 'h' lacks an input"),
        ("g (float[4] x) => (float[4] y) { h = Shape() y = Relu(x) }", "operator Shape 'h' lacks an input"),
        ("g (float[4] x) => (float[4] y) { h = MatMul(x, ) y = Relu(x) }", "operator MatMul 'h' lacks an input"),
        ("g (float[4] x) => (float[4] y) { h = If(x) y = Relu(x) }", "operator If 'h' decides"),
        ("g (float[4] x) => (float[4] y) { h = Loop() y = Relu(x) }", "operator Loop 'h' lacks an input"),
        ("g (float[4] x) => (float[4] y) { h = SequenceAt(x, x) y = Relu(x) }", "'h' needs a sequence"),
        ("g (float[4] x) => (float[4] y) { h = SequenceErase() y = Relu(x) }", "SequenceErase 'h' lacks an input"),
        ("g (float[4] x) => (float[4] y) { h = Loop(x, x) y = Relu(x) }", "operator Loop 'h' lacks the graph 'body'"),
        ("g (float[4] x) => (float[4] y, float[4] z) { y = Relu(x) }", "its output 'z' is made by no operator"),
        ("g (float[4] x) => (float[4] y) { h = Relu(later) later = Relu(x) y = Relu(h) }", "which nothing makes"),
    ],
)
def test_what_no_model_means(tmp_path: Path, text: str, message: str) -> None:
    source = save(tmp_path, text, domains=("f",))
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        load_onnx_file(source)
    assert message in str(caught.value)
    assert time.process_time() - start < 2


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="give a regular file"):
        load_onnx_file(pipe)


def test_graphs_in_graphs_have_an_end(tmp_path: Path) -> None:
    inner = "o = Relu(x)"
    for level in range(70):
        inner = f"o = If(c) <then_branch = t{level} () => (float[4] o) {{ {inner} }}, "
        inner += f"else_branch = e{level} () => (float[4] o) {{ o = Abs(x) }}>"
    text = f"g (float[4] x) => (float[4] o) <bool c = {{1}}> {{ {inner} }}"
    try:
        source = save(tmp_path, text)
    except Exception:  # ONNX's own parser does not go that deep
        return
    with pytest.raises(InputError):
        load_onnx_file(source)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    source = Path(save(tmp_path, "g (float[batch] input0) => (float[batch] output0) { output0 = Relu(input0) }"))
    whole = source.read_bytes()
    for name in (b"input0", b"output0", b"Relu", b"batch"):
        source.write_bytes(whole.replace(name, b"\xff" + name[1:]))
        with pytest.raises(InputError, match="it is damaged"):
            load_onnx_file(source, {"batch": 4})


def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """A few hundred bit flips, insertions and cuts of small files: read or refused, each at once."""
    rng = np.random.default_rng(0)
    paths = sorted(p for kind in ("simple", "pytorch-operator") for p in DATA.glob(f"{kind}/*/model.onnx"))
    wholes = [path.read_bytes() for path in paths if path.stat().st_size < 5000]
    path = tmp_path / "damaged.onnx"
    for _ in range(400):
        data = bytearray(wholes[rng.integers(len(wholes))])
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            kind = rng.integers(3)
            if kind == 0:
                data[at % len(data)] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                del data[at : at + int(rng.integers(1, 8))]
            else:
                data[at:at] = rng.bytes(int(rng.integers(1, 6)))
        path.write_bytes(bytes(data))
        start = time.process_time()
        with contextlib.suppress(InputError):
            load_onnx_file(path)
        assert time.process_time() - start < 5
