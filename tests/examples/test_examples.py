"""Each example as a person runs it, with settings that make it quick; the examples that learn must have learned."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import placement
from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from tests.placement.placer_problems import training_problem

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

Run = Callable[..., str]

GPUS = ("gpu:0", "gpu:1")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs an example in an empty directory, and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, *args: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *args])
        with torch.random.fork_rng():
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def milliseconds(text: str) -> list[float]:
    return [float(figure) for figure in re.findall(r"([\d.]+) ms", text)]


def test_a_model_of_ones_own_is_captured_learned_and_saved(run: Run, tmp_path: Path) -> None:
    said = run("my_model.py", "--updates", "2", "--out", "run")
    step_ms, one_device_ms = milliseconds(said)
    assert 0 < step_ms <= one_device_ms  # the learner starts from the heuristics, single devices among them
    result = placement.read_placement(tmp_path / "run" / "placement.json")
    assert result.step_time_s * 1e3 == pytest.approx(step_ms, abs=0.006)
    assert result.graph.name == "towers"


def test_a_cluster_of_ones_own_is_compared_with_a_faster_one(run: Run) -> None:
    save_graph_file(random_graph(30, seed=3, name="small"), "g.graph.json")
    said = run("my_cluster.py", "--graph", "g.graph.json", "--seconds", "0.2")
    assert "gpu:2: t4, 8 GB" in said
    assert len(milliseconds(said)) == 2
    assert "my-workstation with faster links: " in said


def test_a_placer_of_ones_own_stands_in_the_comparison(run: Run) -> None:
    save_graph_file(random_graph(30, seed=3, name="small"), "g.graph.json")
    said = run("my_placer.py", "--graph", "g.graph.json", "--cluster", "k80x2")
    rows = {line.split()[0]: milliseconds(line) for line in said.splitlines()}
    assert set(rows) == {"least_loaded", "round_robin", "heft", *(f"single_device:{d}" for d in ("cpu:0", *GPUS))}
    assert rows["least_loaded"] < rows["single_device:cpu:0"]  # of 256 orders one is better than that
    assert "256 evaluated" in next(line for line in said.splitlines() if line.startswith("least_loaded"))


def test_the_placer_is_the_one_that_the_documentation_shows() -> None:
    source = (EXAMPLES / "my_placer.py").read_text()
    place = "def place(" + source.partition("def place(")[2].partition("\n\n\n")[0]
    assert len(place.splitlines()) > 10
    assert place in (EXAMPLES.parent / "docs" / "concepts" / "architecture.md").read_text()


def test_a_placement_is_run_and_trains_the_model(run: Run, tmp_path: Path) -> None:
    said = run("run_placement.py", "--steps", "5", "--out", "p.json")
    first, last, after = (float(loss) for loss in re.findall(r"loss ([\d.]+)", said))
    assert first > last > after  # the model's own weights have moved
    assert placement.read_placement(tmp_path / "p.json").cluster.devices == ("cpu:0", "cpu:1")


@pytest.mark.slow
def test_agents_of_stable_baselines3_learn(run: Run) -> None:
    save_graph_file(training_problem(8, 2, seed=3).graph, "g.graph.json")
    said = run("learn_with_sb3.py", "--graph", "g.graph.json", "--cluster", "k80x2", "--steps", "2048")
    learned = {line.partition(":")[0]: milliseconds(line) for line in said.splitlines()}
    assert list(learned) == ["PPO", "MaskablePPO"]
    for first_ms, last_ms, best_ms in learned.values():
        assert best_ms <= last_ms < 0.7 * first_ms
    assert learned["MaskablePPO"][0] < learned["PPO"][0]  # it never puts the input where it may not be


def test_an_agent_with_guidance_learns_and_its_curve_is_kept(run: Run, tmp_path: Path) -> None:
    save_graph_file(training_problem(8, 2, seed=3).graph, "g.graph.json")
    asked = ("--graph", "g.graph.json", "--cluster", "k80x2", "--groups", "8", "--steps", "4096", "--seconds", "1e6")
    said = run("learn_with_guidance.py", *asked, "--json", "row.json")
    mean_ms, likeliest_ms, heuristic_ms = milliseconds(said)
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["heuristic_s"] * 1e3 == pytest.approx(heuristic_ms, abs=0.006)
    assert row["mean_s"] * 1e3 == pytest.approx(mean_ms, abs=0.006)
    assert [point[1] for point in row["curve"]] == [2048, 4096]
    first_ms, last_ms = row["curve"][0][2] * 1e3, row["curve"][-1][2] * 1e3
    assert mean_ms < last_ms < 0.95 * first_ms
    assert mean_ms < 0.8 * first_ms
    assert likeliest_ms < last_ms


def test_there_is_a_test_of_every_example() -> None:
    text = Path(__file__).read_text()
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert len(names) == 6
    assert [name for name in names if f'run("{name}"' not in text] == []
