"""Groups of whole modules, for runtimes that move tensors only where a module is entered.

Hugging Face Accelerate's hooks are such a runtime: they send a module's arguments to the module's device when it is
called, and nothing else is ever moved. An op that a module runs itself, between the calls of its parts, finds its
tensors where they happen to be; where they are on two devices, it fails. The residual addition of a transformer block
is such an op: it reads what the block was given and what its parts made.

So a module may be *cut*, its parts going to several devices, only where none of its own ops could meet two devices:

- A module that owns a parameter or a buffer itself is not cut: its own tensors have no device but the module's.
- Where an own op reads what two parts made, these parts share a device.
- Where an own op reads both what a part made and what the module was given, or two things that it was given, the module
  is not cut. The model itself, and a module that holds most of it, would leave nothing to place; there the parts share
  a device with what made the arguments instead.
- What the model itself does with the step's inputs, and the loss, is with the inputs, on the *main* device.
- Modules that read one parameter (tied weights) share a device.

Then any placement of the groups can be run: nothing is lost between what is searched and what is written down.

Letters: ``N`` ops, ``G`` co-location groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from networkx.utils import UnionFind
from numpy.typing import NDArray

from graphs.colocation.groups import Groups, make_groups
from graphs.computation_graph import INPUT, PARAMETER, PHASES, ComputationGraph

LOSS = ("loss", "loss_function")
"""What `graphs.capture` calls the loss, which is no module of the model."""

MAIN = ("main",)
"""The label of what is on the main device; no module is called so."""

MOST_OF_IT = 0.5
"""A module with more than this share of the model's work or resident bytes is cut whatever it costs."""

_FORWARD = PHASES.index("forward")


@dataclass(frozen=True, eq=False)
class WholeModules:
    """What must stay together for a runtime that moves tensors only where a module is entered.

    Attributes:
        group_of_op: ``int32[N]``; groups are numbered by their first op.
        members: For each of ``G`` groups the modules that it consists of, in program order: no one is inside another.
        main: The group with the step's inputs.
    """

    group_of_op: NDArray[np.int32]
    members: tuple[tuple[str, ...], ...]
    main: int


def whole_modules(graph: ComputationGraph) -> WholeModules:
    """Find the groups of a graph; one that has no module paths is one group."""
    label_of_op = _Labels(graph).of_ops()
    used, first, group_of_op = np.unique(label_of_op, return_index=True, return_inverse=True)
    rank = np.empty(len(used), dtype=np.int32)
    rank[np.argsort(first, kind="stable")] = np.arange(len(used), dtype=np.int32)
    return _described(graph, rank[group_of_op])


def whole_module_groups(graph: ComputationGraph) -> Groups:
    """The groups, each called after its modules; the family is a module's path without numbers."""
    found = whole_modules(graph)
    names, families = [], []
    for number, members in enumerate(found.members):
        first = members[0] if members else "inputs"
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        names.append(f"{first or '(the model)'}{more}")
        families.append(".".join("*" if part.isdigit() else part for part in first.split(".")))
        if names[-1] in names[:-1]:
            names[-1] += f" #{number}"
    return make_groups(found.group_of_op, names, families, list(range(len(names))))


