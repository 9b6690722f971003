"""The page says what the trace says, and holds all that it needs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import placement
from graphs.colocation.groups import Groups
from graphs.errors import InputError
from graphs.synthetic import random_graph
from placement.cli.main import main
from placement.results.page.content import PageContent, memory_lines, timeline
from placement.results.page.html import make_page
from placement.results.page.treemap import nested, squarify
from placement.results.reasons.explain import explain
from placement.runs.report import learning_curve, train_command, write_report
from tests.placement.results.page.pages import BAD, badly_named, content_of, explained, needs_bokeh, problem_of


class TestWhatItShows:
    def test_bars_are_ops_and_transfers(self) -> None:
        found = explained(problem_of())
        bars, trace = timeline(found), found.trace
        num_devices = found.problem.num_devices
        ran = np.flatnonzero(trace.op_end_s > trace.op_start_s)
        of_devices = np.flatnonzero(bars.row < num_devices)
        shown = sorted(
            zip(
                bars.row[of_devices],
                bars.start_s[of_devices],
                bars.end_s[of_devices],
                [bars.names[i] for i in of_devices],
                strict=True,
            )
        )
        names = found.problem.graph.op_names
        assert shown == sorted((trace.op_device[i], trace.op_start_s[i], trace.op_end_s[i], names[i]) for i in ran)
        took_s = (trace.transfer_end_s - trace.transfer_start_s).sum()
        on_links = bars.row >= num_devices
        assert np.isclose((bars.end_s - bars.start_s)[on_links].sum(), 2 * took_s)  # a link up, and a link down

    def test_bars_that_are_merged_keep_the_time_that_is_used(self) -> None:
        found = explained(problem_of(60))
        whole, merged = timeline(found), timeline(found, most_bars=40)
        assert len(merged.row) <= 40 < len(whole.row)
        for row in range(len(whole.rows)):
            used_s = [((b.end_s - b.start_s) * b.share)[b.row == row].sum() for b in (whole, merged)]
            assert np.isclose(used_s[0], used_s[1])
            here = [b.row == row for b in (whole, merged)]
            if here[0].any():
                assert merged.start_s[here[1]].min() == whole.start_s[here[0]].min()
                assert merged.end_s[here[1]].max() == whole.end_s[here[0]].max()

    def test_memory_lines_reach_the_peaks(self) -> None:
        found = explained(problem_of())
        peaks = [int(used.max()) for _, used in memory_lines(found)]
        assert peaks == found.trace.peak_memory_bytes.tolist()

    @pytest.mark.parametrize("count", [1, 2, 7, 100])
    def test_a_treemap_fills_its_rectangle_in_proportion(self, count: int) -> None:
        areas = np.random.default_rng(count).exponential(size=count) + 1e-6
        made = squarify(areas, width=2.0)
        sizes = (made[:, 2] - made[:, 0]) * (made[:, 3] - made[:, 1])
        assert np.allclose(sizes, areas / areas.sum() * 2.0, rtol=1e-6)
        assert made[:, :2].min() >= -1e-9
        assert made[:, 2].max() <= 2 + 1e-9
        assert made[:, 3].max() <= 1 + 1e-9
        middle = (made[:, :2] + made[:, 2:]) / 2  # no two overlap: a middle is in one rectangle only
        inside = (middle[:, None] > made[None, :, :2]).all(axis=2) & (middle[:, None] < made[None, :, 2:]).all(axis=2)
        assert (inside.sum(axis=1) == 1).all()
        parent = np.arange(count) % min(count, 3)
        inner, outer = nested(areas, parent, width=2.0)
        assert (inner[:, :2] >= outer[parent][:, :2] - 1e-9).all()
        assert (inner[:, 2:] <= outer[parent][:, 2:] + 1e-9).all()


@needs_bokeh
@pytest.mark.parametrize("layers", [8, 30])
def test_many_families_are_drawn_within_their_layers(layers: int) -> None:
    from placement.results.page.charts import parents

    families = [f"m.layers.{i}.{part}" for i in range(layers) for part in ("attention.q", "mlp.up")] + ["m.head"]
    index = np.arange(len(families), dtype=np.int32)
    groups = Groups(index, tuple(families), index, tuple(families), np.zeros(len(families), dtype=np.int32))
    parent, names = parents(groups)
    if layers == 8:
        assert names == families
    else:
        assert names == [*(f"m.layers.{i}" for i in range(layers)), "m.head"]
        assert parent.tolist() == [*np.repeat(np.arange(layers), 2), layers]


def test_without_bokeh_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphs.extras.is_installed", lambda module: False)
    with pytest.raises(InputError, match=r"device-placement\[report\]"):
        make_page(PageContent(explained(problem_of(4))))


@needs_bokeh
class TestTheFile:
    def test_it_asks_nothing_of_anyone(self) -> None:
        page = make_page(content_of(problem_of())).decode()
        outside = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
        assert "http" not in outside.replace('http-equiv="Content-Security-Policy"', "")
        assert "default-src 'none'" in outside
        assert not re.search(r"<script[^>]+src=|<link |<img |@import|url\(", outside)

    def test_names_are_text_and_nothing_else(self) -> None:
        page = make_page(PageContent(explained(badly_named()))).decode()
        assert BAD not in page
        assert "<b>" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)

    def test_sentences_rows_and_figures_are_those_of_the_explanation(self) -> None:
        content = content_of(problem_of())
        page = re.sub(r"<script.*?</script>", "", make_page(content).decode(), flags=re.DOTALL)
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
        for sentence in content.explanation.sentences:
            assert " ".join(sentence.split()) in text.replace("&gt;", ">")
        assert content.comparison is not None
        for row in content.comparison.rows:
            assert row.placer in text
        assert "placement train a &amp; b" in text

    @pytest.mark.parametrize("num_ops", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
    def test_large_steps_take_less_than_six_megabytes(self, num_ops: int) -> None:
        graph = random_graph(num_ops, seed=1)
        problem = placement.make_problem(graph, "k80x4")
        found = explain(problem, problem.allowed.argmax(axis=1), tries=0, time_limit_s=0.0)
        assert len(make_page(PageContent(found))) < 6_000_000


@needs_bokeh
class TestARun:
    def test_it_leaves_a_report_with_its_curve_and_its_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("placement.runs.training.LEAST_REPORTED_S", 0.0)
        problem = problem_of(8)
        run = placement.train(problem, updates=3, out=tmp_path / "run")
        assert (tmp_path / "run" / "report.html").stat().st_size > 10**6
        curve = learning_curve(tmp_path / "run")
        assert curve is not None
        assert curve.update.tolist() == [1, 2, 3]
        assert np.isclose(curve.values["best"][-1], run.result.step_time_s)
        assert run.explanation is not None
        assert write_report(tmp_path / "run", run.explanation, out=tmp_path / "again.html").exists()
        from placement.runs.directory import read_config

        assert train_command(read_config(tmp_path / "run")).endswith("--updates 3 --seed 0")
        assert main(["explain", "run", "--tries", "0", "--html", "third.html"]) == 0
        assert "report   third.html" in capsys.readouterr().out
        assert b"--updates 3 --seed 0" in Path("third.html").read_bytes()
