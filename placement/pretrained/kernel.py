"""The compiled part of the pretrained policy: what it reads of a partial placement, and the device that it chooses.

`placement.pretrained.policy` scores with the same weights in torch, which learns; a test compares the two. Nothing is
allocated (see `envs.compiling.compiled`).

Letters: ``B`` placements, ``G`` groups, ``D`` devices, ``F`` features of a device, ``A`` heads of attention, ``U``
units.
"""

# numba compiles these functions, and their arguments' types are its own.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

import math

import numpy as np

from envs.compiling import called, compiled
from envs.guided.fields import (
    FINISH,
    IDLE,
    LAST,
    LOAD,
    MEMORY_LEFT,
    NUM_SCALARS,
    OUTLOOK,
    REFERENCE,
    SCALAR_AHEAD,
    SCALAR_PROGRESS,
    START,
    TIME,
    TOGETHER,
    TRAFFIC,
    TRANSFER,
    VOTES,
)

DEVICE_FEATURES = 26
"""``F``; `_read` says what they are."""

GAIN, IS_REFERENCE = 5, 16
"""The two that an untrained policy goes by: what the outlook gains there, and where the best known placement has it."""

_FINE = 0.02
"""A step that is longer by this share than the best that the group could give is half way to the end of its field."""


@called
def _squash(value, unit):
    """From 0 to 1, one half at `unit`."""
    return value / (value + unit) if value + unit > 0.0 else 0.0


@called
def _read(picture, view, mask, tried_s, now_s, placements, devices, need_bytes, load_s, fill_bytes, row, group, x):
    """Fill ``x[D, F]``: the group on each device that it may be on, beside the best of them; zeros elsewhere.

    | feature | what |
    |--:|---|
    | 0, 1 | the group's time there: log of it over the least; squashed by a mean group's |
    | 2, 3, 4 | its start and end there, after the earliest, squashed by a mean group's time; the end by a tenth of it |
    | 5, 6, 7 | gain of the outlook; its loss against the best device; 1 at the best |
    | 8, 9, 10 | seconds of transfers, as such and beyond the least; share of the bytes exchanged with groups there |
    | 11, 12, 13 | load; load with the group, over the least loaded, in fair shares; idle share |
    | 14, 15 | share of the memory that the estimates fill, with the group; share that residents leave |
    | 16, 17, 18 | where the reference has it; share of the votes; where those that votes put with it stand |
    | 19 | 1 at the device of the group placed last |
    | 20, 21, 22 | a CPU; log of how much slower the device is; nothing placed there yet |
    | 23, 24 | outlook against the reference's; share of the groups placed |
    | 25 | where those that the reference puts with it stand, by time |
    """
    count = tried_s.shape[1]
    least_s, start_s, finish_s, best_s, transfer, least_load_s = np.inf, np.inf, np.inf, np.inf, np.inf, np.inf
    whole_s = now_s[row] if now_s[row] > 0.0 else 1.0
    for device in range(count):
        if not mask[row, device]:
            continue
        at = NUM_SCALARS + device
        least_s = min(least_s, picture.group_time_s[group, device])
        start_s = min(start_s, view[row, at + START * count] * whole_s)
        finish_s = min(finish_s, view[row, at + FINISH * count] * whole_s)
        best_s = min(best_s, tried_s[row, device])
        transfer = min(transfer, view[row, at + TRANSFER * count])
        least_load_s = min(least_load_s, load_s[device])
    together_s = 0.0
    for other in range(group):
        if picture.reference[other] == picture.reference[group]:
            together_s += picture.group_time_s[other, placements[row, other]]
    unit_s = picture.unit_s[1]
    for device in range(count):
        for i in range(x.shape[1]):
            x[device, i] = 0.0
        if not mask[row, device]:
            continue
        at = NUM_SCALARS + device
        own_s = picture.group_time_s[group, device]
        late_s = view[row, at + FINISH * count] * whole_s - finish_s
        x[device, 0] = min(math.log((own_s + 1e-12) / (least_s + 1e-12)) / 2.0, 3.0)
        x[device, 1] = view[row, at + TIME * count]
        x[device, 2] = _squash(max(view[row, at + START * count] * whole_s - start_s, 0.0), unit_s)
        x[device, 3] = _squash(max(late_s, 0.0), unit_s)
        x[device, 4] = _squash(max(late_s, 0.0), 0.1 * unit_s)
        x[device, 5] = 2.0 * view[row, at + OUTLOOK * count] - 1.0
        x[device, 6] = _squash(max(tried_s[row, device] - best_s, 0.0) / whole_s, _FINE)
        x[device, 7] = 1.0 if tried_s[row, device] <= best_s * (1.0 + 1e-9) else 0.0
        x[device, 8] = view[row, at + TRANSFER * count]
        x[device, 9] = view[row, at + TRANSFER * count] - transfer
        x[device, 10] = view[row, at + TRAFFIC * count]
        x[device, 11] = view[row, at + LOAD * count]
        over = (load_s[device] + own_s - least_load_s) / picture.unit_s[0] if picture.unit_s[0] > 0.0 else 0.0
        x[device, 12] = min(over, 3.0)
        x[device, 13] = view[row, at + IDLE * count]
        x[device, 14] = min((fill_bytes[device] + need_bytes[group]) / max(picture.memory_bytes[device], 1.0), 2.0)
        x[device, 15] = view[row, at + MEMORY_LEFT * count]
        x[device, 16] = view[row, at + REFERENCE * count]
        x[device, 17] = view[row, at + VOTES * count]
        x[device, 18] = view[row, at + TOGETHER * count]
        x[device, 19] = view[row, at + LAST * count]
        x[device, 20] = devices[device, 0]
        x[device, 21] = devices[device, 1]
        x[device, 22] = 1.0 if load_s[device] == 0.0 else 0.0
        x[device, 23] = view[row, SCALAR_AHEAD]
        x[device, 24] = view[row, SCALAR_PROGRESS]
    if together_s > 0.0:
        for other in range(group):
            device = placements[row, other]
            if picture.reference[other] == picture.reference[group] and mask[row, device]:
                x[device, 25] += picture.group_time_s[other, device] / together_s


