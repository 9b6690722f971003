"""TensorBoard, started as a user starts it, shows our charts and compares runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import placement
from placement.runs.telemetry import LAYOUT
from tests.browser import complaints, deep_find, deep_text, prefer, set_width
from tests.placement.results.page.pages import problem_of

SEEDS = (3, 4)


@pytest.fixture(scope="module")
def board(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a TensorBoard above two runs."""
    logdir = tmp_path_factory.mktemp("runs")
    for seed in SEEDS:
        placement.train(problem_of(8), updates=3, seed=seed, out=logdir / f"seed-{seed}")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "http://" in line), "")
        yield line[line.index("http://") :].split()[0]
    finally:
        process.kill()
        process.wait()


def open_tab(browser: Any, board: str, tab: str) -> None:
    prefer(browser, "light")
    set_width(browser, 1400)
    complaints(browser)
    browser.get("about:blank")
    browser.get(f"{board}#{tab}")


def wait_for_text(browser: Any, *words: str) -> str:
    import time

    until = time.perf_counter() + 60
    while not all(word in (text := deep_text(browser)) for word in words):
        assert time.perf_counter() < until, f"{words} are not all in: {text[:2000]}"
        time.sleep(0.1)
    return text


def test_custom_scalars_show_our_charts(browser: Any, board: str) -> None:
    open_tab(browser, board, "custom_scalars")
    text = wait_for_text(browser, *LAYOUT, *LAYOUT["Step time"], f"step_time/lower_bound_s (seed-{SEEDS[1]})")
    assert complaints(browser, "SEVERE") == []
    assert text.index("Step time") < text.index("Devices") < text.index("Search")
    charts = [chart for section in LAYOUT.values() for chart in section]
    assert len(deep_find(browser, "tf-custom-scalar-multi-line-chart-card")) == len(charts)
    for seed in SEEDS:  # the first section is open, with all lines of both runs in one chart
        for line in ("best", "mean", "other", "lower_bound"):
            assert f"step_time/{line}_s (seed-{seed})" in text


def test_hparams_lists_both_runs(browser: Any, board: str) -> None:
    open_tab(browser, board, "hparams")
    wait_for_text(browser, "cluster graph groups preset seed step_time/best_s", *(f"seed-{seed}" for seed in SEEDS))
    assert complaints(browser, "SEVERE") == []
