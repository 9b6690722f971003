"""Each verb as a user types it, and each kind of bad input with the message and the exit code that it must give."""

import gzip
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import placement
from graphs.files import load_graph_file, save_graph_file
from graphs.synthetic import random_graph
from placement.api import make_problem
from placement.cli.main import main
from placement.results.placement_file import read_placement
from placement.runs.record import resume_trainer
from tests import forked

ROOT = Path(__file__).resolve().parents[3]

TINY_CLUSTER = """\
format: device-cluster
version: 1
name: tiny
devices:
  - {name: gpu, count: 2, spec: k80}
links:
  - {between: ["gpu:0", "gpu:1"], bytes_per_s: 1e9, latency_s: 1e-5}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small graph file, `g.graph.json`, and a cluster file, `c.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    save_graph_file(random_graph(12, seed=1, resident_bytes=1000, name="small"), "g.graph.json")
    Path("c.yaml").write_text(TINY_CLUSTER)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], code: int, *args: str) -> str:
    """Run the command, which must fail with one line on stderr and nothing of a traceback; returns the line."""
    assert main(args) == code
    said = capsys.readouterr()
    lines = said.err.rstrip("\n").splitlines()
    assert lines[-1].startswith("placement: ")
    assert "Traceback" not in said.err
    return lines[-1].removeprefix("placement: ")


def bad_input(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run the command on bad input, which must end with exit code 2 and one line on stderr; returns the line."""
    assert main(args) == 2
    said = capsys.readouterr()
    assert said.err.startswith("placement: ")
    assert said.err.count("\n") == 1, said.err
    return said.err.removeprefix("placement: ").rstrip("\n")


def edit_graph(change: Callable[[dict[str, Any]], None], path: str = "bad.graph.json") -> None:
    """Write a copy of `g.graph.json` with something changed."""
    content = json.loads(Path("g.graph.json").read_text())
    change(content)
    Path(path).write_text(json.dumps(content))


# Verbs


def test_help_names_every_verb_and_argument(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert {"train", "compare", "simulate", "import", "list"} <= set(capsys.readouterr().out.split())
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--cluster", "--schedule", "--time-limit-s", "--updates", "--seed", "--preset", "--out", "--resume"):
        assert option in out


def test_version_is_that_of_the_distribution(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    said = capsys.readouterr().out
    assert said == f"placement {placement.__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "placement.__version__"}


def test_typed_packages_say_so(here: Path) -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("graphs", "envs", "placement"):
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in data[package]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("graphs", ["rnnlm", "nmt", "3,294     125      432 MB", "steps=40"]),
        ("clusters", ["k80x4", "4 x k80", "mixed", "link_bytes_per_s", "p4d.24xlarge", "8 x a100_40gb"]),
        ("devices", ["v100", "720 GB/s", "rtx_4090", "mi355x", "list devices rtx_40"]),
        ("placers", ["single_device", "expert", "reinforce", "searches"]),
    ],
)
def test_list(here: Path, capsys: pytest.CaptureFixture[str], what: str, expected: list[str]) -> None:
    assert main(["list", what]) == 0
    out = capsys.readouterr().out
    for text in expected:
        assert text in out


def test_help_does_not_wait_for_numpy() -> None:
    code = (
        "import sys; from placement.cli.main import main; code = main(['--help']); "
        "slow = {'numpy', 'scipy', 'networkx', 'numba', 'torch'} & sys.modules.keys(); "
        "sys.exit(str(slow) if slow else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("what", "name", "expected", "absent"),
    [
        ("devices", "v100", ["720 GB/s", "NVIDIA, V100 datasheet, 2020", "v100_16gb"], ["k80", "rtx_4090"]),
        ("devices", "RTX_50*", ["rtx_5090", "Blackwell"], ["rtx_4090"]),
        ("clusters", "p4d", ["p4d.24xlarge", "8 x a100_40gb", "AWS EC2 P4d (2020)"], ["p100x4"]),
        ("clusters", "k80x?", ["k80x2", "k80x8", "BD-07317-001"], ["p2.8xlarge"]),
        ("placers", "heft", ["heft"], ["expert"]),
        ("graphs", "nmt", ["nmt", "layers="], ["rnnlm"]),
    ],
)
def test_a_list_shows_what_has_a_name(
    here: Path, capsys: pytest.CaptureFixture[str], what: str, name: str, expected: list[str], absent: list[str]
) -> None:
    assert main(["list", what, name]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in expected:
        assert text in out
    for text in absent:
        assert text not in out


def test_a_list_of_nothing_says_what_is_near(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "devices", "rtx_3091"]) == 2
    assert "'rtx_3091' (did you mean 'rtx_3090'?)" in capsys.readouterr().err


