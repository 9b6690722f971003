"""Co-location groups: every rule on a graph made by hand, and what must hold on any graph."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.colocation.coarsening import coarsen, merge_types
from graphs.colocation.groups import Groups, one_group_an_op
from graphs.colocation.rules import colocate, natural_groups
from graphs.computation_graph import ANY_KIND, INPUT, PARAMETER, ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.synthetic import random_graph
from graphs.zoo import load

HEAVY: dict[str, Any] = {"flops": 10**9, "bytes_accessed": 10**6}
LIGHT: dict[str, Any] = {"bytes_accessed": 10}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphs.zoo.cache.user_cache_path", lambda app: tmp_path / app)


def op(name: str, type: str = "mul", **columns: Any) -> OpRecord:
    return OpRecord(name, type, **columns)


def graph_of(ops: list[OpRecord], edges: str, bound: tuple[str, ...] = ()) -> ComputationGraph:
    """A graph whose edges are written ``"a>b,c:40 b>d"``: one tensor (here of 40 bytes, else 100) from a to b and c."""
    index = {o.name: i for i, o in enumerate(ops)}
    tensors = []
    for edge in edges.split():
        producer, _, rest = edge.partition(">")
        readers, _, size = rest.partition(":")
        resident = ops[index[producer]].type == PARAMETER
        tensors.append(
            TensorRecord(index[producer], int(size or 100), [index[r] for r in readers.split(",")], resident)
        )
    return build("g", ops, tensors, [[index[name] for name in names.split()] for names in bound])


def members(graph: ComputationGraph, groups: Groups) -> dict[str, str]:
    """The ops of each group by the group's name, in program order."""
    return {
        name: " ".join(graph.op_names[i] for i in np.flatnonzero(groups.group_of_op == g))
        for g, name in enumerate(groups.names)
    }


def both(graph: ComputationGraph) -> tuple[ComputationGraph, Groups]:
    return graph, natural_groups(graph)


def test_an_lstm_like_cell_over_three_steps() -> None:
    """Calls with forward and backward, weights shared over steps and used once, inputs, a loss of no module."""
    ops = [op("x", INPUT), op("table", PARAMETER, module="embed", resident_bytes={"parameter": 400})]
    ops += [op("look", "embedding", module="embed", **LIGHT), op("w", PARAMETER, module="cell")]
    ops += [op("b", PARAMETER, module="cell")]
    edges = ["x>look", "table>look,up_table", "look>mm0,mm1,mm2", "w>mm0,mm1,mm2,d0,d1,d2,up_w", "b>mm0,mm1,mm2,up_b"]
    for t in range(3):
        ops += [op(f"mm{t}", "mm", module="cell", module_call=t, **HEAVY)]
        ops += [op(f"tanh{t}", "tanh", module="cell", module_call=t, **LIGHT)]
        edges += [f"mm{t}>tanh{t}", f"tanh{t}>{f'mm{t + 1}' if t < 2 else 'loss'},dt{t}"]
    ops += [op("loss", "mean", **LIGHT), op("seed", "ones_like", phase="backward", **LIGHT)]
    edges += ["seed>dt2"]
    for t in (2, 1, 0):
        ops += [op(f"dt{t}", "tanh_backward", phase="backward", module="cell", module_call=t, **LIGHT)]
        ops += [op(f"d{t}", "mm", phase="backward", module="cell", module_call=t, **HEAVY)]
        ops += [op(f"dw{t}", "mm", phase="backward", module="cell", module_call=t, **HEAVY)]
        edges += [
            f"dt{t}>d{t},dw{t}",
            f"d{t}>{f'dt{t - 1}' if t else 'dlook'}",
            f"dw{t}>{f'sum{t}' if t < 2 else 'sum1'}",
        ]
    ops += [op("sum1", "add", phase="backward", module="cell", **LIGHT)]
    ops += [op("sum0", "add", phase="backward", module="cell", **LIGHT)]
    edges += ["sum1>sum0", "sum0>up_w,up_b", "dlook>up_table"]
    ops += [op("dlook", "embedding_backward", phase="backward", module="embed", **LIGHT)]
    ops += [op(f"up_{p}", "adam", phase="update", module=m, **LIGHT) for p, m in [("w", "cell"), ("b", "cell")]]
    ops += [op("up_table", "adam", phase="update", module="embed", **LIGHT)]
    graph = graph_of(ops, " ".join(edges), ("w sum1 sum0 up_w", "b up_b", "table up_table"))
    groups = natural_groups(graph)
    assert members(graph, groups) == {
        "inputs": "x",
        "embed": "table look dlook up_table",
        "cell/parameters": "w b sum1 sum0 up_w up_b",
        "cell/0": "mm0 tanh0 dt0 d0 dw0",
        "cell/1": "mm1 tanh1 dt1 d1 dw1",
        "cell/2": "mm2 tanh2 loss seed dt2 d2 dw2",
    }
    assert [groups.family_names[f] for f in groups.family] == ["inputs", "embed", *["cell"] * 4]
    assert groups.step.tolist() == [0, 0, 0, 0, 1, 2]
    merged = members(graph, colocate(graph, wanted_groups=5))
    assert list(merged) == ["inputs", "embed", "cell/parameters", "cell/0-1", "cell/2"]


