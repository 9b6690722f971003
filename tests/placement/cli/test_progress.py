"""What is shown while a placer searches, on a terminal and elsewhere."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from placement.cli import progress
from placement.cli.progress import ComparisonDisplay, TrainingDisplay
from placement.learning.stats import UpdateStats
from placement.placers.base import Placed
from placement.results.comparison import Comparison, make_row

STATS = UpdateStats(
    update=7,
    elapsed_s=3.0,
    best_s=0.0125,
    mean_s=0.02,
    greedy_s=math.nan,
    infeasible_rate=0.25,
    evaluations=700,
    placements_per_s=1234.0,
    loss=0.0,
    entropy=0.0,
    advantage_std=0.0,
    grad_norm=0.0,
    baseline=0.0,
    seconds={},
    search_acceptance=0.5,
    search_mean_s=0.015,
    search_weights={},
)


@pytest.fixture(scope="module")
def others() -> Comparison:
    graph = random_graph(6, seed=1)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
    row = make_row(problem, "by_hand", Placed(np.ones(6, dtype=np.int64), 1, 0.0))
    return Comparison(problem, 0, 0.01, (replace(row, step_time_s=0.025),))


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None, markup=False)


def text_of(made: Console) -> str:
    assert isinstance(made.file, io.StringIO)
    return made.file.getvalue()


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then(
    others: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    made = console(terminal=False)
    with TrainingDisplay(made, others, updates=None, time_limit_s=60) as display:
        for number in range(1, 9):
            now[0] += 2.0
            display.update(replace(STATS, update=number))
    # The first at once, then every five seconds of the two that an update takes, and the last at the end.
    assert [line.split(":")[0] for line in text_of(made).splitlines()] == [
        "update 1",
        "update 4",
        "update 7",
        "update 8",
    ]
    assert text_of(made).splitlines()[1] == (
        "update 4: best 12.50 ms, mean 20.00 ms, 25% infeasible, 1,234 placements/s, 0:08 so far, 0:52 left"
    )


def test_on_a_terminal_everything_stands_in_one_place(others: Comparison) -> None:
    made = console(terminal=True)
    with TrainingDisplay(made, others, updates=20, time_limit_s=None) as display:
        display.update(replace(STATS, update=5))
        display.update(replace(STATS, update=12, mean_s=0.015))
        made.print(display._render())
    shown = " ".join(text_of(made).split())
    for part in (
        "best 12.50 ms 0.50 x by_hand (25.0 ms), 1.25 x lower bound",
        "mean 15.00 ms",
        "greedy -",
        "infeasible 25%",
        "placements/s 1,234 update 12 of 20",
        "so far",
        "left",
        "Ctrl-C",
    ):
        assert part in shown


def test_a_comparison_counts_down_and_lists_what_is_done(others: Comparison) -> None:
    made = console(terminal=True)
    placers = ["heft", "annealing"]
    with ComparisonDisplay(made, placers, time_limit_s=20) as display:
        made.print(display._render())
        display.start("heft")
        display.row(others)
        display.start("annealing")
        made.print(display._render())
    shown = " ".join(text_of(made).split())
    assert "computing the lower bound" in shown
    assert "annealing (2 of 2), 0:00 of 0:20" in shown
    assert "by_hand 25.00 ms 1.00" in shown
    slower = replace(others.rows[0], step_time_s=1.0)
    low = console(terminal=True)
    low.height = 9
    with ComparisonDisplay(low, placers) as display:
        display.start("heft")
        display.row(replace(others, rows=(slower, slower, others.rows[0])))
        low.print(display._render())
    shown = " ".join(text_of(low).split())
    assert "slower ones: 1" in shown  # and what is running is seen all the same
    assert "heft (1 of 2)" in shown
    plain = console(terminal=False)
    with ComparisonDisplay(plain) as display:
        display.start("heft")
        display.row(others)
        display.row(others.with_row(replace(others.rows[0], step_time_s=None, feasible=False, note="no rule")))
    assert [" ".join(line.split()) for line in text_of(plain).splitlines()] == [
        "by_hand 25.00 ms",
        "by_hand no placement no rule",
    ]
