"""The verbs as Python functions: what the package exports, and the whole job in a few lines."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import placement
from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.files import load_graph_file, save_graph_file
from graphs.synthetic import random_graph
from placement.cli.verbs import VERBS
from placement.learning.stats import UpdateStats
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, SearchOptions
from placement.registry import get_placer
from placement.results.placement_file import encode_placement
from placement.runs.observer import RunObserver, TrainingPlan
from tests import forked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def problem() -> PlacementProblem:
    return placement.make_problem(random_graph(12, seed=1, name="small"), load_cluster("k80x2"), groups=8)


def test_the_whole_job(problem: PlacementProblem, tmp_path: Path) -> None:
    updates = []
    run = placement.train(
        problem, updates=3, seed=4, out=tmp_path / "run", on_update=lambda stats: updates.append(stats.update)
    )
    assert updates == [1, 2, 3]
    assert (run.updates, run.interrupted, run.run_dir) == (3, False, tmp_path / "run")
    assert run.comparison.rows[-1].placer == "reinforce"
    assert run.comparison.rows[-1].step_time_s == run.result.step_time_s
    assert run.result == placement.read_placement(tmp_path / "run" / "placement.json")
    ops = placement.check_placement(run.result, problem.graph, problem.cluster)
    assert problem.evaluate_ops(ops[None]).step_time_s[0] == run.result.step_time_s
    for given in (run.result, tmp_path / "run" / "placement.json"):
        simulated = placement.simulate(problem, given)
        assert simulated.step_time_s == run.result.step_time_s == simulated.trace.step_time_s
        assert simulated.feasible


def test_without_a_directory_no_file_is_written_and_the_placement_is_the_same(
    problem: PlacementProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = placement.train(problem, updates=2, seed=4)
    assert list(tmp_path.iterdir()) == []
    assert alone.run_dir is None
    written = placement.train(problem, updates=2, seed=4, out="run")
    assert encode_placement(alone.result) == encode_placement(written.result)


def test_the_learner_starts_from_the_placers_that_ran_before_it_and_the_limit_includes_them(
    problem: PlacementProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    round_robin = get_placer("round_robin").function

    def slow(
        problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
    ) -> Placed:
        asked.append(budget.time_limit_s)
        time.sleep(0.5)
        return replace(round_robin(problem, budget=budget, rng=rng), search_s=0.5, evaluations=1000)

    monkeypatch.setattr("placement.placers.round_robin.place", slow)
    for name in ("compile_heuristics", "compile_search"):  # they ask the placers, too
        monkeypatch.setattr(f"placement.runs.compile_ahead.{name}", lambda schedule: None)
    run = placement.train(problem, updates=1)
    assert asked == [None]  # once, and with no limit that could change its answer
    assert run.training_s >= 0.5
    others = run.comparison.rows[:-1]
    assert run.evaluations > sum(row.evaluations for row in others) > 1000
    assert run.result.step_time_s <= min(row.step_time_s for row in others if row.feasible and row.step_time_s)
    run = placement.train(problem, time_limit_s=0.4)  # shorter than what comes before the first update
    assert all(given is not None and 0 < given <= 0.04 for given in asked[1:])  # left out where it is not reached
    assert run.updates == 1


def test_a_run_goes_on_where_it_stopped(problem: PlacementProblem, tmp_path: Path) -> None:
    placement.train(problem, updates=2, out=tmp_path / "parts")
    parts = placement.train(problem, updates=4, out=tmp_path / "parts", resume=True)
    whole = placement.train(problem, updates=4)
    assert encode_placement(parts.result) == encode_placement(whole.result)
    with pytest.raises(InputError, match="holds a run already"):
        placement.train(problem, updates=4, out=tmp_path / "parts")
    with pytest.raises(InputError, match="resume needs the run's directory"):
        placement.train(problem, updates=4, resume=True)


def test_two_processes_cannot_work_on_one_run(problem: PlacementProblem, tmp_path: Path) -> None:
    run = tmp_path / "run"
    placement.train(problem, updates=1, out=run)
    code = (
        "import sys, time; from pathlib import Path; from placement.runs.directory import hold\n"
        "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = forked.Popen([sys.executable, "-c", code, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=r"another process works on the run in '.*run'; wait for it or stop it"):
            placement.train(problem, updates=2, out=run, resume=True)
    finally:
        other.kill()  # which frees the run: nothing has to be cleared away by hand
        other.wait()
        other.communicate()
    (run / ".checkpoint.pt.123.tmp").write_bytes(b"half of a checkpoint that was being written")
    assert placement.train(problem, updates=2, out=run, resume=True).updates == 2
    assert not list(run.glob(".*.tmp"))


def test_strings_mean_what_they_mean_on_the_command_line(tmp_path: Path) -> None:
    graph = random_graph(12, seed=1, name="small")
    save_graph_file(graph, tmp_path / "g.graph.json")
    problem = placement.make_problem(str(tmp_path / "g.graph.json"), "k80x2:link_bytes_per_s=1e9", schedule="fifo")
    assert problem.graph.sha256 == graph.sha256
    assert problem.cluster.links[0].bytes_per_s == 1e9
    assert problem.schedule == "fifo"
    with pytest.raises(InputError, match="unknown schedule 'lifo'"):
        placement.make_problem(graph, "k80x2", schedule="lifo")
    with pytest.raises(InputError, match=r"unknown preset 'papr' .did you mean 'paper'"):
        placement.train(problem, updates=1, preset="papr", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_compare_needs_a_limit_for_placers_that_search(problem: PlacementProblem) -> None:
    with pytest.raises(InputError, match="placer 'reinforce' searches until it is stopped"):
        placement.compare(problem, ["reinforce"], time_limit_s=None)
    comparison = placement.compare(problem, ["reinforce", "heft"], time_limit_s=None, evaluations=100)
    assert [row.placer for row in comparison.rows] == ["reinforce", "heft"]
    assert 0 < comparison.rows[0].evaluations <= 100


def test_simulating_a_placer_is_simulating_its_placement(problem: PlacementProblem) -> None:
    simulated = placement.simulate(problem, "round_robin")
    row = placement.compare(problem, ["round_robin"]).rows[0]
    assert simulated.step_time_s == row.step_time_s
    assert row.peak_memory_bytes is not None
    assert np.array_equal(simulated.trace.peak_memory_bytes, row.peak_memory_bytes)


def test_importing_the_package_and_making_a_problem_loads_no_torch() -> None:
    code = (
        "import sys, placement, placement.results.comparison; from graphs.synthetic import random_graph; "
        "problem = placement.make_problem(random_graph(5), 'k80x2'); "
        "rows = placement.compare(problem, ['heft']).rows; "
        "assert callable(placement.compare) and len(rows) == 1 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
    assert set(placement.__all__) <= set(dir(placement))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = placement.nonsense


def test_a_graph_is_imported_and_a_placement_exported_as_by_the_command(
    problem: PlacementProblem, tmp_path: Path
) -> None:
    save_graph_file(problem.graph, tmp_path / "g.graph.json")
    graph = placement.import_graph(str(tmp_path / "g.graph.json"), tmp_path / "h.graph.json.gz")
    assert graph.sha256 == problem.graph.sha256 == load_graph_file(tmp_path / "h.graph.json.gz").sha256
    with pytest.raises(InputError, match=r"must end in \.graph\.json"):
        placement.import_graph("nmt", tmp_path / "h.json")
    run = placement.train(problem, updates=1, out=tmp_path / "run")
    exported = placement.export(tmp_path / "run", tmp_path / "ops.json")
    assert exported.simulated.step_time_s == run.result.step_time_s
    assert exported.device_map is None
    files: dict[str, Any] = {"graph": graph, "cluster": problem.cluster}
    placement.export(tmp_path / "run" / "placement.json", tmp_path / "same.json", **files)
    ops = [json.loads((tmp_path / name).read_text())["ops"] for name in ("ops.json", "same.json")]
    assert [row["device"] for row in ops[0]] == [row["device"] for row in ops[1]]
    with pytest.raises(InputError, match="leave out GRAPH and --cluster"):
        placement.export(tmp_path / "run", tmp_path / "x.json", **files)
    placement.write_placement(tmp_path / "alone.json", run.result)
    with pytest.raises(InputError, match="needs its GRAPH"):
        placement.export(tmp_path / "alone.json", tmp_path / "x.json")
    assert placement.load_problem(tmp_path / "run").graph.sha256 == graph.sha256


def test_every_verb_of_the_command_is_a_function() -> None:
    for verb in VERBS:
        name = {"import": "import_graph"}.get(verb, verb.replace("-", "_"))
        assert verb == "list" or callable(getattr(placement, name))


def test_an_observer_is_told_all_of_a_run(problem: PlacementProblem) -> None:
    told: list[str] = []

    class Told(RunObserver):
        def on_problem(self, problem: PlacementProblem) -> None:
            told.append("problem")

        def on_start(self, placer: str) -> None:
            told.append(placer)

        def on_update(self, stats: UpdateStats) -> None:
            told.append(f"update {stats.update}")

        @contextlib.contextmanager
        def training(self, plan: TrainingPlan) -> Iterator[None]:
            told.append(f"to {plan.updates}")
            yield
            told.append("trained")

    placement.train(problem, updates=2, observer=Told())
    assert (told[0], told[-4:]) == ("problem", ["to 2", "update 1", "update 2", "trained"])
    assert {"heft", "round_robin"} <= set(told)
    with pytest.raises(InputError, match="not both"):
        placement.train(problem, updates=2, observer=Told(), on_update=lambda stats: None)