def test_a_small_module_is_one_with_its_parts() -> None:
    ops = [op("x", INPUT)]
    ops += [op("conv", "convolution", module="stem.0.conv", **HEAVY), op("bn", module="stem.0.bn", **LIGHT)]
    ops += [op("relu", "relu", module="stem.0", **LIGHT)]
    ops += [op("next", "convolution", module="stem.1.conv", **HEAVY), op("next_relu", module="stem.1", **LIGHT)]
    graph = graph_of(ops, "x>conv conv>bn bn>relu relu>next next>next_relu")
    assert members(graph, natural_groups(graph)) == {
        "inputs": "x",
        "stem.0": "conv bn relu",
        "stem.1": "next next_relu",
    }


def test_a_module_of_many_products_is_not_small() -> None:
    ops = [op(f"branch{i}", "mm", module=f"block.b{i}", **HEAVY) for i in range(5)] + [
        op("cat", module="block", **LIGHT)
    ]
    graph = graph_of(ops, " ".join(f"branch{i}>cat" for i in range(5)))
    assert members(graph, natural_groups(graph)) == {
        **{f"block.b{i}": f"branch{i}" for i in range(5)},
        "block": "cat",
    }
    two = [*ops[:2], ops[5]]
    assert list(members(*both(graph_of(two, "branch0>cat branch1>cat")))) == ["block"]
    three = [*ops[:3], ops[5]]
    assert len(members(*both(graph_of(three, "branch0>cat branch1>cat branch2>cat")))) == 4
    # In many steps, four: an attention step is one group.
    steps = [dataclasses.replace(o, name=f"{o.name}/{t}", module_call=t) for t in range(2) for o in [*ops[:4], ops[5]]]
    edges = " ".join(f"branch{i}/{t}>cat/{t}" for i in range(4) for t in range(2))
    assert list(members(*both(graph_of(steps, edges)))) == ["block/0", "block/1"]


def test_ops_of_a_module_that_loops_over_its_parts_belong_to_the_steps() -> None:
    ops = [op("add0", module="net", **LIGHT), op("mm0", "mm", module="net.cell", **HEAVY)]
    ops += [op("add1", module="net", **LIGHT), op("mm1", "mm", module="net.cell", module_call=1, **HEAVY)]
    graph = graph_of(ops, "add0>mm0 mm0>add1 add1>mm1")
    assert members(graph, natural_groups(graph)) == {"net.cell/0": "add0 mm0", "net.cell/1": "add1 mm1"}


