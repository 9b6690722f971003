"""The script that fills the page of results: it runs only what is missing, and the page says what made it."""

import json
from pathlib import Path

import pytest

from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from scripts.compare_all import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        save_graph_file(random_graph(12, seed=number, name=f"g{number}"), f"g{number}.graph.json")
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    return [line.partition("  ")[2] for line in lines if " seed " in line and "single_device" not in line]


def test_it_runs_what_is_missing_and_fills_the_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--clusters", "k80x2", "--time-limit-s", "0.2", "--out", "results.md", "--placers", "heft,annealing,expert"]
    assert main([*args, "--graphs", "g1.graph.json", "--seeds", "0"]) == 0
    cell = "g1.graph.json on k80x2, seed 0"
    assert ran(capsys) == [f"{cell}: heft", f"{cell}: annealing", f"{cell}: expert"]
    before = json.loads(Path("results.json").read_text())["cells"][0]
    assert main([*args, "--graphs", "g1.graph.json,g2.graph.json", "--seeds", "0,1"]) == 0
    again = ran(capsys)
    assert f"{cell}: annealing" not in again
    assert f"{cell}: expert" in again  # it gave no placement: what was missing may be there now
    assert sum(line.endswith(": annealing") for line in again) == 3
    cells = json.loads(Path("results.json").read_text())["cells"]
    assert len(cells) == 4
    kept = next(c for c in cells if c["graph"] == before["graph"] and c["comparison"]["seed"] == 0)
    rows = {row["placer"]: row for row in kept["comparison"]["rows"]}
    assert rows["annealing"] == next(r for r in before["comparison"]["rows"] if r["placer"] == "annealing")

    page = Path("results.md").read_text()
    assert "--graphs 'g1.graph.json g2.graph.json' --clusters 'k80x2'" in page
    assert "--time-limit-s 0.2 --seeds 0,1" in page
    assert "## g2.graph.json on k80x2" in page
    table = page.partition("## g1.graph.json on k80x2")[2].partition("##")[0]
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert {len(line) for line in lines} == {7}
    assert {line[0].strip("| ") for line in lines[1:]} == {"best single device", "heft", "annealing", "expert"}
    assert lines[1][2] == "1.000"  # the best stands first
    assert "no expert" in lines[-1][-1] or "rule" in lines[-1][-1]


def test_another_budget_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--graphs", "g1.graph.json", "--clusters", "k80x2", "--placers", "heft", "--out", "results.md"]
    assert main([*args, "--time-limit-s", "1"]) == 0
    assert main([*args, "--time-limit-s", "2"]) == 2
    assert "time_limit_s was 1.0 and is 2.0 now; start anew with --restart" in capsys.readouterr().err
    assert main([*args, "--time-limit-s", "2", "--restart"]) == 0


def test_rows_of_one_placer_are_rebuilt_and_all_others_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cells() -> dict[str, list[dict[str, object]]]:
        return {c["graph"]: c["comparison"]["rows"] for c in json.loads(Path("results.json").read_text())["cells"]}

    def row(rows: list[dict[str, object]], placer: str) -> dict[str, object]:
        return next(row for row in rows if row["placer"] == placer)

    common = ["--time-limit-s", "0.2", "--out", "results.md"]
    both = ["--cells", "g1.graph.json@k80x2,g2.graph.json@k80x4", "--placers", "heft,annealing"]
    assert main([*common, *both]) == 0
    before = cells()
    capsys.readouterr()
    one = ["--cells", "g2.graph.json@k80x4", "--placers", "annealing", "--rerun", "annealing"]
    assert main([*common, *one]) == 0
    assert ran(capsys) == ["g2.graph.json on k80x4, seed 0: annealing"]
    after = cells()
    assert after["g1.graph.json"] == before["g1.graph.json"]
    now, then = after["g2.graph.json"], before["g2.graph.json"]
    assert row(now, "heft") == row(then, "heft")
    assert row(now, "annealing")["search_s"] != row(then, "annealing")["search_s"]
    page = Path("results.md").read_text()
    assert "--cells 'g1.graph.json@k80x2 g2.graph.json@k80x4' --placers heft,annealing --time-limit-s 0.2" in page


def test_a_cell_needs_a_graph_and_a_cluster(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cells", "g1.graph.json", "--out", "results.md"]) == 2
    assert "--cells has 'g1.graph.json'; write graph@cluster, as in nmt@k80x4" in capsys.readouterr().err
