"""The runtime of strict lists: closed forms, feasibility of what it says, the compiled twin, and no deadlock."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.pipelines.actions import Pipeline, Timed, make_lists, run, run_order, run_plain
from envs.pipelines.orders import Action, check_lists, lists_of, needs
from graphs.errors import InputError
from tests.envs.pipelines.pipelines import any_pipeline, even_chain

SIZES = [(stages, micro) for stages in range(2, 9) for micro in range(4, 17)]


@pytest.mark.parametrize("stages", range(2, 9))
@pytest.mark.parametrize("seconds", [(1.0, 1.0, 1.0), (1.0, 1.5, 0.5), (0.3, 0.4, 0.2)])
def test_even_chains_take_what_the_papers_say(stages: int, seconds: tuple[float, float, float]) -> None:
    chain = even_chain(stages, stages, seconds)
    for micro in range(4, 17):
        check_closed_forms(chain, micro, seconds)


def check_closed_forms(chain: Pipeline, micro: int, seconds: tuple[float, float, float]) -> None:
    forward_s, input_s, weight_s = seconds
    work_s, stages = sum(seconds), chain.num_stages
    for order in ("gpipe", "1f1b"):
        closed_s = (micro + stages - 1) * work_s
        assert run_order(chain, order, micro).step_time_s == pytest.approx(closed_s, rel=0.005)
    if micro < stages:
        return  # too few to fill the bubbles
    closed_s = micro * work_s + (stages - 1) * (forward_s + input_s - weight_s)
    assert run_order(chain, "zb_h1", micro).step_time_s == pytest.approx(closed_s, rel=0.02)


@pytest.mark.parametrize(("ranks", "each"), [(2, 2), (2, 4), (3, 2), (4, 2), (4, 4), (8, 2)])
def test_interleaving_shortens_the_bubble(ranks: int, each: int) -> None:
    for micro in range(ranks, 17, ranks):
        chain = even_chain(ranks * each, ranks)
        closed_s = (micro * each + ranks - 1) * 3.0
        assert run_order(chain, "interleaved", micro).step_time_s == pytest.approx(closed_s, rel=0.005)


def test_a_pipeline_worked_by_hand() -> None:
    """Two stages, F 1 s and B 2 s; activations take 0.5 s to cross and gradients 0.25 s."""
    chain = even_chain(2, 2, (1.0, 1.0, 1.0))
    chain = Pipeline(
        **{
            **vars(chain),
            "forward_bytes": np.array([500, 0]),
            "backward_bytes": np.array([0, 250]),
            "update_s": np.array([0.125, 4.0]),
            "working_bytes": np.array([[1, 2, 0, 0], [3, 4, 0, 0]]),
            "fixed_bytes": np.array([10, 20]),
            "routes": type(chain.routes)(
                np.zeros((2, 2)),
                np.array([[np.inf, 1000.0], [1000.0, np.inf]]),
                np.array([0, 0, 1, 2, 2], dtype=np.int32),
                np.array([0, 1], dtype=np.int32),
                np.zeros((2, 2), dtype=np.bool_),
            ),
        }
    )
    timed = run_order(chain, "1f1b", 2)
    # Rank 0 waits for gradients until 4.75 and 7.75; rank 1 for activations until 1.5.
    assert timed.start_s.tolist() == [0.0, 1.0, 4.75, 7.75, 1.5, 2.5, 4.5, 5.5]
    assert timed.step_time_s == max(7.5 + 4.0, 9.75 + 0.125)
    assert timed.peak_memory_bytes.tolist() == [10 + 200 + 2, 20 + 100 + 4]


def test_as_many_micro_batches_are_kept_as_there_are_stages_to_come() -> None:
    for stages, micro in SIZES:
        chain = even_chain(stages, stages, saved=100)
        flights = {"1f1b": [min(stages - s, micro) for s in range(stages)], "gpipe": [micro] * stages}
        for order, expected in flights.items():
            assert run_order(chain, order, micro).peak_memory_bytes.tolist() == [100 * n for n in expected]
        assert (run_order(chain, "zb_h1", micro).peak_memory_bytes <= 100 * stages).all()


def check_feasible(pipeline: Pipeline, lists: list[list[Action]], timed: Timed) -> None:
    """Actions last as long as they take, one at a time a rank, and begin after what they wait for has arrived."""
    flat = list(itertools.chain(*lists))
    end_s = dict(zip(flat, timed.end_s.tolist(), strict=True))
    start_s = dict(zip(flat, timed.start_s.tolist(), strict=True))
    ranks = pipeline.rank_of_stage.tolist()
    devices = pipeline.device_of_rank.tolist()
    for row in lists:
        for a, b in itertools.pairwise(row):
            assert end_s[a] <= start_s[b]
    for action in flat:
        assert end_s[action] == start_s[action] + pipeline.action_s[action.stage, action.kind]
        for options in needs(action, pipeline.num_stages):
            (source,) = [option for option in options if option in end_s]
            a, b = devices[ranks[source.stage]], devices[ranks[action.stage]]
            crossing_s = 0.0
            if a != b:
                size = (pipeline.forward_bytes if action.kind == 0 else pipeline.backward_bytes)[source.stage]
                crossing_s = pipeline.routes.latency_s[a, b] + size / pipeline.routes.bytes_per_s[a, b]
            assert start_s[action] >= end_s[source] + crossing_s
    work_s = np.zeros(len(lists))
    for rank, row in enumerate(lists):
        work_s[rank] = sum(pipeline.action_s[a.stage, a.kind] for a in row)
        work_s[rank] += pipeline.update_s[pipeline.rank_of_stage == rank].sum()
    assert timed.step_time_s >= work_s.max() * (1 - 1e-12)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**9), st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 2.0, 100.0]))
def test_any_stages_under_any_limit_come_to_their_end(seed: int, split: bool, limit: float) -> None:
    pipeline, micro = any_pipeline(seed)
    lists = make_lists(pipeline, micro, split=split, limit=limit).lists()
    check_lists(lists, pipeline.rank_of_stage.tolist(), micro)
    timed = run(pipeline, lists, micro)
    check_feasible(pipeline, lists, timed)
    plain = run_plain(pipeline, lists, micro)
    assert plain.step_time_s == timed.step_time_s
    for column in ("peak_memory_bytes", "start_s", "end_s"):
        np.testing.assert_array_equal(getattr(plain, column), getattr(timed, column), column)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(["gpipe", "1f1b", "zb_h1", "interleaved"]))
def test_orders_are_run_alike_by_both_twins(seed: int, order: str) -> None:
    pipeline, micro = any_pipeline(seed)
    ranks = pipeline.num_ranks
    count = pipeline.num_stages // ranks * ranks if order == "interleaved" else ranks
    whole = ("routes", "device_of_rank", "paths", "sums")
    cut = {name: value[:count] for name, value in vars(pipeline).items() if name not in whole}
    cut["rank_of_stage"] = np.arange(count, dtype=np.int32) % ranks
    pipeline = Pipeline(**{**vars(pipeline), **cut})
    micro = ranks * micro if order == "interleaved" else micro
    lists = lists_of(order, pipeline.rank_of_stage.tolist(), micro)
    timed, plain = run(pipeline, lists, micro), run_plain(pipeline, lists, micro)
    check_feasible(pipeline, lists, timed)
    assert plain.step_time_s == timed.step_time_s
    np.testing.assert_array_equal(plain.peak_memory_bytes, timed.peak_memory_bytes)
    np.testing.assert_array_equal(plain.end_s, timed.end_s)


@pytest.mark.parametrize("runtime", [run, run_plain])
def test_lists_that_wait_for_each_other_are_refused(runtime) -> None:  # type: ignore[no-untyped-def]
    lists = lists_of("1f1b", [0, 1], 2)
    with pytest.raises(InputError, match="0B0 can never start; reorder them"):
        runtime(even_chain(2, 2), [lists[0], lists[1][::-1]], 2)


def test_made_lists_are_as_good_as_the_known_ones_on_even_chains() -> None:
    for stages, micro in ((2, 4), (4, 8), (4, 16), (8, 16)):
        chain = even_chain(stages, stages)
        whole, parts = (make_lists(chain, micro, split=split) for split in (False, True))
        assert run(chain, whole, micro).step_time_s <= run_order(chain, "1f1b", micro).step_time_s * 1.005
        assert run(chain, parts, micro).step_time_s <= run_order(chain, "1f1b", micro).step_time_s * 1.005
        assert (run(chain, whole, micro).peak_memory_bytes <= run_order(chain, "1f1b", micro).peak_memory_bytes).all()


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(st.integers(0, 10**9), st.booleans(), st.floats(0, 8))
def test_ten_thousand_pipelines_come_to_their_end(seed: int, split: bool, limit: float) -> None:
    pipeline, micro = any_pipeline(seed)
    lists = make_lists(pipeline, micro, split=split, limit=limit)
    assert np.isfinite(run(pipeline, lists, micro).step_time_s)
