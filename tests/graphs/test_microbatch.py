"""Micro-batches: what is repeated, what is done once, where gradients are added up, and how a batch is scaled."""

import functools
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from envs.clusters.catalog import DEVICE_SPECS
from envs.cost_model import op_times_s
from graphs.capture import capture
from graphs.colocation import colocate
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.files import load_graph_file, save_graph_file
from graphs.microbatch import KINDS, MicroBatches, microbatch, repeat
from graphs.sources import load_graph, load_microbatches


class Tied(nn.Module):
    """A word model whose table is its last layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.inner = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Scores of the next word."""
        return self.norm(self.inner(self.table(words)).relu()) @ self.table.weight.T


class Pictures(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Five numbers a picture."""
        return self.second(self.norm(self.first(x)).relu()).mean((2, 3))


class Sparse(nn.Module):
    """A table of which a batch touches some rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5000, 6, sparse=True)
        self.head = nn.Linear(6, 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Four numbers a row."""
        return self.head(self.table(rows))


@functools.cache
def tied(batch: int) -> ComputationGraph:
    words = torch.zeros(batch, dtype=torch.int64)
    return capture(Tied(), (words, words), nn.functional.cross_entropy)


@functools.cache
def pictures(batch: int) -> ComputationGraph:
    x = torch.zeros(batch, 3, 9, 9)
    return capture(Pictures(), (x, torch.zeros(batch, dtype=torch.int64)), nn.functional.cross_entropy)


@functools.cache
def sparse(batch: int) -> ComputationGraph:
    rows = torch.zeros(batch, dtype=torch.int64)
    return capture(Sparse(), (rows, rows), nn.functional.cross_entropy, optimizer="sgd")


def reads(graph: ComputationGraph, op: int) -> list[str]:
    offsets, tensors = graph.input_tensors
    return [graph.op_names[graph.tensor_producer[t]] for t in tensors[offsets[op] : offsets[op + 1]]]


MODELS = [tied, pictures, sparse]


@pytest.mark.parametrize("make", MODELS)
def test_one_micro_batch_is_the_graph_itself(make) -> None:  # type: ignore[no-untyped-def]
    graph = make(8)
    for made in (microbatch(graph, 1), repeat(graph, 1)):
        assert made.graph is graph
        assert (made.origin == np.arange(graph.num_ops)).all()
        assert (made.micro_batch[made.kind == KINDS.index("once")] == -1).all()
        assert (made.micro_batch[made.kind != KINDS.index("once")] == 0).all()


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("count", [2, 4])
def test_scaling_gives_what_a_smaller_batch_gives(make, count: int) -> None:  # type: ignore[no-untyped-def]
    scaled, exact = microbatch(make(64), count), repeat(make(64 // count), count)
    assert scaled.graph.op_names == exact.graph.op_names
    assert scaled.graph.output_shapes == exact.graph.output_shapes
    for column in ("flops", "batch", "resident_bytes", "consumers", "consumer_offsets", "colocation", "phase"):
        np.testing.assert_array_equal(getattr(scaled.graph, column), getattr(exact.graph, column), column)
    np.testing.assert_array_equal(scaled.kind, exact.kind)
    np.testing.assert_array_equal(scaled.micro_batch, exact.micro_batch)
    assert scaled.graph.tensor_bytes.sum() == pytest.approx(exact.graph.tensor_bytes.sum(), rel=0.02)
    assert scaled.graph.bytes_accessed.sum() == pytest.approx(exact.graph.bytes_accessed.sum(), rel=0.02)


@pytest.mark.parametrize("make", MODELS)
def test_flops_and_parameters_are_those_of_the_whole_batch(make) -> None:  # type: ignore[no-untyped-def]
    whole = make(32)
    for count in (1, 2, 8):
        for made in (microbatch(whole, count), repeat(make(32 // count), count)):
            assert made.graph.total_flops == whole.total_flops
            np.testing.assert_array_equal(made.graph.resident_bytes.sum(axis=0), whole.resident_bytes.sum(axis=0))


def by_kind(made: MicroBatches, kind: str) -> list[int]:
    return np.flatnonzero(made.kind == KINDS.index(kind)).tolist()


def test_gradients_are_added_up_where_they_are_made_and_before_tied_sums() -> None:
    whole = tied(8)
    made = repeat(whole, 4)
    graph = made.graph
    sums = by_kind(made, "accumulate")
    # Five parameters, of which the table has two contributions; three sums each.
    producers = Counter(int(made.origin[op]) for op in sums)
    assert sum(producers.values()) == 3 * 6
    for op in sums:
        m = int(made.micro_batch[op])
        first, second = reads(graph, op)
        prefix = "micro0/" if m == 1 else f"micro{m - 1}/"
        assert first.startswith(prefix)
        assert second.startswith(f"micro{m}/")
        assert graph.colocation[op] == graph.colocation[graph.op_names.index(second)] >= 0
    tied_sum = next(op for op in by_kind(made, "once") if graph.type_names[graph.op_type[op]] == "add")
    assert all(name.startswith("micro3/") and "accumulate" in name for name in reads(graph, tied_sum))
    for op in np.flatnonzero(graph.phase == 2).tolist():
        assert all("micro0/" not in name for name in reads(graph, op))


@pytest.mark.parametrize("make", MODELS)
def test_every_op_but_what_is_once_is_there_for_each_micro_batch(make) -> None:  # type: ignore[no-untyped-def]
    whole = make(8)
    made = repeat(whole, 4)
    once = set(by_kind(repeat(whole, 1), "once"))
    for op in range(whole.num_ops):
        copies = made.micro_batch[(made.origin == op) & (made.kind != KINDS.index("accumulate"))]
        assert set(copies.tolist()) == ({-1} if op in once else {0, 1, 2, 3})
    in_forward = [m for m, kind in zip(made.micro_batch, made.kind, strict=True) if kind == 0]
    assert in_forward == sorted(in_forward)
    for edge in range(made.graph.num_edges):  # micro-batches meet only in sums and in what is done once
        a, b = int(made.graph.edge_producer[edge]), int(made.graph.consumers[edge])
        if made.kind[b] != KINDS.index("accumulate") and min(made.micro_batch[a], made.micro_batch[b]) >= 0:
            assert made.micro_batch[a] == made.micro_batch[b]


def test_a_convolutions_gradients_become_two_ops_where_both_are_wanted() -> None:
    whole = pictures(8)
    made = repeat(whole, 2)
    graph = made.graph
    found = {
        name: KINDS[made.kind[op]]
        for op, name in enumerate(graph.op_names)
        if "convolution_backward" in name and name.startswith("micro0/") and "accumulate" not in name
    }
    assert found == {
        "micro0/second/bwd/convolution_backward_0": "input_gradient",
        "micro0/second/bwd/convolution_backward_0/weight": "weight_gradient",
        "micro0/first/bwd/convolution_backward_0": "weight_gradient",  # nobody wants the gradient of pictures
    }
    index = graph.op_names.index
    assert "second.weight" in reads(graph, index("micro0/second/bwd/convolution_backward_0"))
    assert "second.weight" not in reads(graph, index("micro0/second/bwd/convolution_backward_0/weight"))
    assert any("relu" in name for name in reads(graph, index("micro0/second/bwd/convolution_backward_0/weight")))
    assert not any("relu" in name for name in reads(graph, index("micro0/second/bwd/convolution_backward_0")))
    whole_op = whole.op_names.index("second/bwd/convolution_backward_0")
    halves = [op for op in np.flatnonzero(made.origin == whole_op).tolist() if made.micro_batch[op] == 0]
    assert graph.flops[halves].sum() == whole.flops[whole_op]


def test_rows_of_a_table_are_not_summed() -> None:
    made = repeat(sparse(8), 4)
    update = made.graph.op_names.index("table.weight/sgd_update")
    assert sum(name.startswith("micro") for name in reads(made.graph, update)) >= 4
    assert not any("table" in made.graph.op_names[op] for op in by_kind(made, "accumulate"))
    alone = sparse(8)
    assert (
        made.graph.bytes_accessed[update] == 4 * alone.bytes_accessed[alone.op_names.index("table.weight/sgd_update")]
    )


def test_groups_hold_all_copies_of_their_ops() -> None:
    whole = tied(8)
    groups = colocate(whole)
    made = repeat(whole, 4)
    lifted = made.groups(groups)
    assert set(lifted.names) == set(groups.names)
    for op in range(made.graph.num_ops):
        assert lifted.names[lifted.group_of_op[op]] == groups.names[groups.group_of_op[made.origin[op]]]
    with pytest.raises(InputError, match="group the graph that was given"):
        made.groups(colocate(build("x", [OpRecord("a", "mm")], [])))


def test_graph_files_and_profiles_are_scaled(tmp_path: Path) -> None:
    ops = [OpRecord("x", "input"), OpRecord("a", "mm", time_s={"v100": 0.8})]
    graph = build("profile", ops, [TensorRecord(0, 100, [1])])
    made = microbatch(graph, 4).graph
    assert made.time_s["v100"][-1] == pytest.approx(0.2)
    assert made.tensor_bytes.tolist() == [25] * 4
    timed = build("timed", ops, [TensorRecord(0, 100, [1], transfer_s=0.5)])
    assert microbatch(timed, 4).graph.tensor_transfer_s.tolist() == [0.125] * 4
    assert repeat(timed, 4).graph.tensor_transfer_s.tolist() == [0.5] * 4
    path = tmp_path / "step.graph.json"
    save_graph_file(microbatch(tied(8), 2).graph, path)
    assert load_graph_file(path).num_ops == microbatch(tied(8), 2).graph.num_ops
    assert load_microbatches(str(path), 1).graph.num_ops == load_graph(str(path)).num_ops


def test_models_are_captured_with_a_part_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step_in_parts.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def step():\n"
        "    x, y = torch.zeros(12, 5), torch.zeros(12, dtype=torch.int64)\n"
        "    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)), (x, y), nn.functional.cross_entropy\n"
    )
    monkeypatch.chdir(tmp_path)
    source = "python:step_in_parts:step"
    made = load_microbatches(source, 3)
    sys.modules.pop("step_in_parts")
    assert made.graph.total_flops == load_graph(source).total_flops
    first = made.graph.op_names.index("micro2/input")
    assert made.graph.output_shapes[first] == ((4, 5),)
    for count, message in ((5, "batch of 12, which 5"), (0, "is 0; it must be at least 1")):
        with pytest.raises(InputError, match=message):
            load_microbatches(source, count)
    zoo = load_microbatches("rnnlm:batch=8,steps=2", 4)
    assert zoo.graph.name == "4 micro-batches of rnnlm:steps=2,batch=2"
    with pytest.raises(InputError, match="batch of 8, which 3"):
        load_microbatches("rnnlm:batch=8,steps=2", 3)
    with pytest.raises(InputError, match="batch of 8, which 3"):
        microbatch(tied(8), 3)


@pytest.mark.parametrize("model", ["rnnlm:batch=64,steps=3", "dlrm:batch=1024,rows=100000", "bert:layers=1,batch=16"])
def test_op_times_are_those_of_the_smaller_batch(model: str) -> None:
    scaled, exact = microbatch(load_graph(model), 8), load_microbatches(model, 8)
    for spec in ("v100", "a100"):
        given, wanted = (op_times_s(made.graph, DEVICE_SPECS[spec]).sum() for made in (scaled, exact))
        assert given == pytest.approx(wanted, rel=0.06)


@pytest.mark.benchmark
def test_a_hundred_thousand_ops_times_eight() -> None:
    ops = [OpRecord("x", "input", output_shapes=[(8, 4)])]
    ops += [OpRecord(f"a{i}", "mm", batch=8, flops=64, output_shapes=[(8, 4)]) for i in range(50_000)]
    ops += [OpRecord(f"b{i}", "mm", "backward", batch=8, flops=64, output_shapes=[(8, 4)]) for i in range(50_000)]
    graph = build("long", ops, [TensorRecord(i, 128, [i + 1]) for i in range(len(ops) - 1)])
    began_s = time.process_time()
    made = microbatch(graph, 8)
    print(f"{graph.num_ops:,} ops x 8 = {made.graph.num_ops:,} ops in {time.process_time() - began_s:.2f} s of a core")


def test_seconds_of_transfers_are_scaled_and_copied() -> None:
    """A transfer of a batch that takes 1 s takes a quarter for a quarter; that of a weight takes what it took."""
    ops = [
        OpRecord("x", "input", batch=8, output_shapes=[(8, 4)]),
        OpRecord("w", "parameter", resident_bytes={"parameter": 64}, output_shapes=[(4, 4)]),
        OpRecord("mm", "mm", flops=256, bytes_accessed=320, batch=8, output_shapes=[(8, 4)]),
        OpRecord("relu", "relu", bytes_accessed=256, batch=8, output_shapes=[(8, 4)]),
    ]
    tensors = [
        TensorRecord(0, 128, [2], transfer_s=1.0),
        TensorRecord(1, 64, [2], resident=True, transfer_s=0.5),
        TensorRecord(2, 128, [3]),
    ]
    graph = microbatch(build("timed", ops, tensors), 4).graph
    found = Counter(np.nan_to_num(graph.tensor_transfer_s, nan=-1.0).tolist())
    assert found == {0.25: 4, 0.5: 1, -1.0: 4}
