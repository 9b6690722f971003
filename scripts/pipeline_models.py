"""Models of `scripts/compare_pipelines.py` and `scripts/pipeline_fidelity.py` that are not in the zoo.

Each function returns a model, an example batch and where it is not in the model a loss, as ``python:`` sources do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MICRO_BATCHES = 8
BATCH = 32
"""Of the models that `scripts/pipeline_fidelity.py` runs."""

Trained = tuple[nn.Module, tuple[Tensor, Tensor], Any]


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


class Block(nn.Module):
    """A block of a decoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, H]`` -> ``[B, T, H]``."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class Decoder(nn.Module):
    """An embedding, six blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(2000, 256)
        self.blocks = nn.ModuleList(Block(256) for _ in range(6))
        self.head = nn.Linear(256, 2000)

    def forward(self, words: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T, 2000]``."""
        x = self.embed(words)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Residual(nn.Module):
    """Two convolutions and what they are added to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor) -> Tensor:
        """As large as `x`."""
        return x + self.second(F.relu(self.norm(self.first(x))))


class Pictures(nn.Module):
    """A stem, six residual blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Residual(64) for _ in range(6))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, 64, 64]`` -> ``[B, 10]``."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def words_loss(output: Tensor, target: Tensor) -> Tensor:
    """Of next words."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def decoder(batch: int = BATCH // MICRO_BATCHES) -> Trained:
    """The decoder, a batch and its loss; by default one micro-batch."""
    torch.manual_seed(0)
    words = torch.randint(0, 2000, (batch, 64))
    return Decoder(), (words, words.roll(-1, 1)), words_loss


def pictures(batch: int = BATCH // MICRO_BATCHES) -> Trained:
    """The convolutional model likewise."""
    torch.manual_seed(0)
    return Pictures(), (torch.randn(batch, 3, 64, 64), torch.randint(0, 10, (batch,))), F.cross_entropy


def of_one(function: Any) -> Any:
    """A step of one micro-batch under SGD, for the profile."""
    model, batch, loss = function()
    return {"model": model, "example_batch": batch, "loss": loss, "optimizer": "sgd"}


def decoder_part() -> dict[str, Any]:
    """One micro-batch of the decoder."""
    return of_one(decoder)


def pictures_part() -> dict[str, Any]:
    """One micro-batch of the convolutional model."""
    return of_one(pictures)
