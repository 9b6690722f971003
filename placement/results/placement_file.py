"""The placement file: a placement as JSON that a user takes home, and the check that it fits a graph and a cluster.

The file holds nothing that differs between two runs of the same seed (no dates, no durations), its keys are sorted, and
it is replaced whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.clusters.catalog import load_cluster
from envs.clusters.cluster import Cluster
from envs.clusters.file import CLUSTER_FILE_SUFFIXES
from envs.problem import PlacementProblem
from graphs.computation_graph import DEVICE_KINDS, ComputationGraph
from graphs.errors import InputError
from graphs.files import write_atomically
from graphs.reading import decode_json, read_file

PLACEMENT: Final = "placement.json"
"""What the file is called in the directory of a run."""

STAGES: Final = "stages.json"
"""The file there that says which rank runs which modules, in which order (`placement.exports.stages`)."""

FORMAT: Final = "device-placement"
VERSION: Final = 1
UPDATE_SUFFIX: Final = "_update"
"""How the names of ops end that update a parameter."""

Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What fits an array of int64."""

_REMEDY = "copy it again from where it was written, or write a new one with 'placement train'"


class GraphReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which graph was placed: `ComputationGraph.name`, its digest, and ``N``."""

    name: str
    sha256: str
    num_ops: Size


class ClusterReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to: `Cluster.name`, its digest, and the names of its devices in their order."""

    name: str
    sha256: str
    devices: tuple[str, ...]


class PlacerReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What made the placement: the placer's name, its seed and its settings."""

    name: str
    seed: int
    config: dict[str, Any]


class PlacementResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a placement file, field for field.

    Attributes:
        graph: What was placed.
        cluster: Where to.
        schedule: The schedule under which the step time holds.
        step_time_s: Simulated seconds of a step; where `feasible` is False, what it would be if memory were no limit.
        feasible: True where every device's peak fits its memory and every op may be where it is.
        peak_memory_bytes: By device name.
        placer: What made it.
        ops: Device name by op name, every op of the graph.
    """

    format: Literal["device-placement"] = FORMAT
    version: Literal[1] = VERSION
    graph: GraphReference
    cluster: ClusterReference
    schedule: str
    step_time_s: float
    feasible: bool
    peak_memory_bytes: dict[str, Size]
    placer: PlacerReference
    ops: dict[str, str]


class _Header(msgspec.Struct):
    """What is read first, so that a file of another kind or version gets a message of its own."""

    format: str = ""
    version: int = 0


_HEADER = msgspec.json.Decoder(_Header)
_RESULT = msgspec.json.Decoder(PlacementResult)


def make_result(
    problem: PlacementProblem,
    placement: NDArray[np.integer] | Sequence[int],
    *,
    placer: str,
    seed: int,
    config: Mapping[str, Any] | None = None,
) -> PlacementResult:
    """Evaluate a placement and describe it.

    Args:
        problem: What was placed.
        placement: ``int[G]``, device indices of groups, or ``int[N]``, of ops.
        placer: Name of what made it.
        seed: Its seed.
        config: Its settings; anything that `msgspec` can write as JSON.
    """
    placement = np.asarray(placement)
    evaluation = problem.evaluate_one(placement)
    graph, cluster = problem.graph, problem.cluster
    devices = cluster.device_names
    op_devices = problem.to_ops(placement)
    return PlacementResult(
        graph=GraphReference(graph.name, graph.untimed.sha256, graph.num_ops),
        cluster=ClusterReference(cluster.name, cluster.sha256, devices),
        schedule=problem.schedule,
        step_time_s=float(evaluation.step_time_s[0]),
        feasible=bool(evaluation.feasible[0]),
        peak_memory_bytes={
            name: int(peak) for name, peak in zip(devices, evaluation.peak_memory_bytes[0], strict=True)
        },
        placer=PlacerReference(placer, seed, msgspec.json.decode(msgspec.json.encode(dict(config or {})))),
        ops={name: devices[device] for name, device in zip(graph.op_names, op_devices, strict=True)},
    )


def encode_placement(result: PlacementResult) -> bytes:
    """The bytes of a placement file: keys sorted, two spaces of indentation, so that a diff shows what moved."""
    return msgspec.json.format(msgspec.json.encode(result, order="sorted"), indent=2) + b"\n"


def write_placement(path: str | Path, result: PlacementResult) -> None:
    """Write a placement file; a reader sees the old file or the new one, never a part.

    Raises:
        InputError: The file cannot be written.
    """
    write_atomically(path, encode_placement(result))


def read_placement(path: str | Path) -> PlacementResult:
    """Read a placement file.

    Args:
        path: The file, or the run directory that it stands in.

    Raises:
        InputError: The file cannot be read, is not a placement file, or contradicts itself.
    """
    if Path(path).is_dir() and (Path(path) / PLACEMENT).exists():
        path = Path(path) / PLACEMENT
    data = read_file(path, "placement file")
    try:
        header = decode_json(data, _HEADER)
        if header.format != FORMAT:
            raise InputError(f"'{path}' is not a placement file: its field format is not '{FORMAT}'; {_REMEDY}")
        if header.version != VERSION:
            raise InputError(
                f"placement file '{path}' has version {header.version}, but this program reads version {VERSION}; "
                "write it again with this program, or use the program that wrote it"
            )
        result = decode_json(data, _RESULT)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise InputError(f"'{path}' is not a valid placement file: {error}; {_REMEDY}") from error
    _check_consistent(path, result)
    return result


def named_cluster(result: PlacementResult) -> Cluster | None:
    """The cluster that a placement was made for, by its name; None where that is no known cluster with these devices.

    What the name means may have changed since, or memory may have been reserved: compare the digests. Files are not
    read, because a placement may be somebody else's.
    """
    name = result.cluster.name
    if any(suffix in name for suffix in CLUSTER_FILE_SUFFIXES):
        return None
    try:
        found = load_cluster(name)
    except InputError:
        return None
    return found if found.device_names == result.cluster.devices else None


def check_placement(result: PlacementResult, graph: ComputationGraph, cluster: Cluster) -> NDArray[np.int32]:
    """Check that a placement is one of this graph, for devices of this cluster.

    A cluster whose links or memories differ from those that the placement was made for is accepted as long as it has
    the devices: what a placement would do elsewhere is a fair question.

    Args:
        result: The placement.
        graph: What it should place.
        cluster: Where to.

    Returns:
        ``int32[N]``, device indices, as `PlacementProblem.evaluate_ops` takes them.

    Raises:
        InputError: It is a placement of another graph, names a device that the cluster lacks, or puts an op on a kind
            of device that the op does not allow.
    """
    check_graph(result, graph)
    index = {name: i for i, name in enumerate(cluster.device_names)}
    for device in sorted(set(result.ops.values())):
        if device not in index:
            raise InputError(
                f"the placement was made for cluster '{result.cluster.name}' and uses device '{device}', which cluster "
                f"'{cluster.name}' lacks; its devices: {', '.join(cluster.device_names)}; give the cluster that the "
                "placement was made for, or place the graph for this one"
            )
    placement = np.array([index[result.ops[name]] for name in graph.op_names], dtype=np.int32)  # [N]
    kind = np.array([DEVICE_KINDS.index(device.spec.kind) for device in cluster.devices])
    refused = np.flatnonzero((graph.allowed_kinds >> kind[placement]) & 1 == 0)
    if refused.size:
        op, device = int(refused[0]), cluster.devices[placement[refused[0]]]
        raise InputError(
            f"the placement puts op '{graph.op_names[op]}' on device '{device.name}', but the op may not run on a "
            f"{device.spec.kind}; give it another device, or place the graph again"
        )
    return placement


def check_graph(result: PlacementResult, graph: ComputationGraph) -> None:
    """Check that a placement is one of this graph.

    Raises:
        InputError: It is one of another graph; the message says what differs.
    """
    where = f"the placement was made for graph '{result.graph.name}'"
    missing = next((name for name in graph.op_names if name not in result.ops), None)
    if missing is not None:
        other = _update_of(result, missing)
        if other is not None:
            raise InputError(
                f"{where} with updates such as '{other}', but here they are such as '{missing}'; give the optimizer "
                "that the graph was captured with, or capture it with this one and place that"
            )
        raise InputError(f"{where} and does not place op '{missing}' of graph '{graph.name}'; place this graph again")
    if len(result.ops) != graph.num_ops:
        known = set(graph.op_names)
        extra = next(name for name in result.ops if name not in known)
        raise InputError(f"{where} and places op '{extra}', which graph '{graph.name}' lacks; place this graph again")
    if result.graph.sha256 != graph.untimed.sha256:
        raise InputError(
            f"{where} (sha256 {result.graph.sha256[:12]}), which has the same ops as graph '{graph.name}' "
            f"(sha256 {graph.untimed.sha256[:12]}) but not the same sizes or edges; place this graph again"
        )


def _update_of(result: PlacementResult, name: str) -> str | None:
    """The op by which another optimizer updates the parameter that an op updates; None for other ops."""
    parameter, _, kind = name.rpartition("/")
    if not kind.endswith(UPDATE_SUFFIX):
        return None
    return next((op for op in result.ops if op.rpartition("/")[0] == parameter and op.endswith(UPDATE_SUFFIX)), None)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a placement file."""
    return msgspec.json.schema(PlacementResult)


def _check_consistent(path: str | Path, result: PlacementResult) -> None:
    if len(result.ops) != result.graph.num_ops:
        raise InputError(
            f"placement file '{path}' places {len(result.ops)} ops, but its field graph.num_ops is "
            f"{result.graph.num_ops}, so it is incomplete; {_REMEDY}"
        )
    for op, device in result.ops.items():
        if device not in result.cluster.devices:
            raise InputError(
                f"placement file '{path}': op '{op}' is on device '{device}', which its field cluster.devices lacks; "
                f"correct the one or the other, or {_REMEDY}"
            )
