"""From what was found of a machine, and measured of it, to a cluster. Pure functions.

How a machine becomes devices and links:

- Each accelerator, or each instance of one that is divided (MIG), is a device ``gpu:i``. Beside accelerators, each NUMA
  node that has some is a device ``cpu:i``, whose share of the machine's cores and memory is equal. Without accelerators
  each core is a device, or where there are more than `MOST_CORES`, each of so many equal sets of cores.
- NVLinks and xGMI links join pairs. Where a GPU's links to all others are more than it has, they go through a switch.
- GPUs that are one or several PCIe bridges apart (PIX, PXB) hang from a switch with one link to the host; others have a
  link of their own. Between NUMA nodes there is one link.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import networkx as nx

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.machine.found import Found, FoundGpu, show_cpus
from envs.machine.measured import CopyFigures, DeviceFigures, Measured
from envs.machine.spec_names import generation_of, need_spec, spec_of
from graphs.errors import InputError, unknown_name

USABLE = 0.95
"""Share of a device's memory that ops can use; the rest is the driver's and the allocator's."""

MOST_CORES = 8
"""Cores of a machine without accelerators that are devices of their own."""

_COUNTED = 0.9
"""Share of a link's nominal bandwidth that long copies reach on NVLink and xGMI."""

_MOST_LINKS = 18
_NVLINK_LATENCY_S = 10e-6
_NVSWITCH_LATENCY_S = 5e-6
_XGMI_LATENCY_S = 10e-6
# A PCIe 3 x16 link gives about 12 of its 15.75 GB/s; a transfer from host to GPU takes 15 us, of later generations 10.
_PCIE = {1: (3e9, 20e-6), 2: (6e9, 20e-6), 3: (12e9, 15e-6), 4: (25e9, 10e-6), 5: (50e9, 10e-6), 6: (100e9, 10e-6)}
# NCCL's model of machines counts 10 to 22 GB/s between the sockets of servers of 2017 to 2023; 16 is AMD's.
_BETWEEN_NODES = (16e9, 1e-6)
_MEMORY_LATENCY_S = 1e-6
_CORE_FLOPS_PER_S = 2.5e9 * 32
_CORE_BYTES_PER_S = 3e9
_CORE_MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Like:
    """What a user says of devices that nobody named.

    Attributes:
        gpu: Name of a known spec for every GPU.
        gpus: The same for single ones, by number.
        cpu: Name of a known spec for every CPU device.
        memory_bytes: Of the host.
    """

    gpu: str | None = None
    gpus: Mapping[int, str] | None = None
    cpu: str | None = None
    memory_bytes: float | None = None


@dataclass(frozen=True, eq=False)
class MachineCluster:
    """A machine as a cluster.

    Attributes:
        cluster: Its devices and links.
        notes: What was assumed, a sentence each.
    """

    cluster: Cluster
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A device to be: an accelerator or an instance of one, or cores.

    Attributes:
        name: The device's.
        card: Number of the accelerator; -1 for cores.
        piece: Number of the instance; -1 where the card is whole.
        host: For accelerators: number of the CPU device next to it.
        cpus: For cores: those that it has, where they are known.
        cores: For cores: how many.
    """

    name: str
    card: int = -1
    piece: int = -1
    host: int = 0
    cpus: tuple[int, ...] = ()
    cores: float = 1


def parts_of(found: Found) -> tuple[Part, ...]:
    """The devices that a machine will be, the CPU's first, in the order of the cluster."""
    cards = [i for i, gpu in enumerate(found.gpus) if not gpu.is_divided or gpu.slices]
    if not cards:
        return _core_parts(found)
    hosts = _hosts(found)
    total = found.cores or len(found.usable_cpus) or None
    parts = []
    for host, members in enumerate(hosts):
        beside = {cpu for i in members for cpu in found.gpus[i].cpus}
        cores = total / len(hosts) if total else len(beside) / 2 or 16.0
        parts.append(Part(f"cpu:{host}", cpus=tuple(sorted(beside)), cores=cores))
    number = itertools.count()
    for i in cards:
        host = next(h for h, members in enumerate(hosts) if i in members)
        pieces = range(len(found.gpus[i].slices)) if found.gpus[i].is_divided else (-1,)
        parts += [Part(f"gpu:{next(number)}", card=i, piece=piece, host=host) for piece in pieces]
    return tuple(parts)


