"""What would help most: the same step on clusters that are better in one thing, by simulation.

The placement is first improved by some tries on the cluster as it is. From there it is improved by the same number of
tries on the cluster as it is and on each better one, so that what a better cluster is good for only with another
placement counts, and what the tries find on any cluster does not.

Letters: ``N`` ops, ``G`` groups, ``D`` devices, ``B`` placements in a batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster, Device, Link
from envs.problem import PlacementProblem

TRIES = 256
"""Placements that are tried on each cluster."""

FASTER = 2.0
"""How much faster links, and how much larger memories, are."""

_BATCH = 32

_RUNS = (1, 1, 2, 4, 8, 16, 32)
"""Lengths of the runs of groups that a try moves to one device."""


@dataclass(frozen=True, eq=False)
class Remedy:
    """A cluster that is better in one thing.

    Attributes:
        name: ``"as it is"``, ``"links"``, ``"link"``, ``"memory"`` or ``"device"``.
        what: What is different, in words: ``"links twice as fast"``.
        problem: The problem on that cluster.
        unmoved_s: Step time of the placement as it stands; where it does not fit, what it would be if it did.
        step_time_s: After the tries; infinite where nothing fits.
        op_placement: ``int32[N]``, the placement after the tries.
        evaluations: Placements that were tried.
    """

    name: str
    what: str
    problem: PlacementProblem
    unmoved_s: float
    step_time_s: float
    op_placement: NDArray[np.int32]
    evaluations: int


def try_remedies(
    problem: PlacementProblem,
    ops: NDArray[np.integer],
    *,
    busiest_device: int,
    busiest_link: int | None,
    tries: int = TRIES,
    time_limit_s: float | None = None,
) -> tuple[Remedy, ...]:
    """The placement on the cluster as it is, then on better ones, the best of them first.

    Args:
        problem: What is placed.
        ops: ``int[N]``, the placement.
        busiest_device: One more like it is a remedy.
        busiest_link: Number of the link to make faster; None where nothing is sent.
        tries: Placements that are tried on each cluster.
        time_limit_s: Seconds for all of them together, after which the rest are left out; None for no limit.
    """
    given: NDArray[np.int32] = np.asarray(ops, dtype=np.int32)
    asked = list(_clusters(problem, busiest_device, busiest_link))
    share_s = None if time_limit_s is None else time_limit_s / (len(asked) + 1)
    deadline_s = None if time_limit_s is None else time.perf_counter() + time_limit_s
    begin, _, before = _improve(problem, given, new_device=None, tries=tries, time_limit_s=share_s, seed=0)
    found: list[Remedy] = []
    for name, what, cluster in asked:
        began_s = time.perf_counter()
        if found and deadline_s is not None and began_s >= deadline_s:
            break
        other = problem if cluster is problem.cluster else replace(problem, cluster=cluster, names=None)
        new = cluster.num_devices - 1 if cluster.num_devices > problem.num_devices else None
        left_s = None if share_s is None else share_s - (time.perf_counter() - began_s)
        unmoved_s = float(other.evaluate_ops(given[None]).step_time_s[0])
        starts = np.stack([given, begin])
        start = starts[int(other.evaluate_ops(starts).cost_s().argmin())]
        best, best_s, count = _improve(other, start, new_device=new, tries=tries, time_limit_s=left_s, seed=1)
        found.append(Remedy(name, what, other, unmoved_s, best_s, best, before + count))
    return (found[0], *sorted(found[1:], key=lambda remedy: remedy.step_time_s))


def _clusters(problem: PlacementProblem, busiest_device: int, link: int | None) -> Iterator[tuple[str, str, Cluster]]:
    cluster = problem.cluster
    yield "as it is", "the cluster as it is", cluster
    if cluster.links and problem.num_devices > 1:
        yield "links", "all links twice as fast", replace(cluster, links=tuple(_faster(x) for x in cluster.links))
        if link is not None and len(cluster.links) > 1:
            one = cluster.links[link]
            links = tuple(_faster(x) if i == link else x for i, x in enumerate(cluster.links))
            yield "link", f"the link between {one.a} and {one.b} twice as fast", replace(cluster, links=links)
    larger = tuple(replace(d, spec=replace(d.spec, memory_bytes=_larger(d.spec.memory_bytes))) for d in cluster.devices)
    shared = tuple(replace(m, memory_bytes=_larger(m.memory_bytes)) for m in cluster.shared_memories)
    yield "memory", "twice the memory on every device", replace(cluster, devices=larger, shared_memories=shared)
    device = cluster.devices[busiest_device]
    yield "device", f"one more {device.spec.name}", one_more(cluster, busiest_device)


def one_more(cluster: Cluster, like: int) -> Cluster:
    """The cluster with one more device, linked as one that it has is linked.

    Where that one is linked to others of its spec directly, the new one is linked to it in the same way. A memory that
    it shares with others is shared by the new one as well.
    """
    twin = cluster.devices[like]
    kind = twin.name.partition(":")[0]
    taken = {*cluster.device_names, *cluster.switches}
    name = next(f"{kind}:{i}" for i in range(len(taken) + 1) if f"{kind}:{i}" not in taken)
    links = [*cluster.links]
    spec_of = {device.name: device.spec for device in cluster.devices}
    to_twin: Link | None = None
    for link in cluster.links:
        if twin.name in (link.a, link.b):
            links.append(replace(link, a=name) if link.a == twin.name else replace(link, b=name))
            other = link.b if link.a == twin.name else link.a
            if to_twin is None and spec_of.get(other) == twin.spec:
                to_twin = replace(link, a=name, b=twin.name)
    if to_twin is not None:
        links.append(to_twin)
    if not cluster.links:  # a cluster of one device: as fast as its own memory
        links.append(Link(twin.name, name, twin.spec.memory_bytes_per_s, 0.0))
    shared = tuple(
        replace(m, devices=(*m.devices, name)) if twin.name in m.devices else m for m in cluster.shared_memories
    )
    devices = (*cluster.devices, Device(name, twin.spec))
    return replace(cluster, devices=devices, links=tuple(links), shared_memories=shared)


def _larger(memory_bytes: int) -> int:
    return min(round(memory_bytes * FASTER), 2**63 - 1)


def _faster(link: Link) -> Link:
    back = None if link.back_bytes_per_s is None else link.back_bytes_per_s * FASTER
    return replace(link, bytes_per_s=link.bytes_per_s * FASTER, back_bytes_per_s=back)


def _improve(
    problem: PlacementProblem,
    ops: NDArray[np.int32],
    *,
    new_device: int | None,
    tries: int,
    time_limit_s: float | None,
    seed: int,
) -> tuple[NDArray[np.int32], float, int]:
    """Try to move runs of groups, in the order of their families, and keep the best of each batch where it is better.

    The same seed draws the same tries on every cluster with as many devices. Where there is a new device, half of the
    tries move something there.

    Returns:
        The best placement, ``int32[N]``, its step time (infinite where it does not fit), and how many were tried.
    """
    deadline_s = None if time_limit_s is None else time.perf_counter() + time_limit_s
    rng = np.random.default_rng(0)
    best_s = float(problem.evaluate_ops(ops[None]).cost_s()[0])
    best, done = ops, 0
    order, group_of_op = problem.groups.family_order, problem.groups.group_of_op
    while done < tries and (deadline_s is None or time.perf_counter() < deadline_s):
        count = min(_BATCH, tries - done)
        moved = np.repeat(best[None], count, axis=0)
        for row in moved:
            run = int(rng.choice(_RUNS))
            begin = int(rng.integers(0, problem.num_groups))
            groups = order[begin : begin + run]
            device = int(rng.integers(0, problem.num_devices))
            if new_device is not None and rng.random() < 0.5:
                device = new_device
            groups = groups[problem.allowed[groups, device]]
            row[np.isin(group_of_op, groups)] = device
        bound_s = None if np.isinf(best_s) else best_s
        cost_s = problem.evaluate_ops(moved, abort_above_s=bound_s).cost_s()
        done += count
        i = int(cost_s.argmin())
        if cost_s[i] < best_s:
            best, best_s = moved[i].copy(), float(cost_s[i])
    return best, best_s, done
