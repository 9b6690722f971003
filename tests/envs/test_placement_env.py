"""The environments keep Gymnasium's contract, reward what the problem answers, and train with SB3 as they are."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

import envs  # noqa: F401  (registers the ids)
from envs.clusters.catalog import load_cluster
from envs.observation import Observer, fields, static_fields
from envs.placement_env import DevicePlacementEnv, DevicePlacementOneShotVectorEnv, default_failing_s
from envs.problem import Evaluation, PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.files import save_graph_file
from graphs.synthetic import random_graph


def small_problem(cluster: str = "k80x2") -> PlacementProblem:
    """An input, pinned to the host, that three branches read; a join reads the branches."""
    mb = 1_000_000
    ops = [OpRecord("x", "input")]
    ops += [
        OpRecord(
            f"branch{i}", "mm", flops=(i + 1) * 10**10, bytes_accessed=mb, resident_bytes={"parameter": (i + 1) * mb}
        )
        for i in range(3)
    ]
    ops += [OpRecord("join", "add", bytes_accessed=4 * mb)]
    tensors = [TensorRecord(0, mb, (1, 2, 3))] + [TensorRecord(i, i * mb, (4,)) for i in (1, 2, 3)]
    graph = build("branches", ops, tensors)
    return PlacementProblem(graph, one_group_an_op(graph), load_cluster(cluster))


def two_lanes() -> PlacementProblem:
    """Two chains of four products without traffic between them: two GPUs take half of one's time."""
    ops = [OpRecord(f"{lane}{i}", "mm", flops=10**10, bytes_accessed=1000) for i in range(4) for lane in "ab"]
    tensors = [TensorRecord(i, 1000, (i + 2,)) for i in range(6)]
    graph = build("lanes", ops, tensors)
    return PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))


def play(
    env: gym.Env[Any, Any], actions: list[int]
) -> list[tuple[NDArray[np.float32], SupportsFloat, bool, bool, dict[str, Any]]]:
    env.reset(seed=0)
    return [env.step(np.int64(action)) for action in actions]


