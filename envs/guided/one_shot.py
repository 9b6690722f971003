"""`DevicePlacementOneShot-v1`: place all groups in one action, what heuristics would do in view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.guided import fields
from envs.guided.copies import Unit, check_choices
from envs.guided.environment import Info, Shown, supply_of
from envs.guided.graph_view import GraphView, graph_space
from envs.guided.guide import Guide, Votes
from envs.guided.problems import Problems
from envs.problem import PlacementProblem
from graphs.errors import InputError, unknown_name


class GuidedOneShotEnv(gym.Env[Any, NDArray[np.int64]]):
    """Place all of a computation graph's co-location groups in one action, with guidance.

    ## Description
    As `DevicePlacementOneShot-v0` (`envs.placement_env.DevicePlacementOneShotEnv`), a bandit: one step places
    everything. ``gym.make_vec("DevicePlacementOneShot-v1", num_envs=B)`` evaluates the whole batch in one call.

    ## Action Space
    ``MultiDiscrete([M] * most_groups)``: the device of each group, in program order. `action_masks` (``bool[most_groups
    * M]``) and ``info["action_mask"]`` (``bool[most_groups, M]``) say which are allowed. Of a problem with fewer groups
    the rest of an action is not read, and only device 0 is allowed there.

    ## Observation Space
    ``Box(0, 1, (most_groups * (16 + 14 M),), float32)``: for each group a row of the fields of `envs.guided.fields`,
    with nothing placed: ``start``, ``finish`` and ``outlook`` are those of the group alone moved off the reference.
    With ``observation="graph"`` the same rows as the nodes of a graph, see `envs.guided.graph_view`.

    ## Rewards
    ``-sqrt(step time in seconds)``, or ``-sqrt(failing_s)`` for an infeasible placement, as in v0; with
    ``unit="reference"`` in the reference's step times.

    ## Starting State, Episode End
    Each reset draws a problem, where there are several; every step terminates.

    ## Info
    As `DevicePlacementOneShot-v0`, and after reset ``reference_s``.

    ## Arguments
    As `envs.guided.environment.GuidedPlacementEnv`, without ``credit``, and
    - ``most_groups``: the most groups that a problem has; by default what the list's have, or the first one made.

    ## Version History
    - v1: votes, reference and outlook in the observation; several problems; graphs.
    - v0: `envs.placement_env.DevicePlacementOneShotEnv`.
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
        unit: Unit = "second",
        observation: Shown = "vector",
        devices: int | None = None,
        most_groups: int | None = None,
    ) -> None:
        check_choices("end", unit)
        if observation not in get_args(Shown):
            raise unknown_name("observation", observation, get_args(Shown))
        self._supply = supply_of(
            problem, graph, cluster, groups, schedule, problems, votes=votes, failing_s=failing_s, devices=devices,
            most_groups=most_groups,
        )  # fmt: skip
        self._unit: Unit = unit
        self._shows_graph = observation == "graph"
        self.action_space, self.observation_space = _spaces(self._supply.groups, self._supply.devices)
        if self._shows_graph:
            self.observation_space = graph_space(self._supply.devices)
        self._guide: Guide | None = None
        self._observation: Any = None
        self._mask = np.ones((self._supply.groups, self._supply.devices), dtype=np.bool_)

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
        """``bool[most_groups * M]``: True where the group may be placed, groups one after another."""
        return self._mask.ravel().copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Begin, on the next problem that is drawn."""
        super().reset(seed=seed)
        guide = self._supply.draw(self.np_random)
        if guide is not self._guide:
            self._guide = guide
            view, self._mask = padded_rows(guide, self._supply.groups, self._supply.devices)
            self._observation = view.ravel()
            if self._shows_graph:
                self._observation = GraphView(guide, self._supply.devices)
        return self._show(), {"action_mask": self._mask.copy(), "reference_s": guide.reference_s}

    def step(self, action: NDArray[np.integer]) -> tuple[Any, float, bool, bool, Info]:
        """Place group ``g`` on device ``action[g]``.

        Raises:
            InputError: The action's shape or a device index is wrong.
            gymnasium.error.ResetNeeded: No episode has begun.
        """
        placements, evaluation = _evaluate(self.guide, np.asarray(action)[None], self._supply.groups)
        info: Info = {
            "action_mask": self._mask.copy(),
            "step_time_s": float(evaluation.step_time_s[0]),
            "feasible": bool(evaluation.feasible[0]),
            "peak_memory_bytes": evaluation.peak_memory_bytes[0],
            "placement": placements[0],
        }
        reward = float(_rewards(self.guide, evaluation, self._unit)[0])
        return self._show(), reward, True, False, info

    def _show(self) -> Any:
        if isinstance(self._observation, GraphView):
            return self._observation.show(self.guide.reference, 0)
        return self._observation.copy()


class GuidedOneShotVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """``B`` one-shot environments of one problem that evaluate their placements in one call; see `GuidedOneShotEnv`.

    Of several problems each step, which ends all episodes, draws the next for all (``AutoresetMode.SAME_STEP``).
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        problem: PlacementProblem | None = None,
        *,
        graph: str | None = None,
        cluster: str = "k80x2",
        groups: int = 64,
        schedule: str = "priority",
        failing_s: float | None = None,
        problems: Problems | None = None,
        votes: Votes | Mapping[str, NDArray[np.integer]] | None = None,
        unit: Unit = "second",
        devices: int | None = None,
        most_groups: int | None = None,
    ) -> None:
        check_choices("end", unit)
        self.num_envs = num_envs
        self._supply = supply_of(
            problem, graph, cluster, groups, schedule, problems, votes=votes, failing_s=failing_s, devices=devices,
            most_groups=most_groups,
        )  # fmt: skip
        self._unit: Unit = unit
        self.single_action_space, self.single_observation_space = _spaces(self._supply.groups, self._supply.devices)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._guide: Guide | None = None
        self._everyone = np.ones(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Begin all on the next problem that is drawn; of a list of seeds the first counts."""
        super().reset(seed=seed[0] if isinstance(seed, list) else seed)
        self._draw()
        return self._views.copy(), self._mask_info()

    def step(
        self, actions: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Evaluate one placement an environment, ``int[B, most_groups]``, and reset all.

        Raises:
            InputError: The actions' shape or a device index is wrong.
            gymnasium.error.ResetNeeded: No episode has begun.
        """
        if self._guide is None:
            raise gym.error.ResetNeeded("no episode has begun: call reset()")
        guide, before, everyone = self._guide, self._views, self._everyone
        placements, evaluation = _evaluate(guide, np.asarray(actions), self._supply.groups)
        if len(placements) != self.num_envs:
            raise InputError(f"there are {len(placements)} actions; give one for each of {self.num_envs} environments")
        rewards = _rewards(guide, evaluation, self._unit)
        final: Info = {
            "step_time_s": evaluation.step_time_s,
            "feasible": evaluation.feasible,
            "peak_memory_bytes": evaluation.peak_memory_bytes,
            "placement": placements,
        }
        final |= {f"_{key}": everyone.copy() for key in final}
        self._draw()
        info = self._mask_info() | {"final_info": final, "_final_info": everyone.copy()}
        info |= {"final_obs": before, "_final_obs": everyone.copy()}
        return self._views.copy(), rewards, everyone.copy(), ~everyone, info

    def _draw(self) -> None:
        guide = self._supply.draw(self.np_random)
        if guide is not self._guide:
            view, mask = padded_rows(guide, self._supply.groups, self._supply.devices)
            self._guide = guide
            self._views = np.tile(view.ravel(), (self.num_envs, 1))
            self._masks = np.tile(mask, (self.num_envs, 1, 1))

    def _mask_info(self) -> Info:
        return {"action_mask": self._masks.copy(), "_action_mask": self._everyone.copy()}


def padded_rows(guide: Guide, groups: int, devices: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """``(view float32[groups, F], mask bool[groups, M])`` of the groups with nothing placed; then empty rows."""
    view = np.zeros((groups, fields.size(devices)), dtype=np.float32)
    mask = np.zeros((groups, devices), dtype=np.bool_)
    count = guide.problem.num_groups
    view[:count] = guide.rows(guide.reference, 0, devices).view
    mask[:count, : guide.problem.num_devices] = guide.problem.allowed
    mask[count:, 0] = True
    return view, mask


def _spaces(groups: int, devices: int) -> tuple[gym.Space[NDArray[np.int64]], gym.Space[Any]]:
    return (
        gym.spaces.MultiDiscrete([devices] * groups),
        gym.spaces.Box(0.0, 1.0, (groups * fields.size(devices),), np.float32),
    )


def _evaluate(
    guide: Guide, actions: NDArray[np.integer], most_groups: int
) -> tuple[NDArray[np.int64], Evaluation]:  # fmt: skip
    """The placements, ``int64[B, G]``, that actions mean, and what the problem answers."""
    if actions.ndim != 2 or actions.shape[1] != most_groups or actions.dtype.kind not in "iu":
        raise InputError(
            f"an action must be integers of shape [{most_groups}], not {actions.dtype} of shape "
            f"{list(actions.shape[1:])}"
        )
    placements = actions[:, : guide.problem.num_groups].astype(np.int64)
    return placements, guide.problem.evaluate(placements)


def _rewards(guide: Guide, evaluation: Evaluation, unit: Unit) -> NDArray[np.float64]:
    """``float64[B]``: the paper's reward (Mirhoseini et al., 2017, section 3.1)."""
    unit_s = guide.reference_s if unit == "reference" else 1.0
    rewards: NDArray[np.float64] = -np.sqrt(evaluation.cost_s(guide.failing_s) / unit_s)
    return rewards
