"""How hypothesis draws its examples in this suite, which tests may run at the same time, and what keeps it quick."""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# Tests run beside each other, each on one core: threads that wait for work would take it from the others. What needs
# more threads asks PyTorch for them.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

# Python's collector took a fifth of the time in which tests are collected, and finds nothing among what stays; see
# `pytest_collection_finish`.
gc.disable()

# Dozens of processes import the same sources: they are compiled once, whatever this environment says of other programs.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The suite draws the same examples each time, so that what passes today passes tomorrow; new ones are looked for by
# `pytest --hypothesis-profile=explore`, on a desk, where what is found can be mended at once.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("suite")

_ON_REAL_CORES = ("measured", "fidelity", "profile", "run_placement")
"""In the paths of tests that run steps on this machine's cores: one after the other, whatever else runs."""

_MANY = 1000
"""More tests than this are taken for the whole suite, which needs all compiled functions."""


def _is_on_real_cores(item: pytest.Item) -> bool:
    return any(word in item.nodeid.split("[")[0] for word in _ON_REAL_CORES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `pytest -n`, keep the tests of a file together, and all that need the cores."""
    for item in items:
        file = item.nodeid.split("::")[0]
        group = "real cores" if _is_on_real_cores(item) else file
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=_is_on_real_cores, reverse=True)  # they take longest, as they wait for much: so they begin first


@pytest.hookimpl(tryfirst=True)  # before this worker says that it is ready; the tests begin when all are
def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile; and let Python's collector, which captures call often, pass over all that was imported."""
    if len(session.items) > _MANY and int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        from tests.compiling import compile_share

        compile_share(int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")))
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # captures make much that lives as long as they do
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def processes_begin_at_once() -> Iterator[None]:
    """Measuring processes and local workers are forked from one that has imported PyTorch, see `tests.forked`."""
    from tests.forked import Context, subprocess_with_forks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("envs.measured.process.subprocess", subprocess_with_forks())
        patch.setattr("placement.workers.process._CONTEXT", Context)
        patch.setattr("placement.workers.process._FORKS", False)  # these have a template of their own
        yield


@pytest.fixture(scope="session", autouse=True)
def reports_are_made_where_they_are_tested() -> Iterator[None]:
    """Whether a training of a few updates leaves a page, which takes a second or two, would depend on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("placement.runs.training.LEAST_REPORTED_S", math.inf)
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; the test is skipped where it or its driver is not installed."""
    from tests.browser import open_browser

    found = open_browser()
    try:
        yield found
    finally:
        found.quit()
