"""The guided environments keep Gymnasium's contract, and their return is that of the first version."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.guided.environment import GuidedPlacementEnv
from envs.guided.fields import fields
from envs.guided.moves import PlacementMovesEnv
from envs.guided.one_shot import GuidedOneShotEnv
from envs.guided.vector import GuidedPlacementVectorEnv
from envs.placement_env import DevicePlacementEnv
from envs.problem import PlacementProblem
from graphs.errors import InputError
from tests.envs.guided.by_definition import observe
from tests.envs.simulator.random_problems import FEW, problems
from tests.placement.placer_problems import cluster, training_problem

IDS = ("DevicePlacement-v1", "DevicePlacementOneShot-v1", "DevicePlacementMoves-v0")


def family(rng: np.random.Generator) -> PlacementProblem:
    """A fresh problem of random numbers: sizes and clusters differ."""
    return training_problem(int(rng.integers(4, 9)), int(rng.integers(1, 4)), seed=int(rng.integers(1000)))


@pytest.mark.parametrize("arguments", [{}, {"observation": "graph"}, {"problems": family, "devices": 4}])
@pytest.mark.parametrize("name", IDS)
def test_gymnasium_finds_no_fault(name: str, arguments: dict[str, Any]) -> None:
    if name == "DevicePlacementMoves-v0" and "observation" in arguments:
        pytest.skip("moves are shown as rows only")
    if "problems" in arguments and name != "DevicePlacement-v1":
        arguments = arguments | {"most_groups": 16}
    if "problems" in arguments:  # the checker draws actions without masks
        arguments = arguments | {"problems": [training_problem(6, 3, seed=s) for s in range(4)]}
    env = gym.make(name, disable_env_checker=True, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines3_finds_no_fault(name: str) -> None:
    from stable_baselines3.common.env_checker import check_env as check_with_sb3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_with_sb3(gym.make(name).unwrapped)


def total(env: gym.Env[Any, Any], actions: np.ndarray) -> tuple[float, dict[str, Any]]:
    """The sum of an episode's rewards, and its last info."""
    env.reset(seed=0)
    rewards = 0.0
    info: dict[str, Any] = {}
    for action in actions:
        _, reward, terminated, truncated, info = env.step(np.int64(action))
        rewards += float(reward)
    assert terminated
    assert not truncated
    return rewards, info


@given(problems(), st.integers(0, 2**32), st.sampled_from(["simulated", "outlook", "end"]))
@settings(FEW, max_examples=40)
def test_the_return_is_that_of_the_first_version(problem: PlacementProblem, seed: int, credit: Any) -> None:
    actions = np.random.default_rng(seed).integers(problem.num_devices, size=problem.num_groups)
    first, told = total(DevicePlacementEnv(problem), actions)
    second, info = total(GuidedPlacementEnv(problem, credit=credit), actions)
    assert second == pytest.approx(first, rel=1e-9, abs=1e-12)
    for key in ("step_time_s", "feasible"):
        assert info[key] == told[key]
    assert info["placement"].tolist() == told["placement"].tolist()


@pytest.mark.parametrize("room", [None, 0.5])
def test_the_return_is_that_of_the_first_version_on_training_steps(room: float | None) -> None:
    rng = np.random.default_rng(0)
    for seed in range(3):
        problem = training_problem(10, 3, seed=seed, room=room)
        for _ in range(4):
            actions = np.where(problem.allowed.all(axis=1), rng.integers(1, 4, size=problem.num_groups), 0)
            first, _ = total(DevicePlacementEnv(problem, failing_s=9.0), actions)
            for credit in ("simulated", "outlook", "end"):
                env = GuidedPlacementEnv(problem, credit=credit, failing_s=9.0)
                assert total(env, actions)[0] == pytest.approx(first)


def test_the_reference_earns_the_same_at_each_step_and_one_in_its_own_unit() -> None:
    problem = training_problem(10, 3, seed=1)
    env = GuidedPlacementEnv(problem, unit="reference")
    env.reset()
    rewards = [env.step(action)[1] for action in env.guide.reference]
    assert rewards == pytest.approx([-1 / problem.num_groups] * problem.num_groups)