@pytest.mark.parametrize("name", ["DevicePlacement-v0", "DevicePlacementOneShot-v0"])
def test_gymnasium_finds_no_fault(name: str) -> None:
    env = gym.make(name, disable_env_checker=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The checker wants an unwrapped environment; it makes others from the spec.
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", ["DevicePlacement-v0", "DevicePlacementOneShot-v0"])
def test_stable_baselines3_finds_no_fault(name: str) -> None:
    from stable_baselines3.common.env_checker import check_env as check_with_sb3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is out of date")  # there is a newer version, and the first one stays
        check_with_sb3(gym.make(name).unwrapped)


def test_registering_loads_no_torch_and_builds_nothing() -> None:
    code = "import envs, sys; assert 'torch' not in sys.modules and 'envs.placement_env' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seeded_rollouts_are_equal() -> None:
    def rollout() -> list[Any]:
        env = gym.make("DevicePlacement-v0", problem=small_problem("k80x4"))
        env.action_space.seed(3)
        seen: list[Any] = [env.reset(seed=3)[0].tobytes()]
        for _ in range(5):
            observation, reward, terminated, _, info = env.step(env.action_space.sample())
            seen += [observation.tobytes(), reward, terminated, info["action_mask"].tobytes()]
        return [*seen, info["placement"].tobytes(), info["step_time_s"]]

    assert rollout() == rollout()


def test_only_the_last_step_is_rewarded_with_what_the_problem_answers() -> None:
    problem = small_problem()
    env = DevicePlacementEnv(problem)
    for placement in ([0, 1, 1, 1, 1], [0, 1, 2, 2, 0], [0, 0, 0, 0, 0]):
        steps = play(env, placement)
        assert [step[1] for step in steps[:-1]] == [0.0] * 4
        assert [step[2] for step in steps] == [False] * 4 + [True]
        evaluation = problem.evaluate(np.array([placement]))
        assert evaluation.feasible[0]
        info = steps[-1][4]
        assert steps[-1][1] == -np.sqrt(evaluation.step_time_s[0])
        assert info["step_time_s"] == evaluation.step_time_s[0]
        assert info["feasible"] is True
        assert info["placement"].tolist() == placement
        assert info["peak_memory_bytes"].tolist() == evaluation.peak_memory_bytes[0].tolist()


def test_masks_hold_the_pinned_input_and_the_allowed_kinds() -> None:
    env = DevicePlacementEnv(small_problem())
    _, info = env.reset()
    assert env.action_masks().tolist() == info["action_mask"].tolist() == [True, False, False]
    info = env.step(0)[4]
    assert env.action_masks().tolist() == info["action_mask"].tolist() == [True, True, True]
    one_shot = gym.make("DevicePlacementOneShot-v0", problem=small_problem())
    mask = one_shot.reset()[1]["action_mask"]
    assert mask.shape == (5, 3)
    assert mask[0].tolist() == [True, False, False]
    assert mask[1:].all()
    assert one_shot.unwrapped.action_masks().tolist() == mask.ravel().tolist()  # type: ignore[attr-defined]


def test_a_device_that_is_not_allowed_costs_the_failing_signal() -> None:
    problem = small_problem()
    env = DevicePlacementEnv(problem)
    steps = play(env, [1, 1, 1, 1, 1])
    assert steps[-1][1] == -np.sqrt(default_failing_s(problem))
    assert steps[-1][4]["feasible"] is False


def test_failing_is_never_better_than_a_placement_that_mostly_waits_for_transfers() -> None:
    """Eight ops that take microseconds, and each sends 100 MB to the next: 10 ms on the way."""
    ops = [OpRecord(f"op{i}", "add", bytes_accessed=1000) for i in range(8)]
    graph = build("chain", ops, [TensorRecord(i, 10**8, [i + 1]) for i in range(7)])
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
    slow = play(DevicePlacementEnv(problem), [1, 2, 1, 2, 1, 2, 1, 2])[-1]
    assert slow[4]["feasible"]
    assert slow[4]["step_time_s"] > 0.07
    assert slow[1] >= -np.sqrt(default_failing_s(problem))


def test_a_placement_that_does_not_fit_costs_the_failing_signal() -> None:
    # Three branches keep 1, 2 and 3 MB; GPUs of 16 MB hold them with their tensors, GPUs of 4 MB do not.
    env = DevicePlacementEnv(small_problem("k80x2:memory_bytes=16e6"), failing_s=9.0)
    assert play(env, [0, 1, 1, 2, 2])[-1][4]["feasible"] is True
    last = play(DevicePlacementEnv(small_problem("k80x2:memory_bytes=4e6"), failing_s=9.0), [0, 1, 1, 1, 1])[-1]
    assert last[1] == -3.0
    assert last[4]["feasible"] is False
    assert last[4]["peak_memory_bytes"][1] > 4e6


def test_every_field_of_the_observation() -> None:
    problem = small_problem()
    env = DevicePlacementEnv(problem)
    at = fields(3)
    first, _ = env.reset()
    assert first.shape == env.observation_space.shape == (5 + 7 * 3,)
    assert [list(range(first.size))[part] for part in at.values()][-1][-1] == first.size - 1
    # The input: a fifth of nothing placed; it sends its 1 MB to three groups, none of them placed.
    assert first[at["progress"]] == 0
    assert first[at["sends_unplaced"]] == 1
    assert first[at["reads_unplaced"]] == 0
    assert first[at["allowed"]].tolist() == [1, 0, 0]
    assert first[at["time"]].tolist() == first[at["last_device"]].tolist() == [0, 0, 0]
    steps = play(env, [0, 1, 2, 1, 0])
    # After the input on 0 and branch 0 on 1, branch 1 is next: it reads 1 MB from device 0 and sends 2 MB to the join.
    second = steps[1][0]
    assert second[at["progress"]] == pytest.approx(2 / 5)
    assert second[at["reads_from"]] == pytest.approx([1 / 3, 0, 0])
    assert second[at["sends_to"]].tolist() == [0, 0, 0]
    assert second[at["sends_unplaced"]] == pytest.approx(2 / 3)
    assert second[at["last_device"]].tolist() == [0, 1, 0]
    assert second[at["memory"]] == pytest.approx([0, 1e6 / 11.4e9, 0])
    # Memory shares are of the largest device's, here the host's 243.2 GB.
    assert second[at["resident"]] == pytest.approx(2e6 / 243.2e9)
    longest = problem.group_time_s.max()
    assert second[at["time"]] == pytest.approx(problem.group_time_s[2] / longest)
    fair = problem.group_time_s.min(axis=1).sum() / 3
    on_one = problem.group_time_s[1, 1]
    assert second[at["load"]] == pytest.approx([0, on_one / (on_one + fair), 0])
    # The join reads 1 and 3 MB from device 1 and 2 MB from device 2.
    assert steps[3][0][at["reads_from"]] == pytest.approx([0, 4 / 6, 2 / 6])
    last = steps[4][0]
    assert last[at["progress"]] == 1
    group_fields = [
        "num_ops",
        "resident",
        "reads_unplaced",
        "sends_unplaced",
        "time",
        "allowed",
        "reads_from",
        "sends_to",
    ]
    for name in group_fields:
        assert not last[at[name]].any(), name
    assert last[at["last_device"]].tolist() == [1, 0, 0]


def test_traffic_counts_a_tensor_once_for_each_group_and_both_directions_when_groups_are_out_of_order() -> None:
    # Groups {a, c} and {b}: a -> b -> c, so the first group both sends to and reads from the second.
    ops = [OpRecord(name, "add", bytes_accessed=8) for name in "abcd"]
    graph = build("loop", ops, [TensorRecord(0, 10, (1, 3)), TensorRecord(1, 30, (2,))], colocation=[(0, 2), (1, 3)])
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
    assert problem.num_groups == 2
    at, static_at = fields(3), static_fields(3)
    observer = Observer(problem)
    view = observer.observe(np.array([1, 0]), 1)
    assert view[at["reads_from"]] == pytest.approx([0, 10 / 40, 0])
    assert view[at["sends_to"]] == pytest.approx([0, 30 / 40, 0])
    assert observer.static[:, static_at["reads"]].ravel() == pytest.approx([1, 10 / 30])
    assert observer.static[:, static_at["sends"]].ravel() == pytest.approx([10 / 30, 1])


@pytest.mark.parametrize("cluster", ["k80x2", "v100x8", "mixed"])
def test_observations_stay_in_their_box(cluster: str) -> None:
    graph = random_graph(60, resident_bytes=10**9, seed=1)
    env = DevicePlacementEnv(PlacementProblem(graph, one_group_an_op(graph), load_cluster(cluster)))
    rng = np.random.default_rng(0)
    env.reset()
    for _ in range(60):
        observation = env.step(rng.integers(env.problem.num_devices))[0]
        assert env.observation_space.contains(observation)


def test_a_finished_episode_wants_a_reset_and_a_device_must_exist() -> None:
    env = DevicePlacementEnv(small_problem())
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    play(env, [0] * 5)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset()
    with pytest.raises(InputError, match="action 3 is not a device; devices are 0 to 2"):
        env.step(3)


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="not both"):
        DevicePlacementEnv(small_problem(), graph="rnnlm")
    with pytest.raises(InputError, match="failing_s is 0"):
        DevicePlacementEnv(small_problem(), failing_s=0)
    with pytest.raises(InputError, match="unknown cluster 'k80x3'"):
        DevicePlacementEnv(cluster="k80x3")


