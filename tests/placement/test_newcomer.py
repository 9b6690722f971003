"""What the guide tells a newcomer to type, from an empty folder and with empty caches, by the clock."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.browser import complaints, wait_for
from tests.placement.results.page.pages import needs_bokeh

ROOT = Path(__file__).parents[2]
MOST_S = 180.0
BUSY = 1.5
"""Load of each core from which a machine is so busy that the clock says nothing; then processor time counts."""


def commands() -> list[list[str]]:
    """The lines of the guide, without the name of the program."""
    guide = (ROOT / "docs" / "guide" / "this-machine.md").read_text(encoding="utf-8")
    found = re.search(r"So from an empty folder:\n\n```\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    return [line.removeprefix("placement ").split() for line in found[1].splitlines()]


@pytest.mark.slow
@needs_bokeh
def test_from_an_empty_folder_to_the_open_page_in_three_minutes(browser: Any, tmp_path: Path) -> None:
    here = tmp_path / "empty"
    here.mkdir()
    lines = commands()
    assert [line[0] for line in lines] == ["machine", "train", "explain"]
    empty = {"XDG_CACHE_HOME": f"{tmp_path / 'cache'}", "NUMBA_CACHE_DIR": f"{tmp_path / 'numba'}"}
    environment = {**os.environ, **empty, "PYTHONPATH": str(ROOT)}
    took_s, said = {}, {}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for line in lines:
        began_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "placement.cli", *line], cwd=here, env=environment, capture_output=True, check=False
        )
        took_s[line[0]] = time.perf_counter() - began_s
        assert done.returncode == 0, done.stderr.decode()
        said[line[0]] = done.stdout.decode()
    began_s = time.perf_counter()
    (report,) = here.glob("runs/*/report.html")
    complaints(browser)
    browser.get(f"file://{report}")
    wait_for(browser, "document.body.dataset.ready")
    took_s["page"] = time.perf_counter() - began_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    parts = ", ".join(f"{what} {s:.1f} s" for what, s in took_s.items())
    print(f"{parts} = {sum(took_s.values()):.1f} s by the clock, {cpu_s:.1f} s of CPU")
    assert complaints(browser) == []
    assert "report.html" in said["train"]
    assert "of a step, the chain of ops that decides it" in " ".join(said["explain"].split())
    is_busy = os.getloadavg()[0] > BUSY * len(os.sched_getaffinity(0))
    assert (cpu_s if is_busy else sum(took_s.values())) < MOST_S
