"""What the studies of pipelines say of their rows."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from placement.exports.stages import Stage, Stages, encode_stages
from scripts import compare_pipelines, pipeline_fidelity
from scripts.compare_pipelines import Row, Rows


def row(cluster: str, search_s: float, opponent_s: float, bound_s: float, parallel_s: float = 5.0) -> Row:
    opponents = {"pipedream": opponent_s, "equal_segments": 2 * opponent_s, "data_parallel": parallel_s}
    return Row("bert", cluster, "1f1b", 9, search_s, search_s, opponents, bound_s)


def test_a_page_says_what_is_saved_and_what_could_be() -> None:
    rows = (row("a", 0.9, 1.0, 0.8), row("b", 1.0, 1.0, 0.95), row("c", 0.99, 1.0, 0.5, 0.5))
    text = compare_pipelines.report(Rows(1.0, 0, 8, rows), "the command")
    assert "3 of 3 cells can be cut and fit. In none of them the search is worse" in text
    assert "It saves at least 8% in 1 cells. In 1 the bound proves that nothing can" in text
    assert "In the other 2 the bound leaves room for it" in text
    assert "| pipedream | one | 3 | 1.0% | 0 | 1 |" in text
    assert "| equal_segments | one | 3 | 50.5% | 0 | 3 |" in text
    assert "| data_parallel | several | 3 | 80.0% | 1 | 2 |" in text
    assert (
        "| bert | a | 9 | 900 ms | +0.00% | 1.00 s (pipedream) | 10.0% | 20.0% | 800 ms | 5.00 s | does not fit |"
        in text
    )


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """What a study of two pipelines leaves, the second of which was run once only."""
    for number, (step_time_s, rounds_s) in enumerate([(1.1, [1.4, 1.0, 1.02]), (2.0, [2.5])]):
        stages = Stages(
            graph="decoder",
            cluster="two cores",
            ranks=("cpu:0", "cpu:1"),
            stages=(Stage(0, ("embed",)), Stage(1, ("head",))),
            order="1f1b",
            batch=32,
            micro_batches=8,
            step_time_s=step_time_s,
        )
        (tmp_path / f"decoder-{number}.json").write_bytes(encode_stages(stages))
        (tmp_path / f"decoder-{number}.times.json").write_bytes(msgspec.json.encode(rounds_s))
    return tmp_path


def test_simulated_and_measured_pipelines_are_compared_and_a_page_is_filled(measured: Path) -> None:
    rows = pipeline_fidelity.rows_of(measured, "decoder")
    assert [found.measured_s for found in rows] == [1.01, 2.5]
    assert [found.error for found in rows] == pytest.approx([0.0891, -0.2], abs=1e-4)
    assert [found.spread for found in rows] == pytest.approx([0.02, 0.0])
    page = measured / "page.md"
    marks = [f"<!-- written by scripts/pipeline_fidelity.py: {what} -->" for what in ("begin", "end")]
    page.write_text("\n".join(["before", marks[0], "old", marks[1], "behind"]))
    asked = ["--report", "--models", "decoder", "--out", str(measured), "--page", str(page)]
    assert pipeline_fidelity.main([*asked, "--json", str(measured / "rows.json")]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nbehind")
    assert "| all | 2 | 14.5% | 20.0% | -5.5% |" in text
    assert "| decoder | 2 | `gpipe` | 1100 ms | 1010 ms | +8.9% |" in text
    assert len(msgspec.json.decode((measured / "rows.json").read_bytes())) == 2


def test_what_is_not_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pipeline_fidelity.main(["--report", "--out", str(tmp_path / "none")])
    assert "has no pipelines that were measured; leave out --report" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pipeline_fidelity.main(["--report", "--models", "decodr", "--out", str(tmp_path / "none")])
    assert "--models has 'decodr'; known: decoder, pictures" in capsys.readouterr().err
