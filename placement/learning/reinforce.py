"""REINFORCE for placements: the pure functions of one update.

References:
    Williams, "Simple statistical gradient-following algorithms", 1992.
    Mirhoseini et al., ICML 2017, section 3.2, arXiv 1706.04972: the reward, the baseline, the failing signal.
    Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019: the leave-one-out baseline.

Letters: ``B`` placements in a batch, ``D`` devices.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.bounds import upper_bound_s
from envs.problem import PlacementProblem

FloatArray = NDArray[np.float64]


def failing_signal_s(problem: PlacementProblem, ratio: float) -> float:
    """The failing signal of a problem: `ratio` times its groups' time one after the other on the slowest device.

    But no less than any feasible step can take, or failing could be the better choice; and 0 where `ratio` is.
    """
    if ratio == 0:
        return 0.0
    return max(ratio * float(problem.group_time_s.sum(axis=0).max()), upper_bound_s(problem))


def reward_of(charged: FloatArray, reward: str) -> FloatArray:
    """``float64[B]``: the reward of a charged step time in seconds, by its name in `config.REWARDS`."""
    return -np.sqrt(charged) if reward == "sqrt" else -np.log(np.maximum(charged, 1e-12))


def leave_one_out(rewards: FloatArray) -> FloatArray:
    """``float64[B]``: for each reward the mean of the *others*; its own would shrink the gradient by ``1 - 1/B``."""
    return (rewards.sum() - rewards) / (len(rewards) - 1)


def advantage(rewards: FloatArray, baseline: FloatArray | float, *, normalise: bool) -> FloatArray:
    """``float64[B]``: reward less baseline, divided by its spread over the batch if `normalise`."""
    raw = rewards - baseline
    return raw / (raw.std() + 1e-8) if normalise else raw


def moving_average(baseline: float, rewards: FloatArray, decay: float) -> float:
    """The paper's baseline after another batch of rewards."""
    return decay * baseline + (1.0 - decay) * float(rewards.mean())


def reinforce_loss(log_probability: Tensor, advantages: Tensor) -> Tensor:
    """A scalar whose gradient is the negative of REINFORCE's estimate, ``mean(advantage * grad log p)``.

    Args:
        log_probability: ``float32[B]``, of the placements that were *measured*, under the current weights.
        advantages: ``float32[B]``, constants.
    """
    return -(advantages.detach() * log_probability).mean()


def clip_gradient(parameters: list[torch.nn.Parameter], clip_norm: float) -> float:
    """Scale the gradient down to `clip_norm` where it is larger, and return its norm before."""
    return float(torch.nn.utils.clip_grad_norm_(parameters, clip_norm))
