"""What does not fit is charged more than what does, by what each device lacks of its own memory; one charge for all."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.clusters.memories import Memories, SharedMemory, make_memories
from envs.evaluators import Evaluation
from placement.move_search import kernel
from placement.placers.base import Budget, Search
from placement.placers.best import BestKnown, charged_s, missing_share, ranked, step_limit_s
from placement.placers.random import draw
from tests.placement.placer_problems import expensive_cuts, training_problem


def alone(memory_bytes: NDArray[np.int64]) -> Memories:
    """Memories that no two devices share."""
    return make_memories([f"d{i}" for i in range(len(memory_bytes))], memory_bytes)


def evaluation(times_s: list[float], peaks: list[list[int]], memory_bytes: NDArray[np.int64]) -> Evaluation:
    peak = np.array(peaks, dtype=np.int64)
    return Evaluation(np.array(times_s), peak, (peak <= memory_bytes).all(axis=1) & np.isfinite(times_s))


def test_the_charge_by_hand() -> None:
    memory = np.array([100, 400])
    batch = evaluation([2.0, 1.0, 1.0, 3.0], [[50, 50], [150, 0], [0, 800], [110, 440]], memory)
    assert missing_share(batch, alone(memory)).tolist() == pytest.approx([0.0, 0.5, 1.0, 0.2])
    # By the reference where the step would be shorter, and by the step where it is longer.
    charges = charged_s(batch, alone(memory), reference_s=2.0)
    assert charges.tolist() == pytest.approx([2.0, 2.0 * (1.1 + 0.5), 2.0 * (1.1 + 1.0), 3.0 * (1.1 + 0.2)])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ops=st.integers(3, 40),
    gpus=st.integers(1, 9),
    room=st.floats(0.2, 3.0),
    cpu_bytes=st.sampled_from([0, 10**8, 10**12, 2**62]),
)
def test_no_placement_that_does_not_fit_is_as_good_as_the_best_that_does(
    seed: int, ops: int, gpus: int, room: float, cpu_bytes: int
) -> None:
    """Whatever fits, whatever memory the host has, and however fast what does not fit would be."""
    problem = expensive_cuts(ops, gpus, seed=seed, room=room, cpu_bytes=cpu_bytes)
    rng = np.random.default_rng(seed)
    placements = draw(problem.allowed, 40, rng)
    placements[:gpus] = np.arange(1, gpus + 1)[:, None]  # all on one GPU
    search = Search(problem, Budget())
    found = search.evaluate(placements)
    lacking = ~found.feasible
    assert (search.charged_s(found)[lacking] > found.step_time_s.max()).all()
    after = search.known.charged_s(found)
    assert after[found.feasible].tolist() == found.step_time_s[found.feasible].tolist()
    if found.feasible.any():
        assert (after[lacking] >= 1.1 * search.best_s).all()
        assert search.known.reference_s == search.best_s == found.step_time_s[found.feasible].min()
    else:
        nearest = placements[ranked(found, problem.cluster.memories)[0]]
        assert search.placed().placement.tolist() == nearest.tolist()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), devices=st.integers(1, 70), host=st.sampled_from([0, 10**6, 2**62]))
def test_each_missing_byte_counts_by_its_own_devices_memory(seed: int, devices: int, host: int) -> None:
    """More missing anywhere is a higher charge; what another device has does not make it lower."""
    rng = np.random.default_rng(seed)
    memory = rng.integers(1, 10**10, devices + 1)
    memory[0] = host
    peak = np.append(0, (memory[1:] * rng.uniform(0.5, 1.0, devices)).astype(np.int64))
    at = int(rng.integers(1, devices + 1))
    peaks = np.repeat(peak[None], 3, axis=0)
    peaks[:, at] = memory[at] + np.array([1, 2, 3]) * max(int(memory[at]) // 10, 1)
    batch = evaluation([1.0, 1.0, 1.0], peaks.tolist(), memory)
    charges = charged_s(batch, alone(memory), reference_s=5.0)
    assert (np.diff(charges) > 0).all()
    assert charges[0] > 5.0
    without_host = evaluation([1.0] * 3, peaks[:, 1:].tolist(), memory[1:])
    assert charges.tolist() == charged_s(without_host, alone(memory[1:]), reference_s=5.0).tolist()


def test_what_devices_share_is_charged_for_all_that_they_hold() -> None:
    """100 and 400 bytes of their own, 450 together: 60 and 400 fit each, and lack 10 of the 450."""
    memories = make_memories(["a", "b", "c"], [100, 400, 50], [SharedMemory("both", ("a", "b"), 450)])
    peaks = np.array([[30, 400, 0], [60, 400, 0], [0, 410, 60], [100, 350, 50]])
    assert memories.fits(peaks).tolist() == [True, False, False, True]
    batch = Evaluation(np.ones(4), peaks, memories.fits(peaks))
    assert missing_share(batch, memories).tolist() == pytest.approx([0.0, 10 / 450, 10 / 400 + 10 / 50, 0.0])
    assert ranked(batch, memories).tolist() == [0, 3, 1, 2]


def test_a_device_without_memory_and_steps_without_time() -> None:
    memory = np.array([0, 100])
    batch = evaluation([0.0, 0.0, 0.0], [[0, 50], [1, 50], [2, 0]], memory)
    problem = training_problem(3, 1, seed=0)
    known = BestKnown(problem)
    known.step_time_s = 0.0
    charges = charged_s(batch, alone(memory), reference_s=known.reference_s)
    assert charges[0] == 0.0 < charges[1] < charges[2] < np.inf


def test_what_was_aborted_is_infinitely_bad_and_what_may_not_be_is_not_free() -> None:
    memory = np.array([100])
    aborted = Evaluation(np.array([np.inf]), np.array([[0]]), np.array([False]))
    assert charged_s(aborted, alone(memory), reference_s=1.0).tolist() == [np.inf]
    elsewhere = Evaluation(np.array([0.5]), np.array([[50]]), np.array([False]))  # an op is where it may not be
    assert charged_s(elsewhere, alone(memory), reference_s=1.0).tolist() == [1.1]
    known = BestKnown(training_problem(3, 1, seed=0))
    rows = Evaluation(np.array([np.inf, 1.0]), np.array([[0, 0], [10**13, 0]]), np.array([False, False]))
    placements = np.array([[0, 0, 0, 0], [0, 1, 1, 1]])
    assert not known.keep(placements, rows)
    assert known.placement is not None
    assert known.placement.tolist() == [0, 1, 1, 1]  # an aborted peak says nothing


def test_the_best_is_what_fits_then_what_lacks_least() -> None:
    memory = np.array([100, 100])
    batch = evaluation([1.0, 9.0, 3.0, 2.0, 0.5], [[150, 0], [50, 50], [110, 0], [0, 110], [0, 160]], memory)
    assert ranked(batch, alone(memory)).tolist() == [1, 3, 2, 0, 4]


def test_the_reference_falls_from_what_no_step_exceeds_to_the_best_step() -> None:
    problem = expensive_cuts(20, 3, seed=1)
    known = BestKnown(problem)
    assert known.reference_s == step_limit_s(problem)
    on_one_gpu = np.ones((1, 20), dtype=np.int64)
    known.keep(on_one_gpu, problem.evaluate(on_one_gpu))
    assert known.reference_s == step_limit_s(problem)
    on_the_host = np.zeros((1, 20), dtype=np.int64)
    assert known.keep(on_the_host, problem.evaluate(on_the_host))
    assert known.reference_s == known.step_time_s == problem.evaluate(on_the_host).step_time_s[0]
    assert known.placement is not None
    assert not known.placement.any()


@numba.njit
def _by_kernel(
    step_s: np.ndarray,
    peak: np.ndarray,
    memory_bytes: np.ndarray,
    memory_offsets: np.ndarray,
    memory_users: np.ndarray,
    reference_s: float,
) -> tuple[np.ndarray, np.ndarray]:
    missing = np.zeros(len(step_s))
    charge_s = np.zeros(len(step_s))
    for i in range(len(step_s)):
        missing[i] = kernel._missing_share(peak[i], memory_bytes, memory_offsets, memory_users)
        charge_s[i] = kernel._charged_s(step_s[i], missing[i], reference_s)
    return missing, charge_s


@pytest.mark.parametrize("devices", [1, 2, 7, 8, 9, 64, 300])
def test_the_compiled_copy_charges_the_same_to_the_last_bit(devices: int) -> None:
    rng = np.random.default_rng(devices)
    for scale in (10, 10**9, 2**61):
        memory = rng.integers(0, scale, devices)
        memory[rng.random(devices) < 0.1] = 0
        peaks = rng.integers(0, scale, (200, devices))
        peaks[::3] = np.minimum(peaks[::3], memory)  # these fit
        peaks[1::3] = np.where(rng.random((len(peaks[1::3]), devices)) < 0.9, 0, peaks[1::3])
        steps_s = 10 ** rng.uniform(-6, 3, len(peaks))
        steps_s[::10] = np.inf
        memories = alone(memory)
        if devices > 2 and scale < 2**60:  # beyond that their sum has no integer
            names = memories.names
            both = [
                SharedMemory("left", names[1:3], scale),
                SharedMemory("right", names[3:], int(memory[3:].sum() * 0.9)),
            ]
            memories = make_memories(names, memory, both)
        peak_memory_bytes = np.array(peaks, dtype=np.int64)
        feasible = memories.fits(peak_memory_bytes) & np.isfinite(steps_s)
        batch = Evaluation(steps_s, peak_memory_bytes, feasible)
        limits = (memories.limit_bytes, memories.offsets, memories.users)
        for reference_s in (1e-12, 0.3, 1e4):
            missing, charge_s = _by_kernel(steps_s, peak_memory_bytes, *limits, reference_s)
            known = np.isfinite(steps_s)
            assert missing[known].tolist() == missing_share(batch, memories)[known].tolist()
            assert charge_s.tolist() == charged_s(batch, memories, reference_s=reference_s).tolist()
            assert (missing[known] > 0).any()
            assert (missing[known] == 0).any()
