"""List schedulers against the worked example of HEFT's paper, and against numbers worked by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from envs.task_graph import TaskGraph, _contract, of_groups, of_ops, vote
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from placement.placers.base import Budget
from placement.placers.list_scheduling.schedule import (
    earliest_start_schedule,
    insertion_schedule,
    optimistic_cost_s,
    priority_order,
    upward_rank,
)
from placement.placers.m_sct import favourite_children
from placement.registry import get_placer
from tests.envs.simulator.random_problems import FEW, problems
from tests.placement.placer_problems import random_problem, training_problem


def three_devices(memory_bytes: int = 1000) -> PlacementProblem:
    """Three devices, each pair joined by a link of one byte a second without latency; the graph is of no account."""
    spec = DeviceSpec("unit", "gpu", memory_bytes, {"float32": 1.0}, 1.0)
    links = tuple(Link(f"p{a}", f"p{b}", 1.0, 0.0) for a, b in itertools.combinations((1, 2, 3), 2))
    cluster = Cluster("three", tuple(Device(f"p{i}", spec) for i in (1, 2, 3)), links)
    graph = build("one", [OpRecord("op", "mm", flops=1)], [])
    return PlacementProblem(graph, one_group_an_op(graph), cluster)


def tasks_of(
    times: Sequence[Sequence[float]], edges: list[tuple[int, int, float]], unit_bytes: list[float] | None = None
) -> TaskGraph:
    """A task graph with a unit a task and a tensor an edge (producer, reader, bytes)."""
    count, width = len(times), len(times[0])
    edges = sorted(edges)
    return TaskGraph(
        time_s=np.array(times, dtype=np.float64),
        unit=np.arange(count, dtype=np.int32),
        unit_allowed=np.ones((count, width), dtype=np.bool_),
        unit_bytes=np.array(unit_bytes or [0.0] * count, dtype=np.float64),
        producer=np.array([a for a, _, _ in edges], dtype=np.int32),
        tensor_bytes=np.array([size for _, _, size in edges], dtype=np.float64),
        by_links=np.ones(len(edges)),
        added_s=np.zeros(len(edges)),
        consumer_offsets=np.arange(len(edges) + 1),
        consumers=np.array([b for _, b, _ in edges], dtype=np.int32),
    )


def topcuoglu() -> TaskGraph:
    """Figure 2 and table 3 of Topcuoglu et al., 2002: ten tasks on three processors."""
    times = [
        *([14, 16, 9], [13, 19, 18], [11, 13, 19], [13, 8, 17], [12, 13, 10]),
        *([13, 16, 9], [7, 15, 11], [5, 11, 14], [18, 12, 20], [21, 7, 16]),
    ]
    edges = [
        *((1, 2, 18), (1, 3, 12), (1, 4, 9), (1, 5, 11), (1, 6, 14), (2, 8, 19), (2, 9, 16), (3, 7, 23)),
        *((4, 8, 27), (4, 9, 23), (5, 9, 13), (6, 8, 15), (7, 10, 17), (8, 10, 11), (9, 10, 13)),
    ]
    return tasks_of(times, [(a - 1, b - 1, float(c)) for a, b, c in edges])


def test_upward_ranks_are_those_of_the_paper() -> None:
    ranks = upward_rank(three_devices(), topcuoglu())
    published = [108.0, 77.0, 80.0, 80.0, 69.0, 63.333, 42.667, 35.667, 44.333, 14.667]
    assert ranks == pytest.approx(published, abs=1e-3)


def test_heft_places_as_in_the_paper() -> None:
    """The published schedule ends at 80: n2 and n8 on P1; n4, n6, n9 and n10 on P2; the others on P3."""
    problem, tasks = three_devices(), topcuoglu()
    order = priority_order(tasks, upward_rank(problem, tasks).round(6))  # n3 and n4 tie at 80
    assert [int(k) + 1 for k in order] == [1, 3, 4, 2, 5, 6, 9, 7, 8, 10]
    device = insertion_schedule(problem, tasks, order)
    assert [int(d) + 1 for d in device] == [3, 1, 3, 2, 3, 2, 3, 1, 2, 2]


def test_the_optimistic_cost_is_the_worst_readers_best_device() -> None:
    """Chain 0 -> 1 -> 2 with 5 bytes, then 100: where to run 1 depends on where 2 is quick."""
    tasks = tasks_of([[1, 1, 1], [2, 4, 9], [30, 10, 30]], [(0, 1, 5.0), (1, 2, 100.0)])
    cost = optimistic_cost_s(three_devices(), tasks)
    # Task 1 on device 0: staying costs 30, moving to device 1 100 + 10. Task 0: the best of 1 is 4 + 10, moving 5.
    assert cost.tolist() == [[19.0, 14.0, 19.0], [30.0, 10.0, 30.0], [0.0, 0.0, 0.0]]


def test_a_full_device_is_left_alone() -> None:
    problem = three_devices(memory_bytes=1000)
    tasks = tasks_of([[1, 5, 5]] * 3, [], unit_bytes=[600.0, 600.0, 100.0])
    device = insertion_schedule(problem, tasks, np.arange(3))
    # Device 0 is fastest; after 600 of 950 usable bytes it takes the third task, not the second.
    assert device.tolist() == [0, 1, 0]


def test_parameters_go_where_their_first_reader_goes() -> None:
    """Task 0 takes no time and would otherwise sit on device 0, far from its only reader."""
    tasks = tasks_of([[0, 0, 0], [9, 9, 1]], [(0, 1, 50.0)])
    problem = three_devices()
    assert insertion_schedule(problem, tasks, np.arange(2)).tolist() == [2, 2]
    assert earliest_start_schedule(problem, tasks, np.ones(2)).tolist() == [0, 0]


def test_queueing_transfers_are_foreseen() -> None:
    """Two tensors of 4 bytes over one port arrive at 9 together, not at 5: then staying is better."""
    times = [[1.0, 9.0, 9.0], [1.0, 9.0, 9.0], [9.5, 2.0, 99.0]]
    tasks = tasks_of(times, [(0, 2, 4.0), (1, 2, 4.0)])
    problem = three_devices()
    assert insertion_schedule(problem, tasks, np.arange(3), ports=False).tolist() == [0, 0, 1]
    times[2][0] = 8.0
    tasks = tasks_of(times, [(0, 2, 4.0), (1, 2, 4.0)])
    assert insertion_schedule(problem, tasks, np.arange(3), ports=False).tolist() == [0, 0, 1]
    assert insertion_schedule(problem, tasks, np.arange(3), ports=True).tolist() == [0, 0, 0]


def test_earliest_start_prefers_the_idle_device_and_then_the_urgent_task() -> None:
    tasks = tasks_of([[4, 4, 4]] * 4, [(0, 3, 1.0)])
    device = earliest_start_schedule(three_devices(), tasks, np.array([4.0, 3.0, 2.0, 1.0]))
    # Three start at once, one on each device; the last waits for task 0 at home until 4, not for a transfer until 5.
    assert device.tolist() == [0, 1, 2, 0]


def test_a_device_is_kept_for_a_favourite_child() -> None:
    """Device 0 ends task 0 at 2; its favourite child 2 may start there at once, so task 1's child 3 goes elsewhere."""
    tasks = tasks_of([[2, 2, 2], [1, 1, 1], [5, 5, 5], [5, 5, 5]], [(0, 2, 1.0), (1, 3, 0.0)])
    favourite = np.array([2, -1, -1, -1])
    placed = earliest_start_schedule(three_devices(), tasks, np.array([4.0, 3.0, 1.0, 2.0]), favourite=favourite)
    assert placed[2] == placed[0]


