"""The compiled loops of the list schedulers; `placement.placers.list_scheduling.schedule` explains and calls them.

Letters: ``K`` tasks, ``U`` units, ``R`` tensors, ``E`` pairs of a tensor and a task that reads it, ``D`` devices.
"""

# numba compiles these functions, and their arguments' types are its own. They allocate nothing (see `compiled`).
# Where they call each other, integers are all int64: numba would compile a function again for each other kind.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.compiling import called, compiled


class Picture(NamedTuple):
    """What does not change while tasks are placed; see `envs.task_graph.TaskGraph`.

    Attributes:
        time_s: ``float64[K, D]``.
        unit: ``int32[K]``.
        unit_allowed: ``bool[U, D]``.
        unit_bytes: ``float64[U]``.
        free_source: ``bool[K]``.
        producer: ``int32[R]``.
        tensor_bytes: ``float64[R]``.
        by_links: ``float64[R]``.
        added_s: ``float64[R]``.
        in_offsets: ``int64[K + 1]`` into `inputs`.
        inputs: ``int32[E]``, the tensors that each task reads.
        out_offsets: ``int64[K + 1]`` into `outputs`.
        outputs: ``int32[R]``, the tensors that each task makes.
        consumer_offsets: ``int64[R + 1]`` into `consumers`.
        consumers: ``int32[E]``, the tasks that read each tensor.
        latency_s: ``float64[D, D]``.
        s_per_byte: ``float64[D, D]``.
    """

    time_s: NDArray[np.float64]
    unit: NDArray[np.int32]
    unit_allowed: NDArray[np.bool_]
    unit_bytes: NDArray[np.float64]
    free_source: NDArray[np.bool_]
    producer: NDArray[np.int32]
    tensor_bytes: NDArray[np.float64]
    by_links: NDArray[np.float64]
    added_s: NDArray[np.float64]
    in_offsets: NDArray[np.int64]
    inputs: NDArray[np.int32]
    out_offsets: NDArray[np.int64]
    outputs: NDArray[np.int32]
    consumer_offsets: NDArray[np.int64]
    consumers: NDArray[np.int32]
    latency_s: NDArray[np.float64]
    s_per_byte: NDArray[np.float64]


class State(NamedTuple):
    """What is written while tasks are placed.

    Attributes:
        placed: ``int64[K]``, a device or -1.
        unit_device: ``int64[U]``, a device or -1.
        end_s: ``float64[K]``.
        copied_s: ``float64[R, D]``, when a tensor's copy is on a device, infinite where none was sent.
        bytes_left: ``float64[D]``.
        out_free_s: ``float64[D]``, when the device's port is free to send.
        in_free_s: ``float64[D]``, when it is free to receive.
        slot_start_s: ``float64[D, K]`` and
        slot_end_s: ``float64[D, K]``, the tasks on each device in order of time (insertion schedule).
        slots: ``int64[D]``, how many of them.
        free_s: ``float64[D]``, the end of the last task on each device (earliest-start schedule).
        ready_s: ``float64[K, D]``, when a ready task's inputs would be on a device.
        waiting: ``int64[K]``, inputs that are not yet placed.
        ready: ``int64[K]``, the tasks that wait for nothing, in no order.
        kept_for: ``int64[D]``, the favourite child that a device is kept for, or -1.
    """

    placed: NDArray[np.int64]
    unit_device: NDArray[np.int64]
    end_s: NDArray[np.float64]
    copied_s: NDArray[np.float64]
    bytes_left: NDArray[np.float64]
    out_free_s: NDArray[np.float64]
    in_free_s: NDArray[np.float64]
    slot_start_s: NDArray[np.float64]
    slot_end_s: NDArray[np.float64]
    slots: NDArray[np.int64]
    free_s: NDArray[np.float64]
    ready_s: NDArray[np.float64]
    waiting: NDArray[np.int64]
    ready: NDArray[np.int64]
    kept_for: NDArray[np.int64]


@compiled
def upward_rank(time_s, out_offsets, outputs, consumer_offsets, consumers, transfer_s, rank):
    """Fill `rank`; see `placement.placers.list_scheduling.schedule.upward_rank`."""
    for task in range(len(time_s) - 1, -1, -1):
        longest = 0.0
        for i in range(out_offsets[task], out_offsets[task + 1]):
            tensor = outputs[i]
            for j in range(consumer_offsets[tensor], consumer_offsets[tensor + 1]):
                longest = max(longest, transfer_s[tensor] + rank[consumers[j]])
        rank[task] = time_s[task] + longest


@compiled
def optimistic_cost_s(time_s, out_offsets, outputs, consumer_offsets, consumers, transfer_s, cost):
    """Fill ``cost[K, D]``, zeros before; see `placement.placers.list_scheduling.schedule.optimistic_cost_s`."""
    num_tasks, num_devices = time_s.shape
    for task in range(num_tasks - 1, -1, -1):
        for i in range(out_offsets[task], out_offsets[task + 1]):
            tensor = outputs[i]
            for j in range(consumer_offsets[tensor], consumer_offsets[tensor + 1]):
                consumer = consumers[j]
                away_s = np.inf
                for device in range(num_devices):
                    away_s = min(away_s, cost[consumer, device] + time_s[consumer, device])
                away_s += transfer_s[tensor]
                for device in range(num_devices):
                    stay_s = cost[consumer, device] + time_s[consumer, device]
                    cost[task, device] = max(cost[task, device], min(stay_s, away_s))


