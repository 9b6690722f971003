"""How hypothesis draws its examples in this suite, and which tests may run at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# The suite draws the same examples each time, so that what passes today passes tomorrow; new ones are looked for by
# `pytest --hypothesis-profile=explore`, on a desk, where what is found can be mended at once.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("suite")

_ON_REAL_CORES = ("measured", "fidelity", "profile", "run_placement")
"""In the paths of tests that run steps on this machine's cores: one after the other, whatever else runs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `pytest -n`, keep the tests of a file together, and all that need the cores."""
    for item in items:
        file = item.nodeid.split("::")[0]
        group = "real cores" if any(word in item.nodeid.split("[")[0] for word in _ON_REAL_CORES) else file
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; the test is skipped where it or its driver is not installed."""
    from tests.browser import open_browser

    found = open_browser()
    try:
        yield found
    finally:
        found.quit()
