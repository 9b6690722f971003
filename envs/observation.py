"""What the Gymnasium environments show of a placement problem, as numbers from 0 to 1.

Letters: ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem

_SCALARS = ("progress", "num_ops", "resident", "reads_unplaced", "sends_unplaced")
_PER_DEVICE = ("time", "allowed", "reads_from", "sends_to", "load", "memory", "last_device")
_STATIC_SCALARS = ("num_ops", "resident", "reads", "sends")
_STATIC_PER_DEVICE = ("time", "allowed")


def fields(num_devices: int) -> dict[str, slice]:
    """Where each field stands in the observation of `DevicePlacement-v0`; see that environment for their meaning."""
    return _layout(_SCALARS, _PER_DEVICE, num_devices)


def static_fields(num_devices: int) -> dict[str, slice]:
    """Where each field stands in one group's row of the observation of `DevicePlacementOneShot-v0`."""
    return _layout(_STATIC_SCALARS, _STATIC_PER_DEVICE, num_devices)


def _layout(scalars: tuple[str, ...], per_device: tuple[str, ...], num_devices: int) -> dict[str, slice]:
    layout = {name: slice(i, i + 1) for i, name in enumerate(scalars)}
    for i, name in enumerate(per_device):
        start = len(scalars) + i * num_devices
        layout[name] = slice(start, start + num_devices)
    return layout


@dataclass(frozen=True, eq=False)
class Observer:
    """Turns a problem and the part of a placement that is known into observations.

    Attributes:
        problem: What is placed.
    """

    problem: PlacementProblem

    @property
    def size(self) -> int:
        """Length of an observation of `DevicePlacement-v0`."""
        return len(_SCALARS) + len(_PER_DEVICE) * self.problem.num_devices

    @cached_property
    def traffic(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Bytes that flow between groups, as triples (sender, reader, bytes), sorted by sender, then reader.

        A tensor counts once for each other group that reads it.
        """
        graph, group = self.problem.graph, self.problem.groups.group_of_op.astype(np.int64)
        count = self.problem.num_groups
        sender, reader = group[graph.edge_producer], group[graph.consumers]
        between = sender != reader
        once = np.unique(graph.edge_tensor[between].astype(np.int64) * count + reader[between])
        tensor, reader = once // count, once % count
        sender = group[graph.tensor_producer[tensor]]
        pair, inverse = np.unique(sender * count + reader, return_inverse=True)
        size = np.bincount(inverse, graph.weighed_bytes[tensor].astype(np.float64), len(pair))
        return pair // count, pair % count, size.astype(np.float64)

    @cached_property
    def _sends(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """For each group, the groups that read from it and the bytes that each reads."""
        sender, reader, size = self.traffic
        return _rows(sender, reader, size, self.problem.num_groups)

    @cached_property
    def _reads(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """For each group, the groups that it reads from and the bytes that it reads from each."""
        sender, reader, size = self.traffic
        order = np.argsort(reader, kind="stable")
        return _rows(reader[order], sender[order], size[order], self.problem.num_groups)

    @cached_property
    def static(self) -> NDArray[np.float32]:
        """``float32[G, 4 + 2 D]``: what is known of each group before anything is placed; see `static_fields`."""
        problem, at = self.problem, static_fields(self.problem.num_devices)
        sender, reader, size = self.traffic
        rows = np.zeros((problem.num_groups, len(_STATIC_SCALARS) + 2 * problem.num_devices))
        rows[:, at["num_ops"]] = _share(np.bincount(problem.groups.group_of_op))[:, None]
        rows[:, at["resident"]] = _of(problem.group_resident_bytes, problem.cluster.memory_bytes.max())[:, None]
        rows[:, at["reads"]] = _share(np.bincount(reader, size, problem.num_groups))[:, None]
        rows[:, at["sends"]] = _share(np.bincount(sender, size, problem.num_groups))[:, None]
        rows[:, at["time"]] = _share(np.where(problem.allowed, problem.group_time_s, 0))
        rows[:, at["allowed"]] = problem.allowed
        return rows.astype(np.float32)

    @cached_property
    def _fair_load_s(self) -> float:
        """Each device's share of the work if every group ran on its fastest device."""
        fastest = np.where(self.problem.allowed, self.problem.group_time_s, np.inf).min(axis=1)
        return float(fastest.sum()) / self.problem.num_devices

    def observe(self, placement: NDArray[np.integer], group: int) -> NDArray[np.float32]:
        """The observation when groups before `group` are placed and `group` is next.

        Args:
            placement: ``int[G]``, device indices; entries from `group` on are not read.
            group: From 0 to ``G``; ``G`` when all are placed, and then the fields of a group are 0.

        Returns:
            ``float32[5 + 7 D]``, all from 0 to 1; see `fields`.
        """
        problem, count = self.problem, self.problem.num_devices
        at, static_at = fields(count), static_fields(count)
        view = np.zeros(self.size)
        placed = placement[:group]
        view[at["progress"]] = group / problem.num_groups
        load_s = np.bincount(placed, problem.group_time_s[np.arange(group), placed], count).astype(np.float64)
        view[at["load"]] = _squash(load_s, self._fair_load_s)
        resident = np.bincount(placed, problem.group_resident_bytes[:group], count)
        view[at["memory"]] = _of(resident, problem.cluster.memory_bytes)
        if group > 0:
            view[at["last_device"].start + placed[-1]] = 1
        if group == problem.num_groups:
            return view.astype(np.float32)
        for name in ("num_ops", "resident", "time", "allowed"):
            view[at[name]] = self.static[group, static_at[name]]
        reads, sends = self._reads[group], self._sends[group]
        total = max(float(reads[1].sum() + sends[1].sum()), 1.0)
        for (others, size), there, elsewhere in (
            (reads, "reads_from", "reads_unplaced"),
            (sends, "sends_to", "sends_unplaced"),
        ):
            known = others < group
            view[at[there]] = np.bincount(placed[others[known]], size[known], count) / total
            view[at[elsewhere]] = size[~known].sum() / total
        return view.clip(0, 1).astype(np.float32)


def _rows(
    key: NDArray[np.int64], other: NDArray[np.int64], size: NDArray[np.float64], count: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Split columns that are sorted by `key` into one pair of columns for each key from 0 to `count`."""
    starts = np.searchsorted(key, np.arange(1, count))
    return list(zip(np.split(other, starts), np.split(size, starts), strict=True))


def _share(values: NDArray[np.number]) -> NDArray[np.float64]:
    """Values as a share of the largest, or 0 where all are 0."""
    return values.astype(np.float64) / max(float(values.max(initial=0)), np.finfo(float).tiny)


def _of(values: NDArray[np.number], whole: NDArray[np.number] | np.number) -> NDArray[np.float64]:
    """Values as a share of `whole`, at most 1; a whole of 0 counts as 1 byte."""
    return np.minimum(values.astype(np.float64) / np.maximum(whole, 1), 1.0)


def _squash(values: NDArray[np.float64], unit: float) -> NDArray[np.float64]:
    """From 0 to 1, one half at `unit`."""
    return values / np.maximum(values + unit, np.finfo(float).tiny)
