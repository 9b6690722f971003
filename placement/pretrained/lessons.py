"""What the pretrained policy learns from: a problem that was never seen, what is known of it, and rounds of samples.

Letters: ``B`` placements in a batch, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.problem import PlacementProblem
from graphs.colocation.coarsening import coarsen
from graphs.colocation.groups import one_group_an_op
from placement.placers import HEURISTICS
from placement.placers.base import Budget
from placement.placers.quick_lists import quick_placements
from placement.pretrained import network
from placement.pretrained.config import PretrainConfig
from placement.pretrained.decode import Decoded, decode, gumbel
from placement.pretrained.features import Known, joined, read
from placement.pretrained.network import Encoded, Weights
from placement.pretrained.policy import PretrainedPolicy, chosen, entropy
from placement.pretrained.problems import draw
from placement.pretrained.split import FIRST_VALIDATION_SEED, TRAINED_ON

_LEAST_SPREAD = 0.005
"""Differences are counted in their spread, or in this share of a step time where the samples are more alike."""

_MOST_SPREADS = 2.5
"""A sample that is ahead of the mean by more spreads counts as if by so many."""

_MOST_GAIN = 0.5
"""A validation problem counts for no more gain or loss than this."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """A problem to learn from.

    Attributes:
        family: Of its graph.
        known: The problem with what the quick heuristics answer.
        target: ``int64[G]``, a placement to imitate; None where the policy learns from its own samples.
    """

    family: str
    known: Known
    target: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class Round:
    """What one round of samples came to.

    Attributes:
        loss: What the policy is to make smaller, with gradient; the bonus for entropy is no part of it.
        randomness: Mean entropy of a decision, in nats, with gradient.
        charged_s: ``float64[B]``, what the samples are charged.
    """

    loss: Tensor
    randomness: Tensor
    charged_s: NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """A problem that a policy is to learn from, as plain data.

    Attributes:
        number: The problem's seed.
        config: How the policy is trained.
        seed: Of the training.
        imitates: Whether it imitates what a short search finds.
        entropy_weight: Of the bonus for entropy.
    """

    number: int
    config: PretrainConfig
    seed: int
    imitates: bool
    entropy_weight: float


@dataclass(frozen=True, eq=False)
class RolledOut:
    """What all rounds on one problem came to, under weights that stayed the same.

    Attributes:
        family: Of its graph.
        gain: Log of the best heuristic's step time over the best sample's, of all rounds.
        mean_gain: The same of the mean sample of the first round.
        loss: Of the last round.
        entropy: Mean over the rounds, in nats a decision.
        gradients: The mean over the rounds, by the weights' names.
    """

    family: str
    gain: float
    mean_gain: float
    loss: float
    entropy: float
    gradients: dict[str, NDArray[np.float32]]


class Rollers(Protocol):
    """Who walks through the rounds on problems; `placement.runs.pretrain_jobs` has workers do it."""

    def roll_out(self, weights: Weights, asked: Sequence[Asked]) -> list[RolledOut]:
        """What the rounds on each problem come to, in the order of the problems."""
        ...

    def validate(self, weights: Weights, numbers: Sequence[int], config: PretrainConfig) -> list[float]:
        """The gain on each validation problem, in the order of the problems."""
        ...


class InProcess:
    """Goes through the rounds in this process, one problem after the other; torch has to have one thread."""

    def roll_out(self, weights: Weights, asked: Sequence[Asked]) -> list[RolledOut]:
        """See `Rollers.roll_out`."""
        return [roll_out(weights, one) for one in asked]

    def validate(self, weights: Weights, numbers: Sequence[int], config: PretrainConfig) -> list[float]:
        """See `Rollers.validate`."""
        return [validation_gain(weights, number, config) for number in numbers]


def drawn(number: int, config: PretrainConfig) -> tuple[str, PlacementProblem]:
    """A problem and the family of its graph, by its seed."""
    rng = np.random.default_rng([number, 1])
    count = int(rng.choice(config.groups))
    made = draw(number, families=TRAINED_ON, groups=count)
    problem = made.problem
    if rng.random() < config.parts_share:
        graph = problem.graph
        problem = problem.with_groups(coarsen(graph, one_group_an_op(graph), count, within=problem.groups))
    return made.family, problem


def known_of(problem: PlacementProblem, number: int, config: PretrainConfig) -> Known:
    """A problem with what the quick heuristics answer."""
    budget = Budget(evaluations=config.contiguous_evaluations)
    rng = np.random.default_rng([number, 3])
    runs = HEURISTICS["contiguous"].function(problem, budget=budget, rng=rng).placement
    return read(problem, [*quick_placements(problem).values(), runs])


def make_lesson(
    family: str, problem: PlacementProblem, number: int, config: PretrainConfig, *, imitates: bool
) -> Lesson:  # fmt: skip
    """A problem with all that its rounds need.

    Args:
        family: Of its graph.
        problem: What is placed.
        number: Its seed.
        config: How the policy is trained.
        imitates: Let a short search find a placement to imitate.
    """
    known = known_of(problem, number, config)
    target = None
    if imitates:
        budget = Budget(evaluations=config.imitation_evaluations)
        rng = np.random.default_rng([number, 2])
        target = HEURISTICS["local_search"].function(problem, budget=budget, rng=rng).placement
    return Lesson(family, known, target)


def rounds(
    policy: PretrainedPolicy, lesson: Lesson, config: PretrainConfig, rng: np.random.Generator
) -> Iterator[Round]:  # fmt: skip
    """Sample in rounds; after each the best samples are known to the next, which asks the policy as it then is."""
    known = lesson.known
    for _ in range(config.rounds):
        encoded = policy.encode(known)
        decoded = _decoded(policy, known, encoded, config.samples, rng)
        charged_s = known.charged_s(decoded.placements)
        if lesson.target is not None:
            aimed = _decoded(policy, known, encoded, 1, rng, target=lesson.target[None])
            log_probabilities = policy.score(encoded, aimed)
            loss = imitation_loss(log_probabilities, aimed)
        else:
            log_probabilities = policy.score(encoded, decoded)
            advantages = torch.from_numpy(advantage(charged_s).astype(np.float32))
            loss = -(advantages[:, None] * chosen(log_probabilities, decoded.placements)).mean()
        yield Round(loss, entropy(log_probabilities).mean(), charged_s)
        known = joined(known, decoded.placements, charged_s)


def gains(lesson: Lesson, charged_s: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Log of the best heuristic's step time over the best sample's, and over the mean one's of the first round."""
    heuristic_s = lesson.known.best_s
    best_s = min(float(each.min()) for each in charged_s)
    return math.log(heuristic_s / best_s), float(np.mean(np.log(heuristic_s / charged_s[0])))


