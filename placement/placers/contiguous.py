"""An order of the groups cut into consecutive runs, one a device: a pipeline's stages, without the pipeline.

Two orders are cut: the program order, and (module family, time step), in which an unrolled layer is one stretch. The
first cuts balance time under each device's memory, exactly (the chains-on-chains problem, Pinar and Aykanat, JPDC 2004,
doi:10.1016/j.jpdc.2004.05.003, here by bisection on the bottleneck instead of their dynamic programme, which gives the
same bottleneck in less time). Then the cuts are moved by simulation while that helps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.footprint import group_bytes
from envs.problem import PlacementProblem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.searching.repair import repair

BISECTIONS = 40
ROOM = (1.0, 0.8, 0.6)
"""Shares of the devices' memories within which the first cuts must stay, tried in turn."""

MOST_DEVICES = 16
"""Of a larger cluster only so many of the fastest devices are cut for: each further one costs a search of its own."""


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Cut both orders for one, two, ... of the fastest devices; then move the cuts by simulation."""
    search = Search(problem, budget)
    best_s, note = np.inf, ""
    devices = fastest_devices(problem)[:MOST_DEVICES]
    orders = {"program": problem.groups.program_order, "family": problem.groups.family_order}
    for name, order in orders.items():
        for count in range(1, len(devices) + 1):
            if search.spent:
                break
            _search_cuts(search, order, devices[:count])
            if search.best_s < best_s:
                best_s = search.best_s
                note = f"{name} order cut for {count} device{'s' if count > 1 else ''}"
    if search.best_placement is None:
        repair(search, search.placed().placement)
    return search.placed(note=note)


def fastest_devices(problem: PlacementProblem) -> NDArray[np.int64]:
    """Device indices by the time that all groups together take there, then by index."""
    total_s = np.where(problem.allowed, problem.group_time_s, 0.0).sum(axis=0)
    share = problem.allowed.mean(axis=0)
    # A device that may hold few groups is not fast because their sum is small.
    return np.lexsort((np.arange(problem.num_devices), total_s / np.maximum(share, 1e-12), share < 0.5))


def balanced_cuts(
    problem: PlacementProblem, order: NDArray[np.int64], devices: NDArray[np.int64], *, room: float = 1.0
) -> NDArray[np.int64]:
    """``int64[len(devices) - 1]``: positions in `order` at which the next device begins.

    The largest sum of group times on a device is the least possible for runs in this order, within a share `room` of
    each memory by estimate. Where no cut fits, the last device takes what is left.
    """
    free = problem.allowed[order].sum(axis=1) > 1
    time_s = np.where(free[:, None], problem.group_time_s[order][:, devices], 0.0)  # [G, devices]
    load_s = np.concatenate([np.zeros((1, len(devices))), np.cumsum(time_s, axis=0)])
    held = np.concatenate([[0.0], np.cumsum(np.where(free, group_bytes(problem)[order], 0.0))])
    memory = problem.cluster.memory_bytes[devices] * room

    def cut(limit_s: float) -> tuple[NDArray[np.int64], bool]:
        ends, position = [], 0
        for i in range(len(devices)):
            in_time = int(np.searchsorted(load_s[:, i], load_s[position, i] + limit_s * (1 + 1e-12), side="right")) - 1
            in_memory = int(np.searchsorted(held, held[position] + memory[i], side="right")) - 1
            position = max(position, min(in_time, in_memory))
            ends.append(position)
        return np.array(ends[:-1], dtype=np.int64), position == len(order)

    high = float(load_s[-1].max())
    cuts, fits = cut(high)
    if not fits:
        return cuts
    low = 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        tried, fits = cut(middle)
        if fits:
            high, cuts = middle, tried
        else:
            low = middle
    return cuts


def from_cuts(
    problem: PlacementProblem, order: NDArray[np.int64], devices: NDArray[np.int64], cuts: NDArray[np.int64]
) -> NDArray[np.int64]:
    """``int64[G]``: the placement of runs; a group that may not be where its run is goes to the first device it may."""
    run = np.searchsorted(cuts, np.arange(len(order)), side="right")
    placement = np.empty(len(order), dtype=np.int64)
    placement[order] = devices[run]
    wrong = ~problem.allowed[np.arange(len(order)), placement]
    placement[wrong] = problem.allowed[wrong].argmax(axis=1)
    return placement


def _search_cuts(search: Search, order: NDArray[np.int64], devices: NDArray[np.int64]) -> None:
    """Move each cut to and fro by ever smaller steps while the simulated step time falls."""
    problem = search.problem
    starts = np.unique([balanced_cuts(problem, order, devices, room=room) for room in ROOM], axis=0)
    best, best_s = _best(search, order, devices, starts)
    step = max(len(order) // 8, 1)
    while best is not None and not search.spent:
        moved = []
        for i in range(len(best)):
            for shift in (-step, step):
                # One cut alone, or all cuts from here on together.
                for last in sorted({i + 1, len(best)}):
                    cuts = best.copy()
                    cuts[i:last] += shift
                    moved.append(np.clip(np.maximum.accumulate(cuts), 0, len(order)))
        tried, tried_s = _best(search, order, devices, np.array(moved), below_s=best_s) if moved else (None, np.inf)
        if tried is not None and tried_s < best_s:
            best, best_s = tried, tried_s
        elif step == 1:
            return
        else:
            step //= 2


def _best(
    search: Search,
    order: NDArray[np.int64],
    devices: NDArray[np.int64],
    cuts: NDArray[np.int64],
    *,
    below_s: float | None = None,
) -> tuple[NDArray[np.int64] | None, float]:
    """The best of several cuts ``int64[B, C]`` and its cost; (None, inf) where the budget allows no evaluation.

    Cuts that cost more than `below_s` may be given as infinitely bad.
    """
    placements = np.stack([from_cuts(search.problem, order, devices, row) for row in cuts])
    cost = search.charged_s(search.evaluate(placements, abort_above_s=below_s))
    if not len(cost):
        return None, np.inf
    at = int(cost.argmin())
    return cuts[at], float(cost[at])
