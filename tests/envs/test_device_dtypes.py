"""Batch and dtype change the cost as hardware does, on captured ops and on made-up ones; some devices lack a dtype."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from envs.allowed import divide_by_dtype
from envs.clusters.catalog import DEVICE_SPECS, load_cluster
from envs.cost_model import op_times_s
from envs.problem import PlacementProblem
from graphs.capture import capture
from graphs.colocation.groups import make_groups, one_group_an_op
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError


class Perceptron(nn.Module):
    """Two products of width 4096, without biases, and a ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4096, 4096, bias=False)
        self.second = nn.Linear(4096, 4096, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


class Quantised(nn.Module):
    """The same in int8: weights and activations of a byte, products summed in int32 and scaled back by a shift."""

    first: torch.Tensor
    second: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("first", "second"):
            self.register_buffer(name, torch.zeros(4096, 4096, dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = (torch.relu(torch._int_mm(x, self.first)) >> 8).to(torch.int8)
        return torch._int_mm(hidden, self.second)


def perceptron(batch: int, dtype: torch.dtype = torch.float32) -> ComputationGraph:
    with torch.device("meta"):
        model = Perceptron().to(dtype)
    return capture(model, torch.zeros(batch, 4096, dtype=dtype), lambda y: y.sum(), optimizer="sgd")


def quantised(batch: int) -> ComputationGraph:
    with torch.device("meta"):
        model = Quantised()
    return capture(model, torch.zeros(batch, 4096, dtype=torch.int8), training=False)


def busy_s(graph: ComputationGraph, device: str, op_type: str) -> NDArray[np.float64]:
    """Times of all ops of a type without the launch."""
    spec = DEVICE_SPECS[device]
    times = op_times_s(graph, spec)[graph.op_type == graph.type_names.index(op_type)]
    assert times.size
    return times - spec.launch_overhead_s


def test_captured_products_of_33_rows_cost_a_gpu_as_much_as_64() -> None:
    times = {batch: busy_s(perceptron(batch), "k80", "mm") for batch in (32, 33, 64, 65)}
    assert times[33].size == 5  # two forward, two for the weights, one for the hidden layer
    np.testing.assert_allclose(times[33], times[64], rtol=1e-9)
    np.testing.assert_allclose(times[33], 2 * 64 * 4096 * 4096 / 2.185e12, rtol=1e-9)
    assert (times[65] > times[64]).all()
    assert (times[33] > times[32]).all()
    # A CPU has no warps.
    cpu = {batch: busy_s(perceptron(batch), "haswell_18c", "mm") for batch in (32, 33)}
    np.testing.assert_allclose(cpu[33], cpu[32] * 33 / 32, rtol=1e-9)


def test_a_captured_convolution_rounds_up_its_pixels() -> None:
    """It is a product with a row for each pixel that it makes: a batch of 33 images of one pixel is padded to 64."""

    def time_s(batch: int, pixels: int) -> float:
        with torch.device("meta"):
            model = nn.Conv2d(2048, 2048, 3, padding=1)
        graph = capture(model, torch.zeros(batch, 2048, pixels, pixels), training=False)
        assert graph.batch.max() == batch * pixels**2
        flops = int(graph.total_flops)
        compute_only = build("conv", [OpRecord("c", "convolution", flops=flops, batch=int(graph.batch.max()))], [])
        return float(busy_s(compute_only, "k80", "convolution")[0]) / flops

    assert time_s(33, 1) * 33 == pytest.approx(time_s(64, 1) * 64)
    assert time_s(33, 8) == pytest.approx(time_s(64, 8))  # 2,112 pixels are 66 warps


def test_made_up_batches_are_rounded_up_to_each_devices_tile() -> None:
    ops = [OpRecord(str(batch), "mm", flops=batch * 10**8, batch=batch) for batch in (1, 16, 32, 33, 64, 65)]
    graph = build("batches", ops, [])
    for device, rows in {
        "k80": [32, 32, 32, 64, 64, 96],
        "tpu_v2_chip": [16, 16, 32, 48, 64, 80],
        "tpu_v2_board": [64, 64, 64, 64, 64, 128],
        "tpu_v1": [1, 16, 32, 33, 64, 65],
        "epyc_7742": [1, 16, 32, 33, 64, 65],
    }.items():
        spec = DEVICE_SPECS[device]
        expected = np.array(rows) * 1e8 / (spec.rate_flops_per_s("float32") * spec.efficiency["product"])
        np.testing.assert_allclose(busy_s(graph, device, "mm"), expected, rtol=1e-9)


def test_captured_half_precision_runs_at_its_own_peak_and_moves_half_the_bytes() -> None:
    single, half = perceptron(4096), perceptron(4096, torch.float16)
    assert half.total_flops == single.total_flops
    for op_type in ("mm", "relu", "threshold_backward", "sgd_update"):
        of_type = half.op_type == half.type_names.index(op_type)
        np.testing.assert_array_equal(half.bytes_accessed[of_type] * 2, single.bytes_accessed[of_type])
    assert half.parameter_bytes * 2 == single.parameter_bytes
    np.testing.assert_array_equal(half.tensor_bytes * 2, single.tensor_bytes)
    # Products at the tensor cores' rate; the rest is bound by bytes.
    np.testing.assert_allclose(busy_s(single, "v100", "mm"), busy_s(half, "v100", "mm") * 125 / 15.7, rtol=1e-9)
    np.testing.assert_allclose(busy_s(single, "v100", "relu"), busy_s(half, "v100", "relu") * 2, rtol=1e-9)
    # A K80 has no half-precision arithmetic, only the smaller tensors; a P100 has twice the rate.
    np.testing.assert_allclose(busy_s(single, "k80", "mm"), busy_s(half, "k80", "mm"), rtol=1e-9)
    np.testing.assert_allclose(busy_s(single, "k80", "relu"), busy_s(half, "k80", "relu") * 2, rtol=1e-9)
    np.testing.assert_allclose(busy_s(single, "p100", "mm"), busy_s(half, "p100", "mm") * 2, rtol=1e-9)


def test_captured_int8_products_run_at_the_int8_peak_and_move_a_quarter_of_the_bytes() -> None:
    batch = 4096
    graph, single = quantised(batch), perceptron(batch)
    products = 2 * 2 * batch * 4096 * 4096
    assert graph.total_flops == products
    assert graph.parameter_bytes == 0
    assert graph.resident_bytes.sum() * 4 == single.parameter_bytes
    for device, peak in {"a100": 624e12, "t4": 130e12, "h100": 1978.9e12}.items():
        np.testing.assert_allclose(busy_s(graph, device, "_int_mm").sum(), products / (peak / 2), rtol=1e-9)
    assert busy_s(graph, "v100", "_int_mm") == pytest.approx(products / 2 / 7.85e12)  # no int8 rate: float32's
    # A TPU v1 would multiply for 3.0 ms, but reads int8 matrices and writes int32 at 27.2 GB/s for longer.
    assert busy_s(graph, "tpu_v1", "_int_mm") == pytest.approx((1 + 1 + 4) * 4096 * 4096 / 27.2e9)


def mixed_problem(cluster: str) -> PlacementProblem:
    """A weight, an int8 product that reads it, and a softmax in float32."""
    ops = [
        OpRecord("weight", "parameter", dtype="float32", resident_bytes={"constant": 8}),
        OpRecord("product", "_int_mm", flops=10**9, bytes_accessed=1000, dtype="int8"),
        OpRecord("softmax", "softmax", bytes_accessed=1000),
    ]
    graph = build("mixed", ops, [TensorRecord(0, 8, [1], resident=True), TensorRecord(1, 1000, [2])])
    return PlacementProblem(graph, one_group_an_op(graph), load_cluster(cluster))


def test_a_device_without_float32_runs_only_the_dtypes_that_it_names() -> None:
    problem = mixed_problem("tpu_v1")
    assert problem.op_allowed.tolist() == [[True, True], [True, True], [True, False]]
    evaluation = problem.evaluate(np.array([[1, 1, 0], [1, 1, 1]]))
    assert evaluation.feasible.tolist() == [True, False]
    assert np.isfinite(evaluation.step_time_s).all()
    assert mixed_problem("k80x2").op_allowed.all()


def test_groups_of_several_dtypes_are_divided_only_for_devices_that_lack_one() -> None:
    problem = mixed_problem("tpu_v1")
    one = make_groups(np.zeros(3, dtype=np.int64), ["layer"], ["layer"], [2])
    divided = divide_by_dtype(problem.graph, one, problem.cluster)
    assert divided.group_of_op.tolist() == [0, 0, 1]
    assert divided.names == ("layer/any_device", "layer")
    assert (divided.family.tolist(), divided.step.tolist()) == ([0, 0], [2, 2])
    assert problem.with_groups(divided).allowed.tolist() == [[True, True], [True, False]]
    assert divide_by_dtype(problem.graph, one, load_cluster("k80x2")) is one
    apart = make_groups(np.arange(3), ["a", "b", "c"], ["", "", ""], [0, 0, 0])
    assert divide_by_dtype(problem.graph, apart, problem.cluster).names == ("a", "b", "c")
    bound = replace(problem.graph, colocation=np.array([-1, 0, 0], dtype=np.int32))
    assert divide_by_dtype(bound, one, problem.cluster).num_groups == 1


def test_tpu_v1_refuses_a_training_or_float_graph_in_one_sentence() -> None:
    graph = perceptron(8)
    with pytest.raises(InputError, match="computes in float32, but the accelerators of cluster 'tpu_v1' only") as error:
        PlacementProblem(graph, one_group_an_op(graph), load_cluster("tpu_v1"))
    assert "int16, int32, int8, uint8" in str(error.value)
    assert "\n" not in str(error.value)
    accepted = quantised(8)
    problem = PlacementProblem(accepted, one_group_an_op(accepted), load_cluster("tpu_v1"))
    assert problem.op_allowed[:, 1].sum() == accepted.num_ops - 1  # all but the input
    on_tpu = np.where(problem.allowed[:, 1], 1, 0)
    assert problem.evaluate(on_tpu[None]).feasible.all()
