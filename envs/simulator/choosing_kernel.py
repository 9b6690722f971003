"""The compiled step simulator for the schedules that choose among ready ops, ``priority`` and ``fifo``.

`envs.simulator` states the rules, `envs.simulator.plain` is the plain version, `envs.simulator.in_order` has the third
schedule.

Why it is fast:

- **No heap of events.** A device runs at most one op, and transfers that come in over the same link direction end in
  the order in which they were reserved. So the next event is the least of a few slots: one for each device and one for
  each incoming direction, in blocks of which each knows its least (`_least`).
- **No heap of ready ops.** Ops of a schedule have fixed ranks, so the ready ops of a device are bits in a 64-ary tree
  of words (`_insert`, `_pop_least`). Under ``fifo`` the bits hold only the ops that became ready at the present
  instant; when time advances they move, in order, to the end of a linked list.
- **No events for transfer starts.** A transfer that waits starts exactly when the transfer before it on its busiest
  direction arrives, so it is hooked to that one.
- **Records, not columns.** An event touches an op, its tensors and their readers at random places, so all that it needs
  of an op lies in one cache line. Indices are unsigned, which spares numba's check for negative ones.
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
def _trailing_zeros(typing_context: Any, word: Any = None) -> Any:
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
    """Set the bit of a number, and in the words above it the bits of the words below them."""
    word, bit = first_word + (np.uint64(number) >> _6), np.uint64(number) & _63
    while True:
        old = bits[word]
        bits[word] = old | (_1 << bit)
        if old != _0 or word == _0:
            return
        word, bit = (word - _1) >> _6, (word - _1) & _63


@inlined
def _pop_least(bits, first_word):
    """Clear the lowest number's bit and return the number, or `NONE` where no bit is set."""
    if bits[_0] == _0:
        return NONE
    word = _0
    while word < first_word:
        word = (word << _6) + _1 + _trailing_zeros(bits[word])
    number = ((word - first_word) << _6) + _trailing_zeros(bits[word])
    while True:
        rest = bits[word] & (bits[word] - _1)
        bits[word] = rest
        if rest != _0 or word == _0:
            return np.uint32(number)
        word = (word - _1) >> _6


@inlined
def _least(slot_s, first):
    """The least of a block of slots; paired, so that the comparisons need not wait for each other."""
    s0 = min(slot_s[first], slot_s[first + np.uint64(1)])
    s1 = min(slot_s[first + np.uint64(2)], slot_s[first + np.uint64(3)])
    s2 = min(slot_s[first + np.uint64(4)], slot_s[first + np.uint64(5)])
    s3 = min(slot_s[first + np.uint64(6)], slot_s[first + np.uint64(7)])
    return min(min(s0, s1), min(s2, s3))


@inlined
def _least_of_all(block_s):
    """The time of the next event."""
    least = block_s[_0]
    for block in range(_1, np.uint64(len(block_s))):
        least = min(least, block_s[block])
    return least


