"""Devices filled in module order by memory, as Hugging Face Accelerate's ``device_map="auto"`` does.

Accelerate, ``infer_auto_device_map`` with ``get_balanced_memory`` (https://huggingface.co/docs/accelerate, "Handling
big models"): each GPU but the last gets the model's bytes over the number of GPUs and a margin for the largest block;
modules are put on the first GPU until it is full, then on the next, and what is left on the CPU. Bytes here count the
optimizer's state and saved activations too, because a training step is placed.
"""

from __future__ import annotations

import numpy as np

from envs.footprint import group_bytes
from envs.problem import PlacementProblem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.searching.repair import repair

MARGIN = 1.25
"""Accelerate's factor on the largest block, which is added to each device's share."""


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Fill the accelerators one after the other, then the CPU."""
    search = Search(problem, budget)
    kinds = [device.spec.kind for device in problem.cluster.devices]
    accelerators = [i for i, kind in enumerate(kinds) if kind != "cpu"]
    order = accelerators + [i for i, kind in enumerate(kinds) if kind == "cpu"]
    sizes = group_bytes(problem).astype(np.float64)
    room = problem.cluster.memory_bytes.astype(np.float64)
    share = sizes.sum() / max(len(accelerators), 1) + MARGIN * sizes.max()
    for device in accelerators[:-1]:
        room[device] = min(room[device], share)
    placement = np.zeros(problem.num_groups, dtype=np.int64)
    at = 0
    for group in problem.groups.family_order:
        allowed = problem.allowed[group]
        if allowed.sum() == 1:
            placement[group] = allowed.argmax()
            room[placement[group]] -= sizes[group]
            continue
        while at < len(order) - 1 and room[order[at]] < sizes[group]:
            at += 1
        choices = [d for d in order[at:] + order[:at] if allowed[d]]
        placement[group] = choices[0]
        room[placement[group]] -= sizes[group]
    repair(search, placement)
    return search.placed()
