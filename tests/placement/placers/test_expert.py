"""The experts' placements, read off tiny captures of the zoo."""

from __future__ import annotations

import numpy as np
import pytest

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from graphs import zoo
from graphs.colocation.groups import make_groups
from graphs.colocation.rules import colocate
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError
from graphs.replicate import replica_of_op, replica_placement, replicate
from placement.placers.base import Budget
from placement.registry import get_placer
from tests.placement.placer_problems import cluster, random_problem


def by_module(graph: ComputationGraph) -> PlacementProblem:
    """A group for each module path; the step's inputs apart, for they are pinned."""
    paths = [
        graph.op_names[i] if graph.type_names[graph.op_type[i]] == "input" else graph.module_names[m]
        for i, m in enumerate(graph.module)
    ]
    names = list(dict.fromkeys(paths))
    label = np.array([names.index(path) for path in paths])
    return PlacementProblem(graph, make_groups(label, names, names, [0] * len(names)), cluster(4))


def devices_by_module(problem: PlacementProblem) -> dict[str, int]:
    placed = get_placer("expert").function(problem, budget=Budget(), rng=np.random.default_rng(0))
    assert placed.evaluations == 1
    return dict(zip(problem.groups.names, placed.placement.tolist(), strict=True))


def test_rnnlm_has_a_layer_a_gpu() -> None:
    graph = zoo.load("rnnlm:layers=3,hidden=4,steps=2,vocabulary=5,batch=2")
    device = devices_by_module(by_module(graph))
    assert (device["embedding"], device["cells.0"], device["cells.1"], device["cells.2"]) == (1, 1, 2, 3)
    assert device["softmax"] == 3
    assert device["input/words"] == 0


def test_nmt_has_a_layer_a_gpu_where_there_are_enough() -> None:
    problem = by_module(zoo.load("nmt:layers=2,hidden=4,steps=2,vocabulary=5,batch=2"))
    device = devices_by_module(problem)
    assert [device[f"{stack}.{i}"] for stack in ("encoder", "decoder") for i in (0, 1)] == [1, 2, 3, 4]
    assert (device["encoder_embedding"], device["decoder_embedding"]) == (1, 3)
    assert (device["attention"], device["attention_keys"], device["softmax"]) == (4, 4, 4)
    two = PlacementProblem(problem.graph, problem.groups, cluster(2))
    device = devices_by_module(two)
    assert [device[f"{stack}.{i}"] for stack in ("encoder", "decoder") for i in (0, 1)] == [1, 2, 1, 2]
    assert device["softmax"] == 2


def test_replicas_have_a_device_each() -> None:
    one = zoo.load("rnnlm:layers=1,hidden=8,steps=2,vocabulary=5,batch=4")
    graph = replicate(one, 4)
    problem = PlacementProblem(graph, colocate(graph, wanted_groups=40), cluster(4))
    placed = get_placer("expert").function(problem, budget=Budget(), rng=np.random.default_rng(0))
    expected = replica_placement(graph, [1, 2, 3, 4], host=0)
    np.testing.assert_array_equal(problem.groups.to_ops(placed.placement), expected)
    two = PlacementProblem(graph, problem.groups, cluster(2))
    folded = get_placer("expert").function(two, budget=Budget(), rng=np.random.default_rng(0))
    computes = graph.flops > 0
    assert (two.groups.to_ops(folded.placement)[computes] == 1 + replica_of_op(graph)[computes] % 2).all()


def test_inception_is_cut_into_contiguous_parts_of_about_equal_layer_count() -> None:
    problem = by_module(zoo.load("inception_v3:batch=2,image=75,aux=0,classes=3"))
    placed = get_placer("expert").function(problem, budget=Budget(), rng=np.random.default_rng(0))
    graph = problem.graph
    layers = np.flatnonzero((graph.phase == 0) & (graph.flops > 0))
    devices = placed.placement[problem.groups.group_of_op[layers]]
    assert (np.diff(devices) >= 0).all()
    counts = np.bincount(devices, minlength=5)
    assert counts[0] == 0
    assert counts.sum() == 95
    assert counts[1:].min() >= 15
    assert counts[1:].max() <= 32


