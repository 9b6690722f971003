"""The known clusters are what their sources say, overrides change what they name, and bad names say what is known."""

from __future__ import annotations

import numpy as np
import pytest

from envs.clusters.catalog import CLUSTERS, DEVICE_SPECS, load_cluster
from envs.clusters.cluster import Cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.errors import InputError


def test_every_known_thing_has_a_source_and_carries_its_own_name() -> None:
    for name, spec in DEVICE_SPECS.items():
        assert spec.name == name
        assert len(spec.source) > 40
    for name, cluster in CLUSTERS.items():
        assert cluster.name == name
        assert len(cluster.source) > 40
        assert load_cluster(name).sha256 == cluster.sha256
        kinds = [device.spec.kind for device in cluster.devices]
        assert kinds[0] == "cpu"
        for kind in set(kinds):
            names = [d.name for d in cluster.devices if d.spec.kind == kind]
            assert names == [f"{kind}:{i}" for i in range(len(names))]


def test_a_k80_die_reaches_half_of_its_peak_and_95_percent_of_its_memory() -> None:
    spec = DEVICE_SPECS["k80"]
    assert spec.peak_flops_per_s["float32"] * spec.efficiency["product"] == pytest.approx(2.19e12, rel=0.01)
    assert spec.memory_bytes == round(0.95 * 12e9)
    assert spec.tile == 32


@pytest.mark.parametrize(("name", "dies"), [("k80x2", 2), ("k80x4", 4), ("k80x8", 8)])
def test_two_k80_dies_share_the_way_to_the_host(name: str, dies: int) -> None:
    cluster = load_cluster(name)
    routes, count = cluster.routes, cluster.num_devices

    def crossed(a: int, b: int) -> list[int]:
        return routes.directions[routes.offsets[a * count + b] : routes.offsets[a * count + b + 1]].tolist()

    assert count == dies + 1
    to_first, to_second = crossed(0, 1), crossed(0, 2)
    assert to_first[0] == to_second[0]
    assert to_first[1] != to_second[1]
    assert len(crossed(1, 2)) == 2
    assert routes.latency_s[1, 2] == pytest.approx(15e-6)
    if dies > 2:
        assert len(crossed(1, 3)) == 4
        assert routes.latency_s[1, 3] == pytest.approx(30e-6)
        assert crossed(0, 3)[0] != to_first[0]


def test_dgx1_is_a_hybrid_cube_mesh() -> None:
    cluster = load_cluster("v100x8")
    nvlinks = [link for link in cluster.links if link.a.startswith("gpu") and link.b.startswith("gpu")]
    bricks = np.zeros((8, 8), dtype=int)
    for link in nvlinks:
        a, b = int(link.a[4:]), int(link.b[4:])
        bricks[a, b] = bricks[b, a] = round(link.bytes_per_s / 22.5e9)
    assert (bricks.sum(axis=1) == 6).all()
    assert len(nvlinks) == 16
    assert bricks[:4, :4].all(where=~np.eye(4, dtype=bool))
    # NVLink, or one forwarding neighbour: never the host.
    latency = cluster.routes.latency_s[1:, 1:]
    assert set(np.round(latency[bricks > 0] * 1e6, 3)) == {10.0}
    assert set(np.round(latency[(bricks == 0) & ~np.eye(8, dtype=bool)] * 1e6, 3)) == {20.0}


def test_a100x4_joins_every_pair_directly_and_mixed_goes_through_the_host() -> None:
    routes = load_cluster("a100x4").routes
    assert (routes.bytes_per_s[1:, 1:][~np.eye(4, dtype=bool)] == 90e9).all()
    mixed = load_cluster("mixed")
    assert [d.spec.name for d in mixed.devices] == ["epyc_7742", "a100_fp32", "t4", "t4"]
    assert mixed.routes.bytes_per_s[1, 2] == 12e9
    assert mixed.routes.latency_s[1, 2] == pytest.approx(25e-6)


def _crossed(cluster: Cluster, a: int, b: int) -> list[int]:
    routes, count = cluster.routes, cluster.num_devices
    return routes.directions[routes.offsets[a * count + b] : routes.offsets[a * count + b + 1]].tolist()


