"""The compiled loops of the guided environments: the outlook, and the observations made of it.

`tests/envs/guided/by_definition.py` has the plain version, equal bit for bit. Nothing is allocated (see `compiled`).
"""

# numba compiles these functions, and their arguments' types are its own.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.compiling import called, compiled
from envs.guided.fields import (
    ALLOWED,
    CODE_BITS,
    FINISH,
    IDLE,
    LAST,
    LOAD,
    MEMORY_LEFT,
    NUM_SCALARS,
    OUTLOOK,
    REFERENCE,
    SCALAR_AHEAD,
    SCALAR_CODE,
    SCALAR_NUM_OPS,
    SCALAR_PLACED_TRAFFIC,
    SCALAR_PROGRESS,
    SCALAR_RESIDENT,
    SCALAR_WORK,
    START,
    TIME,
    TOGETHER,
    TRAFFIC,
    TRANSFER,
    VOTES,
)

STEEPNESS = 20.0
"""A group that changes the outlook by one part in so many moves the field ``outlook`` half way to its end."""
EACH = -1
"""For `look`: of each row the group of its number."""


class Picture(NamedTuple):
    """What does not change while a problem's groups are placed; `envs.guided.guide` makes it.

    Attributes:
        order: ``int64[K]``, parts from the most urgent on, a topological order.
        unit: ``int64[K]``, the group of each part.
        time_s: ``float64[K, D]``.
        source: ``bool[K]``, parts that read nothing and take no time, as parameters that several groups share.
        in_offsets: ``int64[K + 1]`` into `inputs`.
        inputs: ``int64[E]``, the tensors that each part reads,
        makers: ``int64[E]``, the parts that make these, and
        units: ``int64[E]``, the groups of those.
        tensor_bytes: ``float64[R]``, what goes over the links.
        by_links: ``float64[R]``, 1 where sending takes a route's latency, 0 where no part of it goes by bytes.
        added_s: ``float64[R]``, seconds that sending takes besides.
        latency_s: ``float64[D, D]``.
        s_per_byte: ``float64[D, D]``.
        first_part: ``int64[G]``, of each group the place in `order` of the part that comes first.
        near_offsets: ``int64[G + 1]`` into the next three.
        near: ``int64[P]``, the groups that each group reads from or sends to.
        read_bytes: ``float64[P]``, what it reads from them.
        sent_bytes: ``float64[P]``, what they read from it.
        group_time_s: ``float64[G, D]``.
        group_ops: ``float64[G]``, ops of the group over ops of the largest.
        resident_bytes: ``float64[G]``.
        memory_bytes: ``float64[D]``.
        allowed: ``bool[G, D]``.
        votes: ``int64[H, G]``.
        reference: ``int64[G]``.
        unit_s: ``float64[2]``: each device's fair share of the work, and a group's.
        reference_s: ``float64[1]``, the outlook of the reference.
    """

    order: NDArray[np.int64]
    unit: NDArray[np.int64]
    time_s: NDArray[np.float64]
    source: NDArray[np.bool_]
    in_offsets: NDArray[np.int64]
    inputs: NDArray[np.int64]
    makers: NDArray[np.int64]
    units: NDArray[np.int64]
    tensor_bytes: NDArray[np.float64]
    by_links: NDArray[np.float64]
    added_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    s_per_byte: NDArray[np.float64]
    first_part: NDArray[np.int64]
    near_offsets: NDArray[np.int64]
    near: NDArray[np.int64]
    read_bytes: NDArray[np.float64]
    sent_bytes: NDArray[np.float64]
    group_time_s: NDArray[np.float64]
    group_ops: NDArray[np.float64]
    resident_bytes: NDArray[np.float64]
    memory_bytes: NDArray[np.float64]
    allowed: NDArray[np.bool_]
    votes: NDArray[np.int64]
    reference: NDArray[np.int64]
    unit_s: NDArray[np.float64]
    reference_s: NDArray[np.float64]


