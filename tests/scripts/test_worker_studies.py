"""The scripts that measure workers and their faults, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from placement.workers import open_workers
from scripts.many_workers.faults import kill_in_comparison, kill_in_training
from scripts.many_workers.page import PAGE
from scripts.worker_faults import main as faults
from scripts.worker_scale import main as scale
from tests.placement.placer_problems import training_problem


@pytest.mark.slow
def test_no_row_and_no_update_is_lost_or_counted_twice_where_workers_are_killed(tmp_path: Path) -> None:
    problem = training_problem(20, 2, seed=1)
    with open_workers(2, packages=("scripts",)) as workers:
        for name in ("training", "rows"):
            (tmp_path / name).mkdir()
        training = kill_in_training(problem, workers, tmp_path / "training", kills=3, updates=2)
        names = ["single_device", "heft", "local_search"]
        rows = kill_in_comparison(problem, workers, tmp_path / "rows", kills=3, evaluations=40, names=names)
    assert training.ok, training
    assert rows.ok, rows
    assert training.faults.startswith("3 kills")
    assert rows.faults.startswith("3 kills")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["driver", "host"])
def test_drivers_are_killed_and_hosts_hang(part: str) -> None:
    assert faults(["--parts", part, "--driver-kills", "2", "--driver-updates", "20"]) == 0


def test_the_scale_fills_its_part_of_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    before = page.read_text().partition("## Faults")[2]
    assert (
        scale(["--kinds", "local", "--counts", "1,2", "--seconds", "0.3", "--repeats", "0", "--page", str(page)]) == 0
    )
    text = page.read_text()
    assert text.partition("## Faults")[2] == before
    lines = [line for line in text.splitlines() if line.startswith("| local |")]
    assert [line.split("|")[2].strip() for line in lines] == ["1", "2"]
    assert all(0 < float(line.split("|")[4].strip().rstrip("%")) <= 100.5 for line in lines)
    assert lines[0] in capsys.readouterr().out


def test_a_page_without_its_marks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    assert scale(["--kinds", "local", "--counts", "none", "--repeats", "0", "--page", str(page)]) == 2
    assert "lacks the lines '<!-- written by scripts/worker_scale.py: begin -->'" in capsys.readouterr().err
    assert faults(["--parts", "nothing"]) == 2
    assert "--parts has 'nothing'" in capsys.readouterr().err
