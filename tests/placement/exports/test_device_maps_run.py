"""Device maps run: under Accelerate's own hooks, on pretended devices, with the outputs of the plain model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate.utils import check_device_map, find_tied_parameters
from torch import nn

import placement
from envs.clusters.catalog import load_cluster
from graphs.capture import capture
from graphs.colocation.whole_modules import whole_module_groups, whole_modules
from graphs.computation_graph import DTYPES, INPUT, ComputationGraph
from placement.exports.accelerate import device_map, simulate_device_map
from tests.envs.simulator.simulator_problems import graph_of as graph_of_times
from tests.envs.simulator.simulator_problems import hub, problem_of
from tests.placement.exports.pretended_devices import OnTwoDevicesError, outputs_of, outputs_under, run_under

WIDTH: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
WORDS: dict[str, Any] = {"vocab_size": 120, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, 100, shape, generator=torch.Generator().manual_seed(0))


def pixels(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def llama() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.LlamaConfig(**WIDTH, **WORDS, num_key_value_heads=2, use_cache=False)
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens(2, 8)}


def qwen() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.Qwen2Config(
        **WIDTH, **WORDS, num_key_value_heads=2, use_cache=False, tie_word_embeddings=True
    )
    return transformers.Qwen2ForCausalLM(config), {"input_ids": tokens(2, 8)}


def gpt2() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.GPT2Config(n_layer=3, n_embd=32, n_head=4, use_cache=False, **WORDS)
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens(2, 8), "labels": tokens(2, 8)}


def bert() -> tuple[nn.Module, dict[str, Any]]:
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**WIDTH, **WORDS))
    return model, {"input_ids": tokens(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}


def t5() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.T5Config(
        num_layers=2,
        d_model=32,
        num_heads=4,
        d_kv=8,
        d_ff=64,
        vocab_size=120,
        use_cache=False,
    )
    return transformers.T5ForConditionalGeneration(config), {
        "input_ids": tokens(2, 8),
        "decoder_input_ids": tokens(2, 6),
    }


def whisper() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=20, max_target_positions=16,
        use_cache=False, decoder_start_token_id=1, **WORDS,
    )  # fmt: skip
    batch = {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": tokens(2, 6)}
    return transformers.WhisperForConditionalGeneration(config), batch


def mixtral() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.MixtralConfig(
        **WIDTH, **WORDS, num_key_value_heads=2, num_local_experts=4, use_cache=False, tie_word_embeddings=False
    )
    config._experts_implementation = "batched_mm"
    return transformers.MixtralForCausalLM(config), {"input_ids": tokens(2, 8)}


def vit() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.ViTConfig(**WIDTH, image_size=32, patch_size=8)
    return transformers.ViTForImageClassification(config), {"pixel_values": pixels(32)}


def convnext() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.ConvNextConfig(hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 2, 1], image_size=64)
    return transformers.ConvNextForImageClassification(config), {"pixel_values": pixels(64)}


def swin() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    return transformers.SwinForImageClassification(config), {"pixel_values": pixels(32)}


class Tied(nn.Module):
    """An embedding, the same weight as head, and once more in a part that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 50, bias=False)
        self.spare = nn.Linear(16, 50, bias=False)
        self.head.weight = self.spare.weight = self.embed.weight
        self.scale = torch.ones(16)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return self.head(hidden)


