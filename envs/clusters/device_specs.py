"""Known models of device, each figure with its source.

How the figures were chosen. Peaks are the vendor's. What ops reach is assumed to be a round share of the peak: half on
a GPU or TPU and two fifths on a CPU for products, convolutions and attention, and three quarters to four fifths of the
memory bandwidth. That is what well-sized kernels commonly reach, not a fit: where you have measured your own, write it
in a cluster file. Of the memory that the sheet names (in units of 1e9 bytes) 95% is usable; the driver, the context and
the allocator's slack take the rest. ``fill_flops`` is 0 throughout, because no vendor publishes it: the launch overhead
and the tile are what makes small kernels slow here.

``float32`` on GPUs with TF32 tensor cores: specs ``a100``, ``h100`` and ``h200`` run float32 products, convolutions and
attention at the TF32 rate, as almost all training in float32 on them is set up (PyTorch:
``torch.set_float32_matmul_precision("high")``; its default is TF32 for convolutions, full float32 for products).
``a100_fp32`` never uses TF32. On a TPU float32 products are computed from inputs rounded to bfloat16, as XLA does by
default, so they run at its rate. Element-wise ops are bound by bytes, so the peak does not matter to them.
"""

from __future__ import annotations

from collections.abc import Mapping

from envs.clusters.cluster import DeviceSpec

_GB = 1e9
_TERA = 1e12
_USABLE = 0.95
_CORE_BYTES_PER_S = 16e9
_GPU_EFFICIENCY = {"product": 0.5, "convolution": 0.5, "attention": 0.5}
_TPU_EFFICIENCY = {"product": 0.5, "convolution": 0.5, "attention": 0.5}
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


