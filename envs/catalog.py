"""Known devices and clusters, each figure with its source.

`load_cluster` turns what a user writes after ``--cluster`` into a `Cluster`: a known name (``k80x4``), a known name
with overrides (``k80x4:link_bytes_per_s=2.5e9``), or a cluster file (see `envs.cluster_file`).

How the figures were chosen. Peaks are the vendor's. What ops reach is assumed to be a round share of the peak: half on
a GPU and two fifths on a CPU for products, convolutions and attention, and three quarters to four fifths of the memory
bandwidth. That is what well-sized kernels commonly reach, not a fit: where you have measured your own, write it in a
cluster file. Of the memory that the sheet names (in units of 1e9 bytes) 95% is usable; the driver, the context and the
allocator's slack take the rest. ``fill_flops`` is 0 throughout, because no vendor publishes it: the launch overhead and
the tile are what makes small kernels slow here.

``float32`` on GPUs with TF32 tensor cores: specs ``a100`` and ``h100`` run float32 products, convolutions and
attention at the TF32 rate, as almost all training in float32 on them is set up (PyTorch:
``torch.set_float32_matmul_precision("high")``; its default is TF32 for convolutions, full float32 for products).
``a100_fp32`` never uses TF32. ``mixed`` uses it, because a T4 has no TF32: there a result does not depend on the device
that computes it. Element-wise ops are bound by bytes, so the peak does not matter to them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from envs.cluster import Cluster, Device, DeviceSpec, Link
from envs.cluster_file import CLUSTER_FILE_SUFFIXES, load_cluster_file
from graphs.errors import InputError, unknown_name

_GB = 1e9
_TERA = 1e12
_USABLE = 0.95
_GPU_EFFICIENCY = {"product": 0.5, "convolution": 0.5, "attention": 0.5}
_CPU_EFFICIENCY = {"product": 0.4, "convolution": 0.4, "attention": 0.4}


def _gpu(
    name: str, *, memory_gb: float, tflops: Mapping[str, float], gb_per_s: float, overhead_us: float, source: str
) -> DeviceSpec:
    return DeviceSpec(
        name=name,
        kind="gpu",
        memory_bytes=round(memory_gb * _GB * _USABLE),
        peak_flops_per_s={dtype: rate * _TERA for dtype, rate in tflops.items()},
        memory_bytes_per_s=gb_per_s * _GB,
        launch_overhead_s=overhead_us * 1e-6,
        efficiency=_GPU_EFFICIENCY,
        tile=32,
        source=source,
    )


def _cpu(name: str, *, memory_gb: float, tflops: float, gb_per_s: float, source: str) -> DeviceSpec:
    return DeviceSpec(
        name=name,
        kind="cpu",
        memory_bytes=round(memory_gb * _GB * _USABLE),
        peak_flops_per_s={"float32": tflops * _TERA, "float64": tflops / 2 * _TERA},
        memory_bytes_per_s=gb_per_s * _GB,
        launch_overhead_s=3e-6,
        efficiency=_CPU_EFFICIENCY,
        source=source,
    )


_SPECS = (
    _gpu(
        "k80",
        memory_gb=12,
        tflops={"float32": 4.37, "float64": 1.455},
        gb_per_s=180,
        overhead_us=6,
        source="One of the two GK210 dies of a Tesla K80: 2,496 cores at 875 MHz (boost), 12 GB, 240 GB/s "
        "(NVIDIA, Tesla K80 board specification BD-07317-001, 2015; 8.74 TFLOP/s and 480 GB/s a board); 75% of the "
        "bandwidth counted, ECC on. No half-precision arithmetic: float16 runs at float32's rate. Launch: about 6 us "
        "between ops.",
    ),
    _gpu(
        "v100",
        memory_gb=32,
        tflops={"float32": 15.7, "float64": 7.8, "float16": 125},
        gb_per_s=720,
        overhead_us=5,
        source="Tesla V100 SXM2 32 GB: 15.7 / 7.8 / 125 TFLOP/s (fp32, fp64, fp16 tensor cores), 900 GB/s (NVIDIA V100 "
        "datasheet, 2020); 80% of the bandwidth counted. No bfloat16: it runs at float32's rate.",
    ),
    _gpu(
        "a100",
        memory_gb=80,
        tflops={"float32": 156, "float64": 19.5, "bfloat16": 312, "float16": 312, "int8": 624},
        gb_per_s=1600,
        overhead_us=5,
        source="A100 SXM 80 GB, dense rates: TF32 156 (used for float32), fp64 tensor 19.5, bf16 and fp16 312, int8 "
        "624 T(FL)OP/s, 2,039 GB/s (NVIDIA A100 datasheet, 2021); 78% of the bandwidth counted.",
    ),
    _gpu(
        "a100_fp32",
        memory_gb=80,
        tflops={"float32": 19.5, "float64": 19.5, "bfloat16": 312, "float16": 312, "int8": 624},
        gb_per_s=1600,
        overhead_us=5,
        source="As a100, but float32 in full precision at 19.5 TFLOP/s (NVIDIA A100 datasheet, 2021): no TF32.",
    ),
    _gpu(
        "h100",
        memory_gb=80,
        tflops={"float32": 494.7, "float64": 66.9, "bfloat16": 989.4, "float16": 989.4, "int8": 1978.9},
        gb_per_s=2700,
        overhead_us=5,
        source="H100 SXM5 80 GB, dense rates: TF32 494.7 (used for float32), fp64 tensor 66.9, bf16 and fp16 989.4, "
        "int8 1,978.9 T(FL)OP/s, 3,352 GB/s (NVIDIA H100 architecture whitepaper, 2022); 80% of the bandwidth counted.",
    ),
    _gpu(
        "t4",
        memory_gb=16,
        tflops={"float32": 8.1, "float16": 65, "int8": 130},
        gb_per_s=240,
        overhead_us=6,
        source="Tesla T4: 8.1 / 65 / 130 T(FL)OP/s (fp32, fp16, int8), 16 GB, 320 GB/s, 70 W (NVIDIA T4 datasheet, "
        "2019); 75% of the bandwidth counted. Throttling at 70 W (Jia et al., 2019, arXiv 1903.07486) is part of the "
        "efficiency. No bfloat16 or TF32.",
    ),
    _cpu(
        "haswell_18c",
        memory_gb=256,
        tflops=1.325,
        gb_per_s=54,
        source="Intel Xeon E5-2699 v3, 18 cores at 2.3 GHz x 32 FLOP a cycle (two 256-bit FMA units), four channels of "
        "DDR4-2133 = 68 GB/s (Intel ARK, 2014); 80% of the bandwidth counted. Mirhoseini et al., 2017, "
        "name an 18-core Haswell at 2.3 GHz but not its memory: 256 GB is assumed.",
    ),
    _cpu(
        "broadwell_2x20c",
        memory_gb=512,
        tflops=2.816,
        gb_per_s=123,
        source="The host of a DGX-1, two Intel Xeon E5-2698 v4 as one device: 40 cores at 2.2 GHz x 32 FLOP a cycle, "
        "eight channels of DDR4-2400 = 154 GB/s, 512 GB (NVIDIA DGX-1 datasheet, 2017; Intel ARK); 80% of the "
        "bandwidth counted.",
    ),
    _cpu(
        "epyc_7742",
        memory_gb=512,
        tflops=4.608,
        gb_per_s=164,
        source="AMD EPYC 7742, 64 cores at 2.25 GHz x 32 FLOP a cycle, eight channels of DDR4-3200 = 205 GB/s (AMD, "
        "2019); 512 GB as in a DGX Station A100; 80% of the bandwidth counted.",
    ),
)

DEVICE_SPECS: dict[str, DeviceSpec] = {spec.name: spec for spec in _SPECS}
"""Known models of device by name; a cluster file may name them."""

# A PCIe transfer is taken to cost 15 us between a die and the host (two links here). A gen3 x16 link gives about 12 of
# its 15.75 GB/s, and behind the K80's switch about 10; copies of the K80's own time measured 5.7 to 7.6 GB/s.
_K80_LINK = (10e9, 7.5e-6)
_PCIE3_TO_SWITCH = (12e9, 7.5e-6)
_PCIE3 = (12e9, 15e-6)
_PCIE4 = (25e9, 10e-6)
# 25 GB/s each way a brick (NVLink 2 and 3), of which we count 90%; long copies reach 96% (Dell on V100-SXM2, 2018).
_NVLINK_BYTES_PER_S = 22.5e9
_NVLINK_LATENCY_S = 10e-6

_DGX1_NVLINK_BRICKS = {
    (0, 1): 1, (0, 2): 1, (0, 3): 2, (0, 4): 2, (1, 2): 2, (1, 3): 1, (1, 5): 2, (2, 3): 2,
    (2, 6): 1, (3, 7): 1, (4, 5): 1, (4, 6): 1, (4, 7): 2, (5, 6): 2, (5, 7): 1, (6, 7): 2,
}  # fmt: skip


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
        for (a, b), bricks in _DGX1_NVLINK_BRICKS.items()
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


CLUSTERS: dict[str, Cluster] = {
    cluster.name: cluster for cluster in (_k80(2), _k80(4), _k80(8), _v100x8(), _a100x4(), _mixed())
}
"""Known clusters by name."""

OVERRIDES = {
    "link_bytes_per_s": "bandwidth of every link, each way",
    "link_latency_s": "latency of every link",
    "memory_bytes": "usable memory of every accelerator",
    "launch_overhead_s": "time before an op computes, on every accelerator",
}
"""What may follow a cluster's name, and what it changes."""


