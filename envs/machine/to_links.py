"""The links between the devices of a machine. Pure functions.

NVLinks and xGMI links join pairs; where a GPU's links to all others are more than it has, they go through a switch.
GPUs that are one or several PCIe bridges apart (PIX, PXB) hang from a switch with one link to the host; others have a
link of their own. Between NUMA nodes there is one link. What was measured takes the place of what is known.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import networkx as nx

from envs.clusters.cluster import Device, Link
from envs.machine.found import Found
from envs.machine.measured import CopyFigures, Measured
from envs.machine.parts import Part
from envs.machine.spec_names import generation_of

_COUNTED = 0.9
"""Share of a link's nominal bandwidth that long copies reach on NVLink and xGMI."""

_MOST_LINKS = 18
_NVLINK_LATENCY_S = 10e-6
_NVSWITCH_LATENCY_S = 5e-6
_XGMI_LATENCY_S = 10e-6
_C2C_LATENCY_S = 2e-6
# A PCIe 3 x16 link gives about 12 of its 15.75 GB/s; a transfer from host to GPU takes 15 us, of later generations 10.
_PCIE = {1: (3e9, 20e-6), 2: (6e9, 20e-6), 3: (12e9, 15e-6), 4: (25e9, 10e-6), 5: (50e9, 10e-6), 6: (100e9, 10e-6)}
# NCCL's model of machines counts 10 to 22 GB/s between the sockets of servers of 2017 to 2023; 16 is AMD's.
_BETWEEN_NODES = (16e9, 1e-6)
_MEMORY_LATENCY_S = 1e-6


def note(notes: list[str], text: str) -> None:
    """Add a sentence that is not yet there."""
    if text not in notes:
        notes.append(text)


def core_links(
    devices: Sequence[Device], measured: Measured | None, notes: list[str]
) -> tuple[tuple[Link, ...], tuple[str, ...]]:
    """Cores copy to each other through memory: each has a link to one switch."""
    if len(devices) == 1:
        return (), ()
    if measured is not None and measured.copies:
        bandwidth = max(copy.bytes_per_s for copy in measured.copies)
        latency = min(copy.latency_s for copy in measured.copies) / 2
    else:
        bandwidth, latency = devices[0].spec.memory_bytes_per_s / 2, _MEMORY_LATENCY_S
        note(notes, "Copies between cores are taken to run at half of a core's memory bandwidth.")
    return tuple(Link(device.name, "memory:0", bandwidth, latency) for device in devices), ("memory:0",)


def machine_links(
    found: Found, parts: Sequence[Part], measured: Measured | None, notes: list[str]
) -> tuple[tuple[Link, ...], tuple[str, ...]]:
    """The links, and the switches that they need.

    Args:
        found: What was found of the machine.
        parts: Its devices, accelerators among them.
        measured: Figures of copies; None where there are none.
        notes: What is assumed is added here.
    """
    copies = {(copy.a, copy.b): copy for copy in measured.copies} if measured is not None else {}
    hosts = [part.name for part in parts if part.card < 0]
    pairs = list(itertools.combinations(hosts, 2))
    links = [_measured_link(a, b, copies) if (a, b) in copies else Link(a, b, *_BETWEEN_NODES) for a, b in pairs]
    if any(pair not in copies for pair in pairs):
        note(notes, "Between NUMA nodes 16 GB/s each way are assumed, as in NCCL's model of AMD's sockets.")
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
    family = generation_of(gpu.name)
    if family.c2c_bytes_per_s:
        return _COUNTED * family.c2c_bytes_per_s, _C2C_LATENCY_S
    generation = gpu.pcie_generation or family.pcie
    rate, latency = _PCIE[min(max(generation, 1), 6)]
    return rate * min(gpu.pcie_lanes or 16, 16) / 16, latency
