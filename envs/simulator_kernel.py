"""The compiled step simulator; `envs.simulator` states the rules, `envs.simulator_plain` is the plain version.

Why it is fast:

- **No heap of events.** A device runs at most one op, and transfers that come in over the same link direction end in
  the order in which they were reserved. So the next event is the least of the running ops' ends and of the first
  arrival on each incoming direction: a tournament tree over few leaves (`_set_leaf`) finds it.
- **No heap of ready ops.** Ops of a schedule have fixed ranks, so the ready ops of a device are bits in a 64-ary tree
  of words (`_insert`, `_pop_least`). Under ``fifo`` the bits hold only the ops that became ready at the present
  instant; when time advances they move, in order, to the end of a linked list.
- **No events for transfer starts.** A transfer that waits starts exactly when the transfer before it on its busiest
  direction arrives, so it is hooked to that one.
- **Records, not columns.** An event touches an op, its tensors and their readers at random places, so all that it needs
  of an op lies in one cache line.
- **Nothing is allocated** while simulating: `Work` holds all that changes, one for each thread.

The functions are compiled when first called and kept in numba's cache (see `_compiled`). All of them stand in this one
file because numba notices only changes to the file of the function that it cached. They pass arrays one by one: a tuple
of arrays would be copied, and every array's references counted, at each call.

Letters: ``B`` placements in a batch, ``N`` ops, ``E`` edges, ``T`` tensors, ``D`` devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

if TYPE_CHECKING:
    from envs.simulator import SimulatorInput

PRIORITY, FIFO, PROGRAM_ORDER = range(3)

F = TypeVar("F", bound=Callable[..., Any])

OP = np.dtype(
    [
        ("missing", np.int32),  # inputs that are not yet there
        ("device", np.int32),
        ("rank", np.int32),  # by priority, or the op's index
        ("num_inputs", np.int32),
        ("first_tensor", np.int32),  # up to the next op's
        ("first_input", np.int32),  # of `Work.holders`, up to the next op's
        ("next_op", np.int32),  # chain of a device's ops: in program order, or ready (fifo)
        ("_", np.int32),
        ("start_s", np.float64),
        ("end_s", np.float64),
        ("output_bytes", np.int64),  # sum of `local_bytes` of its tensors
        ("resident_bytes", np.int64),
    ],
    align=True,
)
TENSOR = np.dtype(
    [
        ("bytes", np.int64),
        ("local_bytes", np.int64),  # 0 where the tensor is resident
        ("first_edge", np.int32),  # up to the next tensor's
        ("uses", np.int32),  # readers at home and departures that have not ended
        ("producer", np.int32),
    ],
    align=True,
)
EDGE = np.dtype(
    [
        ("reader", np.int32),
        ("input", np.int32),  # position in `Work.holders`
        ("next_edge", np.int32),  # chain of the edges that a transfer serves
    ],
    align=True,
)
TRANSFER = np.dtype(
    [
        ("start_s", np.float64),
        ("end_s", np.float64),
        ("bytes", np.int64),
        ("tensor", np.int32),
        ("destination", np.int32),
        ("uses", np.int32),  # readers of the copy that have not ended
        ("first_edge", np.int32),
        ("next_arrival", np.int32),  # chain of a queue
        ("first_hooked", np.int32),  # chain of the transfers that start when this one arrives
        ("next_hooked", np.int32),
    ],
    align=True,
)
DEVICE = np.dtype(
    [
        ("memory", np.int64),
        ("running", np.int32),  # an op, or -1
        ("spec", np.int32),
        ("first_op", np.int32),  # chain of ops, see `OP.next_op`
        ("last_op", np.int32),
        ("awake", np.int32),  # 1 where it stands in `Work.wake`
        ("touched", np.int32),  # 1 where it stands in `Work.touched`
        ("readers", np.int32),  # of the tensor that is being sent
        ("transfer", np.int32),  # that brings that tensor here
    ],
    align=True,
)
ROUTE = np.dtype(
    [
        ("latency_s", np.float64),
        ("bytes_per_s", np.float64),
        ("begin", np.int32),  # of `Work.route_directions`
        ("end", np.int32),
        ("queue", np.int32),  # transfers whose routes end with the same link direction share a queue
    ],
    align=True,
)
DIRECTION = np.dtype([("free_s", np.float64), ("last_transfer", np.int32)], align=True)
QUEUE = np.dtype([("first", np.int32), ("last", np.int32)], align=True)
STATE = np.dtype([("transfers", np.int64), ("awake", np.int64), ("touched", np.int64)], align=True)
"""How many transfers there are, and how many devices stand in `Work.wake` and `Work.touched`."""


class Work(NamedTuple):
    """All that one thread needs to simulate: what is given, and what changes."""

    schedule: int
    op_time_s: NDArray[np.float64]  # [S, N]
    op_of_rank: NDArray[np.int32]  # [N]
    sources: NDArray[np.int32]  # ops that read nothing
    route_directions: NDArray[np.int32]
    level_offsets: NDArray[np.int64]  # of the words of each level of a tree of bits; one more for their number
    ops: NDArray[Any]  # OP[N + 1]
    tensors: NDArray[Any]  # TENSOR[T + 1]
    edges: NDArray[Any]  # EDGE[E]
    holders: NDArray[np.int32]  # [E], by op: where an input is, a tensor ``t`` at home or a transfer's copy ``~k``
    transfers: NDArray[Any]  # TRANSFER[E]
    devices: NDArray[Any]  # DEVICE[D]
    routes: NDArray[Any]  # ROUTE[D * D]
    directions: NDArray[Any]  # DIRECTION[directions]
    queues: NDArray[Any]  # QUEUE[queues]
    bits: NDArray[np.uint64]  # [D, words], ready ops by rank
    destinations: NDArray[np.int32]  # [D], of the tensor that is being sent
    ended: NDArray[np.int32]  # [D], ops that end in this round
    wake: NDArray[np.int32]  # [D], idle devices that may start an op
    touched: NDArray[np.int32]  # [D], devices whose memory may have grown, or that have ops to queue (fifo)
    leaf_s: NDArray[np.float64]  # [leaves]: next event of each device, then of each queue
    winner: NDArray[np.int32]  # [2 * leaves], the leaf with the least time below each node; the root is 1
    state: NDArray[Any]  # STATE[1]


def _compiled(function: F) -> F:
    """Compile on first use, release the GIL, and keep the machine code in numba's cache.

    `_nrt=False` leaves out counting references to arrays, which took nine tenths of the time: nothing here allocates or
    keeps an array, and the caller holds all of them.

    The cache is the `__pycache__` beside this file; where that cannot be written, the user's cache directory, or
    ``NUMBA_CACHE_DIR``. Where none of them can be written numba refuses to cache, and we compile in every process.
    """
    options: dict[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy"}
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        return cast(F, numba.njit(**options)(function))


@intrinsic
def _trailing_zeros(typing_context: Any, word: Any = None) -> Any:
    """Position of the lowest set bit of a word that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


