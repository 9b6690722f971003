"""From what a driver calls a device to its spec in the catalogue, and what else its name tells.

``NVIDIA A100-SXM4-80GB``, ``NVIDIA GeForce RTX 3090`` and ``AMD Instinct MI250X`` are marketing names; the
catalogue's are short. A spec fits where each part of its name is in the device's, and where nothing of the device's name is left that
would make it another product: an ``RTX 4070 Ti`` is no ``RTX 4070``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from envs.clusters.cluster import DeviceSpec
from graphs.errors import InputError

_OTHER_PRODUCT = {
    *("ti", "super", "d", "v2", "ada", "laptop", "mobile", "max", "maxq", "m", "xt", "xtx", "gre", "pro", "ultra"),
    *("blackwell", "nvl", "se", "lp", "embedded", "mini", "nano", "nx", "x"),
}
"""Words that make another product of a name."""

_OF_NO_ACCOUNT = {
    *("nvidia", "amd", "intel", "geforce", "tesla", "quadro", "instinct", "radeon", "graphics", "corporation", "tm"),
    *("generation", "edition", "r", "cpu", "gpu", "processor", "apple", "core", "with", "founders", "accelerator"),
    *("sxm", "sxm2", "sxm3", "sxm4", "sxm5", "oam", "hbm2", "hbm2e", "hbm3", "hbm3e", "pcie", "workstation", "server"),
}
"""Words that a spec's name need not have."""


def spec_of(name: str, specs: Mapping[str, DeviceSpec], kind: str) -> DeviceSpec | None:
    """The spec of the catalogue that a device's name means; None where there is none.

    Args:
        name: As the driver or the processor says it.
        specs: The catalogue by name.
        kind: Kind of device; specs of other kinds do not count.

    Example:
        >>> from envs.clusters.device_specs import DEVICE_SPECS
        >>> spec_of("Tesla V100-SXM2-16GB", DEVICE_SPECS, "gpu").name
        'v100'
    """
    words = _words(name)
    joined = _joined(words)
    best: tuple[int, str] | None = None
    for candidate, spec in specs.items():
        if spec.kind != kind:
            continue
        parts = [part for part in re.split(r"[_\-]", candidate.lower()) if part]
        if not parts or parts[0] not in joined or not all(part in joined or _same_size(part, words) for part in parts):
            continue
        used = {word for part in parts for word in joined.get(part, ())}
        if any(word in _OTHER_PRODUCT for word in words if word not in used):
            continue
        # The longest name says most; of equally long ones the first in the alphabet.
        rank = (-sum(map(len, parts)), candidate)
        best = rank if best is None else min(best, rank)
    return None if best is None else specs[best[1]]


def _words(name: str) -> list[str]:
    """The words of a name, small, without marks: ``RTX-3090`` and ``RTX 3090`` have the same."""
    plain = re.sub(r"\((?:r|tm|c)\)", " ", name.lower())
    plain = plain.partition(" @ ")[0]
    plain = re.sub(r"\d+-core\b", " ", plain)
    plain = plain.replace("max-q", "maxq")
    return [word for word in re.split(r"[^a-z0-9]+", plain) if word]


def _joined(words: list[str]) -> dict[str, list[str]]:
    """Every run of up to three words as one, with the words that it is made of; as ``rtx3090`` of two."""
    runs: dict[str, list[str]] = {}
    for first in range(len(words)):
        for last in range(first + 1, min(first + 3, len(words)) + 1):
            runs.setdefault("".join(words[first:last]), words[first:last])
    return runs


def _same_size(part: str, words: list[str]) -> bool:
    """Whether a part such as ``40gb`` or ``40`` is the memory that a name ends with."""
    size = re.fullmatch(r"(\d+)(?:gb|g)?", part)
    return size is not None and f"{size[1]}gb" in words


@dataclass(frozen=True)
class Generation:
    """What the family of an accelerator tells of its links.

    Attributes:
        pcie: Generation of PCIe.
        nvlink_bytes_per_s: Of one NVLink (or xGMI link), each way, by the vendor; 0 where it has none.
        most_links: Of a GPU to all others together; 0 where it has none.
    """

    pcie: int
    nvlink_bytes_per_s: float = 0.0
    most_links: int = 0


_FAMILIES = (
    (r"\b(b100|b200|b300|gb200|gb300)\b", Generation(5, 50e9, 18)),
    (r"\b(h100|h200|h800|h20|gh200)\b", Generation(5, 25e9, 18)),
    (r"\b(a100|a800)\b", Generation(4, 25e9, 12)),
    (r"\bv100\b", Generation(3, 25e9, 6)),
    (r"\bp100\b", Generation(3, 20e9, 4)),
    (r"rtx\s?3090|rtx\s?a[456]\d00|\ba[456]\d00\b|\ba40\b|\ba30\b", Generation(4, 14.0625e9, 4)),
    (r"rtx\s?20\d\d|quadro rtx|titan rtx", Generation(3, 25e9, 2)),
    (r"rtx\s?50\d\d|blackwell", Generation(5)),
    (r"\bmi(300|325|350|355)[ax]?\b", Generation(5, 64e9, 7)),
    (r"\bmi2\d0x?\b", Generation(4, 50e9, 8)),
    (r"\bmi100\b|\bmi[56]0\b", Generation(4, 46e9, 3)),
    (r"rtx\s?[34]0\d\d|\bl4\b|\bl40s?\b|\ba10g?\b|\ba16\b|\ba2\b|ada|rx\s?[67]\d00", Generation(4)),
    (r"\bt4g?\b|\bp4\b|\bp40\b|\bk80\b|\bk[24]0\b|\bm[46]0\b|gtx|titan|quadro", Generation(3)),
)

_UNKNOWN = Generation(4, 25e9, 18)


def generation_of(name: str) -> Generation:
    """What an accelerator's name tells of its links; PCIe 4 and NVLinks of 25 GB/s where it tells nothing.

    Sources: NVIDIA's whitepapers of P100, V100, A100, H100 (NVLink 1 has 20 GB/s a link each way, 2 to 4 have 25, the
    four of a GA102 14.0625), of Blackwell (50); AMD's of MI100, MI200, MI300 (xGMI 46, 50, 64).
    """
    plain = " ".join(re.split(r"[^a-z0-9]+", name.lower()))
    for pattern, generation in _FAMILIES:
        if re.search(pattern, plain):
            return generation
    return _UNKNOWN


def need_spec(name: str, specs: Mapping[str, DeviceSpec], kind: str, *, what: str, option: str) -> DeviceSpec:
    """The spec that a device's name means, as `spec_of`.

    Args:
        name: As its driver says it; empty where nobody said it.
        specs: The catalogue by name.
        kind: Kind of device.
        what: What it is called in the message: ``"GPU 0"``.
        option: What to write to say which spec counts: ``"gpu=rtx3090"``.

    Raises:
        InputError: There is none; the message says how to name one.
    """
    spec = spec_of(name, specs, kind) if name else None
    if spec is not None:
        return spec
    problem = (
        f"{what} is called '{name}', which no device of the catalogue is" if name else f"what {what} is, is not said"
    )
    remedy = "" if name else " or put the output of nvidia-smi -L into the same file,"
    raise InputError(
        f"{problem};{remedy} name a spec that is like it behind the file, as in FILE:{option} (see: placement "
        "list devices), or describe it in a cluster file (docs/guide/clusters.md)"
    )
