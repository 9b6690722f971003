"""What observations of real steps tell of a machine."""

import numpy as np
import pytest

from envs.measured.machine import RealDevice
from envs.measured.profile import Observation, calibration_placements, op_signatures, others_share, profile_of
from graphs.colocation.groups import one_group_an_op
from tests.envs.measured.branches import two_branches

DEVICES = (RealDevice("cpu:0", "cpu", (0,)), RealDevice("cpu:1", "cpu", (1,)))
US = 1e-6


def observation(op_device: list[int], tasks: dict[int, tuple[float, float]], copies: list[list[int]]) -> Observation:
    """Three equal steps; `tasks` gives start and end in microseconds."""
    start, end = np.full(5 + len(copies), np.nan), np.full(5 + len(copies), np.nan)
    for task, (begins, ends) in tasks.items():
        start[task], end[task] = begins * US, ends * US
    step_s = float(np.nanmax(end))
    return Observation(
        np.array(op_device, dtype=np.int32),
        np.full(3, step_s),
        np.tile(start, (3, 1)),
        np.tile(end, (3, 1)),
        np.array(copies, dtype=np.int64).reshape(-1, 4),
    )


def observed() -> list[Observation]:
    alone = {0: (0.0, 100.0), 1: (104.0, 304.0), 2: (308.0, 508.0), 3: (512.0, 522.0)}
    # The copy (task 5) is of 10 MB at 10 GB/s: 1000 us; the receiver idles and starts it 30 us after x. The one of
    # 20 kB (task 6) goes back while device 0 idles.
    both = {
        0: (0.0, 100.0),
        1: (104.0, 324.0),
        5: (130.0, 1134.0),
        2: (1140.0, 1380.0),
        6: (1412.0, 1416.0),
        3: (1420.0, 1430.0),
    }
    copies = [[0, 0, 1, 10_000_000], [2, 1, 0, 20_000]]
    return [
        observation([0] * 5, alone, []),
        observation([1] * 5, alone, []),
        observation([0, 0, 1, 0, 0], both, copies),
    ]


def test_a_profile_is_what_was_observed_under_load() -> None:
    graph = two_branches()
    found = profile_of(graph, DEVICES, observed())
    # Pauses under load: on cpu:0 of 4 us after x and 4 us before join (that before the copy is a wait), on cpu:1 6 us.
    np.testing.assert_allclose(found.dispatch_s, [4 * US, 6 * US])
    times = found.graph.time_s
    assert sorted(times) == [f"profiled_cpu_{i}{end}" for i in (0, 1) for end in ("", "_alone", "_beside")]
    np.testing.assert_allclose(times["profiled_cpu_0_alone"], [104 * US, 204 * US, 204 * US, 14 * US, 0.0])
    # Of the 570 us of ops under load, cpu:1 worked in left's 194 us from 130 us on, and cpu:0 in 0 of right's.
    slower = 20 * US / (194 / 570)
    np.testing.assert_allclose(
        times["profiled_cpu_0_beside"], [104 * US, 204 * US + slower, 204 * US + slower, 14 * US, 0]
    )
    # left and right are of one kind, so each device's own figure counts for both; x and join were only alone on cpu:1.
    np.testing.assert_allclose(times["profiled_cpu_0"], [104 * US, 224 * US, 224 * US, 14 * US, 0.0])
    np.testing.assert_allclose(times["profiled_cpu_1"], [106 * US, 246 * US, 246 * US, 16 * US, 0.0])
    np.testing.assert_allclose(found.solo_step_s, [522 * US, 522 * US])
    (link,) = found.cluster.links
    assert (link.a, link.b, link.receiver_copies) == ("cpu:0", "cpu:1", True)
    assert link.bytes_per_s == pytest.approx(10e9)  # 10 MB in 1004 us, of which a small copy takes 4
    assert link.latency_s == pytest.approx(34 * US)  # (34 + 34) / 2: 1034 - 1000 after x, 36 - 2 after right
    assert found.graph.untimed.sha256 == graph.sha256 != found.graph.sha256


def test_ops_of_one_kind_share_their_time() -> None:
    first, left, right, join, nothing = op_signatures(two_branches())
    assert left == right
    assert len({first, left, join, nothing}) == 4


def test_calibration_runs_every_op_on_every_device() -> None:
    groups = one_group_an_op(two_branches())
    made = calibration_placements(groups, 2, 6, seed=0)
    assert len(made) == 8
    assert made[0].tolist() == [0] * 5
    assert made[1].tolist() == [1] * 5
    for first, second in zip(made[2::2], made[3::2], strict=True):
        assert (first != second).all()
    assert len(calibration_placements(groups, 1, 6, seed=0)) == 1


def test_the_share_of_a_tasks_time_in_which_others_work() -> None:
    start_s, end_s = np.array([0.0, 4.0, 1.0, 5.0]), np.array([4.0, 6.0, 3.0, 9.0])
    share = others_share(start_s, end_s, np.array([0, 0, 1, 1]), 2)
    np.testing.assert_allclose(share, [2 / 4, 1 / 2, 1.0, 1 / 4])
    np.testing.assert_allclose(others_share(start_s, end_s, np.array([0, 0, 1, 1]), 3), share / 2)  # one more idles


def test_a_share_is_never_more_than_all() -> None:
    """Short tasks late in a long step, the other device busy all the time: sums round, shares must not."""
    rng = np.random.default_rng(0)
    mine = 1000.0 + np.cumsum(rng.uniform(1e-9, 1e-8, 200))
    others = np.cumsum(rng.uniform(1.0, 10.0, 300))
    start_s = np.concatenate([mine[:-1], others[:-1]])
    end_s = np.concatenate([mine[1:], others[1:]])
    share = others_share(start_s, end_s, np.repeat([0, 1], [199, 299]), 2)
    assert share.min() >= 0.0
    assert share.max() <= 1.0
    assert share[:199].min() > 0.9
