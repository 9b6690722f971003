"""Inputs that are sent in every step start on the host; those that stay are placed like parameters."""

from __future__ import annotations

import pytest

import placement
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.networkx_graph import from_networkx, to_networkx

CACHE_BYTES = 10**9


def decoding(*, stays: bool) -> ComputationGraph:
    """A token and a cache of keys that one product reads."""
    resident = {"constant": CACHE_BYTES} if stays else {}
    ops = [
        OpRecord("token", "input"),
        OpRecord("cache", "input", resident_bytes=resident),
        OpRecord("attend", "mm", flops=10**10, bytes_accessed=10**6, module="attention"),
    ]
    return build("decoding", ops, [TensorRecord(0, 1000, [2]), TensorRecord(1, CACHE_BYTES, [2], stays)])


@pytest.mark.parametrize("groups", [256, 1])
def test_a_cache_that_stays_is_not_sent(groups: int) -> None:
    for stays in (False, True):
        problem = placement.make_problem(decoding(stays=stays), "k80x2", groups=groups)
        assert problem.op_allowed[0].tolist() == [True, False, False]
        assert problem.op_allowed[1].tolist() == [True, stays, stays]
        simulated = placement.simulate(problem, "exact" if groups == 256 else "heft")
        assert simulated.feasible
        # Either the product takes place on the slow host, or the cache is sent at 10 GB/s.
        assert (simulated.step_time_s < 0.01) == stays
    peak = problem.evaluate_one(simulated.op_placement).peak_memory_bytes
    assert peak.max() < 1.1 * CACHE_BYTES  # once, not twice


def test_a_cache_comes_through_networkx() -> None:
    graph = decoding(stays=True)
    assert from_networkx(to_networkx(graph)).sha256 == graph.sha256
    assert graph.is_sent_input.tolist() == [True, False, False]
