"""RNNLM: a language model of stacked LSTM layers, unrolled over time.

Zaremba, Sutskever, Vinyals: "Recurrent Neural Network Regularization" (2014), https://arxiv.org/abs/1409.2329, without
dropout, at the sizes of Mirhoseini et al. (2017), section 4.1. Each layer is one module that is called once a time
step. Letters: ``B`` sequences, ``T`` time steps, ``H`` hidden, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SoftmaxStep(nn.Linear):
    """Projection to the vocabulary and softmax of one time step: its loss, or log-probabilities without targets."""

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """``[B, H]`` and word indices ``[B]`` -> the mean loss; without targets ``[B, V]``."""
        logits = super().forward(hidden)  # [B, V]
        return F.log_softmax(logits, dim=-1) if targets is None else F.cross_entropy(logits, targets)


class RNNLM(nn.Module):
    """Predicts each next word of a sequence."""

    def __init__(self, vocabulary: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.cells = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(layers))
        self.softmax = SoftmaxStep(hidden, vocabulary)

    def forward(self, words: Tensor, targets: Tensor | None = None) -> Tensor | list[Tensor]:
        """Words and next words ``[B, T]`` -> the mean loss; without targets ``T`` log-probabilities ``[B, V]``."""
        # Indexing x[:, t] in the loop would make the backward fill a tensor of the whole sequence in every step.
        inputs = self.embedding(words).unbind(dim=1)  # T of [B, H]
        wanted: Sequence[Tensor | None] = [None] * len(inputs) if targets is None else targets.unbind(dim=1)
        zero = words.new_zeros(len(words), self.softmax.in_features, dtype=self.softmax.weight.dtype)
        states = [(zero, zero) for _ in self.cells]
        outputs = []
        for x, target in zip(inputs, wanted, strict=True):
            for layer, cell in enumerate(self.cells):
                states[layer] = cell(x, states[layer])
                x = states[layer][0]
            outputs.append(self.softmax(x, target))
        return outputs if targets is None else torch.stack(outputs).mean()


def make(sizes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and an example batch; without targets when not training."""
    model = RNNLM(sizes["vocabulary"], sizes["hidden"], sizes["layers"])
    words = torch.zeros(sizes["batch"], sizes["steps"], dtype=torch.int64)
    batch = {"words": words}
    if sizes["training"]:
        batch["targets"] = torch.zeros_like(words)
    return model, batch
