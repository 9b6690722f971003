"""What the policy reads: a placement problem as arrays of numbers.

Two sets of group features exist. The *paper* set is Mirhoseini et al. (2017, section 3.2): op types (for a learned
embedding), a padded list of output shapes, and one-hot adjacency. The *full* set adds costs, memory, traffic, the
position in the graph, the module family and the time step, and replaces the one-hot rows, whose width is tied to one
graph, by sums over neighbours inside the policy.

Letters: ``G`` groups, ``D`` devices, ``F`` features, ``Y`` buckets of op types, ``K`` context slots.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.computation_graph import PHASES, ComputationGraph

TYPE_BUCKETS = 256
"""Op types are hashed (CRC-32 of the name) into this many rows of the type embedding: no vocabulary to keep in step."""

FAMILY_BUCKETS = 64
"""Buckets that names of module families are hashed into."""

MAX_SHAPES, MAX_RANK = 4, 4
"""A group lists its `MAX_SHAPES` largest outputs, each padded or cut to `MAX_RANK` dimensions."""

TWIN_RANKS = 8
"""Devices of one spec are told apart by their rank among their twins, one-hot up to this many."""

_TOLD_KINDS = ("cpu", "gpu", "tpu")
"""Kinds of device that have a place in the features; others are told by their figures, so that weights fit all."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ProblemFeatures:
    """A problem as the policy reads it.

    Attributes:
        type_share: ``float32[G, Y]``, share of the group's ops of each hashed type (rows sum to 1).
        family: ``int64[G]``, hashed module family.
        shapes: ``float32[G, MAX_SHAPES * MAX_RANK]``, ``log(1 + size)`` of the largest outputs' dimensions.
        reads, read_by: ``float32[G, G]``, 1 where group ``i`` reads from, or is read by, group ``j != i``.
        traffic_bytes: ``float64[G, G]``, bytes that group ``j`` would receive from ``i`` on another device.
        costs: ``float32[G, F]``, standardised over the groups; see `_group_costs`.
        log_time_ratio: ``float32[G, D]``, log of the group's time on a device over its time on its fastest one.
        devices: ``float32[D, F]``; see `_device_features`.
        allowed: ``bool[G, D]``, True where the group may run.
        context: ``int64[K, G]``, earlier groups whose device the decoder is told when it places a group, -1 for none:
            the previous group (the paper's), the family's previous step, and the group that sends most bytes.
    """

    type_share: FloatArray
    family: NDArray[np.int64]
    shapes: FloatArray
    reads: FloatArray
    read_by: FloatArray
    traffic_bytes: NDArray[np.float64]
    costs: FloatArray
    log_time_ratio: FloatArray
    devices: FloatArray
    allowed: NDArray[np.bool_]
    context: NDArray[np.int64]

    @property
    def num_groups(self) -> int:
        """``G``."""
        return len(self.type_share)

    @property
    def num_devices(self) -> int:
        """``D``."""
        return len(self.devices)


def make_features(problem: PlacementProblem) -> ProblemFeatures:
    """Read a problem into the policy's arrays."""
    traffic = group_traffic_bytes(problem)
    times = problem.group_time_s
    fastest = np.where(problem.allowed, times, np.inf).min(axis=1, keepdims=True)
    log_ratio = np.log(np.maximum(times, 1e-9) / np.maximum(fastest, 1e-9))
    return ProblemFeatures(
        type_share=_type_share(problem),
        family=np.array(
            [_bucket(problem.groups.family_names[f], FAMILY_BUCKETS) for f in problem.groups.family], dtype=np.int64
        ),
        shapes=_shapes(problem),
        reads=(traffic.T > 0).astype(np.float32),
        read_by=(traffic > 0).astype(np.float32),
        traffic_bytes=traffic,
        costs=_group_costs(problem, traffic),
        log_time_ratio=log_ratio.astype(np.float32),
        devices=_device_features(problem),
        allowed=problem.allowed,
        context=_context(problem, traffic),
    )


