"""What a person decides beforehand: ops that must or must not be on some devices, and memory that is kept free.

A constraint on ops is written ``PATTERN=DEVICES``. The pattern is a name with the wildcards ``*``, ``?`` and ``[...]``;
it means the ops whose name it matches, and all ops of the modules whose path it matches, with the modules inside them.
The devices are names with the same wildcards, several separated by ``|``: ``encoder.*=gpu:0``, ``embed*=gpu:0|gpu:1``,
``decoder=gpu:*``. Inputs that are sent in every step start where the machine has them, so a pattern that means other
ops as well passes over them. A reservation is written ``DEVICES=SIZE``: ``gpu:0=2GB``.

Letters: ``N`` ops, ``D`` devices.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}

_MOST_COMPARED, _MOST_SHOWN = 20_000, 12
"""Names that are looked through for one like a pattern that means nothing, and that are listed then."""

Asked = Mapping[str, str | int | float | Sequence[str]] | Sequence[str]
"""How constraints are given in Python: ``{"encoder.*": "gpu:0"}``, with a list for several devices, or
``["encoder.*=gpu:0"]``."""


@dataclass(frozen=True)
class Constraints:
    """What was decided beforehand, in the words in which it was given.

    Attributes:
        pin: ``PATTERN=DEVICES``: these ops are on one of these devices.
        forbid: ``PATTERN=DEVICES``: these ops are on none of them.
        reserve: ``DEVICES=SIZE``: so much of the memory of each of them is kept free.
    """

    pin: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    reserve: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pin or self.forbid or self.reserve)


def make_constraints(
    pin: Asked | None = None, forbid: Asked | None = None, reserve: Asked | None = None
) -> Constraints:
    """Constraints as they are given in Python or on the command line.

    Raises:
        InputError: One of them is not written as it should be.
    """
    made = Constraints(_texts("pin", pin), _texts("forbid", forbid), _texts("reserve", reserve))
    for text in made.reserve:
        _reservation(text)
    return made


def reserve_memory(cluster: Cluster, constraints: Constraints) -> Cluster:
    """The cluster with the memory that is to be kept free; what was kept free on these devices before is replaced.

    Raises:
        InputError: There is no such device, or it has less memory.
    """
    devices = list(cluster.devices)
    for text in constraints.reserve:
        names, size = _reservation(text)
        for d in _devices(f"reserve '{text}'", names, cluster):
            have = devices[d].spec.memory_bytes
            if size > have:
                raise InputError(
                    f"reserve '{text}': device '{devices[d].name}' has {have / 1e9:.2f} GB in all; reserve less"
                )
            devices[d] = replace(devices[d], reserved_bytes=size)
    return replace(cluster, devices=tuple(devices)) if constraints.reserve else cluster


def constrain(
    graph: ComputationGraph, cluster: Cluster, constraints: Constraints, allowed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """``bool[N, D]``: where each op may be, of the devices that it may be on anyway.

    Args:
        graph: The step.
        cluster: The devices.
        constraints: What was decided beforehand.
        allowed: ``bool[N, D]``, of `envs.allowed.allowed_devices`.

    Raises:
        InputError: A constraint means no op or no device, or cannot hold: an op may not be there, two constraints
            contradict each other, or ops that must share a device could be on none. The message says which.
    """
    if not (constraints.pin or constraints.forbid):
        return allowed
    made = allowed.copy()
    said: list[tuple[str, NDArray[np.bool_]]] = []
    for word, texts in (("pin", constraints.pin), ("forbid", constraints.forbid)):
        for text in texts:
            name = f"{word} '{text}'"
            pattern, _, names = text.rpartition("=")
            ops = _ops(name, pattern, graph)
            devices = np.zeros(cluster.num_devices, dtype=np.bool_)
            devices[_devices(name, names, cluster)] = True
            there = devices if word == "pin" else ~devices
            nowhere = np.flatnonzero(ops & ~(allowed & there).any(axis=1))
            if nowhere.size:
                op = int(nowhere[0])
                may = [cluster.device_names[d] for d in np.flatnonzero(allowed[op])]
                raise InputError(
                    f"{name} cannot hold: op '{graph.op_names[op]}' ({graph.type_names[graph.op_type[op]]}) may only "
                    f"be on {', '.join(may)}, by its kinds of device, dtype and profiled times; name other ops or "
                    "devices"
                )
            made[ops] &= there
            said.append((name, ops))
    _check_agree(graph, made, said)
    _check_bound(graph, made, said)
    return made


def _check_agree(graph: ComputationGraph, made: NDArray[np.bool_], said: list[tuple[str, NDArray[np.bool_]]]) -> None:
    nowhere = np.flatnonzero(~made.any(axis=1))
    if nowhere.size:
        op = int(nowhere[0])
        which = [name for name, ops in said if ops[op]]
        raise InputError(
            f"{' and '.join(which)} contradict each other: together they leave op '{graph.op_names[op]}' no device; "
            "change one of them"
        )


def _check_bound(graph: ComputationGraph, made: NDArray[np.bool_], said: list[tuple[str, NDArray[np.bool_]]]) -> None:
    """Raise where ops that must share a device could share none."""
    bound = np.flatnonzero(graph.colocation >= 0)
    sets, inverse = np.unique(graph.colocation[bound], return_inverse=True)
    common = np.ones((len(sets), made.shape[1]), dtype=np.bool_)
    np.logical_and.at(common, inverse.ravel(), made[bound])
    nowhere = np.flatnonzero(~common.any(axis=1))
    if nowhere.size:
        members = bound[inverse.ravel() == nowhere[0]]
        which = [name for name, ops in said if ops[members].any()]
        first = graph.op_names[members[0]]
        other = next(graph.op_names[m] for m in members[::-1] if (made[m] != made[members[0]]).any())
        raise InputError(
            f"{' and '.join(which)} cannot hold: ops '{first}' and '{other}' must share a device, and no device is "
            "left for all that must be there; give them the same devices"
        )


def _ops(name: str, pattern: str, graph: ComputationGraph) -> NDArray[np.bool_]:
    """``bool[N]``: the ops that a pattern means."""
    match = re.compile(fnmatch.translate(pattern)).match
    modules = np.array([_is_inside(match, path) for path in graph.module_names], dtype=np.bool_)
    named = np.fromiter((match(op) is not None for op in graph.op_names), dtype=np.bool_, count=graph.num_ops)
    ops = named | modules[graph.module]
    if not ops.any():
        known = [path for path in graph.module_names if path]
        near = difflib.get_close_matches(pattern, [*known, *graph.op_names[:_MOST_COMPARED]], n=1)
        hint = f"did you mean '{near[0]}'; " if near else ""
        shown = ", ".join(known[:_MOST_SHOWN]) + (" and more" if len(known) > _MOST_SHOWN else "")
        raise InputError(
            f"{name}: no op and no module of graph '{graph.name}' is called so; {hint}its modules: {shown or 'none'}"
        )
    elsewhere = ops & ~graph.is_sent_input
    return elsewhere if elsewhere.any() else ops


def _is_inside(match: object, path: str) -> bool:
    """Whether a pattern matches a module's path or that of a module around it."""
    parts = path.split(".")
    assert callable(match)
    return bool(path) and any(match(".".join(parts[:i])) for i in range(1, len(parts) + 1))


