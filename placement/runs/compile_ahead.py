"""Compiles what a training run calls before the run's clock starts."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from placement.learning.warm_start import heuristic_start
from placement.move_search.config import MoveConfig
from placement.move_search.search import MoveSearch


@functools.cache
def compile_ahead(schedule: str) -> None:
    """Let the heuristics place a few ops, and the search make a move, under a schedule.

    numba compiles a function when it is first called, and keeps the result on disk. So the first run of an installation
    takes some 15 s here that would else be missing from its time limit, and every later one a fraction of a second.
    """
    graph = random_graph(24)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"), schedule)
    start = heuristic_start(problem, evaluations=None, rng=np.random.default_rng(0))
    placement = next(iter(start.placements.values()))
    evaluation = problem.evaluate(placement[None])
    search = MoveSearch(problem, config=MoveConfig(chains=1), seed=0)
    search.offer_best_of(placement[None], evaluation)
    with ThreadPoolExecutor(1) as executor:
        search.finish(
            search.start(
                1,
                progress=lambda share: share,
                should_stop=lambda: False,
                log_probability=None,
                executor=executor,
            )
        )
