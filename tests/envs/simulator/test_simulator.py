import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from envs.compiling import compiled
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from envs.simulator.plain import simulate_plain
from envs.simulator.simulate import simulate, simulate_batch
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from scripts.benchmark_simulator import measure
from scripts.plain_event_loop import as_lists, simulate_in_a_loop
from tests.envs.simulator.simulator_problems import assert_same_trace, star


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
            assert_same_trace(simulate(problem.simulator_input, placement), plain)
            assert step_time_s[b] == plain.step_time_s
            np.testing.assert_array_equal(peak[b], plain.peak_memory_bytes)


def test_a_batch_too_large_to_expand_at_once_is_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(60, seed=4)
    problem = PlacementProblem(graph, one_group_an_op(graph), star(3))
    placements = np.random.default_rng(0).integers(0, 3, size=(10, 60))
    whole = problem.evaluate(placements)
    bounds_s = np.where(np.arange(10) % 2, whole.step_time_s, 0.0)
    held = problem.evaluate(placements, abort_above_s=bounds_s)
    monkeypatch.setattr("envs.problem._MOST_INDICES", 60 * 3)
    for key in ("step_time_s", "peak_memory_bytes", "feasible"):
        np.testing.assert_array_equal(getattr(problem.evaluate(placements), key), getattr(whole, key))
        np.testing.assert_array_equal(
            getattr(problem.evaluate(placements, abort_above_s=bounds_s), key), getattr(held, key)
        )
    assert held.aborted.tolist() == [True, False] * 5
    assert problem.evaluate(np.zeros((0, 60), int)).step_time_s.shape == (0,)


def test_without_any_place_for_a_cache_it_compiles_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numba.njit

    def refuse_to_cache(**options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", refuse_to_cache)
    assert compiled(_double)(21) == 42


def test_a_cache_directory_that_cannot_be_made_is_passed_over() -> None:
    """Installed packages and home directories may be read-only, or not there."""
    code = "from envs.compiling import compiled; from tests.envs.simulator.test_simulator import _double; "
    code += "print(compiled(_double)(21))"
    environment = {**os.environ, "NUMBA_CACHE_DIR": "/dev/null/nowhere", "PYTHONPATH": str(Path(__file__).parents[3])}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "42\n"


def _double(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_loop_that_the_benchmark_compares_with_gives_the_same_answers(schedule: str) -> None:
    for seed in range(4):
        graph = random_graph(120, seed=seed, locality=10 + 30 * seed, resident_bytes=10**6)
        given = PlacementProblem(graph, one_group_an_op(graph), star(4), schedule).simulator_input
        placement = np.random.default_rng(seed).integers(0, 4, size=120)
        trace = simulate(given, placement)
        step_time_s, peak, transfers = simulate_in_a_loop(as_lists(given), placement.tolist())
        assert (step_time_s, transfers) == (trace.step_time_s, trace.num_transfers)
        assert peak == trace.peak_memory_bytes.tolist()


def test_the_benchmark_gives_the_figures_that_it_promises() -> None:
    cases = measure(200, "priority", [1, 2], None)
    keys = [
        "ops",
        "edges",
        "devices",
        "placement",
        "schedule",
        "threads",
        "us_per_evaluation",
        "ns_per_event",
        "ratio_to_plain",
    ]
    assert all(list(case) == keys for case in cases)
    assert [(c["placement"], c["threads"]) for c in cases] == [
        (kind, threads) for kind in ("random", "blocks", "one_device") for threads in (1, 2)
    ]
    assert all(case["ratio_to_plain"] > 1 for case in cases)  # far more on any machine