class Scratch(NamedTuple):
    """What is written while one placement is looked at; one for each thread.

    Attributes:
        start_s: ``float64[K]``.
        end_s: ``float64[K]``.
        copied_s: ``float64[R, D]``, when a tensor's copy is on a device, if
        copied_in: ``int64[R, D]`` is the number of the schedule that is being made, or of what it goes on from.
        schedules: ``int64[1]``, how many were made.
        device_s: ``float64[3, D]``, when each device, its port out and its port in are free.
        kept_s: ``float64[3, D]``, the same where the tries of a group begin.
        figures: ``float64[4, D]``, sums over groups: seconds placed, bytes placed, seconds as completed; and of a vote.
    """

    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    copied_s: NDArray[np.float64]
    copied_in: NDArray[np.int64]
    schedules: NDArray[np.int64]
    device_s: NDArray[np.float64]
    kept_s: NDArray[np.float64]
    figures: NDArray[np.float64]


def make_scratch(picture: Picture) -> Scratch:
    """Scratch for one thread."""
    count, parts, tensors = picture.time_s.shape[1], len(picture.unit), len(picture.tensor_bytes)
    return Scratch(
        start_s=np.empty(parts),
        end_s=np.empty(parts),
        copied_s=np.empty((tensors, count)),
        copied_in=np.zeros((tensors, count), dtype=np.int64),
        schedules=np.zeros(1, dtype=np.int64),
        device_s=np.empty((3, count)),
        kept_s=np.empty((3, count)),
        figures=np.empty((4, count)),
    )


@called
def _begin(scratch):
    """Begin a schedule, every device and port free at once; returns its number."""
    scratch.device_s[:] = 0.0
    scratch.schedules[0] += 1
    return scratch.schedules[0]


@called
def _copy(to, of):
    """One ``[3, D]`` to another."""
    for kind in range(3):
        for device in range(to.shape[1]):
            to[kind, device] = of[kind, device]


@called
def _send(picture, scratch, tensor, source, device, ready_s, number, before):
    """Send a tensor from when it is ready, unless its copy is there; when it arrives."""
    device_s = scratch.device_s
    made_in = scratch.copied_in[tensor, device]
    if made_in == number or made_in == before:  # noqa: SIM109  (no tuple: it would be allocated)
        return scratch.copied_s[tensor, device]
    begin_s = max(ready_s, max(device_s[1, source], device_s[2, device]))
    begin_s += picture.latency_s[source, device] * picture.by_links[tensor] + picture.added_s[tensor]
    arrives_s = begin_s + picture.tensor_bytes[tensor] * picture.s_per_byte[source, device]
    scratch.copied_s[tensor, device] = arrives_s
    scratch.copied_in[tensor, device] = number
    device_s[1, source] = arrives_s
    device_s[2, device] = arrives_s
    return arrives_s


@called
def _schedule(picture, scratch, placements, row, group, tried, first, last, number, before):
    """Start the parts from place `first` to `last` of the order; the latest end.

    `group` stands on `tried`, whatever the row of placements says; -1 for none. The schedule has a number, and goes on
    from that of another number, or its own.
    """
    end_s, device_s = scratch.end_s, scratch.device_s
    last_s = 0.0
    for place in range(first, last):
        part = picture.order[place]
        unit = picture.unit[part]
        device = tried if unit == group else placements[row, unit]
        ready_s = 0.0
        for i in range(picture.in_offsets[part], picture.in_offsets[part + 1]):
            from_unit = picture.units[i]
            source = tried if from_unit == group else placements[row, from_unit]
            arrives_s = end_s[picture.makers[i]]
            if source != device:
                arrives_s = _send(
                    picture, scratch, picture.inputs[i], source, device, arrives_s, number, before
                )  # fmt: skip
            ready_s = max(ready_s, arrives_s)
        start_s = max(ready_s, device_s[0, device])
        scratch.start_s[part] = start_s
        end_s[part] = start_s + picture.time_s[part, device]
        device_s[0, device] = end_s[part]
        last_s = max(last_s, end_s[part])
    return last_s


@called
def _outlook(picture, scratch, placements, row):
    """The rough step time of a row of placements."""
    number = _begin(scratch)
    return _schedule(picture, scratch, placements, row, -1, -1, 0, len(picture.order), number, number)


