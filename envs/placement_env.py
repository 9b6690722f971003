"""The Gymnasium environments: place group by group, or everything at once.

Letters: ``B`` environments in a batch, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.bounds import upper_bound_s
from envs.clusters.catalog import load_cluster
from envs.evaluators import Evaluation
from envs.make_problem import make_problem
from envs.observation import Observer
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.errors import InputError
from graphs.synthetic import random_graph

Info = dict[str, Any]


class DevicePlacementEnv(gym.Env[NDArray[np.float32], np.int64]):
    """Place a computation graph's co-location groups on devices, one group a step, so that its step takes little time.

    ## Description
    A neural network's training step is a graph of ops, cut into ``G`` co-location groups, to be run on a cluster of
    ``D`` devices that differ in speed, memory and links. Groups are placed in program order (by their first op, a
    topological order of the ops). When the last group is placed, the step is simulated, and its time is the reward.
    Nothing is random: the same actions earn the same reward, and a seed changes nothing but the action space's samples.

    ## Action Space
    ``Discrete(D)``: the device of the group whose turn it is. A group may be restricted to some devices (the step's
    inputs start on the host's CPU): `action_masks` says which are allowed now, in the form that sb3-contrib's
    ``MaskablePPO`` reads, and so does ``info["action_mask"]``. A device that is not allowed is not repaired: the
    episode goes on, the placement is infeasible, and the failing signal is charged at the end.

    ## Observation Space
    ``Box(0, 1, (5 + 7 D,), float32)``. `envs.observation.fields` gives each field's position by name.

    | position | name | meaning |
    |---|---|---|
    | 0 | ``progress`` | groups placed / ``G`` |
    | 1 | ``num_ops`` | ops of the group / ops of the largest group |
    | 2 | ``resident`` | the group's resident bytes / memory of the largest device |
    | 3 | ``reads_unplaced`` | bytes read from groups that are not placed yet / bytes read and sent |
    | 4 | ``sends_unplaced`` | bytes sent to groups that are not placed yet / bytes read and sent |
    | 5 .. 5+D | ``time`` | the group's op time on each device / the longest of any group and device; 0 if not allowed |
    | .. 5+2D | ``allowed`` | 1 where the group may be placed |
    | .. 5+3D | ``reads_from`` | bytes read from groups placed on each device / bytes read and sent |
    | .. 5+4D | ``sends_to`` | bytes sent to groups placed on each device / bytes read and sent |
    | .. 5+5D | ``load`` | ``x / (1 + x)`` of a device's op time so far, ``x`` in units of a fair share of the work |
    | .. 5+6D | ``memory`` | resident bytes so far / memory of the device, at most 1 |
    | .. 5+7D | ``last_device`` | 1 at the device of the group before |

    Fields 1 to 4 and ``time`` to ``sends_to`` are 0 in the observation after the last group.

    ## Rewards
    0 until the last group is placed, then ``-sqrt(step time in seconds)``; for an infeasible placement (out of memory,
    or a device that is not allowed) ``-sqrt(failing_s)``, the failing signal.

    ## Starting State
    Nothing is placed.

    ## Episode End
    Terminates after ``G`` steps; never truncates.

    ## Info
    Always ``action_mask`` (``bool[D]``, for the group that is next; all True after the last). After the last step also
    ``step_time_s``, ``feasible``, ``peak_memory_bytes`` (``int64[D]``) and ``placement`` (``int64[G]``). The step time
    of an infeasible placement is what it would be if memory were no limit.

    ## Arguments
    ```python
    import gymnasium as gym
    import envs
    env = gym.make("DevicePlacement-v0", graph="rnnlm:steps=4", cluster="k80x4", groups=32)
    ```
    - ``problem``: a `PlacementProblem`; or else
    - ``graph``: what ``placement train`` takes as GRAPH; by default a small random graph,
    - ``cluster``: what it takes as CLUSTER; by default ``"k80x2"``,
    - ``groups``: the wanted number of co-location groups of a named graph; by default 64,
    - ``schedule``: which ready op a device runs first; by default ``"priority"``.
    - ``failing_s``: the failing signal in seconds; by default `default_failing_s`.

    ## References
    Mirhoseini et al., "Device Placement Optimization with Reinforcement Learning", ICML 2017, arXiv 1706.04972: the
    reward and the failing signal (section 3.1). Placing step by step with the devices' state in view follows Addanki et
    al., "Placeto", NeurIPS 2019, arXiv 1906.08879, in spirit.

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
    ) -> None:
        self.problem = named_problem(problem, graph, cluster, groups, schedule)
        self.failing_s = _failing_s(self.problem, failing_s)
        self.action_space = gym.spaces.Discrete(self.problem.num_devices)
        self._observer = Observer(self.problem)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (self._observer.size,), np.float32)
        self._placement = np.zeros(self.problem.num_groups, dtype=np.int64)
        self._next: int | None = None

    def action_masks(self) -> NDArray[np.bool_]:
        """``bool[D]``: True where the group that is next may be placed; all True when none is left."""
        if self._next is None or self._next == self.problem.num_groups:
            return np.ones(self.problem.num_devices, dtype=np.bool_)
        return self.problem.allowed[self._next].copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Begin with nothing placed."""
        super().reset(seed=seed)
        self._placement[:] = 0
        self._next = 0
        return self._observer.observe(self._placement, 0), {"action_mask": self.action_masks()}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Place the next group on device `action`.

        Raises:
            InputError: There is no such device.
            gymnasium.error.ResetNeeded: The episode is over, or has not begun.
        """
        if self._next is None or self._next == self.problem.num_groups:
            raise gym.error.ResetNeeded("every group is placed, or none was yet asked for: call reset()")
        if not 0 <= action < self.problem.num_devices:
            raise InputError(f"action {action} is not a device; devices are 0 to {self.problem.num_devices - 1}")
        self._placement[self._next] = action
        self._next += 1
        observation = self._observer.observe(self._placement, self._next)
        info: Info = {"action_mask": self.action_masks()}
        if self._next < self.problem.num_groups:
            return observation, 0.0, False, False, info
        evaluation = self.problem.evaluate(self._placement[None])
        reward = float(_rewards(evaluation, self.failing_s)[0])
        return observation, reward, True, False, info | _parts(evaluation, self._placement)


