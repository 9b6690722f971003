"""Clusters by name.

`load_cluster` turns what a user writes after ``--cluster`` into a `Cluster`: a known name (``k80x4``), a known name
with overrides (``k80x4:link_bytes_per_s=2.5e9``), or a cluster file (see `envs.clusters.file`). The figures stand in
`envs.clusters.device_specs`, `envs.clusters.known` and ``data/machines.yaml``.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from envs.clusters.cluster import Cluster
from envs.clusters.device_specs import DEVICE_SPECS
from envs.clusters.file import CLUSTER_FILE_SUFFIXES, load_cluster_file
from envs.clusters.known import CLUSTERS as _KNOWN
from envs.clusters.known import cpu_cores
from envs.clusters.machines import load_machines
from graphs.errors import InputError, unknown_name

__all__ = ["CLUSTERS", "DEVICE_SPECS", "OVERRIDES", "load_cluster"]

CLUSTERS: dict[str, Cluster] = _KNOWN | load_machines(_KNOWN)
"""Known clusters by name, servers and cloud instances among them; of ``cpu_cores:K`` one as an example."""

OVERRIDES = {
    "link_bytes_per_s": "bandwidth of every link, each way",
    "link_latency_s": "latency of every link",
    "memory_bytes": "usable memory of every accelerator (of every device where there is none)",
    "launch_overhead_s": "time before an op computes, on every accelerator (or device)",
}
"""What may follow a cluster's name, and what it changes."""


_CPU_CORES = re.compile(r"cpu_cores:(?P<cores>[^:]*)(?P<colon>:?)(?P<overrides>.*)", re.DOTALL)
_NAMES = [name for name in CLUSTERS if not _CPU_CORES.match(name)] + ["cpu_cores:K"]


def load_cluster(spec: str) -> Cluster:
    """The cluster that a user means.

    Args:
        spec: One of `CLUSTERS`, ``cpu_cores:K`` with a number of cores, or the path of a cluster file (``.yaml`` or
            ``.yml``); each may be followed by a colon and overrides, ``key=value`` with commas between them, with the
            keys of `OVERRIDES`.

    Raises:
        InputError: The name, a key or a value is not known or not valid, or the file is not a cluster file.

    Example:
        >>> load_cluster("k80x2:link_bytes_per_s=2.5e9,memory_bytes=8e9").name
        'k80x2:link_bytes_per_s=2500000000.0,memory_bytes=8000000000'
    """
    if spec.endswith(CLUSTER_FILE_SUFFIXES):
        return load_cluster_file(spec, DEVICE_SPECS)
    cores = _CPU_CORES.match(spec)
    if cores:
        if not re.fullmatch("[0-9]{1,9}", cores["cores"]):
            raise InputError(f"cluster '{spec}': write a number of cores after the colon, for example cpu_cores:8")
        cluster = cpu_cores(int(cores["cores"]))
        return _override(cluster, spec, cores["overrides"]) if cores["colon"] else cluster
    name, colon, text = spec.partition(":")
    if name.endswith(CLUSTER_FILE_SUFFIXES):
        cluster = load_cluster_file(name, DEVICE_SPECS)
    elif name in CLUSTERS:
        cluster = CLUSTERS[name]
    else:
        error = unknown_name("cluster", name or spec, _NAMES)
        raise InputError(f"{error}; see: placement list clusters, or give a path to a .yaml file")
    return _override(cluster, spec, text) if colon else cluster


def _override(cluster: Cluster, spec: str, text: str) -> Cluster:
    """Apply the overrides in `text`, ``key=value,key=value``."""
    values: dict[str, float] = {}
    for part in text.split(","):
        key, _, number = (piece.strip() for piece in part.partition("="))
        if key not in OVERRIDES:
            raise unknown_name(f"override in cluster '{spec}':", key, OVERRIDES)
        if key in values:
            raise InputError(f"cluster '{spec}' sets {key} twice; set it once")
        values[key] = _number(spec, key, number)
    links = tuple(
        replace(
            link,
            bytes_per_s=values.get("link_bytes_per_s", link.bytes_per_s),
            latency_s=values.get("link_latency_s", link.latency_s),
            back_bytes_per_s=None if "link_bytes_per_s" in values else link.back_bytes_per_s,
            back_latency_s=None if "link_latency_s" in values else link.back_latency_s,
        )
        for link in cluster.links
    )
    only_cpus = all(device.spec.kind == "cpu" for device in cluster.devices)
    devices = tuple(
        device
        if device.spec.kind == "cpu" and not only_cpus
        else replace(
            device,
            spec=replace(
                device.spec,
                memory_bytes=int(values.get("memory_bytes", device.spec.memory_bytes)),
                launch_overhead_s=values.get("launch_overhead_s", device.spec.launch_overhead_s),
            ),
        )
        for device in cluster.devices
    )
    shown = [f"{key}={int(value) if key == 'memory_bytes' else value}" for key, value in sorted(values.items())]
    return replace(cluster, name=f"{cluster.name}:{','.join(shown)}", devices=devices, links=links)


def _number(spec: str, key: str, text: str) -> float:
    """The value of an override; bandwidths must be positive, other figures not negative."""
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"cluster '{spec}': {key} is '{text}', which is not a number (write for example 2.5e9)"
        ) from None
    if not math.isfinite(value) or value < 0 or (value == 0 and key == "link_bytes_per_s"):
        least = "positive" if key == "link_bytes_per_s" else "not negative"
        raise InputError(f"cluster '{spec}': {key} is {text}; it must be finite and {least}")
    if key == "memory_bytes" and value >= 2**63:
        raise InputError(f"cluster '{spec}': {key} is {text}; it must be less than 2^63")
    return value
