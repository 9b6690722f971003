"""How long placers really take under a time limit, on graphs up to 100,000 ops.

    python scripts/time_limits.py [--seconds 2] [--placers reinforce,heft,...] [--graphs nmt:layers=8 random:100000 ...]

A limit holds where a placer takes at most a tenth, or 0.3 s, longer. All is compiled and loaded before clocks start.
``random:N`` is a random graph of N ops in 256 groups. Other work on the machine adds to the times; so the number of
cores that the process had is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # a clone runs without being installed

from envs.clusters.catalog import load_cluster
from envs.make_problem import make_problem
from envs.problem import PlacementProblem
from graphs.colocation.groups import make_groups
from graphs.synthetic import random_graph
from placement.placers.base import Budget
from placement.registry import choose_placers, get_placer
from placement.runs.compile_ahead import compile_for

PLACERS = "single_device,contiguous,heft,etf,peft,m_etf,m_topo,local_search,annealing,reinforce"
GRAPHS = ("nmt", "nmt:layers=8", "random:10000", "random:100000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="the limit: %(default)s")
    parser.add_argument("--placers", default=PLACERS, help="names, or all: %(default)s")
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), help="%(default)s")
    parser.add_argument("--cluster", default="v100x8", help="%(default)s")
    options = parser.parse_args()
    placers = [get_placer(name) for name in choose_placers(options.placers)]
    compile_for(placers, "priority")
    print(f"{'graph':<16}{'ops':>8} {'placer':<16}{'limit':>7}{'took':>8} {'holds':<6}{'cores':>6} {'step, ms':>10}")
    for name in options.graphs:
        problem = problem_of(name, options.cluster)
        problem.evaluate(problem.allowed.argmax(axis=1)[None])
        for info in placers:
            began, cpu = time.perf_counter(), time.process_time()
            placed = info.function(problem, budget=Budget(options.seconds), rng=np.random.default_rng(0))
            took_s = time.perf_counter() - began
            cores = (time.process_time() - cpu) / took_s
            holds = took_s <= max(1.1 * options.seconds, options.seconds + 0.3)
            step_s = problem.evaluate_one(placed.placement).step_time_s[0]
            print(
                f"{name:<16}{problem.graph.num_ops:>8} {info.name:<16}{options.seconds:>7.1f}{took_s:>8.2f} "
                f"{'yes' if holds else 'NO':<6}{cores:>6.2f} {1e3 * step_s:>10.3f}",
                flush=True,
            )


def problem_of(name: str, cluster: str) -> PlacementProblem:
    """A problem from a graph's name, or ``random:N``."""
    if not name.startswith("random:"):
        return make_problem(name, cluster)
    graph = random_graph(int(name.partition(":")[2]), seed=0)
    count = min(256, graph.num_ops)
    names = [f"group {i}" for i in range(count)]
    labels = np.arange(graph.num_ops) * count // graph.num_ops
    return PlacementProblem(graph, make_groups(labels, names, names, [0] * count), load_cluster(cluster))


if __name__ == "__main__":
    main()
