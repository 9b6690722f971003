"""Where the layers of a language model are, and what each memory holds, in sentences: what a person sets up by hand.

Letters: ``N`` ops, ``D`` devices, ``L`` layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.layers import Layers, find_layers
from placement.text import size

WHOLE = 0.98
"""Share of a layer's resident bytes from which it is said to be on a device."""

_MOST_STRETCHES = 8
"""Stretches of layers that are listed; of more their number is said."""


def describe_fit(problem: PlacementProblem, peak_memory_bytes: NDArray[np.integer]) -> str:
    """What each device holds at its peak of what it has: ``"It fits: gpu:0 holds 21.0 of 22.8 GB, ..."``.

    Args:
        problem: What is placed.
        peak_memory_bytes: ``int[D]``, of a placement that fits.
    """
    used = [d for d in range(problem.num_devices) if peak_memory_bytes[d] > 0]
    parts = [
        f"{problem.cluster.device_names[d]} {'holds ' if i == 0 else ''}{_of(peak_memory_bytes[d], memory)}"
        for i, d in enumerate(used)
        for memory in [int(problem.cluster.memory_bytes[d])]
    ]
    return f"It fits: {_listed(parts)}." if parts else ""


def describe_layers(problem: PlacementProblem, ops: NDArray[np.integer]) -> str:
    """Which layers are on which device: ``"Layers 0-43 are on gpu:0, 44-79 on gpu:1; the head is on gpu:1."``.

    Empty where the graph has no layers in a row.

    Args:
        problem: What is placed.
        ops: ``int[N]``, device indices.
    """
    layers = find_layers(problem.graph)
    if layers is None:
        return ""
    places = layer_places(problem, layers, ops)
    stretches = [(place, [i for i, _ in run]) for place, run in groupby(enumerate(places), key=lambda entry: entry[1])]
    if len(stretches) > _MOST_STRETCHES:
        counts = {place: places.count(place) for place in dict.fromkeys(places)}
        parts = [f"{count} {'are ' if i == 0 else ''}on {place}" for i, (place, count) in enumerate(counts.items())]
        said = f"Of {layers.count} layers {_listed(parts)}, in {len(stretches)} stretches"
    else:
        parts = []
        for i, (place, numbers) in enumerate(stretches):
            first, last = numbers[0], numbers[-1]
            verb = "" if i else "is " if first == last else "are "
            parts.append(f"{first if first == last else f'{first}-{last}'} {verb}on {place}")
        said = f"{'Layer' if len(stretches[0][1]) == 1 else 'Layers'} {_listed(parts)}"
    ends = [
        f"{name} on {place}" for name, place in zip(("embeddings", "head"), _ends(problem, layers, ops), strict=True)
    ]
    return f"{said}; {_listed(ends)}."


def layer_places(problem: PlacementProblem, layers: Layers, ops: NDArray[np.integer]) -> list[str]:
    """``L`` names of devices, several with "and" where a layer is parted."""
    return [_place(problem, ops, layers.of_op == i) for i in range(layers.count)]


def _ends(problem: PlacementProblem, layers: Layers, ops: NDArray[np.integer]) -> tuple[str, str]:
    return _place(problem, ops, layers.of_op == -1), _place(problem, ops, layers.of_op == layers.count)


def _place(problem: PlacementProblem, ops: NDArray[np.integer], members: NDArray[np.bool_]) -> str:
    """The devices that hold almost all of what some ops keep or, where they keep nothing, that run them."""
    held = problem.graph.resident_bytes.sum(axis=1).astype(np.float64) * members
    if not held.any():
        held = members.astype(np.float64)
    share = np.bincount(ops, held, problem.num_devices) / max(held.sum(), 1.0)
    order = np.argsort(-share, kind="stable")
    enough = int(np.searchsorted(np.cumsum(share[order]), WHOLE)) + 1
    names = problem.cluster.device_names
    return _listed([names[d] for d in sorted(order[:enough].tolist())])


def _of(used: int, memory: int) -> str:
    text, limit = size(int(used)), size(memory)
    same_unit = text.split()[-1] == limit.split()[-1]
    return f"{text.split()[0] if same_unit else text} of {limit}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
