"""A placed step with an optimizer of `torch.optim`: its settings, its schedulers and its states are PyTorch's."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import placement
from graphs.capture import capture
from graphs.errors import InputError
from placement.results.placement_file import PlacementResult
from tests.envs.measured.measured_problems import NAMES, two_cores

pytestmark = two_cores

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]

KINDS: dict[str, Make] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.8),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, alpha=0.9),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.02, betas=(0.8, 0.9)),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.02),
}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 4))


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """As people have them: no decay of biases and norms, which also learn more slowly."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    return [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0, "lr": 0.004},
    ]


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(6, 8), torch.randint(4, (6,))) for _ in range(count)]


def placed(name: str) -> PlacementResult:
    """Of the step by an optimizer of this name, on two devices."""
    graph = capture(make_model(), batches(1)[0], F.cross_entropy, optimizer=name)
    problem = placement.make_problem(graph, "cpu_cores:2")
    drawn = np.random.default_rng(0).integers(2, size=problem.num_groups)
    return placement.make_result(problem, drawn, placer="by hand", seed=0)


def train_plainly(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def check_same(found: Any, wanted: Any, path: str = "") -> None:
    """The same numbers in the same structure."""
    if isinstance(wanted, torch.Tensor) or isinstance(found, torch.Tensor):
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), rtol=1e-4, atol=1e-6, msg=path)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), path
        for key in wanted:
            check_same(found[key], wanted[key], f"{path}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), path
        for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
            check_same(one, other, f"{path}/{i}")
    else:
        assert found == wanted, path


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("error:Detected call of")
def test_plain_and_placed_steps_take_turns(name: str) -> None:
    result, data = placed(name), batches(9)
    model, other = make_model(), make_model()
    optimizer, reference = KINDS[name](groups_of(model)), KINDS[name](groups_of(other))
    schedules = [torch.optim.lr_scheduler.StepLR(each, step_size=2, gamma=0.5) for each in (optimizer, reference)]

    def plain(part: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for batch in part:
            train_plainly(model, optimizer, batch)
            schedules[0].step()
        optimizer.zero_grad()

    plain(data[:2])
    with placement.apply(model, result, data[0], F.cross_entropy, devices=",".join(NAMES), optimizer=optimizer) as step:
        assert step.optimizer is optimizer
        for batch in data[2:5]:
            step(batch)
            schedules[0].step()
    plain(data[5:6])
    with placement.apply(model, result, data[0], F.cross_entropy, devices=",".join(NAMES), optimizer=optimizer) as step:
        for batch in data[6:8]:
            step(batch)
            schedules[0].step()
    plain(data[8:])
    for batch in data:
        train_plainly(other, reference, batch)
        schedules[1].step()
    check_same(model.state_dict(), other.state_dict())
    check_same(optimizer.state_dict(), reference.state_dict())
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.004 / 16)


@pytest.mark.parametrize("name", KINDS)
def test_a_state_is_loaded_and_saved_between_steps(name: str) -> None:
    result, data = placed(name), batches(4)
    model = make_model()
    with placement.apply(model, result, data[0], F.cross_entropy, devices=",".join(NAMES), optimizer=name) as step:
        assert step.optimizer is not None
        for batch in data[:2]:
            step(batch)
        saved = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
        losses = [float(step(batch)) for batch in data[2:]]
        model.load_state_dict(saved[0])
        step.optimizer.load_state_dict(saved[1])
        assert [float(step(batch)) for batch in data[2:]] == losses
        wanted = copy.deepcopy(step.optimizer.state_dict())
    assert wanted["state"] or name == "sgd"
    model.load_state_dict(saved[0])
    with placement.apply(model, result, data[0], F.cross_entropy, devices=",".join(NAMES), optimizer=name) as step:
        assert step.optimizer is not None
        step.optimizer.load_state_dict(saved[1])
        assert [float(step(batch)) for batch in data[2:]] == losses
        check_same(step.optimizer.state_dict(), wanted)


def test_a_placement_by_adam_is_one_by_adamw() -> None:
    data = batches(1)
    graphs = [capture(make_model(), data[0], F.cross_entropy, optimizer=name) for name in ("adam", "adamw")]
    assert graphs[0].sha256 == graphs[1].sha256


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: torch.optim.Adagrad(model.parameters()), "of type Adagrad cannot be run"),
        (lambda model: torch.optim.AdamW(model.parameters(), amsgrad=True), "AdamW with amsgrad=True cannot be run"),
        (lambda model: torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True), "SGD with nesterov=True"),
        (lambda model: torch.optim.Adam(list(model.parameters())[:3]), "does not have parameter '2.bias'"),
        (
            lambda model: torch.optim.SGD(
                [{"params": [p], "momentum": 0.1 * p.dim() - 0.1} for p in model.parameters()]
            ),
            "SGD with momentum for some parameters alone",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(make: Callable[[nn.Module], torch.optim.Optimizer], message: str) -> None:
    model, data = make_model(), batches(1)
    optimizer = make(model)
    name = "momentum" if isinstance(optimizer, torch.optim.SGD) else "adam"
    with pytest.raises(InputError, match=message):
        placement.apply(model, placed(name), data[0], F.cross_entropy, devices=",".join(NAMES), optimizer=optimizer)