@inlined
def _advance_slot(slot_s, block_s, slot, time_s):
    """Give a slot that had no event its next one."""
    slot_s[slot] = time_s
    if time_s < block_s[slot // BLOCK]:
        block_s[slot // BLOCK] = time_s


@inlined
def _touch(devices, touched, state, device):
    if devices[device].touched == 0:
        devices[device].touched = 1
        touched[state[_0].touched] = device
        state[_0].touched += 1


@inlined
def _wake(devices, wake, state, device):
    if devices[device].awake == 0:
        devices[device].awake = 1
        wake[state[_0].awake] = device
        state[_0].awake += 1


@inlined
def _make_ready(schedule, first_word, ops, devices, bits, wake, touched, state, op):
    """All inputs of the op are on its device."""
    device = ops[op].device
    _insert(bits[device], first_word, ops[op].rank)
    if schedule == FIFO:
        _touch(devices, touched, state, device)
    if devices[device].running == NONE:
        _wake(devices, wake, state, device)


@inlined
def _take_best(schedule, op_of_rank, first_word, ops, devices, bits, device):
    """Remove and return the ready op that the device runs next, or `NONE`."""
    if schedule == PRIORITY:
        rank = _pop_least(bits[device], first_word)
        return op_of_rank[rank] if rank != NONE else NONE
    op = devices[device].first_op
    if op == NONE:
        return _pop_least(bits[device], first_word)
    devices[device].first_op = ops[op].next_op
    return op


@inlined
def _append_op(ops, device, op):
    """Put an op at the end of a device's chain."""
    ops[op].next_op = NONE
    if device.first_op == NONE:
        device.first_op = op
    else:
        ops[device.last_op].next_op = op
    device.last_op = op


@inlined
def _close_instant(schedule, first_word, ops, devices, bits, touched, state, peak):
    """Time is about to advance: note peaks, and under fifo put the ops that became ready behind the older ones."""
    for i in range(state[_0].touched):
        number = touched[i]
        device = devices[number]
        device.touched = 0
        peak[number] = max(peak[number], device.memory)
        if schedule == FIFO:
            op = _pop_least(bits[number], first_word)
            while op != NONE:
                _append_op(ops, device, op)
                op = _pop_least(bits[number], first_word)
    state[_0].touched = 0


@inlined
def _reserve(
    route_directions, transfers, devices, routes, directions, queues, touched, slot_s, block_s, state,
    tensor, size, priced_as, source, destination, now,
):  # fmt: skip
    """Reserve the route for a transfer; `priced_as` is the entry of `routes` that says what it takes, 0 for its own."""
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
    transfer = transfers[number]
    transfer.start_s = start_s
    transfer.end_s = end_s
    transfer.bytes = size
    transfer.tensor = tensor
    transfer.destination = destination
    transfer.uses = devices[destination].readers
    transfer.first_edge = devices[destination].first_edge
    transfer.next_arrival = NONE
    transfer.first_hooked = NONE
    if blocker == NONE:
        devices[destination].memory += size
        _touch(devices, touched, state, destination)
    else:
        transfer.next_hooked = transfers[blocker].first_hooked
        transfers[blocker].first_hooked = number
    queue = queues[route.queue]
    if queue.first == NONE:
        queue.first = number
        _advance_slot(slot_s, block_s, np.uint64(len(devices)) + np.uint64(route.queue), end_s)
    else:
        transfers[queue.last].next_arrival = number
    queue.last = number


@inlined
def _send(
    schedule, first_word, route_directions, ops, tensors, edges, transfers, devices, routes, directions,
    queues, bits, destinations, wake, touched, slot_s, block_s, state, tensor_number, source, now,
):  # fmt: skip
    """A tensor is made: serve its readers on the device, and reserve a transfer to each other device with readers."""
    tensor = tensors[tensor_number]
    local, remote = 0, _0
    for e in range(tensor.first_edge, tensors[tensor_number + _1].first_edge):
        reader = edges[e].reader
        target = ops[reader].device
        if target == source:
            local += 1
            ops[reader].missing -= 1
            if ops[reader].missing == 0:
                _make_ready(schedule, first_word, ops, devices, bits, wake, touched, state, reader)
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
            edges[e].next_edge = devices[target].first_edge
            devices[target].first_edge = e
    tensor.uses = local + np.int64(remote)
    if tensor.uses == 0:
        devices[source].memory -= tensor.local_bytes
    for i in range(remote):
        _reserve(
            route_directions, transfers, devices, routes, directions, queues, touched, slot_s, block_s, state,
            tensor_number, tensor.bytes, tensor.priced_as, source, destinations[i], now,
        )  # fmt: skip
        devices[destinations[i]].readers = 0


@inlined
def _drop_inputs(ops, tensors, holders, transfers, devices, op):
    """An op ended: free what it was the last to read."""
    device = devices[ops[op].device]
    for i in range(ops[op].first_input, ops[op + _1].first_input):
        number = np.uint64(holders[i]) >> _1
        if np.uint64(holders[i]) & _1 == _0:
            tensors[number].uses -= 1
            if tensors[number].uses == 0:
                device.memory -= tensors[number].local_bytes
        else:
            transfers[number].uses -= 1
            if transfers[number].uses == 0:
                device.memory -= transfers[number].bytes


@inlined
def _arrive(schedule, first_word, ops, tensors, edges, holders, transfers, devices, queue, bits, wake, touched, state):
    """The first transfer of a queue ends: return when the next one does."""
    number = np.uint64(queue.first)
    transfer = transfers[number]
    queue.first = transfer.next_arrival
    e = transfer.first_edge
    while e != NONE:
        reader = edges[e].reader
        holders[edges[e].input] = (number << _1) | _1
        ops[reader].missing -= 1
        if ops[reader].missing == 0:
            _make_ready(schedule, first_word, ops, devices, bits, wake, touched, state, reader)
        e = edges[e].next_edge
    tensor = tensors[transfer.tensor]
    tensor.uses -= 1
    if tensor.uses == 0:
        devices[ops[tensor.producer].device].memory -= tensor.local_bytes
    hooked = transfer.first_hooked
    while hooked != NONE:
        starting = transfers[hooked]
        devices[starting.destination].memory += starting.bytes
        _touch(devices, touched, state, starting.destination)
        hooked = starting.next_hooked
    return transfers[queue.first].end_s if queue.first != NONE else np.inf


@inlined
def _start_ops(
    schedule, op_time_s, op_of_rank, first_word, ops, tensors, holders, devices, bits, wake, touched, slot_s, block_s,
    state, now,
):  # fmt: skip
    """Every idle device that may have a ready op starts its best one."""
    for i in range(state[_0].awake):
        number = wake[i]
        device = devices[number]
        device.awake = 0
        op = _take_best(schedule, op_of_rank, first_word, ops, devices, bits, number)
        if op == NONE:
            continue
        if state[_0].limit_s < np.inf:
            left_s = max(ops[op].remaining_s, device.work_left_s)
            if now + left_s > state[_0].limit_s:
                state[_0].over = 1
            device.work_left_s -= op_time_s[device.spec, op]
        device.running = op
        # What its end will need; by then other events have passed.
        _prefetch(tensors, np.uint64(ops[op].first_tensor))
        _prefetch(holders, np.uint64(ops[op].first_input))
        end_s = now + op_time_s[device.spec, op]
        ops[op].start_s = now
        ops[op].end_s = end_s
        device.memory += ops[op].output_bytes
        _touch(devices, touched, state, number)
        _advance_slot(slot_s, block_s, number, end_s)
    state[_0].awake = 0


@inlined
def _reset(
    op_time_s, resident_bytes, ops, holders, home_holders, devices, directions, queues, slot_s, block_s, state,
    place, peak, limit_s,
):  # fmt: skip
    """Put everything back to the start of a step."""
    state[_0].limit_s = limit_s * (1.0 + 4.0 * len(place) * EPSILON)
    state[_0].over = 0
    state[_0].transfers = 0
    state[_0].ended = 0
    state[_0].awake = 0
    state[_0].touched = 0
    for device in devices:
        device.memory = 0
        device.work_left_s = 0.0
        device.running = NONE
        device.first_op = NONE
        device.awake = 0
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
        ops[op].missing = ops[op].num_inputs
        ops[op].device = place[op]
        device = devices[ops[op].device]
        device.memory += resident_bytes[op]
        if limit_s < np.inf:
            device.work_left_s += op_time_s[device.spec, op]
    for d in range(len(devices)):
        peak[d] = devices[d].memory
        if devices[d].work_left_s > state[_0].limit_s:
            state[_0].over = 1


@inlined
def _run_on(work, peak, now, stop_after):
    """Go on from an instant that is over; return the step time, or infinity where it is proven to exceed the limit.

    Where `stop_after` ops have ended before an instant is due, stop there and return the instant before it.
    """
    (schedule, op_time_s, op_of_rank, _, _, route_directions, first_word, ops, tensors, edges,
     holders, _, transfers, devices, routes, directions, queues, bits, destinations, ended, wake, touched,
     slot_s, block_s, state) = work  # fmt: skip
    num_devices, num_blocks = np.uint64(len(devices)), np.uint64(len(block_s))
    time_s = _least_of_all(block_s)
    while time_s < np.inf:
        if time_s > now:
            _close_instant(schedule, first_word, ops, devices, bits, touched, state, peak)
            if state[_0].ended >= stop_after:
                return now
            now = time_s
        while time_s == now:
            num_ended = _0
            for block in range(num_blocks):
                if block_s[block] != now:
                    continue
                for slot in range(block * BLOCK, (block + _1) * BLOCK):
                    if slot_s[slot] != now:
                        continue
                    if slot < num_devices:
                        # Ops end in op index order, which matters where they reserve the same links.
                        op = devices[slot].running
                        i = num_ended
                        while i > _0 and ended[i - _1] > op:
                            ended[i] = ended[i - _1]
                            i -= _1
                        ended[i] = op
                        num_ended += _1
                        slot_s[slot] = np.inf
                    else:
                        slot_s[slot] = _arrive(
                            schedule, first_word, ops, tensors, edges, holders, transfers, devices,
                            queues[slot - num_devices], bits, wake, touched, state,
                        )  # fmt: skip
                block_s[block] = _least(slot_s, block * BLOCK)
            for i in range(num_ended):
                op = ended[i]
                device = ops[op].device
                devices[device].running = NONE
                _wake(devices, wake, state, device)
                for tensor in range(ops[op].first_tensor, ops[op + _1].first_tensor):
                    _send(
                        schedule, first_word, route_directions, ops, tensors, edges, transfers, devices,
                        routes, directions, queues, bits, destinations, wake, touched, slot_s, block_s, state,
                        tensor, device, now,
                    )  # fmt: skip
                _drop_inputs(ops, tensors, holders, transfers, devices, op)
            state[_0].ended += num_ended
            time_s = _least_of_all(block_s)  # a transfer that takes no time arrives in the round of its start
        _start_ops(
            schedule, op_time_s, op_of_rank, first_word, ops, tensors, holders, devices, bits, wake, touched, slot_s,
            block_s, state, now,
        )  # fmt: skip
        if state[_0].over != 0:
            bits[:] = _0
            return np.inf
        time_s = _least_of_all(block_s)
    return now


@inlined
def _begin(work, place, limit_s, peak):
    """Start the step of one placement ``[N]``; return False where it is proven at once to exceed the limit."""
    _reset(
        work.op_time_s, work.resident_bytes, work.ops, work.holders, work.home_holders, work.devices, work.directions,
        work.queues, work.slot_s, work.block_s, work.state, place, peak, limit_s,
    )  # fmt: skip
    if work.state[_0].over != 0:
        return False
    for op in work.sources:
        _make_ready(
            work.schedule, work.first_word, work.ops, work.devices, work.bits, work.wake, work.touched, work.state, op
        )
    _start_ops(
        work.schedule, work.op_time_s, work.op_of_rank, work.first_word, work.ops, work.tensors, work.holders,
        work.devices, work.bits, work.wake, work.touched, work.slot_s, work.block_s, work.state, 0.0,
    )  # fmt: skip
    return True


@inlined
def _simulate(work, place, limit_s, peak):
    """Simulate one placement ``[N]``: return the step time, fill `peak` ``[D]`` and the trace in `work`.

    Where the step is proven to take longer than `limit_s`, stop and return infinity. Two things prove it, whenever an
    op starts: its longest remaining path, and what its device has still to compute.
    """
    return _run_on(work, peak, 0.0, NONE) if _begin(work, place, limit_s, peak) else np.inf


@compiled
def simulate_many(work, placements, limit_s, step_time_s, peak_memory_bytes):
    """Simulate placements ``[B, N]`` under limits ``[B]`` into ``[B]`` and ``[B, D]``."""
    for b in range(len(placements)):
        step_time_s[b] = _simulate(work, placements[b], limit_s[b], peak_memory_bytes[b])


@inlined
def _copy(to, source, count):
    """Copy entries; numba copies slices only by way of an array that it allocates."""
    for i in range(np.uint64(count)):
        to[i] = source[i]


@compiled
def simulate_with_checkpoints(work, kept, place, peak):
    """Simulate one placement ``[N]``, return its step time, and keep in `kept` what `resume_many` needs.

    Checkpoints are taken when equal parts of the ops have ended, each between two instants. The first part is double:
    to simulate less than that anew takes no longer than to restore it.
    """
    _begin(work, place, np.inf, peak)
    count, num_ops = np.uint64(len(kept.now_s)), np.uint64(len(place))
    now = 0.0
    for c in range(count):
        now = _run_on(work, peak, now, num_ops * (c + np.uint64(2)) // (count + np.uint64(2)))
        kept.now_s[c] = now
        for op in range(num_ops):
            kept.missing[c, op] = work.ops[op].missing
            kept.next_op[c, op] = work.ops[op].next_op
        for t in range(np.uint64(len(work.tensors))):
            kept.uses[c, t] = work.tensors[t].uses
        for d in range(np.uint64(len(work.devices))):
            _copy(kept.bits[c, d], work.bits[d], len(work.bits[d]))
        _copy(kept.peak[c], peak, len(peak))
        _copy(kept.holders[c], work.holders, len(work.holders))
        _copy(kept.transfers[c], work.transfers, work.state[_0].transfers)
        _copy(kept.devices[c], work.devices, len(work.devices))
        _copy(kept.directions[c], work.directions, len(work.directions))
        _copy(kept.queues[c], work.queues, len(work.queues))
        _copy(kept.slot_s[c], work.slot_s, len(work.slot_s))
        _copy(kept.block_s[c], work.block_s, len(work.block_s))
        kept.state[c] = work.state[_0]
    now = _run_on(work, peak, now, NONE)
    _copy(kept.place, place, num_ops)
    for op in range(num_ops):
        kept.op_start_s[op] = work.ops[op].start_s
        kept.op_end_s[op] = work.ops[op].end_s
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
    for e in range(work.tensors[tensor].first_edge, work.tensors[tensor + _1].first_edge):
        reader = work.edges[e].reader
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
            if work.tensors[tensor].local_bytes > 0:
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
            tensor = work.home_holders[i] >> _1
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
    _copy(peak, kept.peak[c], len(peak))
    _copy(work.holders, kept.holders[c], len(work.holders))
    _copy(work.transfers, kept.transfers[c], kept.state[c].transfers)
    _copy(work.devices, kept.devices[c], len(work.devices))
    _copy(work.directions, kept.directions[c], len(work.directions))
    _copy(work.queues, kept.queues[c], len(work.queues))
    _copy(work.slot_s, kept.slot_s[c], len(work.slot_s))
    _copy(work.block_s, kept.block_s[c], len(work.block_s))
    work.state[_0] = kept.state[c]
    work.state[_0].limit_s = limit_s * (1.0 + 4.0 * len(place) * EPSILON)
    for d in range(np.uint64(len(work.devices))):
        _copy(work.bits[d], kept.bits[c, d], len(work.bits[d]))
    for t in range(np.uint64(len(work.tensors))):
        work.tensors[t].uses = kept.uses[c, t]
    for op in range(np.uint64(len(place))):
        work.ops[op].missing = kept.missing[c, op]
        work.ops[op].next_op = kept.next_op[c, op]
        work.ops[op].device = place[op]
        if limit_s < np.inf and kept.op_start_s[op] > kept.now_s[c]:  # checkpoints are taken without a limit
            device = work.devices[np.uint32(place[op])]
            device.work_left_s += work.op_time_s[device.spec, op]


@inlined
def _count_readers_again(work, kept, tensor, now):
    """Of a tensor that is made, count the users of each copy, and chain those that wait for it."""
    kept.marks[tensor] = kept.mark[_0]
    home = work.ops[work.tensors[tensor].producer].device
    work.tensors[tensor].uses = 0
    k = np.uint64(kept.first_transfer[tensor])
    while k < np.uint64(work.state[_0].transfers) and work.transfers[k].tensor == tensor:
        work.devices[work.transfers[k].destination].first_edge = k
        work.transfers[k].uses = 0
        if work.transfers[k].end_s > now:
            work.transfers[k].first_edge = NONE
            work.tensors[tensor].uses += 1
        k += _1
    for e in range(work.tensors[tensor].first_edge, work.tensors[tensor + _1].first_edge):
        reader = work.edges[e].reader
        if kept.op_end_s[reader] <= now:
            continue
        if work.ops[reader].device == home:
            work.tensors[tensor].uses += 1
        else:
            transfer = work.transfers[work.devices[work.ops[reader].device].first_edge]
            transfer.uses += 1
            if transfer.end_s > now:
                work.edges[e].next_edge = transfer.first_edge
                transfer.first_edge = e


@inlined
def _move(work, kept, c, place, peak):
    """Make a restored checkpoint one of another placement: each op that moves is not ready before or after."""
    now = kept.now_s[c]
    kept.mark[_0] += 1
    for k in range(work.state[_0].transfers):
        tensor = work.transfers[k].tensor
        if work.transfers[k].end_s > now and kept.marks[tensor] != kept.mark[_0]:
            _count_readers_again(work, kept, tensor, now)
    for op in range(np.uint64(len(place))):
        before, after = kept.place[op], place[op]
        if before == after:
            continue
        work.devices[np.uint32(before)].memory -= work.resident_bytes[op]
        work.devices[np.uint32(after)].memory += work.resident_bytes[op]
        peak[before] -= work.resident_bytes[op]
        peak[after] += work.resident_bytes[op]
        work.ops[op].missing = work.ops[op].num_inputs
        for i in range(work.ops[op].first_input, work.ops[op + _1].first_input):
            work.holders[i] = work.home_holders[i]
            tensor = work.home_holders[i] >> _1
            producer = work.tensors[tensor].producer
            if kept.op_end_s[producer] > now:
                continue
            if kept.marks[tensor] != kept.mark[_0]:
                _count_readers_again(work, kept, tensor, now)
            if place[producer] == after:
                work.ops[op].missing -= 1
                continue
            k = np.uint64(kept.first_transfer[tensor])
            while np.int64(work.transfers[k].destination) != after:
                k += _1
            if work.transfers[k].end_s <= now:
                work.ops[op].missing -= 1
                work.holders[i] = (k << _1) | _1


@compiled
def resume_many(work, kept, placements, limit_s, step_time_s, peak_memory_bytes, resumed_s):
    """As `simulate_many`, from the last checkpoint before anything differs; `resumed_s` ``[B]`` says when that was.

    It equals `simulate_many`, which is the plain version, to the last bit: up to a time at which no op that moves can
    have been ready and each tensor is sent and freed as before, the same things happen under both placements.
    """
    for b in range(len(placements)):
        place, peak = placements[b], peak_memory_bytes[b]
        until_s = _unchanged_until(work, kept, place)
        c = np.uint64(len(kept.now_s))
        while c > _0 and kept.now_s[c - _1] >= until_s:
            c -= _1
        if c == _0:
            resumed_s[b] = 0.0
            step_time_s[b] = _simulate(work, place, limit_s[b], peak)
        else:
            c -= _1
            resumed_s[b] = kept.now_s[c]
            _restore(work, kept, c, place, limit_s[b], peak)
            _move(work, kept, c, place, peak)
            step_time_s[b] = _run_on(work, peak, kept.now_s[c], NONE)
