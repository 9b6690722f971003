"""BERT in pre-training: a bidirectional transformer that guesses masked words and whether two sentences follow.

Devlin, Chang, Lee, Toutanova: "BERT: Pre-training of Deep Bidirectional Transformers" (2018),
https://arxiv.org/abs/1810.04805, by default BERT-base at the 128 tokens of most of its training. Without dropout, and
without an attention mask: all sequences are full. Letters: ``B`` sequences, ``T`` tokens, ``P`` masked tokens of a
sequence, ``H`` hidden, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.errors import InputError
from graphs.zoo.transformer_lm import SelfAttention, check_heads


class Embedding(nn.Module):
    """The normalised sum of what a token, its position and its sentence mean."""

    def __init__(self, vocabulary: int, length: int, hidden: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Parameter(torch.empty(length, hidden).normal_(std=0.02))
        self.sentences = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, tokens: Tensor, sentences: Tensor) -> Tensor:
        """``[B, T]`` twice -> ``[B, T, H]``."""
        return self.norm(self.tokens(tokens) + self.positions + self.sentences(sentences))


class FeedForward(nn.Module):
    """Two products with a GELU between them, the inner width being four times the outer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(hidden, 4 * hidden)
        self.contract = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H]`` -> ``[B, T, H]``."""
        return self.contract(F.gelu(self.expand(x)))


class Layer(nn.Module):
    """Attention and feed-forward, each added to what came in and normalised after."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(hidden, heads, causal=False)
        self.attention_norm = nn.LayerNorm(hidden)
        self.feed_forward = FeedForward(hidden)
        self.feed_forward_norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H]`` -> ``[B, T, H]``."""
        x = self.attention_norm(x + self.attention(x))
        return self.feed_forward_norm(x + self.feed_forward(x))


class WordHead(nn.Module):
    """Guesses the words at masked positions; its last product shares the embedding's weight."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        vocabulary, hidden = embedding.weight.shape
        self.transform = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.words = nn.Linear(hidden, vocabulary)
        self.words.weight = embedding.weight

    def forward(self, x: Tensor, masked: Tensor) -> Tensor:
        """``[B, T, H]`` and positions ``[B, P]`` -> logits ``[B, P, V]``."""
        at = masked.unsqueeze(2).expand(-1, -1, x.shape[2])  # [B, P, H]
        return self.words(self.norm(F.gelu(self.transform(x.gather(1, at)))))


class SentenceHead(nn.Module):
    """Guesses from the first token whether the second sentence follows the first."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.pool = nn.Linear(hidden, hidden)
        self.follows = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H]`` -> logits ``[B, 2]``."""
        return self.follows(torch.tanh(self.pool(x[:, 0])))


class Bert(nn.Module):
    """The transformer with both heads."""

    def __init__(self, vocabulary: int, length: int, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, length, hidden)
        self.layers = nn.ModuleList(Layer(hidden, heads) for _ in range(layers))
        self.word_head = WordHead(self.embedding.tokens)
        self.sentence_head = SentenceHead(hidden)

    def forward(
        self,
        tokens: Tensor,
        sentences: Tensor,
        masked: Tensor,
        words: Tensor | None = None,
        follows: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens and sentences ``[B, T]``, masked positions and their words ``[B, P]``, follows ``[B]`` -> the loss.

        Without words and follows: logits ``[B, P, V]`` and ``[B, 2]``.
        """
        x = self.embedding(tokens, sentences)
        for layer in self.layers:
            x = layer(x)
        word_logits, follows_logits = self.word_head(x, masked), self.sentence_head(x)
        if words is None or follows is None:
            return word_logits, follows_logits
        guessed = F.cross_entropy(word_logits.flatten(0, 1), words.flatten())
        return guessed + F.cross_entropy(follows_logits, follows)


def make(sizes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and an example batch; without what is to be guessed when not training."""
    check_heads("bert", sizes["hidden"], sizes["heads"])
    if sizes["masked"] > sizes["length"]:
        raise InputError(f"workload 'bert': masked={sizes['masked']} is more than length={sizes['length']}")
    model = Bert(sizes["vocabulary"], sizes["length"], sizes["hidden"], sizes["heads"], sizes["layers"])
    tokens = torch.zeros(sizes["batch"], sizes["length"], dtype=torch.int64)
    masked = torch.zeros(sizes["batch"], sizes["masked"], dtype=torch.int64)
    batch = {"tokens": tokens, "sentences": torch.zeros_like(tokens), "masked": masked}
    if sizes["training"]:
        batch |= {"words": torch.zeros_like(masked), "follows": torch.zeros(sizes["batch"], dtype=torch.int64)}
    return model, batch
