"""Hugging Face Accelerate's own device maps, asked of Accelerate: what ``device_map="auto"`` would do to this model.

``infer_auto_device_map`` fills one GPU after the other in module order, by the bytes of parameters and buffers; with
``get_balanced_memory`` before it each gets about an equal share. Transformers' ``"auto"`` and ``"balanced"`` are both
the latter, ``"sequential"`` is the former alone. Neither looks at time, gradients or activations.

What Accelerate puts on the CPU or the disk is computed on the first GPU, at the price of moving its weights in each
step; such a map is no placement here and is not served. Modules that may not be parted
(`graphs.colocation.whole_modules`), but are by the map, go where most of their bytes are; the note says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.colocation.whole_modules import prefixes
from graphs.computation_graph import INPUT
from graphs.errors import InputError, NotServedError
from graphs.extras import check_extra
from graphs.sources import check_can_run, load_model
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions


def place_balanced(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """What ``device_map="auto"``, or ``"balanced"``, would do.

    Raises:
        NotServedError: As `_place`.
    """
    return _place(problem, budget, "accelerate_balanced", balanced=True)


def place_sequential(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """What ``device_map="sequential"`` would do.

    Raises:
        NotServedError: As `_place`.
    """
    return _place(problem, budget, "accelerate_sequential", balanced=False)


def _place(problem: PlacementProblem, budget: Budget, name: str, *, balanced: bool) -> Placed:
    """Ask Accelerate.

    Raises:
        NotServedError: The target is another, there is no model behind the graph, Accelerate is not installed, or its
            map leaves modules on the CPU or the disk.
    """
    if problem.target != "accelerate":
        raise NotServedError(
            f"placer '{name}' is Accelerate's own device map; take --target accelerate",
            reason="for --target accelerate",
        )
    search = Search(problem, budget)
    model = _model(problem, name)
    check_extra(f"placer '{name}'", module="accelerate", package="Accelerate", extra="accelerate")
    gpus = [i for i, device in enumerate(problem.cluster.devices) if device.spec.kind != "cpu"]
    memory: dict[int | str, int] = {
        number: int(problem.cluster.memory_bytes[index]) for number, index in enumerate(gpus)
    }
    devices = _ask(model, memory, balanced=balanced)
    outside = [path for path, device in devices.items() if not isinstance(device, int)]
    if outside:
        raise NotServedError(
            f"placer '{name}': Accelerate leaves {len(outside)} modules out of the accelerators, among them "
            f"'{outside[0]}'; give a cluster with more memory",
            reason=f"leaves {len(outside)} modules to the CPU",
        )
    placement, parted = _groups(problem, {path: gpus[device] for path, device in devices.items()})
    search.evaluate(placement[None])
    note = "auto is the same" if balanced else ""
    if parted:
        note = f"{note + '; ' if note else ''}{parted} groups that it parts are kept whole"
    placed = search.placed()
    return Placed(placement, placed.evaluations, placed.search_s, placed.config, note)


def _model(problem: PlacementProblem, name: str) -> Any:
    """The model behind the graph, with its weights."""
    source = None if problem.names is None else problem.names.graph
    try:
        if source is not None:
            check_can_run(source)
            return load_model(source)["model"]
    except InputError as error:
        raise NotServedError(f"placer '{name}': {error}", reason="no model behind the graph") from error
    raise NotServedError(
        f"placer '{name}' asks Accelerate, which needs the model; name a workload or python:module:function",
        reason="no model behind the graph",
    )


def _ask(model: Any, memory: dict[int | str, int], *, balanced: bool) -> dict[str, Any]:
    """Accelerate's map; what does not fit is on ``"cpu"``."""
    import accelerate
    from accelerate.utils import get_balanced_memory

    whole = list(getattr(model, "_no_split_modules", None) or [])
    limits: dict[int | str, int] = {}
    for number, size in memory.items():
        limits[number] = size
    limits["cpu"] = 2**62  # last: Accelerate fills them in this order
    logger = logging.getLogger("accelerate.utils.modeling")  # it warns of devices that this machine lacks
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        if balanced:
            limits = get_balanced_memory(model, limits, no_split_module_classes=whole)
        devices: dict[str, Any] = accelerate.infer_auto_device_map(model, limits, no_split_module_classes=whole)
    finally:
        logger.setLevel(level)
    return devices


def _groups(problem: PlacementProblem, devices: Mapping[str, int]) -> tuple[NDArray[np.int64], int]:
    """A placement of groups, and how many groups the map parts."""
    graph, group = problem.graph, problem.groups.group_of_op
    main = min(devices.values())
    of_module = np.full(len(graph.module_names), -1)
    for m, path in enumerate(graph.module_names):
        found = [devices[prefix] for prefix in prefixes(path) if prefix in devices]
        if found:
            of_module[m] = found[-1]
    votes = np.zeros((problem.num_groups, problem.num_devices))
    weight = graph.resident_bytes.sum(axis=1) + 1e-6
    known = (of_module[graph.module] >= 0) & ~graph.is_type(INPUT)
    np.add.at(votes, (group[known], of_module[graph.module[known]]), weight[known])
    owns = np.zeros_like(votes)
    mine = known & (graph.resident_bytes.sum(axis=1) > 0)
    np.add.at(owns, (group[mine], of_module[graph.module[mine]]), 1)
    votes[~votes.any(axis=1), main] = 1.0
    placement = np.where(problem.allowed, votes, -1.0).argmax(axis=1).astype(np.int64)
    return placement, int(((owns > 0).sum(axis=1) > 1).sum())
