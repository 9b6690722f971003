"""Models whose ops take a known time: some as long on any number of cores, some the shorter the more threads there are.

What is fastest is then known: two devices for branches of the first kind, one device of two cores for the second.
"""

import time

import torch
from torch import nn

TAKES_S = 0.01


@torch.library.custom_op("measured_tests::alone", mutates_args=())
def alone(x: torch.Tensor) -> torch.Tensor:
    """Doubles; more threads do not help."""
    time.sleep(TAKES_S)
    return x * 2


@torch.library.custom_op("measured_tests::shared", mutates_args=())
def shared(x: torch.Tensor) -> torch.Tensor:
    """Doubles; the threads share the work."""
    time.sleep(TAKES_S / torch.get_num_threads())
    return x * 2


for op in (alone, shared):
    op.register_fake(torch.empty_like)


class Branches(nn.Module):
    """Two branches that need not wait for each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return alone(alone(x + 1)) + alone(alone(x + 2))


class Chain(nn.Module):
    """One op after the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return shared(shared(x).tanh()).tanh()


def branches() -> dict[str, object]:
    """For ``python:tests.placement.runs.waiting_models:branches``."""
    return {"model": Branches(), "example_batch": torch.ones(4), "training": False}


def chain() -> dict[str, object]:
    """For ``python:tests.placement.runs.waiting_models:chain``."""
    return {"model": Chain(), "example_batch": torch.ones(4), "training": False}
