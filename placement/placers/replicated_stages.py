"""Opponents of a pipeline whose stages are on several devices each: replicas that share the batch.

- `data_parallel`: the whole model on each of some devices; the number of micro-batches is free up to that of the
  pipeline, so that each replica may take its part of the batch at once.
- `replicated_pipelines`: several equal pipelines side by side.
- `pipedream_replicas`: PipeDream's dynamic programme with replication (Narayanan et al., SOSP 2019, arXiv 1806.03377,
  section 3.1): stages with any numbers of replicas. There weights are summed with every micro-batch; here once a step.

They are simulated as pipelines are (`envs.pipelines.actions`), under the same order and memory; gradients are summed as
`envs.pipelines.sums` says. PyTorch's pipelines do not run them by themselves, so no search looks among them.

Letters: ``K`` segments, ``D`` devices, ``M`` micro-batches, ``S`` stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.pipelines.actions import run
from envs.pipelines.orders import lists_of_replicas
from envs.pipelines.segments import Segments
from envs.pipelines.sums import ring_s
from placement.placers.pipeline_stages import equal_segments, pipedream, usable_devices

SegmentsOf = Callable[[int], Segments | None]
"""The segments of the step in so many micro-batches; None where the batch has no such parts."""

_ORDERS = {"list": ("gpipe", "1f1b", "zb_h1"), "interleaved": ("1f1b",)}
"""What replicas run where the order of a pipeline is not for one stage a rank."""


@dataclass(frozen=True, eq=False)
class ReplicatedStages:
    """Stages that are on several devices each.

    Attributes:
        cuts: The first segment of each stage but the first.
        devices: The devices of each stage.
        order: What each runs, one of `envs.pipelines.orders.ORDERS`.
        micro_batches: Parts of the batch, of all replicas together.
        step_time_s: Simulated.
        peak_memory_bytes: ``int64[P]``, of each device, in the order of `devices`.
        feasible: Whether that fits.
    """

    cuts: tuple[int, ...]
    devices: tuple[tuple[int, ...], ...]
    order: str
    micro_batches: int
    step_time_s: float
    peak_memory_bytes: NDArray[np.int64]
    feasible: bool

    @property
    def cost(self) -> tuple[bool, float]:
        """What does not fit comes after all that does."""
        return not self.feasible, self.step_time_s

    @property
    def num_devices(self) -> int:
        """All that are used."""
        return sum(map(len, self.devices))


def evaluate_replicas(
    segments: Segments, cuts: Sequence[int], devices: Sequence[Sequence[int]], order: str
) -> ReplicatedStages:
    """Run one step of replicated stages.

    Args:
        segments: From `envs.pipelines.cuts.find_segments`.
        cuts: The first segment of each stage but the first, ascending.
        devices: The devices of each stage.
        order: One of `envs.pipelines.orders.ORDERS`; with ``list`` the best of those that have one stage a rank.
    """
    flat = [device for row in devices for device in row]
    found = []
    for known in _ORDERS.get(order, (order,)):
        pipeline = segments.replicas(cuts, devices, split=known == "zb_h1")
        lists = lists_of_replicas(known, [len(row) for row in devices], segments.micro_batches)
        timed = run(pipeline, lists, segments.micro_batches)
        used = segments.cluster.memories.used_by(flat, timed.peak_memory_bytes)
        fits = bool((used <= segments.cluster.memories.limit_bytes).all())
        rows = tuple(tuple(row) for row in devices)
        found.append(
            ReplicatedStages(
                tuple(cuts), rows, known, segments.micro_batches, timed.step_time_s, timed.peak_memory_bytes, fits
            )
        )
    return min(found, key=lambda one: one.cost)


def data_parallel(segments: Segments, segments_of: SegmentsOf, order: str) -> ReplicatedStages | None:
    """The best numbers of replicas and micro-batches; None where the batch cannot be shared out.

    Args:
        segments: The step in ``M`` micro-batches, those of the pipeline that this is an opponent of.
        segments_of: The step in any number of micro-batches.
        order: As for `evaluate_replicas`.
    """
    found = []
    fast = _fastest_first(segments)
    for replicas in range(2, len(fast) + 1):
        parts = replicas
        while parts <= max(segments.micro_batches, replicas):
            step = segments_of(parts)
            if step is not None:
                found.append(evaluate_replicas(step, (), [fast[:replicas]], order))
            parts *= 2
    return min(found, key=lambda one: one.cost, default=None)


def replicated_pipelines(segments: Segments, order: str) -> ReplicatedStages | None:
    """The best of equal pipelines side by side, of two stages at least; None where there are too few devices.

    Stages have equally many segments, or are those of PipeDream's programme for one of the pipelines.
    """
    found = []
    fast = _fastest_first(segments)
    for replicas in range(2, len(fast) // 2 + 1):
        if segments.micro_batches % replicas:
            continue
        for stages in range(2, min(len(fast) // replicas, segments.num_segments) + 1):
            used = fast[: replicas * stages]
            side_by_side = [used[s::stages] for s in range(stages)]
            stage_by_stage = [used[s * replicas : (s + 1) * replicas] for s in range(stages)]
            for rows in (side_by_side, stage_by_stage):
                choices = {equal_segments(segments, stages), pipedream(segments, [row[0] for row in rows])}
                found += [evaluate_replicas(segments, cuts, rows, order) for cuts in choices if cuts is not None]
    return min(found, key=lambda one: one.cost, default=None)


def pipedream_replicas(segments: Segments, order: str) -> ReplicatedStages | None:
    """The best that PipeDream's programme finds over numbers of devices; None where it finds nothing that fits."""
    found = []
    in_order, fast = usable_devices(segments), _fastest_first(segments)
    for devices in [fast] if fast == in_order else [in_order, fast]:
        for count in range(1, len(devices) + 1):
            placed = _pipedream(segments, devices[:count])
            if placed is not None and max(len(row) for row in placed[1]) <= segments.micro_batches:
                found.append(evaluate_replicas(segments, *placed, order))
    return min(found, key=lambda one: one.cost, default=None)