def _tpu(
    name: str,
    *,
    memory_gb: float,
    tflops: Mapping[str, float],
    gb_per_s: float,
    tile: int,
    source: str,
) -> DeviceSpec:
    return DeviceSpec(
        name=name,
        kind="tpu",
        memory_bytes=round(memory_gb * _GB * _USABLE),
        peak_flops_per_s={dtype: rate * _TERA for dtype, rate in tflops.items()},
        memory_bytes_per_s=gb_per_s * _GB,
        launch_overhead_s=1e-6,
        efficiency=_TPU_EFFICIENCY,
        tile=tile,
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
        "p100",
        memory_gb=16,
        tflops={"float32": 10.6, "float64": 5.3, "float16": 21.2},
        gb_per_s=586,
        overhead_us=5,
        source="Tesla P100 SXM2 16 GB: 10.6 / 5.3 / 21.2 TFLOP/s (fp32, fp64, fp16), 732 GB/s (NVIDIA Tesla P100 "
        "whitepaper WP-08019-001, 2016); 80% of the bandwidth counted. No tensor cores; bfloat16 runs at float32's "
        "rate.",
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
        "h200",
        memory_gb=141,
        tflops={"float32": 494.7, "float64": 66.9, "bfloat16": 989.4, "float16": 989.4, "int8": 1978.9},
        gb_per_s=3840,
        overhead_us=5,
        source="H200 SXM5: the H100's GPU, and so its rates, with 141 GB of HBM3e at 4,800 GB/s (NVIDIA H200 "
        "datasheet, 2024); 80% of the bandwidth counted.",
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
    _tpu(
        "tpu_v1",
        memory_gb=8.59,
        tflops={"int8": 92, "uint8": 92, "int16": 23, "int32": 0.179},
        gb_per_s=27.2,
        tile=1,
        source="TPU v1 (Jouppi et al., ISCA 2017, arXiv 1704.04760): 65,536 8-bit multipliers at 700 MHz = 92 TOP/s, a "
        "quarter of it where both operands have 16 bits, 256 32-bit results a cycle in the activation unit, 8 GiB of "
        "weight memory at 34 GB/s, of which 80% is counted. It computes nothing in floating point, so nothing is "
        "trained on it. Rows of the batch stream through the matrix unit one a cycle: no tile. Its 28 MiB of on-chip "
        "memory for activations is not modelled: they are charged at the weight memory's speed, which is too slow for "
        "networks that fit. Launch: 1 us is assumed.",
    ),
    _tpu(
        "tpu_v2_chip",
        memory_gb=16,
        tflops={"float32": 45, "bfloat16": 45},
        gb_per_s=560,
        tile=16,
        source="One chip of a TPU v2: two cores with one 128 x 128 matrix unit each, 45 TFLOP/s in bfloat16, 16 GB "
        "at 700 GB/s (Jouppi et al., A domain-specific supercomputer for training deep neural networks, CACM 2020, "
        " doi:10.1145/3360307); 80% of the bandwidth counted. XLA pads the batch to 8 rows a core (Google, Cloud TPU "
        "performance guide). Launch: a step is compiled as a whole; 1 us an op is assumed.",
    ),
    _tpu(
        "tpu_v2_board",
        memory_gb=64,
        tflops={"float32": 180, "bfloat16": 180},
        gb_per_s=2240,
        tile=64,
        source="What Google sold as one Cloud TPU v2 and what papers count as a TPU v2 device: a board of four chips "
        "(see tpu_v2_chip), 180 TFLOP/s and 64 GB at 2,800 GB/s in all; a pod has 64, 11.5 PFLOP/s (Dean, NIPS 2017). "
        "Taken as one device over whose eight cores XLA divides the batch, so the batch is padded to 64 rows; the time "
        "that the four chips take to agree on gradients is not counted.",
    ),
    _tpu(
        "tpu_v3_chip",
        memory_gb=32,
        tflops={"float32": 123, "bfloat16": 123},
        gb_per_s=720,
        tile=16,
        source="One chip of a TPU v3: two cores with two matrix units each, 123 TFLOP/s in bfloat16, 32 GB at 900 GB/s "
        "(Google, Cloud TPU v3 documentation; Jouppi et al., CACM 2020, doi:10.1145/3360307); 80% of the bandwidth "
        "counted. Padding and launch as tpu_v2_chip.",
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
    _cpu(
        "sapphire_rapids_2x56c",
        memory_gb=2048,
        tflops=14.336,
        gb_per_s=491,
        source="The host of a DGX H100 or H200, two Intel Xeon Platinum 8480C as one device: 112 cores at 2.0 GHz x 64 "
        "FLOP a cycle (two 512-bit FMA units), sixteen channels of DDR5-4800 = 614 GB/s, 2 TB (NVIDIA DGX H100 user "
        "guide, 2023; Intel ARK); 80% of the bandwidth counted.",
    ),
)

DEVICE_SPECS: dict[str, DeviceSpec] = {spec.name: spec for spec in _SPECS}
"""Known models of device by name; a cluster file may name them."""

CPU_CORES = 64
"""Cores of the CPU that `cpu_core` is one of."""


def cpu_core(cores: int) -> DeviceSpec:
    """One of `cores` cores of an EPYC 7742 that work on the step together, as a device of its own.

    Each has its share of the memory and of its bandwidth for good, since contention for either is not simulated.
    """
    whole = DEVICE_SPECS["epyc_7742"]
    return DeviceSpec(
        name=f"epyc_7742_core_of_{cores}",
        kind="cpu",
        memory_bytes=whole.memory_bytes // cores,
        peak_flops_per_s={dtype: rate / CPU_CORES for dtype, rate in whole.peak_flops_per_s.items()},
        memory_bytes_per_s=min(_CORE_BYTES_PER_S, whole.memory_bytes_per_s / cores),
        launch_overhead_s=whole.launch_overhead_s,
        efficiency=_CPU_EFFICIENCY,
        source=f"One of {cores} cores of an EPYC 7742 at 2.25 GHz x 32 FLOP a cycle, with 1/{cores} of the memory of "
        "epyc_7742 and of its bandwidth, but no more than the 16 GB/s that one core is assumed to move alone.",
    )
