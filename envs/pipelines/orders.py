"""Orders of a pipeline: for each rank the list of actions that it runs, one after another.

An action is all that one stage does for one micro-batch in one direction (`KINDS`). PyTorch's schedules are such lists;
those of the same name here have the same actions in the same order:

- ``gpipe``: all forward passes, then all backward passes (Huang et al., "GPipe", NeurIPS 2019, arXiv 1811.06965).
- ``1f1b``: as many forward passes as there are stages from here to the last one, then a backward and a forward pass in
  turn (Narayanan et al., "PipeDream", SOSP 2019, arXiv 1806.03377, without its weight versions: the step is flushed).
- ``interleaved``: the same with several stages a rank, stage ``i`` on rank ``i % ranks`` (Narayanan et al., "Efficient
  large-scale language model training on GPU clusters using Megatron-LM", SC 2021, arXiv 2104.04473, section 2.2).
- ``zb_h1``: ``1f1b`` with the gradients of parameters put off, on rank ``i`` by ``i`` micro-batches, so that they fill
  the bubbles (Qi et al., "Zero bubble pipeline parallelism", ICLR 2024, arXiv 2401.10241, section 2.1).
- ``list``: lists that are given.

Letters: ``S`` stages, ``P`` ranks, ``M`` micro-batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from graphs.errors import InputError

Order = Literal["gpipe", "1f1b", "interleaved", "zb_h1", "list"]

ORDERS: tuple[Order, ...] = ("gpipe", "1f1b", "interleaved", "zb_h1", "list")
"""Names of the orders."""

KINDS = "FBIW"
"""Kinds of action: forward; whole backward; input gradient; weight gradient. An action's kind indexes this text."""

_FORWARD, _BACKWARD, _INPUT, _WEIGHT = range(4)

_CELL = re.compile(r"([0-9]{1,6})([FBIW])([0-9]{1,6})")


class Action(NamedTuple):
    """One action.

    Attributes:
        stage: From 0.
        kind: Index into `KINDS`.
        micro_batch: From 0.
    """

    stage: int
    kind: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{KINDS[self.kind]}{self.micro_batch}"


def parse_action(cell: str) -> Action:
    """An action from its text.

    Raises:
        InputError: It is none.

    >>> parse_action("2F0"), str(Action(0, 3, 12))
    (Action(stage=2, kind=0, micro_batch=0), '0W12')
    """
    match = _CELL.fullmatch(cell)
    if match is None:
        raise InputError(f"'{cell}' is no action; write the stage, one of {', '.join(KINDS)} and the micro-batch: 2F0")
    return Action(int(match[1]), KINDS.index(match[2]), int(match[3]))


def lists_of(order: str, rank_of_stage: Sequence[int], micro_batches: int) -> list[list[Action]]:
    """For each rank its actions in order.

    Args:
        order: One of `ORDERS` but ``list``.
        rank_of_stage: The rank of each of ``S`` stages.
        micro_batches: ``M``.

    Raises:
        InputError: The order does not serve such stages or so many micro-batches.
    """
    stages, ranks = len(rank_of_stage), max(rank_of_stage) + 1
    if order == "interleaved":
        return _interleaved(rank_of_stage, ranks, micro_batches)
    if order not in ("gpipe", "1f1b", "zb_h1"):
        raise InputError(f"order '{order}' does not say what a rank runs; known: {', '.join(ORDERS[:-1])}")
    if list(rank_of_stage) != list(range(stages)):
        raise InputError(f"order '{order}' has stage i on rank i; take interleaved or list for several stages a rank")
    return lists_of_replicas(order, [1] * stages, micro_batches)


