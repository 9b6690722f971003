"""One update of the policy against the loss written out: what it is made of, its sign, what settings change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from placement.learning.config import PRESETS
from placement.learning.learner import Learner
from placement.placers.best import BestKnown
from tests.placement.placer_problems import training_problem
from tests.placement.problems import with_settings

SMALL = with_settings(PRESETS["default"], hidden_size=8, embedding_size=4, samples=6)


@pytest.fixture(scope="module")
def problem() -> PlacementProblem:
    return training_problem(6, 2, seed=1)


def some_elite(problem: PlacementProblem) -> list[NDArray[np.int64]]:
    return [problem.allowed.argmax(axis=1).astype(np.int64), (problem.num_devices - 1) * problem.allowed[:, -1]]


def known(problem: PlacementProblem, elite: Sequence[NDArray[np.int64]] = (), best_s: float = math.inf) -> BestKnown:
    found = BestKnown(problem)
    found.elite = [(best_s, placement) for placement in elite]
    found.step_time_s = best_s
    return found


def evaluated(learner: Learner, sampled: torch.Tensor, *, fits: NDArray[np.bool_] | None = None) -> Evaluation:
    evaluation = learner.problem.evaluate(sampled.numpy())
    return evaluation if fits is None else Evaluation(evaluation.step_time_s, evaluation.peak_memory_bytes, fits)


def plain_loss(
    learner: Learner,
    sampled: torch.Tensor,
    rewards: list[float],
    baselines: list[float],
    elite: list[NDArray[np.int64]],
    *,
    bonus: float,
    weight: float,
    counted: list[bool] | None = None,
) -> float:
    """The loss as docs/concepts/learner.md has it, sample by sample."""
    count = len(sampled)
    differences = [r - b for r, b in zip(rewards, baselines, strict=True)]
    if learner.config.update.normalise_advantage:
        mean = sum(differences) / count
        spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / count)
        differences = [d / (spread + 1e-8) for d in differences]
    total, randomness, likelihood = 0.0, 0.0, 0.0
    with torch.no_grad():
        encoded = learner.encode()
        for i, placement in enumerate(sampled):
            by_device = learner.policy.score(encoded, placement[None])[0].double()  # [G, D]
            chosen = sum(float(by_device[g, placement[g]]) for g in range(len(placement)))
            total += (differences[i] if counted is None or counted[i] else 0.0) * chosen
            shares = by_device.exp()
            randomness -= float((shares * torch.where(shares > 0, by_device, torch.zeros(()).double())).sum())
        for good in elite:
            by_device = learner.policy.score(encoded, torch.from_numpy(good[None]))[0].double()
            likelihood += sum(float(by_device[g, int(good[g])]) for g in range(len(good)))
    loss = -total / count - bonus * randomness / count
    return loss - weight * likelihood / len(elite) if elite else loss


def others_mean(rewards: list[float]) -> list[float]:
    return [sum(rewards[:i] + rewards[i + 1 :]) / (len(rewards) - 1) for i in range(len(rewards))]


@pytest.mark.parametrize(("updates", "with_elite"), [(20, True), (320, True), (500, False), (3, True), (3, False)])
def test_the_loss_is_reinforce_less_entropy_less_the_elites_likelihood(
    problem: PlacementProblem, updates: int, with_elite: bool
) -> None:
    learner = Learner(problem, config=SMALL, seed=4)
    sampled = learner.sample(learner.encode())[1:]
    evaluation = evaluated(learner, sampled)
    elite = some_elite(problem) if with_elite else []
    rewards = [-math.log(float(s)) for s in evaluation.step_time_s]
    imitates = with_elite and updates < SMALL.update.imitation_updates
    wanted = plain_loss(
        learner,
        sampled,
        rewards,
        others_mean(rewards),
        elite,
        bonus=0.01 * 0.5 ** (updates / 300),
        weight=1.0 if imitates else 0.3,
        counted=[not imitates] * len(sampled),
    )
    assert len(set(rewards)) > 2
    numbers = learner.learn(learner.encode(), sampled, evaluation, known(problem, elite), updates)
    assert numbers["loss"] == pytest.approx(wanted, rel=1e-4)
    assert numbers["baseline"] == pytest.approx(sum(rewards) / len(rewards))


def test_the_published_update_has_a_moving_baseline_and_at_last_leaves_out_what_does_not_fit(
    problem: PlacementProblem,
) -> None:
    config = with_settings(PRESETS["paper"], hidden_size=8, embedding_size=4, samples=6)
    for updates in (4999, 5000):
        learner = Learner(problem, config=config, seed=4)
        sampled = learner.sample(learner.encode())[1:]
        fits = np.array([True, False, True, True, False, True])
        evaluation = evaluated(learner, sampled, fits=fits)
        failing_s = learner.baseline**2
        assert failing_s > evaluation.step_time_s.max()
        learner.baseline *= 0.5  # at the failing signal a failure's advantage would be 0
        rewards = [
            -math.sqrt(float(s) if fit else failing_s) for s, fit in zip(evaluation.step_time_s, fits, strict=True)
        ]
        counted = fits.tolist() if updates == 5000 else [True] * len(fits)
        wanted = plain_loss(
            learner, sampled, rewards, [learner.baseline] * 6, [], bonus=0.0, weight=0.0, counted=counted
        )
        before = learner.baseline
        numbers = learner.learn(learner.encode(), sampled, evaluation, known(problem), updates)
        assert numbers["loss"] == pytest.approx(wanted, rel=1e-4)
        assert learner.baseline == pytest.approx(0.5 * before + 0.5 * sum(rewards) / 6)


def test_the_failing_signal_is_a_constant_above_the_best_step_whoever_says_what_a_step_takes(
    problem: PlacementProblem,
) -> None:
    """What a simulator thinks no step can take, a machine may need: then failing costs more than that."""
    learner = Learner(
        problem, config=with_settings(PRESETS["paper"], hidden_size=8, embedding_size=4, samples=6), seed=4
    )
    sampled = learner.sample(learner.encode())[1:]
    evaluation = evaluated(learner, sampled, fits=np.array([True, False] * 3))
    failing_s = learner.baseline**2
    for best_s, wanted_s in ((math.inf, failing_s), (failing_s / 10, failing_s), (failing_s * 10, 11 * failing_s)):
        charged = learner._charged_s(evaluation, known(problem, best_s=best_s))
        assert charged[::2].tolist() == evaluation.step_time_s[::2].tolist()
        assert charged[1::2] == pytest.approx(wanted_s)


def test_the_first_row_is_greedy_and_the_others_are_drawn(problem: PlacementProblem) -> None:
    learner = Learner(problem, config=SMALL, seed=4)
    encoded = learner.encode()
    rows = torch.stack([learner.sample(encoded) for _ in range(5)])  # [5, 1 + B, G]
    assert rows.shape == (5, 1 + SMALL.update.samples, problem.num_groups)
    assert (rows[:, 0] == rows[0, 0]).all()
    likeliest = learner.advise(encoded, rows[0, 0].numpy()).argmax(axis=1)
    assert rows[0, 0].tolist() == likeliest.tolist()
    assert len(torch.unique(rows[:, 1:].reshape(-1, problem.num_groups), dim=0)) > 5


def test_steps_make_good_placements_likelier(problem: PlacementProblem) -> None:
    """Without an elite, so that it is the reward that does it."""
    learner = Learner(problem, config=with_settings(SMALL, samples=32, learning_rate=1e-2, entropy_bonus=0.0), seed=4)
    means = []
    for update in range(60):
        encoded = learner.encode()
        sampled = learner.sample(encoded)[1:]
        evaluation = evaluated(learner, sampled)
        means.append(float(evaluation.step_time_s.mean()))
        learner.learn(encoded, sampled, evaluation, known(problem), update)
    assert np.mean(means[-5:]) < 0.9 * np.mean(means[:5])
