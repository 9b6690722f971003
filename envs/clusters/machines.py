"""Servers, cloud instances and workstations by their makers' names, from ``data/machines.yaml``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.clusters.device_specs import DEVICE_SPECS, Loader
from envs.clusters.known import DGX1_NVLINK_BRICKS

_DATA = Path(__file__).parent / "data" / "machines.yaml"
_GB = 1e9
_USABLE = 0.95


class _Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    shape: Literal["switch", "cube_mesh", "cube_mesh_single", "pairs", "all", "ring", "mesh", "torus", "mi250"]
    bytes_per_s: float
    latency_s: float


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of ``data/machines.yaml``, whose head says what each field is."""

    name: str
    source: str
    like: str | None = None
    host: str | tuple[str, float, float] | None = None
    has: tuple[int, str] | None = None
    way: str | None = None
    behind: int = 0
    joins: str | None = None
    grid: tuple[int, int] | None = None
    hosts: int = 1
    network: str | None = None


@dataclass(frozen=True)
class _Data:
    ways: dict[str, tuple[float, float]]
    joins: dict[str, _Join]
    machines: tuple[Machine, ...]


def _read() -> _Data:
    content: Any = yaml.load(_DATA.read_text(encoding="utf-8"), Loader=Loader)
    return msgspec.convert(content, _Data)


def load_machines(known: Mapping[str, Cluster]) -> dict[str, Cluster]:
    """All machines of ``data/machines.yaml`` as clusters, by name.

    Args:
        known: Other clusters, which a machine may be a second name of.
    """
    data = _read()
    made: dict[str, Cluster] = {}
    for machine in data.machines:
        if machine.like is not None:
            other = made[machine.like] if machine.like in made else known[machine.like]
            made[machine.name] = replace(other, name=machine.name, source=f"{machine.source}. {other.source}")
        else:
            made[machine.name] = _cluster(machine, data)
    return made


def _host(machine: Machine) -> DeviceSpec:
    """The host's CPU, or as much of it as the machine has."""
    assert machine.host is not None
    if isinstance(machine.host, str):
        return DEVICE_SPECS[machine.host]
    name, share, memory_gb = machine.host
    whole = DEVICE_SPECS[name]
    return replace(
        whole,
        name=f"{name}_of_{machine.name}",
        memory_bytes=round(memory_gb * _GB * _USABLE),
        peak_flops_per_s={dtype: rate * share for dtype, rate in whole.peak_flops_per_s.items()},
        memory_bytes_per_s=whole.memory_bytes_per_s * share,
        source=f"{share:g} times the cores and bandwidth of {name}, with {memory_gb:,g} GB. {whole.source}",
    )


