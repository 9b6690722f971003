"""A step from its start, or from an instant, to its end."""

from __future__ import annotations

import numpy as np

from envs.compiling import compiled, inlined, prefetch
from envs.simulator.choosing.alone import (
    CHOOSING,
    ENDING,
    STARTED,
    choose_by_rank,
    choose_first_come,
    close_instant,
    run_alone,
)
from envs.simulator.choosing.events import BLOCK, advance_slot, least, next_event
from envs.simulator.choosing.ready import FIFO, NONE, append_op, push, sort
from envs.simulator.choosing.transfers import arrive, drop_inputs, send, touch

EPSILON = 2.0**-52
"""Sums of ``n`` times in two orders differ by less than ``2 n`` times this share of them."""
_0, _1 = np.uint64(0), np.uint64(1)


@inlined
def _add_up_work(op_time_s, devices, work_s, place):
    """Fill `work_left_s` of each device; in four sums, so that an addition need not wait for the one before it."""
    lanes, num_ops = np.uint64(4), np.uint64(len(place))
    work_s[:] = 0.0
    for first in range(_0, num_ops - num_ops % lanes, lanes):
        for lane in range(lanes):
            number = np.uint64(np.uint32(place[first + lane]))
            work_s[number * lanes + lane] += op_time_s[devices[number].spec, first + lane]
    for op in range(num_ops - num_ops % lanes, num_ops):
        number = np.uint64(np.uint32(place[op]))
        work_s[number * lanes] += op_time_s[devices[number].spec, op]
    for d in range(np.uint64(len(devices))):
        for lane in range(lanes):
            devices[d].work_left_s += work_s[d * lanes + lane]


@inlined
def _reset(
    op_time_s, resident_ops, resident_bytes, num_inputs, missing, holders, home_holders, devices, work_s, directions,
    queues, slot_s, block_s, state, place, peak, limit_s,
):  # fmt: skip
    """Put everything back to the start of a step."""
    state[_0].limit_s = limit_s * (1.0 + 4.0 * len(place) * EPSILON)
    state[_0].over = 0
    state[_0].transfers = 0
    state[_0].ended = 0
    state[_0].touched = 0
    for device in devices:
        device.memory = 0
        device.work_left_s = 0.0
        device.running = NONE
        device.first_op = NONE
        device.best = NONE
        device.touched = 0
        device.readers = 0
    for direction in directions:
        direction.free_s = 0.0
    for queue in queues:
        queue.first = NONE
    slot_s[:] = np.inf
    block_s[:] = np.inf
    for i in range(np.uint64(len(holders))):
        holders[i] = home_holders[i]
    for op in range(np.uint64(len(place))):
        missing[op] = num_inputs[op]
    for op in resident_ops:
        devices[np.uint32(place[op])].memory += resident_bytes[op]
    if limit_s < np.inf:
        _add_up_work(op_time_s, devices, work_s, place)
    for d in range(len(devices)):
        peak[d] = devices[d].memory
        if devices[d].work_left_s > state[_0].limit_s:
            state[_0].over = 1