class DevicePlacementOneShotEnv(gym.Env[NDArray[np.float32], NDArray[np.int64]]):
    """Place all of a computation graph's co-location groups in one action.

    ## Description
    As `DevicePlacement-v0`, as a bandit: one step places everything and ends the episode.
    ``gym.make_vec("DevicePlacementOneShot-v0", num_envs=B)`` gives the vectorised twin, which evaluates the whole batch
    in one call, on all cores: the way to try many placements quickly.

    ## Action Space
    ``MultiDiscrete([D] * G)``: the device of each group, in program order. `action_masks` (``bool[G * D]``, as
    sb3-contrib reads it) and ``info["action_mask"]`` (``bool[G, D]``) say which are allowed; a placement that uses
    another is infeasible.

    ## Observation Space
    ``Box(0, 1, (G * (4 + 2 D),), float32)``, always the same: a row for each group, one after another.
    `envs.observation.static_fields` gives each field's position in a row by name.

    | position in the row | name | meaning |
    |---|---|---|
    | 0 | ``num_ops`` | ops of the group / ops of the largest group |
    | 1 | ``resident`` | the group's resident bytes / memory of the largest device |
    | 2 | ``reads`` | bytes read from other groups / those of the group that reads most |
    | 3 | ``sends`` | bytes that other groups read from it / those of the group that sends most |
    | 4 .. 4+D | ``time`` | op time on each device / the longest of any group and device; 0 where not allowed |
    | .. 4+2D | ``allowed`` | 1 where the group may be placed |

    ## Rewards
    ``-sqrt(step time in seconds)``, or ``-sqrt(failing_s)``, the failing signal, for an infeasible placement.

    ## Starting State, Episode End
    There is one state; every step terminates. The vectorised twin resets at once (``AutoresetMode.SAME_STEP``).

    ## Info
    ``action_mask``, and after the step ``step_time_s``, ``feasible``, ``peak_memory_bytes`` and ``placement`` as in
    `DevicePlacement-v0`. The vectorised twin gives those four for the whole batch, ``[B]``, ``[B]``, ``[B, D]`` and
    ``[B, G]``, in ``info["final_info"]``, and the final observations in ``info["final_obs"]``.

    ## Arguments
    As `DevicePlacement-v0`.

    ## References
    Mirhoseini et al., ICML 2017, arXiv 1706.04972, where one sampled placement is one episode.

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
    ) -> None:
        self.problem = named_problem(problem, graph, cluster, groups, schedule)
        self.failing_s = _failing_s(self.problem, failing_s)
        self.action_space, self.observation_space = _one_shot_spaces(self.problem)
        self._observation = Observer(self.problem).static.ravel()

    def action_masks(self) -> NDArray[np.bool_]:
        """``bool[G * D]``: True where the group may be placed, groups one after another."""
        return self.problem.allowed.ravel().copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Begin; there is only one state."""
        super().reset(seed=seed)
        return self._observation.copy(), {"action_mask": self.problem.allowed.copy()}

    def step(self, action: NDArray[np.integer]) -> tuple[NDArray[np.float32], float, bool, bool, Info]:
        """Place group ``g`` on device ``action[g]``.

        Raises:
            InputError: The action's shape or a device index is wrong.
        """
        evaluation = self.problem.evaluate(np.asarray(action)[None])
        reward = float(_rewards(evaluation, self.failing_s)[0])
        info = {"action_mask": self.problem.allowed.copy()} | _parts(evaluation, action)
        return self._observation.copy(), reward, True, False, info


class DevicePlacementOneShotVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """``B`` one-shot environments that evaluate their placements in one call; see `DevicePlacementOneShotEnv`."""

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
    ) -> None:
        self.num_envs = num_envs
        self.problem = named_problem(problem, graph, cluster, groups, schedule)
        self.failing_s = _failing_s(self.problem, failing_s)
        self.single_action_space, self.single_observation_space = _one_shot_spaces(self.problem)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._observations = np.tile(Observer(self.problem).static.ravel(), (num_envs, 1))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], Info]:
        """Begin; there is only one state, and nothing random to seed."""
        return self._observations.copy(), self._mask_info()

    def step(
        self, actions: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Info]:
        """Evaluate one placement an environment, ``int[B, G]``, and reset all.

        Raises:
            InputError: The actions' shape or a device index is wrong.
        """
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise InputError(
                f"actions have shape {list(actions.shape)}; they must be {list(self.action_space.shape or ())}"
            )
        evaluation = self.problem.evaluate(actions)
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        final: Info = {
            "step_time_s": evaluation.step_time_s,
            "feasible": evaluation.feasible,
            "peak_memory_bytes": evaluation.peak_memory_bytes,
            "placement": actions.astype(np.int64),
        }
        final |= {f"_{key}": everyone for key in final}
        info = self._mask_info() | {"final_info": final, "_final_info": everyone}
        info |= {"final_obs": self._observations.copy(), "_final_obs": everyone}
        rewards = _rewards(evaluation, self.failing_s)
        return self._observations.copy(), rewards, everyone.copy(), ~everyone, info

    def _mask_info(self) -> Info:
        mask = np.tile(self.problem.allowed, (self.num_envs, 1, 1))  # [B, G, D]
        return {"action_mask": mask, "_action_mask": np.ones(self.num_envs, dtype=np.bool_)}


def default_failing_s(problem: PlacementProblem) -> float:
    """A failing signal for any problem: what no feasible placement takes, so that failing is never the better choice.

    The paper charges 100 s, which suits steps of seconds only.
    """
    return max(upper_bound_s(problem), 1e-6)


def _failing_s(problem: PlacementProblem, failing_s: float | None) -> float:
    if failing_s is None:
        return default_failing_s(problem)
    if not (math.isfinite(failing_s) and failing_s > 0):
        raise InputError(f"failing_s is {failing_s}; it must be positive and finite")
    return failing_s


def _rewards(evaluation: Evaluation, failing_s: float) -> NDArray[np.float64]:
    """``float64[B]``: the paper's reward (Mirhoseini et al., 2017, section 3.1)."""
    return -np.sqrt(evaluation.cost_s(failing_s))


def _parts(evaluation: Evaluation, placement: NDArray[np.integer]) -> Info:
    """What the reward is made of, for a batch of one."""
    return {
        "step_time_s": float(evaluation.step_time_s[0]),
        "feasible": bool(evaluation.feasible[0]),
        "peak_memory_bytes": evaluation.peak_memory_bytes[0],
        "placement": np.array(placement, dtype=np.int64),
    }


def _one_shot_spaces(
    problem: PlacementProblem,
) -> tuple[gym.Space[NDArray[np.int64]], gym.Space[NDArray[np.float32]]]:
    size = Observer(problem).static.size
    actions = gym.spaces.MultiDiscrete([problem.num_devices] * problem.num_groups)
    return actions, gym.spaces.Box(0.0, 1.0, (size,), np.float32)


def named_problem(
    problem: PlacementProblem | None, graph: str | None, cluster: str, groups: int, schedule: str
) -> PlacementProblem:
    """The problem that the constructors' arguments mean."""
    if problem is not None:
        if graph is not None:
            raise InputError("give the environment a problem or a graph, not both")
        return problem
    if graph is None:
        small = random_graph(16, edges_per_op=1.3, locality=4)
        return PlacementProblem(small, one_group_an_op(small), load_cluster(cluster), schedule)
    return make_problem(graph, cluster, schedule=schedule, groups=groups)
