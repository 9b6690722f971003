"""The compiled step simulator for ``program_order``, where far less can happen than in `envs.simulator.choosing`.

Each device runs its ops in the order of their indices, so what it does next is never a choice, and:

- **Only ops that send need a common clock.** A device runs ahead over ops whose tensors stay on it, without asking what
  the others do, until it comes to an op that sends or that waits for a transfer which is not reserved yet. Of the
  sending ops at which the devices stand, the one that ends first reserves its transfers (`_simulate`).
- **Transfers need no events.** When a transfer is reserved, its readers learn when it will arrive; a device waits only
  for readers whose inputs are not all reserved.
- **Memory is added up afterwards**, device by device: its ops are in order, and so are the transfers over any one link
  direction, so their starts and ends are merged (`_add_up_memory`). A tensor that stays dies with the last of its
  readers, which is known from the placement alone.

Ties between ops that end at the same instant are broken by round and then by index, so each op carries the round of the
instant in which it ends: see `_advance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.compiling import compiled, inlined
from envs.simulator.choosing.ready import NONE
from envs.simulator.choosing.step import EPSILON

if TYPE_CHECKING:
    from envs.simulator.input import SimulatorInput

_0, _1 = np.uint64(0), np.uint64(1)

OP = np.dtype(
    [
        ("start_s", np.float64),
        ("end_s", np.float64),
        ("ready_s", np.float64),  # when the last of its transfers arrives; negative where none was reserved
        ("freed_bytes", np.int64),  # of tensors that die when it ends
        ("ready_round", np.int32),
        ("awaited", np.int32),  # inputs from other devices whose transfers are not yet reserved
        ("next_op", np.uint32),  # on its device
        ("sends", np.uint32),  # 1 where a tensor of it has readers elsewhere
    ],
    align=True,
)
TENSOR = np.dtype([("last_reader", np.uint32), ("departures", np.int32), ("priced_as", np.uint32)], align=True)
"""The last op to use a tensor at home (its producer, at least), its transfers that have not ended, and the entry of
`Work.routes` that says what sending it takes, 0 for that of its route."""
TRANSFER = np.dtype(
    [
        ("start_s", np.float64),
        ("end_s", np.float64),
        ("tensor", np.uint32),
        ("destination", np.uint32),
        ("next_into", np.uint32),  # chain of those that end with the same link direction
        ("next_out", np.uint32),  # chain of those that begin with the same link direction
    ],
    align=True,
)
DEVICE = np.dtype(
    [
        ("free_s", np.float64),
        ("work_left_s", np.float64),
        ("free_round", np.int32),
        ("spec", np.uint32),
        ("first_op", np.uint32),
        ("last_op", np.uint32),
        ("op", np.uint32),  # at which it stands: one that is about to send, or that waits
        ("readers", np.uint32),  # of the tensor that is being sent
        ("transfer", np.uint32),  # that brings that tensor here
    ],
    align=True,
)
ROUTE = np.dtype(
    [("latency_s", np.float64), ("bytes_per_s", np.float64), ("begin", np.uint32), ("end", np.uint32)], align=True
)
DIRECTION = np.dtype(
    [
        ("free_s", np.float64),
        ("first_into", np.uint32),  # chain of the transfers whose routes end with it, by start
        ("last_into", np.uint32),
        ("first_out", np.uint32),  # chain of the transfers whose routes begin with it, by end
        ("last_out", np.uint32),
    ],
    align=True,
)


class Work(NamedTuple):
    """All that one thread needs to simulate: what is given, and what changes."""

    op_time_s: NDArray[np.float64]  # [S, N]
    remaining_s: NDArray[np.float64]  # [N]
    resident_bytes: NDArray[np.int64]  # [N]
    output_bytes: NDArray[np.int64]  # [N]
    first_tensor: NDArray[np.uint32]  # [N + 1]
    first_edge: NDArray[np.uint32]  # [T + 1]
    readers: NDArray[np.uint32]  # [E]
    tensor_bytes: NDArray[np.int64]  # [T]
    local_bytes: NDArray[np.int64]  # [T], 0 where the tensor is resident
    routes: NDArray[Any]  # ROUTE[D * D + tensors of given seconds]; see `SimulatorInput.priced_routes`
    route_directions: NDArray[np.uint32]
    into_offsets: NDArray[np.uint32]  # [D + 1]; the directions with which routes to a device end are
    into: NDArray[np.uint32]  # entries `into_offsets[d]` to `into_offsets[d + 1]` of this
    out_offsets: NDArray[np.uint32]  # the same for the directions with which routes from a device begin
    out: NDArray[np.uint32]
    ops: NDArray[Any]  # OP[N]
    tensors: NDArray[Any]  # TENSOR[T]
    transfers: NDArray[Any]  # TRANSFER[E]
    devices: NDArray[Any]  # DEVICE[D]
    directions: NDArray[Any]  # DIRECTION[directions]
    destinations: NDArray[np.uint32]  # [D], of the tensor that is being sent
    slot_s: NDArray[np.float64]  # [D], end of the sending op at which the device stands, else infinity
    woken: NDArray[np.uint32]  # [D], devices that need wait no longer for the op at which they stand
    counts: NDArray[np.uint32]  # [2], transfers and woken devices


def make_work(problem: SimulatorInput) -> Work:
    """Allocate and fill what one thread needs."""
    num_ops, num_tensors, num_edges = problem.num_ops, len(problem.tensor_bytes), len(problem.consumers)
    num_devices = problem.num_devices
    local_bytes = np.where(problem.tensor_resident, 0, problem.tensor_bytes)
    output_bytes = np.zeros(num_ops, dtype=np.int64)
    np.add.at(output_bytes, problem.tensor_producer, local_bytes)
    devices = np.zeros(num_devices, dtype=DEVICE)
    devices["spec"] = problem.device_spec
    tensors = np.zeros(num_tensors, dtype=TENSOR)
    tensors["priced_as"], latency_s, bytes_per_s = problem.priced_routes()
    routes = np.zeros(len(latency_s), dtype=ROUTE)
    routes["latency_s"], routes["bytes_per_s"] = latency_s, bytes_per_s
    begin, end = problem.route_offsets[:-1], problem.route_offsets[1:]
    routes["begin"][: num_devices**2], routes["end"][: num_devices**2] = begin, end
    into: list[list[int]] = []
    out: list[list[int]] = []
    for d in range(num_devices):
        to_d = [routes[s * num_devices + d] for s in range(num_devices) if s != d]
        from_d = [routes[d * num_devices + t] for t in range(num_devices) if t != d]
        into.append(sorted({int(problem.route_directions[r["end"] - 1]) for r in to_d}))
        out.append(sorted({int(problem.route_directions[r["begin"]]) for r in from_d}))

    def offsets(rows: list[list[int]]) -> NDArray[np.uint32]:
        return np.cumsum([0, *map(len, rows)]).astype(np.uint32)

    return Work(
        op_time_s=problem.op_time_s,
        remaining_s=problem.remaining_path_s.copy(),
        resident_bytes=problem.resident_bytes,
        output_bytes=output_bytes,
        first_tensor=problem.tensor_offsets.astype(np.uint32),
        first_edge=problem.consumer_offsets.astype(np.uint32),
        readers=problem.consumers.astype(np.uint32),
        tensor_bytes=problem.tensor_bytes,
        local_bytes=local_bytes,
        routes=routes,
        route_directions=problem.route_directions.astype(np.uint32),
        into_offsets=offsets(into),
        into=np.array([x for row in into for x in row], dtype=np.uint32),
        out_offsets=offsets(out),
        out=np.array([x for row in out for x in row], dtype=np.uint32),
        ops=np.zeros(num_ops, dtype=OP),
        tensors=tensors,
        transfers=np.zeros(max(num_edges, 2), dtype=TRANSFER),  # a column of fewer is contiguous: another type
        devices=devices,
        directions=np.zeros(problem.num_directions, dtype=DIRECTION),
        destinations=np.zeros(num_devices, dtype=np.uint32),
        slot_s=np.zeros(num_devices),
        woken=np.zeros(num_devices, dtype=np.uint32),
        counts=np.zeros(2, dtype=np.uint32),
    )


def transfers_of(work: Work) -> NDArray[Any]:
    """The transfers of the step that was simulated last, TRANSFER, in the order in which they were reserved."""
    return work.transfers[: int(work.counts[0])]


@inlined
def _reset(
    op_time_s, first_tensor, first_edge, readers, local_bytes, ops, tensors, devices, directions, place, limit_s
):
    """Put everything back to the start of a step, and find out which ops send and where tensors that stay die."""
    for device in devices:
        device.free_s = 0.0
        device.free_round = -1
        device.work_left_s = 0.0
        device.first_op = NONE
        device.readers = 0
    for direction in directions:
        direction.free_s = 0.0
        direction.first_into = NONE
        direction.first_out = NONE
    for op in ops:
        op.ready_s = -1.0
        op.freed_bytes = 0
        op.awaited = 0
        op.sends = 0
        op.next_op = NONE
    for number in range(np.uint64(len(place))):
        home = place[number]
        device = devices[np.uint32(home)]
        if device.first_op == NONE:
            device.first_op = number
        else:
            ops[device.last_op].next_op = number
        device.last_op = number
        if limit_s < np.inf:
            device.work_left_s += op_time_s[device.spec, number]
        for t in range(first_tensor[number], first_tensor[number + _1]):
            last, away = np.uint32(number), False
            for e in range(first_edge[t], first_edge[t + _1]):
                reader = readers[e]
                if place[reader] == home:
                    last = reader
                else:
                    ops[reader].awaited += 1
                    away = True
            if away:
                ops[number].sends = 1
                tensors[t].last_reader = last
            else:
                ops[last].freed_bytes += local_bytes[t]


@inlined
def _advance(op_time_s, remaining_s, ops, devices, slot_s, number, op, limit_s):
    """Run a device on, from `op`, until it comes to an op that sends or waits; return True where that breaks the limit.

    An op that takes time ends in the first round, 0, of its instant. One that takes none ends in the round after the
    one in which it starts: that in which its device became free and its last transfer arrived, if that is this instant.
    What starts at 0 without waiting starts before round 0.
    """
    device = devices[number]
    slot_s[number] = np.inf
    while op != NONE:
        here = ops[op]
        if here.awaited > 0:
            break
        start_s, start_round = device.free_s, device.free_round
        if here.ready_s > start_s:
            start_s, start_round = here.ready_s, here.ready_round
        elif here.ready_s == start_s:
            start_round = max(start_round, here.ready_round)
        seconds = op_time_s[device.spec, op]
        if limit_s < np.inf:
            if start_s + max(remaining_s[op], device.work_left_s) > limit_s:
                return True
            device.work_left_s -= seconds
        end_s = start_s + seconds
        here.start_s = start_s
        here.end_s = end_s
        device.free_s = end_s
        device.free_round = start_round + 1 if end_s == start_s else 0
        if here.sends != 0:
            slot_s[number] = end_s
            break
        op = here.next_op
    device.op = op
    return False


@inlined
def _next_sender(devices, slot_s):
    """The device whose sending op ends first, by time, round and op index; `NONE` where no device is to send."""
    best = NONE
    best_s = np.inf
    for d in range(np.uint64(len(slot_s))):
        if slot_s[d] < best_s:
            best, best_s = np.uint32(d), slot_s[d]
        elif slot_s[d] == best_s and best != NONE:
            a, b = devices[d], devices[best]
            if a.free_round < b.free_round or (a.free_round == b.free_round and a.op < b.op):
                best = np.uint32(d)
    return best


@inlined
def _reserve(route_directions, tensor_bytes, tensors, transfers, devices, routes, directions, counts,
             tensor, source, destination, now):  # fmt: skip
    """Reserve the route for a transfer, and return its number."""
    number = counts[_0]
    counts[_0] += 1
    route = routes[source * np.uint64(len(devices)) + destination]
    price = route if tensors[tensor].priced_as == 0 else routes[tensors[tensor].priced_as]
    start_s = now
    for i in range(route.begin, route.end):
        start_s = max(start_s, directions[route_directions[i]].free_s)
    end_s = start_s + (price.latency_s + tensor_bytes[tensor] / price.bytes_per_s)
    for i in range(route.begin, route.end):
        directions[route_directions[i]].free_s = end_s
    transfer = transfers[number]
    transfer.start_s = start_s
    transfer.end_s = end_s
    transfer.tensor = tensor
    transfer.destination = destination
    transfer.next_into = NONE
    transfer.next_out = NONE
    first = directions[route_directions[route.begin]]
    if first.first_out == NONE:
        first.first_out = number
    else:
        transfers[first.last_out].next_out = number
    first.last_out = number
    last = directions[route_directions[np.uint64(route.end) - _1]]
    if last.first_into == NONE:
        last.first_into = number
    else:
        transfers[last.last_into].next_into = number
    last.last_into = number
    return number


@inlined
def _send(first_edge, readers, tensor_bytes, route_directions, ops, tensors, transfers, devices, routes, directions,
          destinations, woken, counts, place, tensor, source, now, now_round):  # fmt: skip
    """Reserve a tensor's transfers, and tell its readers elsewhere when they arrive."""
    begin, end = first_edge[tensor], first_edge[tensor + _1]
    count = _0
    for e in range(begin, end):
        target = np.uint32(place[readers[e]])
        if target != source:
            if devices[target].readers == 0:
                # Kept sorted: transfers are reserved in device order.
                i = count
                while i > _0 and destinations[i - _1] > target:
                    destinations[i] = destinations[i - _1]
                    i -= _1
                destinations[i] = target
                count += _1
            devices[target].readers += 1
    tensors[tensor].departures = count
    for i in range(count):
        target = destinations[i]
        devices[target].transfer = _reserve(
            route_directions, tensor_bytes, tensors, transfers, devices, routes, directions, counts,
            tensor, source, target, now,
        )  # fmt: skip
    for e in range(begin, end):
        reader = readers[e]
        target = np.uint32(place[reader])
        if target != source:
            arrival_s = transfers[devices[target].transfer].end_s
            # A transfer that takes no time arrives in the round in which it is reserved.
            arrival_round = now_round if arrival_s == now else 0
            if arrival_s > ops[reader].ready_s:
                ops[reader].ready_s = arrival_s
                ops[reader].ready_round = arrival_round
            elif arrival_s == ops[reader].ready_s:
                ops[reader].ready_round = max(ops[reader].ready_round, arrival_round)
            ops[reader].awaited -= 1
            if ops[reader].awaited == 0 and devices[target].op == reader:
                woken[counts[_1]] = target
                counts[_1] += 1
            devices[target].readers -= 1
            if devices[target].readers == 0:
                ops[reader].freed_bytes += tensor_bytes[tensor]  # the copy dies with its last reader


