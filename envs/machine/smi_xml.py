"""Reading the XML of ``nvidia-smi -q -x``: which GPUs there are, their memory, PCIe link and MIG instances."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from envs.machine.found import MOST_GPUS, Found, FoundGpu, FoundSlice, bus_address
from graphs.errors import InputError

_MULTIPROCESSORS = (
    (r"\ba100|\ba800", 108),
    (r"\ba30\b", 56),
    (r"\bh100 pcie", 114),
    (r"\bh[12]00|\bgh200|\bh20\b", 132),
)
"""Multiprocessors of the cards that can be divided (NVIDIA's whitepapers)."""


_UNTOLD = {
    *("", "N/A", "ERR!", "Insufficient Permissions", "Not Supported", "Unknown Error", "Function Not Found"),
    *("GPU is lost", "Requested functionality has been deprecated"),
}
"""What stands in place of a figure where there is none, as for the memory of a chip that shares the CPU's."""


def read_smi(root: Element, where: str) -> Found:
    """What ``nvidia-smi -q -x`` says.

    Args:
        root: ``nvidia_smi_log``.
        where: What the file is called in messages.

    Raises:
        InputError: It names no GPU, or a figure is none.
    """
    gpus = root.findall("gpu")
    if not 0 < len(gpus) <= MOST_GPUS:
        raise InputError(f"{where} names {len(gpus)} GPUs; from 1 to {MOST_GPUS} are read")
    return Found(gpus=tuple(_gpu(gpu, where) for gpu in gpus), said_by=(where,))


def _gpu(gpu: Element, where: str) -> FoundGpu:
    name = _text(gpu, "product_name")
    if not name:
        raise InputError(f"{where}: a gpu has no product_name; save the output of: nvidia-smi -q -x")
    link = "pci/pci_gpu_link_info"
    # An idle GPU's link is slow: what it can do is what counts.
    generation = _whole(_text(gpu, f"{link}/pcie_gen/max_link_gen"))
    lanes = _whole(_text(gpu, f"{link}/link_widths/current_link_width").removesuffix("x")) or _whole(
        _text(gpu, f"{link}/link_widths/max_link_width").removesuffix("x")
    )
    divided = _text(gpu, "mig_mode/current_mig") == "Enabled"
    return FoundGpu(
        name=name,
        memory_bytes=_bytes(_text(gpu, "fb_memory_usage/total"), where),
        free_bytes=None if divided else _bytes(_text(gpu, "fb_memory_usage/free"), where),
        pcie_generation=generation,
        pcie_lanes=lanes,
        bus=bus_address(gpu.get("id", "")) if gpu.get("id") else "",
        slices=tuple(_slice(part, name, where) for part in gpu.findall("mig_devices/mig_device")),
        is_divided=divided,
    )


def _slice(part: Element, card: str, where: str) -> FoundSlice:
    memory = _bytes(_text(part, "fb_memory_usage/total"), where)
    count = _whole(_text(part, "device_attributes/shared/multiprocessor_count"))
    plain = " ".join(re.split(r"[^a-z0-9]+", card.lower()))
    all_of_them = next((n for pattern, n in _MULTIPROCESSORS if re.search(pattern, plain)), None)
    if memory is None or not count:
        raise InputError(f"{where}: a MIG device of '{card}' has no memory or multiprocessors; save the output again")
    # Of a card that is not known, seven such slices are taken to make the whole.
    share = min(1.0, count / all_of_them) if all_of_them else 1 / 7
    return FoundSlice(f"{count}sm.{round(memory / 2**30)}gb", share, memory)


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[1-9]\d{0,5}", text) else None


def _bytes(text: str, where: str) -> int | None:
    """A size as ``81920 MiB``; None for ``N/A``, for what the driver could not tell, and for what is absent."""
    if text.strip("[]") in _UNTOLD:
        return None
    found = re.fullmatch(r"(\d{1,9}) (MiB|KiB|GiB|MB)", text)
    if not found:
        raise InputError(f"{where}: '{text}' is no size such as 81920 MiB; save the output of: nvidia-smi -q -x")
    return int(found[1]) * {"KiB": 2**10, "MiB": 2**20, "MB": 2**20, "GiB": 2**30}[found[2]]
