"""Int8 inference: products of int8 that are summed in int32, with scales for each row.

PyTorch has one such op that runs without a converted model, ``torch._int_mm``: a product of two matrices. For
convolutions it has none: `convolution` on int8 tensors sums in int8, which overflows, and ``quantized::conv2d`` wants
weights packed by a backend, which no fake tensor can stand for. So only `nn.Linear` is replaced here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer that multiplies int8 by int8.

    Each output's weights are scaled to int8 once, and each row of the input when it comes, to the row's largest value
    (the "vector-wise" scheme of Dettmers 2022, section 3.1, https://arxiv.org/abs/2208.07339, without its outliers).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # [out, in]
        scale = _scale(weight)  # [out, 1]
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale.squeeze(1), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` -> ``[..., out]`` in the same dtype."""
        rows = x.flatten(0, -2)
        scale = _scale(rows)  # [rows, 1]
        quantized = (rows / scale).round().to(torch.int8)
        product = torch._int_mm(quantized, self.weight.t())  # int32[rows, out]
        out = (product * scale * self.scale).to(x.dtype)
        return (out if self.bias is None else out + self.bias).unflatten(0, x.shape[:-1])


def _scale(rows: Tensor) -> Tensor:
    """``[n, k]`` -> ``float32[n, 1]``: what one step of int8 means in each row."""
    return rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-8) / _LARGEST


def quantize_products(model: nn.Module) -> None:
    """Replace every `nn.Linear` in a model by an `Int8Linear`; a weight tied to an embedding gets a copy of its own."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