@inlined
def run_on(work, place, peak, now, stop_after, num_fresh):
    """Go on from an instant; return the step time, or infinity where it is proven to exceed the limit.

    At the instant the first `num_fresh` ops of `fresh` become ready. Where `stop_after` ops have ended before a later
    instant is due, stop there and return the instant before it.

    Each pass applies what is due, starts ops, and finds what is due next. Where that is one thing, the time of the next
    after it is known: a device whose ops end before that, and send nothing, runs on alone without a pass an op.
    """
    schedule, op_time_s, order = work.schedule, work.op_time_s, work.order
    route_directions, first_word, ops = work.route_directions, work.first_word, work.ops
    next_op, spans, missing = work.next_op, work.spans, work.missing
    copies, tensors, readers = work.copies, work.tensors, work.readers
    waiting, holders, transfers = work.waiting, work.holders, work.transfers
    devices, routes, directions = work.devices, work.routes, work.directions
    queues, bits, destinations = work.queues, work.bits, work.destinations
    ended, arriving, wake = work.ended, work.arriving, work.wake
    starting, fresh, touched = work.starting, work.fresh, work.touched
    slot_s, block_s, state = work.slot_s, work.block_s, work.state
    num_devices = np.uint64(len(devices))
    num_ended, num_arriving, num_awake, done = _0, _0, _0, np.uint64(state[_0].ended)
    other_s, by_rank = -np.inf, False
    while True:
        soonest_s, ahead, ahead_s = np.inf, NONE, np.inf
        for i in range(num_arriving):
            queue = np.uint64(arriving[i])
            next_s, num_fresh = arrive(
                readers, waiting, copies, holders, missing, transfers, devices, queues[queue], touched, fresh, state,
                num_fresh,
            )  # fmt: skip
            advance_slot(slot_s, block_s, num_devices + queue, next_s)
            soonest_s = min(soonest_s, next_s)
        for i in range(num_ended):
            op = np.uint64(ended[i])
            number = np.uint32(place[op])
            devices[number].running = NONE
            wake[num_awake] = number
            num_awake += _1
            for tensor in range(ops[op].first_tensor, ops[op + _1].first_tensor):
                num_fresh, soonest_s = send(
                    route_directions, readers, waiting, copies, tensors, missing, transfers, devices, routes,
                    directions, queues, destinations, touched, slot_s, block_s, fresh, state, place, np.uint64(tensor),
                    number, now, num_fresh, soonest_s,
                )  # fmt: skip
            devices[number].memory -= drop_inputs(ops, copies, holders, op)
        done += num_ended
        other_s = min(other_s, soonest_s)
        if soonest_s > now:  # else a transfer that takes no time arrives in the round of its start
            left = _0
            if schedule == FIFO and not by_rank and sort(fresh, num_fresh):
                num_starting, left = choose_first_come(
                    devices, next_op, wake, num_awake, fresh, num_fresh, starting, place
                )  # fmt: skip
            else:
                num_starting = choose_by_rank(
                    schedule, first_word, next_op, devices, bits, wake, num_awake, fresh, num_fresh, starting, touched,
                    state, place,
                )  # fmt: skip
                by_rank = schedule == FIFO
            for i in range(num_starting):
                op = np.uint64(starting[i])
                number = np.uint32(place[op])
                device = devices[number]
                seconds = op_time_s[device.spec, op]
                if state[_0].limit_s < np.inf:
                    if now + max(ops[op].remaining_s, device.work_left_s) > state[_0].limit_s:
                        state[_0].over = 1
                    device.work_left_s -= seconds
                # What its end will need; by then other events have passed.
                prefetch(copies, np.uint64(ops[op].first_tensor))
                prefetch(holders, np.uint64(ops[op].first_input))
                end_s = now + seconds
                spans[op].start_s = now
                spans[op].end_s = end_s
                device.memory += ops[op].output_bytes
                touch(devices, touched, state, number)
                soonest_s = min(soonest_s, end_s)
                if num_starting == _1 and now < end_s and end_s < other_s and done < stop_after:
                    ahead, ahead_s = np.uint32(op), end_s
                else:
                    advance_slot(slot_s, block_s, np.uint64(number), end_s)
            if soonest_s > now:
                for i in range(left):
                    append_op(devices, next_op, np.uint32(place[fresh[i]]), fresh[i])
                close_instant(first_word, next_op, devices, bits, touched, state, by_rank, peak)
                by_rank = False
            else:  # an op that takes no time makes another round of the instant
                by_rank = schedule == FIFO
                for i in range(left):
                    number = np.uint32(place[fresh[i]])
                    push(devices, bits, first_word, number, fresh[i])
                    touch(devices, touched, state, number)
            num_fresh, num_awake = _0, _0
        num_ended, num_arriving = _0, _0
        passing = False
        while not passing and state[_0].over == 0:
            if ahead == NONE:
                time_s, slot, next_s, other_s = next_event(slot_s, block_s)
                advances = time_s > now
                if advances:
                    if time_s == np.inf or done >= stop_after:
                        state[_0].ended = done
                        return now
                    now = time_s
                if not other_s > now:
                    break
                slot_s[slot] = np.inf
                block_s[slot // BLOCK] = next_s
                passing = slot >= num_devices or not advances
                if slot >= num_devices:
                    arriving[_0] = slot - num_devices
                    num_arriving = _1
                elif passing:
                    ended[_0] = devices[slot].running
                    num_ended = _1
                else:
                    ahead, ahead_s = devices[slot].running, now
                if passing:
                    continue
            number = np.uint32(place[ahead])
            how, op, now, end_s, num_fresh, done, highest = run_alone(
                schedule, op_time_s, first_word, ops, next_op, spans, missing, copies, readers, holders, devices,
                bits, fresh, state, place, number, np.uint64(ahead), ahead_s, other_s, done, stop_after,
                peak[number],
            )  # fmt: skip
            peak[number] = highest
            devices[number].running = NONE
            ahead = NONE
            if how == STARTED:
                devices[number].running = np.uint32(op)
                advance_slot(slot_s, block_s, np.uint64(number), end_s)
            elif how == ENDING:
                ended[_0] = op
                num_ended = _1
                passing = True
            elif how == CHOOSING:
                wake[_0] = number
                num_awake = _1
                passing = True
        if state[_0].over != 0:
            for d in range(num_devices):
                if devices[d].best != NONE:
                    bits[d, :] = _0
            state[_0].ended = done
            return np.inf
        if passing:
            continue
        other_s = -np.inf
        for block in range(np.uint64(len(block_s))):
            if block_s[block] != now:
                continue
            for slot in range(block * BLOCK, (block + _1) * BLOCK):
                if slot_s[slot] != now:
                    continue
                slot_s[slot] = np.inf
                if slot < num_devices:
                    # Ops end in op index order, which matters where they reserve the same links.
                    op = devices[slot].running
                    i = num_ended
                    while i > _0 and order[ended[i - _1]] > order[op]:
                        ended[i] = ended[i - _1]
                        i -= _1
                    ended[i] = op
                    num_ended += _1
                else:
                    arriving[num_arriving] = slot - num_devices
                    num_arriving += _1
            block_s[block] = least(slot_s, block * BLOCK)


@inlined
def copy(to, source, count):
    """Copy entries; numba copies slices only by way of an array that it allocates."""
    for i in range(np.uint64(count)):
        to[i] = source[i]


@inlined
def take_over(work, place):
    """Bring a placement ``[N]`` into the order in which the ops are laid out."""
    if work.schedule == FIFO:
        copy(work.place, place, len(place))
    else:
        for i in range(np.uint64(len(place))):
            work.place[i] = place[work.order[i]]


@inlined
def begin(work, limit_s, peak):
    """Make ready for the step of the placement that was taken over; return how many ops are ready."""
    _reset(
        work.op_time_s, work.resident_ops, work.resident_bytes, work.num_inputs, work.missing, work.holders,
        work.home_holders, work.devices, work.work_s, work.directions, work.queues, work.slot_s, work.block_s,
        work.state, work.place, peak, limit_s,
    )  # fmt: skip
    copy(work.fresh, work.sources, len(work.sources))
    return np.uint64(len(work.sources))


@compiled
def simulate_many(work, placements, limit_s, step_time_s, peak_memory_bytes):
    """Simulate placements ``[B, N]`` under limits ``[B]`` into ``[B]`` and ``[B, D]``, and the last trace into `work`.

    Where a step is proven to take longer than its limit, it is stopped, and infinity given. Two things prove it,
    whenever an op starts: its longest remaining path, and what its device has still to compute.
    """
    for b in range(len(placements)):
        take_over(work, placements[b])
        num_fresh, peak = begin(work, limit_s[b], peak_memory_bytes[b]), peak_memory_bytes[b]
        step_time_s[b] = np.inf
        if work.state[_0].over == 0:
            step_time_s[b] = run_on(work, work.place, peak, 0.0, np.uint64(NONE), num_fresh)
