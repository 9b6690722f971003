"""Reading the text of ``rocm-smi`` and ``amd-smi``: links between AMD's accelerators, their names and memory."""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.machine.found import MOST_GPUS, Found, FoundGpu, FoundLink, bus_address
from graphs.errors import InputError

_ROCM = re.compile(r"=*\s*(Link Type|Weight|Hops|.*) between two GPUs\s*=*")
_AMD = re.compile(r"(LINK TYPE|WEIGHT|HOPS|[A-Z ]+) TABLE:?")
_GPU = re.compile(r"GPU\d{1,4}|[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-9a-fA-F]")

_XGMI_STEP = 15
"""What these tools count for each xGMI link on the way; PCIe counts more."""


def is_amd(lines: Sequence[str]) -> bool:
    """Whether there are matrices of ``rocm-smi --showtopo`` or ``amd-smi topology``."""
    return any("between two GPUs" in line or _AMD.fullmatch(line) for line in lines)


def read_matrices(lines: Sequence[str], where: str) -> Found:
    """The matrices: link types, and weights, by which direct xGMI links are told.

    Args:
        lines: The text.
        where: What it is called in messages.

    Raises:
        InputError: There is no matrix of link types, or one is not square.
    """
    tables: dict[str, dict[str, list[str]]] = {}
    title = ""
    for line in lines:
        said = _ROCM.fullmatch(line) or _AMD.fullmatch(line)
        if said or line.startswith("==="):
            title = said[1].strip().upper() if said else ""
        cells = line.split()
        if title and len(cells) > 1 and _GPU.fullmatch(cells[0]) and not _GPU.fullmatch(cells[1]):
            tables.setdefault(title, {})[cells[0]] = cells[1:]
    types, weights = tables.get("LINK TYPE", {}), tables.get("WEIGHT", {})
    names = list(types)
    count = len(names)
    if not names or count > MOST_GPUS:
        raise InputError(
            f"{where} has no table of link types between at most {MOST_GPUS} GPUs; save all of: rocm-smi --showtopo, "
            "or amd-smi topology"
        )
    if any(len(row) != count for table in (types, weights) for row in table.values()):
        raise InputError(f"{where}: a row has not as many cells as there are GPUs; save the output again")
    if any(len(row) != count for row in (types, *filter(None, [weights]))):
        raise InputError(f"{where}: there are not as many rows as GPUs; save the whole output")
    nodes = {int(n): int(node) for n, node in re.findall(r"GPU\[(\d+)\].*Numa Affinity: (\d+)", "\n".join(lines))}
    step = _least_weight(names, types, weights)
    links, paths = [], [[""] * count for _ in names]
    for i, name in enumerate(names):
        for j in range(count):
            if i == j:
                continue
            is_direct = step is None or _number(weights[name][j]) < 2 * step
            if types[name][j] == "XGMI" and is_direct and i < j:
                links.append(FoundLink(i, j, "xgmi"))
            if nodes:
                paths[i][j] = "NODE" if nodes.get(i) == nodes.get(j) else "SYS"
    gpus = tuple(
        FoundGpu(node=nodes.get(i), bus=bus_address(name) if ":" in name else "") for i, name in enumerate(names)
    )
    return Found(gpus=gpus, links=tuple(links), paths=tuple(map(tuple, paths)))


def _least_weight(names: Sequence[str], types: dict[str, list[str]], weights: dict[str, list[str]]) -> int | None:
    """The weight of one xGMI link; None where there are no weights or no such links."""
    found = [
        _number(weights[name][j])
        for i, name in enumerate(names)
        for j in range(len(names))
        if i != j and name in weights and types[name][j] == "XGMI"
    ]
    return max(min(found), _XGMI_STEP) if found and len(weights) == len(names) else None


def _number(cell: str) -> int:
    return int(cell) if re.fullmatch(r"\d{1,6}", cell) else 10**6


def read_names(lines: Sequence[str]) -> dict[int, FoundGpu]:
    """Names and memory by number: of ``rocm-smi --showproductname --showmeminfo vram`` and ``amd-smi static``."""
    text = "\n".join(lines)
    names = {int(n): name.strip() for n, name in re.findall(r"GPU\[(\d{1,4})\]\s*: Card [Ss]eries:\s*(\S.*)", text)}
    sizes = {int(n): int(size) for n, size in re.findall(r"GPU\[(\d{1,4})\]\s*: VRAM Total Memory \(B\): (\d+)", text)}
    used = re.findall(r"GPU\[(\d{1,4})\]\s*: VRAM Total Used Memory \(B\): (\d+)", text)
    free = {int(n): max(0, sizes[int(n)] - int(size)) for n, size in used if int(n) in sizes}
    found = {n: FoundGpu(name=name, memory_bytes=sizes.get(n), free_bytes=free.get(n)) for n, name in names.items()}
    return found or _static(text)


def _static(text: str) -> dict[int, FoundGpu]:
    """Of ``amd-smi static``: a block for each GPU."""
    found = {}
    for block in re.split(r"^GPU: (?=\d)", text, flags=re.MULTILINE)[1:]:
        number = re.match(r"\d{1,4}$", block, re.MULTILINE)
        name = re.search(r"^MARKET_NAME: (\S.*)$", block, re.MULTILINE)
        size = re.search(r"^VRAM:$(?:\n(?!GPU:).*)*?\nSIZE: (\d{1,9}) MB$", block, re.MULTILINE)
        if number and name:
            memory = int(size[1]) * 2**20 if size else None
            found[int(number[0])] = FoundGpu(name=name[1].strip(), memory_bytes=memory)
    return found
