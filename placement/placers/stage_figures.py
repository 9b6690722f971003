"""What stages take at a glance, compiled: the figures behind the features of `placement.placers.stage_search`."""

from __future__ import annotations

import numpy as np

from envs.pipelines.kernel import compiled


@compiled
def figures(bounds, devices, counts, keeps_all, work_s, kept, fixed, at_cut, both_ways, latency_s, bytes_per_s, room,
            micro_batches):  # fmt: skip
    """``float64[C, 7]`` of ``C`` sets of stages; see `placement.placers.stage_search.FEATURES` for the columns.

    Args:
        bounds: ``int64[C, S + 1]``: the first segment of each stage, and the number of segments behind the last.
        devices: ``int64[C, S]``.
        counts: ``int64[C]``, stages of each set; what is behind them in the rows is not read.
        keeps_all: ``bool[C]``: whether all micro-batches are in flight at once.
        work_s: ``float64[D, K + 1]``, running sums of the seconds of a micro-batch.
        kept: ``float64[K + 1]``, running sums of the bytes that each micro-batch in flight keeps.
        fixed: ``float64[K + 1]``, of the bytes that are there for the whole step.
        at_cut: ``float64[K + 1]``, bytes that cross there.
        both_ways: ``float64[K + 1]``, the same with the gradients.
        latency_s: ``float64[D, D]``.
        bytes_per_s: ``float64[D, D]``.
        room: ``float64[D]``, memory.
        micro_batches: ``M``.
    """
    made = np.zeros((len(bounds), 7))
    of_device, full = np.zeros(len(room)), np.zeros(len(room))
    for c in range(len(bounds)):
        of_device[:] = 0.0
        full[:] = 0.0
        stages, total_s, crossing_s = counts[c], 0.0, 0.0
        for s in range(stages):
            a, b, device = bounds[c, s], bounds[c, s + 1], devices[c, s]
            stage_s = work_s[device, b] - work_s[device, a]
            total_s += stage_s
            of_device[device] += stage_s
            ahead = micro_batches if keeps_all[c] else min(stages - s, micro_batches)
            need = fixed[b] - fixed[a] + micro_batches * (at_cut[a] + at_cut[b])
            full[device] += (need + ahead * (kept[b] - kept[a] + at_cut[a])) / room[device]
            if s == 0:
                made[c, 5] = stage_s
            if s == stages - 1:
                made[c, 6] = stage_s
            if s > 0 and devices[c, s - 1] != device:
                before = devices[c, s - 1]
                crossing_s += 2 * latency_s[before, device] + both_ways[a] / bytes_per_s[before, device]
        most_s = of_device.max()
        made[c, 0] = total_s + crossing_s + (micro_batches - 1) * most_s
        made[c, 1] = full.max()
        made[c, 2] = most_s
        made[c, 3] = (of_device * of_device).sum()
        made[c, 4] = crossing_s
    return made
