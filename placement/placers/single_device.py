"""Everything on one device: the row without which no comparison is honest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions


def all_on(problem: PlacementProblem, device: int) -> NDArray[np.int64]:
    """``int64[G]``: every group on one device; groups that may not be there go to the nearest that they may be on.

    The step's inputs are such groups: they stay on the host's CPU.
    """
    nearest = np.argsort(seconds_per_mebibyte(problem)[device], kind="stable")
    return nearest[problem.allowed[:, nearest].argmax(axis=1)]


def single_device_placements(problem: PlacementProblem) -> list[tuple[str, NDArray[np.int64]]]:
    """A ``(device name, placement)`` for each device, in device order."""
    return [(name, all_on(problem, device)) for device, name in enumerate(problem.cluster.device_names)]


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Try each device; answer the fastest on which everything fits."""
    search = Search(problem, budget)
    names, placements = zip(*single_device_placements(problem), strict=True)
    evaluation = search.evaluate(np.stack(placements))
    cost = evaluation.cost_s()
    if not len(cost) or not np.isfinite(cost).any():
        return search.placed(note="the model fits on no single device")
    return search.placed(note=f"on {names[int(np.argmin(cost))]}")


def seconds_per_mebibyte(problem: PlacementProblem) -> NDArray[np.float64]:
    """``float64[D, D]``: how far apart devices are, as the time of a transfer of 1 MiB; 0 on the diagonal."""
    routes = problem.cluster.routes
    return routes.latency_s + 2**20 / routes.bytes_per_s
