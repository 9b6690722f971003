"""Mutated files of every kind: each answer is a result or one sentence, soon, in little memory, without side effects.

A seed and a number name a case: `python -m pytest tests/fuzz -m slow` runs 100,000 of them, 5,000 a test, the plain
suite a few hundred. The same cases run as a person would run them, in a process each, are a sample.
"""

from __future__ import annotations

import gzip
import io
import random
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from envs.make_problem import make_problem
from envs.problem import PlacementProblem
from graphs.errors import LONGEST, InputError, NoFeasiblePlacementError
from graphs.files import encode_graph
from graphs.sources import runs_code
from graphs.synthetic import random_graph
from placement import api
from placement.cli.report import comparison_report, problem_heading, simulated_report
from placement.learning.config import PRESETS
from placement.learning.trainer import Trainer
from placement.placers.base import Budget
from placement.registry import PLACERS
from placement.results.comparison import Comparison, compare_placers
from placement.results.comparison_file import encode_comparison, finished_rows, read_record
from placement.results.placement_file import encode_placement, make_result
from placement.runs import directory
from placement.runs.checkpoint import FILE_NAME
from placement.runs.record import TrainingRecord, resume_trainer
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_onnx, mutate_value, mutate_yaml
from tests.fuzz.watching import watched
from tests.memory import growth
from tests.placement.problems import with_settings

MOST_S, MOST_BYTES = 20.0, 2 * 10**9
PLAIN_BYTES = 5 * 10**8
"""What a process of the command holds before it reads a file."""
MOST_WRONG = 10
"""How many wrong answers a run collects before it gives up."""
SMALL = with_settings(
    PRESETS["default"], hidden_size=8, samples=4, search_moves=64, search_chains=2, search_survivors=1, elites=2
)
BUDGET = Budget(evaluations=4)
SHARES = {
    "graph": 30,
    "gzip": 8,
    "placement": 18,
    "cluster": 18,
    "comparison": 12,
    "config": 6,
    "onnx": 7,
    "checkpoint": 1,
}
"""How many of a hundred cases are of a kind."""