def test_a_module_without_flops_joins_its_only_producer_or_reader() -> None:
    ops = [op("mm", "mm", module="a", **HEAVY), op("norm", module="norm", **LIGHT), op("drop", module="drop", **LIGHT)]
    ops += [
        op("pool", module="pool", **LIGHT),
        op("mm2", "mm", module="b", **HEAVY),
        op("mm3", "mm", module="c", **HEAVY),
    ]
    ops += [op("cat", module="cat", **LIGHT)]
    # `cat` reads two groups; `pool` reads `cat`, which has no FLOPs, and only `mm4` reads it.
    ops += [op("mm4", "mm", module="d", **HEAVY)]
    graph = graph_of(ops, "mm>norm norm>drop drop>mm2,mm3 mm2>cat mm3>cat cat>pool pool>mm4")
    assert members(graph, natural_groups(graph)) == {
        "a": "mm norm drop",
        "b": "mm2",
        "c": "mm3",
        "cat": "cat",
        "d": "pool mm4",
    }


def test_an_embedding_does_not_join_what_reads_it() -> None:
    ops = [op("x", INPUT), op("t1", PARAMETER, resident_bytes={"parameter": 10**6}), op("e1", module="e1", **LIGHT)]
    ops += [op("t2", PARAMETER, resident_bytes={"parameter": 10**6}), op("e2", module="e2", **LIGHT)]
    ops += [op("mm", "mm", module="top", **HEAVY)]
    graph = graph_of(ops, "x>e1,e2 t1>e1 t2>e2 e1>mm e2>mm")
    assert members(graph, natural_groups(graph)) == {"inputs": "x", "e1": "t1 e1", "e2": "t2 e2", "top": "mm"}


def test_leftovers_join_their_only_reader_or_the_largest_inputs_producer() -> None:
    ops = [op("x", INPUT), op("left", "mm", **HEAVY), op("right", "mm", **HEAVY)]
    # `before` has one reader; `sum` two, and more bytes come from `right`; `zeros` reads nothing and has two readers.
    ops += [op("before", **LIGHT), op("zeros", **LIGHT), op("late", "mm", **HEAVY), op("sum", **LIGHT)]
    ops += [op("end1", "mm", **HEAVY), op("end2", "mm", **HEAVY)]
    graph = graph_of(
        ops, "x>left,right,before:9999 left>sum:100 right>sum:200 before>late zeros>late,end1 sum>end1,end2 late>end2"
    )
    assert members(graph, natural_groups(graph)) == {
        "inputs": "x",
        "left": "left",
        "right": "right sum",
        "late": "before zeros late",
        "end1": "end1",
        "end2": "end2",
    }


def test_a_chain_of_leftovers_does_not_become_one_group() -> None:
    ops = [op(f"mm{i}", "mm", flops=10**6, bytes_accessed=10**4) for i in range(50)]
    graph = graph_of(ops, " ".join(f"mm{i}>mm{i + 1}" for i in range(49)))
    assert natural_groups(graph).num_groups == 50
    ops = [op(f"mul{i}", bytes_accessed=100) for i in range(2560)]
    graph = graph_of(ops, " ".join(f"mul{i}>mul{i + 1}" for i in range(2559)))
    assert np.bincount(natural_groups(graph).group_of_op).max() <= 21  # one op and a 128th of all
    ops = [op(f"mm{i}", "mm", flops=1, bytes_accessed=100) for i in range(10_240)]
    graph = graph_of(ops, " ".join(f"mm{i}>mm{i + 1}" for i in range(10_239)))
    assert np.bincount(natural_groups(graph).group_of_op).max() <= 11


def test_backward_leftovers_follow_their_forward_op_and_their_parameter() -> None:
    """A model without modules: two layers, whose weight gradients go to updates that nothing binds.

    `relu` joins its only reader, and its backward follows it.
    """
    ops = [op("x", INPUT), op("w1", PARAMETER), op("mm1", "mm", **HEAVY), op("relu", **LIGHT), op("w2", PARAMETER)]
    ops += [op("mm2", "mm", **HEAVY), op("loss", "mean", **LIGHT)]
    back = {"phase": "backward"}
    ops += [op("seed", **LIGHT, **back), op("dx2", "mm", **HEAVY, **back), op("dw2", "mm", **HEAVY, **back)]
    ops += [op("drelu", **LIGHT, **back), op("dw1", "mm", **HEAVY, **back)]
    ops += [op("up1", phase="update", **LIGHT), op("up2", phase="update", **LIGHT)]
    graph = graph_of(
        ops,
        "x>mm1,dw1 w1>mm1,up1 mm1>relu relu>mm2,drelu,dw2 w2>mm2,dx2,up2 mm2>loss loss>seed seed>dx2,dw2 dx2>drelu "
        "drelu>dw1 dw1>up1 dw2>up2",
    )
    assert members(graph, natural_groups(graph)) == {
        "inputs": "x",
        "mm1": "w1 mm1 dw1 up1",
        "mm2": "relu w2 mm2 loss seed dx2 dw2 drelu up2",
    }