@pytest.mark.parametrize(
    "spec",
    [
        "resnet50:batch=1,image=32,classes=3",
        "nasnet:batch=1,image=32,cells=2,filters=8,classes=3",
        "transformer_lm:batch=1,layers=4,hidden=4,heads=2,length=4,vocabulary=5",
        "bert:batch=1,layers=4,hidden=4,heads=2,length=4,masked=2,vocabulary=5",
    ],
)
def test_networks_of_blocks_are_cut_into_contiguous_parts(spec: str) -> None:
    problem = by_module(zoo.load(f"{spec},training=0"))
    placed = get_placer("expert").function(problem, budget=Budget(), rng=np.random.default_rng(0))
    layers = np.flatnonzero(problem.graph.flops > 0)
    counts = np.bincount(placed.placement[problem.groups.group_of_op[layers]], minlength=5)
    assert counts[0] == 0
    assert counts[1:].min() >= len(layers) / 8
    # All ops of a block (a module list's member) are together.
    blocks: dict[str, set[int]] = {}
    for name, device in zip(problem.groups.names, placed.placement.tolist(), strict=True):
        parts = name.split(".")
        if parts[0] in ("cells", "blocks", "layers"):
            blocks.setdefault(parts[1], set()).add(device)
    assert all(len(devices) == 1 for devices in blocks.values())


def test_experts_of_a_layer_are_spread_in_turn() -> None:
    graph = zoo.load("moe_lm:batch=2,experts=6,layers=1,hidden=8,heads=2,length=4,vocabulary=5")
    device = devices_by_module(by_module(graph))
    experts = [device[f"blocks.0.feed_forward.experts.{i}.expand"] for i in range(6)]
    assert experts == [1, 2, 3, 4, 1, 2]
    assert device["blocks.0.feed_forward.experts.3.contract"] == 4
    assert device["blocks.0.feed_forward.router.gate"] == device["head"] == 1


def test_tables_go_largest_first_to_the_emptiest_and_to_the_host_where_none_fits() -> None:
    problem = by_module(zoo.load("dlrm:batch=2,rows=10000,width=4"))
    size = dict(zip(problem.groups.names, problem.group_resident_bytes.tolist(), strict=True))
    largest = size["tables.0"]
    fits_two = int(2.5 * largest)
    for memory, spread in ((fits_two, {1: 2, 2: 2, 3: 2, 4: 2}), (largest // 2, {})):
        device = devices_by_module(PlacementProblem(problem.graph, problem.groups, cluster(4, gpu_bytes=memory)))
        of_largest = [device[name] for name in size if name.startswith("tables.") and size[name] == largest]
        if spread:
            assert {d: of_largest.count(d) for d in set(of_largest) if d} == spread
        assert of_largest.count(0) == len(of_largest) - sum(spread.values())
        assert device["bottom.0"] == device["top.0"] == 1
        assert device["tables.5"] != 0


def test_a_graph_without_a_rule_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"placer 'expert' knows no rule for graph 'random:.*rules for: bert"):
        devices_by_module(random_problem(5, 2, seed=0))


def test_without_accelerators_the_cores_are_placed_on_like_them() -> None:
    problem = by_module(zoo.load("rnnlm:layers=2,hidden=4,steps=2,vocabulary=5,batch=2"))
    spec = DeviceSpec("core", "cpu", 10**9, {"float32": 1e9}, 1e9)
    cores = Cluster("cores", (Device("cpu:0", spec), Device("cpu:1", spec)), (Link("cpu:0", "cpu:1", 1e9, 1e-6),))
    device = devices_by_module(PlacementProblem(problem.graph, problem.groups, cores))
    assert (device["embedding"], device["cells.0"], device["cells.1"], device["softmax"]) == (0, 0, 1, 1)
