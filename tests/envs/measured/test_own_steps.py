"""Steps of one's own, which update parameters as often as they like: numbers are those of PyTorch's optimizers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import placement
from envs.clusters.catalog import load_cluster
from envs.make_problem import make_problem
from envs.measured.engine import Engine
from envs.measured.machine import parse_devices
from envs.measured.plain import make_plain_step
from envs.pipelines.cuts import find_segments
from envs.problem import PlacementProblem
from graphs.capture import batch_tensors, capture, capture_program
from graphs.capture.own_step import Update
from graphs.colocation.rules import colocate
from graphs.computation_graph import RESIDENT_PARTS
from graphs.errors import InputError
from graphs.microbatch import microbatch
from graphs.replicate import replicate
from graphs.sources import load_graph, load_microbatches
from tests.envs.measured import measured_problems as steps
from tests.envs.measured import own_steps
from tests.envs.measured.measured_problems import NAMES, two_cores
from tests.envs.measured.own_steps import CASES

STEPS = 3
CLOSE = 2e-6


def assert_close(found: Any, wanted: Any) -> None:
    for one, two in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(one.detach(), two, rtol=CLOSE, atol=CLOSE)


@two_cores
@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_torch_whatever_the_placement(name: str) -> None:
    batch, other = own_steps.batch(), own_steps.networks()
    wanted = own_steps.run_by_hand(name, other, STEPS)
    program = capture_program(own_steps.networks(), batch, step=CASES[name].step)
    rng = np.random.default_rng(len(name))
    placements = [np.zeros(program.graph.num_ops, dtype=np.int64), *steps.random_placements(program, 3, seed=2)[1:]]
    placements += [steps.random_op_placement(program.graph, rng) for _ in range(3)]
    for number, chosen in enumerate(placements):
        model, schedule = own_steps.networks(), ("priority", "fifo", "program_order")[number % 3]
        with Engine(program, parse_devices(NAMES), steps.tensors_of(model), schedule=schedule) as engine:
            engine.place(chosen)
            found = [engine.step(batch_tensors(batch, training=True), time_limit_s=60).output for _ in range(STEPS)]
        assert_close(found, wanted)
        steps.assert_same_tensors(model, other, tolerance=CLOSE)
    model = own_steps.networks()
    with Engine(program, parse_devices(NAMES), steps.tensors_of(model)) as engine:
        for chosen in placements[1:][:STEPS]:  # states move with their parameters
            engine.place(chosen)
            engine.step(batch_tensors(batch, training=True), time_limit_s=60)
    steps.assert_same_tensors(model, other, tolerance=CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_a_plain_step_is_that_of_torch(name: str) -> None:
    model, other = own_steps.networks(), own_steps.networks()
    wanted = own_steps.run_by_hand(name, other, STEPS)
    step = make_plain_step(model, own_steps.batch(), step=CASES[name].step)
    assert_close([tree_map(lambda t: t.detach().clone(), step()) for _ in range(STEPS)], wanted)
    steps.assert_same_tensors(model, other, tolerance=CLOSE)


def test_a_placement_of_ones_own_step_is_applied() -> None:
    model, other, batch = own_steps.networks(), own_steps.networks(), own_steps.batch()
    wanted = own_steps.run_by_hand("gan", other, STEPS)
    graph = capture(model, batch, step=own_steps.gan)
    problem = placement.make_problem(graph, "cpu_cores:2")
    rng = np.random.default_rng(0)
    result = placement.make_result(problem, rng.integers(2, size=problem.num_groups), placer="by hand", seed=0)
    with placement.apply(model, result, batch, step=own_steps.gan, devices=",".join(NAMES)) as step:
        assert_close([step(batch) for _ in range(STEPS)], wanted)
    steps.assert_same_tensors(model, other, tolerance=CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_the_graph_counts_states_and_memory_as_they_are(name: str) -> None:
    model, batch = own_steps.networks(), own_steps.batch()
    before = {key: tensor.clone() for key, tensor in steps.tensors_of(model).items()}
    graph = capture(model, batch, step=CASES[name].step)
    assert all(torch.equal(tensor, before[key]) for key, tensor in steps.tensors_of(model).items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert graph.sha256 == capture_program(model, batch, step=CASES[name].step).graph.sha256
    size = {key: sum(p.numel() * 4 for p in part.parameters()) for key, part in model.named_children()}
    judge = sum(p.numel() * 4 for p in model["discriminator"][0].parameters())  # type: ignore[index]
    states = {
        "gan": 2 * size["discriminator"],
        "critic": size["discriminator"] + size["generator"],
        "penalty": 2 * (judge + size["generator"]),
        "follower": size["generator"] + 2 * 4 * 8 * 4,
    }
    assert graph.resident_bytes[:, RESIDENT_PARTS.index("optimizer")].sum() == states[name]
    updates = {n for n in graph.op_names if "_update" in n}
    assert len(updates) == {"gan": 10, "critic": 16, "penalty": 6, "follower": 5}[name]
    if name == "critic":
        assert {"discriminator.0.weight/rmsprop_update", "discriminator.0.weight/rmsprop_update_2"} <= updates
    # An updated parameter is where it was: it takes memory once.
    problem = PlacementProblem(graph, colocate(graph), load_cluster("cpu_cores:1"))
    simulated = problem.evaluate_ops(np.zeros((1, graph.num_ops), dtype=np.int64)).peak_memory_bytes[0, 0]
    zeros = np.zeros(graph.num_ops, dtype=np.int64)
    (ran,) = steps.run_placed(model, batch, [zeros], step=CASES[name].step, optimizer="adam")
    assert ran.peak_memory_bytes[0] == pytest.approx(simulated, rel=0.15)


@two_cores
def test_optimizers_of_ones_own_have_their_settings_and_states() -> None:
    model, other, batch = own_steps.networks(), own_steps.networks(), own_steps.batch()

    def optimizers(of: Any) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        parts = of["discriminator"].parameters(), of["generator"].parameters()
        return torch.optim.AdamW(parts[0], lr=0.02, betas=(0.5, 0.9)), torch.optim.AdamW(parts[1], lr=0.004)

    def step_of(model: Any, batch: Any, update: Update) -> torch.Tensor:
        fake = model["generator"](batch[1])
        judge = model["discriminator"]
        update(own_steps.bce(judge(batch[0]), True) + own_steps.bce(judge(fake.detach()), False), judge)
        loss = own_steps.bce(judge(fake), True)
        update(loss, model["generator"])
        return loss

    used, reference = optimizers(model), optimizers(other)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (used[1], reference[1])]
    graph = capture(model, batch, step=step_of)
    problem = placement.make_problem(graph, "cpu_cores:2")
    drawn = np.random.default_rng(1).integers(2, size=problem.num_groups)
    result = placement.make_result(problem, drawn, placer="by hand", seed=0)
    with placement.apply(model, result, batch, step=step_of, devices=",".join(NAMES), optimizer=used) as step:
        assert step.optimizers == used
        assert step.optimizer is None
        for _ in range(STEPS):
            step(batch)
            schedules[0].step()
    for _ in range(STEPS):
        fake = other["generator"](batch[1])
        judge = other["discriminator"]
        losses = [own_steps.bce(judge(batch[0]), True) + own_steps.bce(judge(fake.detach()), False)]
        for optimizer in reference:
            if optimizer is reference[1]:
                losses.append(own_steps.bce(judge(fake), True))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        schedules[1].step()
    steps.assert_same_tensors(model, other, tolerance=10 * CLOSE)
    for mine, theirs in zip(used, reference, strict=True):
        assert mine.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        found, expected = mine.state_dict()["state"], theirs.state_dict()["state"]
        assert found.keys() == expected.keys()
        for number, kept in expected.items():
            assert found[number].keys() == kept.keys()
            for key, tensor in kept.items():
                torch.testing.assert_close(found[number][key], tensor, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"the optimizer does not have parameter 'generator\.0\.weight'"):
        placement.apply(model, result, batch, step=step_of, devices=",".join(NAMES), optimizer=used[0])
    other_kind = capture(model, batch, step=own_steps.gan)
    problem = placement.make_problem(other_kind, "cpu_cores:2")
    result = placement.make_result(problem, [0] * problem.num_groups, placer="by hand", seed=0)
    with pytest.raises(InputError, match="updates parameters by 'sgd', but no such optimizer was given"):
        placement.apply(model, result, batch, step=own_steps.gan, devices=",".join(NAMES), optimizer=used)


def _refused(message: str, step: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=message) as caught:
        capture(own_steps.networks(), own_steps.batch(), step=step, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_a_backward_through_what_was_updated_is_refused_as_by_torch() -> None:
    def stale(model: Any, batch: Any, update: Update) -> torch.Tensor:
        real, noise = batch
        judge, fake = model["discriminator"], model["generator"](noise)
        loss = own_steps.bce(judge(fake), True)
        update(own_steps.bce(judge(real), True), judge)
        update(loss, model["generator"])
        return loss

    _refused("modified by an inplace operation", stale)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        make_plain_step(own_steps.networks(), own_steps.batch(), step=stale)()


def test_what_is_no_step_is_refused() -> None:
    def nothing(model: Any, batch: Any, update: Update) -> torch.Tensor:
        return model["generator"](batch[1]).mean()

    def others(model: Any, batch: Any, update: Update) -> None:
        update(model["generator"](batch[1]).mean(), model["discriminator"])

    def foreign(model: Any, batch: Any, update: Update) -> None:
        update(model["generator"](batch[1]).mean(), [nn.Parameter(torch.ones(3))])

    def many(model: Any, batch: Any, update: Update) -> None:
        update(model["generator"](batch[1]), model["generator"])

    def unknown(model: Any, batch: Any, update: Update) -> None:
        update(model["generator"](batch[1]).mean(), model["generator"], "adamm")

    _refused("the step updates nothing", nothing)
    _refused("no parameter that requires a gradient and that the loss depends on", others)
    _refused(r"given a tensor of shape \[3\], which is no parameter of the model", foreign)
    _refused(r"a tensor of one number, not \[6, 6\]", many)
    _refused(r"unknown optimizer 'adamm' \(did you mean 'adam'\?\)", unknown)
    _refused("both loss and step are given", own_steps.gan, loss=torch.sum)
    _refused("step is given with training=False", own_steps.gan, training=False)
    _refused("step is of type int, not a function", 3)


def test_what_cannot_be_cut_up_is_refused() -> None:
    graph = capture(own_steps.networks(), own_steps.batch(), step=own_steps.gan, name="gan")
    says = r"graph 'gan' goes on after it has updated parameters \('.*' depends on an update\), as a 'step' .* cannot "
    with pytest.raises(InputError, match=says + "be cut into micro-batches"):
        microbatch(graph, 3)
    source = "python:tests.envs.measured.own_steps:make_gan"
    assert load_graph(source).sha256 == graph.sha256
    with pytest.raises(InputError, match=says + "be cut into micro-batches"):
        load_microbatches(source, 3)
    with pytest.raises(InputError, match=says + "be replicated"):
        replicate(graph, 2)
    with pytest.raises(InputError, match=says + "be cut into stages by the target torch_pipeline"):
        find_segments(microbatch(graph, 1), load_cluster("k80x2"))
    with pytest.raises(InputError, match=says + "run by a device map of Accelerate"):
        make_problem(graph, "k80x2", target="accelerate")


def test_updates_that_nothing_follows_may_be_cut_up() -> None:
    def apart(model: Any, batch: Any, update: Update) -> None:
        update(model["generator"](batch[1]).mean(), model["generator"])
        update(model["discriminator"](batch[0]).mean(), model["discriminator"])

    graph = capture(own_steps.networks(), own_steps.batch(), step=apart)
    assert microbatch(graph, 3).graph.num_ops > graph.num_ops
