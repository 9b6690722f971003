"""The compiled step simulator for the schedules that choose among ready ops, ``priority`` and ``fifo``.

`envs.simulator` states the rules, `envs.simulator.plain` is the plain version, `envs.simulator.in_order` has the third
schedule.

Why it is fast:

- **No heap of events.** A device runs at most one op, and transfers that come in over the same link direction end in
  the order in which they were reserved. So the next event is the least of a few slots: one for each device and one for
  each incoming direction, in blocks of which each knows its least (`_next_event`).
- **A device runs on alone.** While nothing else is due and its ops send nothing, one ends and the next starts in a loop
  that asks nobody else (`_run_alone`).
- **No heap of ready ops.** Under ``fifo`` ops that become ready are sorted, a handful at a time, and join a linked
  list. Under ``priority``, and where an instant of ``fifo`` has several rounds or very many ops, they are bits in a
  64-ary tree of words by rank (`_insert`, `_pop_least`), of which the best stands apart.
- **Laid out as they run.** Under ``priority`` the ops are numbered by rank (`SimulatorInput.by_priority`), so that a
  device's next op lies beside its last one; on graphs of 100,000 ops that took less than half of the time.
- **No events for transfer starts.** A transfer that waits starts exactly when the transfer before it on its busiest
  direction arrives, so it is hooked to that one.
- **Small records, few guesses.** What is read together lies together, in records of 8 to 32 bytes. Counters are updated
  without branches, which the processor could not guess. Indices are unsigned, which spares numba's check for negative
  ones.
- **Moves resume.** A placement that differs little from one that was simulated is simulated on from a copy of the state
  before the difference (`resume_many`, which `envs.simulator.checkpoints` calls).
- **Nothing is allocated** while simulating: `choosing_work.Work` holds all that changes, one for each thread.

The functions are compiled when first called and kept in numba's cache (see `compiled`). All of them stand in this one
file because numba notices only changes to the file of the function that it cached. They take arrays one by one and are
compiled into one: calls that pass tuples of arrays took several times as long.

Letters: ``B`` placements in a batch, ``N`` ops, ``E`` edges, ``T`` tensors, ``D`` devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

PRIORITY, FIFO = range(2)
ENDING, CHOOSING, STARTED, IDLE = range(4)
NONE = np.uint32(2**32 - 1)
"""In place of an index: no op, no transfer, no edge."""
BLOCK = np.uint64(8)
"""Slots of next events that are searched together."""
EPSILON = 2.0**-52
"""Sums of ``n`` times in two orders differ by less than ``2 n`` times this share of them."""
_0, _1, _6, _63 = np.uint64(0), np.uint64(1), np.uint64(6), np.uint64(63)

_OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy"}

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile on first use, release the GIL, and keep the machine code in numba's cache.

    `_nrt=False` leaves out counting references to arrays, which took nine tenths of the time: nothing here allocates or
    keeps an array, and the caller holds all of them.

    The cache is the `__pycache__` beside this file; where that cannot be written, the user's cache directory, or
    ``NUMBA_CACHE_DIR``. Where none of them can be written numba refuses to cache, and we compile in every process.
    """
    return cached(function, {**_OPTIONS, "no_cfunc_wrapper": True})


def cached(function: F, options: dict[str, Any]) -> F:
    """Compile with options of numba's on first use, and keep the machine code where that can be written."""
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        return cast(F, numba.njit(**options)(function))


def called(function: F) -> F:
    """Compile for compiled callers only; a way in from Python would cost a quarter of the time that compiling takes."""
    options: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(F, numba.njit(**options)(function))