def test_a_residual_sum_joins_its_own_layer() -> None:
    ops = [op("x", "mm", **HEAVY), op("mm1", "mm", **HEAVY), op("sum1", **LIGHT), op("mm2", "mm", **HEAVY)]
    ops += [op("sum2", **LIGHT), op("last", "mm", **HEAVY)]
    graph = graph_of(ops, "x>mm1,sum1 mm1>sum1 sum1>mm2,sum2 mm2>sum2 sum2>last")
    assert members(graph, natural_groups(graph)) == {"x": "x", "mm1": "mm1 sum1", "mm2": "mm2", "last": "sum2 last"}


def test_a_graph_with_times_and_no_flops_keeps_its_ops_apart() -> None:
    ops = [op(f"step{i}", time_s={"k80": 1e-3}) for i in range(20)]
    graph = graph_of(ops, " ".join(f"step{i}>step{i + 1}" for i in range(19)))
    assert natural_groups(graph).num_groups == 20


def test_parameters_of_a_small_module_are_its_own() -> None:
    ops = [op("w1", PARAMETER, module="cell.ih"), op("w2", PARAMETER, module="cell.hh")]
    edges = ["w1>ih0,ih1 w2>hh0,hh1"]
    for t in range(2):
        ops += [op(f"{part}{t}", "mm", module=f"cell.{part}", module_call=t, **HEAVY) for part in ("ih", "hh")]
        ops += [op(f"gate{t}", module="cell", module_call=t, **LIGHT)]
        edges += [f"ih{t}>gate{t} hh{t}>gate{t}"]
    graph = graph_of(ops, " ".join(edges))
    assert members(graph, natural_groups(graph)) == {
        "cell/parameters": "w1 w2",
        "cell/0": "ih0 hh0 gate0",
        "cell/1": "ih1 hh1 gate1",
    }


def test_a_parameter_that_nobody_reads_joins_its_module() -> None:
    ops = [op("x", INPUT), op("norm.count", PARAMETER, module="norm"), op("norm.weight", PARAMETER, module="norm")]
    ops += [op("idle.weight", PARAMETER, module="idle"), op("norm", module="norm", **HEAVY)]
    graph = graph_of(ops, "x>norm norm.weight>norm")
    assert members(*both(graph)) == {
        "inputs": "x",
        "norm": "norm.count norm.weight norm",
        "idle/parameters": "idle.weight",
    }


def test_bound_ops_share_a_group_without_pulling_in_their_modules() -> None:
    ops = [op(f"{m}{i}", "mm", module=m, **HEAVY) for m in "abc" for i in range(2)]
    graph = graph_of(ops, "a0>a1 a1>b0 b0>b1 b1>c0 c0>c1", ("a0 c1",))
    assert members(graph, natural_groups(graph)) == {"a": "a0 a1 c1", "b": "b0 b1", "c": "c0"}


def test_a_normalisation_bound_to_its_running_mean_stays_with_its_module() -> None:
    ops = [op("mean", PARAMETER, module="net.bn"), op("conv", "convolution", module="net.conv", **HEAVY)]
    ops += [op("bn", module="net.bn", **LIGHT), op("mm", "mm", module="fc", **HEAVY)]
    graph = graph_of(ops, "mean>bn conv>bn bn>mm", ("mean bn",))
    assert members(graph, natural_groups(graph)) == {"net.conv": "mean conv bn", "fc": "mm"}


