"""The pretrained policy on one problem: REINFORCE goes on from its weights, on the placements that it writes.

A trainer (`placement.learning.trainer`) asks it as it asks the policy that begins from nothing.

Letters: ``B`` samples, ``G`` groups, ``U`` units of groups, ``D`` devices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from placement.placers.best import BestKnown, nearest_groups
from placement.placers.quick_lists import quick_placements
from placement.placers.searching.moves import first_ops
from placement.pretrained.answering import units_of
from placement.pretrained.decode import Decoded, decode
from placement.pretrained.features import Known, read, voted
from placement.pretrained.lessons import advantage
from placement.pretrained.network import Encoded, Weights
from placement.pretrained.policy import PretrainedPolicy, chosen, entropy


class PretrainedLearner:
    """The policy with its optimizer and its random numbers.

    Args:
        problem: What to place.
        weights: To go on from.
        best: What the trainer knows: the elite is what the policy is shown.
        samples: Placements an update.
        learning_rate: Of Adam.
        entropy_bonus: Weight of the mean entropy of a decision in the loss.
        clip_norm: The gradient is scaled down to this norm where it is larger.
        seed: Of the samples.

    Attributes:
        policy: Its weights are those after the last update.
        generator: Where the samples come from.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        *,
        weights: Weights,
        best: BestKnown,
        samples: int,
        learning_rate: float,
        entropy_bonus: float,
        clip_norm: float,
        seed: int,
    ) -> None:
        self.policy: torch.nn.Module = PretrainedPolicy(weights)
        self.generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=learning_rate)
        self._best = best
        self._samples, self._entropy_bonus, self._clip_norm = samples, entropy_bonus, clip_norm
        self._units = units_of(problem)
        self._unit_of_group = self._units.groups.group_of_op[first_ops(problem.groups)]
        self._problem = problem
        self._read = read(self._units, list(quick_placements(self._units).values()))
        self._decoded: Decoded | None = None

    def encode(self) -> tuple[Known, Encoded]:
        """Read the problem with the best placements that are known by now, with gradient."""
        known = self._read
        elite = [(time_s, row) for time_s, row in self._best.elite if np.isfinite(time_s)]
        if elite:
            rows = np.stack([nearest_groups(self._units, self._problem.to_ops(row)) for _, row in elite])
            known = voted(known, rows, np.array([time_s for time_s, _ in elite]))
        return known, self._policy.encode(known)

    def sample(self, encoded: tuple[Known, Encoded]) -> Tensor:
        """``int64[1 + B, G]``; row 0 is decoded greedily: it is reported, and not learned from."""
        known, read_now = encoded
        shape = (self._samples + 1, known.problem.num_groups, known.problem.num_devices)
        uniform = torch.rand(shape, generator=self.generator).clamp(1e-20, 1.0 - 1e-7)
        noise = (-torch.log(-torch.log(uniform))).numpy()
        noise[0] = 0.0
        plain = Encoded(read_now.base.detach().numpy(), read_now.attention.detach().numpy())
        decoded = decode(self._policy.weights(), known, plain, noise, keep=True)
        self._decoded = replace(
            decoded,
            placements=decoded.placements[1:],
            outlook_s=decoded.outlook_s[1:],
            x=decoded.x[1:],
            mask=decoded.mask[1:],
        )
        return torch.from_numpy(decoded.placements[:, self._unit_of_group])

    def advise(self, encoded: tuple[Known, Encoded], placement: NDArray[np.int64]) -> NDArray[np.float32]:
        """Nothing: no search asks this policy."""
        raise AssertionError("no search asks the pretrained policy")

    def learn(
        self, encoded: tuple[Known, Encoded], sampled: Tensor, evaluation: Evaluation, known: BestKnown, updates: int
    ) -> dict[str, float]:
        """Make one step of Adam by what the samples, ``int64[B, G]``, came to; see `Learner.learn`."""
        assert self._decoded is not None
        charged_s = known.charged_s(evaluation)
        log_probabilities = self._policy.score(encoded[1], self._decoded)
        advantages = torch.from_numpy(advantage(charged_s).astype(np.float32))
        picked = chosen(log_probabilities, self._decoded.placements)
        randomness = entropy(log_probabilities).mean()
        loss = -(advantages[:, None] * picked).mean() - self._entropy_bonus * randomness
        self._optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self._clip_norm))
        self._optimizer.step()
        return {
            "loss": loss.item(),
            "entropy": randomness.item(),
            "advantage_std": float(np.log(charged_s).std()),
            "grad_norm": norm,
            "baseline": float(-np.log(charged_s).mean()),
        }

    def state(self) -> dict[str, Any]:
        """The fields of `placement.learning.state.State` that are the learner's."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "baseline": 0.0,
        }

    def restore(self, state: Any) -> None:
        """Go on from a `state`."""
        self.policy.load_state_dict(state.policy)
        self._optimizer.load_state_dict(state.optimizer)
        self.generator.set_state(state.generator)

    @property
    def _policy(self) -> PretrainedPolicy:
        assert isinstance(self.policy, PretrainedPolicy)
        return self.policy
