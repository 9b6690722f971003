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
- Nothing is allocated while simulating: `Work` holds all that changes, one for each thread.

The functions are compiled when first called and kept in numba's cache (see `_compiled`). All of them stand in this one
file because numba notices only changes to the file of the function that it cached.
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
NUM_TRANSFERS = 0
"""Position in `Work.counts`."""

F = TypeVar("F", bound=Callable[..., Any])


class Static(NamedTuple):
    """What does not change from placement to placement; all arrays are read-only. Letters as in `envs.simulator`."""

    schedule: int
    op_time_s: NDArray[np.float64]  # [S, N]
    device_spec: NDArray[np.int32]  # [D]
    rank: NDArray[np.int32]  # [N], by priority, or the op index
    op_of_rank: NDArray[np.int32]  # [N]
    resident_bytes: NDArray[np.int64]  # [N]
    output_bytes: NDArray[np.int64]  # [N], sum of local_bytes over the op's tensors
    num_inputs: NDArray[np.int32]  # [N]
    sources: NDArray[np.int32]  # ops that read nothing
    input_offsets: NDArray[np.int32]  # [N + 1]
    input_edges: NDArray[np.int32]  # [E]
    tensor_offsets: NDArray[np.int32]  # [N + 1]
    tensor_producer: NDArray[np.int32]  # [T]
    tensor_bytes: NDArray[np.int64]  # [T]
    local_bytes: NDArray[np.int64]  # [T], 0 where the tensor is resident
    consumer_offsets: NDArray[np.int32]  # [T + 1]
    consumers: NDArray[np.int32]  # [E]
    route_latency_s: NDArray[np.float64]  # [D, D]
    route_bytes_per_s: NDArray[np.float64]  # [D, D]
    route_offsets: NDArray[np.int32]  # [D * D + 1]
    route_directions: NDArray[np.int32]
    arrival_queue: NDArray[np.int32]  # [directions]: number of the queue of those that end a route
    level_offsets: NDArray[np.int64]  # of the words of each level of a tree of bits; one more for their number


class Work(NamedTuple):
    """What changes while simulating. A holder is a tensor at home (``t``) or a transfer's copy (``T + k``)."""

    missing: NDArray[np.int32]  # [N], inputs that are not yet there
    edge_holder: NDArray[np.int32]  # [E], where the edge's reader has its input from
    next_edge: NDArray[np.int32]  # [E], chain of the edges that a transfer serves
    uses: NDArray[np.int32]  # [T + E], reasons to keep a holder
    op_start_s: NDArray[np.float64]  # [N]
    op_end_s: NDArray[np.float64]  # [N]
    next_op: NDArray[np.int32]  # [N], chain of a device's ops: in program order, or ready (fifo)
    transfer_tensor: NDArray[np.int32]  # [E]
    transfer_destination: NDArray[np.int32]  # [E]
    transfer_start_s: NDArray[np.float64]  # [E]
    transfer_end_s: NDArray[np.float64]  # [E]
    transfer_edge: NDArray[np.int32]  # [E], first of its chain of edges
    next_arrival: NDArray[np.int32]  # [E], chain of a queue
    first_hooked: NDArray[np.int32]  # [E], transfers that start when this one arrives
    next_hooked: NDArray[np.int32]  # [E]
    bits: NDArray[np.uint64]  # [D, words], ready ops
    memory: NDArray[np.int64]  # [D]
    running: NDArray[np.int32]  # [D], -1 where idle
    first_op: NDArray[np.int32]  # [D]
    last_op: NDArray[np.int32]  # [D]
    reader_count: NDArray[np.int32]  # [D], of one tensor
    transfer_to: NDArray[np.int32]  # [D], of one tensor
    destinations: NDArray[np.int32]  # [D], of one tensor
    ended: NDArray[np.int32]  # [D], ops that end in this round
    wake: NDArray[np.int32]  # [D], idle devices that may start an op
    is_awake: NDArray[np.bool_]  # [D]
    touched: NDArray[np.int32]  # [D], devices whose memory may have grown or that have fresh ready ops
    is_touched: NDArray[np.bool_]  # [D]
    direction_free_s: NDArray[np.float64]  # [directions]
    direction_last: NDArray[np.int32]  # [directions], the transfer reserved last
    first_arrival: NDArray[np.int32]  # [queues]
    last_arrival: NDArray[np.int32]  # [queues]
    leaf_s: NDArray[np.float64]  # [leaves]: next event of each device, then of each queue
    winner: NDArray[np.int32]  # [2 * leaves], the leaf with the least time below each node; the root is 1
    counts: NDArray[np.int64]  # transfers, awake devices, touched devices


