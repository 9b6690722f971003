"""Outputs as people paste them, of drivers and tools of all ages: the same machine is read from each."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from envs.clusters.cluster import Cluster
from envs.clusters.device_specs import DEVICE_SPECS, find_spec
from envs.machine.found import Found
from envs.machine.reading import parse_topology
from envs.machine.to_cluster import Like, make_machine_cluster
from graphs.errors import InputError

HEAD = "\t\x1b[4mGPU0\tGPU1\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m"
ROWS = [
    "GPU0\t X \tNV18\tPIX\tSYS\t0-47,96-143\t0\t\tN/A",
    "GPU1\tNV18\t X \tSYS\tPIX\t48-95,144-191\t1\t\tN/A",
    "NIC0\tPIX\tSYS\t X \tSYS\t\t\t\t",
    "NIC1\tSYS\tPIX\tSYS\t X \t\t\t\t",
]
LEGEND = [
    "",
    "Legend:",
    "",
    "  X    = Self",
    "  SYS  = Connection",
    "",
    "NIC Legend:",
    "  NIC0: mlx5_0",
]
LINES = [HEAD, *ROWS, *LEGEND]
PEERS = [" \tGPU0\tGPU1\t", " GPU0\tX\tOK\t", " GPU1\tOK\tX\t", "", "Legend:", "", "  OK   = Status Ok", ""]


NOBODY = Like()


def cluster_of(found: Found, like: Like = NOBODY) -> Cluster:
    return make_machine_cluster(found, DEVICE_SPECS, name="m", like=like).cluster


def each(change: Callable[[str], str]) -> str:
    return "\n".join(map(change, LINES))


PLAIN = re.sub(r"\x1b\[\dm", "", "\n".join(LINES))
PASTED = {
    "as printed": "\n".join(LINES),
    "without escapes": PLAIN,
    "the escape character is lost": "\n".join(LINES).replace("\x1b", ""),
    "the escape character is spelt out": "\n".join(LINES).replace("\x1b", "^["),
    "as a symbol": "\n".join(LINES).replace("\x1b", "\u241b"),
    "as in C": "\n".join(LINES).replace("\x1b", "\\033"),
    "recorded by script": "\x1b]0;host\x07" + "\n".join(LINES).replace("\x1b[0m", "\x1b(B\x1b[m"),
    "lines end as in Windows": "\r\n".join(LINES),
    "spaces for tabs": "\n".join(LINES).expandtabs(),
    "spaces that do not break": "\n".join(LINES).replace("\t", "\xa0\xa0"),
    "two spaces in the head": "\n".join(LINES).replace("CPU Affinity", "CPU  Affinity"),
    "quoted": each(lambda line: f"> {line}"),
    "fenced": "```\n" + "\n".join(LINES) + "\n```",
    "indented": each(lambda line: f"        {line}"),
    "each line apart": "\n\n".join(LINES),
    "with numbers of lines": "\n".join(f"{i:4d}  {line}" for i, line in enumerate(LINES, 1)),
    "in a log": each(lambda line: f"2025-06-01T12:00:00Z [rank0]: {line}"),
    "behind the prompt": "me@host:~$ nvidia-smi topo -m\n" + "\n".join(LINES) + "\nme@host:~$ ",
    "below the matrix of peers": "\n".join([*PEERS, *LINES]),
    "without network cards' rows": "\n".join([HEAD, *ROWS[:2], *LEGEND]),
    "without a legend": "\n".join([HEAD, *ROWS]),
    "a table in Markdown": "\n".join(
        "| " + " | ".join(line.split("\t")) + " |" if "---" not in line else line
        for line in [HEAD, "|---|---|---|---|---|---|---|---|", *ROWS]
    ),
}


@pytest.mark.parametrize("how", PASTED)
def test_a_matrix_is_read_however_it_was_pasted(how: str) -> None:
    found = parse_topology(PASTED[how].encode(), "it")
    assert [(gpu.node, len(gpu.cpus)) for gpu in found.gpus] == [(0, 96), (1, 96)]
    assert [(link.a, link.b, link.kind, link.count) for link in found.links] == [(0, 1, "nvlink", 18)]
    assert found == parse_topology(PLAIN.encode(), "it")
    assert cluster_of(found, Like(gpu="h100")).device_names == ("cpu:0", "cpu:1", "gpu:0", "gpu:1")


@pytest.mark.parametrize(
    ("beside", "node"),
    [
        ("0-15\t\tN/A", None),
        ("0-15\t0-1\tN/A", None),
        ("0-15\t0\tN/A", 0),
        ("0-15", None),
        ("\t\tN/A", None),
        ("N/A\tN/A\tN/A", None),
    ],
)
def test_affinities_that_are_not_told_are_not_needed(beside: str, node: int | None) -> None:
    text = (
        f"\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \tPHB\t{beside}\nGPU1\tPHB\t X \t{beside}\n"
    )
    found = parse_topology(text.encode(), "it")
    assert [gpu.node for gpu in found.gpus] == [node, node]
    assert cluster_of(found, Like(gpu="t4")).device_names == ("cpu:0", "gpu:0", "gpu:1")


def test_a_matrix_that_ends_too_early_is_refused_or_lacks_no_link() -> None:
    """Wherever a file was cut off: what is read of the links is right."""
    for cut in range(60, len(PLAIN.split("\nNIC0")[0])):
        try:
            found = parse_topology(PLAIN[:cut].encode(), "it")
        except InputError:
            continue
        assert [(link.a, link.b, link.count) for link in found.links] == [(0, 1, 18)]
        assert all(gpu.cpus for gpu in found.gpus)


def test_a_matrix_of_peers_alone_is_no_topology() -> None:
    with pytest.raises(InputError, match="none of the outputs that are read"):
        parse_topology("\n".join(PEERS).encode(), "it")


def test_a_gpu_in_the_cpus_package_is_joined_to_it_by_more_than_pcie() -> None:
    text = "GPU 0: NVIDIA GH200 480GB (UUID: GPU-0)\n\tGPU0\tCPU Affinity\tNUMA Affinity\nGPU0\t X \t0-71\t0\n"
    (link,) = cluster_of(parse_topology(text.encode(), "it")).links
    assert (link.a, link.b, link.bytes_per_s) == ("cpu:0", "gpu:0", 0.9 * 450e9)


TABLE = """+-----------------------------------------------------------------------------+
| NVIDIA-SMI 450.80.02    Driver Version: 450.80.02    CUDA Version: 11.0     |
|===============================+======================+======================|
|   0  {name:<20} Off  | 00000000:1A:00.0 Off |                  N/A |
| 27%   38C    P8    21W / 250W |      0MiB / {mib:>5}MiB |      0%      Default |
"""


@pytest.mark.parametrize(
    ("name", "mib", "spec"),
    [
        ("GeForce RTX 208...", 11019, "rtx_2080_ti"),
        ("Tesla V100-SXM2...", 32510, "v100"),
        ("Tesla V100-SXM2...", 16160, "v100_16gb"),
        ("NVIDIA A100-SXM...", 40536, "a100_40gb"),
        ("NVIDIA A100-SXM...", 81251, "a100"),
        ("NVIDIA GeForce ...", 24268, None),  # of several that have 24 GB
        ("NVIDIA GeForce ...", 5000, None),
        ("NVIDIA RTX 6000...", 49140, "rtx_6000_ada"),
        ("Quadro RTX 8000", 48601, "quadro_rtx_8000"),
    ],
)
def test_names_that_a_table_cuts_off_are_found_by_their_memory(name: str, mib: int, spec: str | None) -> None:
    found = parse_topology(TABLE.format(name=name, mib=mib).encode(), "it")
    if spec is None:
        with pytest.raises(InputError, match=r"is called 'NVIDIA GeForce \.\.\.'.*gpu\.0=NAME"):
            cluster_of(found)
    else:
        assert cluster_of(found).devices[1].spec.name == spec
    if name.endswith("..."):
        assert find_spec(name) is None, "without the memory it is not known"


@pytest.mark.parametrize(
    "name", ["Aqua Vanjaram [Instinct MI300X]", "AMD Instinct MI300X VF", "AMD Instinct MI300X OAM"]
)
def test_amds_names_for_one_card(name: str) -> None:
    found = find_spec(name)
    assert found is not None
    assert found.name == "mi300x"


BUSES = ["0000:05:00.0", "0000:26:00.0", "0000:46:00.0"]


def amd_smi(weight: int = 15) -> str:
    def table(title: str, own: str, other: Callable[[int, int], object]) -> list[str]:
        rows = [[own if i == j else str(other(i, j)) for j in range(3)] for i in range(3)]
        return [f"{title} TABLE:", f"             {' '.join(BUSES)}", *(
            f"{bus} {'      '.join(row)}" for bus, row in zip(BUSES, rows, strict=True)
        ), ""]  # fmt: skip

    return "\n".join(
        table("ACCESS", "ENABLED", lambda i, j: "ENABLED")
        + table("WEIGHT", "0", lambda i, j: weight if {i, j} == {0, 2} else 15)
        + table("HOPS", "0", lambda i, j: 1)
        + table("LINK TYPE", "SELF", lambda i, j: "XGMI")
        + table("NUMA BW", "N/A", lambda i, j: "50000-50000")
    )


STATIC = "\n".join(
    f"GPU: {i}\n    ASIC:\n        MARKET_NAME: AMD Instinct MI300X\n        VENDOR_ID: 0x1002\n    BUS:\n"
    f"        BDF: {bus}\n    VRAM:\n        TYPE: HBM\n        SIZE: 196592 MB\n"
    for i, bus in enumerate(BUSES)
)


def test_amd_smi_says_what_rocm_smi_said() -> None:
    found = parse_topology((amd_smi() + "\n" + STATIC).encode(), "it")
    assert [gpu.bus for gpu in found.gpus] == ["0:05:00.0", "0:26:00.0", "0:46:00.0"]
    assert [gpu.memory_bytes for gpu in found.gpus] == [196592 * 2**20] * 3
    cluster = cluster_of(found)
    assert {device.spec.name for device in cluster.devices[1:]} == {"mi300x"}
    joined = {(link.a, link.b): link.bytes_per_s for link in cluster.links if link.a != "cpu:0"}
    assert joined == dict.fromkeys((("gpu:0", "gpu:1"), ("gpu:0", "gpu:2"), ("gpu:1", "gpu:2")), 0.9 * 64e9)
    two_links_away = cluster_of(parse_topology(amd_smi(30).encode(), "it"), Like(gpu="mi250x"))
    assert ("gpu:0", "gpu:2") not in {(link.a, link.b) for link in two_links_away.links}


@pytest.mark.parametrize("lines", range(1, 23))
def test_a_cut_output_of_amd_smi_is_refused(lines: int) -> None:
    text = "\n".join(amd_smi().splitlines()[:lines])
    with pytest.raises(InputError, match="save "):
        parse_topology(text.encode(), "it")


def lstopo(*, version: int, xgmi: list[int] | None = None, hops: list[int] | None = None) -> bytes:
    """Two cards of a machine as hwloc 1, 2 or 3 writes them."""
    unit = "KiB" if version == 3 else ""
    card = """<object type="Bridge" gp_index="{b}" bridge_type="0-1" depth="0">
