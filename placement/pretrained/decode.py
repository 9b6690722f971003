"""Writes placements with the pretrained policy: group after group, each with the partial schedule in view.

Letters: ``B`` placements, ``G`` groups, ``D`` devices, ``F`` features of a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.guided import fields
from envs.guided.kernel import Scratch, look
from placement.pretrained.features import Known
from placement.pretrained.kernel import DEVICE_FEATURES, choose
from placement.pretrained.network import Encoded, Weights


@dataclass(frozen=True, eq=False)
class Decoded:
    """Placements, and what the policy saw when it made each decision.

    Attributes:
        placements: ``int64[B, G]``.
        outlook_s: ``float64[B, G]``: before each decision, a rough step time of the placement so far, its rest at the
            reference.
        x: ``float32[B, G, D, F]``, what was known of each device (`placement.pretrained.kernel`); empty where it was
            not to be kept.
        mask: ``bool[B, G, D]``, where each group might be; likewise.
        logits: ``float32[B, D]``, of the last group.
    """

    placements: NDArray[np.int64]
    outlook_s: NDArray[np.float64]
    x: NDArray[np.float32]
    mask: NDArray[np.bool_]
    logits: NDArray[np.float32]


def gumbel(rng: np.random.Generator, count: int, known: Known, temperature: float = 1.0) -> NDArray[np.float32]:
    """``float32[B, G, D]`` of Gumbel noise: the likeliest device with it is a sample of the policy."""
    shape = (count, known.problem.num_groups, known.problem.num_devices)
    return temperature * rng.gumbel(size=shape).astype(np.float32)


def decode(
    weights: Weights,
    known: Known,
    encoded: Encoded,
    noise: NDArray[np.float32],
    *,
    target: NDArray[np.integer] | None = None,
    keep: bool = False,
) -> Decoded:
    """Place all groups, in program order, once for each row of noise, on all cores; the result is the same on any.

    Args:
        weights: By name.
        known: The problem.
        encoded: By the same weights.
        noise: ``float32[B, G, D]``; zeros choose the likeliest device at each step.
        target: ``int64[B, G]``: devices that are chosen whatever the policy says; it is asked all the same.
        keep: Keep what was seen, to learn from.
    """
    guide, problem = known.guide, known.problem
    count, groups, devices = noise.shape
    placements = np.tile(guide.reference, (count, 1))
    chosen = np.full((count, groups), -1, dtype=np.int64) if target is None else np.ascontiguousarray(target, np.int64)
    now_s = np.full(count, guide.outlook_s)
    tried_s = np.empty((count, devices))
    view = np.empty((count, fields.size(devices)), dtype=np.float32)
    mask = np.empty((count, devices), dtype=np.bool_)
    load_s, fill_bytes = np.zeros((count, devices)), np.zeros((count, devices))
    outlook_s = np.empty((count, groups))
    kept = groups if keep else 1
    x = np.empty((count, kept, devices, DEVICE_FEATURES), dtype=np.float32)
    seen = np.empty((count, kept, devices), dtype=np.bool_)
    base, attention = np.ascontiguousarray(encoded.base), np.ascontiguousarray(encoded.attention, dtype=np.float32)
    units = np.empty((count, 2, base.shape[1]), dtype=np.float32)
    attended = np.empty((count, devices, len(attention)), dtype=np.float32)
    logits = np.full((count, devices), -np.inf, dtype=np.float32)
    names = ("into", "into_attention", "middle", "middle_bias", "out", "skip", "skip_attention")
    own = [weights[name] for name in names]

    def some(scratch: Scratch, first: int, last: int) -> None:
        for group in range(problem.num_groups):
            look(
                guide.picture, scratch, placements, group, group, now_s, tried_s, view, mask, devices, first, last
            )  # fmt: skip
            choose(  # type: ignore[call-arg]  # a list has as many as it has
                guide.picture, view, mask, tried_s, now_s, placements, known.devices, known.bytes, load_s, fill_bytes,
                base, attention, *own, noise, chosen, x, seen, outlook_s, units, attended, logits, group, first, last,
            )  # fmt: skip

    guide.in_parts(count, some)
    return Decoded(placements, outlook_s, x, seen, logits)
