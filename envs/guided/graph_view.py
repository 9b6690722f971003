"""The observation for graph networks: a node for each group, an edge for each pair where one reads what another makes.

A node's features are the fields of `envs.guided.fields` for its group while nothing is placed, so its start, finish and
outlook are those of moving it alone off the reference; then ``placed``, ``next`` (1 where it is so), and ``at``, 1 at
its device. An edge, from sender to reader, has one feature: its bytes over those of the edge with most.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.spaces import GraphInstance
from numpy.typing import NDArray

from envs.guided import fields
from envs.guided.guide import Guide


def graph_space(devices: int) -> gym.spaces.Graph:
    """Graphs with room for so many devices."""
    nodes = gym.spaces.Box(0.0, 1.0, (fields.size(devices) + 2 + devices,), np.float32)
    return gym.spaces.Graph(nodes, gym.spaces.Box(0.0, 1.0, (1,), np.float32))


class GraphView:
    """Shows the placements of one problem as graphs.

    Args:
        guide: The problem.
        devices: Devices that the space has room for.
    """

    def __init__(self, guide: Guide, devices: int) -> None:
        sender, reader, size = guide.traffic
        static = guide.rows(guide.reference, 0, devices).view
        self._devices = devices
        self._nodes = np.concatenate([static, np.zeros((len(static), 2 + devices), dtype=np.float32)], axis=1)
        self._links = np.stack([sender, reader], axis=1).astype(np.int32)  # [P, 2]
        self._edges = (size / max(float(size.max(initial=0.0)), 1.0)).astype(np.float32)[:, None]

    def show(self, placement: NDArray[np.integer], known: int) -> GraphInstance:
        """A placement of which the groups before `known` are placed, ``int[G]``."""
        nodes = self._nodes.copy()
        first = nodes.shape[1] - 2 - self._devices
        nodes[:known, first] = 1.0
        nodes[known : known + 1, first + 1] = 1.0
        nodes[np.arange(known), first + 2 + np.asarray(placement[:known])] = 1.0
        return GraphInstance(nodes=nodes, edges=self._edges.copy(), edge_links=self._links.copy())
