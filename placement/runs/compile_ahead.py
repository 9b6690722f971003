"""Compiles what placers call before their clocks start.

numba compiles a function when it is first called, and keeps the result on disk. So the first run of an installation
takes some seconds here that would else be missing from a time limit, and every later one a fraction of a second.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from placement.learning.warm_start import heuristic_start
from placement.move_search.config import MoveConfig
from placement.move_search.search import MoveSearch
from placement.placers import PlacerInfo
from placement.pretrained.network import initial
from placement.runs.placing import place


def compile_ahead(schedule: str) -> None:
    """Compile all that a training run calls under a schedule."""
    compile_heuristics(schedule)
    compile_search(schedule)


def compile_for(placers: Iterable[PlacerInfo], schedule: str) -> None:
    """Compile what placers call under a schedule, and load their modules: nobody's seconds hold either.

    Args:
        placers: Who will be asked.
        schedule: One of `envs.simulator.SCHEDULES`.
    """
    compile_heuristics(schedule)
    for info in placers:
        info.function  # noqa: B018 (imports its module)
        if info.target.startswith("placement.pretrained"):
            compile_placing(schedule)
        if info.learns:
            compile_search(schedule)


@functools.cache
def compile_heuristics(schedule: str) -> None:
    """Let the heuristics place a few ops."""
    heuristic_start(_small_problem(schedule), evaluations=None, rng=np.random.default_rng(0))


@functools.cache
def compile_search(schedule: str) -> None:
    """Let the search by moves make a move."""
    problem = _small_problem(schedule)
    placement = problem.allowed.argmax(axis=1)
    search = MoveSearch(problem, config=MoveConfig(chains=1), seed=0)
    search.offer_best_of(placement[None], problem.evaluate(placement[None]))
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


@functools.cache
def compile_placing(schedule: str) -> None:
    """Let the quick heuristics and the policy place a few ops."""
    place(_small_problem(schedule), weights=initial(0), samples=4)


def _small_problem(schedule: str) -> PlacementProblem:
    graph = random_graph(24)
    return PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"), schedule)
