"""The cache of machine code: a change anywhere below a function is noticed, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from envs.compiling import called, compiled
from envs.compiling.cache import made_of

BELOW = """
import numpy as np
from envs.compiling import called, inlined

FACTOR = 2
TABLE = np.array([1, 10, 100])
UNUSED = 1

@inlined
def scaled(x):
    return x * FACTOR + TABLE[1]

@called
def through(x):
    return scaled(x)
"""
ABOVE = """
import below
from envs.compiling import compiled
from below import through

@compiled
def run(x):
    return through(x) + below.FACTOR

if __name__ == "__main__":
    import above
    print(above.run(3), sum(above.run.stats.cache_hits.values()))
"""


def run_in(folder: Path, below: str) -> list[int]:
    """The answer, and how often the cache had it, in a new process with other hashes."""
    (folder / "below.py").write_text(below)
    (folder / "above.py").write_text(ABOVE)
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), root]), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONHASHSEED": "random"}
    code = [sys.executable, str(folder / "above.py")]
    ran = subprocess.run(code, env=environment, capture_output=True, text=True, check=True)
    return [int(word) for word in ran.stdout.split()]


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        ("FACTOR = 2", "FACTOR = 5", 30),
        ("[1, 10, 100]", "[1, 20, 100]", 28),
        ("return scaled(x)", "return scaled(x) + 1", 19),
        ("x * FACTOR", "x - FACTOR", 13),
    ],
)
def test_a_change_in_another_file_is_noticed(tmp_path: Path, before: str, after: str, answer: int) -> None:
    assert run_in(tmp_path, BELOW) == [18, 0]
    assert run_in(tmp_path, BELOW.replace(before, after)) == [answer, 0]


def test_what_a_function_does_not_use_is_not_asked_for(tmp_path: Path) -> None:
    assert run_in(tmp_path, BELOW) == [18, 0]
    assert run_in(tmp_path, BELOW.replace("UNUSED = 1", "UNUSED = 2")) == [18, 1]


@called
def _part(x: float) -> float:
    return x + 1.0


@compiled
def _whole(x: float) -> float:
    return 2.0 * _part(x)


def test_a_part_is_in_its_callers_and_has_no_machine_code_of_its_own() -> None:
    assert _whole(3.0) == 8.0
    _part.compile((numba.float64,))  # type: ignore[attr-defined]
    (part,) = _part.overloads.values()  # type: ignore[attr-defined]
    assert part.library.get_pointer_to_function(part.fndesc.llvm_func_name) == 0
    assert made_of(_whole.py_func) != made_of(_part.py_func)  # type: ignore[attr-defined]
