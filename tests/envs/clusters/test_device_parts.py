"""The catalogue's figures are what their parts give: units x clock x operations a cycle, and pins x rate a pin.

The parts are published beside the figures (whitepapers of the architectures, product pages), so that a figure for
sparse weights, of another card or at another clock does not pass.
"""

from __future__ import annotations

import re

import pytest

from envs.clusters.device_specs import DEVICE_SPECS, ROWS, find_spec

FAMILIES: dict[str, dict[str, float]] = {
    "kepler": {"float32": 2, "float64": 2 / 3},
    "pascal": {"float32": 2},
    "pascal with dp4a": {"float32": 2, "int8": 8},
    "gp100": {"float32": 2, "float64": 1, "float16": 4},
    "volta": {"float32": 2, "float64": 1, "float16": 16},
    "turing": {"float32": 2, "float16": 16, "int8": 32},
    "turing geforce": {"float32": 2, "float16": 8, "int8": 32},  # sums in float32 at half of the rate
    "ampere 100": {"float32": 16, "float64": 2, "float16": 32, "int8": 64},
    "ampere 100 without tf32": {"float32": 2, "float64": 2, "float16": 32, "int8": 64},
    "hopper": {"float32": 16, "float16": 32, "int8": 64},
    "rtx": {"float32": 4, "float16": 8, "int8": 16},  # GA10x, Ada and Blackwell cards for work
    "geforce": {"float32": 2, "float16": 4, "int8": 16},
    "l40": {"float32": 2, "float16": 4, "int8": 8},
    "xavier": {"float32": 2, "float16": 16, "int8": 32},
    "orin": {"float32": 8, "float16": 16, "int8": 32},
    "cdna": {"float32": 4, "float64": 1, "bfloat16": 8, "float16": 16, "int8": 16},
    "cdna 2": {"float32": 4, "float64": 4, "float16": 16, "int8": 16},
    "cdna 3": {"float32": 4, "float64": 4, "float16": 32, "int8": 64},
    "cdna 4": {"float32": 4, "float64": 2, "float16": 64, "int8": 128},
    "rdna 2": {"float32": 2, "float16": 4},
    "rdna 3": {"float32": 4, "float16": 8, "int8": 8},
    "rdna 4": {"float32": 4, "float16": 16, "int8": 32},
    "xe": {"float32": 2, "float16": 16, "int8": 32},
    "xe 2": {"float32": 2},  # the sheet's int8 is at a higher clock than its float32
    "xe hpc": {"float32": 2, "float64": 2, "float16": 32, "int8": 64},
    "apple": {"float32": 2},
    "tpu 1": {"int8": 2},
    "tpu bf16": {"bfloat16": 2},
    "tpu": {"bfloat16": 2, "int8": 4},
    "": {},
}
"""Dense operations of one unit (a CUDA core, a lane, a cell of a matrix unit) in a cycle, by dtype."""

