"""Teach sb3-contrib's MaskablePPO, with its default hyperparameters, to place better than the best heuristic.

    pip install stable-baselines3 sb3-contrib
    python examples/learn_with_guidance.py --graph inception_v3 --cluster k80x4 --seconds 120

`DevicePlacement-v1` shows what the partial schedule knows and what the heuristics would do, and rewards each step with
what it changes. Its copies are one vector environment without Python in its inner loop; the class `Copies` hands it to
Stable-Baselines3, which has an interface of its own.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

import placement


class Copies(VecEnv):
    """A `DevicePlacement-v1` vector environment, as Stable-Baselines3 wants it."""

    def __init__(self, copies: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        self.num_envs, self.copies = copies.num_envs, copies
        super().__init__(copies.num_envs, copies.single_observation_space, copies.single_action_space)
        self.step_times_s: list[np.ndarray] = []  # of each round of episodes, as charged

    def reset(self) -> np.ndarray:
        """Begin."""
        return self.copies.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions."""
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Place the next group of each copy."""
        observations, rewards, ended, _, info = self.copies.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended.all():  # the copies end together
            final, failing_s = info["final_info"], self.get_attr("guide")[0].failing_s
            self.step_times_s.append(np.where(final["feasible"], final["step_time_s"], failing_s))
            infos = [{"terminal_observation": observation} for observation in info["final_obs"]]
        return observations, rewards, ended, infos

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """For `action_masks`: a row a copy."""
        return list(getattr(self.copies, method_name)(*args, **kwargs))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """What all copies share."""
        return [getattr(self.copies, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set it for all copies."""
        setattr(self.copies, attr_name, value)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No copy is wrapped."""
        return [False] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Nothing is random but what the agent draws."""
        return [None] * self.num_envs

    def close(self) -> None:
        """Nothing is open."""


class Clock(BaseCallback):
    """Stops after some seconds of processor time, and keeps a curve: seconds, steps, mean step time of each update."""

    def __init__(self, limit_s: float) -> None:
        super().__init__()
        self.limit_s, self.began, self.seen = limit_s, time.process_time(), 0
        self.curve: list[tuple[float, int, float]] = []

    def _on_step(self) -> bool:
        return time.process_time() - self.began < self.limit_s

    def _on_rollout_end(self) -> None:
        rounds = self.training_env.step_times_s[self.seen :]  # type: ignore[attr-defined]
        self.seen += len(rounds)
        if rounds:
            self.curve.append((time.process_time() - self.began, self.num_timesteps, float(np.mean(rounds))))


def placements_s(model: MaskablePPO, copies: Copies, rounds: int, deterministic: bool) -> np.ndarray:
    """Step times of placements that the policy makes, `rounds` times as many as there are copies."""
    copies.step_times_s.clear()
    observations: Any = copies.reset()
    while len(copies.step_times_s) < rounds:
        masks = np.stack(copies.env_method("action_masks"))
        actions, _ = model.predict(observations, action_masks=masks, deterministic=deterministic)
        observations = copies.step(actions)[0]
    return np.concatenate(copies.step_times_s)


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--graph", default="inception_v3")
parser.add_argument("--cluster", default="k80x4")
parser.add_argument("--groups", type=int, default=64, help="groups of ops to place, and so steps of an episode")
parser.add_argument("--seconds", type=float, default=120.0, help="of processor time, all cores together")
parser.add_argument("--steps", type=int, default=10**9, help="placed groups to learn from at most")
parser.add_argument(
    "--copies", type=int, default=1, help="environments at a time; an update takes as many times 2,048 steps"
)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--json", type=Path, help="write what came of it, and the curve, into this file")
args = parser.parse_args()

torch.set_num_threads(1)
problem = placement.make_problem(args.graph, args.cluster, groups=args.groups)
copies = Copies(
    gym.make_vec(
        "envs:DevicePlacement-v1",
        num_envs=args.copies,
        problem=problem,
        votes=placement.heuristic_placements,
        unit="reference",
    )
)
copies.reset()
guide = copies.get_attr("guide")[0]
best_heuristic = guide.names[int(np.argmin(guide.votes_s))]
model = MaskablePPO("MlpPolicy", copies, seed=args.seed)
clock = Clock(args.seconds)
model.learn(args.steps, callback=clock)
learned_s = time.process_time() - clock.began
rounds = max(256 // args.copies, 1)
sampled_s, greedy_s = (placements_s(model, copies, n, greedy) for n, greedy in ((rounds, False), (1, True)))
print(
    f"{args.graph} on {args.cluster}, {problem.num_groups} groups, {model.num_timesteps:,} steps in {learned_s:.0f} s: "
    f"the policy's mean {sampled_s.mean() * 1e3:.2f} ms, its likeliest placement {greedy_s[0] * 1e3:.2f} ms; "
    f"best heuristic ({best_heuristic}) {guide.reference_s * 1e3:.2f} ms"
)
if args.json is not None:
    row = {
        "graph": args.graph,
        "cluster": args.cluster,
        "groups": problem.num_groups,
        "seed": args.seed,
        "seconds": learned_s,
        "steps": model.num_timesteps,
        "heuristic": best_heuristic,
        "heuristic_s": guide.reference_s,
        "mean_s": float(sampled_s.mean()),
        "greedy_s": float(greedy_s[0]),
        "curve": clock.curve,
    }
    args.json.write_text(json.dumps(row))
