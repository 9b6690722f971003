"""Machines by outputs in the form that their tools print.

Some were written down after public reports, others after what is published of the machine; none is a copy of a file.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clusters.cluster import Cluster
from envs.clusters.device_specs import DEVICE_SPECS
from envs.clusters.file import cluster_to_yaml, parse_cluster
from envs.machine.found import merge, parse_cpus, show_cpus
from envs.machine.reading import load_topology, parse_topology, read_topology
from envs.machine.to_cluster import Like, make_machine_cluster
from graphs.errors import InputError

DATA = Path(__file__).parent / "data"
NVLINK_2 = 0.9 * 25e9


def machine(name: str, gpu: str | None = "t4") -> Cluster:
    """The cluster of a file; all GPUs have one spec, so that links alone are looked at."""
    return load_topology(f"{DATA / name}:cpu=haswell_18c" + (f",gpu={gpu}" if gpu else "")).cluster


def rate(cluster: Cluster, a: str, b: str) -> float:
    return float(cluster.routes.bytes_per_s[cluster.index(a), cluster.index(b)])


def latency(cluster: Cluster, a: str, b: str) -> float:
    return float(cluster.routes.latency_s[cluster.index(a), cluster.index(b)])


def joined(cluster: Cluster) -> set[tuple[str, str]]:
    return {(link.a, link.b) for link in cluster.links if link.a.startswith("gpu") and link.b.startswith("gpu")}


@pytest.mark.parametrize(
    ("name", "gpus", "cpus", "links", "switches"),
    [
        ("dgx1_v100.txt", 8, 2, 16, ["pcie:0", "pcie:1", "pcie:2", "pcie:3"]),
        ("dgx1_p100_old_driver.txt", 8, 2, 16, ["pcie:0", "pcie:1", "pcie:2", "pcie:3"]),
        ("dgx2.txt", 16, 2, 0, ["nvswitch:0", "pcie:0", "pcie:1", "pcie:2", "pcie:3"]),
        ("dgx_a100.txt", 8, 4, 0, ["nvswitch:0", "pcie:0", "pcie:1", "pcie:2", "pcie:3"]),
        ("dgx_h100.txt", 8, 2, 0, ["nvswitch:0"]),
        ("hgx_a800_infiniband.txt", 8, 2, 0, ["nvswitch:0"]),
        ("rtx3090x8.txt", 8, 2, 0, ["pcie:0", "pcie:1", "pcie:2", "pcie:3"]),
        ("l40s_pairs.txt", 4, 2, 0, []),
        ("rtx4090_and_p40.txt", 2, 1, 0, []),
        ("rtx5090_and_4090s.txt", 5, 2, 0, []),
        ("h100_virtual_machine_infiniband.txt", 8, 2, 0, []),
        ("a6000_bridge.txt", 4, 2, 2, []),
        ("wsl.txt", 1, 1, 0, []),
        ("mi250x.txt", 8, 4, 12, []),
        ("mi100_pcie.txt", 4, 2, 0, []),
        ("dgx2_part.lstopo.xml", 4, 2, 0, ["nvswitch:0", "pcie:0", "pcie:1"]),
        ("workstation.lstopo.xml", 2, 1, 0, []),
        ("rtx4090_and_p40.xml", 2, 1, 0, []),
        ("a100_divided.xml", 4, 1, 0, ["pcie:0"]),
        ("a100_divided_list.txt", 3, 1, 0, ["pcie:0"]),
    ],
)
def test_machines_become_clusters(name: str, gpus: int, cpus: int, links: int, switches: list[str]) -> None:
    cluster = machine(name)
    assert [device for device in cluster.device_names if device.startswith("cpu")] == [f"cpu:{i}" for i in range(cpus)]
    assert [device for device in cluster.device_names if device.startswith("gpu")] == [f"gpu:{i}" for i in range(gpus)]
    assert len(joined(cluster)) == links
    assert list(cluster.switches) == switches
    assert parse_cluster(cluster_to_yaml(cluster, DEVICE_SPECS), DEVICE_SPECS).sha256 == cluster.sha256
    assert "/" not in cluster.name


def test_a_dgx1_is_the_catalogues_cube_mesh() -> None:
    found, known = machine("dgx1_v100.txt"), load_known("v100x8")
    assert joined(found) == joined(known)
    for a, b in joined(known):
        assert rate(found, a, b) == rate(known, a, b)
    pascal = machine("dgx1_p100_old_driver.txt")
    assert {link.bytes_per_s for link in pascal.links if (link.a, link.b) in joined(pascal)} == {0.9 * 20e9}


def load_known(name: str) -> Cluster:
    from envs.clusters.catalog import load_cluster

    return load_cluster(name)


@pytest.mark.parametrize(
    ("name", "links", "each"),
    [
        ("dgx2.txt", 6, None),
        ("dgx_a100.txt", 12, 25e9),
        ("dgx_h100.txt", 18, None),
        ("hgx_a800_infiniband.txt", 8, 25e9),
    ],
)
def test_nvlinks_through_switches_are_as_wide_as_a_gpus_links(name: str, links: int, each: float | None) -> None:
    cluster = machine(name)
    gpus = [device for device in cluster.device_names if device.startswith("gpu")]
    for a, b in itertools.permutations(gpus, 2):
        assert rate(cluster, a, b) == pytest.approx(0.9 * links * (each or 25e9))


@pytest.mark.parametrize("name", ["rtx3090x8.txt"])
def test_nearer_gpus_are_quicker(name: str) -> None:
    cluster = machine(name)
    near, same_node, far = (latency(cluster, "gpu:0", other) for other in ("gpu:1", "gpu:2", "gpu:4"))
    assert near < same_node < far
    assert rate(cluster, "gpu:0", "gpu:1") >= rate(cluster, "gpu:0", "gpu:2") > rate(cluster, "gpu:0", "gpu:4")
    assert rate(cluster, "cpu:0", "gpu:0") > rate(cluster, "cpu:1", "gpu:0")


def test_gpus_without_nvlink_go_by_the_hosts() -> None:
    for name in ("l40s_pairs.txt", "h100_virtual_machine_infiniband.txt", "mi100_pcie.txt"):
        cluster = machine(name)
        last = [device for device in cluster.device_names if device.startswith("gpu")][-1]
        assert latency(cluster, "gpu:0", "gpu:1") < latency(cluster, "gpu:0", last)
        assert rate(cluster, "gpu:0", "gpu:1") >= rate(cluster, "gpu:0", last)
    bridged = machine("a6000_bridge.txt")
    assert joined(bridged) == {("gpu:0", "gpu:1"), ("gpu:2", "gpu:3")}
    assert rate(bridged, "gpu:0", "gpu:1") == pytest.approx(0.9 * 56.25e9)


def test_gpus_of_which_nothing_is_told_but_that_they_are_far_have_one_host(tmp_path: Path) -> None:
    for count, hosts in ((2, 2), (4, 1)):
        names = [f"GPU{i}" for i in range(count)]
        rows = [" ".join([a, *("X" if a == b else "SYS" for b in names)]) for a in names]
        (tmp_path / "vm.txt").write_text("\n".join([" ".join(names), *rows]))
        cluster = load_topology(f"{tmp_path / 'vm.txt'}:gpu=t4").cluster
        assert sum(device.name.startswith("cpu") for device in cluster.devices) == hosts


def test_network_cards_tell_which_gpus_share_a_pcie_switch() -> None:
    """NVLink stands in the GPUs' own cells, so what they share shows in the cards' columns only."""
    for name in ("dgx1_v100.txt", "dgx_a100.txt"):
        cluster = machine(name)
        behind = {link.b: link.a for link in cluster.links if link.a.startswith("pcie")}
        assert [behind[f"gpu:{i}"] for i in range(8)] == [f"pcie:{i // 2}" for i in range(8)]


def test_only_direct_xgmi_links_are_links() -> None:
    cluster = machine("mi250x.txt")
    assert ("gpu:0", "gpu:1") in joined(cluster)
    assert ("gpu:0", "gpu:7") not in joined(cluster)
    assert rate(cluster, "gpu:0", "gpu:7") == rate(cluster, "gpu:0", "gpu:1") == pytest.approx(0.9 * 50e9)
    assert latency(cluster, "gpu:0", "gpu:7") == 2 * latency(cluster, "gpu:0", "gpu:1")


def test_sizes_lanes_and_names_are_those_of_the_files() -> None:
    table, xml = (read_topology(str(DATA / f"rtx4090_and_p40.{end}")) for end in ("txt", "xml"))
    assert (
        [gpu.name for gpu in table.gpus] == [gpu.name for gpu in xml.gpus] == ["NVIDIA GeForce RTX 4090", "Tesla P40"]
    )
    assert [gpu.memory_bytes for gpu in table.gpus] == [gpu.memory_bytes for gpu in xml.gpus]
    both = merge([table, xml])
    assert both.path(0, 1) == "PHB"
    assert [(gpu.pcie_generation, gpu.pcie_lanes, len(gpu.cpus)) for gpu in both.gpus] == [(4, 8, 32), (3, 4, 32)]
    made = load_topology(
        f"{DATA / 'rtx4090_and_p40.txt'},{DATA / 'rtx4090_and_p40.xml'}:gpu=t4,cpu=haswell_18c"
    ).cluster
    assert rate(made, "cpu:0", "gpu:0") == pytest.approx(12.5e9)
    assert rate(made, "cpu:0", "gpu:1") == pytest.approx(3e9)
    total = 24564 * 2**20
    assert made.devices[1].spec.memory_bytes == pytest.approx(0.95 * total, abs=1e6)


def test_memory_that_others_use_is_not_there() -> None:
    cluster = machine("a100_divided.xml")
    assert cluster.devices[-1].spec.memory_bytes == pytest.approx(61440 * 2**20, abs=1e6)


def test_instances_of_a_divided_card_share_its_link() -> None:
    cluster = machine("a100_divided.xml", gpu="a100")
    specs = [device.spec for device in cluster.devices[1:]]
    whole = DEVICE_SPECS["a100"]
    assert [
        spec.rate_flops_per_s("float32") / whole.rate_flops_per_s("float32") for spec in specs[:3]
    ] == pytest.approx([14 / 108, 14 / 108, 42 / 108])
    assert specs[0].memory_bytes == round(19968 * 2**20 * 0.95)
    assert specs[0].memory_bytes_per_s == pytest.approx(whole.memory_bytes_per_s * 19968 / 81920)
    # The second card is divided, but into nothing: no device. The third is whole.
    assert specs[3].rate_flops_per_s("float32") == whole.rate_flops_per_s("float32")
    assert {(link.a, link.b) for link in cluster.links} == {
        *(("pcie:0", f"gpu:{i}") for i in range(3)),
        ("cpu:0", "pcie:0"),
        ("cpu:0", "gpu:3"),
    }
    listed = [device.spec for device in machine("a100_divided_list.txt", gpu="a100").devices[1:]]
    assert [spec.memory_bytes for spec in listed] == [38 * 10**9, 19 * 10**9, 95 * 10**8]


def test_lstopo_tells_the_host() -> None:
    found = read_topology(str(DATA / "dgx2_part.lstopo.xml"))
    assert (found.cpu_name[:33], found.sockets, found.cores) == ("Intel(R) Xeon(R) Platinum 8174 CP", 2, 4)
    assert found.memory_bytes == 2 * 810234351616
    assert [gpu.node for gpu in found.gpus] == [0, 0, 1, 1]
    assert (found.path(0, 1), found.path(0, 2)) == ("PIX", "SYS")
    cluster = machine("dgx2_part.lstopo.xml")
    assert rate(cluster, "gpu:0", "gpu:3") == pytest.approx(6 * NVLINK_2)
    assert cluster.devices[0].spec.memory_bytes == pytest.approx(2 * 0.95 * 810234351616, rel=1e-4)
    assert [(memory.devices, memory.memory_bytes) for memory in cluster.shared_memories] == [
        (("cpu:0", "cpu:1"), cluster.devices[0].spec.memory_bytes)
    ]
    station = read_topology(str(DATA / "workstation.lstopo.xml"))
    assert [(gpu.pcie_generation, gpu.pcie_lanes) for gpu in station.gpus] == [(None, 8), (4, 16)]
    assert [gpu.memory_bytes for gpu in station.gpus] == [24903680 * 1024] * 2
    assert station.path(0, 1) == "NODE"


def test_the_host_is_as_lscpu_says() -> None:
    found = read_topology(str(DATA / "a6000_bridge.txt"))
    assert (found.cpu_name, found.sockets, found.cores) == ("Intel(R) Xeon(R) Gold 6326 CPU @ 2.90GHz", 2, 32)
    assert found.memory_bytes == 527978128 * 1024
    made = load_topology(f"{DATA / 'a6000_bridge.txt'}:gpu=t4,memory_bytes=64e9")
    assert [device.spec.memory_bytes for device in made.cluster.devices[:2]] == [60_800_000_000] * 2
    assert sum(memory.memory_bytes for memory in made.cluster.shared_memories) == 60_800_000_000
    assert any("Xeon(R) Gold 6326" in note and "cpu=NAME" in note for note in made.notes)


def test_outputs_are_matched_by_pci_address() -> None:
    xml = (DATA / "rtx4090_and_p40.xml").read_bytes()
    start, first, second = xml.partition(b"\t<gpu ")[0], *[b"\t<gpu " + part for part in xml.split(b"\t<gpu ")[1:]]
    second, end = second.split(b"</nvidia_smi_log>")[0], b"</nvidia_smi_log>\n"
    turned = parse_topology(start + second + first + end, "turned")
    assert [gpu.name for gpu in turned.gpus] == ["Tesla P40", "NVIDIA GeForce RTX 4090"]
    straight = merge([read_topology(str(DATA / "rtx4090_and_p40.txt")), turned])
    assert [gpu.pcie_lanes for gpu in straight.gpus] == [8, 4]


def test_parts_of_the_matrix_do_not_depend_on_how_it_was_pasted() -> None:
    plain = (DATA / "dgx_a100.txt").read_text()
    found = parse_topology(plain.encode(), "plain")
    spaces = re.sub(r"\t+", "     ", plain)
    for other in (spaces, plain.replace("\n", "\r\n"), "\ufeff" + plain, re.sub("^", "> ", plain).replace("> ", "   ")):
        again = parse_topology(other.encode(), "plain")
        assert again == found
    assert parse_topology(plain.encode("utf-16"), "plain") == found


BOMB = b"""<?xml version="1.0"?>
<!DOCTYPE nvidia_smi_log [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<nvidia_smi_log><gpu id="1"><product_name>&b;</product_name></gpu></nvidia_smi_log>"""
OUTSIDE = b"""<?xml version="1.0"?><!DOCTYPE nvidia_smi_log [<!ENTITY a SYSTEM "file:///etc/hostname">]>
<nvidia_smi_log><gpu id="1"><product_name>&a;</product_name></gpu></nvidia_smi_log>"""
ROW = b"        GPU0    GPU1    CPU Affinity\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["none of the outputs that are read"]),
        (b"hello\n", ["none of the outputs that are read"]),
        (b"\0\1\2\3", ["is not text"]),
        (b"\xff\xfe\x00", ["is not text"]),
        (BOMB, ["defines XML entities"]),
        (OUTSIDE, ["defines XML entities"]),
        (b"<a>" * 300 + b"</a>" * 300, ["200 in each other"]),
        (b"<a>" + b"<b/>" * 250_000 + b"</a>", ["more than 200,000 elements"]),
        (b"<nvidia_smi_log><gpu>", ["is not XML", "line 1"]),
        (b"<html></html>", ["is XML of 'html'"]),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', ["is not XML"]),
        (b"<nvidia_smi_log></nvidia_smi_log>", ["names 0 GPUs"]),
        (b"<nvidia_smi_log><gpu/></nvidia_smi_log>", ["no product_name"]),
        (
            b"<nvidia_smi_log><gpu><product_name>x</product_name><fb_memory_usage><total>many</total>"
            b"</fb_memory_usage></gpu></nvidia_smi_log>",
            ["'many' is no size"],
        ),
        (b"<topology/>", ["describes no machine"]),
        (ROW + b"GPU0     X      PIX     0-3\n", ["no such row", "GPU1"]),
        (ROW + b"GPU0     X      PIX     0-3\nGPU1\n", ["row GPU1 has 0 cells"]),
        (ROW + b"GPU0     X      PIX     0-3\nGPU1    SYS      X      0-3\n", ["GPU0 to GPU1 is 'PIX'", "'SYS'"]),
        (ROW + b"GPU0     X      NEAR    0-3\nGPU1    NEAR     X      0-3\n", ["'NEAR'", "none of PIX"]),
        (ROW + b"GPU0     X      PIX     0-99999999\nGPU1    PIX     X      0-3\n", ["no list of processors"]),
        (b"Model name: A\nNUMA node0 CPU(s): 8-3\n", ["8-3 ends before it begins"]),
        (b"GPU 0: Tesla T4 (UUID: x)\n" + ROW + b"GPU0     X      PIX\nGPU1    PIX     X\n", ["lists 1 GPUs", "has 2"]),
        (
            b"GPU 1: Tesla T4\nGPU 5: Tesla T4\n" + ROW + b"GPU0     X      PIX\nGPU1    PIX     X\n",
            ["lists GPUs 1, 5"],
        ),
        (b"==== Weight between two GPUs ====\n", ["no table of link types", "rocm-smi --showtopo"]),
        (b"=== Link Type between two GPUs ===\n GPU0 GPU1\nGPU0 0 XGMI\nGPU1 0\n", ["a row has not as many cells"]),
    ],
)
def test_each_broken_output_is_one_sentence(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "saved"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_topology(f"{path}:gpu=t4")
    message = str(error.value)
    assert message.startswith(f"topology file '{path}'")
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", ["no topology file is given"]),
        ("none.txt", ["cannot read topology file 'none.txt'"]),
        (f"{DATA}", ["it is a folder"]),
        ("/dev/zero", ["it is a device"]),
        (f"{DATA / 'rtx3090x8.txt'}:gpu=rtx", ["unknown device spec 'rtx'"]),
        (f"{DATA / 'rtx3090x8.txt'}:colour=red", ["key in topology", "'colour'", "memory_bytes"]),
        (f"{DATA / 'rtx3090x8.txt'}:gpu=t4,memory_bytes=lots", ["memory_bytes is 'lots'"]),
        (f"{DATA / 'rtx3090x8.txt'}:gpu=t4,memory_bytes=-1", ["memory_bytes is '-1'"]),
        (f"{DATA / 'rtx3090x8.txt'}:gpu.8=t4", ["gpu.8 is given a spec", "8 GPUs"]),
        (f"{DATA / 'dgx_h100.txt'}", ["what GPU 0 is, is not said", "nvidia-smi -L", "gpu.0=NAME"]),
        (f"{DATA / 'rtx3090x8.txt'},{DATA / 'wsl.txt'}", ["names 8 GPUs", "1; give outputs of one machine"]),
        (f"{DATA / 'a100_divided.xml'},{DATA / 'rtx4090_and_p40.xml'}", ["3 GPUs", "2; give outputs of one machine"]),
    ],
)
def test_what_is_said_of_a_topology_is_checked(spec: str, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        load_topology(spec)
    for word in words:
        assert word in str(error.value)


def test_a_gpu_that_the_catalogue_lacks_is_named() -> None:
    with pytest.raises(InputError, match=r"GPU 0 is called 'NVIDIA Sixty', which .* as in FILE:gpu.0=NAME"):
        load_topology(str(write_list("NVIDIA Sixty")))


def write_list(name: str) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "list.txt"
    path.write_text(f"GPU 0: {name} (UUID: GPU-0)\n")
    return path


@pytest.mark.parametrize(
    ("name", "specs"),
    [
        ("dgx1_v100.txt", ["v100_16gb"] * 8),
        ("dgx_a100.txt", ["a100_40gb"] * 8),
        ("rtx3090x8.txt", ["rtx_3090"] * 8),
        ("l40s_pairs.txt", ["l40s"] * 4),
        ("a6000_bridge.txt", ["a6000"] * 4),
        ("rtx4090_and_p40.txt", ["rtx_4090", "p40"]),
        ("rtx4090_and_p40.xml", ["rtx_4090", "p40"]),
        ("rtx5090_and_4090s.txt", ["rtx_5090", *["rtx_4090"] * 4]),
        ("wsl.txt", ["rtx_3060"]),
        ("mi250x.txt", ["mi250x"] * 8),
        ("mi100_pcie.txt", ["mi100"] * 4),
        ("workstation.lstopo.xml", ["a5000"] * 2),
        ("a100_divided.xml", ["a100_14sm_20gb", "a100_14sm_20gb", "a100_42sm_39gb", "a100"]),
    ],
)
def test_gpus_are_known_by_the_names_that_drivers_give_them(name: str, specs: list[str]) -> None:
    cluster = load_topology(str(DATA / name)).cluster
    assert [device.spec.name for device in cluster.devices if device.name.startswith("gpu")] == specs


@given(name=st.sampled_from(sorted(path.name for path in DATA.iterdir())), data=st.data())
@settings(max_examples=80)
def test_damaged_outputs_are_read_or_refused_in_a_sentence(name: str, data: st.DataObject) -> None:
    lines = (DATA / name).read_bytes().split(b"\n")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(lines) - 1))
        words = lines[place].split(b" ")
        word = data.draw(st.integers(0, len(words) - 1))
        put = data.draw(
            st.sampled_from([b"", b"GPU0", b"X", b"NV9", b"99999999999", b"-1", b"<a>", b"\xff", b"SYS SYS"])
        )
        kind = data.draw(st.sampled_from(["drop", "twice", "word", "cut"]))
        if kind == "drop":
            lines[place] = b""
        elif kind == "twice":
            lines.insert(place, lines[place])
        elif kind == "cut":
            lines = lines[: place + 1]
        else:
            lines[place] = b" ".join([*words[:word], put, *words[word + 1 :]])
    try:
        found = parse_topology(b"\n".join(lines), "it")
        made = make_machine_cluster(found, DEVICE_SPECS, name="m", like=Like(gpu="t4"))
    except InputError:
        return
    assert len(made.cluster.devices) >= 1
    assert made.cluster.memory_bytes.min() >= 0


def test_lists_of_processors() -> None:
    for text in ("0-3,8", "0", "0-15,32-47", "5,7,9"):
        assert show_cpus(parse_cpus(text)) == text
    for bad in ("a", "3-", "1-2-3", "0-70000", "48-9"):
        with pytest.raises(InputError, match="processors"):
            parse_cpus(bad)
