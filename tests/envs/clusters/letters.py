"""Clusters of like devices with one-letter names, and what a route crosses, for the tests of clusters."""

from __future__ import annotations

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link

SPEC = DeviceSpec("chip", "gpu", 1000, {"float32": 1e12}, 1e11)


def make(names: str, links: list[Link], switches: str = "") -> Cluster:
    return Cluster("c", tuple(Device(n, SPEC) for n in names), tuple(links), tuple(switches))


def crossed(cluster: Cluster, a: int, b: int) -> list[int]:
    routes, start = cluster.routes, a * cluster.num_devices + b
    return routes.directions[routes.offsets[start] : routes.offsets[start + 1]].tolist()
