"""The runtime ``actions``: what a step of a pipeline does when each rank runs a strict list of whole actions.

It is how PyTorch's pipeline schedules run (`torch.distributed.pipelining`), and the only runtime here that speaks for
them; `envs.simulator` runs single ops, whichever is ready.

**Time.** A rank runs its actions one after another, in the order of its list, and waits for the next one where it must:
``F`` of a stage waits for the activations of the stage before, ``B`` and ``I`` for the stage's own ``F`` and the
gradients of the stage behind, ``W`` for its ``I``. A rank's updates follow its last action, and the sums of gradients
that it shares with others (`envs.pipelines.sums`). The step starts at 0 and ends with the last rank.

**Replicas.** Micro-batches may take different paths through the stages (`Pipeline.paths`): a stage on several devices
is several stages here, each of which serves some micro-batches.

**Transfers.** When ``F`` of a stage ends, its activations are sent to the next stage; when ``B`` or ``I`` ends, the
gradients go to the stage before. Between stages on one rank nothing is sent. Links are resources as in
`envs.simulator`: a transfer is reserved at once, starts when all link directions of its route are free for good, takes
their latency plus bytes divided by the smallest bandwidth, and occupies them until it ends; of actions that end at one
time the first rank's is served first. Sending and receiving take no time of the ranks.

**Memory** of a rank is the sum of what stays (`Pipeline.fixed_bytes`: parameters, optimizer state, accumulated
gradients, and the buffers that PyTorch receives into, one a micro-batch), of what each micro-batch in flight has saved
for its backward pass, from the start of ``F`` to the end of ``B`` or ``W``, and of what the running action needs
besides.

`envs.pipelines.kernel` is the compiled twin of `run_plain`, bit for bit.

Letters: ``S`` stages, ``P`` ranks, ``M`` micro-batches, ``A`` actions of all ranks, ``D`` devices of the cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.clusters.routes import Routes
from envs.pipelines import kernel
from envs.pipelines.orders import Action, lists_of, stuck_at
from envs.pipelines.sums import Sum, end_of_sums_s
from graphs.errors import InputError

_FORWARD, _BACKWARD, _INPUT, _WEIGHT = range(4)


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Stages on ranks, and the chains of them that micro-batches go through.

    Attributes:
        device_of_rank: ``int32[P]``, devices of the cluster.
        rank_of_stage: ``int32[S]``.
        action_s: ``float64[S, 4]``, seconds of an action by kind (`envs.pipelines.orders.KINDS`) on the stage's device.
        update_s: ``float64[S]``, seconds of what is done once a step, at its end.
        forward_bytes: ``int64[S]``, sent to the next stage for each micro-batch.
        backward_bytes: ``int64[S]``, sent to the stage before.
        saved_bytes: ``int64[S]``, kept for each micro-batch in flight.
        working_bytes: ``int64[S, 4]``, needed while an action runs.
        fixed_bytes: ``int64[S]``, there for the whole step.
        routes: Of the cluster.
        paths: ``int64[R, C]``: micro-batch ``m`` goes through the stages of row ``m % R``; None where each goes through
            all stages in order.
        sums: Gradients that ranks share.
    """

    device_of_rank: NDArray[np.int32]
    rank_of_stage: NDArray[np.int32]
    action_s: NDArray[np.float64]
    update_s: NDArray[np.float64]
    forward_bytes: NDArray[np.int64]
    backward_bytes: NDArray[np.int64]
    saved_bytes: NDArray[np.int64]
    working_bytes: NDArray[np.int64]
    fixed_bytes: NDArray[np.int64]
    routes: Routes
    paths: NDArray[np.int64] | None = None
    sums: tuple[Sum, ...] = ()

    @property
    def num_stages(self) -> int:
        """``S``."""
        return len(self.rank_of_stage)

    @property
    def num_ranks(self) -> int:
        """``P``."""
        return len(self.device_of_rank)

    def neighbours(self, micro_batches: int) -> NDArray[np.int64]:
        """``int64[2, S, M]``: the stage before and the stage after each stage for each micro-batch; -1 for none."""
        made = np.full((2, self.num_stages, micro_batches), -1, dtype=np.int64)
        if self.paths is None:
            made[0] = np.arange(self.num_stages)[:, None] - 1
            made[1, :-1] = np.arange(1, self.num_stages)[:, None]
            return made
        numbers = np.arange(micro_batches)
        rows = self.paths[numbers % len(self.paths)]  # [M, C]
        for before, after in zip(rows.T[:-1], rows.T[1:], strict=True):
            made[0, after, numbers] = before
            made[1, before, numbers] = after
        return made


