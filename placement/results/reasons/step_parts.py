"""What the time of one simulated step is made of: along its critical path, and on each device.

The critical path begins with the op that ends the step and goes back from each op to the input that arrived last, to
what made that, and so on until an op that reads nothing. Each of its parts begins where the next one ends, so together
they are the step, to the last bit:

- ``computing``: an op of the path runs;
- ``transfer``: what it reads is on its way;
- ``link``: what it reads waits for links on which something else is under way;
- ``device``: all that it reads has arrived, and its device runs something else.

A device computes, or waits for a transfer that the op that it runs next needs (from the moment in which the tensor was
there to be sent), or for another device to compute what is to be sent, or has nothing left to do.

Letters: ``N`` ops, ``D`` devices, ``E`` edges, ``K`` transfers, ``P`` parts of the path.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.simulator.plain import copies_read
from envs.simulator.trace import Trace
from envs.targets import SEQUENTIAL

PATH_KINDS = ("computing", "transfer", "link", "device")
"""Kinds of part of a critical path."""

DEVICE_KINDS = ("computing", "transfer", "other devices", "nothing left")
"""What a device does: it computes, it waits for a transfer or for other devices, or its work is done."""

COMPUTING, TRANSFER, LINK, DEVICE = range(4)


@dataclass(frozen=True, eq=False)
class CriticalPath:
    """The critical path of a step, from its begin to its end.

    Attributes:
        kind: ``int8[P]``, index into `PATH_KINDS`.
        start_s: ``float64[P]``; the first is 0.
        end_s: ``float64[P]``; each is the start of the next, the last is the step time.
        op: ``int32[P]``, the op that computes, or for which the part is.
        transfer: ``int32[P]``, index of the transfer in the trace; -1 where the part is none.
    """

    kind: NDArray[np.int8]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    op: NDArray[np.int32]
    transfer: NDArray[np.int32]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by kind; they add up to the step time."""
        sums = np.bincount(self.kind, self.end_s - self.start_s, len(PATH_KINDS))
        return dict(zip(PATH_KINDS, sums.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Arrivals:
    """When what each op reads was there.

    Attributes:
        ready_s: ``float64[N]``, 0 for an op that reads nothing.
        last_producer: ``int64[N]``, the op that made what arrived last; -1 for an op that reads nothing.
        last_transfer: ``int64[N]``, the transfer that brought it; -1 where it was made on the op's device.
    """

    ready_s: NDArray[np.float64]
    last_producer: NDArray[np.int64]
    last_transfer: NDArray[np.int64]


def arrivals(problem: PlacementProblem, trace: Trace) -> Arrivals:
    """When what each op of a step reads was there, and what came last; of equals what was made on the spot."""
    graph, num_devices = problem.graph, problem.num_devices
    tensor, reader, producer = graph.edge_tensor, graph.consumers, graph.edge_producer
    destination = trace.op_device[reader]
    if problem.schedule == SEQUENTIAL:
        which = _transfers_of_copies(problem, trace)
        sent = np.flatnonzero(which >= 0)
    else:
        sent = np.flatnonzero(trace.op_device[producer] != destination)
        key = trace.transfer_tensor.astype(np.int64) * num_devices + trace.transfer_destination
        order = np.argsort(key, kind="stable")
        wanted = tensor[sent].astype(np.int64) * num_devices + destination[sent]
        which = np.full(len(tensor), -1, dtype=np.int64)
        if sent.size:
            which[sent] = order[np.searchsorted(key[order], wanted)]
    arrived_s = trace.op_end_s[producer].copy()
    arrived_s[sent] = trace.transfer_end_s[which[sent]]
    ready_s = np.zeros(graph.num_ops)
    np.maximum.at(ready_s, reader, arrived_s)
    last_producer = np.full(graph.num_ops, -1, dtype=np.int64)
    last_transfer = np.full(graph.num_ops, -1, dtype=np.int64)
    # The edges that arrived last, those of transfers first, so that what was made on the spot overwrites them.
    last = np.flatnonzero(arrived_s == ready_s[reader])
    last = last[np.argsort(which[last] < 0, kind="stable")]
    last_producer[reader[last]] = producer[last]
    last_transfer[reader[last]] = which[last]
    return Arrivals(ready_s, last_producer, last_transfer)


def _transfers_of_copies(problem: PlacementProblem, trace: Trace) -> NDArray[np.int64]:
    """``int64[E]``: the transfer by which each edge reads, -1 where by none; a device may get several copies."""
    given = problem.simulator_input
    copies = np.array(copies_read(given, trace.op_device.tolist()), dtype=np.int64)
    in_turn = copies[given.input_edges]
    made, first = np.unique(in_turn[in_turn >= 0], return_index=True)  # each is sent for its first reader
    number = np.argsort(np.argsort(first))
    which = np.full(len(copies), -1, dtype=np.int64)
    which[copies >= 0] = number[np.searchsorted(made, copies[copies >= 0])]
    return which


def critical_path(problem: PlacementProblem, trace: Trace, arrived: Arrivals | None = None) -> CriticalPath:
    """The critical path of a step of a problem."""
    arrived = arrived or arrivals(problem, trace)
    in_turn = problem.schedule == SEQUENTIAL
    parts: list[tuple[int, float, float, int, int]] = []

    def add(kind: int, start_s: float, end_s: float, op: int, transfer: int = -1) -> None:
        if end_s > start_s:
            parts.append((kind, start_s, end_s, op, transfer))

    op = int(np.argmax(trace.op_end_s)) if problem.graph.num_ops else -1
    while op >= 0:
        start_s, ready_s = float(trace.op_start_s[op]), float(arrived.ready_s[op])
        add(COMPUTING, start_s, float(trace.op_end_s[op]), op)
        add(DEVICE, ready_s, start_s, op)
        producer, sent = int(arrived.last_producer[op]), int(arrived.last_transfer[op])
        if sent >= 0:
            made_s, sent_s = float(trace.op_end_s[producer]), float(trace.transfer_start_s[sent])
            add(TRANSFER, sent_s, ready_s, op, sent)
            # One thing at a time: what is to be sent waits for its turn, not for a link.
            add(DEVICE if in_turn else LINK, made_s, sent_s, op, sent)
        op = producer
    kind, starts, ends, ops, transfers = zip(*reversed(parts), strict=True) if parts else ((),) * 5
    return CriticalPath(
        np.array(kind, dtype=np.int8),
        np.array(starts, dtype=np.float64),
        np.array(ends, dtype=np.float64),
        np.array(ops, dtype=np.int32),
        np.array(transfers, dtype=np.int32),
    )


def device_parts(problem: PlacementProblem, trace: Trace, arrived: Arrivals | None = None) -> NDArray[np.float64]:
    """``float64[D, 4]``: seconds of each device by `DEVICE_KINDS`; a row adds up to the step time."""
    arrived = arrived or arrivals(problem, trace)
    made = np.zeros((problem.num_devices, len(DEVICE_KINDS)))
    made[:, 0] = trace.busy_s()
    last_end_s = np.zeros(problem.num_devices)
    np.maximum.at(last_end_s, trace.op_device, trace.op_end_s)
    made[:, 3] = trace.step_time_s - last_end_s
    order = np.lexsort((trace.op_end_s, trace.op_start_s, trace.op_device))
    device = trace.op_device[order].astype(np.int64)
    start_s = trace.op_start_s[order]
    before_s = np.concatenate([[0.0], trace.op_end_s[order][:-1]])
    before_s[np.flatnonzero(np.diff(device, prepend=-1))] = 0.0
    gap = np.flatnonzero(start_s > before_s)
    device, start_s, before_s, op = device[gap], start_s[gap], before_s[gap], order[gap]
    sent, producer = arrived.last_transfer[op], arrived.last_producer[op]
    for_transfer_s = np.zeros(len(gap))
    by = np.flatnonzero(sent >= 0)
    if by.size:
        in_turn = problem.schedule == SEQUENTIAL
        begun_s = trace.transfer_start_s[sent[by]] if in_turn else trace.op_end_s[producer[by]]
        came_s = trace.transfer_end_s[sent[by]]
        for_transfer_s[by] = np.maximum(came_s - np.maximum(begun_s, before_s[by]), 0.0)
    made[:, 1] = np.bincount(device, for_transfer_s, problem.num_devices)
    made[:, 2] = np.bincount(device, start_s - before_s - for_transfer_s, problem.num_devices)
    return made


def group_seconds(problem: PlacementProblem, path: CriticalPath) -> NDArray[np.float64]:
    """``float64[G, 4]``: seconds of the critical path that are each group's, by `PATH_KINDS`."""
    key = problem.groups.group_of_op[path.op].astype(np.int64) * len(PATH_KINDS) + path.kind
    sums = np.bincount(key, path.end_s - path.start_s, problem.num_groups * len(PATH_KINDS))
    return sums.astype(np.float64).reshape(problem.num_groups, len(PATH_KINDS))


def link_seconds(problem: PlacementProblem, trace: Trace) -> NDArray[np.float64]:
    """``float64[2 L]``: seconds for which each direction of each link is in use."""
    in_use = np.zeros(2 * len(problem.cluster.links))
    took_s = trace.transfer_end_s - trace.transfer_start_s
    for crossed, seconds in zip(trace.transfer_directions(problem.cluster), took_s.tolist(), strict=True):
        in_use[crossed] += seconds
    return in_use
