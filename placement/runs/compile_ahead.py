"""Compiles what placers call before their clocks start.

numba compiles a function when it is first called, and keeps the result on disk. So the first run of an installation
takes some seconds here that would else be missing from a time limit, and every later one a fraction of a second. numba
compiles one function at a time in a process, so where there is a second core another process compiles the walk of the
search meanwhile, which is half of it all.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from envs.bounds import lower_bound_s
from envs.clusters.catalog import load_cluster
from envs.compiling import can_keep, is_kept
from envs.problem import PlacementProblem
from envs.simulator import remaining
from envs.simulator.workspace import available_cores
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from placement.learning.warm_start import heuristic_start
from placement.move_search import kernel
from placement.move_search.chain import Walker
from placement.move_search.config import MoveConfig
from placement.move_search.field import make_field
from placement.move_search.plan import Cycle
from placement.move_search.search import MoveSearch
from placement.placers import PlacerInfo
from placement.pretrained.network import initial
from placement.runs.placing import place


def compile_ahead(schedule: str) -> None:
    """Compile all that a training run calls under a schedule."""
    with walk_beside(schedule):
        compile_heuristics(schedule)
    compile_search(schedule)


def compile_for(placers: Iterable[PlacerInfo], schedule: str) -> None:
    """Compile what placers call under a schedule, and load their modules: nobody's seconds hold either.

    Args:
        placers: Who will be asked.
        schedule: One of `envs.simulator.SCHEDULES`.
    """
    asked = list(placers)
    learns = any(info.learns for info in asked)
    with walk_beside(schedule) if learns else contextlib.nullcontext():
        compile_heuristics(schedule)
    for info in asked:
        info.function  # noqa: B018 (imports its module)
        if info.target.startswith("placement.pretrained"):
            compile_placing(schedule)
    if learns:
        compile_search(schedule)


@functools.cache
def compile_heuristics(schedule: str) -> None:
    """Let the heuristics place a few ops."""
    remaining.compile_ahead()
    problem = _small_problem(schedule)
    lower_bound_s(problem)
    heuristic_start(problem, evaluations=None, rng=np.random.default_rng(0))


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


@contextlib.contextmanager
def walk_beside(schedule: str) -> Iterator[None]:
    """Let another process compile the walk meanwhile, where it is not kept on disk already and there is a core for it.

    At the end of the context it is done: nobody's seconds are shared with it. Should it fail, whoever needs the walk
    compiles it, and says what is wrong.
    """
    child = None
    if available_cores() > 1 and can_keep(kernel.walk) and not is_kept(kernel.walk):
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        code = f"from placement.runs.compile_ahead import compile_walk; compile_walk({schedule!r})"
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield
    finally:
        if child is not None:
            child.wait()


def compile_walk(schedule: str) -> None:
    """Compile the walk of the search, without the simulator that it calls."""
    problem = _small_problem(schedule)
    walker = Walker(problem, MoveConfig(), [0])
    field = make_field(problem, problem.groups)
    walker.begin(
        Cycle("ops", 0.0, 1.0, hot=1.0, alone=True), field, problem.to_ops(problem.allowed.argmax(axis=1)), None
    )
    walker.compile_walk()


def _small_problem(schedule: str) -> PlacementProblem:
    graph = random_graph(24)
    return PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"), schedule)
