"""Known clusters: which devices, joined how, each figure with its source.

In clusters of GPUs ``gpu:i`` is one GPU (of a K80 board, one of its two dies). In clusters of TPUs ``tpu:i`` is one
chip, save in ``tpu_v2_half_pod`` and ``tpu_v2_pod``: there it is a board of four, as in the papers that count a
pod's devices. ``cpu:0`` is the host; in ``two_hosts`` it is the first, and in ``cpu_cores:K`` the first core.
"""

from __future__ import annotations

from envs.clusters.cluster import Cluster, Device, Link
from envs.clusters.device_specs import CPU_CORES, DEVICE_SPECS, cpu_core
from graphs.errors import InputError

# A PCIe transfer is taken to cost 15 us between a die and the host (two links here). A gen3 x16 link gives about 12 of
# its 15.75 GB/s, and behind the K80's switch about 10; copies of the K80's own time measured 5.7 to 7.6 GB/s.
_K80_LINK = (10e9, 7.5e-6)
_PCIE3_TO_SWITCH = (12e9, 7.5e-6)
_PCIE3 = (12e9, 15e-6)
_PCIE4 = (25e9, 10e-6)
# 25 GB/s each way a brick (NVLink 2 and 3), of which we count 90%; long copies reach 96% (Dell on V100-SXM2, 2018).
_NVLINK_BYTES_PER_S = 22.5e9
_NVLINK_LATENCY_S = 10e-6
_NVLINK1_BYTES_PER_S = 18e9
# A GPU's 18 NVLink 4 links go to the switches together: 450 GB/s each way, of which 90% is counted.
_NVSWITCH_PORT = (405e9, 5e-6)
_PCIE5 = (50e9, 10e-6)
# 90% of the 496 Gb/s (TPU v2) or 656 Gb/s (v3) each way of a chip's link; 1 us a hop is assumed.
_TPU2_LINK = (55.8e9, 1e-6)
_TPU2_BOARD_LINK = (111.6e9, 1e-6)
_TPU3_LINK = (73.8e9, 1e-6)
# 25 Gb/s each way is 3.125 GB/s, of which TCP with large packets carries about 94%; 30 us between processes is assumed.
_ETHERNET_25G = (2.94e9, 30e-6)
# A core that copies from memory to memory reads and writes; waking the other core is taken to cost 2 us.
_CORE_TO_CORE_LATENCY_S = 1e-6

