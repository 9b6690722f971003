"""Opponents with several devices a stage: against brute force, and what they need of the batch."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from envs.pipelines.segments import Segments
from placement.placers.pipeline_stages import heuristics
from placement.placers.replicated_stages import (
    _pipedream,
    data_parallel,
    evaluate_replicas,
    pipedream_replicas,
    replicated_pipelines,
    with_replicas,
)
from tests.envs.pipelines.segments import any_segments


def shared_out(segments: Segments, batch: int):  # type: ignore[no-untyped-def]
    """The step in other numbers of micro-batches: as fast a sample, whatever their size."""

    def segments_of(parts: int) -> Segments | None:
        if batch % parts:
            return None
        times = segments.micro_batches / parts
        return replace(segments, micro_batches=parts, action_s=segments.action_s * times, add_s=segments.add_s * times)

    return segments_of


def test_data_parallelism_takes_all_devices_where_links_are_fast() -> None:
    segments = replace(
        any_segments(1, count=4, devices=4, micro_batches=8, alike=True), summed_bytes=np.ones(4, dtype=np.int64)
    )
    found = data_parallel(segments, shared_out(segments, 8), "1f1b")
    assert found is not None
    assert (found.num_devices, found.cuts) == (4, ())
    pipeline_s = min(one.step_time_s for one in heuristics(segments, "1f1b").values())
    assert found.step_time_s < pipeline_s
    heavy = replace(segments, summed_bytes=np.full(4, 10**9), fixed_bytes=np.full(4, 4 * 10**9))
    slow = data_parallel(heavy, shared_out(heavy, 8), "1f1b")
    assert slow is not None
    assert slow.step_time_s > found.step_time_s


@pytest.mark.parametrize(("batch", "expected"), [(6, {2, 3}), (4, {2, 4}), (1, set())])
def test_replicas_share_the_batch_out_evenly(batch: int, expected: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    segments = any_segments(1, count=4, devices=4, micro_batches=batch, alike=True)
    tried = set()

    def note(step, cuts, rows, order):  # type: ignore[no-untyped-def]
        tried.add(len(rows[0]))
        assert step.micro_batches % len(rows[0]) == 0
        return evaluate_replicas(step, cuts, rows, order)

    monkeypatch.setattr("placement.placers.replicated_stages.evaluate_replicas", note)
    data_parallel(segments, shared_out(segments, batch), "gpipe")
    assert tried == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_dynamic_programme_with_replication_finds_the_smallest_slowest_stage(seed: int) -> None:
    segments = any_segments(seed, count=5, devices=4, micro_batches=6)
    routes = segments.cluster.routes

    def slowest_s(cuts: tuple[int, ...], counts: tuple[int, ...]) -> float:
        bounds, first, worst = [0, *cuts, 5], 0, 0.0
        for s, count in enumerate(counts):
            a, b = bounds[s], bounds[s + 1]
            row = range(first, first + count)
            stage_s = max(segments.action_s[d, a:b].sum() for d in row) / count
            if count > 1:
                hops = [(row[i], row[(i + 1) % count]) for i in range(count)]
                share = segments.summed_bytes[a:b].sum() / count
                hop_s = [routes.latency_s[hop] + share / routes.bytes_per_s[hop] for hop in hops]
                stage_s = max(stage_s, 2 * (count - 1) * max(hop_s) / 6)
            if s:
                hop = (first - 1, first)
                for size, way in ((segments.crossing_bytes[a], hop), (segments.gradient_bytes[a], hop[::-1])):
                    stage_s = max(stage_s, routes.latency_s[way] + size / routes.bytes_per_s[way])
            worst, first = max(worst, stage_s), first + count
        return worst

    found = _pipedream(segments, [0, 1, 2, 3])
    assert found is not None
    cuts, rows = found
    assert [d for row in rows for d in row] == [0, 1, 2, 3]
    best_s = min(
        slowest_s(some, counts)
        for stages in range(1, 5)
        for some in itertools.combinations(range(1, 5), stages - 1)
        for counts in itertools.product(range(1, 5), repeat=stages)
        if sum(counts) == 4
    )
    assert slowest_s(cuts, tuple(map(len, rows))) == pytest.approx(best_s, rel=0.02)


@pytest.mark.parametrize("order", ["gpipe", "1f1b", "interleaved", "zb_h1", "list"])
def test_opponents_with_replicas_of_every_order(order: str) -> None:
    segments = any_segments(2, count=6, devices=4, micro_batches=8, alike=True)
    found = with_replicas(segments, shared_out(segments, 8), order)
    assert set(found) == {"data_parallel", "replicated_pipelines", "pipedream_replicas"}
    for one in found.values():
        flat = [device for row in one.devices for device in row]
        assert len(set(flat)) == len(flat) <= 4
        assert one.feasible
    assert len(found["replicated_pipelines"].devices) == 2


def test_what_does_not_fit_is_said_to_not_fit() -> None:
    segments = any_segments(2, count=6, devices=4, micro_batches=8, alike=True)
    large = replace(segments, fixed_bytes=np.full(6, int(segments.cluster.memory_bytes.min()) // 2))
    found = data_parallel(large, shared_out(large, 8), "1f1b")
    assert found is not None
    assert not found.feasible
    assert pipedream_replicas(large, "1f1b") is None
    side = replicated_pipelines(large, "1f1b")
    assert side is not None
    assert not side.feasible
