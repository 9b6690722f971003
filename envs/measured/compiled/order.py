"""The order of a region's ops in which as many as possible that are compiled follow each other.

Ops keep to the order of their data: a reader follows the op that makes what it reads, and an op that writes in place
follows all that came before it on the same memory and precedes all that came after.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence

from envs.measured.plan import Plan


def followers(plan: Plan, ops: Sequence[int]) -> dict[int, list[int]]:
    """For each op of a region, given in an order that can be run, the ops of the region that must come after it."""
    inside = set(ops)
    after: dict[int, set[int]] = {op: set() for op in ops}
    writer: dict[int, int] = {}
    readers: dict[int, list[int]] = defaultdict(list)
    before = {call.op: call.after for call in plan.program.calls if call.op in inside and call.after}
    for op in ops:
        task = plan.tasks[op]
        assert task is not None
        reads = {plan.memory[place] for place in task.releases}
        writes = {plan.memory[place] for place in task.makes}
        writes |= {plan.memory[place] for place in task.releases if plan.writer.get(place) == op}
        for memory in sorted(reads | writes):
            if memory in writer:
                after[writer[memory]].add(op)
        for memory in sorted(writes):
            for reader in readers[memory]:
                after[reader].add(op)
            writer[memory], readers[memory] = op, []
        for memory in sorted(reads - writes):
            readers[memory].append(op)
        for first in before.get(op, ()):
            if first in inside:
                after[first].add(op)
    return {op: sorted(found - {op}) for op, found in after.items()}


def in_turns(
    plan: Plan, ops: Sequence[int], fits: Callable[[int], bool], join: Callable[[int, bool], bool]
) -> list[tuple[list[int], bool]]:
    """Cut a region into turns: ops that go together, then ops that do not, and so on.

    Args:
        plan: What runs.
        ops: In an order that can be run; within a turn they keep to it.
        fits: Whether an op can be in a turn of ops that go together at all.
        join: Add an op that does to such a turn, a new one where the second argument says so; False where the op has to
            wait for the next turn, which is never so in a new one.

    Returns:
        For each turn its ops, and whether they go together.
    """
    after = followers(plan, ops)
    missing = dict.fromkeys(ops, 0)
    for found in after.values():
        for op in found:
            missing[op] += 1
    position = {op: i for i, op in enumerate(ops)}
    fitting = {op for op in ops if fits(op)}
    ready = [position[op] for op in ops if missing[op] == 0]
    turns: list[tuple[list[int], bool]] = []
    together = True
    while ready:
        turn: list[int] = []
        left: list[int] = []
        heapq.heapify(ready)
        while ready:
            op = ops[heapq.heappop(ready)]
            if (op in fitting) is not together or (together and not join(op, not turn)):
                left.append(position[op])
                continue
            turn.append(op)
            for follower in after[op]:
                missing[follower] -= 1
                if missing[follower] == 0:
                    heapq.heappush(ready, position[follower])
        ready = left
        if turn:
            turns.append((turn, together))
        together = not together
    return turns
