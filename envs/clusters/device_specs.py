"""Known models of device, each figure with its source; the figures stand in ``data/devices.yaml``.

How the figures were chosen. Peaks are the vendor's, dense. What ops reach is assumed to be a round share of the peak:
half on a GPU, TPU or NPU and two fifths on a CPU for products, convolutions and attention, and three quarters to four
fifths of the memory bandwidth. That is what well-sized kernels commonly reach, not a fit: where you have measured your
own, write it in a cluster file. Of the memory that the sheet names (in units of 1e9 bytes) 95% is usable; the driver,
the context and the allocator's slack take the rest. ``fill_flops`` is 0 throughout, because no vendor publishes it: the
launch overhead and the tile are what makes small kernels slow here.

``float32`` on GPUs with TF32 tensor cores: specs such as ``a100``, ``h100`` and ``a6000`` run float32 products,
convolutions and attention at the TF32 rate, as almost all training in float32 on them is set up (PyTorch:
``torch.set_float32_matmul_precision("high")``; its default is TF32 for convolutions, full float32 for products).
``a100_fp32`` never uses TF32. On a TPU float32 products are computed from inputs rounded to bfloat16, as XLA does by
default, so they run at its rate. Element-wise ops are bound by bytes, so the peak does not matter to them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from envs.clusters.cluster import DeviceSpec

_DATA = Path(__file__).parent / "data" / "devices.yaml"
_GB = 1e9
_TERA = 1e12
_USABLE = 0.95
_COUNTED = 0.8
_CORE_BYTES_PER_S = 16e9
_LAUNCH_US = {"cpu": 3.0, "gpu": 5.0, "tpu": 1.0, "npu": 1.0}
_TILE = {"gpu": 32}
_SHARE = {"cpu": 0.4}

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Reads the catalogue's files; the one in C is some ten times as fast."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of ``data/devices.yaml``, whose head says what each field is."""

    name: str
    about: str
    sheet: str
    kind: str
    memory_gb: float
    gb_per_s: float
    counted_gb_per_s: float | None = None
    tflops: dict[str, float]
    overhead_us: float | None = None
    tile: int | None = None
    reported: tuple[str, ...] = ()
    checked: str | None = None


def _read() -> tuple[dict[str, str], dict[str, str], tuple[Row, ...]]:
    content: Any = yaml.load(_DATA.read_text(encoding="utf-8"), Loader=Loader)
    return content["sheets"], content["checks"], msgspec.convert(content["devices"], tuple[Row, ...])


SHEETS, CHECKS, ROWS = _read()
"""What the sheets are, and what figures were compared with, by key; and the rows of ``data/devices.yaml``."""


def _spec(row: Row) -> DeviceSpec:
    share = _SHARE.get(row.kind, 0.5)
    rates = {dtype: rate * _TERA for dtype, rate in row.tflops.items()}
    if row.kind == "cpu":
        rates.setdefault("float64", rates["float32"] / 2)
    counted = _COUNTED * row.gb_per_s if row.counted_gb_per_s is None else row.counted_gb_per_s
    launch_us = _LAUNCH_US[row.kind] if row.overhead_us is None else row.overhead_us
    shown = ", ".join(f"{rate:,g} {dtype}" for dtype, rate in row.tflops.items())
    checked = "" if row.checked is None else f"; compared with: {CHECKS[row.checked]}"
    return DeviceSpec(
        name=row.name,
        kind=row.kind,
        memory_bytes=round(row.memory_gb * _GB * _USABLE),
        peak_flops_per_s=rates,
        memory_bytes_per_s=counted * _GB,
        launch_overhead_s=launch_us * 1e-6,
        efficiency={"product": share, "convolution": share, "attention": share},
        tile=_TILE.get(row.kind, 1) if row.tile is None else row.tile,
        source=f"{row.about}. {row.memory_gb:g} GB, {row.gb_per_s:,g} GB/s; T(FL)OP/s: {shown} ({SHEETS[row.sheet]}"
        f"{checked}).",
    )


