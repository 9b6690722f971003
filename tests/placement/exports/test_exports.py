"""What `placement export` writes: tables of ops, and device maps that Accelerate accepts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from envs.clusters.catalog import load_cluster
from envs.make_problem import make_problem
from envs.problem import PlacementProblem
from graphs.capture import capture
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import PARAMETER
from graphs.errors import InputError
from graphs.files import save_graph_file
from placement.cli.main import main
from placement.exports.accelerate import device_map, simulate_device_map
from placement.results.placement_file import make_result, write_placement
from placement.runs import directory


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(64))
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.shift
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def problem() -> PlacementProblem:
    graph = capture(Model(), torch.zeros(32, 64), lambda y: y.sum(), name="blocks")
    return PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x4"))


def place(problem: PlacementProblem, **device_of: str) -> np.ndarray:
    """Ops by the beginning of their module's path (``_`` for a dot); inputs on the CPU, all else on gpu:0."""
    names = problem.cluster.device_names
    placement = np.full(problem.graph.num_ops, names.index("gpu:0"))
    for op, m in enumerate(problem.graph.module):
        for prefix, device in device_of.items():
            path = problem.graph.module_names[m]
            if path == prefix.replace("_", ".") or path.startswith(prefix.replace("_", ".") + "."):
                placement[op] = names.index(device)
    placement[problem.graph.is_type("input")] = names.index("cpu:0")
    return placement


def test_whole_modules_stand_for_their_parts(problem: PlacementProblem) -> None:
    made = device_map(problem, place(problem, blocks_1="gpu:2", head="gpu:3", blocks_2_second="gpu:1"))
    # A block adds what it was given to what its parts made, so it is not cut.
    assert set(made.devices.items()) >= {("blocks.0", 0), ("blocks.1", 2), ("head", 3)}
    assert {module.module for module in made.moved} <= {"blocks.2", "blocks.2.first", "blocks.2.second"}
    assert "blocks.2" in made.devices
    everywhere_one = device_map(problem, place(problem))
    assert everywhere_one.devices == {"": 0}
    assert everywhere_one.moved == ()
    alone = simulate_device_map(problem, everywhere_one)
    assert alone.feasible
    assert alone.trace.num_transfers == 0
    assert alone.step_time_s == pytest.approx(problem.op_time_s[1].sum())


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match")  # of parameters, which it takes
def test_accelerate_accepts_every_map(problem: PlacementProblem) -> None:
    from accelerate import dispatch_model
    from accelerate.utils import check_device_map

    rng = np.random.default_rng(0)
    gpus = [i for i, name in enumerate(problem.cluster.device_names) if name.startswith("gpu")]
    for _ in range(20):
        # A device a module at random, a few single ops astray.
        of_module = rng.choice(gpus, len(problem.graph.module_names))
        placement = of_module[problem.graph.module]
        astray = rng.random(problem.graph.num_ops) < 0.1
        placement[astray] = rng.choice(gpus, int(astray.sum()))
        made = device_map(problem, placement)
        keys = list(made.devices)
        assert not any(a != b and (a == "" or b.startswith(f"{a}.")) for a in keys for b in keys)
        assert set(keys) <= {name for name, _ in Model().named_modules()} | {"shift"}
        # What the model itself owns goes to the main device, the first GPU, or with the whole model.
        assert "" in keys or made.devices["shift"] == 0
        check_device_map(Model(), made.devices)
        # Each parameter is where its entry says, in what is simulated, too.
        for op in np.flatnonzero(problem.graph.is_type(PARAMETER)):
            name = problem.graph.op_names[op]
            (device,) = (d for k, d in made.devices.items() if k in ("", name) or name.startswith(f"{k}."))
            assert problem.cluster.device_names[made.op_placement[op]] == f"gpu:{device}"
    model = dispatch_model(Model(), dict.fromkeys(made.devices, "cpu"), force_hooks=True, main_device="cpu")
    assert model(torch.zeros(2, 64)).shape == (2, 5)


