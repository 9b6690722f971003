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
``allowed_kinds``     kinds of device it may run on, of ``"cpu"``, ``"gpu"``, ``"tpu"``, ``"npu"`` and ``"fpga"``; any
                      if absent
``output_shapes``     for example ``[(8, 4)]``
``time_s``            measured seconds by name of device spec (`placement list devices`), ``{"k80": 2.1e-5}``; they win
                      over `flops` and `bytes_accessed`; without those two, the op runs only on the specs named here
``output_bytes``      size of the tensor that its edges carry, where they do not say it themselves
``output_seconds``    what sending that tensor takes between any two devices, in place of its bytes over the links
``tensors``           sizes of its tensors where it makes several: ``[4096, 64]``, or ``[{"bytes": 4096, "resident":
                      True, "seconds": 1e-4}]`` where one is resident or takes given seconds; edges then say which
                      they read
====================  ================================================================================================

Of an edge: ``bytes``, the size of the tensor that is read, and ``seconds``, what sending it takes where that is known
(edges from one node with the same of both are the same tensor, sent once to a device), or ``tensors``, positions in the
tail's ``tensors``. Without any of them, and without the node's ``output_bytes`` and ``output_seconds``, an edge only
orders: it carries 0 bytes. Of the graph: ``name``, and ``colocation``, lists of nodes that must share a device.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import networkx as nx
import numpy as np

from graphs.computation_graph import (
    ANY_KIND,
    DEVICE_KINDS,
    ComputationGraph,
    OpRecord,
    TensorRecord,
    build,
    is_whole,
)
from graphs.errors import InputError, unknown_name
from graphs.files import op_record

_OP_FIELDS = tuple(f.name for f in fields(OpRecord) if f.name != "name")
_NODE_ATTRIBUTES = (*_OP_FIELDS, "output_bytes", "output_seconds", "tensors")


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
            {"bytes": int(graph.tensor_bytes[t]), "resident": bool(graph.tensor_resident[t])}
            | ({} if np.isnan(graph.tensor_transfer_s[t]) else {"seconds": float(graph.tensor_transfer_s[t])})
            for t in range(first, end)
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
    if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
        raise InputError("a computation graph is made from a networkx.DiGraph; this graph is of another kind")
    called = name or graph.graph.get("name", "")
    if not isinstance(called, str):
        raise InputError(f"attribute name of the graph is {_shown(called)}; it must be text")
    position = {node: i for i, node in enumerate(graph)}
    ops = [_op(node, attributes) for node, attributes in graph.nodes(data=True)]
    tensors = [
        TensorRecord(position[node], size, [position[reader] for reader in readers], resident, seconds)
        for node in graph
        for size, readers, resident, seconds in _tensors(graph, node)
    ]
    return build(called or "networkx", ops, tensors, _colocation(graph.graph.get("colocation", ()), position))


def _colocation(sets: Any, position: Mapping[Any, int]) -> list[list[int]]:
    found = []
    for members in _listed(sets, "attribute colocation of the graph", "a list of lists of nodes"):
        numbers = []
        for node in _listed(members, "a set in attribute colocation of the graph", "a list of nodes"):
            if not isinstance(node, Hashable) or node not in position:
                raise InputError(
                    f"attribute colocation of the graph names node '{str(node)[:80]}', which it lacks; add the node"
                )
            numbers.append(position[node])
        found.append(numbers)
    return found


def _op(node: Any, attributes: Mapping[str, Any]) -> OpRecord:
    for key in attributes:
        if key not in _NODE_ATTRIBUTES:
            raise InputError(f"node '{node}': {unknown_name('attribute', str(key), _NODE_ATTRIBUTES)}")
    given = {key: attributes[key] for key in _OP_FIELDS if key in attributes}
    for key in ("type", "phase", "module", "dtype"):
        if key in given and not isinstance(given[key], str):
            raise InputError(f"node '{node}' has {key} {_shown(given[key])}; it must be text")
    for key in ("flops", "bytes_accessed", "batch", "module_call"):
        if key in given:
            given[key] = _whole(given[key], f"op '{node}' has {key} = ")
    for key in ("resident_bytes", "time_s"):
        if key in given:
            if not isinstance(given[key], Mapping) or not all(isinstance(name, str) for name in given[key]):
                raise InputError(f"node '{node}' has {key} {_shown(given[key])}; it must be a dict")
            read = _spec_seconds if key == "time_s" else _bytes
            given[key] = {str(name): read(value, node, key, name) for name, value in given[key].items()}
    if given.get("allowed_kinds") is not None:
        kinds = _listed(given["allowed_kinds"], f"node '{node}' has allowed_kinds", f"a list of {DEVICE_KINDS}")
        given["allowed_kinds"] = [kind if isinstance(kind, str) else _shown(kind) for kind in kinds]
    what, wanted = f"node '{node}' has output_shapes", "a list of shapes, as [(8, 4)]"
    shapes = []
    for shape in _listed(given.pop("output_shapes", ()), what, wanted):
        if not isinstance(shape, Iterable) or isinstance(shape, str):
            raise InputError(f"{what} {_shown(attributes['output_shapes'])}; it must be {wanted}")
        shapes.append(tuple(_whole(size, f"{what} with a dimension of ") for size in shape))
    return OpRecord(str(node), str(given.pop("type", "op")), output_shapes=shapes, **given)


