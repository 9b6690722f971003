"""A step with checkpoints, and steps that go on from the last one before anything differs."""

from __future__ import annotations

import numpy as np

from envs.compiling import compiled, inlined
from envs.simulator.choosing.ready import NONE
from envs.simulator.choosing.step import EPSILON, begin, copy, run_on, take_over

_0, _1 = np.uint64(0), np.uint64(1)


@compiled
def simulate_with_checkpoints(work, kept, placement, peak):
    """Simulate one placement ``[N]``, return its step time, and keep in `kept` what `resume_many` needs.

    Checkpoints are taken when equal parts of the ops have ended, each between two instants. The first part is double:
    to simulate less than that anew takes no longer than to restore it.
    """
    take_over(work, placement)
    place = work.place
    num_fresh = begin(work, np.inf, peak)
    count, num_ops = np.uint64(len(kept.now_s)), np.uint64(len(place))
    now = 0.0
    for c in range(count + _1):
        stop_after = num_ops * (c + np.uint64(2)) // (count + np.uint64(2)) if c < count else np.uint64(NONE)
        now = run_on(work, place, peak, now, stop_after, num_fresh)
        num_fresh = _0
        if c == count:
            break
        kept.now_s[c] = now
        sent = np.uint64(work.state[_0].transfers)
        for d in range(np.uint64(len(work.devices))):
            copy(kept.bits[c, d], work.bits[d], len(work.bits[d]))
        copy(kept.peak[c], peak, len(peak))
        copy(kept.missing[c], work.missing, len(work.missing))
        copy(kept.next_op[c], work.next_op, len(work.next_op))
        copy(kept.copies[c], work.copies, work.state[_0].first_away + sent)
        copy(kept.holders[c], work.holders, len(work.holders))
        copy(kept.transfers[c], work.transfers, sent)
        copy(kept.devices[c], work.devices, len(work.devices))
        copy(kept.directions[c], work.directions, len(work.directions))
        copy(kept.queues[c], work.queues, len(work.queues))
        copy(kept.slot_s[c], work.slot_s, len(work.slot_s))
        copy(kept.block_s[c], work.block_s, len(work.block_s))
        kept.state[c] = work.state[_0]
    copy(kept.place, place, num_ops)
    for op in range(num_ops):
        kept.op_start_s[op] = work.spans[op].start_s
        kept.op_end_s[op] = work.spans[op].end_s
    kept.first_transfer[:] = NONE
    kept.departed_s[:] = 0.0
    for k in range(np.uint64(work.state[_0].transfers)):
        tensor = work.transfers[k].tensor
        if kept.first_transfer[tensor] == NONE:
            kept.first_transfer[tensor] = k
        kept.departed_s[tensor] = max(kept.departed_s[tensor], work.transfers[k].end_s)
    return now


@inlined
def _tensor_unchanged_until(work, kept, place, tensor):
    """Until which time a tensor is sent and kept as it was, now that some of its readers are elsewhere.

    Its producer stays. The tensor must go to the same devices, and on no device die at another time: where readers that
    move are among its users there before but not after, or the other way round, it does when the others are done.
    """
    producer, home = work.tensors[tensor].producer, place[work.tensors[tensor].producer]
    made_s = kept.op_end_s[producer]
    kept.readers[:] = 0
    kept.last_read_s[:] = 0.0
    for e in range(work.copies[tensor].first_edge, work.copies[np.uint64(tensor) + _1].first_edge):
        reader = work.readers[e]
        before, after = kept.place[reader], place[reader]
        if before == after:
            kept.readers[0, before] += 1
            kept.last_read_s[before] = max(kept.last_read_s[before], kept.op_end_s[reader])
        else:
            kept.readers[1, before] += 1
            kept.readers[2, after] += 1
    until_s = np.inf
    for d in range(np.uint64(len(work.devices))):
        stay, leave, come = kept.readers[0, d], kept.readers[1, d], kept.readers[2, d]
        if (leave > 0) == (come > 0):
            continue
        if np.int64(d) == home:
            if work.copies[tensor].bytes > 0:
                until_s = min(until_s, max(made_s, kept.last_read_s[d], kept.departed_s[tensor]))
        elif stay == 0:
            until_s = min(until_s, made_s)
        elif work.tensors[tensor].bytes > 0:
            until_s = min(until_s, kept.last_read_s[d])
    return until_s


@inlined
def _unchanged_until(work, kept, place):
    """A time before which a step goes on under another placement as it did under that of the checkpoints.

    An op that moves must not have been ready before, neither where it was nor where it is.
    """
    until_s = np.inf
    kept.mark[_0] += 1
    for op in range(np.uint64(len(place))):
        if place[op] == kept.place[op]:
            continue
        ready_s = 0.0
        for i in range(work.ops[op].first_input, work.ops[op + _1].first_input):
            tensor = work.home_holders[i]
            producer = work.tensors[tensor].producer
            ready_s = max(ready_s, kept.op_end_s[producer])
            if until_s <= kept.now_s[_0]:
                return until_s
            if place[producer] == kept.place[producer] and kept.marks[tensor] != kept.mark[_0]:
                kept.marks[tensor] = kept.mark[_0]
                until_s = min(until_s, _tensor_unchanged_until(work, kept, place, tensor))
        until_s = min(until_s, ready_s)
    return until_s