def test_a_step_is_rewarded_with_what_it_changes_while_the_rest_stays_at_the_reference() -> None:
    problem = training_problem(10, 3, seed=2)
    env = GuidedPlacementEnv(problem)
    env.reset()
    reference = env.guide.reference
    before = -np.sqrt(env.guide.reference_s)
    share = before / problem.num_groups
    placement = reference.copy()
    for group in range(problem.num_groups):
        options = np.flatnonzero(problem.allowed[group])
        action = int(options[(group * 7) % len(options)])
        placement[group] = action
        after = -np.sqrt(problem.evaluate(placement[None]).cost_s(env.guide.failing_s)[0])
        assert env.step(action)[1] == pytest.approx(after - before + share)
        before = after


def test_the_observation_along_an_episode_is_its_definition() -> None:
    problem = training_problem(8, 3, seed=3, room=0.6)
    env = GuidedPlacementEnv(problem)
    observation, info = env.reset()
    rng = np.random.default_rng(1)
    placement = env.guide.reference.copy()
    for group in range(problem.num_groups + 1):
        view, mask, _ = observe(env.guide.picture, placement.tolist(), group, group, problem.num_devices)
        assert observation.tobytes() == view.tobytes()
        assert info["action_mask"].tolist() == env.action_masks().tolist() == mask
        if group < problem.num_groups:
            placement[group] = rng.choice(np.flatnonzero(mask))
            observation, _, _, _, info = env.step(placement[group])
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_masks_leave_out_devices_on_which_residents_no_longer_fit() -> None:
    roomy = training_problem(12, 2, seed=0, cpu=False)
    memory = int(0.6 * roomy.group_resident_bytes.sum())
    problem = PlacementProblem(roomy.graph, roomy.groups, cluster(2, cpu=False, gpu_bytes=memory))
    env = GuidedPlacementEnv(problem)
    _, info = env.reset()
    used = np.zeros(problem.num_devices, dtype=np.int64)
    masked = 0
    for group in range(problem.num_groups):
        fits = used + problem.group_resident_bytes[group] <= problem.cluster.memory_bytes
        wanted = problem.allowed[group] & fits
        assert info["action_mask"].tolist() == (wanted if wanted.any() else problem.allowed[group]).tolist()
        masked += int((problem.allowed[group] & ~info["action_mask"]).sum())
        action = int(np.flatnonzero(info["action_mask"])[0])
        used[action] += problem.group_resident_bytes[group]
        info = env.step(action)[4]
    assert masked > 0


def test_seeds_draw_the_problems_of_a_family() -> None:
    def rollout(env: gym.Env[Any, Any], seed: int) -> list[Any]:
        seen: list[Any] = []
        for episode in range(3):
            observation, info = env.reset(seed=seed if episode == 0 else None)
            seen += [observation, info["reference_s"]]
            for _ in range(2 if not isinstance(env, GuidedOneShotEnv) else 0):
                action = int(np.flatnonzero(env.action_masks())[-1])  # type: ignore[attr-defined]
                observation, reward, *_ = env.step(np.int64(action))
                seen += [observation, reward]
        return seen

    for env in (
        GuidedPlacementEnv(problems=family, devices=4),
        GuidedOneShotEnv(problems=family, devices=4, most_groups=12),
        PlacementMovesEnv(problems=family, devices=4, most_groups=12),
    ):
        first, again, other = rollout(env, 3), rollout(env, 3), rollout(env, 4)
        assert data_equivalence(first, again, exact=True)
        assert not data_equivalence(first, other)
        references = {value for value in first if isinstance(value, float)}
        assert len(references) >= 3
        assert all(env.observation_space.contains(value) for value in first if isinstance(value, np.ndarray))


