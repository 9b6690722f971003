"""The outlook and the observation of a group, as their documentation says, in plain Python."""

import numpy as np
from numpy.typing import NDArray

from envs.guided import fields
from envs.guided.kernel import STEEPNESS, Picture


def outlook(picture: Picture, placement: list[int]) -> tuple[float, dict[int, float], dict[int, float]]:
    """The rough step time, and start and end of each part."""
    start_s: dict[int, float] = {}
    end_s: dict[int, float] = {}
    arrived_s: dict[tuple[int, int], float] = {}
    devices = range(picture.time_s.shape[1])
    free_s, out_s, in_s = (dict.fromkeys(devices, 0.0) for _ in range(3))
    for part in picture.order.tolist():
        device = placement[picture.unit[part]]
        ready_s = 0.0
        for i in range(int(picture.in_offsets[part]), int(picture.in_offsets[part + 1])):
            tensor, maker = int(picture.inputs[i]), int(picture.makers[i])
            source = placement[picture.unit[maker]]
            if source == device:
                ready_s = max(ready_s, end_s[maker])
                continue
            if (tensor, device) not in arrived_s:
                begin_s = max(end_s[maker], out_s[source], in_s[device])
                delay_s = float(picture.latency_s[source, device]) * float(picture.by_links[tensor])
                sent_s = begin_s + (delay_s + float(picture.added_s[tensor]))
                sent_s += float(picture.tensor_bytes[tensor]) * float(picture.s_per_byte[source, device])
                arrived_s[tensor, device] = out_s[source] = in_s[device] = sent_s
            ready_s = max(ready_s, arrived_s[tensor, device])
        start_s[part] = max(ready_s, free_s[device])
        end_s[part] = free_s[device] = start_s[part] + float(picture.time_s[part, device])
    return max(end_s.values()), start_s, end_s


def squash(value: float, unit: float) -> float:
    return value / (value + unit) if value + unit > 0 else 0.0


def observe(
    picture: Picture, placement: list[int], known: int, group: int, devices: int
) -> tuple[NDArray[np.float32], list[bool], list[float]]:
    """The observation, the mask and the outlook with the group on each device."""
    at = fields.fields(devices)
    view = np.zeros(fields.size(devices), dtype=np.float32)
    num_groups, count = picture.group_time_s.shape
    placed = [g for g in range(known) if g != group]
    now_s = outlook(picture, placement)[0]
    view[at["progress"]] = known / num_groups
    view[at["ahead"]] = squash(now_s, float(picture.reference_s[0]))
    used = [0.0] * count
    for d in range(count):
        load_s = busy_s = 0.0
        for g in range(num_groups):
            if placement[g] == d:
                busy_s += float(picture.group_time_s[g, d])
                if g in placed:
                    load_s += float(picture.group_time_s[g, d])
                    used[d] += float(picture.resident_bytes[g])
        view[at["load"].start + d] = squash(load_s, float(picture.unit_s[0]))
        view[at["idle"].start + d] = 1.0 - (min(busy_s / now_s, 1.0) if now_s > 0 else 1.0)
        view[at["memory_left"].start + d] = max(1.0 - used[d] / max(float(picture.memory_bytes[d]), 1.0), 0.0)
    if known == group > 0:
        view[at["last"].start + placement[group - 1]] = 1
    if group == num_groups:
        return view, [d < count for d in range(devices)], [np.inf] * count
    allowed = [d for d in range(count) if picture.allowed[group, d]]
    view[at["code"]] = [(group >> bit) & 1 for bit in range(fields.CODE_BITS)]
    view[at["num_ops"]] = picture.group_ops[group]
    view[at["work"]] = squash(min(float(picture.group_time_s[group, d]) for d in allowed), float(picture.unit_s[1]))
    largest = max(1.0, float(picture.memory_bytes.max()))
    view[at["resident"]] = min(float(picture.resident_bytes[group]) / largest, 1.0)
    fits = [d for d in allowed if used[d] + float(picture.resident_bytes[group]) <= float(picture.memory_bytes[d])]
    mask = [d in (fits or allowed) for d in range(devices)]
    pairs = range(int(picture.near_offsets[group]), int(picture.near_offsets[group + 1]))
    total = 0.0
    for i in pairs:
        total += float(picture.read_bytes[i]) + float(picture.sent_bytes[i])
    placed_bytes = 0.0
    for d in range(count):
        there = transfer_s = 0.0
        for i in pairs:
            other = int(picture.near[i])
            if other not in placed:
                continue
            read, sent, home = float(picture.read_bytes[i]), float(picture.sent_bytes[i]), placement[other]
            if home == d:
                there += read + sent
                continue
            if read > 0:
                transfer_s += float(picture.latency_s[home, d]) + read * float(picture.s_per_byte[home, d])
            if sent > 0:
                transfer_s += float(picture.latency_s[d, home]) + sent * float(picture.s_per_byte[d, home])
        placed_bytes += there
        view[at["traffic"].start + d] = there / max(total, 1.0)
        view[at["transfer"].start + d] = squash(transfer_s, float(picture.unit_s[1]))
    view[at["placed_traffic"]] = min(placed_bytes / max(total, 1.0), 1.0)
    share = 1.0 / len(picture.votes)
    for vote in picture.votes.tolist():
        chosen = at["votes"].start + vote[group]
        view[chosen] = np.float32(float(view[chosen]) + share)
        together = [0.0] * count
        whole = 0.0
        for g in placed:
            if vote[g] == vote[group]:
                together[placement[g]] += float(picture.group_time_s[g, placement[g]])
                whole += float(picture.group_time_s[g, placement[g]])
        if whole > 0:
            for d in range(count):
                cell = at["together"].start + d
                view[cell] = np.float32(float(view[cell]) + share * (together[d] / whole))
    view[at["reference"].start + int(picture.reference[group])] = 1
    tried_s = [np.inf] * count
    whole_s = now_s if now_s > 0 else 1.0
    for d in allowed:
        trial = [*placement[:group], d, *placement[group + 1 :]]
        tried_s[d], start_s, end_s = outlook(picture, trial)
        gain = STEEPNESS * (now_s - tried_s[d]) / whole_s
        part = int(picture.order[picture.first_part[group]])
        view[at["allowed"].start + d] = 1
        view[at["time"].start + d] = squash(float(picture.group_time_s[group, d]), float(picture.unit_s[1]))
        view[at["start"].start + d] = min(start_s[part] / whole_s, 1.0)
        view[at["finish"].start + d] = min(end_s[part] / whole_s, 1.0)
        view[at["outlook"].start + d] = 0.5 + 0.5 * (gain / (1.0 + abs(gain)))
    return view, mask, tried_s
