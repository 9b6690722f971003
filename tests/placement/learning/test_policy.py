"""The policy: what it samples is what it scores, masks hold, and one set of weights serves other problems."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import make_groups, one_group_an_op
from graphs.synthetic import random_graph
from placement.learning.config import PolicyConfig
from placement.learning.features import ProblemFeatures, critical_path_s, group_traffic_bytes, make_features
from placement.learning.policy import MASKED, Seq2SeqPolicy, chosen_log_probability, entropy, gumbel_noise
from tests.placement.problems import branches


def problem_of(num_ops: int = 40, seed: int = 1, cluster: str = "k80x2") -> PlacementProblem:
    graph = random_graph(num_ops, seed=seed)
    label = np.arange(num_ops) // 2
    count = int(label.max()) + 1
    names = [f"g{i}" for i in range(count)]
    groups = make_groups(label, names, [f"f{i % 3}" for i in range(count)], [i // 3 for i in range(count)])
    return PlacementProblem(graph, groups, load_cluster(cluster))


def policy_of(features: ProblemFeatures, *, paper: bool = False, seed: int = 0) -> Seq2SeqPolicy:
    generator = torch.Generator().manual_seed(seed)
    return Seq2SeqPolicy(
        features, config=PolicyConfig(paper=paper, hidden_size=16, embedding_size=8), generator=generator
    )


@pytest.mark.parametrize("paper", [False, True])
def test_a_sample_is_the_argmax_of_its_own_scores_plus_noise(paper: bool) -> None:
    """The folded loop, step by step, and teacher forcing, all steps at once, are the same distribution."""
    features = make_features(problem_of())
    policy = policy_of(features, paper=paper)
    generator = torch.Generator().manual_seed(3)
    noise = gumbel_noise(64, features.num_groups, features.num_devices, generator)
    noise[0] = 0.0
    with torch.no_grad():
        encoded = policy.encode(policy.tensors(features))
        sampled = policy.sample(encoded, noise)
        scores = policy.score(encoded, sampled)
    assert torch.equal((scores + noise).argmax(dim=2), sampled)
    assert torch.equal(scores[0].argmax(dim=1), sampled[0]), "the first row has no noise: it is the greedy decoding"
    assert len({tuple(row) for row in sampled.tolist()}) > 60


@pytest.mark.parametrize("paper", [False, True])
def test_scores_match_a_plain_decoder_that_folds_nothing(paper: bool) -> None:
    """An independent decoder: one `LSTMCell` step at a time, concatenating nothing ahead of the loop."""
    features = make_features(problem_of())
    policy = policy_of(features, paper=paper)
    placement = torch.from_numpy(np.random.default_rng(0).integers(0, features.num_devices, features.num_groups))
    cell = torch.nn.LSTMCell(16, 16)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in policy.decoder.state_dict().items()})
    with torch.no_grad():
        encoded = policy.encode(policy.tensors(features))
        state = (encoded.hidden[None], encoded.cell[None])
        rows = []
        for group in range(features.num_groups):
            step_input = encoded.inputs[group].clone()
            for slot, earlier in enumerate(encoded.context[:, group].tolist()):
                step_input += encoded.chosen[slot][features.num_devices if earlier < 0 else int(placement[earlier])]
            state = cell(step_input[None], state)
            attention = torch.softmax(state[0][0] @ encoded.attention_keys, dim=0)
            output = torch.tanh(policy.output(state[0][0]) + attention @ encoded.attention_values)
            rows.append(torch.log_softmax(output @ encoded.device_keys + encoded.bias[group], dim=0))
        scores = policy.score(encoded, placement[None])[0]
    torch.testing.assert_close(scores, torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_the_frequency_of_samples_is_their_scored_probability() -> None:
    features = make_features(branches(1, 1))  # 3 groups, 2 devices: 8 placements
    policy = policy_of(features)
    count = 20_000
    with torch.no_grad():
        encoded = policy.encode(policy.tensors(features))
        sampled = policy.sample(encoded, gumbel_noise(count, 3, 2, torch.Generator().manual_seed(0)))
        every = torch.cartesian_prod(*[torch.arange(2)] * 3)
        probability = chosen_log_probability(policy.score(encoded, every), every).sum(dim=1).exp()
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-5)
    frequency = torch.bincount((sampled * torch.tensor([4, 2, 1])).sum(dim=1), minlength=8) / count
    torch.testing.assert_close(frequency, probability, rtol=0.0, atol=4 * 0.5 / count**0.5)


def test_devices_that_are_not_allowed_are_never_sampled_and_add_no_entropy() -> None:
    features = make_features(problem_of())
    allowed = np.ones_like(features.allowed)
    allowed[::2] = False
    allowed[::2, 1] = True
    features = replace(features, allowed=allowed)
    policy = policy_of(features)
    with torch.no_grad():
        encoded = policy.encode(policy.tensors(features))
        noise = gumbel_noise(50, features.num_groups, features.num_devices, torch.Generator().manual_seed(0))
        sampled = policy.sample(encoded, noise)
        scores = policy.score(encoded, sampled)
    assert (sampled[:, ::2] == 1).all()
    assert scores[~torch.from_numpy(allowed).expand_as(scores)].max() < MASKED / 2
    assert torch.isfinite(entropy(scores)).all()
    torch.testing.assert_close(entropy(scores)[:, ::2], torch.zeros_like(scores[:, ::2, 0]), rtol=0, atol=1e-5)


def test_one_set_of_weights_places_another_graph_on_another_number_of_devices() -> None:
    small = make_features(problem_of(40, cluster="k80x2"))
    large = make_features(problem_of(90, seed=5, cluster="k80x8"))
    policy = policy_of(small)
    encoded = policy.encode(policy.tensors(large))
    noise = gumbel_noise(4, large.num_groups, large.num_devices, torch.Generator().manual_seed(0))
    sampled = policy.sample(encoded, noise)
    assert sampled.shape == (4, 45)
    assert sampled.max() > 3, "devices that the policy was not made for are used"


def test_weights_come_from_the_given_generator_alone() -> None:
    features = make_features(problem_of())
    before = torch.get_rng_state()
    first, second, other = policy_of(features), policy_of(features), policy_of(features, seed=1)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.reader.weight, other.reader.weight)


def test_twins_differ_in_their_features_only_by_rank() -> None:
    devices = make_features(problem_of(cluster="k80x2")).devices
    gpus = devices[-2:] if devices.shape[0] == 3 else devices[:2]
    different = np.flatnonzero(gpus[0] != gpus[1])
    assert set(different) <= {7, 11, 12}, "rank / 8 and its first two one-hot columns"
    assert len(different) == 3


def test_paths_and_traffic_of_a_diamond() -> None:
    problem = branches(2, 1)  # root -> two ops -> sink
    graph = problem.graph
    before, after = critical_path_s(graph, np.array([1.0, 2.0, 5.0, 1.0]))
    assert before.tolist() == [0.0, 1.0, 1.0, 6.0]
    assert after.tolist() == [7.0, 3.0, 6.0, 1.0]
    traffic = group_traffic_bytes(problem)
    assert traffic[0].tolist() == [0.0, 1e5, 1e5, 0.0]
    assert traffic[:, 3].tolist() == [0.0, 1e5, 1e5, 0.0]


def test_features_of_a_graph_without_tensors_are_finite() -> None:
    graph = random_graph(1)
    features = make_features(PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2")))
    for value in vars(features).values():
        assert np.isfinite(value).all()
