"""Nobody's seconds hold a compilation: after compiling ahead, no compiled function meets a new kind of argument."""

from __future__ import annotations

import sys

import pytest

from placement.move_search import kernel
from placement.runs.compile_ahead import compile_search, compile_walk, walk_beside
from tests import forked

SCRIPT = """
import gc, sys
from numba.core.dispatcher import Dispatcher
from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from placement.placers.base import Budget
from placement.registry import PLACERS
from placement.results.comparison import compare_placers
from placement.runs.compile_ahead import compile_for

schedule, names = sys.argv[1], sys.argv[2].split(",")
graphs = [random_graph(90, seed=3), random_graph(2, seed=3)]
problems = [PlacementProblem(graph, one_group_an_op(graph), load_cluster("mixed"), schedule) for graph in graphs]
placers = [PLACERS[name] for name in names]

def compiled():
    functions = [f for f in gc.get_objects() if isinstance(f, Dispatcher) and f.py_func.__module__.split(".")[0]
                 in ("envs", "placement", "graphs")]
    return {f"{f.py_func.__module__}.{f.py_func.__name__}": len(f.overloads) for f in functions}

gc.unfreeze()  # which hides what this process was forked with
compile_for(placers, schedule)
before = compiled()
for problem in problems:
    for info in placers:
        compare_placers(problem, [info], budget=Budget(0.2))
late = {name: count for name, count in compiled().items() if count > before.get(name, 0)}
assert sum(before.values()) > 0
assert not late, late
"""


@pytest.mark.parametrize(
    ("schedule", "placers"),
    [
        ("priority", "single_device,heft,etf,peft,m_sct,mincut,local_search,annealing,genetic,cross_entropy,reinforce"),
        ("program_order", "contiguous,m_etf,reinforce"),
        ("sequential", "heft,annealing,reinforce"),
    ],
)
def test_no_placer_compiles_in_its_own_time(schedule: str, placers: str) -> None:
    done = forked.run([sys.executable, "-c", SCRIPT, schedule, placers])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("schedule", ["priority", "program_order", "sequential"])
def test_the_walk_that_another_process_compiles_is_the_one_that_the_search_calls(schedule: str) -> None:
    compile_walk(schedule)
    compiled = set(kernel.walk.signatures)  # type: ignore[attr-defined]
    assert compiled
    compile_search.__wrapped__(schedule)
    assert set(kernel.walk.signatures) == compiled  # type: ignore[attr-defined]


def test_no_process_is_started_for_a_walk_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Child:
        def __init__(self, command: list[str], **options: object) -> None:
            started.append(command)

        def wait(self) -> None:
            started.append(["waited"])

    monkeypatch.setattr("placement.runs.compile_ahead.subprocess.Popen", Child)
    monkeypatch.setattr("placement.runs.compile_ahead.available_cores", lambda: 2)
    monkeypatch.setattr("placement.runs.compile_ahead.can_keep", lambda function: True)
    for kept, steps in ((True, 0), (False, 2)):
        monkeypatch.setattr("placement.runs.compile_ahead.is_kept", lambda function, kept=kept: kept)
        with walk_beside("fifo"):
            assert len(started) == steps // 2
        assert len(started) == steps
    assert "compile_walk('fifo')" in started[0][-1]
    assert started[1] == ["waited"]
    monkeypatch.setattr("placement.runs.compile_ahead.available_cores", lambda: 1)
    with walk_beside("fifo"):
        assert len(started) == 2
