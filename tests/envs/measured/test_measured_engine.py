"""Running a captured step under a placement gives what PyTorch gives, whatever the placement and the schedule."""

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from envs.clusters.catalog import load_cluster
from envs.measured import template
from envs.measured.engine import Engine, StepError
from envs.measured.machine import parse_devices
from envs.measured.plan import make_plan
from envs.problem import PlacementProblem
from graphs.capture import batch_tensors, capture, capture_program
from graphs.colocation.rules import colocate
from graphs.errors import InputError
from scripts.capture_models import MODELS
from tests.envs.measured import measured_problems as steps
from tests.envs.measured.measured_problems import NAMES, run_eager, run_placed, two_cores
from tests.graphs.small_workloads import SMALL

pytestmark = two_cores

# A slice that was sent is laid out otherwise than in its tensor, so a kernel may begin to sum elsewhere.
ROUNDING = 2e-5


@pytest.mark.parametrize("training", [1, 0])
@pytest.mark.parametrize("name", SMALL)
def test_the_zoo_on_one_and_two_devices(name: str, training: int) -> None:
    model, batch, options = steps.zoo_model(f"{SMALL[name]},training={training}")
    other, alone = steps.copied(model), steps.copied(model)
    program = capture_program(model, batch, **options)
    schedule = ("priority", "fifo", "program_order")[len(name) % 3]
    placements = steps.random_placements(program, 2, seed=len(name))
    on_one = run_placed(alone, batch, placements[:1] * 2, schedule=schedule, program=program, **options)
    wanted = run_eager(other, batch, 2, **options)
    for step, expected in zip(on_one, wanted, strict=True):
        found = step.loss if training else step.output
        for one, two in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            torch.testing.assert_close(one, two.detach(), rtol=0, atol=0)
    steps.assert_same_tensors(alone, other)
    # One step on two devices: later ones would magnify a last bit without bound where gradients are divided by roots.
    fresh = steps.copied(model)
    (on_two,) = run_placed(model, batch, placements[1:], schedule=schedule, program=program, **options)
    wanted = run_eager(fresh, batch, 1, **options)
    if training:
        assert on_two.loss is not None
        torch.testing.assert_close(on_two.loss, wanted[0].detach(), rtol=ROUNDING, atol=ROUNDING)
    if options["optimizer"] != "rmsprop":  # the first update of which is a gradient over its own size: a sign
        steps.assert_same_tensors(model, fresh, tolerance=ROUNDING)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "tolerance"), [("bert", 0.0), ("mixtral", 1e-6)])
def test_models_of_transformers(name: str, tolerance: float, training: bool) -> None:
    """Mixtral makes its masks in another way where it is traced, so that its last bits may differ."""
    torch.manual_seed(0)
    model, batch = MODELS[name](True)
    steps.without_dropout(model)
    if not training:
        del batch["labels"]
    other = steps.copied(model)
    options: dict[str, Any] = {"training": training, "optimizer": "sgd"}
    program = capture_program(model, batch, **options)
    found = run_placed(model, batch, steps.random_placements(program, 4), program=program, **options)
    wanted = run_eager(other, batch, 4, **options)
    for step, expected in zip(found, wanted, strict=True):
        one, two = (step.loss, expected) if training else (step.output.logits, getattr(expected, "logits"))  # noqa: B009
        torch.testing.assert_close(one, two.detach(), rtol=tolerance, atol=tolerance)
    steps.assert_same_tensors(model, other, tolerance=tolerance)


def test_a_program_has_the_graph_of_the_capture() -> None:
    model, batch, options = steps.zoo_model(SMALL["nmt"])
    assert capture_program(model, batch, **options).graph.sha256 == capture(model, batch, **options, name="NMT").sha256


def test_copies_are_those_of_the_simulator() -> None:
    for name in ("bert", "moe_lm", "rnnlm"):
        model, batch, options = steps.zoo_model(SMALL[name])
        program = capture_program(model, batch, **options)
        problem = PlacementProblem(program.graph, colocate(program.graph), load_cluster("cpu_cores:2"))
        for placement in steps.random_placements(program, 4)[1:]:
            copies = make_plan(program, placement, 2).copies
            assert len({(c.value, c.part, c.device) for c in copies}) == len(copies)
            # Whole readers of a tensor that is also sent in slices get one copy here, and all slices there.
            assert 0 < len(copies) <= problem.trace(placement).num_transfers


