"""Reading the text of ``nvidia-smi topo -m``, ``nvidia-smi -L``, ``nvidia-smi``, ``lscpu`` and ``rocm-smi --showtopo``.

People post these one after the other, indented, coloured, with tabs or without, and with a legend below. Whatever of
them a text holds is read; the rest is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from envs.machine.found import PATHS, Found, FoundGpu, FoundLink, FoundNode, FoundSlice, bus_address, parse_cpus
from graphs.errors import InputError

MOST_GPUS = 128
"""Accelerators of a machine that are read at most."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_GPU = re.compile(r"GPU\d{1,4}")
_OLD_PATHS = {"SOC": "SYS", "PSB": "PIX"}
"""What drivers before 2017 called them."""

_XGMI_STEP = 15
"""What ``rocm-smi`` counts for each xGMI link on the way; PCIe counts more."""


def read_text(text: str, where: str) -> Found:
    """What a text says of a machine.

    Args:
        text: What was saved.
        where: What it is called in messages: ``"topology file 'topo.txt'"``.

    Raises:
        InputError: It holds none of these outputs, or one that cannot be right.
    """
    lines = [_COLOURS.sub("", line).replace("\ufeff", "").strip() for line in text.splitlines()]
    is_amd = any("between two GPUs" in line for line in lines)
    matrix = _rocm(lines, where) if is_amd else _nvidia(lines, where)
    named = _with_names(lines, len(matrix.gpus), where)
    gpus = matrix.gpus or (FoundGpu(),) * len(named)
    if named and len(named) != len(gpus):
        raise InputError(
            f"{where} lists {len(named)} GPUs, but its matrix has {len(gpus)}; give both of the same machine"
        )
    gpus = tuple(_filled(gpu, name) for gpu, name in zip(gpus, named or gpus, strict=True))
    host = _lscpu(lines)
    if not gpus and not host.cpu_name:
        raise InputError(
            f"{where} is none of the outputs that are read: nvidia-smi topo -m, nvidia-smi -q -x, nvidia-smi -L, "
            "rocm-smi --showtopo, lstopo --of xml, lscpu; save one of them there"
        )
    return msgspec.structs.replace(
        matrix,
        gpus=gpus,
        cpu_name=host.cpu_name,
        sockets=host.sockets,
        cores=host.cores,
        nodes=host.nodes,
        memory_bytes=host.memory_bytes,
        said_by=(where,),
    )


def _filled(gpu: FoundGpu, named: FoundGpu) -> FoundGpu:
    return msgspec.structs.replace(
        gpu,
        name=named.name,
        memory_bytes=named.memory_bytes,
        free_bytes=named.free_bytes,
        bus=named.bus,
        slices=named.slices,
        is_divided=named.is_divided,
    )


def _nvidia(lines: Sequence[str], where: str) -> Found:
    """The matrix of ``nvidia-smi topo -m``, if there is one."""
    head = next((i for i, line in enumerate(lines) if _is_head(lines, i)), None)
    if head is None:
        return Found()
    columns = lines[head].partition("CPU Affinity")[0].partition("NUMA Affinity")[0].split()
    count = sum(_GPU.fullmatch(column) is not None for column in columns)
    if count > MOST_GPUS:
        raise InputError(f"{where} names {count} GPUs; no more than {MOST_GPUS} are read")
    rows: dict[str, list[str]] = {}
    for line in lines[head + 1 :]:
        cells = line.split()
        if not cells or cells[0] == "Legend:" or _is_other_table(cells):
            if rows:
                break
            continue
        if cells[0] not in columns or cells[0] in rows:
            break
        if len(cells) <= len(columns) and _GPU.fullmatch(cells[0]):
            raise InputError(
                f"{where}: row {cells[0]} has {len(cells) - 1} cells, but there are {len(columns)} columns; save the "
                "output again, without broken lines"
            )
        rows[cells[0]] = cells[1:]
    names = [column for column in columns if _GPU.fullmatch(column)]
    missing = [name for name in names if name not in rows]
    if missing:
        raise InputError(f"{where}: there is a column {missing[0]} but no such row; save the whole output")
    cell = {(row, column): rows[row][i] for row in names for i, column in enumerate(columns)}
    links, paths = _cells(names, cell, where)
    gpus = tuple(_next_to(rows[name][len(columns) :], where) for name in names)
    others = [column for column in columns if not _GPU.fullmatch(column)]
    return Found(gpus=gpus, links=links, paths=paths, shared=_shared(names, others, cell))