def make_machine_cluster(
    found: Found,
    specs: Mapping[str, DeviceSpec],
    *,
    name: str,
    like: Like = Like(),
    measured: Measured | None = None,
) -> MachineCluster:
    """The cluster that a machine is.

    Args:
        found: What was found of it.
        specs: The catalogue's specs by name.
        name: The cluster's name.
        like: Specs for devices that nobody named, or that the catalogue lacks.
        measured: Figures of its devices and of copies between them, by the names of `parts_of`; what was not measured
            is the catalogue's.

    Raises:
        InputError: A device is not in the catalogue and was not measured; the message says how to name it.
    """
    _check_like(like, found)
    found = _called(found, like)
    parts = parts_of(found)
    notes: list[str] = []
    devices = tuple(Device(part.name, _spec(found, part, parts, specs, like, measured, notes)) for part in parts)
    if parts[-1].card < 0:
        links, switches = _core_links(devices, measured, notes)
    else:
        links, switches = _links(found, parts, measured, notes)
    said = f"{', '.join(found.said_by) or 'this machine'}"
    if measured is not None:
        said += f"; devices and copies measured on {measured.when} with PyTorch {measured.torch}"
    source = f"From {said}. {' '.join(notes)}".strip()
    return MachineCluster(Cluster(name, devices, links, switches, source), tuple(notes))


def _check_like(like: Like, found: Found) -> None:
    """Raise where a user names the spec of a GPU that is not there.

    Raises:
        InputError: There is no such GPU.
    """
    for number in like.gpus or {}:
        if number >= len(found.gpus):
            raise InputError(f"gpu.{number} is given a spec, but there are {len(found.gpus)} GPUs, from gpu.0 on")


def _called(found: Found, like: Like) -> Found:
    """The same with names for accelerators that nobody named: those of the specs that they are like."""
    said = [(like.gpus or {}).get(i, like.gpu) for i in range(len(found.gpus))]
    gpus = tuple(
        gpu if gpu.name or name is None else msgspec.structs.replace(gpu, name=name)
        for gpu, name in zip(found.gpus, said, strict=True)
    )
    return msgspec.structs.replace(found, gpus=gpus)


def _hosts(found: Found) -> list[list[int]]:
    """Sets of accelerators, each next to a NUMA node of its own."""
    keys = [gpu.node if gpu.node is not None else gpu.cpus or None for gpu in found.gpus]
    near: nx.Graph = nx.Graph()
    near.add_nodes_from(range(len(found.gpus)))
    for i, j in itertools.combinations(range(len(found.gpus)), 2):
        known = keys[i] is not None and keys[j] is not None
        if keys[i] == keys[j] if known else found.path(i, j) != "SYS":
            near.add_edge(i, j)
    return sorted(sorted(group) for group in nx.connected_components(near))


