"""What the name of an accelerator tells: its spec in the catalogue, and the generations of its links."""

from __future__ import annotations

import re
from dataclasses import dataclass

from envs.clusters.cluster import DeviceSpec
from envs.clusters.device_specs import find_spec
from graphs.errors import InputError


@dataclass(frozen=True)
class Generation:
    """What the family of an accelerator tells of its links.

    Attributes:
        pcie: Generation of PCIe.
        nvlink_bytes_per_s: Of one NVLink (or xGMI link), each way, by the vendor; 0 where it has none.
        most_links: Of a GPU to all others together; 0 where it has none.
        c2c_bytes_per_s: Of a link to the CPU in the same package, each way; 0 where PCIe joins them.
    """

    pcie: int
    nvlink_bytes_per_s: float = 0.0
    most_links: int = 0
    c2c_bytes_per_s: float = 0.0


_FAMILIES = (
    (r"\b(gb200|gb300)\b", Generation(5, 50e9, 18, 450e9)),
    (r"\bgh200\b", Generation(5, 25e9, 18, 450e9)),
    (r"\b(b100|b200|b300)\b", Generation(5, 50e9, 18)),
    (r"\b(h100|h200|h800|h20)\b", Generation(5, 25e9, 18)),
    (r"\b(a100|a800)\b", Generation(4, 25e9, 12)),
    (r"\bv100\b", Generation(3, 25e9, 6)),
    (r"\bp100\b", Generation(3, 20e9, 4)),
    (r"rtx\s?3090|rtx\s?a[456]\d00|\ba[456]\d00\b|\ba40\b|\ba30\b", Generation(4, 14.0625e9, 4)),
    (r"rtx\s?20\d\d|quadro rtx|titan rtx", Generation(3, 25e9, 2)),
    (r"rtx\s?50\d\d|blackwell", Generation(5)),
    (r"\bmi35[05]x?\b", Generation(5, 76.8e9, 7)),
    (r"\bmi(300|325)[ax]?\b", Generation(5, 64e9, 7)),
    (r"\bmi210\b", Generation(4, 50e9, 3)),
    (r"\bmi250x?\b", Generation(4, 50e9, 8)),
    (r"\bmi100\b|\bmi[56]0\b", Generation(4, 46e9, 3)),
    (r"rtx\s?[34]0\d\d|\bl4\b|\bl40s?\b|\ba10g?\b|\ba16\b|\ba2\b|ada|rx\s?[67]\d00", Generation(4)),
    (r"\bt4g?\b|\bp4\b|\bp40\b|\bk80\b|\bk[24]0\b|\bm[46]0\b|gtx|titan|quadro", Generation(3)),
)

_UNKNOWN = Generation(4, 25e9, 18)


def generation_of(name: str) -> Generation:
    """What an accelerator's name tells of its links; PCIe 4 and NVLinks of 25 GB/s where it tells nothing.

    Sources: NVIDIA's whitepapers of P100, V100, A100, H100 (NVLink 1 has 20 GB/s a link each way, 2 to 4 have 25, the
    four of a GA102 14.0625), of Blackwell (50), of GH200 (450 GB/s between CPU and GPU); AMD's of MI100, MI200, MI300,
    MI350 (xGMI 46, 50, 64, 76.8).
    """
    plain = " ".join(re.split(r"[^a-z0-9]+", name.lower()))
    for pattern, generation in _FAMILIES:
        if re.search(pattern, plain):
            return generation
    return _UNKNOWN


def spec_of(name: str, kind: str, memory_bytes: float | None = None) -> DeviceSpec | None:
    """The spec of the catalogue that a device's name means; None where there is none.

    Args:
        name: As its driver or the operating system says it; empty where nobody said it.
        kind: Kind of device.
        memory_bytes: What it has, which decides between cards of one name.
    """
    spec = find_spec(name, memory_bytes) if name else None
    return spec if spec is not None and spec.kind == kind else None


def need_spec(name: str, kind: str, memory_bytes: float | None, *, what: str, option: str) -> DeviceSpec:
    """The spec that a device's name means, as `spec_of`.

    Args:
        name: As its driver says it; empty where nobody said it.
        kind: Kind of device.
        memory_bytes: What it has.
        what: What it is called in the message: ``"GPU 0"``.
        option: What to write to say which spec counts: ``"gpu=rtx_3090"``.

    Raises:
        InputError: There is none; the message says how to name one.
    """
    spec = spec_of(name, kind, memory_bytes)
    if spec is not None:
        return spec
    problem = (
        f"{what} is called '{name}', which no device of the catalogue is" if name else f"what {what} is, is not said"
    )
    remedy = "" if name else " put the output of nvidia-smi -L into the same file, or"
    raise InputError(
        f"{problem};{remedy} name a spec that is like it behind the file, as in FILE:{option} (see: placement list "
        "devices), or describe it in a cluster file (docs/guide/clusters.md)"
    )
