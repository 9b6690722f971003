"""No op is free where nobody profiled it: it runs where its time is known, or the graph is refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import placement
from envs.clusters.catalog import load_cluster
from envs.cost_model import op_times_s
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError, InputWarning
from graphs.files import save_graph_file
from placement.cli.main import main

SPECS = ("epyc_7742", "a100_fp32", "t4")  # of cluster "mixed"


@st.composite
def profiled_graphs(draw: st.DrawFn) -> ComputationGraph:
    """Chains of ops with any mixture of profiled times, FLOPs and bytes."""
    names = st.sampled_from([*SPECS, "k80", "a100_fp23"])
    times = st.dictionaries(names, st.floats(0, 1), max_size=3)
    count = draw(st.integers(1, 8))
    ops = [
        OpRecord(
            f"op{i}",
            draw(st.sampled_from(["op", "input", "mm"])),
            module=draw(st.sampled_from(["", "a", "b"])),
            flops=draw(st.sampled_from([0, 0, 10**9])),
            bytes_accessed=draw(st.sampled_from([0, 0, 10**6])),
            time_s=draw(times),
        )
        for i in range(count)
    ]
    return build("profiled", ops, [TensorRecord(i, 64, [i + 1]) for i in range(count - 1)])


@settings(max_examples=150, deadline=None)
@given(profiled_graphs())
def test_where_an_op_may_run_its_time_is_known(graph: ComputationGraph) -> None:
    """By definition, op by op: profiled here, or a formula, or free on every spec that was profiled."""
    free = (graph.flops == 0) & (graph.bytes_accessed == 0)
    here = [times for spec, times in graph.time_s.items() if spec in SPECS]
    nowhere = free & ~np.any([times >= 0 for times in here], axis=0) if here else free
    nowhere &= np.any([times > 0 for times in graph.time_s.values()], axis=0) if graph.time_s else False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        if nowhere.any():
            with pytest.raises(InputError, match="time_s for") as caught:
                placement.make_problem(graph, "mixed")
            assert any(f"'op{op}'" in str(caught.value) for op in np.flatnonzero(nowhere))
            return
        problem = placement.make_problem(graph, "mixed")
    for op in range(graph.num_ops):
        known = {spec: times[op] for spec, times in graph.time_s.items() if not np.isnan(times[op])}
        for device in np.flatnonzero(problem.op_allowed[op]).tolist():
            spec = problem.cluster.devices[device].spec.name
            formula = graph.flops[op] > 0 or graph.bytes_accessed[op] > 0
            assert spec in known or formula or not any(known.values())
            if spec in known:
                assert problem.op_time_s[device, op] == known[spec]
        for device in range(problem.num_devices):  # nor does an infeasible placement look good for want of a time
            spec = problem.cluster.devices[device].spec.name
            assert spec in known or problem.op_time_s[device, op] > 0 or not any(known.values())
    assert problem.allowed.any(axis=1).all()


def two(times: dict[str, float], other: dict[str, float], **figures: Any) -> ComputationGraph:
    ops = [OpRecord("first", "op", time_s=times, **figures), OpRecord("second", "op", time_s=other, **figures)]
    return build("two", ops, [TensorRecord(0, 8, [1])])


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"k8O": 0.004}, ["'first'", "'k8O' (did you mean 'k80'?)", "k80x2", "haswell_18c or k80"]),
        ({"v100": 0.004, "p100": 0.002}, ["'first'", "'p100', 'v100'"]),
        ({f"chip{i}": 0.1 for i in range(9)}, ["'first'", "'chip3' and 5 more"]),
    ],
)
def test_an_op_whose_time_is_known_nowhere_is_refused_by_name(times: dict[str, float], words: list[str]) -> None:
    with pytest.warns(InputWarning, match="time_s"), pytest.raises(InputError) as caught:
        placement.make_problem(two(times, {"k80": 0.001}), "k80x2")
    assert all(word in str(caught.value) for word in words), caught.value


def test_ops_of_one_module_that_were_profiled_on_different_devices_are_placed_apart() -> None:
    graph = two({"k80": 0.004}, {"haswell_18c": 0.001})
    simulated = placement.simulate(placement.make_problem(graph, "k80x2", groups=1), "heft")
    assert simulated.feasible
    assert simulated.step_time_s > 0.005
    bound = build("bound", [OpRecord(f"op{i}", "op", time_s={s: 1.0}) for i, s in enumerate(SPECS[:2])], [], [[0, 1]])
    with pytest.raises(InputError, match="times leave none"):
        placement.make_problem(bound, "mixed")


def test_a_profile_that_the_cluster_does_not_use_is_named_and_the_formula_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = two({"k8O": 0.004, "k80": 0.1}, {"k80": 0.1}, flops=10**9)
    with pytest.warns(InputWarning, match=r"'k8O'.*, which no device of cluster 'k80x2' is"):
        placement.make_problem(graph, "k80x2")
    path = tmp_path / "two.graph.json"
    save_graph_file(graph, path)
    assert main(["simulate", str(path), "--cluster", "k80x2", "--placement", "heft"]) == 0
    assert "'k8O'" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placement.make_problem(two({"k80": 0.1, "k80_alone": 0.1}, {"k80_beside": 0.2}, flops=1), "k80x2")


def test_where_an_unknown_time_is_placed_all_the_same_it_is_the_longest_profiled() -> None:
    graph = two({"k80": 0.004, "v100": 0.007}, {})
    cluster = load_cluster("k80x2")
    assert op_times_s(graph, cluster.devices[0].spec).tolist() == [0.007, 0.0]
    problem = PlacementProblem(graph, one_group_an_op(graph), cluster)
    answer = problem.evaluate_ops(np.zeros((1, 2), dtype=np.int32))
    assert (answer.feasible[0], answer.step_time_s[0]) == (False, 0.007)
