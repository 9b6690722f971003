"""Ops of some types kept on some kinds of device."""

from __future__ import annotations

import numpy as np
import pytest

from graphs.computation_graph import ANY_KIND, DEVICE_KINDS, ComputationGraph, OpRecord, TensorRecord, build
from graphs.device_kinds import parse_kinds, restrict_kinds
from graphs.errors import InputError


def chain() -> ComputationGraph:
    types = ["input", "MatMul", "TopK", "aten::sort", "aten::sort_values", "TopK"]
    ops = [OpRecord(f"op{i}", kind, bytes_accessed=8) for i, kind in enumerate(types)]
    ops[5].allowed_kinds = ["gpu", "cpu"]
    return build("chain", ops, [TensorRecord(i, 8, [i + 1]) for i in range(5)])


def kinds(graph: ComputationGraph) -> list[set[str]]:
    return [{kind for bit, kind in enumerate(DEVICE_KINDS) if mask >> bit & 1} for mask in graph.allowed_kinds.tolist()]


def test_only_those_types_are_kept_where_they_are_told() -> None:
    graph = chain()
    everywhere = set(DEVICE_KINDS)
    assert kinds(graph) == [everywhere] * 5 + [{"cpu", "gpu"}]
    kept = restrict_kinds(graph, parse_kinds("TopK=cpu,aten::sort*=cpu+tpu"))
    assert kinds(kept) == [everywhere, everywhere, {"cpu"}, {"cpu", "tpu"}, {"cpu", "tpu"}, {"cpu"}]
    assert (graph.allowed_kinds[:5] == ANY_KIND).all()
    assert kept.op_names == graph.op_names
    assert np.array_equal(kept.consumers, graph.consumers)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TopKK=cpu", r"unknown type of op 'TopKK' \(did you mean 'TopK'\?\)"),
        ("TopK=cup", r"unknown device kind 'cup' \(did you mean 'cpu'\?\)"),
        ("TopK", "'TopK' does not say where"),
        ("TopK=", "'TopK=' does not say where"),
        ("", "'' does not say where"),
        ("TopK=tpu", "op 'op5' may run on no kind of device any more"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        restrict_kinds(chain(), parse_kinds(text))
