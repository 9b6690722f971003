"""The row of layers is found by module paths, and what is outside of it is before or behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from graphs.capture import capture
from graphs.computation_graph import RESIDENT_PARTS
from graphs.layers import find_layers
from graphs.sources import load_graph
from graphs.synthetic import random_graph
from tests.graphs.language_models import source_of


class Stack(nn.Module):
    """Layers that have parts by number, between an embedding and a head, which may share a weight."""

    def __init__(self, layers: int, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        parts = (nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(layers))
        self.blocks = nn.ModuleList(parts)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 50, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize("count", [2, 11])
@pytest.mark.parametrize("tied", [False, True])
def test_layers_and_ends_of_a_stack(count: int, tied: bool) -> None:
    graph = capture(Stack(count, tied), torch.zeros(3, 5, dtype=torch.int64), training=False)
    layers = find_layers(graph)
    assert layers is not None
    assert (layers.name, layers.count) == ("blocks", count)
    for op, module in enumerate(graph.module):
        path = graph.module_names[module]
        if path.startswith("blocks."):
            assert layers.of_op[op] == int(path.split(".")[1])
        elif path in ("norm", "head"):
            assert layers.of_op[op] == count
        elif path == "embedding":
            assert layers.of_op[op] == (count if tied else -1)


def test_layers_of_language_models_are_their_decoder_layers() -> None:
    for kind, sizes in (("llama", {}), ("mixtral", {"num_local_experts": 4})):
        graph = load_graph(source_of("phase=decode,context=64", kind, num_hidden_layers=3, **sizes))
        layers = find_layers(graph)
        assert layers is not None
        assert (layers.name, layers.count) == ("model.model.layers", 3)
        held = graph.resident_bytes[:, RESIDENT_PARTS.index("parameter")]
        each = [int(held[layers.of_op == i].sum()) for i in range(3)]
        assert len(set(each)) == 1
        ends = 2 * 1000 * 256  # an embedding and a head in bfloat16, and a norm with the head
        assert held[layers.of_op == -1].sum() == ends
        assert held[layers.of_op == 3].sum() == ends + 2 * 256


def test_without_layers_there_are_none() -> None:
    assert find_layers(random_graph(20, seed=1)) is None
    single = capture(nn.Sequential(nn.Linear(3, 3)), torch.zeros(2, 3), training=False)
    found = find_layers(single)
    assert found is None or np.unique(found.of_op).size > 0