def _fastest_first(segments: Segments) -> list[int]:
    """Devices to use, the fastest for the whole model first; equal ones as in the cluster."""
    return sorted(usable_devices(segments), key=lambda d: float(segments.action_s[d].sum()))


def _pipedream(segments: Segments, devices: Sequence[int]) -> tuple[tuple[int, ...], list[list[int]]] | None:
    """Cuts and each stage's devices, so that the slowest stage takes least; all devices are used, in this order.

    A stage with ``r`` replicas takes an ``r``-th of the time of its slowest one for a micro-batch, or as long as the
    sum of its gradients, divided by the micro-batches; before it come the transfers from the stage before.
    """
    count, total = segments.num_segments, len(devices)
    best = np.full((count + 1, total + 1), np.inf)
    chosen = np.zeros((count + 1, total + 1, 2), dtype=np.int64)
    best[0, 0] = 0.0
    own = _Stages(segments)
    for used in range(1, total + 1):
        for replicas in range(1, used + 1):
            row = list(devices[used - replicas : used])
            in_flight = -(-(total - used + replicas) // replicas)
            before = devices[used - replicas - 1] if used > replicas else None
            for end in range(1, count + 1):
                stage_s = np.maximum(own.largest_s(end, row, in_flight, before), best[:end, used - replicas])
                k = int(stage_s.argmin())
                if stage_s[k] < best[end, used]:
                    best[end, used] = stage_s[k]
                    chosen[end, used] = k, replicas
    if not np.isfinite(best[count, total]):
        return None
    cuts, rows, end, used = [], [], count, total
    while used:
        k, replicas = chosen[end, used].tolist()
        rows.append(list(devices[used - replicas : used]))
        cuts.append(k)
        end, used = k, used - replicas
    return tuple(cuts[::-1][1:]), rows[::-1]


class _Stages:
    """What stages that end with some segment take, for all that they may begin with."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments

        def sums(values: NDArray[np.generic]) -> NDArray[np.float64]:
            return np.concatenate([[0.0], np.cumsum(values)])

        self.work_s = [sums(times.sum(axis=1)) for times in segments.action_s]
        self.kept, self.stays = sums(segments.saved_bytes), sums(segments.fixed_bytes)
        self.summed = sums(segments.summed_bytes)

    def largest_s(self, end: int, row: Sequence[int], in_flight: int, before: int | None) -> NDArray[np.float64]:
        """``float64[end]``: seconds a micro-batch of a stage on `row` by its first segment; infinity if it is too big.

        Args:
            end: The first segment that is not in it.
            row: Its devices.
            in_flight: Micro-batches that each keeps at once.
            before: The last device of the stage before; None for the first stage.
        """
        segments, starts = self.segments, np.arange(end)
        share = -(-segments.micro_batches // len(row))
        largest_s = np.max([self.work_s[d][end] - self.work_s[d][:end] for d in row], axis=0) / len(row)
        if len(row) > 1:
            latency_s, _ = ring_s(segments.cluster.routes, row, 0)
            byte_s = ring_s(segments.cluster.routes, row, 10**9)[0] - latency_s
            sum_s = latency_s + (self.summed[end] - self.summed[:end]) * byte_s / 1e9
            largest_s = np.maximum(largest_s, sum_s / segments.micro_batches)
        crossing = segments.crossing_bytes[starts]
        if before is not None:
            routes, first = segments.cluster.routes, row[0]
            forward_s = routes.latency_s[before, first] + crossing / routes.bytes_per_s[before, first]
            gradient = segments.gradient_bytes[starts]
            backward_s = routes.latency_s[first, before] + gradient / routes.bytes_per_s[first, before]
            largest_s = np.maximum(largest_s, np.maximum(forward_s, backward_s))
            largest_s[0] = np.inf  # a later stage cannot begin the model
        else:
            largest_s[1:] = np.inf
        saved = self.kept[end] - self.kept[:end] + crossing + segments.output_bytes[end]
        buffers = share * (crossing + segments.gradient_bytes[end])
        need = self.stays[end] - self.stays[:end] + buffers + min(in_flight, share) * saved
        largest_s[need > segments.cluster.memory_bytes[list(row)].min()] = np.inf
        return largest_s


def with_replicas(segments: Segments, segments_of: SegmentsOf, order: str) -> dict[str, ReplicatedStages]:
    """All opponents with replicas that there are, by name; see `data_parallel`."""
    found = {
        "data_parallel": data_parallel(segments, segments_of, order),
        "replicated_pipelines": replicated_pipelines(segments, order),
        "pipedream_replicas": pipedream_replicas(segments, order),
    }
    return {name: placed for name, placed in found.items() if placed is not None}