_AWAKE, _TOUCHED = 1, 2


def _compiled(function: F) -> F:
    """Compile on first use, release the GIL, and keep the machine code in numba's cache.

    The cache is the `__pycache__` beside this file; where that cannot be written, the user's cache directory, or
    ``NUMBA_CACHE_DIR``. Where none of them can be written numba refuses to cache, and we compile in every process.
    """
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(F, numba.njit(nogil=True)(function))


@intrinsic
def _trailing_zeros(typing_context: Any, word: Any = None) -> Any:
    """Position of the lowest set bit of a word that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


def make_static(problem: SimulatorInput, schedule: int) -> Static:
    """Lay out what the kernel reads."""
    num_ops = problem.num_ops
    by_priority = np.lexsort((np.arange(num_ops), -problem.remaining_path_s))
    op_of_rank = by_priority if schedule == PRIORITY else np.arange(num_ops)
    rank = np.empty(num_ops, dtype=np.int32)
    rank[op_of_rank] = np.arange(num_ops)
    local_bytes = np.where(problem.tensor_resident, 0, problem.tensor_bytes)
    output_bytes = np.zeros(num_ops, dtype=np.int64)
    np.add.at(output_bytes, problem.tensor_producer, local_bytes)
    ends = problem.route_offsets[1:][np.diff(problem.route_offsets) > 0] - 1
    last_directions = np.unique(problem.route_directions[ends])
    arrival_queue = np.full(problem.num_directions, -1, dtype=np.int32)
    arrival_queue[last_directions] = np.arange(len(last_directions))
    level_offsets = [0]
    words = num_ops
    while words > 1 or len(level_offsets) == 1:
        words = -(-words // 64)
        level_offsets.append(level_offsets[-1] + words)
    static = Static(
        schedule=schedule,
        op_time_s=problem.op_time_s,
        device_spec=problem.device_spec,
        rank=rank,
        op_of_rank=op_of_rank.astype(np.int32),
        resident_bytes=problem.resident_bytes,
        output_bytes=output_bytes,
        num_inputs=problem.num_inputs,
        sources=np.flatnonzero(problem.num_inputs == 0).astype(np.int32),
        input_offsets=problem.input_offsets,
        input_edges=problem.input_edges,
        tensor_offsets=problem.tensor_offsets,
        tensor_producer=problem.tensor_producer,
        tensor_bytes=problem.tensor_bytes,
        local_bytes=local_bytes,
        consumer_offsets=problem.consumer_offsets,
        consumers=problem.consumers,
        route_latency_s=problem.route_latency_s,
        route_bytes_per_s=problem.route_bytes_per_s,
        route_offsets=problem.route_offsets,
        route_directions=problem.route_directions,
        arrival_queue=arrival_queue,
        level_offsets=np.array(level_offsets, dtype=np.int64),
    )
    # Numba compiles anew for arrays that differ in writability, so all of them are made read-only.
    for value in static:
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    return static


def make_work(static: Static) -> Work:
    """Allocate what one thread needs."""
    num_ops, num_edges, num_tensors = len(static.num_inputs), len(static.consumers), len(static.tensor_bytes)
    num_devices, num_directions = len(static.device_spec), len(static.arrival_queue)
    num_queues = int(static.arrival_queue.max(initial=-1)) + 1
    leaves = 1 << (num_devices + num_queues - 1).bit_length()

    def ints(size: int) -> NDArray[np.int32]:
        return np.zeros(size, dtype=np.int32)

    return Work(
        missing=ints(num_ops),
        edge_holder=ints(num_edges),
        next_edge=ints(num_edges),
        uses=ints(num_tensors + num_edges),
        op_start_s=np.zeros(num_ops),
        op_end_s=np.zeros(num_ops),
        next_op=ints(num_ops),
        transfer_tensor=ints(num_edges),
        transfer_destination=ints(num_edges),
        transfer_start_s=np.zeros(num_edges),
        transfer_end_s=np.zeros(num_edges),
        transfer_edge=ints(num_edges),
        next_arrival=ints(num_edges),
        first_hooked=ints(num_edges),
        next_hooked=ints(num_edges),
        bits=np.zeros((num_devices, int(static.level_offsets[-1])), dtype=np.uint64),
        memory=np.zeros(num_devices, dtype=np.int64),
        running=ints(num_devices),
        first_op=ints(num_devices),
        last_op=ints(num_devices),
        reader_count=ints(num_devices),
        transfer_to=ints(num_devices),
        destinations=ints(num_devices),
        ended=ints(num_devices),
        wake=ints(num_devices),
        is_awake=np.zeros(num_devices, dtype=np.bool_),
        touched=ints(num_devices),
        is_touched=np.zeros(num_devices, dtype=np.bool_),
        direction_free_s=np.zeros(num_directions),
        direction_last=ints(num_directions),
        first_arrival=ints(num_queues),
        last_arrival=ints(num_queues),
        leaf_s=np.zeros(leaves),
        winner=ints(2 * leaves),
        counts=np.zeros(3, dtype=np.int64),
    )


@_compiled
def remaining_paths(
    time_s: NDArray[np.float64],
    tensor_offsets: NDArray[np.int32],
    consumer_offsets: NDArray[np.int32],
    consumers: NDArray[np.int32],
) -> NDArray[np.float64]:
    """``float64[N]``: for each op the longest sum of `time_s` along a path that starts with it."""
    num_ops = len(time_s)
    remaining_s = np.zeros(num_ops)
    for op in range(num_ops - 1, -1, -1):
        longest = 0.0
        for e in range(consumer_offsets[tensor_offsets[op]], consumer_offsets[tensor_offsets[op + 1]]):
            longest = max(longest, remaining_s[consumers[e]])
        remaining_s[op] = time_s[op] + longest
    return remaining_s


@_compiled
def _insert(bits: NDArray[np.uint64], level_offsets: NDArray[np.int64], number: int) -> None:
    """Set a bit, and in each level above the bit of its word."""
    for level in range(len(level_offsets) - 1):
        word = level_offsets[level] + (number >> 6)
        old = bits[word]
        bits[word] = old | (np.uint64(1) << np.uint64(number & 63))
        if old != np.uint64(0):
            return
        number >>= 6


@_compiled
def _pop_least(bits: NDArray[np.uint64], level_offsets: NDArray[np.int64]) -> int:
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
def _set_leaf(leaf_s: NDArray[np.float64], winner: NDArray[np.int32], leaf: int, time_s: float) -> None:
    """Change the time of a leaf's next event and play its matches again up to the root."""
    leaf_s[leaf] = time_s
    node = (leaf + len(leaf_s)) >> 1
    while node > 0:
        left, right = winner[2 * node], winner[2 * node + 1]
        winner[node] = left if leaf_s[left] <= leaf_s[right] else right
        node >>= 1


