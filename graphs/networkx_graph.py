"""A computation graph as a `networkx.DiGraph`, and back: other people's graphs, profiled or made by hand, go in here.

A node is an op, its key the op's name; an edge says that its head reads what its tail makes. All attributes have
defaults, so ``nx.DiGraph([("a", "b")])`` is a graph already.

Of a node (see `graphs.computation_graph.ComputationGraph` for the exact meaning):

====================  ================================================================================================
``type``              for example ``"mm"``: what the op does, which decides the rate it runs at; ``"op"`` if absent
``phase``             ``"forward"`` (if absent), ``"backward"`` or ``"update"``
``module``            dotted path of the module it belongs to; ops of one call of a module make a co-location group
``module_call``       which call of that module, from 0: the time step of an unrolled network
``flops``             of products, convolutions and attention; a multiply-add counts two
``bytes_accessed``    bytes read and written
``dtype``             ``"float32"`` if absent
``batch``             size of the batch dimension it works over; 0 where there is none
``resident_bytes``    bytes that stay on its device, of ``"parameter"``, ``"gradient"``, ``"optimizer"`` and
                      ``"constant"``: ``{"parameter": 4096}``
``allowed_kinds``     kinds of device it may run on, of ``"cpu"``, ``"gpu"``, ``"tpu"``; any if absent
``output_shapes``     for example ``[(8, 4)]``
``time_s``            measured seconds by name of device spec (`placement list devices`), ``{"k80": 2.1e-5}``; they win
                      over `flops` and `bytes_accessed`; without those two, the op runs only on the specs named here
``output_bytes``      size of the tensor that its edges carry, where they do not say it themselves
``tensors``           sizes of its tensors where it makes several: ``[4096, 64]``, or ``[{"bytes": 4096, "resident":
                      True}]`` where one is resident; edges then say which they read
====================  ================================================================================================

Of an edge: ``bytes``, the size of the tensor that is read (edges from one node with the same size are the same tensor,
sent once to a device), or ``tensors``, positions in the tail's ``tensors``. Without either, and without the node's
``output_bytes``, an edge only orders: it carries 0 bytes. Of the graph: ``name``, and ``colocation``, lists of nodes
that must share a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import networkx as nx

from graphs.computation_graph import (
    ANY_KIND,
    DEVICE_KINDS,
    ComputationGraph,
    OpRecord,
    TensorRecord,
    build,
)
from graphs.errors import InputError, unknown_name
from graphs.files import op_record

_OP_FIELDS = tuple(f.name for f in fields(OpRecord) if f.name != "name")
_NODE_ATTRIBUTES = (*_OP_FIELDS, "output_bytes", "tensors")


def to_networkx(graph: ComputationGraph) -> nx.DiGraph:
    """The graph as a `networkx.DiGraph`, with every attribute that says something; see the module's text.

    `from_networkx` gives back the same graph, down to its `sha256`.
    """
    names = graph.op_names
    bound: dict[int, list[str]] = {}
    for op, number in enumerate(graph.colocation.tolist()):
        if number >= 0:
            bound.setdefault(number, []).append(names[op])
    made: nx.DiGraph = nx.DiGraph(name=graph.name, colocation=list(bound.values()))
    for op, name in enumerate(names):
        record = op_record(graph, op)
        attributes = {key: getattr(record, key) for key in _OP_FIELDS}
        if graph.allowed_kinds[op] == ANY_KIND:
            del attributes["allowed_kinds"]
        first, end = graph.tensor_offsets[op : op + 2].tolist()
        attributes["tensors"] = [
            {"bytes": int(graph.tensor_bytes[t]), "resident": bool(graph.tensor_resident[t])} for t in range(first, end)
        ]
        made.add_node(name, **attributes)
    offsets = graph.consumer_offsets.tolist()
    for tensor, producer in enumerate(graph.tensor_producer.tolist()):
        position = tensor - int(graph.tensor_offsets[producer])
        for consumer in graph.consumers[offsets[tensor] : offsets[tensor + 1]].tolist():
            tail, head = names[producer], names[consumer]
            if made.has_edge(tail, head):
                made.edges[tail, head]["tensors"].append(position)
            else:
                made.add_edge(tail, head, tensors=[position])
    return made


def from_networkx(graph: nx.DiGraph, *, name: str | None = None) -> ComputationGraph:
    """The computation graph that a `networkx.DiGraph` describes; see the module's text for its attributes.

    Args:
        graph: Acyclic. Nodes that are no text are named by their `str`.
        name: The graph's name; by default the attribute ``name`` of the graph, or ``"networkx"``.

    Raises:
        InputError: An attribute is unknown or has no sense, two nodes have the same name, or there is a cycle; the
            message names the node.
    """
    if not graph.is_directed() or graph.is_multigraph():
        raise InputError("a computation graph is made from a networkx.DiGraph; this graph is of another kind")
    position = {node: i for i, node in enumerate(graph)}
    ops = [_op(node, attributes) for node, attributes in graph.nodes(data=True)]
    tensors = [
        TensorRecord(position[node], size, [position[reader] for reader in readers], resident)
        for node in graph
        for size, readers, resident in _tensors(graph, node)
    ]
    colocation = []
    for members in graph.graph.get("colocation", ()):
        for node in members:
            if node not in position:
                raise InputError(f"attribute colocation of the graph names node '{node}', which it lacks; add the node")
        colocation.append([position[node] for node in members])
    return build(name or graph.graph.get("name") or "networkx", ops, tensors, colocation)


def _op(node: Any, attributes: Mapping[str, Any]) -> OpRecord:
    for key in attributes:
        if key not in _NODE_ATTRIBUTES:
            raise InputError(f"node '{node}': {unknown_name('attribute', str(key), _NODE_ATTRIBUTES)}")
    given = {key: attributes[key] for key in _OP_FIELDS if key in attributes}
    for key, kind in (("resident_bytes", Mapping), ("time_s", Mapping), ("type", str), ("module", str)):
        if key in given and not isinstance(given[key], kind):
            expected = "text" if kind is str else "a dict"
            raise InputError(f"node '{node}' has {key} {given[key]!r}; it must be {expected}")
    for spec, seconds in given.get("time_s", {}).items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise InputError(f"node '{node}' has time_s {seconds!r} on '{spec}'; it must be seconds")
    if isinstance(given.get("allowed_kinds"), str):
        raise InputError(
            f"node '{node}' has allowed_kinds {given['allowed_kinds']!r}; it must be a list of {DEVICE_KINDS}"
        )
    try:
        shapes = [tuple(int(d) for d in shape) for shape in given.pop("output_shapes", ())]
    except (TypeError, ValueError):
        raise InputError(
            f"node '{node}' has output_shapes {attributes['output_shapes']!r}; it must be a list of shapes, as [(8, 4)]"
        ) from None
    return OpRecord(str(node), given.pop("type", "op"), output_shapes=shapes, **given)


def _tensors(graph: nx.DiGraph, node: Any) -> Iterable[tuple[Any, list[Any], bool]]:
    """Size, readers and residence of each tensor that a node makes."""
    attributes = graph.nodes[node]
    if "tensors" in attributes:
        listed = [t if isinstance(t, Mapping) else {"bytes": t} for t in attributes["tensors"]]
        readers: list[list[Any]] = [[] for _ in listed]
        for reader, edge in graph[node].items():
            for number in _read_positions(node, reader, edge, len(listed)):
                readers[number].append(reader)
        for tensor, reading in zip(listed, readers, strict=True):
            if "bytes" not in tensor or not set(tensor) <= {"bytes", "resident"}:
                raise InputError(
                    f"node '{node}' has a tensor {dict(tensor)}; it must hold bytes, and may hold resident"
                )
            yield tensor["bytes"], reading, bool(tensor.get("resident", False))
        return
    by_size: dict[Any, list[Any]] = {}
    if "output_bytes" in attributes:
        by_size[attributes["output_bytes"]] = []
    for reader, edge in graph[node].items():
        _check_edge(node, reader, edge, ("bytes",))
        by_size.setdefault(edge.get("bytes", attributes.get("output_bytes", 0)), []).append(reader)
    for size, reading in by_size.items():
        yield size, reading, False


def _read_positions(node: Any, reader: Any, edge: Mapping[str, Any], count: int) -> list[int]:
    _check_edge(node, reader, edge, ("tensors",))
    positions = list(edge.get("tensors", (0,)))
    for number in positions:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise InputError(
                f"edge '{node}' -> '{reader}' reads tensor {number!r}, but node '{node}' makes {count}, counted from 0"
            )
    return positions


def _check_edge(node: Any, reader: Any, edge: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in edge:
        if key not in known:
            raise InputError(f"edge '{node}' -> '{reader}': {unknown_name('attribute', str(key), known)}")
