"""What a plain install can do without the extras, and the sentence that says which one is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from placement.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

HIDDEN = {
    "accelerate": "accelerate",
    "bokeh": "report",
    "matplotlib": "plots",
    "pymetis": "partitioners",
    "ortools": "exact",
    "onnx": "onnx",
    "transformers": "hf",
}
"""Each module that only an extra installs, and the extra."""

AS_IF_ABSENT = (
    f"import sys; sys.modules.update(dict.fromkeys({list(HIDDEN)!r})); "
    "from placement.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


def command(here: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process in which none of the extras' modules can be imported."""
    return subprocess.run(
        [sys.executable, "-c", AS_IF_ABSENT, *args],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    save_graph_file(random_graph(12, seed=1, name="small"), folder / "g.graph.json")
    return folder


def test_the_command_explains_itself_without_the_extras(here: Path) -> None:
    for args in (["--help"], ["compare", "--help"], ["list", "placers"]):
        done = command(here, *args)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_comparison_leaves_out_what_needs_an_extra_and_says_which(here: Path) -> None:
    args = ["compare", "g.graph.json", "--cluster", "k80x2", "--placers", "heft,mincut,exact", "--json", "c.json"]
    done = command(here, *args)
    assert done.returncode == 0, done.stderr
    assert (
        "left out: mincut (not installed: pip install 'device-placement[partitioners]'), "
        "exact (not installed: pip install 'device-placement[exact]')"
    ) in done.stdout
    rows = {row["placer"]: row for row in json.loads((here / "c.json").read_text())["rows"]}
    assert rows["heft"]["feasible"]
    assert rows["mincut"]["note"] == (
        "placer 'mincut' needs PyMetis, which is not installed: pip install 'device-placement[partitioners]'"
    )


def test_training_goes_without_the_extras_and_says_that_there_are_no_pictures(here: Path) -> None:
    done = command(here, "train", "g.graph.json", "--cluster", "k80x2", "--updates", "2", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert (here / "run" / "placement.json").exists()
    assert list((here / "run").glob("events.out.tfevents.*"))
    assert "without pictures of traces, which need: pip install 'device-placement[plots]'" in done.stdout
    assert "mincut (not installed" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["compare", "g.graph.json", "--cluster", "k80x2", "--placers", "heft", "--plot", "p.png"],
            "--plot needs Matplotlib, which is not installed: pip install 'device-placement[plots]'",
        ),
        (
            ["simulate", "g.graph.json", "--cluster", "k80x2", "--placement", "heft", "--plot", "p.png"],
            "--plot needs Matplotlib, which is not installed: pip install 'device-placement[plots]'",
        ),
        (
            ["simulate", "g.graph.json", "--cluster", "k80x2", "--placement", "mincut"],
            "placer 'mincut' needs PyMetis, which is not installed: pip install 'device-placement[partitioners]'",
        ),
        (
            ["compare", "g.graph.json", "--cluster", "k80x2", "--placers", "exact"],
            "placer 'exact' needs OR-tools, which is not installed: pip install 'device-placement[exact]'",
        ),
        (
            ["explain", "p.json", "--html", "p.html"],
            "a report needs Bokeh, which is not installed: pip install 'device-placement[report]'",
        ),
        (
            ["import", "model.onnx", "--out", "m.graph.json"],
            "reading it needs the package 'onnx'; install it with: pip install 'device-placement[onnx]'",
        ),
        (
            ["compare", "hf:llama:num_hidden_layers=1", "--cluster", "k80x2"],
            "graph 'hf:llama:num_hidden_layers=1' needs Transformers, which is not installed: "
            "pip install 'device-placement[hf]'",
        ),
    ],
)
def test_what_needs_an_extra_says_so_in_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(here)
    for module in HIDDEN:
        monkeypatch.setitem(sys.modules, module, None)
    assert main(args) == 2
    last = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
    assert last.startswith("placement: ")
    assert said in last
    assert not (here / "p.png").exists()


def test_each_extra_exists_and_the_tests_need_all_of_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain = " ".join(project["dependencies"])
    extras = project["optional-dependencies"]
    for module, extra in HIDDEN.items():
        assert module not in plain
        assert any(need.startswith(module) for need in extras[extra])
    assert f"device-placement[{','.join(sorted(HIDDEN.values()))}]" in extras["all"]
    assert "device-placement[all,ray]" in extras["test"]  # what `make install` asks for
