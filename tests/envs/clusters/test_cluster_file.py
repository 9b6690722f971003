"""Cluster files: what they may say, that they round-trip, and that each mistake is named with file and field."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

import envs.clusters.file
from envs.clusters.catalog import CLUSTERS, DEVICE_SPECS, load_cluster
from envs.clusters.cluster import Cluster
from envs.clusters.file import cluster_to_yaml, load_cluster_file, parse_cluster
from graphs.errors import InputError


def documented_example() -> str:
    return textwrap.dedent(str(envs.clusters.file.__doc__).split("```yaml\n")[1].split("```")[0])


def with_changes(**changes: Any) -> str:
    content: dict[str, Any] = {
        "format": "device-cluster",
        "version": 1,
        "name": "two",
        "devices": [{"name": "cpu:0", "spec": "haswell_18c"}, {"name": "gpu:0", "spec": "k80"}],
        "links": [{"between": ["cpu:0", "gpu:0"], "bytes_per_s": 1e10, "latency_s": 1e-5}],
    }
    content |= changes
    return yaml.safe_dump({key: value for key, value in content.items() if value is not None})


def test_the_documented_example_is_read_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(documented_example())
    cluster = load_cluster(str(path))
    assert cluster.device_names == ("cpu:0", "gpu:0", "gpu:1", "gpu:2", "npu:0", "npu:1", "npu:2", "npu:3")
    assert cluster.devices[1].spec == cluster.devices[2].spec == DEVICE_SPECS["t4"]
    changed, own = cluster.devices[3].spec, cluster.devices[4].spec
    assert (changed.name, changed.memory_bytes, changed.tile) == ("k80", 8_000_000_000, 32)
    assert changed.peak_flops_per_s == DEVICE_SPECS["k80"].peak_flops_per_s
    assert (own.name, own.kind, own.memory_bytes) == ("my-chip", "npu", 16_000_000_000)
    assert own.peak_flops_per_s == {"float32": 20e12, "bfloat16": 40e12}
    assert own.launch_overhead_s == 5e-6
    assert cluster.devices[5].spec == cluster.devices[6].spec == own
    assert (cluster.devices[7].spec.name, cluster.devices[7].spec.memory_bytes) == ("my-chip", 32_000_000_000)
    assert cluster.routes.latency_s[1, 2] == pytest.approx(15e-6)
    assert (cluster.routes.bytes_per_s[0, 4], cluster.routes.bytes_per_s[4, 0]) == (25e9, 20e9)
    overridden = load_cluster(f"{path}:link_bytes_per_s=1e9")
    assert {(link.bytes_per_s, link.back[0]) for link in overridden.links} == {(1e9, 1e9)}


@pytest.mark.parametrize("name", list(CLUSTERS))
def test_known_clusters_round_trip(name: str) -> None:
    for cluster in (CLUSTERS[name], load_cluster(f"{name}:memory_bytes=8e9,link_latency_s=1e-6")):
        again = parse_cluster(cluster_to_yaml(cluster, DEVICE_SPECS), DEVICE_SPECS)
        assert again.devices == cluster.devices
        assert again.links == cluster.links
        assert (again.name, again.switches, again.source) == (cluster.name, cluster.switches, cluster.source)
        assert again.sha256 == cluster.sha256


LINK = {"between": ["cpu:0", "gpu:0"], "bytes_per_s": 1e10, "latency_s": 1e-5}
CPU = {"name": "cpu:0", "spec": "haswell_18c"}
OWN = {
    "name": "own",
    "kind": "gpu",
    "memory_bytes": 1e9,
    "peak_flops_per_s": {"float32": 1e12},
    "memory_bytes_per_s": 1e11,
}


def own(**changes: Any) -> str:
    spec = {key: value for key, value in (OWN | changes).items() if value is not None}
    return with_changes(devices=[CPU, {"name": "gpu:0", "spec": spec}])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("devices: [", ["is not YAML", "line 1", "; correct it there"]),
        ("a: b: c", ["is not YAML"]),
        ("\x00", ["is not YAML", "; correct it there"]),
        ("x: 2001-99-99", ["is not YAML"]),
        ("[" * 5000, ["is not YAML"]),
        ("!!python/object/apply:os.system ['true']", ["is not YAML"]),
        ("", ["must be a mapping"]),
        ("- 1", ["must be a mapping"]),
        ("&a [*a]", ["must be a mapping"]),
        (with_changes(links=None), ["required field 'links'"]),
        (with_changes(format="other"), ["format", "other"]),
        (with_changes(version=2), ["version", "2"]),
        (with_changes(name=7), ["name", "int"]),
        (with_changes(colour="red"), ["unknown field 'colour'"]),
        (with_changes(devices=[]), ["no devices"]),
        (with_changes(devices=[CPU, {"name": "gpu:0"}]), ["devices[1]", "required field 'spec'"]),
        (with_changes(devices=[CPU, {"name": "gpu:0", "spec": "k81"}]), ["devices[1].spec", "'k81'", "mean 'k80'"]),
        (with_changes(devices=[CPU, {"name": "gpu", "spec": "k80", "count": 0}]), ["devices[1].count is 0"]),
        (with_changes(devices=[CPU, {"name": "gpu", "spec": "k80", "count": 10**9}]), ["devices[1].count"]),
        (with_changes(devices=[CPU, CPU]), ["called 'cpu:0'"]),
        (with_changes(links=[]), ["'gpu:0' cannot be reached from 'cpu:0'"]),
        (with_changes(links=[LINK | {"between": ["cpu:0", "gpu:9"]}]), ["'gpu:9', which is neither"]),
        (with_changes(links=[LINK | {"between": ["cpu:0"]}]), ["links[0].between", "length 2"]),
        (with_changes(links=[LINK | {"bytes_per_s": 0}]), ["'cpu:0' and 'gpu:0'", "bytes_per_s is 0"]),
        (with_changes(links=[LINK | {"bytes_per_s": float("nan")}]), ["bytes_per_s is nan"]),
        (with_changes(links=[LINK | {"latency_s": float("inf")}]), ["latency_s is inf"]),
        (with_changes(links=[LINK | {"latency_s": "soon"}]), ["links[0].latency_s"]),
        (with_changes(links=[{k: v for k, v in LINK.items() if k != "latency_s"}]), ["links[0]", "'latency_s'"]),
        (own(kind="dsp"), ["devices[1].spec", "kind 'dsp'"]),
        (own(kind=None), ["devices[1].spec lacks kind"]),
        (own(memory_bytes=-1), ["devices[1].spec.memory_bytes is -1"]),
        (own(memory_bytes=float("nan")), ["devices[1].spec.memory_bytes is nan"]),
        (own(memory_bytes=1e30), ["devices[1].spec.memory_bytes is 1e+30"]),
        (own(peak_flops_per_s={"float32": 0}), ["peak_flops_per_s of float32 is 0"]),
        (own(like="k81"), ["devices[1].spec.like", "'k81'"]),
        (own(speed=1), ["devices[1].spec", "unknown field 'speed'"]),
    ],
)
def test_each_mistake_is_one_sentence_with_file_and_field(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_cluster_file(path, DEVICE_SPECS)
    message = str(error.value)
    assert message.startswith(f"cluster file '{path}'")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read cluster file '.*none.yaml': No such file"):
        load_cluster_file(tmp_path / "none.yaml", DEVICE_SPECS)
    with pytest.raises(InputError, match="cannot read cluster file"):
        load_cluster_file(tmp_path, DEVICE_SPECS)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_cluster_file(binary, DEVICE_SPECS)


def test_like_takes_what_is_absent_from_the_known_spec() -> None:
    text = with_changes(
        devices=[CPU, {"name": "gpu:0", "spec": {"like": "v100", "name": "v100-16", "memory_bytes": 152e8}}]
    )
    spec = parse_cluster(text, DEVICE_SPECS).devices[1].spec
    known = DEVICE_SPECS["v100"]
    assert (spec.name, spec.memory_bytes) == ("v100-16", 15_200_000_000)
    assert (spec.peak_flops_per_s, spec.tile, spec.efficiency) == (known.peak_flops_per_s, known.tile, known.efficiency)


def test_one_device_needs_no_link() -> None:
    cluster = parse_cluster(with_changes(devices=[CPU], links=[]), DEVICE_SPECS)
    assert isinstance(cluster, Cluster)
    assert cluster.routes.latency_s.tolist() == [[0.0]]


def two(links: list[dict[str, Any]], **changes: Any) -> str:
    devices = [CPU, {"name": "gpu", "count": 2, "spec": "t4"}, {"name": "gpu", "count": 2, "start": 4, "spec": "k80"}]
    return with_changes(**({"devices": devices, "links": links} | changes))


FAST = {"bytes_per_s": 1e10, "latency_s": 1e-6}


def test_counted_devices_may_start_anywhere_and_links_may_join_many() -> None:
    links = [{"between": ["cpu:0", "gpu:*"], **FAST}, {"all": ["gpu:0-1", "gpu:4"], **FAST, "back_bytes_per_s": 1e9}]
    cluster = parse_cluster(two(links), DEVICE_SPECS)
    assert cluster.device_names == ("cpu:0", "gpu:0", "gpu:1", "gpu:4", "gpu:5")
    assert [(link.a, link.b) for link in cluster.links] == [
        *(("cpu:0", f"gpu:{i}") for i in (0, 1, 4, 5)),
        *(("gpu:0", "gpu:1"), ("gpu:0", "gpu:4"), ("gpu:1", "gpu:4")),
    ]
    assert {link.back for link in cluster.links} == {(1e10, 1e-6), (1e9, 1e-6)}
    assert parse_cluster(cluster_to_yaml(cluster, DEVICE_SPECS), DEVICE_SPECS).sha256 == cluster.sha256


def test_a_spec_may_be_like_another_of_the_file_wherever_that_stands() -> None:
    devices = [
        CPU,
        {"name": "gpu:0", "spec": {"like": "big", "name": "bigger", "memory_bytes": 3e9}},
        {"name": "gpu:1", "spec": {"like": "own", "name": "big", "tile": 8}},
        {"name": "gpu:2", "spec": OWN | {"kind": "fpga"}},
        {"name": "gpu:3", "spec": "own"},
    ]
    made = parse_cluster(with_changes(devices=devices, links=[{"all": ["cpu:0", "gpu:*"], **FAST}]), DEVICE_SPECS)
    specs = {device.name: device.spec for device in made.devices}
    assert (specs["gpu:0"].name, specs["gpu:0"].tile, specs["gpu:0"].memory_bytes) == ("bigger", 8, 3 * 10**9)
    assert specs["gpu:3"] == specs["gpu:2"]
    assert specs["gpu:1"].kind == "fpga"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (two([{"all": ["gpu:0-3"], **FAST}]), ["links[0].all names 'gpu:0-3'", "only 2"]),
        (two([{"all": ["gpu:0"], **FAST}]), ["links[0].all names fewer than two"]),
        (two([{"between": ["tpu:*", "cpu:0"], **FAST}]), ["links[0].between names 'tpu:*'"]),
        (two([FAST]), ["links[0] must say either between"]),
        (two([FAST | {"all": ["gpu:*"], "between": ["gpu:0", "gpu:1"]}]), ["links[0] must say either between"]),
        (two([{"between": ["gpu:*", "cpu:0"], **FAST, "back_latency_s": -1}]), ["back_latency_s is -1"]),
        (with_changes(devices=[CPU, {"name": "gpu", "start": 3, "spec": "t4"}]), ["devices[1].start is 3"]),
        (with_changes(devices=[{"name": "gpu", "count": 2, "start": -1, "spec": "t4"}]), ["devices[0].start is -1"]),
        (with_changes(devices=[{"name": n, "count": 1024, "spec": "t4"} for n in "ab"]), ["more than 1024 devices"]),
        (
            with_changes(devices=[{"name": "gpu", "count": 1024, "spec": "t4"}], links=[{"all": ["gpu:*"], **FAST}]),
            ["links[0] makes more than 32,768 links"],
        ),
        (own(like="own"), ["spec 'own' is like itself"]),
    ],
)
def test_what_stands_for_many_is_refused_by_name_where_it_stands_for_none(text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_cluster(text, DEVICE_SPECS)
    for word in words:
        assert word in str(caught.value)