def test_the_one_shot_environment_agrees_with_step_by_step_placement() -> None:
    problem = small_problem()
    one_shot = gym.make("DevicePlacementOneShot-v0", problem=problem)
    for placement in ([0, 1, 2, 1, 2], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]):
        step_by_step = play(DevicePlacementEnv(problem), placement)[-1]
        one_shot.reset()
        _, reward, terminated, truncated, info = one_shot.step(np.array(placement))
        assert (reward, terminated, truncated) == (step_by_step[1], True, False)
        for key in ("step_time_s", "feasible"):
            assert info[key] == step_by_step[4][key]
        assert info["placement"].tolist() == placement
    with pytest.raises(InputError, match="placements must be integers"):
        one_shot.unwrapped.step(np.array([0, 1]))


def test_the_vector_twin_is_gymnasiums_vectorisation_in_one_call() -> None:
    problem = small_problem("k80x4")
    twin = gym.make_vec("DevicePlacementOneShot-v0", num_envs=6, problem=problem)
    assert isinstance(twin, DevicePlacementOneShotVectorEnv)
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    plain = gym.make_vec(
        "DevicePlacementOneShot-v0", num_envs=6, vectorization_mode="sync", vector_kwargs=same_step, problem=problem
    )
    assert twin.single_action_space == plain.single_action_space
    assert twin.action_space == plain.action_space
    assert twin.observation_space == plain.observation_space
    first, info = twin.reset(seed=1)
    again, plain_info = plain.reset(seed=1)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(info["action_mask"], plain_info["action_mask"])
    twin.action_space.seed(5)
    calls: list[int] = []
    evaluate = PlacementProblem.evaluate

    def counted(problem: PlacementProblem, placements: np.ndarray) -> Evaluation:
        calls.append(len(placements))
        return evaluate(problem, placements)

    for _ in range(3):
        actions = twin.action_space.sample()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PlacementProblem, "evaluate", counted)
            results = twin.step(actions)
        others = plain.step(actions)
        for mine, other in zip(results[:4], others[:4], strict=True):
            np.testing.assert_array_equal(mine, other)
            assert np.asarray(mine).dtype == np.asarray(other).dtype
        assert set(results[4]) == set(others[4])
        np.testing.assert_array_equal(results[4]["_final_info"], others[4]["_final_info"])
        for key in ("step_time_s", "feasible", "peak_memory_bytes", "placement"):
            np.testing.assert_array_equal(results[4]["final_info"][key], others[4]["final_info"][key])
            np.testing.assert_array_equal(results[4]["final_info"][f"_{key}"], others[4]["final_info"][f"_{key}"])
        np.testing.assert_array_equal(results[4]["final_obs"], np.stack(others[4]["final_obs"]))
    assert calls == [6, 6, 6]
    with pytest.raises(InputError, match=r"actions have shape \[2, 5\]; they must be \[6, 5\]"):
        twin.step(np.zeros((2, 5), dtype=np.int64))


