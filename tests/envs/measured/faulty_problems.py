"""A measured problem whose middle op can be told to fail, for the tests of what a measurement survives."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from envs.measured.machine import parse_devices
from envs.measured.problem import MeasuredProblem, Protocol, machine_cluster, measured
from envs.problem import PlacementProblem
from graphs.capture import capture
from graphs.colocation.rules import colocate
from tests.envs.measured.measured_problems import NAMES, make_faulty

MODULE = "python:tests.envs.measured.measured_problems"
SOURCE = f"{MODULE}:make_faulty"
QUICK = Protocol(dropped=1, steps=3, short_steps=3)


def alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def faulty_problem(time_limit_s: float = 60.0, make: Callable[[], dict[str, object]] = make_faulty) -> MeasuredProblem:
    options, source = make(), f"{MODULE}:{make.__name__}"
    graph = capture(options.pop("model"), options.pop("example_batch"), **{**options, "name": source})  # type: ignore[arg-type]
    devices = parse_devices(NAMES)
    problem = PlacementProblem(graph, colocate(graph, wanted_groups=100), machine_cluster(devices))
    return measured(problem, source, devices, time_limit_s=time_limit_s, how=QUICK)


def placements(problem: PlacementProblem) -> tuple[np.ndarray, np.ndarray]:
    """All on the first device; and the middle of the model on the second."""
    good = np.zeros(problem.num_groups, dtype=np.int64)
    bad = good.copy()
    middle = problem.graph.op_names.index("middle/measured_tests.faulty_0")
    bad[problem.groups.group_of_op[middle]] = 1
    return good, bad
