"""NASNet-A: an image classifier whose cells were found by search, so that their branches are irregular.

Zoph, Vasudevan, Shlens, Le: "Learning Transferable Architectures for Scalable Image Recognition" (2017),
https://arxiv.org/abs/1707.07012, figure 4 and appendix A, by default NASNet-A (6 @ 4032) for images of 331 x 331, as in
the authors' code. Without the auxiliary head and without scheduled drop-path, which only regularise training. Letters:
``B`` images, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEM_CHANNELS = 96

NORM_EPS = 0.001


class Separable(nn.Module):
    """ReLU, depthwise convolution, 1 x 1 convolution, batch normalisation."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` -> ``[B, C, h / stride, w / stride]``."""
        return self.norm(self.pointwise(self.depthwise(F.relu(x))))


class Squeeze(nn.Module):
    """ReLU, 1 x 1 convolution, batch normalisation: makes the channels those of a cell's branches."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` -> ``[B, C', h, w]``."""
        return self.norm(self.conv(F.relu(x)))


class FactorizedReduction(nn.Module):
    """As `Squeeze` where the image must be halved too: half the channels see the even pixels, half the odd ones."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(channels, out_channels // 2, 1, bias=False)
        self.odd = nn.Conv2d(channels, out_channels - out_channels // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` -> ``[B, C', h / 2, w / 2]``."""
        x = F.relu(x)
        even = self.even(F.avg_pool2d(x, 1, stride=2))
        odd = self.odd(F.avg_pool2d(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:], 1, stride=2))
        return self.norm(torch.cat([even, odd], dim=1))


def separable(kernel: int) -> Callable[[int, int], nn.Module]:
    """A separable convolution, which is always applied twice, as an operation of a cell."""

    def twice(channels: int, stride: int) -> nn.Module:
        return nn.Sequential(Separable(channels, kernel, stride), Separable(channels, kernel, 1))

    return twice


def average(channels: int, stride: int) -> nn.Module:
    """The mean of 3 x 3 pixels as an operation of a cell."""
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


def maximum(channels: int, stride: int) -> nn.Module:
    """The largest of 3 x 3 pixels as an operation of a cell."""
    return nn.MaxPool2d(3, stride, padding=1)


def same(channels: int, stride: int) -> nn.Module:
    """No operation."""
    return nn.Identity()


Operation = Callable[[int, int], nn.Module]
Step = tuple[int, Operation, int, Operation]
"""``(i, f, j, g)``: a step adds ``f`` of state ``i`` to ``g`` of state ``j`` and so makes the next state. State 0 is
the last cell's output and state 1 that of the cell before; what no step reads is the cell's output, and in a normal
cell state 1 as well."""

NORMAL: tuple[Step, ...] = (
    (0, separable(5), 1, separable(3)),
    (1, separable(5), 1, separable(3)),
    (0, average, 1, same),
    (1, average, 1, average),
    (0, separable(3), 0, same),
)
NORMAL_OUTPUT = (1, 2, 3, 4, 5, 6)

REDUCTION: tuple[Step, ...] = (
    (0, separable(5), 1, separable(7)),
    (0, maximum, 1, separable(7)),
    (0, average, 1, separable(5)),
    (3, same, 2, average),
    (2, separable(3), 0, maximum),
)
REDUCTION_OUTPUT = (3, 4, 5, 6)


class Cell(nn.Module):
    """Five steps on the outputs of the two cells before."""

    def __init__(self, channels: int, before: tuple[int, bool], filters: int, *, reduces: bool) -> None:
        """`before`: channels of the cell before the last, and whether its image is twice as high."""
        super().__init__()
        self.steps = REDUCTION if reduces else NORMAL
        self.output = REDUCTION_OUTPUT if reduces else NORMAL_OUTPUT
        self.squeeze = Squeeze(channels, filters)
        channels_before, is_larger = before
        self.squeeze_before = (FactorizedReduction if is_larger else Squeeze)(channels_before, filters)
        self.left = nn.ModuleList()
        self.right = nn.ModuleList()
        for i, left, j, right in self.steps:
            self.left.append(left(filters, 2 if reduces and i < 2 else 1))
            self.right.append(right(filters, 2 if reduces and j < 2 else 1))

    def forward(self, last: Tensor, before: Tensor) -> Tensor:
        """Outputs of the last cell and of the one before -> ``[B, 6 or 4 times filters, h', w']``."""
        states = [self.squeeze(last), self.squeeze_before(before)]
        for (i, _, j, _), left, right in zip(self.steps, self.left, self.right, strict=True):
            states.append(left(states[i]) + right(states[j]))
        return torch.cat([states[i] for i in self.output], dim=1)


class NASNet(nn.Module):
    """Classifies images: a stem, two small reduction cells, and three stages with reduction cells between them."""

    def __init__(self, classes: int, cells: int, filters: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, bias=False), nn.BatchNorm2d(STEM_CHANNELS, eps=NORM_EPS)
        )
        plan = [(filters // 4, True), (filters // 2, True)]
        for stage in range(3):
            if stage:
                plan.append((filters << stage, True))
            plan += [(filters << stage, False)] * cells
        self.cells = nn.ModuleList()
        self.reads_before: list[int] = []
        outputs = [(STEM_CHANNELS, 0)]  # channels, and how often the image was halved since the stem
        for number, (width, reduces) in enumerate(plan):
            # The cell after a reduction passes over it, except in the stem.
            skips = number > 2 and plan[number - 1][1]
            before = max(len(outputs) - (3 if skips else 2), 0)
            channels, halved = outputs[-1]
            larger = halved > outputs[before][1]
            self.cells.append(Cell(channels, (outputs[before][0], larger), width, reduces=reduces))
            self.reads_before.append(before)
            outputs.append((width * (4 if reduces else 6), halved + reduces))
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(outputs[-1][0], classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images ``[B, 3, h, w]`` and labels ``[B]`` -> the mean loss; without labels logits ``[B, classes]``."""
        outputs = [self.stem(images)]
        for cell, before in zip(self.cells, self.reads_before, strict=True):
            outputs.append(cell(outputs[-1], outputs[before]))
        features = F.relu(outputs[-1]).mean(dim=(2, 3))
        logits = self.fc(self.dropout(features))
        return logits if labels is None else F.cross_entropy(logits, labels)


def make(sizes: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model and an example batch; without labels when not training."""
    model = NASNet(sizes["classes"], sizes["cells"], sizes["filters"])
    batch = {"images": torch.zeros(sizes["batch"], 3, sizes["image"], sizes["image"])}
    if sizes["training"]:
        batch["labels"] = torch.zeros(sizes["batch"], dtype=torch.int64)
    return model, batch