def test_lists_help_and_typing_errors_load_no_torch(here: Path) -> None:
    code = (
        "import sys; from placement.cli.main import main; "
        "assert main(['list', 'graphs']) == main(['list', 'placers']) == main(['train', '--help']) == 0; "
        "assert main(['train', 'nmt', '--cluster', 'k80']) == 2; "
        "assert 'torch' not in sys.modules and 'numba' not in sys.modules.keys() - {'numba'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=600)


def test_import_writes_the_same_graph(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "g.graph.json", "--out", "copy.graph.json.gz"]) == 0
    assert "12 ops" in capsys.readouterr().out
    assert load_graph_file("copy.graph.json.gz").sha256 == load_graph_file("g.graph.json").sha256


def test_names_are_shown_as_they_are_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("g.graph.json").rename("a[b]:car:.graph.json")
    assert main(["import", "a[b]:car:.graph.json", "--out", "c[red].graph.json"]) == 0
    assert "c[red].graph.json" in capsys.readouterr().out
    assert "a[bold].graph.json" in bad_input(capsys, "import", "a[bold].graph.json", "--out", "c.graph.json")


def test_import_captures_a_model_of_the_users(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_model.py").write_text(
        "import torch\n"
        "def make():\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\n"
        "    return model, torch.zeros(3, 4), lambda out: out.sum()\n"
    )
    assert main(["import", "python:my_model:make", "--out", "mine.graph.json.gz"]) == 0
    graph = load_graph_file("mine.graph.json.gz")
    assert graph.parameter_bytes == 4 * (4 * 8 + 8 + 8 * 2 + 2)
    assert graph.total_flops > 0


def test_compare_shows_and_writes_every_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    placers = "single_device,round_robin,etf,expert"
    args = ["compare", "g.graph.json", "--cluster", "c.yaml", "--placers", placers]
    assert main([*args, "--json", "c.json", "--csv", "c.csv", "--plot", "c.png"]) == 0
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    content = json.loads(Path("c.json").read_text())
    assert set(content) >= {"graph", "cluster", "schedule", "seed", "lower_bound_s", "rows"}
    names = [row["placer"] for row in content["rows"]]
    assert names == ["single_device:gpu:0", "single_device:gpu:1", "round_robin", "etf", "expert"]
    fields = {"placer", "step_time_s", "feasible", "peak_memory_bytes", "search_s", "evaluations"}
    fields |= {"busy_share", "note"}
    assert all(set(row) == fields for row in content["rows"])
    best = min(row["step_time_s"] for row in content["rows"] if row["step_time_s"] is not None)
    assert content["lower_bound_s"] <= best
    for shown in ("single_device gpu:0-1", "round_robin", "etf", "lower bound", "gpu:0", "gpu:1"):
        assert shown in out
    assert (
        Path("c.csv")
        .read_text()
        .startswith("placer,step_time_s,feasible,ratio_to_best,ratio_to_one_device,ratio_to_lower_bound,")
    )


