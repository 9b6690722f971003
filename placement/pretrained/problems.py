"""Placement problems from seeds: a family's network, a cluster in a shape that exists, memory that may be short.

A seed is all that is stored of a problem: the same seed makes the same problem, on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from envs.bounds import lower_bound_s
from envs.clusters.catalog import DEVICE_SPECS
from envs.clusters.cluster import Cluster, Device, Link
from envs.problem import PlacementProblem
from graphs.colocation.rules import colocate
from graphs.computation_graph import ComputationGraph
from graphs.errors import NoFeasiblePlacementError, unknown_name
from placement.placers.single_device import single_device_placements
from placement.pretrained.families import FAMILIES
from placement.pretrained.tape import Tape

SHORT_OF_MEMORY = 1 / 3
"""Share of the problems whose memory is short: one device could not hold the step."""

TRAINING = 0.8
"""Share of the problems that train; the others are inference."""

LEAST_HEADROOM = 0.05
"""A problem is worth learning from where the best single device takes this share more than the lower bound."""

_ACCELERATORS = ("k80", "p100", "v100", "t4", "a100")
_MOST_TRIES = 64


@dataclass(frozen=True)
class Drawn:
    """A problem and what it was drawn from.

    Attributes:
        seed: Its seed.
        family: Its family, one of `placement.pretrained.families.FAMILIES`.
        problem: The problem.
    """

    seed: int
    family: str
    problem: PlacementProblem


def draw(seed: int, *, families: Sequence[str] | None = None, groups: int = 64) -> Drawn:
    """The problem of a seed: the first that is worth learning from, of those that the seed's numbers make.

    Args:
        seed: 0 or more.
        families: Names to draw from; by default all.
        groups: Wanted number of co-location groups.

    Raises:
        InputError: There is no such family.
    """
    names = sorted(FAMILIES) if families is None else list(families)
    for name in names:
        if name not in FAMILIES:
            raise unknown_name("family", name, FAMILIES)
    rng = np.random.default_rng([seed, 0])
    for _ in range(_MOST_TRIES):
        family = names[int(rng.integers(len(names)))]
        graph = make_graph(family, rng)
        cluster = make_cluster(rng)
        problem = PlacementProblem(graph, colocate(graph, wanted_groups=groups), cluster)
        if rng.random() < SHORT_OF_MEMORY:
            problem = _short_of_memory(problem, rng)
        if is_worth_learning(problem):
            return Drawn(seed, family, problem)
    raise AssertionError(f"seed {seed} made {_MOST_TRIES} problems without headroom")


def draws(first: int, *, families: Sequence[str] | None = None, groups: int = 64) -> Iterator[Drawn]:
    """The problems of all seeds from `first` on."""
    seed = first
    while True:
        yield draw(seed, families=families, groups=groups)
        seed += 1


def make_graph(family: str, rng: np.random.Generator) -> ComputationGraph:
    """A network of a family."""
    tape = Tape(family)
    FAMILIES[family](tape, rng)
    return tape.graph(training=bool(rng.random() < TRAINING))


def make_cluster(rng: np.random.Generator) -> Cluster:
    """A host with 1 to 15 accelerators: behind one switch, behind a switch for every two or four, or all to all."""
    count = int(rng.choice([1, 2, 2, 3, 4, 4, 4, 6, 8, 8, 15]))
    first, second = (str(name) for name in rng.choice(_ACCELERATORS, 2))
    mixed = rng.random() < 0.2
    specs = [first if not mixed or number < (count + 1) // 2 else second for number in range(count)]
    accelerators = [Device(f"gpu:{number}", DEVICE_SPECS[spec]) for number, spec in enumerate(specs)]
    devices = (Device("cpu:0", DEVICE_SPECS["haswell_18c"]), *accelerators)
    to_host = float(rng.choice([2.5e9, 6e9, 10e9, 12e9, 25e9])), float(rng.choice([5e-6, 7.5e-6, 15e-6]))
    shape = str(rng.choice(["switch", "switches", "all to all"]))
    width = count if shape == "switch" else int(rng.choice([2, 4]))
    switches = tuple(f"switch:{number}" for number in range(-(-count // width)))
    links = [Link("cpu:0", name, *to_host) for name in switches]
    links += [Link(switches[number // width], f"gpu:{number}", *to_host) for number in range(count)]
    if shape == "all to all":
        near = float(rng.choice([22.5e9, 45e9, 135e9])), float(rng.choice([5e-6, 10e-6]))
        links += [Link(f"gpu:{a}", f"gpu:{b}", *near) for b in range(count) for a in range(b)]
    return Cluster(f"{shape} of {count}", devices, tuple(links), switches)


def is_worth_learning(problem: PlacementProblem) -> bool:
    """Whether some placement may fit, and may be quicker than any single device."""
    try:
        problem.check_can_fit()
        bound_s = lower_bound_s(problem)
    except NoFeasiblePlacementError:
        return False
    rows = np.stack([row for _, row in single_device_placements(problem)])
    alone_s = float(problem.evaluate(rows).cost_s().min())
    return alone_s > (1 + LEAST_HEADROOM) * bound_s


def _short_of_memory(problem: PlacementProblem, rng: np.random.Generator) -> PlacementProblem:
    """Accelerators' memory cut to what the step takes on one of them, or less; all together have more."""
    cluster = problem.cluster
    accelerators = [number for number, device in enumerate(cluster.devices) if device.spec.kind != "cpu"]
    one = single_device_placements(problem)[accelerators[0]][1]
    need = int(problem.evaluate(one[None]).peak_memory_bytes[0, accelerators[0]])
    share = rng.uniform(1.3, 2.2) / len(accelerators)
    memory = max(int(need * min(share, 0.95)), 1)
    devices = tuple(
        replace(device, spec=replace(device.spec, name=f"{device.spec.name}-short", memory_bytes=memory))
        if device.spec.kind != "cpu"
        else device
        for device in cluster.devices
    )
    return replace(problem, cluster=replace(cluster, devices=devices))