def _bytes(value: Any, node: Any, key: str, part: str) -> int:
    return _whole(value, f"node '{node}' has {key} of '{part}' ")


def _spec_seconds(value: Any, node: Any, key: str, spec: str) -> float:
    return _seconds(value, f"node '{node}' has {key} {_shown(value)} on '{spec}'")


def _seconds(value: Any, what: str) -> float:
    """Seconds as a float; `what` names the value, and begins the message where it is no number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"{what}; it must be seconds")
    try:
        return float(value)
    except OverflowError:  # an integer beyond the largest float
        return math.inf


def _transfer_s(attributes: Mapping[str, Any], key: str, what: str) -> float:
    """The seconds under a key, NaN where there are none."""
    if key not in attributes:
        return math.nan
    seconds = _seconds(attributes[key], f"{what} has {key} {_shown(attributes[key])}")
    if not 0 <= seconds < math.inf:
        raise InputError(f"{what} has {key} {_shown(attributes[key])}; it must be finite seconds, not negative")
    return seconds


def _whole(value: Any, what: str) -> int:
    """A size as an integer: also one that NumPy counted, or that is written as a float without a fraction."""
    if not is_whole(value):
        raise InputError(f"{what}{_shown(value)}; it must be a whole number from 0 to {2**63 - 1}")
    return int(value)


def _listed(value: Any, what: str, wanted: str) -> list[Any]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise InputError(f"{what} {_shown(value)}; it must be {wanted}")
    try:
        return list(value)
    except TypeError:  # an array without dimensions says that it can be iterated
        raise InputError(f"{what} {_shown(value)}; it must be {wanted}") from None


def _shown(value: Any) -> str:
    """A value in a message, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _tensors(graph: nx.DiGraph, node: Any) -> Iterable[tuple[int, list[Any], bool, float]]:
    """Size, readers, residence and seconds (NaN where bytes decide) of each tensor that a node makes."""
    attributes = graph.nodes[node]
    if "tensors" in attributes:
        yield from _listed_tensors(graph, node, attributes["tensors"])
        return
    found: dict[tuple[int, float], list[Any]] = {}
    usual = _whole(attributes.get("output_bytes", 0), f"node '{node}' has output_bytes ")
    usual_s = _transfer_s(attributes, "output_seconds", f"node '{node}'")
    if "output_bytes" in attributes or "output_seconds" in attributes:
        found[usual, _key(usual_s)] = []
    for reader, edge in graph[node].items():
        _check_edge(node, reader, edge, ("bytes", "seconds"))
        size = _whole(edge["bytes"], f"edge '{node}' -> '{reader}' has bytes ") if "bytes" in edge else usual
        seconds = _transfer_s(edge, "seconds", f"edge '{node}' -> '{reader}'") if "seconds" in edge else usual_s
        if "bytes" in edge and "seconds" not in edge:
            seconds = math.nan  # the edge says its own cost
        found.setdefault((size, _key(seconds)), []).append(reader)
    for (size, seconds), reading in found.items():
        yield size, reading, False, seconds if seconds >= 0 else math.nan


def _key(seconds: float) -> float:
    """Seconds as part of a dict's key: NaN, which equals nothing, is -1."""
    return -1.0 if math.isnan(seconds) else seconds


def _listed_tensors(graph: nx.DiGraph, node: Any, tensors: Any) -> Iterable[tuple[int, list[Any], bool, float]]:
    """As `_tensors`, of a node that lists them."""
    listed = [
        t if isinstance(t, Mapping) else {"bytes": t}
        for t in _listed(tensors, f"node '{node}' has tensors", "a list of sizes")
    ]
    readers: list[list[Any]] = [[] for _ in listed]
    for reader, edge in graph[node].items():
        for number in _read_positions(node, reader, edge, len(listed)):
            readers[number].append(reader)
    for tensor, reading in zip(listed, readers, strict=True):
        resident = tensor.get("resident", False)
        if "bytes" not in tensor or not set(tensor) <= {"bytes", "resident", "seconds"}:
            raise InputError(
                f"node '{node}' has a tensor {_shown(dict(tensor))}; it must hold bytes, and may hold resident and "
                "seconds"
            )
        if not isinstance(resident, bool | np.bool_):
            raise InputError(f"node '{node}' has a tensor with resident {_shown(resident)}; it must be True or False")
        seconds = _transfer_s(tensor, "seconds", f"a tensor of node '{node}'")
        yield _whole(tensor["bytes"], f"node '{node}' has a tensor of bytes "), reading, bool(resident), seconds


def _read_positions(node: Any, reader: Any, edge: Mapping[str, Any], count: int) -> list[int]:
    _check_edge(node, reader, edge, ("tensors",))
    what = f"edge '{node}' -> '{reader}' reads tensor"
    positions = _listed(edge.get("tensors", (0,)), f"{what}s", "a list of positions in the node's tensors")
    for number in positions:
        if not is_whole(number) or number >= count:
            raise InputError(f"{what} {_shown(number)}, but node '{node}' makes {count}, counted from 0")
    return [int(number) for number in positions]


def _check_edge(node: Any, reader: Any, edge: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in edge:
        if key not in known:
            raise InputError(f"edge '{node}' -> '{reader}': {unknown_name('attribute', str(key), known)}")