def test_kinds_of_device_are_kept_apart() -> None:
    ops = [
        op("x", INPUT),
        op("y", INPUT, allowed_kinds=["gpu"]),
        op("look", module="m", allowed_kinds=["cpu"], **LIGHT),
    ]
    ops += [op("mm", "mm", module="m", **HEAVY), op("free", allowed_kinds=["cpu", "gpu"], **LIGHT)]
    ops += [op("w", PARAMETER, allowed_kinds=["cpu"])]
    graph = graph_of(ops, "x>look y>mm look>mm mm>free w>mm")
    assert members(graph, colocate(graph, wanted_groups=1)) == {
        "inputs": "x",
        "inputs[gpu]": "y",
        "m[cpu]+1": "look w",
        "m": "mm",
        "free[cpu,gpu]": "free",
    }


def test_bound_ops_of_different_kinds_may_be_where_both_may() -> None:
    ops = [op("a", allowed_kinds=["cpu", "gpu"]), op("b", allowed_kinds=["gpu", "tpu"])]
    assert list(members(*both(graph_of(ops, "a>b", ("a b",))))) == ["a[gpu]"]
    ops = [op("a", allowed_kinds=["cpu"]), op("b", allowed_kinds=["gpu"])]
    with pytest.raises(InputError, match="op 'a' and 1 others must share a device, but no kind of device is allowed"):
        colocate(graph_of(ops, "a>b", ("a b",)))


def test_merging_takes_steps_first_and_the_lightest() -> None:
    ops, edges = [], []
    for t in range(8):
        for layer, flops in (("cells.0", 100), ("cells.1", 300)):
            ops.append(op(f"{layer}/{t}", "mm", module=layer, module_call=t, flops=flops * 10**6))
        edges += [f"cells.0/{t}>cells.1/{t}"]
        edges += [f"{layer}/{t}>{layer}/{t + 1}" for layer in ("cells.0", "cells.1") if t < 7]
    graph = graph_of(ops, " ".join(edges))
    assert natural_groups(graph).num_groups == 16
    groups = colocate(graph, wanted_groups=12)
    assert sorted(groups.names) == sorted(
        ["cells.0/0-1", "cells.0/2-3", "cells.0/4-5", "cells.0/6-7", *(f"cells.1/{t}" for t in range(8))]
    )
    assert groups.names[:3] == ("cells.0/0-1", "cells.1/0", "cells.1/1")
    assert groups.step.tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]
    assert sorted(colocate(graph, wanted_groups=2).names) == ["cells.0/0-7", "cells.1/0-7"]


def test_merging_joins_a_branch_before_parallel_branches() -> None:
    ops = [op(f"{b}{i}", "convolution", module=f"block.{b}.{i}", **HEAVY) for b in "abc" for i in range(2)]
    ops += [op("cat", module="block", **LIGHT)]
    graph = graph_of(ops, "a0>a1 b0>b1 c0>c1 a1>cat b1>cat c1>cat")
    groups = colocate(graph, wanted_groups=4)
    assert members(graph, groups) == {
        "block.a.0+1": "a0 a1",
        "block.b.0+1": "b0 b1",
        "block.c.0+1": "c0 c1",
        "block": "cat",
    }


def test_shared_parameters_do_not_come_between_steps() -> None:
    """The weight is read first by the step's second op, so it stands between the steps in (family, step) order."""
    ops = [op("tanh0", module="cell", **LIGHT), op("w", PARAMETER, module="cell", resident_bytes={"parameter": 100})]
    ops += [op("mm0", "mm", module="cell", **HEAVY), op("tanh1", module="cell", module_call=1, **LIGHT)]
    ops += [op("mm1", "mm", module="cell", module_call=1, **HEAVY)]
    graph = graph_of(ops, "tanh0>mm0 w>mm0,mm1 mm0>tanh1 tanh1>mm1")
    assert members(graph, colocate(graph, wanted_groups=2)) == {
        "cell/0-1": "tanh0 mm0 tanh1 mm1",
        "cell/parameters": "w",
    }


