"""The scripts that compare simulated with measured steps, on a model that takes no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from envs.measured.machine import as_one, parse_devices
from envs.measured.process import MeasuringProcess
from scripts import fidelity, measured_gain
from scripts.fidelity_study.report import fit_of
from tests.envs.measured.measured_problems import two_cores
from tests.placement.runs.small_model import DEVICES, MODEL

KEYS = {"graph", "devices", "placements", "median_error", "p95_error", "spearman", "kendall"}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of one's own in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"compared_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(MODEL)
    return f"python:{name}:make"


def run(module: object, monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["script", *args])
    return int(module.main())  # type: ignore[attr-defined]


@two_cores
@pytest.mark.slow
def test_placements_are_measured_once_and_compared(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["--workloads", source, "--devices", DEVICES, "--placements", "6", "--learn-s", "1", "--out", "kept"]
    assert run(fidelity, monkeypatch, *args, "--json", "first.json", "--plot", "first.png") == 0
    content = json.loads(Path("first.json").read_text())
    assert list(content) == ["workloads"]
    (row,) = content["workloads"]
    assert set(row) == KEYS
    assert row["graph"] == source
    assert row["devices"] == DEVICES.split(",")
    assert 2 <= row["placements"] <= 6
    assert 0 <= row["median_error"] <= row["p95_error"]
    assert Path("first.png").read_bytes().startswith(b"\x89PNG")

    gain = [
        "--workloads",
        source,
        "--devices",
        DEVICES,
        "--profiles",
        "kept",
        "--time-limit-s",
        "3",
        "--no-compile",
        "--json",
        "g.json",
    ]
    assert run(measured_gain, monkeypatch, *gain) == 0
    (found,) = json.loads(Path("g.json").read_text())["workloads"]
    one = as_one(parse_devices(DEVICES))
    assert one is not None
    assert [r["placer"].split(" (")[0] for r in found["rows"]] == [
        "one core",
        "best heuristic",
        "learned",
        f"one device {one.name}",
        "plain PyTorch, 2 threads",
    ]
    assert all(len(r["runs_s"]) == 5 for r in found["rows"])
    assert [r["simulated_s"] is None for r in found["rows"]] == [False, False, False, True, True]

    # A second time nothing is run.
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was measured again")

    monkeypatch.setattr(MeasuringProcess, "measure", refuse)
    assert run(fidelity, monkeypatch, *args, "--json", "second.json") == 0
    assert Path("second.json").read_bytes() == Path("first.json").read_bytes()
    assert run(measured_gain, monkeypatch, *gain) == 0


@pytest.mark.slow
@two_cores
def test_a_run_that_was_stopped_goes_on(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["--workloads", source, "--devices", DEVICES, "--placements", "12", "--learn-s", "1", "--out", "kept"]
    measure = MeasuringProcess.measure
    calls: list[int] = []
    stop_at = 10**6

    def stop_after(self: MeasuringProcess, *given: object, **named: object) -> object:
        nonlocal stop_at
        calls.append(1)
        if stop_at == 10**6 and list(Path("kept").glob("*/measured.npz")):
            stop_at = len(calls) + 3
        if len(calls) == stop_at:  # behind the profile, and behind a saving
            raise KeyboardInterrupt
        return measure(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(MeasuringProcess, "measure", stop_after)
    monkeypatch.setattr(fidelity, "_SAVE_EVERY", 2)
    with pytest.raises(KeyboardInterrupt):
        run(fidelity, monkeypatch, *args)
    work = fidelity.Workload(source, source, DEVICES, Path("kept") / fidelity.folder_name(source), 0)
    before = work.load()
    done = ~np.isnan(before.runs_s)
    assert done.any()
    assert not done.all()
    assert run(fidelity, monkeypatch, *args) == 0
    after = work.load()
    assert not after.wanting.size
    np.testing.assert_array_equal(after.runs_s[done], before.runs_s[done])
    np.testing.assert_array_equal(after.op_device, before.op_device)


def test_a_gain_needs_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=r"run scripts/fidelity\.py first"):
        run(measured_gain, monkeypatch, "--workloads", "rnnlm")


def test_errors_and_ranks_are_of_the_measured_times() -> None:
    measured_s = np.array([1.0, 2.0, 4.0, 5.0])
    fit = fit_of(np.array([1.1, 1.8, 4.0, 4.0]), measured_s)
    assert fit.median_error == pytest.approx(0.1)  # of 0.1, 0.1, 0 and 0.2
    assert fit.p95_error == pytest.approx(0.185)  # between 0.1 and 0.2
    assert fit.bias == pytest.approx(-0.05)
    assert fit_of(measured_s[::-1], measured_s).spearman == pytest.approx(-1.0)
    assert fit_of(2 * measured_s, measured_s).kendall == pytest.approx(1.0)
