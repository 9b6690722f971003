"""Small graphs, clusters and comparisons that the tests of the simulator share."""

from dataclasses import fields, replace

import numpy as np

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from envs.simulator.trace import Trace
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build

GB = 10**9
SPEC = DeviceSpec("unit", "gpu", 16 * GB, {"float32": 1e12}, 1e11)


def star(devices: int) -> Cluster:
    """A CPU and GPUs around one switch, so that every transfer crosses two links."""
    gpu = DeviceSpec("k80", "gpu", 12 * GB, {"float32": 2e12}, 180e9, 6e-6, tile=32)
    cpu = DeviceSpec("xeon", "cpu", 64 * GB, {"float32": 0.5e12}, 54e9, 3e-6)
    made = (Device("cpu:0", cpu), *(Device(f"gpu:{i}", gpu) for i in range(devices - 1)))
    return Cluster("star", made, tuple(Link(d.name, "switch", 10e9, 10e-6) for d in made), ("switch",))


def line(devices: int, *, bytes_per_s: float = 1.0, latency_s: float = 0.0) -> Cluster:
    """Like devices in a row: gpu:0 - gpu:1 - ...; a transfer crosses all links between its ends."""
    made = tuple(Device(f"gpu:{i}", SPEC) for i in range(devices))
    links = tuple(Link(f"gpu:{i}", f"gpu:{i + 1}", bytes_per_s, latency_s) for i in range(devices - 1))
    return Cluster("line", made, links)


def hub(devices: int, *, bytes_per_s: float = 1.0, latency_s: float = 0.0) -> Cluster:
    """Like devices around one switch."""
    made = tuple(Device(f"gpu:{i}", SPEC) for i in range(devices))
    return Cluster("hub", made, tuple(Link(d.name, "s", bytes_per_s, latency_s) for d in made), ("s",))


def graph_of(
    times_s: list[float],
    tensors: list[tuple[int, int, list[int]]],
    *,
    resident: dict[int, int] | None = None,
    resident_tensors: tuple[int, ...] = (),
) -> ComputationGraph:
    """A graph whose ops take the given seconds on every device.

    Args:
        times_s: Seconds by op; the ops are called a, b, c, ...
        tensors: ``(producer, bytes, readers)``.
        resident: Resident (parameter) bytes by op.
        resident_tensors: Which tensors are among their producer's resident bytes.
    """
    resident = resident or {}
    ops = [
        OpRecord(
            name=chr(ord("a") + i) if len(times_s) <= 26 else f"op{i}",
            type="add",
            resident_bytes={"parameter": resident[i]} if i in resident else {},
            time_s=dict.fromkeys(("unit", "k80", "xeon"), t),
        )
        for i, t in enumerate(times_s)
    ]
    records = [TensorRecord(p, size, readers, n in resident_tensors) for n, (p, size, readers) in enumerate(tensors)]
    return build("hand-made", ops, records)


def timed(graph: ComputationGraph, transfer_s: dict[int, float]) -> ComputationGraph:
    """The graph in which transfers of some tensors take given seconds."""
    seconds = np.full(graph.num_tensors, np.nan)
    seconds[list(transfer_s)] = list(transfer_s.values())
    return replace(graph, tensor_transfer_s=seconds)


def problem_of(graph: ComputationGraph, cluster: Cluster, schedule: str = "priority") -> PlacementProblem:
    return PlacementProblem(graph, one_group_an_op(graph), cluster, schedule)


def assert_same_trace(a: Trace, b: Trace) -> None:
    """Every field equal, to the last bit."""
    for field in fields(Trace):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, tuple):
            assert len(x) == len(y)
            for left, right in zip(x, y, strict=True):
                np.testing.assert_array_equal(left, right, err_msg=field.name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=field.name)
