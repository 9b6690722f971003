"""DLRM: recommends by dense features and by embedding tables that are larger together than any GPU.

Naumov et al.: "Deep Learning Recommendation Model for Personalization and Recommendation Systems" (2019),
https://arxiv.org/abs/1906.00091, with the layers of MLPerf's benchmark and the 26 tables of the Criteo Terabyte data
set. A table has at most ``rows`` rows, what exceeds them being hashed; MLPerf caps at 40 million (96 GB in float32).

The tables are trained by sparse gradients, as in the authors' code: the gradient of a table is the indices and rows
that the step looked up, and the update touches only these; a dense gradient would be as large as the tables. Hence the
optimizer is plain SGD, which the authors use, or sparse Adam, whose two moments are as large as the tables and stay
resident but are also only touched by rows. Letters: ``B`` samples, ``W`` width of a row, ``L`` look-ups a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CRITEO_ROWS = (
    *(227_605_432, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 130_229_467, 3_067_956, 405_282, 10),
    *(2_209, 11_938, 155, 4, 976, 14, 292_775_614, 40_790_948, 187_188_510, 590_152, 12_973, 108, 36),
)
"""Distinct values of each categorical feature in the Criteo Terabyte data set."""

DENSE_FEATURES = 13

BOTTOM = (512, 256)
TOP = (1024, 1024, 512, 256, 1)
"""Widths of the products below and above the interaction; the bottom ends with one as wide as a row."""


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Products with ReLUs between them."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Interaction(nn.Module):
    """The inner product of each pair of features."""

    pairs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        row, column = torch.tril_indices(features, features, offset=-1)
        self.register_buffer("pairs", row * features + column)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """``F`` features ``[B, W]`` -> ``[B, F * (F - 1) / 2]``."""
        stacked = torch.stack(list(features), dim=1)  # [B, F, W]
        products = torch.bmm(stacked, stacked.transpose(1, 2))  # [B, F, F]
        return products.flatten(1).index_select(1, self.pairs)


class DLRM(nn.Module):
    """Guesses whether somebody clicks."""

    def __init__(self, rows: Sequence[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum", sparse=True) for n in rows)
        self.bottom = mlp([DENSE_FEATURES, *BOTTOM, width])
        features = len(rows) + 1
        self.interaction = Interaction(features)
        self.top = mlp([width + features * (features - 1) // 2, *TOP])

    def forward(self, dense: Tensor, sparse: Tensor, labels: Tensor | None = None) -> Tensor:
        """Dense features ``[B, 13]``, indices ``[26, B, L]`` and labels ``[B]`` -> the mean loss.

        Without labels: the probability of a click ``[B]``.
        """
        looked_up = [table(indices) for table, indices in zip(self.tables, sparse.unbind(0), strict=True)]
        below = F.relu(self.bottom(dense))  # [B, W]
        pairs = self.interaction([below, *looked_up])
        logits = self.top(torch.cat([below, pairs], dim=1)).squeeze(1)  # [B]
        return torch.sigmoid(logits) if labels is None else F.binary_cross_entropy_with_logits(logits, labels)


def make(sizes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and an example batch; without labels when not training."""
    model = DLRM([min(rows, sizes["rows"]) for rows in CRITEO_ROWS], sizes["width"])
    batch = {
        "dense": torch.zeros(sizes["batch"], DENSE_FEATURES),
        "sparse": torch.zeros(len(CRITEO_ROWS), sizes["batch"], sizes["lookups"], dtype=torch.int64),
    }
    if sizes["training"]:
        batch["labels"] = torch.zeros(sizes["batch"])
    return model, batch
