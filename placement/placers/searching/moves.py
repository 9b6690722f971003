"""Moves of the searches: small changes of a placement that keep to what is allowed; coarse first, then fine.

Letters: ``G`` groups, ``U`` units (groups that move as one), ``D`` devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.colocation.coarsening import coarsen
from graphs.colocation.groups import Groups

KINDS = ("single", "run", "swap", "boundary")
SHARES = (0.45, 0.40, 0.10, 0.05)
"""How often each kind of move is proposed, see `Moves.propose`."""

STAGES = ((8, 0.1), (16, 0.1), (32, 0.15), (64, 0.15), (128, 0.2))
"""``(wanted units, share of the budget)`` of the coarse stages of a search, see `coarse_to_fine`. Measured against
one stage of 32 units, 60,000 evaluations: steps of NMT on four GPUs are 3 to 5% shorter, of others about the same."""

LONGEST_RUN = 64
FURTHEST_SHIFT = 8


@dataclass(frozen=True, eq=False)
class Units:
    """Groups that move as one, so that a search can be coarse first and fine later.

    Attributes:
        unit_of_group: ``int64[G]``.
        orders: Orders ``int64[U]`` in which neighbours belong together: by program, and by (family, time step).
        allowed: ``bool[U, D]``, where every group of the unit may be.
    """

    unit_of_group: NDArray[np.int64]
    orders: tuple[NDArray[np.int64], ...]
    allowed: NDArray[np.bool_]

    @cached_property
    def movable(self) -> NDArray[np.int64]:
        """The units that may be on more than one device."""
        return np.flatnonzero(self.allowed.sum(axis=1) > 1)

    @cached_property
    def choices(self) -> list[NDArray[np.int64]]:
        """For each unit the devices that it may be on."""
        return [np.flatnonzero(row) for row in self.allowed]

    def to_groups(self, unit_placement: NDArray[np.integer]) -> NDArray[np.int64]:
        """``int64[..., G]`` from ``int64[..., U]``."""
        return np.asarray(unit_placement, dtype=np.int64)[..., self.unit_of_group]

    def of_parts(self, groups: Groups, parts: Groups) -> Units:
        """The same units of finer groups: each part is in the unit of the group that it is a part of."""
        return Units(self.unit_of_group[groups.group_of_op[first_ops(parts)]], self.orders, self.allowed)

    def from_groups(self, placement: NDArray[np.int64]) -> NDArray[np.int64]:
        """``int64[U]`` from ``int64[G]``: where most groups of each unit are."""
        votes = np.zeros(self.allowed.shape)
        np.add.at(votes, (self.unit_of_group, placement), 1.0)
        return np.where(self.allowed, votes, -1.0).argmax(axis=1)


def first_ops(groups: Groups) -> NDArray[np.int64]:
    """``int64[G]``: the first op of each group."""
    first: NDArray[np.int64] = np.unique(groups.group_of_op, return_index=True)[1]
    return first


def single_units(problem: PlacementProblem) -> Units:
    """Every group a unit."""
    groups = problem.groups
    return Units(np.arange(groups.num_groups), (groups.program_order, groups.family_order), problem.allowed)


def coarse_units(problem: PlacementProblem, wanted: int) -> Units:
    """At most `wanted` units, where the devices that groups may be on allow it; time steps merge first.

    `coarsening.coarsen` says which groups belong together.
    """
    coarse = problem.part(coarsen(problem.graph, problem.groups, wanted), by_group=True)
    unit_of_group = coarse.group_of_op[first_ops(problem.groups)].astype(np.int64)
    allowed = np.ones((coarse.num_groups, problem.num_devices), dtype=np.bool_)
    np.logical_and.at(allowed, unit_of_group, problem.allowed)
    return Units(unit_of_group, (coarse.program_order, coarse.family_order), allowed)


def coarse_to_fine(problem: PlacementProblem, stages: Sequence[tuple[int, float]]) -> list[tuple[Units, float]]:
    """Units from coarse to fine, each with the share of what is left of the budget that its stage may use.

    Args:
        problem: The problem.
        stages: ``(wanted units, share of the budget)``; single groups take the rest. Stages that would merge fewer
            than half of the groups are left out.
    """
    found = []
    left = 1.0
    for wanted, share in stages:
        if wanted < problem.num_groups / 2:
            found.append((coarse_units(problem, wanted), share / left))
            left -= share
    return [*found, (single_units(problem), 1.0)]


class Moves:
    """Draws moves of units; the only state is the random generator's."""

    def __init__(self, units: Units, rng: np.random.Generator) -> None:
        self.units = units
        self.rng = rng
        self._thresholds = np.cumsum(SHARES)
        pinned = np.ones(len(units.allowed), dtype=np.bool_)
        pinned[units.movable] = False
        self._orders = [order[~pinned[order]] for order in units.orders]

    def scatter(self) -> NDArray[np.int64]:
        """``int64[U]``: a random placement."""
        key = self.rng.random(self.units.allowed.shape)
        return np.where(self.units.allowed, key, -1.0).argmax(axis=1)

    def propose(self, placement: NDArray[np.int64]) -> NDArray[np.int64]:
        """A changed copy of ``int64[U]``; equal to it only where nothing can move.

        A single unit; a run of 2 to 64 consecutive units of one order, all to one device; a swap of the devices of two
        units; a boundary between two runs, moved by up to 8 units.
        """
        rng = self.rng
        movable = self.units.movable
        if len(movable) == 0:
            return placement.copy()
        for _ in range(4):
            kind = int(np.searchsorted(self._thresholds, rng.random()))
            moved = placement.copy()
            if kind == 1 and len(movable) > 2:
                self._run(moved)
            elif kind == 2 and len(movable) > 1:
                self._swap(moved)
            elif kind >= 3:
                self._boundary(moved)
            else:
                break
            if not np.array_equal(moved, placement):
                return moved
        moved = placement.copy()
        self._single(moved)
        return moved

    def _single(self, placement: NDArray[np.int64]) -> None:
        unit = self.units.movable[self.rng.integers(len(self.units.movable))]
        choices = self.units.choices[unit]
        others = choices[choices != placement[unit]]
        placement[unit] = others[self.rng.integers(len(others))]

    def _run(self, placement: NDArray[np.int64]) -> None:
        order = self._orders[self.rng.integers(len(self._orders))]
        length = int(self.rng.integers(2, min(LONGEST_RUN, len(order)) + 1))
        start = int(self.rng.integers(0, len(order) - length + 1))
        run = order[start : start + length]
        self._send(placement, run, int(self.rng.integers(self.units.allowed.shape[1])))

    def _swap(self, placement: NDArray[np.int64]) -> None:
        movable = self.units.movable
        one, other = movable[self.rng.integers(len(movable), size=2)]
        allowed = self.units.allowed
        if allowed[one, placement[other]] and allowed[other, placement[one]]:
            placement[one], placement[other] = placement[other], placement[one]

    def _boundary(self, placement: NDArray[np.int64]) -> None:
        order = self._orders[self.rng.integers(len(self._orders))]
        devices = placement[order]
        ends = np.flatnonzero(devices[1:] != devices[:-1])
        if len(ends) == 0:
            return
        end = int(ends[self.rng.integers(len(ends))]) + 1  # the second run begins here
        by = int(self.rng.integers(1, FURTHEST_SHIFT + 1))
        if self.rng.random() < 0.5:
            self._send(placement, order[max(end - by, 0) : end], int(devices[end]))
        else:
            self._send(placement, order[end : end + by], int(devices[end - 1]))

    def _send(self, placement: NDArray[np.int64], units: NDArray[np.int64], device: int) -> None:
        """Move those of the units that may be on the device."""
        placement[units[self.units.allowed[units, device]]] = device
