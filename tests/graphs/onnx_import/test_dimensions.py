"""Sizes of dimensions that an ONNX file leaves open, and what the file says of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphs.errors import InputError
from graphs.onnx_import.dimensions import Sizes
from graphs.sources import load_graph
from tests.graphs.onnx_import.models import op, save

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a + b", lambda a, b: a + b),
        ("a+b", lambda a, b: a + b),
        ("2*a - b + 3", lambda a, b: 2 * a - b + 3),
        ("a*(b + 1)", lambda a, b: a * (b + 1)),
        ("a//2", lambda a, b: a // 2),
        ("floor(a/2 - 1/2) + 1", lambda a, b: (a - 1) // 2 + 1),
        ("ceiling(a/8)", lambda a, b: -(-a // 8)),
        ("Max(1, a) * Min(b, 5)", lambda a, b: max(1, a) * min(b, 5)),
        ("a**2 % 7", lambda a, b: a**2 % 7),
        ("12", lambda a, b: 12),
    ],
)
def test_expressions(text: str, value: Callable[[int, int], int]) -> None:
    for a, b in RNG.integers(3, 50, (20, 2)).tolist():
        if (expected := value(a, b)) >= 0:
            assert Sizes({"a": a, "b": b}, ["a", "b", text]).named(text, "input 'x'") == (expected, [])


@pytest.mark.parametrize("name", ["batch-size", "unk__12", "p2o.DynamicDimension.0", "input:0_dim", "size (px)", "a b"])
def test_names_that_are_no_expressions(name: str) -> None:
    assert Sizes({name: 5}, [name]).named(name, "input 'x'") == (5, [])
    size, missing = Sizes({}, [name]).named(name, "input 'x'")
    assert (size, [m.key for m in missing]) == (-1, [name])


def test_a_difference_where_both_are_dimensions() -> None:
    assert Sizes({"a": 7, "b": 3}, ["a", "b", "a-b"]).named("a-b", "input 'x'")[0] == 4


@pytest.mark.parametrize(("text", "sizes"), [("a/2", {"a": 3}), ("a-9 + 0", {"a": 3}), ("a//b", {"a": 3, "b": 0})])
def test_expressions_that_come_to_no_size(text: str, sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=re.escape(f"dimension '{text}'")):
        Sizes(sizes, ["a", "b", text]).named(text, "input 'x'")


@pytest.mark.parametrize("text", ["(((a**8)**8)**8)**8", "9**8**8", "a*" * 50 + "a"])
def test_expressions_are_bounded(text: str) -> None:
    with pytest.raises(InputError, match="no memory holds"):
        Sizes({"a": 999}, ["a", text]).named(text, "input 'x'")


DECODER = """g (float[batch, seq, 8] x, float[batch, past, 8] cache, int64[batch, "past + seq"] mask)
=> (float[batch, "past + seq", 16] y) <float[8, 16] w = {%s}> { k = Concat <axis = 1> (cache, x) y = MatMul(k, w) }"""
DECODER %= ", ".join(["1"] * 128)


def test_all_that_is_missing_is_named_at_once_with_what_to_type(tmp_path: Path) -> None:
    source = save(tmp_path, DECODER)
    with pytest.raises(InputError) as caught:
        load_graph(source)
    said = str(caught.value)
    assert said.startswith(f"ONNX file '{source}': 3 sizes are not fixed (dimension 'batch' of input ")
    typed = said.rpartition(" as in ")[2]
    assert typed == f"{source}:batch=8,past=8,seq=8"
    graph = load_graph(typed)
    assert graph.total_flops == 2 * 8 * 16 * 8 * 16
    graph = load_graph(f"{source}:batch=2,past=5,seq=3")
    assert graph.total_flops == 2 * 2 * 8 * 8 * 16


def test_open_dimensions_without_a_name_go_by_tensor_and_position(tmp_path: Path) -> None:
    source = save(tmp_path, "g (float[?, 8, ?] x, float[?] z) => (float[?, 8, ?] y) { y = Add(x, z) }")
    model = onnx.load(source)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, source)
    with pytest.raises(InputError, match=r"3 sizes are not fixed .* as in .*:x\.0=8,x\.2=8,z\.0=8$"):
        load_graph(source)
    graph = load_graph(f"{source}:x.0=4,x.2=5,z.0=1")
    assert graph.output_shapes[op(graph, "y")] == ((4, 8, 5),)
    with pytest.raises(InputError, match=r"cannot work on inputs of shapes \(4, 8, 5\), \(3\)"):
        load_graph(f"{source}:x.0=4,x.2=5,z.0=3")
    with pytest.raises(InputError, match=r"unknown dimension 'x\.3'"):
        load_graph(f"{source}:x.0=4,x.2=5,z.0=1,x.3=4")


def test_a_shape_that_is_not_there_is_given_whole(tmp_path: Path) -> None:
    source = save(tmp_path, "g (float[] x) => (float[] y) { y = Relu(x) }")
    model = onnx.load(source)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, source)
    with pytest.raises(InputError, match=r"the shape of input 'x' is not fixed; .*:x=4x5$"):
        load_graph(source)
    assert load_graph(f"{source}:x=4x5x6").output_shapes[0] == ((4, 5, 6),)


def test_sizes_that_depend_on_data_can_be_given(tmp_path: Path) -> None:
    text = """g (float[50, 4] boxes, float[50] score, float[?] z) => (float[?, 4] y) <float cut = {0.5}> {
        keep = Greater(score, cut) some = NonZero(keep) rows = Squeeze(some) y = Gather(boxes, rows) }"""
    source = save(tmp_path, text.replace("some = NonZero(keep)", "some = NonZero(keep) zz = Relu(z)"))
    with pytest.raises(
        InputError, match=r"dimension 1 of tensor 'some' of operator NonZero 'some' \(1, \?\)"
    ) as caught:
        load_graph(source)
    assert ":some.1=8,z.0=8" in str(caught.value)
    graph = load_graph(f"{source}:some.1=7,z.0=1")
    assert graph.output_shapes[op(graph, "y")] == ((7, 4),)


def test_what_the_file_says_of_its_outputs_is_not_needed(tmp_path: Path) -> None:
    source = save(tmp_path, "g (float[1, 8] x) => (float[1, 8] y) { y = Relu(x) }")
    model = onnx.load(source)
    for stale in (-1, 999):
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = stale
        onnx.save(model, source)
        graph = load_graph(source)
        assert graph.output_shapes[op(graph, "y")] == ((1, 8),)


def test_stale_shapes_are_kept_apart(tmp_path: Path) -> None:
    text = "g (float[N, 5] x) => (float[N, 5] y) { h = Relu(x) f = com.example.Fancy(h) y = Relu(f) }"
    source = save(tmp_path, text, domains=("com.example",))
    model = onnx.load(source)

    def note(**shapes: list[int | str]) -> None:
        del model.graph.value_info[:]
        for name, shape in shapes.items():
            model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        onnx.save(model, source)

    note(h=[4, 5], f=[4, 5])
    assert load_graph(f"{source}:N=4").output_shapes[-1] == ((4, 5),)
    with pytest.raises(InputError, match="the shape of tensor 'f'"):  # the file is of N=4
        load_graph(f"{source}:N=8")
    assert load_graph(f"{source}:N=8,f=8x5").output_shapes[-1] == ((8, 5),)
    note(h=["N", 5], f=["N", 5])
    assert load_graph(f"{source}:N=8").output_shapes[-1] == ((8, 5),)


def test_a_number_can_be_given_for_an_input_that_holds_one(tmp_path: Path) -> None:
    text = """g (float[4, 8] x, int64 n) => (float[?, ?] y) <int64[1] one = {1}> {
        n1 = Unsqueeze(n, zero) s = Concat <axis = 0> (n1, rest) y = Reshape(x, s) }"""
    text = text.replace("<int64[1] one = {1}>", "<int64[1] zero = {0}, int64[1] rest = {-1}>")
    source = save(tmp_path, text.replace("y = Reshape(x, s)", "z = Reshape(x, s) y = Relu(z)"))
    graph = load_graph(f"{source}:n=16")
    assert graph.output_shapes[op(graph, "y")] == ((16, 2),)
    with pytest.raises(InputError, match=r"dimension 0 of tensor 'z'"):
        load_graph(source)


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 17, 20])
def test_shapes_are_computed_under_the_file_s_operator_set(tmp_path: Path, opset: int) -> None:
    new = opset >= 13
    axes = "b = Unsqueeze <axes = [0]> (d)"
    if new:
        axes = "axis0 = Constant <value = int64[1] {0}> () b = Unsqueeze(d, axis0)"
    text = f"""g (float[N, 6, 4] x) => (float[?, ?] y) <int64 zero = {{0}}, int64[1] rest = {{-1}}> {{
        s = Shape(x) d = Gather(s, zero) {axes} e = Concat <axis = 0> (b, rest) y0 = Reshape(x, e) y = Relu(y0) }}"""
    graph = load_graph(save(tmp_path, text, opset=opset) + ":N=3")
    assert graph.output_shapes[op(graph, "y")] == ((3, 24),)
