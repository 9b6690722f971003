"""Problems that no name says: their graph was made by hand, or their groups were."""

from __future__ import annotations

import networkx as nx
import numpy as np

import placement
from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs.colocation.groups import make_groups
from graphs.networkx_graph import from_networkx
from graphs.synthetic import random_graph


def of_a_networkx_graph() -> PlacementProblem:
    graph = nx.DiGraph([("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")], name="diamond")
    for name, node in graph.nodes.items():
        node |= {"flops": 10**9, "output_bytes": 1000, "module": name}
    return placement.make_problem(from_networkx(graph), load_cluster("k80x2"))


def with_groups_of_its_own() -> PlacementProblem:
    graph = random_graph(10, seed=3, name="grouped")
    groups = make_groups(np.arange(10) // 4, ["x", "y", "z"], ["x", "y", "z"], [0, 0, 0])
    return PlacementProblem(graph, groups, load_cluster("k80x2"), "fifo")
