"""What the other modules work on: the problem and the state of a step as records, and their making.

Nothing here is compiled. Letters: ``B`` placements in a batch, ``N`` ops, ``E`` edges, ``T`` tensors, ``D`` devices,
``S`` distinct device specs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.simulator.choosing.events import BLOCK
from envs.simulator.choosing.ready import FIFO, PRIORITY

if TYPE_CHECKING:
    from envs.simulator.input import SimulatorInput

OP = np.dtype(
    [
        ("first_tensor", np.uint32),  # up to the next op's
        ("first_input", np.uint32),  # of `Work.holders`, up to the next op's
        ("output_bytes", np.int64),  # sum over its tensors of what they take on its device
        ("remaining_s", np.float64),  # longest path to the end of the step, see the schedule ``priority``
    ],
    align=True,
)
SPAN = np.dtype([("start_s", np.float64), ("end_s", np.float64)], align=True)
COPY = np.dtype(
    [
        ("bytes", np.int64),  # 0 of a resident tensor where it is made
        ("first_edge", np.uint32),  # of a tensor, up to the next tensor's; of a received copy a chain, see `WAITING`
        ("uses", np.int32),  # readers on its device, and departures, that have not ended
    ],
    align=True,
)
TENSOR = np.dtype(
    [
        ("bytes", np.int64),
        ("producer", np.uint32),
        ("priced_as", np.uint32),  # entry of `Work.routes` that says what sending it takes; 0 for that of its route
    ],
    align=True,
)
WAITING = np.dtype(
    [
        ("input", np.uint32),  # position in `Work.holders`
        ("next_edge", np.uint32),  # chain of the edges that a transfer serves
    ],
    align=True,
)
TRANSFER = np.dtype(
    [
        ("start_s", np.float64),
        ("end_s", np.float64),
        ("tensor", np.uint32),
        ("source", np.uint32),
        ("destination", np.uint32),
        ("next_arrival", np.uint32),  # chain of a queue
        ("first_hooked", np.uint32),  # chain of the transfers that start when this one arrives
        ("next_hooked", np.uint32),
    ],
    align=True,
)
DEVICE = np.dtype(
    [
        ("memory", np.int64),
        ("work_left_s", np.float64),  # of ops that have not started; kept only where there is a limit
        ("running", np.uint32),  # an op, or `NONE`
        ("spec", np.uint32),
        ("first_op", np.uint32),  # chain of ready ops, see `Work.next_op` (fifo)
        ("last_op", np.uint32),
        ("best", np.uint32),  # rank of the best of its other ready ops; the rest are in `Work.bits`
        ("touched", np.int32),  # 1 where it stands in `Work.touched`
        ("readers", np.int32),  # of the tensor that is being sent
        ("first_edge", np.uint32),  # chain of the edges to these readers
    ],
    align=True,
)
ROUTE = np.dtype(
    [
        ("latency_s", np.float64),
        ("bytes_per_s", np.float64),
        ("begin", np.uint32),  # of `Work.route_directions`
        ("end", np.uint32),
        ("queue", np.uint32),  # transfers whose routes end with the same link direction share a queue
    ],
    align=True,
)
DIRECTION = np.dtype([("free_s", np.float64), ("last_transfer", np.uint32)], align=True)
QUEUE = np.dtype([("first", np.uint32), ("last", np.uint32)], align=True)
STATE = np.dtype(
    [
        ("limit_s", np.float64),
        ("transfers", np.uint32),
        ("touched", np.uint32),
        ("over", np.uint32),
        ("ended", np.uint32),
        ("first_away", np.uint32),
    ],
    align=True,
)
"""What the step is not to exceed, how many transfers there are, how many devices stand in `Work.touched`, 1 once the
step is proven to exceed its limit, how many ops have ended, and which of `Work.copies` the first transfer brings."""


class Work(NamedTuple):
    """All that one thread needs to simulate: what is given, and what changes."""

    schedule: int
    op_time_s: NDArray[np.float64]  # [S, N]
    order: NDArray[np.uint32]  # [N], the op at each position: ops are laid out by priority, under fifo as in the graph
    place: NDArray[np.int32]  # [N], device of each position
    sources: NDArray[np.uint32]  # ops that read nothing
    resident_ops: NDArray[np.uint32]  # ops with resident bytes
    resident_bytes: NDArray[np.int64]  # [N]
    num_inputs: NDArray[np.int32]  # [N]
    route_directions: NDArray[np.uint32]
    first_word: np.uint64  # the first leaf of the trees in `bits`
    ops: NDArray[Any]  # OP[N + 1]
    next_op: NDArray[np.uint32]  # [N], chain of a device's ready ops (fifo)
    spans: NDArray[Any]  # SPAN[N]
    missing: NDArray[np.int32]  # [N], inputs that are not yet there
    copies: NDArray[Any]  # COPY[T + 1 + E]: of each tensor where it is made, and behind them what each transfer brings
    tensors: NDArray[Any]  # TENSOR[T]
    readers: NDArray[np.uint32]  # [E]
    waiting: NDArray[Any]  # WAITING[E]
    holders: NDArray[np.uint32]  # [E], by op: the copy that each input is
    home_holders: NDArray[np.uint32]  # [E], the same where nothing is sent
    transfers: NDArray[Any]  # TRANSFER[E]
    devices: NDArray[Any]  # DEVICE[D]
    routes: NDArray[Any]  # ROUTE[D * D + tensors of given seconds]; see `SimulatorInput.priced_routes`
    directions: NDArray[Any]  # DIRECTION[directions]
    queues: NDArray[Any]  # QUEUE[queues]
    bits: NDArray[np.uint64]  # [D, words], ready ops by rank
    destinations: NDArray[np.uint32]  # [D], of the tensor that is being sent
    ended: NDArray[np.uint32]  # [D], ops that end in this round
    arriving: NDArray[np.uint32]  # [queues], whose first transfers arrive
    wake: NDArray[np.uint32]  # [D], devices whose ops ended in this round
    starting: NDArray[np.uint32]  # [D], ops that start
    fresh: NDArray[np.uint32]  # [N + 1], ops that became ready in this round
    touched: NDArray[np.uint32]  # [D], devices whose memory may have grown, or that queue ops by rank (fifo)
    work_s: NDArray[np.float64]  # [D * 4], sums of op times
    slot_s: NDArray[np.float64]  # [slots]: next event of each device, then of each queue
    block_s: NDArray[np.float64]  # the least of each `BLOCK` slots
    state: NDArray[Any]  # STATE[1]
    position: NDArray[np.uint32]  # [N], of each op
    tensor_order: NDArray[np.uint32]  # [T], the tensor at each position


def spans_of(work: Work) -> NDArray[Any]:
    """When each op of the step that was simulated last started and ended, SPAN[N]."""
    return work.spans[work.position]


def transfers_of(work: Work) -> NDArray[Any]:
    """The transfers of the step that was simulated last, TRANSFER, in the order in which they were reserved."""
    transfers = work.transfers[: int(work.state[0]["transfers"])].copy()
    transfers["tensor"] = work.tensor_order[transfers["tensor"]]
    return transfers


def make_work(problem: SimulatorInput) -> Work:
    """Allocate and fill what one thread needs."""
    schedule = PRIORITY if problem.schedule == "priority" else FIFO
    if schedule == PRIORITY:
        problem, order, tensor_order = problem.by_priority
    else:
        order, tensor_order = np.arange(problem.num_ops), np.arange(len(problem.tensor_bytes))
    num_ops, num_tensors, num_edges = problem.num_ops, len(problem.tensor_bytes), len(problem.consumers)
    num_devices, num_directions = problem.num_devices, problem.num_directions
    edge_tensor = np.repeat(np.arange(num_tensors), np.diff(problem.consumer_offsets))

    ops = np.zeros(num_ops + 1, dtype=OP)
    ops["first_tensor"] = problem.tensor_offsets
    ops["first_input"] = problem.input_offsets
    ops["remaining_s"][:-1] = problem.remaining_path_s
    copies = np.zeros(num_tensors + 1 + num_edges, dtype=COPY)
    copies["bytes"][:num_tensors] = np.where(problem.tensor_resident, 0, problem.tensor_bytes)
    copies["first_edge"][: num_tensors + 1] = problem.consumer_offsets
    np.add.at(ops["output_bytes"], problem.tensor_producer, copies["bytes"][:num_tensors])
    tensors = np.zeros(num_tensors, dtype=TENSOR)
    tensors["bytes"] = problem.tensor_bytes
    tensors["producer"] = problem.tensor_producer
    tensors["priced_as"], latency_s, bytes_per_s = problem.priced_routes()
    waiting = np.zeros(num_edges, dtype=WAITING)
    waiting["input"][problem.input_edges] = np.arange(num_edges)
    state = np.zeros(1, dtype=STATE)
    state["first_away"] = num_tensors + 1
    devices = np.zeros(num_devices, dtype=DEVICE)
    devices["spec"] = problem.device_spec

    routes = np.zeros(len(latency_s), dtype=ROUTE)
    routes["latency_s"], routes["bytes_per_s"] = latency_s, bytes_per_s
    begin, end = problem.route_offsets[:-1], problem.route_offsets[1:]
    routes["begin"][: num_devices**2], routes["end"][: num_devices**2] = begin, end
    between = np.flatnonzero(routes["end"] > routes["begin"])
    last_direction = problem.route_directions[routes["end"][between] - 1]
    queue_directions, routes["queue"][between] = np.unique(last_direction, return_inverse=True)
    blocks = -(-(num_devices + len(queue_directions)) // int(BLOCK))

    first_word, widest = 0, 1
    while widest * 64 < num_ops:
        first_word, widest = first_word + widest, widest * 64
    words = first_word + -(-num_ops // 64)
    return Work(
        schedule=schedule,
        op_time_s=problem.op_time_s,
        order=order.astype(np.uint32),
        place=np.zeros(num_ops, dtype=np.int32),
        sources=np.flatnonzero(problem.num_inputs == 0).astype(np.uint32),
        resident_ops=np.flatnonzero(problem.resident_bytes).astype(np.uint32),
        resident_bytes=problem.resident_bytes,
        num_inputs=problem.num_inputs,
        route_directions=problem.route_directions.astype(np.uint32),
        first_word=np.uint64(first_word),
        ops=ops,
        next_op=np.zeros(num_ops, dtype=np.uint32),
        spans=np.zeros(num_ops, dtype=SPAN),
        missing=np.zeros(num_ops, dtype=np.int32),
        copies=copies,
        tensors=tensors,
        readers=problem.consumers.astype(np.uint32),
        waiting=waiting,
        holders=np.zeros(num_edges, dtype=np.uint32),
        home_holders=edge_tensor[problem.input_edges].astype(np.uint32),
        transfers=np.zeros(max(num_edges, 2), dtype=TRANSFER),  # a column of fewer is contiguous: another type
        devices=devices,
        routes=routes,
        directions=np.zeros(num_directions, dtype=DIRECTION),
        queues=np.zeros(len(queue_directions), dtype=QUEUE),
        bits=np.zeros((num_devices, words), dtype=np.uint64),
        destinations=np.zeros(num_devices, dtype=np.uint32),
        ended=np.zeros(num_devices, dtype=np.uint32),
        arriving=np.zeros(max(len(queue_directions), 1), dtype=np.uint32),
        wake=np.zeros(num_devices, dtype=np.uint32),
        starting=np.zeros(num_devices, dtype=np.uint32),
        fresh=np.zeros(num_ops + 1, dtype=np.uint32),
        touched=np.zeros(num_devices, dtype=np.uint32),
        work_s=np.zeros(num_devices * 4),
        slot_s=np.zeros(blocks * int(BLOCK)),
        block_s=np.zeros(blocks),
        state=state,
        position=np.argsort(order).astype(np.uint32),
        tensor_order=tensor_order.astype(np.uint32),
    )


class Checkpoints(NamedTuple):
    """The state of one simulated step at ``C`` instants, and what happened in it: what resuming the step needs."""

    now_s: NDArray[np.float64]  # [C], all that falls due until then, inclusive, has been applied
    peak: NDArray[np.int64]  # [C, D]
    missing: NDArray[np.int32]  # [C, N]
    next_op: NDArray[np.uint32]  # [C, N]
    copies: NDArray[Any]  # COPY[C, T + 1 + E]
    holders: NDArray[np.uint32]  # [C, E]
    transfers: NDArray[Any]  # TRANSFER[C, E]
    devices: NDArray[Any]  # DEVICE[C, D]
    directions: NDArray[Any]  # DIRECTION[C, directions]
    queues: NDArray[Any]  # QUEUE[C, queues]
    bits: NDArray[np.uint64]  # [C, D, words]
    slot_s: NDArray[np.float64]  # [C, slots]
    block_s: NDArray[np.float64]  # [C, blocks]
    state: NDArray[Any]  # STATE[C]
    place: NDArray[np.int32]  # [N]
    op_start_s: NDArray[np.float64]  # [N]
    op_end_s: NDArray[np.float64]  # [N]
    first_transfer: NDArray[np.uint32]  # [T], the first of a tensor's transfers, which follow each other
    departed_s: NDArray[np.float64]  # [T], end of a tensor's last transfer
    readers: NDArray[np.int64]  # [3, D], of a tensor: those that stay, that leave, and that come
    last_read_s: NDArray[np.float64]  # [D], by those that stay
    marks: NDArray[np.uint32]  # [T], equal to `mark` where a tensor has been dealt with
    mark: NDArray[np.uint32]  # [1]


def make_checkpoints(work: Work, count: int) -> Checkpoints:
    """Allocate ``C = count`` checkpoints of a step; what they do not use of this stays untouched."""

    def copies(array: NDArray[Any]) -> NDArray[Any]:
        return np.zeros((count, *array.shape), dtype=array.dtype)

    num_ops, num_tensors = len(work.missing), len(work.tensors)
    return Checkpoints(
        now_s=np.zeros(count),
        peak=np.zeros((count, len(work.devices)), dtype=np.int64),
        missing=copies(work.missing),
        next_op=copies(work.next_op),
        copies=copies(work.copies),
        holders=copies(work.holders),
        transfers=copies(work.transfers),
        devices=copies(work.devices),
        directions=copies(work.directions),
        queues=copies(work.queues),
        bits=copies(work.bits),
        slot_s=copies(work.slot_s),
        block_s=copies(work.block_s),
        state=np.zeros(count, dtype=STATE),
        place=np.zeros(num_ops, dtype=np.int32),
        op_start_s=np.zeros(num_ops),
        op_end_s=np.zeros(num_ops),
        first_transfer=np.zeros(num_tensors, dtype=np.uint32),
        departed_s=np.zeros(num_tensors),
        readers=np.zeros((3, len(work.devices)), dtype=np.int64),
        last_read_s=np.zeros(len(work.devices)),
        marks=np.zeros(num_tensors, dtype=np.uint32),
        mark=np.zeros(1, dtype=np.uint32),
    )
