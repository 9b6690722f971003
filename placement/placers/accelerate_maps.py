"""Hugging Face Accelerate's own device maps, asked of Accelerate: what ``device_map="auto"`` would do to this model.

``infer_auto_device_map`` fills one GPU after the other in module order, by the bytes of parameters and buffers; with
``get_balanced_memory`` before it each gets about an equal share. Transformers' ``"auto"`` and ``"balanced"`` are both
the latter, ``"sequential"`` is the former alone. Neither looks at time, gradients or activations.

Under the target ``accelerate``, what Accelerate puts on the CPU or the disk is computed on the first GPU, at the price
of moving its weights in each step; such a map is no placement there and is not served. Modules that may not be parted
(`graphs.colocation.whole_modules`), but are by the map, go where most of their bytes are; the note says so.

A language model's step by its configuration (``hf:FOLDER``) has a row under the engine as well: Accelerate is asked of
the model as it would be loaded, without the cache of keys and values, of which it knows nothing. What it leaves to the
CPU is computed there in this row; the note says what fetching these weights in each step, which Accelerate does
instead, takes by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.colocation.whole_modules import prefixes
from graphs.computation_graph import INPUT
from graphs.errors import InputError, NotServedError
from graphs.extras import check_extra
from graphs.sources import HF_PREFIX, check_can_run, load_model
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.best import as_groups
from placement.placers.op_placement import within_constraints
from placement.text import seconds, size

_STEP = "model"
"""What a step by a configuration (`graphs.huggingface.LanguageStep`) calls the model."""


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
    source = None if problem.names is None else problem.names.graph
    configured = source is not None and source.startswith(HF_PREFIX)
    if problem.target != "accelerate" and not (configured and problem.can_part_groups):
        raise NotServedError(
            f"placer '{name}' is Accelerate's own device map; take --target accelerate, or a graph of hf:FOLDER",
            reason="for --target accelerate and hf:",
        )
    began = time.perf_counter()
    check_extra(f"placer '{name}'", module="accelerate", package="Accelerate", extra="accelerate")
    model = _model(problem, name)
    if problem.target != "accelerate":
        return _place_ops(problem, model, name, began, balanced=balanced)
    search = Search(problem, budget)
    gpus = _accelerators(problem)
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
    index = {path: gpus[device] for path, device in devices.items()}
    placement, parted = _groups(problem, _in_step(index) if configured else index)
    search.evaluate(placement[None])
    note = "auto is the same" if balanced else ""
    if parted:
        note = f"{note + '; ' if note else ''}{parted} groups that it parts are kept whole"
    placed = search.placed()
    return Placed(placement, placed.evaluations, placed.search_s, placed.config, note)


def _accelerators(problem: PlacementProblem) -> list[int]:
    return [i for i, device in enumerate(problem.cluster.devices) if device.spec.kind != "cpu"]


def _place_ops(problem: PlacementProblem, model: Any, name: str, began: float, *, balanced: bool) -> Placed:
    """The map of a model that has no weights, as a placement of single ops; what is left to the CPU is computed there.

    Raises:
        NotServedError: There is no accelerator, or its map leaves modules to the disk, or to a CPU that there is not.
    """
    cluster, gpus = problem.cluster, _accelerators(problem)
    cpus = [i for i in range(problem.num_devices) if i not in gpus]
    if not gpus:
        raise NotServedError(f"placer '{name}' divides a model over accelerators", reason="no accelerator")
    memory: dict[int | str, int] = {number: int(cluster.memory_bytes[index]) for number, index in enumerate(gpus)}
    devices = _ask(model, memory, balanced=balanced, cpu_bytes=int(cluster.memory_bytes[cpus[0]]) if cpus else 0)
    outside = [path for path, device in devices.items() if device == "disk"]
    if outside:
        raise NotServedError(
            f"placer '{name}': Accelerate leaves {len(outside)} modules to the disk, among them '{outside[0]}'; give a "
            "cluster with more memory",
            reason=f"leaves {len(outside)} modules to the disk",
        )
    index = {path: cpus[0] if device == "cpu" else gpus[device] for path, device in devices.items()}
    ops = within_constraints(problem, _of_modules(problem, _in_step(index))[problem.graph.module])
    evaluation = problem.evaluate_ops(ops[None])
    notes = ["auto is the same"] if balanced else []
    if "cpu" in devices.values():
        size_bytes = sum(_module_bytes(model, path) for path, device in devices.items() if device == "cpu")
        fetch_s = size_bytes / float(cluster.routes.bytes_per_s[cpus[0], gpus[0]])
        notes.append(f"leaves {size(size_bytes)} to the CPU, which Accelerate fetches in each step: {seconds(fetch_s)}")
    if not evaluation.feasible[0]:
        notes.append("knows no cache")
    return Placed(as_groups(problem, ops), 1, time.perf_counter() - began, {}, "; ".join(notes))


def _in_step(devices: Mapping[str, int]) -> dict[str, int]:
    """A map of a model by the paths that its modules have in the graph of a step by its configuration."""
    return {f"{_STEP}.{path}" if path else _STEP: device for path, device in devices.items()}


def _module_bytes(model: Any, path: str) -> int:
    """Bytes of the parameters and buffers of a module, or of one tensor."""
    owner, _, last = path.rpartition(".")
    part = model.get_submodule(owner) if owner else model
    found = getattr(part, last) if path else model
    if not hasattr(found, "parameters"):
        return int(found.numel() * found.element_size())
    tensors = {id(tensor): tensor for tensor in (*found.parameters(), *found.buffers())}
    return sum(int(tensor.numel() * tensor.element_size()) for tensor in tensors.values())


def _model(problem: PlacementProblem, name: str) -> Any:
    """The model behind the graph, with its weights; by a configuration without."""
    source = None if problem.names is None else problem.names.graph
    if source is not None and source.startswith(HF_PREFIX):
        from graphs.huggingface import load_huggingface_model  # imports torch, so not before it is needed

        return load_huggingface_model(source)
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


def _ask(model: Any, memory: dict[int | str, int], *, balanced: bool, cpu_bytes: int = 2**62) -> dict[str, Any]:
    """Accelerate's map; what does not fit is on ``"cpu"``, and what does not fit there on ``"disk"``."""
    import accelerate
    from accelerate.utils import get_balanced_memory

    whole = list(getattr(model, "_no_split_modules", None) or [])
    limits: dict[int | str, int] = {}
    limits.update(memory)
    limits["cpu"] = cpu_bytes  # last: Accelerate fills them in this order
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
    of_module = _of_modules(problem, devices, main=-1)
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


def _of_modules(problem: PlacementProblem, devices: Mapping[str, int], *, main: int | None = None) -> NDArray[np.int64]:
    """``int64[M]``: the device of each module of the graph; that of no entry is on `main`, by default the first one."""
    main = next(iter(devices.values())) if main is None else main
    made = np.full(len(problem.graph.module_names), main, dtype=np.int64)
    for m, path in enumerate(problem.graph.module_names):
        found = [devices[prefix] for prefix in prefixes(path) if prefix in devices]
        if found:
            made[m] = found[-1]
    return made