def test_wanted_groups_must_be_positive() -> None:
    with pytest.raises(InputError, match="the wanted number of groups is 0; it must be at least 1"):
        colocate(random_graph(5), wanted_groups=0)
    with pytest.raises(InputError, match="group this graph again"):
        coarsen(random_graph(5), one_group_an_op(random_graph(6)), 1)


@st.composite
def graphs(draw: st.DrawFn) -> ComputationGraph:
    count = draw(st.integers(1, 25))
    choices: list[list[list[str] | None]] = [[None], [None], [None, ["cpu"], ["cpu", "gpu"]]]
    kinds = draw(st.sampled_from(choices))
    modules = draw(st.sampled_from([[""], ["a", "b"], ["", "a", "a.b", "a.b.c", "a.c", "b.0", "b.1"]]))
    ops = [
        OpRecord(
            name=f"op{i}",
            type=draw(st.sampled_from(["mm", "mul", "mul", INPUT, PARAMETER])),
            phase=draw(st.sampled_from(["forward", "forward", "backward", "update"])),
            module=draw(st.sampled_from(modules)),
            module_call=draw(st.integers(0, 2)),
            flops=draw(st.sampled_from([0, 0, 10, 10**6])),
            bytes_accessed=draw(st.sampled_from([0, 10, 10**5])),
            resident_bytes=draw(st.sampled_from([{}, {"parameter": 10}, {"constant": 1000}])),
            allowed_kinds=draw(st.sampled_from(kinds)),
            time_s=draw(st.sampled_from([{}, {}, {"k80": 1e-3}])),
        )
        for i in range(count)
    ]
    tensors = (
        [
            TensorRecord(i, draw(st.integers(0, 3)), sorted(draw(st.sets(st.integers(i + 1, count - 1), max_size=3))))
            for i in draw(st.lists(st.integers(0, count - 2), max_size=40))
            if count > 1
        ]
        if count > 1
        else []
    )
    bound = draw(st.lists(st.lists(st.integers(0, count - 1), max_size=3), max_size=2))
    return build("g", ops, tensors, bound if kinds == [None] else [])


@settings(max_examples=60)
@given(graphs(), st.integers(1, 12))
def test_what_holds_on_any_graph(graph: ComputationGraph, wanted: int) -> None:
    fine = natural_groups(graph)
    groups = colocate(graph, wanted_groups=wanted)
    for found in (fine, groups):
        assert found.group_of_op.shape == (graph.num_ops,)  # a partition: `Groups` itself refuses empty groups
        assert len(set(found.names)) == found.num_groups
        _check_constraints(graph, found)
    _check_nested(groups, fine)
    assert groups.num_groups <= max(wanted, _least(graph))
    if groups.num_groups < wanted:
        assert groups.num_groups == fine.num_groups
    again = colocate(graph, wanted_groups=wanted)
    assert again.names == groups.names
    assert np.array_equal(again.group_of_op, groups.group_of_op)


@settings(max_examples=50)
@given(graphs(), st.lists(st.integers(1, 25), min_size=2, max_size=3))
def test_coarse_groups_are_unions_of_finer_ones(graph: ComputationGraph, wanted: list[int]) -> None:
    finer = one_group_an_op(graph)
    for number in sorted(wanted, reverse=True):
        coarser = coarsen(graph, finer, number)
        _check_nested(coarser, finer)
        finer = coarser


@settings(max_examples=40)
@given(graphs(), st.integers(1, 12), st.integers(1, 25))
def test_groups_can_be_split_into_a_wanted_number(graph: ComputationGraph, coarse: int, wanted: int) -> None:
    finest, groups = one_group_an_op(graph), colocate(graph, wanted_groups=coarse)
    parts = coarsen(graph, finest, wanted, within=groups)
    _check_nested(parts, finest)
    _check_nested(groups, parts)
    _check_constraints(graph, parts)
    assert parts.num_groups == min(max(wanted, _least(graph, groups)), finest.num_groups)


