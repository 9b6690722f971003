"""The list schedulers that a search starts from: the same answers as the placers', on one graph, within the time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from envs.task_graph import TaskGraph, _contract, of_groups
from graphs.colocation.groups import make_groups
from graphs.synthetic import random_graph
from placement.learning.warm_start import heuristic_start
from placement.placers import PlacerInfo
from placement.placers.base import Budget, Placed, Placer, Search
from placement.placers.list_scheduling.schedule import OPS_GRAIN, groups_placed, place_both_ways
from placement.placers.quick_lists import ALWAYS, RULES, quick_placements
from placement.placers.searching.starts import BRIEF, IN_TIME

Merged = dict[tuple[int, tuple[int, ...]], float]


def grouped(seed: int, num_ops: int = 60, num_groups: int = 12) -> PlacementProblem:
    """A random graph in groups that cut across its order, so that the graph of groups has cycles."""
    graph = random_graph(num_ops, seed=seed)
    labels = np.random.default_rng(seed).integers(num_groups, size=num_ops)
    names = [f"g{i}" for i in range(num_groups)]
    return PlacementProblem(graph, make_groups(labels, names, names, [0] * num_groups), load_cluster("mixed"))


def contract_plainly(problem: PlacementProblem, task_of_op: NDArray[np.int64]) -> Merged:
    """Bytes by (maker, readers), tensor by tensor: what `_contract` does with arrays."""
    graph, merged = problem.graph, Merged()
    for tensor in range(graph.num_tensors):
        source = int(task_of_op[graph.tensor_producer[tensor]])
        readers = graph.consumers[graph.consumer_offsets[tensor] : graph.consumer_offsets[tensor + 1]]
        targets = sorted({int(task_of_op[reader]) for reader in readers})
        keys = [(source, tuple(t for t in targets if t > source))] if any(t > source for t in targets) else []
        keys += [(t, (source,)) for t in targets if t < source]
        for key in keys:
            merged[key] = merged.get(key, 0.0) + float(graph.tensor_bytes[tensor])
    return merged


@pytest.mark.parametrize("seed", range(6))
def test_tensors_between_tasks_are_those_of_the_graph(seed: int) -> None:
    problem = grouped(seed)
    task_of_op = np.random.default_rng(seed).integers(9, size=problem.graph.num_ops)
    task_of_op[:9] = range(9)
    producer, figures, offsets, consumers = _contract(problem, task_of_op)
    plain = contract_plainly(problem, task_of_op)
    assert len(producer) == len(plain) > 0
    for i, (maker, readers) in enumerate(sorted(plain)):
        assert producer[i] == maker
        assert tuple(consumers[offsets[i] : offsets[i + 1]]) == readers
        assert figures[i].tolist() == [plain[maker, readers], 1.0, 0.0]  # bytes, by links, no seconds of its own


@pytest.mark.parametrize("seed", range(3))
def test_the_quick_placements_are_those_of_the_rules_on_a_graph_of_groups(seed: int) -> None:
    problem = grouped(seed)
    found = quick_placements(problem)
    assert len(found) == len(RULES)
    for (name, rule, ports), (label, placement) in zip(RULES, found.items(), strict=True):
        tasks = of_groups(problem)
        assert label.startswith(name)
        assert (placement == groups_placed(problem, tasks, rule(problem, tasks, ports))).all()


def test_a_search_with_a_time_limit_starts_from_all_of_them() -> None:
    problem = grouped(1)
    start = heuristic_start(
        problem, evaluations=None, rng=np.random.default_rng(0), time_limit_s=3600.0
    )  # as good as none, but timed
    assert set(quick_placements(problem)) < set(start.placements)
    without = heuristic_start(problem, evaluations=500, rng=np.random.default_rng(0))
    assert not set(quick_placements(problem)) & set(without.placements), "a counted run repeats itself"


@pytest.mark.parametrize("allowed", [0, 1, 2, 5])
def test_no_rule_but_the_first_is_begun_when_the_time_is_over(allowed: int) -> None:
    asked = iter(range(100))
    found = quick_placements(grouped(2), should_stop=lambda: next(asked) >= allowed)
    assert len(found) == min(ALWAYS + allowed, len(RULES))


@pytest.mark.parametrize(
    ("limit_s", "begun"),
    [
        (None, ["groups", "groups", "ops", "ops"]),
        (0.5, ["groups"]),  # a first schedule always
        (2.5, ["groups", "groups"]),
        (2.0 + 1.1 * OPS_GRAIN * 60 / 12, ["groups", "groups", "ops"]),
        (1000.0, ["groups", "groups", "ops", "ops"]),
    ],
)
def test_a_schedule_is_begun_only_where_it_would_end_in_time(
    monkeypatch: pytest.MonkeyPatch, limit_s: float | None, begun: list[str]
) -> None:
    """A clock that stands still but while a rule works: a second for groups, as estimated for ops."""
    problem = grouped(3)
    now, asked = [0.0], list[str]()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def rule(problem: PlacementProblem, tasks: TaskGraph, ports: bool) -> NDArray[np.int64]:
        grain = "ops" if tasks.num_tasks == problem.graph.num_ops else "groups"
        asked.append(grain)
        now[0] += 1.0 if grain == "groups" else OPS_GRAIN * problem.graph.num_ops / of_groups(problem).num_tasks
        return tasks.unit_allowed[tasks.unit].argmax(axis=1)

    place_both_ways(Search(problem, Budget(limit_s)), rule)
    assert asked == begun


@pytest.mark.parametrize(("limit_s", "begins_ops"), [(None, True), (2.0 + 24.0, False), (2.0 + 26.0, True)])
def test_of_a_rule_that_looks_at_all_ready_tasks_the_square_is_expected(
    monkeypatch: pytest.MonkeyPatch, limit_s: float | None, begins_ops: bool
) -> None:
    """Five ops for each group, and a second for a schedule of groups: 25 s are expected of one of ops."""
    problem = grouped(3)
    now, grains = [0.0], list[int]()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def rule(problem: PlacementProblem, tasks: TaskGraph, ports: bool) -> NDArray[np.int64]:
        grains.append(tasks.num_tasks)
        now[0] += 1.0
        return tasks.unit_allowed[tasks.unit].argmax(axis=1)

    place_both_ways(Search(problem, Budget(limit_s)), rule, looks_at_all_ready=True)
    assert grains[:2] == [12, 12]
    assert (60 in grains) is begins_ops


def test_a_heuristic_that_takes_all_that_it_may_leaves_time_for_those_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, now, asked = grouped(1), [0.0], []
    placement = problem.allowed.argmax(axis=1)

    def function(info: PlacerInfo) -> Placer:
        def answer(problem: PlacementProblem, *, budget: Budget, **given: Any) -> Placed:
            asked.append(info.name)
            assert budget.time_limit_s is not None
            now[0] += budget.time_limit_s if info.name == "contiguous" else 1e-3
            return Placed(placement, 1, 0.0)

        return answer

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(PlacerInfo, "function", property(function))
    start = heuristic_start(problem, evaluations=None, rng=np.random.default_rng(0), time_limit_s=0.2)
    assert asked == ["single_device", *IN_TIME]
    assert asked[1 : 1 + len(BRIEF)] == list(BRIEF)
    assert set(quick_placements(problem)) < set(start.placements)
    assert now[0] <= 0.2
