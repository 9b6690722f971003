"""What starts next: chosen at an instant among all devices, or by a device that runs on alone."""

from __future__ import annotations

import numpy as np

from envs.compiling import inlined
from envs.simulator.choosing.ready import (
    FIFO,
    NONE,
    append_op,
    insert,
    one_input_more,
    pop_least,
    pull,
    push,
    sort,
    take_first,
)
from envs.simulator.choosing.transfers import drop_inputs, touch

ENDING, CHOOSING, STARTED, IDLE = range(4)
_0, _1 = np.uint64(0), np.uint64(1)


@inlined
def choose_first_come(devices, next_op, wake, num_awake, fresh, num_fresh, starting, place):
    """Under fifo: fill `starting`, and leave in `fresh`, which is sorted, what starts later; return their lengths."""
    num_starting, left = _0, _0
    for i in range(num_awake):
        op = take_first(devices, next_op, wake[i])
        if op != NONE:
            devices[wake[i]].running = op
            starting[num_starting] = op
            num_starting += _1
    for i in range(num_fresh):
        op = fresh[i]
        device = devices[np.uint32(place[op])]
        if device.running == NONE:
            device.running = op
            starting[num_starting] = op
            num_starting += _1
        else:
            fresh[left] = op
            left += _1
    return num_starting, left


@inlined
def choose_by_rank(
    schedule, first_word, next_op, devices, bits, wake, num_awake, fresh, num_fresh, starting, touched, state, place
):  # fmt: skip
    """Queue what is `fresh` by rank, and fill `starting`, whose length is returned.

    Under fifo these ranks order what became ready at this instant, behind a device's chain of older ops.
    """
    num_starting = _0
    for i in range(num_fresh):
        number = np.uint32(place[fresh[i]])
        push(devices, bits, first_word, number, fresh[i])
        if schedule == FIFO:
            touch(devices, touched, state, number)
    for i in range(num_awake + num_fresh):
        number = wake[i] if i < num_awake else np.uint32(place[fresh[i - num_awake]])
        if devices[number].running == NONE:
            op = take_first(devices, next_op, number) if schedule == FIFO else NONE
            if op == NONE:
                op = pull(devices, bits, first_word, number)
            if op != NONE:
                devices[number].running = op
                starting[num_starting] = op
                num_starting += _1
    return num_starting


@inlined
def close_instant(first_word, next_op, devices, bits, touched, state, by_rank, peak):
    """Time is about to advance: note peaks, and put the ops that fifo queued by rank behind the older."""
    for i in range(state[_0].touched):
        number = touched[i]
        devices[number].touched = 0
        peak[number] = max(peak[number], devices[number].memory)
        if by_rank:
            op = pull(devices, bits, first_word, number)
            while op != NONE:
                append_op(devices, next_op, number, op)
                op = pull(devices, bits, first_word, number)
    state[_0].touched = 0


@inlined
def run_alone(
    schedule, op_time_s, first_word, ops, next_op, spans, missing, copies, readers, holders, devices, bits, fresh,
    state, place, number, op, now, other_s, done, stop_after, highest,
):  # fmt: skip
    """A device runs on from the end of an op, which is now, while nothing else is due and no op of it sends.

    This is what `run_on` does, pass by pass, where one op ends and one starts. It returns how it ended and why:

    - ``ENDING``: the op that ends now sends something.
    - ``CHOOSING``: it has ended; what starts now takes no time, or so much is `fresh` that it should be queued by rank.
    - ``STARTED``: another has started, and before its end something else is due.
    - ``IDLE``: nothing is ready.

    and the op, now, the op's end, the length of `fresh`, the number of ops that have ended, and the highest memory.
    """
    device, row = devices[number], bits[number]
    spec, limit_s = np.uint64(device.spec), state[_0].limit_s
    memory, work_left_s = device.memory, device.work_left_s
    first_op, last_op, best = device.first_op, device.last_op, device.best
    how, end_s, num_fresh = IDLE, now, _0
    while True:
        first_tensor, after_tensor = np.uint64(ops[op].first_tensor), np.uint64(ops[op + _1].first_tensor)
        first_edge, after_edge = copies[first_tensor].first_edge, copies[after_tensor].first_edge
        sends = False
        for e in range(first_edge, after_edge):
            sends |= np.uint32(place[readers[e]]) != number
        if sends:
            how = ENDING
            break
        for tensor in range(first_tensor, after_tensor):
            size = copies[tensor].bytes
            uses = np.int64(copies[tensor + _1].first_edge) - np.int64(copies[tensor].first_edge)
            copies[tensor].uses = uses
            memory -= size if uses == 0 else 0
        for e in range(first_edge, after_edge):
            num_fresh = one_input_more(missing, fresh, num_fresh, readers[e])
        memory -= drop_inputs(ops, copies, holders, op)
        done += _1
        rank, at = NONE, _0
        if schedule == FIFO:
            if not sort(fresh, num_fresh):
                how = CHOOSING
                break
            chosen = first_op
            if chosen == NONE and num_fresh > _0:
                chosen = fresh[_0]
        else:
            for i in range(num_fresh):
                this = fresh[i]
                at = i if this < rank else at
                rank = min(this, rank)
            chosen = min(rank, best)
        if chosen == NONE:
            how = IDLE
            break
        op = np.uint64(chosen)
        seconds = op_time_s[spec, op]
        end_s = now + seconds
        if end_s <= now:
            how = CHOOSING
            break
        if schedule == FIFO:
            i = _0
            if first_op != NONE:
                first_op = next_op[op] if chosen != last_op else NONE
            else:
                i = _1
            while i < num_fresh:
                if first_op == NONE:
                    first_op = fresh[i]
                else:
                    next_op[last_op] = fresh[i]
                last_op = fresh[i]
                i += _1
        else:
            if rank < best:
                fresh[at] = NONE
            else:
                best = pop_least(row, first_word)
            for i in range(num_fresh):
                if fresh[i] != NONE:
                    this = fresh[i]
                    later = max(this, best)
                    best = min(this, best)
                    if later != NONE:
                        insert(row, first_word, later)
        num_fresh = _0
        if limit_s < np.inf:
            if now + max(ops[op].remaining_s, work_left_s) > limit_s:
                state[_0].over = 1
            work_left_s -= seconds
        spans[op].start_s = now
        spans[op].end_s = end_s
        memory += ops[op].output_bytes
        highest = max(highest, memory)
        if end_s >= other_s or done >= stop_after or state[_0].over != 0:
            how = STARTED
            break
        now = end_s
    device.memory = memory
    device.work_left_s = work_left_s
    device.first_op = first_op
    device.last_op = last_op
    device.best = best
    return how, op, now, end_s, num_fresh, done, highest
