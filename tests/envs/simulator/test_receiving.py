"""Copies that the receiver makes: they take its time, once, and nothing else changes."""

from dataclasses import replace

import numpy as np
import pytest

from envs.bounds import lower_bound_s, upper_bound_s
from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.clusters.file import cluster_to_yaml, parse_cluster
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from envs.simulator.plain import simulate_plain
from envs.simulator.simulate import simulate
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import ComputationGraph
from graphs.synthetic import random_graph
from placement.move_search.config import MoveConfig
from placement.move_search.search import MoveSearch
from tests.envs.measured.test_profile import two_branches

MS, US = 1e-3, 1e-6


def cluster_of(count: int, *, copies: bool = True) -> Cluster:
    """Links of 10 us and 10 GB/s, between every pair."""
    spec = DeviceSpec("core", "cpu", 10**12, {"float32": 1e9}, 1e9)
    devices = tuple(Device(f"cpu:{i}", spec) for i in range(count))
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    links = tuple(Link(f"cpu:{a}", f"cpu:{b}", 10e9, 10 * US, receiver_copies=copies) for a, b in pairs)
    return Cluster("cores", devices, links)


def problem_of(schedule: str = "priority", *, copies: bool = True) -> PlacementProblem:
    """``x`` of 1 ms makes 10 MB for ``left`` (2 ms) and ``right`` (3 ms), whose 20 kB ``join`` (1 ms) reads."""
    graph = two_branches()
    graph = replace(graph, time_s={"core": np.array([1.0, 2.0, 3.0, 1.0, 0.0]) * MS})
    return PlacementProblem(graph, one_group_an_op(graph), cluster_of(2, copies=copies), schedule)


def step_s(problem: PlacementProblem, place: list[int]) -> float:
    return float(problem.evaluate_ops(np.array([place])).step_time_s[0])


@pytest.mark.parametrize("schedule", ["priority", "fifo", "program_order"])
def test_a_copy_takes_the_receivers_time(schedule: str) -> None:
    problem = problem_of(schedule)
    # cpu:1 has left alone. It copies 10 MB for 1 ms from 1.01 ms, runs left until 4.01 ms; cpu:0 is done with right at
    # 4 ms, copies 20 kB for 2 us from 4.02 ms and joins.
    assert step_s(problem, [0, 1, 0, 0, 0]) == pytest.approx(4.02 * MS + 2 * US + 1 * MS)
    # x on cpu:1, all else on cpu:0, which must copy, once, for 1 ms before it can do anything.
    assert step_s(problem, [1, 0, 0, 0, 0]) == pytest.approx((1 + 0.01 + 1 + 2 + 3 + 1) * MS)
    # Without copies it is the sum of the ops.
    assert step_s(problem, [0] * 5) == step_s(problem, [1] * 5) == pytest.approx(7 * MS)


def test_a_copy_delays_what_its_receiver_has_to_do() -> None:
    graph = problem_of().graph
    # right takes 6 ms, until 7 ms: the copy of left's 20 kB waits for it, and join for the copy.
    graph = replace(graph, time_s={"core": np.array([1.0, 2.0, 6.0, 1.0, 0.0]) * MS})
    for copies, wanted_s in ((True, 8 * MS + 2 * US), (False, 8 * MS)):
        problem = PlacementProblem(graph, one_group_an_op(graph), cluster_of(2, copies=copies))
        assert step_s(problem, [0, 1, 0, 0, 0]) == pytest.approx(wanted_s)


def _random(seed: int, devices: int, *, copies: bool, schedule: str) -> tuple[PlacementProblem, np.ndarray]:
    graph: ComputationGraph = random_graph(60, seed=seed)
    problem = PlacementProblem(graph, one_group_an_op(graph), cluster_of(devices, copies=copies), schedule)
    return problem, np.random.default_rng(seed).integers(devices, size=(6, graph.num_ops))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("seed", "devices"), [(0, 2), (1, 3), (2, 4)])
def test_the_compiled_simulators_equal_the_plain_one(seed: int, devices: int, schedule: str) -> None:
    problem, placements = _random(seed, devices, copies=True, schedule=schedule)
    found = problem.evaluate_ops(placements)
    overlapping, _ = _random(seed, devices, copies=False, schedule=schedule)
    for row, placement in enumerate(placements):
        plain = simulate_plain(problem.simulator_input, placement)
        assert plain.step_time_s == found.step_time_s[row] == simulate(problem.simulator_input, placement).step_time_s
        np.testing.assert_array_equal(plain.peak_memory_bytes, found.peak_memory_bytes[row])
    if schedule == "sequential":  # nothing overlaps there in any case
        np.testing.assert_array_equal(found.step_time_s, overlapping.evaluate_ops(placements).step_time_s)
    # Devices that hold every op make no copies, and bounds stop nothing that they should not.
    alone = np.zeros((1, problem.graph.num_ops), dtype=int)
    assert problem.evaluate_ops(alone).step_time_s == overlapping.evaluate_ops(alone).step_time_s
    limited = problem.evaluate_ops(placements, abort_above_s=float(np.median(found.step_time_s)))
    kept = found.step_time_s <= np.median(found.step_time_s)
    np.testing.assert_array_equal(limited.step_time_s[kept], found.step_time_s[kept])


@pytest.mark.parametrize("schedule", ["priority", "fifo"])
def test_checkpoints_and_searches_answer_with_copies(schedule: str) -> None:
    problem, placements = _random(3, 3, copies=True, schedule=schedule)
    kept = problem.checkpoints(placements[0])
    found = problem.evaluate(placements, checkpoints=kept)
    np.testing.assert_array_equal(found.step_time_s, problem.evaluate(placements).step_time_s)
    from concurrent.futures import ThreadPoolExecutor

    search = MoveSearch(problem, config=MoveConfig(), seed=0)
    search.offer_best_of(placements, found)
    first_s = search.best_cost_s
    with ThreadPoolExecutor(1) as executor:
        started = search.start(
            300,
            progress=lambda share: share,
            should_stop=lambda: False,
            log_probability=None,
            executor=executor,
        )
        search.finish(started)
    assert search.best is not None
    assert search.best.step_s == problem.evaluate_ops(search.best.ops[None]).step_time_s[0] <= first_s


@pytest.mark.parametrize("seed", range(4))
def test_steps_are_between_their_bounds(seed: int) -> None:
    problem, placements = _random(seed, 3, copies=True, schedule="priority")
    times_s = problem.evaluate(placements).step_time_s
    assert lower_bound_s(problem) <= times_s.min() * (1 + 1e-9)
    assert times_s.max() <= upper_bound_s(problem) * (1 + 1e-9)


def test_a_cluster_file_says_who_copies() -> None:
    cluster, other = cluster_of(3), cluster_of(3, copies=False)
    text = cluster_to_yaml(cluster, {})
    assert text.count("receiver_copies: true") == 3
    again = parse_cluster(text, {})
    assert [link.receiver_copies for link in again.links] == [True] * 3
    assert again.sha256 == cluster.sha256 != other.sha256
    assert "receiver_copies" not in cluster_to_yaml(other, {})
    assert not other.routes.receiver_copies.any()
    assert cluster.routes.receiver_copies.tolist() == (~np.eye(3, dtype=bool)).tolist()
