"""MinCut: METIS cuts the graph of groups into one part an accelerator, with equal work and few bytes across.

Karypis and Kumar, "A fast and high quality multilevel scheme for partitioning irregular graphs", SIAM Journal on
Scientific Computing 20(1), 1998, doi:10.1137/S1064827595287997. The paper's "MinCut" leaves the CPU out, too
(Mirhoseini et al., 2017). Parts are as large as their accelerator is fast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.extras import check_extra
from placement.placers.affinity import exchanged_bytes
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.searching.repair import repair
from placement.placers.single_device import all_on

TOTAL_WEIGHT = 10_000_000
"""Partitioners count in 32-bit integers, so times and bytes are scaled until they add up to about this."""


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Partition the groups that may be on an accelerator; groups that may not stay where they must.

    Raises:
        NotServedError: PyMetis is not installed.
    """
    search = Search(problem, budget)
    devices = np.array([i for i, d in enumerate(problem.cluster.devices) if d.spec.kind != "cpu"], dtype=np.int64)
    if len(devices) == 0:
        devices = np.arange(problem.num_devices)
    # A group that may be on some accelerators only is cut like the others and repaired below.
    cut = np.flatnonzero(problem.allowed[:, devices].any(axis=1))
    placement = all_on(problem, int(devices[0]))
    parts = _metis(problem, cut, devices)
    for part, device in enumerate(devices):
        placement[cut[parts == part]] = all_on(problem, int(device))[cut[parts == part]]
    repair(search, placement)
    return search.placed()


def integer_weights(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Weights of at least 1 in proportion to the values."""
    return np.maximum(np.rint(values / max(float(values.sum()), 1e-300) * TOTAL_WEIGHT), 1).astype(np.int64)


def subgraph(
    problem: PlacementProblem, members: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The undirected graph of some groups as ``(offsets, neighbours, edge weights)``, each edge in both directions."""
    number = np.full(problem.num_groups, -1, dtype=np.int64)
    number[members] = np.arange(len(members))
    a, b, size = exchanged_bytes(problem)
    a, b = number[a], number[b]
    inside = (a >= 0) & (b >= 0)
    a, b, weight = a[inside], b[inside], integer_weights(size[inside])
    ends = np.stack([np.concatenate([a, b]), np.concatenate([b, a])])
    order = np.lexsort((ends[1], ends[0]))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(ends[0], minlength=len(members)))]).astype(np.int64)
    return offsets, ends[1][order], np.concatenate([weight, weight])[order]


def _metis(problem: PlacementProblem, members: NDArray[np.int64], devices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The part of each member."""
    check_extra("placer 'mincut'", module="pymetis", package="PyMetis", extra="partitioners")
    import pymetis

    if len(devices) == 1:
        return np.zeros(len(members), dtype=np.int64)
    if len(members) <= len(devices):
        return np.arange(len(members))
    times = problem.group_time_s[members][:, devices]
    speed = 1.0 / np.maximum(times.sum(axis=0), 1e-300)
    offsets, neighbours, weights = subgraph(problem, members)
    _, parts = pymetis.part_graph(
        len(devices),
        pymetis.CSRAdjacency(offsets.tolist(), neighbours.tolist()),
        eweights=weights.tolist(),
        vweights=integer_weights(times.mean(axis=1)).tolist(),
        tpwgts=(speed / speed.sum()).tolist(),
    )
    return np.array(parts, dtype=np.int64)
