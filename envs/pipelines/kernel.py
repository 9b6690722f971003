"""The compiled twin of `envs.pipelines.actions.run_plain`, and of the runtime that takes what is best.

Ranks that are busy are looked through for the one that ends first: there are few, and many more actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from envs.compiling import cached

_F, _B, _I, _W = 0, 1, 2, 3
_NEVER = np.inf

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on first use; the machine code is kept where numba can write its cache. These functions do allocate."""
    return cached(function, {"nogil": True, "error_model": "numpy"})


@compiled
def _send(latency_s, bytes_per_s, route_offsets, route_directions, link_free_s, source, target, size, now_s):
    """Reserve a route; return when what is sent arrives."""
    if source == target:
        return now_s
    route = source * len(latency_s) + target
    begins_s = now_s
    for i in range(route_offsets[route], route_offsets[route + 1]):
        begins_s = max(begins_s, link_free_s[route_directions[i]])
    ends_s = begins_s + (latency_s[source, target] + size / bytes_per_s[source, target])
    for i in range(route_offsets[route], route_offsets[route + 1]):
        link_free_s[route_directions[i]] = ends_s
    return ends_s


@compiled
def _links_free_s(route_directions):
    """When each direction of a link that a route crosses is free: at once."""
    last = 0
    for direction in route_directions:
        last = max(last, direction)
    return np.zeros(last + 1)


@compiled
def _start(rank, table, offsets, at, free_s, running_s, arrived_s, done_s, action_s, saved_bytes, working_bytes, used,
           peak, start_s, end_s):  # fmt: skip
    """Start a rank's next action if it is idle and all that it waits for is known."""
    number = offsets[rank] + at[rank]
    if running_s[rank] < _NEVER or number == offsets[rank + 1]:
        return
    stage, kind, m = table[number, 0], table[number, 1], table[number, 2]
    if kind == _F:
        ready_s = arrived_s[0, stage, m]
    elif kind == _W:
        ready_s = done_s[_I, stage, m]
    else:
        ready_s = max(done_s[_F, stage, m], arrived_s[1, stage, m])
    if ready_s == _NEVER:
        return
    begins_s = max(free_s[rank], ready_s)
    running_s[rank] = begins_s + action_s[stage, kind]
    start_s[number], end_s[number] = begins_s, running_s[rank]
    if kind == _F:
        used[rank] += saved_bytes[stage]
    peak[rank] = max(peak[rank], used[rank] + working_bytes[stage, kind])


@compiled
def run(table, offsets, device_of_rank, rank_of_stage, neighbours, action_s, forward_bytes, backward_bytes, saved_bytes,
        working_bytes, fixed_bytes, latency_s, bytes_per_s, route_offsets, route_directions, start_s, end_s, peak,
        free_s):  # fmt: skip
    """Simulate strict lists; return whether they come to their end, or wait for each other for ever."""
    _, stages, micro_batches = neighbours.shape
    ranks = len(device_of_rank)
    at = np.zeros(ranks, dtype=np.int64)
    running_s = np.full(ranks, _NEVER)
    arrived_s = np.full((2, stages, micro_batches), _NEVER)
    done_s = np.full((4, stages, micro_batches), _NEVER)
    for stage in range(stages):
        for m in range(micro_batches):
            for side in range(2):
                if neighbours[side, stage, m] < 0:
                    arrived_s[side, stage, m] = 0.0
    link_free_s = _links_free_s(route_directions)
    used = np.zeros(ranks, dtype=np.int64)
    for stage in range(stages):
        used[rank_of_stage[stage]] += fixed_bytes[stage]
    peak[:] = used
    for rank in range(ranks):
        _start(rank, table, offsets, at, free_s, running_s, arrived_s, done_s, action_s, saved_bytes, working_bytes,
               used, peak, start_s, end_s)  # fmt: skip
    while True:
        rank = 0
        for other in range(1, ranks):
            if running_s[other] < running_s[rank]:
                rank = other
        now_s = running_s[rank]
        if now_s == _NEVER:
            break
        running_s[rank] = _NEVER
        free_s[rank] = now_s
        number = offsets[rank] + at[rank]
        stage, kind, m = table[number, 0], table[number, 1], table[number, 2]
        at[rank] += 1
        done_s[kind, stage, m] = now_s
        if kind in (_B, _W):
            used[rank] -= saved_bytes[stage]
        _start(rank, table, offsets, at, free_s, running_s, arrived_s, done_s, action_s, saved_bytes, working_bytes,
               used, peak, start_s, end_s)  # fmt: skip
        to, side, size = -1, 0, 0
        if kind == _F:
            to, size = neighbours[1, stage, m], forward_bytes[stage]
        elif kind != _W:
            to, side, size = neighbours[0, stage, m], 1, backward_bytes[stage]
        if to >= 0:
            arrived_s[side, to, m] = _send(
                latency_s, bytes_per_s, route_offsets, route_directions, link_free_s, device_of_rank[rank],
                device_of_rank[rank_of_stage[to]], size, now_s,
            )  # fmt: skip
            _start(rank_of_stage[to], table, offsets, at, free_s, running_s, arrived_s, done_s, action_s, saved_bytes,
                   working_bytes, used, peak, start_s, end_s)  # fmt: skip
    return (at == offsets[1:] - offsets[:-1]).all()