def _is_head(lines: Sequence[str], i: int) -> bool:
    """Whether the matrix begins here: a line of names, and below it the row of the first of them."""
    names = lines[i].split()
    if not names or not _GPU.fullmatch(names[0]) or (len(names) > 1 and names[1] == "X"):
        return False
    below = next((line.split() for line in lines[i + 1 :] if line), [])
    return len(below) > 1 and below[0] == names[0] and below[1] == "X"


def _is_other_table(cells: Sequence[str]) -> bool:
    """Whether the matrix of ``nvidia-smi topo -p2p`` begins, which looks alike."""
    return len(cells) > 1 and all(_GPU.fullmatch(cell) for cell in cells)


def _cells(
    names: Sequence[str], cell: dict[tuple[str, str], str], where: str
) -> tuple[tuple[FoundLink, ...], tuple[tuple[str, ...], ...]]:
    links: list[FoundLink] = []
    paths = [[""] * len(names) for _ in names]
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            word = _OLD_PATHS.get(cell[a, b], cell[a, b])
            nvlinks = re.fullmatch(r"NV(\d{1,3})", word)
            if (word == "X") != (i == j) or not (nvlinks or word in (*PATHS, "X", "N/A")):
                raise InputError(
                    f"{where}: {a} to {b} is '{word}', which is none of {', '.join(PATHS)}, NV and a number; save the "
                    "output again"
                )
            if cell[a, b] != cell[b, a]:
                raise InputError(
                    f"{where}: {a} to {b} is '{cell[a, b]}', but {b} to {a} is '{cell[b, a]}'; save the output again"
                )
            if nvlinks and i < j:
                links.append(FoundLink(i, j, "nvlink", int(nvlinks[1])))
            elif word in PATHS:
                paths[i][j] = word
    return tuple(links), tuple(map(tuple, paths))


def _next_to(cells: Sequence[str], where: str) -> FoundGpu:
    """What stands behind the matrix: CPU affinity, NUMA affinity, the GPU's own NUMA number."""
    cpus: tuple[int, ...] = ()
    node = None
    if cells and re.fullmatch(r"\d[\d,-]*", cells[0]):
        try:
            cpus = parse_cpus(cells[0].strip(","))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    if len(cells) > 1 and re.fullmatch(r"\d{1,6}", cells[1]):
        node = int(cells[1])
    return FoundGpu(cpus=cpus, node=node)


def _shared(
    names: Sequence[str], others: Sequence[str], cell: dict[tuple[str, str], str]
) -> tuple[tuple[int, ...], ...]:
    """Sets of GPUs that some network card is behind a PCIe switch with: NVLink hides what their own cells would say."""
    groups: list[set[int]] = []
    for other in others:
        group = {i for i, name in enumerate(names) if cell[name, other] in ("PIX", "PXB", "PSB")}
        if len(group) > 1 and group not in groups:
            groups.append(group)
    largest = [group for group in groups if not any(group < another for another in groups)]
    return tuple(tuple(sorted(group)) for group in largest)


def _rocm(lines: Sequence[str], where: str) -> Found:
    """The matrices of ``rocm-smi --showtopo``: link types, and weights, by which direct xGMI links are told."""
    tables: dict[str, dict[str, list[str]]] = {}
    title = ""
    for line in lines:
        found = re.match(r"=+\s*(.*?)\s*=+$", line)
        if found:
            title = found[1]
        cells = line.split()
        if title.endswith("between two GPUs") and len(cells) > 1 and _GPU.fullmatch(cells[0]):
            if _GPU.fullmatch(cells[1]):
                continue
            tables.setdefault(title.partition(" between")[0], {})[cells[0]] = cells[1:]
    types, weights = tables.get("Link Type", {}), tables.get("Weight", {})
    names = list(types)
    count = len(names)
    if not names or count > MOST_GPUS:
        raise InputError(
            f"{where} has no table 'Link Type between two GPUs' of at most {MOST_GPUS} GPUs; save all of: "
            "rocm-smi --showtopo"
        )
    if any(len(row) != count for table in (types, weights) for row in table.values()):
        raise InputError(f"{where}: a row has not as many cells as there are GPUs; save the output again")
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
            paths[i][j] = "NODE" if nodes.get(i) == nodes.get(j) else "SYS"
    gpus = tuple(FoundGpu(node=nodes.get(i)) for i in range(count))
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


