"""From names to a problem: the only way there, for the command, the Python functions and the environments."""

from __future__ import annotations

import warnings

from envs.allowed import divide_groups, profile_warnings
from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.constraints import Asked, make_constraints, reserve_memory
from envs.problem import PlacementProblem, ProblemNames
from envs.targets import schedule_for, target_of
from graphs.after_updates import check_updates_are_last
from graphs.colocation.rules import colocate
from graphs.colocation.whole_modules import whole_module_groups
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError, InputWarning
from graphs.sources import load_graph

DEFAULT_GROUPS = 256
"""Wanted number of co-location groups where nothing else is said."""


def make_problem(
    graph: str | ComputationGraph,
    cluster: str | Cluster,
    *,
    schedule: str | None = None,
    groups: int = DEFAULT_GROUPS,
    target: str | None = None,
    pin: Asked | None = None,
    forbid: Asked | None = None,
    reserve: Asked | None = None,
) -> PlacementProblem:
    """Load, group and join: the problem that everything else takes.

    Args:
        graph: A graph, or what names one on the command line: a zoo name with optional sizes, a graph file, or
            ``python:package.module:function``.
        cluster: A cluster, or a known name with optional overrides, or a YAML file.
        schedule: One of `envs.simulator.SCHEDULES`; by default that of the target, ``priority`` for the engine.
        groups: Wanted number of co-location groups; for the target ``accelerate`` the modules decide.
        target: What is to run the placement, one of `envs.targets.TARGETS`; by default what runs the schedule, the
            engine where no schedule is given.
        pin: Which ops must be where, as in ``{"encoder.*": "gpu:0"}`` or ``["encoder.*=gpu:0"]``; patterns mean op
            names and module paths (`envs.constraints`). What shares a group with them goes along.
        forbid: Which ops must not be where.
        reserve: How much memory of which devices is kept free, as in ``{"gpu:0": "2GB"}``.

    Returns:
        The problem, which remembers what it was made from (`PlacementProblem.names`).

    Raises:
        InputError: Something of it does not exist or is not valid.

    Warns:
        InputWarning: The graph has profiled times for a device spec that the cluster lacks.
    """
    if groups < 1:
        raise InputError(f"the wanted number of groups is {groups}; it must be at least 1")
    schedule = schedule_for(target or target_of(schedule or "priority"), schedule)
    # The cluster first: a typing error in its name should not wait for a capture.
    constraints = make_constraints(pin, forbid, reserve)
    loaded_cluster = load_cluster(cluster) if isinstance(cluster, str) else cluster
    loaded_cluster = reserve_memory(loaded_cluster, constraints)
    loaded_graph = load_graph(graph) if isinstance(graph, str) else graph
    if target_of(schedule) == "accelerate":
        check_updates_are_last(loaded_graph, "run by a device map of Accelerate")
        made_groups = whole_module_groups(loaded_graph)
    else:
        made_groups = divide_groups(
            loaded_graph, colocate(loaded_graph, wanted_groups=groups), loaded_cluster, constraints
        )
    for message in profile_warnings(loaded_graph, loaded_cluster):
        warnings.warn(message, InputWarning, stacklevel=2)
    names = ProblemNames(
        graph if isinstance(graph, str) else None, cluster if isinstance(cluster, str) else None, groups
    )
    return PlacementProblem(loaded_graph, made_groups, loaded_cluster, schedule, names=names, constraints=constraints)