def test_ppo_of_stable_baselines3_learns_to_use_both_gpus() -> None:
    import torch
    from stable_baselines3 import PPO

    torch.set_num_threads(1)
    problem = two_lanes()
    one_gpu = float(problem.evaluate(np.ones((1, 8), dtype=np.int64)).step_time_s[0])
    env = gym.make("DevicePlacement-v0", problem=problem)
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, n_epochs=8, learning_rate=3e-3, seed=0, device="cpu")
    model.learn(5_000)
    observation, _ = env.reset()
    terminated = False
    while not terminated:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, terminated, _, info = env.step(action)
    assert info["feasible"]
    # The best is half of one GPU's time, a lane each; a random placement takes about 3.5 times that of one GPU.
    assert info["step_time_s"] < 0.75 * one_gpu


def test_a_graph_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "step.graph.json"
    save_graph_file(random_graph(30, seed=2), path)
    env = DevicePlacementEnv(graph=str(path), cluster="mixed", groups=6, schedule="fifo")
    assert env.problem.num_groups <= 6
    assert (env.problem.cluster.name, env.problem.schedule) == ("mixed", "fifo")
    env.reset()
    for _ in range(env.problem.num_groups):
        _, reward, terminated, _, info = env.step(1)
    assert terminated
    assert info["feasible"]
    assert reward == -np.sqrt(info["step_time_s"])
