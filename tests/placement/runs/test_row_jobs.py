"""A comparison on workers has the rows of one that runs its placers one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import placement
from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.synthetic import random_graph
from placement.cli.main import main
from placement.placers import PlacerInfo
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, SearchOptions
from placement.results.comparison import Comparison
from placement.runs.problem_content import decode_problem, encode_problem
from placement.workers import open_workers
from tests.placement.runs.nameless import of_a_networkx_graph, with_groups_of_its_own

PLACERS = ["single_device", "heft", "annealing", "reinforce"]


def refuse(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    raise InputError("this placer places nothing; choose another")


REFUSES = PlacerInfo("refuses", f"{__name__}:refuse", "places nothing")


def shown(comparison: Comparison) -> list[tuple[object, ...]]:
    return [
        (row.placer, row.step_time_s, row.evaluations, row.note, None if row.placement is None else list(row.placement))
        for row in comparison.rows
    ]


@pytest.mark.parametrize("spec", ["2", pytest.param("ray:2", marks=pytest.mark.slow)])
def test_the_same_rows_in_the_same_order(spec: str) -> None:
    problem = placement.make_problem("rnnlm:layers=1,steps=3", "k80x2", groups=12)
    asked: list[str | PlacerInfo] = [*PLACERS, REFUSES]
    alone = placement.compare(problem, asked, time_limit_s=None, evaluations=60)
    seen: list[Comparison] = []
    with open_workers(spec) as workers:
        found = placement.compare(
            problem, asked, time_limit_s=None, evaluations=60, workers=workers, on_row=seen.append
        )
    assert shown(found) == shown(alone)
    assert len(found.rows) == len(seen) == len(PLACERS) + 3  # three rows of single devices, and the one that refuses
    assert found.rows[-1].note == "this placer places nothing; choose another"


def test_a_comparison_goes_on_from_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    args = ["compare", "rnnlm:layers=1,steps=3", "--cluster", "k80x2", "--workers", "2", "--json", str(path)]
    assert main([*args, "--placers", "heft,etf"]) == 0
    assert main([*args, "--placers", "etf,peft,heft"]) == 0
    assert [row["placer"] for row in json.loads(path.read_bytes())["rows"]] == ["heft", "etf", "peft"]
    assert "finished rows taken from" in capsys.readouterr().err
    assert main([*args, "--placers", "heft", "--workers", "none"]) == 2
    said = capsys.readouterr()
    assert "workers 'none' is none of: a number of processes" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    "make",
    [
        lambda: placement.make_problem("nmt:layers=1,steps=2", "mixed", schedule="fifo"),
        lambda: placement.make_problem("transformer_lm:layers=1", "k80x2:memory_bytes=5e8", target="accelerate"),
        of_a_networkx_graph,
        with_groups_of_its_own,
        lambda: placement.make_problem(random_graph(40, seed=3), "tpu_v2x4"),
        lambda: placement.make_problem(
            "rnnlm:layers=1,steps=2", "k80x2", pin="softmax*=gpu:0", forbid="embedding*=gpu:1", reserve="gpu:0=2GB"
        ),
    ],
)
def test_a_problem_is_the_same_after_the_journey(make: object) -> None:
    problem = make()  # type: ignore[operator]
    again = decode_problem(encode_problem(problem))
    assert (again.graph.sha256, again.cluster.sha256) == (problem.graph.sha256, problem.cluster.sha256)
    assert (again.schedule, again.names, again.groups.names) == (problem.schedule, problem.names, problem.groups.names)
    assert again.constraints == problem.constraints
    np.testing.assert_array_equal(again.op_allowed, problem.op_allowed)
    rng = np.random.default_rng(0)
    placements = np.stack([rng.choice(np.flatnonzero(row), 8) for row in problem.allowed], axis=1)
    np.testing.assert_array_equal(again.evaluate(placements).step_time_s, problem.evaluate(placements).step_time_s)
    assert encode_problem(again) == encode_problem(problem)


def test_bytes_that_hold_no_problem() -> None:
    for content in (b"", b"\x00", b"\x80", encode_problem(of_a_networkx_graph())[:-7]):
        with pytest.raises(InputError, match="a worker was sent no problem"):
            decode_problem(content)
