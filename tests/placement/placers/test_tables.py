"""Greedy rules for embedding tables: worked by hand on small problems, and feasible on large ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.make_problem import make_problem
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.errors import NotServedError
from graphs.sources import load_graph
from graphs.split_tables import split_tables
from graphs.tables import find_tables
from placement.placers import tables, torchrec_planner
from placement.placers.base import Budget
from placement.results.comparison import compare_placers, quick_placers
from tests.placement.placer_problems import training_problem


@pytest.fixture
def without_torchrec(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package is not installed: its published rule."""
    monkeypatch.setattr(torchrec_planner, "is_installed", lambda module: False)


GPU = DeviceSpec("card", "gpu", 1000, {"float32": 1e12}, 1e9)
HOST = DeviceSpec("host", "cpu", 10**6, {"float32": 1e11}, 1e8)


def tables_on(sizes: Sequence[int], rows_read: Sequence[int], gpus: int, memory: int = 1000) -> PlacementProblem:
    """Tables of some bytes, of which some bytes are looked up, and a product that reads what they give."""
    ops = [OpRecord("x", "input", output_shapes=((1,),), dtype="int64")]
    tensors = [TensorRecord(0, 1, [])]
    for i, (size, read) in enumerate(zip(sizes, rows_read, strict=True)):
        ops.append(OpRecord(f"t{i}.weight", "parameter", module=f"t{i}", resident_bytes={"parameter": size}))
        ops[-1].output_shapes = ((size // 4, 1),)
        ops.append(OpRecord(f"t{i}/look", "embedding", module=f"t{i}", bytes_accessed=read + 4))
        tensors[0].consumers = [*tensors[0].consumers, len(ops) - 1]
        tensors.append(TensorRecord(len(ops) - 2, size, [len(ops) - 1], resident=True))
        tensors.append(TensorRecord(len(ops) - 1, 4, []))
    ops.append(OpRecord("head", "mm", module="head", flops=100, bytes_accessed=100))
    for i in range(len(sizes)):
        tensors[2 * i + 2].consumers = [len(ops) - 1]
    graph = build("few tables", ops, tensors, [[2 * i + 1, 2 * i + 2] for i in range(len(sizes))])
    devices = (Device("cpu:0", HOST), *(Device(f"gpu:{i}", replace_memory(memory)) for i in range(gpus)))
    links = tuple(Link("cpu:0", d.name, 1e9, 1e-6) for d in devices[1:])
    return PlacementProblem(graph, one_group_an_op(graph), Cluster("cards", devices, links))


def replace_memory(memory: int) -> DeviceSpec:
    return DeviceSpec("card", "gpu", memory, {"float32": 1e12}, 1e9)


def devices_of(problem: PlacementProblem, placement: np.ndarray) -> list[str]:
    ops = problem.to_ops(placement)
    return [problem.cluster.device_names[ops[table.parameter]] for table in find_tables(problem.graph)]


def ask(problem: PlacementProblem, placer: object) -> list[str]:
    placed = placer(problem, budget=Budget(), rng=np.random.default_rng(0))  # type: ignore[operator]
    return devices_of(problem, placed.placement)


def loads(names: Sequence[str], weights: Sequence[int]) -> list[int]:
    return sorted(sum(w for n, w in zip(names, weights, strict=True) if n == gpu) for gpu in ("gpu:0", "gpu:1"))


def test_by_size_and_by_lookups_balance_what_they_look_at() -> None:
    sizes, read = (400, 200, 160, 120, 80), (8, 40, 400, 16, 200)
    problem = tables_on(sizes, read, 2)
    # 400 | 200, 160 -> 400 | 360, 120 -> 400 | 480, 80 -> 480 | 480
    assert loads(ask(problem, tables.place_by_size), sizes) == [480, 480]
    # 400 | 200, 40, 16, 8: the rows that are looked up
    assert loads(ask(problem, tables.place_by_lookups), read) == [264, 400]


@pytest.mark.usefixtures("without_torchrec")
def test_torchrec_goes_by_time_and_leaves_memory_free() -> None:
    sizes, read = (400, 200, 160, 120, 80), (8, 40, 400, 16, 200)
    problem = tables_on(sizes, read, 2)
    # Without a backward pass a table costs what it accesses over 1 GB/s, and 4 bytes over links of 1 GB/s.
    costs = [r + 4 + 4 for r in read]
    assert loads(ask(problem, tables.place_as_torchrec), costs) == [264 + 4 * 8, 400 + 8]
    # 85% of 500 bytes hold none of 430 bytes.
    tight = tables_on((430, 300), (8, 8), 2, memory=500)
    assert ask(tight, tables.place_as_torchrec)[0] == "cpu:0"
    assert ask(tight, tables.place_by_size)[0].startswith("gpu")


def test_a_torchrec_that_does_not_load_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchrec.py").write_text("raise OSError('undefined symbol: made for another PyTorch')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchrec", raising=False)
    problem = tables_on((400, 200), (8, 40), 2)
    placed = tables.place_as_torchrec(problem, budget=Budget(), rng=np.random.default_rng(0))
    assert placed.note == ("by its published rule: torchrec does not load (undefined symbol: made for another PyTorch)")


@pytest.mark.parametrize(
    ("source", "cluster"), [("dlrm:rows=100000", "a100x4"), ("dlrm:rows=1000000,width=64", "dgx_a100")]
)
def test_torchrecs_own_plan_is_as_good_as_its_rule(source: str, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package, where it is installed for this PyTorch: what is said of it here is what it does."""
    pytest.importorskip("torchrec", reason="torchrec is not installed: pip install torchrec fbgemm-gpu-cpu")
    problem = make_problem(load_graph(source), cluster)
    own = tables.place_as_torchrec(problem, budget=Budget(), rng=np.random.default_rng(0))
    assert own.note.startswith("by the planner of torchrec")
    monkeypatch.setattr(torchrec_planner, "is_installed", lambda module: False)
    rule = tables.place_as_torchrec(problem, budget=Budget(), rng=np.random.default_rng(0))
    steps_s = [float(problem.evaluate_one(placed.placement).step_time_s[0]) for placed in (own, rule)]
    assert steps_s[0] == pytest.approx(steps_s[1], rel=0.02)
    counts = [
        np.bincount(problem.to_ops(p.placement)[[t.parameter for t in find_tables(problem.graph)]]) for p in (own, rule)
    ]
    assert (counts[0] > 0).tolist() == (counts[1] > 0).tolist(), "tables on all accelerators, and none on the host"


@pytest.mark.usefixtures("without_torchrec")
def test_what_no_accelerator_holds_goes_to_the_host() -> None:
    problem = tables_on((2000, 100, 100), (8, 8, 8), 2)
    for placer in (tables.place_by_size, tables.place_by_lookups, tables.place_as_torchrec):
        names = ask(problem, placer)
        assert names[0] == "cpu:0"
        assert set(names[1:]) <= {"gpu:0", "gpu:1"}


def test_they_are_for_graphs_that_are_mostly_tables() -> None:
    other = training_problem(6, 2, seed=1)
    for placer in (tables.place_by_size, tables.place_by_lookups, tables.place_as_torchrec):
        with pytest.raises(NotServedError, match="mostly tables"):
            ask(other, placer)
    assert not {"torchrec", "tables_by_size"} & {info.name for info in quick_placers(other)}


@pytest.mark.parametrize("by", ["rows", "columns"])
def test_split_tables_of_dlrm_fit_where_whole_ones_do_not(by: str) -> None:
    """Tables of 8 and 13 GB in all on cards of 2 GB each, without the host's help."""
    whole = load_graph("dlrm:batch=128,rows=1000000,width=128")
    cluster = "v100x8:memory_bytes=1.5e9"
    names = ["tables_by_size", "tables_by_lookups", "torchrec"]
    chosen = [info for info in quick_placers(make_problem(whole, cluster)) if info.name in names]
    assert [info.name for info in chosen] == names
    made = split_tables(whole, by=by, most_bytes=250_000_000)  # type: ignore[arg-type]
    problem = make_problem(made, cluster)
    rows = compare_placers(problem, chosen, budget=Budget()).rows
    for row in rows:
        assert row.feasible, row.note
        assert row.placement is not None
        assert "cpu:0" not in devices_of(problem, row.placement), row.placer
