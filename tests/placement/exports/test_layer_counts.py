"""Stages as the strings of other tools: read back by what their documentation says of the grammar."""

from __future__ import annotations

import bisect
import itertools
import json
import re
from pathlib import Path

import pytest

from graphs.errors import InputError
from placement.exports.layer_counts import encode_for
from placement.exports.stage_files import export_stages
from placement.exports.stages import Stage, Stages

EVEN = [2, 3, 1]


def stages_of(
    layers: list[int],
    *,
    ranks: int | None = None,
    first: str = "embed_tokens",
    last: str = "lm_head",
    devices: str = "gpu",
) -> Stages:
    """A decoder of an embedding, so many layers a stage, a norm and a head."""
    starts = list(itertools.accumulate(layers, initial=0))
    rows = [[f"layers.{i}" for i in range(a, b)] for a, b in itertools.pairwise(starts)]
    rows[0].insert(0, "embed_tokens")
    rows[-1] += ["norm", "lm_head"]
    count = len(layers) if ranks is None else ranks
    made = tuple(Stage(number % count, tuple(row)) for number, row in enumerate(rows))
    order = "1f1b" if count == len(layers) else "interleaved"
    names = tuple(f"{devices}:{i}" for i in range(count))
    return Stages(graph="g", cluster="c", ranks=names, stages=made, order=order, batch=8, micro_batches=8)  # type: ignore[arg-type]


def text(tool: str, stages: Stages) -> str:
    return encode_for(tool, stages).decode().strip()


def layers_of_layout(layout: str) -> list[int]:
    """Megatron's grammar without its shorthands: stages between bars, letters E, t and L."""
    parts = layout.split("|")
    assert all(re.fullmatch(r"E?t*L?", part) for part in parts)
    assert ["E" in part for part in parts] == [i == 0 for i in range(len(parts))]
    assert ["L" in part for part in parts] == [i == len(parts) - 1 for i in range(len(parts))]
    return [part.count("t") for part in parts]


def devices_of_split(split: str, layers: int) -> list[int]:
    """llama.cpp: layer i, the head being the last, goes to the first share whose running sum is above i / all."""
    shares = list(itertools.accumulate(map(float, split.split(","))))
    running = [share / shares[-1] for share in shares]
    return [bisect.bisect_right(running, i / (layers + 1)) for i in range(layers + 1)]


def device_of_weight(overrides: str, name: str) -> str:
    """llama.cpp: patterns with a buffer type each, between commas; the first that a weight's name has counts."""
    for pattern, buffer in (entry.split("=") for entry in overrides.split(",")):
        if re.search(pattern, name):
            return buffer
    raise AssertionError(name)


@pytest.mark.parametrize("ranks", [3, 1, 2])
def test_overrides_put_every_weight_where_its_stage_is(ranks: int) -> None:
    layers = [2, 11, 0, 1] if ranks == 2 else EVEN
    stages = stages_of(layers, ranks=ranks)
    written = text("llama.cpp-ot", stages)
    layer = 0
    for number, count in enumerate(layers):
        for _ in range(count):
            for weight in ("attn_q.weight", "ffn_down.weight", "attn_norm.weight"):
                assert device_of_weight(written, f"blk.{layer}.{weight}") == f"CUDA{number % ranks}"
            layer += 1
    assert device_of_weight(written, "token_embd.weight") == "CUDA0"
    for weight in ("output.weight", "output_norm.weight"):
        assert device_of_weight(written, weight) == f"CUDA{(len(layers) - 1) % ranks}"
    assert "CPU" in text("llama.cpp-ot", stages_of(EVEN, devices="cpu"))
    with pytest.raises(InputError, match=r"rank 0 is on 'tpu:0', but llama.cpp knows"):
        encode_for("llama.cpp-ot", stages_of(EVEN, devices="tpu"))


@pytest.mark.parametrize("layers", [[2, 3, 1], [1, 1], [5, 4, 3, 2], [7, 13, 12], [40, 24]])
def test_each_tool_cuts_where_the_stages_do(layers: list[int]) -> None:
    stages = stages_of(layers)
    assert json.loads(text("torchtitan", stages)) == [list(stage.modules) for stage in stages.stages]
    assert layers_of_layout(text("megatron", stages)) == layers
    assert text("vllm", stages) == ",".join(map(str, layers))
    expected = [rank for rank, count in enumerate(layers) for _ in range(count)] + [len(layers) - 1]
    assert devices_of_split(text("llama.cpp", stages), sum(layers)) == expected


def test_several_stages_a_rank() -> None:
    stages = stages_of([2, 1, 1, 2], ranks=2)
    assert text("megatron", stages) == "Ett|t|t|ttL"
    assert len(json.loads(text("torchtitan", stages))) == 4
    for tool in ("vllm", "llama.cpp"):
        with pytest.raises(InputError, match="one stage a rank; there are 4 on 2 ranks"):
            encode_for(tool, stages)


def test_a_stage_without_layers_has_the_embedding_or_the_head_alone() -> None:
    stages = stages_of([0, 3, 0])
    assert text("megatron", stages) == "E|ttt|L"
    assert text("vllm", stages) == "0,3,0"


def altered(number: int, modules: tuple[str, ...]) -> Stages:
    stages = stages_of(EVEN)
    rows = [modules if i == number else stage.modules for i, stage in enumerate(stages.stages)]
    made = tuple(Stage(i, row) for i, row in enumerate(rows))
    return Stages(graph="g", cluster="c", ranks=stages.ranks, stages=made, order="1f1b", batch=8, micro_batches=8)


@pytest.mark.parametrize(
    ("stages", "tool", "said"),
    [
        (altered(1, ("layers.2", "layers.3.mlp", "layers.4")), "vllm", "stage 1 has 'layers.3.mlp'"),
        (altered(1, ("layers.2", "layers.4", "layers.3")), "megatron", "stage 1 has 'layers.4' where Megatron-LM"),
        (altered(1, ("layers.2", "pool", "layers.3", "layers.4")), "vllm", "stage 1 has 'pool'"),
        (altered(0, ("layers.0", "embed_tokens", "layers.1")), "megatron", "stage 0 has 'embed_tokens'"),
        (altered(0, ("layers.0", "blocks.0", "layers.1")), "vllm", "stage 0 has 'blocks.0'"),
        (stages_of(EVEN, devices="cpu"), "llama.cpp", "rank 0 is on 'cpu:0'"),
    ],
)
def test_what_a_tool_cannot_say_is_refused_by_name(stages: Stages, tool: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        encode_for(tool, stages)
    with pytest.raises(InputError, match="tool 'deepspeed'"):
        encode_for("deepspeed", stages)


def test_a_run_without_stages_is_refused_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no stages\.json; give the run of a training with --target torch_pipe"):
        export_stages(tmp_path, tmp_path / "out.txt", format="megatron")