@called
def _score(x, attended, base, group, into, into_attention, middle, middle_bias, out, skip, skip_attention, units):
    """The logit of one device: two layers of units over its features, the attention on it and the group's state."""
    width = middle.shape[0]
    logit = np.float32(0.0)
    for k in range(width):
        units[0, k] = base[group, k]
        units[1, k] = middle_bias[k]
    for i in range(len(x)):
        logit += x[i] * skip[i]
        if x[i] != 0.0:
            for k in range(width):
                units[0, k] += x[i] * into[i, k]
    for i in range(len(attended)):
        logit += attended[i] * skip_attention[i]
        if attended[i] != 0.0:
            for k in range(width):
                units[0, k] += attended[i] * into_attention[i, k]
    for i in range(width):
        if units[0, i] > 0.0:
            for k in range(width):
                units[1, k] += units[0, i] * middle[i, k]
    for k in range(width):
        if units[1, k] > 0.0:
            logit += units[1, k] * out[k]
    return logit


@compiled
def choose(
    picture, view, mask, tried_s, now_s, placements, devices, need_bytes, load_s, fill_bytes, base, attention,
    into, into_attention, middle, middle_bias, out, skip, skip_attention, noise, target, x, seen, outlook_s, units,
    attended, logits, group, first, last,
):  # fmt: skip
    """Place one group in each of the rows from `first` to `last`, after `envs.guided.kernel.look` looked at it.

    Args:
        picture: The problem.
        view: ``float32[B, V]``, of `look`.
        mask: ``bool[B, D]``, of `look`: where the group may be.
        tried_s: ``float64[B, D]``, of `look`.
        now_s: ``float64[B]``, the outlook of each row; becomes that with the group where it is placed.
        placements: ``int64[B, G]``, complete; the group's column is filled.
        devices: ``float32[D, 2]``, of `placement.pretrained.features.Known`.
        need_bytes: ``float64[G]``, likewise.
        load_s: ``float64[B, D]``, seconds of the groups placed so far; updated.
        fill_bytes: ``float64[B, D]``, estimated bytes of the groups placed so far; updated.
        base: ``float32[G, U]``, what the encoder says of each group.
        attention: ``float32[A, G, G]``, how much each group attends to those before it.
        into: ``float32[F, U]``; this and the next six are the policy's weights.
        into_attention: ``float32[A, U]``.
        middle: ``float32[U, U]``.
        middle_bias: ``float32[U]``.
        out: ``float32[U]``.
        skip: ``float32[F]``.
        skip_attention: ``float32[A]``.
        noise: ``float32[B, G, D]``, added to the logits: Gumbel noise draws, zeros choose the likeliest.
        target: ``int64[B, G]``, devices that are chosen whatever the logits; -1 for none.
        x: ``float32[B, G, D, F]``, filled for who learns from it; or ``[B, 1, D, F]``, written over by each group.
        seen: ``bool[B, G, D]`` or ``[B, 1, D]``, the mask, likewise.
        outlook_s: ``float64[B, G]``, filled: the outlook before the group was placed.
        units: ``float32[B, 2, U]``, scratch.
        attended: ``float32[B, D, A]``, scratch.
        logits: ``float32[B, D]``, of the group, without noise; filled where it may be.
        group: The group.
        first: The first row.
        last: The row after the last.
    """
    count = tried_s.shape[1]
    at = group if x.shape[1] > 1 else 0
    for row in range(first, last):
        outlook_s[row, group] = now_s[row]
        _read(
            picture, view, mask, tried_s, now_s, placements, devices, need_bytes, load_s[row], fill_bytes[row], row,
            group, x[row, at],
        )  # fmt: skip
        for device in range(count):
            seen[row, at, device] = mask[row, device]
            for head in range(attention.shape[0]):
                attended[row, device, head] = 0.0
        for other in range(group):
            device = placements[row, other]
            for head in range(attention.shape[0]):
                attended[row, device, head] += attention[head, group, other]
        best, chosen = -np.inf, -1
        for device in range(count):
            if not mask[row, device]:
                continue
            logit = _score(
                x[row, at, device], attended[row, device], base, group, into, into_attention, middle, middle_bias,
                out, skip, skip_attention, units[row],
            )  # fmt: skip
            logits[row, device] = logit
            value = logit + noise[row, group, device]
            if chosen < 0 or value > best:
                best, chosen = value, device
        if target[row, group] >= 0:
            chosen = target[row, group]
        placements[row, group] = chosen
        now_s[row] = tried_s[row, chosen]
        load_s[row, chosen] += picture.group_time_s[group, chosen]
        fill_bytes[row, chosen] += need_bytes[group]
