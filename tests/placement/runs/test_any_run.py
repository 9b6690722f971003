"""Whoever made a run, and of whatever: the command goes on with it, exports it, and simulates its placement."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import placement
from envs.problem import PlacementProblem
from graphs.capture import capture
from graphs.errors import InputError
from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from placement.cli.main import main
from placement.runs import directory
from tests.placement.runs.nameless import of_a_networkx_graph, with_groups_of_its_own

Make = Callable[[], PlacementProblem]


def of_a_graph_file() -> PlacementProblem:
    save_graph_file(random_graph(14, seed=2, name="filed"), "g.graph.json")
    return placement.make_problem("g.graph.json", "k80x2:memory_bytes=8e9", groups=9, schedule="fifo")


def of_a_zoo_name() -> PlacementProblem:
    return placement.make_problem("rnnlm:layers=1,hidden=16,steps=2,batch=2,vocabulary=20", "k80x2", groups=6)


def of_a_module() -> PlacementProblem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return placement.make_problem(capture(model, torch.ones(3, 4), torch.sum, optimizer="sgd"), "k80x2", groups=3)


MADE = [of_a_graph_file, of_a_zoo_name, of_a_module, of_a_networkx_graph, with_groups_of_its_own]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("make", MADE)
def test_a_run_made_through_python_is_resumed_exported_and_simulated_by_the_command(
    make: Make, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = make()
    placement.train(problem, updates=2, seed=3, out="run")
    whole = placement.train(problem, updates=4, seed=3)
    assert main(["train", "--resume", "run", "--updates", "4"]) == 0
    assert "2 updates are done: going on" in capsys.readouterr().err
    assert placement.read_placement("run/placement.json") == whole.result

    assert main(["export", "run", "--out", "ops.json"]) == 0
    exported = json.loads(Path("ops.json").read_text())
    assert {row["op"]: row["device"] for row in exported["ops"]} == whole.result.ops
    groups = dict(zip(problem.graph.op_names, problem.groups.group_of_op, strict=True))
    assert {row["op"]: problem.groups.names.index(row["group"]) for row in exported["ops"]} == groups
    assert main(["simulate", "--placement", "run/placement.json", "--json", "s.json"]) == 0
    simulated = json.loads(Path("s.json").read_text())
    assert simulated["schedule"] == problem.schedule
    assert simulated["step_time_s"] == exported["step_time_s"] == whole.result.step_time_s


def test_the_directory_keeps_what_no_name_says_and_nothing_else(here: Path) -> None:
    kept = {"config.json", "graph.graph.json.gz", "cluster.yaml", "groups.json"}
    for number, (make, expected) in enumerate(
        zip(
            MADE,
            [
                {"config.json"},
                {"config.json"},
                {"config.json", "graph.graph.json.gz"},
                {"config.json", "graph.graph.json.gz", "cluster.yaml"},
                kept,
            ],
            strict=True,
        )
    ):
        run_dir = here / str(number)
        problem = make()
        config = directory.create(run_dir, problem, preset="default", seed=0, updates=1)
        assert {path.name for path in run_dir.iterdir()} & kept == expected
        assert directory.read_config(run_dir) == config
        again = placement.load_problem(run_dir)
        assert (again.graph.sha256, again.cluster.sha256) == (problem.graph.sha256, problem.cluster.sha256)
        assert (again.groups.names, again.schedule) == (problem.groups.names, problem.schedule)
        assert np.array_equal(again.groups.group_of_op, problem.groups.group_of_op)
        assert again.groups.family_names == problem.groups.family_names
    assert config.graph == "grouped"
    assert directory.read_config(here / "0").cluster == "k80x2:memory_bytes=8e9"


def test_the_graph_of_an_object_may_be_named_again_when_the_run_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = of_a_networkx_graph()
    placement.train(problem, updates=1, out="run")
    save_graph_file(problem.graph, "same.graph.json")
    save_graph_file(random_graph(5), "other.graph.json")
    assert main(["train", "same.graph.json", "--cluster", "k80x2", "--resume", "run", "--updates", "2"]) == 0
    for args in (["other.graph.json"], ["same.graph.json", "--cluster", "k80x4"]):
        assert main(["train", *args, "--resume", "run", "--updates", "3"]) == 2
        assert "cannot resume 'run' with " in capsys.readouterr().err


def test_a_run_whose_files_are_damaged_says_which(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = with_groups_of_its_own()
    placement.train(problem, updates=1, out="run")
    for name, damage in (
        ("groups.json", b"{}"),
        ("groups.json", b'{"group_of_op":[0],"names":["x"],"family":[0],"family_names":["x"],"step":[0]}'),
        ("cluster.yaml", b"name: x"),
        ("graph.graph.json.gz", b"\x1f\x8b"),
        ("config.json", b"{}"),
    ):
        path = Path("run") / name
        whole = path.read_bytes()
        for content in (damage, None):
            path.unlink() if content is None else path.write_bytes(content)
            for args in (["train", "--resume", "run"], ["export", "run", "--out", "x.json"]):
                assert main([*args]) == 2, (name, args)
                said = capsys.readouterr().err.splitlines()[-1]
                assert name in said or "the groups cover 1 ops" in said, (name, said)
        path.write_bytes(whole)
    with pytest.raises(InputError, match="graph 'grouped' changed since"):
        placement.train(of_a_networkx_graph(), updates=2, out="run", resume=True)


def test_a_damaged_checkpoint_is_told_of_before_anything_is_asked_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placement.train(with_groups_of_its_own(), updates=1, out="run")
    path = Path("run/checkpoint.pt")
    path.write_bytes(path.read_bytes()[:5000])
    capsys.readouterr()
    assert main(["train", "--resume", "run", "--updates", "2"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"placement: {path}: it is not a checkpoint, or it is damaged; start the run again"
    ]


def test_simulate_says_what_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    placement.train(with_groups_of_its_own(), updates=1, out="run")
    Path("alone.json").write_bytes(Path("run/placement.json").read_bytes())
    for args, message in (
        (["--placement", "alone.json"], "missing GRAPH; see: placement simulate --help"),
        (
            ["nmt", "--placement", "run/placement.json"],
            "missing --cluster; or leave out GRAPH, too: the run of run/placement.json knows both",
        ),
        (["--cluster", "k80x2", "--placement", "heft"], "missing GRAPH; see: placement simulate --help"),
    ):
        assert main(["simulate", *args]) == 2
        assert capsys.readouterr().err == f"placement: {message}\n"