@compiled
def outlooks(picture, scratch, placements, seconds):
    """Fill ``seconds[B]``: the outlook of each row of ``int64[B, G]``."""
    for row in range(len(placements)):
        seconds[row] = _outlook(picture, scratch, placements, row)


@compiled
def earliest_finish(picture, scratch, placement, bytes_left):
    """Fill ``placement[1, G]``, -1 before: parts in order, each where it ends earliest and its group's memory fits.

    HEFT (Topcuoglu et al., 2002) without insertion, with ports: the heuristic that an environment always has.
    """
    number = _begin(scratch)
    end_s, device_s = scratch.end_s, scratch.device_s
    devices = picture.time_s.shape[1]
    for place in range(len(picture.order)):
        part = picture.order[place]
        unit = picture.unit[part]
        end_s[part] = 0.0
        if picture.source[part] and placement[0, unit] < 0:
            continue
        home = placement[0, unit]
        if home < 0:
            best_s = np.inf
            for roomy in range(2):
                for device in range(devices):
                    if not picture.allowed[unit, device]:
                        continue
                    if roomy == 0 and bytes_left[device] < picture.resident_bytes[unit]:
                        continue
                    ready_s = 0.0
                    port_s = device_s[2, device]
                    for i in range(picture.in_offsets[part], picture.in_offsets[part + 1]):
                        tensor = picture.inputs[i]
                        source = placement[0, picture.units[i]]
                        arrives_s = end_s[picture.makers[i]]
                        if source >= 0 and source != device:
                            if scratch.copied_in[tensor, device] == number:
                                arrives_s = scratch.copied_s[tensor, device]
                            else:
                                arrives_s = max(arrives_s, max(device_s[1, source], port_s))
                                arrives_s += picture.latency_s[source, device] * picture.by_links[tensor]
                                arrives_s += picture.added_s[tensor]
                                arrives_s += picture.tensor_bytes[tensor] * picture.s_per_byte[source, device]
                                port_s = arrives_s
                        ready_s = max(ready_s, arrives_s)
                    finish_s = max(ready_s, device_s[0, device]) + picture.time_s[part, device]
                    if finish_s < best_s:
                        home, best_s = device, finish_s
                if home >= 0:
                    break
            placement[0, unit] = home
            bytes_left[home] -= picture.resident_bytes[unit]
        ready_s = 0.0
        for i in range(picture.in_offsets[part], picture.in_offsets[part + 1]):
            if placement[0, picture.units[i]] < 0:
                _settle(picture, placement, bytes_left, picture.units[i], home)
            source = placement[0, picture.units[i]]
            arrives_s = end_s[picture.makers[i]]
            if source != home:
                arrives_s = _send(picture, scratch, picture.inputs[i], source, home, arrives_s, number, number)
            ready_s = max(ready_s, arrives_s)
        end_s[part] = max(ready_s, device_s[0, home]) + picture.time_s[part, home]
        device_s[0, home] = end_s[part]
    for unit in range(placement.shape[1]):
        if placement[0, unit] < 0:
            _settle(picture, placement, bytes_left, unit, 0)


@called
def _settle(picture, placement, bytes_left, unit, device):
    """Put a group that no schedule asked for on a device, or where it may be and most room is left."""
    best = device
    if not picture.allowed[unit, device]:
        best = -1
        for other in range(len(bytes_left)):
            if picture.allowed[unit, other] and (best < 0 or bytes_left[other] > bytes_left[best]):
                best = other
    placement[0, unit] = best
    bytes_left[best] -= picture.resident_bytes[unit]


@called
def _squash(value, unit):
    """From 0 to 1, one half at `unit`."""
    return value / (value + unit) if value + unit > 0.0 else 0.0


