"""The script of the paper's table: published figures next to ours, on workloads made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.reproduce_paper import OTHERS, PUBLISHED, Row, best_other_s, differences, gain, main

SMALL = "layers=1,hidden=32,steps=3,vocabulary=50,batch=2"


def row(placer: str, step_time_s: float | None, *, feasible: bool = True) -> Row:
    return Row("nmt", "k80x2", placer, 0, None, 1.0, step_time_s, feasible)


def test_published_gains_are_those_of_the_published_times() -> None:
    for published in PUBLISHED.values():
        others = [getattr(published, name) for name in OTHERS]
        best_s = min(value for value in others if value is not None)
        assert best_s / published.learned - 1 == pytest.approx(published.gain, abs=0.006)


def test_a_gain_is_over_the_best_that_fits() -> None:
    rows = [row("one_gpu", 1.0, feasible=False), row("expert", 3.0), row("scotch", None, feasible=False)]
    assert best_other_s(rows) == 3.0
    assert gain(row("default", 2.0), 3.0) == pytest.approx(0.5)
    assert gain(row("default", 2.0, feasible=False), 3.0) == -1.0


def test_it_says_where_the_order_is_another_one() -> None:
    times_s = dict(zip(OTHERS, (10.0, 1.0, 4.0, 12.0, 2.0), strict=True))
    text = " ".join(differences(("nmt", "k80x2"), [row(name, time_s) for name, time_s in times_s.items()]))
    assert "best of the others is one_gpu (1.000 s), published expert (4.99 s)" in text
    assert "one GPU holds the step here" in text
    assert "scotch beat one CPU here" in text
    rows = [row(name, None if name == "expert" else 1.0, feasible=name != "expert") for name in OTHERS]
    assert "expert, the best of the others as published, does not fit" in differences(("nmt", "k80x2"), rows)[0]
    as_published = dict(zip(OTHERS, (10.0, None, 14.0, 12.0, 5.0), strict=True))
    rows = [row(name, time_s, feasible=time_s is not None) for name, time_s in as_published.items()]
    assert differences(("nmt", "k80x2"), rows) == []


def test_it_shows_both_tables_and_runs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--cells", "rnnlm/k80x2", "--sizes", SMALL, "--time-limit-s", "0.3", "--link-bytes-per-s", "2.5e9"]
    assert main([*args, "--presets", "default", "--json", "p.json"]) == 0
    out = capsys.readouterr().out
    assert "published" in out
    assert "13.43" in out
    rows = json.loads(Path("p.json").read_text())["rows"]
    assert [entry["placer"] for entry in rows] == [*OTHERS, "default"]
    assert {entry["cluster"] for entry in rows} == {"k80x2:link_bytes_per_s=2.5e9"}
    fits_s = [entry["step_time_s"] for entry in rows[:-1] if entry["feasible"]]
    assert rows[-1]["step_time_s"] <= min(fits_s) * 1.0001
    assert main([*args, "--presets", "paper,default", "--json", "p.json"]) == 0
    assert capsys.readouterr().err.split() == f"rnnlm:{SMALL} on k80x2:link_bytes_per_s=2.5e9: paper".split()
    assert len(json.loads(Path("p.json").read_text())["rows"]) == len(rows) + 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--cells", "bert/k80x2"], "cell 'bert/k80x2' is none of the paper's"),
        (["--presets", "best"], "--presets: 'best' is none of paper, default"),
        (["--json", "nowhere/p.json"], "there is no directory 'nowhere'"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert message in capsys.readouterr().err