@compiled
def take(device_of_rank, rank_of_stage, action_s, forward_bytes, backward_bytes, micro_batches, split, limit,
         latency_s, bytes_per_s, route_offsets, route_directions, table, rank_of_action):  # fmt: skip
    """Let each idle rank take its best ready action, and write down which; see `envs.pipelines.actions.make_lists`."""
    stages, ranks = len(rank_of_stage), len(device_of_rank)
    free_s = np.zeros(ranks)
    running_s = np.full(ranks, _NEVER)
    current = np.zeros((ranks, 2), dtype=np.int64)  # stage and kind
    first = np.full(ranks, stages, dtype=np.int64)
    for stage in range(stages - 1, -1, -1):
        first[rank_of_stage[stage]] = stage
    begun = np.zeros((4, stages), dtype=np.int64)
    ended = np.zeros((4, stages), dtype=np.int64)
    arrived_s = np.full((2, stages, micro_batches), _NEVER)
    done_s = np.full((4, stages, micro_batches), _NEVER)
    arrived_s[0, 0, :] = 0.0
    arrived_s[1, stages - 1, :] = 0.0
    link_free_s = _links_free_s(route_directions)
    gradient = _I if split else _B
    final = _W if split else _B
    taken, now_s = 0, 0.0
    while True:
        next_s = _NEVER
        for rank in range(ranks):  # whatever ends now, in the order of ranks
            if running_s[rank] == now_s:
                stage, kind = current[rank, 0], current[rank, 1]
                m = ended[kind, stage]
                ended[kind, stage] += 1
                done_s[kind, stage, m] = now_s
                running_s[rank] = _NEVER
                free_s[rank] = now_s
                if kind == _F and stage + 1 < stages:
                    arrived_s[0, stage + 1, m] = _send(
                        latency_s, bytes_per_s, route_offsets, route_directions, link_free_s, device_of_rank[rank],
                        device_of_rank[rank_of_stage[stage + 1]], forward_bytes[stage], now_s,
                    )  # fmt: skip
                elif kind == gradient and stage > 0:
                    arrived_s[1, stage - 1, m] = _send(
                        latency_s, bytes_per_s, route_offsets, route_directions, link_free_s, device_of_rank[rank],
                        device_of_rank[rank_of_stage[stage - 1]], backward_bytes[stage], now_s,
                    )  # fmt: skip
        for rank in range(ranks):
            if running_s[rank] < _NEVER:
                next_s = min(next_s, running_s[rank])
                continue
            best_class, best_m, best_stage, best_kind = 9, micro_batches, -1, -1
            for stage in range(stages):
                if rank_of_stage[stage] != rank:
                    continue
                for kind in (gradient, _F, _W):
                    m = begun[kind, stage]
                    if m == micro_batches or (kind == _W and not split):
                        continue
                    if kind == _F:
                        ready_s, choice = arrived_s[0, stage, m], 1
                        ahead = limit * (stages - 1 - stage)
                        if stage == first[rank] and m - ended[final, stage] > ahead:
                            continue
                    elif kind == _W:
                        ready_s, choice = done_s[_I, stage, m], 2
                    else:
                        ready_s, choice = max(done_s[_F, stage, m], arrived_s[1, stage, m]), 0
                    if ready_s > now_s:
                        next_s = min(next_s, ready_s)
                        continue
                    earlier = m < best_m or (m == best_m and stage > best_stage)
                    if choice < best_class or (choice == best_class and earlier):
                        best_class, best_m, best_stage, best_kind = choice, m, stage, kind
            if best_stage >= 0:
                begun[best_kind, best_stage] += 1
                running_s[rank] = now_s + action_s[best_stage, best_kind]
                current[rank, 0], current[rank, 1] = best_stage, best_kind
                table[taken, 0], table[taken, 1], table[taken, 2] = best_stage, best_kind, best_m
                rank_of_action[taken] = rank
                taken += 1
                next_s = min(next_s, running_s[rank])
        if next_s == _NEVER:
            return
        now_s = next_s
