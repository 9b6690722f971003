"""Graphs built from records: known answers, the order of ops, and what is said of a graph that is not valid."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.colocation.rules import colocate
from graphs.computation_graph import DEVICE_KINDS, PHASES, ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.files import decode_graph, encode_graph


def named(names: str) -> list[OpRecord]:
    return [OpRecord(name, "mul") for name in names.split()]


def diamond() -> ComputationGraph:
    """``a -> b, c -> d``, where ``a`` makes two tensors and both ``b`` and ``d`` read the first."""
    ops = [
        OpRecord("a", "mm", module="m", flops=10, resident_bytes={"parameter": 7, "optimizer": 14}, dtype="bfloat16"),
        OpRecord("b", "relu", module="m.n", module_call=2, bytes_accessed=5, output_shapes=[(2, 3), ()], batch=2),
        OpRecord("c", "mm", phase="backward", flops=20, allowed_kinds=["gpu", "cpu", "gpu"], time_s={"k80": 0.5}),
        OpRecord("d", "adam", phase="update", time_s={"k80": 1.5, "a100": 0.25}),
    ]
    tensors = [
        TensorRecord(1, 30, [3]),
        TensorRecord(0, 10, [3, 1, 3], resident=True),
        TensorRecord(2, 40, [3]),
        TensorRecord(0, 20, [2]),
    ]
    return build("diamond", ops, tensors, [[3, 0]])


def test_every_column_of_a_diamond() -> None:
    graph = diamond()
    assert graph.op_names == ("a", "b", "c", "d")
    assert graph.type_names == ("mm", "relu", "adam")
    assert graph.op_type.tolist() == [0, 1, 0, 2]
    assert graph.module_names == ("m", "m.n", "")
    assert graph.module.tolist() == [0, 1, 2, 2]
    assert graph.module_call.tolist() == [0, 2, 0, 0]
    assert [PHASES[p] for p in graph.phase] == ["forward", "forward", "backward", "update"]
    assert graph.flops.tolist() == [10, 0, 20, 0]
    assert graph.bytes_accessed.tolist() == [0, 5, 0, 0]
    assert graph.batch.tolist() == [0, 2, 0, 0]
    assert graph.resident_bytes.tolist() == [[7, 0, 14, 0], [0] * 4, [0] * 4, [0] * 4]
    assert graph.allowed_kinds.tolist() == [31, 31, 3, 31]
    assert DEVICE_KINDS[:2] == ("cpu", "gpu")
    assert graph.output_shapes == ((), ((2, 3), ()), (), ())
    assert graph.tensor_producer.tolist() == [0, 0, 1, 2]
    assert graph.tensor_bytes.tolist() == [10, 20, 30, 40]
    assert graph.tensor_resident.tolist() == [True, False, False, False]
    assert graph.consumer_offsets.tolist() == [0, 2, 3, 4, 5]
    assert graph.consumers.tolist() == [1, 3, 2, 3, 3]
    assert graph.colocation.tolist() == [0, -1, -1, 0]
    assert list(graph.time_s) == ["a100", "k80"]
    np.testing.assert_array_equal(graph.time_s["k80"], [np.nan, np.nan, 0.5, 1.5])


def test_what_is_derived_from_a_diamond() -> None:
    graph = diamond()
    assert (graph.num_ops, graph.num_tensors, graph.num_edges) == (4, 4, 5)
    assert graph.total_flops == 30
    assert graph.parameter_bytes == 7
    assert graph.tensor_offsets.tolist() == [0, 2, 3, 4, 4]
    assert graph.edge_tensor.tolist() == [0, 0, 1, 2, 3]
    assert graph.edge_producer.tolist() == [0, 0, 0, 1, 2]
    offsets, tensors = graph.input_tensors
    assert offsets.tolist() == [0, 0, 1, 2, 5]
    assert tensors.tolist() == [0, 1, 0, 2, 3]
    assert repr(graph).startswith("ComputationGraph('diamond', 4 ops, 5 edges, ")


def test_ops_that_are_in_order_keep_it() -> None:
    graph = build("g", named("z y x"), [TensorRecord(0, 1, [2])])
    assert graph.op_names == ("z", "y", "x")


def test_ops_out_of_order_are_sorted_stably() -> None:
    """`d` needs `c`, which needs `e`: of all that is ready, the first given comes first."""
    ops = named("a d b c e f")
    graph = build("g", ops, [TensorRecord(3, 1, [1]), TensorRecord(4, 2, [3]), TensorRecord(0, 3, [2])], [[1, 5]])
    assert graph.op_names == ("a", "b", "e", "c", "d", "f")
    assert graph.tensor_producer.tolist() == [0, 2, 3]
    assert graph.tensor_bytes.tolist() == [3, 2, 1]
    assert graph.consumers.tolist() == [1, 3, 4]
    assert graph.colocation.tolist() == [-1, -1, -1, -1, 0, 0]


@given(
    st.integers(1, 7).flatmap(
        lambda n: st.tuples(st.permutations(range(n)), st.sets(st.tuples(*[st.integers(0, n - 1)] * 2)))
    )
)
def test_any_order_of_a_graph_is_topological_in_the_end(drawn: tuple[list[int], set[tuple[int, int]]]) -> None:
    order, pairs = drawn
    forward = sorted({(min(p), max(p)) for p in pairs if p[0] != p[1]})
    place = {op: i for i, op in enumerate(order)}
    ops = [OpRecord(f"op{op}", "mul") for op in order]
    graph = build("g", ops, [TensorRecord(place[a], 1, [place[b]]) for a, b in forward])
    index = {name: i for i, name in enumerate(graph.op_names)}
    edges = sorted((index[f"op{a}"], index[f"op{b}"]) for a, b in forward)
    assert edges == sorted(zip(graph.edge_producer.tolist(), graph.consumers.tolist(), strict=True))
    assert all(a < b for a, b in edges)
    # Stable: an op that comes later than one given after it had to wait for something in between.
    for a, b in itertools.pairwise(range(graph.num_ops)):
        if place[int(graph.op_names[a][2:])] > place[int(graph.op_names[b][2:])]:
            assert (a, b) in edges


def test_overlapping_constraints_are_one() -> None:
    graph = build("g", named("a b c d e f g"), [], [[4, 3], [0, 2], [5], [], [6, 6], [2, 4]])
    assert graph.colocation.tolist() == [0, -1, 0, 0, 0, -1, -1]
    graph = build("g", named("a b c d"), [], [[3, 1], [2, 0]])
    assert graph.colocation.tolist() == [0, 1, 0, 1]  # numbered by their first op


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ("aa", "a -> a"),
        ("ab bc ca", "a -> b -> c -> a"),
        # `x` leads to the cycle, `d` and `e` only follow it: none of them is named.
        ("xb ab ba bd de", "a -> b -> a"),
    ],
)
def test_a_cycle_is_named(edges: str, cycle: str) -> None:
    names = "dexabc"
    tensors = [TensorRecord(names.index(a), 1, [names.index(b)]) for a, b in map(tuple, edges.split())]
    with pytest.raises(InputError) as caught:
        build("g", [OpRecord(n, "mul") for n in names], tensors)
    assert str(caught.value) == (
        f"graph 'g' has a cycle through op 'a' ({cycle}); a step has none: remove one of its tensors"
    )


def test_a_long_cycle_is_shortened() -> None:
    tensors = [TensorRecord(i, 1, [(i + 1) % 1000]) for i in range(1000)]
    with pytest.raises(
        InputError, match=r"cycle through op 'op0' \(op0 -> op1 -> op2 -> op3 -> \.\.\. -> op999 -> op0\)"
    ):
        build("g", [OpRecord(f"op{i}", "mul") for i in range(1000)], tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flops": -1}, "op 'b' has flops = -1; it must be a whole number from 0 to 9223372036854775807"),
        ({"flops": 2**63}, "op 'b' has flops = 9223372036854775808; it must be"),
        ({"flops": 1.5}, "op 'b' has flops = 1.5; it must be a whole number"),
        ({"flops": True}, "op 'b' has flops = True; it must be a whole number"),
        ({"bytes_accessed": -2}, "op 'b' has bytes_accessed = -2"),
        ({"module_call": -1}, "op 'b' has module_call = -1; it must be a whole number from 0 to 2147483647"),
        ({"batch": 2**31}, "op 'b' has batch = 2147483648"),
        ({"phase": "sideways"}, "op 'b' has phase 'sideways'; it must be one of forward, backward, update"),
        ({"dtype": "float31"}, "op 'b' has dtype 'float31'; it must be one of float32, "),
        ({"resident_bytes": {"weights": 1}}, "op 'b' has resident bytes of 'weights'; known parts: parameter, "),
        ({"resident_bytes": {"constant": -5}}, "op 'b' has -5 resident bytes of 'constant'; it must be a whole number"),
        ({"resident_bytes": {"constant": 0.5}}, "op 'b' has 0.5 resident bytes of 'constant'"),
        ({"allowed_kinds": ["dsp"]}, "op 'b' allows device kind 'dsp'; known: cpu, gpu, tpu"),
        ({"allowed_kinds": []}, "op 'b' is allowed on no kind of device"),
        ({"output_shapes": [(3, -1)]}, "op 'b' has a negative dimension in its output shapes ((3, -1),)"),
        ({"time_s": {"k80": -1.0}}, "op 'b' has time_s -1.0 on 'k80'; it must be finite, not negative"),
        ({"time_s": {"k80": float("inf")}}, "op 'b' has time_s inf on 'k80'"),
        ({"name": "a"}, "two ops are called 'a'; names must be unique"),
    ],
)
def test_a_bad_op_is_named(changes: dict[str, Any], message: str) -> None:
    ops = named("a b c")
    ops[1] = dataclasses.replace(ops[1], **changes)
    with pytest.raises(InputError) as caught:
        build("g", ops, [TensorRecord(0, 1, [1])])
    assert f"graph 'g': {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (TensorRecord(3, 1, []), "a tensor refers to op number 3, but there are 3 ops"),
        (TensorRecord(0, 1, [-1]), "a tensor refers to op number -1, but there are 3 ops"),
        (TensorRecord(1, -4, [2]), "op 'b' makes a tensor of -4 bytes; it must be a whole number that is not negative"),
        (TensorRecord(1, 2**63, [2]), "op 'b' makes a tensor of 9223372036854775808 bytes"),
        (TensorRecord(1, 0.5, [2]), "op 'b' makes a tensor of 0.5 bytes"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_tensor_names_its_op(tensor: TensorRecord, message: str) -> None:
    with pytest.raises(InputError) as caught:
        build("g", named("a b c"), [tensor])
    assert f"graph 'g': {message}" in str(caught.value)


def test_a_graph_needs_an_op_and_constraints_need_theirs() -> None:
    with pytest.raises(InputError, match="graph 'g': it has no ops"):
        build("g", [], [])
    for index in (2, -1):
        with pytest.raises(InputError, match=f"a co-location constraint refers to op number {index}, but there are 2"):
            build("g", named("a b"), [], [[0, index]])


def of(values: Any, dtype: Any) -> Any:
    return np.array(values, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"op_type": of([0, 1, 0, 3], np.int32)}, "op 'd' has op_type = 3, which is out of range"),
        ({"phase": of([0, 3, 0, 0], np.int8)}, "op 'b' has phase = 3, which is out of range"),
        ({"allowed_kinds": of([32, 1, 1, 1], np.uint8)}, "op 'a' has allowed_kinds = 32, which is out of range"),
        ({"flops": of([0, 0, -1, 0], np.int64)}, "op 'c' has flops = -1, which is out of range"),
        ({"flops": of([0, 0, 0], np.int64)}, "column flops has 3 rows for 4 ops"),
        ({"flops": of([0, 0, 0, 0], np.float64)}, "column flops is float64 in 1 dimensions, not int64 in 1"),
        ({"flops": of([[0], [0], [0], [0]], np.int64)}, "column flops is int64 in 2 dimensions, not int64 in 1"),
        ({"resident_bytes": np.zeros((4, 3), np.int64)}, "resident_bytes has 3 columns, not 4"),
        ({"resident_bytes": np.full((4, 4), -1)}, "op 'a' has negative resident bytes"),
        ({"colocation": of([0, 0, -2, 0], np.int32)}, "op 'c' has colocation = -2; -1 means bound to nothing"),
        ({"time_s": {"k80": np.zeros(3)}}, "profiled times for 'k80' are float64 of shape (3,) for 4 ops"),
        ({"tensor_bytes": of([1, 2, 3], np.int64)}, "its tensor columns differ in length from the 4 producers"),
        ({"tensor_bytes": of([1, 2, -3, 4], np.int64)}, "op 'b' makes a tensor of -3 bytes"),
        ({"tensor_producer": of([0, 0, 2, 1], np.int32)}, "tensors are not sorted by producer"),
        ({"tensor_producer": of([0, 0, 1, 4], np.int32)}, "a tensor's producer is outside the 4 ops"),
        ({"consumer_offsets": of([0, 2, 3, 4], np.int64)}, "consumer_offsets does not match the tensors and consumers"),
        ({"consumer_offsets": of([0, 3, 2, 4, 5], np.int64)}, "consumer_offsets is not ascending"),
        ({"consumers": of([1, 3, 2, 3, 4], np.int32)}, "a tensor's consumer is outside the 4 ops"),
        ({"consumers": of([3, 1, 2, 3, 3], np.int32)}, "consumers of a tensor of op 'a' are not ascending and unique"),
        ({"consumers": of([1, 3, 2, 1, 3], np.int32)}, "op 'b' reads a tensor before it is made"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        dataclasses.replace(diamond(), **changes)
    assert f"graph 'diamond': {message}" in str(caught.value)


def test_a_time_that_is_nan_says_that_the_op_was_not_profiled() -> None:
    ops = [
        OpRecord("a", "mm", time_s={"k80": float("nan"), "t4": 1.0}),
        OpRecord("b", "mm", time_s={"t4": float("nan")}),
    ]
    graph = build("g", ops, [])
    assert list(graph.time_s) == ["t4"]
    assert decode_graph(encode_graph(graph)).sha256 == graph.sha256


def test_the_largest_sizes_are_allowed() -> None:
    most = 2**63 - 1
    op = OpRecord("a", "mm", flops=most, bytes_accessed=most, batch=2**31 - 1, resident_bytes={"parameter": most})
    op.resident_bytes = {"parameter": most, "optimizer": most}
    graph = build("g", [op, dataclasses.replace(op, name="b"), OpRecord("c", "mm")], [TensorRecord(0, most, [1])])
    assert graph.total_flops == 2 * most
    assert graph.parameter_bytes == 2 * most
    assert colocate(graph, wanted_groups=1).num_groups == 1


def test_the_digest_depends_on_all_but_the_name() -> None:
    graph = diamond()
    assert diamond().sha256 == graph.sha256
    assert dataclasses.replace(graph, name="other").sha256 == graph.sha256
    changes: list[dict[str, Any]] = [
        {"op_names": ("a", "b", "c", "e")},
        {"type_names": ("mm", "relu", "sgd")},
        {"op_type": of([0, 1, 1, 2], np.int32)},
        {"module_names": ("m", "m.o", "")},
        {"module": of([0, 1, 2, 1], np.int32)},
        {"module_call": of([0, 2, 0, 1], np.int32)},
        {"phase": of([0, 0, 0, 2], np.int8)},
        {"flops": of([10, 0, 20, 1], np.int64)},
        {"bytes_accessed": of([0, 5, 0, 1], np.int64)},
        {"dtype": of([0, 0, 0, 1], np.int8)},
        {"batch": of([0, 2, 0, 1], np.int32)},
        {"resident_bytes": of([[7, 14, 0, 0], *[[0] * 4] * 3], np.int64)},
        {"allowed_kinds": of([7, 7, 3, 1], np.uint8)},
        {"output_shapes": ((), ((2, 3),), (), ())},
        {"tensor_producer": of([0, 0, 2, 2], np.int32)},
        {"tensor_bytes": of([10, 20, 30, 41], np.int64)},
        {"tensor_resident": of([False] * 4, np.bool_)},
        {"tensor_transfer_s": of([np.nan, 0.0, np.nan, np.nan], np.float64)},
        {"consumers": of([2, 3, 2, 3, 3], np.int32)},
        {"consumer_offsets": of([0, 1, 3, 4, 5], np.int64), "consumers": of([1, 2, 3, 3, 3], np.int32)},
        {"colocation": of([0, 0, -1, 0], np.int32)},
        {"time_s": {**graph.time_s, "k80": np.ones(4)}},
        {"time_s": {"a100": graph.time_s["k80"], "k80": graph.time_s["a100"]}},
    ]
    assert {key for change in changes for key in change} == {f.name for f in dataclasses.fields(graph)} - {
        "name",
        "aliases",
        "tokens",
    }
    assert len({dataclasses.replace(graph, **change).sha256 for change in changes} | {graph.sha256}) == len(changes) + 1


def test_a_graph_cannot_be_changed() -> None:
    graph = diamond()
    with pytest.raises(ValueError, match="read-only"):
        graph.flops[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        graph.time_s["k80"][0] = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.name = "x"  # type: ignore[misc]


def test_digests_are_what_they_were_before_there_were_more_kinds_of_device() -> None:
    graph = build("g", [OpRecord("a", "op", allowed_kinds=["gpu"]), OpRecord("b", "op")], [])
    assert graph.sha256.startswith("f24801984be475c7")
    kinds = [None, ["cpu", "gpu", "tpu"], ["npu"], ["fpga"], ["cpu", "npu"], ["gpu", "tpu", "npu", "fpga"]]
    digests = {build("g", [OpRecord("a", "op", allowed_kinds=k)], []).sha256 for k in kinds}
    assert len(digests) == len(kinds)