@dataclass(frozen=True, eq=False)
class Table:
    """Lists of actions as arrays.

    Attributes:
        actions: ``int64[A, 3]``: stage, kind and micro-batch, one rank's list behind the other.
        offsets: ``int64[P + 1]``, where each rank's list begins.
    """

    actions: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, lists: Sequence[Sequence[Action]]) -> Table:
        """The arrays of some lists."""
        flat = np.array([action for row in lists for action in row], dtype=np.int64).reshape(-1, 3)
        return cls(flat, np.cumsum([0, *map(len, lists)]))

    def lists(self) -> list[list[Action]]:
        """For each rank its actions in order."""
        flat = [Action(*row) for row in self.actions.tolist()]
        return [flat[a:b] for a, b in itertools.pairwise(self.offsets.tolist())]


@dataclass(frozen=True, eq=False)
class Timed:
    """What a step of a pipeline does.

    Attributes:
        step_time_s: Seconds.
        peak_memory_bytes: ``int64[P]``.
        start_s: ``float64[A]``, of all ranks' actions, one list behind the other.
        end_s: ``float64[A]``.
    """

    step_time_s: float
    peak_memory_bytes: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]


def run(pipeline: Pipeline, lists: Sequence[Sequence[Action]] | Table, micro_batches: int) -> Timed:
    """Simulate one step.

    Args:
        pipeline: The stages.
        lists: For each rank its actions in order.
        micro_batches: ``M``.

    Raises:
        InputError: The lists wait for each other for ever.
    """
    table = lists if isinstance(lists, Table) else Table.of(lists)
    start_s, end_s = np.zeros((2, len(table.actions)))
    peak, free_s = np.zeros(pipeline.num_ranks, dtype=np.int64), np.zeros(pipeline.num_ranks)
    routes = pipeline.routes
    ended = kernel.run(
        table.actions,
        table.offsets,
        pipeline.device_of_rank.astype(np.int64),
        pipeline.rank_of_stage.astype(np.int64),
        pipeline.neighbours(micro_batches),
        pipeline.action_s,
        pipeline.forward_bytes,
        pipeline.backward_bytes,
        pipeline.saved_bytes,
        pipeline.working_bytes,
        pipeline.fixed_bytes,
        np.ascontiguousarray(routes.latency_s),
        np.ascontiguousarray(routes.bytes_per_s),
        routes.offsets.astype(np.int64),
        routes.directions.astype(np.int64),
        start_s,
        end_s,
        peak,
        free_s,
    )
    if not ended:
        _fail(pipeline, table.lists())
    return Timed(_step_time_s(pipeline, table.actions[:, 0], end_s, free_s), peak, start_s, end_s)


def _step_time_s(
    pipeline: Pipeline, stages: NDArray[np.int64], end_s: NDArray[np.float64], free_s: NDArray[np.float64]
) -> float:
    """When the last rank has its sums and has updated its parameters.

    Args:
        pipeline: The stages.
        stages: ``int64[A]``, of the actions.
        end_s: ``float64[A]``, of the actions.
        free_s: ``float64[P]``, the end of each rank's last action.
    """
    if pipeline.sums:
        last_s = np.zeros(pipeline.num_stages)
        np.maximum.at(last_s, stages, end_s)
        ranks = pipeline.rank_of_stage
        free_s = end_of_sums_s(pipeline.sums, pipeline.routes, pipeline.device_of_rank, ranks, free_s, last_s)
    return float((free_s + np.bincount(pipeline.rank_of_stage, pipeline.update_s, pipeline.num_ranks)).max())


def run_order(pipeline: Pipeline, order: str, micro_batches: int) -> Timed:
    """Simulate one step under an order of `envs.pipelines.orders` that says what a rank runs.

    Raises:
        InputError: The order does not serve such stages or so many micro-batches.
    """
    return run(pipeline, lists_of(order, pipeline.rank_of_stage.tolist(), micro_batches), micro_batches)


def _fail(pipeline: Pipeline, lists: Sequence[Sequence[Action]]) -> None:
    if pipeline.paths is None:
        first = stuck_at(lists, pipeline.num_stages)
        raise InputError(f"the lists wait for each other: {first} can never start; reorder them")
    raise InputError("the lists of replicas wait for each other; reorder them")


def make_lists(pipeline: Pipeline, micro_batches: int, *, split: bool, limit: float = 1.0) -> Table:
    """Lists for any stages on any ranks, made by running them: whenever a rank is free it takes what is best.

    Gradients before forward passes, these before gradients of parameters; then the earlier micro-batch; then the later
    stage. The first stage of a rank lets in a micro-batch only while there are at most ``limit * (S - 1 - s)`` others
    that the rank has not finished, ``s`` the stage's number: with 1 as many as under ``1f1b``. No limit makes a rank
    wait for ever: the earliest unfinished micro-batch may always go on.

    Args:
        pipeline: The stages; each micro-batch goes through all of them.
        micro_batches: ``M``.
        split: Whether gradients of parameters are actions of their own.
        limit: How far forward passes may run ahead, at least 0.

    Returns:
        The lists; `run` of them gives the times at which the actions were taken.
    """
    count = pipeline.num_stages * micro_batches * (3 if split else 2)
    table = np.zeros((count, 3), dtype=np.int64)
    rank_of_action = np.zeros(count, dtype=np.int64)
    routes = pipeline.routes
    kernel.take(
        pipeline.device_of_rank.astype(np.int64),
        pipeline.rank_of_stage.astype(np.int64),
        pipeline.action_s,
        pipeline.forward_bytes,
        pipeline.backward_bytes,
        micro_batches,
        split,
        limit,
        np.ascontiguousarray(routes.latency_s),
        np.ascontiguousarray(routes.bytes_per_s),
        routes.offsets.astype(np.int64),
        routes.directions.astype(np.int64),
        table,
        rank_of_action,
    )
    by_rank = np.argsort(rank_of_action, kind="stable")
    counts = np.bincount(rank_of_action, minlength=pipeline.num_ranks)
    return Table(table[by_rank], np.concatenate([[0], np.cumsum(counts)]))


