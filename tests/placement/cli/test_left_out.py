"""Placers that are not on offer for a problem share one quiet line; those that fail on it say why at length."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from envs.problem import PlacementProblem
from graphs.errors import InputError, NotServedError
from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from placement.cli.main import main
from placement.placers import PlacerInfo
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, SearchOptions
from placement.registry import PLACERS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_graph_file(random_graph(12, seed=1, name="small"), "g.graph.json")
    return tmp_path


def test_a_comparison_names_them_in_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("placement.placers.scotch.PROGRAM", "no-such-program")
    monkeypatch.setattr("placement.placers.exact.MOST_CHOICES", 5)
    monkeypatch.setattr("placement.placers.brute_force.MOST_PLACEMENTS", 7)
    placers = "expert,scotch,exact,brute_force,round_robin"
    args = ["compare", "g.graph.json", "--cluster", "k80x2", "--placers", placers, "--json", "c.json"]
    assert main(args) == 0
    said = capsys.readouterr()
    assert (
        "left out: expert (no rule for this graph), scotch (not installed: apt-get install scotch), "
        "exact (serves at most 5 pairs of an op and a device), brute_force (tries at most 7 placements)"
    ) in said.out
    assert "round_robin" in said.err
    for name in ("expert", "scotch", "exact", "brute_force"):
        assert sum(name in line for line in (said.out + said.err).splitlines()) == 1
    rows = {row["placer"]: row for row in json.loads(Path("c.json").read_text())["rows"]}
    assert rows["expert"]["note"].startswith("placer 'expert' knows no rule for graph 'small'")  # at length in the file
    assert main(args) == 0  # and rows of a file are as they were
    assert "left out: expert" in capsys.readouterr().out


def test_a_training_says_no_more_of_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "g.graph.json", "--cluster", "k80x2", "--updates", "1", "--out", "run"]) == 0
    said = capsys.readouterr()
    assert "left out: expert (no rule for this graph)" in said.out
    assert (said.out + said.err).count("expert") == 1


def test_who_asks_for_such_a_placer_alone_is_told_at_length(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "g.graph.json", "--cluster", "k80x2", "--placers", "expert"]) == 2
    assert "placer 'expert' knows no rule for graph 'small'; it has rules for: bert" in capsys.readouterr().err


def test_a_placer_that_fails_is_no_placer_that_is_left_out(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(
        problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
    ) -> Placed:
        raise InputError("placer 'fail': the partitioner refused the graph")

    def decline(
        problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
    ) -> Placed:
        raise NotServedError("placer 'decline' serves chains alone", reason="no chain")

    own = ModuleType("own_placers")
    vars(own).update(fail=fail, decline=decline)
    monkeypatch.setitem(sys.modules, "own_placers", own)
    for name in ("fail", "decline"):
        monkeypatch.setitem(PLACERS, name, PlacerInfo(name, f"own_placers:{name}", "one's own"))
    assert main(["compare", "g.graph.json", "--cluster", "k80x2", "--placers", "fail,decline,heft"]) == 0
    said = capsys.readouterr()
    assert "fail: placer 'fail': the partitioner refused the graph" in said.out
    assert "left out: decline (no chain)" in said.out