class _Labels:
    """Which ops must share a device: a union-find over modules that are not cut and `MAIN`."""

    def __init__(self, graph: ComputationGraph) -> None:
        self.graph = graph
        self.paths = [graph.module_names[m] for m in graph.module]
        self.together: UnionFind[Hashable] = UnionFind()
        self.label: list[Hashable | None] = [None] * graph.num_ops
        self.is_parameter = graph.is_type(PARAMETER)
        self.is_constant = np.array([name.startswith("constant/") for name in graph.op_names]) & self.is_parameter
        self.is_input = graph.is_type(INPUT)
        offsets, tensors = graph.input_tensors
        self.producers = np.split(graph.tensor_producer[tensors], offsets[1:-1])
        self.offsets, self.tensors = offsets, tensors

    def of_ops(self) -> NDArray[np.int64]:
        """``int64[N]``: equal where ops must share a device."""
        cut = self._cut_modules()
        self._label_modules(cut)
        self._join_what_own_ops_read(cut)
        self._join_readers_of_parameters()
        self._follow_forward()
        names: dict[Hashable, int] = {}
        return np.array(
            [names.setdefault(self.together[MAIN if label is None else label], len(names)) for label in self.label]
        )

    def _cut_modules(self) -> set[str]:
        """The modules that are cut."""
        graph = self.graph
        children: defaultdict[str, set[str]] = defaultdict(set)
        for path in graph.module_names:
            if not is_loss(path):
                for outer, inner in zip(prefixes(path), prefixes(path)[1:], strict=False):
                    children[outer].add(inner)
        owners = {self.paths[op] for op in np.flatnonzero(self.is_parameter & ~self.is_constant)} - {""}
        weight = self._weights()
        cut = set[str]()
        for path in sorted(children, key=lambda p: len(prefixes(p))):
            if path and prefixes(path)[-2] not in cut:
                continue  # it is inside of one that is not
            if path not in owners and (weight[path] > MOST_OF_IT or not self._mixes_arguments(path)):
                cut.add(path)
        return cut

    def _label_modules(self, cut: set[str]) -> None:
        """Label the ops of modules that are not cut, the inputs, and what the model itself owns."""
        of_path: dict[str, Hashable] = {}
        for path in set(self.paths):
            if path in cut:
                continue
            whole = next((p for p in prefixes(path) if p not in cut), path)
            of_path[path] = MAIN if is_loss(path) else ("module", whole)
        for op, path in enumerate(self.paths):
            if self.is_input[op] or (path == "" and self.is_parameter[op] and not self.is_constant[op] and "" in cut):
                self.label[op] = MAIN
            elif path in of_path and not self.is_constant[op]:
                self.label[op] = of_path[path]

    def _weights(self) -> dict[str, float]:
        """The larger of each module's shares of the resident bytes and of the FLOPs, with all that it is in it."""
        graph = self.graph
        weight: defaultdict[str, float] = defaultdict(float)
        for column in (graph.resident_bytes.sum(axis=1), graph.flops):
            of_module = np.bincount(graph.module, column, len(graph.module_names)) / max(float(column.sum()), 1.0)
            of_path: defaultdict[str, float] = defaultdict(float)
            for path, share in zip(graph.module_names, of_module.tolist(), strict=True):
                for prefix in prefixes(path):
                    of_path[prefix] += share
            for path, share in of_path.items():
                weight[path] = max(weight[path], share)
        return weight

    @cached_property
    def _own_ops(self) -> dict[str, list[int]]:
        """The forward ops that each module runs itself, in program order."""
        own: defaultdict[str, list[int]] = defaultdict(list)
        for op in np.flatnonzero(self.graph.phase == _FORWARD).tolist():
            if not self.is_parameter[op] and not self.is_input[op]:
                own[self.paths[op]].append(op)
        return own

    def _mixes_arguments(self, path: str) -> bool:
        """Whether an own op of the module reads something it was given together with anything else but itself."""
        inside = f"{path}." if path else ""
        source: dict[int, Hashable] = {}
        for op in self._own_ops.get(path, []):
            read: set[Hashable] = set()
            for producer in self.producers[op].tolist():
                if producer in source:
                    read.add(source[producer])
                elif self.paths[producer] == path and not self.is_input[producer]:
                    pass  # a constant, or made from nothing
                elif self.paths[producer].startswith(inside) and not self.is_input[producer]:
                    read.add("part")
                else:
                    read.add(("given", producer))
            if len(read) > 1:
                return True
            if read:
                source[op] = next(iter(read))
        return False

    def _join_what_own_ops_read(self, cut: set[str]) -> None:
        """Label the own ops of cut modules; what one op reads shares a device. What reads nothing gets no label yet."""
        for op in sorted(op for path in cut for op in self._own_ops.get(path, [])):
            known = [label for p in self.producers[op].tolist() if (label := self.label[p]) is not None]
            if known:
                self.label[op] = known[0]
                self.together.union(*known)

    def _join_readers_of_parameters(self) -> None:
        for op in np.flatnonzero(self.graph.phase == _FORWARD).tolist():
            for producer in self.producers[op].tolist():
                if self.is_parameter[producer] and not self.is_constant[producer]:
                    a, b = self.label[op], self.label[producer]
                    if a is not None and b is not None:
                        self.together.union(a, b)

    def _follow_forward(self) -> None:
        """Label what has no module of its own: constants by who reads them, gradients by what they are gradients of."""
        graph = self.graph
        for op in range(graph.num_ops):
            if self.label[op] is not None or self.is_constant[op]:
                continue
            read = self.tensors[self.offsets[op] : self.offsets[op + 1]].tolist()
            makers = [(int(graph.tensor_producer[t]), int(graph.tensor_bytes[t])) for t in read]
            known = [(p, size) for p, size in makers if self.label[p] is not None]
            forward = [(p, size) for p, size in known if graph.phase[p] == _FORWARD]
            if known:
                self.label[op] = self.label[max(forward or known, key=lambda pair: pair[1])[0]]
        for edge in range(graph.num_edges - 1, -1, -1):
            producer = int(graph.edge_producer[edge])
            if self.label[producer] is None:
                self.label[producer] = self.label[int(graph.consumers[edge])]
        bound = np.flatnonzero(graph.colocation >= 0).tolist()
        of_parameter = {int(graph.colocation[op]): self.label[op] for op in bound if self.is_parameter[op]}
        for op in bound:
            self.label[op] = of_parameter.get(int(graph.colocation[op]), self.label[op])


def _described(graph: ComputationGraph, group_of_op: NDArray[np.int32]) -> WholeModules:
    """Name the modules of each group: the outermost ones all of whose ops are in it."""
    groups_in: defaultdict[str, set[int]] = defaultdict(set)
    first: dict[str, int] = {}
    for op, (m, group) in enumerate(zip(graph.module.tolist(), group_of_op.tolist(), strict=True)):
        path = graph.module_names[m]
        if is_loss(path) or graph.phase[op] != _FORWARD or graph.op_names[op].startswith("constant/"):
            continue
        for prefix in prefixes(path):
            groups_in[prefix].add(group)
            first.setdefault(prefix, op)
    members: list[list[str]] = [[] for _ in range(int(group_of_op.max()) + 1)]
    for path in sorted(groups_in, key=lambda p: first[p]):
        alone = len(groups_in[path]) == 1
        if alone and not any(len(groups_in[outer]) == 1 for outer in prefixes(path)[:-1]):
            (group,) = groups_in[path]
            members[group].append(path)
    inputs = np.flatnonzero(graph.is_type(INPUT))
    main = int(group_of_op[inputs[0]]) if inputs.size else 0
    return WholeModules(group_of_op, tuple(map(tuple, members)), main)


def is_loss(path: str) -> bool:
    """Whether a module's path is that of the loss or of a part of it."""
    return path.split(".")[0] in LOSS


def prefixes(path: str) -> list[str]:
    """A module and all that it is in, outermost first.

    >>> prefixes("encoder.0")
    ['', 'encoder', 'encoder.0']
    """
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]
