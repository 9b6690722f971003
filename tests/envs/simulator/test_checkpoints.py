"""Evaluation from checkpoints: whatever is spared, not one bit of the answer may differ from a whole simulation's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from envs.simulator.checkpoints import StepCheckpoints
from envs.simulator.input import SCHEDULES
from envs.simulator.plain import simulate_plain
from envs.simulator.simulate import simulate_batch
from graphs.colocation.groups import make_groups, one_group_an_op
from graphs.computation_graph import ComputationGraph
from graphs.errors import InputError
from graphs.synthetic import random_graph
from tests.envs.simulator.random_problems import FEW, MANY, placed, problems
from tests.envs.simulator.simulator_problems import graph_of, hub, problem_of, star


def moved(placement: np.ndarray, num_devices: int, rng: np.random.Generator, count: int) -> np.ndarray:
    """Rows in which one op is elsewhere, or a few, or none, or all."""
    rows = np.tile(placement, (count, 1))
    for row in rows:
        ops = rng.choice(len(placement), size=min(int(rng.choice([0, 1, 1, 1, 1, 2, 3, 999])), len(placement)))
        row[ops] = rng.integers(0, num_devices, size=len(ops))
    return rows


def check_exact(problem: PlacementProblem, placement: np.ndarray, seed: int) -> float:
    """Compare with whole simulations, from two bases, with and without bounds; return the largest share spared."""
    rng, spared = np.random.default_rng(seed), 0.0
    kept = StepCheckpoints(problem.simulator_input, placement)
    for base in (placement, moved(placement, problem.num_devices, rng, 1)[0]):
        kept.restart(base)
        rows = moved(base, problem.num_devices, rng, 12)
        true_s, true_peak = simulate_batch(problem.simulator_input, rows)
        assert kept.step_time_s == simulate_batch(problem.simulator_input, base[None])[0][0]
        step_time_s, peak = kept.simulate_batch(rows)
        np.testing.assert_array_equal(step_time_s, true_s)
        np.testing.assert_array_equal(peak, true_peak)
        spared = max(spared, kept.resumed_s.max() / max(kept.step_time_s, 1e-300))
        bound_s = rng.choice([0.5, 0.9, 0.999999, 1.0, 1.1]) * true_s
        held_s, held_peak = kept.simulate_batch(rows, abort_above_s=bound_s)
        stopped = np.isinf(held_s)
        assert (true_s[stopped] > bound_s[stopped]).all()
        np.testing.assert_array_equal(held_s[~stopped], true_s[~stopped])
        np.testing.assert_array_equal(held_peak[~stopped], true_peak[~stopped])
        np.testing.assert_array_equal(kept.simulate_batch(rows[::-1])[0], true_s[::-1])  # nothing stays behind
    return float(spared)


@FEW
@given(placed(problems(restrict=False)), st.integers(0, 2**32 - 1))
def test_resuming_changes_no_bit(case: tuple[PlacementProblem, np.ndarray], seed: int) -> None:
    check_exact(*case, seed)


@pytest.mark.slow
@MANY
@given(placed(problems(restrict=False)), st.integers(0, 2**32 - 1))
def test_resuming_changes_no_bit_in_thousands(case: tuple[PlacementProblem, np.ndarray], seed: int) -> None:
    check_exact(*case, seed)


def shared_tensors(rng: np.random.Generator, num_ops: int) -> ComputationGraph:
    """A chain in which many tensors have many readers all along, as weights have: most moves change no transfer."""
    tensors = []
    for op in range(num_ops - 1):
        if rng.random() < 0.8:
            tensors.append((op, int(rng.integers(0, 9)), [op + 1]))
        if rng.random() < 0.3:
            later = np.arange(op + 1, num_ops)
            readers = np.sort(rng.choice(later, size=min(int(rng.integers(2, 12)), len(later)), replace=False))
            tensors.append((op, int(rng.integers(0, 9)), readers.tolist()))
    resident = {op: int(rng.integers(1, 9)) for op in range(0, num_ops, 3)}
    lasting = tuple(np.flatnonzero(rng.random(len(tensors)) < 0.2).tolist())
    times_s = rng.choice([0.0, 0.25, 1.0, 1.0, 2.0], size=num_ops).tolist()
    return graph_of(times_s, tensors, resident=resident, resident_tensors=lasting)


@pytest.mark.parametrize("schedule", ["priority", "fifo"])
def test_tensors_with_many_readers_go_on_to_live_as_long_as_they_should(schedule: str) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        where = hub(2 + seed % 3, bytes_per_s=[1.0, 8.0, 100.0][seed % 3])
        problem = problem_of(shared_tensors(rng, 50), where, schedule)
        check_exact(problem, rng.integers(0, problem.num_devices, size=50), seed)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("num_ops", "devices"), [(60, 3), (400, 5), (2000, 12)])
def test_larger_graphs_are_resumed_too(num_ops: int, devices: int, schedule: str) -> None:
    spared = []
    for seed in range(4):
        graph = random_graph(num_ops, seed=seed, locality=10 + 30 * seed, resident_bytes=10**6)
        problem = PlacementProblem(graph, one_group_an_op(graph), star(devices), schedule)
        blocks = np.arange(num_ops) * devices // num_ops
        scattered = np.random.default_rng(seed).integers(0, devices, size=num_ops)
        spared += [check_exact(problem, placement, seed) for placement in (blocks, scattered)]
    assert (max(spared) > 0.5) == (schedule in ("priority", "fifo"))  # the test compares what it is for


def test_a_step_is_resumed_just_before_the_move_is_felt() -> None:
    """36 ops of 1 s in a chain. With 16 checkpoints the 36 are cut in 18 parts: the first is taken when 4 have ended.

    The last op (35) is ready when op 34 has ended, at 35 s; the last checkpoint is that of 34 ops, at 34 s. On the
    other device it waits for 3 bytes at 1 byte/s, 35 to 38, and ends at 39. The first op may be ready from the start.
    """
    chain = problem_of(graph_of([1.0] * 36, [(op, 3, [op + 1]) for op in range(35)]), hub(2))
    base = np.zeros(36, dtype=np.int64)
    rows = np.tile(base, (3, 1))
    rows[0, 35] = rows[1, 0] = 1
    kept = chain.checkpoints(base)
    evaluation = chain.evaluate(rows, checkpoints=kept)
    assert kept.step_time_s == 36
    assert kept.resumed_s.tolist() == [34, 0, 34]
    assert evaluation.step_time_s.tolist() == [39, 39, 36]
    assert evaluation.peak_memory_bytes.tolist() == [[6, 3], [6, 3], [6, 0]]
    for row, step_time_s in zip(rows, evaluation.step_time_s, strict=True):
        assert simulate_plain(chain.simulator_input, row).step_time_s == step_time_s


def test_groups_and_bounds_are_evaluated_as_without_checkpoints() -> None:
    graph = random_graph(300, seed=5, resident_bytes=10**6)
    groups = make_groups(np.arange(300) // 4, [f"g{i}" for i in range(75)], [""] * 75, [0] * 75)
    problem = PlacementProblem(graph, groups, load_cluster("mixed"))
    rng = np.random.default_rng(0)
    base = np.arange(75) * problem.num_devices // 75
    rows = moved(base, problem.num_devices, rng, 40)
    kept = problem.checkpoints(base)
    whole, resumed = problem.evaluate(rows), problem.evaluate(rows, checkpoints=kept)
    assert kept.resumed_s.max() > 0
    for key in ("step_time_s", "peak_memory_bytes", "feasible"):
        np.testing.assert_array_equal(getattr(resumed, key), getattr(whole, key))
    bound_s = float(np.median(whole.step_time_s))
    held = problem.evaluate(rows, checkpoints=kept, abort_above_s=bound_s)
    assert held.aborted.any()
    assert (whole.step_time_s[held.aborted] > bound_s).all()
    np.testing.assert_array_equal(held.step_time_s[~held.aborted], whole.step_time_s[~held.aborted])


def test_checkpoints_of_another_problem_and_malformed_placements_are_refused() -> None:
    graph = random_graph(20, seed=0)
    problem = PlacementProblem(graph, one_group_an_op(graph), star(3))
    base = np.zeros(20, dtype=np.int64)
    kept = problem.checkpoints(base)
    with pytest.raises(InputError, match="checkpoints are of another problem"):
        problem.with_schedule("fifo").evaluate(base[None], checkpoints=kept)
    with pytest.raises(InputError, match="a placement names device"):
        problem.evaluate(base[None] + 3, checkpoints=kept)
    with pytest.raises(InputError, match="must be integers of shape"):
        problem.checkpoints(np.zeros(19, dtype=np.int64))
    with pytest.raises(InputError, match="abort_above_s is not a number"):
        problem.evaluate(base[None], checkpoints=kept, abort_above_s=np.nan)
    assert problem.evaluate(np.zeros((0, 20), dtype=np.int64), checkpoints=kept).step_time_s.shape == (0,)
