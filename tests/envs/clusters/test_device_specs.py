"""The catalogue of devices is consistent in itself, and finds devices by what drivers call them."""

from __future__ import annotations

import pytest

from envs.clusters.device_specs import CHECKS, DEVICE_SPECS, ROWS, SHEETS, find_spec

LARGEST = {"gpu": (6, 400), "tpu": (8, 100), "npu": (8, 130), "cpu": (32, 2100)}
"""Least and most memory of each kind, GB."""


def test_it_holds_what_people_own() -> None:
    accelerators = [row for row in ROWS if row.kind != "cpu"]
    assert len(accelerators) >= 60
    for series in ("rtx_20", "rtx_30", "rtx_40", "rtx_50", "a4", "a5", "a", "l4", "mi", "gaudi", "apple_m", "jetson"):
        assert sum(row.name.startswith(series) for row in accelerators) >= 2, series
    for name in [
        "a6000",
        "l40s",
        "a10g",
        "b200",
        "gb200",
        "mi355x",
        "tpu_v4",
        "tpu_v5e",
        "tpu_v5p",
        "tpu_v6e",
        "trainium",
        "inferentia",
        "xeon_8480",
    ]:
        assert name in DEVICE_SPECS


def test_each_row_is_of_its_own_with_a_sheet_and_names_are_regular() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) == len(DEVICE_SPECS)
    reported = [name for row in ROWS for name in row.reported]
    assert len(set(reported)) == len(reported)
    assert {row.sheet for row in ROWS} == set(SHEETS)
    assert {row.checked for row in ROWS if row.checked is not None} == set(CHECKS)
    for row in ROWS:
        assert ("compared with: " in DEVICE_SPECS[row.name].source) == (row.checked is not None)
    for row in ROWS:
        assert row.name == "_".join(row.name.lower().split())
        assert len(row.about) > 3
    for text in SHEETS.values():
        assert any(year in text for year in map(str, range(2014, 2026))) or "specifications" in text, text


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_figures_are_of_the_size_that_their_kind_has(row) -> None:  # type: ignore[no-untyped-def]
    least, most = LARGEST[row.kind]
    assert least <= row.memory_gb <= most
    counted = row.gb_per_s * 0.8 if row.counted_gb_per_s is None else row.counted_gb_per_s
    assert 0.74 <= counted / row.gb_per_s <= 0.81
    assert DEVICE_SPECS[row.name].memory_bytes_per_s == pytest.approx(counted * 1e9)
    rates = DEVICE_SPECS[row.name].peak_flops_per_s
    order = [dtype for dtype in ("float64", "float32", "bfloat16", "float16", "int8") if dtype in rates]
    in_order = [rates[dtype] for dtype in order]
    assert in_order == sorted(in_order), "a narrower dtype is never slower"
    if "int8" in rates and "float16" in rates:  # a figure for sparse weights among dense ones would be twice as much
        assert 1 <= rates["int8"] / rates["float16"] <= (4.05 if "rtx" in row.name else 2.05)
    # FLOP a byte at the widest rate: on-chip reuse that a design of its kind allows.
    assert 5 <= max(rates.values()) / DEVICE_SPECS[row.name].memory_bytes_per_s <= 4300


def test_variants_differ_only_in_what_their_names_say() -> None:
    for row in ROWS:
        stem, _, size = row.name.rpartition("_")
        if size.endswith("gb") and size[:-2].isdigit():
            assert row.memory_gb == float(size[:-2])
            assert DEVICE_SPECS[stem].memory_bytes != DEVICE_SPECS[row.name].memory_bytes


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA GeForce RTX 3090", "rtx_3090"),
        ("GeForce RTX 2080 Ti", "rtx_2080_ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "rtx_4070_ti_super"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx_6000_ada"),
        ("Quadro RTX 6000", "quadro_rtx_6000"),
        ("NVIDIA A100-PCIE-40GB", "a100_pcie_40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("Tesla V100-SXM2-16GB", "v100_16gb"),
        ("AMD Instinct MI300X", "mi300x"),
        ("AMD Radeon RX 7900 XTX", "rx_7900_xtx"),
        ("Apple M2 Max", "apple_m2_max"),
        ("Orin (nvgpu)", "jetson_agx_orin"),
        ("Intel(R) Xeon(R) CPU E5-2699 v3 @ 2.30GHz", "haswell_18c"),
        ("Intel(R) Xeon(R) Platinum 8280 CPU @ 2.70GHz", "xeon_8280"),
        ("AMD EPYC 7742 64-Core Processor", "epyc_7742"),
        ("13th Gen Intel(R) Core(TM) i9-13900K", "core_i9_13900k"),
    ],
)
def test_a_device_is_found_by_its_reported_name(reported: str, name: str) -> None:
    found = find_spec(reported)
    assert found is not None
    assert found.name == name
    assert find_spec(f"  {reported.upper()} ") == found


def test_memory_tells_variants_of_one_name_apart_and_strangers_are_not_found() -> None:
    for name, sizes in {"rtx_4060_ti": (8, 16), "rtx_5060_ti": (8, 16), "jetson_agx_orin": (64, 32)}.items():
        for size in sizes:
            found = find_spec(name.replace("_", " "), size * 2**30)
            assert found is not None
            assert found.name == (name if size == sizes[0] else f"{name}_{size}gb")
    for reported in (
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "",
        "NVIDIA",
        "llvmpipe",
    ):
        assert find_spec(reported) is None
    for name in DEVICE_SPECS:
        found = find_spec(name)
        assert found is not None
        assert found.name == name
