"""No placement beats the bound; on small problems it is close to the optimum; and its parts are what they say."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.bounds import _heads, _tails, lower_bound_s, upper_bound_s
from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from graphs.colocation.groups import make_groups, one_group_an_op
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import NoFeasiblePlacementError
from graphs.synthetic import random_graph

GB = 10**9


def spec(name: str, rate: float, *, kind: str = "gpu", memory_bytes: int = 100 * GB) -> DeviceSpec:
    """A device that takes ``bytes / rate`` seconds for an op."""
    return DeviceSpec(name, kind, memory_bytes, {"float32": 1e30}, rate)


def cluster(*specs: DeviceSpec, bytes_per_s: float = 1.0, latency_s: float = 0.0) -> Cluster:
    devices = tuple(Device(f"{s.kind}:{i}", s) for i, s in enumerate(specs))
    pairs = itertools.combinations([d.name for d in devices], 2)
    return Cluster("test", devices, tuple(Link(a, b, bytes_per_s, latency_s) for a, b in pairs))


def graph_of(seconds: list[int], edges: list[tuple[int, int, int]], **extra: dict[int, object]) -> ComputationGraph:
    """Ops that take `seconds` at rate 1, and tensors ``(producer, reader, bytes)``; `extra` sets fields by op."""
    ops = [OpRecord(f"op{i}", "add", bytes_accessed=s) for i, s in enumerate(seconds)]
    for field, values in extra.items():
        for op, value in values.items():
            setattr(ops[op], field, value)
    return build("g", ops, [TensorRecord(a, size, (b,)) for a, b, size in edges])


def best_of_all(problem: PlacementProblem) -> float:
    every = np.array(list(itertools.product(range(problem.num_devices), repeat=problem.num_groups)))
    return float(problem.evaluate(every).cost_s().min())


def bound(graph: ComputationGraph, where: Cluster) -> float:
    return lower_bound_s(PlacementProblem(graph, one_group_an_op(graph), where))


def test_a_chain_is_bounded_by_its_length_on_the_fastest_device() -> None:
    chain = graph_of([2, 4, 6], [(0, 1, 1), (1, 2, 1)])
    assert bound(chain, cluster(spec("slow", 1), spec("fast", 2))) == pytest.approx(6)


def test_where_nothing_overlaps_all_work_counts() -> None:
    graph = graph_of([2, 4, 6, 8], [])  # no op waits for another
    where = cluster(spec("slow", 1), spec("fast", 2))
    assert bound(graph, where) == pytest.approx(20 / 3)
    in_turn = PlacementProblem(graph, one_group_an_op(graph), where, "sequential")
    assert lower_bound_s(in_turn) == pytest.approx(10)
    assert best_of_all(in_turn) == pytest.approx(10)


def test_a_chain_between_pinned_ops_pays_for_the_cheapest_way_between_them() -> None:
    # The first op may run on the CPU alone, the last on the GPU alone; both take 1 s. The middle op takes 4 s on the
    # CPU and 2 s on the GPU. The tensors are 3 and 5 bytes at 1 B/s, with 0.5 s of latency:
    # move early 1 + 3.5 + 2 + 1 = 7.5, move late 1 + 4 + 5.5 + 1 = 11.5.
    kinds: dict[int, object] = {0: ("cpu",), 2: ("gpu",)}
    chain = graph_of([1, 4, 2], [(0, 1, 3), (1, 2, 5)], allowed_kinds=kinds)
    where = cluster(spec("c", 1, kind="cpu"), spec("g", 2), latency_s=0.5)
    assert bound(chain, where) == pytest.approx(7.5)
    # In one group, the middle and the last op must be on the GPU together, and with the first: on the CPU, where it is.
    late = make_groups(np.array([0, 0, 1]), ["a", "b"], ["", ""], [0, 0])
    assert lower_bound_s(PlacementProblem(chain, late, where)) == pytest.approx(11.5)


def test_independent_work_is_shared_by_speed() -> None:
    # 12 ops of 1 s on devices of speed 1 and 2: at best in 12 / 3 s.
    wide = graph_of([1] * 12, [])
    assert bound(wide, cluster(spec("slow", 1), spec("fast", 2))) == pytest.approx(4)
    # Three like devices: 12 / 3 s; and with a fourth that the ops may not use, still.
    like = [spec("chip", 1)] * 3
    assert bound(wide, cluster(*like)) == pytest.approx(4)
    only: dict[int, object] = dict.fromkeys(range(12), ("gpu",))
    restricted = graph_of([1] * 12, [], allowed_kinds=only)
    assert bound(restricted, cluster(*like, spec("host", 100, kind="cpu"))) == pytest.approx(4)


def test_a_window_adds_what_must_come_before_and_after() -> None:
    # 5 s, then eight ops of 1 s each for two devices, then 3 s: 5 + 8 / 2 + 3, where work alone gives 16 / 2
    # and the longest path 5 + 1 + 3.
    middle = range(1, 9)
    edges = [(0, i, 0) for i in middle] + [(i, 9, 0) for i in middle]
    graph = graph_of([5, *[1] * 8, 3], edges)
    assert bound(graph, cluster(spec("chip", 1), spec("chip", 1))) == pytest.approx(12)


def test_memory_forces_work_to_the_slow_device() -> None:
    # Four ops of 1 s at speed 1, 2 GB each. The fast device (speed 10) holds 4 GB, so half of the work, 2 s, is left to
    # the slow one.
    resident: dict[int, object] = {i: {"parameter": 2 * GB} for i in range(4)}
    graph = graph_of([1] * 4, [], resident_bytes=resident)
    fast, slow = spec("fast", 10, memory_bytes=4 * GB), spec("slow", 1)
    assert bound(graph, cluster(fast, slow)) == pytest.approx(2)
    assert bound(graph, cluster(spec("fast", 10, memory_bytes=8 * GB), slow)) == pytest.approx(4 / 11)


def test_residents_that_fit_nowhere_are_reported() -> None:
    resident: dict[int, object] = {i: {"parameter": 2 * GB} for i in range(3)}
    graph = graph_of([1] * 3, [], resident_bytes=resident, allowed_kinds=dict.fromkeys(range(3), ("gpu",)))
    host = spec("host", 1, kind="cpu")
    with pytest.raises(NoFeasiblePlacementError, match=r"keeps 6\.00 GB resident"):
        bound(graph, cluster(spec("chip", 1, memory_bytes=5 * GB), host))
    assert bound(graph, cluster(spec("chip", 1, memory_bytes=6 * GB), host)) == pytest.approx(3)


def test_a_graph_that_takes_no_time() -> None:
    assert bound(graph_of([0, 0], [(0, 1, 5)]), cluster(spec("chip", 1))) == 0


@st.composite
def problems(draw: st.DrawFn, most_ops: int) -> PlacementProblem:
    num_ops = draw(st.integers(1, most_ops))
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    graph = random_graph(
        num_ops,
        edges_per_op=draw(st.sampled_from([1.0, 1.5, 3.0])),
        locality=draw(st.sampled_from([1, 3, 20])),
        resident_bytes=draw(st.sampled_from([0, 10**8])),
        seed=seed,
    )
    if draw(st.booleans()):
        seconds = rng.choice([np.nan, np.nan, 0.0, 1e-4, 1e-2], graph.num_tensors)
        graph = replace(graph, tensor_transfer_s=seconds)
    name = draw(st.sampled_from(["k80x2", "k80x4", "mixed", "k80x2:link_bytes_per_s=1e8", "k80x2:memory_bytes=5e8"]))
    labels = np.sort(rng.integers(0, num_ops, num_ops)) if draw(st.booleans()) else np.arange(num_ops)
    blank = [""] * num_ops
    groups = make_groups(labels, [f"g{i}" for i in range(num_ops)], blank, [0] * num_ops)
    schedule = draw(st.sampled_from(["priority", "fifo", "program_order"]))
    return PlacementProblem(graph, groups, load_cluster(name), schedule)


@settings(max_examples=30)
@given(problems(40), st.integers(0, 10**6))
def test_random_placements_never_beat_it(problem: PlacementProblem, seed: int) -> None:
    least = lower_bound_s(problem)
    assert least > 0
    rng = np.random.default_rng(seed)
    count = problem.num_devices
    placements = rng.integers(0, count, (100, problem.num_groups))
    # Uniform draws are far from good ones: also few changes of one device, and blocks.
    some = rng.random((100, problem.num_groups)) < 0.1
    near = np.where(some, placements, rng.integers(0, count, (100, 1)))
    blocks = np.sort(placements, axis=1)
    evaluation = problem.evaluate(np.concatenate([placements, near, blocks]))
    assert evaluation.cost_s().min() >= least


@settings(max_examples=15)
@given(problems(40), st.integers(0, 10**6))
def test_no_placement_on_allowed_devices_exceeds_the_upper_bound(problem: PlacementProblem, seed: int) -> None:
    most = upper_bound_s(problem)
    placements = np.random.default_rng(seed).integers(0, problem.num_devices, (100, problem.num_groups))
    slowest = np.repeat(np.arange(problem.num_devices)[:, None], problem.num_groups, axis=1)
    assert problem.evaluate(np.concatenate([placements, slowest])).step_time_s.max() <= most


def test_a_transfer_of_given_seconds_counts_by_them() -> None:
    """Pinned ends on two devices: the tensor between them takes 3 s, whatever the link of 1 byte/s would take."""
    ends = graph_of([2, 4], [(0, 1, 1000)], allowed_kinds={0: ["cpu"], 1: ["gpu"]})
    ends = replace(ends, tensor_transfer_s=np.array([3.0]))
    problem = PlacementProblem(ends, one_group_an_op(ends), cluster(spec("host", 1, kind="cpu"), spec("chip", 1)))
    assert lower_bound_s(problem) == pytest.approx(2 + 3 + 4)
    assert upper_bound_s(problem) == pytest.approx(2 + 3 + 4)


def test_the_upper_bound_is_reached_by_a_chain_that_changes_its_device_at_every_op() -> None:
    chain = graph_of([2, 4, 6], [(0, 1, 3), (1, 2, 5)])
    where = cluster(spec("a", 1), spec("b", 1), latency_s=0.5)
    problem = PlacementProblem(chain, one_group_an_op(chain), where)
    assert upper_bound_s(problem) == pytest.approx(2 + 3.5 + 4 + 5.5 + 6)
    assert problem.evaluate(np.array([[0, 1, 0]])).step_time_s[0] == pytest.approx(upper_bound_s(problem))
    # In one group nothing is sent; on one device neither.
    together = make_groups(np.zeros(3, dtype=np.int64), ["a"], [""], [0])
    assert upper_bound_s(problem.with_groups(together)) == pytest.approx(12)
    alone = PlacementProblem(chain, one_group_an_op(chain), cluster(spec("a", 2)))
    assert upper_bound_s(alone) == pytest.approx(6)


@pytest.mark.parametrize("resident", [(0, 2, 0, 1), (0, 2, 1, 2), (0, 2, 2, 0), (1, 2, 1, 1)])
def test_residents_that_fit_are_never_called_too_large(resident: tuple[int, ...]) -> None:
    # The second op's 2 bytes fit the slow device alone, where its time is 10^9 times that of the others: figures so far
    # apart made the solver of the linear programme call it infeasible.
    wide = graph_of([0, 2**31 - 1, 1, 1], [], resident_bytes={i: {"parameter": b} for i, b in enumerate(resident)})
    where = cluster(spec("slow", 1e-9, memory_bytes=4), spec("b", 1, memory_bytes=1))
    problem = PlacementProblem(wide, one_group_an_op(wide), where)
    assert 0 < lower_bound_s(problem) <= best_of_all(problem) < math.inf


def test_residents_that_just_fit_are_counted_in_whole_bytes() -> None:
    # 2^53 + 1 is no float64.
    one = graph_of([1], [], resident_bytes={0: {"parameter": 2**53 + 1}})
    assert bound(one, cluster(spec("a", 1, memory_bytes=2**53 + 1))) == pytest.approx(1)
    with pytest.raises(NoFeasiblePlacementError, match="cannot be divided over the devices"):
        bound(one, cluster(spec("a", 1, memory_bytes=2**53)))


def test_residents_that_do_not_fit_where_they_may_be_are_refused_by_size() -> None:
    # 4 bytes that only the CPU, of 3 bytes, may hold; the GPU's memory does not help.
    pinned: dict[int, object] = {0: ("cpu",), 1: ("cpu",)}
    resident: dict[int, object] = {0: {"parameter": 2}, 1: {"parameter": 2}}
    pair = graph_of([1, 1], [], allowed_kinds=pinned, resident_bytes=resident)
    where = cluster(spec("c", 1, kind="cpu", memory_bytes=3), spec("g", 1))
    with pytest.raises(NoFeasiblePlacementError, match="cannot be divided over the devices"):
        bound(pair, where)


def test_the_optimum_is_never_below_it_and_close_on_small_problems() -> None:
    ratios = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        num_ops = int(rng.integers(2, 7))
        graph = random_graph(num_ops, edges_per_op=rng.uniform(1, 2.5), locality=int(rng.integers(1, 6)), seed=seed)
        name = ["k80x2", "mixed", "k80x2:link_latency_s=1e-6,link_bytes_per_s=1e11"][seed % 3]
        problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster(name))
        ratios.append(lower_bound_s(problem) / best_of_all(problem))
    assert max(ratios) <= 1
    # How tight: as measured when written, so that a weaker bound is noticed.
    assert np.median(ratios) > 0.95
    assert min(ratios) > 0.5


@pytest.mark.slow
def test_thousands_of_placements_of_larger_problems() -> None:
    for seed in range(3):
        graph = random_graph(1000, seed=seed, resident_bytes=10**6)
        for name in ("k80x4", "mixed", "v100x8"):
            problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster(name))
            rng = np.random.default_rng(seed)
            placements = np.sort(rng.integers(0, problem.num_devices, (1000, problem.num_groups)), axis=1)
            assert problem.evaluate(placements).cost_s().min() >= lower_bound_s(problem)


def plain_heads_and_tails(problem: PlacementProblem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The plain version of `envs.bound_kernels`."""
    graph, group, routes = problem.graph, problem.groups.group_of_op, problem.cluster.routes
    per_byte = np.where(routes.receiver_copies, 0.0, 1 / routes.bytes_per_s)
    apart = ~np.eye(problem.num_devices, dtype=np.bool_)
    heads = np.zeros((graph.num_ops, problem.num_devices))
    tails = np.zeros_like(heads)
    sent_s = []
    for size, given_s in zip(graph.tensor_bytes, graph.tensor_transfer_s, strict=True):
        by_links = routes.latency_s + size * per_byte
        sent_s.append(by_links if np.isnan(given_s) else np.where(apart, given_s, 0.0))
    edges = list(zip(graph.edge_tensor, graph.edge_producer, graph.consumers, strict=True))
    for tensor, op, reader in edges:
        end_s = np.where(problem.allowed[group[op]], heads[op] + problem.op_time_s[:, op], np.inf)
        arrival_s = end_s if group[reader] == group[op] else (end_s[:, None] + sent_s[tensor]).min(axis=0)
        heads[reader] = np.maximum(heads[reader], arrival_s)
    for tensor, op, reader in reversed(edges):
        rest_s = np.where(problem.allowed[group[reader]], problem.op_time_s[:, reader] + tails[reader], np.inf)
        there_s = rest_s if group[reader] == group[op] else (sent_s[tensor] + rest_s).min(axis=1)
        tails[op] = np.maximum(tails[op], there_s)
    return heads, tails


