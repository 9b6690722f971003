"""Runs on measured time: what they leave, what the command does with it, and that no measurement is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import placement
from envs.measured.problem import MeasuredProblem, Measurement
from envs.measured.protocol import Protocol
from graphs.errors import InputError
from placement.cli.main import main
from placement.runs import directory
from placement.runs.measured import train_measured
from placement.runs.measurements import MeasurementFile, read_measurements
from placement.runs.observer import RunObserver
from tests import forked
from tests.envs.measured.faulty_problems import faulty_problem, placements
from tests.envs.measured.measured_problems import NAMES, two_cores
from tests.placement.runs.small_model import DEVICES, MODEL


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of one's own in the working directory."""
    monkeypatch.chdir(tmp_path)
    name = f"model_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(MODEL)
    return f"python:{name}:make"


def lines(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / directory.MEASUREMENTS).read_text().splitlines()]


def stop_at(count: int) -> None:
    """Stop this process's run when it has so many measurements."""
    while Path("run", directory.MEASUREMENTS).read_bytes().count(b"\n") < count:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


class Count(RunObserver):
    """Counts the placements that were run, and does something at one of them."""

    def __init__(self, at: int = 0, number: signal.Signals = signal.SIGTERM) -> None:
        self.count = 0
        self._at, self._number = at, number

    def on_measure(self, proposer: str, found: Measurement) -> None:
        self.count += 1
        if self.count == self._at:
            os.kill(os.getpid(), self._number)


