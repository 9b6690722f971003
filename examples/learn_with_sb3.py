"""Learn a placement with agents of others: Stable-Baselines3's PPO, and sb3-contrib's MaskablePPO.

    pip install stable-baselines3 sb3-contrib
    python examples/learn_with_sb3.py --steps 30000

An episode places one group of ops after the other; its reward is -sqrt(step time in seconds). A placement that does not
fit, or puts an op where it may not be, is charged more seconds than any step takes. MaskablePPO draws only devices that
are allowed, so it starts much lower.
"""

import argparse

import gymnasium as gym
import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

import placement

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--graph", default="rnnlm:steps=6,batch=64")
parser.add_argument("--cluster", default="k80x4")
parser.add_argument("--groups", type=int, default=16, help="groups of ops to place, and so steps of an episode")
parser.add_argument("--steps", type=int, default=30_000, help="of each agent")
args = parser.parse_args()

problem = placement.make_problem(args.graph, args.cluster, groups=args.groups)
for agent in (PPO, MaskablePPO):
    env = gym.make("envs:DevicePlacement-v0", problem=problem)
    env = gym.wrappers.RecordEpisodeStatistics(env, buffer_length=args.steps)
    model = agent("MlpPolicy", env, n_steps=256, batch_size=64, learning_rate=2e-3, gamma=1.0, seed=0)
    model.learn(args.steps)
    step_times_s = np.square(np.array(env.return_queue))  # [episodes], as charged
    tenth = len(step_times_s) // 10
    print(
        f"{agent.__name__}: mean step time {step_times_s[:tenth].mean() * 1e3:.2f} ms in the first tenth of "
        f"{len(step_times_s):,} episodes, {step_times_s[-tenth:].mean() * 1e3:.2f} ms in the last; "
        f"best {step_times_s.min() * 1e3:.2f} ms"
    )
