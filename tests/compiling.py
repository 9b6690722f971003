"""Compiles the kernels before the tests, each worker of `pytest -n` some of them, which the others then read.

Where numba has not kept them yet, all of them take about a minute of two cores. Two workers that each compile what
their tests come to would compile nearly all of it twice.
"""

from __future__ import annotations

import numpy as np

from envs.clusters.catalog import load_cluster
from envs.pipelines.actions import make_lists, run
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from placement.runs.compile_ahead import compile_heuristics, compile_placing, compile_search
from tests.envs.pipelines.pipelines import any_pipeline


def compile_share(worker: int) -> None:
    """Compile the part of a worker; those of number 2 and above have none."""
    if worker == 0:
        compile_search("priority")
        _compile_checkpoints()
        compile_placing("priority")
    elif worker == 1:
        for schedule in ("program_order", "fifo", "sequential"):
            compile_heuristics(schedule)
        _compile_pipelines()


def _compile_pipelines() -> None:
    pipeline, micro_batches = any_pipeline(0)
    lists = make_lists(pipeline, micro_batches, split=True, limit=1.0).lists()
    run(pipeline, lists, micro_batches)


def _compile_checkpoints() -> None:
    graph = random_graph(24)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
    placement = problem.allowed.argmax(axis=1)
    problem.evaluate(np.tile(placement, (2, 1)), checkpoints=problem.checkpoints(placement))