def load_cluster(spec: str) -> Cluster:
    """The cluster that a user means.

    Args:
        spec: One of `CLUSTERS`, or the path of a cluster file (``.yaml`` or ``.yml``); either may be followed by a
            colon and overrides, ``key=value`` with commas between them, with the keys of `OVERRIDES`.

    Raises:
        InputError: The name, a key or a value is not known or not valid, or the file is not a cluster file.

    Example:
        >>> load_cluster("k80x2:link_bytes_per_s=2.5e9,memory_bytes=8e9").name
        'k80x2:link_bytes_per_s=2500000000.0,memory_bytes=8000000000'
    """
    if spec.endswith(CLUSTER_FILE_SUFFIXES):
        return load_cluster_file(spec, DEVICE_SPECS)
    name, colon, text = spec.partition(":")
    if name.endswith(CLUSTER_FILE_SUFFIXES):
        cluster = load_cluster_file(name, DEVICE_SPECS)
    elif name in CLUSTERS:
        cluster = CLUSTERS[name]
    else:
        raise unknown_name("cluster", name or spec, [*CLUSTERS, "a path to a .yaml file"])
    return _override(cluster, spec, text) if colon else cluster


def _override(cluster: Cluster, spec: str, text: str) -> Cluster:
    """Apply the overrides in `text`, ``key=value,key=value``."""
    values: dict[str, float] = {}
    for part in text.split(","):
        key, _, number = (piece.strip() for piece in part.partition("="))
        if key not in OVERRIDES:
            raise unknown_name(f"override in cluster '{spec}':", key, OVERRIDES)
        if key in values:
            raise InputError(f"cluster '{spec}' sets {key} twice; set it once")
        values[key] = _number(spec, key, number)
    links = tuple(
        replace(
            link,
            bytes_per_s=values.get("link_bytes_per_s", link.bytes_per_s),
            latency_s=values.get("link_latency_s", link.latency_s),
        )
        for link in cluster.links
    )
    devices = tuple(
        device
        if device.spec.kind == "cpu"
        else replace(
            device,
            spec=replace(
                device.spec,
                memory_bytes=int(values.get("memory_bytes", device.spec.memory_bytes)),
                launch_overhead_s=values.get("launch_overhead_s", device.spec.launch_overhead_s),
            ),
        )
        for device in cluster.devices
    )
    shown = [f"{key}={int(value) if key == 'memory_bytes' else value}" for key, value in sorted(values.items())]
    return replace(cluster, name=f"{cluster.name}:{','.join(shown)}", devices=devices, links=links)


def _number(spec: str, key: str, text: str) -> float:
    """The value of an override; bandwidths must be positive, other figures not negative."""
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"cluster '{spec}': {key} is '{text}', which is not a number (write for example 2.5e9)"
        ) from None
    if not math.isfinite(value) or value < 0 or (value == 0 and key == "link_bytes_per_s"):
        least = "positive" if key == "link_bytes_per_s" else "not negative"
        raise InputError(f"cluster '{spec}': {key} is {text}; it must be finite and {least}")
    if key == "memory_bytes" and value >= 2**63:
        raise InputError(f"cluster '{spec}': {key} is {text}; it must be less than 2^63")
    return value