def test_problems_that_have_no_room_and_arguments_that_contradict_are_refused() -> None:
    problem = training_problem(6, 2, seed=0)
    with pytest.raises(InputError, match="has 3 devices, but the environment has room for 2; make it with devices=3"):
        GuidedPlacementEnv(problems=[problem], devices=2)
    with pytest.raises(InputError, match=r"has room for 2; make it with most_groups=\d"):
        GuidedOneShotEnv(problem, most_groups=2)
    with pytest.raises(InputError, match="one problem, a graph or problems, not two of them"):
        GuidedPlacementEnv(problem, problems=[problem])
    with pytest.raises(InputError, match="problems is empty"):
        GuidedPlacementEnv(problems=[])
    with pytest.raises(InputError, match="votes by name are for one problem"):
        GuidedPlacementEnv(problems=family, votes={})
    with pytest.raises(InputError, match="unknown credit 'simulate'"):
        GuidedPlacementEnv(problem, credit="simulate")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown unit 's'"):
        GuidedOneShotEnv(problem, unit="s")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown observation"):
        GuidedPlacementEnv(problem, observation="picture")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="failing_s is 0"):
        PlacementMovesEnv(problem, failing_s=0)
    with pytest.raises(InputError, match="moves is 0"):
        PlacementMovesEnv(problem, moves=0)
    with pytest.raises(InputError, match="unknown start"):
        PlacementMovesEnv(problem, start="here")  # type: ignore[arg-type]


def test_the_vector_environment_is_its_copies_one_by_one() -> None:
    problem = training_problem(9, 3, seed=5, room=0.7)
    choices: list[dict[str, Any]] = [{}, {"credit": "outlook", "unit": "reference"}, {"credit": "end"}]
    for arguments in choices:
        vector = gym.make_vec("DevicePlacement-v1", num_envs=9, problem=problem, **arguments)
        assert isinstance(vector, GuidedPlacementVectorEnv)
        singles = [GuidedPlacementEnv(problem, **arguments) for _ in range(9)]
        views, info = vector.reset(seed=0)
        for single, view in zip(singles, views, strict=True):
            assert single.reset(seed=0)[0].tobytes() == view.tobytes()
        rng = np.random.default_rng(0)
        for step in range(2 * problem.num_groups):
            actions = np.array([rng.choice(np.flatnonzero(row)) for row in info["action_mask"]])
            views, rewards, terminated, truncated, info = vector.step(actions)
            last = step % problem.num_groups == problem.num_groups - 1
            assert terminated.tolist() == [last] * 9
            assert not truncated.any()
            for b, single in enumerate(singles):
                view, reward, _, _, told = single.step(actions[b])
                assert reward == pytest.approx(rewards[b], abs=1e-12)
                if last:
                    assert view.tobytes() == info["final_obs"][b].tobytes()
                    assert told["step_time_s"] == info["final_info"]["step_time_s"][b]
                    assert told["placement"].tolist() == info["final_info"]["placement"][b].tolist()
                    view, told = single.reset()
                assert view.tobytes() == views[b].tobytes()
                assert told["action_mask"].tolist() == info["action_mask"][b].tolist()
            assert vector.observation_space.contains(views)
    with pytest.raises(InputError, match=r"actions have shape \[2\]; they must be \[9\]"):
        vector.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(InputError, match="action 7 is not a device; devices are 0 to 3"):
        vector.step(np.full(9, 7))


def test_the_vector_environment_draws_a_problem_for_all_copies_at_each_episode() -> None:
    vector = GuidedPlacementVectorEnv(5, problems=family, devices=4)
    _, info = vector.reset(seed=[7, None, None, None, None])
    seen = set()
    for _ in range(40):
        seen.add(vector.guide.reference_s)
        actions = info["action_mask"].argmax(axis=1)
        _, _, _, _, info = vector.step(actions)
    assert len(seen) >= 3


