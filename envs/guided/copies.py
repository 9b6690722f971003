"""Copies of one problem that are placed in lockstep: the dynamics of `DevicePlacement-v1`, single and vectorised.

Each step is a few compiled calls over all copies: place a group, simulate the copies that left the reference, observe.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.guided import fields
from envs.guided.guide import Guide
from envs.guided.kernel import Scratch, look
from graphs.errors import InputError, unknown_name

Credit = Literal["simulated", "outlook", "end"]
"""What a step is rewarded with: the change of the simulated step time of the completed placement, the change of its
outlook, or nothing before the end."""

Unit = Literal["second", "reference"]
"""What a reward counts step times in."""


def check_choices(credit: str, unit: str) -> None:
    """Raise where there is no such credit or unit.

    Raises:
        InputError: There is none.
    """
    for name, given, known in (("credit", credit, get_args(Credit)), ("unit", unit, get_args(Unit))):
        if given not in known:
            raise unknown_name(name, given, known)


class Copies:
    """`B` copies, all with the same groups placed.

    Args:
        guide: The problem.
        count: ``B``.
        devices: ``M``, devices that the spaces have room for.
        credit: See `Credit`.
        unit: See `Unit`.

    Attributes:
        guide: The problem.
        next: The group that is next; ``G`` when all are placed.
        placements: ``int64[B, G]``: chosen devices, and from `next` on the reference's.
        view: ``float32[B, F]``, the observations, new at each step.
        mask: ``bool[B, M]``, where the next group may be, new at each step.
        evaluation: Of the finished placements; None before.
    """

    def __init__(self, guide: Guide, count: int, *, devices: int, credit: Credit, unit: Unit) -> None:
        self.guide = guide
        self.next = 0
        self.placements = np.tile(guide.reference, (count, 1))
        self.evaluation: Evaluation | None = None
        self._devices = devices
        self._credit = credit
        self._unit_s = guide.reference_s if unit == "reference" else 1.0
        self._now_s = np.full(count, guide.outlook_s)
        self._cost_s = np.full(count, guide.reference_s)
        self._tried_s = np.empty((count, guide.problem.num_devices))
        # The outlook's potential is the reference's simulated time where nothing left it yet.
        self._per_outlook = guide.reference_s / guide.outlook_s if guide.outlook_s > 0 else 0.0
        self._whole = self._value(self._cost_s)
        self._potential = self._whole.copy()
        self._look()

    def step(self, actions: NDArray[np.integer]) -> NDArray[np.float64]:
        """Place the next group of each copy; the rewards, ``float64[B]``.

        Raises:
            InputError: An action is not a device of the problem.
        """
        devices = np.ascontiguousarray(actions, dtype=np.int64)
        count = self.guide.problem.num_devices
        if devices.size and not 0 <= devices.min() <= devices.max() < count:
            wrong = devices[(devices < 0) | (devices >= count)][0]
            raise InputError(f"action {wrong} is not a device; devices are 0 to {count - 1}")
        moved = np.flatnonzero(devices != self.placements[:, self.next])

        self.placements[:, self.next] = devices
        self._now_s = self._tried_s[np.arange(len(devices)), devices]
        untried = np.isinf(self._now_s)  # not allowed
        if untried.any():
            self._now_s[untried] = self.guide.outlooks_s(self.placements[untried])
        self.next += 1
        groups = self.guide.problem.num_groups
        if self.next == groups:
            self.evaluation = self.guide.problem.evaluate(self.placements)
            self._cost_s = self.evaluation.cost_s(self.guide.failing_s)
        elif self._credit == "simulated" and len(moved):
            evaluation = self.guide.problem.evaluate(self.placements[moved])
            self._cost_s[moved] = evaluation.cost_s(self.guide.failing_s)
        rewards = self._rewards(groups)
        self._look()
        return rewards

    def _rewards(self, groups: int) -> NDArray[np.float64]:
        """What the step changed; and an equal share of what the reference is worth, so that the sum is the return."""
        if self._credit == "end":
            return self._value(self._cost_s) if self.next == groups else np.zeros(len(self._cost_s))
        by_outlook = self._credit == "outlook" and self.next < groups
        potential = self._value(self._per_outlook * self._now_s if by_outlook else self._cost_s)
        rewards = potential - self._potential + self._whole / groups
        self._potential = potential
        return rewards

    def _value(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """The paper's reward (Mirhoseini et al., 2017, section 3.1) of step times, in the chosen unit."""
        value: NDArray[np.float64] = -np.sqrt(seconds / self._unit_s)
        return value

    def _look(self) -> None:
        self.view = np.empty((len(self.placements), fields.size(self._devices)), dtype=np.float32)
        self.mask = np.empty((len(self.placements), self._devices), dtype=np.bool_)

        def some(scratch: Scratch, first: int, last: int) -> None:
            look(
                self.guide.picture, scratch, self.placements, self.next, self.next, self._now_s, self._tried_s,
                self.view, self.mask, self._devices, first, last,
            )  # fmt: skip

        self.guide.in_parts(len(self.placements), some)
