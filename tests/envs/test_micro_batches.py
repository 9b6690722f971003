"""Simulating steps in micro-batches: what it takes beside one of them."""

import time

import numpy as np
import pytest

from envs.problem import PlacementProblem
from graphs.microbatch import microbatch
from graphs.synthetic import random_graph
from placement.api import make_problem


@pytest.mark.slow
def test_an_evaluation_of_800_000_ops_takes_at_most_ten_of_100_000() -> None:
    """In seconds of the processor, taken in turn."""
    part = make_problem(random_graph(100_000, resident_bytes=10_000), "k80x4", groups=300)
    made = microbatch(part.graph, 8)
    assert made.graph.num_ops == 800_000
    whole = PlacementProblem(made.graph, made.groups(part.groups), part.cluster)
    rng = np.random.default_rng(0)
    placement = np.array([[rng.choice(np.flatnonzero(row)) for row in part.allowed]])
    taken: dict[PlacementProblem, list[float]] = {part: [], whole: []}
    for turn in range(4):
        for problem, times in taken.items():
            began_s = time.process_time()
            problem.evaluate(placement)
            if turn:  # the first one compiles
                times.append(time.process_time() - began_s)
    assert min(taken[whole]) <= 10 * min(taken[part])
