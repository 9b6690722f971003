"""Placers of pipelines: which runs of segments are stages, and on which devices, under an order of PyTorch's.

- `equal_segments` gives each stage as many segments, `equal_parameters` as many bytes of parameters.
- `max_load` is the dynamic programme of Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph
  Operators" (NeurIPS 2020, arXiv 2006.16423, section 5.1) for a chain, in which the exact one and that over a linear
  order are the same: the smallest largest load, of a device's work and all its transfers, under the same memory.
- `pipedream` is the dynamic programme of Narayanan et al., "PipeDream" (SOSP 2019, arXiv 1806.03377, section 3.1)
  without replication: the smallest largest stage (its compute time, or the transfers before it), memory as under 1F1B.

`placement.placers.stage_search` searches from the best of these, `placement.placers.replicated_stages` has opponents
with several devices a stage. Scored is under the order itself, by `envs.pipelines.actions`. All use accelerators only,
where there are any. Letters: ``K`` segments, ``S`` stages, ``M`` micro-batches.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.pipelines.actions import Pipeline, Table, make_lists, run
from envs.pipelines.orders import ORDERS, Action, lists_of
from envs.pipelines.segments import Segments
from graphs.errors import InputError, NoFeasiblePlacementError, unknown_name

_MOST_ORDERS = 24
"""Orders of devices that the dynamic programme looks at."""

_LIMITS = (1.0, 2.0)
"""How far forward passes may run ahead in made lists; see `envs.pipelines.actions.make_lists`."""


Way = str | tuple[bool, float]
"""How lists come about: an order that says what a rank runs, or `split` and `limit` of `make_lists`."""


@dataclass(frozen=True, eq=False)
class PlacedStages:
    """Stages on devices, and how a step runs.

    Attributes:
        cuts: The first segment of each stage but the first.
        devices: The device of each stage.
        order: One of `envs.pipelines.orders.ORDERS`.
        table: What each rank runs.
        way: How the lists came about.
        step_time_s: Simulated.
        peak_memory_bytes: ``int64[P]``, of each rank.
        feasible: Whether that fits.
    """

    cuts: tuple[int, ...]
    devices: tuple[int, ...]
    order: str
    table: Table
    way: Way
    step_time_s: float
    peak_memory_bytes: NDArray[np.int64]
    feasible: bool

    @property
    def lists(self) -> list[list[Action]]:
        """For each rank its actions in order."""
        return self.table.lists()


def evaluate(segments: Segments, cuts: Sequence[int], devices: Sequence[int], order: str) -> PlacedStages:
    """Run one step of stages.

    Args:
        segments: From `envs.pipelines.cuts.find_segments`.
        cuts: The first segment of each stage but the first, ascending.
        devices: The device of each stage.
        order: One of `envs.pipelines.orders.ORDERS`; with ``list`` the best of lists that are made, with whole and with
            divided backward passes, and where each rank has one stage of those of the other orders.

    Raises:
        InputError: The order does not serve these stages.
    """
    pipeline = segments.pipeline(cuts, devices)
    ways = ways_of(order, pipeline.num_stages, pipeline.num_ranks)
    tried = [evaluate_way(segments, pipeline, cuts, devices, order, way) for way in ways]
    return min(tried, key=lambda found: cost(found, segments))


def ways_of(order: str, stages: int, ranks: int) -> list[Way]:
    """The ways to make the lists of an order for so many stages on so many ranks."""
    if order != "list":
        return [order]
    made: list[Way] = [*itertools.product((False, True), _LIMITS)]
    return [*made, "gpipe", "1f1b", "zb_h1"] if stages == ranks else made


def evaluate_way(
    segments: Segments, pipeline: Pipeline, cuts: Sequence[int], devices: Sequence[int], order: str, way: Way
) -> PlacedStages:
    """Run one step of stages whose lists come about in a given way, see `evaluate`."""
    micro_batches = segments.micro_batches
    if isinstance(way, str):
        table = _table(way, tuple(pipeline.rank_of_stage.tolist()), micro_batches)
    else:
        table = make_lists(pipeline, micro_batches, split=way[0], limit=way[1])
    timed = run(pipeline, table, micro_batches)
    memories = segments.cluster.memories
    used = memories.used_by(pipeline.device_of_rank.tolist(), timed.peak_memory_bytes)
    fits = bool((used <= memories.limit_bytes).all())
    return PlacedStages(
        tuple(cuts), tuple(devices), order, table, way, timed.step_time_s, timed.peak_memory_bytes, fits
    )


@functools.lru_cache(maxsize=256)
def _table(order: str, rank_of_stage: tuple[int, ...], micro_batches: int) -> Table:
    return Table.of(lists_of(order, rank_of_stage, micro_batches))


def cost(found: PlacedStages, segments: Segments) -> tuple[bool, float]:
    """What does not fit comes after all that does, that which lacks least first."""
    if found.feasible:
        return False, found.step_time_s
    memories = segments.cluster.memories
    used = memories.used_by(list(dict.fromkeys(found.devices)), found.peak_memory_bytes)
    return True, float((used / np.maximum(memories.limit_bytes, 1)).max())


def equal_segments(segments: Segments, stages: int) -> tuple[int, ...]:
    """Cuts that give each stage as many segments, but for one more or less."""
    return tuple(segments.num_segments * s // stages for s in range(1, stages))


def equal_parameters(segments: Segments, stages: int) -> tuple[int, ...]:
    """Cuts that give each stage as many bytes of parameters, as nearly as whole segments allow."""
    sums = np.cumsum(segments.fixed_bytes)
    cuts: list[int] = []
    for s in range(1, stages):
        cut = int(np.abs(sums - sums[-1] * s / stages).argmin()) + 1
        low = cuts[-1] + 1 if cuts else 1
        cuts.append(min(max(cut, low), segments.num_segments - (stages - s)))
    return tuple(cuts)


def pipedream(segments: Segments, devices: Sequence[int]) -> tuple[int, ...] | None:
    """The cuts with the smallest largest stage for devices in this order; None where none fits."""
    return _smallest_largest(segments, devices, both=False)


def max_load(segments: Segments, devices: Sequence[int]) -> tuple[int, ...] | None:
    """The cuts with the smallest largest load of a device, its transfers added; None where none fits."""
    return _smallest_largest(segments, devices, both=True)


def _smallest_largest(segments: Segments, devices: Sequence[int], *, both: bool) -> tuple[int, ...] | None:
    """The cuts with the smallest largest stage: work or transfers before it, or *both* with those behind it, too."""
    count, stages = segments.num_segments, len(devices)
    work_s = np.concatenate([np.zeros((segments.cluster.num_devices, 1)), segments.action_s.sum(axis=2)], axis=1)
    work_s = np.cumsum(work_s, axis=1)
    kept, stays = (np.concatenate([[0], np.cumsum(x)]) for x in (segments.saved_bytes, segments.fixed_bytes))
    room = segments.cluster.memory_bytes
    best = np.full((stages + 1, count + 1), np.inf)
    chosen = np.zeros((stages + 1, count + 1), dtype=np.int64)
    best[0, 0] = 0.0
    passed = [np.zeros((2, count + 1)), *(_passed_s(segments, *pair) for pair in itertools.pairwise(devices))]
    passed.append(passed[0])
    for s, device in enumerate(devices, start=1):
        in_flight = min(stages - s + 1, segments.micro_batches)
        for end in range(s, count + 1):
            starts = np.arange(end)
            crossing = segments.crossing_bytes[starts]
            largest_s = work_s[device, end] - work_s[device, starts]
            before_s = passed[s - 1][:, starts]
            if both:
                largest_s = largest_s + before_s.sum(axis=0) + passed[s][:, end].sum()
            else:
                largest_s = np.maximum(largest_s, before_s.max(axis=0))
            buffers = segments.micro_batches * (crossing + segments.gradient_bytes[end])
            saved = kept[end] - kept[starts] + crossing + segments.output_bytes[end]
            largest_s = np.maximum(largest_s, best[s - 1, starts])
            largest_s[stays[end] - stays[starts] + buffers + in_flight * saved > room[device]] = np.inf
            k = int(largest_s.argmin())
            best[s, end], chosen[s, end] = largest_s[k], k
    if not np.isfinite(best[stages, count]):
        return None
    cuts, end = [], count
    for s in range(stages, 0, -1):
        end = int(chosen[s, end])
        cuts.append(end)
    return tuple(cuts[::-1][1:])


def _passed_s(segments: Segments, before: int, after: int) -> NDArray[np.float64]:
    """``float64[2, K + 1]``: what activations and gradients take between two devices, by where they are cut."""
    routes = segments.cluster.routes
    if before == after:
        return np.zeros((2, segments.num_segments + 1))
    forth = routes.latency_s[before, after] + segments.crossing_bytes / routes.bytes_per_s[before, after]
    back = routes.latency_s[after, before] + segments.gradient_bytes / routes.bytes_per_s[after, before]
    return np.stack([forth, back])


def usable_devices(segments: Segments) -> list[int]:
    """The accelerators; all devices where there are none."""
    devices = segments.cluster.devices
    return [i for i, device in enumerate(devices) if device.spec.kind != "cpu"] or list(range(len(devices)))


def _device_rows(segments: Segments, order: str) -> Iterator[tuple[int, ...]]:
    """The devices of stages that are tried: for every number of ranks, and every order of unlike devices."""
    usable = usable_devices(segments)
    alike = bool((segments.action_s[usable] == segments.action_s[usable[0]]).all())
    for ranks in range(1, len(usable) + 1):
        every = itertools.permutations(usable, ranks)
        for row in itertools.islice(every, 1 if alike else _MOST_ORDERS):
            turns = range(2, segments.num_segments // ranks + 1) if order == "interleaved" else [1]
            for each in itertools.islice(turns, 3):
                yield row * each


def folded(segments: Segments, most_turns: int = 4) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cuts and devices of stages that go over the same devices several times, which shortens the wait at both ends.

    Each time in the same direction, as Megatron-LM's interleaved stages do, or there and back, as those of Qi et al.,
    "Pipeline Parallelism with Controllable Memory" (NeurIPS 2024, arXiv 2405.15362). Cut into equally many segments,
    and by PipeDream's programme.
    """
    usable = usable_devices(segments)
    fast = sorted(usable, key=lambda d: float(segments.action_s[d].sum()))
    for ranks in range(2, len(usable) + 1):
        for turns in range(2, min(most_turns, segments.num_segments // ranks) + 1):
            seen = set()
            for row in (usable[:ranks], fast[:ranks]):
                for devices in (row * turns, [d for turn in range(turns) for d in row[:: -1 if turn % 2 else 1]]):
                    seen.add(tuple(devices))
            for each in sorted(seen):
                for cuts in dict.fromkeys([equal_segments(segments, len(each)), pipedream(segments, each)]):
                    if cuts is not None:
                        yield cuts, each


def heuristics(segments: Segments, order: str) -> dict[str, PlacedStages]:
    """What the placers that do not search find, each with its best number of stages.

    Raises:
        InputError: The order is unknown.
        NoFeasiblePlacementError: The step can be cut into no such stages.
    """
    if order not in ORDERS:
        raise unknown_name("order", order, ORDERS)
    found: dict[str, PlacedStages] = {}
    for devices in _device_rows(segments, order):
        stages = len(devices)
        if stages > segments.num_segments:
            continue
        for name, cuts in (
            ("equal_segments", equal_segments(segments, stages)),
            ("equal_parameters", equal_parameters(segments, stages)),
            ("max_load", max_load(segments, devices)),
            ("pipedream", pipedream(segments, devices)),
        ):
            if cuts is None:
                continue
            try:
                placed = evaluate(segments, cuts, devices, order)
            except InputError:
                continue  # an interleaved order does not serve so many micro-batches on these ranks
            if name not in found or cost(placed, segments) < cost(found[name], segments):
                found[name] = placed
    if not found:
        raise NoFeasiblePlacementError(
            f"the step has {segments.num_segments} segments, which order '{order}' cannot run with "
            f"{segments.micro_batches} micro-batches; take another order or number of micro-batches"
        )
    return found
