"""Merging co-location groups to a wanted number, or ops by their type, so that a placer has less to decide.

Letters: ``N`` ops, ``G`` groups, ``E`` edges.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from graphs.colocation.groups import Groups, make_groups, one_group_an_op
from graphs.computation_graph import ANY_KIND, INPUT, PARAMETER, PHASES, ComputationGraph
from graphs.errors import InputError

_FLOPS_PER_BYTE = 10.0
"""Balance of a usual accelerator: this many FLOPs take as long as one byte of memory traffic."""

_BYTES_PER_S = 2e11
"""Turns profiled seconds into bytes of memory traffic; only matters where a part of the ops is profiled."""

_NEXT_STEP, _CONNECTED_SIBLING, _SIBLING, _COUSIN = 1.0, 8.0, 32.0, 128.0
"""How much heavier two groups count for being less alike; a factor on what they weigh together."""

_MOST_CONNECTIONS = 64
"""A group with tensors to or from more siblings than this tells nothing about which of them belong together."""

_LEVELS = 8
"""Enclosing modules that are looked at one by one before the whole model; keeps deep paths from costing more."""

_SIZES_A_DOUBLING = 8
"""Weights are compared on a scale of this many sizes a doubling, so that what differs by little keeps program order."""

_TOLERANCE = 2
"""Two groups are merged though they grew by up to this many sizes since they were compared; it bounds comparisons."""


def coarsen(graph: ComputationGraph, groups: Groups, wanted_groups: int, *, within: Groups | None = None) -> Groups:
    """Merge groups until there are at most as many as wanted; each new group is a union of old ones.

    The lightest merge comes first. A group weighs its share of the step's work, plus its share of the resident bytes
    (embedding tables, which do next to no work, must not pile up), plus its share of the number of groups (neither must
    light groups). Two groups that are not alike count as heavier than they are:

    1. neighbouring time steps of the same family count as they are: adjacent steps read each other's state;
    2. siblings (innermost enclosing module in common) with a tensor between them eight times: an Inception branch;
    3. siblings next to each other in the program 32 times;
    4. groups next to each other in the program, with a further enclosing module in common, 128 times and more.

    Groups whose ops are allowed on different kinds of device are never merged, nor are the step's inputs with anything
    else. The factors are a choice of this project; that steps come before heavy edges is measured (merging along heavy
    edges gave worse placements). The time grows as ``(E + G) log G`` where groups stay of like size, and by one more
    logarithm at worst (one group that all others are merged into).

    Args:
        graph: The graph.
        groups: Its groups.
        wanted_groups: At least 1. More remain where kinds of device force more.
        within: Coarser groups of the same graph: nothing is merged across them, so each of these is split. More remain
            than wanted where these are more.

    Raises:
        InputError: `wanted_groups` is less than 1, the groups or `within` are of another graph, or one of the groups
            has ops in two of `within`.
    """
    if wanted_groups < 1:
        raise InputError(f"the wanted number of groups is {wanted_groups}; it must be at least 1")
    for given in (groups,) if within is None else (groups, within):
        if len(given.group_of_op) != graph.num_ops:
            raise InputError(
                f"the groups cover {len(given.group_of_op)} ops, but graph '{graph.name}' has {graph.num_ops}; "
                "group this graph again"
            )
    kind = _classes(graph, groups)
    if within is not None:
        kind = np.unique(np.stack([kind, _inside(groups, within)]), axis=1, return_inverse=True)[1].ravel()
    if groups.num_groups <= wanted_groups:
        return groups
    weight = _weights(graph, groups)
    root = list(range(groups.num_groups))
    heap = sorted(
        (_size(factor * (weight[a] + weight[b])), order, factor, a, b)
        for order, (factor, a, b) in enumerate(_pairs(graph, groups, kind))
    )
    left = groups.num_groups
    while heap and left > wanted_groups:
        key, order, factor, a, b = heap[0]
        a, b = find(root, a), find(root, b)
        now = _size(factor * (weight[a] + weight[b]))
        if a == b:
            heapq.heappop(heap)
        elif now > key + _TOLERANCE:
            heapq.heapreplace(heap, (now, order, factor, a, b))
        else:
            heapq.heappop(heap)
            a, b = min(a, b), max(a, b)
            root[b] = a
            weight[a] += weight[b]
            left -= 1
    return _merged(groups, [find(root, g) for g in range(groups.num_groups)])


def merge_types(graph: ComputationGraph, groups: Groups) -> Groups:
    """One group for all ops of a type, in one phase of one module family, at whatever time step.

    Where a network is unrolled over time that makes few groups, and they cut across co-location groups: the forward
    products of a layer can be on another device than its backward ones, and than its sums.

    Args:
        graph: The graph.
        groups: Its groups, for the module families.

    Returns:
        Groups that respect what the graph binds together; bound ops go with the first of them.
    """
    finest = one_group_an_op(graph)
    first = np.unique(finest.group_of_op, return_index=True)[1]
    keys = [
        groups.family[groups.group_of_op[first]].astype(np.int64),
        graph.phase[first].astype(np.int64),
        graph.op_type[first].astype(np.int64),
        _classes(graph, finest),
    ]
    distinct, label = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    names = [
        f"{groups.family_names[family]}/{PHASES[phase]}/{graph.type_names[op_type]}"
        for family, phase, op_type, _ in distinct.tolist()
    ]
    return make_groups(label.ravel()[finest.group_of_op], unique_names(names), names, [0] * len(names))


def _size(weight: float) -> int:
    return round(_SIZES_A_DOUBLING * math.log2(weight))


def op_work(graph: ComputationGraph) -> NDArray[np.float64]:
    """``float64[N]``: how much each op has to do, in bytes of memory traffic, whatever the device.

    A roofline with the balance of a usual accelerator: the larger of the bytes accessed and a tenth of the FLOPs; a
    profiled op counts the mean of its times instead.
    """
    work = np.maximum(graph.flops / _FLOPS_PER_BYTE, graph.bytes_accessed.astype(np.float64))
    if graph.time_s:
        times = np.stack(list(graph.time_s.values()))  # [specs, N]
        profiled = ~np.isnan(times)
        count = profiled.sum(axis=0)
        mean = np.where(profiled, times, 0.0).sum(axis=0) / np.maximum(count, 1)
        work = np.where(count > 0, mean * _BYTES_PER_S, work)
    return work


def find(root: list[int], i: int) -> int:
    """The representative of ``i`` in a forest of merged sets; shortens the way for the next time."""
    while root[i] != i:
        root[i] = root[root[i]]
        i = root[i]
    return i


def _weights(graph: ComputationGraph, groups: Groups) -> list[float]:
    """Each group's share of work, of resident bytes and of the number of groups, added."""
    total = np.full(groups.num_groups, 1 / groups.num_groups)
    for column in (op_work(graph), graph.resident_bytes.astype(np.float64).sum(axis=1)):
        if column.sum() > 0:
            total += np.bincount(groups.group_of_op, column, groups.num_groups) / column.sum()
    return [float(w) for w in total]


