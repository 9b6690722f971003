"""A problem as bytes that say all of it: for processes and machines that have none of its files."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from envs.clusters.catalog import DEVICE_SPECS
from envs.clusters.file import cluster_to_yaml, parse_cluster
from envs.evaluators import Simulated
from envs.problem import PlacementProblem, ProblemNames
from graphs.colocation.groups import Groups
from graphs.errors import InputError
from graphs.files import decode_graph, encode_graph
from graphs.reading import decode_json


class _GroupsRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Co-location groups; the fields are those of `graphs.colocation.groups.Groups`."""

    group_of_op: list[int]
    names: tuple[str, ...]
    family: list[int]
    family_names: tuple[str, ...]
    step: list[int]


class _ProblemRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A problem: the bytes of a graph file, the text of a cluster file, the bytes of its groups, and the rest."""

    graph: bytes
    cluster: str
    groups: bytes
    schedule: str
    names: tuple[str | None, str | None, int] | None
    format: Literal["device-placement-problem"] = "device-placement-problem"
    version: Literal[1] = 1


_GROUPS_DECODER = msgspec.json.Decoder(_GroupsRecord)


def encode_problem(problem: PlacementProblem) -> bytes:
    """All of a problem, as `decode_problem` reads it.

    Raises:
        InputError: Its step times are not simulated: what measures them is of this machine.
    """
    if not isinstance(problem.evaluator, Simulated) or problem.evaluator.given is not None:
        raise InputError("a problem whose step times are not simulated cannot be sent to workers; leave them out")
    names = problem.names
    record = _ProblemRecord(
        encode_graph(problem.graph),
        cluster_to_yaml(problem.cluster, DEVICE_SPECS),
        encode_groups(problem.groups),
        problem.schedule,
        None if names is None else (names.graph, names.cluster, names.groups),
    )
    return msgspec.msgpack.encode(record)


def decode_problem(content: bytes) -> PlacementProblem:
    """The problem that `encode_problem` was given.

    Raises:
        InputError: The bytes hold none.
    """
    try:
        record = msgspec.msgpack.decode(content, type=_ProblemRecord)
        return PlacementProblem(
            decode_graph(record.graph),
            decode_groups(record.groups),
            parse_cluster(record.cluster, DEVICE_SPECS),
            record.schedule,
            names=None if record.names is None else ProblemNames(*record.names),
        )
    except (msgspec.DecodeError, ValueError) as error:
        raise InputError(f"a worker was sent no problem ({error}); use the same version everywhere") from error


def encode_groups(groups: Groups) -> bytes:
    """Groups as a JSON document."""
    record = _GroupsRecord(
        groups.group_of_op.tolist(), groups.names, groups.family.tolist(), groups.family_names, groups.step.tolist()
    )
    return msgspec.json.encode(record) + b"\n"


def decode_groups(content: bytes) -> Groups:
    """Groups from such a document.

    Raises:
        ValueError: It is damaged; `msgspec.DecodeError` and `OverflowError` likewise.
    """
    record = decode_json(content, _GROUPS_DECODER)
    columns = [np.array(values, dtype=np.int32) for values in (record.group_of_op, record.family, record.step)]
    if columns[1].size and not 0 <= columns[1].min() <= columns[1].max() < len(record.family_names):
        raise ValueError("a group is of a family that is not named")
    return Groups(columns[0], record.names, columns[1], record.family_names, columns[2])
