"""Reading the text of ``nvidia-smi topo -m``, ``nvidia-smi -L``, ``nvidia-smi`` and ``lscpu``.

People post these one after the other, indented, quoted, coloured, with tabs or without, and with a legend below.
Whatever of them a text holds is read; the rest is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

from envs.machine import amd_text
from envs.machine.found import (
    MOST_GPUS,
    PATHS,
    Found,
    FoundGpu,
    FoundLink,
    FoundNode,
    FoundSlice,
    bus_address,
    parse_cpus,
)
from graphs.errors import InputError

_CODES = re.compile(
    r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()][A-Z0-9]"
    r"|(?:\^\[|\u241b|\\(?:033|e|x1b|u001b))?\[[0-9;]{1,8}m"
)
"""What terminals do not show: underlining and colours, titles, character sets; also where a paste has lost or spelt out
the escape character: ``[4mGPU0``, ``^[[4mGPU0``."""

_GPU = re.compile(r"GPU\d{1,4}")
_AFFINITY = re.compile(r"\b(?:CPU|NUMA)\s+Affinity\b|\bGPU\s+NUMA\s+ID\b")
_PEERS = {"OK", "CNS", "GNS", "TNS", "DR", "NS", "U"}
"""What the cells of ``nvidia-smi topo -p2p`` say, which looks alike."""
_OLD_PATHS = {"SOC": "SYS", "PSB": "PIX"}
"""What drivers before 2017 called them."""


def read_text(text: str, where: str) -> Found:
    """What a text says of a machine.

    Args:
        text: What was saved.
        where: What it is called in messages: ``"topology file 'topo.txt'"``.

    Raises:
        InputError: It holds none of these outputs, or one that cannot be right.
    """
    lines = [_CODES.sub("", line).replace("\ufeff", "").strip() for line in text.splitlines()]
    matrix = amd_text.read_matrices(lines, where) if amd_text.is_amd(lines) else _nvidia(lines, where)
    named = _with_names(lines, len(matrix.gpus), where)
    gpus = matrix.gpus or (FoundGpu(),) * len(named)
    if named and len(named) != len(gpus):
        raise InputError(
            f"{where} lists {len(named)} GPUs, but its matrix has {len(gpus)}; give both of the same machine"
        )
    gpus = tuple(_filled(gpu, name) for gpu, name in zip(gpus, named or gpus, strict=True))
    host = _lscpu(lines, where)
    if not gpus and not host.cpu_name:
        raise InputError(
            f"{where} is none of the outputs that are read: nvidia-smi topo -m, nvidia-smi -q -x, nvidia-smi -L, "
            "rocm-smi --showtopo, amd-smi topology, lstopo --of xml, lscpu; save one of them there"
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
        bus=named.bus or gpu.bus,
        slices=named.slices,
        is_divided=named.is_divided,
    )


def _nvidia(lines: Sequence[str], where: str) -> Found:
    """The matrix of ``nvidia-smi topo -m``, if there is one."""
    head = next((i for i, line in enumerate(lines) if _is_head(lines, i)), None)
    if head is None:
        return Found()
    columns = _from(_split(_AFFINITY.split(lines[head])[0]), _GPU.fullmatch)
    count = sum(_GPU.fullmatch(column) is not None for column in columns)
    if count > MOST_GPUS:
        raise InputError(f"{where} names {count} GPUs; no more than {MOST_GPUS} are read")
    rows: dict[str, list[str]] = {}
    for line in lines[head + 1 :]:
        cells = _from(_split(line), columns.__contains__)
        if _split(line)[:1] == ["Legend:"] or (cells and cells[0] in rows):
            break
        if not cells or _is_other_table(cells):
            continue
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
    beside = [rows[name][len(columns) :] for name in names]
    if any(beside) and not beside[-1]:
        raise InputError(f"{where}: row {names[-1]} ends before its CPU affinity; save the whole output")
    gpus = tuple(_next_to(cells, where) for cells in beside)
    others = [column for column in columns if not _GPU.fullmatch(column)]
    return Found(gpus=gpus, links=links, paths=paths, shared=_shared(names, others, cell))


def _split(line: str) -> list[str]:
    """The words of a line; bars of a table in Markdown are none."""
    return line.replace("|", " ").split()


def _from(words: Sequence[str], begins: Callable[[str], object]) -> list[str]:
    """Words from the first that begins a row on: a log's time, a number of a line or a ``>`` before it are dropped."""
    return next((list(words[i:]) for i, word in enumerate(words) if begins(word)), [])


def _is_head(lines: Sequence[str], i: int) -> bool:
    """Whether the matrix begins here: a line of names, and below it the row of the first of them."""
    names = _from(_split(lines[i]), _GPU.fullmatch)
    if not names or (len(names) > 1 and names[1] == "X"):
        return False
    rest = (_split(line) for line in lines[i + 1 :])
    below = _from(next((words for words in rest if any(set(word) - set("-:>") for word in words)), []), names[0].__eq__)
    return len(below) > 1 and below[1] == "X" and not (len(below) > 2 and below[2] in _PEERS)


def _is_other_table(cells: Sequence[str]) -> bool:
    """Whether another matrix begins."""
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
        cpus = _cpus(cells[0].strip(","), where)
    if len(cells) > 1 and re.fullmatch(r"\d{1,6}", cells[1]):
        node = int(cells[1])
    return FoundGpu(cpus=cpus, node=node)


def _cpus(text: str, where: str) -> tuple[int, ...]:
    """As `parse_cpus`; messages begin with the file.

    Raises:
        InputError: It is no list of processors.
    """
    try:
        return parse_cpus(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


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


def _with_names(lines: Sequence[str], count: int, where: str) -> list[FoundGpu]:
    """GPUs as ``nvidia-smi -L``, the table of ``nvidia-smi`` and ``rocm-smi --showproductname`` name them."""
    found = _listed(lines) or _tabled(lines) or amd_text.read_names(lines)
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
            found.setdefault(last, FoundGpu(name=card[2]))  # `nvidia-smi nvlink -s` lists them again
        elif part and last in found:
            name, gigabytes = line.split()[1], int(part[3])
            piece = FoundSlice(name, min(1.0, int(part[1]) / 7), gigabytes * 10**9)
            before = found[last]
            found[last] = msgspec.structs.replace(before, slices=(*before.slices, piece), is_divided=True)
    return found


def _tabled(lines: Sequence[str]) -> dict[int, FoundGpu]:
    """Of the table that ``nvidia-smi`` prints; it cuts long names, which then end in ``...``."""
    found: dict[int, FoundGpu] = {}
    last = -1
    for line in lines:
        card = re.match(
            r"\|\s+(\d{1,4})\s+(\S.*?)\s+(?:On|Off|N/A|TCC|WDDM|MCDM)\s*\|\s*([0-9A-Fa-f]+:[0-9A-Fa-f]+:\S+)", line
        )
        used = re.search(r"(\d+)MiB\s*/\s*(\d+)MiB", line)
        if card:
            last = int(card[1])
            found[last] = FoundGpu(name=card[2], bus=bus_address(card[3]))
        elif used and last in found and found[last].memory_bytes is None:
            total, taken = int(used[2]) * 2**20, int(used[1]) * 2**20
            found[last] = msgspec.structs.replace(found[last], memory_bytes=total, free_bytes=max(0, total - taken))
        elif "MIG devices:" in line:
            break
    return found


def _lscpu(lines: Sequence[str], where: str) -> Found:
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
            nodes.append(FoundNode(int(node[1]), _cpus(value, where)))
    memory = re.fullmatch(r"(\d{1,15}) kB", said.get("MemTotal", ""))
    return Found(
        cpu_name=said.get("Model name", ""),
        sockets=int(sockets) if cores is not None else None,
        cores=cores,
        nodes=tuple(nodes),
        memory_bytes=int(memory[1]) * 1024 if memory else None,
    )
