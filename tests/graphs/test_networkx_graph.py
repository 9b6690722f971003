"""Graphs as networkx.DiGraph, out and in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest

from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.networkx_graph import _NODE_ATTRIBUTES, from_networkx, to_networkx
from graphs.synthetic import random_graph


def rich_graph() -> ComputationGraph:
    """A graph with something in every field: two tensors of one op, one of which two ops read, both read by one."""
    ops = [
        OpRecord("x", "input", batch=8, output_shapes=[(8, 4)]),
        OpRecord("w", "parameter", resident_bytes={"parameter": 64, "optimizer": 128}, output_shapes=[(4, 4)]),
        OpRecord("split", "split", module="a.b", module_call=2, bytes_accessed=256, output_shapes=[(4, 4), (4, 4)]),
        OpRecord("mm", "mm", flops=2 * 4 * 4 * 4, bytes_accessed=192, batch=4, time_s={"k80": 2e-5, "v100": 1e-5}),
        OpRecord("grad", "mm", phase="backward", dtype="float16", allowed_kinds=["gpu", "tpu"], time_s={"k80": 3e-5}),
        OpRecord("update", "sgd_update", phase="update"),
    ]
    tensors = [
        TensorRecord(0, 128, [2]),
        TensorRecord(1, 64, [3, 5], resident=True),
        TensorRecord(2, 64, [3, 4]),
        TensorRecord(2, 64, [4]),
        TensorRecord(3, 64, [], transfer_s=2e-5),
        TensorRecord(4, 64, [5]),
    ]
    return build("rich", ops, tensors, [[1, 5]])


@pytest.mark.parametrize("graph", [rich_graph(), random_graph(300, seed=3, resident_bytes=100)], ids=lambda g: g.name)
def test_there_and_back_is_the_same_graph(graph: ComputationGraph) -> None:
    made = to_networkx(graph)
    assert (made.number_of_nodes(), nx.is_directed_acyclic_graph(made)) == (graph.num_ops, True)
    back = from_networkx(made)
    assert (back.name, back.sha256) == (graph.name, graph.sha256)


def test_what_a_node_and_an_edge_say() -> None:
    made = to_networkx(rich_graph())
    assert made.nodes["mm"]["time_s"] == {"k80": 2e-5, "v100": 1e-5}
    assert made.nodes["grad"]["allowed_kinds"] == ("gpu", "tpu")
    assert "allowed_kinds" not in made.nodes["mm"]
    assert made.edges["split", "grad"] == {"tensors": [0, 1]}
    assert made.graph == {"name": "rich", "colocation": [["w", "update"]]}


def test_a_graph_without_attributes() -> None:
    graph = from_networkx(nx.DiGraph([("b", "c"), ("a", "b")]))
    assert graph.op_names == ("a", "b", "c")  # in topological order
    assert graph.type_names == ("op",)
    assert (graph.num_edges, int(graph.tensor_bytes.sum())) == (2, 0)


def test_edges_of_a_node_with_the_same_size_are_one_tensor() -> None:
    made: nx.DiGraph = nx.DiGraph(name="hand-made")
    made.add_node("a", time_s={"k80": 1e-3}, output_bytes=100)
    made.add_edge("a", "b")
    made.add_edge("a", "c")
    made.add_edge("a", "d", bytes=7)
    made.nodes["b"]["time_s"] = {"k80": 2e-3}
    graph = from_networkx(made)
    assert graph.name == "hand-made"
    assert graph.tensor_bytes.tolist() == [100, 7]
    assert graph.consumer_offsets.tolist() == [0, 2, 3]
    assert graph.time_s["k80"][:2].tolist() == [1e-3, 2e-3]
    assert np.isnan(graph.time_s["k80"][2:]).all()


def test_seconds_of_an_edge_of_a_node_and_of_a_tensor() -> None:
    made: nx.DiGraph = nx.DiGraph()
    made.add_node("a", output_bytes=100, output_seconds=0.5)
    made.add_edge("a", "b")
    made.add_edge("a", "c", seconds=np.float32(0.25))
    made.add_edge("a", "d", bytes=100)  # by its bytes: it says what it costs itself
    made.add_edge("a", "e", bytes=100, seconds=1)
    made.add_edge("a", "f", seconds=0.25)
    made.add_node("b", tensors=[{"bytes": 7, "seconds": 0}, 7])
    made.add_edge("b", "f", tensors=[0, 1])
    graph = from_networkx(made)
    first = [[graph.op_names[i] for i in graph.consumers[a:b]] for a, b in itertools.pairwise(graph.consumer_offsets)]
    assert first == [["b"], ["c", "f"], ["d"], ["e"], ["f"], ["f"]]
    np.testing.assert_array_equal(graph.tensor_transfer_s, [0.5, 0.25, np.nan, 1.0, 0.0, np.nan])
    assert graph.tensor_bytes.tolist() == [100] * 4 + [7] * 2
    assert from_networkx(to_networkx(graph)).sha256 == graph.sha256


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan, "1", None, True, 10**400])
def test_seconds_that_have_no_sense(value: Any) -> None:
    said = []
    for node, edge in (
        ({"output_seconds": value}, {}),
        ({}, {"seconds": value}),
        ({"tensors": [{"bytes": 1, "seconds": value}]}, {}),
    ):
        made: nx.DiGraph = nx.DiGraph()
        made.add_node("a", **node)
        made.add_edge("a", "b", **edge)
        with pytest.raises(InputError, match="seconds") as refused:
            from_networkx(made)
        said.append(str(refused.value))
    assert all("'a'" in text and len(text) < 160 for text in said)


def edited(**attributes: Any) -> nx.DiGraph:
    made = nx.DiGraph([("a", "b")])
    made.nodes["a"].update(attributes)
    return made


def test_sizes_may_be_whole_floats_and_scalars_of_numpy() -> None:
    def made(size: Callable[[int], Any], seconds: Callable[[float], Any]) -> ComputationGraph:
        graph = nx.DiGraph([("a", "b", {"bytes": size(64)})], colocation=[["a", "b"]])
        graph.nodes["a"].update(
            flops=size(512),
            bytes_accessed=size(96),
            batch=size(4),
            module_call=size(2),
            resident_bytes={"parameter": size(32)},
            output_shapes=[(size(4), size(8))],
            time_s={"k80": seconds(0.5)},
        )
        graph.add_node("c", tensors=[size(8), {"bytes": size(16), "resident": np.True_}])
        graph.add_edge("c", "b", tensors=[size(1)])
        return from_networkx(graph)

    plain = made(int, float)
    for size, seconds in ((float, np.float32), (np.int64, np.float64), (np.uint16, np.float16), (np.float32, float)):
        assert made(size, seconds).sha256 == plain.sha256
    assert plain.flops.tolist() == [512, 0, 0]


ODD: list[Any] = [None, True, -1, 1.5, math.nan, math.inf, 10**400, "4", b"4", [], [[]], {}, {1: 2}, {"k80": None}]
ODD += [
    {"a": 10**400},
    np.array(3),
    np.arange(3),
    np.bool_(True),
    np.float64(2.5),
    object(),
    {1, 2},
    (1, "x"),
    3 + 4j,
    range(3),
    "\ud800",
]


@pytest.mark.parametrize("attribute", [*_NODE_ATTRIBUTES, "edge bytes", "edge tensors", "colocation", "name"])
def test_no_value_of_an_attribute_raises_anything_but_a_sentence(attribute: str) -> None:
    for value in ODD:
        graph = nx.DiGraph([("a", "b")])
        if attribute.startswith("edge"):
            graph.edges["a", "b"][attribute.removeprefix("edge ")] = value
            graph.nodes["a"].update({"tensors": [4]} if attribute == "edge tensors" else {})
        elif attribute in ("colocation", "name"):
            graph.graph[attribute] = value
        else:
            graph.nodes["a"][attribute] = value
        try:
            made = from_networkx(graph)
        except InputError as error:
            assert len(str(error)) < 400  # noqa: PT017
        else:
            assert made.num_ops == 2


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (edited(flop=3), "node 'a': unknown attribute 'flop' (did you mean 'flops'?)"),
        (edited(flops=1.5), "op 'a' has flops = 1.5"),
        (edited(time_s=0.1), "node 'a' has time_s 0.1; it must be a dict"),
        (edited(time_s={"k80": "fast"}), "node 'a' has time_s 'fast' on 'k80'"),
        (edited(resident_bytes=5), "node 'a' has resident_bytes 5"),
        (edited(allowed_kinds="gpu"), "node 'a' has allowed_kinds 'gpu'; it must be a list"),
        (edited(output_shapes=(3, 4)), "node 'a' has output_shapes (3, 4)"),
        (edited(tensors=[]), "edge 'a' -> 'b' reads tensor 0, but node 'a' makes 0"),
        (edited(tensors=[{"size": 3}]), "node 'a' has a tensor {'size': 3}"),
        (nx.DiGraph([("a", "b"), ("b", "a")]), "has a cycle through op 'a'"),
        (nx.DiGraph([("a", "b", {"weight": 3})]), "edge 'a' -> 'b': unknown attribute 'weight'"),
        (nx.DiGraph([("a", "b")], colocation=[["a", "z"]]), "names node 'z'"),
        (nx.DiGraph([(1, "1")]), "two ops are called '1'"),
        (nx.Graph([("a", "b")]), "a networkx.DiGraph"),
    ],
)
def test_what_is_refused(graph: nx.DiGraph, message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_networkx(graph)
    assert message in str(caught.value)
