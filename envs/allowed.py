"""Where each op may run, and groups divided so that each of them may run somewhere.

Letters: ``N`` ops, ``G`` co-location groups, ``D`` devices.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster
from envs.constraints import Constraints, constrain
from envs.cost_model import unknown_times, unused_profiles
from graphs.colocation.groups import Groups, make_groups
from graphs.computation_graph import ANY_KIND, DEVICE_KINDS, DTYPES, INPUT, ComputationGraph
from graphs.errors import InputError

UNCONSTRAINED = Constraints()


def allowed_devices(
    graph: ComputationGraph, cluster: Cluster, target: str = "engine", constraints: Constraints = UNCONSTRAINED
) -> NDArray[np.bool_]:
    """``bool[N, D]``: True where the op may run, and is wanted.

    See `envs.constraints` for what is wanted; the rest is what can be.

    That is where its kind of device and its dtype are allowed; what takes no time (a parameter, a view) needs no dtype.
    An op that was profiled on other specs only, and has neither FLOPs nor bytes, has no known time and may not run.
    Inputs that are sent in every step start on the host's CPU where the cluster has one and their time there is known.
    `envs.targets` says what is different for the target ``accelerate``.
    """
    return constrain(graph, cluster, constraints, _can_run(graph, cluster, target))


def _can_run(graph: ComputationGraph, cluster: Cluster, target: str) -> NDArray[np.bool_]:
    """``bool[N, D]``: what `allowed_devices` says where nothing was decided beforehand."""
    kind = np.array([DEVICE_KINDS.index(d.spec.kind) for d in cluster.devices])
    allowed = (graph.allowed_kinds[:, None] >> kind[None, :]) & 1 == 1  # [N, D]
    computes = np.array([[d.spec.computes(dtype) for dtype in DTYPES] for d in cluster.devices])
    allowed &= computes[:, graph.dtype].T | ~busy(graph)[:, None]
    allowed &= ~_unknown_times(graph, cluster)
    is_cpu = kind == DEVICE_KINDS.index("cpu")
    cpus = np.flatnonzero(is_cpu)
    if target == "accelerate":
        elsewhere = allowed & ~is_cpu
        allowed = np.where(elsewhere.any(axis=1)[:, None], elsewhere, allowed)
        if INPUT in graph.type_names:
            allowed[graph.is_type(INPUT)] = np.arange(cluster.num_devices) == main_device(cluster)
        return allowed
    if cpus.size and INPUT in graph.type_names:
        inputs = graph.is_sent_input & (graph.allowed_kinds == ANY_KIND) & allowed[:, cpus[0]]
        allowed[inputs] = False
        allowed[inputs, cpus[0]] = True
    return allowed


def main_device(cluster: Cluster) -> int:
    """The device to which Accelerate sends the step's inputs: the first accelerator, or the first device of all."""
    accelerators = [i for i, device in enumerate(cluster.devices) if device.spec.kind != "cpu"]
    return accelerators[0] if accelerators else 0


def busy(graph: ComputationGraph) -> NDArray[np.bool_]:
    """``bool[N]``: True for the ops that compute or move something."""
    return (graph.flops > 0) | (graph.bytes_accessed > 0)


def check_profiles(graph: ComputationGraph, cluster: Cluster, allowed: NDArray[np.bool_]) -> None:
    """Raise where the time of a profiled op is known on no device that it may be on.

    Args:
        graph: The step.
        cluster: The devices.
        allowed: Of `allowed_devices`.

    Raises:
        InputError: It names the op, the specs that it was profiled for and those of the cluster.
    """
    if not graph.time_s:
        return
    nowhere = np.flatnonzero(~allowed.any(axis=1) & _unknown_times(graph, cluster).any(axis=1))
    if nowhere.size:
        op = int(nowhere[0])
        specs = [name for name, times in graph.time_s.items() if not np.isnan(times[op])]
        raise InputError(
            f"graph '{graph.name}': op '{graph.op_names[op]}' has time_s for {_listed(specs, cluster)}, and neither "
            f"FLOPs nor bytes to estimate another from: no device of cluster '{cluster.name}' that it may be on has a "
            f"known time for it; give time_s for {' or '.join(_spec_names(cluster))}"
        )


def profile_warnings(graph: ComputationGraph, cluster: Cluster) -> list[str]:
    """A sentence where the graph has profiled times that no device of the cluster uses; none where it uses all."""
    unused = unused_profiles(graph, cluster)
    if not unused:
        return []
    return [
        f"graph '{graph.name}' has time_s for {_listed(unused, cluster)}, which no device of cluster '{cluster.name}' "
        f"is: those times are not used; its devices are {', '.join(_spec_names(cluster))}"
    ]