def test_one_shot_placements_are_worth_what_steps_are() -> None:
    problem = training_problem(9, 3, seed=6)
    env = GuidedOneShotEnv(problem, most_groups=20)
    observation, info = env.reset()
    rows = observation.reshape(20, -1)
    assert not rows[problem.num_groups :].any()
    assert info["action_mask"][: problem.num_groups].tolist() == problem.allowed.tolist()
    at = fields(problem.num_devices)
    assert rows[: problem.num_groups, at["reference"]].argmax(axis=1).tolist() == env.guide.reference.tolist()
    vector = gym.make_vec("DevicePlacementOneShot-v1", num_envs=3, problem=problem, most_groups=20)
    vector.reset()
    rng = np.random.default_rng(0)
    actions = np.zeros((3, 20), dtype=np.int64)
    actions[:, : problem.num_groups] = rng.integers(problem.num_devices, size=(3, problem.num_groups))
    _, rewards, _, _, told = vector.step(actions)
    for b in range(3):
        _, reward, terminated, _, info = env.step(actions[b])
        assert terminated
        assert reward == rewards[b]
        assert info["step_time_s"] == told["final_info"]["step_time_s"][b]
        assert reward == pytest.approx(total(GuidedPlacementEnv(problem), actions[b, : problem.num_groups])[0])
    with pytest.raises(InputError, match=r"an action must be integers of shape \[20\]"):
        env.step(np.zeros(3, dtype=np.int64))


def test_moves_earn_the_log_of_what_they_save() -> None:
    problem = training_problem(9, 3, seed=7)
    env = PlacementMovesEnv(problem, start="random", moves=6)
    _, info = env.reset(seed=1)
    start_s, earned = info["step_time_s"], 0.0
    rng = np.random.default_rng(0)
    best_s = start_s
    for step in range(6):
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        group, device = divmod(action, problem.num_devices)
        assert problem.allowed[group, device]
        assert info["placement"][group] != device
        before = info["placement"].copy()
        _, reward, terminated, truncated, info = env.step(np.int64(action))
        assert np.flatnonzero(info["placement"] != before).tolist() == [group]
        earned += float(reward)
        best_s = min(best_s, info["step_time_s"])
        assert (terminated, truncated) == (False, step == 5)
    assert earned == pytest.approx(np.log(start_s / info["step_time_s"]))
    assert info["best_step_time_s"] == best_s
    assert info["step_time_s"] == problem.evaluate(info["placement"][None]).step_time_s[0]


def test_the_best_move_by_the_outlook_is_seen() -> None:
    """Everything on one GPU of two lanes: the rows say that moving a group of the other lane saves most."""
    problem = training_problem(8, 2, seed=8)
    env = PlacementMovesEnv(problem, votes={})
    observation, _ = env.reset()
    rows = observation.reshape(problem.num_groups, -1)
    outlook = rows[:, fields(problem.num_devices)["outlook"]]
    for group in range(problem.num_groups):
        for device in np.flatnonzero(problem.allowed[group]):
            moved = env.guide.reference.copy()
            moved[group] = device
            before, after = env.guide.outlooks_s(np.stack([env.guide.reference, moved]))
            assert (outlook[group, device] > 0.5) == (np.float32(after) < np.float32(before)) or before == after


def test_the_graph_shows_groups_and_what_passes_between_them() -> None:
    problem = training_problem(8, 3, seed=9)
    env = GuidedPlacementEnv(problem, observation="graph")
    observation, _ = env.reset()
    graph = observation["graph"]
    assert graph.nodes.shape[0] == problem.num_groups
    assert graph.edge_links.shape == (len(graph.edges), 2)
    sender, reader, _ = env.guide.traffic
    assert graph.edge_links.tolist() == np.stack([sender, reader], axis=1).tolist()
    first = graph.nodes.shape[1] - 2 - problem.num_devices
    env.step(env.guide.reference[0])
    observation = env.step(env.guide.reference[1])[0]
    nodes = observation["graph"].nodes
    assert nodes[:, first].tolist() == [1.0] * 2 + [0.0] * (problem.num_groups - 2)
    assert nodes[:, first + 1].nonzero()[0].tolist() == [2]
    assert nodes[:2, first + 2 :].argmax(axis=1).tolist() == env.guide.reference[:2].tolist()
    plain = GuidedPlacementEnv(problem)
    plain.reset()
    plain.step(env.guide.reference[0])
    assert observation["state"].tobytes() == plain.step(env.guide.reference[1])[0].tobytes()
