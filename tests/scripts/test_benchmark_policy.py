"""The policy against the plain decoder of the benchmark: the same samples, probabilities and gradients."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from placement.learning.config import PolicyConfig
from placement.learning.features import make_features
from placement.learning.policy import Seq2SeqPolicy, gumbel_noise
from scripts.benchmark_policy import PlainDecoder, loss_of, main


def test_the_plain_decoder_has_the_same_samples_probabilities_and_gradients() -> None:
    graph = random_graph(30, seed=2)
    features = make_features(PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2")))
    generator = torch.Generator().manual_seed(5)
    policy = Seq2SeqPolicy(features, config=PolicyConfig(hidden_size=16, embedding_size=8), generator=generator)
    x = policy.tensors(features)
    noise = gumbel_noise(12, features.num_groups, features.num_devices, generator)
    sampled, plain_log_probabilities = PlainDecoder(policy, bahdanau=False)(x, noise)
    loss_of(plain_log_probabilities, sampled).backward()
    plain_gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}

    policy.zero_grad()
    encoded = policy.encode(x)
    assert torch.equal(policy.sample(encoded, noise), sampled)
    log_probabilities = policy.score(encoded, sampled)
    torch.testing.assert_close(log_probabilities, plain_log_probabilities, rtol=1e-4, atol=1e-5)
    loss_of(log_probabilities, sampled).backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, plain_gradients[name], rtol=1e-3, atol=1e-5, msg=name)


def test_it_times_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "rnnlm:layers=1,hidden=32,steps=3,vocabulary=50,batch=2"
    out = tmp_path / "speed.json"
    args = ["--groups", "8", "--graph", small, "--batch", "4", "--hidden", "8", "--repeats", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["benchmark_policy.py", *args])
    main()
    (timing,) = json.loads(out.read_text())
    assert (timing["groups"], timing["batch"]) == (8, 4)
    seconds = [value for key, value in timing.items() if key.endswith("_s")]
    assert len(seconds) == 6
    assert min(seconds) > 0
    assert "of bahdanau" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmark_policy.py", *args[:4], "--train-s", "0.2"])
    main()
    assert "cores busy; of the wall clock: heuristics 0%, sample" in capsys.readouterr().out
