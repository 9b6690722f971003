"""The devices that a machine will be: accelerators, instances of divided ones, and cores. Pure functions.

Each accelerator, or each instance of one that is divided (MIG), is a device ``gpu:i``. Beside accelerators, each NUMA
node that has some is a device ``cpu:i``, with an equal share of the cores. Without accelerators each core is a device,
or where there are more than `MOST_CORES`, each of so many equal sets of cores.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import networkx as nx

from envs.machine.found import Found, show_cpus

MOST_CORES = 8
"""Cores of a machine without accelerators that are devices of their own."""


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


def _hosts(found: Found) -> list[list[int]]:
    """Sets of accelerators, each next to a NUMA node of its own."""
    keys = [gpu.node if gpu.node is not None else gpu.cpus or None for gpu in found.gpus]
    near: nx.Graph = nx.Graph()
    near.add_nodes_from(range(len(found.gpus)))
    for i, j in itertools.combinations(range(len(found.gpus)), 2):
        known = keys[i] is not None and keys[j] is not None
        if keys[i] == keys[j] if known else found.path(i, j) != "SYS":
            near.add_edge(i, j)
    groups = sorted(sorted(group) for group in nx.connected_components(near))
    # Virtual machines say SYS of every pair; so many NUMA nodes, each with one GPU, there are not.
    told = any(key is not None for key in keys)
    return groups if told or len(groups) <= 2 or len(groups) < len(keys) else [list(range(len(keys)))]


def _core_parts(found: Found) -> tuple[Part, ...]:
    cpus = found.usable_cpus or tuple(range(found.cores or 1))
    count = min(len(cpus), MOST_CORES)
    sets = [cpus[len(cpus) * i // count : len(cpus) * (i + 1) // count] for i in range(count)]
    return tuple(Part(f"cpu:{show_cpus(own)}", cpus=own, cores=len(own)) for own in sets)
