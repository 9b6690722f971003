"""NMT: translation by an LSTM encoder and an LSTM decoder with attention, unrolled over time.

Sutskever, Vinyals, Le: "Sequence to Sequence Learning" (2014), https://arxiv.org/abs/1409.3215, with the additive
attention of Bahdanau, Cho, Bengio (2014), https://arxiv.org/abs/1409.0473, at the sizes of Mirhoseini et al. (2017),
section 4.1. The context goes into the decoder's bottom layer beside the embedding, and into the softmax beside the top
layer's state. Which layer's last state asks for the context decides how much of the decoder can overlap:

- ``top`` (the default): the top layer, whose state predicts the words; decoder steps then follow one another strictly.
  It is the layer that the 2017 paper's expert places on one device with the attention;
- ``bottom``: the bottom layer, as in Wu et al., "Google's Neural Machine Translation System" (2016),
  https://arxiv.org/abs/1609.08144, section 3: a step's bottom layer need not wait for the last step's top layer.

Letters: ``B`` sentence pairs, ``T`` time steps of the decoder, ``S`` of the encoder, ``H`` hidden, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.zoo.rnnlm import SoftmaxStep

State = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """One step of additive attention: how well each encoder output answers a query, and their weighted mean."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query_weight = nn.Parameter(torch.empty(hidden, hidden).uniform_(-0.1, 0.1))
        self.score_weight = nn.Parameter(torch.empty(1, hidden).uniform_(-0.1, 0.1))

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Query ``[B, H]``, keys and values ``[B, S, H]`` -> context ``[B, H]``."""
        asked = F.linear(query, self.query_weight).unsqueeze(1)  # [B, 1, H]
        scores = F.linear(torch.tanh(keys + asked), self.score_weight)  # [B, S, 1]
        weights = F.softmax(scores, dim=1)
        return torch.bmm(weights.transpose(1, 2), values).squeeze(1)  # [B, H]


class NMT(nn.Module):
    """Translates a sentence, given the words of the translation so far."""

    def __init__(self, vocabulary: int, hidden: int, layers: int, attention: str) -> None:
        super().__init__()
        self.hidden = hidden
        self.queried_layer = 0 if attention == "bottom" else layers - 1
        self.encoder_embedding = nn.Embedding(vocabulary, hidden)
        self.encoder = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(layers))
        self.attention_keys = nn.Linear(hidden, hidden, bias=False)
        self.decoder_embedding = nn.Embedding(vocabulary, hidden)
        self.attention = Attention(hidden)
        self.decoder = nn.ModuleList(nn.LSTMCell(hidden * (1 if layer else 2), hidden) for layer in range(layers))
        self.softmax = SoftmaxStep(2 * hidden, vocabulary)

    def forward(self, source: Tensor, words: Tensor, targets: Tensor | None = None) -> Tensor | list[Tensor]:
        """Source ``[B, S]``, words and next words of the translation ``[B, T]`` -> the mean loss.

        Without targets: ``T`` log-probabilities ``[B, V]``.
        """
        values, states = self.encode(source)
        keys = self.attention_keys(values)  # [B, S, H]
        inputs = self.decoder_embedding(words).unbind(dim=1)  # T of [B, H]
        wanted: Sequence[Tensor | None] = [None] * len(inputs) if targets is None else targets.unbind(dim=1)
        outputs = []
        for x, target in zip(inputs, wanted, strict=True):
            context = self.attention(states[self.queried_layer][0], keys, values)
            x = torch.cat([x, context], dim=1)  # [B, 2H]
            for layer, cell in enumerate(self.decoder):
                states[layer] = cell(x, states[layer])
                x = states[layer][0]
            outputs.append(self.softmax(torch.cat([x, context], dim=1), target))
        return outputs if targets is None else torch.stack(outputs).mean()

    def encode(self, source: Tensor) -> tuple[Tensor, list[State]]:
        """Source ``[B, S]`` -> the top layer's outputs ``[B, S, H]`` and each layer's last state."""
        zero = source.new_zeros(len(source), self.hidden, dtype=self.softmax.weight.dtype)
        states: list[State] = [(zero, zero) for _ in self.encoder]
        outputs = []
        for x in self.encoder_embedding(source).unbind(dim=1):  # [B, H]
            for layer, cell in enumerate(self.encoder):
                states[layer] = cell(x, states[layer])
                x = states[layer][0]
            outputs.append(x)
        return torch.stack(outputs, dim=1), states


def make(sizes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and an example batch; without targets when not training."""
    model = NMT(sizes["vocabulary"], sizes["hidden"], sizes["layers"], sizes["attention"])
    source = torch.zeros(sizes["batch"], sizes["steps"], dtype=torch.int64)
    batch = {"source": source, "words": torch.zeros_like(source)}
    if sizes["training"]:
        batch["targets"] = torch.zeros_like(source)
    return model, batch
