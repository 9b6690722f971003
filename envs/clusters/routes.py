"""Routes between devices: the ways that take a typical tensor the least time.

A route that crosses some links takes the sum of their latencies plus bytes by the smallest of their bandwidths. That is
not a sum over links, so Dijkstra's algorithm alone does not find the quickest: a part of a quickest route need not be
the quickest itself. What it is, is that no other way is both as wide and of less latency, so those ways are followed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

TYPICAL_BYTES = 2**18
"""Size of the tensor whose time a route minimises, 256 KiB; one route for all sizes keeps transfers in order.

Activations and gradients of a layer are of this size and larger. Were it much larger, a GPU's copy to a neighbour with
one NVLink would be forwarded over two others that are twice as wide, which no driver does."""


@dataclass(frozen=True, eq=False)
class Routes:
    """The routes of all pairs of devices, as arrays for the simulator.

    Attributes:
        latency_s: ``float64[D, D]``, sum over the route's links; 0 on the diagonal.
        bytes_per_s: ``float64[D, D]``, smallest over the route's links; infinite on the diagonal.
        offsets: ``int32[D * D + 1]``; the route from device ``i`` to ``j`` crosses the link directions
            ``directions[offsets[i * D + j]:offsets[i * D + j + 1]]``.
        directions: ``int32[...]``, numbers of link directions.
        receiver_copies: ``bool[D, D]``, True where the device that receives copies the bytes itself.
    """

    latency_s: NDArray[np.float64]
    bytes_per_s: NDArray[np.float64]
    offsets: NDArray[np.int32]
    directions: NDArray[np.int32]
    receiver_copies: NDArray[np.bool_]


@dataclass(frozen=True)
class Direction:
    """One direction of a link: the vertices it leads from and to, by number, its figures, and who moves the bytes."""

    origin: int
    end: int
    bytes_per_s: float
    latency_s: float
    receiver_copies: bool = False


def find_routes(num_devices: int, num_vertices: int, directions: Sequence[Direction]) -> Routes:
    """The quickest routes of `TYPICAL_BYTES` between all pairs of devices.

    Of equally quick routes the one of fewer links counts; what is equal in that too is decided by the numbers of the
    links. Names play no part.

    Args:
        num_devices: ``D``; devices are the vertices 0 to ``D - 1``.
        num_vertices: Devices and switches.
        directions: By number; every device must reach every other.
    """
    search = _Search(num_vertices, directions)
    paths = [search.to(target, num_devices) for target in range(num_devices)]
    latency = np.zeros((num_devices, num_devices))
    bandwidth = np.full((num_devices, num_devices), np.inf)
    receiver_copies = np.zeros((num_devices, num_devices), dtype=np.bool_)
    offsets, crossed = [0], list[int]()
    for i in range(num_devices):
        for j in range(num_devices):
            if i != j:
                path = paths[j][i]
                crossed += path
                # `fsum`: the sum must not hang on the direction in which the links are crossed.
                latency[i, j] = math.fsum(directions[d].latency_s for d in path)
                bandwidth[i, j] = min(directions[d].bytes_per_s for d in path)
                receiver_copies[i, j] = directions[path[-1]].receiver_copies
            offsets.append(len(crossed))
    numbers = np.array(offsets, dtype=np.int32), np.array(crossed, dtype=np.int32)
    return Routes(latency, bandwidth, *numbers, receiver_copies)


@dataclass(frozen=True)
class _Way:
    """A way from some vertex to the target.

    Attributes:
        latency: Exact, in `_Search.unit`.
        links: How many it crosses.
        bytes_per_s: Of the narrowest of them.
        direction: The first that it crosses; -1 at the target itself.
        rest: The way from the end of that; None at the target itself.
    """

    latency: int
    links: int
    bytes_per_s: float
    direction: int
    rest: _Way | None


class _Search:
    """Dijkstra's algorithm from a target backwards, with more than one way kept where neither is sure to be better.

    Ways to a vertex are met in the order of their latency. A later one is kept only if it is wider than all before it,
    and if its latency is less than the whole time of the best. Sums are exact: equally long ways compare equal.
    """

    def __init__(self, num_vertices: int, directions: Sequence[Direction]) -> None:
        self.directions = directions
        ratios = [float(d.latency_s).as_integer_ratio() for d in directions]
        self.unit = max((denominator for _, denominator in ratios), default=1)  # a power of two, as all of them are
        self.into: list[list[tuple[int, int, int, float]]] = [[] for _ in range(num_vertices)]
        for number, (direction, (numerator, denominator)) in enumerate(zip(directions, ratios, strict=True)):
            latency = numerator * (self.unit // denominator)
            self.into[direction.end].append((direction.origin, number, latency, float(direction.bytes_per_s)))

    def to(self, target: int, num_devices: int) -> list[list[int]]:
        """The directions that the quickest route from each device to `target` crosses."""
        kept = self._ways(target)
        paths: list[list[int]] = []
        for device in range(num_devices):
            way = None if device == target else self._best(kept[device])
            paths.append([])
            while way is not None and way.rest is not None:
                paths[-1].append(way.direction)
                way = way.rest
        return paths

    def _ways(self, target: int) -> list[list[_Way]]:
        """For each vertex the ways to `target` that may be the quickest, or the rest of a quickest one."""
        count = len(self.into)
        kept: list[list[_Way]] = [[] for _ in range(count)]
        within_s = [math.inf] * count  # the whole time of the best way so far
        nearest: list[tuple[int, int, float]] = [(-1, 0, 0.0)] * count  # of what waits: the least in the queue's order
        # No two entries are equal up to the number of their direction and of their rest.
        queue: list[tuple[int, int, float, int, int, int, _Way | None]] = [(0, 0, -math.inf, -1, 0, target, None)]
        order = 0
        while queue:
            latency, links, narrowness, number, _, vertex, rest = heapq.heappop(queue)
            ways = kept[vertex]
            if ways and (-narrowness <= ways[-1].bytes_per_s or latency / self.unit > within_s[vertex]):
                continue
            way = _Way(latency, links, -narrowness, number, rest)
            ways.append(way)
            within_s[vertex] = min(within_s[vertex], self._seconds(way) * _SURE)
            for origin, direction, more, wide in self.into[vertex]:
                width = min(wide, -narrowness)
                known = kept[origin]
                if known and width <= known[-1].bytes_per_s:
                    continue
                candidate = (latency + more, links + 1, -width)
                waiting = nearest[origin]
                if waiting[0] >= 0 and waiting < candidate and waiting[2] <= -width:
                    continue
                if waiting[0] < 0 or candidate < waiting:
                    nearest[origin] = candidate
                order += 1
                heapq.heappush(queue, (*candidate, direction, order, origin, way))
        return kept

    def _best(self, ways: Sequence[_Way]) -> _Way:
        """The quickest; of equally quick ones that of fewer links, then the one of less latency."""
        least_s = min(self._seconds(way) for way in ways)
        near = [way for way in ways if self._seconds(way) <= least_s * _SURE]
        if len(near) == 1:
            return near[0]
        return min(near, key=lambda way: (self._exact_seconds(way), way.links, way.latency))

    def _seconds(self, way: _Way) -> float:
        return way.latency / self.unit + TYPICAL_BYTES / way.bytes_per_s

    def _exact_seconds(self, way: _Way) -> Fraction:
        return Fraction(way.latency, self.unit) + TYPICAL_BYTES / Fraction(way.bytes_per_s)


_SURE = 1 + 1e-12
"""Seconds that differ by more than this factor differ in truth, whatever was rounded."""
