"""Tiny placement problems whose best placement can be found by trying all."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from placement.learning.config import LearningConfig, flatten, unflatten


def cluster(num_devices: int, *, memory_bytes: int = 10**9, speeds: tuple[float, ...] = ()) -> Cluster:
    """Devices of 1 TFLOP/s (or other `speeds`, relative) on a bus of 1 GB/s."""
    rates = speeds or (1.0,) * num_devices
    devices = tuple(
        Device(
            f"gpu:{i}",
            DeviceSpec(f"spec{rates[i]}", "gpu", memory_bytes, {"float32": rates[i] * 1e12}, rates[i] * 1e11),
        )
        for i in range(num_devices)
    )
    links = tuple(Link(d.name, "bus", 1e9, 1e-6) for d in devices)
    return Cluster(f"test{num_devices}", devices, links, switches=("bus",))


def branches(num_branches: int, length: int, *, seed: int = 0, resident_bytes: int = 0) -> PlacementProblem:
    """A root, parallel chains of unequal ops, and a sink, on two devices: a group an op, all in milliseconds."""
    rng = np.random.default_rng(seed)
    ops = [OpRecord("root", "input_like", flops=10**6)]
    tensors = []
    readers_of_root = []
    tails = []
    for branch in range(num_branches):
        for i in range(length):
            flops = int(rng.integers(1, 6)) * 10**9
            index = len(ops)
            ops.append(
                OpRecord(
                    f"branch{branch}/op{i}",
                    "mm",
                    module=f"branch{branch}",
                    flops=flops,
                    resident_bytes={"parameter": resident_bytes},
                    output_shapes=((16, 16),),
                )
            )
            if i == 0:
                readers_of_root.append(index)
            else:
                tensors.append(TensorRecord(index - 1, int(rng.integers(1, 5)) * 10**5, [index]))
        tails.append(len(ops) - 1)
    sink = len(ops)
    ops.append(OpRecord("sink", "sum", flops=10**6))
    tensors.append(TensorRecord(0, 10**5, readers_of_root))
    tensors += [TensorRecord(tail, 10**5, [sink]) for tail in tails]
    graph = build(f"branches{num_branches}x{length}", ops, tensors)
    return PlacementProblem(graph, one_group_an_op(graph), cluster(2, speeds=(1.0, 1.3)))


def optimum_s(problem: PlacementProblem) -> float:
    """Step time of the best feasible placement, found by trying all of them."""
    every = np.array(list(itertools.product(range(problem.num_devices), repeat=problem.num_groups)))
    return float(problem.evaluate(every).cost_s().min())


def with_settings(config: LearningConfig, **changes: Any) -> LearningConfig:
    """A config with other values of some settings, by their flat names."""
    return unflatten(flatten(config) | changes, config)
