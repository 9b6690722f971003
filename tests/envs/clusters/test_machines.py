"""Servers, cloud instances and workstations are joined as their makers say, and every name of the file is used."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml

import envs.clusters.machines
from envs.clusters.catalog import CLUSTERS, load_cluster
from envs.clusters.cluster import Cluster
from envs.machine.spec_names import generation_of

CONTENT = yaml.safe_load((Path(envs.clusters.machines.__file__).parent / "data" / "machines.yaml").read_text())
MACHINES = {machine["name"]: machine for machine in CONTENT["machines"]}


def accelerators(cluster: Cluster) -> list[int]:
    return [i for i, device in enumerate(cluster.devices) if device.spec.kind != "cpu"]


def between(cluster: Cluster) -> np.ndarray:
    """Bandwidth of the route between each two accelerators, GB/s, without those to themselves."""
    ours = accelerators(cluster)
    return cluster.routes.bytes_per_s[np.ix_(ours, ours)][~np.eye(len(ours), dtype=bool)] / 1e9


def test_every_machine_way_and_join_of_the_file_is_used_once() -> None:
    assert len(CONTENT["machines"]) == len(MACHINES) >= 60
    assert set(MACHINES) <= set(CLUSTERS)
    used = [machine.get(key) for machine in CONTENT["machines"] for key in ("way", "network")]
    assert set(CONTENT["ways"]) == set(used) - {None}
    assert set(CONTENT["joins"]) == {machine.get("joins") for machine in CONTENT["machines"]} - {None}
    for vendor in ("AWS EC2", "Azure", "Google Cloud", "DGX", "TPU", "NVLink bridge", "InfiniBand"):
        assert sum(vendor in machine["source"] for machine in CONTENT["machines"]) >= 4, vendor


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine_has_what_it_says(name: str) -> None:
    machine, cluster = MACHINES[name], load_cluster(name)
    if "like" in machine:
        assert cluster.sha256 == load_cluster(machine["like"]).sha256
        return
    count, spec = machine["has"]
    hosts = machine.get("hosts", 1)
    assert [device.spec.name for device in cluster.devices].count(spec) == count * hosts
    assert cluster.num_devices == (count + 1) * hosts
    assert machine["source"] in cluster.source


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [
        ("p4d.24xlarge", 270),
        ("dgx_a100", 270),
        ("p5.48xlarge", 405),
        ("dgx_b200", 810),
        ("dgx2", 135),
        ("ND96isr_MI300X_v5", 57.6),
        ("gaudi2x8", 33.75),
        ("mi210x4", 45),
        ("rtx_3090_pair", 50.6),
        ("rtx_3090x2", 12.5),
        ("g5.12xlarge", 12.5),
        ("rtx_4090x4", 25),
    ],
)
def test_accelerators_of_one_host_talk_at_what_joins_them(name: str, gb_per_s: float) -> None:
    assert between(load_cluster(name)) == pytest.approx(gb_per_s)


@pytest.mark.parametrize("name", MACHINES)
def test_a_gpus_links_carry_no_more_than_its_family_has_each_way(name: str) -> None:
    """Vendors quote both directions together: a figure taken as one way would be twice what the links are."""
    cluster = load_cluster(name)
    for i in accelerators(cluster):
        device = cluster.devices[i]
        family = generation_of(device.spec.name.replace("_", " "))
        if device.spec.kind != "gpu" or not family.most_links:
            continue
        other = {device.name} | {d.name for d in cluster.devices if d.spec.kind != "gpu"}
        fast = [
            link.bytes_per_s
            for link in cluster.links
            if device.name in (link.a, link.b)
            and not {link.a, link.b} - {device.name} & other
            and not any(end.startswith(("pcie", "plx", "net")) for end in (link.a, link.b))
        ]
        assert sum(fast) <= 0.9 * family.most_links * family.nvlink_bytes_per_s * 1.001


def test_bridges_join_pairs_and_others_go_through_the_host() -> None:
    routes = load_cluster("NC96ads_A100_v4").routes.bytes_per_s[1:, 1:] / 1e9
    for a in range(4):
        for b in range(4):
            assert a == b or routes[a, b] == (270 if a // 2 == b // 2 else 25)


def test_cube_meshes_have_the_bricks_of_their_gpu() -> None:
    for name, spec_bytes, bricks in (("p3.16xlarge", 22.5e9, 6), ("dgx1_p100", 18e9, 4), ("ND40rs_v2", 22.5e9, 6)):
        cluster = load_cluster(name)
        for device in cluster.device_names[1:]:
            links = [link for link in cluster.links if device in (link.a, link.b) and link.b.startswith("gpu")]
            nvlinks = [link for link in links if link.a.startswith("gpu")]
            assert sum(link.bytes_per_s for link in nvlinks) == pytest.approx(bricks * spec_bytes)


def test_hosts_are_joined_by_their_network_and_within_by_nvlink() -> None:
    cluster = load_cluster("dgx_h100_x2")
    gpu = [cluster.index(f"gpu:{i}") for i in range(16)]
    assert cluster.routes.bytes_per_s[gpu[0], gpu[7]] == 405e9
    assert cluster.routes.bytes_per_s[gpu[0], gpu[8]] == 45e9
    assert cluster.routes.bytes_per_s[cluster.index("cpu:0"), cluster.index("cpu:1")] == 45e9


@pytest.mark.parametrize(
    ("name", "degrees"), [("v5litepod-8", {2, 3}), ("v5litepod-16", {2, 3, 4}), ("trn1.32xlarge", {4})]
)
def test_grids_join_neighbours_and_tori_are_closed(name: str, degrees: set[int]) -> None:
    cluster = load_cluster(name)
    names = [cluster.device_names[i] for i in accelerators(cluster)]
    links = [link for link in cluster.links if link.a in names and link.b in names]
    assert {sum(device in (link.a, link.b) for link in links) for device in names} == degrees
    joined = {frozenset((link.a, link.b)) for link in links}
    assert len(joined) == len(links)
    for a, b in itertools.pairwise(names):
        assert frozenset((a, b)) in joined