@pytest.mark.parametrize("seed", range(3))
def test_every_task_has_at_most_one_favourite_child_and_is_the_favourite_of_at_most_one(seed: int) -> None:
    problem = training_problem(10, 3, seed=seed)
    tasks = of_groups(problem)
    favourite = favourite_children(problem, tasks)
    children = favourite[favourite >= 0]
    assert len(children) >= 3
    assert len(set(children.tolist())) == len(children)
    for task in np.flatnonzero(favourite >= 0):
        assert favourite[task] in tasks.readers(int(task))


def test_the_graph_of_groups_is_acyclic_and_keeps_times_and_bytes() -> None:
    problem = training_problem(20, 2, seed=0)
    tasks = of_groups(problem)
    first = tasks.consumers[tasks.consumer_offsets[:-1]]
    assert (tasks.producer < first).all()
    times = np.zeros((problem.num_groups, problem.num_devices))
    np.add.at(times, tasks.unit, np.where(np.isfinite(tasks.time_s), tasks.time_s, 0.0))
    assert times[1:] == pytest.approx(problem.group_time_s[1:])
    # A group's parts: forward, backward, update.
    assert tasks.num_tasks == 1 + 3 * 20


def test_the_vote_goes_by_time_and_keeps_to_what_is_allowed() -> None:
    problem = training_problem(4, 2, seed=0)
    ops = of_ops(problem)
    assert ops.num_tasks == problem.graph.num_ops
    placement = np.full(problem.graph.num_ops, 2)
    assert vote(problem, placement).tolist() == [0, 2, 2, 2, 2]
    longest = np.flatnonzero(problem.groups.group_of_op == 1)
    placement[longest[problem.op_time_s[1, longest].argmax()]] = 1
    assert vote(problem, placement)[1] == 1