@pytest.mark.parametrize(
    ("name", "tpus", "farthest"),
    [("tpu_v2x4", 4, 2), ("tpu_v3x8", 8, 4), ("tpu_v2_half_pod", 32, 4 + 3), ("tpu_v2_pod", 64, 4 + 4)],
)
def test_tpus_are_a_grid_whose_order_is_a_ring_and_whose_routes_never_use_the_host(
    name: str, tpus: int, farthest: int
) -> None:
    cluster = load_cluster(name)
    assert cluster.num_devices == tpus + 1
    host_links = {i for i, link in enumerate(cluster.links) if link.a == "cpu:0"}
    assert len(host_links) == tpus
    routes = [_crossed(cluster, a, b) for a in range(1, tpus + 1) for b in range(1, tpus + 1) if a != b]
    assert not host_links & {direction // 2 for route in routes for direction in route}
    assert max(map(len, routes)) == farthest
    ring = [_crossed(cluster, 1 + i, 1 + (i + 1) % tpus) for i in range(tpus)]
    assert [len(route) for route in ring] == [1] * tpus
    assert len({route[0] for route in ring}) == tpus


def test_a_pod_is_a_torus_of_11_5_petaflops_and_a_board_is_four_chips() -> None:
    pod = load_cluster("tpu_v2_pod")
    between = [link for link in pod.links if link.a != "cpu:0"]
    assert len(between) == 2 * 64
    degree = {device: sum(device in (link.a, link.b) for link in between) for device in pod.device_names[1:]}
    assert set(degree.values()) == {4}
    assert sum(d.spec.rate_flops_per_s("bfloat16") for d in pod.devices[1:]) == pytest.approx(11.5e15, rel=0.01)
    board, chip = DEVICE_SPECS["tpu_v2_board"], DEVICE_SPECS["tpu_v2_chip"]
    assert board.rate_flops_per_s("bfloat16") == 4 * chip.rate_flops_per_s("bfloat16") == 180e12
    assert board.memory_bytes == 4 * chip.memory_bytes
    assert board.memory_bytes_per_s == 4 * chip.memory_bytes_per_s


def test_machines_with_many_links_are_joined_as_their_sources_say() -> None:
    quad = load_cluster("p100x4").routes
    assert (quad.bytes_per_s[1:, 1:][~np.eye(4, dtype=bool)] == 18e9).all()
    for name in ("h100x8", "h200x8"):
        routes = load_cluster(name).routes
        assert (routes.bytes_per_s[1:, 1:][~np.eye(8, dtype=bool)] == 405e9).all()
        assert (routes.bytes_per_s[0, 1:] == 50e9).all()
    hosts = load_cluster("two_hosts")
    assert [d.name for d in hosts.devices if d.spec.kind == "cpu"] == ["cpu:0", "cpu:1"]
    gpu = [hosts.index(f"gpu:{i}") for i in range(8)]
    assert hosts.routes.bytes_per_s[gpu[0], gpu[3]] == 45e9
    assert hosts.routes.bytes_per_s[gpu[3], gpu[4]] == 2.94e9
    assert hosts.routes.latency_s[gpu[3], gpu[4]] == pytest.approx(60e-6)
    # All eight GPUs' transfers between the hosts share the one Ethernet link.
    ethernet = [i for i, link in enumerate(hosts.links) if {link.a, link.b} == {"cpu:0", "cpu:1"}]
    for a in gpu[:4]:
        for b in gpu[4:]:
            assert 2 * ethernet[0] in _crossed(hosts, a, b)


@pytest.mark.parametrize("cores", [1, 4, 16, 64])
def test_cores_share_the_memory_and_the_bandwidth_of_one_cpu(cores: int) -> None:
    cluster = load_cluster(f"cpu_cores:{cores}")
    whole = DEVICE_SPECS["epyc_7742"]
    assert cluster.device_names == tuple(f"cpu:{i}" for i in range(cores))
    assert cluster.memory_bytes.sum() == whole.memory_bytes // cores * cores
    assert sum(d.spec.memory_bytes_per_s for d in cluster.devices) <= whole.memory_bytes_per_s
    total = sum(d.spec.rate_flops_per_s("float32") for d in cluster.devices)
    assert total == pytest.approx(whole.rate_flops_per_s("float32") * cores / 64)
    smaller = load_cluster(f"cpu_cores:{cores}:memory_bytes=1e9,launch_overhead_s=0")
    assert set(smaller.memory_bytes) == {10**9}
    assert load_cluster(smaller.name).sha256 == smaller.sha256


def test_a_step_on_a_whole_pod_is_simulated() -> None:
    tpus = 64
    ops = [OpRecord(f"op{i}", "mm", flops=9 * 10**9, bytes_accessed=1, dtype="bfloat16") for i in range(tpus)]
    graph = build("chain", ops, [TensorRecord(i, 1_116_000, [i + 1]) for i in range(tpus - 1)])
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("tpu_v2_pod"))
    time_s = float(problem.evaluate(np.arange(1, tpus + 1)[None]).step_time_s[0])
    assert time_s == pytest.approx(64 * (1e-6 + 1e-4) + 63 * (1e-6 + 1e-5))


