"""A training whose chains workers walk: the same placement, whoever they are and whatever becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import placement
from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.cli.main import main
from placement.learning.stats import UpdateStats
from placement.runs.training import TrainedRun
from placement.workers import open_workers
from placement.workers.local import LocalWorkers

UPDATES = 3


@pytest.fixture(scope="module")
def problem() -> PlacementProblem:
    return placement.make_problem("rnnlm:layers=2,steps=6", "k80x4", groups=24)


@pytest.fixture(scope="module")
def alone(problem: PlacementProblem, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The `placement.json` of a run whose chains are walked by threads."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(problem, out)
    return (out / "placement.json").read_bytes()


def train(problem: PlacementProblem, out: Path, **how: object) -> TrainedRun:
    return placement.train(problem, updates=UPDATES, seed=5, out=out, chains=3, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spec", ["1", "2", *(pytest.param(f"ray:{count}", marks=pytest.mark.slow) for count in (1, 2, 4, 8))]
)
def test_the_same_placement_whoever_walks_the_chains(
    problem: PlacementProblem, alone: bytes, tmp_path: Path, spec: str
) -> None:
    seen: list[UpdateStats] = []
    run = train(problem, tmp_path / "run", workers=spec, on_update=seen.append)
    assert (tmp_path / "run" / "placement.json").read_bytes() == alone
    assert [stats.update for stats in seen] == [1, 2, 3]
    assert run.evaluations == seen[-1].evaluations > 3 * 6 * 500
    assert seen[-1].seconds["search"] > 0
    assert json.loads((tmp_path / "run" / "config.json").read_bytes())["chains"] == 3


def test_a_run_goes_on_with_other_workers(problem: PlacementProblem, alone: bytes, tmp_path: Path) -> None:
    out = tmp_path / "run"
    placement.train(problem, updates=1, seed=5, out=out, chains=3, workers=2)
    placement.train(out=out, resume=True, updates=2)
    placement.train(out=out, resume=True, updates=UPDATES, workers=1)
    assert (out / "placement.json").read_bytes() == alone
    with pytest.raises(InputError, match="has the chains that it began with"):
        placement.train(out=out, resume=True, updates=9, chains=4)


def test_a_lost_workers_chains_are_walked_again(problem: PlacementProblem, alone: bytes, tmp_path: Path) -> None:
    over = threading.Event()
    killed: list[int] = []

    def kill(workers: LocalWorkers) -> None:
        while not over.wait(0.05):
            for process in workers._processes:
                pid = None if process.job is None else process.pid
                if pid is not None and len(killed) < 8 and pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    with open_workers(2) as workers:
        assert isinstance(workers, LocalWorkers)
        killer = threading.Thread(target=kill, args=(workers,))

        def on_update(stats: UpdateStats) -> None:
            if stats.update == 1:
                killer.start()

        train(problem, tmp_path / "run", workers=workers, on_update=on_update)
        over.set()
        killer.join()
    assert killed
    assert (tmp_path / "run" / "placement.json").read_bytes() == alone


def test_time_limits_a_run_on_workers(problem: PlacementProblem, tmp_path: Path) -> None:
    with open_workers(2) as workers:
        placement.train(problem, updates=1, workers=workers)
        began = time.perf_counter()
        run = placement.train(problem, time_limit_s=3.0, workers=workers)
        took_s = time.perf_counter() - began
    assert run.updates >= 1  # a busy machine has no time for more
    assert run.evaluations > 1000
    assert took_s < 3.0 + 60.0  # on a busy machine


def test_as_many_chains_as_workers_where_these_are_more(problem: PlacementProblem, tmp_path: Path) -> None:
    with open_workers(3) as workers:
        run = placement.train(problem, updates=1, out=tmp_path / "run", workers=workers)
    config = run.result.placer.config
    assert (config["search_chains"], config["search_survivors"]) == (6, 3)
    assert json.loads((tmp_path / "run" / "config.json").read_bytes())["chains"] == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "none"], "workers 'none' is none of"),
        (["--workers", "2", "--preset", "paper"], "preset 'paper' has no search whose chains could walk"),
        (["--chains", "0"], "--chains is 0; it must be positive"),
        (["--chains", "5000"], "chains is 5000; it must be from 1 to 4096"),
        (["--chains", "2", "--measured", "--devices", "cpu:0"], "--chains goes with simulated step times"),
        (["--target", "torch_pipeline", "--workers", "2"], "--workers does not go with --target torch_pipeline"),
    ],
)
def test_what_does_not_go_with_workers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], said: str
) -> None:
    args = ["train", "rnnlm:layers=1,steps=2", "--cluster", "k80x2", "--updates", "1", "--out", str(tmp_path / "run")]
    if "torch_pipeline" in options:
        args = [arg for arg in args if arg not in ("--updates", "1")]
    assert main([*args, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["2", pytest.param("ray:2", marks=pytest.mark.slow)])
def test_ctrl_c_ends_a_run_on_workers_and_keeps_the_best_placement(tmp_path: Path, spec: str) -> None:
    """The terminal sends it to all processes."""
    out = tmp_path / "run"
    args = ["train", "rnnlm:layers=1,steps=3", "--cluster", "k80x2", "--time-limit-s", "100", "--out", str(out)]
    running = subprocess.Popen(
        [sys.executable, "-m", "placement.cli", *args, "--workers", spec],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 100
        while not (out / "placement.json").exists() and running.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        said, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    assert "Stopped before the limit" in said
    assert "Traceback" not in errors
    assert placement.read_placement(out / "placement.json").feasible
