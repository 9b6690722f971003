"""ONNX models: the nine of the onnx package against published figures, and small ones made here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphs.computation_graph import DTYPES, PARAMETER, ComputationGraph
from graphs.errors import InputError
from graphs.files import decode_graph, encode_graph
from graphs.onnx_import.importer import load_onnx_file, unknown_operators
from graphs.sources import load_graph

LIGHT = Path(os.path.dirname(onnx.__file__)) / "backend/test/data/light"

# Parameters as their authors or torchvision count them. DenseNet's file has a scale and a shift behind each of its 121
# normalisations' own: 83,648 more than the 7,978,856 of torchvision. Multiply-adds: torchvision's figures for
# ResNet-50, DenseNet-121, SqueezeNet 1.1 and VGG-19 (which counts more than products there: 0.5%); Szegedy et al. 2015
# say "1.5 billion" for GoogLeNet, a round figure; the published 2.0 billion for Inception with batch normalisation.
PUBLISHED = {
    "bvlc_alexnet": (60_965_224, None, 0.0),
    "densenet121": (7_978_856 + 83_648, 2.834e9, 0.002),
    "inception_v1": (6_998_552, 1.5e9, 0.05),
    "inception_v2": (None, 2.0e9, 0.02),
    "resnet50": (25_557_032, 4.089e9, 0.002),
    "shufflenet": (None, None, 0.0),
    "squeezenet": (1_235_496, 0.349e9, 0.002),
    "vgg19": (143_667_240, 19.632e9, 0.01),
    "zfnet512": (None, None, 0.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_of_the_onnx_package(name: str) -> None:
    graph = load_onnx_file(LIGHT / f"light_{name}.onnx")
    parameters, multiply_adds, tolerance = PUBLISHED[name]
    if parameters is not None:
        assert graph.parameter_bytes == 4 * parameters
    if multiply_adds is not None:
        assert graph.total_flops == pytest.approx(2 * multiply_adds, rel=tolerance)
    assert unknown_operators(graph) == {}
    assert not set(graph.type_names) & {"Reshape", "Unsqueeze", "ConstantOfShape", "Dropout"}
    assert decode_graph(encode_graph(graph)).sha256 == graph.sha256
    written = [i for i in range(graph.num_ops) if graph.type_names[graph.op_type[i]] not in (PARAMETER, "input")]
    assert (graph.bytes_accessed[written] > 0).all()


def make(
    tmp_path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    *,
    input_type: int = TensorProto.FLOAT,
    domains: tuple[str, ...] = (),
) -> str:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, input_type, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 23), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return str(path)


def op(graph: ComputationGraph, name: str) -> int:
    return graph.op_names.index(name)


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_a_small_model_in_full(tmp_path: Path) -> None:
    source = make(
        tmp_path,
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="/encoder/layer.0/query/MatMul"),
            helper.make_node("Identity", ["b"], ["b2"], name="/encoder/layer.0/query/Identity"),
            helper.make_node("Add", ["h", "b2"], ["h2"], name="/encoder/layer.0/query/Add"),
            helper.make_node("Shape", ["h2"], ["s"]),
            helper.make_node("Reshape", ["h2", "s"], ["h3"]),
            helper.make_node("Relu", ["h3"], ["y"], name="/encoder/Relu"),
        ],
        {"x": [6, 5, 10]},
        ["y"],
        {"w": f32(10, 20), "b": f32(20)},
    )
    graph = load_graph(source)
    assert graph.op_names == (
        *("x", "w", "/encoder/layer.0/query/MatMul", "b", "/encoder/layer.0/query/Add"),  # Identity hands b on
        "/encoder/Relu",
    )
    product = op(graph, "/encoder/layer.0/query/MatMul")
    assert graph.flops[product] == 2 * 30 * 10 * 20 == graph.total_flops
    assert graph.bytes_accessed[product] == 4 * (300 + 200 + 600)
    assert graph.batch[product] == 30  # rows of the data
    assert graph.batch[op(graph, "/encoder/Relu")] == 6
    # "encoder" is where all of them are, and so is no module.
    assert [graph.module_names[m] for m in graph.module] == ["", *["layer.0.query"] * 4, ""]
    assert graph.resident_bytes.sum(0).tolist() == [4 * 220, 0, 0, 0]
    relu = op(graph, "/encoder/Relu")
    readers = {graph.op_names[p]: c for p, c in zip(graph.edge_producer, graph.consumers, strict=True)}
    assert readers["/encoder/layer.0/query/Add"] == relu  # through the view


LSTM = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8, direction="bidirectional")
GRU = helper.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=8)
CONV = helper.make_node("Conv", ["x", "w"], ["y"], group=2)
EINSUM = helper.make_node("Einsum", ["x", "w"], ["y"], equation="...ij,jk->...ik")
ATTENTION = helper.make_node("Attention", ["x", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=2)


@pytest.mark.parametrize(
    ("node", "shape", "weights", "flops", "rows"),
    [
        (CONV, [2, 4, 9, 9], {"w": f32(6, 2, 3, 3)}, 2 * 2 * 6 * 49 * 18, 98),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            [2, 4, 9, 9],
            {"w": f32(4, 3, 2, 2)},
            2 * 2 * 4 * 81 * 12,
            2 * 18 * 18,
        ),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1), [7, 3], {"w": f32(5, 7)}, 2 * 3 * 7 * 5, 3),
        (helper.make_node("MatMul", ["w", "x"], ["y"]), [7, 3], {"w": f32(5, 7)}, 2 * 3 * 7 * 5, 3),
        (LSTM, [11, 4, 5], {"w": f32(2, 32, 5), "r": f32(2, 32, 8)}, 2 * 2 * 11 * 4 * 32 * 13, 4),
        (GRU, [11, 4, 5], {"w": f32(1, 24, 5), "r": f32(1, 24, 8)}, 2 * 11 * 4 * 24 * 13, 4),
        (EINSUM, [2, 3, 4], {"w": f32(4, 5)}, 2 * 2 * 3 * 4 * 5, 2),
        # Four query heads of 8 over six keys, twice.
        (ATTENTION, [2, 3, 32], {"k": f32(2, 6, 16), "v": f32(2, 6, 16)}, 2 * 2 * 2 * 4 * 3 * 6 * 8, 2),
        (helper.make_node("Softmax", ["x"], ["y"]), [2, 3], {}, 0, 2),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_flops_and_rows(tmp_path: Path, node: onnx.NodeProto, shape: Any, weights: Any, flops: int, rows: int) -> None:
    graph = load_graph(make(tmp_path, [node], {"x": shape}, ["y"], weights))
    made = graph.num_ops - 1
    assert (graph.flops[made], graph.batch[made]) == (flops, rows)


def test_shapes_that_the_model_computes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "two"], ["rows"]),
        helper.make_node("ReduceProd", ["rows"], ["count"], keepdims=1),  # ONNX's inference does not follow this
        helper.make_node("Concat", ["count", "ten"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["x2"]),
        helper.make_node("MatMul", ["x2", "w"], ["y"], name="product"),
    ]
    small = {"zero": np.array([0]), "two": np.array([2]), "ten": np.array([10])}
    source = make(tmp_path, nodes, {"x": ["batch", 3, 5, 2]}, ["y"], {"w": f32(10, 7), **small})
    graph = load_graph(f"{source}:batch=4")
    product = op(graph, "product")
    assert graph.op_names == ("x", "w", "product")
    assert graph.output_shapes[product] == ((12, 7),)
    assert graph.flops[product] == 2 * 12 * 10 * 7  # of the reshaped operand
    assert graph.batch[product] == 12


def test_quantized_products_compute_in_int8_and_weights_stay_int8(tmp_path: Path) -> None:
    scale, zero = np.ones((), np.float32), np.zeros((), np.uint8)
    source = make(
        tmp_path,
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
            helper.make_node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], ["p"], name="product"),
            helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"], name="dequantize"),
        ],
        {"x": [4, 100]},
        ["y"],
        {"w": np.zeros((100, 50), np.uint8), "s": scale, "z": zero},
    )
    graph = load_graph(source)
    product = op(graph, "product")
    assert graph.flops[product] == 2 * 4 * 100 * 50
    assert graph.bytes_accessed[product] == 400 + 5000 + 200
    assert DTYPES[graph.dtype[product]] == "int8"
    assert graph.parameter_bytes == 5000


def test_a_lookup_reads_rows_and_a_named_dimension_gets_a_size(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"], name="lookup")]
    source = make(tmp_path, nodes, {"x": ["batch", 2]}, ["y"], {"table": f32(10_000, 16)}, input_type=TensorProto.INT64)
    with pytest.raises(InputError, match=r"dimension 'batch' of input 'x' is not fixed.*model.onnx:batch=8$"):
        load_graph(source)
    graph = load_graph(f"{source}:batch=3")
    assert graph.bytes_accessed[op(graph, "lookup")] == 2 * 3 * 2 * 16 * 4 + 3 * 2 * 8
    with pytest.raises(InputError, match=r"unknown dimension 'bach' \(did you mean 'batch'"):
        load_graph(f"{source}:bach=3")


def test_an_unknown_operator_is_charged_by_bytes_and_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Fancy", ["x"], ["h"], domain="com.example", name="fancy"),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    source = make(tmp_path, nodes, {"x": [4, 5]}, ["y"], domains=("com.example",))
    with pytest.raises(InputError, match=r"the shape of tensor 'h' of operator Fancy 'fancy' is not.*:h=4x5$"):
        load_graph(source)
    model = onnx.load(source)
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [4, 5]))
    onnx.save(model, source)
    graph = load_graph(source)
    assert unknown_operators(graph) == {"com.example::Fancy": 1}
    assert graph.bytes_accessed[op(graph, "fancy")] == 160


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [helper.make_node("NonZero", ["x"], ["y"], name="find")],
            "dimension 1 of tensor 'y' of operator NonZero 'find' (2, ?) is not fixed; give it a size",
        ),
        ([helper.make_node("Relu", ["nowhere"], ["y"], name="r")], "operator Relu 'r' reads tensor 'nowhere'"),
        ([], "it holds no operators"),
        (
            [helper.make_node("If", ["x"], ["y"], name="choose")],
            "operator If 'choose' decides in the step what is computed",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, nodes: list[onnx.NodeProto], message: str) -> None:
    source = make(tmp_path, nodes, {"x": [4, 5]}, ["y"])
    with pytest.raises(InputError) as caught:
        load_graph(source)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"ONNX file '{source}': ")


def test_a_damaged_file_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="it is not an ONNX model, or was cut short"):
        load_graph(str(path))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        InputError, match=r"needs the package 'onnx'; install it with: pip install 'device-placement\[onnx\]'"
    ):
        load_graph(str(path))


def test_scopes_that_pytorch_records_name_the_module(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"], name="a"), helper.make_node("Relu", ["h"], ["y"], name="b")]
    for node, scope in zip(nodes, ("['', 'block', 'block.0', 'relu']", "['', 'head', 'relu_1']"), strict=True):
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scope)
    graph = load_graph(make(tmp_path, nodes, {"x": [2]}, ["y"]))
    assert [graph.module_names[m] for m in graph.module] == ["", "block.0", "head"]
