"""Small models of Transformers and of our own, as tests run them under device maps; importing this takes a second."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import nn

from graphs.capture import capture
from graphs.computation_graph import ComputationGraph

WIDTH: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
WORDS: dict[str, Any] = {"vocab_size": 120, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, 100, shape, generator=torch.Generator().manual_seed(0))


def pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def llama() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.LlamaConfig(**WIDTH, **WORDS, num_key_value_heads=2, use_cache=False)
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens(2, 8)}


def qwen() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.Qwen2Config(
        **WIDTH, **WORDS, num_key_value_heads=2, use_cache=False, tie_word_embeddings=True
    )
    return transformers.Qwen2ForCausalLM(config), {"input_ids": tokens(2, 8)}


def gpt2() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.GPT2Config(n_layer=3, n_embd=32, n_head=4, use_cache=False, **WORDS)
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens(2, 8), "labels": tokens(2, 8)}


def bert() -> tuple[nn.Module, dict[str, Any]]:
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**WIDTH, **WORDS))
    return model, {"input_ids": tokens(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}


def t5() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.T5Config(
        num_layers=2,
        d_model=32,
        num_heads=4,
        d_kv=8,
        d_ff=64,
        vocab_size=120,
        use_cache=False,
    )
    return transformers.T5ForConditionalGeneration(config), {
        "input_ids": tokens(2, 8),
        "decoder_input_ids": tokens(2, 6),
    }


def whisper() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=20, max_target_positions=16,
        use_cache=False, decoder_start_token_id=1, **WORDS,
    )  # fmt: skip
    batch = {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": tokens(2, 6)}
    return transformers.WhisperForConditionalGeneration(config), batch


def mixtral() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.MixtralConfig(
        **WIDTH, **WORDS, num_key_value_heads=2, num_local_experts=4, use_cache=False, tie_word_embeddings=False
    )
    config._experts_implementation = "batched_mm"
    return transformers.MixtralForCausalLM(config), {"input_ids": tokens(2, 8)}


def vit() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.ViTConfig(**WIDTH, image_size=32, patch_size=8)
    return transformers.ViTForImageClassification(config), {"pixel_values": pixels(32)}


def convnext() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.ConvNextConfig(hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 2, 1], image_size=64)
    return transformers.ConvNextForImageClassification(config), {"pixel_values": pixels(64)}


def swin() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    return transformers.SwinForImageClassification(config), {"pixel_values": pixels(32)}


class Tied(nn.Module):
    """An embedding, the same weight as head, and once more in a part that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 50, bias=False)
        self.spare = nn.Linear(16, 50, bias=False)
        self.head.weight = self.spare.weight = self.embed.weight
        self.scale = torch.ones(16)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return self.head(hidden)


class Skips(nn.Module):
    """Down and up again, what was on the way down added on the way up by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8))
        self.down = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.up = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, kept = x + self.shift, []
        for part in self.down:
            x = part(x)
            kept.append(x)
        x = self.middle(x)
        for part in self.up:
            x = part(x + kept.pop())
        return self.out(x)


def tied() -> tuple[nn.Module, dict[str, Any]]:
    return Tied(), {"input_ids": tokens(2, 8) % 50}


def skips() -> tuple[nn.Module, dict[str, Any]]:
    return Skips(), {"x": torch.randn(4, 8)}


class Shares(nn.Module):
    """What one part makes is read by every block, two of which share a container that is called, two a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Gate() for _ in range(3))
        self.both = Both()
        self.again = Gate()
        self.chain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.first(x)
        hidden = torch.relu(made)
        for block in self.blocks:
            hidden = block(hidden, made)
        hidden = self.both(hidden, made)
        for _ in range(3):
            hidden = self.again(hidden, made)
        return self.last(self.chain(hidden))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        return self.a(hidden) * self.b(made) + made


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Gate(), Gate()

    def forward(self, hidden: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        return self.right(self.left(hidden, made), made)


def shares() -> tuple[nn.Module, dict[str, Any]]:
    return Shares(), {"x": torch.randn(4, 8)}


def make(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a name of this module, with a batch, the same each time."""
    torch.manual_seed(0)
    made: tuple[nn.Module, dict[str, Any]] = globals()[name]()
    return made


@functools.cache
def graph_of(name: str) -> ComputationGraph:
    """Its forward pass."""
    model, batch = make(name)
    return capture(model, batch, training=False)