DEVICE_SPECS: dict[str, DeviceSpec] = {row.name: _spec(row) for row in ROWS}
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
        efficiency=whole.efficiency,
        source=f"One of {cores} cores of an EPYC 7742 at 2.25 GHz x 32 FLOP a cycle, with 1/{cores} of the memory of "
        "epyc_7742 and of its bandwidth, but no more than the 16 GB/s that one core is assumed to move alone.",
    )


_VENDORS = {"nvidia", "geforce", "tesla", "amd", "radeon", "instinct", "intel", "google", "aws", "corporation", "cpu"}
_FORMS = {"oam", "vf"}
"""What AMD's driver adds to a name: a module, a part of one that a virtual machine has for itself."""

_NEAR = 0.1
"""How far what a device reports as its memory is from its sheet's, at most: a card of 24 GB has 24 GiB."""


def find_spec(reported: str, memory_bytes: float | None = None) -> DeviceSpec | None:
    """The known spec of a device by what a driver or an operating system calls it; None where none is known.

    Laptop GPUs and parts of a card (MIG) are other devices than the card whose name they carry, and are not found. A
    name that was cut off, as tables do it with ``...``, is found where one device alone begins so and has that memory.

    Args:
        reported: For example ``"NVIDIA GeForce RTX 3090"`` or ``"Intel(R) Xeon(R) Platinum 8280 CPU @ 2.70GHz"``.
        memory_bytes: What the device reports; decides between cards that differ in nothing else of their name.

    >>> [find_spec(name).name for name in ("NVIDIA A100-SXM4-80GB", "Tesla T4", "AMD EPYC 7763 64-Core Processor")]
    ['a100', 't4', 'epyc_7763']
    >>> find_spec("NVIDIA GeForce RTX 4060 Ti", 16e9).name, find_spec("NVIDIA GeForce RTX 4090 Laptop GPU")
    ('rtx_4060_ti_16gb', None)
    >>> find_spec("GeForce RTX 208...", 11019 * 2**20).name
    'rtx_2080_ti'
    """
    named = reported.strip()
    if named.endswith("..."):
        return _find_cut(named.removesuffix("..."), memory_bytes)
    key = _key(named)
    found = [row for row in ROWS if key in (row.name, *map(_key, row.reported))]
    in_brackets = re.fullmatch(
        r".*\[([^\[\]]+)\]", named
    )  # "Aqua Vanjaram [Instinct MI300X]", as the PCI database has it
    if not found and in_brackets:
        return find_spec(in_brackets[1], memory_bytes)
    if memory_bytes is not None:
        found += [row for row in ROWS if found and re.fullmatch(rf"{re.escape(found[0].name)}_\d+gb", row.name)]
        found.sort(key=lambda row: abs(row.memory_gb * _GB - memory_bytes))  # of equally near ones the first
    return DEVICE_SPECS[found[0].name] if found else None


def _find_cut(start: str, memory_bytes: float | None) -> DeviceSpec | None:
    """The only spec whose name begins so and that has about so much memory."""
    key = _key(start)
    if not key or memory_bytes is None:
        return None
    found = [
        row
        for row in ROWS
        if any(name.startswith(key) for name in (row.name, *map(_key, row.reported)))
        and abs(row.memory_gb * _GB - memory_bytes) <= _NEAR * memory_bytes
        and row.kind != "cpu"
    ]
    return DEVICE_SPECS[found[0].name] if len(found) == 1 else None


def _key(reported: str) -> str:
    """A reported name as the catalogue's names are written: lower case, underscores, no vendor, no clock."""
    text = re.sub(r"\((r|tm|c)\)|@.*", " ", reported.lower())
    return "_".join(word for word in re.findall(r"[a-z0-9+]+", text) if word not in _VENDORS | _FORMS)
