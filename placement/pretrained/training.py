"""Trains the pretrained policy: a fresh problem every update, imitation briefly, then REINFORCE.

An update draws a problem that was never seen, asks the quick list schedulers, and goes through the rounds that an
answer has, too: the policy samples placements, the simulator times them, the policy learns, and the best of them join
what is known of the problem before the next round.

References:
    Williams, "Simple statistical gradient-following algorithms", 1992.
    Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019: the leave-one-out baseline.

Letters: ``B`` placements in a batch, ``G`` groups.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.problem import PlacementProblem
from placement.pretrained import network
from placement.pretrained.config import PretrainConfig
from placement.pretrained.lessons import Asked, InProcess, Rollers, drawn, gains, make_lesson, rounds
from placement.pretrained.network import Weights
from placement.pretrained.policy import PretrainedPolicy
from placement.pretrained.split import FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED

_SEEDS_A_TRAINING = 10_000_019
"""How far apart the seeds of two trainings' problems are: a prime, so that long trainings hardly meet."""

_ENTROPY_PACE, _ENTROPY_RANGE = 1.02, (1e-3, 0.1)
"""By which factor an update changes the entropy's weight, and how small and large that may become."""


@dataclass(frozen=True)
class PretrainStats:
    """What an update came to.

    Attributes:
        update: Its number, from 1 on.
        family: Of its problem, or how many problems there were; the figures below are then their means.
        gain: Log of the best heuristic's step time over the best sample's, of all rounds; negative where no sample was
            as good.
        mean_gain: The same of the mean sample of the first round.
        entropy: Mean entropy of a decision, in nats.
        loss: Of the last round.
        grad_norm: Norm of the last round's gradient before it was clipped.
        validation: Mean `gain` on the validation problems, where they were looked at; else None.
    """

    update: int
    family: str
    gain: float
    mean_gain: float
    entropy: float
    loss: float
    grad_norm: float
    validation: float | None = None


