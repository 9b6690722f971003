"""Steps after the first run in regions: the same results, tensors freed, and errors that still name the op."""

from typing import Any

import numpy as np
import pytest
import torch

from envs.measured import template
from envs.measured.engine import Engine, StepError
from envs.measured.machine import parse_devices
from envs.measured.regions import split
from graphs.capture import batch_tensors, capture_program
from tests.envs.measured import measured_problems as steps
from tests.envs.measured.measured_problems import NAMES, two_cores
from tests.envs.measured.test_measured_engine import Noisy, Writer
from tests.graphs.test_zoo import SMALL

pytestmark = two_cores

STEPS = 3


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All steps that the engine runs."""
    kept: list[Any] = []
    make_job = template.Template.job

    def kept_job(self: template.Template, *args: Any) -> Any:
        kept.append(make_job(self, *args))
        return kept[-1]

    monkeypatch.setattr(template.Template, "job", kept_job)
    return kept


@pytest.mark.parametrize("schedule", ["priority", "fifo", "program_order"])
@pytest.mark.parametrize("name", ["rnnlm", "moe_lm", "dlrm"])
def test_steps_in_regions_are_those_of_torch(name: str, schedule: str, jobs: list[Any]) -> None:
    model, batch, options = steps.zoo_model(f"{SMALL[name]},optimizer=sgd")
    other = steps.copied(model)
    program = capture_program(model, batch, **options)
    wanted = steps.run_eager(other, batch, 2 * STEPS, **options)
    with Engine(program, parse_devices(NAMES), steps.tensors_of(model), schedule=schedule) as engine:
        for number, placement in enumerate(steps.random_placements(program, 2)):
            engine.place(placement)
            for step in range(STEPS):
                found = engine.step(batch_tensors(batch, training=True), time_limit_s=60)
                assert found.loss is not None
                tolerance = 2e-5 if number else 0.0  # a slice that was sent may be summed otherwise
                expected = wanted[number * STEPS + step].detach()
                torch.testing.assert_close(found.loss, expected, rtol=tolerance, atol=tolerance)
                assert np.isnan(found.task_start_s).tolist() == np.isnan(found.task_end_s).tolist()
                ran = ~np.isnan(found.task_start_s)
                assert (found.task_start_s <= found.task_end_s)[ran].all()
            if number == 0:
                assert [len(job.members) for job in jobs] == [0, 1, 1]  # one device: one region
                assert jobs[1].todo[0] == 1
    for job in jobs:
        assert [i for i, held in enumerate(job.slots) if held is not None and not job.kept[i]] == []
        assert not any(left for left, kept in zip(job.uses, job.kept, strict=True) if not kept)
    assert len(jobs[-1].members) > 1
    assert any(len(ops) > 1 for ops in jobs[-1].members.values())
    steps.assert_same_tensors(model, other, tolerance=2e-5)


@pytest.mark.parametrize("schedule", ["priority", "fifo", "program_order"])
def test_writes_in_place_in_regions(schedule: str) -> None:
    torch.manual_seed(0)
    model, x = Writer(), torch.randn(3, 4)
    program = capture_program(model, x, training=False)
    rng = np.random.default_rng(0)
    graph = program.graph
    with Engine(program, parse_devices(NAMES), steps.tensors_of(model), schedule=schedule) as engine:
        for _ in range(12):
            placement = steps.random_op_placement(graph, rng)
            engine.place(placement)
            for _ in range(STEPS):
                other = steps.copied(model)
                with torch.no_grad():
                    wanted = other(x)
                found = engine.step({"input": x}, time_limit_s=30).output
                for one, two in zip(found, wanted, strict=True):
                    torch.testing.assert_close(one, two, rtol=0, atol=0)
                steps.assert_same_tensors(model, other)


def test_regions_end_where_devices_meet(jobs: list[Any]) -> None:
    model, batch, options = steps.zoo_model(SMALL["rnnlm"])
    program = capture_program(model, batch, **options)
    (_, placement) = steps.random_placements(program, 2)
    with Engine(program, parse_devices(NAMES), steps.tensors_of(model)) as engine:
        engine.place(placement)
        engine.step(batch_tensors(batch, training=True), time_limit_s=60)
        plan = engine.plan
    assert plan is not None
    regions = split(plan, jobs[0].start_s, jobs[0].end_s)
    ran = sorted(op for ops in regions for op in ops)
    assert ran == [op for op in range(program.graph.num_ops) if plan.tasks[op] is not None]
    copied = {copy.place for copy in plan.copies}
    for ops in regions:
        tasks = [plan.tasks[op] for op in ops]
        assert len({task.device for task in tasks if task is not None}) == 1
        assert not any(task.sends for task in tasks[:-1] if task is not None)
        assert not any(copied & set(task.releases) for task in tasks[1:] if task is not None)


def test_random_numbers_in_regions_are_those_of_single_ops() -> None:
    torch.manual_seed(0)
    model, x = Noisy(), torch.ones(4, 8)
    program = capture_program(model, x, torch.sum, optimizer="sgd")
    placement = steps.random_placements(program, 2, seed=1)[1]

    def losses(places_again: bool) -> list[float]:
        fresh = steps.copied(model)
        with Engine(program, parse_devices(NAMES), steps.tensors_of(fresh)) as engine:
            found = []
            for number in range(STEPS):
                if number == 0 or places_again:
                    engine.place(placement)
                loss = engine.step({"input": x}, time_limit_s=30).loss
                assert loss is not None
                found.append(float(loss))
            return found

    assert losses(places_again=True) == losses(places_again=False)


def test_the_peak_of_a_region_is_that_of_its_ops() -> None:
    for name in ("rnnlm", "moe_lm", "bert"):
        model, batch, options = steps.zoo_model(SMALL[name])
        program = capture_program(model, batch, **options)
        with Engine(program, parse_devices(NAMES[:1]), steps.tensors_of(model)) as engine:
            engine.place(np.zeros(program.graph.num_ops, dtype=np.int64))
            peaks = [
                engine.step(batch_tensors(batch, training=True), time_limit_s=60).peak_memory_bytes.tolist()
                for _ in range(STEPS)
            ]
        assert peaks[0] == peaks[1] == peaks[2]


def test_an_op_that_fails_in_a_region_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = steps.Faulty(), torch.ones(2, 4)
    program = capture_program(model, x, training=False)
    with Engine(program, parse_devices(NAMES[:1]), steps.tensors_of(model)) as engine:
        engine.place(np.zeros(program.graph.num_ops, dtype=np.int64))
        wanted = engine.step({"input": x}).output
        monkeypatch.setattr(steps, "FAULT", {"device": NAMES[0], "how": "raise"})
        with pytest.raises(StepError, match=r"op 'middle/measured_tests\.faulty_0' failed on device 'cpu:"):
            engine.step({"input": x}, time_limit_s=30)
        monkeypatch.setattr(steps, "FAULT", {"device": "", "how": ""})
        torch.testing.assert_close(engine.step({"input": x}, time_limit_s=30).output, wanted, rtol=0, atol=0)