@_compiled
def _touch(work: Work, device: int) -> None:
    if not work.is_touched[device]:
        work.is_touched[device] = True
        work.touched[work.counts[_TOUCHED]] = device
        work.counts[_TOUCHED] += 1


@_compiled
def _wake(work: Work, device: int) -> None:
    if not work.is_awake[device]:
        work.is_awake[device] = True
        work.wake[work.counts[_AWAKE]] = device
        work.counts[_AWAKE] += 1


@_compiled
def _make_ready(static: Static, work: Work, device: int, op: int) -> None:
    """All inputs of the op are on its device."""
    if static.schedule != PROGRAM_ORDER:
        _insert(work.bits[device], static.level_offsets, static.rank[op])
        if static.schedule == FIFO:
            _touch(work, device)
    if work.running[device] < 0:
        _wake(work, device)


@_compiled
def _take_best(static: Static, work: Work, device: int) -> int:
    """Remove and return the ready op that the device runs next, or -1."""
    if static.schedule == PRIORITY:
        rank = _pop_least(work.bits[device], static.level_offsets)
        return static.op_of_rank[rank] if rank >= 0 else -1
    op = work.first_op[device]
    if static.schedule == FIFO:
        if op < 0:
            return _pop_least(work.bits[device], static.level_offsets)
    elif op < 0 or work.missing[op] > 0:
        return -1
    work.first_op[device] = work.next_op[op]
    return op


@_compiled
def _close_instant(static: Static, work: Work, peak: NDArray[np.int64]) -> None:
    """Time is about to advance: note peaks, and under fifo put the ops that became ready behind the older ones."""
    for i in range(work.counts[_TOUCHED]):
        device = work.touched[i]
        work.is_touched[device] = False
        peak[device] = max(peak[device], work.memory[device])
        if static.schedule == FIFO:
            op = _pop_least(work.bits[device], static.level_offsets)
            while op >= 0:
                work.next_op[op] = -1
                if work.first_op[device] < 0:
                    work.first_op[device] = op
                else:
                    work.next_op[work.last_op[device]] = op
                work.last_op[device] = op
                op = _pop_least(work.bits[device], static.level_offsets)
    work.counts[_TOUCHED] = 0


