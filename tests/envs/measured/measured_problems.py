"""Models whose steps are run by the tests of measured execution, and PyTorch's own step to compare with."""

import copy
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from envs.measured.engine import Engine, Step
from envs.measured.machine import parse_devices, usable_cores
from graphs import zoo
from graphs.capture import Program, batch_tensors, capture_program
from graphs.capture.own_step import OwnStep
from graphs.capture.step import Loss
from graphs.colocation.rules import colocate
from graphs.computation_graph import ComputationGraph

two_cores = pytest.mark.skipif(len(usable_cores()) < 2, reason="needs two cores")

NAMES = [f"cpu:{core}" for core in usable_cores()[:2]]
"""Two devices of this machine."""


def zoo_model(spec: str) -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, Any]]:
    """A workload with weights and a batch, without dropout, and how to capture it."""
    workload, sizes = zoo.parse(spec)
    torch.manual_seed(0)
    model, batch = zoo.build(workload, sizes)
    batch = {k: torch.randint_like(t, 2) if t.dtype == torch.int64 else torch.rand_like(t) for k, t in batch.items()}
    return without_dropout(model), batch, {"training": bool(sizes["training"]), "optimizer": str(sizes["optimizer"])}


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def make_optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's optimizer; fused where it can be, as the graph's update is one op."""
    parameters = list(model.parameters())
    sparse = any(isinstance(m, (nn.EmbeddingBag, nn.Embedding)) and m.sparse for m in model.modules())
    if name == "adam":
        return torch.optim.Adam(parameters, fused=True)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, foreach=False)
    return torch.optim.SGD(parameters, momentum=0.9 if name == "momentum" else 0.0, fused=not sparse)


def random_placements(program: Program, count: int, seed: int = 0) -> list[np.ndarray]:
    """Placements of groups on two devices, as placements of ops; the first has all on one."""
    groups = colocate(program.graph)
    rng = np.random.default_rng(seed)
    drawn = [np.zeros(groups.num_groups, dtype=np.int64)]
    drawn += [rng.integers(2, size=groups.num_groups) for _ in range(count - 1)]
    return [groups.to_ops(placement) for placement in drawn]


def random_op_placement(graph: ComputationGraph, rng: np.random.Generator) -> np.ndarray:
    """A placement of single ops on two devices that keeps together what the graph's own constraints do."""
    placement = rng.integers(2, size=graph.num_ops)
    for number in range(graph.colocation.max() + 1):
        placement[graph.colocation == number] = rng.integers(2)
    return placement


def run_placed(
    model: nn.Module,
    batch: object,
    placements: list[np.ndarray],
    *,
    training: bool = True,
    optimizer: str = "sgd",
    loss: Loss | None = None,
    clip_grad_norm: float | None = None,
    step: OwnStep | None = None,
    schedule: str = "priority",
    seed: int = 0,
    program: Program | None = None,
) -> list[Step]:
    """Run a step of a model under each placement; the model's own tensors are updated.

    It is captured first, unless its program is given, which may be that of a copy.
    """
    if program is None:
        program = capture_program(
            model, batch, loss, training=training, optimizer=optimizer, clip_grad_norm=clip_grad_norm, step=step
        )
    with Engine(program, parse_devices(NAMES), tensors_of(model), schedule=schedule, seed=seed) as engine:
        ran = []
        for placement in placements:
            engine.place(placement)
            ran.append(engine.step(batch_tensors(batch, training), time_limit_s=60))
        return ran


def run_eager(
    model: nn.Module, batch: Mapping[str, torch.Tensor], steps: int, *, training: bool, optimizer: str
) -> list[torch.Tensor]:
    """The same by PyTorch itself: the losses, or what the model returns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the devices have
    try:
        model.train(training)
        found = []
        updating = make_optimizer(optimizer, model) if training else None
        for _ in range(steps):
            with torch.set_grad_enabled(training):
                output = model(**batch)
            if updating is not None:
                output = output if isinstance(output, torch.Tensor) else output.loss
                updating.zero_grad()
                output.backward()
                updating.step()
            found.append(output)
        return found
    finally:
        torch.set_num_threads(threads)


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def _naming(key: str) -> Callable[[str], str]:
    return lambda message: f"{key}: {message}"


def assert_same_tensors(first: nn.Module, second: nn.Module, *, tolerance: float = 0.0) -> None:
    """Raise where a parameter or buffer differs by more than a tolerance."""
    others = tensors_of(second)
    for key, tensor in tensors_of(first).items():
        torch.testing.assert_close(tensor, others[key], rtol=tolerance, atol=tolerance, msg=_naming(key))


# An op that can be told to fail, by the device that it runs on.

FAULT = {"device": "", "how": ""}


@torch.library.custom_op("measured_tests::faulty", mutates_args=())
def faulty(x: torch.Tensor) -> torch.Tensor:
    """Doubles; unless it runs on a device that is to fail."""
    name = threading.current_thread().name
    device = os.environ.get("FAULTY_DEVICE") or FAULT["device"]
    how = os.environ.get("FAULTY_HOW") or FAULT["how"]
    if how == "drawn":
        how = _drawn() if name.startswith("device ") else ""
        device = name.removeprefix("device ")
    if name == f"device {device}" or (device == "any" and name.startswith("device ")):
        if how == "raise":
            raise ValueError("it is broken")
        if how == "memory":
            raise MemoryError
        if how == "exhaust":
            torch.empty(1 << 55)
        if how == "hang":
            time.sleep(1000)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "segfault":
            ctypes.string_at(0)
        if how == "hold":  # in C, with the interpreter's lock
            ctypes.PyDLL(None).sleep(1000)
        if how == "flood":
            for _ in range(200):
                os.write(2, b"x" * 100_000)
            raise ValueError("after much ado")
        if how.startswith("fork"):
            child = os.fork()
            if child == 0:
                if how == "fork_session":
                    os.setsid()
                time.sleep(1000)
            with open(os.environ["FAULTY_FILE"], "a") as file:
                file.write(f"{child}\n")
            if how == "fork_and_die":
                os.kill(os.getpid(), signal.SIGKILL)
    return x * 2


DRAWN = (
    "raise",
    "kill",
    "memory",
    "hang",
    "segfault",
    "exhaust",
    "fork",
    "hold",
    "flood",
    "fork_session",
    "fork_and_die",
)
"""What happens in turn to every third call of `faulty` where it is to be drawn, over all processes."""


def _drawn() -> str:
    """Count this call in the file of calls, and say what is to happen in it."""
    with open(os.environ["FAULTY_CALLS"], "ab") as file:
        file.write(b".")
        number = file.tell()
    return DRAWN[number // 3 % len(DRAWN)] if number % 3 == 0 else ""


@faulty.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Faulty(nn.Module):
    """Three layers, of which the middle one may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), _Middle(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.first(x)))


class Fragile(nn.Module):
    """Many layers, so that there are many placements, of which the middle one may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))
        self.middle, self.after = _Middle(), nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.before:
            x = layer(x)
        x = self.middle(x)
        for layer in self.after:
            x = layer(x)
        return x


class _Middle(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return faulty(x)


def make_faulty() -> dict[str, object]:
    """For ``python:tests.envs.measured.measured_problems:make_faulty``."""
    torch.manual_seed(0)
    return {"model": Faulty(), "example_batch": torch.ones(2, 4), "training": False, "name": "faulty"}


def make_fragile() -> dict[str, object]:
    """For ``python:tests.envs.measured.measured_problems:make_fragile``."""
    torch.manual_seed(0)
    return {"model": Fragile(), "example_batch": torch.ones(2, 4), "training": False, "name": "fragile"}