def _classes(graph: ComputationGraph, groups: Groups) -> NDArray[np.int64]:
    """``int64[G]``: groups of different numbers must not be merged: kinds of device differ, or only one is inputs."""
    kinds = np.full(groups.num_groups, ANY_KIND, dtype=np.int64)
    np.bitwise_and.at(kinds, groups.group_of_op, graph.allowed_kinds.astype(np.int64))
    inputs = graph.is_sent_input & (graph.allowed_kinds == ANY_KIND)
    holds_inputs = np.bincount(groups.group_of_op, inputs, groups.num_groups) > 0
    return kinds + holds_inputs * (ANY_KIND + 1)


def _inside(groups: Groups, within: Groups) -> NDArray[np.int64]:
    """``int64[G]``: the coarser group that each group is part of."""
    coarser = np.zeros(groups.num_groups, dtype=np.int64)
    coarser[groups.group_of_op] = within.group_of_op
    parted = np.flatnonzero(coarser[groups.group_of_op] != within.group_of_op)
    if len(parted):
        name = groups.names[groups.group_of_op[parted[0]]]
        raise InputError(f"group '{name}' has ops in two of the groups that it should be within; give finer groups")
    return coarser


def _pairs(graph: ComputationGraph, groups: Groups, kind: NDArray[np.int64]) -> Iterator[tuple[float, int, int]]:
    """``(factor, group, group)`` of the same kind, ``int64[G]``; all groups of a kind are connected by them."""
    families = [groups.family_names[f] for f in groups.family]
    runs = _runs(graph, groups)
    in_family = groups.family_order[runs[groups.family_order]]
    for a, b in zip(in_family[:-1].tolist(), in_family[1:].tolist(), strict=True):
        if families[a] and groups.family[a] == groups.family[b] and kind[a] == kind[b]:
            yield _NEXT_STEP, a, b

    scopes = _scopes(families)
    innermost = np.unique([scope[0] for scope in scopes], return_inverse=True)[1]
    reads = ~graph.is_type(PARAMETER)[graph.edge_producer]
    source = groups.group_of_op[graph.edge_producer[reads]].astype(np.int64)
    target = groups.group_of_op[graph.consumers[reads]].astype(np.int64)
    siblings = (source != target) & (kind[source] == kind[target]) & (innermost[source] == innermost[target])
    low, high = np.minimum(source, target)[siblings], np.maximum(source, target)[siblings]
    low, high = np.divmod(np.unique(low * groups.num_groups + high), groups.num_groups)
    connections = np.bincount(np.concatenate([low, high]), minlength=groups.num_groups)
    few = (connections[low] <= _MOST_CONNECTIONS) & (connections[high] <= _MOST_CONNECTIONS)
    for a, b in zip(low[few].tolist(), high[few].tolist(), strict=True):
        yield _CONNECTED_SIBLING, a, b

    last: dict[tuple[int, str], int] = {}
    for b in range(groups.num_groups):
        for level, scope in enumerate(scopes[b]):
            a = last.get((int(kind[b]), scope), b)
            last[int(kind[b]), scope] = b
            if a != b:
                yield _SIBLING if level == 0 and scopes[a][0] == scope else _COUSIN * 2.0 ** _depth(level, scope), a, b


