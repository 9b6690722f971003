"""Updates move weights as PyTorch's optimizers do without fused kernels, in every dtype and size."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import placement
from envs.measured.updates import STATES, ParameterState, UpdateSettings, make_update
from graphs.capture import capture

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
SHAPES = [(), (5,), (64, 64), (3, 257)]


def plain_optimizer(name: str, parameters: list[nn.Parameter], settings: UpdateSettings) -> torch.optim.Optimizer:
    settings = settings.of(name)
    decay, lr = settings.weight_decay, settings.lr
    assert lr is not None
    assert decay is not None
    if name in ("adam", "adamw"):
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        return kind(parameters, lr, settings.betas, settings.eps, weight_decay=decay, foreach=False, fused=False)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr, settings.alpha, settings.eps, decay, foreach=False)
    momentum = settings.momentum if name == "momentum" else 0.0
    return torch.optim.SGD(parameters, lr, momentum, weight_decay=decay, foreach=False, fused=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", STATES)
def test_weights_move_as_torch_optim_moves_them(optimizer: str, weight_decay: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    settings = UpdateSettings(lr=0.125, weight_decay=weight_decay, eps=1e-3)
    fused = dtype in (torch.float32, torch.float64)  # such kernels may add in another order
    for shape in SHAPES:
        weight, start = torch.randn(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        start.copy_(weight)
        expected = nn.Parameter(weight.clone())
        update = make_update(optimizer, settings, weight, ParameterState(optimizer, weight))
        reference = plain_optimizer(optimizer, [expected], settings)
        for _ in range(4):
            gradient = torch.randn(shape, dtype=dtype)
            expected.grad = gradient.clone()
            update(gradient)
            reference.step()
            assert torch.equal(gradient, expected.grad)
            tolerance: dict[str, Any] = {} if fused else {"rtol": 0.0, "atol": 0.0}
            torch.testing.assert_close(weight, expected.detach(), equal_nan=True, **tolerance)
        assert (weight != start).float().mean() >= 0.8


@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("optimizer", STATES)
def test_a_placed_step_learns_in_every_dtype(optimizer: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).to(dtype), torch.randn(8, 64).to(dtype)
    other = copy.deepcopy(model)
    settings = replace(UpdateSettings(), lr=0.125, eps=1e-3)
    reference = plain_optimizer(optimizer, list(other.parameters()), settings)

    def loss(output: torch.Tensor) -> torch.Tensor:
        return output.float().square().mean()

    graph = capture(model, x, loss, optimizer=optimizer)
    problem = placement.make_problem(graph, "cpu_cores:1")
    result = placement.make_result(problem, [0] * problem.num_groups, placer="by hand", seed=0)
    with placement.apply(model, result, x, loss, optimizer=optimizer, settings=settings) as step:
        for _ in range(3):
            step(x)
            reference.zero_grad()
            loss(other(x)).backward()
            reference.step()
    for found, wanted in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), wanted.detach(), rtol=2e-2, atol=2e-2)
