"""A training whose measured steps fail in every way, a hundred times: it goes on, and nothing outlives it."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import placement
from envs.measured.problem import Measurement
from placement.runs.measured import train_measured
from placement.runs.observer import RunObserver
from tests.envs.measured.faulty_problems import alive, faulty_problem
from tests.envs.measured.measured_problems import make_fragile, two_cores

FAULTS = int(os.environ.get("WORKER_FAULTS", "100"))


class Faults(RunObserver):
    """Counts what failed, and stops the run as a user would once that is enough."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.measured = 0

    def on_measure(self, proposer: str, found: Measurement) -> None:
        self.measured += 1
        if found.reason:
            self.reasons.append(found.reason)
            if len(self.reasons) == FAULTS:
                os.kill(os.getpid(), signal.SIGTERM)


@two_cores
@pytest.mark.slow
def test_a_training_survives_a_hundred_faults_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, forked = tmp_path / "calls", tmp_path / "forked"
    forked.touch()
    for name, value in (("HOW", "drawn"), ("CALLS", str(calls)), ("FILE", str(forked))):
        monkeypatch.setenv(f"FAULTY_{name}", value)
    told = Faults()
    with faulty_problem(3.0, make_fragile) as problem:
        run = train_measured(problem, time_limit_s=7200, out=tmp_path / "run", observer=told)
        last = problem.measurer.process.process_id
    assert len(told.reasons) >= FAULTS
    assert run.result.feasible
    assert placement.read_placement(tmp_path / "run" / "placement.json") == run.result
    kinds = Counter(reason.split(":")[-1].strip()[:40] for reason in told.reasons)
    assert len(kinds) >= 4, kinds
    processes = [int(line) for line in forked.read_text().split()]
    until = time.monotonic() + 10
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, processes))
    assert last is None or not alive(last)
