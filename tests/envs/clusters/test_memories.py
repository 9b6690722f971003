"""Memories that several devices share: read, checked, and counted by everything that asks whether a placement fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import placement
from envs.bounds import lower_bound_s
from envs.clusters.catalog import DEVICE_SPECS
from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.clusters.file import cluster_to_yaml, parse_cluster
from envs.clusters.memories import SharedMemory
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.errors import InputError, NoFeasiblePlacementError
from placement import scenarios
from placement.cli.report import simulated_report
from placement.placers.base import Budget
from placement.registry import get_placer
from placement.results.reasons.explain import explain
from placement.results.reasons.remedies import one_more
from placement.results.reasons.sentences import why
from placement.results.simulated import describe_short

GB = 10**9
LAPTOP = """
format: device-cluster
version: 1
name: laptop
devices:
  - {name: "cpu:0", spec: {name: m_cpu, kind: cpu, memory_bytes: 16e9, peak_flops_per_s: {float32: 1e12}, memory_bytes_per_s: 100e9}}
  - {name: "gpu:0", spec: {name: m_gpu, kind: gpu, memory_bytes: 12e9, peak_flops_per_s: {float32: 3e12}, memory_bytes_per_s: 100e9}}
  - {name: "npu:0", spec: {name: m_npu, kind: npu, memory_bytes: 64e9, peak_flops_per_s: {float32: 1e11}, memory_bytes_per_s: 10e9}}
links:
  - {all: ["cpu:0", "gpu:0", "npu:0"], bytes_per_s: 50e9, latency_s: 1e-5}
shared_memories:
  - {name: unified, devices: ["cpu:0", "gpu:0"], memory_bytes: 16e9}