@compiled
def look(picture, scratch, placements, known, group, now_s, tried_s, view, mask, devices, first, last):
    """Observe a group in each of the rows from `first` to `last`; the groups before `known`, without it, are placed.

    Args:
        picture: The problem.
        scratch: Of this thread.
        placements: ``int64[B, G]``, complete.
        known: Groups before it count as placed.
        group: The group that is looked at; `EACH` for that of the row's number; ``G`` for none.
        now_s: ``float64[B]``, the outlook of each row.
        tried_s: ``float64[B, D]``, filled: the outlook with the group on each device, infinite where not allowed.
        view: ``float32[B, F]``, filled; see `envs.guided.fields`.
        mask: ``bool[B, M]``, filled: where the group may be and its residents fit; where they fit nowhere, where it may
            be; all True for no group.
        devices: ``M``, devices that the layout has room for.
        first: The first row.
        last: The row after the last.
    """
    num_groups = picture.group_time_s.shape[0]
    for row in range(first, last):
        at = row if group == EACH else group
        for i in range(view.shape[1]):
            view[row, i] = 0.0
        for device in range(tried_s.shape[1]):
            tried_s[row, device] = np.inf
        _mark_devices(picture, scratch, placements, known, at, now_s, view, row, devices)
        if at == num_groups:
            for device in range(devices):
                mask[row, device] = device < tried_s.shape[1]
            continue
        _mark_group(picture, view, row, at)
        _mark_masks(picture, scratch, mask, row, at, devices)
        _mark_traffic(picture, placements, known, view, row, at, devices)
        for vote in range(len(picture.votes)):
            _mark_vote(picture, scratch, placements, known, view, row, at, vote, devices)
        _try_devices(picture, scratch, placements, now_s, tried_s, view, row, at, devices)


@called
def _mark_devices(picture, scratch, placements, known, group, now_s, view, row, devices):
    """How far the placement is, and what the devices have to do and hold; leaves used bytes in ``figures[1]``."""
    num_groups, count = picture.group_time_s.shape
    figures = scratch.figures  # seconds placed, bytes placed, seconds as completed
    for device in range(count):
        for kind in range(3):
            figures[kind, device] = 0.0
    for other in range(num_groups):
        device = placements[row, other]
        figures[2, device] += picture.group_time_s[other, device]
        if other < known and other != group:
            figures[0, device] += picture.group_time_s[other, device]
            figures[1, device] += picture.resident_bytes[other]
    view[row, SCALAR_PROGRESS] = known / num_groups
    view[row, SCALAR_AHEAD] = _squash(now_s[row], picture.reference_s[0])
    for device in range(count):
        at = NUM_SCALARS + device
        busy = min(figures[2, device] / now_s[row], 1.0) if now_s[row] > 0.0 else 1.0
        view[row, at + LOAD * devices] = _squash(figures[0, device], picture.unit_s[0])
        view[row, at + IDLE * devices] = 1.0 - busy
        room = max(picture.memory_bytes[device], 1.0)
        view[row, at + MEMORY_LEFT * devices] = max(1.0 - figures[1, device] / room, 0.0)
    if known > 0 and known == group:
        view[row, NUM_SCALARS + LAST * devices + placements[row, group - 1]] = 1.0


@called
def _mark_group(picture, view, row, group):
    """What a group is, wherever it stands."""
    count = picture.group_time_s.shape[1]
    least_s, largest = np.inf, 1.0
    for device in range(count):
        largest = max(largest, picture.memory_bytes[device])
        if picture.allowed[group, device]:
            least_s = min(least_s, picture.group_time_s[group, device])
    for bit in range(CODE_BITS):
        view[row, SCALAR_CODE + bit] = 1.0 if (group >> bit) & 1 else 0.0
    view[row, SCALAR_NUM_OPS] = picture.group_ops[group]
    view[row, SCALAR_WORK] = _squash(least_s, picture.unit_s[1])
    view[row, SCALAR_RESIDENT] = min(picture.resident_bytes[group] / largest, 1.0)


@called
def _mark_masks(picture, scratch, mask, row, group, devices):
    """Where the group may be, and its residents fit."""
    used = scratch.figures
    count = picture.group_time_s.shape[1]
    fits = 0
    for device in range(devices):
        mask[row, device] = False
        if device < count and picture.allowed[group, device]:
            mask[row, device] = used[1, device] + picture.resident_bytes[group] <= picture.memory_bytes[device]
            fits += mask[row, device]
    if fits == 0:
        for device in range(count):
            mask[row, device] = picture.allowed[group, device]


