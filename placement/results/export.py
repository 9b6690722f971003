"""A placement in forms that other programs read: a table of ops (JSON or CSV), or Hugging Face Accelerate's device map.

A device map gives a device to modules, not to ops, so it says less than a placement:

- A module goes to the device where most of its ops' time is (forward, backward and update, over all of its calls); a
  module that takes no time goes where most of its resident bytes are. A module whose ops were on several devices was
  *split*, and is named with the share of its time that moves.
- A module all of whose parts go to one device stands for its parts. One whose parts do not has no entry; the
  parameters that it owns itself have entries of their own, by their names. No entry is inside another.
- A module without an entry runs its own ops where their inputs are, as Accelerate's hooks leave them: each op is on the
  device of the largest tensor that it reads.
- The step's inputs stay where the placement has them.

The step time of what the map says is simulated anew. See
https://huggingface.co/docs/accelerate/concept_guides/big_model_inference for the form.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.computation_graph import INPUT, PARAMETER, PHASES, ComputationGraph
from graphs.errors import InputError
from placement.results.simulated import Simulated, simulate_ops
from placement.text import seconds

_MOST_LISTED = 10
"""Split modules that are named in a report."""

_LOSS = "loss"

_COLUMNS = ("op", "type", "module", "module_call", "phase", "group", "device")


@dataclass(frozen=True)
class MovedModule:
    """A module whose ops do not all stay where the placement had them.

    Attributes:
        module: Its path; ``""`` is the model itself.
        device: Where its ops go; None where they go where their inputs are.
        moved: The share of its time that was elsewhere, from 0 to 1.
    """

    module: str
    device: str | None
    moved: float


@dataclass(frozen=True, eq=False)
class DeviceMap:
    """A placement of modules.

    Attributes:
        devices: In Accelerate's form: a GPU's number or ``"cpu"`` by path of module or parameter; ``""`` is the model.
        moved: The modules that were split, those with most seconds elsewhere first.
        op_placement: ``int32[N]``, device indices: where the ops are then.
    """

    devices: dict[str, int | str]
    moved: tuple[MovedModule, ...]
    op_placement: NDArray[np.int32]


def encode_ops_json(simulated: Simulated) -> bytes:
    """Every op with its device, and what the step then is, as JSON."""
    problem = simulated.problem
    content = {
        "graph": problem.graph.name,
        "cluster": problem.cluster.name,
        "schedule": problem.schedule,
        "step_time_s": simulated.step_time_s,
        "feasible": simulated.feasible,
        "ops": [dict(zip(_COLUMNS, row, strict=True)) for row in _rows(simulated)],
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def encode_ops_csv(simulated: Simulated) -> bytes:
    """Every op with its device as CSV, a header first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_rows(simulated))
    return text.getvalue().encode()


def encode_device_map(devices: DeviceMap) -> bytes:
    """The file that ``json.load`` turns into the argument ``device_map``."""
    return msgspec.json.format(msgspec.json.encode(devices.devices), indent=2) + b"\n"


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
    counted = ~graph.is_type(INPUT)
    names = _device_names(problem, before[counted])
    if graph.module_names == ("",) and len(names) > 1:
        raise InputError(
            f"graph '{graph.name}' has no module paths, so no device map can say where its ops are; take --format json"
        )
    homes = _homes(problem, before, counted)
    entries = _entries(graph, homes)
    devices = {path: names[device] for path, device in entries.items()}
    open_parameters = {
        op: path
        for op in np.flatnonzero(graph.is_type(PARAMETER)).tolist()
        if _entered(path := graph.module_names[graph.module[op]], entries) is None
    }
    devices |= {graph.op_names[op]: names[int(before[op])] for op in open_parameters}
    after = _place(graph, before, counted, entries, set(open_parameters))
    return DeviceMap(dict(sorted(devices.items())), _moved(problem, before, after, entries), after)


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
                "gpu:0, gpu:1, ... and the CPU; take --format json"
            )
    return names


def _homes(problem: PlacementProblem, before: NDArray[np.int32], counted: NDArray[np.bool_]) -> dict[str, int]:
    """Where each module goes by itself: to most of its time, else of its resident bytes, else of its ops."""
    graph = problem.graph
    shape = (len(graph.module_names), problem.num_devices)
    ops = np.flatnonzero(counted)
    where = (graph.module[ops], before[ops])
    time_s, resident, count = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    np.add.at(time_s, where, problem.op_time_s[before[ops], ops])
    np.add.at(resident, where, graph.resident_bytes[ops].sum(axis=1))
    np.add.at(count, where, 1)
    return {
        path: int(np.argmax(next((c for c in (time_s[m], resident[m]) if c.any()), count[m])))
        for m, path in enumerate(graph.module_names)
        if count[m].any()
    }