def roll_out(weights: Weights, asked: Asked) -> RolledOut:
    """Go through the rounds on a problem, and give the gradient in place of learning from it."""
    config = asked.config
    lesson = make_lesson(*drawn(asked.number, config), asked.number, config, imitates=asked.imitates)
    policy = PretrainedPolicy(weights)
    rng = np.random.default_rng([asked.seed, 1, asked.number])
    charged_s, entropies, loss = [], [], math.nan
    for found in rounds(policy, lesson, config, rng):
        ((found.loss - asked.entropy_weight * found.randomness) / config.rounds).backward()
        charged_s.append(found.charged_s)
        entropies.append(found.randomness.item())
        loss = found.loss.item()
    gradients = {}
    for name, parameter in policy.by_name.items():
        gradients[name] = np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
    return RolledOut(lesson.family, *gains(lesson, charged_s), loss, float(np.mean(entropies)), gradients)


def validation_gain(weights: Weights, number: int, config: PretrainConfig) -> float:
    """The gain on a validation problem, within limits: where only one side fits the charges are far apart."""
    known = _validation_known(number, config)
    seed = number - FIRST_VALIDATION_SEED
    found_s = answered_s(weights, known, samples=config.samples, rounds=config.rounds, seed=seed)
    return min(max(math.log(known.best_s / found_s), -_MOST_GAIN), _MOST_GAIN)


@lru_cache(maxsize=64)
def _validation_known(number: int, config: PretrainConfig) -> Known:
    _, problem = drawn(number, config)
    return known_of(problem, number, config)


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


def _decoded(
    policy: PretrainedPolicy, known: Known, encoded: Encoded, count: int, rng: np.random.Generator, **more: Any
) -> Decoded:  # fmt: skip
    """Samples, or what the policy says of a target on the way to it."""
    plain = Encoded(encoded.base.detach().numpy(), encoded.attention.detach().numpy())
    return decode(policy.weights(), known, plain, gumbel(rng, count, known), keep=True, **more)
