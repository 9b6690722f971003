"""Everything on the host's CPU: the paper's "single CPU"."""

from __future__ import annotations

import numpy as np

from envs.problem import PlacementProblem
from graphs.errors import NotServedError
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.single_device import all_on


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Place every group on the cluster's first CPU.

    Raises:
        NotServedError: The cluster has no CPU.
    """
    cpus = [i for i, device in enumerate(problem.cluster.devices) if device.spec.kind == "cpu"]
    if not cpus:
        raise NotServedError(
            f"placer 'cpu' needs a CPU, but cluster '{problem.cluster.name}' has none", reason="no CPU in the cluster"
        )
    search = Search(problem, budget)
    fits = search.evaluate(all_on(problem, cpus[0])[None]).feasible.all()
    name = problem.cluster.device_names[cpus[0]]
    return search.placed(note=f"on {name}" if fits else f"the model does not fit on {name}")
