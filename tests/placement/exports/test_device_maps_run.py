"""Device maps run: under Accelerate's own hooks, on pretended devices, with the outputs of the plain model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import placement
from envs.clusters.catalog import load_cluster
from graphs.colocation.whole_modules import whole_module_groups, whole_modules
from graphs.computation_graph import DTYPES, INPUT
from placement.exports.accelerate import device_map, simulate_device_map
from tests.envs.simulator.simulator_problems import graph_of as graph_of_times
from tests.envs.simulator.simulator_problems import hub, problem_of

# Tests import `models_to_run` and `pretended_devices` where they need them: Transformers and Accelerate take seconds.

MODELS = ["llama", "qwen", "gpt2", "bert", "t5", "whisper", "mixtral", "vit", "convnext", "swin", "tied", "skips"]
PLACERS = ["etf", "contiguous", "mincut", "m_sct", "round_robin"]


def check_runs(
    model: nn.Module,
    batch: dict[str, Any],
    devices: Mapping[str, int | str],
    expected: list[torch.Tensor] | None = None,
) -> None:
    """Accelerate takes the map, its hooks run the model, and the outputs are those of the plain one."""
    from accelerate.utils import check_device_map, find_tied_parameters

    from tests.placement.exports.pretended_devices import outputs_of, outputs_under

    check_device_map(model, devices)
    for tensors in find_tied_parameters(model):
        on = {d for key, d in devices.items() for t in tensors if key == "" or t == key or t.startswith(f"{key}.")}
        assert len(on) == 1, tensors
    if len(set(devices.values())) == 1:
        return
    expected, got = expected or outputs_of(model, batch), outputs_under(model, batch, devices)
    assert len(expected) == len(got) > 0
    for left, right in zip(expected, got, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_maps_of_any_placement_run(name: str) -> None:
    from tests.placement.exports.models_to_run import graph_of, make
    from tests.placement.exports.pretended_devices import outputs_of

    model, batch = make(name)
    graph, expected = graph_of(name), outputs_of(model, batch)
    ran: list[Mapping[str, int | str]] = []
    several = 0

    def runs(devices: Mapping[str, int | str]) -> None:
        if devices not in ran:  # several placers make the same
            check_runs(model, batch, devices, expected)
            ran.append(devices)

    for cluster in ("k80x2", "k80x4"):
        of_ops = placement.make_problem(graph, cluster)
        for placer in PLACERS:
            made = device_map(of_ops, placement.simulate(of_ops, placer).op_placement)
            runs(made.devices)
        # Whole modules anywhere: nothing is lost between what is searched and what is written down.
        whole = placement.make_problem(graph, cluster, target="accelerate")
        rng = np.random.default_rng(0)
        for _ in range(3):
            on = np.array([rng.choice(np.flatnonzero(row)) for row in whole.allowed])
            made = device_map(whole, whole.to_ops(on))
            assert np.array_equal(made.op_placement, whole.to_ops(on))
            assert made.moved == ()
            assert simulate_device_map(whole, made).step_time_s == whole.evaluate(on[None]).step_time_s[0]
            runs(made.devices)
            several += len(set(made.devices.values())) > 1
    assert several >= 3 or name == "skips"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["shares", "llama", "gpt2", "bert", "whisper", "convnext", "tied", "skips"])
def test_as_much_is_simulated_as_the_hooks_send(name: str) -> None:
    """Copies of what the model computes: of inputs, masks and tables the captured step has others than the run one."""
    from tests.placement.exports.models_to_run import graph_of, make
    from tests.placement.exports.pretended_devices import run_under

    model, batch = make(name)
    graph = graph_of(name)
    floats = np.array([DTYPES[d].startswith("float") for d in graph.dtype]) & ~graph.is_type(INPUT)
    seen = 0
    for cluster in ("k80x2", "k80x4"):
        whole = placement.make_problem(graph, cluster, target="accelerate")
        rng = np.random.default_rng(1)
        for _ in range(4):
            on = np.array([rng.choice(np.flatnonzero(row)) for row in whole.allowed])
            devices = device_map(whole, whole.to_ops(on)).devices
            if len(set(devices.values())) > 1:
                sent = whole.trace(on).transfer_tensor
                simulated = int(floats[graph.tensor_producer[sent]].sum())
                assert simulated == run_under(model, batch, devices)[1], devices
                seen += simulated
    assert seen > 10


@pytest.mark.filterwarnings("ignore")
def test_the_pretended_devices_refuse_a_map_that_cuts_a_residual() -> None:
    from tests.placement.exports.models_to_run import make
    from tests.placement.exports.pretended_devices import OnTwoDevicesError, outputs_under

    model, batch = make("llama")
    whole = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    devices = {**whole, "model.layers.0": 0, "model.layers.1": 1, "model.layers.2": 1}
    check_runs(model, batch, devices)
    del devices["model.layers.1"]
    parts = dict.fromkeys(("self_attn", "input_layernorm", "post_attention_layernorm"), 0) | {"mlp": 1}
    with pytest.raises(OnTwoDevicesError):
        outputs_under(model, batch, devices | {f"model.layers.1.{part}": d for part, d in parts.items()})


@pytest.mark.filterwarnings("ignore")
def test_a_search_for_accelerate_uses_several_devices_where_one_has_too_little_memory() -> None:
    from tests.placement.exports.models_to_run import graph_of, make

    model, batch = make("llama")
    graph = graph_of("llama")
    need = int(graph.resident_bytes.sum())
    cluster = load_cluster(f"k80x2:memory_bytes={int(0.8 * need)}")
    problem = placement.make_problem(graph, cluster, target="accelerate")
    found = placement.simulate(problem, "local_search", time_limit_s=2)
    assert found.feasible
    made = device_map(problem, found.op_placement)
    assert len(set(made.devices.values())) == 2
    check_runs(model, batch, made.devices)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "alone", "together"),
    [
        ("llama", ["model.layers.0", "model.layers.1", "model.layers.2", "model.norm", "lm_head"], []),
        ("gpt2", ["transformer.h.0", "transformer.h.1", "transformer.ln_f"], ["transformer.wte", "lm_head"]),
        ("t5", ["encoder.block.0.layer.0", "decoder.block.1.layer.2"], ["shared", "lm_head"]),
        ("tied", ["layers.0", "layers.3"], ["embed", "head"]),
        ("skips", [], ["down.0", "up.1"]),
        ("skips", [], ["down.1", "up.0"]),
    ],
)
def test_what_may_be_cut_is_cut_and_nothing_else(name: str, alone: list[str], together: list[str]) -> None:
    """A residual block stays whole and goes where it likes; what the model itself adds up, or ties, shares a device."""
    from tests.placement.exports.models_to_run import graph_of

    members = whole_modules(graph_of(name)).members
    for module in alone:
        assert (module,) in members, members
    if together:
        assert any(set(together) <= set(group) for group in members), members


def test_a_graph_without_modules_is_one_group() -> None:
    problem = problem_of(graph_of_times([1.0, 1.0, 1.0], [(0, 1, [1]), (1, 1, [2])]), hub(2))
    assert whole_module_groups(problem.graph).num_groups == 1


@pytest.mark.filterwarnings("ignore")
def test_there_is_something_to_place() -> None:
    from tests.placement.exports.models_to_run import graph_of

    for name, least in (("llama", 6), ("bert", 6), ("t5", 6), ("vit", 5), ("swin", 5), ("tied", 5)):
        groups = placement.make_problem(graph_of(name), "k80x2", target="accelerate").groups
        assert groups.num_groups >= least, name
