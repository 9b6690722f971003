"""Names from files: what the command prints is printable, and a name that no file can have is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphs.files import encode_graph
from graphs.synthetic import random_graph
from placement.cli.main import main

ESCAPE = "\x1b]0;pwn\x07\x1b[2J\u202e\u2066"


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph and a cluster whose names a terminal would obey."""
    monkeypatch.chdir(tmp_path)
    text = encode_graph(random_graph(12)).decode()
    content = json.loads(text.replace('"op', f'"{json.dumps(ESCAPE)[1:-1]}op')) | {"name": ESCAPE + "n" * 5000}
    (tmp_path / "e.graph.json").write_text(json.dumps(content))
    device = json.dumps(ESCAPE)
    (tmp_path / "e.yaml").write_text(
        f"{{format: device-cluster, version: 1, name: {device}, devices: [{{name: {device}, spec: t4}}, "
        f'{{name: "b", spec: k80}}], links: [{{between: [{device}, "b"], bytes_per_s: 1.0e9, latency_s: 1.0e-6}}]}}'
    )
    return tmp_path


@pytest.mark.parametrize(
    "args",
    [
        ["simulate", "e.graph.json", "--cluster", "e.yaml", "--placement", "heft"],
        ["compare", "e.graph.json", "--cluster", "e.yaml", "--placers", "heft", "random"],
        ["import", "e.graph.json", "--out", "f.graph.json"],
        ["simulate", "e.graph.json", "--cluster", "k80x2", "--placement", ESCAPE],
        ["simulate", ESCAPE, "--cluster", "k80x2"],
        ["simulate", "e.graph.json", "--cluster", ESCAPE],
    ],
)
def test_no_name_reaches_the_terminal_as_it_is(
    hostile: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) in (0, 2)
    said = capsys.readouterr()
    assert said.out or said.err
    for text in (said.out, said.err):
        assert all(line.isprintable() for line in text.split("\n"))


LONG = "a" * 300


@pytest.mark.parametrize(
    "args",
    [
        ["simulate", "e.graph.json", "--cluster", "k80x2", "--placement", f"{LONG}.json"],
        ["simulate", f"{LONG}.graph.json", "--cluster", "k80x2"],
        ["simulate", "e.graph.json", "--cluster", f"{LONG}.yaml"],
        ["simulate", "e.graph.json", "--cluster", "k80x2", "--placement", "heft", "--json", f"{LONG}.json"],
        ["compare", "e.graph.json", "--cluster", "k80x2", "--placers", "heft", "--json", f"{LONG}.json"],
        ["train", "e.graph.json", "--cluster", "k80x2", "--updates", "1", "--out", f"w/{LONG}"],
        ["train", "--resume", LONG],
        ["export", LONG, "--format", "csv", "--out", "x.csv"],
        ["export", "e.graph.json", "--format", "csv", "--out", f"{LONG}/x.csv"],
        ["import", "e.graph.json", "--out", f"{LONG}.graph.json"],
    ],
)
def test_a_name_that_no_file_can_have_is_one_sentence(
    hostile: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    said = capsys.readouterr().err
    assert len(said) < 1500
    assert len(said.strip().split("\n")) == 1
