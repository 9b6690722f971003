"""Stages on several devices, tied weights, and the sums of gradients that ranks share."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clusters.known import cpu_cores
from envs.pipelines.actions import run, run_plain
from envs.pipelines.orders import check_lists, lists_of, lists_of_replicas
from envs.pipelines.segments import Segments, Tied
from envs.pipelines.sums import Sum, end_of_sums_s, ring_s
from graphs.errors import InputError
from tests.envs.pipelines.pipelines import switch
from tests.envs.pipelines.segments import any_segments

ORDERS = ("gpipe", "1f1b", "zb_h1")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("stages", "micro"), [(1, 3), (3, 5), (4, 2)])
def test_one_replica_a_stage_is_a_pipeline(order: str, stages: int, micro: int) -> None:
    assert lists_of_replicas(order, [1] * stages, micro) == lists_of(order, list(range(stages)), micro)
    segments = any_segments(0, count=6, devices=4, micro_batches=micro)
    cuts = tuple(range(1, stages))
    lists = lists_of(order, list(range(stages)), micro)
    plain = run(segments.pipeline(cuts, range(stages)), lists, micro)
    split = run(segments.replicas(cuts, [[d] for d in range(stages)], split=order == "zb_h1"), lists, micro)
    assert plain.step_time_s == split.step_time_s
    assert plain.peak_memory_bytes.tolist() == split.peak_memory_bytes.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 9))
def test_any_replicas_come_to_their_end_and_do_all_work(seed: int, counts: list[int], micro: int) -> None:
    segments = any_segments(seed, count=5, devices=sum(counts), micro_batches=micro)
    devices = np.random.default_rng(seed).permutation(sum(counts)).tolist()
    rows = [[devices.pop() for _ in range(count)] for count in counts]
    cuts = tuple(range(1, len(counts)))
    for order in ORDERS:
        lists = lists_of_replicas(order, counts, micro)
        pipeline = segments.replicas(cuts, rows, split=order == "zb_h1")
        timed, plain = run(pipeline, lists, micro), run_plain(pipeline, lists, micro)
        assert timed.step_time_s == plain.step_time_s
        assert timed.peak_memory_bytes.tolist() == plain.peak_memory_bytes.tolist()
        np.testing.assert_array_equal(timed.end_s, plain.end_s)
        forward = sorted(action.micro_batch for row in lists[: counts[0]] for action in row if action.kind == 0)
        assert forward == list(range(micro))
        busy_s = [sum(pipeline.action_s[a.stage, a.kind] for a in row) for row in lists]
        assert timed.step_time_s >= max(busy_s) * (1 - 1e-12)
        for stage, a, b in ((s, s, s + 1) for s in range(len(counts) - 1)):
            done = {m: end for (s, kind, m), end in ends(lists, timed.end_s) if kind == 0 and s in of_stage(counts, a)}
            for (s, kind, m), end in ends(lists, timed.end_s):
                if kind == 0 and s in of_stage(counts, b):
                    assert end >= done[m], stage


def ends(lists, end_s):  # type: ignore[no-untyped-def]
    return list(zip([action for row in lists for action in row], end_s.tolist(), strict=True))


def of_stage(counts: list[int], stage: int) -> range:
    return range(sum(counts[:stage]), sum(counts[: stage + 1]))


def test_two_replicas_worked_by_hand() -> None:
    """One segment, two equal devices: each does half of the micro-batches, then the gradients go around."""
    segments = any_segments(1, count=1, devices=2, micro_batches=4, alike=True)
    pipeline = segments.replicas((), [[0, 1]], split=False)
    timed = run(pipeline, lists_of_replicas("1f1b", [2], 4), 4)
    work_s = segments.action_s[0, 0].sum()
    lasts_s, _ = ring_s(segments.cluster.routes, [0, 1], int(segments.summed_bytes[0]))
    assert timed.step_time_s == pytest.approx(2 * work_s + lasts_s + segments.update_s[0, 0], rel=1e-12)
    half = segments.saved_bytes[0] + segments.working_bytes[0].max() + segments.fixed_bytes[0]
    assert timed.peak_memory_bytes.tolist() == [half, half]


def test_buckets_are_summed_while_the_backward_pass_goes_on() -> None:
    base = any_segments(2, count=4, devices=2, micro_batches=2, alike=True)
    large = np.array([30_000_000] * 4)
    segments = replace(base, summed_bytes=large, fixed_bytes=4 * large)
    sums = segments.replicas((), [[0, 1]], split=False).sums
    assert [one.bytes for one in sums] == [30_000_000] * 4
    back_s = segments.action_s[0, :, 1:].sum(axis=1)
    assert [one.early_s for one in sums] == [pytest.approx((back_s[:k].sum(),) * 2) for k in (3, 2, 1, 0)]
    assert [one.bytes for one in base.replicas((), [[0, 1]], split=False).sums] == [base.summed_bytes.sum()]
    lists = lists_of_replicas("1f1b", [2], 2)
    alone_s = run(replace(segments.replicas((), [[0, 1]], split=False), sums=()), lists, 2).step_time_s
    whole_s = ring_s(segments.cluster.routes, [0, 1], 120_000_000)[0]
    together_s = run(segments.replicas((), [[0, 1]], split=False), lists, 2).step_time_s
    assert max(alone_s, whole_s * 0.9) < together_s < alone_s + whole_s


def test_rings() -> None:
    routes = switch(4, 0.25, 1000.0)
    lasts_s, crossed = ring_s(routes, [0, 1], 1000)
    assert (lasts_s, crossed) == (2 * (0.25 + 0.5), [0, 3, 2, 1])
    assert ring_s(routes, [0, 1, 2, 3], 1000)[0] == pytest.approx(6 * (0.25 + 0.25))
    bus = switch(4, 0.25, 1000.0, shared=True)  # one transfer after another
    assert ring_s(bus, [0, 1, 2, 3], 1000)[0] == pytest.approx(4 * 6 * (0.25 + 0.25))


def test_sums_wait_for_all_parts_and_for_links() -> None:
    routes = switch(3, 0.0, 1000.0)
    devices, ranks = np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int32)
    free_s = np.array([1.0, 5.0, 2.0])
    one_s = 2 * 0.5
    early = Sum((0, 1), 1000, (0.5, 3.0))
    late = Sum((0, 2), 1000)
    ends_s = end_of_sums_s([late, early], routes, devices, ranks, free_s, free_s)
    # The early one begins at max(0.5, 2.0) = 2, together with the other, which is ready at 2, too, and was given first.
    assert ends_s.tolist() == [2 + 2 * one_s, 5.0, 2 + one_s]


def tied(segments: Segments, *where: int) -> Segments:
    one = Tied("table", where, 400, 100_000, np.full(segments.cluster.num_devices, 3e-4))
    return replace(segments, tied=(one,))


def test_tied_weights_have_copies_where_their_stages_are_on_different_ranks() -> None:
    segments = any_segments(3, count=4, devices=3, micro_batches=3)
    both = tied(segments, 0, 3)

    def changed(cuts: tuple[int, ...], devices: tuple[int, ...]) -> tuple[list[int], list[float], int]:
        old, new = segments.pipeline(cuts, devices), both.pipeline(cuts, devices)
        more = (new.fixed_bytes - old.fixed_bytes).tolist()
        return more, np.round(new.update_s - old.update_s, 9).tolist(), len(new.sums)

    assert changed((), (0,)) == ([0], [0.0], 0)
    assert changed((2,), (0, 1)) == ([0, 400], [0.0, 3e-4], 1)
    assert changed((1, 3), (0, 1, 2)) == ([0, 0, 400], [0.0, 0.0, 3e-4], 1)
    assert changed((1, 3), (0, 1, 0)) == ([0, 0, 0], [0.0] * 3, 0)  # a V: both ends on one rank
    lists = lists_of("1f1b", [0, 1], 3)
    with_s, without_s = (run(s.pipeline((2,), (0, 1)), lists, 3).step_time_s for s in (both, segments))
    assert with_s > without_s + 3e-4
    plain = run_plain(both.pipeline((2,), (0, 1)), lists, 3)
    assert plain.step_time_s == with_s


def test_tied_weights_of_replicas_are_summed_over_all_that_hold_them() -> None:
    segments = tied(any_segments(3, count=4, devices=4, micro_batches=4), 0, 3)
    sums = segments.replicas((2,), [[0, 1], [2, 3]], split=False).sums
    assert [one.stages for one in sums] == [(0, 1), (2, 3), (0, 1, 2, 3)]
    assert sums[-1].early_s is None
    alone = segments.replicas((), [[0, 1]], split=False).sums
    assert [one.stages for one in alone] == [(0, 1)]


def test_what_is_no_replication_is_refused() -> None:
    segments = any_segments(3, count=4, devices=3)
    with pytest.raises(InputError, match="none twice"):
        segments.replicas((2,), [[0, 1], [1]], split=False)
    with pytest.raises(InputError, match="do not make 2 stages"):
        segments.replicas((), [[0], [1]], split=False)
    with pytest.raises(InputError, match="known: gpipe, 1f1b, zb_h1"):
        lists_of_replicas("interleaved", [1, 2], 4)
    check_lists(lists_of_replicas("1f1b", [1, 1], 4), [0, 1], 4)
    assert cpu_cores(2).num_devices >= 2
