"""The schedule ``sequential``: worked by hand, a tensor that several modules of a device read is sent to each."""

from __future__ import annotations

import numpy as np
import pytest

from envs.bounds import upper_bound_s
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from tests.envs.simulator.simulator_problems import hub

READERS = ["list.0", "list.1", "pair.left", "pair.right"]


def problem_of(modules: list[str], phases: list[str], tensors: list[tuple[int, int, list[int]]]) -> PlacementProblem:
    """Ops of a second each; tensors are ``(producer, bytes, readers)``, a byte takes a second to any other device."""
    ops = [
        OpRecord(f"op{i}", "add", module=module, phase=phase, time_s={"unit": 1.0})
        for i, (module, phase) in enumerate(zip(modules, phases, strict=True))
    ]
    graph = build("by hand", ops, [TensorRecord(*tensor) for tensor in tensors])
    return PlacementProblem(graph, one_group_an_op(graph), hub(3), "sequential")


def test_a_tensor_is_sent_to_each_module_that_is_called_with_it() -> None:
    problem = problem_of(["first", *READERS], ["forward"] * 5, [(0, 10, [1, 2, 3, 4])])
    apart, together = np.array([0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 1])
    # Both parts of the list, and each part of the pair, which is on two devices: four copies.
    assert problem.trace(apart).step_time_s == pytest.approx(5 + 4 * 10)
    # The pair is on one device now, and is called itself; a list never is.
    trace = problem.trace(together)
    assert trace.step_time_s == pytest.approx(5 + 3 * 10)
    assert trace.peak_memory_bytes.tolist() == [10, 10, 0]  # each copy goes when its module has ended
    for placement in (apart, together):
        assert problem.trace(placement).step_time_s <= upper_bound_s(problem)


def test_what_a_module_adds_to_a_gradient_comes_back_as_one_tensor() -> None:
    # Two modules read what `first` made; each adds two contributions to its gradient: 3 and 4, then 6 and 7.
    modules = ["first", "list.0", "list.1", *["list.0"] * 2, "first", *["list.1"] * 2, "first", "first"]
    phases = [*["forward"] * 3, *["backward"] * 7]
    sums = [(3, 10, [5]), (4, 10, [5]), (5, 10, [8]), (6, 10, [8]), (7, 10, [9]), (8, 10, [9])]
    problem = problem_of(modules, phases, sums)
    there = np.array([0, 1, 1, 1, 1, 0, 1, 1, 0, 0])
    trace = problem.trace(there)
    assert trace.step_time_s == pytest.approx(10 + 2 * 10)
    assert trace.num_transfers == 2
    assert problem.trace(np.array([0, 1, 2, 1, 1, 0, 2, 2, 0, 0])).num_transfers == 2
    assert problem.trace(np.zeros(10, dtype=int)).num_transfers == 0


def test_a_gradient_that_two_modules_of_a_device_read_is_sent_there_once() -> None:
    problem = problem_of(["last", "list.0", "list.1"], ["backward"] * 3, [(0, 10, [1, 2])])
    assert problem.trace(np.array([0, 1, 1])).step_time_s == pytest.approx(3 + 10)