@inlined
def _next_transfer_s(transfers, directions, into_offsets, into, out_offsets, out, device):
    """When the next transfer into the device starts, or out of it ends."""
    least_s = np.inf
    for i in range(into_offsets[device], into_offsets[device + _1]):
        number = directions[into[i]].first_into
        if number != NONE:
            least_s = min(least_s, transfers[number].start_s)
    for i in range(out_offsets[device], out_offsets[device + _1]):
        number = directions[out[i]].first_out
        if number != NONE:
            least_s = min(least_s, transfers[number].end_s)
    return least_s


@inlined
def _pass_transfers(tensor_bytes, local_bytes, ops, tensors, transfers, directions, into_offsets, into, out_offsets,
                    out, device, now):  # fmt: skip
    """Take note of the transfers that start into the device, or end out of it, at this instant: bytes more in use."""
    grown = 0
    for i in range(into_offsets[device], into_offsets[device + _1]):
        direction = directions[into[i]]
        while direction.first_into != NONE and transfers[direction.first_into].start_s == now:
            transfer = transfers[direction.first_into]
            grown += tensor_bytes[transfer.tensor]
            direction.first_into = transfer.next_into
    for i in range(out_offsets[device], out_offsets[device + _1]):
        direction = directions[out[i]]
        while direction.first_out != NONE and transfers[direction.first_out].end_s == now:
            transfer = transfers[direction.first_out]
            tensor = tensors[transfer.tensor]
            tensor.departures -= 1
            if tensor.departures == 0:
                if ops[tensor.last_reader].end_s <= now:
                    grown -= local_bytes[transfer.tensor]
                else:
                    ops[tensor.last_reader].freed_bytes += local_bytes[transfer.tensor]
            direction.first_out = transfer.next_out
    return grown


