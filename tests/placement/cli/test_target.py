"""`--target accelerate`: searched, written, resumed, exported and simulated as whole modules that run in turn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import placement
from graphs.capture import capture
from graphs.errors import InputError
from graphs.files import save_graph_file
from placement.cli.main import main
from placement.move_search.plan import goes_by_types, make_plan
from placement.placers.base import Budget, SearchOptions
from placement.placers.searching.starts import StartedSearch
from placement.results.placement_file import read_placement


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a graph file."""
    monkeypatch.chdir(tmp_path)
    layers = [nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)) for _ in range(4)]
    save_graph_file(capture(nn.Sequential(*layers), torch.zeros(8, 64), training=False), "m.graph.json")
    return tmp_path


@pytest.fixture
def run_dir(here: Path) -> Path:
    """A run for Accelerate on the graph file."""
    run = ["--cluster", "k80x2:memory_bytes=400000", "--target", "accelerate", "--updates", "2", "--out", "run"]
    assert main(["train", "m.graph.json", *run]) == 0
    return Path("run")


def test_a_run_leaves_the_map_that_it_searched(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = read_placement(run_dir / "placement.json")
    assert result.schedule == "sequential"
    devices = json.loads((run_dir / "device_map.json").read_text())
    assert set(devices.values()) == {0, 1}
    for op, device in result.ops.items():
        keys = [key for key in devices if op.startswith(f"{key}.")]
        assert not keys or device == f"gpu:{devices[keys[0]]}"
    capsys.readouterr()
    assert main(["export", "run", "--format", "device-map", "--out", "map.json"]) == 0
    assert "(+0.0%)" in capsys.readouterr().out
    assert json.loads(Path("map.json").read_text()) == devices
    assert main(["simulate", "--placement", "run/placement.json"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "schedule sequential, target accelerate" in said, said
    assert main(["train", "--resume", "run", "--updates", "3"]) == 0
    assert json.loads((run_dir / "config.json").read_text())["schedule"] == "sequential"


def test_searches_keep_whole_modules_together_whatever_they_are_asked_to_move(here: Path) -> None:
    problem = placement.make_problem("m.graph.json", "k80x2", target="accelerate")
    for placer in ("annealing", "local_search", "reinforce", "etf"):
        found = placement.simulate(problem, placer, time_limit_s=0.5, granularity="op")
        for group in range(problem.num_groups):
            assert len(set(found.op_placement[problem.groups.group_of_op == group])) == 1


def test_no_search_plans_to_move_less_than_a_group(here: Path) -> None:
    for target, finer in (("engine", True), ("accelerate", False)):
        problem = placement.make_problem("nmt:layers=2,steps=8", "k80x4", target=target)
        plan = make_plan(problem, finest="ops", evaluations=1e9)
        stages = {cycle.stage for cycles in plan.rounds for cycle in cycles}
        assert bool(stages & {"twofold", "sixfold", "ops"}) == finer
        assert goes_by_types(problem, finest="ops", evaluations=1e9) <= finer
        given = (problem, Budget(evaluations=20), np.random.default_rng(0), SearchOptions("op", "heuristics"))
        moved = StartedSearch(*given, [(8, 0.5)]).search.problem.groups
        assert (moved.num_groups > problem.num_groups) == finer


def test_devices_that_a_map_cannot_name_are_refused_before_the_search(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["train", "m.graph.json", "--cluster", "tpu_v2x4", "--target", "accelerate", "--out", "other"]
    assert main(args) == 2
    said = capsys.readouterr()
    assert "has no name in a device map" in said.err
    assert "heft" not in said.err
    assert not Path("other").exists()


def test_a_schedule_of_another_target_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="does not run a step under the schedule 'fifo'"):
        placement.make_problem("m.graph.json", "k80x2", target="accelerate", schedule="fifo")
    with pytest.raises(InputError, match="unknown target"):
        placement.make_problem("m.graph.json", "k80x2", target="acelerate")
    args = ["compare", "m.graph.json", "--cluster", "k80x2", "--target", "accelerate", "--schedule", "fifo"]
    assert main(args) == 2
    assert "leave one of the two out" in capsys.readouterr().err
