"""Captures of the `transformers` library's own models, next to what PyTorch says of the same modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graphs.capture import capture
from graphs.colocation.rules import colocate
from graphs.computation_graph import DTYPES
from graphs.errors import InputError
from scripts.capture_models import MODELS, check


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_small_models(name: str, training: bool) -> None:
    result = check(name, small=True, training=training)
    assert result.failures() == []
    assert result.flops > 0
    # The model itself does next to nothing: what its modules do is theirs.
    graph = result.graph
    own = [i for i, m in enumerate(graph.module) if not graph.module_names[m]]
    assert graph.flops[own].sum() == 0
    assert len(own) < 0.05 * graph.num_ops + 6


@pytest.mark.parametrize(
    ("name", "optimizer", "dtype"),
    [
        ("bert", "momentum", torch.bfloat16),
        ("gpt2", "sgd", torch.float16),
        ("llama", "rmsprop", torch.bfloat16),
        ("resnet50", "momentum", torch.float16),
    ],
)
def test_small_models_in_half_precision(name: str, optimizer: str, dtype: torch.dtype) -> None:
    result = check(name, small=True, training=True, optimizer=optimizer, dtype=dtype)
    assert result.failures() == []
    graph = result.graph
    assert {DTYPES[i] for i in graph.dtype[graph.flops > 0]} == {str(dtype).removeprefix("torch.")}


def test_each_expert_of_mixtral_would_be_chosen_by_values_unless_batched() -> None:
    with torch.device("meta"):
        model, batch = MODELS["mixtral"](True)
    config: Any = model.config
    config._experts_implementation = "eager"
    with pytest.raises(InputError) as error:
        capture(model, batch, name="mixtral")
    assert "model 'mixtral' cannot be traced" in str(error.value)
    assert "set config._experts_implementation = 'batched_mm'" in str(error.value)
    assert "\n" not in str(error.value)


def test_groups_follow_the_modules() -> None:
    groups = colocate(check("gpt2", small=True, training=True).graph)
    blocks = [name for name in groups.names if name.startswith("transformer.h.")]
    assert {name.split(".")[2] for name in blocks} == {"0", "1"}
    assert 8 <= groups.num_groups <= 40


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_full_size(name: str, training: bool) -> None:
    assert check(name, small=False, training=training).failures() == []
