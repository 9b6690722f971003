"""Models for pipelines that are measured, some of which end a process or hang."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from torch import nn

from placement.exports.stages import Stage, Stages

STAGES = Stages(
    graph="layers",
    cluster="two processes",
    ranks=("cpu:0", "cpu:1"),
    stages=(Stage(0, ("0", "1")), Stage(1, ("2", "3"))),
    order="1f1b",
    batch=8,
    micro_batches=2,
)


def make() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
    batch = torch.randn(8, 16), torch.randint(0, 4, (8,))
    return {"model": model, "example_batch": batch, "loss": nn.functional.cross_entropy, "optimizer": "sgd"}


def _at_rank_1(what: Any) -> dict[str, Any]:
    """Do something when the second process first computes its loss."""
    made = make()

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        what()
        return nn.functional.cross_entropy(output, target)

    return {**made, "loss": loss}


def killed() -> dict[str, Any]:
    return _at_rank_1(lambda: os.kill(os.getpid(), signal.SIGKILL))


def stops() -> dict[str, Any]:
    return _at_rank_1(lambda: os._exit(7))


def hangs() -> dict[str, Any]:
    return _at_rank_1(lambda: time.sleep(1000))


def slips() -> dict[str, Any]:
    def slip() -> None:
        raise ZeroDivisionError("a fault of the model")

    return _at_rank_1(slip)