def _runs(graph: ComputationGraph, groups: Groups) -> NDArray[np.bool_]:
    """``bool[G]``: True where a group runs something forward or backward; the shared parameters of a family do not.

    Ops that sum a parameter's gradient are bound to it, and so make no difference.
    """
    bound = graph.colocation[(graph.colocation >= 0) & graph.is_type(PARAMETER)]
    source = graph.is_type(PARAMETER) | graph.is_type(INPUT)
    update = graph.phase == PHASES.index("update")
    sums = np.isin(graph.colocation, bound) & (graph.phase != PHASES.index("forward"))
    runs = np.zeros(groups.num_groups, dtype=np.bool_)
    runs[groups.group_of_op[~(source | update | sums)]] = True
    return runs


def _depth(level: int, scope: str) -> int:
    """How far a common enclosing module is: the whole model is always the farthest."""
    return level if scope else _LEVELS


def _scopes(families: Sequence[str]) -> list[list[str]]:
    """For each group the paths of its enclosing modules, innermost first, the whole model (``""``) last.

    A module that holds others is its own innermost: what joins the branches of an Inception block is their sibling.
    """
    containers = {""}
    for family in set(families):
        for _ in range(_LEVELS):
            family = family.rpartition(".")[0]
            containers.add(family)
    scopes_of: dict[str, list[str]] = {}
    for family in families:
        if family in scopes_of:
            continue
        path = family if family in containers else family.rpartition(".")[0]
        scopes = list[str]()
        while path and len(scopes) < _LEVELS:
            scopes.append(path)
            path = path.rpartition(".")[0]
        scopes_of[family] = [*scopes, ""]
    return [scopes_of[family] for family in families]


_STEPS = re.compile(r"(?P<stem>.*)/(?P<first>\d+)(?:-(?P<last>\d+))?(?P<kinds>\[[a-z,]*\])?")
_COUNT = re.compile(r"(?P<stem>.*)\+(?P<count>\d+)")


def _merged(groups: Groups, root: Sequence[int]) -> Groups:
    """The groups after a merge; ``root[g]`` is the first of the groups that ``g`` is merged with."""
    members: dict[int, list[int]] = {}
    for g, first in enumerate(root):
        members.setdefault(first, []).append(g)
    names, families, steps = {}, {}, {}
    for first, group in members.items():
        family = groups.family[first]
        alike = all(groups.family[g] == family for g in group)
        names[first] = _merged_name([groups.names[g] for g in group], alike)
        families[first] = groups.family_names[family]
        steps[first] = min(int(groups.step[g]) for g in group if groups.family[g] == family)
    unique = unique_names([names[first] for first in members])
    labels = {first: label for label, first in enumerate(members)}
    label_of_group = np.array([labels[first] for first in root])
    return make_groups(label_of_group[groups.group_of_op], unique, list(families.values()), list(steps.values()))


def _merged_name(names: Sequence[str], alike: bool) -> str:
    """``"cell/0-3"`` for time steps of one module, else the first name and how many others, ``"branch1+2"``."""
    if len(names) == 1:
        return names[0]
    parts = [_STEPS.fullmatch(name) for name in names]
    if alike and all(parts):
        steps = [int(step) for p in parts if p for step in (p["first"], p["last"] or p["first"])]
        return f"{parts[0]['stem']}/{min(steps)}-{max(steps)}{parts[0]['kinds'] or ''}"  # type: ignore[index]
    counts = [_COUNT.fullmatch(name) for name in names]
    others = len(names) - 1 + sum(int(c["count"]) for c in counts if c)
    return f"{counts[0]['stem'] if counts[0] else names[0]}+{others}"


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with ``#2``, ``#3``, ... behind those that an earlier one has already."""
    taken = set(names)
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        count = seen.get(name, 0) + 1
        while count > 1 and f"{name}#{count}" in taken:
            count += 1
        seen[name] = count
        unique.append(name if count == 1 else f"{name}#{count}")
        taken.add(unique[-1])
    return unique