@inlined
def _restore(work, kept, c, place, limit_s, peak):
    """Put everything to where it was at a checkpoint."""
    sent = np.uint64(kept.state[c].transfers)
    copy(peak, kept.peak[c], len(peak))
    copy(work.missing, kept.missing[c], len(work.missing))
    copy(work.next_op, kept.next_op[c], len(work.next_op))
    copy(work.copies, kept.copies[c], kept.state[c].first_away + sent)
    copy(work.holders, kept.holders[c], len(work.holders))
    copy(work.transfers, kept.transfers[c], sent)
    copy(work.devices, kept.devices[c], len(work.devices))
    copy(work.directions, kept.directions[c], len(work.directions))
    copy(work.queues, kept.queues[c], len(work.queues))
    copy(work.slot_s, kept.slot_s[c], len(work.slot_s))
    copy(work.block_s, kept.block_s[c], len(work.block_s))
    work.state[_0] = kept.state[c]
    work.state[_0].limit_s = limit_s * (1.0 + 4.0 * len(place) * EPSILON)
    for d in range(np.uint64(len(work.devices))):
        copy(work.bits[d], kept.bits[c, d], len(work.bits[d]))
    if limit_s < np.inf:  # checkpoints are taken without a limit
        for op in range(np.uint64(len(place))):
            if kept.op_start_s[op] > kept.now_s[c]:
                device = work.devices[np.uint32(place[op])]
                device.work_left_s += work.op_time_s[device.spec, op]


@inlined
def _count_readers_again(work, kept, tensor, place, now):
    """Of a tensor that is made, count the users of each copy, and chain those that wait for it."""
    kept.marks[tensor] = kept.mark[_0]
    home, first_away = place[work.tensors[tensor].producer], np.uint64(work.state[_0].first_away)
    work.copies[tensor].uses = 0
    k = np.uint64(kept.first_transfer[tensor])
    while k < np.uint64(work.state[_0].transfers) and work.transfers[k].tensor == tensor:
        work.devices[work.transfers[k].destination].first_edge = k
        work.copies[first_away + k].uses = 0
        if work.transfers[k].end_s > now:
            work.copies[first_away + k].first_edge = NONE
            work.copies[tensor].uses += 1
        k += _1
    for e in range(work.copies[tensor].first_edge, work.copies[np.uint64(tensor) + _1].first_edge):
        reader = work.readers[e]
        if kept.op_end_s[reader] <= now:
            continue
        if place[reader] == home:
            work.copies[tensor].uses += 1
        else:
            k = np.uint64(work.devices[np.uint32(place[reader])].first_edge)
            copy = work.copies[first_away + k]
            copy.uses += 1
            if work.transfers[k].end_s > now:
                work.waiting[e].next_edge = copy.first_edge
                copy.first_edge = e


@inlined
def _move(work, kept, c, place, peak):
    """Make a restored checkpoint one of another placement: each op that moves is not ready before or after."""
    now = kept.now_s[c]
    kept.mark[_0] += 1
    for k in range(work.state[_0].transfers):
        tensor = work.transfers[k].tensor
        if work.transfers[k].end_s > now and kept.marks[tensor] != kept.mark[_0]:
            _count_readers_again(work, kept, tensor, place, now)
    for op in range(np.uint64(len(place))):
        before, after = kept.place[op], place[op]
        if before == after:
            continue
        work.devices[np.uint32(before)].memory -= work.resident_bytes[op]
        work.devices[np.uint32(after)].memory += work.resident_bytes[op]
        peak[before] -= work.resident_bytes[op]
        peak[after] += work.resident_bytes[op]
        work.missing[op] = work.num_inputs[op]
        for i in range(work.ops[op].first_input, work.ops[op + _1].first_input):
            work.holders[i] = work.home_holders[i]
            tensor = work.home_holders[i]
            producer = work.tensors[tensor].producer
            if kept.op_end_s[producer] > now:
                continue
            if kept.marks[tensor] != kept.mark[_0]:
                _count_readers_again(work, kept, tensor, place, now)
            if place[producer] == after:
                work.missing[op] -= 1
                continue
            k = np.uint64(kept.first_transfer[tensor])
            while np.int64(work.transfers[k].destination) != after:
                k += _1
            if work.transfers[k].end_s <= now:
                work.missing[op] -= 1
                work.holders[i] = work.state[_0].first_away + k


@compiled
def resume_many(work, kept, placements, limit_s, step_time_s, peak_memory_bytes, resumed_s):
    """As `simulate_many`, from the last checkpoint before anything differs; `resumed_s` ``[B]`` says when that was.

    It equals `simulate_many`, which is the plain version, to the last bit: up to a time at which no op that moves can
    have been ready and each tensor is sent and freed as before, the same things happen under both placements.
    """
    for b in range(len(placements)):
        take_over(work, placements[b])
        place, peak = work.place, peak_memory_bytes[b]
        until_s = _unchanged_until(work, kept, place)
        c = np.uint64(len(kept.now_s))
        while c > _0 and kept.now_s[c - _1] >= until_s:
            c -= _1
        if c == _0:
            now = 0.0
            num_fresh = begin(work, limit_s[b], peak)
        else:
            now = kept.now_s[c - _1]
            num_fresh = _0
            _restore(work, kept, c - _1, place, limit_s[b], peak)
            _move(work, kept, c - _1, place, peak)
        resumed_s[b] = now
        step_time_s[b] = np.inf
        if work.state[_0].over == 0:
            step_time_s[b] = run_on(work, place, peak, now, np.uint64(NONE), num_fresh)