@inlined
def _add_up_memory(tensor_bytes, local_bytes, output_bytes, ops, tensors, transfers, devices, directions, into_offsets,
                   into, out_offsets, out, number, used):  # fmt: skip
    """The peak memory of a device on which `used` bytes are resident."""
    device = np.uint64(number)
    peak, now = used, 0.0
    next_s = _next_transfer_s(transfers, directions, into_offsets, into, out_offsets, out, device)
    op = devices[device].first_op
    while op != NONE:
        here = ops[op]
        for boundary in range(2):
            boundary_s = here.start_s if boundary == 0 else here.end_s
            while next_s <= boundary_s:
                if next_s > now:
                    peak, now = max(peak, used), next_s
                used += _pass_transfers(
                    tensor_bytes, local_bytes, ops, tensors, transfers, directions, into_offsets, into, out_offsets,
                    out, device, now,
                )  # fmt: skip
                next_s = _next_transfer_s(transfers, directions, into_offsets, into, out_offsets, out, device)
            if boundary_s > now:
                peak, now = max(peak, used), boundary_s
            used += output_bytes[op] if boundary == 0 else -here.freed_bytes
        op = here.next_op
    # From here on the device only frees, but what the last ops left for transfers is in use until these end.
    return max(peak, used) if next_s < np.inf else peak


