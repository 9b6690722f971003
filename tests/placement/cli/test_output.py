"""What the command does where its output is full, closed, without a reader, or not in Unicode: as a shell expects."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphs.files import save_graph_file
from graphs.synthetic import random_graph

ROOT = Path(__file__).resolve().parents[3]
COMMAND = f"{sys.executable} -m placement.cli"


def shell(line: str, here: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, where ``placement`` is the command."""
    return subprocess.run(
        ["bash", "-c", f'placement() {{ {COMMAND} "$@"; }}; {line}'],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=300,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("verb", ["list clusters", "--version", "simulate --help"])
def test_a_full_output_is_one_sentence(verb: str, tmp_path: Path) -> None:
    done = shell(f"placement {verb} > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode() == "placement: cannot write to the standard output (No space left on device)\n"


def test_a_closed_output_is_one_sentence_and_no_file_takes_its_place(tmp_path: Path) -> None:
    save_graph_file(random_graph(12, seed=1), tmp_path / "g.graph.json")
    done = shell("placement import g.graph.json --out h.graph.json >&-", tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode() == "placement: cannot write to the standard output, which is closed\n"
    assert (tmp_path / "h.graph.json").read_bytes() == (tmp_path / "g.graph.json").read_bytes()
    assert shell("placement list clusters >&- 2>&-", tmp_path).returncode == 1
    done = shell("placement list clusters 2>&-", tmp_path)
    assert (done.returncode, b"k80x4" in done.stdout) == (0, True)


def test_a_sentence_that_cannot_be_shown_leaves_the_exit_code(tmp_path: Path) -> None:
    for line in ("placement trian 2>&-", "placement trian 2> /dev/full"):
        done = shell(line, tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


@pytest.mark.parametrize("verb", ["list clusters", "--help"])
def test_without_a_reader_it_ends_quietly_as_by_sigpipe(verb: str, tmp_path: Path) -> None:
    done = shell(f"(placement {verb}; echo $? > code) | true; cat code", tmp_path)
    assert done.stderr == b""
    assert done.stdout == b"141\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_what_the_encoding_lacks_is_a_question_mark(environment: dict[str, str], tmp_path: Path) -> None:
    save_graph_file(random_graph(12, seed=1, name="größe ▇"), tmp_path / "g.graph.json")
    done = shell("placement import g.graph.json --out h.graph.json", tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"h.graph.json: gr" in done.stdout
    assert b"?" in done.stdout
    assert b", 12 ops" in done.stdout
