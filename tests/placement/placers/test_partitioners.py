"""METIS and Scotch: what they are given, and that they cut where a person would."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest

from envs.problem import PlacementProblem
from graphs.colocation.groups import make_groups, one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.errors import InputError
from placement.placers.affinity import exchanged_bytes
from placement.placers.base import Budget
from placement.placers.mincut import TOTAL_WEIGHT, integer_weights, subgraph
from placement.placers.scotch import source_text, target_text
from placement.registry import get_placer
from tests.placement.placer_problems import cluster, random_problem, training_problem

needs_scotch = pytest.mark.skipif(
    shutil.which("scotch_gmap") is None, reason="Debian's package scotch is not installed"
)


def two_cliques(gpus: int, *, cpu: bool) -> PlacementProblem:
    """Two halves of four ops that exchange much, joined by one small tensor."""
    ops = [OpRecord(f"op{i}", "mm", flops=10**9) for i in range(8)]
    tensors = [
        TensorRecord(i, 10**8, [j]) for half in (0, 4) for i in range(half, half + 4) for j in range(i + 1, half + 4)
    ]
    graph = build("cliques", ops, [*tensors, TensorRecord(3, 10, [4])])
    return PlacementProblem(graph, one_group_an_op(graph), cluster(gpus, cpu=cpu))


def place(name: str, problem: PlacementProblem) -> np.ndarray:
    return get_placer(name).function(problem, budget=Budget(), rng=np.random.default_rng(0)).placement


def test_a_tensor_counts_once_for_each_group_that_reads_it() -> None:
    ops = [OpRecord(f"op{i}", "mm", flops=1) for i in range(5)]
    tensors = [TensorRecord(0, 100, [1, 2, 3, 4]), TensorRecord(3, 7, [4]), TensorRecord(2, 30, [4])]
    graph = build("graph", ops, tensors)
    groups = make_groups(np.array([0, 1, 1, 2, 0]), list("abc"), list("abc"), [0, 0, 0])
    a, b, sizes = exchanged_bytes(PlacementProblem(graph, groups, cluster(1)))
    # Group b (ops 1, 2) gets the 100 bytes once and sends 30 back to a; c (op 3) gets 100 and sends 7 back.
    assert list(zip(a, b, sizes, strict=True)) == [(0, 1, 130), (0, 2, 107)]


def test_weights_are_whole_positive_and_in_proportion() -> None:
    assert integer_weights(np.array([1.0, 3.0, 0.0])).tolist() == [TOTAL_WEIGHT // 4, TOTAL_WEIGHT * 3 // 4, 1]
    assert integer_weights(np.zeros(2)).tolist() == [1, 1]


def test_the_subgraph_has_each_edge_in_both_directions() -> None:
    problem = random_problem(30, 2, seed=0)
    offsets, neighbours, weights = subgraph(problem, np.arange(5, 25))
    ends = np.repeat(np.arange(20), np.diff(offsets))
    forward = sorted(zip(ends, neighbours, weights, strict=True))
    assert forward == sorted(zip(neighbours, ends, weights, strict=True))
    assert len(forward) > 20


@pytest.mark.parametrize("name", ["mincut", pytest.param("scotch", marks=needs_scotch)])
def test_the_cut_goes_through_the_small_tensor(name: str) -> None:
    placement = place(name, two_cliques(2, cpu=False))
    assert len(set(placement[:4])) == len(set(placement[4:])) == 1
    assert placement[0] != placement[4]


def test_mincut_leaves_the_cpu_out() -> None:
    problem = training_problem(20, 3, seed=0)
    assert place("mincut", problem)[0] == 0
    assert set(place("mincut", problem)[1:]) == {1, 2, 3}


def test_scotch_is_given_the_graph_and_the_weighted_cluster() -> None:
    problem = two_cliques(2, cpu=True)
    lines = source_text(problem, np.arange(8)).splitlines()
    assert lines[:3] == ["0", "8 26", "0 011"]
    assert len(lines) == 11
    assert [int(line.split()[1]) for line in lines[3:]] == [3, 3, 3, 4, 4, 3, 3, 3]
    # A CPU of a tenth of the speed, leaves 4, 5 and 3 of a halved tree, all one switch apart.
    lines = target_text(problem).splitlines()
    assert lines[:2] == ["deco 0", "3 5"]
    assert [line.split()[2] for line in lines[2:5]] == ["4", "5", "3"]
    assert 95 <= int(lines[2].split()[1]) <= 110
    assert lines[3].split()[1] == lines[4].split()[1] == "1000"
    assert lines[5:] == ["1", "1 1"]


def test_scotch_says_how_to_install_it_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"needs the program 'scotch_gmap', .* apt-get install scotch$"):
        place("scotch", two_cliques(2, cpu=True))


def test_the_seconds_of_the_partitioner_itself_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from placement.placers import mincut

    cut = mincut._metis

    def slow(*args: object) -> object:
        time.sleep(0.02)
        return cut(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(mincut, "_metis", slow)
    assert mincut.place(random_problem(8, 2, seed=0), budget=Budget(), rng=np.random.default_rng(0)).search_s >= 0.02
