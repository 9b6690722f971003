"""A time limit holds whatever the size of the graph: by the clock of this process's cores, not by the wall's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.colocation.rules import colocate
from graphs.synthetic import random_graph
from placement.placers import PlacerInfo
from placement.placers.base import Budget, Placed
from placement.placers.searching.starts import IN_TIME
from placement.results.comparison import compare_placers, quick_placers, rows_within
from placement.results.trace_plot import load_drawing
from placement.runs import directory, telemetry, training
from placement.runs.compile_ahead import compile_ahead
from tests.placement.problems import branches


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets all clocks show the seconds that this process computed."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)


@pytest.mark.parametrize("num_ops", [500, 6_000, pytest.param(24_000, marks=pytest.mark.slow)])
def test_a_run_ends_in_time_from_its_first_placer_to_its_explanation(
    num_ops: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: None
) -> None:
    graph = random_graph(num_ops, seed=1, locality=80)
    problem = PlacementProblem(graph, colocate(graph), load_cluster("v100x8"))
    compile_ahead(problem.schedule)
    training.compare_others(problem, seed=0, time_limit_s=0.01)  # loads what placers import when they are first asked
    assert telemetry.STEP_TAGS  # loaded by now, and so is what draws
    load_drawing()
    written_s = []
    really_create = directory.create

    def create(*args: Any, **kwargs: Any) -> None:
        before_s = time.process_time()
        really_create(*args, **kwargs)
        written_s.append(time.process_time() - before_s)

    monkeypatch.setattr(directory, "create", create)
    limit_s, began_s = 1.5, time.process_time()
    trained = training.train(problem, run_dir=tmp_path / "run", time_limit_s=limit_s)
    took_s = time.process_time() - began_s - sum(written_s)
    assert trained.explanation is not None
    assert trained.evaluations > 20
    assert took_s < limit_s + 0.3


@pytest.mark.parametrize("limit_s", [0.0, 0.45, 2.0, 60.0])
def test_placers_are_asked_while_there_is_time_the_likely_ones_first(
    limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes all that it may, up to 0.3 seconds; single devices are asked in any case."""
    problem = branches(3, 3, seed=0)
    now, given = [100.0], []
    asked: list[str] = []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    placement = problem.allowed.argmax(axis=1)

    def answer(problem: PlacementProblem, *, budget: Budget, **options: Any) -> Placed:
        assert budget.time_limit_s is not None
        given.append(budget.time_limit_s)
        now[0] += min(0.3, budget.time_limit_s)
        return Placed(placement, 1, 0.0)

    monkeypatch.setattr(PlacerInfo, "function", property(lambda info: answer))
    placers = [info for info in quick_placers(problem) if info.name != "single_device"]
    budget = Budget(time_limit_s=0.25)
    found = compare_placers(problem, placers, budget=budget, source=rows_within(limit_s, asked.append))
    assert now[0] - 100.0 <= limit_s + 1e-9
    assert len(asked) == min(len(placers), -(-int(100 * limit_s) // 25))
    assert asked == sorted(asked, key=lambda name: [*IN_TIME, *asked].index(name))
    assert max(given, default=0.0) <= 0.25
    assert [row.placer for row in found.rows] == [info.name for info in placers], "in the order in which they stand"
    left_out = {row.placer for row in found.rows if row.not_served}
    assert left_out == {info.name for info in placers} - set(asked)
    assert all(row.step_time_s is not None for row in found.rows if row.placer in asked)


def test_without_time_a_device_of_each_kind_has_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(40, seed=0)
    problem = PlacementProblem(graph, colocate(graph), load_cluster("k80x4"))
    single = [info for info in quick_placers(problem) if info.name == "single_device"]

    def devices(limit_s: float) -> list[str]:
        rows = compare_placers(problem, single, budget=Budget(), source=rows_within(limit_s)).rows
        return [row.placer.removeprefix("single_device:") for row in rows]

    assert devices(60.0) == list(problem.cluster.device_names)
    assert devices(0.0) == ["cpu:0", "gpu:0"]
