"""Placers of pipelines: which runs of segments are stages, and on which devices, under an order of PyTorch's.

- `equal_segments` gives each stage as many segments, `equal_parameters` as many bytes of parameters.
- `pipedream` is the dynamic programme of Narayanan et al., "PipeDream" (SOSP 2019, arXiv 1806.03377, section 3.1)
  without replication: the smallest largest stage (its compute time, or the transfers before it), memory as under 1F1B.
- `search` starts from the best of these for each number of stages and moves cuts and devices at random (simulated
  annealing), scored by `envs.pipelines.actions` under the order itself.

All use accelerators only, where there are any. Letters: ``K`` segments, ``S`` stages, ``M`` micro-batches.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.pipelines.actions import make_lists, run
from envs.pipelines.cuts import Segments
from envs.pipelines.orders import ORDERS, Action, lists_of
from graphs.errors import InputError, NoFeasiblePlacementError, unknown_name

_MOST_ORDERS = 24
"""Orders of devices that the dynamic programme looks at."""

_LIMITS = (1.0, 2.0)
"""How far forward passes may run ahead in made lists; see `envs.pipelines.actions.make_lists`."""


@dataclass(frozen=True, eq=False)
class PlacedStages:
    """Stages on devices, and how a step runs.

    Attributes:
        cuts: The first segment of each stage but the first.
        devices: The device of each stage.
        order: One of `envs.pipelines.orders.ORDERS`.
        lists: What each rank runs.
        step_time_s: Simulated.
        peak_memory_bytes: ``int64[P]``, of each rank.
        feasible: Whether that fits.
    """

    cuts: tuple[int, ...]
    devices: tuple[int, ...]
    order: str
    lists: list[list[Action]]
    step_time_s: float
    peak_memory_bytes: NDArray[np.int64]
    feasible: bool


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
    micro_batches = segments.micro_batches
    if order == "list":
        ways = itertools.product((False, True), _LIMITS)
        choices = [make_lists(pipeline, micro_batches, split=split, limit=limit) for split, limit in ways]
        if pipeline.num_stages == pipeline.num_ranks:
            ranks = pipeline.rank_of_stage.tolist()
            choices += [lists_of(known, ranks, micro_batches) for known in ("gpipe", "1f1b", "zb_h1")]
    else:
        choices = [lists_of(order, pipeline.rank_of_stage.tolist(), micro_batches)]
    room = segments.cluster.memory_bytes[pipeline.device_of_rank]
    best: PlacedStages | None = None
    for lists in choices:
        timed = run(pipeline, lists, micro_batches)
        fits = bool((timed.peak_memory_bytes <= room).all())
        found = PlacedStages(
            tuple(cuts), tuple(devices), order, lists, timed.step_time_s, timed.peak_memory_bytes, fits
        )
        if best is None or _cost(found, segments) < _cost(best, segments):
            best = found
    assert best is not None
    return best


def _cost(found: PlacedStages, segments: Segments) -> tuple[bool, float]:
    """What does not fit comes after all that does, that which lacks least first."""
    if found.feasible:
        return False, found.step_time_s
    ranks = list(dict.fromkeys(found.devices))
    return True, float((found.peak_memory_bytes / segments.cluster.memory_bytes[ranks]).max())


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
    count, stages = segments.num_segments, len(devices)
    work_s = np.concatenate([np.zeros((segments.cluster.num_devices, 1)), segments.action_s.sum(axis=2)], axis=1)
    work_s = np.cumsum(work_s, axis=1)
    kept, stays = (np.concatenate([[0], np.cumsum(x)]) for x in (segments.saved_bytes, segments.fixed_bytes))
    routes = segments.cluster.routes
    room = segments.cluster.memory_bytes
    best = np.full((stages + 1, count + 1), np.inf)
    chosen = np.zeros((stages + 1, count + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for s, device in enumerate(devices, start=1):
        in_flight = min(stages - s + 1, segments.micro_batches)
        for end in range(s, count + 1):
            starts = np.arange(end)
            crossing = segments.crossing_bytes[starts]
            largest_s = work_s[device, end] - work_s[device, starts]
            if s > 1 and devices[s - 2] != device:
                before = devices[s - 2]
                forward_s = routes.latency_s[before, device] + crossing / routes.bytes_per_s[before, device]
                gradient = segments.gradient_bytes[starts]
                backward_s = routes.latency_s[device, before] + gradient / routes.bytes_per_s[device, before]
                largest_s = np.maximum(largest_s, np.maximum(forward_s, backward_s))
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


def _usable(segments: Segments) -> list[int]:
    """The accelerators; all devices where there are none."""
    devices = segments.cluster.devices
    return [i for i, device in enumerate(devices) if device.spec.kind != "cpu"] or list(range(len(devices)))


def _device_rows(segments: Segments, order: str) -> Iterator[tuple[int, ...]]:
    """The devices of stages that are tried: for every number of ranks, and every order of unlike devices."""
    usable = _usable(segments)
    alike = bool((segments.action_s[usable] == segments.action_s[usable[0]]).all())
    for ranks in range(1, len(usable) + 1):
        every = itertools.permutations(usable, ranks)
        for row in itertools.islice(every, 1 if alike else _MOST_ORDERS):
            turns = range(2, segments.num_segments // ranks + 1) if order == "interleaved" else [1]
            for each in itertools.islice(turns, 3):
                yield row * each


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
            ("pipedream", pipedream(segments, devices)),
        ):
            if cuts is None:
                continue
            try:
                placed = evaluate(segments, cuts, devices, order)
            except InputError:
                continue  # an interleaved order does not serve so many micro-batches on these ranks
            if name not in found or _cost(placed, segments) < _cost(found[name], segments):
                found[name] = placed
    if not found:
        raise NoFeasiblePlacementError(
            f"the step has {segments.num_segments} segments, which order '{order}' cannot run with "
            f"{segments.micro_batches} micro-batches; take another order or number of micro-batches"
        )
    return found


def search(
    segments: Segments,
    order: str,
    *,
    seed: int = 0,
    time_limit_s: float | None = None,
    evaluations: int = 2000,
) -> PlacedStages:
    """The best stages found.

    Args:
        segments: From `envs.pipelines.cuts.find_segments`.
        order: One of `envs.pipelines.orders.ORDERS`.
        seed: Seeds the moves.
        time_limit_s: Seconds; None for no limit. Only without one does the same seed give the same stages.
        evaluations: Stages that are tried.

    Raises:
        InputError: The order is unknown.
        NoFeasiblePlacementError: Nothing fits.
    """
    starts = heuristics(segments, order)
    best = min(starts.values(), key=lambda found: _cost(found, segments))
    rng = np.random.default_rng(seed)
    began_s = time.perf_counter()
    current = best
    for number in range(evaluations):
        spent = number / evaluations
        if time_limit_s is not None:
            spent = max(spent, (time.perf_counter() - began_s) / time_limit_s)
        if spent >= 1:
            break
        moved = _moved(segments, current, order, rng)
        if moved is None:
            continue
        tried = evaluate(segments, *moved, order)
        old, new = _cost(current, segments), _cost(tried, segments)
        warmth = 0.05 * best.step_time_s * (1 - spent) ** 2 + 1e-12
        if new <= old or (old[0] == new[0] and rng.random() < math.exp((old[1] - new[1]) / warmth)):
            current = tried
            if new < _cost(best, segments):
                best = tried
    if not best.feasible:
        short = best.peak_memory_bytes - segments.cluster.memory_bytes[list(dict.fromkeys(best.devices))]
        raise NoFeasiblePlacementError(
            f"no stages fit the memory of cluster '{segments.cluster.name}': {short.max() / 1e9:.2f} GB are short at "
            f"least with order '{order}'; take more micro-batches, or devices with more memory"
        )
    return best


def _moved(
    segments: Segments, now: PlacedStages, order: str, rng: np.random.Generator
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Other cuts or devices; None where the move that was drawn changes nothing."""
    cuts, devices = list(now.cuts), list(now.devices)
    kind = rng.random()
    if cuts and kind < 0.6:
        _move_cuts(cuts, segments.num_segments, rng)
    elif kind < 0.75 and order != "interleaved":
        _divide_or_join(segments, cuts, devices, order, rng)
    elif kind < 0.85 and order == "list":
        devices[int(rng.integers(len(devices)))] = int(rng.choice(now.devices))
    else:
        a, b = int(rng.choice(devices)), int(rng.choice(_usable(segments)))
        swap = {a: b, b: a}
        devices = [swap.get(device, device) for device in devices]
    if (tuple(cuts), tuple(devices)) == (now.cuts, now.devices):
        return None
    return tuple(cuts), tuple(devices)


