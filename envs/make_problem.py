"""From names to a problem: the only way there, for the command, the Python functions and the environments.

Letters: ``N`` ops, ``G`` co-location groups.
"""

from __future__ import annotations

import numpy as np

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.problem import PlacementProblem, ProblemNames
from graphs.colocation.groups import Groups, make_groups
from graphs.colocation.rules import colocate
from graphs.computation_graph import DTYPES, ComputationGraph
from graphs.errors import InputError
from graphs.sources import load_graph

DEFAULT_GROUPS = 256
"""Wanted number of co-location groups where nothing else is said."""


def make_problem(
    graph: str | ComputationGraph,
    cluster: str | Cluster,
    *,
    schedule: str = "priority",
    groups: int = DEFAULT_GROUPS,
) -> PlacementProblem:
    """Load, group and join: the problem that everything else takes.

    Args:
        graph: A graph, or what names one on the command line: a zoo name with optional sizes, a graph file, or
            ``python:package.module:function``.
        cluster: A cluster, or a known name with optional overrides, or a YAML file.
        schedule: One of `envs.simulator.SCHEDULES`.
        groups: Wanted number of co-location groups.

    Returns:
        The problem, which remembers what it was made from (`PlacementProblem.names`).

    Raises:
        InputError: Something of it does not exist or is not valid.
    """
    if groups < 1:
        raise InputError(f"the wanted number of groups is {groups}; it must be at least 1")
    # The cluster first: a typing error in its name should not wait for a capture.
    loaded_cluster = load_cluster(cluster) if isinstance(cluster, str) else cluster
    loaded_graph = load_graph(graph) if isinstance(graph, str) else graph
    made_groups = divide_by_dtype(loaded_graph, colocate(loaded_graph, wanted_groups=groups), loaded_cluster)
    names = ProblemNames(
        graph if isinstance(graph, str) else None, cluster if isinstance(cluster, str) else None, groups
    )
    return PlacementProblem(loaded_graph, made_groups, loaded_cluster, schedule, names=names)


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
    busy = (graph.flops > 0) | (graph.bytes_accessed > 0)
    anywhere = computes[graph.dtype] & busy  # bool[N]
    group = groups.group_of_op
    together = [graph.colocation == bound for bound in np.unique(graph.colocation[graph.colocation >= 0])]
    for members in together:
        anywhere[members] = anywhere[members & busy].all()
    settled = busy.copy()
    for producer, reader in zip(graph.edge_producer[::-1], graph.consumers[::-1], strict=True):
        if not busy[producer] and group[producer] == group[reader] and settled[reader]:
            anywhere[producer], settled[producer] = anywhere[reader], True
    for members in together:
        anywhere[members] = anywhere[members].all()
    names = [*groups.names, *(f"{name}/any_device" for name in groups.names)]
    families = [groups.family_names[family] for family in groups.family]
    mixed = np.bincount(group, ~anywhere, groups.num_groups) > 0  # bool[G]
    label = np.where(anywhere & mixed[group], groups.num_groups, 0) + group
    return make_groups(label, names, [*families, *families], [*groups.step.tolist()] * 2)
