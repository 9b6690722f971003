"""`DevicePlacement-v1`, vectorised: many copies of an episode, each step a few compiled calls over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.guided.copies import Copies, Credit, Unit, check_choices
from envs.guided.environment import Info, supply_of, vector_space
from envs.guided.guide import Guide, Votes
from envs.guided.problems import Problems
from envs.problem import PlacementProblem
from graphs.errors import InputError


class GuidedPlacementVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """``B`` copies of `envs.guided.environment.GuidedPlacementEnv` that are placed in lockstep.

    All copies have the same problem, so their episodes begin and end together; of several problems the next is drawn
    when all are reset, which happens in the step that ends them (``AutoresetMode.SAME_STEP``): that step's observations
    are of the new episodes, ``info["final_obs"]`` of the finished ones, and ``info["final_info"]`` says of these
    ``step_time_s`` and ``feasible`` (``[B]``), ``peak_memory_bytes`` (``[B, D]``), ``placement`` (``[B, G]``) and
    ``action_mask``. `action_masks` gives ``bool[B, M]``. Observations are vectors.

    Args:
        num_envs: ``B``.
        problem: This and the others as of `envs.guided.environment.GuidedPlacementEnv`.
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
        credit: Credit = "simulated",
        unit: Unit = "second",
        devices: int | None = None,
    ) -> None:
        check_choices(credit, unit)
        self.num_envs = num_envs
        self._supply = supply_of(
            problem, graph, cluster, groups, schedule, problems, votes=votes, failing_s=failing_s, devices=devices
        )
        self._credit, self._unit = credit, unit
        self.single_action_space = gym.spaces.Discrete(self._supply.devices)
        self.single_observation_space = vector_space(self._supply.devices)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._everyone = np.ones(num_envs, dtype=np.bool_)
        self._copies: Copies | None = None

    @property
    def guide(self) -> Guide:
        """The episodes' problem, votes and reference.

        Raises:
            gymnasium.error.ResetNeeded: No episode has begun.
        """
        return self._begun().guide

    def action_masks(self) -> NDArray[np.bool_]:
        """``bool[B, M]``: True where the group that is next may be placed."""
        return self._begun().mask

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Begin all copies on the next problem that is drawn.

        Args:
            seed: Of what is drawn; of a list the first counts, as all copies have one problem.
            options: Not read.
        """
        first = seed[0] if isinstance(seed, list) else seed
        super().reset(seed=first)
        self._begin()
        return self._begun().view, self._mask_info()

    def step(
        self, actions: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Place the next group of each copy, ``int[B]``.

        Raises:
            InputError: The actions' shape or a device is wrong.
            gymnasium.error.ResetNeeded: No episode has begun.
        """
        copies = self._begun()
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise InputError(f"actions have shape {list(actions.shape)}; they must be [{self.num_envs}]")
        rewards = copies.step(actions)
        evaluation = copies.evaluation
        if evaluation is None:
            return copies.view, rewards, ~self._everyone, ~self._everyone, self._mask_info()
        final: Info = {
            "action_mask": copies.mask,
            "step_time_s": evaluation.step_time_s,
            "feasible": evaluation.feasible,
            "peak_memory_bytes": evaluation.peak_memory_bytes,
            "placement": copies.placements,
        }
        final |= {f"_{key}": self._everyone.copy() for key in final}
        self._begin()
        info = self._mask_info() | {"final_info": final, "_final_info": self._everyone.copy()}
        info |= {"final_obs": copies.view, "_final_obs": self._everyone.copy()}
        return self._begun().view, rewards, self._everyone.copy(), ~self._everyone, info

    def _begin(self) -> None:
        guide = self._supply.draw(self.np_random)
        self._copies = Copies(guide, self.num_envs, devices=self._supply.devices, credit=self._credit, unit=self._unit)

    def _begun(self) -> Copies:
        if self._copies is None:
            raise gym.error.ResetNeeded("no episode has begun: call reset()")
        return self._copies

    def _mask_info(self) -> Info:
        return {"action_mask": self._begun().mask, "_action_mask": self._everyone.copy()}
