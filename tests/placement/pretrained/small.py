"""Small problems and weights for the tests of the pretrained policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.clusters.catalog import DEVICE_SPECS
from envs.clusters.cluster import Cluster, Device, Link
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from placement.pretrained.config import PretrainConfig
from placement.pretrained.features import Known, joined, read
from placement.pretrained.network import Weights, initial

TINY = PretrainConfig(
    samples=4,
    rounds=1,
    imitation_updates=1,
    imitation_evaluations=20,
    groups=(12,),
    validation_problems=1,
    validate_every=2,
)
"""A training that takes a moment."""


def alike(count: int, *, memory_bytes: int | None = None) -> Cluster:
    """A host and accelerators that are alike in all but the name, behind one switch."""
    spec = DEVICE_SPECS["k80"]
    if memory_bytes is not None:
        spec = replace(spec, name="k80-short", memory_bytes=memory_bytes)
    devices = (Device("cpu:0", DEVICE_SPECS["haswell_18c"]), *(Device(f"gpu:{i}", spec) for i in range(count)))
    links = tuple(Link("switch:0", device.name, 10e9, 1e-5) for device in devices)
    return Cluster(f"alike{count}", devices, links, ("switch:0",))


def problem(
    seed: int = 0, *, ops: int = 20, count: int = 3, resident_bytes: int = 0, memory_bytes: int | None = None
) -> PlacementProblem:
    """A random graph, a group an op."""
    graph = random_graph(ops, seed=seed, locality=6, resident_bytes=resident_bytes)
    return PlacementProblem(graph, one_group_an_op(graph), alike(count, memory_bytes=memory_bytes))


def known(placed: PlacementProblem, seed: int = 0) -> Known:
    """A problem with some random placements known."""
    rng = np.random.default_rng(seed)
    rows = np.stack([_random(placed, rng) for _ in range(4)])
    found = read(placed, list(rows[:2]))
    return joined(found, rows[2:], found.charged_s(rows[2:]))


def wild(seed: int) -> Weights:
    """Weights far from any that were trained: each of them matters to each choice."""
    rng = np.random.default_rng(seed)
    return {
        name: (array + 0.3 * rng.standard_normal(array.shape)).astype(np.float32)
        for name, array in initial(seed).items()
    }


def _random(placed: PlacementProblem, rng: np.random.Generator) -> NDArray[np.int64]:
    chances = rng.random(placed.allowed.shape) * placed.allowed
    return chances.argmax(axis=1).astype(np.int64)
