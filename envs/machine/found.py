"""What is known of a machine before it is a cluster: plain data, whichever program or file said it.

Every reader of this package makes a `Found`; `merge` puts together what several said of one machine, and
`envs.machine.to_cluster` makes a cluster of it. Fields that nobody told are None or empty.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import msgspec

from graphs.errors import InputError

MOST_GPUS = 128
"""Accelerators of a machine that are read at most."""

PATHS = ("PIX", "PXB", "PHB", "NODE", "SYS")
"""How far apart two PCIe devices are, in the words of ``nvidia-smi topo -m``, from near to far: one bridge, several
bridges, one host bridge, several host bridges of a NUMA node, several NUMA nodes."""


class FoundGpu(msgspec.Struct, frozen=True, omit_defaults=True):
    """An accelerator.

    Attributes:
        name: What its driver calls it: ``"NVIDIA A100-SXM4-80GB"``.
        memory_bytes: All that it has.
        free_bytes: What nobody used when it was looked at.
        pcie_generation: Of its link to the host.
        pcie_lanes: Of its link to the host.
        node: The NUMA node that it is next to.
        cpus: The hardware threads that it is next to.
        bus: Its PCI address, in lower case and without leading zeros of the domain.
        kind: Kind of device, one of `graphs.computation_graph.DEVICE_KINDS`.
        slices: Parts of it that are devices of their own (MIG); the card itself is then none.
        is_divided: It is in parts (MIG is on), be there any or not.
        shares_memory: Its memory is the host's (Apple's chips).
    """

    name: str = ""
    memory_bytes: int | None = None
    free_bytes: int | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    node: int | None = None
    cpus: tuple[int, ...] = ()
    bus: str = ""
    kind: str = "gpu"
    slices: tuple[FoundSlice, ...] = ()
    is_divided: bool = False
    shares_memory: bool = False


class FoundSlice(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of a GPU that is a device of its own.

    Attributes:
        name: ``"1g.10gb"``, or empty.
        compute: Its share of the card's arithmetic, in (0, 1].
        memory_bytes: Its own.
    """

    name: str
    compute: float
    memory_bytes: int


class FoundLink(msgspec.Struct, frozen=True, omit_defaults=True):
    """A link between accelerators that is not PCIe.

    Attributes:
        a: Number of an accelerator.
        b: Number of another; -1 for a switch that joins all that have such a link.
        kind: ``"nvlink"`` or ``"xgmi"``.
        count: How many are bonded.
        bytes_per_s: All of them together, each way, as the vendor names it; None where only their number is known.
    """

    a: int
    b: int
    kind: str
    count: int = 1
    bytes_per_s: float | None = None


class FoundNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """A NUMA node: its number, hardware threads and memory."""

    number: int
    cpus: tuple[int, ...] = ()
    memory_bytes: int | None = None


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """A machine.

    Attributes:
        gpus: ``G`` accelerators.
        links: Between them.
        paths: ``[G][G]``, one of `PATHS` where it is known how far apart two are by PCIe, else empty.
        shared: Sets of accelerators that hang from one PCIe switch, where that is known by something else than `paths`.
        cpu_name: What the processor calls itself.
        sockets: How many there are.
        cores: Of all sockets; hardware threads of a core count once.
        usable_cpus: The hardware threads that this process may use, one a core; empty for another machine.
        memory_bytes: Of the host.
        free_bytes: Of it, what nobody used when it was looked at.
        nodes: NUMA nodes.
        said_by: Which programs or files said this.
    """

    gpus: tuple[FoundGpu, ...] = ()
    links: tuple[FoundLink, ...] = ()
    paths: tuple[tuple[str, ...], ...] = ()
    shared: tuple[tuple[int, ...], ...] = ()
    cpu_name: str = ""
    sockets: int | None = None
    cores: int | None = None
    usable_cpus: tuple[int, ...] = ()
    memory_bytes: int | None = None
    free_bytes: int | None = None
    nodes: tuple[FoundNode, ...] = ()
    said_by: tuple[str, ...] = ()

    def path(self, a: int, b: int) -> str:
        """How far apart two accelerators are by PCIe; empty where nobody said it."""
        return self.paths[a][b] if self.paths else ""


def merge(parts: Sequence[Found]) -> Found:
    """One machine of what several said of it; of what two say, the first counts.

    Accelerators are matched by their PCI addresses where all have one, and by their numbers otherwise.

    Raises:
        InputError: They speak of different numbers of accelerators, or of different ones.
    """
    whole = parts[0]
    for part in parts[1:]:
        whole = _joined(whole, part)
    return whole


