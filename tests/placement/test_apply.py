"""A placed step and what its user does to the model between steps: seen, or refused, never passed over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import placement
from envs.measured.engine import StepError
from graphs.capture import capture
from graphs.errors import InputError
from placement.results.placement_file import PlacementResult

cross_entropy = nn.functional.cross_entropy
BATCH = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3


class Model(nn.Module):
    """With statistics that are updated in place, and a buffer that is given anew."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        return self.head(x - self.mean)


def placed(model: nn.Module, optimizer: str = "sgd") -> PlacementResult:
    """A placement of a model's training step on two devices."""
    problem = placement.make_problem(capture(model, BATCH, cross_entropy, optimizer=optimizer), "cpu_cores:2")
    groups = np.random.default_rng(0).integers(2, size=problem.num_groups)
    return placement.make_result(problem, groups, placer="drawn", seed=0)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss: torch.Tensor = cross_entropy(model(BATCH[0]), BATCH[1])
    loss.backward()
    optimizer.step()
    return loss.detach()


def load(model: Any) -> None:
    model.load_state_dict({key: 0.5 * value for key, value in model.state_dict().items()})


def validate(model: Any) -> None:
    model.eval()
    model(BATCH[0])
    model.train()


def walk_on(model: Any) -> None:
    """A forward of the model's own in training, which gives a buffer anew."""
    model(BATCH[0])


def scale(model: Any) -> None:
    with torch.no_grad():
        model.head.weight.mul_(0.5)


def swap_and_back(model: Any) -> None:
    kept = model.head.weight.data
    model.head.weight.data = torch.zeros_like(kept)
    model.head.weight.data = kept


@pytest.mark.parametrize("does", [load, validate, walk_on, scale, swap_and_back])
def test_what_is_done_between_steps_is_seen(does: Callable[[Any], None]) -> None:
    model = Model()
    other = copy.deepcopy(model)
    mine, plain = sgd(model), sgd(other)
    with placement.apply(
        model, placed(model), BATCH, cross_entropy, optimizer=mine, devices="cpu:0,cpu:1"
    ) as step:  # fmt: skip
        for _ in range(3):
            torch.testing.assert_close(step(BATCH), plain_step(other, plain))
            does(model)
            does(other)
    for key, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)


def freeze(model: Any) -> None:
    model.body[0].weight.requires_grad_(False)


def replace(model: Any) -> None:
    model.head.weight = nn.Parameter(torch.zeros(3, 8))


def move(model: Any) -> None:
    model.double()


def remove(model: Any) -> None:
    del model.head._parameters["bias"]


def forget_mode(model: Any) -> None:
    model.body[1].eval()


def grow(model: Any) -> None:
    model.mean = torch.zeros(9)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (freeze, "parameter 'body.0.weight' no longer requires a gradient"),
        (replace, "parameter 'head.weight' has been replaced or moved"),
        (move, "parameter 'body.0.weight' has been replaced or moved"),
        (remove, "parameter 'head.bias' has been replaced or moved"),
        (forget_mode, r"module 'body.1' is in evaluation mode.*\.train\(\)"),
        (grow, "buffer 'mean' has another shape"),
    ],
)
def test_what_a_step_would_not_see_is_refused(does: Callable[[Any], None], said: str) -> None:
    model = Model()
    with placement.apply(
        model, placed(model), BATCH, cross_entropy, optimizer=sgd(model), devices="cpu:0,cpu:1"
    ) as step:  # fmt: skip
        step(BATCH)
        does(model)
        with pytest.raises(InputError, match=said):
            step(BATCH)


def test_batches_of_other_sizes_are_refused_with_what_helps() -> None:
    model = Model()
    with placement.apply(
        model, placed(model), BATCH, cross_entropy, optimizer=sgd(model), devices="cpu:0,cpu:1"
    ) as step:  # fmt: skip
        with pytest.raises(InputError, match="drop_last=True"):
            step((BATCH[0][:3], BATCH[1][:3]))
        with pytest.raises(InputError, match=r"torch.float64.*capture the model again"):
            step((BATCH[0].double(), BATCH[1]))
    with pytest.raises(StepError, match="closed"):
        step(BATCH)


def test_another_optimizer_than_the_graph_was_captured_with_is_named() -> None:
    model = Model()
    with pytest.raises(InputError, match=r"adam_update.*sgd_update.*optimizer"):
        placement.apply(
            model, placed(model, "adam"), BATCH, cross_entropy, optimizer=sgd(model), devices="cpu:0,cpu:1"
        )  # fmt: skip


def test_an_update_trains_all_parameters_where_none_are_given() -> None:
    """Gradients of two parts of a batch, accumulated as a sum of losses."""

    def step(model: nn.Module, batch: Any, update: Any) -> torch.Tensor:
        loss = sum((cross_entropy(model(x), y) for x, y in batch), torch.zeros(()))
        update(loss)
        return loss

    model, parts = Model(), [(BATCH[0][i::2], BATCH[1][i::2]) for i in range(2)]
    other = copy.deepcopy(model)
    graph = capture(model, parts, step=step, optimizer="sgd")
    problem = placement.make_problem(graph, "cpu_cores:2")
    groups = np.random.default_rng(0).integers(2, size=problem.num_groups)
    result = placement.make_result(problem, groups, placer="drawn", seed=0)
    mine, plain = sgd(model), sgd(other)
    with placement.apply(model, result, parts, step=step, optimizer=mine, devices="cpu:0,cpu:1") as run:
        for _ in range(3):
            plain.zero_grad()
            loss = sum((cross_entropy(other(x), y) for x, y in parts), torch.zeros(()))
            loss.backward()
            plain.step()
            torch.testing.assert_close(run(parts), loss.detach())
    for key, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)
