import json
from pathlib import Path

import pytest

from scripts.benchmark_environments import BEGIN, END, main, rate


def rows() -> dict[str, list[dict[str, object]]]:
    about = {"graph": "g", "cluster": "c", "groups": 8, "heuristic": "heft", "heuristic_s": 0.1, "steps": 1000}
    curve = [[1.0, 500, 0.2], [2.0, 1000, 0.09]]
    runs = [about | {"seed": s, "mean_s": 0.08 + 0.01 * s, "greedy_s": 0.08, "curve": curve} for s in range(2)]
    rates = [{"graph": "g", "cluster": "c", "ops": 1000, "groups": 8, "credit": "outlook", "steps_per_s": 123456.0}]
    return {"runs": runs, "rates": rates}


def test_the_page_is_filled_and_the_curves_are_drawn(tmp_path: Path) -> None:
    page, picture = tmp_path / "page.md", tmp_path / "curves.png"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    (tmp_path / "rows.json").write_text(json.dumps(rows()))
    asked = ["--json", str(tmp_path / "rows.json"), "--report", "--page", str(page), "--plot", str(picture)]
    assert main(asked) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| g | c | 8 | heft | 100.00 | 85.00 | 0.850 (0.800 to 0.900) | 0.800 | 1,000 |" in text
    assert "2 seeds; the mean is below the best heuristic on 1 of 1 cells." in text
    assert "| g | c | 1,000 | 8 | 123,456 | - |" in text
    assert picture.stat().st_size > 1000


def test_a_rate_counts_steps_of_all_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphs.files import save_graph_file
    from graphs.synthetic import random_graph

    monkeypatch.chdir(tmp_path)
    save_graph_file(random_graph(40, seed=1), "g.graph.json")
    row = rate("g.graph.json/k80x2", "outlook", 0.1)
    assert row["ops"] == 40
    assert row["steps_per_s"] > 1000
