"""Devices, links and clusters: those that are known by name, those read from files, and how they are made."""

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link

__all__ = ["Cluster", "Device", "DeviceSpec", "Link", "load_cluster"]
