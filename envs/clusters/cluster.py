"""Devices, links, routes and clusters: what a placement may use.

A cluster is frozen and valid: names are unique and every device can reach every other. Routes are the quickest paths
of a typical tensor over devices and switches (`envs.clusters.routes`).

Letters: ``D`` devices, ``L`` links; a link has two directions, numbered ``2 * l`` (from `Link.a` to `Link.b`) and
``2 * l + 1``.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.clusters.memories import Memories, SharedMemory, make_memories
from envs.clusters.routes import Direction, Routes, find_routes
from graphs.computation_graph import DEVICE_KINDS, DTYPE_BYTES
from graphs.errors import InputError

OP_CLASSES = ("product", "convolution", "attention", "other")
"""Classes of op that a device may run at different shares of its peak; see `envs.cost_model.op_class`."""

# Ranges wide enough for anything real, and narrow enough that no sum of the times they give is infinite.
_LEAST_RATE, _MOST_RATE = 1e-9, 1e30
_LEAST_EFFICIENCY = 1e-9
_MOST_SECONDS = 1e9
_MOST_FLOPS = 1e30


@dataclass(frozen=True)
class DeviceSpec:
    """A model of device, as in a vendor's sheet.

    Attributes:
        name: For example ``"k80"``; profiled times in a graph file refer to it.
        kind: One of `graphs.computation_graph.DEVICE_KINDS`.
        memory_bytes: What ops can use.
        peak_flops_per_s: Peak rate by dtype; a dtype that is absent runs at ``float32``'s. Where ``float32`` is absent
            too, the device computes in the dtypes that are named and in no other.
        memory_bytes_per_s: Bandwidth of the device's own memory.
        launch_overhead_s: Time that every op takes before it computes.
        efficiency: Share of the peak that each of `OP_CLASSES` reaches, in (0, 1]; absent means 1.
        tile: The batch dimension is rounded up to a multiple of this (32, a warp, on a GPU); 1 where it is not.
        fill_flops: FLOPs of a kernel that fills half of the device: an op of ``f`` FLOPs reaches
            ``f / (f + fill_flops)`` of its rate. 0 means that every kernel fills the device.
        source: Where the figures are from.
    """

    name: str
    kind: str
    memory_bytes: int
    peak_flops_per_s: dict[str, float]
    memory_bytes_per_s: float
    launch_overhead_s: float = 0.0
    efficiency: dict[str, float] = field(default_factory=dict)
    tile: int = 1
    fill_flops: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        where = f"device spec '{self.name}'"

        def need(ok: bool, message: str) -> None:
            if not ok:
                raise InputError(f"{where}: {message}")

        need(self.name != "", "its name is empty")
        need(self.kind in DEVICE_KINDS, f"kind '{self.kind}' is not one of {', '.join(DEVICE_KINDS)}")
        _need_range(where, "memory_bytes", self.memory_bytes, 0, 2**63 - 1)
        need(
            len(self.peak_flops_per_s) > 0,
            "peak_flops_per_s is empty; give at least one rate",
        )
        for dtype, rate in self.peak_flops_per_s.items():
            need(dtype in DTYPE_BYTES, f"peak_flops_per_s names dtype '{dtype}'; known: {', '.join(DTYPE_BYTES)}")
            _need_range(where, f"peak_flops_per_s of {dtype}", rate, _LEAST_RATE, _MOST_RATE)
        _need_range(where, "memory_bytes_per_s", self.memory_bytes_per_s, _LEAST_RATE, _MOST_RATE)
        _need_range(where, "launch_overhead_s", self.launch_overhead_s, 0, _MOST_SECONDS)
        _need_range(where, "fill_flops", self.fill_flops, 0, _MOST_FLOPS)
        _need_range(where, "tile", self.tile, 1, 2**31 - 1)
        for op_class, share in self.efficiency.items():
            need(op_class in OP_CLASSES, f"efficiency names op class '{op_class}'; known: {', '.join(OP_CLASSES)}")
            _need_range(where, f"efficiency of {op_class}", share, _LEAST_EFFICIENCY, 1)

    def computes(self, dtype: str) -> bool:
        """Whether ops of a dtype can run here; see `peak_flops_per_s`."""
        return dtype in self.peak_flops_per_s or "float32" in self.peak_flops_per_s

    def rate_flops_per_s(self, dtype: str) -> float:
        """The peak rate in a dtype; in one that the device does not compute, the slowest of its rates."""
        rates = self.peak_flops_per_s
        return rates.get(dtype, rates.get("float32", min(rates.values())))


@dataclass(frozen=True)
class Device:
    """One device of a cluster.

    Attributes:
        name: Unique, for example ``"gpu:0"``.
        spec: What it is.
        reserved_bytes: How much of its memory is kept free of the step, for other programs for example.
    """

    name: str
    spec: DeviceSpec
    reserved_bytes: int = 0


@dataclass(frozen=True)
class Link:
    """One physical, full-duplex connection between two devices or switches.

    Attributes:
        a: Name of a device or switch.
        b: Name of another.
        bytes_per_s: Bandwidth of each direction.
        latency_s: Time before the first byte arrives.
        back_bytes_per_s: Bandwidth from `b` to `a` where it differs.
        back_latency_s: Latency from `b` to `a` where it differs.
        receiver_copies: True where the device at the end copies the bytes itself and computes nothing meanwhile, as one
            core does from another's memory; a transfer then overlaps for its latency only.
    """

    a: str
    b: str
    bytes_per_s: float
    latency_s: float
    back_bytes_per_s: float | None = None
    back_latency_s: float | None = None
    receiver_copies: bool = False

    @property
    def back(self) -> tuple[float, float]:
        """``(bytes_per_s, latency_s)`` of the direction from `b` to `a`."""
        return (
            self.bytes_per_s if self.back_bytes_per_s is None else self.back_bytes_per_s,
            self.latency_s if self.back_latency_s is None else self.back_latency_s,
        )


@dataclass(frozen=True, eq=False)
class Cluster:
    """Devices and the links between them.

    Attributes:
        name: What results call it.
        devices: ``D`` devices with unique names.
        links: ``L`` links between devices and switches.
        switches: Names of the vertices that forward but do not compute.
        source: Where the topology and figures are from.
        shared_memories: Memories that several of the devices use; see `envs.clusters.memories`.

    Raises:
        InputError: A name is not unique or not known, a figure is out of range, or a device cannot be reached.
    """

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    switches: tuple[str, ...] = ()
    source: str = ""
    shared_memories: tuple[SharedMemory, ...] = ()

    def __post_init__(self) -> None:
        def need(ok: bool, message: str) -> None:
            if not ok:
                raise InputError(f"cluster '{self.name}': {message}")

        need(len(self.devices) > 0, "it has no devices")
        vertices = Counter([*self.device_names, *self.switches])
        for name in (self.name, *vertices, *(device.spec.name for device in self.devices)):
            if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
                raise InputError(f"cluster '{self.name}': the name {name!r} is not valid Unicode text; rename it")
        for vertex, count in vertices.items():
            need(vertex != "", "a device or switch has an empty name")
            need(count == 1, f"two devices or switches are called '{vertex}'")
        for device in self.devices:
            where = f"cluster '{self.name}': device '{device.name}'"
            _need_range(where, "reserved_bytes", device.reserved_bytes, 0, device.spec.memory_bytes)
        for link in self.links:
            where = f"cluster '{self.name}': the link between '{link.a}' and '{link.b}'"
            for end in (link.a, link.b):
                if end not in vertices:
                    raise InputError(f"{where} names '{end}', which is neither a device nor a switch")
            if link.a == link.b:
                raise InputError(f"{where} joins a device to itself")
            _need_range(where, "bytes_per_s", link.bytes_per_s, _LEAST_RATE, _MOST_RATE)
            _need_range(where, "latency_s", link.latency_s, 0, _MOST_SECONDS)
            _need_range(where, "back_bytes_per_s", link.back[0], _LEAST_RATE, _MOST_RATE)
            _need_range(where, "back_latency_s", link.back[1], 0, _MOST_SECONDS)
        first = self.device_names[0]
        reached = _reached(first, self.links)
        for name in self.device_names:
            need(name in reached, f"device '{name}' cannot be reached from '{first}'; add a link that joins them")

        self._check_shared_memories(need)

    def _check_shared_memories(self, need: Callable[[bool, str], None]) -> None:
        taken: dict[str, str] = {}
        for memory in self.shared_memories:
            where = f"shared memory '{memory.name}'"
            need(memory.name != "", "a shared memory has an empty name")
            need(memory.name not in self.device_names, f"{where} is called as a device is; rename it")
            same = [m for m in self.shared_memories if m.name == memory.name]
            need(len(same) == 1, f"two shared memories are called '{memory.name}'; rename one")
            need(len(memory.devices) > 0, f"{where} has no devices; name those that share it")
            for name in memory.devices:
                need(name in self.device_names, f"{where} names '{name}', which is no device; correct it")
                other = taken.setdefault(name, memory.name)
                twice = memory.devices.count(name) > 1
                need(not twice, f"{where} names device '{name}' twice; name it once")
                need(other == memory.name, f"device '{name}' is in the shared memories '{other}' and '{memory.name}'")
            _need_range(f"cluster '{self.name}': {where}", "memory_bytes", memory.memory_bytes, 0, 2**63 - 1)

    def __repr__(self) -> str:
        return f"Cluster('{self.name}', {self.summary})"

    @property
    def summary(self) -> str:
        """What it is made of, in a few words: ``"1 x haswell_18c, 4 x k80, 6 links"``."""
        models = Counter(d.spec.name for d in self.devices)
        shared = [f"{len(m.devices)} share {m.memory_bytes / 1e9:.4g} GB" for m in self.shared_memories]
        parts = [f"{count} x {name}" for name, count in models.items()]
        return ", ".join([*parts, *shared, f"{len(self.links)} links"])

    @property
    def num_devices(self) -> int:
        """``D``."""
        return len(self.devices)

    @property
    def device_names(self) -> tuple[str, ...]:
        """``D`` names, in device order."""
        return tuple(d.name for d in self.devices)

    @cached_property
    def memory_bytes(self) -> NDArray[np.int64]:
        """``int64[D]``, what ops can use on each device at most, without what is reserved; see also `memories`."""
        own = np.array([d.spec.memory_bytes - d.reserved_bytes for d in self.devices], dtype=np.int64)
        for shared in self._usable:
            members = [self.device_names.index(name) for name in shared.devices]
            own[members] = np.minimum(own[members], shared.memory_bytes)
        return own

    @cached_property
    def memories(self) -> Memories:
        """The limits on memory: first of each device, then of what is shared."""
        return make_memories(self.device_names, self.memory_bytes, self._usable)

    @cached_property
    def _usable(self) -> tuple[SharedMemory, ...]:
        """The shared memories without what is reserved on their devices."""
        reserved = {device.name: device.reserved_bytes for device in self.devices}
        return tuple(
            replace(shared, memory_bytes=max(shared.memory_bytes - sum(reserved[name] for name in shared.devices), 0))
            for shared in self.shared_memories
        )

    @property
    def all_memory_bytes(self) -> int:
        """Bytes of all memories together, what is shared counted once."""
        alone = sum(int(size) for size, shared in zip(self.memory_bytes, self.shared_by, strict=True) if shared < 0)
        return alone + sum(self._room_bytes(number) for number in range(len(self.shared_memories)))

    def _room_bytes(self, number: int) -> int:
        """What the devices of a shared memory can hold together."""
        members = self.memory_bytes[self.shared_by == number]
        return min(int(self._usable[number].memory_bytes), sum(map(int, members)))

    @cached_property
    def shared_by(self) -> NDArray[np.int64]:
        """``int64[D]``: which of `shared_memories` each device is in; -1 where in none."""
        index = np.full(self.num_devices, -1, dtype=np.int64)
        for number, shared in enumerate(self.shared_memories):
            index[[self.device_names.index(name) for name in shared.devices]] = number
        return index

    @cached_property
    def routes(self) -> Routes:
        """The quickest ways of a typical tensor between all pairs of devices; see `envs.clusters.routes`."""
        number = {name: i for i, name in enumerate((*self.device_names, *self.switches))}
        directions = []
        for link in self.links:
            a, b = number[link.a], number[link.b]
            copies = link.receiver_copies
            directions.append(Direction(a, b, link.bytes_per_s, link.latency_s, copies))
            directions.append(Direction(b, a, *link.back, copies))
        return find_routes(self.num_devices, len(number), directions)

    @cached_property
    def sha256(self) -> str:
        """Digest of all that can change a result (not where figures are from, nor the cluster's own name)."""
        content: dict[str, object] = {
            "devices": [
                (d.name, _figures(d.spec), *([d.reserved_bytes] if d.reserved_bytes else [])) for d in self.devices
            ],
            "switches": self.switches,
            "links": [
                (link.a, link.b, float(link.bytes_per_s), float(link.latency_s), *map(float, link.back))
                if link.back != (link.bytes_per_s, link.latency_s)
                else (link.a, link.b, float(link.bytes_per_s), float(link.latency_s))
                for link in self.links
            ],
        }
        if self.shared_memories:
            content["shared_memories"] = [(m.name, m.devices, int(m.memory_bytes)) for m in self.shared_memories]
        if any(link.receiver_copies for link in self.links):  # digests of other clusters stay what they were
            content["receiver_copies"] = [link.receiver_copies for link in self.links]
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()

    def index(self, device_name: str) -> int:
        """The index of a device.

        Raises:
            InputError: The cluster has no device of that name.
        """
        if device_name not in self.device_names:
            raise InputError(
                f"cluster '{self.name}' has no device '{device_name}'; its devices: {', '.join(self.device_names)}"
            )
        return self.device_names.index(device_name)


def _figures(spec: DeviceSpec) -> dict[str, object]:
    """What of a spec can change a result; floats as such, so that 0 and 0.0 count as the same figure."""
    return {
        "name": spec.name,
        "kind": spec.kind,
        "memory_bytes": int(spec.memory_bytes),
        "peak_flops_per_s": {dtype: float(rate) for dtype, rate in spec.peak_flops_per_s.items()},
        "memory_bytes_per_s": float(spec.memory_bytes_per_s),
        "launch_overhead_s": float(spec.launch_overhead_s),
        "efficiency": {op_class: float(share) for op_class, share in spec.efficiency.items()},
        "tile": int(spec.tile),
        "fill_flops": float(spec.fill_flops),
    }


def _reached(first: str, links: Sequence[Link]) -> set[str]:
    """The devices and switches that links join to one, itself included."""
    neighbours = defaultdict[str, list[str]](list)
    for link in links:
        neighbours[link.a].append(link.b)
        neighbours[link.b].append(link.a)
    reached, unvisited = {first}, [first]
    while unvisited:
        new = set(neighbours[unvisited.pop()]) - reached
        reached |= new
        unvisited += new
    return reached


def _need_range(where: str, what: str, value: float, least: float, most: float) -> None:
    """Raise where a figure is not a number from `least` to `most`; NaN is in no range."""
    if not least <= value <= most:
        raise InputError(f"{where}: {what} is {value}; it must be from {least:g} to {most:g}")
