"""Devices, links, routes and clusters: what a placement may use.

A cluster is frozen and valid: names are unique and every device can reach every other. Routes are shortest paths (by
latency, then number of links, then name) over devices and switches.

Letters: ``D`` devices, ``L`` links; a link has two directions, numbered ``2 * l`` (from `Link.a` to `Link.b`) and
``2 * l + 1``.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property

import msgspec
import networkx as nx
import numpy as np
from numpy.typing import NDArray

from graphs.computation_graph import DEVICE_KINDS, DTYPE_BYTES
from graphs.errors import InputError

OP_CLASSES = ("product", "convolution", "attention", "other")
"""Classes of op that a device may run at different shares of its peak; see `envs.cost_model.op_class`."""


@dataclass(frozen=True)
class DeviceSpec:
    """A model of device, as in a vendor's sheet.

    Attributes:
        name: For example ``"k80"``; profiled times in a graph file refer to it.
        kind: One of `graphs.computation_graph.DEVICE_KINDS`.
        memory_bytes: What ops can use.
        peak_flops_per_s: Peak rate by dtype; a dtype that is absent runs at ``float32``'s.
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
        def need(ok: bool, message: str) -> None:
            if not ok:
                raise InputError(f"device spec '{self.name}': {message}")

        need(self.kind in DEVICE_KINDS, f"kind '{self.kind}' is not one of {', '.join(DEVICE_KINDS)}")
        need(self.memory_bytes >= 0, f"memory_bytes is {self.memory_bytes}; it must not be negative")
        need("float32" in self.peak_flops_per_s, "peak_flops_per_s needs an entry for float32")
        for dtype, rate in self.peak_flops_per_s.items():
            need(dtype in DTYPE_BYTES, f"peak_flops_per_s names dtype '{dtype}'; known: {', '.join(DTYPE_BYTES)}")
            need(_positive(rate), f"peak_flops_per_s of {dtype} is {rate}; it must be positive and finite")
        rate = self.memory_bytes_per_s
        need(_positive(rate), f"memory_bytes_per_s is {rate}; it must be positive and finite")
        for key in ("launch_overhead_s", "fill_flops"):
            value = getattr(self, key)
            need(math.isfinite(value) and value >= 0, f"{key} is {value}; it must be finite and not negative")
        need(self.tile >= 1, f"tile is {self.tile}; it must be at least 1")
        for op_class, share in self.efficiency.items():
            need(op_class in OP_CLASSES, f"efficiency names op class '{op_class}'; known: {', '.join(OP_CLASSES)}")
            need(0 < share <= 1, f"efficiency of {op_class} is {share}; it must be in (0, 1]")


@dataclass(frozen=True)
class Device:
    """One device of a cluster: a unique name, for example ``"gpu:0"``, and what it is."""

    name: str
    spec: DeviceSpec


@dataclass(frozen=True)
class Link:
    """One physical, full-duplex connection between two devices or switches.

    Attributes:
        a: Name of a device or switch.
        b: Name of another.
        bytes_per_s: Bandwidth of each direction.
        latency_s: Time before the first byte arrives.
    """

    a: str
    b: str
    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, eq=False)
class Routes:
    """The routes of all pairs of devices, as arrays for the simulator.

    Attributes:
        latency_s: ``float64[D, D]``, sum over the route's links; 0 on the diagonal.
        bytes_per_s: ``float64[D, D]``, smallest over the route's links; infinite on the diagonal.
        offsets: ``int32[D * D + 1]``; the route from device ``i`` to ``j`` crosses the link directions
            ``directions[offsets[i * D + j]:offsets[i * D + j + 1]]``.
        directions: ``int32[...]``, numbers of link directions.
    """

    latency_s: NDArray[np.float64]
    bytes_per_s: NDArray[np.float64]
    offsets: NDArray[np.int32]
    directions: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Cluster:
    """Devices and the links between them.

    Attributes:
        name: What results call it.
        devices: ``D`` devices with unique names.
        links: ``L`` links between devices and switches.
        switches: Names of the vertices that forward but do not compute.
        source: Where the topology and figures are from.

    Raises:
        InputError: A name is not unique or not known, a figure is out of range, or a device cannot be reached.
    """

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    switches: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        def need(ok: bool, message: str) -> None:
            if not ok:
                raise InputError(f"cluster '{self.name}': {message}")

        need(len(self.devices) > 0, "it has no devices")
        vertices = [d.name for d in self.devices] + list(self.switches)
        for vertex in vertices:
            need(vertices.count(vertex) == 1, f"two devices or switches are called '{vertex}'")
        for link in self.links:
            what = f"the link between '{link.a}' and '{link.b}'"
            for end in (link.a, link.b):
                need(end in vertices, f"{what} names '{end}', which is neither a device nor a switch")
            need(link.a != link.b, f"{what} joins a device to itself")
            need(
                _positive(link.bytes_per_s),
                f"{what} has bytes_per_s = {link.bytes_per_s}; it must be positive and finite",
            )
            ok = math.isfinite(link.latency_s) and link.latency_s >= 0
            need(ok, f"{what} has latency_s = {link.latency_s}; it must be finite and not negative")
        reached = nx.node_connected_component(self._topology, self.devices[0].name)
        for device in self.devices:
            need(
                device.name in reached,
                f"device '{device.name}' cannot be reached from '{self.devices[0].name}'; add a link that joins them",
            )

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
        """``int64[D]``, what ops can use of each device's memory."""
        return np.array([d.spec.memory_bytes for d in self.devices], dtype=np.int64)

    @cached_property
    def _topology(self) -> nx.Graph:
        graph = nx.Graph()
        graph.add_nodes_from([*(d.name for d in self.devices), *self.switches])
        for number, link in enumerate(self.links):
            known = graph.get_edge_data(link.a, link.b)
            if known is None or (link.latency_s, -link.bytes_per_s) < known["key"]:
                key = (link.latency_s, -link.bytes_per_s)
                # A hair for each link makes fewer links win where latencies are equal.
                graph.add_edge(link.a, link.b, weight=link.latency_s + 1e-12, number=number, key=key)
        return graph

    @cached_property
    def routes(self) -> Routes:
        """Shortest paths between all pairs of devices."""
        count = self.num_devices
        latency = np.zeros((count, count))
        bandwidth = np.full((count, count), np.inf)
        offsets, directions = [0], list[int]()
        for i, source in enumerate(self.device_names):
            # `min` over sorted paths: which of several equally short routes is taken must not hang on insertion order.
            for j, target in enumerate(self.device_names):
                if i != j:
                    paths = nx.all_shortest_paths(self._topology, source, target, weight="weight")
                    path = min(paths, key=lambda p: (len(p), p))
                    for a, b in itertools.pairwise(path):
                        number = self._topology.edges[a, b]["number"]
                        link = self.links[number]
                        directions.append(2 * number + (0 if link.a == a else 1))
                        latency[i, j] += link.latency_s
                        bandwidth[i, j] = min(bandwidth[i, j], link.bytes_per_s)
                offsets.append(len(directions))
        return Routes(latency, bandwidth, np.array(offsets, dtype=np.int32), np.array(directions, dtype=np.int32))

    @cached_property
    def sha256(self) -> str:
        """Digest of all that can change a result (not names of specs' sources, nor the cluster's own name)."""
        content = {
            "devices": [
                (d.name, {k: v for k, v in msgspec.to_builtins(d.spec).items() if k != "source"}) for d in self.devices
            ],
            "switches": self.switches,
            "links": [msgspec.to_builtins(link) for link in self.links],
        }
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


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