def test_overrides_change_what_they_name_and_nothing_else() -> None:
    plain = load_cluster("k80x4")
    changed = load_cluster("k80x4:memory_bytes=8e9,link_bytes_per_s=2.5e9,link_latency_s=0,launch_overhead_s=1e-6")
    assert {link.bytes_per_s for link in changed.links} == {2.5e9}
    assert {link.latency_s for link in changed.links} == {0.0}
    assert changed.memory_bytes.tolist() == [plain.memory_bytes[0], *[8_000_000_000] * 4]
    assert changed.devices[0] == plain.devices[0]
    assert {d.spec.launch_overhead_s for d in changed.devices[1:]} == {1e-6}
    assert changed.sha256 != plain.sha256
    assert load_cluster(changed.name).sha256 == changed.sha256


def test_the_order_of_overrides_does_not_change_the_name() -> None:
    a = load_cluster("k80x2:link_latency_s=1e-6,memory_bytes=8e9")
    b = load_cluster("k80x2:memory_bytes=8000000000,link_latency_s=0.000001")
    assert a.name == b.name
    assert a.sha256 == b.sha256


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("k80x3", ["unknown cluster 'k80x3'", "k80x4", " more; see: placement list clusters", ".yaml"]),
        ("p4d24xlarge", ["did you mean 'p4d.24xlarge'"]),
        ("", ["unknown cluster ''"]),
        ("cpu_cores", ["unknown cluster 'cpu_cores'", "cpu_cores:K"]),
        ("cpu_cores:0", ["cpu_cores:0", "from 1 to 64 cores"]),
        ("cpu_cores:65", ["cpu_cores:65", "from 1 to 64 cores"]),
        ("cpu_cores:4x", ["cpu_cores:4x", "a number of cores"]),
        ("k80x4:", ["override", "link_bytes_per_s"]),
        ("k80x4:link_bytes=1", ["override", "'link_bytes'", "did you mean 'link_bytes_per_s'", "memory_bytes"]),
        ("k80x4:link_bytes_per_s=0", ["link_bytes_per_s is 0", "positive"]),
        ("k80x4:link_bytes_per_s=nan", ["link_bytes_per_s is nan", "finite"]),
        ("k80x4:link_latency_s=inf", ["link_latency_s is inf", "finite"]),
        ("k80x4:link_latency_s", ["link_latency_s", "not a number"]),
        ("k80x4:memory_bytes=-1", ["memory_bytes is -1", "not negative"]),
        ("k80x4:memory_bytes=1e30", ["memory_bytes is 1e30", "2^63"]),
        ("k80x4:memory_bytes=12GB", ["'12GB'", "not a number"]),
        ("k80x4:memory_bytes=1,memory_bytes=2", ["memory_bytes twice"]),
        ("nowhere.yaml", ["cannot read cluster file 'nowhere.yaml'"]),
    ],
)
def test_bad_input_is_one_sentence_that_names_the_culprit(spec: str, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        load_cluster(spec)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