<object type="Bridge" gp_index="1{b}" bridge_type="1-1" depth="1">
<object type="PCIDev" gp_index="2{b}" pci_busid="0000:{b}:00.0" pci_type="0380 [1002:740c] [1002:0b0c] 01"
 pci_link_speed="31.507692"><object type="OSDev" gp_index="3{b}" name="rsmi{i}" osdev_type="5">
<info name="GPUModel" value="AMD Instinct MI250X"/><info name="RSMIVRAMSize" value="67092480{unit}"/>
</object></object></object></object>"""
    cards = "".join(card.format(b=b, i=i, unit=unit) for i, b in enumerate(("41", "42")))
    memory = 'local_memory="68719476736"'
    node = "" if version == 1 else f'<object type="NUMANode" os_index="0" gp_index="9" {memory}/>'
    package = "Socket" if version == 1 else "Package"
    matrices = ""
    for name, values in (("XGMIBandwidth", xgmi), ("XGMIHops", hops)):
        if values is not None:
            matrices += (
                f'<distances2hetero nbobjs="2" name="{name}"><indexes length="20">OSDev:341 OSDev:342 </indexes>'
                f'<u64values length="9">{" ".join(map(str, values))} </u64values></distances2hetero>'
            )
    core = '<object type="Core" os_index="0"><object type="PU" os_index="0"/></object>'
    return (
        f'<?xml version="1.0"?><!DOCTYPE topology SYSTEM "hwloc{"" if version == 1 else version}.dtd">'
        f"<topology{'' if version == 1 else f' version={chr(34)}{version}.0{chr(34)}'}>"
        f'<object type="Machine" os_index="0" gp_index="1" {memory if version == 1 else ""}>'
        f'<object type="{package}" os_index="0"><info name="CPUModel" value="AMD EPYC 7A53 64-Core Processor"/>'
        f"{node}{core}</object>{cards}</object>{matrices}</topology>"
    ).encode()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_lstopo_of_every_age(version: int) -> None:
    found = parse_topology(lstopo(version=version), "it")
    assert [gpu.memory_bytes for gpu in found.gpus] == [67092480 * 1024] * 2
    assert (found.memory_bytes, found.cores, found.sockets) == (68719476736, 1, 1)
    assert found.cpu_name.startswith("AMD EPYC 7A53")
    assert cluster_of(found, Like(cpu="epyc_7763")).devices[1].spec.name == "mi250x"


@pytest.mark.parametrize(
    ("xgmi", "hops", "gb_per_s"),
    [
        ([1000000, 100000, 100000, 1000000], None, 50),  # hwloc 2, which does not look: one link, as the card has them
        ([1000000, 200000, 200000, 1000000], [0, 1, 1, 0], 200),
        ([1000000, 50000, 50000, 1000000], [0, 2, 2, 0], None),  # two links away: none between them
    ],
)
def test_xgmi_links_are_as_wide_as_they_are_one_way(xgmi: list[int], hops: list[int] | None, gb_per_s: float) -> None:
    cluster = cluster_of(parse_topology(lstopo(version=3, xgmi=xgmi, hops=hops), "it"), Like(cpu="epyc_7763"))
    joined = [link.bytes_per_s for link in cluster.links if link.a == "gpu:0"]
    assert joined == ([] if gb_per_s is None else [pytest.approx(0.9e9 * gb_per_s)])


@pytest.mark.parametrize("said", ["N/A", "[N/A]", "Not Supported", "[Unknown Error]", "ERR!", "GPU is lost", ""])
def test_memory_that_the_driver_does_not_tell_is_the_catalogues(said: str) -> None:
    text = (
        f'<nvidia_smi_log><gpu id="00000000:01:00.0"><product_name>NVIDIA L4</product_name><fb_memory_usage>'
        f"<total>{said}</total><free>{said}</free></fb_memory_usage></gpu></nvidia_smi_log>"
    )
    assert cluster_of(parse_topology(text.encode(), "it")).devices[1].spec == DEVICE_SPECS["l4"]


COLLECTED = """PyTorch version: 2.7.0+cu126
GPU models and configuration:
GPU 0: NVIDIA A100-SXM4-80GB
GPU 1: NVIDIA A100-SXM4-80GB

