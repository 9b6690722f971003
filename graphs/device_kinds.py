"""Keeping ops of some types on some kinds of device: `restrict_kinds`.

A runtime may have no kernel of an operator for a device, and keep it on the host: `TopK` or `NonMaxSuppression`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from graphs.computation_graph import DEVICE_KINDS, ComputationGraph
from graphs.errors import InputError, unknown_name


def parse_kinds(text: str) -> dict[str, tuple[str, ...]]:
    """Read rules as they are written on the command line.

    >>> parse_kinds("TopK=cpu,aten::sort*=cpu+tpu")
    {'TopK': ('cpu',), 'aten::sort*': ('cpu', 'tpu')}

    Raises:
        InputError: The text is no such rules, or names an unknown kind of device.
    """
    rules: dict[str, tuple[str, ...]] = {}
    for rule in text.split(","):
        name, equals, kinds = rule.strip().rpartition("=")
        if not equals or not name.strip() or not kinds.strip():
            raise InputError(
                f"'{rule.strip()}' does not say where ops of a type may run; write TopK=cpu or TopK=cpu+gpu"
            )
        rules[name.strip()] = tuple(kind.strip() for kind in kinds.split("+"))
        for kind in rules[name.strip()]:
            if kind not in DEVICE_KINDS:
                raise unknown_name("device kind", kind, DEVICE_KINDS)
    return rules


def restrict_kinds(graph: ComputationGraph, rules: Mapping[str, Sequence[str]]) -> ComputationGraph:
    """Allow ops of some types only some kinds of device, of those that they were allowed before.

    Args:
        graph: Stays as it is.
        rules: Kinds of device by type of op; in a type ``*`` stands for any characters.

    Raises:
        InputError: The graph has no op of such a type, or no kind is left for one.
    """
    allowed = graph.allowed_kinds.copy()
    for pattern, kinds in rules.items():
        hit = np.array([fnmatchcase(name, pattern) for name in graph.type_names], dtype=bool)[graph.op_type]
        if not hit.any():
            raise unknown_name("type of op", pattern, graph.type_names)
        for kind in kinds:
            if kind not in DEVICE_KINDS:
                raise unknown_name("device kind", kind, DEVICE_KINDS)
        allowed[hit] &= np.uint8(sum(1 << DEVICE_KINDS.index(kind) for kind in set(kinds)))
        if (allowed == 0).any():
            name = graph.op_names[int(np.flatnonzero(allowed == 0)[0])]
            raise InputError(
                f"op '{name}' may run on no kind of device any more: none of {', '.join(kinds)} is left to it"
            )
    return replace(graph, allowed_kinds=allowed)
