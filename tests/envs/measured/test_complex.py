"""Complex numbers: conjugates and imaginary parts of them are views without a copy, and are read as such."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import placement
from envs.measured.plain import make_plain_step
from graphs.capture import capture
from tests.envs.measured.measured_problems import NAMES, two_cores

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


class Spectral(nn.Module):
    """Complex weights, and a forward of the test's own."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 5, dtype=torch.complex64))
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def spectrum(x: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft(x)[:, :, :5]


WAYS: dict[str, Forward] = {
    "product of matrices": lambda m, x: torch.fft.irfft(torch.einsum("bix,iox->box", spectrum(x), m.weight), n=16),
    "elements": lambda m, x: (spectrum(x) * m.weight[0]).abs(),
    "conjugate": lambda m, x: (spectrum(x).conj() * m.weight[0].conj()).real,
    "imaginary part of it": lambda m, x: (spectrum(x) * m.weight[0]).conj().imag * 2,
    "adjoint": lambda m, x: (m.weight[:, :, 0].mH @ spectrum(x)).abs(),
    "in place": lambda m, x: spectrum(x).clone().conj().mul_(m.weight[1]).real,
}


@two_cores
@pytest.mark.parametrize("way", WAYS)
def test_a_placed_step_computes_and_learns_as_pytorch_does(way: str) -> None:
    torch.manual_seed(0)
    model, x = Spectral(WAYS[way]), torch.randn(3, 4, 16)
    other = copy.deepcopy(model)

    def loss(output: torch.Tensor) -> torch.Tensor:
        return output.square().mean()

    problem = placement.make_problem(capture(model, x, loss, optimizer="sgd"), "cpu_cores:2")
    plain = make_plain_step(other, x, loss, optimizer="sgd")
    for seed in range(2):
        drawn = np.random.default_rng(seed).integers(2, size=problem.num_groups)
        result = placement.make_result(problem, drawn, placer="by hand", seed=0)
        with placement.apply(model, result, x, loss, devices=",".join(NAMES), optimizer="sgd") as step:
            for _ in range(2):
                torch.testing.assert_close(step(x), plain().detach())
    torch.testing.assert_close(model.weight.detach(), other.weight.detach())
