"""A process that wants one step does not wait for a compilation, and gets the same step."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from envs.simulator.remaining import _in_python, remaining_paths
from envs.simulator.simulate import simulate_once
from graphs.colocation.groups import one_group_an_op
from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from placement.results.placement_file import make_result, write_placement
from tests.envs.simulator.simulator_problems import assert_same_trace, star

simulating = importlib.import_module("envs.simulator.simulate")  # the package has a function of that name

SCRIPT = """
import gc, sys
from numba.core.dispatcher import Dispatcher
from placement.cli.main import main

code = main(sys.argv[1:])
mine = [f for f in gc.get_objects() if isinstance(f, Dispatcher) and f.py_func.__module__.startswith("envs.")]
assert mine, "there are compiled functions"
print("compiled", [f.py_func.__name__ for f in mine if f.overloads], code)
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_first_step_is_the_same_as_later_ones(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(4):
        graph = random_graph([1, 30, 90, 200][seed], seed=seed, locality=5 + 20 * seed)
        problem = PlacementProblem(graph, one_group_an_op(graph), star(3), schedule)
        placement = np.random.default_rng(seed).integers(0, 3, size=graph.num_ops)
        later = problem.trace(placement)
        with monkeypatch.context() as patch:
            patch.setattr(simulating, "is_compiled", lambda given: False)
            patch.setattr(simulating, "simulate", lambda given, placement: pytest.fail("that would compile"))
            assert_same_trace(problem.trace_once(placement), later)


def test_a_large_step_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(50)
    given = PlacementProblem(graph, one_group_an_op(graph), star(2)).simulator_input
    monkeypatch.setattr(simulating, "is_compiled", lambda given: False)
    monkeypatch.setattr(simulating, "simulate_plain", lambda given, placement: pytest.fail("that would take too long"))
    size = given.num_ops + len(given.consumers)
    monkeypatch.setattr(simulating, "PLAIN_AT_MOST", simulating._plain.size + size - 1)
    assert simulate_once(given, np.zeros(50, dtype=int)).step_time_s > 0


def test_many_small_steps_are_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(50)
    given = PlacementProblem(graph, one_group_an_op(graph), star(2)).simulator_input
    plain: list[int] = []
    monkeypatch.setattr(simulating, "is_compiled", lambda given: False)
    monkeypatch.setattr(simulating, "simulate_plain", lambda given, placement: plain.append(1))
    size = given.num_ops + len(given.consumers)
    monkeypatch.setattr(simulating._plain, "size", 0)
    monkeypatch.setattr(simulating, "PLAIN_AT_MOST", 3 * size)
    steps = [simulate_once(given, np.zeros(50, dtype=int)) for _ in range(5)]
    assert len(plain) == 3
    assert [step is None for step in steps] == [True, True, True, False, False]


@pytest.mark.parametrize("seed", range(5))
def test_remaining_paths_in_python_equal_the_compiled_ones(seed: int) -> None:
    graph, rng = random_graph(300, seed=seed, locality=3 + 10 * seed), np.random.default_rng(seed)
    time_s = np.where(rng.random(300) < 0.2, 0.0, rng.exponential(size=300))
    compiled_s = np.empty(300)
    offsets = graph.tensor_offsets.astype(np.int32), graph.consumer_offsets.astype(np.int32)
    remaining_paths(time_s, *offsets, graph.consumers.copy(), compiled_s)
    plain_s = _in_python(time_s, offsets[1][offsets[0]], graph.consumers)
    np.testing.assert_array_equal(plain_s, compiled_s)


def test_simulating_a_placement_file_compiles_nothing(tmp_path: Path) -> None:
    graph = random_graph(60, seed=1)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
    placement = problem.allowed.argmax(axis=1)
    write_placement(tmp_path / "p.json", make_result(problem, placement, placer="first", seed=0))
    save_graph_file(graph, tmp_path / "g.graph.json")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    command = ["simulate", "g.graph.json", "--cluster", "k80x2", "--placement", "p.json"]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "compiled [] 0"