"""  # noqa: E501


def laptop(**changes: Any) -> Cluster:
    cluster = parse_cluster(LAPTOP, DEVICE_SPECS)
    shared = changes.pop("shared", cluster.shared_memories)
    return Cluster(cluster.name, cluster.devices, cluster.links, shared_memories=shared)


def problem_of(kept_gb: list[float], cluster: Cluster) -> PlacementProblem:
    """Ops that keep so many GB each, in a chain."""
    ops = [
        OpRecord(f"op{i}", "mm", flops=10**9, resident_bytes={"constant": int(kept * GB)})
        for i, kept in enumerate(kept_gb)
    ]
    graph = build("chain", ops, [TensorRecord(i, 1000, [i + 1]) for i in range(len(ops) - 1)])
    return PlacementProblem(graph, one_group_an_op(graph), cluster)


def test_what_is_reserved_on_one_device_is_missing_in_what_it_shares() -> None:
    made = placement.make_problem(problem_of([7, 6], laptop()).graph, laptop(), reserve="gpu:0=4GB")
    cluster = made.cluster
    assert cluster.memory_bytes.tolist() == [12 * GB, 8 * GB, 64 * GB]  # 16 and 12 GB, and 16 of both less 4
    assert cluster.memories.limit_bytes.tolist() == [12 * GB, 8 * GB, 64 * GB, 12 * GB]
    assert cluster.all_memory_bytes == 76 * GB
    ops = made.with_groups(one_group_an_op(made.graph))
    assert ops.evaluate(np.array([[0, 1], [0, 2], [1, 2]])).feasible.tolist() == [False, True, True]


def test_what_devices_share_is_what_they_hold_together() -> None:
    problem = problem_of([9, 6, 3], laptop())
    placements = np.array([[0, 1, 0], [0, 0, 1], [1, 1, 2], [1, 0, 2], [1, 1, 1], [2, 2, 2]])
    evaluation = problem.evaluate(placements)
    # 18 GB in 16; the same; 15 on a GPU of 12; 15 GB in 16; 18 on the GPU; on the NPU, whose memory is its own.
    assert evaluation.feasible.tolist() == [False, False, False, True, False, True]
    said = describe_short(problem, evaluation.peak_memory_bytes[0])
    assert said == "needs 18.0 GB of shared memory unified, which has 16.0 GB: short by 2.0 GB"
    console = Console(width=140)
    with console.capture() as captured:
        console.print(
            simulated_report(
                placement.simulate(problem, placement.make_result(problem, placements[0], placer="hand", seed=0))
            )
        )
    assert "unified (shared by 2)" in captured.get()


def test_it_is_written_and_read_and_counts_in_the_digest() -> None:
    cluster = laptop()
    again = parse_cluster(cluster_to_yaml(cluster, DEVICE_SPECS), DEVICE_SPECS)
    assert again.shared_memories == (SharedMemory("unified", ("cpu:0", "gpu:0"), 16 * GB),)
    assert again.sha256 == cluster.sha256 != laptop(shared=()).sha256
    assert cluster.memory_bytes.tolist() == [16 * GB, 12 * GB, 64 * GB]
    assert (cluster.all_memory_bytes, laptop(shared=()).all_memory_bytes) == (80 * GB, 92 * GB)
    assert "2 share 16 GB" in cluster.summary


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ("{name: a, devices: [\"cpu:1\"], memory_bytes: 1e9}", "'a' names 'cpu:1', which is no device; correct it"),
        ("{name: a, devices: [\"tpu:*\"], memory_bytes: 1e9}", "shared_memories[0].devices names 'tpu:*'"),
        ("{name: a, devices: [], memory_bytes: 1e9}", "shared memory 'a' has no devices"),
        ("{name: a, devices: [\"cpu:0\", \"cpu:0\"], memory_bytes: 1e9}", "names device 'cpu:0' twice"),
        ("{name: a, devices: [\"cpu:0\"], memory_bytes: -1}", "shared_memories[0].memory_bytes is -1"),
        ("{name: a, devices: [\"cpu:0\"], memory_bytes: .nan}", "shared_memories[0].memory_bytes is nan"),
        ("{name: a, devices: [\"cpu:0\"]}", "shared_memories[0]: object missing required field 'memory_bytes'"),
        ("{name: \"cpu:0\", devices: [\"cpu:0\"], memory_bytes: 1}", "is called as a device is"),
        ("{name: \"\", devices: [\"cpu:0\"], memory_bytes: 1}", "a shared memory has an empty name"),
        ("{name: unified, devices: [\"npu:0\"], memory_bytes: 1}", "two shared memories are called 'unified'"),
        ("{name: b, devices: [\"gpu:0\"], memory_bytes: 1}", "device 'gpu:0' is in the shared memories"),
    ],
)  # fmt: skip
def test_what_is_refused(shared: str, message: str) -> None:
    text = LAPTOP.replace("shared_memories:\n", f"shared_memories:\n  - {shared}\n")
    with pytest.raises(InputError) as refused:
        parse_cluster(text, DEVICE_SPECS, where="cluster file 'x.yaml'")
    assert message in str(refused.value)
    assert str(refused.value).startswith("cluster file 'x.yaml': ")


def test_residents_that_what_is_shared_cannot_hold_are_refused() -> None:
    two = Cluster("two", laptop().devices[:2], laptop().links[:1], shared_memories=laptop().shared_memories)
    problem = problem_of([6.0] * 3, two)
    with pytest.raises(NoFeasiblePlacementError, match=r"keeps 18.00 GB resident, but .* have 16.00 GB in all: short"):
        problem.check_can_fit()
    with pytest.raises(NoFeasiblePlacementError, match=r"keeps 18.00 GB resident, which cannot be divided"):
        lower_bound_s(problem)
    assert lower_bound_s(problem_of([5.0] * 3, two)) > 0


@pytest.mark.parametrize("seed", range(4))
def test_no_placement_that_fits_beats_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = problem_of(rng.uniform(0.5, 5.0, 8).tolist(), laptop())
    placements = rng.integers(0, 3, (500, 8))
    assert problem.evaluate(placements).cost_s().min() >= lower_bound_s(problem)


@pytest.mark.parametrize("placer", ["heft", "annealing", "local_search", "contiguous", "genetic", "reinforce"])
def test_placers_find_what_fits(placer: str) -> None:
    """20 GB of ops: CPU and GPU are faster and hold 16 of them together, so some must go to the slow NPU."""
    problem = problem_of([2.0] * 10, laptop())
    found = get_placer(placer).function(problem, budget=Budget(evaluations=3000), rng=np.random.default_rng(0))
    evaluation = problem.evaluate_one(found.placement)
    assert evaluation.feasible[0]
    assert int((problem.to_ops(found.placement) == 2).sum()) >= 2


def test_links_between_devices_of_one_memory_stay_links() -> None:
    fast, slow = (
        Cluster(
            "pair",
            tuple(Device(f"{kind}:0", DeviceSpec(kind, kind, GB, {"float32": 1e12}, 1e11)) for kind in ("cpu", "gpu")),
            (Link("cpu:0", "gpu:0", rate, 0.0),),
            shared_memories=(SharedMemory("all", ("cpu:0", "gpu:0"), GB),),
        )
        for rate in (1e12, 1e3)
    )
    times_s = [problem_of([0, 0], cluster).evaluate(np.array([[0, 1]])).step_time_s[0] for cluster in (fast, slow)]
    assert times_s[1] == pytest.approx(times_s[0] + 1.0, rel=1e-3)


@pytest.mark.parametrize(("devices", "shares"), [(1, ("cpu:0", "gpu:0")), (2, ("cpu:0", "gpu:0"))])
def test_fewer_devices_still_share(devices: int, shares: tuple[str, ...]) -> None:
    """What-if takes devices away; what is left of a shared memory's devices still shares it."""
    graph = problem_of([1, 1], laptop()).graph
    found = placement.what_if(graph, laptop(), devices=[devices], placer="heft", time_limit_s=None)
    assert found.cells[0].step_time_s is not None
    smaller = scenarios._changed(laptop(), devices, 1.0)
    assert smaller.shared_memories[0].devices == shares
    cores = Cluster("cores", laptop().devices[:2], laptop().links[:1], shared_memories=laptop().shared_memories)
    both_cpus = tuple(replace(d, name=f"cpu:{i}", spec=laptop().devices[0].spec) for i, d in enumerate(cores.devices))
    link = replace(cores.links[0], a="cpu:0", b="cpu:1")
    cores = Cluster("cores", both_cpus, (link,), shared_memories=(SharedMemory("host", ("cpu:0", "cpu:1"), 16 * GB),))
    assert scenarios._changed(cores, 1, 1.0).shared_memories == (SharedMemory("host", ("cpu:0",), 16 * GB),)
    cell = placement.what_if(graph, cores, devices=[2], placer="heft", time_limit_s=None).cells[0]
    assert cell.peak_memory_share == pytest.approx(2 / 16, rel=0.01), "of both together"


def test_reasons_know_what_is_shared() -> None:
    problem = problem_of([9, 5], laptop())
    found = explain(problem, np.array([0, 1]), tries=8)  # 14 of 16 GB: both on the GPU would be 14 of its 12
    assert why(found, 0).startswith("on cpu:0")
    over = explain(problem_of([9, 8], laptop()), np.array([0, 1]), tries=8)
    assert not over.feasible
    assert over.moves.short_bytes[0, 0] == pytest.approx(1 * GB, rel=1e-3), "17 GB in 16, though either has its own"
    memory = next(remedy for remedy in over.remedies if remedy.name == "memory")
    assert memory.problem.evaluate(np.array([[0, 1]])).feasible[0], "twice the memory is twice what is shared, too"
    assert one_more(laptop(), 1).shared_memories[0].devices == ("cpu:0", "gpu:0", "gpu:1")
    assert one_more(laptop(), 2).shared_memories == laptop().shared_memories