def _move_cuts(cuts: list[int], segments: int, rng: np.random.Generator) -> None:
    """Move one cut or a run of neighbouring ones by up to three segments, as far as there is room."""
    first = int(rng.integers(len(cuts)))
    last = first if rng.random() < 0.7 else int(rng.integers(first, len(cuts)))
    low = (cuts[first - 1] + 1 if first else 1) - cuts[first]
    high = (cuts[last + 1] - 1 if last + 1 < len(cuts) else segments - 1) - cuts[last]
    by = int(np.clip(rng.choice([-3, -2, -1, 1, 2, 3]), low, high))
    cuts[first : last + 1] = [cut + by for cut in cuts[first : last + 1]]


def _divide_or_join(
    segments: Segments, cuts: list[int], devices: list[int], order: str, rng: np.random.Generator
) -> None:
    """Give a part of a stage to a device that has none (under ``list`` to any), or a stage to the one before."""
    free = [d for d in _usable(segments) if order == "list" or d not in devices]
    taken = {0, *cuts}
    places = [k for k in range(1, segments.num_segments) if k not in taken]
    if free and places and rng.random() < 0.5:
        cut = int(rng.choice(places))
        number = sum(c < cut for c in cuts)
        cuts.insert(number, cut)
        devices.insert(number + int(rng.integers(2)), int(rng.choice(free)))
    elif cuts:
        number = int(rng.integers(len(cuts)))
        del cuts[number]
        del devices[number + int(rng.integers(2))]
