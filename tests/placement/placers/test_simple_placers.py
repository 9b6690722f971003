"""Contiguous cuts, filling by memory, topological filling and repair, on numbers worked by hand or enumerated."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.footprint import group_bytes, saved_bytes
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from placement.placers.base import Budget, Search
from placement.placers.contiguous import balanced_cuts, fastest_devices, from_cuts
from placement.placers.searching.repair import repair
from placement.registry import get_placer
from tests.placement.placer_problems import cluster, random_problem, training_problem


def chain(sizes: list[int], gpus: int, *, gpu_bytes: int) -> PlacementProblem:
    """A chain of ops with resident bytes; the links between them carry nothing."""
    ops = [OpRecord(f"op{i}", "mm", flops=10**8, resident_bytes={"parameter": s}) for i, s in enumerate(sizes)]
    graph = build("chain", ops, [TensorRecord(i, 0, [i + 1]) for i in range(len(sizes) - 1)])
    return PlacementProblem(graph, one_group_an_op(graph), cluster(gpus, gpu_bytes=gpu_bytes))


def place(name: str, problem: PlacementProblem) -> list[int]:
    placed = get_placer(name).function(problem, budget=Budget(), rng=np.random.default_rng(0))
    return [int(d) for d in placed.placement]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 7), devices=st.integers(1, 3))
def test_balanced_cuts_have_the_smallest_bottleneck(seed: int, count: int, devices: int) -> None:
    problem = random_problem(count, 3, seed=seed)
    order = np.random.default_rng(seed).permutation(count)
    chosen = fastest_devices(problem)[:devices]
    time_s = problem.group_time_s[order][:, chosen]

    def bottleneck_s(cuts: tuple[int, ...]) -> float:
        ends = [0, *cuts, count]
        return max(float(time_s[a:b, i].sum()) for i, (a, b) in enumerate(itertools.pairwise(ends)))

    best_s = min(bottleneck_s(c) for c in itertools.combinations_with_replacement(range(count + 1), devices - 1))
    assert bottleneck_s(tuple(balanced_cuts(problem, order, chosen))) == pytest.approx(best_s, rel=1e-6)


def test_cuts_respect_memory() -> None:
    problem = chain([400, 400, 100, 100, 100, 100], 3, gpu_bytes=500)
    order = np.arange(6)
    assert balanced_cuts(problem, order, np.array([1, 2])).tolist() == [1]  # by time alone it would be 3
    assert from_cuts(problem, order, np.array([1, 2]), np.array([1])).tolist() == [1, 2, 2, 2, 2, 2]


def test_contiguous_puts_each_of_two_chains_on_a_device_of_its_own() -> None:
    ops = [OpRecord(f"op{i}", "mm", flops=10**9, module=f"branch{i // 4}") for i in range(8)]
    graph = build("branches", ops, [TensorRecord(i, 10**7, [i + 1]) for i in (0, 1, 2, 4, 5, 6)])
    problem = PlacementProblem(graph, one_group_an_op(graph), cluster(2))
    assert place("contiguous", problem) == [1] * 4 + [2] * 4


def test_accelerate_fills_each_device_to_its_share_and_a_margin() -> None:
    # A share is 1200 / 3 and 1.25 of the largest, 525: four of 100 and one more, not six.
    assert place("accelerate_auto", chain([100] * 12, 3, gpu_bytes=10**6)) == [1] * 5 + [2] * 5 + [3] * 2


def test_accelerate_offloads_to_the_cpu_what_fits_nowhere_else() -> None:
    assert place("accelerate_auto", chain([100] * 6, 2, gpu_bytes=200)) == [1, 1, 2, 2, 0, 0]


def test_m_topo_fills_each_device_to_an_equal_share_and_the_largest_op() -> None:
    problem = chain([100] * 12, 3, gpu_bytes=10**6)
    device = place("m_topo", problem)
    assert device == [1] * 5 + [2] * 5 + [3] * 2


def test_saved_bytes_are_what_a_later_phase_reads() -> None:
    ops = [
        OpRecord("w", "parameter", resident_bytes={"parameter": 40}),
        OpRecord("f", "mm", flops=1),
        OpRecord("g", "mm", flops=1),
        OpRecord("b", "mm", phase="backward", flops=1),
        OpRecord("u", "adam", phase="update", bytes_accessed=1),
    ]
    tensors = [
        TensorRecord(0, 40, [1, 3, 4], resident=True),
        TensorRecord(1, 7, [2, 3]),
        TensorRecord(2, 1000, [3]),
        TensorRecord(3, 40, [4]),
    ]
    graph = build("step", ops, tensors)
    problem = PlacementProblem(graph, one_group_an_op(graph), cluster(1))
    assert saved_bytes(problem).tolist() == [0, 7, 1000, 40, 0]
    assert group_bytes(problem).tolist() == [40, 7, 1000, 40, 0]


def test_repair_moves_no_more_than_it_must() -> None:
    problem = chain([300, 300, 300, 50], 2, gpu_bytes=700)
    search = Search(problem, Budget())
    assert repair(search, np.array([1, 1, 1, 1]))
    assert search.best_placement is not None
    assert (search.best_placement != 1).sum() <= 2
    assert problem.evaluate(search.best_placement[None]).feasible.all()


def test_repair_moves_to_where_a_group_is_quickest_among_the_devices_with_room() -> None:
    """The CPU has most room and is ten times slower than the second GPU, which has enough."""
    problem = chain([300, 300, 300, 50], 2, gpu_bytes=700)
    search = Search(problem, Budget())
    assert repair(search, np.array([1, 1, 1, 1]))
    assert search.best_placement is not None
    assert set(search.best_placement) == {1, 2}


def test_repair_leaves_what_fits_alone() -> None:
    problem = training_problem(8, 2, seed=0)
    placement = np.array([0, *[1] * 8])
    search = Search(problem, Budget())
    assert repair(search, placement)
    assert search.evaluations == 1
    assert np.array_equal(search.placed().placement, placement)


def test_repair_says_when_nothing_fits() -> None:
    problem = chain([300, 300], 1, gpu_bytes=200)
    problem = PlacementProblem(problem.graph, problem.groups, cluster(1, gpu_bytes=200, cpu_bytes=400))
    search = Search(problem, Budget())
    assert not repair(search, np.array([1, 1]))
    assert search.best_placement is None
