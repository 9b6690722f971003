"""A step as PyTorch itself runs it, which a placement is compared with."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from envs.measured.machine import RealDevice, as_one, parse_devices, usable_cores
from envs.measured.plain import make_plain_step, run_pinned
from envs.measured.process import measure_plain
from envs.measured.protocol import Failed, Measured, Protocol
from graphs.errors import InputError
from tests.envs.measured import measured_problems as steps
from tests.envs.measured.measured_problems import NAMES, two_cores
from tests.graphs.test_zoo import SMALL

SHORT = Protocol(steps=2, short_steps=2, least_steps=1)

MODEL = """
import torch

def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    return model, (torch.ones(4, 8), torch.zeros(4, dtype=torch.long)), torch.nn.functional.cross_entropy

def broken():
    raise ValueError("there is no such model")

class Raises(torch.nn.Linear):
    def forward(self, x):
        raise ValueError("it is broken")

def raising():
    return Raises(2, 1), torch.ones(1, 2), torch.sum
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of one's own in the working directory."""
    monkeypatch.chdir(tmp_path)
    name = f"plain_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(MODEL)
    return f"python:{name}"


@pytest.mark.parametrize("name", ["moe_lm", "dlrm", "rnnlm"])
def test_a_plain_step_is_that_of_torch(name: str) -> None:
    model, batch, options = steps.zoo_model(SMALL[name])
    other = steps.copied(model)
    one = RealDevice(NAMES[0], "cpu", usable_cores()[:1])
    step = make_plain_step(model, batch, **options)
    found = run_pinned(one, lambda: [step() for _ in range(2)])
    wanted = steps.run_eager(other, batch, 2, **options)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=0, atol=0)
    steps.assert_same_tensors(model, other)


@pytest.mark.parametrize("form", ["tensor", "tuple", "nested", "mapping"])
def test_a_batch_of_any_form_is_passed_on(form: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor | float = 0.0) -> Any:
            return self.layer(x + y)

    x, y, target = torch.ones(4, 3), torch.full((4, 3), 2.0), torch.zeros(4, 2)
    batch = {"tensor": x, "tuple": (x, target), "nested": ((x, y), target), "mapping": ({"x": x, "y": y}, target)}[form]
    loss = torch.sum if form == "tensor" else nn.functional.mse_loss
    model = Model()
    wanted = loss(model(x, 0.0 if form in ("tensor", "tuple") else y), *(() if form == "tensor" else (target,)))
    step = make_plain_step(model, batch, loss, optimizer="sgd")
    assert step().item() == pytest.approx(wanted.item())
    assert step().item() < wanted.item()  # it was trained
    assert make_plain_step(model, batch, loss, training=False)().shape == (4, 2)
    with pytest.raises(InputError, match="optimizer 'newton' cannot be run"):
        make_plain_step(model, batch, loss, optimizer="newton")


def test_cores_are_named_as_one_device() -> None:
    usable = usable_cores()
    for count in range(1, min(len(usable), 4) + 1):
        for cores in itertools.combinations(usable[:5], count):
            devices = [RealDevice(f"cpu:{core}", "cpu", (core,)) for core in cores]
            one = as_one(devices[::-1])
            assert one is not None
            assert one.cores == cores
            assert parse_devices(one.name) == (one,)
    assert as_one([RealDevice("cpu:0", "cpu", (0,)), RealDevice("cuda:0", "cuda")]) is None
    spread = as_one([RealDevice("cpu:0-1", "cpu", (0, 1)), RealDevice("cpu:3", "cpu", (3,))])
    assert spread is not None
    assert spread.name == "cpu:0-1+3"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpu:3-1", "backwards; write cpu:1-3"),
        ("cpu:0+0", "names a core twice"),
        ("cpu:0-1+1", "names a core twice"),
        ("cpu:0-99999999", "more than 4096 cores"),
        ("cpu:+1", "is no device of a machine"),
        ("cuda:0+1", "is no device of a machine"),
    ],
)
def test_devices_that_are_none_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_devices(name)


@two_cores
def test_plain_runs_with_a_thread_for_each_core_and_leaves_no_trace() -> None:
    both = as_one(parse_devices(NAMES))
    assert both is not None
    before = torch.get_num_threads(), os.sched_getaffinity(0)
    assert run_pinned(both, lambda: (torch.get_num_threads(), os.sched_getaffinity(0))) == (2, set(both.cores))
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == before
    with pytest.raises(ZeroDivisionError):
        run_pinned(both, lambda: 1 / 0)


def test_the_process_measures_or_says_why_not(source: str) -> None:
    (device,) = parse_devices(NAMES[0])

    def ask(function: str, limit_s: float = 120.0) -> Measured | Failed:
        return measure_plain(f"{source}:{function}", device, is_compiled=False, time_limit_s=limit_s, how=SHORT)

    found = ask("make")
    assert isinstance(found, Measured)
    assert len(found.step_times_s) == 2
    assert min(found.step_times_s) > 0
    failed = ask("raising")
    assert isinstance(failed, Failed)
    assert "it is broken" in failed.reason
    with pytest.raises(InputError, match="there is no such model"):
        ask("broken")
    late = ask("make", limit_s=0.01)
    assert isinstance(late, Failed)
    assert "not done after 0.01 s" in late.reason
