"""A decoder-only transformer that predicts the next token; by default of the size of GPT-2 small.

Radford, Wu, Child, Luan, Amodei, Sutskever: "Language Models are Unsupervised Multitask Learners" (2019), section 2.3,
after Vaswani et al.: "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762. Without dropout, as large
models are trained now. Letters: ``B`` sequences, ``T`` tokens, ``H`` hidden, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.errors import InputError


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself; `causal`: to what came before."""

    def __init__(self, hidden: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H]`` -> ``[B, T, H]``."""
        projected = self.query_key_value(x).unflatten(2, (3, self.heads, -1))  # [B, T, 3, heads, H / heads]
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, T, H / heads]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two products with a GELU between them, the inner width being four times the outer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(hidden, 4 * hidden)
        self.contract = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., H]`` -> ``[..., H]``."""
        return self.contract(F.gelu(self.expand(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to what came in."""

    def __init__(self, hidden: int, heads: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden)
        self.attention = SelfAttention(hidden, heads, causal=True)
        self.feed_forward_norm = nn.LayerNorm(hidden)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H]`` -> ``[B, T, H]``."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Embedding(nn.Module):
    """The sum of what a token and its position mean."""

    def __init__(self, vocabulary: int, length: int, hidden: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Parameter(torch.empty(length, hidden).normal_(std=0.02))

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T, H]``."""
        return self.tokens(tokens) + self.positions


class TransformerLM(nn.Module):
    """Predicts each next token of a sequence by a stack of blocks; the head shares the embedding's weight."""

    def __init__(self, vocabulary: int, length: int, hidden: int, blocks: list[Block]) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, length, hidden)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        self.head.weight = self.embedding.tokens.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Tokens and next tokens ``[B, T]`` -> the mean loss; without targets logits ``[B, T, V]``."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def check_heads(workload: str, hidden: int, heads: int) -> None:
    """Refuse a width that the heads cannot share.

    Raises:
        InputError: The width is no multiple of the number of heads.
    """
    if hidden % heads:
        raise InputError(f"workload '{workload}': hidden={hidden} must be a multiple of heads={heads}")


def make_batch(sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tokens, and with training targets."""
    tokens = torch.zeros(sizes["batch"], sizes["length"], dtype=torch.int64)
    return {"tokens": tokens, "targets": torch.zeros_like(tokens)} if sizes["training"] else {"tokens": tokens}


def make(sizes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and an example batch; without targets when not training."""
    hidden, heads = sizes["hidden"], sizes["heads"]
    check_heads("transformer_lm", hidden, heads)
    blocks = [Block(hidden, heads, FeedForward(hidden)) for _ in range(sizes["layers"])]
    return TransformerLM(sizes["vocabulary"], sizes["length"], hidden, blocks), make_batch(sizes)
