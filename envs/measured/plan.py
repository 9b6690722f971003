"""Which tensor is where when a program runs under a placement of its ops: plain numbers, made once a placement.

A *place* is a value on a device: where it is made, or a copy that was sent. Ops and copies are *tasks*, each of one
device: task ``i`` below ``N`` is op ``i``, task ``N + c`` is copy ``c``, which the receiver makes. A task waits for
places of its own device, so every count here belongs to one device and only the worker of that device touches it.

What the engine does that the simulator does not: an op that writes in place (an update among them) waits until nobody
else on its device needs the old content. PyTorch's program order always allows that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphs.capture.program import WRITE, Program, TensorUse, uses
from graphs.capture.slices import Slice, disjoint, slice_bytes
from graphs.errors import InputError

Piece = tuple[int, Slice | None]


@dataclass(slots=True)
class Copy:
    """A value, or a slice of it, that is sent: from a place to a place of another device."""

    source: int
    place: int
    device: int
    value: int
    part: Slice | None
    first_reader: int = 0


@dataclass(slots=True)
class Task:
    """What the worker of a device does when an op or a copy is ready, beside running it.

    Attributes:
        device: Whose it is.
        waits: Things that must have happened before.
        makes: Places that it fills.
        readies: Tasks of the same device that wait for what it makes, once for each thing.
        sends: Copies of other devices, with these devices, that wait for what it makes.
        releases: Places that it reads.
        made_bytes: Size of what it makes.
    """

    device: int
    waits: int = 0
    makes: list[int] = field(default_factory=list)
    readies: list[int] = field(default_factory=list)
    sends: list[tuple[int, int]] = field(default_factory=list)
    releases: list[int] = field(default_factory=list)
    made_bytes: int = 0


@dataclass(slots=True)
class Plan:
    """Everything about a placement that does not change from step to step.

    Attributes:
        program: What runs.
        op_device: ``int[N]``, a device of each op.
        num_devices: ``D``.
        tasks: By number; None for the ops that only stand for a tensor that exists before the step.
        copies: By number, in the order of their first readers.
        place_value: For each place its value.
        place_part: For each place the slice of its storage that it holds, compact; None for all of it.
        place_bytes: Size of each place; 0 where it shares the memory of another.
        place_device: For each place its device.
        span: For each place the bytes of the storage that its tensor is on.
        memory: For each place a number that it shares with the places on the same storage.
        uses: For each place how many tasks read or send it.
        kept: Places that are not freed: sources, and what the step returns.
        home: For each value the place where it is made.
        local: For each device the place of each piece that is read there.
        taken: By op and value that it writes in place, the place whose memory it goes on to use.
        writer: By place, the op that waits until it is the only one that uses it.
        departures: For each device, copies of its places that others make and report.
        first: For each device the tasks that wait for nothing.
    """

    program: Program
    op_device: NDArray[np.int32]
    num_devices: int
    tasks: list[Task | None] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    place_value: list[int] = field(default_factory=list)
    place_part: list[Slice | None] = field(default_factory=list)
    place_bytes: list[int] = field(default_factory=list)
    place_device: list[int] = field(default_factory=list)
    span: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    uses: list[int] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    home: dict[int, int] = field(default_factory=dict)
    local: list[dict[Piece, int]] = field(default_factory=list)
    taken: dict[tuple[int, int], int] = field(default_factory=dict)
    writer: dict[int, int] = field(default_factory=dict)
    departures: list[int] = field(default_factory=list)
    first: list[list[int]] = field(default_factory=list)


def make_plan(program: Program, op_device: NDArray[np.integer], num_devices: int) -> Plan:
    """Lay a placement of ops out.

    Args:
        program: What runs.
        op_device: ``int[N]``, device numbers.
        num_devices: ``D``.

    Raises:
        InputError: Ops that must share a device do not.
    """
    _check_together(program, op_device)
    plan = Plan(program, np.asarray(op_device, dtype=np.int32), num_devices)
    plan.local = [{} for _ in range(num_devices)]
    reads = _reads(program)  # by op: the pieces that it reads
    plan.tasks = [Task(int(plan.op_device[op])) if op in reads else None for op in range(program.graph.num_ops)]
    for value, op in enumerate(program.value_op):
        plan.home[value] = _new_place(plan, value, program.value_part[value], int(plan.op_device[op]))
    _add_copies(plan, reads)
    _find_taken(plan, reads)
    _link(plan, reads)
    return plan


def _check_together(program: Program, op_device: NDArray[np.integer]) -> None:
    graph = program.graph
    for number in range(int(graph.colocation.max(initial=-1)) + 1):
        members = np.flatnonzero(graph.colocation == number)
        if len(np.unique(op_device[members])) > 1:
            other = members[np.flatnonzero(op_device[members] != op_device[members[0]])[0]]
            raise InputError(
                f"the placement parts op '{graph.op_names[members[0]]}' from op '{graph.op_names[other]}', which must "
                "be on the same device"
            )


def _reads(program: Program) -> dict[int, list[Piece]]:
    """For each op that does something, the pieces of values that it reads."""
    return {op: _pieces(used) for op, used in program_uses(program)}


def program_uses(program: Program) -> list[tuple[int, list[TensorUse]]]:
    """What each op that does something is given, in program order."""
    used = [(call.op, uses((call.args, call.kwargs))) for call in program.calls]
    used += [(update.op, [update.content, *uses(update.gradient)]) for update in program.updates]
    return sorted(used, key=lambda pair: pair[0])


def _pieces(used: Iterable[TensorUse]) -> list[Piece]:
    return list(dict.fromkeys(piece for use in used for piece in use.pieces))


def _new_place(plan: Plan, value: int, part: Slice | None, device: int) -> int:
    plan.place_value.append(value)
    plan.place_part.append(part)
    plan.place_device.append(device)
    plan.place_bytes.append(plan.program.value_bytes[value] if part is None else slice_bytes(part))
    plan.span.append(plan.place_bytes[-1])
    plan.memory.append(len(plan.memory))
    plan.uses.append(0)
    plan.kept.append(False)
    return len(plan.place_value) - 1


def _add_copies(plan: Plan, reads: dict[int, list[Piece]]) -> None:
    """Send each value once to each device that reads it; slices that do not overlap each by itself."""
    program = plan.program
    wanted: dict[tuple[int, int], dict[Slice | None, int]] = defaultdict(dict)
    for op, pieces in reads.items():
        device = int(plan.op_device[op])
        for value, part in pieces:
            if plan.place_device[plan.home[value]] == device:
                plan.local[device][value, part] = plan.home[value]
            else:
                first = wanted[value, device]
                first[part] = min(first.get(part, op), op)
    for (value, device), first in sorted(wanted.items(), key=lambda item: min(item[1].values())):
        parts = [part for part in first if part is not None]
        if len(parts) < len(first) or not disjoint(parts, program.value_bytes[value]):
            parts_sent: Sequence[Slice | None] = [None]
        else:
            parts_sent = parts
        for part in parts_sent:
            held = program.value_part[value] if part is None else part
            place = _new_place(plan, value, held, device)
            reader = min(first.values()) if part is None else first[part]
            plan.copies.append(Copy(plan.home[value], place, device, value, part, reader))
            plan.local[device][value, part] = place
        if parts_sent == [None]:
            for part in first:
                plan.local[device][value, part] = plan.local[device][value, None]


def _find_taken(plan: Plan, reads: dict[int, list[Piece]]) -> None:
    """Find the writes in place that may go on in the memory of the old content, as PyTorch itself does.

    That is so for the whole of a place, once nobody else needs it; and for a slice of a place if nobody else reads that
    slice there, unless together with the new one.
    """
    program = plan.program
    outside = {s.value for s in program.sources if s.kind in ("input", "constant")}
    users: dict[int, list[tuple[int, Slice | None]]] = defaultdict(list)  # by place: ops, and what they read of it
    for op, pieces in reads.items():
        for piece in pieces:
            users[plan.local[int(plan.op_device[op])][piece]].append((op, piece[1]))
    for copy in plan.copies:
        users[copy.source].append((-1, copy.part))
    updated = {update.op: update.parameter for update in program.updates}
    for op, used in program_uses(program):
        device = int(plan.op_device[op])
        if op in updated:
            _check_is_at_home(plan, updated[op], used[0])
        for use in used:
            if use.role != WRITE or len(use.pieces) != 1 or use.pieces[0][0] in outside:
                continue
            old, new = plan.local[device][use.pieces[0]], plan.home[use.written]
            part = program.value_part[use.written]
            if part is None and (use.pieces[0][1] is not None or program.value_part[use.pieces[0][0]] is not None):
                continue
            if part is None or plan.place_part[old] == part or program.value_part[plan.place_value[old]] == part:
                plan.writer[old] = op
            elif plan.place_part[old] is not None or not _alone(plan, old, users[old], reads, op, part):
                continue
            plan.taken[op, use.written] = old
            plan.place_part[new], plan.span[new] = plan.place_part[old], plan.span[old]
            plan.memory[new] = plan.memory[old]
        if op in updated:
            plan.writer[plan.home[used[0].pieces[0][0]]] = op


def _check_is_at_home(plan: Plan, parameter: int, content: TensorUse) -> None:
    """Refuse an update of a parameter whose content is not in the parameter's own memory.

    Raises:
        InputError: The step itself has written it otherwise than all of it at once, in place.
    """
    source = plan.program.source(parameter)
    pieces = content.pieces
    is_whole = len(pieces) == 1 and pieces[0][1] is None
    if not is_whole or plan.memory[plan.home[pieces[0][0]]] != plan.memory[plan.home[source.value]]:
        raise InputError(
            f"parameter '{source.key}' is written in parts, or copied over, by the step itself before its update, "
            "which cannot be run by a placement"
        )


def _alone(
    plan: Plan,
    place: int,
    users: Iterable[tuple[int, Slice | None]],
    reads: dict[int, list[Piece]],
    op: int,
    part: Slice,
) -> bool:
    """Whether no other user of a place reads the old content of a slice that an op writes."""
    program = plan.program
    for user, read in users:
        if user == op or (read is not None and disjoint([read, part], plan.span[place])):
            continue
        newer = user > op and any(
            program.value_part[value] == part and program.value_op[value] >= op for value, _ in reads[user]
        )
        if not newer:
            return False
    return True


def _link(plan: Plan, reads: dict[int, list[Piece]]) -> None:
    """Who waits for whom."""
    program, num_ops = plan.program, program_ops(plan)
    plan.tasks += [Task(copy.device) for copy in plan.copies]
    at_start = {plan.home[s.value] for s in program.sources}
    for place in at_start:
        plan.kept[place] = True
    for use in [*uses(program.output), *([program.loss] if program.loss else []), *_finals(program)]:
        for value, _ in use.pieces:
            plan.kept[plan.home[value]] = True
    readers: dict[int, list[int]] = defaultdict(list)  # by place: tasks of its device
    for op, pieces in reads.items():
        task = plan.tasks[op]
        assert task is not None
        task.releases = list(dict.fromkeys(plan.local[task.device][piece] for piece in pieces))
        for place in task.releases:
            readers[place].append(op)
            plan.uses[place] += 1
    for copy in plan.copies:
        plan.uses[copy.source] += 1
    makers: dict[int, int] = {}
    for number, copy in enumerate(plan.copies):
        makers[copy.place] = num_ops + number
        _task(plan, num_ops + number).made_bytes = plan.place_bytes[copy.place]
    made = {call.op: [made.value for made in call.made] for call in program.calls}
    for op, used in program_uses(program):
        written = [use.written for use in used if use.role == WRITE]
        for value in dict.fromkeys([*made.get(op, []), *written]):
            makers[plan.home[value]] = op
            old = plan.taken.get((op, value), -1)
            if old >= 0 and plan.writer.get(old) == op:
                plan.place_bytes[plan.home[value]] = 0 if old in at_start else plan.place_bytes[old]
                plan.place_bytes[old] = 0
            else:
                _task(plan, op).made_bytes += plan.place_bytes[plan.home[value]]
    for call in program.calls:
        for before in call.after:
            _task(plan, before).readies.append(call.op)
            _task(plan, call.op).waits += 1
    sent: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, copy in enumerate(plan.copies):
        sent[copy.source].append((num_ops + number, copy.device))
    for place, maker in makers.items():
        task = _task(plan, maker)
        task.makes.append(place)
        task.readies += readers[place]
        task.sends += sent[place]
    for place in [*at_start, *makers]:
        if place in makers:
            for reader in readers[place]:
                _task(plan, reader).waits += 1
            for copy_task, _ in sent[place]:
                _task(plan, copy_task).waits += 1
        writer = plan.writer.get(place)
        if writer is not None and plan.uses[place] > 1:
            _task(plan, writer).waits += 1
    plan.departures = [0] * plan.num_devices
    for copy in plan.copies:
        if reports_departure(plan, copy):
            plan.departures[plan.place_device[copy.source]] += 1
    plan.first = [[] for _ in range(plan.num_devices)]
    for number, each in enumerate(plan.tasks):
        if each is not None and each.waits == 0:
            plan.first[each.device].append(number)


def reports_departure(plan: Plan, copy: Copy) -> bool:
    """Whether the sender must know when a copy has been made: to free the memory, or to write it."""
    return not plan.kept[copy.source] or copy.source in plan.writer


def program_ops(plan: Plan) -> int:
    """``N``."""
    return plan.program.graph.num_ops


def _finals(program: Program) -> list[TensorUse]:
    return [s.final for s in program.sources if s.final is not None]


def _task(plan: Plan, number: int) -> Task:
    task = plan.tasks[number]
    assert task is not None
    return task