def test_a_split_module_goes_where_most_of_its_time_is(problem: PlacementProblem) -> None:
    placement = place(problem)
    gpu = problem.cluster.device_names.index
    of_head = np.flatnonzero([problem.graph.module_names[m] == "head" for m in problem.graph.module])
    times = problem.op_time_s[gpu("gpu:1"), of_head]
    placement[of_head[np.argsort(-times)[1:]]] = gpu("gpu:1")  # all but the longest
    made = device_map(problem, placement)
    assert made.devices["head"] == 1
    (moved,) = (m for m in made.moved if m.module == "head")
    assert moved.device == "gpu:1"
    assert moved.moved == pytest.approx(times.max() / times.sum())
    assert (made.op_placement[of_head] == gpu("gpu:1")).all()


def test_devices_that_a_map_cannot_name_are_refused() -> None:
    graph = capture(Model(), torch.zeros(32, 64), lambda y: y.sum())
    other = PlacementProblem(graph, one_group_an_op(graph), load_cluster("tpu_v2x4"))
    tpu = next(i for i, d in enumerate(other.cluster.devices) if d.spec.kind == "tpu")
    with pytest.raises(InputError, match="has no name in a device map"):
        device_map(other, np.full(graph.num_ops, tpu))


def test_the_command(
    problem: PlacementProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_graph_file(problem.graph, "g.graph.json")
    rng = np.random.default_rng(1)
    placement = np.array([rng.choice(np.flatnonzero(row)) for row in problem.allowed])
    result = make_result(problem, placement, placer="test", seed=0)
    write_placement("p.json", result)
    of = ["p.json", "g.graph.json", "--cluster", "k80x4"]

    assert main(["export", *of, "--format", "csv", "--out", "ops.csv"]) == 0
    rows = list(csv.DictReader(Path("ops.csv").read_text().splitlines()))
    assert {row["op"]: row["device"] for row in rows} == result.ops
    assert main(["export", *of, "--out", "ops.json"]) == 0
    document = json.loads(Path("ops.json").read_text())
    assert document["step_time_s"] == result.step_time_s
    assert [{k: str(v) for k, v in row.items()} for row in document["ops"]] == rows

    capsys.readouterr()
    assert main(["export", *of, "--format", "device-map", "--out", "map.json"]) == 0
    said = capsys.readouterr().out
    made = device_map(problem, problem.groups.to_ops(placement))
    assert json.loads(Path("map.json").read_text()) == made.devices
    assert f"{len(made.devices)} entries; under Accelerate" in said
    assert made.moved
    assert "placement train ... --target accelerate" in said
    assert "modules were split" in said

    assert main(["export", "p.json", "g.graph.json", "--out", "named.json"]) == 0
    assert "k80x4, which the placement names" in capsys.readouterr().err
    assert Path("named.json").read_bytes() == Path("ops.json").read_bytes()

    assert main(["export", "p.json", "--out", "x.json"]) == 2
    assert "export of a placement file needs its GRAPH" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--out", "x.json"]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_run_knows_its_graph_and_cluster(
    problem: PlacementProblem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_graph_file(problem.graph, "g.graph.json")
    named = make_problem("g.graph.json", "k80x4")
    directory.create(Path("run"), named, preset="default", seed=0, updates=1)
    assert not list(Path("run").glob("*.gz"))  # the names say it
    placement = np.argmax(problem.allowed, axis=1)
    write_placement("run/placement.json", make_result(problem, placement, placer="test", seed=0))
    assert main(["export", "run", "--format", "csv", "--out", "ops.csv"]) == 0
    assert len(Path("ops.csv").read_text().splitlines()) == problem.graph.num_ops + 1
    capsys.readouterr()
    assert main(["export", "run", "g.graph.json", "--out", "x.json"]) == 2
    assert "leave out GRAPH and --cluster" in capsys.readouterr().err
