"""Runs that are killed at any moment: every file is whole, the run goes on, and ends with the same bytes."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import placement
from envs.clusters.catalog import load_cluster
from graphs.files import load_graph_file, save_graph_file
from graphs.synthetic import random_graph
from placement.runs import checkpoint, directory
from tests.envs.measured.measured_problems import two_cores
from tests.kills.fork_server import ForkServer
from tests.placement.runs.small_model import DEVICES, MODEL

KILLS = int(os.environ.get("KILLS", "40"))
"""Of each of five verbs."""
KILLED = -signal.SIGKILL


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the runs are, which name their graph from there


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as made:
        yield made


def check_whole(run_dir: Path) -> None:
    """Every file that a run leaves is what it should be, whenever it was killed; half-written ones have other names."""
    for path in run_dir.glob("*"):
        if path.name.endswith(".tmp"):
            continue
        if path.name == directory.PLACEMENT:
            placement.read_placement(path)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.name == checkpoint.FILE_NAME:
            checkpoint.load(run_dir, directory.load_problem(run_dir, directory.read_config(run_dir)))
        elif path.suffix == ".csv":
            rows = list(csv.reader(path.read_text().splitlines()))
            assert len({len(row) for row in rows}) <= 1
        elif path.name.endswith((".graph.json", ".graph.json.gz")):
            load_graph_file(path)
        elif path.suffix in (".yaml", ".yml"):
            load_cluster(str(path))


@pytest.mark.slow
def test_training_goes_on_to_the_same_bytes(server: ForkServer, tmp_path: Path) -> None:
    save_graph_file(random_graph(40, seed=1, resident_bytes=100), tmp_path / "g.graph.json")
    start = ["train", "g.graph.json", "--cluster", "k80x2", "--updates", "8", "--groups", "20", "--out", "run"]
    ended, said, took_s = server.run(start, tmp_path)
    assert ended == 0, said
    wanted = (tmp_path / "run" / directory.PLACEMENT).read_bytes()
    draw, kills = random.Random(0), 0
    while kills < KILLS:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        began = False
        for attempt in range(6):
            args = ["train", "--resume", "run", "--updates", "8"] if began else start
            limit_s = None if attempt == 5 else draw.uniform(0.0, took_s)
            ended, said, _ = server.run(args, tmp_path, kill_after_s=limit_s)
            if ended == KILLED:
                kills += 1
            else:
                assert ended == 0, said
            check_whole(tmp_path / "run")
            if ended == 0:
                break
            began = (tmp_path / "run" / directory.CONFIG).exists()
            if not began:
                shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert (tmp_path / "run" / directory.PLACEMENT).read_bytes() == wanted


@pytest.mark.slow
def test_a_comparison_goes_on_from_its_file(server: ForkServer, tmp_path: Path) -> None:
    save_graph_file(random_graph(40, seed=1), tmp_path / "g.graph.json")
    placers = "single_device,heft,etf,random,contiguous,local_search"
    args = ["compare", "g.graph.json", "--cluster", "k80x2", "--placers", placers, "--time-limit-s", "0.5"]
    args += ["--json", "rows.json", "--csv", "rows.csv"]
    ended, said, took_s = server.run(args, tmp_path)
    assert ended == 0, said
    whole = {row["placer"]: row["step_time_s"] for row in json.loads((tmp_path / "rows.json").read_bytes())["rows"]}
    draw, kills = random.Random(1), 0
    while kills < KILLS:
        for name in ("rows.json", "rows.csv"):
            (tmp_path / name).unlink(missing_ok=True)
        before: list[object] = []
        for attempt in range(5):
            limit_s = None if attempt == 4 else draw.uniform(0.0, took_s)
            ended, said, _ = server.run(args, tmp_path, kill_after_s=limit_s)
            kills += ended == KILLED
            assert ended in (0, KILLED), said
            if (tmp_path / "rows.json").exists():
                rows = json.loads((tmp_path / "rows.json").read_bytes())["rows"]
                assert [row for row in rows if row in before] == before  # finished rows stay
                before = rows
            if ended == 0:
                break
        now = {row["placer"]: row["step_time_s"] for row in before}  # type: ignore[index]
        assert now.keys() == whole.keys()
        for name in ("local_search", "contiguous"):  # these search as long as they may
            assert now.pop(name) > 0
        assert now.items() <= whole.items()


@pytest.mark.slow
def test_an_import_leaves_its_file_whole_or_not_at_all(server: ForkServer, tmp_path: Path) -> None:
    source = "rnnlm:hidden=16,steps=3,vocabulary=20,batch=4"
    out = tmp_path / "out.graph.json.gz"
    args = ["import", source, "--out", out.name]
    ended, said, took_s = server.run(args, tmp_path)
    assert ended == 0, said
    wanted, draw, kills = out.read_bytes(), random.Random(2), 0
    for number in range(10 * KILLS):
        if kills == KILLS:
            break
        old = number % 2 == 1  # an older file stands in its place
        if old:
            save_graph_file(random_graph(5), out)
        else:
            out.unlink(missing_ok=True)
        stood = out.read_bytes() if old else None
        ended, said, _ = server.run(args, tmp_path, kill_after_s=draw.uniform(0.0, took_s))
        kills += ended == KILLED
        assert ended in (0, KILLED), said
        found = out.read_bytes() if out.exists() else None
        assert found in ((wanted,) if ended == 0 else (wanted, stood))


@two_cores
@pytest.mark.slow
def test_a_profile_leaves_its_files_whole_or_not_at_all(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "killed_model.py").write_text(MODEL)
    args = ["profile", "python:killed_model:make", "--devices", DEVICES, "--out", "out.graph.json"]
    args += ["--placements", "2", "--steps", "2"]
    ended, said, took_s = server.run(args, tmp_path)
    assert ended == 0, said
    draw, kills = random.Random(3), 0
    for _ in range(10 * KILLS):
        if kills == KILLS:
            break
        for path in tmp_path.glob("out*"):
            path.unlink()
        ended, said, _ = server.run(args, tmp_path, kill_after_s=draw.uniform(0.0, took_s))
        kills += ended == KILLED
        assert ended in (0, KILLED), said
        check_whole(tmp_path)
    ended, said, _ = server.run(args, tmp_path)
    assert ended == 0, said


@two_cores
@pytest.mark.slow
def test_measured_training_keeps_what_it_measured_and_goes_on(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "killed_model.py").write_text(MODEL)
    start = ["train", "python:killed_model:make", "--measured", "--devices", DEVICES, "--time-limit-s", "6"]
    start += ["--out", "run"]
    draw, kills, kept = random.Random(4), 0, 0
    while kills < KILLS:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        before: list[str] = []
        for attempt in range(5):
            resume = (tmp_path / "run" / directory.CONFIG).exists()
            if not resume:
                shutil.rmtree(tmp_path / "run", ignore_errors=True)
            args = ["train", "--resume", "run", "--time-limit-s", "6"] if resume else start
            ended, said, _ = server.run(args, tmp_path, kill_after_s=None if attempt == 4 else draw.uniform(0.0, 20.0))
            kills += ended == KILLED
            assert ended in (0, KILLED), said
            check_whole(tmp_path / "run")
            log = tmp_path / "run" / directory.MEASUREMENTS
            lines = log.read_text().splitlines(keepends=True) if log.exists() else []
            whole = [line for line in lines if line.endswith("\n")]
            assert len(lines) - len(whole) <= 1
            assert whole[: len(before)] == before  # nothing that was measured is lost
            assert all(json.loads(line)["placement"] for line in whole)
            before = whole
            kept = max(kept, len(whole))
            if ended == 0:
                break
    assert kept > 3
