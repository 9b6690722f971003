"""What a training on measured time takes home: the best placement, or all cores as one device where that is faster."""

import json
import subprocess
from pathlib import Path

import pytest

import placement
from envs.measured.machine import as_one, parse_devices
from envs.measured.problem import machine_cluster, measured
from envs.measured.protocol import Protocol
from graphs.sources import load_graph
from placement.cli.main import main
from placement.runs import directory
from placement.runs.measured import train_measured
from placement.runs.plain import ONE_DEVICE, compiles_regions
from tests.envs.measured.measured_problems import NAMES, two_cores
from tests.placement.runs.small_model import DEVICES
from tests.placement.runs.waiting_models import TAKES_S

pytestmark = two_cores

MODULE = "python:tests.placement.runs.waiting_models"


def one_name() -> str:
    one = as_one(parse_devices(NAMES))
    assert one is not None
    return one.name


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_one_device_of_all_cores_is_taken_home_where_it_is_faster(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--measured", "--devices", DEVICES, "--time-limit-s", "3", "--out", "run", "--plain", "none"]
    assert main(["train", f"{MODULE}:chain", *args]) == 0
    said = capsys.readouterr().out
    assert f"times as long as one device of all cores: the answer is {one_name()}." in said
    taken, split = (placement.read_placement(f"run/{name}") for name in (directory.PLACEMENT, directory.SPLIT))
    assert taken == placement.read_placement(f"run/{directory.ONE_DEVICE}")
    assert (taken.placer.name, taken.cluster.devices) == (ONE_DEVICE, (one_name(),))
    assert split.cluster.devices == tuple(NAMES)
    assert TAKES_S <= taken.step_time_s < 0.8 * split.step_time_s
    figures = json.loads(Path("run/measured.json").read_text())
    assert (figures["answer"], figures["answer_s"]) == (ONE_DEVICE, taken.step_time_s)
    assert figures["split_s"] == split.step_time_s

    # All that takes a run takes this one.
    assert main(["run", "run", "--plain", "none", "--steps", "3", "--json", "s.json"]) == 0
    steps = json.loads(Path("s.json").read_text())
    assert steps["devices"] == [one_name()]
    assert TAKES_S <= steps["step_time_s"] < split.step_time_s
    assert main(["export", "run", "--out", "ops.csv", "--format", "csv"]) == 0
    assert main(["simulate", "--placement", "run/placement.json"]) == 0
    assert main(["explain", "run"]) == 0
    assert placement.load_problem("run").cluster.device_names == (one_name(),)

    # It goes on, and what was taken home stays while it does.
    again = placement.train_measured(out="run", resume=True, time_limit_s=1e-3, plain="none")
    assert again.result.cluster.devices == (one_name(),)
    assert placement.read_placement("run/placement.json") == again.result


@pytest.mark.slow
def test_the_placement_is_taken_home_where_it_is_faster() -> None:
    source, devices = f"{MODULE}:branches", parse_devices(NAMES)
    simulated = placement.make_problem(load_graph(source), machine_cluster(devices))
    with measured(simulated, source, devices, how=Protocol(steps=3, short_steps=3)) as problem:
        run = train_measured(problem, time_limit_s=8, out="run", plain="eager")
    one, (eager,) = run.beside.one_device, run.beside.plain
    assert one is not None
    assert eager.step_time_s is not None
    assert run.result is run.split
    assert run.result.cluster.devices == tuple(NAMES)
    assert 2 * TAKES_S <= run.result.step_time_s < 0.8 * one.step_time_s
    assert min(one.step_time_s, eager.step_time_s) >= 4 * TAKES_S
    assert placement.read_placement("run/placement.json") == run.result
    assert placement.read_placement("run/one_device.json") == one
    assert not Path(f"run/{directory.SPLIT}").exists()
    assert placement.load_problem("run").cluster.device_names == tuple(NAMES)


@pytest.mark.slow
def test_compiled_regions_are_measured_at_the_end_and_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    source = "python:tests.envs.measured.compiled_problems:make"
    run = placement.train_measured(
        source, DEVICES, time_limit_s=4, out="run", plain="none", compile_regions=True, groups=8
    )
    lines = [json.loads(line) for line in Path("run/measurements.jsonl").read_text().splitlines()]
    compiled = [line for line in lines if line.get("compile_regions")]
    assert {line["placer"] for line in compiled} == {"compiled", "again"}
    assert not any(line["reason"] for line in compiled)
    assert run.result == placement.read_placement("run/placement.json")
    assert run.result.step_time_s == min(
        result.step_time_s for result in (run.split, run.beside.one_device) if result is not None
    )
    for path, result in (("run/placement.json", run.result), ("run/one_device.json", run.beside.one_device)):
        assert result is not None
        capsys.readouterr()
        assert main(["run", "run", "--placement", path, "--plain", "none", "--json", "s.json"]) == 0
        assert json.loads(Path("s.json").read_text())["compile_regions"] == compiles_regions(result)
        assert ("regions compiled" in capsys.readouterr().out) == compiles_regions(result)
    again = placement.train_measured(out="run", resume=True, time_limit_s=1e-3, plain="none")
    assert again.measured > len(lines)


def test_a_run_without_a_compiler_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    # PyTorch reads the variable when it is imported, so the process that measures is to be a fresh one.
    monkeypatch.setattr("envs.measured.process.subprocess", subprocess)
    args = [f"{MODULE}:chain", "--devices", DEVICES]
    assert main(["train", *args, "--measured", "--compile-regions", "--out", "run", "--plain", "none"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("placement: ")
    assert "none is found; install g++" in said
    assert not Path("run").exists()
    assert main(["train", *args, "--compile-regions"]) == 2
    assert "add --measured" in capsys.readouterr().err
    assert main(["run", f"{MODULE}:chain"]) == 2
    assert "needs a placement file" in capsys.readouterr().err