class Writer(nn.Module):
    """Writes in place in all ways that a placement could get wrong."""

    cache: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("cache", torch.zeros(3, 4))
        self.register_buffer("count", torch.zeros(()))
        self.offsets = torch.arange(4.0)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.left(x)
        old = self.right(y)  # reads y before it is overwritten
        y.add_(1.0)  # all of it
        y[:, 1].mul_(3.0)  # a slice
        y[:, 1:3].sub_(x[:, :2])  # one that overlaps it
        y[0].copy_(x[1])
        z = torch.empty_like(y)
        z[:2] = y[:2]
        z[2:] = old[2:]
        self.cache[1] = z[0] + self.offsets
        self.cache[2].copy_(y[2])
        self.count.add_(1.0)
        windows = z.flatten().unfold(0, 4, 2)
        bits = z.view(torch.int32).bitwise_and(1)
        return y, z, windows.sum(1), bits, self.cache * 1.0, torch.tensor([1.0, 2.0]).mul_(2.0)


@pytest.mark.parametrize("schedule", ["priority", "fifo", "program_order"])
def test_writes_in_place(schedule: str) -> None:
    torch.manual_seed(0)
    model, x = Writer(), torch.randn(3, 4)
    program = capture_program(model, x, training=False)
    rng = np.random.default_rng(0)
    graph = program.graph
    with Engine(program, parse_devices(NAMES), steps.tensors_of(model), schedule=schedule) as engine:
        for _ in range(24):
            placement = steps.random_op_placement(graph, rng)
            other = steps.copied(model)
            with torch.no_grad():
                wanted = other(x)
            engine.place(placement)
            found = engine.step({"input": x}, time_limit_s=30).output
            for one, two in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=0)
            steps.assert_same_tensors(model, other)


