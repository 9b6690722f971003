"""Hugging Face Accelerate's device map of a placement: a device for each module.

Accelerate's hooks send a module's arguments to its device when it is called, and move nothing else, so not every map
can be run. `graphs.colocation.whole_modules` says which modules may be cut and which must share a device; a map that
this module writes keeps to that, so the hooks never meet two devices in one op.

- Each group of whole modules goes to the device where most of its ops' time is (forward, backward and update); one that
  takes no time goes where most of its resident bytes are. A module whose ops were on several devices was *split*, and
  is named with the share of its time that moves. Nothing moves where the placement was searched among whole modules.
- What is with the step's inputs (parts that the model adds to them, for example) goes to the first accelerator.
- A module all of whose parts go to one device stands for its parts. No entry is inside another.
- Every parameter and buffer of the model is under one entry, also those that the step does not use. What the model
  itself owns has an entry by its name.

See https://huggingface.co/docs/accelerate/concept_guides/big_model_inference for the form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.allowed import main_device
from envs.problem import PlacementProblem
from envs.targets import SEQUENTIAL
from graphs.colocation.whole_modules import WholeModules, prefixes, whole_modules
from graphs.computation_graph import INPUT, PARAMETER, ComputationGraph
from graphs.errors import InputError
from placement.results.simulated import Simulated, simulate_ops
from placement.text import seconds

_MOST_LISTED = 10
"""Split modules that are named in a report."""


@dataclass(frozen=True)
class MovedModule:
    """A module whose ops do not all stay where the placement had them.

    Attributes:
        module: Its path; ``""`` is the model itself.
        device: Where its ops go; None where they go to several devices.
        moved: The share of its time that was elsewhere, from 0 to 1.
    """

    module: str
    device: str | None
    moved: float


@dataclass(frozen=True, eq=False)
class DeviceMap:
    """A placement of modules.

    Attributes:
        devices: In Accelerate's form: a GPU's number or ``"cpu"`` by path of module; ``""`` is the model. Accelerate
            sends the model's inputs to the lowest GPU that is used.
        moved: The modules that were split, those with most seconds elsewhere first.
        op_placement: ``int32[N]``, device indices: where the ops are then.
    """

    devices: dict[str, int | str]
    moved: tuple[MovedModule, ...]
    op_placement: NDArray[np.int32]


def encode_device_map(devices: DeviceMap) -> bytes:
    """The file that ``json.load`` turns into the argument ``device_map``."""
    return msgspec.json.format(msgspec.json.encode(devices.devices), indent=2) + b"\n"


def check_devices(problem: PlacementProblem) -> None:
    """Raise before a search where what it may find could not be written as a device map.

    Raises:
        InputError: An accelerator has no name in a device map.
    """
    used = np.flatnonzero(problem.op_allowed.any(axis=0))
    _device_names(problem, used.astype(np.int32))


def device_map(problem: PlacementProblem, op_placement: NDArray[np.integer]) -> DeviceMap:
    """The device map that comes nearest to a placement; see the module's text.

    Args:
        problem: What was placed.
        op_placement: ``int[N]``, device indices.

    Raises:
        InputError: A device of the placement has no name in a device map, or the graph has no modules to place.
    """
    graph = problem.graph
    before = np.asarray(op_placement, dtype=np.int32)
    modules = whole_modules(graph)
    device_of_group = _homes(problem, before, modules)
    names = _device_names(problem, device_of_group)
    if graph.module_names == ("",) and len(np.unique(before[~graph.is_type(INPUT)])) > 1:
        raise InputError(
            f"graph '{graph.name}' has no module paths, so no device map can say where its ops are; take --format json"
        )
    after = device_of_group[modules.group_of_op]
    entries = _entries(modules, device_of_group, graph)
    devices = {path: names[device] for path, device in entries.items()}
    return DeviceMap(devices, _moved(problem, before, after, entries), after)


def _device_names(problem: PlacementProblem, used: NDArray[np.int32]) -> dict[int, int | str]:
    """What a device map calls the devices that are used."""
    names: dict[int, int | str] = {}
    for index in np.unique(used).tolist():
        device = problem.cluster.devices[index]
        number = re.fullmatch(r"gpu:(\d+)", device.name)
        if device.spec.kind == "cpu":
            names[index] = "cpu"
        elif device.spec.kind == "gpu" and number is not None:
            names[index] = int(number[1])
        else:
            raise InputError(
                f"device '{device.name}' of cluster '{problem.cluster.name}' has no name in a device map, which knows "
                "gpu:0, gpu:1, ... and the CPU; give a cluster of such devices, or take another form"
            )
    return names


def _homes(problem: PlacementProblem, before: NDArray[np.int32], modules: WholeModules) -> NDArray[np.int32]:
    """``int32[G]``: where each group goes: to most of its time, else of its resident bytes, else of its ops.

    What is with the step's inputs goes to the main device.
    """
    graph = problem.graph
    shape = (len(modules.members), problem.num_devices)
    ops = np.flatnonzero(~graph.is_type(INPUT))
    where = (modules.group_of_op[ops], before[ops])
    time_s, resident, count = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    np.add.at(time_s, where, problem.op_time_s[before[ops], ops])
    np.add.at(resident, where, graph.resident_bytes[ops].sum(axis=1))
    np.add.at(count, where, 1)
    homes = count.argmax(axis=1)
    for column in (resident, time_s):
        homes = np.where(column.any(axis=1), column.argmax(axis=1), homes)
    homes[modules.main] = main_device(problem.cluster)
    return homes.astype(np.int32)


def _entries(modules: WholeModules, device_of_group: NDArray[np.int32], graph: ComputationGraph) -> dict[str, int]:
    """The modules that get an entry, those of the main group first: the outermost ones whose parts share a device."""
    order = [modules.main, *(g for g in range(len(modules.members)) if g != modules.main)]
    device_of = {path: int(device_of_group[group]) for group in order for path in modules.members[group]}
    under: dict[str, set[int]] = {}
    for path, device in device_of.items():
        for prefix in prefixes(path):
            under.setdefault(prefix, set()).add(device)
    entries: dict[str, int] = {}
    for path in device_of:
        outermost = next(prefix for prefix in prefixes(path) if len(under[prefix]) == 1)
        entries.setdefault(outermost, device_of[path])
    if "" not in entries:  # what the model itself owns is on the main device, whatever the entry says
        parameters = np.flatnonzero(graph.is_type(PARAMETER))
        own = [graph.op_names[op] for op in parameters if graph.module_names[graph.module[op]] == ""]
        main = int(device_of_group[modules.main])
        entries |= {name: main for name in own if not name.startswith("constant/")}
    number = {name: op for op, name in enumerate(graph.op_names)}
    for alias, op_name in graph.aliases.items():  # a module that is never called, but shares a parameter
        path = alias.rpartition(".")[0]
        if path and _entered(path, entries) is None:
            entries[path] = int(device_of_group[modules.group_of_op[number[op_name]]])
    return entries


def _entered(path: str, entries: Mapping[str, int]) -> str | None:
    """The entry that a module is in."""
    return next((prefix for prefix in prefixes(path) if prefix in entries), None)


def _moved(
    problem: PlacementProblem, before: NDArray[np.int32], after: NDArray[np.int32], entries: Mapping[str, int]
) -> tuple[MovedModule, ...]:
    graph = problem.graph
    op_s = problem.op_time_s[before, np.arange(graph.num_ops)]
    all_s = np.bincount(graph.module, weights=op_s, minlength=len(graph.module_names))
    moved_s = np.bincount(graph.module, weights=op_s * (before != after), minlength=len(graph.module_names))
    moved = []
    for m in np.argsort(-moved_s, kind="stable").tolist():
        if moved_s[m] > 0:
            entry = _entered(graph.module_names[m], entries)
            device = None if entry is None else problem.cluster.device_names[entries[entry]]
            moved.append(MovedModule(graph.module_names[m], device, float(moved_s[m] / all_s[m])))
    return tuple(moved)


def simulate_device_map(problem: PlacementProblem, devices: DeviceMap) -> Simulated:
    """One step as Accelerate runs it: whole modules, one op or transfer at a time, the inputs on the main device.

    Where the map has modules on the CPU as well as on accelerators, Accelerate computes them on the first GPU; the step
    is simulated as if the CPU did, and is not feasible.
    """
    return simulate_ops(problem.with_schedule(SEQUENTIAL), devices.op_placement, made_by="device map")


def device_map_report(simulated: Simulated, mapped: Simulated, devices: DeviceMap) -> str:
    """What the device map changes, in lines of text.

    Args:
        simulated: The step under the placement.
        mapped: The step under the device map.
        devices: The map.
    """
    change = mapped.step_time_s / simulated.step_time_s - 1 if simulated.step_time_s > 0 else 0.0
    moved = devices.moved
    lines = [
        f"{len(devices.devices):,} entries; under Accelerate, which runs one module at a time, the step takes "
        f"{seconds(mapped.step_time_s)}; under the placement {seconds(simulated.step_time_s)} ({change:+.1%})"
    ]
    if moved:
        lines.append(f"{len(moved):,} modules were split; of these parts of their time is now elsewhere:")
    for module in moved[:_MOST_LISTED]:
        where = "where its inputs are" if module.device is None else f"on {module.device}"
        lines.append(f"  {module.module or '(the model itself)'}: {module.moved:.0%} moved; all of it is {where}")
    if len(moved) > _MOST_LISTED:
        lines.append(f"  and {len(moved) - _MOST_LISTED:,} more")
    if moved and mapped.problem.target != simulated.problem.target:
        lines.append("To search among what Accelerate can run instead: placement train ... --target accelerate")
    if "cpu" in devices.devices.values() and len(set(devices.devices.values())) > 1:
        lines.append("Accelerate keeps what is on the CPU there but computes it on the first GPU: expect another time.")
    return "\n".join(lines)
