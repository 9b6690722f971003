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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.problem import PlacementProblem
from graphs.colocation.coarsening import coarsen
from graphs.colocation.groups import one_group_an_op
from graphs.errors import InputError
from placement.placers import HEURISTICS
from placement.placers.base import Budget
from placement.placers.quick_lists import quick_placements
from placement.pretrained import network
from placement.pretrained.decode import Decoded, decode, gumbel
from placement.pretrained.features import Known, joined, read
from placement.pretrained.network import Encoded, Weights
from placement.pretrained.policy import PretrainedPolicy, chosen, entropy
from placement.pretrained.problems import draw
from placement.pretrained.split import FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED, TRAINED_ON

_SEEDS_A_TRAINING = 10_000_019
"""How far apart the seeds of two trainings' problems are: a prime, so that long trainings hardly meet."""

_LEAST_SPREAD = 0.005
"""Differences are counted in their spread, or in this share of a step time where the samples are more alike."""

_MOST_SPREADS = 2.5
"""A sample that is ahead of the mean by more spreads counts as if by so many."""

_MOST_GAIN = 0.5
"""A validation problem counts for no more gain or loss than this."""

_ENTROPY_PACE, _ENTROPY_RANGE = 1.02, (1e-3, 0.1)
"""By which factor an update changes the entropy's weight, and how small and large that may become."""


@dataclass(frozen=True)
class PretrainConfig:
    """How the policy is trained.

    Attributes:
        samples: Placements a round.
        rounds: Rounds an update: after each the best samples are known to the next.
        learning_rate: Of Adam, at first.
        half_life: Updates in which it halves.
        entropy_bonus: Weight of the mean entropy of a decision in the loss, at first.
        wanted_entropy: Nats a decision: the weight rises where the policy decides more surely, and falls otherwise.
        clip_norm: The gradient is scaled down to this norm where it is larger.
        imitation_updates: Updates at the start that imitate what a short search finds.
        imitation_evaluations: Placements that this search evaluates.
        contiguous_evaluations: Placements that the heuristic of contiguous runs may evaluate; the others evaluate none.
        groups: Wanted numbers of groups, or of parts of groups; each problem has one of them.
        parts_share: Share of the problems whose groups are parted as finely as that number allows.
        validation_problems: Problems of families that are trained on, by which the best weights are chosen.
        validate_every: Updates between two looks at them.
    """

    samples: int = 16
    rounds: int = 3
    learning_rate: float = 1e-3
    half_life: int = 500
    entropy_bonus: float = 0.01
    wanted_entropy: float = 0.25
    clip_norm: float = 1.0
    imitation_updates: int = 40
    imitation_evaluations: int = 300
    contiguous_evaluations: int = 100
    groups: tuple[int, ...] = (24, 32, 48, 64, 64, 96)
    parts_share: float = 0.7
    validation_problems: int = 12
    validate_every: int = 100

    def __post_init__(self) -> None:
        for name, least in (("samples", 2), ("rounds", 1), ("half_life", 1), ("validate_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"pretraining: {name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class PretrainStats:
    """What an update came to.

    Attributes:
        update: Its number, from 1 on.
        family: Of its problem.
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

    Attributes:
        updates: Updates so far.
        best: The best weights so far by the validation problems.
        best_validation: What they came to; minus infinite while there are none.
        best_updates: Updates after which they were the weights.
    """

    def __init__(self, config: PretrainConfig | None = None, *, seed: int = 0) -> None:
        self.config = config or PretrainConfig()
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
        """Learn from a fresh problem."""
        config = self.config
        number = FIRST_TRAINING_SEED + (self.seed * _SEEDS_A_TRAINING + self.updates) % FIRST_VALIDATION_SEED
        family, problem = self._drawn(number)
        known = self._known(problem, number)
        heuristic_s = known.best_s
        target = self._searched(problem, number) if self.updates < config.imitation_updates else None
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5 ** (self.updates / config.half_life)
        best_s, mean_gain, numbers = math.inf, 0.0, {"loss": 0.0, "entropy": 0.0, "grad_norm": 0.0}
        for turn in range(config.rounds):
            encoded = self.policy.encode(known)
            decoded = self._decoded(known, encoded, config.samples)
            charged_s = known.charged_s(decoded.placements)
            if turn == 0:
                mean_gain = float(np.mean(np.log(heuristic_s / charged_s)))
            best_s = min(best_s, float(charged_s.min()))
            if target is not None:
                aimed = self._decoded(known, encoded, 1, target=target[None])
                log_probabilities = self.policy.score(encoded, aimed)
                loss = imitation_loss(log_probabilities, aimed)
            else:
                log_probabilities = self.policy.score(encoded, decoded)
                advantages = torch.from_numpy(advantage(charged_s).astype(np.float32))
                loss = -(advantages[:, None] * chosen(log_probabilities, decoded.placements)).mean()
            numbers = self._stepped(loss, log_probabilities)
            known = joined(known, decoded.placements, charged_s)
        self.updates += 1
        validation = self._validate() if self.updates % config.validate_every == 0 else None
        return PretrainStats(
            update=self.updates,
            family=family,
            gain=math.log(heuristic_s / best_s),
            mean_gain=mean_gain,
            validation=validation,
            **numbers,
        )

    def _stepped(self, loss: Tensor, log_probabilities: Tensor) -> dict[str, float]:
        """Make a step of Adam, with the bonus for entropy."""
        randomness = entropy(log_probabilities).mean()
        self._optimizer.zero_grad()
        (loss - self._entropy_weight * randomness).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_norm))
        self._optimizer.step()
        factor = _ENTROPY_PACE if randomness.item() < self.config.wanted_entropy else 1 / _ENTROPY_PACE
        self._entropy_weight = min(max(factor * self._entropy_weight, _ENTROPY_RANGE[0]), _ENTROPY_RANGE[1])
        return {"loss": loss.item(), "entropy": randomness.item(), "grad_norm": norm}

    def _decoded(
        self, known: Known, encoded: Encoded, count: int, target: NDArray[np.int64] | None = None
    ) -> Decoded:  # fmt: skip
        """Samples, or what the policy says of a target on the way to it."""
        plain = Encoded(encoded.base.detach().numpy(), encoded.attention.detach().numpy())
        return decode(
            self.policy.weights(), known, plain, gumbel(self._rng, count, known), target=target, keep=True
        )  # fmt: skip

    def _drawn(self, number: int) -> tuple[str, PlacementProblem]:
        rng = np.random.default_rng([number, 1])
        count = int(rng.choice(self.config.groups))
        drawn = draw(number, families=TRAINED_ON, groups=count)
        problem = drawn.problem
        if rng.random() < self.config.parts_share:
            graph = problem.graph
            problem = problem.with_groups(coarsen(graph, one_group_an_op(graph), count, within=problem.groups))
        return drawn.family, problem

    def _known(self, problem: PlacementProblem, number: int) -> Known:
        """A problem with what the quick heuristics answer."""
        budget = Budget(evaluations=self.config.contiguous_evaluations)
        rng = np.random.default_rng([number, 3])
        runs = HEURISTICS["contiguous"].function(problem, budget=budget, rng=rng).placement
        return read(problem, [*quick_placements(problem).values(), runs])

    def _searched(self, problem: PlacementProblem, number: int) -> NDArray[np.int64]:
        """``int64[G]``: what a short search finds, for the policy to imitate."""
        budget = Budget(evaluations=self.config.imitation_evaluations)
        rng = np.random.default_rng([number, 2])
        return HEURISTICS["local_search"].function(problem, budget=budget, rng=rng).placement

    @cached_property
    def _validation(self) -> list[Known]:
        """The validation problems, which are the same for every training."""
        made = []
        for number in range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + self.config.validation_problems):
            _, problem = self._drawn(number)
            made.append(self._known(problem, number))
        return made

    def _validate(self) -> float:
        """The mean gain on the validation problems; keeps the weights where it is the best so far."""
        weights = self.policy.weights()
        gains = []
        for number, known in enumerate(self._validation):
            found_s = answered_s(weights, known, samples=self.config.samples, rounds=self.config.rounds, seed=number)
            gain = math.log(known.best_s / found_s)
            # Where only one side fits the ratio is of charges, which are far apart.
            gains.append(min(max(gain, -_MOST_GAIN), _MOST_GAIN))
        validation = float(np.mean(gains))
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


