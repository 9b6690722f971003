"""Tables cut by rows or columns: nothing is lost, look-ups are charged by rows, and pooled rows are what is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import placement
from envs.make_problem import make_problem
from graphs.capture import capture
from graphs.computation_graph import PHASES, RESIDENT_PARTS, ComputationGraph
from graphs.errors import InputError
from graphs.files import load_graph_file, save_graph_file
from graphs.sources import load_graph
from graphs.split_tables import By, split_tables, table_bytes
from graphs.tables import find_tables
from placement.cli.main import main

TABLES, ROWS, WIDTH, BATCH = 3, (60, 7, 24), 16, 10


class Tables(nn.Module):
    """Some tables whose pooled rows go through a product."""

    def __init__(self, lookups: int, sparse: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, WIDTH, mode="sum", sparse=sparse) for n in ROWS)
        self.head = nn.Linear(TABLES * WIDTH, 4)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        rows = [table(i) for table, i in zip(self.tables, indices.unbind(0), strict=True)]
        return self.head(torch.cat(rows, dim=1)).sum()


def step(lookups: int = 2, *, sparse: bool = True, optimizer: str = "sgd", training: bool = True) -> ComputationGraph:
    batch = torch.zeros(TABLES, BATCH, lookups, dtype=torch.int64)
    return capture(Tables(lookups, sparse), batch, optimizer=optimizer, training=training, name="tables")


def word_model() -> ComputationGraph:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8))
    return capture(model, torch.zeros(4, 6, dtype=torch.int64), lambda y: y.sum(), optimizer="adam")


def in_table(graph: ComputationGraph, path: str) -> np.ndarray:
    names = [graph.module_names[m] for m in graph.module]
    return np.array([name == path or name.startswith(f"{path}.") for name in names])


STEPS = {
    "sparse": step,
    "dense": lambda: step(sparse=False),
    "adam": lambda: step(1, optimizer="adam"),
    "inference": lambda: step(training=False),
}


@pytest.mark.parametrize("make", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("by", ["rows", "columns"])
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_what_is_kept_and_read_adds_up(make: Callable[[], ComputationGraph], by: By, parts: int) -> None:
    graph = make()
    made = split_tables(graph, by=by, parts={"tables.0": parts})
    assert (made.resident_bytes.sum(axis=0) == graph.resident_bytes.sum(axis=0)).all()
    assert made.total_flops == graph.total_flops
    tables = {table.module: table for table in find_tables(made)}
    assert set(tables) == {f"tables.0_part{i}" for i in range(parts)} | {"tables.1", "tables.2"}
    cut = [tables[f"tables.0_part{i}"] for i in range(parts)]
    assert sum(t.rows for t in cut) == (ROWS[0] if by == "rows" else ROWS[0] * parts)
    assert sum(t.width for t in cut) == (WIDTH if by == "columns" else WIDTH * parts)
    (old,) = (table for table in find_tables(graph) if table.module == "tables.0")
    assert sum(table_bytes(made, t) for t in cut) == table_bytes(graph, old)
    # What each part reads and writes of rows adds up to what the whole did; indices, and by rows the sums, are extra.
    for what in ("lookups", "backward", "updates"):
        new = sum(int(made.bytes_accessed[op]) for t in cut for op in getattr(t, what))
        was = sum(int(graph.bytes_accessed[op]) for op in getattr(old, what))
        assert new >= was
        extra = (parts - 1) * (2 * BATCH * 8 * 4 + (BATCH * WIDTH * 4 if by == "rows" and what == "lookups" else 0))
        assert new - was <= extra
    others = in_table(graph, "tables.1") | in_table(graph, "tables.2") | in_table(graph, "head")
    same = in_table(made, "tables.1") | in_table(made, "tables.2") | in_table(made, "head")
    assert graph.bytes_accessed[others].tolist() == made.bytes_accessed[same].tolist()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("by", ["rows", "columns"])
def test_parts_on_other_devices_exchange_pooled_rows(by: By, training: bool) -> None:
    """The bytes that cross, added up by hand."""
    parts, lookups = 4, 3
    made = split_tables(step(lookups, training=training), by=by, parts={"tables.0": parts})
    problem = make_problem(made, "v100x8")
    ops = np.where(problem.op_allowed[:, 1], 1, 0)  # all on one GPU, but for the inputs
    for i in range(1, parts):
        ops[in_table(made, f"tables.0_part{i}")] = 1 + i
    ops = np.where(problem.op_allowed[np.arange(made.num_ops), ops], ops, 0)
    trace = problem.trace(ops)
    between = (trace.transfer_source > 0) & (trace.transfer_destination > 0)
    sent = int(made.tensor_bytes[trace.transfer_tensor[between]].sum())
    pooled = BATCH * WIDTH * 4
    ways = 2 if training else 1  # the pooled rows, and their gradient back
    away = pooled * (parts - 1) if by == "rows" else pooled * (parts - 1) // parts
    assert sent == ways * away
    from_host = made.tensor_bytes[trace.transfer_tensor[trace.transfer_source == 0]]
    assert from_host.sum() >= parts * BATCH * lookups * 8  # every part gets the indices of its table


def test_by_rows_only_its_share_of_the_rows_is_charged() -> None:
    graph = step(1)
    (old,) = (t for t in find_tables(graph) if t.module == "tables.0")
    made = split_tables(graph, parts={"tables.0": 4})
    parts = [t for t in find_tables(made) if t.module.startswith("tables.0_")]
    looked_up, indices, offsets = BATCH * WIDTH * 4, BATCH * 8, BATCH * 8
    for part in parts:
        (update,) = part.updates
        assert made.bytes_accessed[update] == indices + 3 * looked_up // 4
        (lookup,) = part.lookups
        rows = graph.bytes_accessed[old.lookups[0]] - looked_up - indices - offsets
        assert abs(made.bytes_accessed[lookup] - (looked_up + indices + offsets + rows / 4)) <= 1


def test_a_table_of_words_is_split_too() -> None:
    graph = word_model()
    for by in ("rows", "columns"):
        made = split_tables(graph, by=by, parts={"*": 2})
        assert (made.resident_bytes.sum(axis=0) == graph.resident_bytes.sum(axis=0)).all()
        assert sum(t.module.endswith(("part0", "part1")) for t in find_tables(made)) == 2


def test_only_tables_that_are_too_large_are_cut_and_no_part_is() -> None:
    graph = step(optimizer="adam")
    sizes = {table.module: table_bytes(graph, table) for table in find_tables(graph)}
    assert sizes["tables.0"] == 60 * WIDTH * 4 * 3
    for by in ("rows", "columns"):
        made = split_tables(graph, by=by, most_bytes=3000)
        cut = {table.module: table_bytes(made, table) for table in find_tables(made)}
        assert max(cut.values()) <= 3000
        assert "tables.1" in cut
        assert len([name for name in cut if name.startswith("tables.0_")]) >= 4
    assert split_tables(graph, most_bytes=10**9) is graph


def test_a_table_larger_than_any_device_is_placed_on_accelerators(tmp_path: Path) -> None:
    """DLRM's tables of 41 GB with 16 GB cards: the host alone holds them; in parts eight cards do."""
    whole = load_graph("dlrm")
    assert max(table_bytes(whole, t) for t in find_tables(whole)) > 40e9
    cluster = "v100x8"
    problem = make_problem(whole, cluster)
    limit = int(problem.cluster.memory_bytes[1:].min())
    made = split_tables(whole, most_bytes=limit // 3)
    parts = make_problem(made, cluster)
    tables = find_tables(made)
    assert max(table_bytes(made, t) for t in tables) <= limit // 3
    home = parts.groups.group_of_op[[t.parameter for t in tables]]
    assert len(set(home)) == len(tables)  # each part may go where it likes
    save_graph_file(made, tmp_path / "d.graph.json.gz")
    assert load_graph_file(tmp_path / "d.graph.json.gz").sha256 == made.sha256


def test_the_phases_stay_in_order() -> None:
    made = split_tables(step(), by="columns", parts={"tables.*": 2})
    assert (np.diff(made.phase) >= 0).all()
    assert {PHASES[p] for p in made.phase} == set(PHASES)
    assert RESIDENT_PARTS[0] == "parameter"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parts": {"tables.9": 2}}, "unknown table of graph 'tables' 'tables.9'"),
        ({"parts": {"tables.1": 8}}, "has 7 rows, which do not make 8 parts"),
        ({"by": "columns", "parts": {"tables.1": 17}}, "has 16 columns"),
        ({"by": "diagonals", "parts": {"tables.1": 2}}, "unknown way to split tables 'diagonals'"),
        ({"parts": {"tables.1": 0}}, "give at least 1"),
        ({"most_bytes": 0}, "must be at least 1"),
        ({"most_bytes": 3}, "do not make"),
    ],
)
def test_what_cannot_be_split_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        split_tables(step(), **options)
    assert words in str(error.value)


def test_graphs_without_tables_and_with_measured_times_are_refused() -> None:
    plain = capture(nn.Linear(3, 3), torch.zeros(2, 3), lambda y: y.sum())
    with pytest.raises(InputError, match="no embedding table"):
        split_tables(plain, most_bytes=10)


def test_import_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "d.graph.json"
    source = "dlrm:batch=16,rows=100,width=8"
    assert main(["import", source, "--out", str(out), "--split-tables", "rows:1kB"]) == 0
    graph = load_graph_file(out)
    assert max(table_bytes(graph, t) for t in find_tables(graph)) <= 1000
    for wrong, words in (("rows", "rows:16GB"), ("lines:1GB", "did you mean"), ("rows:many", "is not a size")):
        assert main(["import", source, "--out", str(out), "--split-tables", wrong]) == 2
        assert words in capsys.readouterr().err or words == "did you mean"
    same = placement.import_graph(source, tmp_path / "e.graph.json", split_tables=("rows", 1000))
    assert same.sha256 == graph.sha256
