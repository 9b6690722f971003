"""Operators that ONNX Runtime's own tools write: shapes and FLOPs against formulas, over many sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphs.computation_graph import DTYPES
from graphs.errors import InputError
from graphs.onnx_import.importer import load_onnx_file, unknown_operators

F, H, I32, U8, I8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.UINT8, TensorProto.INT8
I64, BOOL = TensorProto.INT64, TensorProto.BOOL


@dataclass
class Case:
    """One operator: what goes in (None is left out), what comes out, and its FLOPs.

    An input is a shape of floats, a shape with a type, or an array, which is a constant.
    """

    op: str
    inputs: list[Any]
    outputs: list[tuple[int, ...] | None]
    flops: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"


def sizes(rng: np.random.Generator) -> dict[str, int]:
    """Batch, length, past, heads, groups of heads, size of a head, hidden, rows of a table, kernel, channels."""
    low = {"B": 1, "S": 1, "P": 1, "G": 1, "R": 1, "d": 1, "h": 1, "V": 5, "k": 1, "C": 1, "M": 1}
    s = {key: int(rng.integers(start, start + 6)) for key, start in low.items()}
    return s | {"d": 8 * s["d"], "N": s["G"] * s["R"], "D": s["G"] * s["R"] * 8 * s["d"], "L": s["S"] + 3}


ONE = np.ones((), np.float32)
ZERO = np.zeros((), np.uint8)


def _gelu(name: str) -> Callable[[dict[str, int]], Case]:
    return lambda s: Case(name, [(s["B"], s["S"], s["d"]), (s["d"],)], [(s["B"], s["S"], s["d"])])


MAKERS: dict[str, Callable[[dict[str, int]], Case]] = {
    "Attention": lambda s: Case(
        "Attention",
        [(s["B"], s["S"], 6), (6, 3 * s["D"]), (3 * s["D"],)],
        [(s["B"], s["S"], s["D"])],
        2 * s["B"] * s["S"] * 6 * 3 * s["D"] + 2 * 2 * s["B"] * s["N"] * s["S"] * s["S"] * s["d"],
        {"num_heads": s["N"]},
    ),
    "Attention, past": lambda s: Case(
        "Attention",
        [(s["B"], s["S"], 6), (6, 3 * s["D"]), (3 * s["D"],), None, (2, s["B"], s["N"], s["P"], s["d"])],
        [(s["B"], s["S"], s["D"]), (2, s["B"], s["N"], s["P"] + s["S"], s["d"])],
        2 * s["B"] * s["S"] * 6 * 3 * s["D"] + 2 * 2 * s["B"] * s["N"] * s["S"] * (s["P"] + s["S"]) * s["d"],
        {"num_heads": s["N"], "unidirectional": 1},
    ),
    "QAttention": lambda s: Case(
        "QAttention",
        [
            ((s["B"], s["S"], 8), U8),
            np.zeros((8, 3 * s["D"]), np.int8),
            (3 * s["D"],),
            (1,),
            (1,),
            None,
            ((1,), U8),
            ((1,), I8),
        ],
        [(s["B"], s["S"], s["D"])],
        2 * s["B"] * s["S"] * 8 * 3 * s["D"] + 2 * 2 * s["B"] * s["N"] * s["S"] * s["S"] * s["d"],
        {"num_heads": s["N"]},
        "int8",
    ),
    "MultiHeadAttention": lambda s: Case(
        "MultiHeadAttention",
        [(s["B"], s["S"], s["D"]), (s["B"], s["L"], s["D"]), (s["B"], s["L"], s["D"])],
        [(s["B"], s["S"], s["D"])],
        2 * 2 * s["B"] * s["N"] * s["S"] * s["L"] * s["d"],
        {"num_heads": s["N"]},
    ),
    "MultiHeadAttention, past": lambda s: Case(
        "MultiHeadAttention",
        [(s["B"], s["S"], s["D"])] * 3 + [None] * 3 + [(s["B"], s["N"], s["P"], s["d"])] * 2,
        [(s["B"], s["S"], s["D"])] + [(s["B"], s["N"], s["P"] + s["S"], s["d"])] * 2,
        2 * 2 * s["B"] * s["N"] * s["S"] * (s["P"] + s["S"]) * s["d"],
        {"num_heads": s["N"], "unidirectional": 1},
    ),
    "GroupQueryAttention": lambda s: Case(
        "GroupQueryAttention",
        [(s["B"], s["S"], s["D"])]
        + [(s["B"], s["S"], s["G"] * s["d"])] * 2
        + [(s["B"], s["G"], s["P"], s["d"])] * 2
        + [((s["B"],), I32), ((1,), I32)],
        [(s["B"], s["S"], s["D"])] + [(s["B"], s["G"], s["P"] + s["S"], s["d"])] * 2,
        2 * 2 * s["B"] * s["N"] * s["S"] * (s["P"] + s["S"]) * s["d"],
        {"num_heads": s["N"], "kv_num_heads": s["G"]},
    ),
    "GroupQueryAttention, packed": lambda s: Case(
        "GroupQueryAttention",
        [(s["B"], s["S"], (s["N"] + 2 * s["G"]) * s["d"]), None, None]
        + [(s["B"], s["G"], s["P"], s["d"])] * 2
        + [((s["B"],), I32), np.array([s["P"] + s["S"] + 2], np.int32)],
        [(s["B"], s["S"], s["D"])] + [(s["B"], s["G"], s["P"] + s["S"] + 2, s["d"])] * 2,
        2 * 2 * s["B"] * s["N"] * s["S"] * (s["P"] + s["S"] + 2) * s["d"],
        {"num_heads": s["N"], "kv_num_heads": s["G"]},
    ),
    "FusedMatMul": lambda s: Case(
        "FusedMatMul",
        [(s["B"], s["d"], s["S"]), (s["V"], s["d"])],
        [(s["B"], s["S"], s["V"])],
        2 * s["B"] * s["S"] * s["d"] * s["V"],
        {"transA": 1, "transB": 1, "alpha": 0.5},
    ),
    "FusedMatMul, batch": lambda s: Case(
        "FusedMatMul",
        [(s["S"], s["B"], s["d"]), (s["B"], s["d"], s["V"])],
        [(s["B"], s["S"], s["V"])],
        2 * s["B"] * s["S"] * s["d"] * s["V"],
        {"transBatchA": 1},
    ),
    "FusedGemm": lambda s: Case(
        "FusedGemm",
        [(s["S"], s["d"]), (s["V"], s["d"]), (s["V"],)],
        [(s["S"], s["V"])],
        2 * s["S"] * s["d"] * s["V"],
        {"transB": 1, "activation": "Relu"},
    ),
    "MatMulNBits": lambda s: Case(
        "MatMulNBits",
        [(s["B"], s["S"], 32 * s["k"]), np.zeros((s["V"], s["k"], 16), np.uint8), (s["V"] * s["k"],)],
        [(s["B"], s["S"], s["V"])],
        2 * s["B"] * s["S"] * 32 * s["k"] * s["V"],
        {"K": 32 * s["k"], "N": s["V"], "bits": 4, "block_size": 32},
    ),
    "MatMulIntegerToFloat": lambda s: Case(
        "MatMulIntegerToFloat",
        [((s["B"], s["S"], s["d"]), U8), np.zeros((s["d"], s["V"]), np.uint8), (1,), (1,)],
        [(s["B"], s["S"], s["V"])],
        2 * s["B"] * s["S"] * s["d"] * s["V"],
        {},
        "int8",
    ),
    "DynamicQuantizeMatMul": lambda s: Case(
        "DynamicQuantizeMatMul",
        [(s["B"], s["S"], s["d"]), np.zeros((s["d"], s["V"]), np.int8), (1,)],
        [(s["B"], s["S"], s["V"])],
        2 * s["B"] * s["S"] * s["d"] * s["V"],
        {},
        "int8",
    ),
    "QGemm": lambda s: Case(
        "QGemm",
        [((s["S"], s["d"]), U8), ONE, ZERO, np.zeros((s["V"], s["d"]), np.uint8), ONE, ZERO],
        [(s["S"], s["V"])],
        2 * s["S"] * s["d"] * s["V"],
        {"transB": 1},
        "int8",
    ),
    "DynamicQuantizeLSTM": lambda s: Case(
        "DynamicQuantizeLSTM",
        [(s["S"], s["B"], s["d"]), np.zeros((2, s["d"], 4 * s["h"]), np.uint8)]
        + [np.zeros((2, s["h"], 4 * s["h"]), np.uint8), np.zeros((2, 8 * s["h"]), np.float32)]
        + [None] * 4
        + [np.ones(2, np.float32), np.zeros(2, np.uint8), np.ones(2, np.float32), np.zeros(2, np.uint8)],
        [(s["S"], 2, s["B"], s["h"]), (2, s["B"], s["h"]), (2, s["B"], s["h"])],
        2 * 2 * s["S"] * s["B"] * 4 * s["h"] * (s["d"] + s["h"]),
        {"hidden_size": s["h"], "direction": "bidirectional"},
        "int8",
    ),
    "FusedConv": lambda s: Case(
        "FusedConv",
        [(s["B"], 2 * s["C"], 9, 7), (2 * s["M"], s["C"], 3, 3), (2 * s["M"],)],
        [(s["B"], 2 * s["M"], 5, 4)],
        2 * s["B"] * 2 * s["M"] * 5 * 4 * s["C"] * 9,
        {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2], "activation": "Relu"},
    ),
    "QLinearConv, channels last": lambda s: Case(
        "QLinearConv",
        [((s["B"], 9, 7, s["C"]), U8), ONE, ZERO, np.zeros((s["M"], s["C"], 3, 3), np.uint8), ONE, ZERO, ONE, ZERO],
        [(s["B"], 7, 5, s["M"])],
        2 * s["B"] * s["M"] * 7 * 5 * s["C"] * 9,
        {"channels_last": 1},
        "int8",
    ),
    "QLinearAdd": lambda s: Case(
        "QLinearAdd",
        [((s["B"], s["S"], s["d"]), U8), ONE, ZERO, ((s["S"], 1), U8), ONE, ZERO, ONE, ZERO],
        [(s["B"], s["S"], s["d"])],
        dtype="uint8",
    ),
    "QLinearConcat": lambda s: Case(
        "QLinearConcat",
        [ONE, ZERO, ((s["B"], s["S"]), U8), ONE, ZERO, ((s["B"], s["L"]), U8), ONE, ZERO],
        [(s["B"], s["S"] + s["L"])],
        attributes={"axis": 1},
        dtype="uint8",
    ),
    "QLinearGlobalAveragePool": lambda s: Case(
        "QLinearGlobalAveragePool",
        [((s["B"], s["C"], 6, 5), U8), ONE, ZERO, ONE, ZERO],
        [(s["B"], s["C"], 1, 1)],
        dtype="uint8",
    ),
    "QLinearAveragePool": lambda s: Case(
        "QLinearAveragePool",
        [((s["B"], 6, 4, s["C"]), U8), ONE, ZERO, ONE, ZERO],
        [(s["B"], 3, 2, s["C"])],
        attributes={"kernel_shape": [2, 2], "strides": [2, 2], "channels_last": 1},
        dtype="uint8",
    ),
    "QLinearSoftmax": lambda s: Case(
        "QLinearSoftmax",
        [((s["B"], s["S"]), U8), ONE, ZERO, ONE, ZERO],
        [(s["B"], s["S"])],
        attributes={"opset": 13},
        dtype="uint8",
    ),
    "SkipLayerNormalization": lambda s: Case(
        "SkipLayerNormalization",
        [(s["B"], s["S"], s["d"])] * 2 + [(s["d"],)] * 3,
        [(s["B"], s["S"], s["d"]), None, None, (s["B"], s["S"], s["d"])],
    ),
    "SkipSimplifiedLayerNormalization": lambda s: Case(
        "SkipSimplifiedLayerNormalization",
        [(s["B"], s["S"], s["d"])] * 2 + [(s["d"],)],
        [(s["B"], s["S"], s["d"]), None, None, (s["B"], s["S"], s["d"])],
    ),
    "EmbedLayerNormalization": lambda s: Case(
        "EmbedLayerNormalization",
        [((s["B"], s["S"]), I32)] * 2 + [(s["V"], s["d"]), (s["L"], s["d"]), (2, s["d"]), (s["d"],), (s["d"],)],
        [(s["B"], s["S"], s["d"]), (s["B"],), (s["B"], s["S"], s["d"])],
    ),
    **{name: _gelu(name) for name in ("BiasGelu", "FastGelu")},
    "QuickGelu": lambda s: Case("QuickGelu", [(s["B"], s["d"])], [(s["B"], s["d"])]),
    "RotaryEmbedding": lambda s: Case(
        "RotaryEmbedding",
        [(s["B"], s["N"], s["S"], s["d"]), ((1,), I64), (s["L"], s["d"] // 2), (s["L"], s["d"] // 2)],
        [(s["B"], s["N"], s["S"], s["d"])],
    ),
    "DequantizeLinear": lambda s: Case(
        "DequantizeLinear", [((s["B"], s["S"]), U8), (), ((), U8)], [(s["B"], s["S"])], dtype="float32"
    ),
    "GatherBlockQuantized": lambda s: Case(
        "GatherBlockQuantized",
        [np.zeros((s["V"], 16), np.uint8), ((s["B"], s["S"]), I64), (s["V"], 2)],
        [(s["B"], s["S"], 32)],
        attributes={"bits": 4, "block_size": 16, "gather_axis": 0, "quantize_axis": 1},
    ),
    "MoE": lambda s: Case(
        "MoE",
        [(s["S"], s["d"]), (s["S"], 4), (4, s["d"], s["D"]), None, (4, s["D"], s["d"])],
        [(s["S"], s["d"])],
        2 * s["S"] * 2 * 2 * s["d"] * s["D"],
        {"k": 2},
    ),
}


def build(case: Case, *, opset: int = 17) -> onnx.ModelProto:
    """A model of one operator."""
    names, inputs, constants = [], [], []
    for i, given in enumerate(case.inputs):
        names.append("" if given is None else f"i{i}")
        if isinstance(given, np.ndarray):
            constants.append(numpy_helper.from_array(given, names[-1]))
        elif given is not None:
            typed = len(given) == 2 and isinstance(given[0], tuple)
            shape, elem_type = given if typed else (given, F)
            inputs.append(helper.make_tensor_value_info(names[-1], elem_type, shape))
    outputs = ["" if shape is None else f"o{i}" for i, shape in enumerate(case.outputs)]
    node = helper.make_node(case.op, names, outputs, name="op", domain="com.microsoft", **case.attributes)
    empty = [helper.make_empty_tensor_value_info(name) for name in outputs if name]
    graph = helper.make_graph([node], "one", inputs, empty, constants)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize("name", MAKERS)
def test_shapes_and_flops(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        case = MAKERS[name](sizes(rng))
        onnx.save(build(case), tmp_path / "model.onnx")
        graph = load_onnx_file(tmp_path / "model.onnx")
        made = graph.op_names.index("op")
        assert graph.output_shapes[made] == tuple(shape for shape in case.outputs if shape is not None)
        assert graph.flops[made] == case.flops
        assert DTYPES[graph.dtype[made]] == case.dtype
        assert graph.bytes_accessed[made] > 0
        assert graph.type_names[graph.op_type[made]] == case.op
        assert unknown_operators(graph) == {}


def test_fused_attention_costs_what_it_replaces(tmp_path: Path) -> None:
    def total(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> int:
        constants = [numpy_helper.from_array(value, key) for key, value in weights.items()]
        x = helper.make_tensor_value_info("x", F, [2, 5, 32])
        graph = helper.make_graph(nodes, "a", [x], [helper.make_empty_tensor_value_info("y")], constants)
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=imports), tmp_path / "model.onnx")
        return load_onnx_file(tmp_path / "model.onnx").total_flops

    heads = np.array([0, 0, 4, 8])
    plain = []
    for part in "qkv":
        plain += [helper.make_node("MatMul", ["x", f"w{part}"], [f"{part}0"])]
        plain += [helper.make_node("Reshape", [f"{part}0", "heads"], [f"{part}1"])]
        perm = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
        plain += [helper.make_node("Transpose", [f"{part}1"], [part], perm=perm)]
    plain += [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    weight = np.zeros((32, 32), np.float32)
    fused = helper.make_node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=4)
    together = {"w": np.zeros((32, 96), np.float32), "b": np.zeros(96, np.float32)}
    assert total(plain, {f"w{p}": weight for p in "qkv"} | {"heads": heads}) == total([fused], together)


def test_a_lookup_reads_its_rows_alone(tmp_path: Path) -> None:
    s = sizes(np.random.default_rng(1)) | {"V": 100_000}
    onnx.save(build(MAKERS["EmbedLayerNormalization"](s)), tmp_path / "model.onnx")
    graph = load_onnx_file(tmp_path / "model.onnx")
    assert graph.bytes_accessed[graph.op_names.index("op")] < 10 * 4 * s["B"] * s["S"] * s["d"] + 10_000


@pytest.mark.parametrize(
    "case",
    [
        Case("MatMulNBits", [(2, 32), (4, 1, 16)], [(2, 4)]),
        Case("MatMulNBits", [(2, 31), (4, 1, 16)], [(2, 4)], attributes={"K": 32, "N": 4}),
        Case("Attention", [(2, 4, 6)], [(2, 4, 8)], attributes={"num_heads": 2}),
        Case("Attention", [(2, 4, 6), (6, 24)], [(2, 4, 8)]),
        Case("FusedMatMul", [(2, 4), (5, 6)], [(2, 6)]),
        Case("QLinearConcat", [], [(1,)], attributes={"axis": 0}),
        Case("GroupQueryAttention", [(2, 4)], [(2, 4)], attributes={"num_heads": 2, "kv_num_heads": 0}),
        Case("FusedConv", [(2, 4), (5, 6)], [(2, 6)]),
    ],
    ids=lambda case: case.op,
)
def test_what_does_not_fit_is_refused(tmp_path: Path, case: Case) -> None:
    onnx.save(build(case), tmp_path / "model.onnx")
    with pytest.raises(InputError, match=f"operator {case.op} 'op'"):
        load_onnx_file(tmp_path / "model.onnx")


def test_the_standard_s_operators_in_older_sets(tmp_path: Path) -> None:
    """ONNX Runtime writes LayerNormalization into models of operator set 11."""
    node = helper.make_node("LayerNormalization", ["x", "w"], ["y"], name="op")
    x = helper.make_tensor_value_info("x", F, [2, 5, 8])
    weight = numpy_helper.from_array(np.ones(8, np.float32), "w")
    graph = helper.make_graph([node], "one", [x], [helper.make_empty_tensor_value_info("y")], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)]), tmp_path / "model.onnx")
    assert load_onnx_file(tmp_path / "model.onnx").output_shapes[-1] == ((2, 5, 8),)