def divide_groups(
    graph: ComputationGraph, groups: Groups, cluster: Cluster, constraints: Constraints = UNCONSTRAINED
) -> Groups:
    """Divide groups so that dtypes, profiled times and what was decided beforehand keep no group from all devices.

    First `divide_by_dtype`, then `part_groups`.
    """
    groups = divide_by_dtype(graph, groups, cluster)
    return part_groups(graph, groups, allowed_devices(graph, cluster, constraints=constraints))


def part_groups(graph: ComputationGraph, groups: Groups, allowed: NDArray[np.bool_]) -> Groups:
    """Part the ops of each group that could be nowhere by where they may be.

    Such are the ops of a group that were profiled on different devices, or that are pinned to different ones. Ops that
    must share a device stay together, and all other groups stay as they are.

    Args:
        graph: The step.
        groups: Its groups.
        allowed: ``bool[N, D]``, where each op may be.
    """
    allowed = allowed.copy()
    for bound in np.unique(graph.colocation[graph.colocation >= 0]):
        members = graph.colocation == bound
        allowed[members] = allowed[members].all(axis=0)
    common = np.ones((groups.num_groups, allowed.shape[1]), dtype=np.bool_)
    np.logical_and.at(common, groups.group_of_op, allowed)
    nowhere = np.logical_not(common.any(axis=1))  # bool[G]
    if not nowhere.any():
        return groups
    patterns, pattern = np.unique(allowed, axis=0, return_inverse=True)
    pattern = np.where(nowhere[groups.group_of_op], pattern.ravel(), 0)
    label = pattern * groups.num_groups + groups.group_of_op
    names = [f"{name}/{number}" if number else name for number in range(len(patterns)) for name in groups.names]
    families = [groups.family_names[family] for family in groups.family]
    return make_groups(label, names, families * len(patterns), groups.step.tolist() * len(patterns))


def divide_by_dtype(graph: ComputationGraph, groups: Groups, cluster: Cluster) -> Groups:
    """Divide groups so that an op in a dtype that a device lacks does not keep the rest of its group from the device.

    A module that multiplies in int8 and scales in float32 is one group by structure, and could never be on a device
    without float32. Its ops that such a device computes become a group of their own. What takes no time, a parameter
    for example, goes with the first op of its group that reads it. The groups stay as they are where every device
    computes in float32, and ops that must share a device stay together.
    """
    if all(device.spec.computes("float32") for device in cluster.devices):
        return groups
    computes = np.array([all(d.spec.computes(dtype) for d in cluster.devices) for dtype in DTYPES])
    works = busy(graph)
    anywhere = computes[graph.dtype] & works  # bool[N]
    group = groups.group_of_op
    together = [graph.colocation == bound for bound in np.unique(graph.colocation[graph.colocation >= 0])]
    for members in together:
        anywhere[members] = anywhere[members & works].all()
    settled = works.copy()
    for producer, reader in zip(graph.edge_producer[::-1], graph.consumers[::-1], strict=True):
        if not works[producer] and group[producer] == group[reader] and settled[reader]:
            anywhere[producer], settled[producer] = anywhere[reader], True
    for members in together:
        anywhere[members] = anywhere[members].all()
    names = [*groups.names, *(f"{name}/any_device" for name in groups.names)]
    families = [groups.family_names[family] for family in groups.family]
    mixed = np.bincount(group, ~anywhere, groups.num_groups) > 0  # bool[G]
    label = np.where(anywhere & mixed[group], groups.num_groups, 0) + group
    return make_groups(label, names, [*families, *families], [*groups.step.tolist()] * 2)


def _unknown_times(graph: ComputationGraph, cluster: Cluster) -> NDArray[np.bool_]:
    """``bool[N, D]``: True where the time of an op is not known on a device."""
    if not graph.time_s:
        return np.zeros((graph.num_ops, cluster.num_devices), dtype=np.bool_)
    by_name = {device.spec.name: device.spec for device in cluster.devices}
    columns = {name: unknown_times(graph, spec) for name, spec in by_name.items()}
    return np.stack([columns[device.spec.name] for device in cluster.devices], axis=1)


def _spec_names(cluster: Cluster) -> list[str]:
    return list(dict.fromkeys(device.spec.name for device in cluster.devices))


def _listed(names: Sequence[str], cluster: Cluster) -> str:
    """Names of specs, the nearest one of the cluster behind what may be a typing error; at most four."""
    wanted, said = _spec_names(cluster), []
    for name in names[:4]:
        near = difflib.get_close_matches(name, wanted, n=1)
        said.append(f"'{name}' (did you mean '{near[0]}'?)" if near and near[0] not in names else f"'{name}'")
    return ", ".join(said) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
