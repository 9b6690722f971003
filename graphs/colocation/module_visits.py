"""Visits: the calls of modules at which a runtime sends what is read there, as Hugging Face Accelerate's hooks do.

An entry of a device map is a module whose parts all share a device, and that is inside no other such module. Its hook
sends the arguments of each call, whoever else was sent the same tensor before: what ten layers of one device read is
sent ten times, once to each, unless one entry holds all ten and is called with it. A list of modules (its parts have
numbers for names, and it runs no op itself) is never called, so its parts are visited one by one; so are those of a
chain of modules, where it makes no difference. Which modules are entries depends on the placement; the rest is here.

The backward pass takes the same ways back. A gradient is sent once to each device, and what one visit adds to the
gradient of a tensor is summed where it is made and sent once.

Letters: ``N`` ops, ``T`` tensors, ``M`` modules, ``V`` visits, ``C`` contributions to sums of gradients, ``S`` sums.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphs.colocation.whole_modules import prefixes, whole_modules
from graphs.computation_graph import INPUT, PARAMETER, PHASES, ComputationGraph

_FORWARD, _BACKWARD = PHASES.index("forward"), PHASES.index("backward")


@dataclass(frozen=True, eq=False)
class ModuleVisits:
    """The tree of a graph's modules, and which call of each an op belongs to.

    Attributes:
        parent: ``int32[M]``, a module that comes before; -1 for the model itself, which is module 0.
        calls: ``int32[M]``, how often each is called in a step; 0 for a list of modules.
        first_visit: ``int32[M + 1]``: call ``c`` of module ``m`` is visit ``first_visit[m] + c`` of ``V``.
        module: ``int32[N]``, of each op.
        call: ``int32[N]``, of its module.
        decides: ``bool[N]``: whether the device of the op says where its module is.
        by_visit: ``bool[T]``: True where the tensor is sent to each visit, False where once to each device.
        sum_offsets: ``int32[S + 1]`` and
        sum_edges: ``int32[C]``: sum ``s`` reads by the edges ``sum_edges[sum_offsets[s]:sum_offsets[s + 1]]``.
    """

    parent: NDArray[np.int32]
    calls: NDArray[np.int32]
    first_visit: NDArray[np.int32]
    module: NDArray[np.int32]
    call: NDArray[np.int32]
    decides: NDArray[np.bool_]
    by_visit: NDArray[np.bool_]
    sum_offsets: NDArray[np.int32]
    sum_edges: NDArray[np.int32]

    def __post_init__(self) -> None:
        for value in vars(self).values():
            value.setflags(write=False)

    @property
    def num_visits(self) -> int:
        """``V``."""
        return int(self.first_visit[-1])


def module_visits(graph: ComputationGraph) -> ModuleVisits:
    """Lay out the modules of a graph; one without module paths is visited once as a whole.

    How often a module without ops of its own is called is taken from its parts: the greatest common divisor of their
    calls.
    """
    paths = sorted({prefix for path in graph.module_names for prefix in prefixes(path)} | {""}, key=_as_key)
    number = {path: i for i, path in enumerate(paths)}
    parent = np.array([-1 if not path else number[prefixes(path)[-2]] for path in paths], dtype=np.int32)
    module = np.array([number[path] for path in graph.module_names], dtype=np.int32)[graph.module]
    works = ~(graph.is_type(PARAMETER) | graph.is_type(INPUT))
    own = np.zeros(len(paths), dtype=np.int64)
    np.maximum.at(own, module[works], graph.module_call[works].astype(np.int64) + 1)
    common = own.copy()
    for m in range(len(paths) - 1, 0, -1):
        common[parent[m]] = math.gcd(int(common[parent[m]]), int(common[m]))
    named = np.zeros(len(paths), dtype=np.bool_)  # has a part with a name
    for path in paths[1:]:
        named[parent[number[path]]] |= not path.rpartition(".")[2].isdigit()
    called = (own > 0) | named
    called[module] = True
    called[0] = True
    calls = np.where(called, np.maximum(np.where(own > 0, own, common), 1), 0)
    sums = _gradient_sums(graph)
    return ModuleVisits(
        parent=parent,
        calls=calls.astype(np.int32),
        first_visit=np.concatenate([[0], np.cumsum(calls)]).astype(np.int32),
        module=module,
        call=np.minimum(graph.module_call, calls[module] - 1).astype(np.int32),
        decides=_deciding_ops(graph),
        by_visit=graph.phase[graph.tensor_producer] == _FORWARD,
        sum_offsets=np.cumsum([0, *(len(edges) for edges in sums)]).astype(np.int32),
        sum_edges=np.array([edge for edges in sums for edge in edges], dtype=np.int32),
    )


def _as_key(path: str) -> list[str]:
    """Sorts a module behind what it is in."""
    return path.split(".") if path else []


def _deciding_ops(graph: ComputationGraph) -> NDArray[np.bool_]:
    """``bool[N]``: the forward ops that are in a module that a device map can name."""
    found = whole_modules(graph)
    group_of = {path: group for group, members in enumerate(found.members) for path in members}
    groups_of_module = [{group_of[p] for p in prefixes(path) if p in group_of} for path in graph.module_names]
    decides = graph.phase == _FORWARD
    for op in np.flatnonzero(decides).tolist():
        inside = int(found.group_of_op[op]) in groups_of_module[graph.module[op]]
        decides[op] = inside and not graph.op_names[op].startswith("constant/")
    return decides


def _gradient_sums(graph: ComputationGraph) -> list[list[int]]:
    """For each sum of gradients the edges by which it reads its contributions, in program order of the adds.

    A sum is a chain of adds of the backward pass that belong to one call of one module, each of which alone reads the
    one before it.
    """
    is_sum = (graph.is_type("add") | graph.is_type("add_")) & (graph.phase == _BACKWARD)
    readers = np.diff(graph.consumer_offsets)
    edges_of: defaultdict[int, list[int]] = defaultdict(list)
    for edge in np.flatnonzero(is_sum[graph.consumers]).tolist():
        edges_of[int(graph.consumers[edge])].append(edge)
    where = list(zip(graph.module.tolist(), graph.module_call.tolist(), strict=True))
    sum_of: dict[int, int] = {}
    edges: defaultdict[int, list[int]] = defaultdict(list)
    for op in sorted(edges_of):
        before = None
        for edge in edges_of[op]:
            producer = int(graph.edge_producer[edge])
            alone = producer in sum_of and readers[graph.edge_tensor[edge]] == 1
            if before is None and alone and where[producer] == where[op]:
                before = edge
        sum_of[op] = op if before is None else sum_of[int(graph.edge_producer[before])]
        made_backward = [edge for edge in edges_of[op] if graph.phase[graph.edge_producer[edge]] == _BACKWARD]
        edges[sum_of[op]] += [edge for edge in made_backward if edge != before]
    return [read for read in edges.values() if len(read) > 1]