def test_only_what_lies_within_groups_splits_them() -> None:
    graph = random_graph(5)
    finest = one_group_an_op(graph)
    with pytest.raises(InputError, match="group this graph again"):
        coarsen(graph, finest, 1, within=one_group_an_op(random_graph(6)))
    with pytest.raises(InputError, match="has ops in two of the groups that it should be within; give finer groups"):
        coarsen(graph, coarsen(graph, finest, 1), 1, within=finest)


@settings(max_examples=50)
@given(graphs())
def test_ops_merged_by_type_stay_bound_and_apart_by_kind_of_device(graph: ComputationGraph) -> None:
    groups = natural_groups(graph)
    merged = merge_types(graph, groups)
    _check_constraints(graph, merged)
    _check_nested(merged, one_group_an_op(graph))
    free = graph.colocation < 0
    family, pinned = groups.family[groups.group_of_op], _is_pinned(graph)
    columns = (family, graph.phase, graph.op_type, graph.allowed_kinds, pinned)
    keys = list(zip(*(column.tolist() for column in columns), strict=True))
    group_of_key: dict[tuple[int, ...], int] = {}
    for i in np.flatnonzero(free):  # one group a key, and one key a group
        assert group_of_key.setdefault(keys[i], int(merged.group_of_op[i])) == merged.group_of_op[i]
    assert len(set(group_of_key.values())) == len(group_of_key)


def test_types_of_an_unrolled_model_hold_all_its_time_steps() -> None:
    few, many = (load(f"rnnlm:steps={steps},hidden=8,vocabulary=9,batch=2") for steps in (6, 12))
    of_few, of_many = (merge_types(graph, natural_groups(graph)) for graph in (few, many))
    assert of_few.num_groups == of_many.num_groups
    assert set(of_few.names) == set(of_many.names)
    assert len(set(of_many.names)) == of_many.num_groups
    product = of_many.names.index("softmax/forward/addmm")
    mine = np.flatnonzero(of_many.group_of_op == product)
    assert sorted(many.module_call[mine].tolist()) == list(range(12))


def _is_pinned(graph: ComputationGraph) -> np.ndarray:
    types = np.array(graph.type_names)[graph.op_type]
    return (types == INPUT) & (graph.allowed_kinds == ANY_KIND)


def _check_constraints(graph: ComputationGraph, groups: Groups) -> None:
    bound = graph.colocation >= 0
    for number in set(graph.colocation[bound].tolist()):
        assert len(set(groups.group_of_op[graph.colocation == number].tolist())) == 1
    free = ~bound
    pinned = _is_pinned(graph)
    for g in range(groups.num_groups):
        mine = groups.group_of_op == g
        if not (mine & bound).any():
            assert len(set(graph.allowed_kinds[mine & free].tolist())) == 1
            assert len(set(pinned[mine].tolist())) == 1


def _check_nested(coarse: Groups, fine: Groups) -> None:
    for g in range(fine.num_groups):
        assert len(set(coarse.group_of_op[fine.group_of_op == g].tolist())) == 1


def _least(graph: ComputationGraph, within: Groups | None = None) -> int:
    """How many groups kinds of device, inputs and coarser groups force (constraints in these graphs only join)."""
    pinned = _is_pinned(graph)
    holds_inputs = {n for n, p in zip(graph.colocation.tolist(), pinned, strict=True) if p and n >= 0}
    with_inputs = pinned | np.isin(graph.colocation, sorted(holds_inputs))
    coarser = [0] * graph.num_ops if within is None else within.group_of_op.tolist()
    return len(set(zip(graph.allowed_kinds.tolist(), with_inputs.tolist(), coarser, strict=True)))


