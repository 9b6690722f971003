"""Moving groups off devices that overflow, until a placement fits.

Every heuristic here ends with it: a heuristic chooses by speed, and memory decides whether its choice counts.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.footprint import group_bytes
from envs.problem import PlacementProblem
from placement.placers.base import Search

BULK_ROUNDS = 8
STEPS = 64
CANDIDATES = 64
"""Moves tried for each step of the descent."""

MOST_PLACEMENTS = 4096
"""So many placements are all tried, where nothing else finds one that fits."""

SCATTERED = 4
"""Descents from random placements, where nothing else finds one that fits."""


def repair(search: Search, placement: NDArray[np.int64]) -> bool:
    """Evaluate a placement, and where it does not fit move groups off the devices that overflow.

    First many groups at once, by estimated bytes, in rounds that leave ever more room: to where each group is quickest
    among the devices that have room, and where these rounds do not end with what fits, to where most room is. Then one
    group at a time, each time the move after which the least memory is missing (the faster where several are equal);
    at last other starts. The search keeps the best placement that was seen.

    Args:
        search: What evaluates, counts and keeps the best.
        placement: ``int64[G]``.

    Returns:
        True where a placement that fits was found.
    """
    evaluation = search.evaluate(placement[None])
    if evaluation.feasible.any():
        return True
    moved = placement
    for quickest in (True, False):
        moved, fits = _rounds(search, placement, evaluation, quickest=quickest)
        if fits:
            return True
        if search.spent:
            return False
    if _descend(search, moved) or _descend(search, placement):
        return True
    return _try_all(search, placement) or _scatter(search)


def _rounds(
    search: Search, placement: NDArray[np.int64], evaluation: Evaluation, *, quickest: bool
) -> tuple[NDArray[np.int64], bool]:
    """Move many groups at once until the placement fits, or no round changes it; where that ended, and whether it fits.

    Args:
        search: What evaluates.
        placement: ``int64[G]``, which does not fit.
        evaluation: Its evaluation.
        quickest: As of `_bulk`.
    """
    for attempt in range(BULK_ROUNDS):
        if not len(evaluation.feasible) or search.spent:
            break
        if evaluation.feasible[0]:
            return placement, True
        margin = 1.0 - 0.06 * (attempt + 1)
        moved = _bulk(search.problem, placement, evaluation, margin=margin, quickest=quickest)
        if np.array_equal(moved, placement):
            break
        placement = moved
        evaluation = search.evaluate(placement[None])
    return placement, bool(evaluation.feasible.any())


def _bulk(
    problem: PlacementProblem,
    placement: NDArray[np.int64],
    evaluation: Evaluation,
    *,
    margin: float,
    quickest: bool,
) -> NDArray[np.int64]:
    """Move the last groups (in family order) of each device that overflows.

    Args:
        problem: The problem.
        placement: ``int64[G]``.
        evaluation: Its evaluation.
        margin: Share of each memory that may be filled.
        quickest: True where a group goes to the device that computes it soonest of those that have room, the roomiest
            of equals; False where it goes to the roomiest of all.
    """
    memory = _limits(problem, evaluation.peak_memory_bytes[0])
    estimate = group_bytes(problem).astype(np.float64)
    held = np.bincount(placement, estimate, problem.num_devices)
    # What the estimate misses on a device is taken to be in proportion to what it sees.
    peak = evaluation.peak_memory_bytes[0].astype(np.float64)
    scale = np.where(held > 0, peak / np.maximum(held, 1.0), 1.0)
    used = peak.copy()
    moved = placement.copy()
    for device in np.argsort(memory - peak):
        if peak[device] <= memory[device]:
            continue
        for group in problem.groups.family_order[::-1]:
            if used[device] <= memory[device] * margin:
                break
            if moved[group] != device or placement[group] != device or estimate[group] == 0:
                continue
            size = estimate[group] * max(scale[device], 1.0)
            room = np.where(problem.allowed[group], memory * margin - used, -np.inf)
            room[device] = -np.inf
            if quickest:
                time_s = np.where(room >= size, problem.group_time_s[group], np.inf)
                room[time_s > time_s.min()] = -np.inf
            target = int(room.argmax())
            if room[target] < size:
                continue
            moved[group] = target
            used[device] -= size
            used[target] += size
    return moved


def _limits(problem: PlacementProblem, peak_memory_bytes: NDArray[np.int64]) -> NDArray[np.float64]:
    """``float64[D]``: what each device is to keep within: its memory, or its part of a shared one that is short."""
    cluster = problem.cluster
    limits = cluster.memory_bytes.astype(np.float64)
    for number, shared in enumerate(cluster.shared_memories):
        members = np.flatnonzero(cluster.shared_by == number)
        used = float(peak_memory_bytes[members].sum())
        if used > shared.memory_bytes:
            limits[members] = np.minimum(limits[members], peak_memory_bytes[members] * (shared.memory_bytes / used))
    return limits


def _descend(search: Search, placement: NDArray[np.int64]) -> bool:
    """Steepest descent on the bytes that are missing."""
    problem = search.problem
    evaluation = search.evaluate(placement[None])
    if not len(evaluation.feasible):
        return False
    missing = _missing_bytes(problem, evaluation)[0]
    estimate = group_bytes(problem)
    for _ in range(STEPS):
        if evaluation.feasible[0]:
            return True
        over = evaluation.peak_memory_bytes[0] - _limits(problem, evaluation.peak_memory_bytes[0])
        moves = _moves(problem, placement, over, estimate)
        if search.spent or not len(moves):
            return False
        batch = np.repeat(placement[None], len(moves), axis=0)
        batch[np.arange(len(moves)), moves[:, 0]] = moves[:, 1]
        tried = search.evaluate(batch)
        if not len(tried.feasible):
            return False
        after = _missing_bytes(problem, tried)
        best = int(np.lexsort((tried.step_time_s, after))[0])
        if after[best] >= missing:
            return False
        placement, missing = batch[best], after[best]
        evaluation = Evaluation(
            tried.step_time_s[best : best + 1],
            tried.peak_memory_bytes[best : best + 1],
            tried.feasible[best : best + 1],
        )
    return bool(evaluation.feasible[0])


def _try_all(search: Search, placement: NDArray[np.int64]) -> bool:
    """Where there are few placements, all of them, those that move the fewest groups first, until one fits."""
    problem = search.problem
    choices = [np.flatnonzero(row) for row in problem.allowed]
    if math.prod(len(c) for c in choices) > MOST_PLACEMENTS:
        return False
    every = np.stack([axis.ravel() for axis in np.meshgrid(*choices, indexing="ij")], axis=1)
    every = every[np.argsort((every != placement).sum(axis=1), kind="stable")]
    return any(
        not search.spent and search.evaluate(every[i : i + CANDIDATES]).feasible.any()
        for i in range(0, len(every), CANDIDATES)
    )


def _scatter(search: Search) -> bool:
    """Descend from random placements; a fixed seed, because a heuristic's answer must not hang on chance."""
    rng = np.random.default_rng(0)
    allowed = search.problem.allowed
    for _ in range(SCATTERED):
        if search.spent:
            return False
        if _descend(search, np.where(allowed, rng.random(allowed.shape), -1.0).argmax(axis=1)):
            return True
    return False


def _moves(
    problem: PlacementProblem, placement: NDArray[np.int64], over: NDArray[np.float64], estimate: NDArray[np.int64]
) -> NDArray[np.int64]:
    """``int64[M, 2]`` of (group, device): the largest groups of the worst device to each device, roomiest first."""
    worst = int(over.argmax())
    groups = np.flatnonzero(placement == worst)
    groups = groups[np.argsort(-estimate[groups], kind="stable")]
    targets = [d for d in np.argsort(over, kind="stable") if d != worst]
    moves = [(g, d) for g in groups for d in targets if problem.allowed[g, d]]
    return np.array(moves[:CANDIDATES], dtype=np.int64).reshape(-1, 2)


def _missing_bytes(problem: PlacementProblem, evaluation: Evaluation) -> NDArray[np.int64]:
    """``int64[B]``: bytes that all memories, of devices and shared, are short of."""
    return problem.cluster.memories.lacking(evaluation.peak_memory_bytes).sum(axis=1)