@compiled
def insertion_schedule(picture, state, order, bias_s, ports):
    """See `placement.placers.list_scheduling.schedule.insertion_schedule`."""
    num_devices = picture.time_s.shape[1]
    starts, ends, count = state.slot_start_s, state.slot_end_s, state.slots
    for task in order:
        unit = picture.unit[task]
        home = state.unit_device[unit]
        if picture.free_source[task] and home < 0:
            continue
        need = _bytes_to_bind(picture, state, task)
        best, best_s, best_start_s, best_at = -1, np.inf, 0.0, 0
        for device in range(num_devices):
            if home >= 0:
                if device != home:
                    continue
            elif not picture.unit_allowed[unit, device] or state.bytes_left[device] < need:
                continue
            ready_s = _arrival(picture, state, task, device, ports)
            start_s, at = _gap(state, device, ready_s, picture.time_s[task, device])
            end_s = start_s + picture.time_s[task, device] + bias_s[task, device]
            if best < 0 or end_s < best_s:
                best, best_s, best_start_s, best_at = device, end_s, start_s, at
        if best < 0:
            best = _roomiest(picture, state, unit)
            ready_s = _arrival(picture, state, task, best, ports)
            best_start_s, best_at = _gap(state, best, ready_s, picture.time_s[task, best])
        _commit(picture, state, task, best, best_start_s, ports)
        for i in range(count[best], best_at, -1):
            starts[best, i], ends[best, i] = starts[best, i - 1], ends[best, i - 1]
        starts[best, best_at], ends[best, best_at] = best_start_s, state.end_s[task]
        count[best] += 1
    _place_rest(picture, state)


@compiled
def earliest_start_schedule(picture, state, priority, narrow, favourite, ports):
    """See `placement.placers.list_scheduling.schedule.earliest_start_schedule`."""
    num_tasks = len(picture.unit)
    free_s, ready_s, waiting = state.free_s, state.ready_s, state.waiting
    ready, kept_for = state.ready, state.kept_for
    num_ready = np.int64(0)
    for task in range(num_tasks):
        if picture.in_offsets[task + 1] == picture.in_offsets[task] and not picture.free_source[task]:
            ready[num_ready] = task
            num_ready += 1
    for task in range(num_tasks):
        if picture.free_source[task]:
            num_ready = _release(picture, state, task, num_ready, ports)
    while num_ready > 0:
        at, best, start_s = _first_to_start(picture, state, num_ready, priority, narrow)
        task = ready[at]
        if best < 0:  # no ready task finds memory
            best = _roomiest(picture, state, picture.unit[task])
            start_s = max(ready_s[task, best], free_s[best])
        num_ready -= 1
        ready[at] = ready[num_ready]
        _commit(picture, state, task, best, start_s, ports)
        free_s[best] = state.end_s[task]
        if kept_for[best] == task:
            kept_for[best] = -1
        num_ready = _release(picture, state, task, num_ready, ports)
        child = favourite[task]
        if child >= 0 and waiting[child] == 0 and state.placed[child] < 0 and picture.time_s[child, best] < np.inf:
            kept_for[best] = child
    _place_rest(picture, state)


@called
def _first_to_start(picture, state, num_ready, priority, narrow):
    """The (place in `ready`, device, start) that starts earliest; without memory (most urgent, -1, 0)."""
    ready, ready_s, free_s, kept_for = state.ready, state.ready_s, state.free_s, state.kept_for
    num_devices = len(free_s)
    best_at, best, best_s = -1, -1, np.inf
    urgent = 0
    for at in range(num_ready):
        task = ready[at]
        if priority[task] > priority[ready[urgent]]:
            urgent = at
        unit = picture.unit[task]
        home = state.unit_device[unit]
        need = _bytes_to_bind(picture, state, task)
        found = False
        for wide in range(2):
            for device in range(num_devices):
                if home >= 0 and device != home:
                    continue
                where = picture.unit_allowed if wide else narrow
                if home < 0 and (not where[unit, device] or state.bytes_left[device] < need):
                    continue
                found = True
                if kept_for[device] >= 0 and kept_for[device] != task:
                    # The favourite child starts here at once; whoever else comes waits for its end.
                    child = kept_for[device]
                    start_s = max(ready_s[task, device], max(free_s[device], ready_s[child, device]))
                    start_s += picture.time_s[child, device]
                else:
                    start_s = max(ready_s[task, device], free_s[device])
                earlier = best < 0 or start_s < best_s
                if earlier or (start_s == best_s and priority[task] > priority[ready[best_at]]):
                    best_at, best, best_s = at, device, start_s
            if found:
                break
    if best < 0:
        best_at, best_s = urgent, 0.0
    return best_at, best, best_s


