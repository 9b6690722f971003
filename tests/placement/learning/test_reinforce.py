"""The estimator: on 2 groups and 2 devices the mean REINFORCE gradient is the exact one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from placement.learning.config import PolicyConfig
from placement.learning.features import make_features
from placement.learning.policy import Seq2SeqPolicy, chosen_log_probability, gumbel_noise
from placement.learning.reinforce import (
    advantage,
    failing_signal_s,
    leave_one_out,
    moving_average,
    reinforce_loss,
    reward_of,
)
from tests.placement.problems import cluster


def two_groups() -> PlacementProblem:
    ops = [OpRecord("a", "mm", flops=2 * 10**9), OpRecord("b", "mm", flops=5 * 10**9)]
    graph = build("pair", ops, [TensorRecord(0, 10**6, [1])])
    return PlacementProblem(graph, one_group_an_op(graph), cluster(2, speeds=(1.0, 2.0)))


EVERY = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])


@pytest.fixture
def setting() -> tuple[Seq2SeqPolicy, torch.Tensor]:
    """A policy in double precision, and the reward of each of the four placements."""
    problem = two_groups()
    generator = torch.Generator().manual_seed(0)
    policy = Seq2SeqPolicy(
        make_features(problem), config=PolicyConfig(hidden_size=8, embedding_size=4), generator=generator
    )
    rewards = reward_of(problem.evaluate(EVERY.numpy()).step_time_s, "log")
    assert len(set(rewards)) == 4
    return policy, torch.from_numpy(rewards)


def log_probability(policy: Seq2SeqPolicy, placements: torch.Tensor) -> torch.Tensor:
    encoded = policy.encode(policy.tensors(make_features(two_groups())))
    return chosen_log_probability(policy.score(encoded, placements), placements).sum(dim=1)


def gradient(policy: Seq2SeqPolicy, loss: torch.Tensor) -> torch.Tensor:
    policy.zero_grad()
    loss.backward()
    return torch.cat(
        [p.grad.reshape(-1) if p.grad is not None else torch.zeros(p.numel()) for p in policy.parameters()]
    )


def exact_gradient(policy: Seq2SeqPolicy, rewards: torch.Tensor) -> torch.Tensor:
    """Of minus the expected reward, by enumeration."""
    return gradient(policy, -(log_probability(policy, EVERY).exp() * rewards.float()).sum())


def test_the_mean_over_every_batch_of_two_is_the_exact_gradient(setting: tuple[Seq2SeqPolicy, torch.Tensor]) -> None:
    """All 16 ordered pairs of samples, weighted by their probability, with the leave-one-out baseline."""
    policy, rewards = setting
    probability = log_probability(policy, EVERY).exp().detach()
    mean = torch.zeros_like(exact_gradient(policy, rewards))
    for i in range(4):
        for j in range(4):
            pair = [i, j]
            pair_rewards = rewards[pair].numpy()
            advantages = advantage(pair_rewards, leave_one_out(pair_rewards), normalise=False)
            loss = reinforce_loss(log_probability(policy, EVERY[pair]), torch.from_numpy(advantages).float())
            mean += probability[i] * probability[j] * gradient(policy, loss)
    torch.testing.assert_close(mean, exact_gradient(policy, rewards), rtol=1e-3, atol=1e-6)


def test_a_baseline_that_includes_the_sample_itself_would_shrink_the_gradient() -> None:
    """The fault that `leave_one_out` avoids, shown on a batch: its advantages are ``B / (B - 1)`` as large."""
    rewards = np.array([1.0, 2.0, 6.0])
    correct = advantage(rewards, leave_one_out(rewards), normalise=False)
    assert correct.tolist() == [-3.0, -1.5, 4.5]
    assert (rewards - rewards.mean()).tolist() == pytest.approx((correct * 2 / 3).tolist())


@pytest.mark.parametrize("baseline", [0.0, -7.5])
def test_the_mean_over_samples_tends_to_the_exact_gradient(
    setting: tuple[Seq2SeqPolicy, torch.Tensor], baseline: float
) -> None:
    """Any constant baseline leaves the expectation alone; 40,000 samples come within their own standard error."""
    policy, rewards = setting
    exact = exact_gradient(policy, rewards)
    count = 40_000
    with torch.no_grad():
        encoded = policy.encode(policy.tensors(make_features(two_groups())))
        sampled = policy.sample(encoded, gumbel_noise(count, 2, 2, torch.Generator().manual_seed(1)))
    index = sampled @ torch.tensor([2, 1])
    loss = reinforce_loss(log_probability(policy, sampled), (rewards[index] - baseline).float())
    estimate = gradient(policy, loss)
    per_placement = torch.stack(
        [
            gradient(policy, -(rewards[k] - baseline).float() * log_probability(policy, EVERY[k : k + 1])[0])
            for k in range(4)
        ]
    )
    probability = log_probability(policy, EVERY).exp().detach()[:, None]
    error = ((probability * (per_placement - exact) ** 2).sum(dim=0) / count).sqrt()
    assert ((estimate - exact).abs() <= 5 * error + 1e-6).all()
    assert (estimate - exact).norm() < 0.2 * exact.norm() or baseline != 0.0


def test_the_failing_signal_is_a_multiple_of_the_slowest_device() -> None:
    problem = two_groups()  # 2 and 5 GFLOP on 1 and on 2 TFLOP/s
    assert failing_signal_s(problem, 4.0) == pytest.approx(4 * 7e-3)


def test_rewards_and_the_moving_average() -> None:
    assert reward_of(np.array([4.0]), "sqrt").tolist() == [-2.0]
    assert reward_of(np.array([1.0]), "log").tolist() == [0.0]
    assert moving_average(-10.0, np.array([-1.0, -3.0]), 0.9) == pytest.approx(-9.2)
    assert advantage(np.array([1.0, 3.0]), 2.0, normalise=True).tolist() == pytest.approx([-1.0, 1.0])
