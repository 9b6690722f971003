"""The examples in docstrings give what they say, and every module can be imported."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for floor in ("graphs", "envs", "placement")
    for path in sorted((ROOT / floor).rglob("*.py"))
}

WITH_EXAMPLES = [name for name, path in MODULES.items() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted > 0
    assert done.failed == 0


def test_examples_are_found() -> None:
    assert {"graphs.capture.step", "envs.clusters.catalog", "placement.scenarios"} <= set(WITH_EXAMPLES)


def test_every_module_can_be_imported() -> None:
    for name in MODULES:
        if not name.endswith("__main__"):
            importlib.import_module(name)