def test_simulate_a_placer_then_the_file_that_train_writes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = ["g.graph.json", "--cluster", "c.yaml"]
    assert main(["train", *problem, "--updates", "2", "--out", "run"]) == 0
    capsys.readouterr()
    files = ["--json", "s.json", "--trace", "trace.json", "--plot", "trace.png"]
    assert main(["simulate", *problem, "--placement", "run/placement.json", *files]) == 0
    assert json.loads(Path("trace.json").read_text())["traceEvents"]
    assert Path("trace.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    content = json.loads(Path("s.json").read_text())
    trained = read_placement("run/placement.json")
    assert content["step_time_s"] == trained.step_time_s
    assert content["peak_memory_bytes"] == trained.peak_memory_bytes
    assert "gpu:1 (k80)" in out
    assert main(["simulate", *problem, "--placement", "single_device", "--schedule", "fifo", "--json", "t.json"]) == 0
    single = json.loads(Path("t.json").read_text())
    assert single["schedule"] == "fifo"
    assert single["transfers"] == 0
    assert min(single["busy_s"].values()) == 0


def test_train_leaves_the_run_directory_of_the_contract(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", "g.graph.json", "--cluster", "c.yaml", "--updates", "3", "--seed", "5"]
    assert main(args) == 0
    out = capsys.readouterr().out
    run = here / "runs" / "g-tiny-1"
    assert "runs/g-tiny-1/placement.json" in out
    files = {p.name for p in run.iterdir()}
    assert {"config.json", "placement.json", "comparison.json", "checkpoint.pt"} <= files
    assert any(name.startswith("events.out.tfevents.") for name in files)
    assert not any(name.endswith(".tmp") for name in files)
    config = json.loads((run / "config.json").read_text())
    assert (config["graph"], config["updates"], config["seed"]) == ("g.graph.json", 3, 5)
    assert set(config["versions"]) >= {"python", "torch", "numba"}
    comparison = json.loads((run / "comparison.json").read_text())
    assert comparison["rows"][-1]["placer"] == "reinforce"
    result = read_placement(run / "placement.json")
    assert result.feasible
    assert result.step_time_s == comparison["rows"][-1]["step_time_s"]
    assert (result.placer.name, result.placer.seed) == ("reinforce", 5)
    assert main(args) == 0
    assert (here / "runs" / "g-tiny-2" / "placement.json").read_bytes() == (run / "placement.json").read_bytes()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = ["g.graph.json", "--cluster", "c.yaml", "--groups", "5"]
    assert main(["train", *problem, "--updates", "4", "--out", "whole"]) == 0
    assert main(["train", *problem, "--updates", "2", "--out", "parts"]) == 0
    assert main(["train", "--resume", "parts", "--updates", "4"]) == 0
    assert Path("parts/placement.json").read_bytes() == Path("whole/placement.json").read_bytes()
    capsys.readouterr()
    message = bad_input(capsys, "train", "--resume", "parts", "--seed", "3")
    assert message.startswith("cannot resume 'parts' with seed '3': the run has '0'")
    assert "leave out --out" in bad_input(capsys, "train", "--resume", "parts", "--out", "other")
    message = bad_input(capsys, "train", *problem, "--out", "parts")
    assert message.startswith("'parts' holds a run already; continue it with --resume parts")
    Path("g.graph.json").rename("moved.graph.json")
    message = bad_input(capsys, "train", "--resume", "parts")
    assert message.startswith("cannot resume 'parts': graph file 'g.graph.json' does not exist")
    save_graph_file(random_graph(12, seed=2, name="small"), "g.graph.json")
    message = bad_input(capsys, "train", "--resume", "parts")
    assert message.startswith("cannot resume 'parts': graph 'g.graph.json' changed since")


# Interruptions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_and_keeps_the_best_placement(
    here: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def interrupt() -> None:
        while not Path("run/placement.json").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert main(["train", "g.graph.json", "--cluster", "c.yaml", "--time-limit-s", "600", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "Stopped before the limit" in out
    assert "run/placement.json" in out
    assert read_placement("run/placement.json").feasible
    assert json.loads(Path("run/comparison.json").read_text())["rows"][-1]["placer"] == "reinforce"
    assert Path("run/checkpoint.pt").exists()


def test_a_killed_run_leaves_whole_files_and_can_be_resumed(here: Path) -> None:
    args = ["train", "g.graph.json", "--cluster", "c.yaml", "--updates", "100000", "--out", "run"]
    process = forked.Popen(
        [sys.executable, "-m", "placement.cli", *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.perf_counter() + 600  # a busy machine that has to compile
        while not Path("run/placement.json").exists() and time.perf_counter() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert read_placement("run/placement.json").feasible
    done = 0
    if Path("run/checkpoint.pt").exists():  # only a run that lived long has one; the others begin anew
        problem = make_problem("g.graph.json", "c.yaml")
        done = resume_trainer(problem, Path("run")).updates
    assert main(["train", "--resume", "run", "--updates", str(done + 3)]) == 0
    assert main(["train", *args[1:4], "--updates", str(done + 3), "--out", "whole"]) == 0
    assert Path("run/placement.json").read_bytes() == Path("whole/placement.json").read_bytes()


# Bad input


def test_arguments_that_are_missing_or_wrong(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bad_input(capsys, "trian").startswith("unknown verb 'trian' (did you mean 'train'?)")
    assert "expected one of {train" in bad_input(capsys)
    assert bad_input(capsys, "import", "nmt") == "missing --out FILE.graph.json.gz; see: placement import --help"
    assert bad_input(capsys, "train", "nmt", "--clustr", "x") == (
        "unrecognized options: --clustr, x; see: placement train --help"
    )
    assert "cannot read 'soon'" in bad_input(capsys, "train", "nmt", "--cluster", "k80x2", "--time-limit-s", "soon")
    assert "invalid choice 'latest'" in bad_input(capsys, "train", "nmt", "--cluster", "k80x2", "--preset", "latest")
    assert "needs a GRAPH (or --resume DIR)" in bad_input(capsys, "train", "--cluster", "k80x2")
    for option, value in (("--time-limit-s", "0"), ("--updates", "-1")):
        assert f"{option} is {value}" in bad_input(
            capsys, "train", "g.graph.json", "--cluster", "c.yaml", option, value
        )
    assert "the seed is -1" in bad_input(capsys, "compare", "g.graph.json", "--cluster", "c.yaml", "--seed", "-1")
    assert "the seed is -1" in bad_input(
        capsys, "simulate", "g.graph.json", "--cluster", "c.yaml", "--placement", "random", "--seed", "-1"
    )
    Path("file").touch()
    assert "'file' is a file; give another --out" in bad_input(
        capsys, "train", "g.graph.json", "--cluster", "c.yaml", "--out", "file/run"
    )
    assert "it is a directory" in bad_input(capsys, "compare", "g.graph.json", "--cluster", "c.yaml", "--json", ".")
    assert "wanted number of groups is 0" in bad_input(
        capsys, "compare", "g.graph.json", "--cluster", "c.yaml", "--groups", "0"
    )
    assert "no directory 'no'" in bad_input(
        capsys, "compare", "g.graph.json", "--cluster", "c.yaml", "--json", "no/c.json"
    )
    assert "must end in .graph.json" in bad_input(capsys, "import", "g.graph.json", "--out", "g.json")


def test_on_a_terminal_an_error_is_the_same_sentence(here: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "placement.cli", "import", "nmt"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    assert process.wait(timeout=600) == 2
    said = os.read(ours, 65536).decode()
    os.close(ours)
    assert said == "placement: missing --out FILE.graph.json.gz; see: placement import --help\r\n"


def test_unknown_names(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = bad_input(capsys, "compare", "nmtt", "--cluster", "k80x4")
    assert "'nmtt'" in message
    assert "nmt" in message.replace("nmtt", "")
    message = bad_input(capsys, "train", "nmt", "--cluster", "k80x5")
    assert message.startswith("unknown cluster 'k80x5' (did you mean 'k80x")
    assert "known: k80x8, k80x4, k80x2 and" in message
    message = bad_input(capsys, "compare", "g.graph.json", "--cluster", "c.yaml", "--placers", "heft,metiss")
    assert message.startswith("unknown placer 'metiss'")
    message = bad_input(capsys, "simulate", "g.graph.json", "--cluster", "c.yaml", "--placement", "hefty")
    assert message.startswith("unknown placer, and there is no placement file, 'hefty' (did you mean 'heft'?)")
    message = bad_input(capsys, "simulate", "g.graph.json", "--cluster", "c.yaml", "--placement", "none.json")
    assert message.startswith("cannot read placement file 'none.json': No such file")
    assert "'none.graph.json' does not exist" in bad_input(capsys, "compare", "none.graph.json", "--cluster", "c.yaml")
    assert "holds no run to resume" in bad_input(capsys, "train", "--resume", "nowhere")


def test_graph_files_that_are_not_valid(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message_of(change: Callable[[dict[str, Any]], None]) -> str:
        edit_graph(change)
        return bad_input(capsys, "compare", "bad.graph.json", "--cluster", "c.yaml")

    def make_cycle(content: dict[str, Any]) -> None:
        content["tensors"].append({"producer": "op11", "bytes": 4, "consumers": ["op0"]})

    assert "has a cycle through op 'op" in message_of(make_cycle)
    assert "'ghost'" in message_of(lambda c: c["tensors"][0].update(consumers=["ghost"]))
    assert "op0" in message_of(lambda c: c["ops"][0].update(flops=-1))
    assert "op3" in message_of(lambda c: c["tensors"][3].update(bytes=-5))
    assert "version" in message_of(lambda c: c.update(version=99))
    save_graph_file(load_graph_file("g.graph.json"), "whole.graph.json.gz")
    Path("cut.graph.json.gz").write_bytes(Path("whole.graph.json.gz").read_bytes()[:-20])
    assert "cut.graph.json.gz" in bad_input(capsys, "compare", "cut.graph.json.gz", "--cluster", "c.yaml")
    Path("not.graph.json.gz").write_bytes(gzip.compress(b"{"))
    assert "not.graph.json.gz" in bad_input(capsys, "compare", "not.graph.json.gz", "--cluster", "c.yaml")


def test_a_placement_for_another_graph_or_cluster(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "g.graph.json", "--cluster", "c.yaml", "--updates", "1", "--out", "run"]) == 0
    capsys.readouterr()
    save_graph_file(random_graph(13, seed=1, name="larger"), "h.graph.json")
    message = bad_input(capsys, "simulate", "h.graph.json", "--cluster", "c.yaml", "--placement", "run/placement.json")
    assert message.startswith("the placement was made for graph 'small' and does not place op 'op12' of graph 'larger'")
    Path("d.yaml").write_text(TINY_CLUSTER.replace("name: gpu,", "name: die,").replace('"gpu:', '"die:'))
    message = bad_input(capsys, "simulate", "g.graph.json", "--cluster", "d.yaml", "--placement", "run/placement.json")
    assert "uses device 'gpu:0', which cluster 'tiny' lacks; its devices: die:0, die:1" in message


def test_a_cluster_with_a_device_that_cannot_be_reached(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("cut.yaml").write_text(TINY_CLUSTER.replace("count: 2", "count: 3"))
    message = bad_input(capsys, "compare", "g.graph.json", "--cluster", "cut.yaml")
    assert "device 'gpu:2' cannot be reached from 'gpu:0'" in message


def test_a_model_that_cannot_be_traced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data_dependent.py").write_text(
        "import torch\n"
        "class Branches(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x.sum() if x.sum().item() > 0 else -x.sum()\n"
        "def make():\n"
        "    return Branches(), torch.zeros(3), lambda out: out\n"
    )
    message = bad_input(capsys, "import", "python:data_dependent:make", "--out", "x.graph.json")
    assert "python:data_dependent:make" in message or "Branches" in message or "traced" in message


# Nothing fits


def test_no_feasible_placement_says_which_memory_is_short(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("small.yaml").write_text(
        TINY_CLUSTER.replace("spec: k80", "spec: {like: k80, memory_bytes: 100}").replace("name: tiny", "name: small")
    )
    for verb in ("train", "compare"):
        message = fails(capsys, 3, verb, "g.graph.json", "--cluster", "small.yaml")
        assert "short by" in message
    assert not Path("runs").exists()
    # The residents fit, but not what flows between the ops: only a search can tell.
    Path("medium.yaml").write_text(
        TINY_CLUSTER.replace("spec: k80", "spec: {like: k80, memory_bytes: 10000}").replace(
            "name: tiny", "name: medium"
        )
    )
    for args in (
        ["compare", "g.graph.json", "--cluster", "medium.yaml", "--placers", "single_device,etf"],
        ["train", "g.graph.json", "--cluster", "medium.yaml", "--updates", "2"],
        ["simulate", "g.graph.json", "--cluster", "medium.yaml", "--placement", "single_device"],
    ):
        message = fails(capsys, 3, *args)
        assert "on gpu:" in message
        assert "which has 10 kB: short by" in message


def test_import_keeps_types_of_ops_on_kinds_of_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onnx import parser, save

    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[4, 50] x) => (float[4, 5] y, int64[4, 5] z)
        <int64[1] k = {5}> { a = Relu(x) y, z = TopK(a, k) }"""
    save(parser.parse_model(text), tmp_path / "model.onnx")
    out = tmp_path / "model.graph.json"
    arguments = ["import", str(tmp_path / "model.onnx"), "--out", str(out)]
    assert main([*arguments, "--device-kinds", "TopK=cpu"]) == 0
    ops = {op["type"]: op.get("allowed_kinds") for op in json.loads(out.read_text())["ops"]}
    assert ops == {"input": None, "Relu": None, "TopK": ["cpu"]}
    assert "unknown type of op 'NonZero'" in fails(capsys, 2, *arguments, "--device-kinds", "NonZero=cpu")


def test_import_lists_operators_that_onnx_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onnx import TensorProto, helper, save

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 5])

    nodes = [helper.make_node("Fancy", ["x"], ["y"], domain="com.example", name="fancy")]
    graph = helper.make_graph(nodes, "model", [value("x")], [value("y")])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.example", 1)]
    save(helper.make_model(graph, opset_imports=opsets), tmp_path / "model.onnx")
    assert main(["import", str(tmp_path / "model.onnx"), "--out", str(tmp_path / "model.graph.json")]) == 0
    said = capsys.readouterr()
    assert "model, 2 ops" in said.out
    assert "charged by their bytes alone" in said.err
    assert "com.example::Fancy (1)" in said.err
