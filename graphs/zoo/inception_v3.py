"""Inception-V3: an image classifier whose blocks are parallel branches of convolutions.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: "Rethinking the Inception Architecture for Computer Vision" (2015),
https://arxiv.org/abs/1512.00567, table 1 and section 4 (the auxiliary head, which only training uses), in the variant
of the authors' code: batch normalisation after every convolution, no biases. Letters: ``B`` images, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphs.errors import InputError

AUX_LOSS_WEIGHT = 0.4
"""Weight of the auxiliary head's loss in the authors' code."""


class BasicConv2d(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` -> ``[B, C', h', w']``."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Branches(nn.Module):
    """Branches side by side on one input, concatenated along the channels."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` -> ``[B, sum of C', h', w']``."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


def block_35(channels: int, pool_channels: int) -> nn.Module:
    """The block of the 35 x 35 grid (figure 5)."""
    return Branches(
        branch1x1=BasicConv2d(channels, 64, 1),
        branch5x5=nn.Sequential(BasicConv2d(channels, 48, 1), BasicConv2d(48, 64, 5, padding=2)),
        branch3x3=nn.Sequential(
            BasicConv2d(channels, 64, 1), BasicConv2d(64, 96, 3, padding=1), BasicConv2d(96, 96, 3, padding=1)
        ),
        branch_pool=nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), BasicConv2d(channels, pool_channels, 1)),
    )


def reduce_35_to_17(channels: int) -> nn.Module:
    """From the 35 x 35 grid to 17 x 17 (figure 10)."""
    return Branches(
        branch3x3=BasicConv2d(channels, 384, 3, stride=2),
        branch3x3dbl=nn.Sequential(
            BasicConv2d(channels, 64, 1), BasicConv2d(64, 96, 3, padding=1), BasicConv2d(96, 96, 3, stride=2)
        ),
        branch_pool=nn.MaxPool2d(3, stride=2),
    )


def block_17(channels: int, width: int) -> nn.Module:
    """The block of the 17 x 17 grid: 7 x 7 kernels as 1 x 7 after 7 x 1 (figure 6)."""
    across: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
    down: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
    return Branches(
        branch1x1=BasicConv2d(channels, 192, 1),
        branch7x7=nn.Sequential(
            BasicConv2d(channels, width, 1), BasicConv2d(width, width, **across), BasicConv2d(width, 192, **down)
        ),
        branch7x7dbl=nn.Sequential(
            BasicConv2d(channels, width, 1),
            BasicConv2d(width, width, **down),
            BasicConv2d(width, width, **across),
            BasicConv2d(width, width, **down),
            BasicConv2d(width, 192, **across),
        ),
        branch_pool=nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), BasicConv2d(channels, 192, 1)),
    )


def reduce_17_to_8(channels: int) -> nn.Module:
    """From the 17 x 17 grid to 8 x 8."""
    return Branches(
        branch3x3=nn.Sequential(BasicConv2d(channels, 192, 1), BasicConv2d(192, 320, 3, stride=2)),
        branch7x7=nn.Sequential(
            BasicConv2d(channels, 192, 1),
            BasicConv2d(192, 192, (1, 7), padding=(0, 3)),
            BasicConv2d(192, 192, (7, 1), padding=(3, 0)),
            BasicConv2d(192, 192, 3, stride=2),
        ),
        branch_pool=nn.MaxPool2d(3, stride=2),
    )


def block_8(channels: int) -> nn.Module:
    """The block of the 8 x 8 grid, whose branches fork once more (figure 7)."""

    def fork(width: int) -> nn.Module:
        return Branches(
            across=BasicConv2d(width, 384, (1, 3), padding=(0, 1)), down=BasicConv2d(width, 384, (3, 1), padding=(1, 0))
        )

    return Branches(
        branch1x1=BasicConv2d(channels, 320, 1),
        branch3x3=nn.Sequential(BasicConv2d(channels, 384, 1), fork(384)),
        branch3x3dbl=nn.Sequential(BasicConv2d(channels, 448, 1), BasicConv2d(448, 384, 3, padding=1), fork(384)),
        branch_pool=nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), BasicConv2d(channels, 192, 1)),
    )


class AuxiliaryHead(nn.Module):
    """A second classifier on the 17 x 17 grid, which helps early training."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride=3)
        self.conv0 = BasicConv2d(channels, 128, 1)
        self.conv1 = BasicConv2d(128, 768, 5)
        self.fc = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, 17, 17]`` -> logits ``[B, classes]``."""
        x = self.conv1(self.conv0(self.pool(x)))  # [B, 768, 1, 1]
        return self.fc(x.mean(dim=(2, 3)))


class InceptionV3(nn.Module):
    """Classifies images."""

    def __init__(self, classes: int, *, aux: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            BasicConv2d(3, 32, 3, stride=2),
            BasicConv2d(32, 32, 3),
            BasicConv2d(32, 64, 3, padding=1),
            nn.MaxPool2d(3, stride=2),
            BasicConv2d(64, 80, 1),
            BasicConv2d(80, 192, 3),
            nn.MaxPool2d(3, stride=2),
        )
        self.mixed_35 = nn.Sequential(block_35(192, 32), block_35(256, 64), block_35(288, 64))
        self.mixed_17 = nn.Sequential(
            reduce_35_to_17(288), block_17(768, 128), block_17(768, 160), block_17(768, 160), block_17(768, 192)
        )
        self.aux = AuxiliaryHead(768, classes) if aux else None
        self.mixed_8 = nn.Sequential(reduce_17_to_8(768), block_8(1280), block_8(2048))
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(2048, classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images ``[B, 3, h, w]`` and labels ``[B]`` -> the mean loss; without labels logits ``[B, classes]``."""
        grid_17 = self.mixed_17(self.mixed_35(self.stem(images)))  # [B, 768, 17, 17]
        features = self.mixed_8(grid_17).mean(dim=(2, 3))  # [B, 2048]
        logits = self.fc(self.dropout(features))
        if labels is None:
            return logits
        loss = F.cross_entropy(logits, labels)
        if self.aux is not None:
            loss = loss + AUX_LOSS_WEIGHT * F.cross_entropy(self.aux(grid_17), labels)
        return loss


def make(sizes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and an example batch; without labels, and so without the auxiliary head, when not training."""
    aux = bool(sizes["aux"] and sizes["training"])
    if aux and sizes["image"] < 299:
        raise InputError(
            f"workload 'inception_v3': the auxiliary head needs image=299 or more, not {sizes['image']}; add aux=0"
        )
    model = InceptionV3(sizes["classes"], aux=aux)
    batch = {"images": torch.zeros(sizes["batch"], 3, sizes["image"], sizes["image"])}
    if sizes["training"]:
        batch["labels"] = torch.zeros(sizes["batch"], dtype=torch.int64)
    return model, batch