DGX1_NVLINK_BRICKS = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2,
    (2, 6): 1, (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip
"""NVLink 2 bricks between the GPUs of a DGX-1 with V100, whose source is that of cluster v100x8."""


def _devices(cpu: str, *gpus: str) -> tuple[Device, ...]:
    return (
        Device("cpu:0", DEVICE_SPECS[cpu]),
        *(Device(f"gpu:{i}", DEVICE_SPECS[spec]) for i, spec in enumerate(gpus)),
    )


def _k80(dies: int) -> Cluster:
    boards = dies // 2
    up = [Link("cpu:0", f"plx:{board}", *_K80_LINK) for board in range(boards)]
    down = [Link(f"plx:{die // 2}", f"gpu:{die}", *_K80_LINK) for die in range(dies)]
    return Cluster(
        name=f"k80x{dies}",
        devices=_devices("haswell_18c", *["k80"] * dies),
        links=(*up, *down),
        switches=tuple(f"plx:{board}" for board in range(boards)),
        source="Each K80 board has two dies behind one PCIe gen3 x16 switch (NVIDIA BD-07317-001), so the two share "
        "the way to the host and to other boards. 10 GB/s each way and 7.5 us a link: 15 us within a board or to the "
        "host, 30 us between boards.",
    )


def _v100x8() -> Cluster:
    nvlinks = [
        Link(f"gpu:{a}", f"gpu:{b}", bricks * _NVLINK_BYTES_PER_S, _NVLINK_LATENCY_S)
        for (a, b), bricks in DGX1_NVLINK_BRICKS.items()
    ]
    up = [Link("cpu:0", f"plx:{switch}", *_PCIE3_TO_SWITCH) for switch in range(4)]
    down = [Link(f"plx:{gpu // 2}", f"gpu:{gpu}", *_PCIE3_TO_SWITCH) for gpu in range(8)]
    return Cluster(
        name="v100x8",
        devices=_devices("broadwell_2x20c", *["v100"] * 8),
        links=(*nvlinks, *up, *down),
        switches=tuple(f"plx:{switch}" for switch in range(4)),
        source="DGX-1 with V100 (NVIDIA DGX-1 system architecture whitepaper WP-08437, 2017): hybrid cube-mesh of six "
        "NVLink 2 bricks a GPU (22.5 GB/s each way a brick, 90% of 25; 10 us), pairs of GPUs behind four PCIe gen3 "
        "switches. Pairs without NVLink are forwarded by a common neighbour, as NCCL does. The two sockets are one "
        "device.",
    )


def _a100x4() -> Cluster:
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    nvlinks = [Link(f"gpu:{a}", f"gpu:{b}", 4 * _NVLINK_BYTES_PER_S, _NVLINK_LATENCY_S) for a, b in pairs]
    return Cluster(
        name="a100x4",
        devices=_devices("epyc_7742", *["a100"] * 4),
        links=(*nvlinks, *(Link("cpu:0", f"gpu:{gpu}", *_PCIE4) for gpu in range(4))),
        source="HGX A100 4-GPU, as in a DGX Station A100 (NVIDIA, 2020): every pair has four of a GPU's twelve NVLink "
        "3 bricks (90 GB/s each way, 90% of 100; 10 us), PCIe gen4 x16 to the host (25 GB/s of 31.5, 10 us).",
    )


def _mixed() -> Cluster:
    return Cluster(
        name="mixed",
        devices=_devices("epyc_7742", "a100_fp32", "t4", "t4"),
        links=(Link("cpu:0", "gpu:0", *_PCIE4), Link("cpu:0", "gpu:1", *_PCIE3), Link("cpu:0", "gpu:2", *_PCIE3)),
        source="Made up, of unlike devices: one A100 (float32 in full precision) on PCIe gen4 x16 (25 GB/s, 10 us) and "
        "two T4 on PCIe gen3 x16 (12 GB/s, 15 us); GPUs talk through the host.",
    )


def _p100x4() -> Cluster:
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    nvlinks = [Link(f"gpu:{a}", f"gpu:{b}", _NVLINK1_BYTES_PER_S, _NVLINK_LATENCY_S) for a, b in pairs]
    up = [Link("cpu:0", f"plx:{switch}", *_PCIE3_TO_SWITCH) for switch in range(2)]
    down = [Link(f"plx:{gpu // 2}", f"gpu:{gpu}", *_PCIE3_TO_SWITCH) for gpu in range(4)]
    return Cluster(
        name="p100x4",
        devices=_devices("broadwell_2x20c", *["p100"] * 4),
        links=(*nvlinks, *up, *down),
        switches=("plx:0", "plx:1"),
        source="Half of a DGX-1 with P100 (NVIDIA DGX-1 system architecture whitepaper WP-08437, 2017): four GPUs, "
        "each two joined by one NVLink 1 brick (18 GB/s each way, 90% of 20; 10 us), pairs behind PCIe gen3 switches.",
    )


def _nvswitch_x8(gpu: str, machine: str) -> Cluster:
    return Cluster(
        name=f"{gpu}x8",
        devices=_devices("sapphire_rapids_2x56c", *[gpu] * 8),
        links=(
            *(Link("nvswitch:0", f"gpu:{i}", *_NVSWITCH_PORT) for i in range(8)),
            *(Link("cpu:0", f"gpu:{i}", *_PCIE5) for i in range(8)),
        ),
        switches=("nvswitch:0",),
        source=f"{machine}: eight GPUs on NVSwitches that carry each GPU's full 900 GB/s of NVLink 4 (405 GB/s each "
        "way, 90% of 450; 5 us to the switch), as one switch; PCIe gen5 x16 to the host (50 GB/s of 63, 10 us).",
    )


def _two_hosts() -> Cluster:
    devices = []
    links = [Link("cpu:0", "cpu:1", *_ETHERNET_25G)]
    for host in range(2):
        first = 4 * host
        devices.append(Device(f"cpu:{host}", DEVICE_SPECS["broadwell_2x20c"]))
        devices += [Device(f"gpu:{first + gpu}", DEVICE_SPECS["v100"]) for gpu in range(4)]
        links += [
            Link(f"gpu:{first + a}", f"gpu:{first + b}", bricks * _NVLINK_BYTES_PER_S, _NVLINK_LATENCY_S)
            for (a, b), bricks in DGX1_NVLINK_BRICKS.items()
            if b < 4
        ]
        links += [Link(f"cpu:{host}", f"plx:{2 * host + switch}", *_PCIE3_TO_SWITCH) for switch in range(2)]
        links += [Link(f"plx:{2 * host + gpu // 2}", f"gpu:{first + gpu}", *_PCIE3_TO_SWITCH) for gpu in range(4)]
    return Cluster(
        name="two_hosts",
        devices=tuple(devices),
        links=tuple(links),
        switches=tuple(f"plx:{switch}" for switch in range(4)),
        source="Made up: two halves of a DGX-1 with V100 (see v100x8; the four GPUs are joined pair by pair, cpu:0 has "
        "gpu:0 to gpu:3) and 25-gigabit Ethernet between the hosts (2.94 GB/s each way, 94% of 3.125; 30 us).",
    )


def _tpu_grid(
    name: str,
    spec: str,
    rows: int,
    columns: int,
    link: tuple[float, float],
    *,
    wrap: tuple[bool, bool],
    source: str,
) -> Cluster:
    """TPUs in a grid with links between neighbours, and a PCIe link from each to the host.

    They are numbered to and fro along the rows, so that each is a neighbour of the next, and the last of the first: a
    ring of all of them, in order, crosses every link at most once each way.

    Args:
        name: The cluster's name.
        spec: Of every TPU.
        rows: Even.
        columns: More than 1.
        link: Bandwidth and latency.
        wrap: Whether the last row has links to the first, and the last column to the first.
        source: Where it is from.
    """
    number: dict[tuple[int, int], int] = {}
    for row in range(rows):
        along = range(columns) if row % 2 == 0 else range(columns - 1, -1, -1)
        for column in along:
            number[row, column] = len(number)
    links = []
    for row, column in number:
        for other in ((row, column + 1), (row + 1, column)):
            row_wraps, column_wraps = other[0] == rows, other[1] == columns
            if (row_wraps and not wrap[0]) or (column_wraps and not wrap[1]):
                continue
            there = number[other[0] % rows, other[1] % columns]
            links.append(Link(f"tpu:{number[row, column]}", f"tpu:{there}", *link))
    links += [Link("cpu:0", f"tpu:{i}", *_PCIE3) for i in range(len(number))]
    tpus = [Device(f"tpu:{i}", DEVICE_SPECS[spec]) for i in range(len(number))]
    host = Device("cpu:0", DEVICE_SPECS["broadwell_2x20c"])
    return Cluster(name=name, devices=(host, *tpus), links=tuple(links), source=source)


_TPU_HOST = (
    " The host is assumed (broadwell_2x20c). Each TPU has a PCIe gen3 x16 link to it (12 GB/s, 15 us): where there are "
    "several hosts in truth, cpu:0 stands for all of them, with the speed and memory of one."
)


def _tpus() -> tuple[Cluster, ...]:
    v1 = Cluster(
        name="tpu_v1",
        devices=(Device("cpu:0", DEVICE_SPECS["haswell_18c"]), Device("tpu:0", DEVICE_SPECS["tpu_v1"])),
        links=(Link("cpu:0", "tpu:0", *_PCIE3),),
        source="A TPU v1 on PCIe gen3 x16 (12 GB/s of 15.75, 15 us) of a Haswell server, as in Jouppi et al., ISCA "
        "2017, arXiv 1704.04760. Inference in int8 only: what computes in floating point runs on the host.",
    )
    v2_board = _tpu_grid(
        "tpu_v2x4",
        "tpu_v2_chip",
        2,
        2,
        _TPU2_LINK,
        wrap=(False, False),
        source="One Cloud TPU v2: a board of four chips in a square; a device is a chip. A chip has four links of 496 "
        "Gb/s each way (Jouppi et al., CACM 2020, doi:10.1145/3360307), 90% counted, 1 us a hop." + _TPU_HOST,
    )
    half = _tpu_grid(
        "tpu_v2_half_pod",
        "tpu_v2_board",
        8,
        4,
        _TPU2_BOARD_LINK,
        wrap=(True, False),
        source="Half of a TPU v2 pod, 32 boards in 8 rows of 4; a device is a board of four chips. Cut in half, the "
        "torus is closed along one of its two dimensions only. Links as tpu_v2_pod." + _TPU_HOST,
    )
    pod = _tpu_grid(
        "tpu_v2_pod",
        "tpu_v2_board",
        8,
        8,
        _TPU2_BOARD_LINK,
        wrap=(True, True),
        source="A TPU v2 pod: a torus of 16 x 16 chips (Jouppi et al., CACM 2020, doi:10.1145/3360307), here 8 x 8 "
        "boards of 2 x 2; a device is a board. Two chips of a board have a link to each neighbouring board: 2 x 496 "
        "Gb/s each way, 90% counted, 1 us a hop." + _TPU_HOST,
    )
    v3 = _tpu_grid(
        "tpu_v3x8",
        "tpu_v3_chip",
        2,
        4,
        _TPU3_LINK,
        wrap=(False, False),
        source="Two TPU v3 boards side by side, 2 x 4 chips; a device is a chip. A chip has four links of 656 Gb/s "
        "each way (Jouppi et al., CACM 2020, doi:10.1145/3360307), 90% counted, 1 us a hop." + _TPU_HOST,
    )
    return v1, v2_board, half, pod, v3


def cpu_cores(cores: int) -> Cluster:
    """The cores of one CPU as devices that copy to each other through memory.

    Raises:
        InputError: The CPU has not so many cores.
    """
    if not 1 <= cores <= CPU_CORES:
        raise InputError(f"cluster 'cpu_cores:{cores}': the CPU has from 1 to {CPU_CORES} cores")
    core = cpu_core(cores)
    copy_bytes_per_s = core.memory_bytes_per_s / 2
    return Cluster(
        name=f"cpu_cores:{cores}",
        devices=tuple(Device(f"cpu:{i}", core) for i in range(cores)),
        links=tuple(Link(f"cpu:{i}", "memory:0", copy_bytes_per_s, _CORE_TO_CORE_LATENCY_S) for i in range(cores)),
        switches=("memory:0",),
        source=f"cpu_cores:K, K from 1 to {CPU_CORES}: so many cores of an EPYC 7742, each a device with its share of "
        "memory and bandwidth. A tensor is copied from core to core at half of the bandwidth of one (it is read and "
        "written), after 2 us: assumptions, not measurements. cpu:0 is where the step's inputs start.",
    )


CLUSTERS: dict[str, Cluster] = {
    cluster.name: cluster
    for cluster in (
        *(_k80(2), _k80(4), _k80(8), _p100x4(), _v100x8(), _two_hosts(), _a100x4()),
        *(_nvswitch_x8("h100", "DGX H100 (NVIDIA, 2022)"), _nvswitch_x8("h200", "DGX H200 (NVIDIA, 2024)")),
        *_tpus(),
        *(_mixed(), cpu_cores(8)),
    )
}
"""Known clusters by name; of ``cpu_cores:K`` one as an example."""
