"""The script that measures what learning buys: rows, resumption, tables, curves and the page."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from placement.api import make_problem
from placement.placers.base import Budget, Progress
from scripts.benchmark_learning import CELLS, find_placer, main, run_placer
from scripts.learning.plot import _mark_unseen, plot_curves
from scripts.learning.report import BEGIN, END, standings, tables_text
from scripts.learning.rows import MOST_POINTS, Curve, Row, read_rows, thinned

KEYS = {
    "graph",
    "cluster",
    "placer",
    "seed",
    "budget_s",
    "budget_evaluations",
    "seconds",
    "evaluations",
    "step_time_s",
    "feasible",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_graph_file(random_graph(14, seed=1, name="g"), "g.graph.json")
    return tmp_path


def test_it_runs_what_is_missing_and_every_row_is_evaluated_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placers = "reinforce,reinforce_uniform,annealing,heuristics"
    args = [
        "--cells",
        "g.graph.json/k80x2/fifo",
        "--placers",
        placers,
        "--budgets-evaluations",
        "120",
        "--json",
        "l.json",
    ]
    assert main([*args, "--seeds", "0", "--budgets-s", "none"]) == 0
    before = json.loads(Path("l.json").read_text())
    assert set(before) == {"rows"}
    assert [row["placer"] for row in before["rows"]] == placers.split(",")
    problem = make_problem("g.graph.json", "k80x2", schedule="fifo")
    fastest_s = problem.group_time_s.min(axis=1).max()
    for row in before["rows"]:
        assert set(row) == KEYS
        assert (row["cluster"], row["budget_s"], row["budget_evaluations"]) == ("k80x2/fifo", None, 120)
        assert row["feasible"]
        assert row["step_time_s"] >= fastest_s
        assert row["placer"] == "heuristics" or row["evaluations"] <= 120
    capsys.readouterr()

    assert main([*args, "--seeds", "0,1", "--budgets-s", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "120 evaluations, seed 0" not in out, "that row was there"
    assert "120 evaluations, seed 1: annealing" in out
    assert "0.2 s, seed 0: annealing" in out
    rows = read_rows(Path("l.json"))
    assert len(rows) == 4 * (2 + 2)
    assert [row.key for row in rows[:4]] == [Row(**row).key for row in before["rows"]]
    assert "geometric mean" in out
    assert "Against reinforce_uniform: faster in" in out

    assert main([*args, "--seeds", "0,1", "--budgets-s", "0.2", "--forget", "annealing"]) == 0
    again = [line for line in capsys.readouterr().out.splitlines() if ", seed " in line]
    assert len(again) == 4
    assert all("annealing" in line for line in again)


def test_rows_are_the_same_on_workers(here: Path) -> None:
    args = ["--cells", "g.graph.json/k80x2", "--placers", "annealing,local_search_ops,heuristics", "--seeds", "0,1"]
    args += ["--budgets-s", "none", "--budgets-evaluations", "60"]
    found = []
    for name, more in (("alone.json", []), ("workers.json", ["--workers", "2"])):
        assert main([*args, "--json", name, *more]) == 0
        rows = sorted(read_rows(Path(name)), key=lambda row: (row.placer, row.seed))
        found.append([(row.placer, row.seed, row.step_time_s, row.evaluations) for row in rows])
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_every_placer_has_run_with_and_without_a_clock_before_one_is_timed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, str, bool]] = []

    def recorded(*args: Any, graph: str, cluster: str) -> tuple[Row, Curve]:
        _, name, _, budget, _ = args
        ran.append((graph, name, budget.time_limit_s is not None))
        return run_placer(*args, graph=graph, cluster=cluster)

    monkeypatch.setattr("scripts.benchmark_learning.run_placer", recorded)
    cells = ["--cells", "g.graph.json/k80x2", "--placers", "annealing,local_search", "--seeds", "0", "--json", "l.json"]
    assert main([*cells, "--budgets-s", "0.2", "--budgets-evaluations", "none"]) == 0
    first = next(i for i, (graph, _, _) in enumerate(ran) if graph)
    assert {(name, timed) for _, name, timed in ran[:first]} == {
        (name, timed) for name in ("annealing", "local_search") for timed in (False, True)
    }
    assert ran[first:] == [("g.graph.json", name, True) for name in ("annealing", "local_search")]


def test_the_report_fills_a_page_and_draws_every_cell(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "--cells",
        "g.graph.json/k80x2",
        "--placers",
        "reinforce,local_search",
        "--seeds",
        "0,1",
        "--json",
        "l.json",
    ]
    assert main([*args, "--budgets-s", "none", "--budgets-evaluations", "90"]) == 0
    Path("page.md").write_text(f"# Page\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n")
    assert main(["--json", "l.json", "--report", "--page", "page.md", "--plot", "pictures"]) == 0
    page = Path("page.md").read_text()
    assert page.startswith(f"# Page\n\n{BEGIN}\n")
    assert page.endswith(f"{END}\n\nThe rest.\n")
    assert "old" not in page
    assert "### 90 evaluations" in page
    assert "| g.graph.json | k80x2 |" in page
    assert (
        "--placers reinforce,local_search --seeds 0,1 --budgets-s none --budgets-evaluations 90 --json l.json" in page
    )
    assert Path("pictures/learning-g-graph-json-k80x2.png").read_bytes().startswith(b"\x89PNG")
    assert main(["--json", "l.json", "--report", "--page", "none.md"]) == 2
    Path("empty.md").write_text("nothing\n")
    assert main(["--json", "l.json", "--report", "--page", "empty.md"]) == 2
    assert "lacks the lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cells", "rnnlm"], "cell 'rnnlm' is not of the form GRAPH/CLUSTER"),
        (["--placers", "anealing"], "annealing"),
        (["--placers", "reinforce_unifrm"], "uniform"),
        (["--placers", "heft_ops"], "'heft' does not move what it is told to"),
        (["--seeds", "one"], "--seeds: 'one' is no whole number"),
        (["--budgets-s", "-3"], "--budgets-s: '-3' is no number of seconds above 0"),
        (["--json", "nowhere/l.json"], "there is no directory 'nowhere'"),
        (["--report"], "holds no rows"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    args: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = ["--cells", "g.graph.json/k80x2"] if "--cells" not in args else []
    assert main([*defaults, *args]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_file_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("l.json").write_text('{"rows": [{"graph": 1}]}')
    assert main(["--json", "l.json", "--report"]) == 2
    assert "another form" in capsys.readouterr().err
    assert Path("l.json").read_text() == '{"rows": [{"graph": 1}]}'


def row(placer: str, seed: int, step_time_s: float | None, *, feasible: bool = True) -> Row:
    return Row("g", "c", placer, seed, 10.0, None, 10.0, 5, step_time_s, feasible)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((1.0, 1.01, 1.02), (1.10, 1.11, 1.12), "ahead"),
        ((1.0, 1.01, 1.5), (1.10, 1.11, 1.12), "level"),  # one slow seed: the spread covers the gap
        ((1.2, 1.21, 1.22), (1.10, 1.11, 1.12), "behind"),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), "level"),
        ((1.0,), (1.1,), "one seed"),  # no spread to hold the gap against
        ((1.0,), (1.10, 1.11, 1.12), "ahead"),
    ],
)
def test_who_wins_is_a_matter_of_medians_and_spread(ours: tuple, theirs: tuple, verdict: str) -> None:
    rows = [row("reinforce", i, time_s) for i, time_s in enumerate(ours)]
    rows += [row("annealing", i, time_s) for i, time_s in enumerate(theirs)]
    rows += [row("genetic", i, 9.0) for i in range(3)]
    rows += [row("reinforce_uniform", i, 0.5) for i in range(3)]  # made of its parts: none of the others
    (standing,) = standings(rows)
    assert standing.best_other == "annealing"
    assert standing.ratio == pytest.approx(statistics.median(ours) / statistics.median(theirs))
    assert standing.verdict == verdict


def test_a_placer_that_finds_nothing_that_fits_loses() -> None:
    rows = [row("reinforce", 0, 5.0), row("annealing", 0, 1.0, feasible=False), row("genetic", 0, None, feasible=False)]
    (standing,) = standings(rows)
    assert (standing.ratio, standing.verdict) == (0.0, "ahead")


def test_another_schedule_has_a_table_of_its_own_and_single_seeds_are_not_counted_as_wins() -> None:
    rows = [
        Row("g", cluster, placer, seed, 10.0, None, 10.0, 5, step_time_s, True)
        for cluster, seeds in (("c/fifo", 1), ("c", 2), ("d", 1))
        for placer, step_time_s in (("reinforce", 1.0), ("annealing", 2.0))
        for seed in range(seeds)
    ]
    text = tables_text(rows, json_name="l.json")
    priority, fifo = text.split("### 10 s\n")[1].split("### 10 s, schedule fifo\n")
    assert "| at most 2 seeds |" in priority
    assert "| 1 seed |" in fifo
    assert "2 cells: reinforce is ahead in 1, level in 0, behind in 0, of one seed in 1; its median is" in priority
    assert "| g | d | 1.000 s | 1.000 | 2.000 | 0.5000 | one seed against annealing |" in priority
    assert "1 cell: reinforce is ahead in 0, level in 0, behind in 0, of one seed in 1; its median is" in fifo


def test_a_thinned_curve_keeps_its_ends_and_what_was_best_when() -> None:
    points = [Progress(0.01 * (i + 1), i, 100.0 - i) for i in range(1000)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 1
    assert kept[0] == [0.01, 0, 100.0, None]
    assert kept[-1] == [10.0, 999, -899.0, None]
    for seconds, _, best_s, _ in kept:
        assert seconds is not None
        assert best_s == 100.0 - (round(seconds * 100) - 1)
    late = [Progress(1.0, 1, 9.0), Progress(1.01, 2, 5.0), Progress(10.0, 3, 4.0)]
    assert [point[2] for point in thinned(late)] == [9.0, 5.0, 4.0], "a gain that no other follows soon is kept"
    assert thinned([Progress(1.0, 0, math.inf)]) == [[1.0, 0, None, None]]


def test_a_cell_where_nothing_fits_is_drawn_as_well(tmp_path: Path) -> None:
    curves = [
        Curve("g", "c", "annealing", seed, 1.0, None, [[0.5, 3, None, None], [1.0, 9, None, None]]) for seed in (0, 1)
    ]
    assert [path.name for path in plot_curves(curves, tmp_path)] == ["learning-g-c.png"]


def test_the_legend_says_which_curves_are_above_the_picture() -> None:
    axes = Figure().subplots()
    axes.plot([1.0, 2.0], [5.0, 1.0], label="seen at its end")
    axes.plot([1.0, 2.0], [math.nan, 3.0], label="never seen")
    axes.set_ylim(0.0, 2.0)
    _mark_unseen(axes)
    assert axes.get_legend_handles_labels()[1] == ["seen at its end", "never seen (above)"]


def test_a_search_of_single_ops_parts_groups_and_is_no_part_of_the_learner() -> None:
    problem = make_problem(random_graph(40, seed=2), "k80x2", groups=4)
    placed = [find_placer(name)(problem, budget=Budget(evaluations=400), rng=np.random.default_rng(0)).placement
              for name in ("annealing", "annealing_ops")]  # fmt: skip
    assert [len(placement) for placement in placed] == [problem.num_groups, problem.graph.num_ops]
    found = {"reinforce": 3.0, "annealing": 4.0, "annealing_ops": 2.0}
    rows = [Row("g", "c", name, seed, 1.0, None, 1.0, 9, s, True) for name, s in found.items() for seed in (0, 1)]
    assert standings(rows)[0].best_other == "annealing_ops"
    assert standings(rows)[0].verdict == "behind"


def test_the_budget_that_most_runs_had_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [[0.5, 3, 2.0, None], [1.0, 9, 1.0, None]]
    seconds = [Curve("g", "c", "annealing", seed, 1.0, None, points) for seed in (0, 1)]
    longer = [Curve("g", "c", "annealing", 0, 2.0, None, points)]
    evaluations = [Curve("g", "c", "annealing", seed, None, 9, points) for seed in range(5)]
    drawn: list[str] = []
    monkeypatch.setattr("scripts.learning.plot._draw", lambda curves, title, limit, path: drawn.append(limit))
    plot_curves([*longer, *seconds, *evaluations], tmp_path)
    plot_curves([*longer, *seconds[:1]], tmp_path)
    plot_curves(evaluations, tmp_path)
    assert drawn == ["1 s", "2 s", "9 evaluations"]


def test_the_cells_are_what_the_page_says() -> None:
    assert len(CELLS) == len(set(CELLS)) == 22
    assert sum(cell.endswith("/fifo") for cell in CELLS) == 6