def _cluster(machine: Machine, data: _Data) -> Cluster:
    assert machine.has is not None
    assert machine.way is not None
    count, name = machine.has
    host, spec = _host(machine), DEVICE_SPECS[name]
    way, join = data.ways[machine.way], data.joins[machine.joins] if machine.joins else None
    devices: list[Device] = []
    links: list[Link] = []
    switches: list[str] = []
    for number in range(machine.hosts):
        cpu, first = f"cpu:{number}", number * count
        ours = [f"{spec.kind}:{first + i}" for i in range(count)]
        devices += [Device(cpu, host), *(Device(device, spec) for device in ours)]
        if join is not None:
            switch = f"switch:{number}"
            joined = _SHAPES[join.shape](ours, machine.grid, switch)
            switches += [switch] if join.shape == "switch" else []
            links += [Link(a, b, times * join.bytes_per_s, join.latency_s) for a, b, times in joined]
        if machine.behind:
            # Half of the way's latency is before the switch, half behind it.
            each = (way[0], way[1] / 2)
            here = [f"pcie:{(first + i) // machine.behind}" for i in range(0, count, machine.behind)]
            switches += here
            links += [Link(cpu, switch, *each) for switch in here]
            links += [Link(here[i // machine.behind], device, *each) for i, device in enumerate(ours)]
        else:
            links += [Link(cpu, device, *way) for device in ours]
        if machine.network is not None:
            links += [Link(device, "network:0", *data.ways[machine.network]) for device in (cpu, *ours)]
    if machine.network is not None:
        switches.append("network:0")
    return Cluster(
        name=machine.name,
        devices=tuple(devices),
        links=tuple(links),
        switches=tuple(switches),
        source=f"{machine.source}. Links: {_links_in_words(machine, way, join)}; 90% of what NVLink and the like "
        "carry and about 80% of PCIe is counted (envs/clusters/data/machines.yaml).",
    )


def _links_in_words(machine: Machine, way: tuple[float, float], join: _Join | None) -> str:
    words = [f"{machine.way} to the host ({way[0] / _GB:g} GB/s, {way[1] * 1e6:g} us)"]
    if machine.behind:
        words.append(f"each {machine.behind} accelerators behind one PCIe switch")
    if join is not None:
        figures = f"{join.bytes_per_s / _GB:g} GB/s, {join.latency_s * 1e6:g} us"
        words.append(f"{machine.joins} between accelerators ({figures})")
    if machine.network is not None:
        words.append(f"{machine.network} from each device to the network")
    return ", ".join(words)


_Joined = list[tuple[str, str, int]]


def _switch(names: list[str], grid: tuple[int, int] | None, switch: str) -> _Joined:
    return [(switch, name, 1) for name in names]


def _cube_mesh(names: list[str], grid: tuple[int, int] | None, switch: str) -> _Joined:
    """As the eight GPUs of a DGX-1 with V100; of four its half."""
    return [(names[a], names[b], bricks) for (a, b), bricks in DGX1_NVLINK_BRICKS.items() if max(a, b) < len(names)]


def _cube_mesh_single(names: list[str], grid: tuple[int, int] | None, switch: str) -> _Joined:
    """The same ways with one brick each, as in a DGX-1 with P100."""
    return [(a, b, 1) for a, b, _ in _cube_mesh(names, grid, switch)]


def _pairs(names: list[str], grid: tuple[int, int] | None, switch: str) -> _Joined:
    return [(names[i], names[i + 1], 1) for i in range(0, len(names) - 1, 2)]


def _all(names: list[str], grid: tuple[int, int] | None, switch: str) -> _Joined:
    return [(a, b, 1) for a, b in itertools.combinations(names, 2)]


def _ring(names: list[str], grid: tuple[int, int] | None, switch: str) -> _Joined:
    return [(name, names[(i + 1) % len(names)], 1) for i, name in enumerate(names)]


def _mesh(names: list[str], grid: tuple[int, int] | None, switch: str, *, closed: bool = False) -> _Joined:
    """Neighbours of a grid, which is numbered to and fro along the rows, so that each is a neighbour of the next."""
    assert grid is not None
    rows, columns = grid
    at = {
        (row, column): names[row * columns + (column if row % 2 == 0 else columns - 1 - column)]
        for row in range(rows)
        for column in range(columns)
    }
    made: _Joined = []
    for row, column in at:
        if column + 1 < columns or (closed and columns > 2):
            made.append((at[row, column], at[row, (column + 1) % columns], 1))
        if row + 1 < rows or (closed and rows > 2):
            made.append((at[row, column], at[(row + 1) % rows, column], 1))
    return made


def _torus(names: list[str], grid: tuple[int, int] | None, switch: str) -> _Joined:
    return _mesh(names, grid, switch, closed=True)


def _mi250(names: list[str], grid: tuple[int, int] | None, switch: str) -> _Joined:
    """Dies of a card by four links; each die to one die of both neighbouring cards by one (a ring of cards, twice)."""
    cards = len(names) // 2
    made = [(names[2 * card], names[2 * card + 1], 4) for card in range(cards)]
    for card in range(cards):
        for die in range(2):
            made.append((names[2 * card + die], names[2 * ((card + 1) % cards) + die], 1))
    return made


_SHAPES: dict[str, Callable[[list[str], tuple[int, int] | None, str], _Joined]] = {
    "switch": _switch,
    "cube_mesh": _cube_mesh,
    "cube_mesh_single": _cube_mesh_single,
    "pairs": _pairs,
    "all": _all,
    "ring": _ring,
    "mesh": _mesh,
    "torus": _torus,
    "mi250": _mi250,
}
