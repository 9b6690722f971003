"""Steps in which the receiver of a copy makes it."""

from dataclasses import replace

import numpy as np
import pytest

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from scripts.fidelity_study.receiver_copies import step_time_s
from tests.envs.measured.branches import two_branches

MS, US = 1e-3, 1e-6


def problem_of(schedule: str = "priority") -> PlacementProblem:
    """Links of 10 us and 10 GB/s."""
    spec = DeviceSpec("core", "cpu", 10**9, {"float32": 1e9}, 1e9)
    devices = (Device("cpu:0", spec), Device("cpu:1", spec))
    graph = two_branches()
    graph = replace(graph, time_s={"core": np.array([1.0, 2.0, 3.0, 1.0, 0.0]) * MS})
    cluster = Cluster("two", devices, (Link("cpu:0", "cpu:1", 10e9, 10 * US),))
    return PlacementProblem(graph, one_group_an_op(graph), cluster, schedule)


@pytest.mark.parametrize("schedule", ["priority", "fifo"])
def test_a_copy_takes_the_receivers_time(schedule: str) -> None:
    problem = problem_of(schedule)
    # cpu:1 has left alone. It copies 10 MB for 1 ms from 1.01 ms, runs left until 4.01 ms; cpu:0 is done with right at
    # 4 ms, copies 20 kB for 2 us from 4.02 ms and joins.
    place = np.array([0, 1, 0, 0, 0])
    assert step_time_s(problem, place) == pytest.approx(4.02 * MS + 2 * US + 1 * MS)
    assert step_time_s(problem, place, latency=False) == pytest.approx(4 * MS + 2 * US + 1 * MS)
    # As it overlaps, where the receiver has nothing else to do, the simulator says the same.
    assert problem.evaluate_ops(place[None]).step_time_s[0] == pytest.approx(4.02 * MS + 2 * US + 1 * MS)


def test_a_copy_delays_what_its_receiver_has_to_do() -> None:
    problem = problem_of()
    # x on cpu:1, all else on cpu:0, which must copy for 1 ms before it can do anything.
    place = np.array([1, 0, 0, 0, 0])
    assert step_time_s(problem, place) == pytest.approx((1 + 0.01 + 1 + 2 + 3 + 1) * MS)
    busy = np.array([1.0, 2.0, 3.0, 1.0, 0.0]) * MS
    # Two tensors in a row: with left on cpu:1 its 20 kB come while cpu:0 runs right, and join waits for the copy.
    place = np.array([0, 1, 0, 0, 0])
    slower = busy * np.array([1, 1, 2, 1, 1])  # right takes 6 ms, until 7 ms
    assert step_time_s(problem, place, op_time_s=slower) == pytest.approx(7 * MS + 2 * US + 1 * MS)
    assert problem.evaluate_ops(place[None]).step_time_s[0] < 7 * MS


def test_without_copies_it_is_the_simulators_step() -> None:
    problem = problem_of()
    place = np.zeros(5, dtype=np.int64)
    assert step_time_s(problem, place) == problem.evaluate_ops(place[None]).step_time_s[0] == pytest.approx(7 * MS)


def test_ops_are_slower_while_others_work() -> None:
    """x of 1 ms, then left on cpu:1 while right is on cpu:0; 2 and 3 ms alone, twice as long in parallel."""
    problem = problem_of()
    alone = problem.graph.time_s["core"]
    times = {"core": alone, "core_alone": alone, "core_beside": alone * np.array([1, 2, 2, 1, 1])}
    problem = replace(problem, graph=replace(problem.graph, time_s=times))
    place = np.array([0, 1, 0, 0, 0])
    # In parallel all the time right would end at 7 ms; it is alone at least until left's bytes are there.
    found = step_time_s(problem, place, contention=True)
    assert step_time_s(problem, place) < found <= 8.1 * MS
    assert step_time_s(problem, np.zeros(5, dtype=int), contention=True) == pytest.approx(7 * MS)