class Pretrainer:
    """A policy that is trained on many problems.

    All randomness comes from the seed, and all torch work must run on one thread (`placement.learning.threads`): the
    same seed and number of updates then give the same weights, however often the training was interrupted.

    Args:
        config: How to train.
        seed: Of the first weights, the problems and the samples.
        rollers: Who goes through the rounds where an update has several problems, and through validation problems; by
            default this process. The weights are the same whoever does.

    Attributes:
        updates: Updates so far.
        best: The best weights so far by the validation problems.
        best_validation: What they came to; minus infinite while there are none.
        best_updates: Updates after which they were the weights.
    """

    def __init__(
        self, config: PretrainConfig | None = None, *, seed: int = 0, rollers: Rollers | None = None
    ) -> None:  # fmt: skip
        self.config = config or PretrainConfig()
        self.rollers = rollers or InProcess()
        self.seed = seed
        self.updates = 0
        self.best: Weights = network.initial(seed)
        self.best_validation = -math.inf
        self.best_updates = 0
        self.policy = PretrainedPolicy(self.best)
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.config.learning_rate)
        self._rng = np.random.default_rng([seed, 1])
        self._entropy_weight = self.config.entropy_bonus

    def update(self) -> PretrainStats:
        """Learn from a fresh problem, or from as many as the configuration says."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.5 ** (self.updates / self.config.half_life)
        problems = self.config.problems
        found = self._learn_from_one() if problems is None else self._learn_from_many(problems)
        self.updates += 1
        validation = self._validate() if self.updates % self.config.validate_every == 0 else None
        return replace(found, update=self.updates, validation=validation)

    def _learn_from_one(self) -> PretrainStats:
        """Make a step after each round on a problem."""
        number = self._number(self.updates)
        lesson = make_lesson(*self._drawn(number), number, self.config, imitates=self._imitates)
        charged_s, numbers = [], {"loss": 0.0, "entropy": 0.0, "grad_norm": 0.0}
        for found in rounds(self.policy, lesson, self.config, self._rng):
            charged_s.append(found.charged_s)
            self._optimizer.zero_grad()
            (found.loss - self._entropy_weight * found.randomness).backward()
            randomness = found.randomness.item()
            numbers = {"loss": found.loss.item(), "entropy": randomness, "grad_norm": self._stepped(randomness)}
        return PretrainStats(0, lesson.family, *gains(lesson, charged_s), **numbers)

    def _learn_from_many(self, count: int) -> PretrainStats:
        """Make one step by the mean gradient of several problems, whoever goes through their rounds."""
        asked = [
            Asked(
                self._number(self.updates * count + i), self.config, self.seed, self._imitates, self._entropy_weight
            )
            for i in range(count)
        ]  # fmt: skip
        found = self.rollers.roll_out(self.policy.weights(), asked)
        for name, parameter in self.policy.by_name.items():
            # In the order of the problems, so that no sum depends on who was quicker.
            mean = np.mean([one.gradients[name] for one in found], axis=0, dtype=np.float64)
            parameter.grad = torch.from_numpy(mean.astype(np.float32))
        numbers = {
            name: float(np.mean([getattr(one, name) for one in found]))
            for name in ("gain", "mean_gain", "entropy", "loss")
        }
        said = found[0].family if count == 1 else f"{count} problems"
        return PretrainStats(0, said, grad_norm=self._stepped(numbers["entropy"]), **numbers)

    def _stepped(self, randomness: float) -> float:
        """Make a step of Adam by the gradients as they are; their norm before it was clipped."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_norm))
        self._optimizer.step()
        factor = _ENTROPY_PACE if randomness < self.config.wanted_entropy else 1 / _ENTROPY_PACE
        self._entropy_weight = min(max(factor * self._entropy_weight, _ENTROPY_RANGE[0]), _ENTROPY_RANGE[1])
        return norm

    @property
    def _imitates(self) -> bool:
        return self.updates < self.config.imitation_updates

    def _number(self, count: int) -> int:
        """The seed of a training's problem, by how many were before it."""
        return FIRST_TRAINING_SEED + (self.seed * _SEEDS_A_TRAINING + count) % FIRST_VALIDATION_SEED

    def _drawn(self, number: int) -> tuple[str, PlacementProblem]:
        return drawn(number, self.config)

    def _validate(self) -> float:
        """The mean gain on the validation problems; keeps the weights where it is the best so far."""
        weights = self.policy.weights()
        numbers = range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + self.config.validation_problems)
        validation = float(np.mean(self.rollers.validate(weights, numbers, self.config)))
        if validation > self.best_validation:
            self.best, self.best_validation, self.best_updates = weights, validation, self.updates
        return validation

    def state(self) -> dict[str, Any]:
        """All that the rest of a training depends on: tensors, numbers, strings, dicts and lists."""
        return {
            "updates": self.updates,
            "weights": _tensors(self.policy.weights()),
            "optimizer": self._optimizer.state_dict(),
            "entropy_weight": self._entropy_weight,
            "rng": json.dumps(self._rng.bit_generator.state),  # integers of 128 bits
            "best": _tensors(self.best),
            "best_validation": self.best_validation,
            "best_updates": self.best_updates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            InputError: Its weights are not the policy's.
        """
        weights, best = _arrays(state["weights"]), _arrays(state["best"])
        for arrays in (weights, best):
            network.check(arrays, "the checkpoint")
        self.policy = PretrainedPolicy(weights)
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.config.learning_rate)
        self._optimizer.load_state_dict(state["optimizer"])
        self._rng.bit_generator.state = json.loads(state["rng"])
        self._entropy_weight = float(state["entropy_weight"])
        self.updates, self.best = state["updates"], best
        self.best_validation, self.best_updates = state["best_validation"], state["best_updates"]


def _tensors(weights: Weights) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in weights.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}
