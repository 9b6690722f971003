"""Whatever is fed in: a right answer, or one sentence that names the culprit; never a hang, a crash or a NaN."""

from __future__ import annotations

import copy
import math
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import envs.clusters.file
from envs.bounds import lower_bound_s
from envs.clusters.catalog import DEVICE_SPECS, load_cluster
from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.clusters.file import parse_cluster
from envs.placement_env import default_failing_s
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError, NoFeasiblePlacementError

EXAMPLE = textwrap.dedent(str(envs.clusters.file.__doc__).split("```yaml\n")[1].split("```")[0])
MOST = 2**63 - 1


def one_sentence(error: BaseException, *words: str) -> None:
    """Check that a message is one sentence and holds some words."""
    assert str(error)
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


# ---- Cluster files and names

ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["12e9", "nan", ".inf", "-1", "k80", "gpu:0", "cpu:0", ""]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def paths_of(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in nested lists and dicts."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(p for key, value in inner for p in paths_of(value, (*path, key)))]


@settings(max_examples=60)
@given(st.data())
def test_a_cluster_file_with_any_value_changed_is_read_or_refused(data: st.DataObject) -> None:
    content = copy.deepcopy(yaml.safe_load(EXAMPLE))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([p for p in paths_of(content) if p]))
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[path[-1]] = data.draw(ODD_VALUES)
        else:
            del parent[path[-1]]
    try:
        cluster = parse_cluster(yaml.safe_dump(content), DEVICE_SPECS, where="cluster file 'x.yaml'")
    except InputError as error:
        one_sentence(error, "cluster file 'x.yaml'")
        return
    assert np.isfinite(cluster.routes.latency_s).all()
    assert (cluster.routes.bytes_per_s > 0).all()
    assert cluster.sha256


@settings(max_examples=150)
@given(st.data())
def test_a_cluster_file_with_any_characters_changed_is_read_or_refused(data: st.DataObject) -> None:
    text = list(EXAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.one_of(st.sampled_from(list("[]{}:,-&*!|>'\"%@`\t\n 0")), st.characters()))
    try:
        parse_cluster("".join(text), DEVICE_SPECS)
    except InputError as error:
        one_sentence(error)


@settings(max_examples=200)
@given(
    st.one_of(
        st.text(max_size=30),
        st.builds(
            "{}:{}={}{}".format,
            st.sampled_from(["k80x4", "mixed", "a100x4"]),
            st.sampled_from(["link_bytes_per_s", "link_latency_s", "memory_bytes", "launch_overhead_s", "x"]),
            st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=5)),
            st.sampled_from(["", ",", ",memory_bytes=1"]),
        ),
    )
)
def test_any_cluster_name_is_known_or_refused(name: str) -> None:
    try:
        cluster = load_cluster(name)
    except InputError as error:
        one_sentence(error)
        return
    assert load_cluster(cluster.name).sha256 == cluster.sha256


# ---- Problems of extreme figures

SIZES = st.one_of(st.integers(0, 100), st.sampled_from([0, 1, 2**31, 2**53 + 1, 2**62, MOST]), st.integers(0, MOST))


@st.composite
def odd_graphs(draw: st.DrawFn) -> ComputationGraph:
    count = draw(st.integers(1, 6))
    ops = [
        OpRecord(
            f"op{i}",
            draw(st.sampled_from(["add", "mm", "input", "parameter", ""])),
            flops=draw(SIZES),
            bytes_accessed=draw(SIZES),
            batch=draw(st.sampled_from([0, 1, 33, 2**31 - 1])),
            resident_bytes={"parameter": draw(SIZES)} if draw(st.booleans()) else {},
            time_s={"odd": draw(st.sampled_from([0.0, 1e-300, 1.0, 1e300, math.nan]))} if draw(st.booleans()) else {},
        )
        for i in range(count)
    ]
    tensors = [
        TensorRecord(i, draw(SIZES), sorted(draw(st.sets(st.integers(i + 1, count - 1)))) if i + 1 < count else [])
        for i in range(count)
        if draw(st.booleans())
    ]
    return build("odd", ops, tensors)


RATES = st.sampled_from([1e-9, 1.0, 1e9, 1e30])


@st.composite
def odd_clusters(draw: st.DrawFn) -> Cluster:
    count = draw(st.integers(1, 4))
    devices = []
    for i in range(count):
        spec = DeviceSpec(
            name=draw(st.sampled_from(["odd", "even"])),
            kind=draw(st.sampled_from(["cpu", "gpu"])),
            memory_bytes=draw(SIZES),
            peak_flops_per_s={"float32": draw(RATES)},
            memory_bytes_per_s=draw(RATES),
            launch_overhead_s=draw(st.sampled_from([0.0, 1e-6, 1e9])),
            efficiency={"product": draw(st.sampled_from([1e-9, 1.0]))},
            tile=draw(st.sampled_from([1, 32, 2**31 - 1])),
            fill_flops=draw(st.sampled_from([0.0, 1e30])),
        )
        devices.append(Device(f"d{i}", spec))
    latency = st.sampled_from([0.0, 1e-9, 1e9])
    links = [Link(f"d{draw(st.integers(0, i - 1))}", f"d{i}", draw(RATES), draw(latency)) for i in range(1, count)]
    return Cluster("odd", tuple(devices), tuple(links))


