"""REINFORCE for placements: its settings and the pure functions of one update.

References:
    Williams, "Simple statistical gradient-following algorithms", 1992.
    Mirhoseini et al., ICML 2017, section 3.2, arXiv 1706.04972: the reward, the baseline, the failing signal.
    Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019: the leave-one-out baseline.

Letters: ``B`` placements in a batch, ``D`` devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.bounds import upper_bound_s
from envs.problem import PlacementProblem
from graphs.errors import InputError

REWARDS = ("sqrt", "log")
BASELINES = ("moving_average", "leave_one_out")
FINEST = ("groups", "ops")

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ReinforceConfig:
    """How the policy is built and trained; the defaults are the `default` preset.

    Attributes:
        preset: Name that results carry.
        paper_policy: Read the paper's features and learn an embedding a device, instead of making it from features.
        hidden_size: Units of each LSTM direction and of the decoder.
        embedding_size: Size of the op types' embeddings.
        samples: Placements sampled from the policy an update.
        learning_rate: Of Adam.
        clip_norm: The gradient is scaled down to this norm where it is larger.
        entropy_bonus: Weight of the entropy (summed over the groups) in the loss, at first.
        entropy_half_life: Updates in which that weight halves; 0 keeps it.
        reward: ``sqrt``, the negative root of the step time (the paper's), or ``log``, the negative logarithm.
        baseline: ``moving_average`` over updates (the paper's), or ``leave_one_out``: the mean of the other samples.
        baseline_decay: Of the moving average.
        normalise_advantage: Divide advantages by their standard deviation over the batch.
        failing_ratio: The failing signal, the step time that an infeasible placement is charged, over the time of all
            groups one after the other on the slowest device, and no less than any step can take; where it is 0, it is
            charged more than the best feasible step, by the memory that each device lacks
            (`placement.placers.best.charged_s`).
        feasible_only_after: After this many updates infeasible samples are not learned from; 0 always learns from them.
        warm_start: Evaluate the heuristic placers first, and learn from the best of them.
        imitation_updates: Updates at the start that only imitate the elite.
        imitation_weight: Weight of the elite's log-likelihood in the loss afterwards.
        elites: How many of the best different placements so far are the elite; 0 keeps none.
        search_moves: Moves that each chain of the search (`placement.move_search`) makes an update, while the policy
            learns; fewer on graphs of many ops, so that updates stay short. 0 is no search.
        search_chains: Chains that begin, each on a core of its own where there are so many.
        search_survivors: Of these, how many go on after a quarter of the run, or of each of its rounds
            (`placement.move_search.plan`): those that stand best by then, and in rounds the first chain in any case.
        search_learning_rate: Of the weights by which the search draws its moves; 0 keeps those that were set by hand.
        search_kind_rate: Of the kinds of move; 0 keeps all equally likely.
        search_uniform_share: Share of the moves that are drawn uniformly; 1 leaves learning out of the search.
        search_finest: What the search's last stage moves: ``ops``, single ops within the graph's constraints, or
            ``groups``.
        search_advice: Whether the search asks the policy which device it would give each group.
        learns: False leaves the policy out altogether: nothing is sampled and nothing learned, the search proposes by
            itself and has all cores. For ablations.
        screen_noise: Where few evaluations are allowed, a model of the evaluator finds what to evaluate
            (`placement.learning.screening`): of a simulated problem one whose op times are off by up to this share.
    """

    preset: str = "default"
    paper_policy: bool = False
    hidden_size: int = 64
    embedding_size: int = 16
    samples: int = 32
    learning_rate: float = 3e-3
    clip_norm: float = 1.0
    entropy_bonus: float = 0.01
    entropy_half_life: int = 300
    reward: str = "log"
    baseline: str = "leave_one_out"
    baseline_decay: float = 0.9
    normalise_advantage: bool = True
    failing_ratio: float = 0.0
    feasible_only_after: int = 0
    warm_start: bool = True
    imitation_updates: int = 20
    imitation_weight: float = 0.3
    elites: int = 8
    search_moves: int = 16384
    search_chains: int = 4
    search_survivors: int = 2
    search_learning_rate: float = 0.1
    search_kind_rate: float = 0.02
    search_uniform_share: float = 0.5
    search_finest: str = "ops"
    search_advice: bool = True
    learns: bool = True
    screen_noise: float = 0.2

    def __post_init__(self) -> None:
        def need(ok: bool, message: str) -> None:
            if not ok:
                raise InputError(f"training config: {message}")

        need(self.reward in REWARDS, f"reward is '{self.reward}'; it must be one of {', '.join(REWARDS)}")
        need(self.baseline in BASELINES, f"baseline is '{self.baseline}'; it must be one of {', '.join(BASELINES)}")
        least = 2 if self.baseline == "leave_one_out" else 1
        need(self.samples >= least, f"samples is {self.samples}; baseline {self.baseline} needs at least {least}")
        for key in ("hidden_size", "embedding_size", "learning_rate", "clip_norm"):
            need(getattr(self, key) > 0, f"{key} is {getattr(self, key)}; it must be positive")
        for key in (
            "entropy_bonus",
            "entropy_half_life",
            "failing_ratio",
            "feasible_only_after",
            "elites",
            "search_moves",
        ):
            need(getattr(self, key) >= 0, f"{key} is {getattr(self, key)}; it must not be negative")
        need(
            0 <= self.search_uniform_share <= 1,
            f"search_uniform_share is {self.search_uniform_share}; it must be from 0 to 1",
        )
        need(0 <= self.screen_noise < 1, f"screen_noise is {self.screen_noise}; it must be at least 0 and below 1")
        need(self.search_chains > 0, f"search_chains is {self.search_chains}; it must be positive")
        need(
            0 < self.search_survivors <= self.search_chains,
            f"search_survivors is {self.search_survivors}; it must be from 1 to search_chains, {self.search_chains}",
        )
        need(self.search_finest in FINEST, f"search_finest is '{self.search_finest}'; it must be ops or groups")
        need(0 <= self.baseline_decay < 1, f"baseline_decay is {self.baseline_decay}; it must be in [0, 1)")
        alone = self.warm_start and self.search_moves > 0 and not self.search_advice
        need(self.learns or alone, "without learns, warm_start and search_moves must be on, and search_advice off")


PRESETS = {
    "default": ReinforceConfig(),
    # Ablations of the default, all with its start and its chains. Uniform proposals in the place of all that learns:
    "uniform": ReinforceConfig(
        preset="uniform",
        search_learning_rate=0.0,
        search_kind_rate=0.0,
        search_uniform_share=1.0,
        search_advice=False,
        learns=False,
    ),
    # the chains that learn, without the sequence-to-sequence policy;
    "moves": ReinforceConfig(preset="moves", search_advice=False, learns=False),
    # all of it, but the chains' weights stay as they were set by hand;
    "fixed": ReinforceConfig(preset="fixed", search_learning_rate=0.0, search_kind_rate=0.0),
    # all of it, but only groups are moved.
    "groups": ReinforceConfig(preset="groups", search_finest="groups"),
    # As published, where the paper says: features, learned device embeddings, root of the step time, moving-average
    # baseline that starts at the failing signal, Adam, nothing learned from failures after 5,000 updates. Its failing
    # signal of 100 s is four times the slowest single-device step that it reports (26.2 s); here it is four times that
    # of the problem at hand, since a baseline that starts a thousand steps away drowns what there is to learn. It is
    # silent about sizes, rates and the baseline's decay: these learn steadily within minutes on two cores, where larger
    # networks or rates settle on one device before the baseline has forgotten its start.
    "paper": ReinforceConfig(
        preset="paper",
        paper_policy=True,
        hidden_size=128,
        embedding_size=32,
        samples=16,
        learning_rate=3e-4,
        entropy_bonus=0.0,
        entropy_half_life=0,
        reward="sqrt",
        baseline="moving_average",
        baseline_decay=0.5,
        normalise_advantage=False,
        failing_ratio=4.0,
        feasible_only_after=5000,
        warm_start=False,
        imitation_updates=0,
        imitation_weight=0.0,
        elites=0,
        search_moves=0,
    ),
}
"""Settings by name."""


def failing_signal_s(problem: PlacementProblem, ratio: float) -> float:
    """The failing signal of a problem: `ratio` times its groups' time one after the other on the slowest device.

    But no less than any feasible step can take, or failing could be the better choice; and 0 where `ratio` is.
    """
    if ratio == 0:
        return 0.0
    return max(ratio * float(problem.group_time_s.sum(axis=0).max()), upper_bound_s(problem))


def reward_of(charged: FloatArray, reward: str) -> FloatArray:
    """``float64[B]``: the reward of a charged step time in seconds, by its name in `REWARDS`."""
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
