"""Placers of pipelines: against brute force, each other, and what the file of stages says."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest

from envs.clusters.cluster import Cluster
from envs.clusters.memories import SharedMemory
from envs.pipelines.actions import run
from envs.pipelines.bound import lower_bound_s
from envs.pipelines.orders import ORDERS
from graphs.errors import InputError, NoFeasiblePlacementError
from placement.exports.stages import to_stages
from placement.placers.pipeline_stages import (
    equal_parameters,
    equal_segments,
    evaluate,
    heuristics,
    max_load,
    pipedream,
)
from placement.placers.stage_search import FEATURES, KINDS, _Move, _Moves, _Policy, _State, search
from tests.envs.pipelines.segments import any_segments


@pytest.mark.parametrize("seed", range(6))
def test_the_dynamic_programme_finds_the_smallest_largest_stage(seed: int) -> None:
    segments = any_segments(seed, count=6, devices=3)

    def largest_s(cuts: tuple[int, ...]) -> float:
        bounds = [0, *cuts, 6]
        routes = segments.cluster.routes
        worst = 0.0
        for s, device in enumerate((0, 1, 2)):
            worst = max(worst, segments.action_s[device, bounds[s] : bounds[s + 1]].sum())
            if s:
                size = segments.crossing_bytes[bounds[s]]
                worst = max(worst, routes.latency_s[s - 1, s] + size / routes.bytes_per_s[s - 1, s])
        return worst

    found = pipedream(segments, (0, 1, 2))
    assert found is not None
    assert largest_s(found) == pytest.approx(min(map(largest_s, itertools.combinations(range(1, 6), 2))))


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_load_counts_all_transfers_of_a_device(seed: int) -> None:
    segments = any_segments(seed, count=6, devices=3)
    routes, devices = segments.cluster.routes, (2, 0, 1)

    def largest_s(cuts: tuple[int, ...]) -> float:
        loads = [0.0, 0.0, 0.0]
        bounds = [0, *cuts, 6]
        for s, d in enumerate(devices):
            loads[s] += float(segments.action_s[d, bounds[s] : bounds[s + 1]].sum())
        for s, cut in enumerate(cuts):
            a, b = devices[s], devices[s + 1]
            both = routes.latency_s[a, b] + segments.crossing_bytes[cut] / routes.bytes_per_s[a, b]
            both += routes.latency_s[b, a] + segments.gradient_bytes[cut] / routes.bytes_per_s[b, a]
            loads[s] += both
            loads[s + 1] += both
        return max(loads)

    found = max_load(segments, devices)
    assert found is not None
    assert largest_s(found) == pytest.approx(min(map(largest_s, itertools.combinations(range(1, 6), 2))))


@pytest.mark.parametrize("order", ["gpipe", "1f1b", "zb_h1"])
@pytest.mark.parametrize(("seed", "learn"), [(0, True), (1, True), (2, True), (3, False)])
def test_the_search_finds_what_brute_force_finds(order: str, seed: int, learn: bool) -> None:
    segments = any_segments(seed, count=6, devices=3)
    found = search(segments, order, evaluations=1500, seed=seed, learn=learn)
    best_s = min(
        evaluate(segments, cuts, devices, order).step_time_s
        for stages in (1, 2, 3)
        for cuts in itertools.combinations(range(1, 6), stages - 1)
        for devices in itertools.permutations(range(3), stages)
    )
    assert found.step_time_s <= best_s * 1.01
    assert found.step_time_s >= lower_bound_s(segments)


@pytest.mark.parametrize("order", ORDERS)
def test_the_search_is_never_worse_than_its_opponents_and_says_what_it_simulated(order: str) -> None:
    segments = any_segments(3, count=9, devices=3, micro_batches=6)
    opponents = heuristics(segments, order)
    assert set(opponents) == {"equal_segments", "equal_parameters", "max_load", "pipedream"}
    found = search(segments, order, evaluations=300)
    assert found.step_time_s <= min(other.step_time_s for other in opponents.values())
    again = search(segments, order, evaluations=300)
    assert (again.cuts, again.devices, again.step_time_s) == (found.cuts, found.devices, found.step_time_s)
    stages = to_stages(segments, found, graph="layers", batch=12)
    assert [m for stage in stages.stages for m in stage.modules] == [f"layers.{k}" for k in range(9)]
    lists = stages.lists() or found.lists
    timed = run(segments.pipeline(found.cuts, found.devices), lists, 6)
    assert timed.step_time_s == stages.step_time_s == found.step_time_s
    assert stages.ranks == tuple(dict.fromkeys(segments.cluster.devices[d].name for d in found.devices))


def test_the_policy_learns_which_moves_to_try() -> None:
    """Of moves that are alike but for their kind, those that are rewarded become likelier."""
    policy = _Policy(random.Random(0))
    features = np.zeros((len(KINDS), len(FEATURES)))
    features[:, -len(KINDS) :] = np.eye(len(KINDS))
    picks = []
    for _ in range(4000):
        picks.append(policy.pick(features))
        policy.learn(1.0 if picks[-1] == 2 else 0.0)
    assert np.mean(np.array(picks[:50]) == 2) < 0.4
    assert np.mean(np.array(picks[-500:]) == 2) > 0.6


def test_features_say_what_a_move_changes() -> None:
    segments = any_segments(4, count=6, devices=3, micro_batches=5, alike=True)
    moves = _Moves(segments, "1f1b", random.Random(0))
    now = _State((2,), (0, 1), "1f1b")
    assert not moves.features(now, [_Move(0, now)])[0, : -len(KINDS)].any()
    rough_s, full, most_s, squares, crossing_s, first_s, last_s = moves.figures([now])[0].tolist()
    work_s = segments.action_s[0].sum(axis=1)
    assert (first_s, last_s) == pytest.approx((work_s[:2].sum(), work_s[2:].sum()))
    assert most_s == max(first_s, last_s)
    assert 0 < full < 1
    assert squares == pytest.approx(first_s**2 + last_s**2)
    assert rough_s == pytest.approx(first_s + last_s + crossing_s + 4 * most_s)
    wider = moves.features(now, [_Move(0, _State((3,), (0, 1), "1f1b"))])[0]
    assert wider[FEATURES.index("first")] > 0 > wider[FEATURES.index("last")]
    assert all(move.state != now for move in moves.draw(now))


def with_memory(cluster: Cluster, memory_bytes: float) -> Cluster:
    devices = tuple(replace(d, spec=replace(d.spec, memory_bytes=int(memory_bytes))) for d in cluster.devices)
    return replace(cluster, devices=devices)


def test_memory_counts() -> None:
    segments = any_segments(7, count=6, devices=3)
    free = search(segments, "gpipe", evaluations=300)
    tight = replace(segments, cluster=with_memory(segments.cluster, float(free.peak_memory_bytes.max()) * 0.9))
    found = search(tight, "gpipe", evaluations=1000)
    assert found.feasible
    assert found.step_time_s >= free.step_time_s
    assert (found.peak_memory_bytes <= tight.cluster.memory_bytes[list(dict.fromkeys(found.devices))]).all()
    none = replace(segments, cluster=with_memory(segments.cluster, 1000))
    with pytest.raises(NoFeasiblePlacementError, match="no stages fit the memory"):
        search(none, "1f1b", evaluations=10)


def test_memory_that_ranks_share_counts_once() -> None:
    segments = any_segments(7, count=6, devices=3)
    free = search(segments, "gpipe", evaluations=300)
    assert len(set(free.devices)) > 1
    most, whole = int(free.peak_memory_bytes.max()), int(free.peak_memory_bytes.sum())
    for size, fits in ((whole, True), (max(most, whole - 1), False)):
        roomy = with_memory(segments.cluster, whole)
        shared = replace(roomy, shared_memories=(SharedMemory("host", roomy.device_names, size),))
        again = evaluate(replace(segments, cluster=shared), free.cuts, free.devices, "gpipe")
        assert again.feasible == fits
        found = search(replace(segments, cluster=shared), "gpipe", evaluations=1000)
        assert found.peak_memory_bytes.sum() <= size


def test_equal_cuts() -> None:
    segments = replace(any_segments(0, count=6, devices=3), fixed_bytes=np.array([5, 1, 1, 1, 1, 1]))
    assert equal_segments(segments, 3) == (2, 4)
    assert equal_parameters(segments, 2) == (1,)
    assert equal_parameters(segments, 6) == (1, 2, 3, 4, 5)


def test_an_unknown_order_is_named() -> None:
    with pytest.raises(InputError, match="1f1b"):
        heuristics(any_segments(0, count=2, devices=2), "1f1")
