"""A comparison's file: it round-trips, a killed comparison goes on from it, and another's is refused."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import placement
from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.errors import InputError
from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from placement.cli.comparison_plot import comparison_png
from placement.cli.main import main
from placement.placers.base import Budget, SearchOptions
from placement.registry import get_placer
from placement.results.comparison import Comparison, compare_placers
from placement.results.comparison_file import encode_comparison, read_finished, read_record, rows_of
from tests import forked


@pytest.fixture
def problem() -> PlacementProblem:
    graph = random_graph(12, seed=1, name="small")
    return PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    save_graph_file(random_graph(12, seed=1, name="small"), "g.graph.json")
    return tmp_path


def test_rows_come_back_as_they_were_written(problem: PlacementProblem, tmp_path: Path) -> None:
    comparison = compare_placers(
        problem, [get_placer(name) for name in ["single_device", "heft", "expert"]], budget=Budget(2.0), seed=5
    )
    path = tmp_path / "c.json"
    path.write_bytes(encode_comparison(comparison))
    record = read_record(path)
    assert (record.seed, record.time_limit_s, record.lower_bound_s) == (5, 2.0, comparison.lower_bound_s)
    again = Comparison(problem, 5, record.lower_bound_s, rows_of(record, problem), comparison.budget)
    assert encode_comparison(again) == path.read_bytes()
    for before, after in zip(comparison.rows, again.rows, strict=True):
        assert before.placer == after.placer
        assert np.array_equal(before.busy_share, after.busy_share)  # type: ignore[arg-type]
        assert np.array_equal(before.peak_memory_bytes, after.peak_memory_bytes)  # type: ignore[arg-type]
    assert [row.placer for row in again.ranked()] == [row.placer for row in comparison.ranked()]
    assert comparison_png(again) == comparison_png(comparison)


def test_finished_rows_are_taken_over_and_refusals_are_asked_again(problem: PlacementProblem, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    budget: dict[str, Any] = {"time_limit_s": None, "evaluations": 200}
    first = placement.compare(problem, ["single_device", "annealing", "expert"], json=path, seed=1, **budget)
    ran: list[str] = []
    seen: list[int] = []
    second = placement.compare(
        problem,
        ["single_device", "annealing", "expert", "heft"],
        json=path,
        seed=1,
        on_start=ran.append,
        on_row=lambda comparison: seen.append(len(comparison.rows)),
        **budget,
    )
    assert ran == ["expert", "heft"]  # the first has had no placement
    assert seen == [4, 5, 6]
    rows = {row.placer: row for row in second.rows}
    assert rows["annealing"].search_s == next(row for row in first.rows if row.placer == "annealing").search_s
    assert rows["expert"].step_time_s is None
    assert {row.placer for row in read_record(path).rows} == set(rows)
    ran.clear()
    placement.compare(problem, ["annealing"], json=path, seed=1, restart=True, on_start=ran.append, **budget)
    assert ran == ["annealing"]
    assert [row.placer for row in read_record(path).rows] == ["annealing"]


def test_a_file_of_other_settings_is_refused(problem: PlacementProblem, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    placement.compare(problem, ["heft"], json=path, time_limit_s=2.0)

    def refusal(given: PlacementProblem, *, seed: int = 0, time_limit_s: float = 2.0) -> str:
        with pytest.raises(InputError, match=r"; start anew with --restart, or give another file") as caught:
            read_finished(path, given, seed=seed, budget=Budget(time_limit_s))
        return str(caught.value)

    assert "holds a comparison with other settings: seed was 0 and is 1 now" in refusal(problem, seed=1)
    assert "time_limit_s was 2.0 and is 3.0 now" in refusal(problem, time_limit_s=3.0)
    assert "schedule was priority and is fifo now" in refusal(problem.with_schedule("fifo"))
    with pytest.raises(InputError, match="granularity was group and is op now"):
        read_finished(path, problem, seed=0, budget=Budget(2.0), options=SearchOptions(granularity="op"))
    other = random_graph(12, seed=2, name="small")
    assert "graph 'small' was another then" in refusal(PlacementProblem(other, one_group_an_op(other), problem.cluster))
    cluster = load_cluster("k80x4")
    assert "cluster was k80x2 and is k80x4 now" in refusal(PlacementProblem(problem.graph, problem.groups, cluster))
    content = json.loads(path.read_text())
    content["rows"][0]["busy_share"] = {"gpu:7": 1.0}
    path.write_text(json.dumps(content))
    assert "contradicts itself: the row of 'heft' does not name the devices" in refusal(problem)
    path.write_text(path.read_text()[:50])
    assert "is not a comparison" in refusal(problem)


@pytest.mark.parametrize("kept", [(), ("cpu:0",), ("cpu:0", "gpu:0"), ("cpu:0", "gpu:0", "gpu:1")])
def test_rows_of_single_devices_are_kept_where_some_are_missing(
    problem: PlacementProblem, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    path = tmp_path / "c.json"
    budget: dict[str, Any] = {"time_limit_s": None, "evaluations": 200}
    placement.compare(problem, ["single_device", "heft"], json=path, **budget)
    content = json.loads(path.read_text())
    content["rows"] = [row for row in content["rows"] if row["placer"].removeprefix("single_device:") in kept]
    path.write_text(json.dumps(content))
    before = {row.placer: row for row in read_record(path).rows}
    ran: list[str] = []
    after = placement.compare(problem, ["single_device", "heft"], json=path, on_start=ran.append, **budget)
    assert ran == (["heft"] if len(kept) == 3 else ["single_device", "heft"])
    names = [row.placer for row in after.rows]
    assert sorted(names) == ["heft", "single_device:cpu:0", "single_device:gpu:0", "single_device:gpu:1"]
    assert {row.placer: row for row in read_record(path).rows}.items() >= before.items()


def test_a_killed_comparison_loses_no_finished_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["compare", "g.graph.json", "--cluster", "k80x2", "--json", "c.json", "--time-limit-s"]
    placers = ["--placers", "single_device,heft,annealing"]
    process = forked.Popen(
        [sys.executable, "-m", "placement.cli", *args, "600", *placers],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.perf_counter() + 600  # a busy machine that has to compile
        while process.poll() is None and time.perf_counter() < deadline:
            if Path("c.json").exists() and any(row.placer == "heft" for row in read_record(Path("c.json")).rows):
                break  # which is read while it is being written: it is whole all the same
            time.sleep(0.005)
    finally:
        process.kill()  # in the middle of the annealing
        process.wait()
    before = {row.placer: row for row in read_record(Path("c.json")).rows}
    assert "heft" in before
    assert "annealing" not in before
    assert main([*args, "600", "--placers", "single_device,heft"]) == 0
    said = capsys.readouterr()
    assert "finished rows taken from c.json: 4; --restart runs them again" in said.err
    assert {row.placer: row for row in read_record(Path("c.json")).rows}["heft"] == before["heft"]
    assert main([*args, "5", "--placers", "heft"]) == 2
    assert "time_limit_s was 600.0 and is 5.0 now" in capsys.readouterr().err
    assert main([*args, "5", "--placers", "heft", "--restart"]) == 0
    assert [row.placer for row in read_record(Path("c.json")).rows] == ["heft"]


def test_a_resumed_training_takes_the_other_rows_from_its_directory(here: Path) -> None:
    problem = placement.make_problem("g.graph.json", "k80x2")
    first = placement.train(problem, updates=1, out="run")
    second = placement.train(problem, updates=2, out="run", resume=True)
    seconds = {row.placer: row.search_s for row in first.comparison.rows}
    learned = second.comparison.rows[-1]
    assert learned.placer == "reinforce"
    assert [row.search_s for row in second.comparison.rows if row.placer == "contiguous"] == [seconds["contiguous"]]
    assert sum(row.placer == "reinforce" for row in second.comparison.rows) == 1
    Path("run/comparison.json").write_text("{")
    with pytest.raises(InputError, match=r"comparison.json' is not a comparison .*; delete it"):
        placement.train(problem, updates=3, out="run", resume=True)


def test_the_command_searches_over_single_ops_from_scratch(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["g.graph.json", "--cluster", "k80x2", "--time-limit-s", "0.2", "--granularity", "op", "--start", "scratch"]
    assert main(["compare", *args, "--groups", "3", "--placers", "annealing,heft", "--json", "c.json"]) == 0
    record = read_record(Path("c.json"))
    assert (record.granularity, record.start) == ("op", "scratch")
    notes = {row.placer: row.note for row in record.rows}
    assert notes["annealing"].startswith("over single ops, from a random placement")
    assert main(["simulate", *args, "--groups", "3", "--placement", "local_search"]) == 0
    assert "over single ops, from a random placement" in " ".join(capsys.readouterr().out.split())
