"""The script of the scaling table, as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked

SCRIPT = Path(__file__).parents[2] / "scripts" / "data_parallel_scaling.py"
SMALL = "rnnlm:layers=1,hidden=64,steps=2,vocabulary=50,batch=8"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return forked.run([sys.executable, SCRIPT, *args])


def test_it_prints_and_writes_a_row_for_each_number_of_replicas(tmp_path: Path) -> None:
    done = run("--graph", SMALL, "--cluster", "tpu_v2x4", "--replicas", "2,4", "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["replicas"] for row in rows] == [1, 2, 4]
    assert rows[0]["speed_up"] == 1
    for row in rows:
        assert row["speed_up"] == pytest.approx(row["replicas"] * rows[0]["step_time_s"] / row["step_time_s"])
        assert row["feasible"]
        assert f"{row['step_time_s'] * 1e3:.2f}" in done.stdout
    assert "published" not in done.stdout


def test_more_replicas_than_accelerators_are_refused_in_a_sentence() -> None:
    done = run("--graph", SMALL, "--cluster", "tpu_v2x4", "--replicas", "8")
    assert done.returncode == 1
    assert done.stderr == "data_parallel_scaling: 8 replicas: cluster 'tpu_v2x4' has 4 accelerators\n"