def run_plain(pipeline: Pipeline, lists: Sequence[Sequence[Action]] | Table, micro_batches: int) -> Timed:
    """As `run`, slowly and readably."""
    lists = lists.lists() if isinstance(lists, Table) else lists
    ranks = pipeline.num_ranks
    before, after = pipeline.neighbours(micro_batches).tolist()
    offsets = np.cumsum([0, *map(len, lists)]).tolist()
    rank_of = pipeline.rank_of_stage.tolist()
    at, free_s = [0] * ranks, [0.0] * ranks
    running: dict[int, float] = {}  # the end of each busy rank's action
    arrived: dict[tuple[int, int, int], float] = {}  # what an action of a stage waits for, besides F
    for stage, m in itertools.product(range(pipeline.num_stages), range(micro_batches)):
        if before[stage][m] < 0:
            arrived[stage, _FORWARD, m] = 0.0
        if after[stage][m] < 0:
            arrived[stage, _BACKWARD, m] = 0.0
    done: dict[tuple[int, int, int], float] = {}
    link_free_s: dict[int, float] = {}
    used = [0] * ranks
    for stage, rank in enumerate(rank_of):
        used[rank] += int(pipeline.fixed_bytes[stage])
    peak = list(used)
    start_s, end_s = np.zeros(offsets[-1]), np.zeros(offsets[-1])

    def start(rank: int) -> None:
        if rank in running or at[rank] == len(lists[rank]):
            return
        stage, kind, m = lists[rank][at[rank]]
        if kind == _FORWARD:
            waits = [arrived.get((stage, _FORWARD, m))]
        elif kind == _WEIGHT:
            waits = [done.get((stage, _INPUT, m))]
        else:
            waits = [done.get((stage, _FORWARD, m)), arrived.get((stage, _BACKWARD, m))]
        known = [w for w in waits if w is not None]
        if len(known) < len(waits):
            return
        begins = max([free_s[rank], *known])
        running[rank] = begins + float(pipeline.action_s[stage, kind])
        start_s[offsets[rank] + at[rank]], end_s[offsets[rank] + at[rank]] = begins, running[rank]
        if kind == _FORWARD:
            used[rank] += int(pipeline.saved_bytes[stage])
        peak[rank] = max(peak[rank], used[rank] + int(pipeline.working_bytes[stage, kind]))

    def send(stage: int, to: int, size: int, now_s: float) -> float:
        source, target = (int(pipeline.device_of_rank[rank_of[s]]) for s in (stage, to))
        if source == target:
            return now_s
        routes = pipeline.routes
        begin, end = (int(routes.offsets[source * len(routes.latency_s) + target + i]) for i in (0, 1))
        directions = [int(d) for d in routes.directions[begin:end]]
        begins_s = max([now_s, *(link_free_s.get(d, 0.0) for d in directions)])
        ends_s = begins_s + (float(routes.latency_s[source, target]) + size / float(routes.bytes_per_s[source, target]))
        for direction in directions:
            link_free_s[direction] = ends_s
        return ends_s

    for rank in range(ranks):
        start(rank)
    while running:
        rank = min(running, key=lambda r: (running[r], r))
        now_s = running.pop(rank)
        free_s[rank] = now_s
        stage, kind, m = lists[rank][at[rank]]
        at[rank] += 1
        done[stage, kind, m] = now_s
        if kind in (_BACKWARD, _WEIGHT):
            used[rank] -= int(pipeline.saved_bytes[stage])
        start(rank)
        to = after[stage][m] if kind == _FORWARD else before[stage][m] if kind in (_BACKWARD, _INPUT) else -1
        if to >= 0:
            size = pipeline.forward_bytes[stage] if kind == _FORWARD else pipeline.backward_bytes[stage]
            way = _FORWARD if kind == _FORWARD else _BACKWARD
            arrived[to, way, m] = send(stage, to, int(size), now_s)
            start(rank_of[to])
    if any(at[rank] < len(row) for rank, row in enumerate(lists)):
        _fail(pipeline, lists)
    numbers = np.array([action.stage for row in lists for action in row], dtype=np.int64)
    step_time_s = _step_time_s(pipeline, numbers, end_s, np.array(free_s))
    return Timed(step_time_s, np.array(peak, dtype=np.int64), start_s, end_s)