def group_traffic_bytes(problem: PlacementProblem) -> NDArray[np.float64]:
    """``float64[G, G]``: bytes of group ``i``'s tensors that group ``j != i`` reads, each tensor once."""
    graph, group = problem.graph, problem.groups.group_of_op
    traffic = np.zeros((problem.num_groups, problem.num_groups))
    if graph.num_edges:
        pairs = np.unique(np.stack([graph.edge_tensor, group[graph.consumers]], axis=1), axis=0)
        senders = group[graph.tensor_producer[pairs[:, 0]]]
        # A tensor of no bytes still orders two groups: one byte keeps the edge in sight.
        np.add.at(traffic, (senders, pairs[:, 1]), np.maximum(graph.weighed_bytes[pairs[:, 0]], 1))
        np.fill_diagonal(traffic, 0.0)
    return traffic


def _bucket(name: str, buckets: int) -> int:
    return zlib.crc32(name.encode()) % buckets


def _type_share(problem: PlacementProblem) -> FloatArray:
    graph = problem.graph
    bucket_of_type = np.array([_bucket(name, TYPE_BUCKETS) for name in graph.type_names])
    share = np.zeros((problem.num_groups, TYPE_BUCKETS), dtype=np.float32)
    np.add.at(share, (problem.groups.group_of_op, bucket_of_type[graph.op_type]), 1.0)
    return share / share.sum(axis=1, keepdims=True)


def _shapes(problem: PlacementProblem) -> FloatArray:
    listed: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(problem.num_groups)]
    for op, group in enumerate(problem.groups.group_of_op):
        for shape in problem.graph.output_shapes[op]:
            listed[group].append((int(math.prod(map(float, shape))), shape))
    rows = np.zeros((problem.num_groups, MAX_SHAPES, MAX_RANK), dtype=np.float32)
    for group, shapes in enumerate(listed):
        for i, (_, shape) in enumerate(sorted(shapes, key=lambda entry: -entry[0])[:MAX_SHAPES]):
            dims = np.log1p(shape[:MAX_RANK])
            rows[group, i, : len(dims)] = dims
    return rows.reshape(problem.num_groups, -1)


def _group_costs(problem: PlacementProblem, traffic: NDArray[np.float64]) -> FloatArray:
    """``float32[G, F]``: time, share of time, memory, traffic, ops, phases, critical path, position and step."""
    graph, groups = problem.graph, problem.groups
    group = groups.group_of_op
    best = np.where(problem.allowed, problem.group_time_s, np.inf).min(axis=1)
    worst = np.where(problem.allowed, problem.group_time_s, -np.inf).max(axis=1)
    before, after = critical_path_s(graph, problem.op_time_s.min(axis=0))
    length = max(float((before + after).max()), 1e-12)
    first = np.full(problem.num_groups, np.inf)
    np.minimum.at(first, group, before)
    last = np.zeros(problem.num_groups)
    np.maximum.at(last, group, after)
    slack = np.full(problem.num_groups, np.inf)
    np.minimum.at(slack, group, length - before - after)
    phases = np.stack([np.bincount(group, graph.phase == p, problem.num_groups) for p in range(len(PHASES))], axis=1)
    ops = np.bincount(group, minlength=problem.num_groups)
    produced = np.zeros(problem.num_groups)
    np.add.at(produced, group[graph.tensor_producer], np.where(graph.tensor_resident, 0, graph.tensor_bytes))
    columns = [
        np.log(best + 1e-7),
        np.log(worst + 1e-7),
        best / max(float(best.sum()), 1e-12),
        np.log1p(problem.group_resident_bytes),
        problem.group_resident_bytes / max(int(problem.cluster.memory_bytes.max()), 1),
        np.log1p(produced),
        np.log1p(traffic.sum(axis=0)),
        np.log1p(traffic.sum(axis=1)),
        np.log1p((traffic > 0).sum(axis=0)),
        np.log1p((traffic > 0).sum(axis=1)),
        np.log(ops),
        *(phases / ops[:, None]).T,
        first / length,
        last / length,
        slack / length,
        np.arange(problem.num_groups) / problem.num_groups,
        groups.step / max(int(groups.step.max()), 1),
        problem.allowed.sum(axis=1) / problem.num_devices,
    ]
    table = np.stack(columns, axis=1)
    spread = table.std(axis=0)
    return ((table - table.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)).astype(np.float32)


