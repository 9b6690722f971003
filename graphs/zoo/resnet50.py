"""ResNet-50: an image classifier of residual blocks.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition" (2015), https://arxiv.org/abs/1512.03385, table 1.
A block that shrinks the image does so in its 3 x 3 convolution, as the code does that published training times are of;
the paper does it in the 1 x 1 convolution before, which is 6% less work (``stride=1x1``). Letters: ``B`` images, ``C``
channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = (3, 4, 6, 3)
"""Residual blocks of each stage."""

EXPANSION = 4
"""A block puts out so many times the channels of its 3 x 3 convolution."""


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, and ReLU where wanted."""

    def __init__(self, channels: int, out_channels: int, kernel: int, *, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` -> ``[B, C', h', w']``."""
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x


class Bottleneck(nn.Module):
    """Three convolutions whose result is added to the input, or to its projection where the shape changes."""

    def __init__(self, channels: int, width: int, *, stride: int, stride_in_3x3: bool) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.reduce = ConvNorm(channels, width, 1, stride=1 if stride_in_3x3 else stride)
        self.conv = ConvNorm(width, width, 3, stride=stride if stride_in_3x3 else 1)
        self.expand = ConvNorm(width, out_channels, 1, relu=False)
        changes = stride != 1 or channels != out_channels
        self.shortcut = ConvNorm(channels, out_channels, 1, stride=stride, relu=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` -> ``[B, C', h', w']``."""
        out = self.expand(self.conv(self.reduce(x)))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu(out, inplace=True)


class ResNet50(nn.Module):
    """Classifies images."""

    def __init__(self, classes: int, *, stride_in_3x3: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 64, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.ModuleList()
        channels = 64
        for stage, num_blocks in enumerate(BLOCKS):
            width = 64 << stage
            blocks = []
            for block in range(num_blocks):
                stride = 2 if stage and not block else 1
                blocks.append(Bottleneck(channels, width, stride=stride, stride_in_3x3=stride_in_3x3))
                channels = EXPANSION * width
            self.stages.append(nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images ``[B, 3, h, w]`` and labels ``[B]`` -> the mean loss; without labels logits ``[B, classes]``."""
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        logits = self.fc(x.mean(dim=(2, 3)))
        return logits if labels is None else F.cross_entropy(logits, labels)


def make(sizes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and an example batch; without labels when not training."""
    model = ResNet50(sizes["classes"], stride_in_3x3=sizes["stride"] == "3x3")
    batch = {"images": torch.zeros(sizes["batch"], 3, sizes["image"], sizes["image"])}
    if sizes["training"]:
        batch["labels"] = torch.zeros(sizes["batch"], dtype=torch.int64)
    return model, batch
