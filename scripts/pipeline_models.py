"""Models of `scripts/compare_pipelines.py` and `scripts/pipeline_fidelity.py` that are not in the zoo.

Each function returns a model, an example batch and where it is not in the model a loss, as ``python:`` sources do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Twice(nn.Sequential):
    """Two convolutions, each normalised and rectified."""

    def __init__(self, narrow: int, wide: int) -> None:
        layers = [nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """Ronneberger, Fischer, Brox: "U-Net" (2015), arXiv 1505.04597, with padding and normalisation."""

    def __init__(self, width: int = 64, depth: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(_Twice(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_Twice(a, b) for a, b in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures ``[B, 3, H, W]`` -> scores ``[B, classes, H, W]``."""
        kept = []
        for layer in self.down[:-1]:
            kept.append(layer(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.down[-1](x)
        for grow, layer in zip(self.grow, self.up, strict=True):
            x = layer(torch.cat([kept.pop(), grow(x)], 1))
        return self.head(x)


def unet() -> tuple[nn.Module, tuple[Tensor, Tensor], Any]:
    """A U-Net on 32 pictures of 256 x 256."""
    pictures, classes = torch.zeros(32, 3, 256, 256), torch.zeros(32, 256, 256, dtype=torch.int64)
    return UNet(), (pictures, classes), F.cross_entropy


def t5() -> tuple[nn.Module, dict[str, Tensor]]:
    """T5-small on 32 sequences of 128 tokens (Raffel et al., 2019, arXiv 1910.10683)."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(dropout_rate=0.0)
    config.decoder_start_token_id, config.use_cache = 0, False
    model = T5ForConditionalGeneration(config)
    tokens = torch.zeros(32, 128, dtype=torch.int64)
    return model, {"input_ids": tokens, "labels": tokens}