def make_work(problem: SimulatorInput, schedule: int) -> Work:
    """Allocate and fill what one thread needs."""
    num_ops, num_tensors, num_edges = problem.num_ops, len(problem.tensor_bytes), len(problem.consumers)
    num_devices, num_directions = problem.num_devices, problem.num_directions
    by_priority = np.lexsort((np.arange(num_ops), -problem.remaining_path_s))
    op_of_rank = (by_priority if schedule == PRIORITY else np.arange(num_ops)).astype(np.int32)
    input_of_edge = np.empty(num_edges, dtype=np.int32)
    input_of_edge[problem.input_edges] = np.arange(num_edges, dtype=np.int32)

    ops = np.zeros(num_ops + 1, dtype=OP)
    ops["rank"][op_of_rank] = np.arange(num_ops)
    ops["num_inputs"][:-1] = problem.num_inputs
    ops["first_tensor"] = problem.tensor_offsets
    ops["first_input"] = problem.input_offsets
    ops["resident_bytes"][:-1] = problem.resident_bytes
    tensors = np.zeros(num_tensors + 1, dtype=TENSOR)
    tensors["bytes"][:-1] = problem.tensor_bytes
    tensors["local_bytes"][:-1] = np.where(problem.tensor_resident, 0, problem.tensor_bytes)
    tensors["first_edge"] = problem.consumer_offsets
    tensors["producer"][:-1] = problem.tensor_producer
    np.add.at(ops["output_bytes"], problem.tensor_producer, tensors["local_bytes"][:-1])
    edges = np.zeros(num_edges, dtype=EDGE)
    edges["reader"] = problem.consumers
    edges["input"] = input_of_edge
    devices = np.zeros(num_devices, dtype=DEVICE)
    devices["spec"] = problem.device_spec

    routes = np.zeros(num_devices * num_devices, dtype=ROUTE)
    routes["latency_s"] = problem.route_latency_s.ravel()
    routes["bytes_per_s"] = problem.route_bytes_per_s.ravel()
    routes["begin"], routes["end"] = problem.route_offsets[:-1], problem.route_offsets[1:]
    between = np.flatnonzero(routes["end"] > routes["begin"])
    last_direction = problem.route_directions[routes["end"][between] - 1]
    queue_directions, routes["queue"][between] = np.unique(last_direction, return_inverse=True)
    leaves = 1 << (num_devices + len(queue_directions) - 1).bit_length()

    level_offsets, words = [0], num_ops
    while words > 1 or len(level_offsets) == 1:
        words = -(-words // 64)
        level_offsets.append(level_offsets[-1] + words)
    return Work(
        schedule=schedule,
        op_time_s=problem.op_time_s,
        op_of_rank=op_of_rank,
        sources=np.flatnonzero(problem.num_inputs == 0).astype(np.int32),
        route_directions=problem.route_directions,
        level_offsets=np.array(level_offsets, dtype=np.int64),
        ops=ops,
        tensors=tensors,
        edges=edges,
        holders=np.zeros(num_edges, dtype=np.int32),
        transfers=np.zeros(num_edges, dtype=TRANSFER),
        devices=devices,
        routes=routes,
        directions=np.zeros(num_directions, dtype=DIRECTION),
        queues=np.zeros(len(queue_directions), dtype=QUEUE),
        bits=np.zeros((num_devices, level_offsets[-1]), dtype=np.uint64),
        destinations=np.zeros(num_devices, dtype=np.int32),
        ended=np.zeros(num_devices, dtype=np.int32),
        wake=np.zeros(num_devices, dtype=np.int32),
        touched=np.zeros(num_devices, dtype=np.int32),
        leaf_s=np.zeros(leaves),
        winner=np.zeros(2 * leaves, dtype=np.int32),
        state=np.zeros(1, dtype=STATE),
    )


@_compiled
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


@_compiled
def _insert(bits, level_offsets, number):
    """Set a bit, and in each level above the bit of its word."""
    for level in range(len(level_offsets) - 1):
        word = level_offsets[level] + (number >> 6)
        old = bits[word]
        bits[word] = old | (np.uint64(1) << np.uint64(number & 63))
        if old != np.uint64(0):
            return
        number >>= 6


@_compiled
def _pop_least(bits, level_offsets):
    """Clear the lowest set bit and return its number, or -1 where none is set."""
    top = len(level_offsets) - 2
    if bits[level_offsets[top]] == np.uint64(0):
        return -1
    number = 0
    for level in range(top, -1, -1):
        number = (number << 6) + _trailing_zeros(bits[level_offsets[level] + number])
    rest = number
    for level in range(top + 1):
        word = level_offsets[level] + (rest >> 6)
        bits[word] = bits[word] & (bits[word] - np.uint64(1))
        if bits[word] != np.uint64(0):
            break
        rest >>= 6
    return number


@_compiled
def _set_leaf(leaf_s, winner, leaf, time_s):
    """Change the time of a leaf's next event and play its matches again up to the root."""
    leaf_s[leaf] = time_s
    node = (leaf + len(leaf_s)) >> 1
    while node > 0:
        left, right = winner[2 * node], winner[2 * node + 1]
        winner[node] = left if leaf_s[left] <= leaf_s[right] else right
        node >>= 1


@_compiled
def _touch(devices, touched, state, device):
    if devices[device].touched == 0:
        devices[device].touched = 1
        touched[state[0].touched] = device
        state[0].touched += 1


@_compiled
def _wake(devices, wake, state, device):
    if devices[device].awake == 0:
        devices[device].awake = 1
        wake[state[0].awake] = device
        state[0].awake += 1


@_compiled
def _make_ready(schedule, level_offsets, ops, devices, bits, wake, touched, state, op):
    """All inputs of the op are on its device."""
    device = ops[op].device
    if schedule != PROGRAM_ORDER:
        _insert(bits[device], level_offsets, ops[op].rank)
        if schedule == FIFO:
            _touch(devices, touched, state, device)
    if devices[device].running < 0:
        _wake(devices, wake, state, device)


@_compiled
def _take_best(schedule, op_of_rank, level_offsets, ops, devices, bits, device):
    """Remove and return the ready op that the device runs next, or -1."""
    if schedule == PRIORITY:
        rank = _pop_least(bits[device], level_offsets)
        return op_of_rank[rank] if rank >= 0 else -1
    op = devices[device].first_op
    if schedule == FIFO:
        if op < 0:
            return _pop_least(bits[device], level_offsets)
    elif op < 0 or ops[op].missing > 0:
        return -1
    devices[device].first_op = ops[op].next_op
    return op


@_compiled
def _close_instant(schedule, level_offsets, ops, devices, bits, touched, state, peak):
    """Time is about to advance: note peaks, and under fifo put the ops that became ready behind the older ones."""
    for i in range(state[0].touched):
        number = touched[i]
        device = devices[number]
        device.touched = 0
        peak[number] = max(peak[number], device.memory)
        if schedule == FIFO:
            op = _pop_least(bits[number], level_offsets)
            while op >= 0:
                ops[op].next_op = -1
                if device.first_op < 0:
                    device.first_op = op
                else:
                    ops[device.last_op].next_op = op
                device.last_op = op
                op = _pop_least(bits[number], level_offsets)
    state[0].touched = 0


@_compiled
def _reserve(
    route_directions, transfers, devices, routes, directions, queues, touched, leaf_s, winner, state,
    tensor, size, source, destination, now,
):  # fmt: skip
    """Reserve the route for a transfer, and return its number."""
    number = state[0].transfers
    state[0].transfers = number + 1
    route = routes[source * len(devices) + destination]
    start_s, blocker = now, -1
    for i in range(route.begin, route.end):
        direction = directions[route_directions[i]]
        if direction.free_s > start_s:
            start_s = direction.free_s
            blocker = direction.last_transfer
    end_s = start_s + (route.latency_s + size / route.bytes_per_s)
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
    transfer.first_edge = -1
    transfer.next_arrival = -1
    transfer.first_hooked = -1
    if blocker < 0:
        devices[destination].memory += size
        _touch(devices, touched, state, destination)
    else:
        transfer.next_hooked = transfers[blocker].first_hooked
        transfers[blocker].first_hooked = number
    queue = queues[route.queue]
    if queue.first < 0:
        queue.first = number
        _set_leaf(leaf_s, winner, len(devices) + route.queue, end_s)
    else:
        transfers[queue.last].next_arrival = number
    queue.last = number
    return number


@_compiled
def _send(
    schedule, level_offsets, route_directions, ops, tensors, edges, holders, transfers, devices, routes, directions,
    queues, bits, destinations, wake, touched, leaf_s, winner, state, tensor_number, source, now,
):  # fmt: skip
    """A tensor is made: serve its readers on the device, and reserve a transfer to each other device with readers."""
    tensor = tensors[tensor_number]
    begin, end = tensor.first_edge, tensors[tensor_number + 1].first_edge
    local, remote = 0, 0
    for e in range(begin, end):
        reader = edges[e].reader
        target = ops[reader].device
        if target == source:
            local += 1
            holders[edges[e].input] = tensor_number
            ops[reader].missing -= 1
            if ops[reader].missing == 0:
                _make_ready(schedule, level_offsets, ops, devices, bits, wake, touched, state, reader)
        else:
            if devices[target].readers == 0:
                # Kept sorted: transfers are reserved in device order.
                i = remote
                while i > 0 and destinations[i - 1] > target:
                    destinations[i] = destinations[i - 1]
                    i -= 1
                destinations[i] = target
                remote += 1
            devices[target].readers += 1
    tensor.uses = local + remote
    if local + remote == 0:
        devices[source].memory -= tensor.local_bytes
    if remote == 0:
        return
    for i in range(remote):
        target = destinations[i]
        devices[target].transfer = _reserve(
            route_directions, transfers, devices, routes, directions, queues, touched, leaf_s, winner, state,
            tensor_number, tensor.bytes, source, target, now,
        )  # fmt: skip
        devices[target].readers = 0
    for e in range(begin, end):
        target = ops[edges[e].reader].device
        if target != source:
            number = devices[target].transfer
            holders[edges[e].input] = ~number
            edges[e].next_edge = transfers[number].first_edge
            transfers[number].first_edge = e


@_compiled
def _drop_inputs(ops, tensors, holders, transfers, devices, op):
    """An op ended: free what it was the last to read."""
    device = devices[ops[op].device]
    for i in range(ops[op].first_input, ops[op + 1].first_input):
        holder = holders[i]
        if holder >= 0:
            tensor = tensors[holder]
            tensor.uses -= 1
            if tensor.uses == 0:
                device.memory -= tensor.local_bytes
        else:
            copy = transfers[~holder]
            copy.uses -= 1
            if copy.uses == 0:
                device.memory -= copy.bytes


@_compiled
def _arrive(
    schedule, level_offsets, ops, tensors, edges, transfers, devices, queues, bits, wake, touched, leaf_s, winner,
    state, queue,
):  # fmt: skip
    """The first transfer of a queue ends."""
    transfer = transfers[queues[queue].first]
    following = transfer.next_arrival
    queues[queue].first = following
    _set_leaf(leaf_s, winner, len(devices) + queue, transfers[following].end_s if following >= 0 else np.inf)
    e = transfer.first_edge
    while e >= 0:
        reader = edges[e].reader
        ops[reader].missing -= 1
        if ops[reader].missing == 0:
            _make_ready(schedule, level_offsets, ops, devices, bits, wake, touched, state, reader)
        e = edges[e].next_edge
    tensor = tensors[transfer.tensor]
    tensor.uses -= 1
    if tensor.uses == 0:
        devices[ops[tensor.producer].device].memory -= tensor.local_bytes
    hooked = transfer.first_hooked
    while hooked >= 0:
        starting = transfers[hooked]
        devices[starting.destination].memory += starting.bytes
        _touch(devices, touched, state, starting.destination)
        hooked = starting.next_hooked


@_compiled
def _start_ops(
    schedule, op_time_s, op_of_rank, level_offsets, ops, devices, bits, wake, touched, leaf_s, winner, state, now
):
    """Every idle device that may have a ready op starts its best one."""
    for i in range(state[0].awake):
        device = wake[i]
        devices[device].awake = 0
        op = _take_best(schedule, op_of_rank, level_offsets, ops, devices, bits, device)
        if op < 0:
            continue
        devices[device].running = op
        end_s = now + op_time_s[devices[device].spec, op]
        ops[op].start_s = now
        ops[op].end_s = end_s
        devices[device].memory += ops[op].output_bytes
        _touch(devices, touched, state, device)
        _set_leaf(leaf_s, winner, device, end_s)
    state[0].awake = 0


@_compiled
def _reset(schedule, ops, devices, directions, queues, leaf_s, winner, state, place, peak):
    """Put everything back to the start of a step."""
    state[0].transfers = 0
    state[0].awake = 0
    state[0].touched = 0
    for device in devices:
        device.memory = 0
        device.running = -1
        device.first_op = -1
        device.last_op = -1
        device.awake = 0
        device.touched = 0
        device.readers = 0
    for direction in directions:
        direction.free_s = 0.0
        direction.last_transfer = -1
    for queue in queues:
        queue.first = -1
    leaves = len(leaf_s)
    leaf_s[:] = np.inf
    for node in range(2 * leaves - 1, 0, -1):
        winner[node] = node - leaves if node >= leaves else winner[2 * node]
    for op in range(len(place)):
        ops[op].missing = ops[op].num_inputs
        ops[op].device = place[op]
        device = devices[place[op]]
        device.memory += ops[op].resident_bytes
        if schedule == PROGRAM_ORDER:
            ops[op].next_op = -1
            if device.first_op < 0:
                device.first_op = op
            else:
                ops[device.last_op].next_op = op
            device.last_op = op
    for d in range(len(devices)):
        peak[d] = devices[d].memory


@_compiled
def _simulate(work, place, peak):
    """Simulate one placement ``[N]``: return the step time, fill `peak` ``[D]`` and the trace in `work`."""
    (schedule, op_time_s, op_of_rank, sources, route_directions, level_offsets, ops, tensors, edges, holders, transfers,
     devices, routes, directions, queues, bits, destinations, ended, wake, touched, leaf_s, winner, state,
     ) = work  # fmt: skip
    _reset(schedule, ops, devices, directions, queues, leaf_s, winner, state, place, peak)
    num_devices = len(devices)
    now = 0.0
    for op in sources:
        _make_ready(schedule, level_offsets, ops, devices, bits, wake, touched, state, op)
    _start_ops(
        schedule, op_time_s, op_of_rank, level_offsets, ops, devices, bits, wake, touched, leaf_s, winner, state, now
    )
    time_s = leaf_s[winner[1]]
    while time_s < np.inf:
        if time_s > now:
            _close_instant(schedule, level_offsets, ops, devices, bits, touched, state, peak)
            now = time_s
        while time_s == now:
            num_ended = 0
            while time_s == now:
                leaf = winner[1]
                if leaf < num_devices:
                    # Ops end in op index order, which matters where they reserve the same links.
                    op = devices[leaf].running
                    i = num_ended
                    while i > 0 and ended[i - 1] > op:
                        ended[i] = ended[i - 1]
                        i -= 1
                    ended[i] = op
                    num_ended += 1
                    _set_leaf(leaf_s, winner, leaf, np.inf)
                else:
                    _arrive(
                        schedule, level_offsets, ops, tensors, edges, transfers, devices, queues, bits, wake, touched,
                        leaf_s, winner, state, leaf - num_devices,
                    )  # fmt: skip
                time_s = leaf_s[winner[1]]
            for i in range(num_ended):
                op = ended[i]
                device = ops[op].device
                devices[device].running = -1
                _wake(devices, wake, state, device)
                for tensor in range(ops[op].first_tensor, ops[op + 1].first_tensor):
                    _send(
                        schedule, level_offsets, route_directions, ops, tensors, edges, holders, transfers, devices,
                        routes, directions, queues, bits, destinations, wake, touched, leaf_s, winner, state,
                        tensor, device, now,
                    )  # fmt: skip
                _drop_inputs(ops, tensors, holders, transfers, devices, op)
            time_s = leaf_s[winner[1]]  # a transfer that takes no time arrives in the round of its start
        _start_ops(
            schedule,
            op_time_s,
            op_of_rank,
            level_offsets,
            ops,
            devices,
            bits,
            wake,
            touched,
            leaf_s,
            winner,
            state,
            now,
        )
        time_s = leaf_s[winner[1]]
    return now


@_compiled
def simulate_many(work, placements, step_time_s, peak_memory_bytes):
    """Simulate placements ``[B, N]`` into ``[B]`` and ``[B, D]``."""
    for b in range(len(placements)):
        step_time_s[b] = _simulate(work, placements[b], peak_memory_bytes[b])
