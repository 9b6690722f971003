"""Profiling a machine as a user types it, and using what was written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from envs.clusters.catalog import load_cluster
from envs.measured.machine import as_one, parse_devices
from graphs.sources import load_graph
from placement.cli.main import main
from tests.envs.measured.measured_problems import two_cores
from tests.placement.runs.small_model import DEVICES, MODEL


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of one's own in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"profiled_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(MODEL)
    return f"python:{name}:make"


@pytest.mark.slow
@two_cores
def test_a_machine_is_profiled_and_the_profile_guides_a_training(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--devices", DEVICES, "--out", "own.graph.json.gz", "--placements", "2", "--steps", "3"]
    assert main(["profile", source, *args]) == 0
    said = capsys.readouterr().out
    assert re.search(r"cpu:\d+ +[\d.]+ (ms|us) ", said)
    graph, cluster = load_graph("own.graph.json.gz"), load_cluster("own.yaml")
    assert ",".join(cluster.device_names) == DEVICES
    for device in cluster.devices:
        times = graph.time_s[device.spec.name]
        busy = (graph.flops > 0) | (graph.bytes_accessed > 0)
        assert (times[busy] > 0).all()
        assert not np.isnan(times).any()
    assert "torch" in cluster.source

    guided = ["--profile", "own.graph.json.gz", "--cluster", "own.yaml", "--time-limit-s", "8", "--out", "run"]
    assert main(["train", source, "--measured", "--screen", "--devices", DEVICES, *guided]) == 0
    rows = json.loads(Path("run/measured.json").read_text())["rows"]
    assert all(row["simulated_s"] > 0 for row in rows)
    # The placement is one of the graph, whoever timed it. Beside it, what the cores do without it.
    run = ["run", source, "--placement", "run/placement.json", "--devices", DEVICES, "--steps", "3"]
    capsys.readouterr()
    assert main([*run, "--json", "steps.json"]) == 0
    said = capsys.readouterr().out
    one = as_one(parse_devices(DEVICES))
    assert one is not None
    assert re.search(rf"plain PyTorch on the same cores: [\d.]+ (ms|us|s) \({one.name}, 2 threads\)", said)
    assert re.search(rf"all ops on one device of these cores: [\d.]+ (ms|us|s) \({one.name}\)", said)
    assert re.search(r"The placement takes [\d.]+ (times as long as|of the time of) plain PyTorch", said)
    steps = json.loads(Path("steps.json").read_text())
    assert [each["name"] for each in steps["plain"]] == ["plain PyTorch"]
    assert steps["plain"][0]["step_time_s"] > 0
    assert steps["one_device_s"] > 0
    # So does a training, which leaves the placement on one device of all cores, to be run like any other.
    measured = json.loads(Path("run/measured.json").read_text())
    assert measured["plain"][0]["step_time_s"] > 0
    alone = ["run", source, "--placement", "run/one_device.json", "--devices", one.name, "--plain", "none"]
    assert main([*alone, "--steps", "3"]) == 0
    assert "plain PyTorch" not in capsys.readouterr().out
    assert main(["simulate", source, "--cluster", "own.yaml", "--placement", "run/placement.json"]) == 0
    assert main(["simulate", "own.graph.json.gz", "--cluster", "own.yaml", "--placement", "run/placement.json"]) == 0
    capsys.readouterr()

    # A profile of another graph, and a cluster that it has no times for, are refused.
    other = ["train", "rnnlm:steps=2,hidden=16,vocabulary=20,batch=2", "--measured", "--devices", DEVICES]
    assert main([*other, "--profile", "own.graph.json.gz", "--cluster", "own.yaml"]) == 2
    assert "is of another graph than" in capsys.readouterr().err
    assert main(["train", source, "--measured", "--devices", DEVICES, "--profile", "own.graph.json.gz"]) == 2
    assert "has no times for device spec" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--devices", "cpu:0", "--out", "x.json"], "is not the name of a graph file"),
        (["--devices", "gpu:0", "--out", "x.graph.json"], "'gpu:0' is no device of a machine"),
        (["--devices", "cpu:0", "--out", "no/x.graph.json"], "there is no directory 'no'"),
        (["--devices", "cpu:0", "--out", "x.graph.json", "--steps", "0"], "--steps is 0; it must be at least 1"),
        (["--devices", "cpu:0", "--out", "x.graph.json", "--placements", "0"], "--placements is 0"),
        (["--devices", "cpu:0", "--out", "x.graph.json", "--time-limit-s", "0"], "--time-limit-s is 0.0"),
        (["--devices", "cpu:0", "--out", "x.graph.json", "--seed", "-1"], "seed"),
        (["--devices", "cpu:0", "--out", "x.graph.json", "--cluster-out", "x.txt"], "is not the name of a cluster"),
    ],
)
def test_bad_input_is_one_sentence(
    source: str, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", source, *args]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(Path().glob("x*"))


def test_a_graph_file_cannot_be_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.graph.json")
    assert main(["profile", str(tmp_path / "y.graph.json"), "--devices", "cpu:0", "--out", out]) == 2
    assert capsys.readouterr().err.count("\n") == 1
