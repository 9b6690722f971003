"""Where layers are, in words that say what the placement says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from envs.make_problem import make_problem
from envs.problem import PlacementProblem
from graphs.layers import find_layers
from graphs.synthetic import random_graph
from placement.results.layer_split import describe_fit, describe_layers, layer_places
from tests.graphs.language_models import source_of, two_cards_and_a_cpu


@pytest.fixture(scope="module")
def problem() -> PlacementProblem:
    source = source_of("phase=decode,context=128", num_hidden_layers=12)
    return make_problem(source, two_cards_and_a_cpu(1.0, 1.0))


def placed(problem: PlacementProblem, of_layer: list[int]) -> np.ndarray:
    layers = find_layers(problem.graph)
    assert layers is not None
    ops = np.array([*of_layer, of_layer[-1], 0])[layers.of_op]  # the head with the last layer, the rest on the CPU
    return np.where(problem.op_allowed[np.arange(len(ops)), ops], ops, 0)


def test_stretches_are_told_in_order(problem: PlacementProblem) -> None:
    said = describe_layers(problem, placed(problem, [0] * 2 + [1] * 9 + [2]))
    assert said == "Layers 0-1 are on cpu:0, 2-10 on gpu:0 and 11 on gpu:1; embeddings on cpu:0 and head on gpu:1."
    assert describe_layers(problem, placed(problem, [1] * 12)).startswith("Layers 0-11 are on gpu:0; embeddings on")
    many = describe_layers(problem, placed(problem, [1, 2] * 6))
    assert many.startswith("Of 12 layers 6 are on gpu:0 and 6 on gpu:1, in 12 stretches;")


def test_a_layer_that_is_parted_is_on_several(problem: PlacementProblem) -> None:
    ops = placed(problem, [1] * 12)
    layers = find_layers(problem.graph)
    assert layers is not None
    inside = np.flatnonzero((layers.of_op == 5) & (problem.graph.resident_bytes.sum(axis=1) > 10_000))
    ops[inside[::2]] = 2
    places = layer_places(problem, layers, ops)
    assert places[5] == "gpu:0 and gpu:1"
    assert set(places) == {"gpu:0", "gpu:0 and gpu:1"}


def test_what_fits_is_told_with_the_figures_of_the_evaluation(problem: PlacementProblem) -> None:
    peaks = problem.evaluate_ops(placed(problem, [0] * 2 + [1] * 9 + [2])[None]).peak_memory_bytes[0]
    said = describe_fit(problem, peaks)
    assert said.startswith("It fits: cpu:0 holds ")
    found = re.findall(r"(\S+) (?:holds )?([\d.]+) MB of ([\d.]+) GB", said)
    assert [name for name, _, _ in found] == ["cpu:0", "gpu:0", "gpu:1"]
    for (_, used, limit), peak, memory in zip(found, peaks, problem.cluster.memory_bytes, strict=True):
        assert abs(float(used) * 1e6 - peak) <= 0.5e6
        assert abs(float(limit) * 1e9 - memory) <= 0.05e9


def test_without_layers_nothing_is_said() -> None:
    plain = make_problem(random_graph(10, seed=1), "k80x2")
    assert describe_layers(plain, plain.op_allowed.argmax(axis=1)) == ""
