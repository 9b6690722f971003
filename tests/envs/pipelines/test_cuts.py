"""Where a step may be cut, what the parts between cuts take, and a bound that no pipeline is below."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from envs.clusters.catalog import load_cluster
from envs.cost_model import op_times_s
from envs.pipelines.actions import run_order
from envs.pipelines.bound import lower_bound_s
from envs.pipelines.cuts import find_segments
from envs.pipelines.segments import Segments
from graphs.capture import capture
from graphs.errors import InputError
from graphs.microbatch import MicroBatches, repeat
from placement.exports.layer_counts import encode_for
from placement.exports.stages import to_stages
from placement.placers.pipeline_stages import evaluate
from tests.envs.pipelines.segments import any_segments


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(3 * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As wide as `x`."""
        return x + self.outer(self.inner(self.norm(x)).relu())


class Words(nn.Module):
    """A stack of blocks between a table and a head, which may be one weight."""

    def __init__(self, *, tied: bool = False, across: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.blocks = nn.Sequential(*[Block(8) for _ in range(4)])
        self.head = nn.Linear(8, 50, bias=False)
        self.across = across
        if tied:
            self.head.weight = self.table.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Scores."""
        x = self.table(words)
        y = self.blocks(x)
        return self.head(x + y if self.across else y)


def in_parts(model: nn.Module, count: int = 4, batch: int = 6) -> MicroBatches:
    words = torch.zeros(batch, 5, dtype=torch.int64)

    def loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())

    return repeat(capture(model, (words, words), loss), count)


CLUSTER = load_cluster("a100x4")


def test_cuts_are_before_modules_where_one_value_crosses() -> None:
    segments = find_segments(in_parts(Words()), CLUSTER)
    assert [modules[0] for modules in segments.modules] == [
        "table",
        *(f"blocks.{i}" for i in range(4)),
        "head",
    ]
    assert segments.modules_between(1, 4) == ("blocks.0", "blocks.1", "blocks.2")
    row = 6 * 5 * 8 * 4
    assert segments.crossing_bytes.tolist() == [0, *[row] * 5, 0]
    assert segments.gradient_bytes.tolist() == [0, *[row] * 5, 0]


class Stack(nn.Module):
    """Layers that may be cut in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(Block(8), Block(8)) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As wide as `x`."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Halves(nn.Module):
    """A stack between a table and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.stack, self.head = nn.Embedding(50, 8), Stack(), nn.Linear(8, 50, bias=False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Scores."""
        return self.head(self.stack(self.table(words)))


def test_stages_name_whole_modules_where_they_have_all_parts() -> None:
    segments = find_segments(in_parts(Halves()), CLUSTER)
    assert segments.num_segments == 9
    assert segments.modules_between(0, 3) == ("table", "stack.layers.0")
    assert segments.modules_between(3, 6) == ("stack.layers.1", "stack.layers.2.0")
    assert segments.modules_between(6, 9) == ("stack.layers.2.1", "stack.norm", "head")
    listed = segments.modules_between(0, 9)  # members of a list, not the list, which nothing calls
    stages = to_stages(segments, evaluate(segments, [3], [1, 2], "1f1b"), graph="halves", batch=24)
    assert [encode_for(tool, stages) for tool in ("megatron", "vllm")] == [b"Et|ttL\n", b"1,2\n"]
    assert listed == ("table", *(f"stack.layers.{i}" for i in range(3)), "stack.norm", "head")


def test_what_follows_from_inputs_alone_does_not_cross() -> None:
    class Masked(Words):
        def forward(self, words: torch.Tensor) -> torch.Tensor:
            mask = (words != 1).float().unsqueeze(-1)
            x = self.table(words)
            for block in self.blocks:
                x = block(x) * mask
            return self.head(x)

    masked, plain = find_segments(in_parts(Masked()), CLUSTER), find_segments(in_parts(Words()), CLUSTER)
    assert masked.modules == plain.modules
    assert masked.crossing_bytes.tolist() == plain.crossing_bytes.tolist()


def test_no_cut_is_crossed_by_two_values_or_parts_a_weight_that_is_not_trained() -> None:
    assert find_segments(in_parts(Words(across=True)), CLUSTER).num_segments == 3
    frozen = Words(tied=True)
    frozen.table.weight.requires_grad_(False)
    assert find_segments(in_parts(frozen), CLUSTER).num_segments == 1


def test_tied_weights_are_with_the_first_segment_that_reads_them() -> None:
    micro = in_parts(Words(tied=True))
    segments, apart = find_segments(micro, CLUSTER), find_segments(in_parts(Words()), CLUSTER)
    assert segments.modules == apart.modules
    (one,) = segments.tied
    size = 50 * 8 * 4
    assert (one.segments, one.gradient_bytes, one.fixed_bytes) == ((0, 5), size, 4 * size)  # Adam has two moments
    assert "weight" in one.name
    assert apart.tied == ()
    assert segments.fixed_bytes.tolist()[1:-1] == apart.fixed_bytes.tolist()[1:-1]
    assert segments.fixed_bytes.sum() == apart.fixed_bytes.sum() - 4 * size
    assert (one.update_s > 0).all()
    assert one.update_s[1] <= segments.update_s[1, 0] * (1 + 1e-12)


@pytest.mark.parametrize("count", [1, 4])
def test_segments_hold_all_work_and_memory_once(count: int) -> None:
    micro = in_parts(Words(), count)
    segments = find_segments(micro, CLUSTER)
    for d, device in enumerate(CLUSTER.devices):
        times = op_times_s(micro.graph, device.spec)
        sums = times[(micro.kind == 3) & (micro.micro_batch == 1)].sum()
        assert segments.action_s[d].sum() == pytest.approx(times[micro.micro_batch == 0].sum() + sums)
        assert segments.update_s[d].sum() == pytest.approx(times[micro.micro_batch == -1].sum())
    graph = micro.graph
    parameters = int(graph.resident_bytes[:, 0].sum())
    assert segments.fixed_bytes.sum() == graph.resident_bytes.sum() + parameters
    assert (segments.action_s[0] > 0).all()


def test_one_stage_takes_what_its_ops_take() -> None:
    micro = in_parts(Words(), 4)
    segments = find_segments(micro, CLUSTER)
    timed = run_order(segments.pipeline([], [1]), "gpipe", 4)
    assert timed.step_time_s == pytest.approx(4 * segments.action_s[1].sum() + segments.update_s[1].sum(), rel=1e-12)
    with pytest.raises(InputError, match="do not make 2 stages of 6 segments"):
        segments.pipeline([6], [1, 2])


def test_pytorch_cuts_models_at_every_segment() -> None:
    from torch.distributed.pipelining import SplitPoint  # slow to load
    from torch.distributed.pipelining import pipeline as trace

    model = Words()
    segments = find_segments(in_parts(model), CLUSTER)
    points = {modules[0]: SplitPoint.BEGINNING for modules in segments.modules[1:]}
    traced = trace(model, mb_args=(torch.zeros(6, 5, dtype=torch.int64),), split_spec=points)
    assert traced.num_stages == segments.num_segments
    for number, modules in enumerate(segments.modules):
        owned = {name.rpartition(".")[0] for name, _ in traced.get_stage_module(number).named_parameters()}
        assert all(any(path == m or path.startswith(f"{m}.") for m in modules) for path in owned)


def test_what_is_no_training_is_refused() -> None:
    words = torch.zeros(6, 5, dtype=torch.int64)
    with pytest.raises(InputError, match="has no gradients of parameters"):
        find_segments(repeat(capture(Words(), words, training=False), 2), CLUSTER)


def every_pipeline(segments: Segments):  # type: ignore[no-untyped-def]
    """All stages on all devices, under every order that serves them."""
    devices = range(segments.cluster.num_devices)
    for stages in range(1, segments.num_segments + 1):
        for cuts in itertools.combinations(range(1, segments.num_segments), stages - 1):
            for placed in itertools.product(devices, repeat=stages):
                orders = ("gpipe", "1f1b", "zb_h1", "list") if len(set(placed)) == stages else ("list",)
                for order in orders:
                    yield evaluate(segments, cuts, placed, order)


@pytest.mark.parametrize("seed", range(8))
def test_no_pipeline_is_below_the_bound(seed: int) -> None:
    segments = any_segments(seed, count=4, devices=2)
    bound_s = lower_bound_s(segments)
    best_s = min(found.step_time_s for found in every_pipeline(segments))
    assert 0 < bound_s <= best_s * (1 + 1e-12)
    assert bound_s > 0.4 * best_s  # it says something


@pytest.mark.parametrize("order", ["gpipe", "1f1b", "zb_h1"])
def test_no_pipeline_of_an_order_is_below_its_bound_which_is_close(order: str) -> None:
    ratios = []
    for seed in range(12):
        segments = any_segments(seed, count=6, devices=3, micro_batches=2 + seed % 6, alike=seed % 3 == 0)
        best_s = min(
            evaluate(segments, cuts, placed, order).step_time_s
            for stages in (1, 2, 3)
            for cuts in itertools.combinations(range(1, 6), stages - 1)
            for placed in itertools.permutations(range(3), stages)
        )
        bound_s = lower_bound_s(segments, order)
        assert lower_bound_s(segments) <= bound_s <= best_s * (1 + 1e-12)
        ratios.append(bound_s / best_s)
    assert np.mean(ratios) > 0.85


@pytest.mark.parametrize("order", ["gpipe", "1f1b", "zb_h1"])
def test_types_of_devices_that_are_too_many_all_count_as_the_fastest(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlike = any_segments(5, count=6, devices=3, micro_batches=4)
    exact_s = lower_bound_s(unlike, order)
    monkeypatch.setattr("envs.pipelines.bound._MOST_WORK", 0)
    assert lower_bound_s(unlike) <= lower_bound_s(unlike, order) <= exact_s * (1 + 1e-12)


def test_the_bound_is_met_where_one_segment_is_all() -> None:
    segments = any_segments(1, count=1, devices=2)
    best_s = min(found.step_time_s for found in every_pipeline(segments))
    assert lower_bound_s(segments) == pytest.approx(best_s)
    assert np.isfinite(best_s)
