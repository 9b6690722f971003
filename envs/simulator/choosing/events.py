"""The next event: the least of a few slots, in blocks of which each knows its least."""

from __future__ import annotations

import numpy as np

from envs.compiling import inlined

BLOCK = np.uint64(8)
"""Slots of next events that are searched together."""
_0, _1 = np.uint64(0), np.uint64(1)


@inlined
def least(slot_s, first):
    """The least of a block of slots; paired, so that the comparisons need not wait for each other."""
    s0 = min(slot_s[first], slot_s[first + np.uint64(1)])
    s1 = min(slot_s[first + np.uint64(2)], slot_s[first + np.uint64(3)])
    s2 = min(slot_s[first + np.uint64(4)], slot_s[first + np.uint64(5)])
    s3 = min(slot_s[first + np.uint64(6)], slot_s[first + np.uint64(7)])
    return min(min(s0, s1), min(s2, s3))


@inlined
def next_event(slot_s, block_s):
    """The least slot: its time and number, the next of its block, and the next of all."""
    block_at, least_s, other_s = _0, block_s[_0], np.inf
    for block in range(_1, np.uint64(len(block_s))):
        this_s = block_s[block]
        other_s = min(other_s, max(least_s, this_s))
        block_at = block if this_s < least_s else block_at
        least_s = min(least_s, this_s)
    first = block_at * BLOCK
    slot, time_s, next_s = first, slot_s[first], np.inf
    for i in range(_1, BLOCK):
        this_s = slot_s[first + i]
        next_s = min(next_s, max(time_s, this_s))
        slot = first + i if this_s < time_s else slot
        time_s = min(time_s, this_s)
    return time_s, slot, next_s, min(next_s, other_s)


@inlined
def advance_slot(slot_s, block_s, slot, time_s):
    """Give a slot that had no event its next one."""
    slot_s[slot] = time_s
    block_s[slot // BLOCK] = min(block_s[slot // BLOCK], time_s)
