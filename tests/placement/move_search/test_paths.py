"""What is left of a step from each op on: kept up to date move by move, a bound, and nothing that changes a walk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import ComputationGraph
from graphs.synthetic import random_graph
from placement.move_search import kernel
from placement.move_search.chain import Chain, Walker
from placement.move_search.config import MoveConfig
from placement.move_search.field import make_field
from placement.move_search.plan import Cycle
from tests.envs.simulator.simulator_problems import star

BOUNDED = ("priority", "fifo", "program_order")
"""Schedules whose steps are no shorter than their paths with every transfer: ``sequential`` shares copies."""


def some_seconds(graph: ComputationGraph, seed: int) -> ComputationGraph:
    """The graph in which transfers of a quarter of the tensors take given times, some none."""
    rng = np.random.default_rng(seed)
    seconds = np.where(rng.random(graph.num_tensors) < 0.25, rng.choice([0.0, 1e-5, 3e-4], graph.num_tensors), np.nan)
    return replace(graph, tensor_transfer_s=seconds)


def problem_of(seed: int, schedule: str, num_ops: int = 200) -> PlacementProblem:
    graph = some_seconds(random_graph(num_ops, seed=seed, locality=2 + seed, resident_bytes=10**6), seed)
    return PlacementProblem(graph, one_group_an_op(graph), star(2 + seed), schedule)


def walker_of(problem: PlacementProblem, seed: int) -> tuple[Walker, Chain]:
    """A chain of single ops that stands somewhere."""
    walker = Walker(problem, MoveConfig(), [seed])
    ops = np.random.default_rng(seed).integers(problem.num_devices, size=problem.graph.num_ops).astype(np.int32)
    walker.begin(
        Cycle("ops", 0.0, 1.0, 1.0, alone=False), make_field(problem, one_group_an_op(problem.graph)), ops, None
    )
    assert walker.chain is not None
    return walker, walker.chain


def left_by_definition(problem: PlacementProblem, ops: NDArray[np.int32]) -> NDArray[np.float64]:
    """From each op on, the longest path of op times and transfers, told from the graph."""
    graph, routes = problem.graph, problem.cluster.routes
    left_s = problem.op_time_s[ops, np.arange(graph.num_ops)].copy()
    longest_s = np.zeros(graph.num_ops)
    order = np.lexsort((graph.consumers, -graph.edge_producer))  # the last producer first
    for edge in order.tolist():
        maker, reader, tensor = graph.edge_producer[edge], graph.consumers[edge], graph.edge_tensor[edge]
        path_s = left_s[reader]
        if ops[maker] != ops[reader]:
            pair = ops[maker], ops[reader]
            given_s = graph.tensor_transfer_s[tensor]
            own_s = routes.latency_s[pair] + graph.tensor_bytes[tensor] / routes.bytes_per_s[pair]
            path_s = path_s + (own_s if np.isnan(given_s) else given_s)
        longest_s[maker] = max(longest_s[maker], path_s)
        left_s[maker] = problem.op_time_s[ops[maker], maker] + longest_s[maker]
    return left_s


@pytest.mark.parametrize("schedule", BOUNDED)
def test_it_follows_every_move_and_is_put_back_where_one_is_rejected(schedule: str) -> None:
    taken = left = 0
    for seed in range(4):
        problem = problem_of(seed, schedule)
        walker, chain = walker_of(problem, seed)
        for _ in range(12):
            before = int(walker.counts[kernel.ACCEPTED]), walker.counts[kernel.EVALUATIONS]
            walker.walk(15, 2e-5)  # what the last of these left is compared: nothing is measured anew within a walk
            here_s = left_by_definition(problem, chain.op_device[0])
            if np.array_equal(walker._paths.left_s, walker._paths.least_s):
                continue  # paths are too short to be worth it just now
            np.testing.assert_array_equal(walker._paths.left_s[walker._paths.position], here_s)
            assert not walker._paths.marks.any()
            taken += walker.counts[kernel.ACCEPTED] - before[0]
            left += walker.counts[kernel.EVALUATIONS] - before[1]
    assert 20 < taken < left  # moves of both kinds were seen


@pytest.mark.parametrize("schedule", BOUNDED)
def test_no_step_is_shorter(schedule: str) -> None:
    for seed in range(4):
        problem = problem_of(seed, schedule)
        for row in np.random.default_rng(seed).integers(problem.num_devices, size=(10, problem.graph.num_ops)):
            ops = row.astype(np.int32)
            assert left_by_definition(problem, ops).max() <= problem.trace(ops).step_time_s * (1 + 1e-12)


@pytest.mark.parametrize("schedule", BOUNDED)
def test_a_walk_is_the_same_without_it(schedule: str) -> None:
    """Only what would be rejected anyhow is rejected early: with every path of no length, all is simulated."""
    followed = 0
    for seed in range(4):
        problem = problem_of(seed, schedule, num_ops=120)
        (bounded, a), (free, b) = (walker_of(problem, seed) for _ in range(2))
        ours = free._paths
        nothing = np.zeros_like(ours.op_time_s), np.zeros_like(ours.transfer_s)
        for array in nothing:
            array.setflags(write=False)
        ours.least_s[:] = 0.0
        free._paths = ours._replace(op_time_s=nothing[0], transfer_s=nothing[1])
        for temperature_s in (3e-4, 3e-5, 3e-6):
            for walker in (bounded, free):
                walker.walk(300, temperature_s)
            followed += int((bounded._paths.left_s > bounded._paths.least_s).any())
            assert not free._paths.left_s.any()
            assert a.op_device.tobytes() == b.op_device.tobytes()
            for key in ("scalars", "counts", "weights", "kinds", "rng", "best_ops"):
                np.testing.assert_array_equal(getattr(bounded, key), getattr(free, key), err_msg=key)
    assert followed > 0


def test_where_copies_are_shared_there_is_no_such_bound() -> None:
    problem = problem_of(1, "sequential")
    walker, _ = walker_of(problem, 1)
    walker.walk(50, 1e-5)
    assert len(walker._paths.left_s) == 0
    assert walker.counts[kernel.EVALUATIONS] > 0