PARTS: dict[str, tuple[str, int, float, int, float]] = {
    "k80": ("kepler", 2496, 0.875, 384, 5),
    "p40": ("pascal with dp4a", 3840, 1.531, 384, 7.2),
    "p4": ("pascal with dp4a", 2560, 1.075, 256, 6),
    "p100": ("gp100", 3584, 1.48, 4096, 1.43),
    "p100_pcie": ("gp100", 3584, 1.303, 4096, 1.43),
    "v100": ("volta", 5120, 1.53, 4096, 1.757),
    "v100_16gb": ("volta", 5120, 1.53, 4096, 1.757),
    "v100_pcie": ("volta", 5120, 1.38, 4096, 1.757),
    "v100_pcie_16gb": ("volta", 5120, 1.38, 4096, 1.757),
    "v100s_pcie": ("volta", 5120, 1.597, 4096, 2.214),
    "t4": ("turing", 2560, 1.59, 256, 10),
    "a100": ("ampere 100", 6912, 1.41, 5120, 3.186),
    "a100_fp32": ("ampere 100 without tf32", 6912, 1.41, 5120, 3.186),
    "a100_40gb": ("ampere 100", 6912, 1.41, 5120, 2.43),
    "a100_pcie": ("ampere 100", 6912, 1.41, 5120, 3.024),
    "a100_pcie_40gb": ("ampere 100", 6912, 1.41, 5120, 2.43),
    "a2": ("rtx", 1280, 1.77, 128, 12.5),
    "a16": ("rtx", 1280, 1.755, 128, 12.5),
    "a10": ("rtx", 9216, 1.695, 384, 12.5),
    "a10g": ("", 9216, 0, 384, 12.5),
    "a30": ("ampere 100", 3584, 1.44, 3072, 2.43),
    "a40": ("rtx", 10752, 1.74, 384, 14.5),
    "l4": ("rtx", 7424, 2.04, 192, 12.5),
    "l20": ("l40", 11776, 2.52, 384, 18),
    "l40": ("l40", 18176, 2.49, 384, 18),
    "l40s": ("rtx", 18176, 2.52, 384, 18),
    "h100": ("hopper", 16896, 1.83, 5120, 5.237),
    "h100_pcie": ("hopper", 14592, 1.62, 5120, 3.186),
    "h100_nvl": ("", 16896, 0, 6144, 5.128),
    "h20": ("", 0, 0, 6144, 5.237),
    "h200": ("hopper", 16896, 1.83, 6144, 6.25),
    "gh200": ("hopper", 16896, 1.83, 6144, 5.237),
    "b200": ("", 0, 0, 8192, 8),
    "b300": ("", 0, 0, 8192, 8),
    "gb200": ("", 0, 0, 8192, 8),
    "gtx_1080_ti": ("pascal", 3584, 1.582, 352, 11),
    "gtx_1080": ("pascal", 2560, 1.733, 256, 10),
    "gtx_1070": ("pascal", 1920, 1.683, 256, 8),
    "rtx_2060": ("turing geforce", 1920, 1.68, 192, 14),
    "rtx_2060_super": ("turing geforce", 2176, 1.65, 256, 14),
    "rtx_2070": ("turing geforce", 2304, 1.62, 256, 14),
    "rtx_2070_super": ("turing geforce", 2560, 1.77, 256, 14),
    "rtx_2080": ("turing geforce", 2944, 1.71, 256, 14),
    "rtx_2080_super": ("turing geforce", 3072, 1.815, 256, 15.5),
    "rtx_2080_ti": ("turing geforce", 4352, 1.545, 352, 14),
    "titan_rtx": ("turing", 4608, 1.77, 384, 14),
    "rtx_3050": ("geforce", 2560, 1.777, 128, 14),
    "rtx_3060": ("geforce", 3584, 1.777, 192, 15),
    "rtx_3060_ti": ("geforce", 4864, 1.665, 256, 14),
    "rtx_3070": ("geforce", 5888, 1.725, 256, 14),
    "rtx_3070_ti": ("geforce", 6144, 1.77, 256, 19),
    "rtx_3080": ("geforce", 8704, 1.71, 320, 19),
    "rtx_3080_12gb": ("geforce", 8960, 1.71, 384, 19),
    "rtx_3080_ti": ("geforce", 10240, 1.665, 384, 19),
    "rtx_3090": ("geforce", 10496, 1.695, 384, 19.5),
    "rtx_3090_ti": ("geforce", 10752, 1.86, 384, 21),
    "rtx_4060": ("geforce", 3072, 2.46, 128, 17),
    "rtx_4060_ti": ("geforce", 4352, 2.535, 128, 18),
    "rtx_4060_ti_16gb": ("geforce", 4352, 2.535, 128, 18),
    "rtx_4070": ("geforce", 5888, 2.475, 192, 21),
    "rtx_4070_super": ("geforce", 7168, 2.475, 192, 21),
    "rtx_4070_ti": ("geforce", 7680, 2.61, 192, 21),
    "rtx_4070_ti_super": ("geforce", 8448, 2.61, 256, 21),
    "rtx_4080": ("geforce", 9728, 2.505, 256, 22.4),
    "rtx_4080_super": ("geforce", 10240, 2.55, 256, 23),
    "rtx_4090": ("geforce", 16384, 2.52, 384, 21),
    "rtx_5050": ("geforce", 2560, 2.572, 128, 20),
    "rtx_5060": ("geforce", 3840, 2.497, 128, 28),
    "rtx_5060_ti": ("geforce", 4608, 2.572, 128, 28),
    "rtx_5060_ti_16gb": ("geforce", 4608, 2.572, 128, 28),
    "rtx_5070": ("geforce", 6144, 2.512, 192, 28),
    "rtx_5070_ti": ("geforce", 8960, 2.452, 256, 28),
    "rtx_5080": ("geforce", 10752, 2.617, 256, 30),
    "rtx_5090": ("geforce", 21760, 2.407, 512, 28),
    "quadro_rtx_6000": ("turing", 4608, 1.77, 384, 14),
    "quadro_rtx_8000": ("turing", 4608, 1.77, 384, 14),
    "a2000": ("rtx", 3328, 1.2, 192, 12),
    "a4000": ("rtx", 6144, 1.56, 256, 14),
    "a4500": ("rtx", 7168, 1.65, 320, 16),
    "a5000": ("rtx", 8192, 1.695, 384, 16),
    "a5500": ("rtx", 10240, 1.665, 384, 16),
    "a6000": ("rtx", 10752, 1.8, 384, 16),
    "rtx_2000_ada": ("rtx", 2816, 2.13, 128, 14),
    "rtx_4000_sff_ada": ("rtx", 6144, 1.56, 160, 14),
    "rtx_4000_ada": ("rtx", 6144, 2.175, 160, 18),
    "rtx_4500_ada": ("rtx", 7680, 2.58, 192, 18),
    "rtx_5000_ada": ("rtx", 12800, 2.55, 256, 18),
    "rtx_6000_ada": ("rtx", 18176, 2.505, 384, 20),
    "rtx_pro_4000": ("rtx", 8960, 2.617, 192, 28),
    "rtx_pro_4500": ("rtx", 10496, 2.617, 256, 28),
    "rtx_pro_5000": ("rtx", 14080, 2.377, 384, 28),
    "rtx_pro_6000": ("rtx", 24064, 2.617, 512, 28),
    "rtx_pro_6000_max_q": ("rtx", 24064, 2.288, 512, 28),
    "rtx_pro_6000_server": ("rtx", 24064, 2.617, 512, 24.95),
    "jetson_agx_xavier": ("xavier", 512, 1.377, 256, 4.266),
    "jetson_orin_nano": ("orin", 1024, 0.625, 128, 4.266),
    "jetson_orin_nx": ("orin", 1024, 0.918, 128, 6.4),
    "jetson_agx_orin_32gb": ("orin", 1792, 0.93, 256, 6.4),
    "jetson_agx_orin": ("orin", 2048, 1.3, 256, 6.4),
    "gb10": ("rtx", 6144, 2.525, 256, 8.533),
    "mi100": ("cdna", 7680, 1.502, 4096, 2.4),
    "mi210": ("cdna 2", 6656, 1.7, 4096, 3.2),
    "mi250": ("cdna 2", 6656, 1.7, 4096, 3.2),
    "mi250x": ("cdna 2", 7040, 1.7, 4096, 3.2),
    "mi300a": ("cdna 3", 14592, 2.1, 8192, 5.2),
    "mi300x": ("cdna 3", 19456, 2.1, 8192, 5.2),
    "mi325x": ("cdna 3", 19456, 2.1, 8192, 6),
    "mi350x": ("cdna 4", 16384, 2.2, 8192, 8),
    "mi355x": ("cdna 4", 16384, 2.4, 8192, 8),
    "rx_6900_xt": ("rdna 2", 5120, 2.25, 256, 16),
    "rx_6800_xt": ("rdna 2", 4608, 2.25, 256, 16),
    "rx_7900_xt": ("rdna 3", 5376, 2.4, 320, 20),
    "rx_7900_xtx": ("rdna 3", 6144, 2.5, 384, 20),
    "rx_7800_xt": ("rdna 3", 3840, 2.43, 256, 19.5),
    "w7900": ("rdna 3", 6144, 2.495, 384, 18),
    "radeon_8060s": ("rdna 3", 2560, 2.9, 256, 8),
    "rx_9070_xt": ("rdna 4", 4096, 2.97, 256, 20),
    "rx_9070": ("rdna 4", 3584, 2.52, 256, 20),
    "arc_a770": ("xe", 4096, 2.05, 256, 17.5),  # float32 is quoted at 2.1 GHz, int8 at 2.0
    "arc_b580": ("xe 2", 2560, 2.67, 192, 19),
    "gpu_max_1550": ("xe hpc", 16384, 1.6, 8192, 3.2),
    "gaudi2": ("", 0, 0, 6144, 3.2),
    "gaudi3": ("", 0, 0, 8192, 3.6),
    "tpu_v1": ("tpu 1", 65536, 0.7, 0, 0),
    "tpu_v2_chip": ("tpu bf16", 32768, 0.7, 0, 0),
    "tpu_v2_board": ("tpu bf16", 131072, 0.7, 0, 0),
    "tpu_v3_chip": ("tpu bf16", 65536, 0.94, 4096, 1.76),
    "tpu_v4": ("tpu bf16", 131072, 1.05, 4096, 2.4),
    "tpu_v5e": ("tpu", 65536, 1.5, 2048, 3.2),
    "tpu_v5p": ("tpu", 131072, 1.75, 6144, 3.6),
    "tpu_v6e": ("tpu", 262144, 1.75, 4096, 3.2),
    "inferentia": ("", 0, 0, 0, 0),
    "inferentia2": ("", 0, 0, 2048, 3.2),
    "trainium": ("", 0, 0, 2048, 3.2),
    "trainium2": ("", 0, 0, 4096, 5.6),
    "apple_m1": ("apple", 1024, 1.278, 128, 4.266),
    "apple_m1_pro": ("apple", 2048, 1.278, 256, 6.4),
    "apple_m1_max": ("apple", 4096, 1.278, 512, 6.4),
    "apple_m1_ultra": ("apple", 8192, 1.278, 1024, 6.4),
    "apple_m2": ("apple", 1280, 1.398, 128, 6.4),
    "apple_m2_pro": ("apple", 2432, 1.398, 256, 6.4),
    "apple_m2_max": ("apple", 4864, 1.398, 512, 6.4),
    "apple_m2_ultra": ("apple", 9728, 1.398, 1024, 6.4),
    "apple_m3": ("apple", 1280, 1.38, 128, 6.4),
    "apple_m3_pro": ("apple", 2304, 1.38, 192, 6.4),
    "apple_m3_max": ("apple", 5120, 1.38, 512, 6.4),
    "apple_m3_ultra": ("apple", 10240, 1.38, 1024, 6.4),
    "apple_m4": ("apple", 1280, 1.47, 128, 7.5),
    "apple_m4_pro": ("apple", 2560, 1.58, 256, 8.533),
    "apple_m4_max": ("apple", 5120, 1.58, 512, 8.533),
}
"""Family, units, their clock in GHz, pins to memory, Gbit/s of a pin; 0 where it is not published."""


