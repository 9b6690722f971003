"""The critical path adds up to the step time, and names the groups by hand-worked figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.catalog import load_cluster
from envs.problem import PlacementProblem
from envs.simulator import SCHEDULES
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.groups import one_group_an_op
from graphs.synthetic import random_graph
from placement.critical_path import critical_group_s
from tests.placement.problems import cluster


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(10))
def test_its_seconds_add_up_to_the_step_time(seed: int, schedule: str) -> None:
    graph = random_graph(120, seed=seed, locality=20)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x4"), schedule)
    placement = np.random.default_rng(seed).integers(0, problem.num_devices, problem.num_groups)
    trace = problem.trace(placement)
    seconds = critical_group_s(problem, trace)
    assert (seconds >= 0).all()
    assert seconds.sum() == pytest.approx(trace.step_time_s, rel=1e-9)


def test_a_transfer_is_shared_and_waiting_for_the_device_goes_to_who_holds_it() -> None:
    """`a` and `b` run on device 0, 2 ms and 3 ms; `c` on device 1 waits for `b` (1 ms of copying), and takes 1 ms."""
    ops = [OpRecord(name, "mm", flops=flops * 10**9) for name, flops in (("a", 2), ("b", 3), ("c", 1))]
    graph = build("three", ops, [TensorRecord(1, 10**6, [2])])
    fast = cluster(2)
    fast = replace(fast, links=tuple(replace(link, latency_s=0.0) for link in fast.links))
    problem = PlacementProblem(graph, one_group_an_op(graph), fast, "fifo")
    trace = problem.trace(np.array([0, 0, 1]))
    assert trace.step_time_s == pytest.approx(7e-3)
    assert critical_group_s(problem, trace).tolist() == pytest.approx([2e-3, 3.5e-3, 1.5e-3])