def lists_of_replicas(order: str, replicas: Sequence[int], micro_batches: int) -> list[list[Action]]:
    """For each rank its actions, where stages are on several ranks that each serve a part of the micro-batches.

    Replica ``i`` of a stage with ``r`` serves micro-batches ``i + j r``. It runs as many of them ahead as the stages
    from here to the last have replicas for each of its own stage's, rounded up: no limit makes a rank wait for ever, as
    the earliest unfinished micro-batch may always go on.

    Args:
        order: ``gpipe``, ``1f1b`` or ``zb_h1``.
        replicas: Of each of ``C`` stages. The actions' stages are numbered by stage, then replica.
        micro_batches: ``M``.

    Raises:
        InputError: The order is another.
    """
    if order not in ("gpipe", "1f1b", "zb_h1"):
        raise InputError(f"order '{order}' does not say what replicas run; known: gpipe, 1f1b, zb_h1")
    made: list[list[Action]] = []
    for number, count in enumerate(replicas):
        ahead = micro_batches if order == "gpipe" else -(-sum(replicas[number:]) // count)
        behind = number if order == "zb_h1" else None
        made += [_in_turn(len(made) + i, range(i, micro_batches, count), ahead, behind) for i in range(count)]
    return made


def _in_turn(stage: int, own: Sequence[int], ahead: int, behind: int | None) -> list[Action]:
    """Some forward passes, then a backward and a forward pass in turn.

    Args:
        stage: The stage.
        own: Its micro-batches.
        ahead: How many forward passes come first.
        behind: How many micro-batches the gradients of parameters are put off; None where backward passes are whole.
    """
    ahead = min(ahead, len(own))
    made = [Action(stage, _FORWARD, m) for m in own[:ahead]]
    for i, m in enumerate(own):
        made.append(Action(stage, _BACKWARD if behind is None else _INPUT, m))
        if behind is not None and i >= behind:
            made.append(Action(stage, _WEIGHT, own[i - behind]))
        if i + ahead < len(own):
            made.append(Action(stage, _FORWARD, own[i + ahead]))
    if behind is not None:
        made += [Action(stage, _WEIGHT, m) for m in own[max(len(own) - behind, 0) :]]
    return made


def _interleaved(rank_of_stage: Sequence[int], ranks: int, micro_batches: int) -> list[list[Action]]:
    stages = len(rank_of_stage)
    if stages % ranks or any(rank != s % ranks for s, rank in enumerate(rank_of_stage)):
        raise InputError(
            f"order 'interleaved' has stage i on rank i % {ranks} and equally many on each; take list for other stages"
        )
    each = stages // ranks
    rounds = max(1, micro_batches // ranks)
    if micro_batches % rounds:
        raise InputError(
            f"order 'interleaved' on {ranks} ranks does not serve {micro_batches} micro-batches; take a multiple of "
            f"{ranks}"
        )
    at_once = micro_batches // rounds  # micro-batches that go through a stage before the rank turns to its next stage
    made = []
    total = micro_batches * each
    for rank in range(ranks):
        ahead = min((each - 1) * at_once + 2 * (ranks - 1 - rank), total)

        def nth(kind: int, i: int, rank: int = rank) -> Action:
            turn = i // at_once % each
            own = each - 1 - turn if kind == _BACKWARD else turn
            return Action(own * ranks + rank, kind, i // (at_once * each) * at_once + i % at_once)

        row = [nth(_FORWARD, i) for i in range(ahead)]
        for i in range(total):
            if ahead + i < total:
                row.append(nth(_FORWARD, ahead + i))
            row.append(nth(_BACKWARD, i))
        made.append(row)
    return made


def check_lists(lists: Sequence[Sequence[Action]], rank_of_stage: Sequence[int], micro_batches: int) -> None:
    """Raise where lists leave something out, do it twice or elsewhere, or could wait for each other for ever.

    Raises:
        InputError: It names the rank and the action.
    """
    stages = len(rank_of_stage)
    if len(lists) != max(rank_of_stage) + 1:
        raise InputError(f"there are lists for {len(lists)} ranks, but stages on {max(rank_of_stage) + 1}")
    seen: set[Action] = set()
    for rank, row in enumerate(lists):
        for action in row:
            if action.stage >= stages or action.micro_batch >= micro_batches:
                raise InputError(
                    f"rank {rank} runs {action}, but there are {stages} stages and {micro_batches} micro-batches"
                )
            if rank_of_stage[action.stage] != rank:
                raise InputError(
                    f"rank {rank} runs {action}, but stage {action.stage} is on rank {rank_of_stage[action.stage]}"
                )
            if action in seen:
                raise InputError(f"rank {rank} runs {action} twice")
            seen.add(action)
    for stage, rank in enumerate(rank_of_stage):
        for m in range(micro_batches):
            there = {kind for kind in range(4) if Action(stage, kind, m) in seen}
            if there not in ({_FORWARD, _BACKWARD}, {_FORWARD, _INPUT, _WEIGHT}):
                raise InputError(
                    f"rank {rank} must run {stage}F{m} and either {stage}B{m} or both {stage}I{m} and {stage}W{m}"
                )
    stuck = stuck_at(lists, stages)
    if stuck is not None:
        raise InputError(f"the lists wait for each other: {stuck} can never start; reorder them")


def needs(action: Action, stages: int) -> list[tuple[Action, ...]]:
    """What an action waits for: one of each tuple."""
    stage, kind, m = action
    if kind == _FORWARD:
        return [(Action(stage - 1, _FORWARD, m),)] if stage else []
    if kind == _WEIGHT:
        return [(Action(stage, _INPUT, m),)]
    after: list[tuple[Action, ...]] = [(Action(stage, _FORWARD, m),)]
    if stage + 1 < stages:
        after.append((Action(stage + 1, _BACKWARD, m), Action(stage + 1, _INPUT, m)))
    return after


def stuck_at(lists: Sequence[Sequence[Action]], stages: int) -> Action | None:
    """The first action that can never start; None where all lists come to their end."""
    at, done, moved = [0] * len(lists), set[Action](), True
    while moved:
        moved = False
        for rank, row in enumerate(lists):
            while at[rank] < len(row) and all(
                any(one in done for one in options) for options in needs(row[at[rank]], stages)
            ):
                done.add(row[at[rank]])
                at[rank] += 1
                moved = True
    return next((row[i] for row, i in zip(lists, at, strict=True) if i < len(row)), None)