@called
def _release(picture, state, task, num_ready, ports):
    """Take a placed task (or a free source) off its consumers' waits; those that wait for nothing become ready."""
    waiting, ready, ready_s = state.waiting, state.ready, state.ready_s
    for i in range(picture.out_offsets[task], picture.out_offsets[task + 1]):
        tensor = picture.outputs[i]
        for j in range(picture.consumer_offsets[tensor], picture.consumer_offsets[tensor + 1]):
            consumer = picture.consumers[j]
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                for device in range(ready_s.shape[1]):
                    ready_s[consumer, device] = _arrival(picture, state, np.int64(consumer), device, ports)
                ready[num_ready] = consumer
                num_ready += 1
    return num_ready


@called
def _arrival(picture, state, task, device, ports):
    """Seconds when all inputs of a task are on a device; what has no device yet would be placed there, and is there."""
    latest, port_s = 0.0, state.in_free_s[device]
    for i in range(picture.in_offsets[task], picture.in_offsets[task + 1]):
        tensor = picture.inputs[i]
        source = state.placed[picture.producer[tensor]]
        if source < 0:
            continue
        ready_s = state.end_s[picture.producer[tensor]]
        if source != device:
            if state.copied_s[tensor, device] < np.inf:
                ready_s = state.copied_s[tensor, device]
            else:
                if ports:
                    ready_s = max(ready_s, max(state.out_free_s[source], port_s))
                ready_s += picture.latency_s[source, device] * picture.by_links[tensor] + picture.added_s[tensor]
                ready_s += picture.tensor_bytes[tensor] * picture.s_per_byte[source, device]
                port_s = ready_s
        latest = max(latest, ready_s)
    return latest


@called
def _commit(picture, state, task, device, start_s, ports):
    """Place a task: send its inputs as `_arrival` foresaw, bind its unit and the sources that follow it."""
    _bind(picture, state, picture.unit[task], device)
    for i in range(picture.in_offsets[task], picture.in_offsets[task + 1]):
        tensor = picture.inputs[i]
        producer = picture.producer[tensor]
        source = state.placed[producer]
        if source < 0:
            home = device if picture.unit_allowed[picture.unit[producer], device] else -1
            _bind(picture, state, picture.unit[producer], home)
            state.placed[producer] = source = state.unit_device[picture.unit[producer]]
        if source == device or state.copied_s[tensor, device] < np.inf:
            continue
        ready_s = state.end_s[producer]
        if ports:
            ready_s = max(ready_s, max(state.out_free_s[source], state.in_free_s[device]))
        ready_s += picture.latency_s[source, device] * picture.by_links[tensor] + picture.added_s[tensor]
        ready_s += picture.tensor_bytes[tensor] * picture.s_per_byte[source, device]
        state.copied_s[tensor, device] = ready_s
        state.out_free_s[source] = ready_s
        state.in_free_s[device] = ready_s
    state.placed[task] = device
    state.end_s[task] = start_s + picture.time_s[task, device]


@called
def _bind(picture, state, unit, device):
    """Give a unit a device, where it has none; -1 stands for the one with most room."""
    if state.unit_device[unit] < 0:
        home = device if device >= 0 else _roomiest(picture, state, unit)
        state.unit_device[unit] = home
        state.bytes_left[home] -= picture.unit_bytes[unit]


@called
def _bytes_to_bind(picture, state, task):
    """Memory that placing a task would take: its unit's, and that of the sources that would follow it."""
    unit = picture.unit[task]
    if state.unit_device[unit] >= 0:
        return 0.0
    need = picture.unit_bytes[unit]
    for i in range(picture.in_offsets[task], picture.in_offsets[task + 1]):
        source = picture.producer[picture.inputs[i]]
        if state.placed[source] < 0 and state.unit_device[picture.unit[source]] < 0 and picture.unit[source] != unit:
            need += picture.unit_bytes[picture.unit[source]]
    return need


@called
def _roomiest(picture, state, unit):
    """The device with most memory left among those that a unit may be on; its own where it has one."""
    if state.unit_device[unit] >= 0:
        return state.unit_device[unit]
    best = -1
    for device in range(len(state.bytes_left)):
        if picture.unit_allowed[unit, device] and (best < 0 or state.bytes_left[device] > state.bytes_left[best]):
            best = device
    return best


@called
def _gap(state, device, ready_s, time_s):
    """First moment from `ready_s` at which a device's schedule has room; and where in the schedule that is."""
    starts, ends = state.slot_start_s, state.slot_end_s
    low, high = 0, state.slots[device]
    while low < high:  # the first entry that ends after the inputs are there
        middle = (low + high) // 2
        if ends[device, middle] <= ready_s:
            low = middle + 1
        else:
            high = middle
    start_s = ready_s
    while low < state.slots[device] and starts[device, low] < start_s + time_s:
        start_s = max(start_s, ends[device, low])
        low += 1
    return start_s, low


@called
def _place_rest(picture, state):
    """Sources that nobody reads go where most room is left."""
    for task in range(len(state.placed)):
        if state.placed[task] < 0:
            _bind(picture, state, picture.unit[task], np.int64(-1))
            state.placed[task] = state.unit_device[picture.unit[task]]
