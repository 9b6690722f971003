"""Ready ops: by rank in trees of bits, by age in chains.

A tree of a device has a bit for each rank; the bit of a word stands for a word of 64 below it.
"""

from __future__ import annotations

import numpy as np

from envs.compiling import inlined, trailing_zeros

PRIORITY, FIFO = range(2)
NONE = np.uint32(2**32 - 1)
"""In place of an index: no op, no transfer, no edge."""
_0, _1, _6, _63 = np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(63)


@inlined
def insert(bits, first_word, number):
    """Set the bit of a number, and in the words above it the bits of the words below them; there are no guesses."""
    word, bit = first_word + (np.uint64(number) >> _6), np.uint64(number) & _63
    while True:
        bits[word] |= _1 << bit
        if word == _0:
            return
        word, bit = (word - _1) >> _6, (word - _1) & _63


@inlined
def pop_least(bits, first_word):
    """Clear the lowest number's bit and return the number, or `NONE` where no bit is set."""
    if bits[_0] == _0:
        return NONE
    word = _0
    while word < first_word:
        word = (word << _6) + _1 + trailing_zeros(bits[word])
    bit = trailing_zeros(bits[word])
    number = ((word - first_word) << _6) + bit
    emptied = _1
    while True:
        rest = bits[word] & ~(emptied << bit)
        bits[word] = rest
        if word == _0:
            return np.uint32(number)
        emptied &= np.uint64(rest == _0)
        word, bit = (word - _1) >> _6, (word - _1) & _63


@inlined
def push(devices, bits, first_word, number, rank):
    """Put a ready op, by its rank, among those of a device, which knows the best of them."""
    best = devices[number].best
    if rank < best:
        devices[number].best = rank
        rank = best
    if rank != NONE:
        insert(bits[number], first_word, rank)


@inlined
def pull(devices, bits, first_word, number):
    """Remove and return the best rank of a device's ready ops, or `NONE`."""
    rank = devices[number].best
    if rank != NONE:
        devices[number].best = pop_least(bits[number], first_word)
    return rank


@inlined
def append_op(devices, next_op, number, op):
    """Put an op at the end of a device's chain."""
    device = devices[number]
    if device.first_op == NONE:
        device.first_op = op
    else:
        next_op[device.last_op] = op
    device.last_op = op


@inlined
def take_first(devices, next_op, number):
    """Remove and return the op at the beginning of a device's chain, or `NONE`."""
    device = devices[number]
    op = device.first_op
    if op != NONE:
        device.first_op = next_op[op] if op != device.last_op else NONE
    return op


@inlined
def one_input_more(missing, fresh, num_fresh, reader):
    """An input of an op is there; where it was the last, the op joins `fresh`, without a branch to be guessed."""
    left = missing[reader] - 1
    missing[reader] = left
    fresh[num_fresh] = reader
    return num_fresh + np.uint64(left == 0)


@inlined
def sort(ops, count):
    """Sort ops by index; return False where they are so many in disorder that this would take long."""
    for i in range(_1, count):
        op, at = ops[i], i
        if op < ops[i - _1]:
            if count > np.uint64(32):
                return False
            while at > _0 and ops[at - _1] > op:
                ops[at] = ops[at - _1]
                at -= _1
            ops[at] = op
    return True
