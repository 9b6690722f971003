"""The page says what the trace says, holds all that it needs, and works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import placement
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.errors import InputError
from graphs.extras import is_installed
from graphs.synthetic import random_graph
from placement.cli.main import main
from placement.placers.base import Budget
from placement.registry import PLACERS
from placement.results.comparison import compare_placers
from placement.results.page.content import Curve, PageContent, memory_lines, timeline
from placement.results.page.html import make_page
from placement.results.page.treemap import nested, squarify
from placement.results.reasons.explain import explain
from placement.results.reasons.explanation import Explanation
from placement.runs.report import learning_curve, train_command, write_report
from tests.placement.placer_problems import cluster, training_graph

needs_bokeh = pytest.mark.skipif(
    not is_installed("bokeh"), reason="Bokeh is not installed: pip install 'device-placement[report]'"
)


def problem_of(num_groups: int = 30, seed: int = 1) -> PlacementProblem:
    graph, groups = training_graph(num_groups, seed=seed)
    return PlacementProblem(graph, groups, cluster(3))


def explained(problem: PlacementProblem) -> Explanation:
    rng = np.random.default_rng(0)
    made = np.where(problem.allowed, rng.random(problem.allowed.shape), -1).argmax(axis=1)
    return explain(problem, made, tries=16)


def content_of(problem: PlacementProblem) -> PageContent:
    found = explained(problem)
    placers = [PLACERS[name] for name in ("single_device", "round_robin", "heft")]
    updates = np.arange(1.0, 40.0)
    curve = Curve(updates, {"best": 1 / updates, "greedy": np.where(updates < 5, np.nan, 2 / updates)})
    return PageContent(found, compare_placers(problem, placers, budget=Budget()), curve, ("placement train a & b",))


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


def test_without_bokeh_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphs.extras.is_installed", lambda module: False)
    with pytest.raises(InputError, match=r"device-placement\[report\]"):
        make_page(PageContent(explained(problem_of(4))))


BAD = "</script><script>document.body.dataset.taken='yes'</script><b>"


def badly_named() -> PlacementProblem:
    problem = problem_of(5)
    graph = replace(problem.graph, name=BAD, op_names=tuple(f"{BAD}{i}" for i in range(problem.graph.num_ops)))
    return PlacementProblem(graph, one_group_an_op(graph), problem.cluster)


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, as Debian packages it, or Chrome."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = selenium.Chrome(options=options, service=Service(driver))
    try:
        yield found
    finally:
        found.quit()


def wait_for(browser: Any, script: str, limit_s: float = 60.0) -> Any:
    until = time.perf_counter() + limit_s
    while not (found := browser.execute_script(f"return {script}")):
        assert time.perf_counter() < until, script
        time.sleep(0.05)
    return found


RANGE = "(r => [r.start, r.end])(Bokeh.documents[0].get_model_by_name('timeline').x_range)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Explanation]:
    content = content_of(problem_of())
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(make_page(content))
    return path, content.explanation


@needs_bokeh
class TestInABrowser:
    @pytest.fixture
    def shown(self, browser: Any, page: tuple[Path, Explanation]) -> tuple[Any, Explanation]:
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(f"file://{page[0]}")
        wait_for(browser, "document.body.dataset.ready")
        return browser, page[1]

    def test_it_renders_without_an_error_and_without_a_request(self, shown: tuple[Any, Explanation]) -> None:
        browser, found = shown
        wait_for(browser, "document.querySelectorAll('.chart').length == 4")
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
        assert all(url.startswith(("file:", "data:", "blob:")) for url in urls)
        drawn = browser.execute_script("return Bokeh.documents[0].get_model_by_name('timeline_data').data.left.length")
        assert drawn == len(timeline(found).row)
        for width in (390, 800, 1400):
            browser.set_window_size(width, 900)
            wait_for(browser, "document.documentElement.scrollWidth <= window.innerWidth")

    def test_buttons_and_keys_zoom(self, shown: tuple[Any, Explanation]) -> None:
        browser, found = shown
        from selenium.webdriver.common.by import By

        step_ms = found.step_time_s * 1e3
        assert np.allclose(browser.execute_script(f"return {RANGE}"), [0, step_ms], rtol=1e-6)
        browser.find_element(By.CSS_SELECTOR, "button[data-action=in]").click()
        assert np.allclose(browser.execute_script(f"return {RANGE}"), [step_ms / 4, step_ms * 3 / 4], rtol=1e-6)
        chart = browser.find_element(By.ID, "chart-timeline")
        browser.execute_script("arguments[0].focus()", chart)
        chart.send_keys("+")
        begin, end = browser.execute_script(f"return {RANGE}")
        assert np.isclose(end - begin, step_ms / 4)
        chart.send_keys("0")
        assert np.allclose(browser.execute_script(f"return {RANGE}"), [0, step_ms], rtol=1e-6)

    def test_it_filters(self, shown: tuple[Any, Explanation]) -> None:
        browser, found = shown
        from selenium.webdriver.common.by import By

        field = browser.find_element(By.ID, "filter")
        field.send_keys("f1")
        matches = int(wait_for(browser, "document.body.dataset.matches"))
        bars = timeline(found)
        assert matches == sum("f1" in name for name in bars.names)
        rows = browser.find_elements(By.CSS_SELECTOR, "#groups tbody tr")
        shown_rows = [row for row in rows if row.is_displayed()]
        names = [row.find_element(By.TAG_NAME, "td").text for row in shown_rows]
        assert all("f1" in name for name in names)
        field.clear()
        field.send_keys(" ")
        wait_for(browser, "document.body.dataset.matches === ''")

    def test_names_run_nothing(self, browser: Any, tmp_path: Path) -> None:
        (tmp_path / "bad.html").write_bytes(make_page(PageContent(explained(badly_named()))))
        browser.get(f"file://{tmp_path}/bad.html")
        wait_for(browser, "document.body.dataset.ready")
        assert browser.execute_script("return document.body.dataset.taken") is None
        name = browser.execute_script("return Bokeh.documents[0].get_model_by_name('timeline_data').data.name[0]")
        assert name.startswith("</script>")

    def test_it_goes_by_the_colours_that_are_preferred(self, shown: tuple[Any, Explanation]) -> None:
        browser, _ = shown
        back = {}
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            back[scheme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}
