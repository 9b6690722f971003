"""Machines: what one is made of, found here or read from saved outputs, and the cluster that it is."""

from envs.machine.reading import load_topology
from envs.machine.this import this_machine
from envs.machine.to_cluster import MachineCluster

__all__ = ["MachineCluster", "load_topology", "this_machine"]