def critical_path_s(
    graph: ComputationGraph, time_s: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longest paths without transfers.

    Args:
        graph: The graph.
        time_s: ``float64[N]``, seconds of each op.

    Returns:
        ``(before, after)``, each ``float64[N]``: seconds of the longest path that ends just before an op, and of the
        longest that starts with it.
    """
    seconds = time_s.tolist()  # lists: a loop over entries of arrays takes ten times as long
    begins = graph.consumer_offsets[graph.tensor_offsets].tolist()
    consumers = graph.consumers.tolist()
    before, after = [0.0] * graph.num_ops, [0.0] * graph.num_ops
    for op in range(graph.num_ops):
        end_s = before[op] + seconds[op]
        for reader in consumers[begins[op] : begins[op + 1]]:
            before[reader] = max(before[reader], end_s)
    for op in range(graph.num_ops - 1, -1, -1):
        readers = consumers[begins[op] : begins[op + 1]]
        after[op] = seconds[op] + (max(after[reader] for reader in readers) if readers else 0.0)
    return np.array(before), np.array(after)


def _device_features(problem: PlacementProblem) -> FloatArray:
    """``float32[D, F]``: speed, memory, links, kind, and the rank among devices of the same spec.

    Devices of one spec differ in nothing that a placement could feel at first, yet the policy must be able to send two
    groups to different ones of them: their rank breaks the tie.
    """
    specs = [d.spec for d in problem.cluster.devices]
    routes = problem.cluster.routes
    others = ~np.eye(problem.num_devices, dtype=bool)
    rows = []
    for d, spec in enumerate(specs):
        bandwidth = routes.bytes_per_s[d][others[d]]
        rank = sum(1 for twin in specs[:d] if twin == spec)
        numbers = [
            np.log10(spec.rate_flops_per_s("float32")) - 12.0,
            np.log10(spec.memory_bytes_per_s) - 11.0,
            np.log10(max(int(problem.cluster.memory_bytes[d]), 1)) - 10.0,
            np.log10(spec.launch_overhead_s + 1e-6) + 5.0,
            (np.log10(bandwidth).mean() - 10.0) if len(bandwidth) else 0.0,
            1e4 * routes.latency_s[d][others[d]].mean() if len(bandwidth) else 0.0,
            np.log(max(float(problem.group_time_s[:, d].sum()), 1e-9) / max(_fastest_total_s(problem), 1e-9)),
            rank / TWIN_RANKS,
        ]
        kind = [float(spec.kind == k) for k in _TOLD_KINDS]
        rows.append(numbers + kind + [float(rank == r) for r in range(TWIN_RANKS)])
    return np.array(rows, dtype=np.float32)


def _fastest_total_s(problem: PlacementProblem) -> float:
    return float(problem.group_time_s.sum(axis=0).min())


def _context(problem: PlacementProblem, traffic: NDArray[np.float64]) -> NDArray[np.int64]:
    groups = problem.groups
    previous = np.arange(-1, problem.num_groups - 1)
    same_family = np.full(problem.num_groups, -1)
    for a, b in zip(groups.family_order[:-1], groups.family_order[1:], strict=True):
        if groups.family[a] == groups.family[b] and a < b:
            same_family[b] = a
    earlier = np.triu(traffic, k=1)  # [G, G], senders that come before the reader
    heaviest = np.where(earlier.max(axis=0) > 0, earlier.argmax(axis=0), -1)
    return np.stack([previous, same_family, heaviest]).astype(np.int64)
