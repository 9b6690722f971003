"""A limit of micro-batches in flight: kept by every placement and schedule, and nothing else changes."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from envs.simulator import simulate
from graphs.capture import capture
from graphs.colocation import colocate
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError
from graphs.in_flight import GATE, limit_in_flight
from graphs.microbatch import MicroBatches, repeat


@functools.cache
def captured() -> ComputationGraph:
    model = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 4))
    return capture(model, (torch.zeros(8, 32), torch.zeros(8).long()), nn.CrossEntropyLoss())


def step(count: int, made: int | None = None) -> MicroBatches:
    return repeat(captured(), count, made=made)


@pytest.mark.parametrize("schedule", ["priority", "fifo", "program_order"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_no_more_are_in_flight_under_any_placement(schedule: str, limit: int) -> None:
    micro = step(6)
    limited = limit_in_flight(micro, limit)
    graph = limited.graph
    problem = PlacementProblem(graph, limited.groups(colocate(step(1).graph)), load_cluster("k80x4"), schedule)
    rng = np.random.default_rng(limit)
    works = (limited.micro_batch >= 0) & ~graph.is_type("input")
    for _ in range(8):
        placement = rng.integers(0, 4, problem.num_groups).astype(np.int32)
        trace = simulate(problem.simulator_input, placement[problem.groups.group_of_op])
        start = np.array([trace.op_start_s[works & (limited.micro_batch == m)].min() for m in range(6)])
        end = np.array([trace.op_end_s[works & (limited.micro_batch == m)].max() for m in range(6)])
        assert all(start[m] >= end[m - limit] for m in range(limit, 6))


def test_it_saves_memory_and_leaves_ops_as_they_were() -> None:
    micro = step(8)
    limited = limit_in_flight(micro, 2)
    old, new = micro.graph, limited.graph
    assert new.num_ops == old.num_ops + 6
    kept = ~new.is_type(GATE)
    where = {name: i for i, name in enumerate(new.op_names)}
    order = np.array([where[name] for name in old.op_names])
    for column in ("flops", "bytes_accessed", "resident_bytes", "colocation", "phase", "module"):
        np.testing.assert_array_equal(getattr(new, column)[order], getattr(old, column), column)
    np.testing.assert_array_equal(limited.micro_batch[order], micro.micro_batch)
    np.testing.assert_array_equal(limited.kind[order], micro.kind)
    edges = {(old.op_names[p], old.op_names[c]) for p, c in zip(old.edge_producer, old.consumers, strict=True)}
    pairs = zip(new.edge_producer, new.consumers, strict=True)
    assert {(new.op_names[p], new.op_names[c]) for p, c in pairs if kept[p] and kept[c]} == edges
    assert new.tensor_bytes.sum() == old.tensor_bytes.sum()
    base = colocate(step(1).graph)
    cluster = load_cluster("k80x4")
    peaks = []
    for one in (micro, limited):
        problem = PlacementProblem(one.graph, one.groups(base), cluster, "fifo")
        peaks.append(problem.evaluate(np.ones((1, problem.num_groups), dtype=np.int32)).peak_memory_bytes[0, 1])
    assert peaks[1] < peaks[0]
    assert limit_in_flight(micro, 8) is micro


def test_what_is_no_limit_is_refused() -> None:
    with pytest.raises(InputError, match="it must be at least 1"):
        limit_in_flight(step(3), 0)
    with pytest.raises(InputError, match="has ops of 2 micro-batches of 4; make all"):
        limit_in_flight(step(4, made=2), 1)
