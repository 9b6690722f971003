"""What README.md and docs show works as it stands there: commands, Python, files and links."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import msgspec
import pytest

from envs.clusters.catalog import load_cluster
from graphs.files import load_graph_file
from placement.cli.main import main, parse
from placement.results.comparison_file import ComparisonRecord
from placement.results.placement_file import PlacementResult
from placement.runs.directory import RunConfig
from tests.pages import GUIDE, PAGES, ROOT, anchors, blocks, commands, links, prose

README = ROOT / "README.md"
OWN_MODEL = GUIDE / "your-own-model.md"

SMALLER = (
    ('"rnnlm"', '"rnnlm:layers=1,hidden=32,steps=3,batch=4,vocabulary=50"'),
    ("num_layers=4", "num_layers=1"),
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [README, OWN_MODEL, *sorted((ROOT / "docs" / "concepts").glob("*.md"))], ids=name)
def test_the_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in blocks(page, "python"):
        if "def place(" in block:
            Path("least_loaded.py").write_text(block)  # what the page says the reader calls it
        code = re.sub(r"time_limit_s=\d+", "time_limit_s=0.5", block)
        for large, small in SMALLER:
            code = code.replace(large, small)
        exec(compile(code, str(page), "exec"), {"__name__": "page"})
    assert page != README or Path("runs/rnnlm/placement.json").exists()


@pytest.mark.parametrize(
    ("page", "weights"), [(README, {"head.weight", "text.layers.5.linear1.bias"}), (OWN_MODEL, {"0.weight", "2.bias"})]
)
def test_the_model_of_ones_own_is_captured(
    page: Path, weights: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's code is captured from a module of the name that the page gives it."""
    monkeypatch.chdir(tmp_path)
    source = next(block for block in blocks(page, "python") if "def make():" in block)
    Path(f"model_of_{page.stem.replace('-', '_')}.py").write_text(source)
    assert main(["import", f"python:model_of_{page.stem.replace('-', '_')}:make", "--out", "m.graph.json.gz"]) == 0
    assert weights <= set(load_graph_file("m.graph.json.gz").op_names)


def test_the_step_of_ones_own_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gan_of_the_page.py").write_text(next(b for b in blocks(OWN_MODEL, "python") if "def make_gan():" in b))
    assert main(["import", "gan_of_the_page.py:make_gan", "--out", "m.graph.json.gz"]) == 0
    updated = {n for n in load_graph_file("m.graph.json.gz").op_names if n.endswith("/adam_update")}
    assert {"generator.0.weight/adam_update", "discriminator.2.bias/adam_update"} <= updated


def test_the_files_are_of_their_formats(tmp_path: Path) -> None:
    page = ROOT / "docs" / "reference" / "formats.md"
    placement, comparison, config, graph = blocks(page, "json")
    assert msgspec.json.decode(placement, type=PlacementResult).ops["input"] == "cpu:0"
    assert msgspec.json.decode(comparison, type=ComparisonRecord).rows[0].placer == "heft"
    assert msgspec.json.decode(config, type=RunConfig).preset == "default"
    (tmp_path / "fc.graph.json").write_text(graph)
    assert load_graph_file(tmp_path / "fc.graph.json").op_names == ("fc.weight", "fc/mm_0")
    (cluster,) = blocks(page, "yaml")
    (tmp_path / "c.yaml").write_text(cluster)
    assert load_cluster(str(tmp_path / "c.yaml")).device_names == ("cpu:0", "gpu:0", "gpu:1")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_what_the_command_takes(page: Path) -> None:
    for args in commands(page):
        assert parse(args) is not None, args
    assert page != README or [args[0] for args in commands(page)] == ["train", "compare", "export"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_names_in_the_code_exist(page: Path) -> None:
    """Those that a page names in full: ``graphs/sources.py``, `graphs.sources.load_graph`."""
    for named in re.findall(r"`((?:graphs|envs|placement|scripts|tests)/[\w./-]*)`", prose(page)):
        assert "NAME" in named or (ROOT / named).exists(), named
    for named in re.findall(r"(?:`|^::: )((?:graphs|envs|placement)(?:\.\w+)+)", prose(page), flags=re.MULTILINE):
        if not named.endswith((".json", ".md", ".pt", ".yaml")):
            pkgutil.resolve_name(named)  # raises where there is no such name


def test_every_page_with_python_is_run_by_some_test() -> None:
    """Those of the guide that are not run here have tests where what they describe is tested."""
    elsewhere = {"clusters.md", "environments.md", "graphs.md", "pipelines.md", "pretrained.md", "run-it.md"}
    elsewhere |= {"this-machine.md"}
    with_python = {page.name for page in PAGES if blocks(page, "python") and page.parent.name != "concepts"}
    assert with_python == elsewhere | {README.name, OWN_MODEL.name}


def test_scripts_and_docstrings_name_pages_that_exist() -> None:
    sources = [path for floor in ("graphs", "envs", "placement", "scripts") for path in (ROOT / floor).rglob("*.py")]
    for path in [*sources, ROOT / "Makefile", *PAGES]:
        for named in re.findall(r"(?<![\w./-])docs/[\w./-]+\.(?:md|json|png)", path.read_text(encoding="utf-8")):
            assert (ROOT / named).exists(), f"{path} names {named}"


def test_the_readme_is_one_screen_of_pitch() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1000
    shown = re.sub(r"`[^`]*`|\]\([^)]*\)", "", prose(README))
    lines = [line for line in shown.splitlines() if not line.startswith("|")]
    for sentence in re.split(r"(?<=[.!?:;])\s", "\n".join(lines)):
        assert len(re.findall(r"\d[\d.,]*", sentence)) <= 2, sentence


def test_the_readmes_results_are_those_of_the_page() -> None:
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    page = (ROOT / "docs" / "results" / "results.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 6
    for row in rows:
        assert row in page