def answered_s(weights: Weights, known: Known, *, samples: int, rounds: int, seed: int) -> float:
    """What the best placement of the policy itself is charged: samples in rounds, the first of each the likeliest."""
    rng = np.random.default_rng(seed)
    best_s = math.inf
    for _ in range(rounds):
        encoded = network.encode(weights, known.groups, known.pairs)
        noise = gumbel(rng, samples, known)
        noise[0] = 0.0
        placements = decode(weights, known, encoded, noise).placements
        charged_s = known.charged_s(placements)
        best_s = min(best_s, float(charged_s.min()))
        known = joined(known, placements, charged_s)
    return best_s


def advantage(charged_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """``float64[B]``: how much better each sample is than the others, where the best of them is what counts.

    An answer is the best of many samples. A policy that raises the mean soon writes one placement only, the best that
    it was shown; so the reward is a utility that seeks risk, the exponential of how many spreads the log of a sample's
    step time is below the mean (Howard and Matheson, "Risk-sensitive Markov decision processes", 1972). The baseline is
    the mean utility of the *other* samples.

    Args:
        charged_s: ``float64[B]``, what the placements are charged.
    """
    times = np.log(np.maximum(charged_s, 1e-12))
    ahead = (times.mean() - times) / (times.std() + _LEAST_SPREAD)
    utility = np.exp(np.minimum(ahead, _MOST_SPREADS))
    others: NDArray[np.float64] = (utility.sum() - utility) / (len(utility) - 1)
    return utility - others


def imitation_loss(log_probabilities: Tensor, aimed: Decoded) -> Tensor:
    """Minus the mean log-likelihood of a placement, of the decisions that the policy may make."""
    may = torch.from_numpy(np.take_along_axis(aimed.mask, aimed.placements[:, :, None], axis=2)[:, :, 0])
    return -torch.where(may, chosen(log_probabilities, aimed.placements), 0.0).mean()


def _tensors(weights: Weights) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in weights.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}