def test_lone_ops_are_placed_too() -> None:
    problem = random_problem(1, 2, seed=0)
    tasks = of_ops(problem)
    assert earliest_start_schedule(problem, tasks, np.ones(1)).tolist() == [0]


@pytest.mark.parametrize("placer", ["heft", "peft", "etf", "m_etf", "m_sct", "exact"])
def test_given_seconds_decide_whether_branches_are_parted(placer: str) -> None:
    """Two branches of 10 ms: huge tensors that are sent in no time part them, empty ones that take 1 s do not."""
    ops = [
        OpRecord(name, "mm", flops=size, module=name) for name, size in zip("xlrj", (1, 10**9, 10**9, 1), strict=True)
    ]
    for size, seconds, devices in ((10**9, 1e-6, 2), (0, 1.0, 1), (10**9, math.nan, 1), (0, math.nan, 2)):
        tensors = [TensorRecord(0, size, [1, 2], transfer_s=seconds)]
        tensors += [TensorRecord(branch, size, [3], transfer_s=seconds) for branch in (1, 2)]
        graph = build("fork", ops, tensors)
        problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
        if placer == "exact":
            pytest.importorskip("ortools")
        placed = get_placer(placer).function(problem, budget=Budget(time_limit_s=20.0), rng=np.random.default_rng(0))
        assert len({int(placed.placement[i]) for i in (1, 2)}) == devices, (size, seconds)


def test_no_device_is_kept_for_a_favourite_child_that_cannot_run_there() -> None:
    never = math.inf
    # The child runs on the second device alone; what reads it could go on on either, at the same moment.
    tasks = tasks_of([[1, never, never], [never, 2, never], [1, 1, never]], [(0, 1, 1.0), (1, 2, 0.0)])
    tasks = dataclasses.replace(tasks, unit_allowed=np.isfinite(tasks.time_s))
    placed = earliest_start_schedule(
        three_devices(), tasks, np.array([3.0, 2.0, 1.0]), favourite=np.array([1, -1, -1]), ports=True
    )
    assert placed.tolist() == [0, 1, 0]


@given(problems(restrict=False), st.integers(1, 8), st.integers(0, 9))
@FEW
def test_tensors_between_tasks_are_those_of_their_ops(problem: PlacementProblem, wanted: int, seed: int) -> None:
    """Against the definition, one tensor after another."""
    graph = problem.graph
    task = np.random.default_rng(seed).integers(0, wanted, size=graph.num_ops)
    expected: dict[tuple[int, tuple[int, ...]], list[float]] = {}
    for tensor in range(graph.num_tensors):
        source = int(task[graph.tensor_producer[tensor]])
        readers = graph.consumers[graph.consumer_offsets[tensor] : graph.consumer_offsets[tensor + 1]]
        targets = {int(task[reader]) for reader in readers} - {source}
        seconds = float(graph.tensor_transfer_s[tensor])
        ends = [(source, tuple(sorted(t for t in targets if t > source)))]
        ends += [(target, (source,)) for target in targets if target < source]
        for key in ends:
            if key[1]:
                figures = expected.setdefault(key, [0.0, 0.0, 0.0])
                if math.isnan(seconds):
                    figures[:2] = figures[0] + float(graph.tensor_bytes[tensor]), 1.0
                else:
                    figures[2] += seconds
    producer, found_figures, offsets, consumers = _contract(problem, task)
    found = {
        (int(producer[r]), tuple(consumers[offsets[r] : offsets[r + 1]].tolist())): found_figures[r]
        for r in range(len(producer))
    }
    assert found.keys() == expected.keys()
    for key, figures in expected.items():
        assert found[key].tolist() == pytest.approx(figures)
