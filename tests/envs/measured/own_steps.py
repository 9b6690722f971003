"""Steps of one's own, with the same written for PyTorch's optimizers by hand."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from graphs.capture.own_step import OwnStep, Update


def bce(logits: torch.Tensor, is_real: bool) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))


def networks() -> nn.ModuleDict:
    """A generator and a discriminator; no batch norm takes a bias away, whose gradient would be noise to Adam."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "generator": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)),
            "discriminator": nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1)),
        }
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(6, 6), torch.randn(6, 4)


class ByHand:
    """Optimizers for a step by hand: one for each module, or set of parameters, and name."""

    def __init__(self) -> None:
        self._made: dict[str, torch.optim.Optimizer] = {}

    def go(
        self, name: str, kind: Any, loss: torch.Tensor, parameters: Iterable[torch.Tensor], clip: float = 0.0
    ) -> None:
        held = list(parameters)
        if name not in self._made:
            self._made[name] = kind(held)
        self._made[name].zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(held, clip)
        self._made[name].step()


def gan(model: Any, batch: Any, update: Update) -> torch.Tensor:
    """A GAN: the generator's loss goes through the discriminator that has just been updated."""
    real, noise = batch
    generator, discriminator = model["generator"], model["discriminator"]
    fake = generator(noise)
    loss = bce(discriminator(real), True) + bce(discriminator(fake.detach()), False)
    update(loss, discriminator)
    loss = bce(discriminator(fake), True)
    update(loss, generator.parameters(), "sgd")
    return loss


def gan_by_hand(model: Any, batch: Any, by: ByHand) -> torch.Tensor:
    real, noise = batch
    generator, discriminator = model["generator"], model["discriminator"]
    fake = generator(noise)
    loss = bce(discriminator(real), True) + bce(discriminator(fake.detach()), False)
    by.go("d", torch.optim.Adam, loss, discriminator.parameters())
    loss = bce(discriminator(fake), True)
    by.go("g", torch.optim.SGD, loss, generator.parameters())
    return loss


def critic(model: Any, batch: Any, update: Update) -> dict[str, torch.Tensor]:
    """A Wasserstein GAN: two steps of the critic with clipped weights, and a frozen critic for the generator."""
    real, noise = batch
    generator, discriminator = model["generator"], model["discriminator"]
    losses = []
    for _ in range(2):
        losses.append(discriminator(generator(noise).detach()).mean() - discriminator(real).mean())
        update(losses[-1], discriminator, optimizer="rmsprop")
        with torch.no_grad():
            for parameter in discriminator.parameters():
                parameter.clamp_(-0.2, 0.2)
    discriminator.requires_grad_(False)
    loss = -discriminator(generator(noise)).mean()
    update(loss, model, optimizer="rmsprop")
    discriminator.requires_grad_(True)
    return {"critic": losses[-1], "generator": loss}


def critic_by_hand(model: Any, batch: Any, by: ByHand) -> dict[str, torch.Tensor]:
    real, noise = batch
    generator, discriminator = model["generator"], model["discriminator"]
    losses = []
    for _ in range(2):
        losses.append(discriminator(generator(noise).detach()).mean() - discriminator(real).mean())
        by.go("d", torch.optim.RMSprop, losses[-1], discriminator.parameters())
        with torch.no_grad():
            for parameter in discriminator.parameters():
                parameter.clamp_(-0.2, 0.2)
    loss = -discriminator(generator(noise)).mean()
    by.go("g", torch.optim.RMSprop, loss, generator.parameters())
    return {"critic": losses[-1], "generator": loss}


def penalty(model: Any, batch: Any, update: Update) -> torch.Tensor:
    """A gradient penalty, which is a backward within the forward; gradients are clipped."""
    loss, of_generator = _penalty(model, batch)
    update(loss, model["discriminator"], clip_grad_norm=0.05)
    update(of_generator(), model["generator"])
    return loss


def penalty_by_hand(model: Any, batch: Any, by: ByHand) -> torch.Tensor:
    loss, of_generator = _penalty(model, batch)
    by.go("d", torch.optim.Adam, loss, model["discriminator"].parameters(), clip=0.05)
    by.go("g", torch.optim.Adam, of_generator(), model["generator"].parameters())
    return loss


def _penalty(model: Any, batch: Any) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    real, noise = batch
    judge = model["discriminator"][0]
    mixed = (0.3 * real + 0.7 * model["generator"](noise).detach()).requires_grad_(True)
    (slope,) = torch.autograd.grad(judge(mixed).tanh().sum(), mixed, create_graph=True)
    loss = judge(real).mean() + ((slope.norm(2, dim=1) - 1) ** 2).mean()
    return loss, lambda: -judge(model["generator"](noise)).mean()


def follower(model: Any, batch: Any, update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    """Two optimizers on the same parameters, and a second network that follows the first one."""
    _, noise = batch
    first = model["generator"](noise).square().mean()
    update(first, model["generator"], "momentum")
    second = model["generator"](noise).abs().mean()
    update(second, [model["generator"][0].weight], "adam")
    _follow(model)
    return first, second


def follower_by_hand(model: Any, batch: Any, by: ByHand) -> tuple[torch.Tensor, torch.Tensor]:
    _, noise = batch
    first = model["generator"](noise).square().mean()
    by.go("all", _momentum, first, model["generator"].parameters())
    second = model["generator"](noise).abs().mean()
    by.go("one", torch.optim.Adam, second, [model["generator"][0].weight])
    _follow(model)
    return first, second


def _momentum(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, momentum=0.9)


def _follow(model: Any) -> None:
    with torch.no_grad():
        pairs = zip(model["discriminator"][0].parameters(), model["generator"][2].parameters(), strict=True)
        for mine, theirs in pairs:
            mine.lerp_(theirs.mean().expand_as(mine), 0.1)


@dataclass(frozen=True)
class Case:
    """A step, and the same by hand."""

    step: OwnStep
    by_hand: Callable[[Any, Any, ByHand], Any]


CASES = {
    "gan": Case(gan, gan_by_hand),
    "critic": Case(critic, critic_by_hand),
    "penalty": Case(penalty, penalty_by_hand),
    "follower": Case(follower, follower_by_hand),
}


def run_by_hand(name: str, model: nn.Module, count: int) -> list[Any]:
    """What some steps give by PyTorch itself."""
    by, given = ByHand(), batch()
    return [copy.deepcopy(_detached(CASES[name].by_hand(model, given, by))) for _ in range(count)]


def _detached(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: tensor.detach() for key, tensor in value.items()}
    return tuple(tensor.detach() for tensor in value) if isinstance(value, tuple) else value.detach()


def make_gan() -> dict[str, object]:
    """For ``python:tests.envs.measured.own_steps:make_gan``."""
    return {"model": networks(), "example_batch": batch(), "step": gan, "name": "gan"}