def inlined(function: F) -> F:
    """As `called`, and compile into the callers."""
    options: dict[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast(F, numba.njit(forceinline=True, **options)(function))


@intrinsic
def trailing_zeros(typing_context: Any, word: Any = None) -> Any:
    """Position of the lowest set bit of a word that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def _prefetch(typing_context: Any, array: Any = None, index: Any = None) -> Any:
    """Ask for the cache line of an entry; on graphs of 100,000 ops this spares up to a fifth of the time."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = make_array(signature.args[0])(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, signature.args[0], view, [arguments[1]], wraparound=False)
        byte = builder.bitcast(pointer, cgutils.voidptr_t)
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [byte, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(array, types.uint64), generate


@compiled
def remaining_paths(
    time_s: NDArray[np.float64],
    tensor_offsets: NDArray[np.int32],
    consumer_offsets: NDArray[np.int32],
    consumers: NDArray[np.int32],
    remaining_s: NDArray[np.float64],
) -> None:
    """Fill `remaining_s` ``[N]``: for each op the longest sum of `time_s` along a path that starts with it."""
    for op in range(len(time_s) - 1, -1, -1):
        longest = 0.0
        for e in range(consumer_offsets[tensor_offsets[op]], consumer_offsets[tensor_offsets[op + 1]]):
            longest = max(longest, remaining_s[consumers[e]])
        remaining_s[op] = time_s[op] + longest


@inlined
def _insert(bits, first_word, number):
    """Set the bit of a number, and in the words above it the bits of the words below them; there are no guesses."""
    word, bit = first_word + (np.uint64(number) >> _6), np.uint64(number) & _63
    while True:
        bits[word] |= _1 << bit
        if word == _0:
            return
        word, bit = (word - _1) >> _6, (word - _1) & _63


@inlined
def _pop_least(bits, first_word):
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
def _push(devices, bits, first_word, number, rank):
    """Put a ready op, by its rank, among those of a device, which knows the best of them."""
    best = devices[number].best
    if rank < best:
        devices[number].best = rank
        rank = best
    if rank != NONE:
        _insert(bits[number], first_word, rank)


@inlined
def _pull(devices, bits, first_word, number):
    """Remove and return the best rank of a device's ready ops, or `NONE`."""
    rank = devices[number].best
    if rank != NONE:
        devices[number].best = _pop_least(bits[number], first_word)
    return rank


@inlined
def _least(slot_s, first):
    """The least of a block of slots; paired, so that the comparisons need not wait for each other."""
    s0 = min(slot_s[first], slot_s[first + np.uint64(1)])
    s1 = min(slot_s[first + np.uint64(2)], slot_s[first + np.uint64(3)])
    s2 = min(slot_s[first + np.uint64(4)], slot_s[first + np.uint64(5)])
    s3 = min(slot_s[first + np.uint64(6)], slot_s[first + np.uint64(7)])
    return min(min(s0, s1), min(s2, s3))


@inlined
def _next_event(slot_s, block_s):
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
def _advance_slot(slot_s, block_s, slot, time_s):
    """Give a slot that had no event its next one."""
    slot_s[slot] = time_s
    block_s[slot // BLOCK] = min(block_s[slot // BLOCK], time_s)


@inlined
def _touch(devices, touched, state, device):
    if devices[device].touched == 0:
        devices[device].touched = 1
        touched[state[_0].touched] = device
        state[_0].touched += 1


@inlined
def _append_op(devices, next_op, number, op):
    """Put an op at the end of a device's chain."""
    device = devices[number]
    if device.first_op == NONE:
        device.first_op = op
    else:
        next_op[device.last_op] = op
    device.last_op = op


@inlined
def _take_first(devices, next_op, number):
    """Remove and return the op at the beginning of a device's chain, or `NONE`."""
    device = devices[number]
    op = device.first_op
    if op != NONE:
        device.first_op = next_op[op] if op != device.last_op else NONE
    return op


@inlined
def _one_input_more(missing, fresh, num_fresh, reader):
    """An input of an op is there; where it was the last, the op joins `fresh`, without a branch to be guessed."""
    left = missing[reader] - 1
    missing[reader] = left
    fresh[num_fresh] = reader
    return num_fresh + np.uint64(left == 0)


@inlined
def _sort(ops, count):
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
        _touch(devices, touched, state, destination)
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
    _advance_slot(slot_s, block_s, np.uint64(len(devices)) + np.uint64(route.queue), end_s)
    return end_s


@inlined
def _send(
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
            num_fresh = _one_input_more(missing, fresh, num_fresh, reader)
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
def _drop_inputs(ops, copies, holders, op):
    """An op ended: return the bytes of what it was the last to read."""
    freed = 0
    for i in range(ops[op].first_input, ops[np.uint64(op) + _1].first_input):
        copy = copies[holders[i]]
        size, left = copy.bytes, copy.uses - 1
        copy.uses = left
        freed += size if left == 0 else 0
    return freed


@inlined
def _arrive(readers, waiting, copies, holders, missing, transfers, devices, queue, touched, fresh, state, num_fresh):
    """The first transfer of a queue ends: return when the next one does, and the length of `fresh`."""
    number = np.uint64(queue.first)
    transfer = transfers[number]
    queue.first = transfer.next_arrival
    away = state[_0].first_away + number
    e = copies[away].first_edge
    while e != NONE:
        holders[waiting[e].input] = away
        num_fresh = _one_input_more(missing, fresh, num_fresh, readers[e])
        e = waiting[e].next_edge
    copy = copies[transfer.tensor]
    copy.uses -= 1
    if copy.uses == 0:
        devices[transfer.source].memory -= copy.bytes
    hooked = transfer.first_hooked
    while hooked != NONE:
        destination = transfers[hooked].destination
        devices[destination].memory += copies[state[_0].first_away + np.uint64(hooked)].bytes
        _touch(devices, touched, state, destination)
        hooked = transfers[hooked].next_hooked
    next_s = np.inf
    if queue.first != NONE:
        next_s = transfers[queue.first].end_s
    return next_s, num_fresh


@inlined
def _choose_first_come(devices, next_op, wake, num_awake, fresh, num_fresh, starting, place):
    """Under fifo: fill `starting`, and leave in `fresh`, which is sorted, what starts later; return their lengths."""
    num_starting, left = _0, _0
    for i in range(num_awake):
        op = _take_first(devices, next_op, wake[i])
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
def _choose_by_rank(
    schedule, first_word, next_op, devices, bits, wake, num_awake, fresh, num_fresh, starting, touched, state, place
):  # fmt: skip
    """Queue what is `fresh` by rank, and fill `starting`, whose length is returned.

    Under fifo these ranks order what became ready at this instant, behind a device's chain of older ops.
    """
    num_starting = _0
    for i in range(num_fresh):
        number = np.uint32(place[fresh[i]])
        _push(devices, bits, first_word, number, fresh[i])
        if schedule == FIFO:
            _touch(devices, touched, state, number)
    for i in range(num_awake + num_fresh):
        number = wake[i] if i < num_awake else np.uint32(place[fresh[i - num_awake]])
        if devices[number].running == NONE:
            op = _take_first(devices, next_op, number) if schedule == FIFO else NONE
            if op == NONE:
                op = _pull(devices, bits, first_word, number)
            if op != NONE:
                devices[number].running = op
                starting[num_starting] = op
                num_starting += _1
    return num_starting


@inlined
def _close_instant(first_word, next_op, devices, bits, touched, state, by_rank, peak):
    """Time is about to advance: note peaks, and put the ops that fifo queued by rank behind the older."""
    for i in range(state[_0].touched):
        number = touched[i]
        devices[number].touched = 0
        peak[number] = max(peak[number], devices[number].memory)
        if by_rank:
            op = _pull(devices, bits, first_word, number)
            while op != NONE:
                _append_op(devices, next_op, number, op)
                op = _pull(devices, bits, first_word, number)
    state[_0].touched = 0


@inlined
def _run_alone(
    schedule, op_time_s, first_word, ops, next_op, spans, missing, copies, readers, holders, devices, bits, fresh,
    state, place, number, op, now, other_s, done, stop_after, highest,
):  # fmt: skip
    """A device runs on from the end of an op, which is now, while nothing else is due and no op of it sends.

    This is what `_run_on` does, pass by pass, where one op ends and one starts. It returns how it ended and why:

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
            num_fresh = _one_input_more(missing, fresh, num_fresh, readers[e])
        memory -= _drop_inputs(ops, copies, holders, op)
        done += _1
        rank, at = NONE, _0
        if schedule == FIFO:
            if not _sort(fresh, num_fresh):
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
                best = _pop_least(row, first_word)
            for i in range(num_fresh):
                if fresh[i] != NONE:
                    this = fresh[i]
                    later = max(this, best)
                    best = min(this, best)
                    if later != NONE:
                        _insert(row, first_word, later)
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
def _run_on(work, place, peak, now, stop_after, num_fresh):
    """Go on from an instant; return the step time, or infinity where it is proven to exceed the limit.

    At the instant the first `num_fresh` ops of `fresh` become ready. Where `stop_after` ops have ended before a later
    instant is due, stop there and return the instant before it.

    Each pass applies what is due, starts ops, and finds what is due next. Where that is one thing, the time of the next
    after it is known: a device whose ops end before that, and send nothing, runs on alone without a pass an op.
    """
    (schedule, op_time_s, order, _, _, _, _, _, route_directions, first_word, ops, next_op, spans, missing, copies,
     tensors, readers, waiting, holders, _, transfers, devices, routes, directions, queues, bits, destinations, ended,
     arriving, wake, starting, fresh, touched, _, slot_s, block_s, state, _, _) = work  # fmt: skip
    num_devices = np.uint64(len(devices))
    num_ended, num_arriving, num_awake, done = _0, _0, _0, np.uint64(state[_0].ended)
    other_s, by_rank = -np.inf, False
    while True:
        soonest_s, ahead, ahead_s = np.inf, NONE, np.inf
        for i in range(num_arriving):
            queue = np.uint64(arriving[i])
            next_s, num_fresh = _arrive(
                readers, waiting, copies, holders, missing, transfers, devices, queues[queue], touched, fresh, state,
                num_fresh,
            )  # fmt: skip
            _advance_slot(slot_s, block_s, num_devices + queue, next_s)
            soonest_s = min(soonest_s, next_s)
        for i in range(num_ended):
            op = np.uint64(ended[i])
            number = np.uint32(place[op])
            devices[number].running = NONE
            wake[num_awake] = number
            num_awake += _1
            for tensor in range(ops[op].first_tensor, ops[op + _1].first_tensor):
                num_fresh, soonest_s = _send(
                    route_directions, readers, waiting, copies, tensors, missing, transfers, devices, routes,
                    directions, queues, destinations, touched, slot_s, block_s, fresh, state, place, np.uint64(tensor),
                    number, now, num_fresh, soonest_s,
                )  # fmt: skip
            devices[number].memory -= _drop_inputs(ops, copies, holders, op)
        done += num_ended
        other_s = min(other_s, soonest_s)
        if soonest_s > now:  # else a transfer that takes no time arrives in the round of its start
            left = _0
            if schedule == FIFO and not by_rank and _sort(fresh, num_fresh):
                num_starting, left = _choose_first_come(
                    devices, next_op, wake, num_awake, fresh, num_fresh, starting, place
                )  # fmt: skip
            else:
                num_starting = _choose_by_rank(
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
                _prefetch(copies, np.uint64(ops[op].first_tensor))
                _prefetch(holders, np.uint64(ops[op].first_input))
                end_s = now + seconds
                spans[op].start_s = now
                spans[op].end_s = end_s
                device.memory += ops[op].output_bytes
                _touch(devices, touched, state, number)
                soonest_s = min(soonest_s, end_s)
                if num_starting == _1 and now < end_s and end_s < other_s and done < stop_after:
                    ahead, ahead_s = np.uint32(op), end_s
                else:
                    _advance_slot(slot_s, block_s, np.uint64(number), end_s)
            if soonest_s > now:
                for i in range(left):
                    _append_op(devices, next_op, np.uint32(place[fresh[i]]), fresh[i])
                _close_instant(first_word, next_op, devices, bits, touched, state, by_rank, peak)
                by_rank = False
            else:  # an op that takes no time makes another round of the instant
                by_rank = schedule == FIFO
                for i in range(left):
                    number = np.uint32(place[fresh[i]])
                    _push(devices, bits, first_word, number, fresh[i])
                    _touch(devices, touched, state, number)
            num_fresh, num_awake = _0, _0
        num_ended, num_arriving = _0, _0
        passing = False
        while not passing and state[_0].over == 0:
            if ahead == NONE:
                time_s, slot, next_s, other_s = _next_event(slot_s, block_s)
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
            how, op, now, end_s, num_fresh, done, highest = _run_alone(
                schedule, op_time_s, first_word, ops, next_op, spans, missing, copies, readers, holders, devices,
                bits, fresh, state, place, number, np.uint64(ahead), ahead_s, other_s, done, stop_after,
                peak[number],
            )  # fmt: skip
            peak[number] = highest
            devices[number].running = NONE
            ahead = NONE
            if how == STARTED:
                devices[number].running = np.uint32(op)
                _advance_slot(slot_s, block_s, np.uint64(number), end_s)
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
            block_s[block] = _least(slot_s, block * BLOCK)


@inlined
def _take_over(work, place):
    """Bring a placement ``[N]`` into the order in which the ops are laid out."""
    if work.schedule == FIFO:
        _copy(work.place, place, len(place))
    else:
        for i in range(np.uint64(len(place))):
            work.place[i] = place[work.order[i]]


@inlined
def _begin(work, limit_s, peak):
    """Make ready for the step of the placement that was taken over; return how many ops are ready."""
    _reset(
        work.op_time_s, work.resident_ops, work.resident_bytes, work.num_inputs, work.missing, work.holders,
        work.home_holders, work.devices, work.work_s, work.directions, work.queues, work.slot_s, work.block_s,
        work.state, work.place, peak, limit_s,
    )  # fmt: skip
    _copy(work.fresh, work.sources, len(work.sources))
    return np.uint64(len(work.sources))


@compiled
def simulate_many(work, placements, limit_s, step_time_s, peak_memory_bytes):
    """Simulate placements ``[B, N]`` under limits ``[B]`` into ``[B]`` and ``[B, D]``, and the last trace into `work`.

    Where a step is proven to take longer than its limit, it is stopped, and infinity given. Two things prove it,
    whenever an op starts: its longest remaining path, and what its device has still to compute.
    """
    for b in range(len(placements)):
        _take_over(work, placements[b])
        num_fresh, peak = _begin(work, limit_s[b], peak_memory_bytes[b]), peak_memory_bytes[b]
        step_time_s[b] = np.inf
        if work.state[_0].over == 0:
            step_time_s[b] = _run_on(work, work.place, peak, 0.0, np.uint64(NONE), num_fresh)


@inlined
def _copy(to, source, count):
    """Copy entries; numba copies slices only by way of an array that it allocates."""
    for i in range(np.uint64(count)):
        to[i] = source[i]


@compiled
def simulate_with_checkpoints(work, kept, placement, peak):
    """Simulate one placement ``[N]``, return its step time, and keep in `kept` what `resume_many` needs.

    Checkpoints are taken when equal parts of the ops have ended, each between two instants. The first part is double:
    to simulate less than that anew takes no longer than to restore it.
    """
    _take_over(work, placement)
    place = work.place
    num_fresh = _begin(work, np.inf, peak)
    count, num_ops = np.uint64(len(kept.now_s)), np.uint64(len(place))
    now = 0.0
    for c in range(count + _1):
        stop_after = num_ops * (c + np.uint64(2)) // (count + np.uint64(2)) if c < count else np.uint64(NONE)
        now = _run_on(work, place, peak, now, stop_after, num_fresh)
        num_fresh = _0
        if c == count:
            break
        kept.now_s[c] = now
        sent = np.uint64(work.state[_0].transfers)
        for d in range(np.uint64(len(work.devices))):
            _copy(kept.bits[c, d], work.bits[d], len(work.bits[d]))
        _copy(kept.peak[c], peak, len(peak))
        _copy(kept.missing[c], work.missing, len(work.missing))
        _copy(kept.next_op[c], work.next_op, len(work.next_op))
        _copy(kept.copies[c], work.copies, work.state[_0].first_away + sent)
        _copy(kept.holders[c], work.holders, len(work.holders))
        _copy(kept.transfers[c], work.transfers, sent)
        _copy(kept.devices[c], work.devices, len(work.devices))
        _copy(kept.directions[c], work.directions, len(work.directions))
        _copy(kept.queues[c], work.queues, len(work.queues))
        _copy(kept.slot_s[c], work.slot_s, len(work.slot_s))
        _copy(kept.block_s[c], work.block_s, len(work.block_s))
        kept.state[c] = work.state[_0]
    _copy(kept.place, place, num_ops)
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
    _copy(peak, kept.peak[c], len(peak))
    _copy(work.missing, kept.missing[c], len(work.missing))
    _copy(work.next_op, kept.next_op[c], len(work.next_op))
    _copy(work.copies, kept.copies[c], kept.state[c].first_away + sent)
    _copy(work.holders, kept.holders[c], len(work.holders))
    _copy(work.transfers, kept.transfers[c], sent)
    _copy(work.devices, kept.devices[c], len(work.devices))
    _copy(work.directions, kept.directions[c], len(work.directions))
    _copy(work.queues, kept.queues[c], len(work.queues))
    _copy(work.slot_s, kept.slot_s[c], len(work.slot_s))
    _copy(work.block_s, kept.block_s[c], len(work.block_s))
    work.state[_0] = kept.state[c]
    work.state[_0].limit_s = limit_s * (1.0 + 4.0 * len(place) * EPSILON)
    for d in range(np.uint64(len(work.devices))):
        _copy(work.bits[d], kept.bits[c, d], len(work.bits[d]))
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
        _take_over(work, placements[b])
        place, peak = work.place, peak_memory_bytes[b]
        until_s = _unchanged_until(work, kept, place)
        c = np.uint64(len(kept.now_s))
        while c > _0 and kept.now_s[c - _1] >= until_s:
            c -= _1
        if c == _0:
            now = 0.0
            num_fresh = _begin(work, limit_s[b], peak)
        else:
            now = kept.now_s[c - _1]
            num_fresh = _0
            _restore(work, kept, c - _1, place, limit_s[b], peak)
            _move(work, kept, c - _1, place, peak)
        resumed_s[b] = now
        step_time_s[b] = np.inf
        if work.state[_0].over == 0:
            step_time_s[b] = _run_on(work, place, peak, now, np.uint64(NONE), num_fresh)