def _with_names(lines: Sequence[str], count: int, where: str) -> list[FoundGpu]:
    """GPUs as ``nvidia-smi -L``, the table of ``nvidia-smi`` and ``rocm-smi --showproductname`` name them."""
    found = _listed(lines) or _tabled(lines) or _rocm_named(lines)
    if found and sorted(found) != list(range(len(found))):
        if count:
            raise InputError(f"{where} lists GPUs {', '.join(map(str, found))}; save the whole list, from 0 on")
        found = dict(enumerate(found.values()))
    return [found[i] for i in range(len(found))]


def _listed(lines: Sequence[str]) -> dict[int, FoundGpu]:
    """Of ``nvidia-smi -L``, with MIG instances."""
    found: dict[int, FoundGpu] = {}
    last = -1
    for line in lines:
        card = re.match(r"GPU (\d{1,4}): (\S.*?)\s*(\(UUID|$)", line)
        part = re.match(r"MIG (\d+)(?:c\.(\d+))?g\.(\d+)gb\S*\s+Device\s+\d+:", line)
        if card:
            last = int(card[1])
            found[last] = FoundGpu(name=card[2])
        elif part and last in found:
            name, gigabytes = line.split()[1], int(part[3])
            piece = FoundSlice(name, min(1.0, int(part[1]) / 7), gigabytes * 10**9)
            before = found[last]
            found[last] = msgspec.structs.replace(before, slices=(*before.slices, piece), is_divided=True)
    return found


def _tabled(lines: Sequence[str]) -> dict[int, FoundGpu]:
    """Of the table that ``nvidia-smi`` prints; it cuts long names."""
    found: dict[int, FoundGpu] = {}
    last = -1
    for line in lines:
        card = re.match(
            r"\|\s+(\d{1,4})\s+(\S.*?)\s+(?:On|Off|N/A|TCC|WDDM|MCDM)\s*\|\s*([0-9A-Fa-f]+:[0-9A-Fa-f]+:\S+)", line
        )
        used = re.search(r"(\d+)MiB\s*/\s*(\d+)MiB", line)
        if card:
            last = int(card[1])
            found[last] = FoundGpu(name=card[2].removesuffix("..."), bus=bus_address(card[3]))
        elif used and last in found and found[last].memory_bytes is None:
            total, taken = int(used[2]) * 2**20, int(used[1]) * 2**20
            found[last] = msgspec.structs.replace(found[last], memory_bytes=total, free_bytes=max(0, total - taken))
        elif "MIG devices:" in line:
            break
    return found


def _rocm_named(lines: Sequence[str]) -> dict[int, FoundGpu]:
    text = "\n".join(lines)
    names = {int(n): name.strip() for n, name in re.findall(r"GPU\[(\d+)\]\s*: Card [Ss]eries:\s*(\S.*)", text)}
    sizes = {int(n): int(size) for n, size in re.findall(r"GPU\[(\d+)\]\s*: VRAM Total Memory \(B\): (\d+)", text)}
    used = {int(n): int(size) for n, size in re.findall(r"GPU\[(\d+)\]\s*: VRAM Total Used Memory \(B\): (\d+)", text)}
    free = {n: max(0, sizes[n] - used[n]) for n in sizes.keys() & used.keys()}
    return {n: FoundGpu(name=name, memory_bytes=sizes.get(n), free_bytes=free.get(n)) for n, name in names.items()}


def _lscpu(lines: Sequence[str]) -> Found:
    """The processors, from ``lscpu``, and memory from ``/proc/meminfo``."""
    said: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            said.setdefault(key.strip(), value.strip())
    sockets, each = said.get("Socket(s)", ""), said.get("Core(s) per socket", "")
    cores = int(sockets) * int(each) if re.fullmatch(r"\d{1,4}", sockets) and re.fullmatch(r"\d{1,4}", each) else None
    nodes = []
    for key, value in said.items():
        node = re.fullmatch(r"NUMA node(\d+) CPU\(s\)", key)
        if node and value:
            nodes.append(FoundNode(int(node[1]), parse_cpus(value)))
    memory = re.fullmatch(r"(\d{1,15}) kB", said.get("MemTotal", ""))
    return Found(
        cpu_name=said.get("Model name", ""),
        sockets=int(sockets) if cores is not None else None,
        cores=cores,
        nodes=tuple(nodes),
        memory_bytes=int(memory[1]) * 1024 if memory else None,
    )