@_compiled
def _reserve(static: Static, work: Work, tensor: int, source: int, destination: int, now: float) -> int:
    """Reserve the route for a transfer, and return its number."""
    number = work.counts[NUM_TRANSFERS]
    work.counts[NUM_TRANSFERS] = number + 1
    route = source * len(static.device_spec) + destination
    begin, end = static.route_offsets[route], static.route_offsets[route + 1]
    start_s, blocker = now, -1
    for i in range(begin, end):
        direction = static.route_directions[i]
        if work.direction_free_s[direction] > start_s:
            start_s = work.direction_free_s[direction]
            blocker = work.direction_last[direction]
    size = static.tensor_bytes[tensor]
    duration_s = static.route_latency_s[source, destination] + size / static.route_bytes_per_s[source, destination]
    end_s = start_s + duration_s
    for i in range(begin, end):
        direction = static.route_directions[i]
        work.direction_free_s[direction] = end_s
        work.direction_last[direction] = number
    work.transfer_tensor[number] = tensor
    work.transfer_destination[number] = destination
    work.transfer_start_s[number] = start_s
    work.transfer_end_s[number] = end_s
    work.transfer_edge[number] = -1
    work.first_hooked[number] = -1
    if blocker < 0:
        work.memory[destination] += size
        _touch(work, destination)
    else:
        work.next_hooked[number] = work.first_hooked[blocker]
        work.first_hooked[blocker] = number
    queue = static.arrival_queue[static.route_directions[end - 1]]
    work.next_arrival[number] = -1
    if work.first_arrival[queue] < 0:
        work.first_arrival[queue] = number
        _set_leaf(work.leaf_s, work.winner, len(static.device_spec) + queue, end_s)
    else:
        work.next_arrival[work.last_arrival[queue]] = number
    work.last_arrival[queue] = number
    return number


@_compiled
def _send(static: Static, work: Work, place: NDArray[np.int32], tensor: int, device: int, now: float) -> None:
    """A tensor is made: serve its readers on the device, and reserve a transfer to each other device with readers."""
    begin, end = static.consumer_offsets[tensor], static.consumer_offsets[tensor + 1]
    num_tensors = len(static.tensor_bytes)
    local, remote = 0, 0
    for e in range(begin, end):
        reader = static.consumers[e]
        target = place[reader]
        if target == device:
            local += 1
            work.edge_holder[e] = tensor
            work.missing[reader] -= 1
            if work.missing[reader] == 0:
                _make_ready(static, work, device, reader)
        else:
            if work.reader_count[target] == 0:
                # Kept sorted: transfers are reserved in device order.
                i = remote
                while i > 0 and work.destinations[i - 1] > target:
                    work.destinations[i] = work.destinations[i - 1]
                    i -= 1
                work.destinations[i] = target
                remote += 1
            work.reader_count[target] += 1
    work.uses[tensor] = local + remote
    if local + remote == 0:
        work.memory[device] -= static.local_bytes[tensor]
    if remote == 0:
        return
    for i in range(remote):
        target = work.destinations[i]
        number = _reserve(static, work, tensor, device, target, now)
        work.uses[num_tensors + number] = work.reader_count[target]
        work.transfer_to[target] = number
        work.reader_count[target] = 0
    for e in range(begin, end):
        target = place[static.consumers[e]]
        if target != device:
            number = work.transfer_to[target]
            work.edge_holder[e] = num_tensors + number
            work.next_edge[e] = work.transfer_edge[number]
            work.transfer_edge[number] = e


@_compiled
def _end_op(static: Static, work: Work, place: NDArray[np.int32], op: int, now: float) -> None:
    device = place[op]
    work.running[device] = -1
    _wake(work, device)
    for tensor in range(static.tensor_offsets[op], static.tensor_offsets[op + 1]):
        _send(static, work, place, tensor, device, now)
    num_tensors = len(static.tensor_bytes)
    for i in range(static.input_offsets[op], static.input_offsets[op + 1]):
        holder = work.edge_holder[static.input_edges[i]]
        work.uses[holder] -= 1
        if work.uses[holder] == 0:
            if holder < num_tensors:
                work.memory[device] -= static.local_bytes[holder]
            else:
                work.memory[device] -= static.tensor_bytes[work.transfer_tensor[holder - num_tensors]]


