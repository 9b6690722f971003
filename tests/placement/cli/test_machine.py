"""The verb machine, and the verbs that use this machine, or another's saved outputs, where no cluster is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import placement
from envs.clusters.catalog import load_cluster
from envs.machine.child import Answer
from envs.machine.found import Found
from envs.machine.measured import CopyFigures, DeviceFigures, Measured
from envs.machine.parts import parts_of
from graphs.errors import InputError
from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from placement.cli.machine import mermaid
from placement.cli.main import main
from placement.results.placement_file import make_result, write_placement

DATA = Path(__file__).parents[2] / "envs" / "machine" / "data"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Found]:
    """A folder with a small graph, on a machine of two cores whose measuring is recorded."""
    measurements: list[Found] = []

    def measure(found: Found) -> Answer:
        measurements.append(found)
        two = Found(cpu_name="A [b]CPU[/b]", cores=2, usable_cpus=(0, 1), memory_bytes=10**10, free_bytes=8 * 10**9)
        core = DeviceFigures({"float32": 50e9}, 8e9, 3e-6)
        copies = (CopyFigures("cpu:0", "cpu:1", 4e9, 2e-5),)
        figures = Measured(dict.fromkeys((part.name for part in parts_of(two)), core), copies, when="2026-01-02")
        return Answer((), two, figures)

    monkeypatch.setattr("envs.machine.this._measure", measure)
    monkeypatch.setattr("envs.machine.this.find_gpus", Found)
    monkeypatch.setattr("envs.machine.this.user_cache_path", lambda app: tmp_path / "cache" / app)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    save_graph_file(random_graph(12, seed=1, resident_bytes=1000, name="small"), "g.graph.json")
    return measurements


def test_machine_shows_writes_and_draws(here: list[Found], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["machine", "--out", "my.yaml", "--diagram", "my.mmd"]) == 0
    said = capsys.readouterr().out
    for word in (
        "cpu:0 to cpu:1",
        "a_b_b_1c_measured",
        "float32 50 GFLOP/s",
        "4 GB/s, 10.0 us - memory:0",
        "host 8.0 GB of 10.0 GB",
    ):
        assert word in said
    assert "placement machine --again" in said
    made = load_cluster("my.yaml")
    assert made.device_names == ("cpu:0", "cpu:1")
    assert made.sha256 == placement.machine().cluster.sha256
    assert "measured on 2026-01-02" in made.source
    assert len(here) == 1
    assert main(["machine", "--again"]) == 0
    assert len(here) == 2
    lines = Path("my.mmd").read_text().splitlines()
    assert lines[0] == "flowchart TD"
    assert '  v0 ---|"4 GB/s, 10.0 us"| v2' in lines


def test_a_diagram_cannot_be_broken_by_names() -> None:
    from dataclasses import replace

    cluster = load_cluster("k80x2")
    spec = replace(cluster.devices[0].spec, name='a"]; click v0 "x" <b>')
    odd = replace(cluster, devices=(replace(cluster.devices[0], spec=spec), *cluster.devices[1:]))
    first = mermaid(odd).splitlines()[1]
    assert first.count('"') == 2
    assert "<" not in first


@pytest.mark.parametrize(
    "args",
    [
        ["train", "g.graph.json", "--updates", "1", "--out", "run"],
        ["compare", "g.graph.json", "--placers", "heft,random"],
        ["simulate", "g.graph.json", "--placement", "heft"],
    ],
)
def test_without_a_cluster_the_verbs_use_this_machine_and_say_so(
    here: list[Found], capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    for _ in range(1 if args[0] == "train" else 2):
        assert main(args) == 0
        said = capsys.readouterr()
        assert "no --cluster is given: this machine, as measured on 2026-01-02 (2 x a_b_b_1c_measured" in said.err
        if args[0] == "train":
            assert main(["simulate", "--placement", "run/placement.json"]) == 0
            assert json.loads(Path("run/config.json").read_text())["cluster_file"] == "cluster.yaml"
    assert len(here) == 1


def test_the_verbs_take_another_machines_outputs(here: list[Found], capsys: pytest.CaptureFixture[str]) -> None:
    topology = f"{DATA / 'rtx4090_and_p40.txt'},{DATA / 'rtx4090_and_p40.xml'}:memory_bytes=64e9,cpu=epyc_7742"
    assert main(["compare", "g.graph.json", "--topology", topology, "--placers", "heft"]) == 0
    said = capsys.readouterr()
    assert "small on rtx4090_and_p40" in said.out
    assert "no --cluster is given" not in said.err
    assert main(["machine", "--topology", topology, "--out", "server.yaml"]) == 0
    assert [device.spec.name for device in load_cluster("server.yaml").devices] == ["epyc_7742", "rtx_4090", "p40"]
    assert here == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compare", "g.graph.json", "--cluster", "k80x2", "--topology", "t"], "leave one of them out"),
        (["machine", "--again", "--topology", "t"], "leave one of them out"),
        (["train", "--resume", "run", "--topology", "t"], "knows its cluster; leave out --topology"),
        (["train", "nmt", "--measured", "--devices", "cpu:0", "--topology", "t"], "leave out --topology"),
        (["machine", "--out", "my.txt"], "must end in .yaml or .yml"),
        (["machine", "--out", "no/my.yaml"], "no directory 'no'"),
        (["machine", "--topology", "none.txt"], "cannot read topology file 'none.txt'"),
        (["train", "g.graph.json", "--topology", "none.txt"], "cannot read topology file 'none.txt'"),
    ],
)
def test_bad_input_is_one_sentence(
    here: list[Found], capsys: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    assert main(args) == 2
    said = capsys.readouterr().err
    assert said.startswith("placement: ")
    assert words in said
    assert said.count("\n") == 1
    assert here == []


def test_in_python(here: list[Found]) -> None:
    made = placement.machine(out="my.yaml")
    problem = placement.make_problem("g.graph.json", made.cluster)
    assert problem.cluster.name == "this_machine"
    assert made.measured is not None
    assert made.found.usable_cpus == (0, 1)
    with pytest.raises(InputError, match="cannot be measured from here"):
        placement.machine(topology="t", again=True)


def test_explain_and_export_take_the_cluster_that_a_placement_names_and_else_this_machine(
    here: list[Found], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "g.graph.json", "--placement", "heft", "--json", "s.json"]) == 0
    for cluster, name in ((placement.machine().cluster, "here.json"), (load_cluster("k80x2"), "there.json")):
        problem = placement.make_problem("g.graph.json", cluster)
        made = make_result(problem, problem.allowed.argmax(axis=1), placer="test", seed=0)
        write_placement(name, made)
        capsys.readouterr()
        assert main(["export", name, "g.graph.json", "--out", "ops.json"]) == 0
        said = capsys.readouterr().err
        assert ("this machine" if name == "here.json" else "k80x2, which the placement names") in said
        assert json.loads(Path("ops.json").read_text())["step_time_s"] == made.step_time_s
        assert main(["explain", name, "g.graph.json", "--tries", "0", "--json", "why.json"]) == 0
        assert json.loads(Path("why.json").read_text())["step_time_s"] == made.step_time_s
        placement.export(name, "again.json", graph="g.graph.json")
        assert Path("again.json").read_bytes() == Path("ops.json").read_bytes()
    assert len(here) == 1  # measured once
    capsys.readouterr()
    reserved = placement.make_problem("g.graph.json", "k80x2", reserve={"gpu:0": "1GB"})
    write_placement("r.json", make_result(reserved, reserved.allowed.argmax(axis=1), placer="test", seed=0))
    assert main(["export", "r.json", "g.graph.json", "--out", "ops.json"]) == 0
    assert "its figures are others" in capsys.readouterr().err