@settings(max_examples=80)
@given(odd_graphs(), odd_clusters(), st.sampled_from(SCHEDULES), st.integers(0, 10**6))
def test_extreme_figures_give_exact_memory_and_a_finite_time_or_an_error(
    graph: ComputationGraph, cluster: Cluster, schedule: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    try:
        problem = PlacementProblem(graph, one_group_an_op(graph), cluster, schedule)
        placements = rng.integers(0, cluster.num_devices, (4, problem.num_groups))
        evaluation = problem.evaluate(placements)
    except InputError as error:
        one_sentence(error, "'odd'")
        return
    assert np.isfinite(evaluation.step_time_s).all()
    assert (evaluation.step_time_s >= 0).all()
    resident = graph.resident_bytes.astype(object).sum(axis=1)
    tensors = graph.tensor_bytes.astype(object).sum() * (cluster.num_devices + 1)
    for placement, peak in zip(problem.groups.to_ops(placements), evaluation.peak_memory_bytes, strict=True):
        for device, most in enumerate(peak):
            least = resident[placement == device].sum()
            # Python's integers do not wrap: the peak lies between the residents and all that could ever be there.
            assert least <= int(most) <= least + tensors
    assert math.isfinite(default_failing_s(problem))
    try:
        bound = lower_bound_s(problem)
    except NoFeasiblePlacementError as error:
        one_sentence(error)
        assert not evaluation.feasible.any()
        return
    assert math.isfinite(bound)
    assert bound <= evaluation.cost_s().min()


@pytest.mark.parametrize(
    ("op", "tensor", "words"),
    [
        ({"flops": -1}, 1, "op 'a' has flops = -1"),
        ({"flops": 2**63}, 1, "op 'a' has flops = 9223372036854775808"),
        ({"bytes_accessed": 2**64}, 1, "op 'a' has bytes_accessed"),
        ({"batch": 2**31}, 1, "op 'a' has batch = 2147483648"),
        ({"resident_bytes": {"parameter": 2**63}}, 1, "op 'a' has 9223372036854775808 resident bytes"),
        ({"resident_bytes": {"parameter": -5}}, 1, "op 'a' has -5 resident bytes"),
        ({"time_s": {"k80": -1.0}}, 1, "op 'a' has time_s -1.0"),
        ({"time_s": {"k80": math.inf}}, 1, "op 'a' has time_s inf"),
        ({}, -1, "op 'a' makes a tensor of -1 bytes"),
        ({}, 2**63, "op 'a' makes a tensor of 9223372036854775808 bytes"),
        ({}, MOST, "too many for int64; the op with the most is 'a'"),
        ({"resident_bytes": {"parameter": MOST, "optimizer": MOST}}, 1, "too many for int64; the op with the most is"),
        ({"time_s": {"k80": 1e308, "haswell_18c": 1e308}}, 1, "longer than float64"),
    ],
)
def test_sizes_that_do_not_fit_name_the_op_or_the_sum(op: dict[str, Any], tensor: int, words: str) -> None:
    def evaluate() -> None:
        graph = build("g", [OpRecord("a", "add", **op), OpRecord("b", "add", **op)], [TensorRecord(0, tensor, (1,))])
        problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
        problem.evaluate(np.zeros((1, 2), dtype=np.int64))

    with pytest.raises(InputError) as error:
        evaluate()
    one_sentence(error.value, words)


@pytest.mark.parametrize(
    "placements",
    [
        np.zeros((1, 3)),
        np.full((1, 3), np.nan),
        np.zeros((1, 3), dtype=bool),
        np.zeros(2, dtype=int),
        np.zeros((1, 2), dtype=int),
        np.zeros((1, 1, 3), dtype=int),
        np.full((1, 3), -1),
        np.full((1, 3), 3),
        np.full((1, 3), 2**63, dtype=np.uint64),
        np.full((1, 3), 2**32),
        np.array([[0, 1, None]]),
        np.array([["0", "1", "2"]]),
    ],
    ids=lambda p: f"{p.dtype}{p.shape}",
)
@pytest.mark.parametrize("what", ["evaluate", "evaluate_ops", "trace"])
def test_arrays_that_are_no_placements_are_refused(placements: Any, what: str) -> None:
    graph = build("g", [OpRecord(name, "add", bytes_accessed=8) for name in "abc"], [])
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
    ask: Callable[[Any], Any] = getattr(problem, what)
    with pytest.raises(InputError) as error:
        ask(placements)
    one_sentence(error.value)


def test_an_empty_batch_is_answered_with_nothing() -> None:
    graph = build("g", [OpRecord("a", "add", bytes_accessed=8)], [])
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
    evaluation = problem.evaluate(np.zeros((0, 1), dtype=np.int64))
    assert evaluation.step_time_s.shape == (0,)
    assert evaluation.peak_memory_bytes.shape == (0, 3)


# ---- Graphs of extreme shape. One device runs `rate` bytes a second, so an op of 1 byte takes 1 s.


def ring(count: int) -> Cluster:
    spec = DeviceSpec("chip", "gpu", MOST, {"float32": 1.0}, 1.0)
    devices = tuple(Device(f"gpu:{i}", spec) for i in range(count))
    links = tuple(
        Link(f"gpu:{i}", f"gpu:{(i + 1) % count}", 1.0, 0.0) for i in range(count if count > 2 else count - 1)
    )
    return Cluster("ring", devices, links)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_op(schedule: str) -> None:
    graph = build("one", [OpRecord("a", "add", bytes_accessed=3)], [])
    problem = PlacementProblem(graph, one_group_an_op(graph), ring(1), schedule)
    assert problem.evaluate(np.zeros((1, 1), dtype=int)).step_time_s.tolist() == [3.0]
    assert lower_bound_s(problem) == pytest.approx(3.0)


def test_an_empty_graph_is_refused() -> None:
    with pytest.raises(InputError, match="graph 'none': it has no ops"):
        build("none", [], [])


@pytest.mark.parametrize("schedule", ["priority", "fifo", "program_order"])
def test_no_edges_on_64_devices(schedule: str) -> None:
    # 640 ops of 1 s, ten on each of 64 devices, one after another: 10 s. All on one device: 640 s.
    graph = build("wide", [OpRecord(f"op{i}", "add", bytes_accessed=1) for i in range(640)], [])
    problem = PlacementProblem(graph, one_group_an_op(graph), ring(64), schedule)
    placements = np.stack([np.arange(640) % 64, np.full(640, 63)])
    assert problem.evaluate(placements).step_time_s.tolist() == [10.0, 640.0]
    assert lower_bound_s(problem) == pytest.approx(10.0)


@pytest.mark.parametrize("schedule", ["priority", "fifo", "program_order"])
def test_disconnected_chains_do_not_wait_for_each_other(schedule: str) -> None:
    # Three chains of 5 ops of 1 s, one a device: 5 s; ops of the chains alternate in program order.
    ops = [OpRecord(f"op{i}", "add", bytes_accessed=1) for i in range(15)]
    graph = build("chains", ops, [TensorRecord(i, 1, (i + 3,)) for i in range(12)])
    problem = PlacementProblem(graph, one_group_an_op(graph), ring(3), schedule)
    assert problem.evaluate(np.arange(15)[None] % 3).step_time_s.tolist() == [5.0]
    assert problem.evaluate(np.zeros((1, 15), dtype=int)).step_time_s.tolist() == [15.0]


def check_star(readers: int, schedule: str) -> None:
    """One op whose tensor very many read; half of them are on another device."""
    ops = [OpRecord("hub", "add", bytes_accessed=1)]
    ops += [OpRecord(f"r{i}", "add", bytes_accessed=1) for i in range(readers)]
    graph = build("star", ops, [TensorRecord(0, 7, range(1, readers + 1))])
    problem = PlacementProblem(graph, one_group_an_op(graph), ring(2), schedule)
    half = (np.arange(readers + 1) > readers // 2).astype(int)[None]
    # The hub takes 1 s, the one transfer 7 s, and half of the readers 1 s each on the other device.
    evaluation = problem.evaluate(half)
    assert evaluation.step_time_s.tolist() == [1 + 7 + (readers - readers // 2)]
    assert evaluation.peak_memory_bytes.tolist() == [[7, 7]]
    assert problem.evaluate(np.zeros_like(half)).step_time_s.tolist() == [1 + readers]
    assert lower_bound_s(problem) == pytest.approx(1 + readers / 2)


@pytest.mark.parametrize(("readers", "schedule"), [(100_000, "priority"), (10_000, "fifo"), (10_000, "program_order")])
def test_a_star_of_a_hundred_thousand_edges(readers: int, schedule: str) -> None:
    check_star(readers, schedule)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_star_of_a_million_edges(schedule: str) -> None:
    check_star(1_000_000, schedule)


def test_a_long_chain() -> None:
    count = 30_000
    ops = [OpRecord(f"op{i}", "add", bytes_accessed=1) for i in range(count)]
    graph = build("chain", ops, [TensorRecord(i, 1, (i + 1,)) for i in range(count - 1)])
    problem = PlacementProblem(graph, one_group_an_op(graph), ring(3))
    assert problem.evaluate(np.arange(count)[None] % 3).step_time_s.tolist() == [2 * count - 1]
    assert lower_bound_s(problem) == pytest.approx(count)
