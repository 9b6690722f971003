"""Transfers: reserved when a tensor is made, and what their arrival changes."""

from __future__ import annotations

import numpy as np

from envs.compiling import inlined
from envs.simulator.choosing.events import advance_slot
from envs.simulator.choosing.ready import NONE, one_input_more

_0, _1 = np.uint64(0), np.uint64(1)


@inlined
def touch(devices, touched, state, device):
    """Let a device stand in `Work.touched`, once."""
    if devices[device].touched == 0:
        devices[device].touched = 1
        touched[state[_0].touched] = device
        state[_0].touched += 1


@inlined
def _reserve(
    route_directions, copies, transfers, devices, routes, directions, queues, touched, slot_s, block_s, state,
    tensor, size, priced_as, source, destination, now,
):  # fmt: skip
    """Reserve the route for a transfer; return when it ends where it is the next to come that way, else infinity.

    `priced_as` is the entry of `routes` that says what it takes, 0 for its own.
    """
    number = state[_0].transfers
    state[_0].transfers += 1
    route = routes[source * np.uint64(len(devices)) + destination]
    price = route if priced_as == 0 else routes[priced_as]
    start_s, blocker = now, NONE
    for i in range(route.begin, route.end):
        direction = directions[route_directions[i]]
        if direction.free_s > start_s:
            start_s = direction.free_s
            blocker = direction.last_transfer
    end_s = start_s + (price.latency_s + size / price.bytes_per_s)
    for i in range(route.begin, route.end):
        direction = directions[route_directions[i]]
        direction.free_s = end_s
        direction.last_transfer = number
    copy = copies[state[_0].first_away + np.uint64(number)]
    copy.bytes = size
    copy.uses = devices[destination].readers
    copy.first_edge = devices[destination].first_edge
    transfer = transfers[number]
    transfer.start_s = start_s
    transfer.end_s = end_s
    transfer.tensor = tensor
    transfer.source = source
    transfer.destination = destination
    transfer.next_arrival = NONE
    transfer.first_hooked = NONE
    if blocker == NONE:
        devices[destination].memory += size
        touch(devices, touched, state, destination)
    else:
        transfer.next_hooked = transfers[blocker].first_hooked
        transfers[blocker].first_hooked = number
    queue = queues[route.queue]
    last = queue.last
    queue.last = number
    if queue.first != NONE:
        transfers[last].next_arrival = number
        return np.inf
    queue.first = number
    advance_slot(slot_s, block_s, np.uint64(len(devices)) + np.uint64(route.queue), end_s)
    return end_s


@inlined
def send(
    route_directions, readers, waiting, copies, tensors, missing, transfers, devices, routes, directions, queues,
    destinations, touched, slot_s, block_s, fresh, state, place, number, source, now, num_fresh, soonest_s,
):  # fmt: skip
    """A tensor is made: serve its readers on the device, and reserve a transfer to each other device with readers.

    Return the length of `fresh`, and the least of `soonest_s` and the times at which slots have new events.
    """
    copy = copies[number]
    local, remote = 0, _0
    for e in range(copy.first_edge, copies[number + _1].first_edge):
        reader = readers[e]
        target = np.uint32(place[reader])
        if target == source:
            local += 1
            num_fresh = one_input_more(missing, fresh, num_fresh, reader)
        else:
            if devices[target].readers == 0:
                # Kept sorted: transfers are reserved in device order.
                i = remote
                while i > _0 and destinations[i - _1] > target:
                    destinations[i] = destinations[i - _1]
                    i -= _1
                destinations[i] = target
                remote += _1
                devices[target].first_edge = NONE
            devices[target].readers += 1
            waiting[e].next_edge = devices[target].first_edge
            devices[target].first_edge = e
    copy.uses = local + np.int64(remote)
    if copy.uses == 0:
        devices[source].memory -= copy.bytes
    for i in range(remote):
        tensor, destination = tensors[number], destinations[i]
        end_s = _reserve(
            route_directions, copies, transfers, devices, routes, directions, queues, touched, slot_s, block_s, state,
            number, tensor.bytes, tensor.priced_as, source, destination, now,
        )  # fmt: skip
        soonest_s = min(soonest_s, end_s)
        devices[destination].readers = 0
    return num_fresh, soonest_s


@inlined
def drop_inputs(ops, copies, holders, op):
    """An op ended: return the bytes of what it was the last to read."""
    freed = 0
    for i in range(ops[op].first_input, ops[np.uint64(op) + _1].first_input):
        copy = copies[holders[i]]
        size, left = copy.bytes, copy.uses - 1
        copy.uses = left
        freed += size if left == 0 else 0
    return freed


@inlined
def arrive(readers, waiting, copies, holders, missing, transfers, devices, queue, touched, fresh, state, num_fresh):
    """The first transfer of a queue ends: return when the next one does, and the length of `fresh`."""
    number = np.uint64(queue.first)
    transfer = transfers[number]
    queue.first = transfer.next_arrival
    away = state[_0].first_away + number
    e = copies[away].first_edge
    while e != NONE:
        holders[waiting[e].input] = away
        num_fresh = one_input_more(missing, fresh, num_fresh, readers[e])
        e = waiting[e].next_edge
    copy = copies[transfer.tensor]
    copy.uses -= 1
    if copy.uses == 0:
        devices[transfer.source].memory -= copy.bytes
    hooked = transfer.first_hooked
    while hooked != NONE:
        destination = transfers[hooked].destination
        devices[destination].memory += copies[state[_0].first_away + np.uint64(hooked)].bytes
        touch(devices, touched, state, destination)
        hooked = transfers[hooked].next_hooked
    next_s = np.inf
    if queue.first != NONE:
        next_s = transfers[queue.first].end_s
    return next_s, num_fresh