def _joined(a: Found, b: Found) -> Found:
    if a.gpus and b.gpus:
        if len(a.gpus) != len(b.gpus):
            raise InputError(
                f"{_by(a)} names {len(a.gpus)} GPUs and {_by(b)} {len(b.gpus)}; give outputs of one machine"
            )
        b = _renumbered(b, _order(a, b))
    gpus = tuple(_joined_gpu(x, y) for x, y in zip(a.gpus, b.gpus, strict=True)) if a.gpus and b.gpus else None
    return Found(
        gpus=gpus or a.gpus or b.gpus,
        links=a.links or b.links,
        paths=a.paths or b.paths,
        shared=a.shared or b.shared,
        cpu_name=a.cpu_name or b.cpu_name,
        sockets=a.sockets if a.sockets is not None else b.sockets,
        cores=a.cores if a.cores is not None else b.cores,
        usable_cpus=a.usable_cpus or b.usable_cpus,
        memory_bytes=a.memory_bytes if a.memory_bytes is not None else b.memory_bytes,
        free_bytes=a.free_bytes if a.free_bytes is not None else b.free_bytes,
        nodes=a.nodes or b.nodes,
        said_by=(*a.said_by, *b.said_by),
    )


def _joined_gpu(a: FoundGpu, b: FoundGpu) -> FoundGpu:
    if a.name and b.name and a.memory_bytes is not None and b.memory_bytes is not None:
        gap = abs(a.memory_bytes - b.memory_bytes)
        if gap > 0.1 * max(a.memory_bytes, b.memory_bytes):
            raise InputError(
                f"a GPU is called '{a.name}' with {a.memory_bytes / 1e9:.0f} GB and '{b.name}' with "
                f"{b.memory_bytes / 1e9:.0f} GB; give outputs of one machine"
            )
    empty = FoundGpu()
    given = {
        name: getattr(a, name) if getattr(a, name) != getattr(empty, name) else getattr(b, name)
        for name in FoundGpu.__struct_fields__
    }
    return FoundGpu(**given)


def _order(a: Found, b: Found) -> list[int]:
    """For each accelerator of `a` its number in `b`."""
    buses, others = [gpu.bus for gpu in a.gpus], [gpu.bus for gpu in b.gpus]
    if not all(buses) or not all(others):
        return list(range(len(b.gpus)))
    if sorted(buses) != sorted(others):
        raise InputError(f"{_by(a)} and {_by(b)} name GPUs at different PCI addresses; give outputs of one machine")
    return [others.index(bus) for bus in buses]


def _renumbered(found: Found, order: Sequence[int]) -> Found:
    """The same with accelerator ``order[i]`` as number ``i``."""
    new = {old: i for i, old in enumerate(order)} | {-1: -1}
    links = tuple(msgspec.structs.replace(link, a=new[link.a], b=new[link.b]) for link in found.links)
    return msgspec.structs.replace(
        found,
        gpus=tuple(found.gpus[old] for old in order),
        links=links,
        paths=tuple(tuple(found.paths[i][j] for j in order) for i in order) if found.paths else (),
        shared=tuple(tuple(sorted(new[i] for i in group)) for group in found.shared),
    )


def _by(found: Found) -> str:
    return " and ".join(found.said_by) or "one output"


def parse_cpus(text: str) -> tuple[int, ...]:
    """The numbers that a list of processors names.

    >>> parse_cpus("0-3,8")
    (0, 1, 2, 3, 8)

    Raises:
        InputError: It is no such list, or one of more than 65,536 processors.
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        span = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", part.strip())
        if not span:
            raise InputError(f"'{text}' is no list of processors such as 0-15,32-47; correct it there")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            raise InputError(
                f"'{text}' is no list of processors: {part.strip()} ends before it begins; correct it there"
            )
        if last - first + len(cpus) >= 2**16:
            raise InputError(f"'{text}' names more than {2**16:,} processors; correct it there")
        cpus += range(first, last + 1)
    return tuple(dict.fromkeys(cpus))


def show_cpus(cpus: Sequence[int]) -> str:
    """A list of processors as text, runs with a hyphen.

    >>> show_cpus((0, 1, 2, 8))
    '0-2,8'
    """
    runs = []
    for _, group in itertools.groupby(enumerate(sorted(cpus)), key=lambda pair: pair[1] - pair[0]):
        run = [cpu for _, cpu in group]
        runs.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ",".join(runs)


def bus_address(text: str) -> str:
    """A PCI address in one form: ``00000000:3B:00.0`` and ``0000:3b:00.0`` are one.

    >>> bus_address("00000000:3B:00.0")
    '0:3b:00.0'
    """
    domain, colon, rest = text.strip().lower().partition(":")
    return f"{domain.lstrip('0') or '0'}{colon}{rest}"
