"""A policy that learns by REINFORCE: it samples placements, and follows the gradient of what they took.

The equations are those of docs/concepts/learner.md, "An update"; their pure parts are in
`placement.learning.reinforce`.

Letters: ``B`` samples, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from placement.learning.config import LearningConfig
from placement.learning.features import make_features
from placement.learning.policy import Encoded, Seq2SeqPolicy, chosen_log_probability, entropy, gumbel_noise
from placement.learning.reinforce import (
    advantage,
    clip_gradient,
    failing_signal_s,
    leave_one_out,
    moving_average,
    reinforce_loss,
    reward_of,
)
from placement.learning.state import State
from placement.placers.best import INFEASIBLE_RATIO, BestKnown

IntArray = NDArray[np.int64]


LEARNED = ("policy", "optimizer", "generator", "baseline")
"""The fields of `placement.learning.state.State` that are a learner's."""


class Learns(Protocol):
    """What a trainer asks of what learns: `Learner`, or `placement.pretrained.learner`, which begins with weights."""

    @property
    def policy(self) -> torch.nn.Module:
        """Its weights are those after the last update."""
        ...

    def encode(self) -> Any:
        """Read the graph, with gradient."""
        ...

    def sample(self, encoded: Any) -> Tensor:
        """``int64[1 + B, G]``; row 0 is decoded greedily."""
        ...

    def advise(self, encoded: Any, placement: IntArray) -> NDArray[np.float32]:
        """``float32[G, D]`` for a search."""
        ...

    def learn(
        self, encoded: Any, sampled: Tensor, evaluation: Evaluation, known: BestKnown, updates: int
    ) -> dict[str, float]:
        """Make one step."""
        ...

    def state(self) -> dict[str, Any]:
        """Fields of `State`."""
        ...

    def restore(self, state: State) -> None:
        """Go on from a `state`."""
        ...


class Learner:
    """A policy with its optimizer, its baseline and its random numbers.

    Args:
        problem: What to place.
        config: How to build the policy, and how to learn.
        seed: Seeds the weights and the samples.

    Attributes:
        policy: Its weights are those after the last update.
        optimizer: Adam, of the policy's weights.
        generator: Where the policy's first weights and its samples come from.
        baseline: The moving average of the rewards, where the config asks for that one.
    """

    def __init__(self, problem: PlacementProblem, *, config: LearningConfig, seed: int) -> None:
        self.problem = problem
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        features = make_features(problem)
        self.policy: Seq2SeqPolicy = Seq2SeqPolicy(features, config=config.policy, generator=self.generator)
        self._features = self.policy.tensors(features)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=config.update.learning_rate)
        self._failing_s = failing_signal_s(problem, config.update.failing_ratio)
        # The paper's moving average starts at the failing signal.
        self.baseline = float(reward_of(np.array([self._failing_s]), config.update.reward)[0])

    def state(self) -> dict[str, Any]:
        """What `LEARNED` names."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "baseline": self.baseline,
        }

    def restore(self, state: State) -> None:
        """Go on from a `state` that has one of a learner."""
        assert state.policy is not None
        assert state.optimizer is not None
        assert state.generator is not None
        assert state.baseline is not None
        self.policy.load_state_dict(state.policy)
        self.optimizer.load_state_dict(state.optimizer)
        self.generator.set_state(state.generator)
        self.baseline = state.baseline

    def encode(self) -> Encoded:
        """Read the graph, with gradient."""
        return self.policy.encode(self._features)

    def sample(self, encoded: Encoded) -> Tensor:
        """``int64[1 + B, G]`` without gradient; row 0 is decoded greedily: it is reported, and not learned from."""
        shape = (self.config.update.samples + 1, self.problem.num_groups, self.problem.num_devices)
        noise = gumbel_noise(*shape, self.generator)
        noise[0] = 0.0
        return self.policy.sample(encoded, noise)

    def advise(self, encoded: Encoded, placement: IntArray) -> NDArray[np.float32]:
        """``float32[G, D]``: log-probabilities of each group's device, had the earlier ones those of ``int64[G]``."""
        with torch.no_grad():
            advice: NDArray[np.float32] = self.policy.score(encoded, torch.from_numpy(placement[None]))[0].numpy()
        return advice

    def learn(
        self,
        encoded: Encoded,
        sampled: Tensor,
        evaluation: Evaluation,
        known: BestKnown,
        updates: int,
    ) -> dict[str, float]:
        """Make one step of Adam.

        Args:
            encoded: What the samples were drawn with.
            sampled: ``int64[B, G]``.
            evaluation: Of the samples.
            known: The best so far: samples that do not fit are charged more than it takes, and the likelihood of its
                elite is raised, too.
            updates: How many steps were made before.

        Returns:
            Loss, entropy and so on: the learning's own fields of `placement.learning.stats.UpdateStats`.
        """
        config = self.config.update
        rewards = reward_of(self._charged_s(evaluation, known), config.reward)
        if config.baseline == "leave_one_out":
            baseline: NDArray[np.float64] | float = leave_one_out(rewards)
        else:
            baseline = self.baseline
            self.baseline = moving_average(self.baseline, rewards, config.baseline_decay)
        spread = float((rewards - baseline).std())
        advantages = advantage(rewards, baseline, normalise=config.normalise_advantage)
        if 0 < config.feasible_only_after <= updates:
            advantages = np.where(evaluation.feasible, advantages, 0.0)
        elite = [placement for _, placement in known.elite]
        imitating = updates < config.imitation_updates and len(elite) > 0
        if imitating:
            advantages = np.zeros_like(advantages)
        bonus = config.entropy_bonus
        if config.entropy_half_life:
            bonus *= 0.5 ** (updates / config.entropy_half_life)

        count = len(sampled)
        best = [torch.from_numpy(placement) for placement in elite]
        placements = torch.cat([sampled, torch.stack(best)]) if best else sampled
        log_probabilities = self.policy.score(encoded, placements)  # [B + elite, G, D]
        chosen = chosen_log_probability(log_probabilities, placements).sum(dim=1)  # [B + elite]
        randomness = entropy(log_probabilities[:count])  # [B, G]
        loss = reinforce_loss(chosen[:count], torch.from_numpy(advantages).float())
        loss = loss - bonus * randomness.sum(dim=1).mean()
        if best:
            loss = loss - (1.0 if imitating else config.imitation_weight) * chosen[count:].mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = clip_gradient(list(self.policy.parameters()), config.clip_norm)
        self.optimizer.step()
        return {
            "loss": loss.item(),
            "entropy": randomness.mean().item(),
            "advantage_std": spread,
            "grad_norm": norm,
            "baseline": float(np.mean(baseline)),
        }

    def _charged_s(self, evaluation: Evaluation, known: BestKnown) -> NDArray[np.float64]:
        """``float64[B]``: what the samples are charged: by the paper's failing signal where there is one."""
        if self._failing_s == 0.0:
            return known.charged_s(evaluation)
        # It is a constant, unless a step that was measured takes longer than the simulator thinks any can.
        slower_s = known.step_time_s if np.isfinite(known.step_time_s) else 0.0
        return evaluation.cost_s(max(self._failing_s, INFEASIBLE_RATIO * slower_s))
