"""Replicas are what the original is, their gradients go around the ring, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graphs.capture import capture
from graphs.colocation.rules import colocate
from graphs.computation_graph import INPUT, PHASES, ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.files import load_graph_file, save_graph_file
from graphs.replicate import replica_of_op, replica_placement, replicate


class SmallNet(nn.Module):
    """Two convolutions with batch normalisation, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()
        )
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def small_net(*, training: bool = True) -> ComputationGraph:
    batch = torch.zeros(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64)
    return capture(SmallNet(), batch, nn.CrossEntropyLoss(), training=training, optimizer="momentum", name="small")


def ring_ops(graph: ComputationGraph) -> np.ndarray:
    return np.array(["/all_reduce/" in name for name in graph.op_names])


@pytest.mark.parametrize("replicas", [2, 3, 4])
def test_each_replica_does_the_work_and_keeps_the_memory_of_the_original(replicas: int) -> None:
    graph = small_net()
    made = replicate(graph, replicas)
    replica, ring = replica_of_op(made), ring_ops(made)
    assert made.total_flops == replicas * graph.total_flops
    for number in range(replicas):
        own = (replica == number) & ~ring
        assert own.sum() == graph.num_ops
        position = {name.removeprefix(f"replica{number}/"): i for i, name in enumerate(made.op_names) if own[i]}
        order = [position[name] for name in graph.op_names]
        for column in ("flops", "bytes_accessed", "dtype", "batch", "resident_bytes", "allowed_kinds", "phase"):
            np.testing.assert_array_equal(getattr(made, column)[order], getattr(graph, column))
        assert [made.output_shapes[i] for i in order] == list(graph.output_shapes)
        bound = graph.colocation >= 0
        pairs = zip(graph.colocation[bound], made.colocation[np.array(order)[bound]], strict=True)
        assert len(set(pairs)) == len(set(graph.colocation[bound].tolist()))
    assert made.resident_bytes.sum() == replicas * graph.resident_bytes.sum()
    assert not made.resident_bytes[ring].any()


@pytest.mark.parametrize("replicas", [2, 3, 5])
@pytest.mark.parametrize("bucket_bytes", [1, 4000, 10**9])
def test_replicas_talk_only_to_the_next_one_and_send_each_chunk_twice(replicas: int, bucket_bytes: int) -> None:
    graph = small_net()
    made = replicate(graph, replicas, bucket_bytes=bucket_bytes)
    replica = replica_of_op(made)
    sent: Counter[tuple[int, int]] = Counter()
    for tensor, producer in enumerate(made.tensor_producer):
        readers = made.consumers[made.consumer_offsets[tensor] : made.consumer_offsets[tensor + 1]]
        for there in set(replica[readers].tolist()) - {int(replica[producer])}:
            sent[int(replica[producer]), there] += int(made.tensor_bytes[tensor])
    assert set(sent) == {(i, (i + 1) % replicas) for i in range(replicas)}
    assert sum(sent.values()) == 2 * (replicas - 1) * graph.parameter_bytes
    buckets = len({name.split("/")[2] for name in made.op_names if "/all_reduce/" in name})
    parameters = int((graph.phase == PHASES.index("update")).sum())
    assert buckets == {1: parameters, 10**9: 1}.get(bucket_bytes, buckets)
    assert ring_ops(made).sum() == buckets * replicas * (1 + 2 * (replicas - 1))
    # A chunk is a k-th of its bucket, to the byte.
    for count in sent.values():
        assert abs(count - 2 * (replicas - 1) / replicas * graph.parameter_bytes) <= 2 * buckets


def test_every_update_reads_sums_in_place_of_its_gradient() -> None:
    graph, made = small_net(), replicate(small_net(), 3)
    replica = replica_of_op(made)
    offsets, inputs = made.input_tensors
    for op in np.flatnonzero(made.phase == PHASES.index("update")):
        read = inputs[offsets[op] : offsets[op + 1]]
        types = {made.type_names[made.op_type[made.tensor_producer[t]]] for t in read}
        assert "parameter" in types
        assert types <= {"parameter", "all_reduce_add", "all_reduce_keep"}
        assert len(types) > 1
        assert set(replica[made.tensor_producer[read]]) == {replica[op]}
    # Every sum waits for the gradients of every replica.
    ancestors = reachable_from_all_replicas(made)
    updates = made.phase == PHASES.index("update")
    assert ancestors[updates].all()
    assert updates.sum() == 3 * (graph.phase == PHASES.index("update")).sum()


