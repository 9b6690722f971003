import numpy as np
import pytest

from envs.clusters.cluster import DeviceSpec
from envs.cost_model import op_class, op_times_s
from graphs.computation_graph import ComputationGraph, OpRecord, build


def one_op(**fields: object) -> ComputationGraph:
    return build("one op", [OpRecord(**{"name": "a", "type": "mm", **fields})], [])  # type: ignore[arg-type]


def seconds(spec: DeviceSpec, **fields: object) -> float:
    return float(op_times_s(one_op(**fields), spec)[0])


PLAIN = DeviceSpec("plain", "gpu", 1, {"float32": 1000.0, "bfloat16": 4000.0}, 100.0)


def test_the_longer_of_computing_and_moving_bytes_counts() -> None:
    assert seconds(PLAIN, flops=5000, bytes_accessed=200) == 5.0  # 5000 / 1000 against 200 / 100
    assert seconds(PLAIN, flops=1000, bytes_accessed=200) == 2.0  # 1 against 2


def test_every_op_that_does_something_is_launched_and_a_view_is_not() -> None:
    spec = DeviceSpec("launch", "gpu", 1, {"float32": 1000.0}, 100.0, launch_overhead_s=0.5)
    assert seconds(spec, flops=1000) == 1.5
    assert seconds(spec, type="add", bytes_accessed=100) == 1.5
    assert seconds(spec, type="view") == 0.0


def test_the_rate_is_that_of_the_dtype_or_float32s() -> None:
    assert seconds(PLAIN, flops=4000, dtype="bfloat16") == 1.0
    assert seconds(PLAIN, flops=4000, dtype="float16") == 4.0  # the spec has no float16


def test_each_class_of_op_reaches_its_share_of_the_peak() -> None:
    shares = {"product": 0.5, "convolution": 0.25}
    spec = DeviceSpec("shares", "gpu", 1, {"float32": 1000.0}, 100.0, efficiency=shares)
    assert seconds(spec, type="addmm", flops=1000) == 2.0
    assert seconds(spec, type="convolution_backward", flops=1000) == 4.0
    assert seconds(spec, type="cumsum", flops=1000) == 1.0  # absent: all of it


def test_the_batch_is_rounded_up_to_the_tile() -> None:
    spec = DeviceSpec("warps", "gpu", 1, {"float32": 1000.0}, 100.0, tile=32)
    assert seconds(spec, flops=32_000, batch=32) == 32.0
    assert seconds(spec, flops=33_000, batch=33) == 64.0  # as a batch of 64
    assert seconds(spec, flops=1_000, batch=1) == 32.0
    assert seconds(spec, flops=1_000, batch=0) == 1.0  # no batch dimension


def test_a_small_kernel_does_not_fill_the_device() -> None:
    """At fill_flops it reaches half of the rate: 2000 / (1000 * 2000 / (2000 + 2000)) = 4 s; at ten times, 10 / 11."""
    spec = DeviceSpec("wide", "gpu", 1, {"float32": 1000.0}, 100.0, fill_flops=2000.0)
    assert seconds(spec, flops=2000) == 4.0
    assert seconds(spec, flops=20_000) == pytest.approx(20 * 11 / 10)
    assert seconds(spec, type="add", bytes_accessed=100) == 1.0  # without FLOPs there is nothing to fill


def test_a_profiled_time_wins_where_there_is_one() -> None:
    ops = [
        OpRecord("a", "mm", flops=1000, time_s={"plain": 7.0}),
        OpRecord("b", "mm", flops=1000),
        OpRecord("c", "mm", flops=1000, time_s={"plain": 0.0, "other": 9.0}),
    ]
    np.testing.assert_array_equal(op_times_s(build("profiled", ops, []), PLAIN), [7.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("op_type", "expected"),
    [
        ("mm", "product"),
        ("aten.addmm.default", "product"),
        ("aten::bmm", "product"),
        ("linear", "product"),
        ("_grouped_mm", "product"),
        ("convolution", "convolution"),
        ("conv2d", "convolution"),
        ("convolution_backward", "convolution"),
        ("_scaled_dot_product_flash_attention_backward", "attention"),
        ("convert_element_type", "other"),
        ("comm", "other"),
        ("parameter", "other"),
    ],
)
def test_op_classes(op_type: str, expected: str) -> None:
    assert op_class(op_type) == expected


def test_ops_with_flops_are_of_a_class_that_devices_rate() -> None:
    flops = pytest.importorskip("graphs.capture.flops")
    kinds = [
        *flops.COUNTED,
        *(f"{kind}_backward" for kind in flops.COUNTED),
        "flex_attention",
        "torch_attn._varlen_attn",
    ]
    assert [kind for kind in kinds if op_class(kind) == "other"] == []