@pytest.mark.slow
@two_cores
@pytest.mark.parametrize(
    ("screen", "number"), [(False, signal.SIGTERM), pytest.param(True, signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_run_that_is_stopped_keeps_what_it_measured_and_goes_on_by_the_command(
    source: str, screen: bool, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Count(at=3, number=number)
    run = placement.train_measured(
        source, DEVICES, screen=screen, time_limit_s=120, out="run", plain="none", observer=told
    )
    assert run.interrupted
    assert run.measured == told.count == len(lines(Path("run")))
    assert placement.read_placement("run/placement.json") == run.result

    # Without the model's code: what it placed is in the directory.
    Path(f"{source.split(':')[1]}.py").rename("away.py")
    assert main(["export", "run", "--out", "ops.csv", "--format", "csv"]) == 0
    assert len(Path("ops.csv").read_text().splitlines()) == len(run.result.ops) + 1
    assert main(["simulate", "--placement", "run/placement.json", "--json", "s.json"]) == 0
    rows = {row.placer: row for row in run.rows}
    assert json.loads(Path("s.json").read_text())["step_time_s"] == pytest.approx(rows["reinforce"].simulated_s)
    Path("away.py").rename(f"{source.split(':')[1]}.py")

    capsys.readouterr()
    threading.Thread(target=stop_at, args=(told.count + 2,), daemon=True).start()
    assert main(["train", "--resume", "run", "--time-limit-s", "25", "--plain", "none"]) == 0
    said = capsys.readouterr()
    assert len(lines(Path("run"))) > told.count
    assert f"{len(lines(Path('run')))} placements run, 0 of them failed" in said.out
    before, after = lines(Path("run"))[: told.count], lines(Path("run"))[told.count :]
    known = {line["placement"] for line in before}
    assert not known & {line["placement"] for line in after if line["placer"] != "again"}  # none was run again
    assert placement.read_placement("run/placement.json").step_time_s > 0
    assert json.loads(Path("run/measured.json").read_text())["rows"]
    for args, message in (
        (["--updates", "3"], "limited by --time-limit-s"),
        (["--devices", NAMES[0]], "leave out --devices"),
        (["--seed", "5"], "cannot resume 'run' with seed '5'"),
    ):
        assert main(["train", "--resume", "run", *args]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="learns from measured time"):
        placement.train(out="run", resume=True)


@two_cores
def test_a_run_that_is_killed_keeps_what_it_measured(source: str) -> None:
    args = [
        "train",
        source,
        "--measured",
        "--devices",
        DEVICES,
        "--time-limit-s",
        "300",
        "--out",
        "run",
        "--plain",
        "none",
    ]
    process = forked.Popen(
        [sys.executable, "-m", "placement.cli", *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        log, until = Path("run", directory.MEASUREMENTS), time.monotonic() + 600  # a busy machine that has to compile
        while not (log.exists() and log.read_bytes().count(b"\n") >= 3) and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    before = lines(Path("run"))
    assert len(before) >= 3
    best = placement.read_placement("run/placement.json")
    with log.open("ab") as file:
        file.write(b'{"placer": "half of a li')
    told = Count()
    run = placement.train_measured(out="run", resume=True, time_limit_s=1e-3, plain="none", observer=told)
    # There is no time for more, but for the best one once more in turn with one device of all cores.
    assert (told.count, run.measured) == (1, len(before) + 1)
    assert lines(Path("run"))[:-1] == before
    assert lines(Path("run"))[-1]["placer"] == "again"
    assert run.result == placement.read_placement("run/placement.json")
    assert run.beside.one_device is not None
    assert run.result.step_time_s <= run.beside.one_device.step_time_s
    assert best.cluster == run.split.cluster


@two_cores
def test_a_measured_problem_of_ones_own_is_resumed_with_its_protocol(tmp_path: Path) -> None:
    with faulty_problem(5.0) as problem:
        train_measured(problem, time_limit_s=2, out=tmp_path / "run")
    config = directory.read_config(tmp_path / "run")
    assert config.measured is not None
    assert config.measured.devices == tuple(NAMES)
    assert (config.measured.limit_s, config.measured.protocol) == (5.0, Protocol(dropped=1, steps=3, short_steps=3))
    assert placement.load_problem(tmp_path / "run").graph.sha256 == problem.graph.sha256
    with pytest.raises(InputError, match="holds a run already"):
        train_measured(problem, time_limit_s=1, out=tmp_path / "run")


def test_measurements_are_read_as_they_were_written(tmp_path: Path) -> None:
    problem = faulty_problem()  # its process is started by the first measurement alone
    good, bad = (problem.groups.to_ops(p) for p in placements(problem))
    path = tmp_path / "m.jsonl"
    found = {
        "a": (good, Measurement((0.1, 0.2, 0.4), (5, 0))),
        "b": (bad, Measurement((), (0, 0), "it is broken")),
        "again": (good, Measurement((0.1, 0.2, 0.4, 0.3), (5, 0))),
    }
    for placer, (ops, measurement) in found.items():
        with MeasurementFile(path) as file:
            file.add(placer, ops, "priority", measurement, elapsed_s=len(placer))
    whole = path.read_bytes()
    assert read_measurements(path, problem) == len("again")
    assert (problem.measurer.count, problem.measurer.failures) == (3, 1)
    assert problem.measurer.measure(good, "priority") == found["again"][1]
    assert problem.measurer.measure(bad, "priority").reason == "it is broken"
    assert np.array_equal(problem.measurer.best("priority")[0], good)
    assert problem.measurer.process.starts == 0

    path.write_bytes(whole[:-5])  # killed while it wrote
    assert read_measurements(path, fresh := faulty_problem()) == len("b")
    assert fresh.measurer.count == 2
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    assert read_measurements(tmp_path / "none.jsonl", fresh) == 0
    first, *others = whole.splitlines(keepends=True)
    for damage, message in (
        (b"{}\n", "line 2, is not a measurement"),
        (b"\xff\n", "line 2, is not a measurement"),
        (first.replace(b'"placement":"', b'"placement":"AAAA'), "line 2, is not a measurement"),
        (first.replace(b"[5,0]", b"[5]"), "line 2, is of another graph or cluster"),
    ):
        path.write_bytes(first + damage + b"".join(others))
        with pytest.raises(InputError, match=message):
            read_measurements(path, faulty_problem())
    assert isinstance(problem, MeasuredProblem)