@dataclass(frozen=True)
class Kind:
    """One kind of file: a good one, how it is mutated, and what the command does with it."""

    name: str
    good: bytes
    mutate: Callable[[bytes, random.Random], bytes]
    use: Callable[[Path], object]
    args: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("good")
    graph = random_graph(14, resident_bytes=100)
    graph = replace(graph, tensor_transfer_s=np.where(np.arange(graph.num_tensors) % 3 == 0, 1e-5, np.nan))
    (folder / "good.graph.json").write_bytes(encode_graph(graph))
    problem = make_problem(str(folder / "good.graph.json"), "k80x2")
    console = Console(file=io.StringIO(), width=100)

    def place(made: PlacementProblem) -> None:
        console.print(problem_heading(made))
        console.print(simulated_report(api.simulate(made, "heft")))

    def use_comparison(path: Path) -> None:
        rows = finished_rows(read_record(path), path, problem, seed=0, budget=BUDGET)
        console.print(comparison_report(replace(comparison, rows=rows), width=100))

    def use_config(path: Path) -> None:
        config = directory.read_config(path.parent)
        if not runs_code(config.graph):  # that runs code, as it says
            directory.check_same_problem(path.parent, config, directory.load_problem(path.parent, config))

    comparison: Comparison = compare_placers(
        problem, [PLACERS[name] for name in ("heft", "random")], seed=0, budget=BUDGET
    )
    run = folder / "run"
    directory.create(run, problem, preset="default", seed=0, updates=2)
    trainer = Trainer(problem, config=SMALL)
    trainer.run(updates=1, observer=TrainingRecord(trainer, run))
    result = make_result(problem, problem.to_ops(trainer.best_placement), placer="heft", seed=0)  # type: ignore[arg-type]

    def mutate_checkpoint(data: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.3:
            return mutate_bytes(data, draw)
        content = mutate_value(torch.load(io.BytesIO(data), weights_only=True), draw)
        if isinstance(content, dict):
            content.pop("digest", None)
        file = io.BytesIO()
        torch.save(content, file)
        return file.getvalue()

    def mutate_gzip(data: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.5:
            return mutate_bytes(data, draw)
        return gzip.compress(mutate_json(gzip.decompress(data), draw), 1) * draw.choice((1, 1, 1, 2))

    def simulate(graph_file: str, cluster: str, placement: str) -> tuple[str, ...]:
        return ("simulate", graph_file, "--cluster", cluster, "--placement", placement)

    good = str(folder / "good.graph.json")
    made = [
        Kind("graph", encode_graph(graph), mutate_json, lambda path: place(make_problem(str(path), "k80x2")),
             simulate("FILE.graph.json", "k80x2", "heft")),
        Kind("gzip", gzip.compress(encode_graph(graph)), mutate_gzip,
             lambda path: place(make_problem(str(path), "k80x2")), simulate("FILE.graph.json.gz", "k80x2", "heft")),
        Kind("placement", encode_placement(result), mutate_json,
             lambda path: console.print(simulated_report(api.simulate(problem, path))),
             simulate(good, "k80x2", "FILE.json")),
        Kind("cluster", CLUSTER, mutate_yaml,
             lambda path: place(make_problem(graph, str(path))), simulate(good, "FILE.yaml", "heft")),
        Kind("comparison", encode_comparison(comparison), mutate_json, use_comparison,
             ("compare", good, "--cluster", "k80x2", "--placers", "heft", "--json", "FILE.json")),
        Kind("config", (run / directory.CONFIG).read_bytes(), mutate_json, use_config),
        Kind("checkpoint", (run / FILE_NAME).read_bytes(), mutate_checkpoint,
             lambda path: resume_trainer(problem, path.parent)),
        Kind("onnx", small_onnx(), mutate_onnx, lambda path: place(make_problem(str(path), "k80x2")),
             ("import", "FILE.onnx", "--out", "out.graph.json")),
    ]  # fmt: skip
    return {kind.name: kind for kind in made}


CLUSTER = b"""format: device-cluster
version: 1
name: made
devices:
- {name: "cpu:0", spec: haswell_18c}
- {name: gpu, count: 2, spec: t4}
- {name: gpu, count: 2, start: 2, spec: {like: k80, name: mine, memory_bytes: 8.0e9}}
- name: npu:0
  spec: {name: chip, kind: npu, memory_bytes: 1.0e9, peak_flops_per_s: {float32: 1.0e12}, memory_bytes_per_s: 1.0e11}
- {name: "npu:1", spec: {like: chip, tile: 8, efficiency: {product: 0.5}}}
switches: ["pcie:0"]
links:
- {between: ["pcie:0", "gpu:0-3"], bytes_per_s: 1.2e10, latency_s: 7.5e-06}
- {between: ["cpu:0", "pcie:0"], bytes_per_s: 1.2e10, latency_s: 7.5e-06, back_bytes_per_s: 1.0e10}
- {all: ["npu:*", "cpu:0"], bytes_per_s: 1.0e11, latency_s: 0.0, back_latency_s: 1.0e-6}
shared_memories:
- {name: unified, devices: ["cpu:0", "npu:0"], memory_bytes: 1.6e10}
"""

NAMES = {"config": directory.CONFIG, "checkpoint": FILE_NAME, "graph": "f.graph.json", "gzip": "f.graph.json.gz"}
NAMES |= {"cluster": "f.yaml", "onnx": "f.onnx", "placement": "f.json", "comparison": "f.json"}


def small_onnx() -> bytes:
    """Two products, a reshape by a computed shape and a condition: what importers fold and inline."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    weights = [helper.make_tensor(f"w{i}", kinds.FLOAT, [8, 8], [0.5] * 64) for i in range(2)]
    shape = helper.make_tensor("two", kinds.INT64, [2], [4, 16])
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="/layer/MatMul"),
        helper.make_node("Gemm", ["a", "w1"], ["b"], name="/layer/Gemm", transB=1),
        helper.make_node("Shape", ["b"], ["s"]),
        helper.make_node("Concat", ["b", "a"], ["c"], axis=1),
        helper.make_node("Reshape", ["c", "two"], ["d"]),
        helper.make_node("Softmax", ["d"], ["y"], axis=-1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "small", [value("x", kinds.FLOAT, [4, 8])], [value("y", kinds.FLOAT, [4, 16])], [*weights, shape]
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def fuzz(kinds: dict[str, Kind], folder: Path, *, seed: int, first: int = 0, count: int) -> None:
    """Run `count` cases from number `first` on, and fail with those that answer otherwise; their files stay there."""
    names, weights = list(SHARES), list(SHARES.values())
    answers = {"taken": 0, "refused": 0}
    wrong: list[str] = []
    for number in range(first, first + count):
        draw = random.Random(f"{seed}/{number}")
        kind = kinds[draw.choices(names, weights)[0]]
        path = folder / NAMES[kind.name]
        path.write_bytes(kind.mutate(kind.good, draw))
        began = time.process_time()
        with growth() as grown, watched(folder) as seen, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            complaint = ""
            try:
                kind.use(path)
                answers["taken"] += 1
            except (InputError, NoFeasiblePlacementError) as error:
                said = str(error)
                answers["refused"] += 1
                complaint = "" if said.isprintable() and 10 < len(said) <= LONGEST else f"said {said!r}"
            except BaseException:
                complaint = traceback.format_exc()[-3000:]
        took_s = time.process_time() - began
        complaint += f"did {seen}" if seen else ""
        complaint += f"took {took_s} s" if took_s > MOST_S else ""
        complaint += f"took {grown} bytes" if max(grown, default=0) > MOST_BYTES - PLAIN_BYTES else ""
        if complaint:
            kept = path.rename(folder / f"case-{number}-{path.name}")
            wrong.append(f"case {seed}/{number}, a {kind.name} ({kept}): {complaint}")
            if len(wrong) == MOST_WRONG:
                break
    assert not wrong, "\n".join(wrong)
    assert min(answers.values()) >= count // 50, answers  # neither all good nor all bad


def test_some_mutated_files(kinds: dict[str, Kind], tmp_path: Path) -> None:
    fuzz(kinds, tmp_path, seed=0, count=400)


@pytest.mark.parametrize("number", [8557, 34103, 49741])
def test_cases_that_once_were_answered_otherwise(kinds: dict[str, Kind], tmp_path: Path, number: int) -> None:
    fuzz(kinds, tmp_path, seed=1, first=number, count=1)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 100_000, 5_000))
def test_a_hundred_thousand_mutated_files(kinds: dict[str, Kind], tmp_path: Path, first: int) -> None:
    fuzz(kinds, tmp_path, seed=1, first=first, count=5_000)


COMMAND = "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (4 * 10**9,) * 2); "
COMMAND += "from placement.cli.main import main; code = main(sys.argv[1:]); "
COMMAND += "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"


def as_a_person_would(kind: Kind, folder: Path, number: int) -> None:
    """One case in a process of its own, under the command."""
    path = folder / NAMES[kind.name]
    path.write_bytes(kind.mutate(kind.good, random.Random(f"person/{number}")))
    args = [str(path) if arg.startswith("FILE") else arg for arg in kind.args]
    before = set(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *args], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 2, 3), (number, kind.name, done.stderr[-2000:])
    assert "Traceback" not in done.stderr, (number, kind.name, done.stderr[-2000:])
    *said, peak = done.stderr.strip().splitlines()
    assert int(peak.split()[1]) * 1024 < MOST_BYTES
    if done.returncode:
        assert len(said[-1]) < 1500
    assert set(folder.rglob("*")) - before <= {folder / "out.graph.json"}


@pytest.mark.slow
def test_some_mutated_files_as_a_person_would(kinds: dict[str, Kind], tmp_path: Path) -> None:
    for number in range(60):
        kind = [kind for kind in kinds.values() if kind.args][number % 6]
        as_a_person_would(kind, tmp_path, number)
