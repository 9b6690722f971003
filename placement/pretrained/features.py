"""What the pretrained policy reads of a problem: numbers without a scale, so that one set of weights serves any graph.

Times are divided by the problem's own mean group, bytes by what its devices hold or by the time that sending them
takes. What depends on the placement so far is computed while groups are placed (`placement.pretrained.kernel`).

Letters: ``G`` groups, ``D`` devices, ``H`` placements voted for, ``P`` pairs of groups that exchange tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.footprint import group_bytes
from envs.guided.guide import Guide, make_guide
from envs.problem import PlacementProblem
from placement.placers.best import charged_s, step_limit_s

GROUP_FEATURES = 27
"""What is known of each group."""

PAIR_FEATURES = 5
"""What is known of each two groups: share of the bytes read, of those sent, same family, voted together, nearness."""

MOST_VOTES = 8
"""Placements that the policy sees at most: the best, each once."""

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_LEAST_S = 1e-12


@dataclass(frozen=True, eq=False)
class Known:
    """A problem with the best placements that are known so far, as the policy reads it.

    Attributes:
        guide: The problem, its parts, votes and reference.
        groups: ``float32[G, GROUP_FEATURES]``.
        pairs: ``float32[PAIR_FEATURES, G, G]``.
        devices: ``float32[D, 2]``: 1 for a CPU; how much slower than the fastest device.
        bytes: ``float64[G]``, an estimate of the memory that each group needs where it is.
        votes_s: ``float64[H]``, what each of the votes is charged, best first.
    """

    guide: Guide
    groups: FloatArray
    pairs: FloatArray
    devices: FloatArray
    bytes: NDArray[np.float64]
    votes_s: NDArray[np.float64]

    @property
    def problem(self) -> PlacementProblem:
        """What is placed."""
        return self.guide.problem

    @property
    def best_s(self) -> float:
        """What the best of the votes, the reference, is charged."""
        return float(self.votes_s[0])

    def charged_s(self, placements: NDArray[np.integer]) -> NDArray[np.float64]:
        """``float64[B]``: step times of ``int[B, G]``; what does not fit is charged more than the reference."""
        return _charged_s(self.problem, placements, self.best_s)


def read(problem: PlacementProblem, placements: Sequence[NDArray[np.integer]]) -> Known:
    """Read a problem of which some placements are known.

    Args:
        problem: What is placed.
        placements: ``int64[G]`` each, of heuristics; the best single device and a quick list schedule join them.
    """
    named = {str(number): np.asarray(placement, dtype=np.int64) for number, placement in enumerate(placements)}
    guide = make_guide(problem, named)
    known = Known(
        guide=guide,
        groups=_groups(guide),
        pairs=_pairs(guide),
        devices=_devices(problem),
        bytes=group_bytes(problem).astype(np.float64),
        votes_s=np.zeros(0),
    )
    rows = guide.picture.votes
    return voted(known, rows, _charged_s(problem, rows, step_limit_s(problem)))


def joined(known: Known, placements: NDArray[np.integer], charged: NDArray[np.float64]) -> Known:
    """The same problem after more placements: the best of all are its votes, the best one its reference.

    Args:
        known: So far.
        placements: ``int[B, G]``.
        charged: ``float64[B]``, by `Known.charged_s`.
    """
    rows = np.concatenate([known.guide.picture.votes, placements.astype(np.int64)])
    return voted(known, rows, np.concatenate([known.votes_s, charged]))


def voted(known: Known, rows: IntArray, charged: NDArray[np.float64]) -> Known:
    """The same problem with the best of some placements, each once, as its votes, and the best as its reference.

    Args:
        known: The problem; its own votes are forgotten.
        rows: ``int64[B, G]``.
        charged: ``float64[B]``.
    """
    kept: list[int] = []
    for i in np.argsort(charged, kind="stable"):
        if all((rows[i] != rows[k]).any() for k in kept):
            kept.append(int(i))
        if len(kept) == MOST_VOTES:
            break
    votes, votes_s = np.ascontiguousarray(rows[kept]), charged[kept]
    guide = known.guide
    picture = guide.picture._replace(votes=votes, reference=votes[0].copy(), reference_s=np.zeros(1))
    guide = replace(
        guide,
        picture=picture,
        names=tuple(str(number) for number in range(len(kept))),
        votes_s=votes_s,
        reference=votes[0],
        reference_s=float(votes_s[0]),
    )
    picture.reference_s[0] = guide.outlooks_s(votes[:1])[0]
    together = (votes[:, :, None] == votes[:, None, :]).mean(axis=0).astype(np.float32)  # [G, G]
    pairs, groups = known.pairs.copy(), known.groups.copy()
    pairs[3] = together
    work_s = _accelerators_s(guide.problem)
    groups[:, 25] = np.clip(np.log(votes_s[0] / max(work_s.mean(axis=1).sum() / work_s.shape[1], _LEAST_S)) / 2, -3, 3)
    groups[:, 26] = (votes == votes[0]).mean(axis=0)
    return replace(known, guide=guide, groups=groups, pairs=pairs, votes_s=votes_s)


def _charged_s(problem: PlacementProblem, placements: NDArray[np.integer], reference_s: float) -> NDArray[np.float64]:
    return charged_s(problem.evaluate(placements), problem.cluster.memories, reference_s=max(reference_s, _LEAST_S))


def _accelerators(problem: PlacementProblem) -> IntArray:
    """Indices of the accelerators; of all devices where there are none."""
    found = np.flatnonzero([device.spec.kind != "cpu" for device in problem.cluster.devices])
    return found if len(found) else np.arange(problem.num_devices)


def _times_s(problem: PlacementProblem) -> NDArray[np.float64]:
    """``float64[G, D]``: seconds of each group; where it may not be, as long as where it is slowest."""
    known = problem.allowed & np.isfinite(problem.group_time_s)
    slowest_s = np.where(known, problem.group_time_s, 0.0).max(axis=1)
    return np.where(known, problem.group_time_s, slowest_s[:, None])


def _accelerators_s(problem: PlacementProblem) -> NDArray[np.float64]:
    """``float64[G, A]``: seconds of each group on each accelerator."""
    return _times_s(problem)[:, _accelerators(problem)]


def _devices(problem: PlacementProblem) -> FloatArray:
    total = _times_s(problem).sum(axis=0)
    slower = np.log(np.maximum(total, _LEAST_S) / max(float(total.min()), _LEAST_S)) / 2
    cpu = [device.spec.kind == "cpu" for device in problem.cluster.devices]
    return np.stack([np.array(cpu, dtype=np.float32), np.clip(slower, 0, 3).astype(np.float32)], axis=1)


def _links(problem: PlacementProblem) -> tuple[float, float]:
    """Seconds a byte and latency between two accelerators, in the mean."""
    at = _accelerators(problem)
    routes = problem.cluster.routes
    between = np.ix_(at, at)
    apart = ~np.eye(len(at), dtype=bool)
    if not apart.any():
        return 0.0, 0.0
    return float((1.0 / routes.bytes_per_s[between][apart]).mean()), float(routes.latency_s[between][apart].mean())


def _groups(guide: Guide) -> FloatArray:
    """What is known of each group but for the votes: the last two columns are still empty."""
    problem = guide.problem
    count = problem.num_groups
    on_accelerators = _accelerators_s(problem)
    mean_s = on_accelerators.mean(axis=1) + _LEAST_S
    unit_s = float(mean_s.mean())
    accelerators = _accelerators(problem)
    fair_s = float(mean_s.sum()) / len(accelerators)
    per_byte, latency_s = _links(problem)
    sender, reader, size = guide.traffic
    read_bytes, sent_bytes = np.bincount(reader, size, count), np.bincount(sender, size, count)
    up_s, down_s = _ranks(guide, mean_s, per_byte, latency_s)
    longest_s = float((up_s + down_s).max())
    family = problem.groups.family
    members = np.bincount(family)
    in_family = _places(family) / np.maximum(members[family] - 1, 1)
    need, room = group_bytes(problem).astype(np.float64), problem.cluster.memory_bytes[accelerators].astype(np.float64)
    total_s = on_accelerators.sum(axis=0)
    slowest_s = _times_s(problem).max(axis=1)
    op_s = np.nan_to_num(problem.op_time_s[accelerators[0]], posinf=0.0)
    later_s = np.bincount(problem.groups.group_of_op, op_s * (problem.graph.phase > 0), count)
    columns = (
        np.cumsum(mean_s) / mean_s.sum(),
        np.log(mean_s / unit_s + 1e-3) / 4,
        _part_of(sent_bytes * per_byte, mean_s),
        _part_of(read_bytes * per_byte, mean_s),
        mean_s < 1e-6 * unit_s,
        up_s / up_s.max(),
        down_s / longest_s,
        (up_s + down_s) / longest_s,
        np.log1p(np.bincount(sender, minlength=count)) / 4,
        np.log1p(np.bincount(reader, minlength=count)) / 4,
        np.log1p(members[family]) / 4,
        in_family,
        np.bincount(family, mean_s)[family] / mean_s.sum(),
        8 * need / room.mean(),
        _all(count, need.sum() / room.sum()),
        _all(count, need.sum() / room.max() / 2),
        _all(count, len(accelerators) / 8),
        _all(count, np.log(count) / 5),
        _all(count, np.log(size.sum() * per_byte / fair_s + 1e-3) / 4),
        _all(count, np.log(latency_s / unit_s + 1e-3) / 4),
        _all(count, np.log(up_s.max() / fair_s) / 2),
        np.log(slowest_s / mean_s + 1e-3) / 3,
        _all(count, np.log(max(float(total_s.max()), _LEAST_S) / max(float(total_s.min()), _LEAST_S))),
        later_s / (on_accelerators[:, 0] + _LEAST_S),
        problem.allowed.mean(axis=1),
    )
    rows = np.zeros((count, GROUP_FEATURES), dtype=np.float32)
    rows[:, : len(columns)] = np.clip(np.stack(columns, axis=1), -3, 3)
    return rows


def _pairs(guide: Guide) -> FloatArray:
    """What is known of each two groups but for the votes: row 3 is still empty."""
    count = guide.problem.num_groups
    sender, reader, size = guide.traffic
    family = guide.problem.groups.family
    bytes_read = np.zeros((count, count))
    bytes_read[reader, sender] = size
    total = np.maximum((bytes_read + bytes_read.T).sum(axis=1, keepdims=True), 1.0)
    pairs = np.zeros((PAIR_FEATURES, count, count), dtype=np.float32)
    pairs[0], pairs[1] = bytes_read / total, bytes_read.T / total
    pairs[2] = family[:, None] == family[None]
    apart = np.abs(np.arange(count)[:, None] - np.arange(count)[None])
    pairs[4] = 1.0 / (1.0 + apart / 4.0)
    return pairs


def _ranks(
    guide: Guide, mean_s: NDArray[np.float64], per_byte: float, latency_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``float64[G]`` each: the longest path from a group's start to the end, and from the beginning to its start.

    Of tensors between groups those that go forward in the program count; what goes back is their gradients.
    """
    sender, reader, size = guide.traffic
    forward = sender < reader
    edges = np.stack([sender[forward], reader[forward]], axis=1).tolist()
    costs = (latency_s + size[forward] * per_byte).tolist()
    up, down = mean_s.tolist(), [0.0] * len(mean_s)
    own = mean_s.tolist()
    for (a, b), cost in sorted(zip(edges, costs, strict=True), key=lambda edge: -edge[0][0]):
        up[a] = max(up[a], own[a] + cost + up[b])
    for (a, b), cost in sorted(zip(edges, costs, strict=True), key=lambda edge: edge[0][1]):
        down[b] = max(down[b], down[a] + own[a] + cost)
    return np.array(up), np.array(down)


def _places(family: NDArray[np.integer]) -> NDArray[np.float64]:
    """``float64[G]``: how many groups of its family come before each."""
    order = np.argsort(family, kind="stable")
    first = np.searchsorted(family[order], family[order])
    places = np.empty(len(family))
    places[order] = np.arange(len(family)) - first
    return places


def _part_of(value: NDArray[np.floating[Any]], unit: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
    """From 0 to 1, one half at the unit."""
    return value / (value + unit)


def _all(count: int, value: float) -> NDArray[np.float64]:
    """The same for each group."""
    return np.full(count, value)
