"""What the README shows: its Python runs as it stands, with small sizes and budgets, and its files can be read."""

import re
from pathlib import Path

import msgspec
import pytest

from envs.clusters.catalog import load_cluster
from graphs.files import load_graph_file
from placement.results.comparison_file import ComparisonRecord
from placement.results.placement_file import PlacementResult
from placement.runs.directory import RunConfig

README = Path(__file__).resolve().parents[1] / "README.md"

SMALLER = (
    ('"rnnlm"', '"rnnlm:layers=1,hidden=32,steps=3,batch=4,vocabulary=50"'),
    ("num_layers=4", "num_layers=1"),
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = blocks("python")
    assert len(found) >= 4
    for block in found:
        code = re.sub(r"time_limit_s=\d+", "time_limit_s=0.5", block)
        for large, small in SMALLER:
            code = code.replace(large, small)
        exec(compile(code, str(README), "exec"), {"__name__": "readme"})
    assert Path("runs/rnnlm/placement.json").exists()
    assert Path("rows.json").exists()


def test_the_model_of_ones_own_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from placement.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(next(block for block in blocks("python") if "def make():" in block))
    assert main(["import", "python:my_model:make", "--out", "my_model.graph.json.gz"]) == 0
    graph = load_graph_file("my_model.graph.json.gz")
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= set(graph.op_names)


def test_the_files_are_of_their_formats(tmp_path: Path) -> None:
    placement, comparison, config, graph = blocks("json")
    assert msgspec.json.decode(placement, type=PlacementResult).ops["input"] == "cpu:0"
    assert msgspec.json.decode(comparison, type=ComparisonRecord).rows[0].placer == "heft"
    assert msgspec.json.decode(config, type=RunConfig).preset == "default"
    (tmp_path / "fc.graph.json").write_text(graph)
    assert load_graph_file(tmp_path / "fc.graph.json").op_names == ("fc.weight", "fc/mm_0")
    (cluster,) = blocks("yaml")
    (tmp_path / "c.yaml").write_text(cluster)
    assert load_cluster(str(tmp_path / "c.yaml")).device_names == ("cpu:0", "gpu:0", "gpu:1")