class Skips(nn.Module):
    """Down and up again, what was on the way down added on the way up by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8))
        self.down = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.up = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, kept = x + self.shift, []
        for part in self.down:
            x = part(x)
            kept.append(x)
        x = self.middle(x)
        for part in self.up:
            x = part(x + kept.pop())
        return self.out(x)


def tied() -> tuple[nn.Module, dict[str, Any]]:
    return Tied(), {"input_ids": tokens(2, 8) % 50}


def skips() -> tuple[nn.Module, dict[str, Any]]:
    return Skips(), {"x": torch.randn(4, 8)}


MODELS = [llama, qwen, gpt2, bert, t5, whisper, mixtral, vit, convnext, swin, tied, skips]
PLACERS = ["etf", "contiguous", "mincut", "m_sct", "round_robin"]


def check_runs(model: nn.Module, batch: dict[str, Any], devices: Mapping[str, int | str]) -> None:
    """Accelerate takes the map, its hooks run the model, and the outputs are those of the plain one."""
    check_device_map(model, devices)
    for tensors in find_tied_parameters(model):
        on = {d for key, d in devices.items() for t in tensors if key == "" or t == key or t.startswith(f"{key}.")}
        assert len(on) == 1, tensors
    if len(set(devices.values())) == 1:
        return
    expected, got = outputs_of(model, batch), outputs_under(model, batch, devices)
    assert len(expected) == len(got) > 0
    for left, right in zip(expected, got, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MODELS)
def test_maps_of_any_placement_run(make: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> None:
    torch.manual_seed(0)
    model, batch = make()
    graph = capture(model, batch, training=False)
    several = 0
    for cluster in ("k80x2", "k80x4"):
        of_ops = placement.make_problem(graph, cluster)
        for placer in PLACERS:
            made = device_map(of_ops, placement.simulate(of_ops, placer).op_placement)
            check_runs(model, batch, made.devices)
        # Whole modules anywhere: nothing is lost between what is searched and what is written down.
        whole = placement.make_problem(graph, cluster, target="accelerate")
        rng = np.random.default_rng(0)
        for _ in range(3):
            on = np.array([rng.choice(np.flatnonzero(row)) for row in whole.allowed])
            made = device_map(whole, whole.to_ops(on))
            assert np.array_equal(made.op_placement, whole.to_ops(on))
            assert made.moved == ()
            assert simulate_device_map(whole, made).step_time_s == whole.evaluate(on[None]).step_time_s[0]
            check_runs(model, batch, made.devices)
            several += len(set(made.devices.values())) > 1
    assert several >= 3 or make is skips


class Shares(nn.Module):
    """What one part makes is read by every block, two of which share a container that is called, two a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Gate() for _ in range(3))
        self.both = Both()
        self.again = Gate()
        self.chain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.first(x)
        hidden = torch.relu(made)
        for block in self.blocks:
            hidden = block(hidden, made)
        hidden = self.both(hidden, made)
        for _ in range(3):
            hidden = self.again(hidden, made)
        return self.last(self.chain(hidden))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        return self.a(hidden) * self.b(made) + made


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Gate(), Gate()

    def forward(self, hidden: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        return self.right(self.left(hidden, made), made)


def shares() -> tuple[nn.Module, dict[str, Any]]:
    return Shares(), {"x": torch.randn(4, 8)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [shares, llama, gpt2, bert, whisper, convnext, tied, skips])
def test_as_much_is_simulated_as_the_hooks_send(make: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> None:
    """Copies of what the model computes: of inputs, masks and tables the captured step has others than the run one."""
    torch.manual_seed(0)
    model, batch = make()
    graph = capture(model, batch, training=False)
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
    model, batch = llama()
    whole = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    devices = {**whole, "model.layers.0": 0, "model.layers.1": 1, "model.layers.2": 1}
    check_runs(model, batch, devices)
    del devices["model.layers.1"]
    parts = dict.fromkeys(("self_attn", "input_layernorm", "post_attention_layernorm"), 0) | {"mlp": 1}
    with pytest.raises(OnTwoDevicesError):
        outputs_under(model, batch, devices | {f"model.layers.1.{part}": d for part, d in parts.items()})


@pytest.mark.filterwarnings("ignore")
def test_a_search_for_accelerate_uses_several_devices_where_one_has_too_little_memory() -> None:
    model, batch = llama()
    graph = capture(model, batch, training=False)
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
    ("make", "alone", "together"),
    [
        (llama, ["model.layers.0", "model.layers.1", "model.layers.2", "model.norm", "lm_head"], []),
        (gpt2, ["transformer.h.0", "transformer.h.1", "transformer.ln_f"], ["transformer.wte", "lm_head"]),
        (t5, ["encoder.block.0.layer.0", "decoder.block.1.layer.2"], ["shared", "lm_head"]),
        (tied, ["layers.0", "layers.3"], ["embed", "head"]),
        (skips, [], ["down.0", "up.1"]),
        (skips, [], ["down.1", "up.0"]),
    ],
)
def test_what_may_be_cut_is_cut_and_nothing_else(
    make: Callable[[], tuple[nn.Module, dict[str, Any]]], alone: list[str], together: list[str]
) -> None:
    """A residual block stays whole and goes where it likes; what the model itself adds up, or ties, shares a device."""
    members = whole_modules(graph_of(make)).members
    for module in alone:
        assert (module,) in members, members
    if together:
        assert any(set(together) <= set(group) for group in members), members


def test_a_graph_without_modules_is_one_group() -> None:
    problem = problem_of(graph_of_times([1.0, 1.0, 1.0], [(0, 1, [1]), (1, 1, [2])]), hub(2))
    assert whole_module_groups(problem.graph).num_groups == 1


def graph_of(make: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> ComputationGraph:
    model, batch = make()
    return capture(model, batch, training=False)


@pytest.mark.filterwarnings("ignore")
def test_there_is_something_to_place() -> None:
    for make, least in ((llama, 6), (bert, 6), (t5, 6), (vit, 5), (swin, 5), (tied, 5)):
        groups = placement.make_problem(graph_of(make), "k80x2", target="accelerate").groups
        assert groups.num_groups >= least, make.__name__