def _devices(name: str, names: str, cluster: Cluster) -> list[int]:
    """The devices that names with wildcards mean."""
    found = []
    for wanted in names.split("|"):
        matching = [d for d, device in enumerate(cluster.device_names) if fnmatch.fnmatchcase(device, wanted.strip())]
        if not matching:
            raise InputError(
                f"{name}: cluster '{cluster.name}' has no device '{wanted.strip()}'; its devices: "
                f"{', '.join(cluster.device_names)}"
            )
        found += matching
    return found


def _texts(what: str, given: Asked | None) -> tuple[str, ...]:
    """``PATTERN=DEVICES`` of each."""
    if given is None:
        return ()
    if isinstance(given, str):
        given = (given,)
    pairs = given.items() if isinstance(given, Mapping) else [(text, None) for text in given]
    texts = []
    for key, value in pairs:
        several = isinstance(value, Sequence) and not isinstance(value, str)
        said = "|".join(map(str, value)) if several else value  # type: ignore[arg-type]
        text = key if said is None else f"{key}={said}"
        left, _, right = text.rpartition("=") if isinstance(text, str) else ("", "", "")
        if not left.strip() or not right.strip():
            form = "DEVICE=SIZE, as in gpu:0=2GB" if what == "reserve" else "PATTERN=DEVICE, as in 'encoder.*=gpu:0'"
            raise InputError(f"{what} '{text}' is not of the form {form}")
        texts.append(f"{left.strip()}={right.strip()}")
    return tuple(texts)


def _reservation(text: str) -> tuple[str, int]:
    """Devices, and bytes."""
    names, _, size = text.rpartition("=")
    return names, parse_size(size, f"reserve '{text}'")


def parse_size(text: str, what: str) -> int:
    """Bytes as people write them: ``2GB``, ``512MiB``, ``4e9``.

    Args:
        text: The size.
        what: What it is of, for the message.

    Raises:
        InputError: It is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE)
    if found is None or (amount := float(found[1]) * _UNITS[(found[2] or "").lower()]) >= 2**63:
        raise InputError(f"{what}: '{text}' is not a size; write 2GB, 512MiB or a number of bytes")
    return int(amount)
