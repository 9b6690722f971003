"""Runs of ops of one device between two transfers as one task each: a plain function, with nothing between its calls.

The first step of a placement runs op by op, in the order of the schedule. That order is then kept within *regions*: the
ops that a device ran one after another are one task, up to an op whose result another device waits for, and from an op
on that waits for another device. So nothing that crosses devices waits for more than before, and since the order is one
that has run, no region waits for itself. Where several devices work, a region is short, so that what arrives meanwhile
need not wait long.

The function of a region is generated: a line calls an op with what is in the places, and the next line frees what
nobody needs any more. Results are those of the ops one by one, bit for bit. Where regions are compiled
(`envs.measured.compiled`), a line may call the code of many ops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch

from envs.measured.compiled.segments import Segment
from envs.measured.plan import Plan

LONGEST_S = 0.5e-3
"""How long a region may be where several devices work; an op that takes longer is one by itself."""

Region = Callable[[list[Any], list[float], list[int]], None]
"""A function of the places' tensors, of where to write when each op ended, and of the places' uses."""


def split(plan: Plan, start_s: Sequence[float], end_s: Sequence[float]) -> list[list[int]]:
    """The regions of a step that was run, each a list of ops in their order.

    Args:
        plan: What was run.
        start_s: By task, when it began.
        end_s: By task, when it ended.
    """
    num_ops = plan.program.graph.num_ops
    copied = {copy.place for copy in plan.copies}
    sent = {copy.source for copy in plan.copies}
    found: list[list[int]] = []
    busy = {task.device for task in plan.tasks if task is not None}
    for device in sorted(busy):
        tasks = [i for i, task in enumerate(plan.tasks) if task is not None and task.device == device]
        tasks.sort(key=start_s.__getitem__)
        open_region: list[int] = []
        lasted_s = 0.0
        for number in tasks:
            task = plan.tasks[number]
            assert task is not None
            if number >= num_ops:  # a copy
                open_region = []
                continue
            # What it waits for from elsewhere: a copy, or that others have copied what it is about to write.
            waits = any(place in copied for place in task.releases)
            waits = waits or any(plan.writer.get(place) == number and place in sent for place in task.releases)
            late = len(busy) > 1 and lasted_s + end_s[number] - start_s[number] > LONGEST_S
            if not open_region or waits or late:
                open_region, lasted_s = [], 0.0
                found.append(open_region)
            open_region.append(number)
            lasted_s += end_s[number] - start_s[number]
            if task.sends:
                open_region = []
    return found


class Users:
    """Who uses the places of a plan once its ops are in regions: tasks are called by their first ops.

    Args:
        plan: What runs.
        regions: From `split`.

    Attributes:
        of_op: For each op its task.
        by_place: For each place the tasks that read it, copies among them.
        inner: Places that are made, read and freed within one task.
    """

    def __init__(self, plan: Plan, regions: list[list[int]]) -> None:
        num_ops = plan.program.graph.num_ops
        self.of_op = {op: ops[0] for ops in regions for op in ops}
        self.by_place: dict[int, set[int]] = defaultdict(set)
        maker: dict[int, int] = {}
        for op, region in self.of_op.items():
            task = plan.tasks[op]
            assert task is not None
            for place in task.releases:
                self.by_place[place].add(region)
            for place in task.makes:
                maker[place] = region
        for number, copy in enumerate(plan.copies):
            self.by_place[copy.source].add(num_ops + number)
        self.inner = {
            place for place, region in maker.items() if not plan.kept[place] and self.by_place[place] <= {region}
        }


def write_functions(
    plan: Plan, regions: Sequence[Sequence[Segment]], runs: Sequence[Any], users: Users
) -> dict[int, Region]:
    """The functions of regions, by their first ops.

    Args:
        plan: What runs.
        regions: What each consists of: one segment that is not compiled, or those of a `RegionCompiler`.
        runs: By task, the function of each op (`envs.measured.ops.Binder.op`), with what it consists of.
        users: Of these regions.
    """
    writer = _Writer(plan, runs, users)
    lines: list[str] = []
    for number, segments in enumerate(regions):
        lines.append(f"def region_{number}(s, e, u):")
        lines += [f"    {line}" for line in writer.lines(segments)]
    names = writer.names
    exec(compile("\n".join(lines), "<regions>", "exec"), names)
    return {segments[0].ops[0]: names[f"region_{number}"] for number, segments in enumerate(regions)}


class _Writer:
    """Writes the lines of regions; `names` is what they call by name."""

    def __init__(self, plan: Plan, runs: Sequence[Any], users: Users) -> None:
        self.names: dict[str, Any] = {"now": perf_counter, "strided": torch.as_strided}
        self._plan = plan
        self._runs = runs
        self._users = users
        self._known: dict[int, str] = {}

    def lines(self, segments: Sequence[Segment]) -> list[str]:
        """The body of a region's function."""
        last: dict[int, int] = {}
        for segment in segments:
            for op in segment.ops:
                for place in self._task(op).releases:
                    last[place] = op
        written: list[str] = []
        for segment in segments:
            if segment.code is None:
                for op in segment.ops:
                    written += [self._call(op), *self._frees([op], last), f"e[{op}] = now()"]
            else:
                written += [*self._compiled(segment), *self._frees(segment.ops, last)]
                written += ["t = now()", f"for i in {self._name(segment.ops)}: e[i] = t"]
        return written

    def _frees(self, ops: list[int], last: dict[int, int]) -> list[str]:
        """What to free after some ops: what they are the last to need."""
        written: list[str] = []
        for op in ops:
            for place in self._task(op).releases:
                if last[place] != op or self._plan.kept[place]:
                    continue
                free = f"s[{place}] = None"
                written.append(free if place in self._users.inner else f"if u[{place}] == 1: {free}")
            written += [
                f"s[{place}] = None"
                for place in self._task(op).makes
                if place in self._users.inner and place not in last
            ]
        return written

    def _compiled(self, segment: Segment) -> list[str]:
        """Call the code of many ops."""
        given = [f"s[{each.place}]" if each.tensor is None else self._name(each.tensor) for each in segment.inputs]
        written = [f"o = {self._name(segment.code)}({', '.join(given)})"]
        for number, places in enumerate(segment.outputs):
            written.append(" = ".join([*(f"s[{place}]" for place in places), f"o[{number}]"]))
        return [*written, "o = None", *(f"s[{new}] = s[{old}]" for new, old in segment.moved)]

    def _task(self, op: int) -> Any:
        return self._plan.tasks[op]

    def _call(self, op: int) -> str:
        run = self._runs[op]
        parts = getattr(run, "parts", None)
        if parts is None or parts.is_relaid():
            return f"{self._name(run)}(s)"
        given = [self._text(value) for value in parts.args]
        given += [f"{key}={self._text(value)}" for key, value in parts.kwargs.items()]
        call = f"{self._name(parts.function)}({', '.join(given)})"
        if not parts.stores:
            return call
        if len(parts.stores) == 1:
            path, place, _ = parts.stores[0]
            return f"s[{place}] = {call}{''.join(f'[{i}]' for i in path)}"
        stores = [f"s[{place}] = o{''.join(f'[{i}]' for i in path)}" for path, place, _ in parts.stores]
        return "; ".join([f"o = {call}", *stores, "o = None"])

    def _text(self, value: Any) -> str:
        """An argument as it is written: a place, a look at one, a list of these, or a name."""
        source = getattr(value, "source", None)
        if source is not None:
            kind, what = source
            if kind == "place":
                return f"s[{what}]"
            if kind == "view":
                place, layout = what
                return f"strided(s[{place}], {layout.size!r}, {layout.stride!r}, {layout.offset})"
            if kind == "list":
                return f"[{', '.join(map(self._text, what))}]"
            return f"{self._name(value)}(s)"
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        return self._name(value)

    def _name(self, value: Any) -> str:
        if id(value) not in self._known:
            self._known[id(value)] = f"c{len(self._known)}"
            self.names[self._known[id(value)]] = value  # which also keeps it, so that its id stays its own
        return self._known[id(value)]
