"""A lower bound for the step time of any pipeline of a step's segments, whatever its stages, devices and order.

Proofs, for segments ``k`` with times ``F``, ``I`` and ``W`` on their fastest device and ``M`` micro-batches:

- *Work*: every segment's actions and updates run somewhere; the devices together do ``sum_k M (F + I + W) + U``, so
  one of ``D`` does at least the ``D``-th part.
- *Window*: one device does all that segment ``k`` does, ``M (F + I + W)``. It cannot begin before the first
  micro-batch has passed the segments before: ``sum_{j<k} F_j``. And after the last ``I`` of ``k`` that micro-batch has
  still to pass the segments before on its way back: ``sum_{j<k} I_j``; by then all ``F`` and ``I`` of ``k`` are done,
  its ``W`` need not be.
- *Path*: one micro-batch passes all segments forth and back.

Transfers are left out, which only makes the bound lower.
"""

from __future__ import annotations

import numpy as np

from envs.pipelines.segments import Segments


def lower_bound_s(segments: Segments) -> float:
    """Seconds that no pipeline of these segments is below."""
    cluster, count = segments.cluster, segments.micro_batches
    accelerators = [i for i, device in enumerate(cluster.devices) if device.spec.kind != "cpu"]
    usable = accelerators or list(range(cluster.num_devices))
    forward, given, _ = segments.action_s[usable].min(axis=0).T
    whole = segments.action_s[usable].sum(axis=2).min(axis=0)  # F, I and W of a segment are on one device
    update = segments.update_s[usable].min(axis=0)
    both = segments.action_s[usable][:, :, :2].sum(axis=2).min(axis=0)
    total = (count * segments.action_s[usable].sum(axis=2) + segments.update_s[usable]).min(axis=0)
    before = np.concatenate([[0.0], np.cumsum(forward)[:-1]])
    back = np.concatenate([[0.0], np.cumsum(given)[:-1]])
    return float(
        max(
            total.sum() / len(usable),
            (before + count * whole + update).max(),
            (before + count * both + back).max(),
            forward.sum() + given.sum(),
        )
    )