@pytest.mark.parametrize("seed", range(4))
def test_the_compiled_loops_are_the_plain_ones_bit_for_bit(seed: int) -> None:
    graph = random_graph(200, seed=seed, locality=20)
    cluster = load_cluster(("k80x4", "mixed", "v100x8", "two_hosts")[seed])
    kinds = [("gpu",) if op % 9 == seed else None for op in range(graph.num_ops)]
    records = [OpRecord(f"op{i}", "mm", flops=10**9 * (1 + i % 7), allowed_kinds=kind) for i, kind in enumerate(kinds)]
    tensors = [
        TensorRecord(int(graph.tensor_producer[t]), int(graph.tensor_bytes[t]), graph.consumers[a:b].tolist())
        for t, (a, b) in enumerate(itertools.pairwise(graph.consumer_offsets.tolist()))
    ]
    graph = build("restricted", records, tensors)
    groups = one_group_an_op(graph)
    if seed % 2 == 0:
        threes = [str(i) for i in range(-(-graph.num_ops // 3))]
        groups = make_groups(np.arange(graph.num_ops) // 3, threes, threes, [0] * len(threes))
    problem = PlacementProblem(graph, groups, cluster)
    heads, tails = plain_heads_and_tails(problem)
    assert np.array_equal(_heads(problem), heads)
    assert np.array_equal(_tails(problem), tails)
    assert heads.max() > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_bound_that_is_given_no_time_is_a_bound_all_the_same(seed: int) -> None:
    graph = random_graph(300, seed=seed, locality=20)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x4"))
    hurried_s, whole_s = lower_bound_s(problem, time_limit_s=0.0), lower_bound_s(problem)
    assert 0 < hurried_s <= whole_s
    assert lower_bound_s(problem, time_limit_s=1e6) == whole_s