def test_an_unrolled_language_model_of_the_zoo() -> None:
    graph = load("rnnlm:steps=4,hidden=64,vocabulary=500,batch=8")
    groups = colocate(graph)
    steps = [f"{module}/{t}" for module in ("cells.0", "cells.1", "softmax") for t in range(4)]
    shared = [f"{module}/parameters" for module in ("cells.0", "cells.1", "softmax")]
    assert sorted(groups.names) == sorted(["inputs", "embedding", *shared, *steps])
    for g, name in enumerate(groups.names):
        mine = np.flatnonzero(groups.group_of_op == g)
        phases = set(graph.phase[mine].tolist())
        if name in steps:
            assert phases == {0, 1}
            assert graph.resident_bytes[mine].sum() == 0
        if name in shared:
            # The sum of a gradient over four steps, and one update a parameter.
            types = Counter(graph.type_names[t] for t in graph.op_type[mine])
            assert types["add"] == 3 * types["adam_update"] == 3 * types[PARAMETER] > 0
    merged = colocate(graph, wanted_groups=11)
    _check_nested(merged, groups)
    assert {"inputs", "embedding", *shared} < set(merged.names)
    assert sum("-" in name for name in merged.names) == 6  # pairs of time steps


def test_a_translation_model_of_the_zoo() -> None:
    graph = load("nmt:steps=3,hidden=64,vocabulary=500,batch=8")
    modules = ["encoder.0", "encoder.1", "attention", "decoder.0", "decoder.1", "softmax"]
    expected = ["inputs", "encoder_embedding", "attention_keys", "decoder_embedding"]
    expected += [f"{module}/{part}" for module in modules for part in (*range(3), "parameters")]
    assert sorted(colocate(graph).names) == sorted(expected)


def test_an_image_classifier_of_the_zoo() -> None:
    graph = load("inception_v3:image=75,batch=2,classes=10,aux=0")
    groups = colocate(graph)
    assert 83 <= groups.num_groups <= 120
    assert {"stem.0", "mixed_35.0.branch3x3.2", "mixed_35.0", "mixed_8.2.branch3x3.1.down", "fc"} < set(groups.names)
    convolutions = graph.op_type == graph.type_names.index("convolution")
    assert np.bincount(groups.group_of_op[convolutions]).max() == 1
    weighted = graph.resident_bytes.sum(axis=1) > 0
    assert set(groups.group_of_op[weighted].tolist()) == set(groups.group_of_op[convolutions].tolist()) | {
        groups.names.index("fc")
    }
    # At 40 groups whole branches are together, and no group spans two blocks.
    merged = colocate(graph, wanted_groups=40)
    for g in range(merged.num_groups):
        paths = {graph.module_names[m] for m in graph.module[(merged.group_of_op == g) & convolutions]}
        blocks = {".".join(path.split(".")[:2]) if path.startswith("mixed") else path.split(".")[0] for path in paths}
        assert len(blocks) <= 1


def test_names_stay_unique_when_an_op_is_called_like_a_module() -> None:
    ops = [op("m", **HEAVY), op("a", module="m", **HEAVY), op("b", "mm", **HEAVY), op("m#2", **HEAVY)]
    graph = graph_of(ops, "m>a,b a>b b>m#2")
    names = natural_groups(graph).names
    assert sorted(names) == ["b", "m", "m#2", "m#3"]


def test_the_garbage_collector_is_as_it_was_after_grouping() -> None:
    graph = random_graph(50)
    try:
        for on in (False, True):
            (gc.enable if on else gc.disable)()
            colocate(graph, wanted_groups=5)
            assert gc.isenabled() == on
    finally:
        gc.enable()


@pytest.mark.benchmark
def test_growth_with_the_number_of_ops() -> None:
    for seed, locality in itertools.product(range(2), (5, 500)):
        took = {}
        for count in (10_000, 100_000):
            graph = random_graph(count, seed=seed, locality=locality)
            start = time.perf_counter()
            coarsen(graph, natural_groups(graph), 8)
            middle = time.perf_counter()
            coarsen(graph, one_group_an_op(graph), 256)
            took[count] = (middle - start, time.perf_counter() - middle)
        natural, merging = (took[100_000][i] / took[10_000][i] for i in (0, 1))
        print(
            f"locality {locality}, ten times the ops: natural groups take {natural:.1f} times as long, "
            f"merging single ops {merging:.1f} times"
        )
