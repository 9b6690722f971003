"""A placement of an ONNX model's operators, written into the model.

Two forms, both of which leave the computation as it is:

- ONNX Runtime's *layer annotation*: each node's metadata ``layer_ann`` names its device, and the session option
  ``session.layer_assignment_settings`` says which execution provider serves that name: ``gpu(=gpu_0); cpu(=cpu_0)``
  (https://onnxruntime.ai/docs, "Graph Partitioning with Annotations and Memory Constraints"). A session has one
  execution provider of a kind, so a placement on two GPUs cannot be said.
- ONNX's own *device configurations* (ONNX IR version 11, ``ModelProto.configuration``): the model names the devices,
  and each node says on which of them its inputs and outputs are. Whole tensors on single devices; nothing is sharded.

Nodes that have no op of their own in the graph, because what they make is constant or read by nobody, are left to the
runtime. Weights that are in files beside the model stay there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from graphs.computation_graph import INPUT, PARAMETER, ComputationGraph
from graphs.errors import InputError
from graphs.extras import check_extra
from placement.results.simulated import Simulated

CONFIGURATION = "placement"
"""The name of the device configuration."""

ANNOTATION = "layer_ann"
"""The key of a node's metadata that ONNX Runtime reads."""

_IR_VERSION = 11
"""The first that has device configurations."""


def annotated_for_onnxruntime(model_path: str | os.PathLike[str], simulated: Simulated) -> tuple[bytes, str]:
    """The model with layer annotations, and the value of ``session.layer_assignment_settings``.

    Args:
        model_path: The ``.onnx`` file that the graph was imported from.
        simulated: A step under the placement.

    Raises:
        InputError: The file is another model's, or the placement is on two devices of a kind.
    """
    model = _load(model_path, "ONNX Runtime's layer annotation")
    device_of_node = _device_of_node(model, simulated)
    devices = simulated.problem.cluster.devices
    used: dict[str, int] = {}
    for number, device in device_of_node.items():
        kind = devices[device].spec.kind
        first = used.setdefault(kind, device)
        if first != device:
            raise InputError(
                f"node '{_title(model.graph.node[number])}' is on '{devices[device].name}' and others are on "
                f"'{devices[first].name}', but a session of ONNX Runtime has one execution provider for each kind of "
                "device; place on one of each kind, or take --format onnx"
            )
    for number, device in device_of_node.items():
        node = model.graph.node[number]
        kept = [entry for entry in node.metadata_props if entry.key != ANNOTATION]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.metadata_props.add(key=ANNOTATION, value=_annotation(devices[device].name))
    settings = "; ".join(f"{kind}(={_annotation(devices[device].name)})" for kind, device in sorted(used.items()))
    return model.SerializeToString(), settings


def with_device_configuration(model_path: str | os.PathLike[str], simulated: Simulated) -> bytes:
    """The model with ONNX's own device configuration.

    Args:
        model_path: The ``.onnx`` file that the graph was imported from.
        simulated: A step under the placement.

    Raises:
        InputError: The file is another model's, or the installed ONNX is too old.
    """
    model = _load(model_path, "ONNX's device configuration")
    if not hasattr(model, "configuration"):
        raise InputError("ONNX's device configuration needs onnx 1.18 or later: pip install -U onnx")
    names = simulated.problem.cluster.device_names
    kept = [one for one in model.configuration if one.name != CONFIGURATION]
    del model.configuration[:]
    model.configuration.extend(kept)
    model.configuration.add(name=CONFIGURATION, num_devices=len(names), device=names)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    for number, device in _device_of_node(model, simulated).items():
        node = model.graph.node[number]
        others = [one for one in node.device_configurations if one.configuration_id != CONFIGURATION]
        del node.device_configurations[:]
        node.device_configurations.extend(others)
        on_device = node.device_configurations.add(configuration_id=CONFIGURATION)
        for tensor in dict.fromkeys([*node.input, *node.output]):
            if tensor:
                on_device.sharding_spec.add(tensor_name=tensor, device=[device])
    return bytes(model.SerializeToString())


def check_beside(model_path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Raise where the model has weights in files beside it, and the new one would be elsewhere.

    Raises:
        InputError: It names the folder.
    """
    folder = Path(model_path).resolve().parent
    if Path(out).resolve().parent != folder and any(
        _has_files(t) for t in _load(model_path, "export").graph.initializer
    ):
        raise InputError(
            f"model '{os.fspath(model_path)}' has weights in files beside it, which it names by their place; write the "
            f"new one into '{folder}', too"
        )


def _has_files(tensor: Any) -> bool:
    return bool(tensor.data_location)


def _load(model_path: str | os.PathLike[str], what: str) -> Any:
    check_extra(what, module="onnx", package="onnx", extra="onnx")
    import onnx

    try:
        return onnx.load(os.fspath(model_path), load_external_data=False)
    except Exception as error:  # protobuf's own errors have no common class
        raise InputError(
            f"'{os.fspath(model_path)}' cannot be read as an ONNX model: {error}; give its path"
        ) from error


def _device_of_node(model: Any, simulated: Simulated) -> dict[int, int]:
    """The device of each node of the model that has an op, by its number.

    Ops have the names of nodes, or of their first outputs; those that are there already are numbered.
    """
    graph = simulated.problem.graph
    number_of_op = {name: op for op, name in enumerate(graph.op_names)}
    taken, counts = set[str](), dict[str, int]()
    found: dict[int, int] = {}
    for number, node in enumerate(model.graph.node):
        base = name = node.name or next((output for output in node.output if output), "")
        while name in taken:
            counts[base] = counts.get(base, 0) + 1
            name = f"{base}_{counts[base]}"
        op = number_of_op.get(name)
        if op is not None and graph.type_names[graph.op_type[op]].rpartition("::")[2] == node.op_type:
            taken.add(name)
            found[number] = int(simulated.op_placement[op])
    _check_all_found(graph, taken)
    return found


def _check_all_found(graph: ComputationGraph, taken: set[str]) -> None:
    """Raise where an op is no node of the model: another model, or one inside of a loop or function."""
    works = ~graph.is_type(INPUT) & ~graph.is_type(PARAMETER)
    for op in np.flatnonzero(works).tolist():
        if graph.op_names[op] not in taken:
            raise InputError(
                f"op '{graph.op_names[op]}' is no node of the model: it is inside of a branch, loop or function, or "
                "the file is another model; give the file that the graph was imported from"
            )


def _title(node: Any) -> str:
    return node.name or next((output for output in node.output if output), node.op_type)


def _annotation(device: str) -> str:
    """A device's name without what the setting's grammar uses."""
    return "".join(character if character.isalnum() else "_" for character in device)