def test_each_accelerator_has_its_parts_here() -> None:
    assert set(PARTS) == {row.name for row in ROWS if row.kind != "cpu"}


@pytest.mark.parametrize("name", PARTS)
def test_rates_and_bandwidth_are_what_the_parts_give(name: str) -> None:
    family, units, ghz, pins, gbit_per_s = PARTS[name]
    row = next(row for row in ROWS if row.name == name)
    for dtype, each in FAMILIES[family].items():
        # Clocks and peaks are rounded: 3% apart at most, far less than any two clocks of a card.
        assert row.tflops[dtype] == pytest.approx(units * ghz * each / 1e3, rel=0.03), dtype
    if pins:
        assert row.gb_per_s == pytest.approx(pins * gbit_per_s / 8, rel=0.025)


@pytest.mark.parametrize("row", [row for row in ROWS if row.kind == "cpu"], ids=lambda row: row.name)
def test_a_cpus_figures_are_what_its_own_words_give(row) -> None:  # type: ignore[no-untyped-def]
    count = {"two": 2, "four": 4, "six": 6, "eight": 8, "twelve": 12, "sixteen": 16}
    pieces = re.findall(r"(\d+)(?: cores)?(?:, at| at) ([\d.]+) GHz x (\d+)", row.about)
    if "as one device" in row.about:  # "two ... of which a p3.16xlarge has 32 cores, at 2.3 GHz"
        pieces = pieces[:1]
    if pieces:
        cycles = sum(int(cores) * float(ghz) * int(flops) for cores, ghz, flops in pieces)
        assert row.tflops["float32"] == pytest.approx(cycles / 1e3, rel=0.01)
        cores_ghz = cycles / int(pieces[0][2])
        for dtype, each in (("bfloat16", 1024), ("int8", 2048)):
            if "AMX (" in row.about or "with AMX," in row.about:
                assert row.tflops[dtype] == pytest.approx(cores_ghz * each / 1e3, rel=0.01)
    elif row.name not in ("epyc_7742_2x64c",):
        pytest.fail(f"'{row.about}' does not say cores and clock")
    memory = re.search(r"(two|four|six|eight|twelve|sixteen) channels of DDR\d-(\d+)", row.about)
    if memory:
        assert row.gb_per_s == pytest.approx(count[memory[1]] * int(memory[2]) * 8 / 1e3, rel=0.01)


def test_two_of_a_processor_are_twice_one() -> None:
    for whole, one in (("epyc_7742_2x64c", "epyc_7742"), ("sapphire_rapids_2x56c", "xeon_8480")):
        bandwidths = {row.name: row.gb_per_s for row in ROWS}
        assert bandwidths[whole] == pytest.approx(2 * bandwidths[one], rel=0.01)
        assert DEVICE_SPECS[whole].peak_flops_per_s["float32"] == 2 * DEVICE_SPECS[one].peak_flops_per_s["float32"]


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("Tesla V100S-PCIE-32GB", "v100s_pcie"),
        ("Tesla V100-PCIE-32GB", "v100_pcie"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000_server"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx_pro_6000_max_q"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx_pro_6000"),
    ],
)
def test_editions_of_a_card_that_differ_are_devices_of_their_own(reported: str, name: str) -> None:
    found = find_spec(reported)
    assert found is not None
    assert found.name == name
