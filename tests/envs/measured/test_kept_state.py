"""What a model keeps from step to step: carried where it is a buffer, refused where it is not and matters."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import placement
from envs.measured.plain import make_plain_step
from graphs.capture import capture, capture_program
from graphs.errors import InputError
from tests.envs.measured.measured_problems import NAMES, two_cores

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


class Model(nn.Module):
    """A layer, three buffers, some attributes, and a forward of the test's own."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        for name, value in (("mean", torch.zeros(4)), ("other", torch.ones(4)), ("queue", torch.ones(6, 4))):
            self.register_buffer(name, value)
        self.count, self.plain, self.first, self.outputs = 0, torch.zeros(4), True, list[torch.Tensor]()
        self.last: torch.Tensor | None = None
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def average(model: Any, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    model.mean = 0.9 * model.mean + 0.1 * y.detach().mean(0)
    return y - model.mean


def average_in_place(model: Any, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    model.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
    return y - model.mean


def average_after(model: Any, x: torch.Tensor) -> torch.Tensor:
    y, before = model.layer(x), model.mean
    model.mean = y.detach().mean(0)
    return y - before


def exchange(model: Any, x: torch.Tensor) -> torch.Tensor:
    model.mean, model.other = model.other, model.mean
    return model.layer(x) * model.mean


def shift(model: Any, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    model.mean, model.other = y.detach().mean(0), model.mean
    return y + model.other


def enqueue(model: Any, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    out = y + model.queue.mean(0)
    model.queue = torch.cat([model.queue[1:], y.detach().mean(0, keepdim=True)])
    return out


def set_data(model: Any, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    model.mean.data = 0.5 * model.mean + y.detach().mean(0)
    return y - model.mean


def clamp_weights(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        model.layer.weight.clamp_(-0.3, 0.3)
    return model.layer(x)


def keep_the_last(model: Any, x: torch.Tensor) -> torch.Tensor:
    model.count += 1
    model.last = model.layer(x)
    model.outputs[:] = [model.last]
    return model.last


CARRIED = [average, average_in_place, average_after, exchange, shift, enqueue, set_data, clamp_weights, keep_the_last]


def count(model: Any, x: torch.Tensor) -> torch.Tensor:
    model.count += 1
    return model.layer(x) / model.count


def average_of_no_buffer(model: Any, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    model.plain = 0.9 * model.plain + 0.1 * y.detach().mean(0)
    return y - model.plain


def add_the_last(model: Any, x: torch.Tensor) -> torch.Tensor:
    y, before = model.layer(x), model.last
    model.last = y.detach()
    return y if before is None else y + before


def collect(model: Any, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    model.outputs.append(y.detach())
    return y + torch.stack(model.outputs).mean(0)


def begin_with_ones(model: Any, x: torch.Tensor) -> torch.Tensor:
    if model.first:
        model.first = False
        with torch.no_grad():
            model.layer.bias.fill_(1.0)
    return model.layer(x)


def grow(model: Any, x: torch.Tensor) -> torch.Tensor:
    y = model.layer(x)
    model.queue = torch.cat([model.queue, y.detach().mean(0, keepdim=True)])
    return y + model.queue.mean(0)


def scale_weights(model: Any, x: torch.Tensor) -> torch.Tensor:
    model.layer.weight.data = model.layer.weight.data / model.layer.weight.data.norm()
    return model.layer(x)


REFUSED: dict[Forward, str] = {
    count: "changes 'count' in a step",
    average_of_no_buffer: "changes 'plain' in a step",
    add_the_last: "changes 'last' in a step",
    collect: "changes 'outputs' in a step",
    begin_with_ones: "changes 'first' in a step",
    grow: "makes buffer 'queue' torch.float32 of shape [7, 4] where it was",
    scale_weights: "puts another tensor in the place of parameter 'layer.weight'",
}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(4, 8), torch.randn(4, 4)


@two_cores
@pytest.mark.parametrize("forward", CARRIED)
def test_what_is_carried_is_as_pytorch_has_it(forward: Forward) -> None:
    torch.manual_seed(0)
    model, data = Model(forward), batch()
    other = copy.deepcopy(model)
    graph = capture(model, data, F.mse_loss, optimizer="sgd")
    problem = placement.make_problem(graph, "cpu_cores:2")
    drawn = np.random.default_rng(0).integers(2, size=problem.num_groups)
    result = placement.make_result(problem, drawn, placer="by hand", seed=0)
    plain = make_plain_step(other, data, F.mse_loss, optimizer="sgd")
    with placement.apply(model, result, data, F.mse_loss, devices=",".join(NAMES), optimizer="sgd") as step:
        for _ in range(3):
            torch.testing.assert_close(step(data), plain().detach())
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("forward", REFUSED)
def test_what_is_not_is_refused_where_it_matters(forward: Forward) -> None:
    model = Model(forward)
    before = dict(vars(model))
    with pytest.raises(InputError) as caught:
        capture_program(model, batch(), F.mse_loss, optimizer="sgd")
    assert REFUSED[forward] in str(caught.value)
    assert vars(model) == before
    assert capture(model, batch(), F.mse_loss).num_ops > 3  # the graph of one step is still to be had


def test_after_a_first_call_such_a_model_is_taken() -> None:
    model, data = Model(begin_with_ones), batch()
    model(data[0])
    assert capture_program(model, data, F.mse_loss).calls
