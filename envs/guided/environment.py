"""`DevicePlacement-v1`: place group by group, with the partial schedule in view and each step rewarded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from envs.guided import fields
from envs.guided.copies import Copies, Credit, Unit, check_choices
from envs.guided.graph_view import GraphView, graph_space
from envs.guided.guide import Guide, Votes
from envs.guided.problems import Problems, Supply
from envs.placement_env import named_problem
from envs.problem import PlacementProblem
from graphs.errors import InputError, unknown_name

Info = dict[str, Any]
Shown = Literal["vector", "graph"]


class GuidedPlacementEnv(gym.Env[Any, np.int64]):
    """Place a computation graph's co-location groups on devices, one group a step, with guidance.

    ## Description
    As `DevicePlacement-v0` (`envs.placement_env.DevicePlacementEnv`): groups are placed in program order, the return is
    that environment's, and nothing is random but which problem an episode has, where there are several. What is new is
    what the observation knows, and that each step is rewarded.

    An environment asks heuristics for placements, its *votes*, and takes the best by the simulator for its *reference*.
    What is not placed yet counts as standing there. A rough schedule of the groups' parts, which takes microseconds,
    says what the step time would be with the next group on each device: its *outlook* (see `envs.guided`).

    ## Action Space
    ``Discrete(M)``: the device of the group whose turn it is; `M` is the number of devices, of several problems that of
    the one with most. `action_masks` and ``info["action_mask"]`` say which are allowed now, as `DevicePlacement-v0`
    does; devices on which residents no longer fit are masked, too, as long as there are others. A device that is not
    allowed is not repaired: the placement is infeasible.

    ## Observation Space
    ``Box(0, 1, (16 + 14 M,), float32)``; `envs.guided.fields` has the table and gives each field's position by name.
    With ``observation="graph"`` a ``Dict`` of that vector, ``state``, and of a ``Graph`` with a node for each group,
    ``graph``; see `envs.guided.graph_view`.

    ## Rewards
    With ``phi = -sqrt(step time in seconds of the placement, its rest at the reference)`` a step earns ``phi after -
    phi before + phi at the beginning / G``. The rewards of an episode add up to ``phi`` of the finished placement,
    which is the return of `DevicePlacement-v0`, the failing signal included; where nothing leaves the reference all
    steps earn the same. ``credit`` says what the step time of an unfinished placement is: ``"simulated"`` (the
    simulator's, where a step left the reference; the default), ``"outlook"`` (the rough schedule's, much quicker, and
    the last step makes up for the difference) or ``"end"`` (nothing before the last step, as in v0). With
    ``unit="reference"`` step times are counted in the reference's, so that a return of -1 is as good as it: the same
    scale for every problem.

    ## Starting State
    Nothing is placed.

    ## Episode End
    Terminates after ``G`` steps; never truncates.

    ## Info
    Always ``action_mask`` (``bool[M]``, for the group that is next; after the last True for each device). After reset
    also ``reference_s``, the reference's step time (or failing signal). After the last step ``step_time_s``,
    ``feasible``, ``peak_memory_bytes`` and ``placement`` as in `DevicePlacement-v0`.

    ## Arguments
    ```python
    import gymnasium as gym
    import placement
    problem = placement.make_problem("rnnlm:steps=4", "k80x4", groups=32)
    env = gym.make("envs:DevicePlacement-v1", problem=problem, votes=placement.heuristic_placements)
    ```
    - ``problem``, ``graph``, ``cluster``, ``groups``, ``schedule``, ``failing_s``: as of `DevicePlacement-v0`;
    - ``problems``: in place of all of these but the last, a list of problems, or a function that makes a fresh one of a
      ``numpy.random.Generator``: each reset draws one, and a seed fixes which;
    - ``votes``: ``int[G]`` placements by name, or a function that makes them for a problem; by default only those that
      always vote: the best single device, and each part of the graph where it ends earliest;
    - ``credit``: ``"simulated"``, ``"outlook"`` or ``"end"``;
    - ``unit``: ``"second"`` or ``"reference"``;
    - ``observation``: ``"vector"`` or ``"graph"``;
    - ``devices``: the most devices that a problem has; by default what the list's have, or the first one made.

    ## References
    Mirhoseini et al., ICML 2017, arXiv 1706.04972: the reward. Ng, Harada and Russell, "Policy invariance under reward
    transformations", ICML 1999: a reward by a potential's differences changes no optimal policy. Addanki et al.,
    "Placeto", NeurIPS 2019, arXiv 1906.08879: intermediate rewards.

    ## Version History
    - v1: the observation knows the partial schedule and the heuristics' votes; each step is rewarded; several problems;
      an observation for graph networks.
    - v0: `envs.placement_env.DevicePlacementEnv`.
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
        credit: Credit = "simulated",
        unit: Unit = "second",
        observation: Shown = "vector",
        devices: int | None = None,
    ) -> None:
        check_choices(credit, unit)
        if observation not in get_args(Shown):
            raise unknown_name("observation", observation, get_args(Shown))
        self._supply = supply_of(
            problem, graph, cluster, groups, schedule, problems, votes=votes, failing_s=failing_s, devices=devices
        )
        self._credit, self._unit = credit, unit
        self.action_space = gym.spaces.Discrete(self._supply.devices)
        self.observation_space = vector_space(self._supply.devices)
        if observation == "graph":
            self.observation_space = gym.spaces.Dict(
                {"graph": graph_space(self._supply.devices), "state": self.observation_space}
            )
        self._graph_view: GraphView | None = None
        self._shows_graph = observation == "graph"
        self._copies: Copies | None = None

    @property
    def guide(self) -> Guide:
        """The episode's problem, votes and reference.

        Raises:
            gymnasium.error.ResetNeeded: No episode has begun.
        """
        return self._begun().guide

    def action_masks(self) -> NDArray[np.bool_]:
        """``bool[M]``: True where the group that is next may be placed."""
        if self._copies is None:
            return np.ones(self._supply.devices, dtype=np.bool_)
        return self._copies.mask[0].copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Info]:
        """Begin with nothing placed, on the next problem that is drawn."""
        super().reset(seed=seed)
        before = None if self._copies is None else self._copies.guide
        guide = self._supply.draw(self.np_random)
        self._copies = Copies(guide, 1, devices=self._supply.devices, credit=self._credit, unit=self._unit)
        if self._shows_graph and guide is not before:
            self._graph_view = GraphView(guide, self._supply.devices)
        return self._observation(), {"action_mask": self.action_masks(), "reference_s": guide.reference_s}

    def step(self, action: np.int64 | int) -> tuple[Any, float, bool, bool, Info]:
        """Place the next group on device `action`.

        Raises:
            InputError: There is no such device.
            gymnasium.error.ResetNeeded: The episode is over, or has not begun.
        """
        copies = self._begun()
        if copies.evaluation is not None:
            raise gym.error.ResetNeeded("every group is placed: call reset()")
        reward = float(copies.step(np.array([action]))[0])
        info: Info = {"action_mask": self.action_masks()}
        evaluation = copies.evaluation
        if evaluation is not None:
            info |= {
                "step_time_s": float(evaluation.step_time_s[0]),
                "feasible": bool(evaluation.feasible[0]),
                "peak_memory_bytes": evaluation.peak_memory_bytes[0],
                "placement": copies.placements[0].copy(),
            }
        return self._observation(), reward, evaluation is not None, False, info

    def _begun(self) -> Copies:
        if self._copies is None:
            raise gym.error.ResetNeeded("no episode has begun: call reset()")
        return self._copies

    def _observation(self) -> Any:
        copies = self._begun()
        if self._graph_view is None:
            return copies.view[0]
        return {"graph": self._graph_view.show(copies.placements[0], copies.next), "state": copies.view[0]}


def vector_space(devices: int) -> gym.spaces.Space[Any]:
    """The observations of `DevicePlacement-v1` with room for so many devices."""
    return gym.spaces.Box(0.0, 1.0, (fields.size(devices),), np.float32)


def supply_of(
    problem: PlacementProblem | None,
    graph: str | None,
    cluster: str,
    groups: int,
    schedule: str,
    problems: Problems | None,
    *,
    votes: Votes | Mapping[str, NDArray[np.integer]] | None,
    failing_s: float | None,
    devices: int | None,
    most_groups: int | None = None,
) -> Supply:
    """The problems that the constructors' arguments mean.

    Raises:
        InputError: They contradict each other, or the failing signal is not a positive number.
    """
    if failing_s is not None and not 0 < failing_s < np.inf:
        raise InputError(f"failing_s is {failing_s}; it must be positive and finite")
    if problems is not None:
        if problem is not None or graph is not None:
            raise InputError("give the environment one problem, a graph or problems, not two of them")
        return Supply(None, problems, votes=votes, failing_s=failing_s, devices=devices, groups=most_groups)
    one = named_problem(problem, graph, cluster, groups, schedule)
    return Supply(one, None, votes=votes, failing_s=failing_s, devices=devices, groups=most_groups)
