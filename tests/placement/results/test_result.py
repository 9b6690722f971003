"""The placement file: its bytes, what reading refuses, and the check against a graph and a cluster."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.errors import InputError
from graphs.synthetic import random_graph
from placement.results.placement_file import (
    PlacementResult,
    check_placement,
    encode_placement,
    json_schema,
    make_result,
    read_placement,
    write_placement,
)


def chain(flops: int = 1_000_000, kinds: tuple[str, ...] | None = None) -> ComputationGraph:
    """Two products, one after the other; the second may be restricted to kinds of device."""
    ops = [
        OpRecord("first", "mm", flops=flops, bytes_accessed=100, output_shapes=((5,),)),
        OpRecord("second", "mm", flops=1_000_000, bytes_accessed=100, output_shapes=((5,),), allowed_kinds=kinds),
    ]
    return build("chain", ops, [TensorRecord(0, 20, [1]), TensorRecord(1, 20, [])])


def problem_of(graph: ComputationGraph, cluster: Cluster | str = "k80x2") -> PlacementProblem:
    cluster = load_cluster(cluster) if isinstance(cluster, str) else cluster
    return PlacementProblem(graph, one_group_an_op(graph), cluster)


def result_of(problem: PlacementProblem, placement: list[int]) -> PlacementResult:
    return make_result(problem, np.array(placement), placer="by_hand", seed=7, config={"rate": 0.5})


def test_the_file_is_what_the_contract_says(tmp_path: Path) -> None:
    problem = problem_of(chain())
    result = result_of(problem, [1, 2])
    write_placement(tmp_path / "placement.json", result)
    content = json.loads((tmp_path / "placement.json").read_text())
    assert content == {
        "format": "device-placement",
        "version": 1,
        "graph": {"name": "chain", "sha256": problem.graph.sha256, "num_ops": 2},
        "cluster": {
            "name": "k80x2",
            "sha256": problem.cluster.sha256,
            "devices": ["cpu:0", "gpu:0", "gpu:1"],
        },
        "schedule": "priority",
        "step_time_s": problem.evaluate(np.array([[1, 2]])).step_time_s[0],
        "feasible": True,
        "peak_memory_bytes": {"cpu:0": 0, "gpu:0": 20, "gpu:1": 40},
        "placer": {"name": "by_hand", "seed": 7, "config": {"rate": 0.5}},
        "ops": {"first": "gpu:0", "second": "gpu:1"},
    }
    assert list(content) == sorted(content)
    assert list(content["graph"]) == sorted(content["graph"])
    jsonschema.validate(content, json_schema())


def test_what_is_written_is_read_back_equal_and_written_again_the_same(tmp_path: Path) -> None:
    problem = problem_of(random_graph(50, seed=3))
    placement = list(np.random.default_rng(0).integers(0, 3, size=50))
    result = result_of(problem, placement)
    path = tmp_path / "placement.json"
    write_placement(path, result)
    first = path.read_bytes()
    assert read_placement(path) == result
    write_placement(path, read_placement(path))
    assert path.read_bytes() == first
    assert encode_placement(result_of(problem, placement)) == first


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of(problem_of(chain()), [1, 2])
    path = tmp_path / "placement.json"
    path.write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_placement(path, result)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["placement.json"]


def test_a_placement_comes_back_as_device_indices_in_op_order() -> None:
    problem = problem_of(chain())
    assert check_placement(result_of(problem, [2, 1]), problem.graph, problem.cluster).tolist() == [2, 1]


def test_a_cluster_with_other_links_but_the_same_devices_is_accepted() -> None:
    problem = problem_of(chain())
    slower = load_cluster("k80x2:link_bytes_per_s=1e9")
    assert check_placement(result_of(problem, [2, 1]), problem.graph, slower).tolist() == [2, 1]


def test_a_placement_for_another_graph_is_refused_and_the_difference_named() -> None:
    cluster = load_cluster("k80x2")
    result = result_of(problem_of(chain()), [1, 2])
    ops = [OpRecord("first", "mm"), OpRecord("third", "mm")]
    with pytest.raises(InputError, match=r"made for graph 'chain' and does not place op 'third' of graph 'other'"):
        check_placement(result, build("other", ops, []), cluster)
    with pytest.raises(InputError, match=r"places op 'second', which graph 'other' lacks"):
        check_placement(result, build("other", ops[:1], []), cluster)
    with pytest.raises(InputError, match=r"has the same ops as graph 'chain' .* but not the same sizes"):
        check_placement(result, chain(flops=5), cluster)


def test_a_device_that_the_cluster_lacks_is_named() -> None:
    problem = problem_of(chain(), "k80x4")
    result = result_of(problem, [1, 4])
    message = (
        r"made for cluster 'k80x4' and uses device 'gpu:3', which cluster 'k80x2' lacks; its devices: cpu:0, gpu:0, "
        r"gpu:1; give the cluster that the placement was made for, or place the graph for this one"
    )
    with pytest.raises(InputError, match=message):
        check_placement(result, problem.graph, load_cluster("k80x2"))


def test_an_op_on_a_kind_of_device_that_it_does_not_allow_is_named() -> None:
    graph = chain(kinds=("gpu",))
    problem = problem_of(graph)
    result = result_of(problem, [1, 1])
    wrong = msgspec.structs.replace(result, ops={"first": "gpu:0", "second": "cpu:0"})
    with pytest.raises(InputError, match=r"op 'second' on device 'cpu:0', .* not run on a cpu; give it another"):
        check_placement(wrong, graph, problem.cluster)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"version": 2}, "has version 2, but this program reads version 1; write it again with this program"),
        ({"format": "computation-graph"}, "is not a placement file: its field format"),
        ({"feasible": "yes"}, r"not a valid placement file: Expected `bool`, got `str` - at `\$.feasible`"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"ops": {"first": "gpu:0"}}, "places 1 ops, but its field graph.num_ops is 2"),
        ({"ops": {"first": "gpu:0", "second": "tpu:9"}}, "op 'second' is on device 'tpu:9'"),
        ({"graph": {"name": "chain"}}, "missing required field `sha256`"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path, damage: dict[str, object], message: str) -> None:
    content = json.loads(encode_placement(result_of(problem_of(chain()), [1, 2]))) | damage
    path = tmp_path / "placement.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        read_placement(path)
    assert "placement.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert re.search("; (write it again|copy it again|correct the one)", str(caught.value))


def test_a_truncated_or_missing_file_is_refused(tmp_path: Path) -> None:
    whole = encode_placement(result_of(problem_of(chain()), [1, 2]))
    (tmp_path / "short.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated; copy it again from where it was written, or write a new one"):
        read_placement(tmp_path / "short.json")
    (tmp_path / "binary.json").write_bytes(b'{"format": "\xff\xfe"}')
    with pytest.raises(InputError, match="not a valid placement file"):
        read_placement(tmp_path / "binary.json")
    with pytest.raises(InputError, match=r"cannot read placement file .*: No such file"):
        read_placement(tmp_path / "none.json")


def test_an_infeasible_placement_is_written_as_such() -> None:
    problem = problem_of(chain())
    spec = replace(problem.cluster.devices[1].spec, memory_bytes=10)
    devices = tuple(replace(d, spec=spec) if d.name.startswith("gpu") else d for d in problem.cluster.devices)
    small = PlacementProblem(problem.graph, problem.groups, replace(problem.cluster, devices=devices))
    result = result_of(small, [1, 1])
    assert not result.feasible
    assert result.peak_memory_bytes["gpu:0"] == 40