Nvidia driver version: 550.54.15

CPU:
Architecture:                         x86_64
On-line CPU(s) list:                  0-127
Model name:                           AMD EPYC 7763 64-Core Processor
Core(s) per socket:                   64
Socket(s):                            2
NUMA node0 CPU(s):                    0-63
NUMA node1 CPU(s):                    64-127
Vulnerability Retbleed:               Mitigation; untrained return thunk; SMT disabled

Versions of relevant libraries:
[pip3] numpy==1.26.4
"""
LINKS = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-0)
\t Link 0: 25 GB/s
\t Link 1: 25 GB/s
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-1)
\t Link 0: 25 GB/s
"""


@pytest.mark.parametrize("more", ["", LINKS])
def test_a_report_of_the_environment_is_enough(more: str) -> None:
    """``python -m torch.utils.collect_env``, as it is pasted into issues, with the matrix behind it."""
    text = COLLECTED + more + PLAIN.replace("NV18", "NV12")
    found = parse_topology(text.encode(), "it")
    assert (found.cpu_name, found.sockets, found.cores) == ("AMD EPYC 7763 64-Core Processor", 2, 128)
    cluster = cluster_of(found)
    assert [device.spec.name for device in cluster.devices] == ["epyc_7763", "epyc_7763", "a100", "a100"]
    assert [link.bytes_per_s for link in cluster.links if (link.a, link.b) == ("gpu:0", "gpu:1")] == [
        pytest.approx(270e9)
    ]