class Noisy(nn.Module):
    """Draws random numbers by ops that take a generator and by ops that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.dropout(self.first(x), 0.5, self.training)
        hidden = hidden + torch.rand_like(hidden)
        return F.dropout(self.second(hidden), 0.5, self.training)


def test_random_numbers_depend_on_the_seed_and_the_step_alone() -> None:
    torch.manual_seed(0)
    model, x = Noisy(), torch.ones(4, 8)
    program = capture_program(model, x, torch.sum)
    placements = steps.random_placements(program, 3, seed=1)
    state = torch.get_rng_state()

    def losses(order: list[int], seed: int = 0) -> list[torch.Tensor]:
        fresh = steps.copied(model)
        found = run_placed(fresh, x, [placements[i] for i in order], loss=torch.sum, seed=seed)
        return [step.loss for step in found if step.loss is not None]

    first, second = losses([0, 0, 0]), losses([1, 2, 1])
    assert first == second
    assert len({float(loss) for loss in [*first, *losses([0], seed=1)]}) == 4
    assert torch.equal(torch.get_rng_state(), state)


def test_everything_is_freed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []
    make_job = template.Template.job

    def kept_job(self: template.Template, *args: Any) -> Any:
        jobs.append(make_job(self, *args))
        return jobs[-1]

    monkeypatch.setattr(template.Template, "job", kept_job)
    model, batch, options = steps.zoo_model(SMALL["nmt"])
    program = capture_program(model, batch, **options)
    (step, again) = run_placed(model, batch, steps.random_placements(program, 2), program=program, **options)
    for job in jobs:
        assert [i for i, held in enumerate(job.slots) if held is not None and not job.kept[i]] == []
        assert not any(left for left, kept in zip(job.uses, job.kept, strict=True) if not kept)
    problem = PlacementProblem(program.graph, colocate(program.graph), load_cluster("cpu_cores:2"))
    simulated = problem.evaluate_ops(steps.random_placements(program, 1)[0][None]).peak_memory_bytes[0]
    # The inputs are counted, and the order of ops that are ready at a time is not the simulated one.
    assert step.peak_memory_bytes[0] == pytest.approx(simulated[0], rel=0.15)
    assert step.peak_memory_bytes[1] == 0
    assert (again.peak_memory_bytes > 0).all()


@pytest.mark.parametrize(("how", "said"), [("raise", "ValueError: it is broken"), ("memory", "MemoryError")])
def test_an_op_that_raises_is_named_and_the_engine_goes_on(
    monkeypatch: pytest.MonkeyPatch, how: str, said: str
) -> None:
    monkeypatch.setattr(steps, "FAULT", {"device": NAMES[1], "how": how})
    model, x = steps.Faulty(), torch.ones(2, 4)
    program = capture_program(model, x, training=False)
    middle = program.graph.op_names.index("middle/measured_tests.faulty_0")
    good = np.zeros(program.graph.num_ops, dtype=np.int64)
    bad = good.copy()
    bad[middle] = 1
    with torch.no_grad():
        wanted = model(x)
    with Engine(program, parse_devices(NAMES), steps.tensors_of(model)) as engine:
        for placement in (good, bad, bad, good):
            engine.place(placement)
            if placement is bad:
                with pytest.raises(StepError) as error:
                    engine.step({"input": x}, time_limit_s=30)
                assert f"op 'middle/measured_tests.faulty_0' failed on device '{NAMES[1]}': {said}" in str(error.value)
            else:
                torch.testing.assert_close(engine.step({"input": x}, time_limit_s=30).output, wanted)


def test_a_step_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(steps, "FAULT", {"device": NAMES[1], "how": "hang"})
    monkeypatch.setattr(time, "sleep", lambda s: waiting.wait(s))
    model, x = steps.Faulty(), torch.ones(2, 4)
    program = capture_program(model, x, training=False)
    placement = np.ones(program.graph.num_ops, dtype=np.int64)
    engine = Engine(program, parse_devices(NAMES), steps.tensors_of(model))
    try:
        engine.place(placement)
        with pytest.raises(StepError, match=f"not done after 0.2 s; device '{NAMES[1]}' was in op 'middle/"):
            engine.step({"input": x}, time_limit_s=0.2)
        assert engine.timed_out
        with pytest.raises(StepError):
            engine.step({"input": x})
    finally:
        waiting.set()
        engine.close()


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    model, x = steps.Faulty(), torch.ones(2, 4)
    program = capture_program(model, x, training=False)
    threads = torch.get_num_threads()
    with Engine(program, parse_devices(NAMES), steps.tensors_of(model)):
        assert len(set(threading.enumerate()) - before) == 2
    assert set(threading.enumerate()) == before
    assert torch.get_num_threads() == threads


def test_what_does_not_fit_the_capture_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.ones(3, 4)
    program = capture_program(model, x, torch.sum)
    tensors = steps.tensors_of(model)
    weight, update = (program.graph.op_names.index(name) for name in ("0.weight", "0.weight/adam_update"))
    apart = np.zeros(program.graph.num_ops, dtype=np.int64)
    apart[update] = 1
    with Engine(program, parse_devices(NAMES), tensors) as engine:
        assert weight != update
        with pytest.raises(InputError, match=r"parts op '0\.weight' from op '0\.weight/adam_update'"):
            engine.place(apart)
        with pytest.raises(InputError, match="one of 2 devices"):
            engine.place(apart + 1)
        engine.place(apart * 0)
        with pytest.raises(InputError, match="has no tensor at 'input'"):
            engine.step({})
        with pytest.raises(InputError, match=r"shape \[5, 4\], but the step was captured with .* of shape \[3, 4\]"):
            engine.step({"input": torch.ones(5, 4)})
    with pytest.raises(InputError, match=r"no parameter '0\.weight'"):
        Engine(program, parse_devices(NAMES), {})
    with pytest.raises(InputError, match="meta device"):
        Engine(program, parse_devices(NAMES), {k: t.to("meta") for k, t in tensors.items()})
    assert set(batch_tensors((x, {"a": x}), training=True)) == {"input", "target/0/a"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["rnnlm", "bert", "inception_v3"])
def test_a_gpu_together_with_a_core(name: str) -> None:
    model, batch, options = steps.zoo_model(SMALL[name])
    other = steps.copied(model)
    program = capture_program(model, batch, **options)
    (wanted,) = run_eager(other, batch, 1, **options)
    for placement in steps.random_placements(program, 4):
        fresh = steps.copied(model)
        with Engine(program, parse_devices(f"{NAMES[0]},cuda:0"), steps.tensors_of(fresh)) as engine:
            engine.place(placement)
            loss = engine.step(batch_tensors(batch, training=True), time_limit_s=60).loss
        assert loss is not None
        torch.testing.assert_close(loss.cpu(), wanted.detach(), rtol=1e-3, atol=1e-3)
