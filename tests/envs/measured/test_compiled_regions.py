"""Steps whose regions are compiled: numbers close to those of the ops one by one, and code that is used again."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from envs.measured import template
from envs.measured.compiled import code
from envs.measured.compiled.order import followers, in_turns
from envs.measured.engine import Engine
from envs.measured.machine import parse_devices
from envs.measured.plan import make_plan
from graphs.capture import batch_tensors, capture_program
from graphs.errors import InputError
from tests.envs.measured import measured_problems as steps
from tests.envs.measured.compiled_problems import problem
from tests.envs.measured.measured_problems import NAMES, two_cores
from tests.envs.measured.test_measured_engine import Writer

CLOSE = 1e-5
STEPS = 4


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All steps that engines run."""
    kept: list[Any] = []
    make_job = template.Template.job

    def kept_job(self: template.Template, *args: Any) -> Any:
        kept.append(make_job(self, *args))
        return kept[-1]

    monkeypatch.setattr(template.Template, "job", kept_job)
    return kept


def run(name: str, devices: list[str], *, training: bool, compiles: bool, seed: int) -> tuple[list[Any], Any, float]:
    """What some steps give, the model after them, and how long compiling took."""
    model, batch = problem(name)
    example = batch if training else batch[0]
    loss = F.cross_entropy if training else None
    program = capture_program(model, example, loss, training=training, optimizer="momentum")
    placement = np.zeros(program.graph.num_ops, dtype=np.int64)
    if len(devices) > 1:
        placement = steps.random_placements(program, 2, seed=seed)[1]
    with Engine(program, parse_devices(devices), steps.tensors_of(model), compile_regions=compiles) as engine:
        engine.place(placement)
        found = [engine.step(batch_tensors(example, training), time_limit_s=60) for _ in range(STEPS)]
        took_s = engine.compile_s
    return [step.loss if training else step.output for step in found], model, took_s


@two_cores
@pytest.mark.parametrize(
    ("name", "training", "devices"),
    [
        ("small", True, 1),
        pytest.param("small", False, 1, marks=pytest.mark.slow),
        pytest.param("mixed", True, 1, marks=pytest.mark.slow),
        pytest.param("mixed", False, 1, marks=pytest.mark.slow),
        pytest.param("mixed", True, 2, marks=pytest.mark.slow),
        pytest.param("recurrent", True, 1, marks=pytest.mark.slow),
        pytest.param("recurrent", False, 1, marks=pytest.mark.slow),
        pytest.param("recurrent", True, 2, marks=pytest.mark.slow),
        pytest.param("convolutions", True, 1, marks=pytest.mark.slow),
        pytest.param("convolutions", False, 1, marks=pytest.mark.slow),
        pytest.param("convolutions", True, 2, marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_are_close_to_those_that_are_not(
    name: str, training: bool, devices: int, jobs: list[Any]
) -> None:
    wanted, expected_model, none_s = run(name, NAMES[:devices], training=training, compiles=False, seed=1)
    jobs.clear()
    found, model, took_s = run(name, NAMES[:devices], training=training, compiles=True, seed=1)
    assert (none_s, took_s > 0) == (0.0, True)
    for one, two in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(one, two, rtol=CLOSE, atol=CLOSE)
    steps.assert_same_tensors(model, expected_model, tolerance=CLOSE)
    for job in jobs:  # nothing is kept that nobody needs any more
        assert [i for i, held in enumerate(job.slots) if held is not None and not job.kept[i]] == []
        assert not any(left for left, kept in zip(job.uses, job.kept, strict=True) if not kept)
    assert len(code._CODE) > 0


@two_cores
@pytest.mark.slow
def test_writes_in_place_in_compiled_regions() -> None:
    torch.manual_seed(0)
    model, x = Writer(), torch.randn(3, 4)
    program = capture_program(model, x, training=False)
    rng = np.random.default_rng(0)
    with Engine(program, parse_devices(NAMES), steps.tensors_of(model), compile_regions=True) as engine:
        for number in range(3):
            engine.place(np.zeros(program.graph.num_ops, dtype=int) if number == 0 else drawn(program, rng))
            for _ in range(STEPS):
                other = steps.copied(model)
                with torch.no_grad():
                    wanted = other(x)
                found = engine.step({"input": x}, time_limit_s=60).output
                for one, two in zip(found, wanted, strict=True):
                    torch.testing.assert_close(one, two, rtol=CLOSE, atol=CLOSE)
                steps.assert_same_tensors(model, other, tolerance=CLOSE)


def drawn(program: Any, rng: np.random.Generator) -> np.ndarray:
    return steps.random_op_placement(program.graph, rng)


@two_cores
def test_the_same_regions_are_compiled_once() -> None:
    model, batch = problem("small")
    program = capture_program(model, batch, F.cross_entropy, optimizer="momentum")
    everywhere = np.zeros(program.graph.num_ops, dtype=np.int64)
    with Engine(program, parse_devices(NAMES), steps.tensors_of(model), compile_regions=True) as engine:
        counts = []
        for device in (0, 1):  # the cores are alike, so what is compiled for one is used on the other
            engine.place(everywhere + device)
            for _ in range(2):
                engine.step(batch_tensors(batch, True), time_limit_s=60)
            counts.append(len(code._CODE))
        assert counts[0] == counts[1] > 0
        engine.place(everywhere, compile_regions=False)
        engine.step(batch_tensors(batch, True), time_limit_s=60)
        assert engine.compile_s == 0.0


@pytest.mark.parametrize("name", ["mixed", "recurrent", "convolutions"])
def test_turns_keep_to_the_order_of_data(name: str) -> None:
    model, batch = problem(name)
    program = capture_program(model, batch, F.cross_entropy, optimizer="sgd")
    plan = make_plan(program, np.zeros(program.graph.num_ops, dtype=np.int64), 1)
    ops = [op for op, task in enumerate(plan.tasks) if task is not None]
    after = followers(plan, ops)
    assert all(op < other for op, others in after.items() for other in others)
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 0.9, 1.0):
        fitting = {op for op in ops if rng.random() < share}
        full: list[int] = []

        def join(op: int, is_new: bool, full: list[int] = full) -> bool:
            full[:] = [op] if is_new else [*full, op]
            return len(full) <= 5 or is_new

        turns = in_turns(plan, ops, fitting.__contains__, join)
        order = [op for turn, _ in turns for op in turn]
        assert sorted(order) == ops
        place = {op: i for i, op in enumerate(order)}
        assert all(place[op] < place[other] for op, others in after.items() for other in others)
        assert all((op in fitting) is together for turn, together in turns for op in turn)
        assert all(len(turn) <= 5 for turn, together in turns if together)


def test_without_a_compiler_it_is_refused(tmp_path: Path) -> None:
    script = (
        "from envs.measured.compiled.code import check_can_compile\n"
        "from envs.measured.machine import parse_devices\n"
        f"check_can_compile(parse_devices('{NAMES[0]}'))\n"
    )
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler")}
    # PyTorch reads the variable when it is imported, so a process that has it imported would not do.
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "none is found; install g++, or name one in the environment variable CXX" in done.stderr
    with pytest.raises(InputError, match="for CPU devices alone"):
        code.check_can_compile(parse_devices("cuda:0"))
