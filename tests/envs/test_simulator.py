from dataclasses import fields

import numpy as np
import pytest

from envs.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from envs.simulator import SCHEDULES, simulate, simulate_batch
from envs.simulator_plain import simulate_plain
from envs.trace import Trace
from graphs.groups import one_group_an_op
from graphs.synthetic import random_graph


def star(devices: int) -> Cluster:
    gpu = DeviceSpec("k80", "gpu", 12 * 10**9, {"float32": 2e12}, 180e9, 6e-6, tile=32)
    cpu = DeviceSpec("xeon", "cpu", 64 * 10**9, {"float32": 0.5e12}, 54e9, 3e-6)
    made = (Device("cpu:0", cpu), *(Device(f"gpu:{i}", gpu) for i in range(devices - 1)))
    return Cluster("star", made, tuple(Link(d.name, "switch", 10e9, 10e-6) for d in made), ("switch",))


def assert_same(a: Trace, b: Trace) -> None:
    for field in fields(Trace):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, tuple):
            assert len(x) == len(y)
            for left, right in zip(x, y, strict=True):
                np.testing.assert_array_equal(left, right, err_msg=field.name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=field.name)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("devices", [1, 2, 5])
def test_the_kernel_equals_the_plain_version(devices: int, schedule: str) -> None:
    for seed in range(6):
        graph = random_graph([1, 2, 7, 40, 100, 300][seed], seed=seed, locality=4 + 10 * seed, resident_bytes=10**6)
        problem = PlacementProblem(graph, one_group_an_op(graph), star(devices), schedule)
        placements = np.random.default_rng(seed).integers(0, devices, size=(3, graph.num_ops))
        step_time_s, peak = simulate_batch(problem.simulator_input, placements, threads=2)
        for b, placement in enumerate(placements):
            plain = simulate_plain(problem.simulator_input, placement)
            assert_same(simulate(problem.simulator_input, placement), plain)
            assert step_time_s[b] == plain.step_time_s
            np.testing.assert_array_equal(peak[b], plain.peak_memory_bytes)
