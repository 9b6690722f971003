"""Routes are the quickest for a typical tensor, by trying every path; names play no part."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clusters.catalog import CLUSTERS, DEVICE_SPECS
from envs.clusters.cluster import Cluster, Device, Link
from envs.clusters.routes import TYPICAL_BYTES
from tests.envs.clusters.letters import crossed, make


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Small ones, with parallel links, links that differ by direction, switches, and figures that tie often."""
    devices, switches = draw(st.integers(2, 4)), draw(st.integers(0, 3))
    names = "abcdefg"[: devices + switches]
    # Powers of two: latencies that are exactly what a wider link saves on 256 KiB.
    latency = st.sampled_from([0.0, 2.0**-21, 2.0**-20, 2.0**-19, 1e-6, 0.1, 0.2, 0.3])
    width = st.sampled_from([2.0**37, 2.0**38, 2.0**39, 2.0**40, 1e9, 3e11])
    back = st.one_of(st.none(), width), st.one_of(st.none(), latency)
    tree = [(names[i], names[draw(st.integers(0, i - 1))]) for i in range(1, len(names))]
    more = draw(st.lists(st.sampled_from(list(itertools.permutations(names, 2))), max_size=7))
    links = [Link(a, b, draw(width), draw(latency), draw(back[0]), draw(back[1])) for a, b in tree + more]
    return make(names[:devices], links, switches=names[devices:])


def figures(cluster: Cluster, direction: int) -> tuple[str, str, Fraction, Fraction]:
    """Where a direction leads from and to, its bandwidth and its latency."""
    link = cluster.links[direction // 2]
    if direction % 2 == 0:
        return link.a, link.b, Fraction(link.bytes_per_s), Fraction(link.latency_s)
    return link.b, link.a, Fraction(link.back[0]), Fraction(link.back[1])


def by_trying_all(cluster: Cluster, source: str, target: str) -> list[int]:
    """The path of least exact time, then fewest links, of all simple paths."""
    graph: nx.MultiDiGraph = nx.MultiDiGraph()
    for direction in range(2 * len(cluster.links)):
        a, b, _, _ = figures(cluster, direction)
        graph.add_edge(a, b, key=direction)
    paths = [[edge[-1] for edge in path] for path in nx.all_simple_edge_paths(graph, source, target)]

    return min(paths, key=lambda path: rank(cluster, path))


def rank(cluster: Cluster, path: list[int]) -> tuple[Fraction, int]:
    passed = [figures(cluster, direction) for direction in path]
    seconds = sum(latency for *_, latency in passed) + TYPICAL_BYTES / min(width for *_, width, _ in passed)
    return Fraction(seconds), len(path)


@settings(max_examples=300, deadline=None)
@given(clusters())
def test_a_route_is_the_best_of_all_paths(cluster: Cluster) -> None:
    for i, j in itertools.permutations(range(cluster.num_devices), 2):
        route, at = crossed(cluster, i, j), cluster.device_names[i]
        assert rank(cluster, route) == rank(cluster, by_trying_all(cluster, at, cluster.device_names[j]))
        passed = [figures(cluster, direction) for direction in route]
        for start, end, _, _ in passed:
            assert start == at
            at = end
        assert at == cluster.device_names[j]
        assert cluster.routes.bytes_per_s[i, j] == min(width for *_, width, _ in passed)
        assert cluster.routes.latency_s[i, j] == pytest.approx(float(sum(latency for *_, latency in passed)), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(clusters(), st.permutations("abcdefgxyz"))
def test_renaming_changes_no_route(cluster: Cluster, names: list[str]) -> None:
    name = dict(zip("abcdefg", names, strict=False))
    renamed = replace(
        cluster,
        devices=tuple(Device(name[d.name], d.spec) for d in cluster.devices),
        links=tuple(replace(link, a=name[link.a], b=name[link.b]) for link in cluster.links),
        switches=tuple(name[switch] for switch in cluster.switches),
    )
    for column in ("latency_s", "bytes_per_s", "offsets", "directions"):
        np.testing.assert_array_equal(getattr(cluster.routes, column), getattr(renamed.routes, column))


def test_a_wide_link_beats_a_quick_narrow_one_and_parallel_links_are_judged_alike() -> None:
    # 256 KiB take 2.9 + 3 us over the bridge, 10.5 + 2 us through the card.
    names, slow = "ab", [Link("a", "n", 25e9, 1e-6), Link("b", "n", 25e9, 1e-6)]
    assert crossed(make(names, [*slow, Link("a", "b", 90e9, 3e-6)], switches="n"), 0, 1) == [4]
    assert crossed(make(names, [Link("a", "b", 25e9, 1e-6), Link("b", "a", 90e9, 3e-6)]), 0, 1) == [3]
    # Two wide links in a row beat a narrow one, until their latency is more than they save.
    wide = [Link("a", "c", 2e9, 1e-4), Link("c", "b", 2e9, 1e-4)]
    assert crossed(make("abc", [Link("a", "b", 1e9, 1e-4), *wide]), 0, 1) == [2, 4]
    late = [replace(link, latency_s=2e-4) for link in wide]
    assert crossed(make("abc", [Link("a", "b", 1e9, 1e-4), *late]), 0, 1) == [0]


def test_directions_that_differ_take_routes_of_their_own() -> None:
    links = [Link("a", "b", 10e9, 1e-6, back_bytes_per_s=1e9), Link("b", "c", 5e9, 1e-6), Link("c", "a", 5e9, 1e-6)]
    cluster = make("abc", links)
    assert (crossed(cluster, 0, 1), crossed(cluster, 1, 0)) == ([0], [2, 4])
    assert (cluster.routes.bytes_per_s[0, 1], cluster.routes.bytes_per_s[1, 0]) == (10e9, 5e9)
    assert cluster.sha256 != make("abc", [replace(links[0], back_bytes_per_s=None), *links[1:]]).sha256
    assert make("ab", [Link("a", "b", 1, 1, 1, 1)]).sha256 == make("ab", [Link("a", "b", 1, 1)]).sha256


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_route_of_a_known_cluster_can_be_mended_by_a_detour(name: str) -> None:
    """The time of two routes in a row, with the smaller bandwidth, is never less."""
    routes = CLUSTERS[name].routes
    seconds = routes.latency_s + TYPICAL_BYTES / routes.bytes_per_s
    for middle in range(CLUSTERS[name].num_devices):
        latency = routes.latency_s[:, middle, None] + routes.latency_s[middle]
        width = np.minimum(routes.bytes_per_s[:, middle, None], routes.bytes_per_s[middle])
        assert (seconds <= latency + TYPICAL_BYTES / width + 1e-15).all()


def test_many_bandwidths_and_many_devices_take_little_time() -> None:
    rng = np.random.default_rng(0)
    devices = tuple(Device(f"gpu:{i}", DEVICE_SPECS["t4"]) for i in range(128))
    star = [Link(d.name, "hub", float(rng.uniform(1e9, 9e10)), float(rng.uniform(0, 1e-5))) for d in devices]
    pairs = [
        Link(devices[a].name, devices[b].name, float(rng.uniform(1e9, 9e10)), float(rng.uniform(0, 1e-5)))
        for a, b in rng.integers(0, 128, (256, 2))
        if a != b
    ]
    began = time.process_time()
    Cluster("random", devices, (*star, *pairs), ("hub",)).routes  # noqa: B018
    assert time.process_time() - began < 5