@called
def _mark_traffic(picture, placements, known, view, row, group, devices):
    """Bytes that pass between the group and placed groups, by device; and the seconds that they take from each."""
    count = picture.group_time_s.shape[1]
    total, placed = 0.0, 0.0
    for i in range(picture.near_offsets[group], picture.near_offsets[group + 1]):
        total += picture.read_bytes[i] + picture.sent_bytes[i]
    for device in range(count):
        there, transfer_s = 0.0, 0.0
        for i in range(picture.near_offsets[group], picture.near_offsets[group + 1]):
            other = picture.near[i]
            if other >= known or other == group:
                continue
            at = placements[row, other]
            if at == device:
                there += picture.read_bytes[i] + picture.sent_bytes[i]
                continue
            if picture.read_bytes[i] > 0.0:
                transfer_s += picture.latency_s[at, device] + picture.read_bytes[i] * picture.s_per_byte[at, device]
            if picture.sent_bytes[i] > 0.0:
                transfer_s += picture.latency_s[device, at] + picture.sent_bytes[i] * picture.s_per_byte[device, at]
        placed += there
        view[row, NUM_SCALARS + TRAFFIC * devices + device] = there / max(total, 1.0)
        view[row, NUM_SCALARS + TRANSFER * devices + device] = _squash(transfer_s, picture.unit_s[1])
    view[row, SCALAR_PLACED_TRAFFIC] = min(placed / max(total, 1.0), 1.0)


@called
def _mark_vote(picture, scratch, placements, known, view, row, group, vote, devices):
    """What one heuristic says: its device, and where the groups that it put with this one stand by now."""
    count, together = picture.group_time_s.shape[1], scratch.figures
    chosen, share = picture.votes[vote, group], 1.0 / len(picture.votes)
    view[row, NUM_SCALARS + VOTES * devices + chosen] += share
    total = 0.0
    for device in range(count):
        together[3, device] = 0.0
    for other in range(known):
        if other != group and picture.votes[vote, other] == chosen:
            device = placements[row, other]
            together[3, device] += picture.group_time_s[other, device]
            total += picture.group_time_s[other, device]
    if total > 0.0:
        for device in range(count):
            view[row, NUM_SCALARS + TOGETHER * devices + device] += share * (together[3, device] / total)


@called
def _try_devices(picture, scratch, placements, now_s, tried_s, view, row, group, devices):
    """The outlook with the group on each device that it may be on, and when its first part would start and end."""
    count, parts = picture.group_time_s.shape[1], len(picture.order)
    first = picture.first_part[group]
    part = picture.order[first]
    view[row, NUM_SCALARS + REFERENCE * devices + picture.reference[group]] = 1.0
    # What comes before the group's first part is the same wherever the group stands.
    before = _begin(scratch)
    before_s = _schedule(picture, scratch, placements, row, -1, -1, 0, first, before, before)
    _copy(scratch.kept_s, scratch.device_s)
    for device in range(count):
        if not picture.allowed[group, device]:
            continue
        number = _begin(scratch)
        _copy(scratch.device_s, scratch.kept_s)
        seconds = _schedule(picture, scratch, placements, row, group, device, first, parts, number, before)
        seconds = max(seconds, before_s)
        tried_s[row, device] = seconds
        whole_s = now_s[row] if now_s[row] > 0.0 else 1.0
        gain = STEEPNESS * (now_s[row] - seconds) / whole_s
        at = NUM_SCALARS + device
        view[row, at + ALLOWED * devices] = 1.0
        view[row, at + TIME * devices] = _squash(picture.group_time_s[group, device], picture.unit_s[1])
        view[row, at + START * devices] = min(scratch.start_s[part] / whole_s, 1.0)
        view[row, at + FINISH * devices] = min(scratch.end_s[part] / whole_s, 1.0)
        view[row, at + OUTLOOK * devices] = 0.5 + 0.5 * (gain / (1.0 + abs(gain)))
