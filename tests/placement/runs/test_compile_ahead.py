"""Nobody's seconds hold a compilation: after compiling ahead, no compiled function meets a new kind of argument."""

from __future__ import annotations

import sys

import pytest

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