def reachable_from_all_replicas(graph: ComputationGraph) -> np.ndarray:
    """``bool[N]``: ops that depend on inputs of every replica."""
    replica = replica_of_op(graph)
    seen = np.zeros((graph.num_ops, replica.max() + 1), dtype=bool)
    inputs = graph.op_type == graph.type_names.index(INPUT)
    seen[np.flatnonzero(inputs), replica[inputs]] = True
    for tensor, producer in enumerate(graph.tensor_producer):
        for reader in graph.consumers[graph.consumer_offsets[tensor] : graph.consumer_offsets[tensor + 1]]:
            seen[reader] |= seen[producer]
    return np.asarray(seen.all(axis=1))


def test_buckets_follow_the_backward_pass_and_hold_one_dtype() -> None:
    made = replicate(small_net(), 2, bucket_bytes=2000)
    first = made.op_names.index("replica0/all_reduce/0/bucket")
    offsets, inputs = made.input_tensors
    modules = {
        made.module_names[made.module[made.tensor_producer[t]]] for t in inputs[offsets[first] : offsets[first + 1]]
    }
    assert modules == {"replica0.classifier"}  # the last layer's gradients are ready first
    half = nn.Sequential(nn.Linear(4, 4).half(), nn.Linear(4, 4).float())
    mixed = capture(
        nn.Sequential(half[0], Cast(), half[1]), torch.zeros(2, 4, dtype=torch.float16), lambda y: y.sum(), name="mixed"
    )
    halves = replicate(mixed, 2)
    dtypes = {int(halves.dtype[i]) for i in np.flatnonzero(ring_ops(halves))}
    assert len(dtypes) == 2


class Cast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def test_one_replica_is_the_graph_itself() -> None:
    graph = small_net()
    assert replicate(graph, 1) is graph
    assert not replica_of_op(graph).any()


def test_inference_is_copied_and_nothing_is_summed() -> None:
    graph = small_net(training=False)
    made = replicate(graph, 4)
    assert made.num_ops == 4 * graph.num_ops
    assert made.num_edges == 4 * graph.num_edges


def test_a_replicated_graph_is_a_graph_like_any_other(tmp_path: Path) -> None:
    made = replicate(small_net(), 3)
    save_graph_file(made, tmp_path / "three.graph.json.gz")
    assert load_graph_file(tmp_path / "three.graph.json.gz").sha256 == made.sha256
    groups = colocate(made, wanted_groups=12)
    replica = replica_of_op(made)
    inputs = made.op_type == made.type_names.index(INPUT)
    for group in range(groups.num_groups):
        members = groups.group_of_op == group
        assert inputs[members].all() or len(set(replica[members])) == 1, groups.names[group]


def test_the_experts_placement() -> None:
    made = replicate(small_net(), 2)
    placement = replica_placement(made, [3, 1], host=0)
    replica = replica_of_op(made)
    inputs = made.op_type == made.type_names.index(INPUT)
    assert (placement[inputs] == 0).all()
    assert (placement[~inputs] == np.array([3, 1])[replica[~inputs]]).all()
    assert (replica_placement(made, [3, 1]) == np.array([3, 1])[replica]).all()
    with pytest.raises(InputError, match="has 2 replicas, but 3 devices are given"):
        replica_placement(made, [1, 2, 3])


def test_bad_input_is_refused() -> None:
    graph = small_net()
    with pytest.raises(InputError, match="number of replicas is 0"):
        replicate(graph, 0)
    with pytest.raises(InputError, match="bucket_bytes is 0"):
        replicate(graph, 2, bucket_bytes=0)
    sparse = nn.Sequential(nn.Embedding(1000, 4, sparse=True), nn.Linear(4, 4))
    made = capture(sparse, torch.zeros(3, 5, dtype=torch.int64), lambda y: y.sum(), name="sparse")
    with pytest.raises(InputError, match=r"'0\.weight/adam_update' updates only some rows"):
        replicate(made, 2)


def test_profiled_times_stay_with_the_ops() -> None:
    ops = [
        OpRecord("w", "parameter", resident_bytes={"parameter": 8}),
        OpRecord("g", "mm", "backward", flops=8, time_s={"k80": 1e-3}),
        OpRecord("u", "sgd_update", "update", bytes_accessed=24),
    ]
    graph = build("timed", ops, [TensorRecord(0, 8, [1, 2], resident=True), TensorRecord(1, 8, [2])], [[0, 2]])
    made = replicate(graph, 2)
    assert np.nansum(made.time_s["k80"]) == pytest.approx(2e-3)
    assert made.parameter_bytes == 16