@_compiled
def _arrive(static: Static, work: Work, place: NDArray[np.int32], queue: int) -> None:
    """The first transfer of a queue ends."""
    number = work.first_arrival[queue]
    following = work.next_arrival[number]
    work.first_arrival[queue] = following
    next_s = work.transfer_end_s[following] if following >= 0 else np.inf
    _set_leaf(work.leaf_s, work.winner, len(static.device_spec) + queue, next_s)
    device = work.transfer_destination[number]
    e = work.transfer_edge[number]
    while e >= 0:
        reader = static.consumers[e]
        work.missing[reader] -= 1
        if work.missing[reader] == 0:
            _make_ready(static, work, device, reader)
        e = work.next_edge[e]
    tensor = work.transfer_tensor[number]
    work.uses[tensor] -= 1
    if work.uses[tensor] == 0:
        work.memory[place[static.tensor_producer[tensor]]] -= static.local_bytes[tensor]
    hooked = work.first_hooked[number]
    while hooked >= 0:
        work.memory[work.transfer_destination[hooked]] += static.tensor_bytes[work.transfer_tensor[hooked]]
        _touch(work, work.transfer_destination[hooked])
        hooked = work.next_hooked[hooked]


@_compiled
def _start_ops(static: Static, work: Work, place: NDArray[np.int32], now: float) -> None:
    """Every idle device that may have a ready op starts its best one."""
    for i in range(work.counts[_AWAKE]):
        device = work.wake[i]
        work.is_awake[device] = False
        op = _take_best(static, work, device)
        if op < 0:
            continue
        work.running[device] = op
        end_s = now + static.op_time_s[static.device_spec[device], op]
        work.op_start_s[op] = now
        work.op_end_s[op] = end_s
        work.memory[device] += static.output_bytes[op]
        _touch(work, device)
        _set_leaf(work.leaf_s, work.winner, device, end_s)
    work.counts[_AWAKE] = 0


@_compiled
def _reset(static: Static, work: Work, place: NDArray[np.int32], peak: NDArray[np.int64]) -> None:
    work.missing[:] = static.num_inputs
    work.counts[:] = 0
    work.running[:] = -1
    work.first_op[:] = -1
    work.last_op[:] = -1
    work.reader_count[:] = 0
    work.is_awake[:] = False
    work.is_touched[:] = False
    work.direction_free_s[:] = 0.0
    work.direction_last[:] = -1
    work.first_arrival[:] = -1
    work.leaf_s[:] = np.inf
    leaves = len(work.leaf_s)
    for node in range(2 * leaves - 1, 0, -1):
        work.winner[node] = node - leaves if node >= leaves else work.winner[2 * node]
    work.memory[:] = 0
    for op in range(len(place)):
        work.memory[place[op]] += static.resident_bytes[op]
        if static.schedule == PROGRAM_ORDER:
            device = place[op]
            if work.first_op[device] < 0:
                work.first_op[device] = op
            else:
                work.next_op[work.last_op[device]] = op
            work.last_op[device] = op
            work.next_op[op] = -1
    peak[:] = work.memory


@_compiled
def _simulate(static: Static, work: Work, place: NDArray[np.int32], peak: NDArray[np.int64]) -> float:
    """Simulate one placement ``[N]``: return the step time, fill `peak` ``[D]`` and the trace in `work`."""
    _reset(static, work, place, peak)
    num_devices = len(static.device_spec)
    now = 0.0
    for op in static.sources:
        _make_ready(static, work, place[op], op)
    _start_ops(static, work, place, now)
    time_s = work.leaf_s[work.winner[1]]
    while time_s < np.inf:
        if time_s > now:
            _close_instant(static, work, peak)
            now = time_s
        while time_s == now:
            num_ended = 0
            while time_s == now:
                leaf = work.winner[1]
                if leaf < num_devices:
                    # Ops end in op index order, which matters where they reserve the same links.
                    op = work.running[leaf]
                    i = num_ended
                    while i > 0 and work.ended[i - 1] > op:
                        work.ended[i] = work.ended[i - 1]
                        i -= 1
                    work.ended[i] = op
                    num_ended += 1
                    _set_leaf(work.leaf_s, work.winner, leaf, np.inf)
                else:
                    _arrive(static, work, place, leaf - num_devices)
                time_s = work.leaf_s[work.winner[1]]
            for i in range(num_ended):
                _end_op(static, work, place, work.ended[i], now)
            time_s = work.leaf_s[work.winner[1]]  # a transfer that takes no time arrives in the round of its start
        _start_ops(static, work, place, now)
        time_s = work.leaf_s[work.winner[1]]
    return now


@_compiled
def simulate_many(
    static: Static,
    work: Work,
    placements: NDArray[np.int32],
    step_time_s: NDArray[np.float64],
    peak_memory_bytes: NDArray[np.int64],
) -> None:
    """Simulate placements ``[B, N]`` into ``[B]`` and ``[B, D]``."""
    for b in range(len(placements)):
        step_time_s[b] = _simulate(static, work, placements[b], peak_memory_bytes[b])