def _core_parts(found: Found) -> tuple[Part, ...]:
    cpus = found.usable_cpus or tuple(range(found.cores or 1))
    count = min(len(cpus), MOST_CORES)
    sets = [cpus[len(cpus) * i // count : len(cpus) * (i + 1) // count] for i in range(count)]
    return tuple(Part(f"cpu:{show_cpus(own)}", cpus=own, cores=len(own)) for own in sets)


def _spec(
    found: Found,
    part: Part,
    parts: Sequence[Part],
    specs: Mapping[str, DeviceSpec],
    like: Like,
    measured: Measured | None,
    notes: list[str],
) -> DeviceSpec:
    figures = None if measured is None else measured.devices.get(part.name)
    if part.card >= 0:
        return _gpu_spec(found.gpus[part.card], part, specs, like, figures)
    return _cpu_spec(found, part, parts, specs, like, figures, notes)


def _gpu_spec(
    gpu: FoundGpu, part: Part, specs: Mapping[str, DeviceSpec], like: Like, figures: DeviceFigures | None
) -> DeviceSpec:
    said = (like.gpus or {}).get(part.card, like.gpu)
    if said is not None:
        known: DeviceSpec | None = _named(said, specs)
    elif figures is not None:
        known = spec_of(gpu.name, specs, gpu.kind)
    else:
        option = f"gpu.{part.card}=NAME"
        known = need_spec(gpu.name, specs, gpu.kind, what=f"GPU {part.card}", option=option)
    memory = _usable(gpu.memory_bytes, gpu.free_bytes) or (known.memory_bytes if known else 0)
    if figures is not None:
        return _measured_spec(gpu.name, gpu.kind, memory, figures, known)
    assert known is not None
    if gpu.memory_bytes is None or _is_near(memory, known.memory_bytes):
        memory = known.memory_bytes
    if part.piece < 0:
        return replace(known, memory_bytes=memory)
    piece = gpu.slices[part.piece]
    share = min(1.0, piece.memory_bytes / (gpu.memory_bytes or known.memory_bytes / USABLE))
    return replace(
        known,
        name=f"{known.name}_{piece.name or 'part'}".replace(".", "_"),
        memory_bytes=round(piece.memory_bytes * USABLE),
        peak_flops_per_s={dtype: rate * piece.compute for dtype, rate in known.peak_flops_per_s.items()},
        memory_bytes_per_s=known.memory_bytes_per_s * share,
        source=f"{piece.compute:.0%} of the arithmetic and {share:.0%} of the memory and bandwidth of {known.name}.",
    )


def _named(name: str, specs: Mapping[str, DeviceSpec]) -> DeviceSpec:
    if name not in specs:
        raise unknown_name("device spec", name, specs)
    return specs[name]


def _usable(total: int | None, free: int | None) -> int | None:
    """What ops can use of a memory: most of it, and no more than is free; in whole millions of bytes."""
    if total is None:
        return None
    most = round(total * USABLE)
    return (most if free is None else min(most, free)) // 10**6 * 10**6


def _is_near(a: float, b: float) -> bool:
    return abs(a - b) <= 0.1 * b


def _cpu_spec(
    found: Found,
    part: Part,
    parts: Sequence[Part],
    specs: Mapping[str, DeviceSpec],
    like: Like,
    figures: DeviceFigures | None,
    notes: list[str],
) -> DeviceSpec:
    cpus = [other for other in parts if other.card < 0]
    all_cores = sum(other.cores for other in cpus)
    host_bytes = found.memory_bytes if like.memory_bytes is None else int(like.memory_bytes)
    if host_bytes is None and found.nodes and all(node.memory_bytes is not None for node in found.nodes):
        host_bytes = sum(node.memory_bytes or 0 for node in found.nodes)
    whole = _usable(host_bytes, found.free_bytes)
    known = _named(like.cpu, specs) if like.cpu is not None else spec_of(found.cpu_name, specs, "cpu")
    if whole is None:
        whole = known.memory_bytes * len(cpus) if known else int(all_cores * _CORE_MEMORY_BYTES)
        _note(
            notes,
            f"Nobody said how much memory the host has: {whole / 1e9:.0f} GB are assumed (say it behind the file: "
            "memory_bytes=256e9).",
        )
    memory = int(whole * part.cores / all_cores)
    if figures is not None:
        named = f"{found.cpu_name or 'cpu'} x {part.cores:g} cores"
        return _measured_spec(named, "cpu", memory, figures, known)
    if known is not None:
        sockets = max(1, found.sockets or 1) if like.cpu is None and not re.search(r"_\dx\d+c", known.name) else 1
        share = sockets / len(cpus) if like.cpu is None else 1.0
        return replace(
            known,
            name=known.name if share == 1 else f"{known.name}_x{share:g}",
            memory_bytes=memory,
            peak_flops_per_s={dtype: rate * share for dtype, rate in known.peak_flops_per_s.items()},
            memory_bytes_per_s=known.memory_bytes_per_s * share,
        )
    called = f"'{found.cpu_name}' is" if found.cpu_name else "Nobody said what the processor is, or it is"
    _note(
        notes,
        f"{called} not in the catalogue: {part.cores:g} cores of 80 GFLOP/s and 3 GB/s each are assumed for each CPU "
        "device (say it behind the file: cpu=NAME).",
    )
    rate = part.cores * _CORE_FLOPS_PER_S
    return DeviceSpec(
        name=f"cpu_{part.cores:g}c",
        kind="cpu",
        memory_bytes=memory,
        peak_flops_per_s={"float32": rate, "float64": rate / 2},
        memory_bytes_per_s=max(20e9, part.cores * _CORE_BYTES_PER_S),
        launch_overhead_s=3e-6,
        efficiency={"product": 0.4, "convolution": 0.4, "attention": 0.4},
        source=f"Assumed: {part.cores:g} cores at 2.5 GHz x 32 FLOP a cycle, 3 GB/s of memory bandwidth each.",
    )


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def _measured_spec(
    called: str, kind: str, memory_bytes: int, figures: DeviceFigures, known: DeviceSpec | None
) -> DeviceSpec:
    """A spec of measured figures. Its peak is the best rate of any class of op; products then reach a share of it."""
    rates = dict(figures.flops_per_s)
    product = rates["float32"]
    best = max(product, *figures.class_flops_per_s.values()) if figures.class_flops_per_s else product
    classes = {"product": product, **figures.class_flops_per_s}
    efficiency = {name: min(1.0, rate / best) for name, rate in classes.items()}
    scale = best / product  # rates of other dtypes were measured with products as well
    source = "Measured: products by dtype, classes of op in float32, memory bandwidth, and the time of an empty op."
    if known is not None:
        source += f" The catalogue's {known.name} is what it is called."
    return DeviceSpec(
        name=f"{slug(called)}_measured",
        kind=kind,
        memory_bytes=memory_bytes,
        peak_flops_per_s={dtype: rate * scale for dtype, rate in rates.items()},
        memory_bytes_per_s=figures.memory_bytes_per_s,
        launch_overhead_s=figures.launch_overhead_s,
        efficiency=efficiency,
        tile=32 if kind == "gpu" else 1,
        source=source,
    )


def slug(name: str) -> str:
    """A device's name as one word: ``nvidia_a100_sxm4_80gb``."""
    plain = re.sub(r"\((?:r|tm|c)\)| @ .*?(?= x |$)", " ", name.lower())
    return "_".join(re.findall(r"[a-z0-9.]+", plain)) or "device"


def _core_links(
    devices: Sequence[Device], measured: Measured | None, notes: list[str]
) -> tuple[tuple[Link, ...], tuple[str, ...]]:
    """Cores copy to each other through memory: each has a link to one switch."""
    if len(devices) == 1:
        return (), ()
    if measured is not None and measured.copies:
        bandwidth = statistics.median(copy.bytes_per_s for copy in measured.copies)
        latency = statistics.median(copy.latency_s for copy in measured.copies) / 2
    else:
        bandwidth, latency = devices[0].spec.memory_bytes_per_s / 2, _MEMORY_LATENCY_S
        _note(notes, "Copies between cores are taken to run at half of a core's memory bandwidth.")
    return tuple(Link(device.name, "memory:0", bandwidth, latency) for device in devices), ("memory:0",)


def _links(
    found: Found, parts: Sequence[Part], measured: Measured | None, notes: list[str]
) -> tuple[tuple[Link, ...], tuple[str, ...]]:
    copies = {(copy.a, copy.b): copy for copy in measured.copies} if measured is not None else {}
    hosts = [part.name for part in parts if part.card < 0]
    links = [Link(a, b, *_BETWEEN_NODES) for a, b in itertools.combinations(hosts, 2)]
    if links:
        _note(notes, "Between NUMA nodes 16 GB/s each way are assumed, as in NCCL's model of AMD's sockets.")
    whole = {part.card: part.name for part in parts if part.card >= 0 and part.piece < 0}
    fast, switches = _fast_links(found, whole, copies)
    links += fast
    host_links, bridges = _host_links(found, parts, hosts, copies)
    links += host_links
    switches += bridges
    direct = {frozenset((link.a, link.b)) for link in fast}
    for a, b in itertools.combinations(whole.values(), 2):
        # Peers that were measured have a link of their own, as quick as their copies were.
        if (a, b) in copies and frozenset((a, b)) not in direct and not any("nvswitch" in s for s in switches):
            links.append(_measured_link(a, b, copies))
    return tuple(links), tuple(switches)


def _measured_link(a: str, b: str, copies: Mapping[tuple[str, str], CopyFigures], latency_share: float = 1.0) -> Link:
    there, back = copies[a, b], copies.get((b, a), copies[a, b])
    return Link(
        a,
        b,
        there.bytes_per_s,
        there.latency_s * latency_share,
        back.bytes_per_s,
        back.latency_s * latency_share,
    )


def _fast_links(
    found: Found, whole: Mapping[int, str], copies: Mapping[tuple[str, str], CopyFigures]
) -> tuple[list[Link], list[str]]:
    """NVLinks and xGMI links; through a switch where they cannot all be a GPU's own."""
    pairs = [link for link in found.links if link.a in whole and (link.b in whole or link.b < 0)]
    to_switch = {link.a: link for link in pairs if link.b < 0}
    totals = {i: sum(link.count for link in pairs if i in (link.a, link.b)) for i in whole}
    counts = {link.count for link in pairs}
    most = {i: generation_of(found.gpus[i].name).most_links or _MOST_LINKS for i in whole}
    switched = bool(to_switch) or (len(counts) == 1 and any(totals[i] > most[i] for i in whole) and len(pairs) > 1)
    if not switched:
        links = []
        for link in pairs:
            a, b = whole[link.a], whole[link.b]
            latency = _NVLINK_LATENCY_S if link.kind == "nvlink" else _XGMI_LATENCY_S
            rate = _rate(found, link.a, link.count, link.bytes_per_s)
            links.append(_measured_link(a, b, copies) if (a, b) in copies else Link(a, b, rate, latency))
        return links, []
    joined = sorted(to_switch) if to_switch else sorted({i for link in pairs for i in (link.a, link.b)})
    links = []
    for i in joined:
        own = to_switch.get(i)
        count = own.count if own is not None else next(iter(counts))
        rate = _rate(found, i, count, own.bytes_per_s if own is not None else None)
        latency = _NVSWITCH_LATENCY_S
        seen = [copy for (a, b), copy in copies.items() if a == whole[i] and b in whole.values()]
        if seen:
            rate = statistics.median(copy.bytes_per_s for copy in seen)
            latency = statistics.median(copy.latency_s for copy in seen) / 2
        links.append(Link("nvswitch:0", whole[i], rate, latency))
    return links, ["nvswitch:0"]


def _rate(found: Found, gpu: int, count: int, bytes_per_s: float | None) -> float:
    nominal = generation_of(found.gpus[gpu].name).nvlink_bytes_per_s or 25e9
    return _COUNTED * (bytes_per_s if bytes_per_s is not None else count * nominal)


def _host_links(
    found: Found, parts: Sequence[Part], hosts: Sequence[str], copies: Mapping[tuple[str, str], CopyFigures]
) -> tuple[list[Link], list[str]]:
    """Links to the hosts: of each GPU its own, or through the PCIe switch that it shares."""
    links: list[Link] = []
    switches: list[str] = []
    cards = sorted({part.card for part in parts if part.card >= 0})
    behind = _switch_groups(found, cards)
    for group in behind:
        members = [part for part in parts if part.card in group]
        host = hosts[members[0].host]
        divided = len(members) > 1
        if not divided:
            name = members[0].name
            link = (
                _measured_link(host, name, copies)
                if (host, name) in copies
                else Link(host, name, *_pcie(found, group[0]))
            )
            links.append(link)
            continue
        switch = f"pcie:{len(switches)}"
        switches.append(switch)
        ways = [copies[host, part.name] for part in members if (host, part.name) in copies]
        figures = [_pcie(found, card) for card in group]
        rate, latency = max(rate for rate, _ in figures), max(latency for _, latency in figures) / 2
        if ways:
            rate, latency = max(w.bytes_per_s for w in ways), statistics.median(w.latency_s for w in ways) / 2
        links.append(Link(host, switch, rate, latency))
        for part in members:
            if (host, part.name) in copies:
                measured = _measured_link(host, part.name, copies, 0.5)
                links.append(replace(measured, a=switch))
            else:
                own, late = _pcie(found, part.card)
                links.append(Link(switch, part.name, own, late / 2))
    return links, switches


def _switch_groups(found: Found, cards: Sequence[int]) -> list[list[int]]:
    """Sets of accelerators behind one PCIe switch, in order; most stand alone."""
    near: nx.Graph = nx.Graph()
    near.add_nodes_from(cards)
    for i, j in itertools.combinations(cards, 2):
        if found.path(i, j) in ("PIX", "PXB"):
            near.add_edge(i, j)
    for group in found.shared:
        nx.add_path(near, [i for i in group if i in cards])
    return sorted(sorted(group) for group in nx.connected_components(near))


def _pcie(found: Found, card: int) -> tuple[float, float]:
    gpu = found.gpus[card]
    generation = gpu.pcie_generation or generation_of(gpu.name).pcie
    rate, latency = _PCIE[min(max(generation, 1), 6)]
    return rate * min(gpu.pcie_lanes or 16, 16) / 16, latency
