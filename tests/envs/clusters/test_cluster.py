"""Clusters: routes over switches, what makes one invalid, and a digest that changes exactly with the figures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from graphs.errors import InputError
from tests.envs.clusters.letters import SPEC, crossed, make


def test_a_route_adds_latencies_takes_the_least_bandwidth_and_names_directions() -> None:
    # a -- s (4 B/s, 1 s) -- t (2 B/s, 2 s) -- b (8 B/s, 4 s); the last link is written from b to t.
    cluster = make("ab", [Link("a", "s", 4, 1), Link("s", "t", 2, 2), Link("b", "t", 8, 4)], switches="st")
    assert cluster.routes.latency_s.tolist() == [[0, 7], [7, 0]]
    assert cluster.routes.bytes_per_s.tolist() == [[math.inf, 2], [2, math.inf]]
    # Link l has direction 2 l from its a to its b, and 2 l + 1 back.
    assert crossed(cluster, 0, 1) == [0, 2, 5]
    assert crossed(cluster, 1, 0) == [4, 3, 1]
    assert crossed(cluster, 0, 0) == []


def test_a_grid_with_very_many_equally_short_routes_is_quick() -> None:
    # 12 x 12 switches have 705,432 shortest ways from corner to corner; listing them all would take minutes.
    side = 12
    name = {(i, j): f"s{i:02}{j:02}" for i in range(side) for j in range(side)}
    links = [Link(name[i, j], name[i + 1, j], 1e9, 1e-6) for i in range(side - 1) for j in range(side)]
    links += [Link(name[i, j], name[i, j + 1], 1e9, 1e-6) for i in range(side) for j in range(side - 1)]
    links += [Link("a", name[0, 0], 1e9, 1e-6), Link("b", name[side - 1, side - 1], 1e9, 1e-6)]
    cluster = Cluster("grid", (Device("a", SPEC), Device("b", SPEC)), tuple(links), tuple(name.values()))
    assert len(crossed(cluster, 0, 1)) == 2 * (side - 1) + 2


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make("", []), ["no devices"]),
        (lambda: make("aa", [Link("a", "a", 1, 0)]), ["two devices or switches are called 'a'"]),
        (lambda: make("a", [], switches="a"), ["called 'a'"]),
        (lambda: Cluster("c", (Device("", SPEC),), ()), ["empty name"]),
        (lambda: make("ab", [Link("a", "z", 1, 0)]), ["between 'a' and 'z'", "'z', which is neither"]),
        (lambda: make("ab", [Link("a", "a", 1, 0)]), ["between 'a' and 'a'", "to itself"]),
        (lambda: make("abc", [Link("a", "b", 1, 0)]), ["device 'c' cannot be reached from 'a'"]),
        (lambda: make("ab", [Link("a", "s", 1, 0)], switches="s"), ["device 'b' cannot be reached"]),
    ],
)
def test_an_invalid_topology_names_the_culprit(build: Callable[[], Cluster], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        build()
    for word in ["cluster 'c'", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("field", ["bytes_per_s", "latency_s"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf, 1e300])
def test_a_link_figure_out_of_range_is_refused(field: str, value: float) -> None:
    changes: dict[str, Any] = {field: value}
    link = replace(Link("a", "b", 1.0, 0.0), **changes)
    with pytest.raises(InputError, match=re.escape(f"between 'a' and 'b': {field} is {value}")):
        make("ab", [link])


def test_zero_bandwidth_is_refused_and_zero_latency_is_not() -> None:
    with pytest.raises(InputError, match="bytes_per_s is 0"):
        make("ab", [Link("a", "b", 0, 1)])
    assert make("ab", [Link("a", "b", 1, 0)]).routes.latency_s[0, 1] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "name is empty"),
        ({"kind": "dsp"}, "kind 'dsp'"),
        ({"memory_bytes": -1}, "memory_bytes is -1"),
        ({"memory_bytes": 2**63}, "memory_bytes is 9223372036854775808"),
        ({"memory_bytes": math.inf}, "memory_bytes is inf"),
        ({"memory_bytes": math.nan}, "memory_bytes is nan"),
        ({"peak_flops_per_s": {}}, "peak_flops_per_s is empty"),
        ({"peak_flops_per_s": {"float32": 0}}, "peak_flops_per_s of float32 is 0"),
        ({"peak_flops_per_s": {"float32": math.nan}}, "peak_flops_per_s of float32 is nan"),
        ({"peak_flops_per_s": {"float32": 1, "tf32": 1}}, "names dtype 'tf32'"),
        ({"memory_bytes_per_s": 0}, "memory_bytes_per_s is 0"),
        ({"launch_overhead_s": -1e-6}, "launch_overhead_s is -1e-06"),
        ({"fill_flops": math.inf}, "fill_flops is inf"),
        ({"tile": 0}, "tile is 0"),
        ({"efficiency": {"product": 0}}, "efficiency of product is 0"),
        ({"efficiency": {"product": 1.5}}, "efficiency of product is 1.5"),
        ({"efficiency": {"matmul": 0.5}}, "names op class 'matmul'"),
    ],
)
def test_a_spec_figure_out_of_range_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match="device spec") as error:
        replace(SPEC, **changes)
    assert words in str(error.value)


def test_the_digest_changes_with_every_figure_and_only_with_figures() -> None:
    def two(spec: DeviceSpec, link: Link, name: str = "c", source: str = "") -> str:
        return Cluster(name, (Device("a", spec), Device("b", SPEC)), (link,), source=source).sha256

    link = Link("a", "b", 1e9, 0.0)
    same = two(SPEC, link)
    assert same == "5f6886003b050983ea667503919adc9d06be57dbaf840af3b23fed4637a4fee3"
    assert two(replace(SPEC, source="elsewhere"), link, name="d", source="there") == same
    assert two(SPEC, Link("a", "b", 10**9, 0)) == same
    assert two(replace(SPEC, peak_flops_per_s={"float32": 10**12}), link) == same
    changes: list[dict[str, Any]] = [
        {"name": "chip2"},
        {"kind": "tpu"},
        {"memory_bytes": 1001},
        {"peak_flops_per_s": {"float32": 2e12}},
        {"peak_flops_per_s": {"float32": 1e12, "int8": 1e12}},
        {"memory_bytes_per_s": 2e11},
        {"launch_overhead_s": 1e-6},
        {"efficiency": {"product": 0.5}},
        {"tile": 32},
        {"fill_flops": 1.0},
    ]
    digests = [two(replace(SPEC, **change), link) for change in changes]
    digests += [two(SPEC, replace(link, bytes_per_s=2e9)), two(SPEC, replace(link, latency_s=1e-6))]
    assert len({same, *digests}) == len(digests) + 1


def test_every_field_of_a_spec_is_in_the_digest_or_known_not_to_matter() -> None:
    from envs.clusters.cluster import _figures

    assert {*_figures(SPEC), "source"} == set(SPEC.__dataclass_fields__)


def test_names_and_summary() -> None:
    cluster = make("ab", [Link("a", "b", 1, 0)])
    assert cluster.index("b") == 1
    assert repr(cluster) == "Cluster('c', 2 x chip, 1 links)"
    assert cluster.memory_bytes.dtype == np.int64
    with pytest.raises(InputError, match="has no device 'z'; its devices: a, b"):
        cluster.index("z")