@inlined
def _simulate(work, place, limit_s, peak):
    """Simulate one placement ``[N]``; as in `envs.simulator.choosing`."""
    op_time_s, remaining_s, resident_bytes = work.op_time_s, work.remaining_s, work.resident_bytes
    output_bytes, first_tensor, first_edge = work.output_bytes, work.first_tensor, work.first_edge
    readers, tensor_bytes, local_bytes = work.readers, work.tensor_bytes, work.local_bytes
    routes, route_directions, into_offsets = work.routes, work.route_directions, work.into_offsets
    into, out_offsets, out = work.into, work.out_offsets, work.out
    ops, tensors, transfers = work.ops, work.tensors, work.transfers
    devices, directions, destinations = work.devices, work.directions, work.destinations
    slot_s, woken, counts = work.slot_s, work.woken, work.counts
    counts[_0] = 0
    counts[_1] = 0
    _reset(op_time_s, first_tensor, first_edge, readers, local_bytes, ops, tensors, devices, directions, place, limit_s)
    peak[:] = 0
    for op in range(len(place)):
        peak[place[op]] += resident_bytes[op]
    limit_s *= 1.0 + 4.0 * len(place) * EPSILON
    num_devices = np.uint64(len(devices))
    for d in range(num_devices):
        over = devices[d].work_left_s > limit_s
        if over or _advance(op_time_s, remaining_s, ops, devices, slot_s, d, devices[d].first_op, limit_s):
            return np.inf
    while True:
        source = _next_sender(devices, slot_s)
        if source == NONE:
            break
        op = devices[source].op
        now, now_round = slot_s[source], devices[source].free_round
        for t in range(first_tensor[op], first_tensor[op + _1]):
            _send(
                first_edge, readers, tensor_bytes, route_directions, ops, tensors, transfers, devices, routes,
                directions, destinations, woken, counts, place, t, source, now, now_round,
            )  # fmt: skip
        if _advance(op_time_s, remaining_s, ops, devices, slot_s, source, ops[op].next_op, limit_s):
            return np.inf
        for i in range(counts[_1]):
            waiting = devices[woken[i]].op
            if _advance(op_time_s, remaining_s, ops, devices, slot_s, woken[i], waiting, limit_s):
                return np.inf
        counts[_1] = 0
    step_time_s = 0.0
    for d in range(num_devices):
        step_time_s = max(step_time_s, devices[d].free_s)
        peak[d] = _add_up_memory(
            tensor_bytes, local_bytes, output_bytes, ops, tensors, transfers, devices, directions, into_offsets, into,
            out_offsets, out, d, peak[d],
        )  # fmt: skip
    return step_time_s


@compiled
def simulate_many(work, placements, limit_s, step_time_s, peak_memory_bytes):
    """Simulate placements ``[B, N]`` under limits ``[B]`` into ``[B]`` and ``[B, D]``."""
    for b in range(len(placements)):
        step_time_s[b] = _simulate(work, placements[b], limit_s[b], peak_memory_bytes[b])
