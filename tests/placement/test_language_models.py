"""Does it fit, how to split it, what does it give: one command answers for a language model's configuration."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.clusters.catalog import load_cluster
from envs.clusters.device_specs import DEVICE_SPECS
from envs.clusters.file import cluster_to_yaml
from placement.cli.main import main
from placement.results.placement_file import read_placement
from tests.graphs.language_models import LLAMA_70B, source_of, two_cards_and_a_cpu


def write_cluster(path: Path, share: float) -> None:
    path.write_text(cluster_to_yaml(two_cards_and_a_cpu(share, 1.0), DEVICE_SPECS))


def test_one_command_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cluster(Path("cards.yaml"), 2e-4)
    source = source_of("phase=decode,context=256,batch=4", num_hidden_layers=4)
    assert main(["train", source, "--cluster", "cards.yaml", "--updates", "1", "--out", "run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    step_s = read_placement("run/placement.json").step_time_s
    assert f"{4 / step_s:,.4g} tokens/s" in said
    assert re.search(r"It fits: .*gpu:0 (holds )?[\d.]+ MB of 5 MB", said) or "It fits: cpu:0 holds" in said
    assert re.search(r"Layers? 0|Of 4 layers", said)
    rows = {row["placer"]: row for row in json.loads(Path("run/comparison.json").read_text())["rows"]}
    assert rows["llama_cpp"]["feasible"]
    assert "accelerate_balanced" in rows


HIDDEN, INNER, KV = 8192, 28672, 8 * 128
MATRICES = {
    "q_proj": HIDDEN * HIDDEN,
    "k_proj": HIDDEN * KV,
    "v_proj": HIDDEN * KV,
    "o_proj": HIDDEN * HIDDEN,
    "gate_proj": HIDDEN * INNER,
    "up_proj": HIDDEN * INNER,
    "down_proj": HIDDEN * INNER,
}


def bytes_of(op: str, batch: int, context: int) -> float:
    """What an op of a Llama 70B in 4 bits keeps, by its name and the sizes of its configuration."""
    parts = op.split(".")
    if parts[-1] in ("key_cache", "value_cache"):
        return 2 * batch * 8 * context * 128
    if parts[-1] == "weight" and parts[-2] in MATRICES:
        return MATRICES[parts[-2]] / 2
    if parts[-1] == "scales":
        return MATRICES[parts[-2]] / 64 * 4  # a scale and a zero of two bytes for each 64
    if parts[-1] == "weight" and parts[-2] in ("embed_tokens", "lm_head"):
        return 2 * HIDDEN * 128256
    if parts[-1] == "weight" and parts[-2].endswith("norm"):
        return 2 * HIDDEN
    return 0


@pytest.mark.slow
def test_seventy_billion_parameters_on_two_unequal_cards_and_a_cpu(tmp_path: Path) -> None:
    """Captured, compared and searched for 15 s: within a minute of a core, and 4 GB; the answer fits by arithmetic."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    write_cluster(tmp_path / "cards.yaml", 1.0)
    source = "hf:.:phase=decode,context=8192,batch=4,weights=int4"
    command = [sys.executable, "-m", "placement.cli", "train", source, "--cluster", "cards.yaml", "--out", "run"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, "--time-limit-s", "15"], cwd=tmp_path, check=True, capture_output=True)
    after, took_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{took_s:.1f} s, {cpu_s:.1f} s of CPU, {after.ru_maxrss / 1e6:.2f} GB")
    assert cpu_s < 60
    assert after.ru_maxrss < 4e6
    result, cluster = read_placement(tmp_path / "run" / "placement.json"), load_cluster(str(tmp_path / "cards.yaml"))
    assert result.feasible
    held = dict.fromkeys(cluster.device_names, 0.0)
    for op, device in result.ops.items():
        held[device] += bytes_of(op, batch=4, context=8192)
    weights = 80 * (sum(MATRICES.values()) * (0.5 + 4 / 64) + 2 * 2 * HIDDEN)
    ends = 2 * (2 * 128256 * HIDDEN + HIDDEN)
    cache = 80 * 2 * 2 * 4 * 8 * 8192 * 128
    assert sum(held.values()) == weights + ends + cache
    assert sum(held.values()) > sum(d.spec.memory_bytes for d in cluster.devices if d.spec.kind == "gpu")
    for name, memory in zip(cluster.device_names, cluster.memory_bytes.tolist(), strict=True):
        assert 0 < held[name] <= min(memory, result.peak_memory_bytes[name])
    rows = {row["placer"]: row for row in json.loads((tmp_path / "run" / "comparison.json").read_text())["rows"]}
    assert rows["llama_cpp"]["feasible"]
    assert rows["reinforce"]["step_time_s"] <= rows["llama_cpp"]["step_time_s"]
    assert not rows["accelerate_balanced"]["feasible"]  # which knows nothing of the cache
