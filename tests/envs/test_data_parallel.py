"""A data-parallel step takes what theory says, and its links carry what theory says."""

from __future__ import annotations

import numpy as np
import pytest

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.replicate import replica_placement, replicate

COMPUTE_BYTES, PARAMETER_BYTES = 1000, 120
BYTES_PER_S, LINK_BYTES_PER_S, LATENCY_S = 10.0, 4.0, 0.5


def layer() -> ComputationGraph:
    """One parameter, one op that makes its gradient, its update: 100 s, then 36 s on devices of 10 B/s."""
    ops = [
        OpRecord("w", "parameter", resident_bytes={"parameter": PARAMETER_BYTES, "optimizer": PARAMETER_BYTES}),
        OpRecord("gradient", "add", "backward", bytes_accessed=COMPUTE_BYTES),
        OpRecord("update", "sgd_update", "update", bytes_accessed=3 * PARAMETER_BYTES),
    ]
    tensors = [
        TensorRecord(0, PARAMETER_BYTES, [1, 2], resident=True),
        TensorRecord(1, PARAMETER_BYTES, [2]),
    ]
    return build("layer", ops, tensors, [[0, 2]])


def ring(count: int) -> Cluster:
    spec = DeviceSpec("chip", "gpu", 10**9, {"float32": 1.0}, BYTES_PER_S)
    links = {tuple(sorted((i, (i + 1) % count))) for i in range(count)}
    devices = tuple(Device(f"gpu:{i}", spec) for i in range(count))
    return Cluster("ring", devices, tuple(Link(f"gpu:{a}", f"gpu:{b}", LINK_BYTES_PER_S, LATENCY_S) for a, b in links))


@pytest.mark.parametrize("schedule", ["priority", "fifo", "program_order"])
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_the_step_time_and_the_traffic_of_a_ring_are_the_closed_form(count: int, schedule: str) -> None:
    graph = replicate(layer(), count)
    problem = PlacementProblem(graph, one_group_an_op(graph), ring(count), schedule)
    placement = replica_placement(graph, range(count))
    trace = problem.trace(placement)
    chunk = PARAMETER_BYTES // count
    send_s = LATENCY_S + chunk / LINK_BYTES_PER_S
    add_s = 3 * chunk / BYTES_PER_S
    update_s = 3 * PARAMETER_BYTES / BYTES_PER_S
    expected_s = COMPUTE_BYTES / BYTES_PER_S + (count - 1) * (2 * send_s + add_s) + update_s
    assert trace.step_time_s == pytest.approx(expected_s, rel=1e-12)

    carried: dict[tuple[int, int], int] = {}
    for tensor, a, b in zip(trace.transfer_tensor, trace.transfer_source, trace.transfer_destination, strict=True):
        carried[int(a), int(b)] = carried.get((int(a), int(b)), 0) + int(graph.tensor_bytes[tensor])
    assert carried == {(i, (i + 1) % count): 2 * (count - 1) * PARAMETER_BYTES // count for i in range(count)}
    # Parameter and optimizer state twice 120 bytes; the gradient, or the chunks that have taken its place, and a chunk
    # that arrives while the part that it is added to is still there.
    assert (trace.peak_memory_bytes >= 3 * PARAMETER_BYTES).all()
    assert (trace.peak_memory_bytes <= 3 * PARAMETER_BYTES + 3 * chunk).all()


def test_replicas_on_one_device_have_nothing_to_send() -> None:
    graph = replicate(layer(), 3)
    problem = PlacementProblem(graph, one_group_an_op(graph), ring(2))
    trace = problem.trace(replica_placement(graph, [0, 0, 0]))
    assert trace.transfer_tensor.size == 0
    adds_s = 2 * 3 * 3 * (PARAMETER_BYTES // 3) / BYTES_PER_S
    assert trace.step_time_s == pytest.approx(3 * (100 + 36) + adds_s)


def test_the_ring_of_a_whole_pod_takes_the_closed_form_too() -> None:
    """64 boards with a gradient of 64 MB: every link of the ring carries 2 x 63 chunks of 1 MB."""
    size = 64 * 10**6
    ops = [
        OpRecord("w", "parameter", resident_bytes={"parameter": size}),
        OpRecord("gradient", "add", "backward", bytes_accessed=10**9),
        OpRecord("update", "sgd_update", "update", bytes_accessed=3 * size),
    ]
    one = build("big", ops, [TensorRecord(0, size, [1, 2], resident=True), TensorRecord(1, size, [2])], [[0, 2]])
    graph = replicate(one, 64)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("tpu_v2_pod"))
    placement = replica_placement(graph, range(1, 65), host=0)
    evaluation = problem.evaluate_ops(placement[None])
    assert evaluation.feasible.all()
    board = problem.cluster.devices[1].spec
    seconds = [1e9 / board.memory_bytes_per_s, 63 * 3e6 / board.memory_bytes_per_s, 3 * size / board.memory_bytes_per_s]
    expected_s = sum(seconds) + 65 * board.launch_overhead_s + 2 * 63 * (1e-6 + 1e6 / 111.6e9)
    assert evaluation.step_time_s[0] == pytest.approx(expected_s, rel=1e-9)
    np.testing.assert_array_equal(evaluation.peak_memory_bytes[0, 1:], evaluation.peak_memory_bytes[0, 1])
