"""`DevicePlacementMoves-v0`: improve a complete placement, one group a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.guided import fields
from envs.guided.environment import Info, supply_of
from envs.guided.guide import Guide, Votes
from envs.guided.problems import Problems
from envs.problem import PlacementProblem
from graphs.errors import InputError, unknown_name

Start = Literal["reference", "random"]


class PlacementMovesEnv(gym.Env[NDArray[np.float32], np.int64]):
    """Give one group another device, again and again, so that the step takes less time.

    ## Description
    Everything is placed from the beginning. An action moves one of the ``G`` co-location groups to another of the
    ``D`` devices, and is rewarded with what it saves. Only the start may be random, and the problem, of several.

    ## Action Space
    ``Discrete(most_groups * M)``: ``group * M + device``. `action_masks` and ``info["action_mask"]`` are True for the
    moves that are allowed now: to another device where the group may be and its residents fit, with the others where
    they are. Where there is none, staying is allowed. A move that is not allowed is made all the same, and what it
    leads to may be infeasible; one of a group or to a device that the problem does not have changes nothing.

    ## Observation Space
    ``Box(0, 1, (most_groups * (16 + 15 M),), float32)``: for each group a row of the fields of `envs.guided.fields`,
    with all other groups placed (``outlook`` is then what each move would save, roughly), and then ``M`` fields, 1 at
    the group's device. Rows without a group are 0.

    ## Rewards
    ``log(step time before / step time after)``, the failing signal in place of an infeasible placement's: the rewards
    of an episode add up to the log of what it saved in all.

    ## Starting State
    The reference, the best of the heuristics' votes; or with ``start="random"`` a random placement on allowed devices.

    ## Episode End
    Never terminates; truncates after ``moves`` steps.

    ## Info
    ``action_mask`` (``bool[most_groups * M]``), ``step_time_s``, ``feasible`` and ``placement`` (``int64[G]``) as
    things stand, ``best_step_time_s``, of the quickest feasible placement of the episode (infinite where none was), and
    after reset ``reference_s``.

    ## Arguments
    As `envs.guided.environment.GuidedPlacementEnv`, without ``credit``, ``unit`` and ``observation``, and
    - ``most_groups``: the most groups that a problem has; by default what the list's have, or the first one made,
    - ``moves``: steps of an episode; by default as many as the problem has groups,
    - ``start``: ``"reference"`` or ``"random"``.

    ## References
    Addanki et al., "Placeto: learning generalizable device placement algorithms for distributed machine learning",
    NeurIPS 2019, arXiv 1906.08879: moves, and rewards for what each saves (there in seconds).

    ## Version History
    - v0: first version.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (the name and type are Gymnasium's)

    def __init__(
        self,
        problem: PlacementProblem | None = None,
        *,
        graph: str | None = None,
        cluster: str = "k80x2",
        groups: int = 64,
        schedule: str = "priority",
        failing_s: float | None = None,
        problems: Problems | None = None,
        votes: Votes | Mapping[str, NDArray[np.integer]] | None = None,
        devices: int | None = None,
        most_groups: int | None = None,
        moves: int | None = None,
        start: Start = "reference",
    ) -> None:
        if start not in get_args(Start):
            raise unknown_name("start", start, get_args(Start))
        if moves is not None and moves < 1:
            raise InputError(f"moves is {moves}; an episode has at least one step")
        self._supply = supply_of(
            problem, graph, cluster, groups, schedule, problems, votes=votes, failing_s=failing_s, devices=devices,
            most_groups=most_groups,
        )  # fmt: skip
        self._moves, self._start = moves, start
        rows, width = self._supply.groups, fields.size(self._supply.devices) + self._supply.devices
        self.action_space = gym.spaces.Discrete(rows * self._supply.devices)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (rows * width,), np.float32)
        self._guide: Guide | None = None
        self._mask = np.ones(rows * self._supply.devices, dtype=np.bool_)

    @property
    def guide(self) -> Guide:
        """The episode's problem, votes and reference.

        Raises:
            gymnasium.error.ResetNeeded: No episode has begun.
        """
        if self._guide is None:
            raise gym.error.ResetNeeded("no episode has begun: call reset()")
        return self._guide

    def action_masks(self) -> NDArray[np.bool_]:
        """``bool[most_groups * M]``: True for the moves that are allowed now."""
        return self._mask.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Begin at the start, on the next problem that is drawn."""
        super().reset(seed=seed)
        self._guide = guide = self._supply.draw(self.np_random)
        self._placement = guide.reference.copy()
        if self._start == "random":
            keys = np.where(guide.problem.allowed, self.np_random.random(guide.problem.allowed.shape), -1.0)
            self._placement = keys.argmax(axis=1).astype(np.int64)
        self._steps, self._best_s = 0, np.inf
        self._cost_s = self._evaluate()
        return self._observe(), self._info() | {"reference_s": guide.reference_s}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Move group ``action // M`` to device ``action % M``.

        Raises:
            InputError: There is no such action.
            gymnasium.error.ResetNeeded: No episode has begun.
        """
        problem = self.guide.problem
        if not self.action_space.contains(np.int64(action)):
            raise InputError(f"action {action} is no move; moves are 0 to {len(self._mask) - 1}")
        group, device = divmod(int(action), self._supply.devices)
        before_s = self._cost_s
        exists = group < problem.num_groups and device < problem.num_devices
        if exists and self._placement[group] != device:
            self._placement[group] = device
            self._cost_s = self._evaluate()
        self._steps += 1
        # A step of no time at all, before or after, saves nothing that could be counted.
        reward = float(np.log(before_s / self._cost_s)) if min(before_s, self._cost_s) > 0 else 0.0
        truncated = self._steps >= (self._moves or problem.num_groups)
        return self._observe(), reward, False, truncated, self._info()

    def _evaluate(self) -> float:
        """What the placement costs, in seconds."""
        evaluation = self.guide.problem.evaluate(self._placement[None])
        self._feasible = bool(evaluation.feasible[0])
        self._step_time_s = float(evaluation.step_time_s[0])
        if self._feasible:
            self._best_s = min(self._best_s, self._step_time_s)
        return float(evaluation.cost_s(self.guide.failing_s)[0])

    def _observe(self) -> NDArray[np.float32]:
        guide, devices = self.guide, self._supply.devices
        count = guide.problem.num_groups
        rows = guide.rows(self._placement, count, devices)
        at = np.zeros((count, devices), dtype=np.float32)
        at[np.arange(count), self._placement] = 1.0
        mask = np.zeros((self._supply.groups, devices), dtype=np.bool_)
        mask[:count] = rows.mask & (at == 0)
        if not mask.any():
            mask[np.arange(count), self._placement] = True
        self._mask = mask.ravel()
        view = np.zeros((self._supply.groups, fields.size(devices) + devices), dtype=np.float32)
        view[:count] = np.concatenate([rows.view, at], axis=1)
        return view.ravel()

    def _info(self) -> Info:
        return {
            "action_mask": self._mask.copy(),
            "step_time_s": self._step_time_s,
            "feasible": self._feasible,
            "best_step_time_s": self._best_s,
            "placement": self._placement.copy(),
        }
