"""What co-location rules look at: sets of ops that are bound together, with the module call that each belongs to.

Letters: ``A`` atoms, ``N`` ops. The rules themselves are in `graphs.colocation.rules`; rules 1, 2 and 4 begin here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphs.colocation.coarsening import find, op_work
from graphs.computation_graph import ANY_KIND, INPUT, PARAMETER, PHASES, ComputationGraph
from graphs.errors import InputError

UNIT_PARTS, STEP_PARTS = 2, 4
"""The most parts with FLOPs of a module that is one group with its parts: called once, and called in many steps."""

_LEVELS = 64
"""Enclosing modules that are looked at; far more than any model nests."""

FORWARD, BACKWARD, UPDATE = (PHASES.index(phase) for phase in ("forward", "backward", "update"))

Call = tuple[str, int]
"""A module path and the how-manieth call of that module."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """What co-location constraints leave to decide: sets of bound ops, and single ops.

    Attributes:
        of_op: ``int64[N]``.
        first_op: For each atom, its first op.
        kinds: Bit mask of the kinds of device that all its ops allow.
        phase: Of its first op.
        is_input: All its ops are inputs.
        is_parameter: It has a parameter, and no op of the forward pass that belongs to a module.
        call: The module call that it belongs to by rule 4; None for leftovers, inputs and parameters.
        owner: The module (or the small one around it) of its first op, for names.
        has_flops: It has FLOPs.
        share: Its share of the step's work plus, for what reads parameters, of the resident bytes.
        reads: For each atom what it reads, as (atom, bytes, whether a parameter), in tensor order.
        readers: For each atom which others read it, without repetition, in order.
    """

    of_op: NDArray[np.int64]
    first_op: list[int]
    kinds: list[int]
    phase: list[int]
    is_input: list[bool]
    is_parameter: list[bool]
    call: list[Call | None]
    owner: list[str]
    has_flops: list[bool]
    share: list[float]
    reads: list[list[tuple[int, int, bool]]]
    readers: list[list[int]]


def make_atoms(graph: ComputationGraph) -> Atoms:
    """Rules 1 and 2: bind, and look up what later rules ask of each atom."""
    of_op = _bind(graph)
    count = int(of_op.max()) + 1
    first_op = np.unique(of_op, return_index=True)[1]
    kinds = np.full(count, ANY_KIND, dtype=np.int64)
    np.bitwise_and.at(kinds, of_op, graph.allowed_kinds.astype(np.int64))
    for atom in np.flatnonzero(kinds == 0)[:1]:
        names = [graph.op_names[i] for i in np.flatnonzero(of_op == atom)]
        raise InputError(
            f"graph '{graph.name}': op '{names[0]}' and {len(names) - 1} others must share a device, but no kind of "
            "device is allowed to all of them; change their allowed_kinds or the colocation constraint"
        )
    is_input_op = graph.is_sent_input
    is_parameter_op = graph.is_type(PARAMETER) | graph.is_type(INPUT) & ~is_input_op  # what stays is like a parameter
    sizes = np.bincount(of_op, minlength=count)
    inputs = np.bincount(of_op, is_input_op, count) == sizes
    has_parameter = np.bincount(of_op, is_parameter_op, count) > 0
    unit = _units(graph)
    call = _calls(graph, unit, of_op, is_parameter_op | is_input_op, has_parameter)

    source, target = of_op[graph.edge_producer], of_op[graph.consumers]
    reads: list[list[tuple[int, int, bool]]] = [[] for _ in range(count)]
    readers: list[list[int]] = [[] for _ in range(count)]
    columns = (source, target, graph.weighed_bytes[graph.edge_tensor], is_parameter_op[graph.edge_producer])
    for a, b, size, of_parameter in zip(*(c.tolist() for c in columns), strict=True):
        if a != b:
            reads[b].append((a, size, of_parameter))
            if not readers[a] or readers[a][-1] != b:
                readers[a].append(b)
    return Atoms(
        of_op=of_op,
        first_op=first_op.tolist(),
        kinds=kinds.tolist(),
        phase=graph.phase[first_op].tolist(),
        is_input=inputs.tolist(),
        is_parameter=[bool(p) and c is None for p, c in zip(has_parameter, call, strict=True)],
        call=call,
        owner=[unit[m] or graph.module_names[m] for m in graph.module[first_op]],
        has_flops=(np.bincount(of_op, graph.flops if graph.flops.any() else op_work(graph), count) > 0).tolist(),
        share=_shares(graph, of_op, is_parameter_op).tolist(),
        reads=reads,
        readers=[sorted(set(r)) for r in readers],
    )


def _bind(graph: ComputationGraph) -> NDArray[np.int64]:
    """Rule 1: ``int64[N]``, the atom of each op; atoms are numbered by their first op."""
    root = list(range(graph.num_ops))
    first: dict[int, int] = {}
    bound = np.flatnonzero(graph.colocation >= 0)
    for op, number in zip(bound.tolist(), graph.colocation[bound].tolist(), strict=True):
        root[op] = first.setdefault(number, op)
    offsets, tensors = graph.input_tensors
    is_parameter = graph.is_type(PARAMETER)
    updates = (graph.phase == UPDATE) & (graph.colocation < 0) & ~graph.is_type(INPUT)
    for op in np.flatnonzero(updates).tolist():
        producers = np.unique(graph.tensor_producer[tensors[offsets[op] : offsets[op + 1]]])
        owners = producers[is_parameter[producers]]
        if len(owners) == 1 and graph.allowed_kinds[owners[0]] == graph.allowed_kinds[op]:
            root[op] = find(root, int(owners[0]))
    _, numbered = np.unique([find(root, op) for op in range(graph.num_ops)], return_inverse=True)
    return numbered.astype(np.int64)


def _calls(
    graph: ComputationGraph,
    unit: Sequence[str | None],
    of_op: NDArray[np.int64],
    is_source: NDArray[np.bool_],
    has_parameter: NDArray[np.bool_],
) -> list[Call | None]:
    """Rule 4: the call that each atom belongs to, by its first op that tells one.

    A bound set with a parameter takes it only from forward ops (a normalisation bound to its running mean), because the
    adds that accumulate a gradient belong to the parameter and not to any call.
    """
    call: list[Call | None] = [None] * len(has_parameter)
    tells = ~is_source & (graph.phase != UPDATE) & (~has_parameter[of_op] | (graph.phase == FORWARD))
    for op in np.flatnonzero(tells).tolist():
        atom = of_op[op]
        module = unit[graph.module[op]]
        if call[atom] is None and module is not None:
            call[atom] = (module, int(graph.module_call[op]))
    return call


def _units(graph: ComputationGraph) -> list[str | None]:
    """The module that each module's calls are grouped by: itself, a small one around it, or None for leftovers."""
    names = graph.module_names
    works = (graph.phase != UPDATE) & ~graph.is_type(INPUT) & ~graph.is_type(PARAMETER)
    calls = np.full(len(names), -1, dtype=np.int64)
    np.maximum.at(calls, graph.module[works], graph.module_call[works])
    flops = np.bincount(graph.module, graph.flops, len(names)) > 0
    present = {names[m]: m for m in np.flatnonzero(calls >= 0).tolist()}
    parts: dict[str, list[str]] = {name: [] for name in present}
    loops = {""}
    for name, m in present.items():
        around = [outer for outer in _enclosing(name) if outer in present]
        if around:
            parts[around[0]].append(name)
        loops.update(outer for outer in around if calls[present[outer]] < calls[m])
    unit: dict[str, str | None] = {name: None if name in loops else name for name in present}
    for name, inner in parts.items():
        if (
            name not in loops
            and inner
            and all(not parts[p] and calls[present[p]] == calls[present[name]] for p in inner)
            and sum(bool(flops[present[p]]) for p in inner) <= (STEP_PARTS if calls[present[name]] else UNIT_PARTS)
        ):
            unit.update(dict.fromkeys(inner, name))
    return [unit.get(name) for name in names]


def _enclosing(path: str) -> Iterable[str]:
    """The paths of the modules around a module, innermost first, without the model itself."""
    for _ in range(_LEVELS):
        path = path.rpartition(".")[0]
        if not path:
            return
        yield path


def _shares(
    graph: ComputationGraph, of_op: NDArray[np.int64], is_parameter_op: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """``float64[A]``: share of the step's work, plus that of resident bytes among the readers of parameters."""
    count = int(of_op.max()) + 1
    work = op_work(graph)
    share = np.bincount(of_op, work, count) / max(work.sum(), 1.0)
    resident = graph.resident_bytes.astype(np.float64).sum(axis=1)
    edges = np.flatnonzero(is_parameter_op[graph.edge_producer])
    producer = graph.edge_producer[edges]
    readers = np.bincount(producer, minlength=graph.num_ops)
    each = resident[producer] / np.maximum(readers[producer], 1) / max(resident.sum(), 1.0)
    return share + np.bincount(of_op[graph.consumers[edges]], each, count)