def _entries(graph: ComputationGraph, homes: Mapping[str, int]) -> dict[str, int]:
    """The modules that get an entry: the outermost ones all of whose parts go to one device.

    A module with parts and without parameters of its own follows its parts: an addition between them decides nothing.
    """
    owners = {graph.module_names[m] for m in graph.module[graph.is_type(PARAMETER)]}
    if _LOSS not in owners:  # what `graphs.capture` calls the loss, which is no module of the model
        homes = {path: home for path, home in homes.items() if path != _LOSS}
    has_parts = {prefix for path in homes for prefix in _prefixes(path)[:-1]}
    under: dict[str, set[int]] = {}
    for path, home in homes.items():
        decides = path not in has_parts or path in owners
        for prefix in _prefixes(path):
            under.setdefault(prefix, set()).update({home} if decides else ())
    entries: dict[str, int] = {}
    for path in sorted(under, key=lambda p: len(_prefixes(p))):
        if len(under[path]) == 1 and _entered(path, entries) is None:
            (entries[path],) = under[path]
    return entries


def _prefixes(path: str) -> list[str]:
    """A module and all that it is in, outermost first.

    >>> _prefixes("encoder.0")
    ['', 'encoder', 'encoder.0']
    """
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


def _entered(path: str, entries: Mapping[str, int]) -> str | None:
    """The entry that a module is in."""
    return next((prefix for prefix in _prefixes(path) if prefix in entries), None)


def _place(
    graph: ComputationGraph,
    before: NDArray[np.int32],
    counted: NDArray[np.bool_],
    entries: Mapping[str, int],
    fixed: set[int],
) -> NDArray[np.int32]:
    """Where the ops are under the entries, ``int32[N]``."""
    after = before.copy()
    entry_of = [_entered(path, entries) for path in graph.module_names]
    offsets, inputs = graph.input_tensors
    is_parameter = graph.is_type(PARAMETER)
    for op in np.flatnonzero(counted).tolist():
        entry = entry_of[graph.module[op]]
        if entry is not None:
            after[op] = entries[entry]
        elif op not in fixed:
            read = inputs[offsets[op] : offsets[op + 1]]
            made = [t for t in read.tolist() if not is_parameter[graph.tensor_producer[t]]]
            if made:
                largest = max(made, key=lambda t: int(graph.tensor_bytes[t]))
                producer = graph.tensor_producer[largest]
                after[op] = after[producer] if counted[producer] else before[op]
    # A parameter takes its update along, also where another module shares it.
    for op in np.flatnonzero(is_parameter & (graph.colocation >= 0)).tolist():
        after[graph.colocation == graph.colocation[op]] = after[op]
    return after


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
    """One step as the device map has it."""
    return simulate_ops(problem, devices.op_placement, made_by="device map")


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
        f"{len(devices.devices):,} entries; the step takes {seconds(mapped.step_time_s)} under them, "
        f"{seconds(simulated.step_time_s)} under the placement ({change:+.1%})"
    ]
    if moved:
        lines.append(f"{len(moved):,} modules were split; of these parts of their time is now elsewhere:")
    for module in moved[:_MOST_LISTED]:
        where = "where its inputs are" if module.device is None else f"on {module.device}"
        lines.append(f"  {module.module or '(the model itself)'}: {module.moved:.0%} moved; all of it is {where}")
    if len(moved) > _MOST_LISTED:
        lines.append(f"  and {len(moved) - _MOST_LISTED:,} more")
    if "cpu" in devices.devices.values() and len(set(devices.devices.values())) > 1:
        lines.append("Accelerate keeps what is on the CPU there but computes it on the first GPU: expect another time.")
    return "\n".join(lines)


def _rows(simulated: Simulated) -> list[tuple[str | int, ...]]:
    graph, groups = simulated.problem.graph, simulated.problem.groups
    devices = simulated.problem.cluster.device_names
    return [
        (
            graph.op_names[op],
            graph.type_names[graph.op_type[op]],
            graph.module_names[graph.module[op]],
            int(graph.module_call[op]),
            PHASES[graph.phase[op]],
            groups.names[groups.group_of_op[op]],
            devices[simulated.op_placement[op]],
        )
        for op in range(graph.num_ops)
    ]
