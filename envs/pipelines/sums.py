"""Gradients that several ranks of a pipeline sum up: those of replicas, and those of tied weights.

They go around a ring of the ranks' devices, as `graphs.replicate` has it: each rank sends ``2 (k - 1) / k`` of the
bytes to the next one, in ``2 (k - 1)`` rounds. A round lasts as long as its slowest transfer, or as the transfers that
share a direction of a link, one after another. A sum begins when every rank has its part and all links of the ring are
free, and occupies them until it ends; sums begin in the order in which they are ready. Activations that are under way
meanwhile are not counted, which only makes a sum faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.clusters.routes import Routes


@dataclass(frozen=True)
class Sum:
    """One sum.

    Attributes:
        stages: One stage on each of the ranks that take part, in the order of the ring.
        bytes: Of each rank's part.
        early_s: For each of them how long before the end of the stage's last action its part is there; None where a
            rank begins only after the last of all its actions.
    """

    stages: tuple[int, ...]
    bytes: int
    early_s: tuple[float, ...] | None = None


def end_of_sums_s(
    sums: Sequence[Sum],
    routes: Routes,
    device_of_rank: NDArray[np.int32],
    rank_of_stage: NDArray[np.int32],
    free_s: NDArray[np.float64],
    last_s: NDArray[np.float64],
) -> NDArray[np.float64]:
    """``float64[P]``: when each rank has done its actions and has all sums.

    Args:
        sums: Of the step.
        routes: Of the cluster.
        device_of_rank: ``int32[P]``.
        rank_of_stage: ``int32[S]``.
        free_s: ``float64[P]``, the end of each rank's last action.
        last_s: ``float64[S]``, the end of each stage's last action.
    """
    ends_s = free_s.copy()
    ready: list[tuple[float, int]] = []
    for number, one in enumerate(sums):
        if one.early_s is None:
            ready.append((max(float(free_s[rank_of_stage[s]]) for s in one.stages), number))
        else:
            ready.append((max(float(last_s[s]) - e for s, e in zip(one.stages, one.early_s, strict=True)), number))
    link_free_s: dict[int, float] = {}
    for ready_s, number in sorted(ready):
        ranks = [int(rank_of_stage[s]) for s in sums[number].stages]
        lasts_s, crossed = ring_s(routes, [int(device_of_rank[rank]) for rank in ranks], sums[number].bytes)
        end_s = max([ready_s, *(link_free_s.get(direction, 0.0) for direction in crossed)]) + lasts_s
        for direction in crossed:
            link_free_s[direction] = end_s
        for rank in ranks:
            ends_s[rank] = max(ends_s[rank], end_s)
    return ends_s


def ring_s(routes: Routes, devices: Sequence[int], size: int) -> tuple[float, list[int]]:
    """The seconds that a sum over a ring of devices takes, and the directions of links that it crosses."""
    count = len(devices)
    round_s, crossed_s = 0.0, dict[int, float]()
    for a, b in zip(devices, [*devices[1:], devices[0]], strict=True):
        hop_s = float(routes.latency_s[a, b]) + size / count / float(routes.bytes_per_s[a, b])
        round_s = max(round_s, hop_s)
        begin, end = (int(routes.offsets[a * len(routes.latency_s) + b + i]) for i in (0, 1))
        for direction in routes.directions[begin:end].tolist():
            crossed_s[direction] = crossed_s.get(direction, 0.0) + hop_s
    return 2 * (count - 1) * max([round_s, *crossed_s.values()]), list(crossed_s)
