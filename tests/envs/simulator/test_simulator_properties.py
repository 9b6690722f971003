import itertools
import pickle
from dataclasses import fields, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from envs.simulator.plain import simulate_plain
from envs.simulator.simulate import simulate, simulate_batch
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, build
from graphs.synthetic import random_graph
from tests.envs.simulator.random_problems import FEW, MANY, SPECS, clusters, placed, problems
from tests.envs.simulator.simulator_by_definition import simulate_by_definition
from tests.envs.simulator.simulator_problems import assert_same_trace, graph_of, hub, star


def check_agreement(problem: PlacementProblem, placement: np.ndarray) -> None:
    trace = simulate(problem.simulator_input, placement)
    assert_same_trace(trace, simulate_plain(problem.simulator_input, placement))
    assert_same_trace(trace, simulate_by_definition(problem, placement.tolist()))


def check_feasible(problem: PlacementProblem, placement: np.ndarray) -> None:
    """The trace obeys physics, whatever made it."""
    graph, trace = problem.graph, simulate(problem.simulator_input, placement)
    taken_s = problem.op_time_s[placement, np.arange(graph.num_ops)]
    np.testing.assert_array_equal(trace.op_end_s, trace.op_start_s + taken_s)
    assert trace.step_time_s == trace.op_end_s.max()
    for device in range(problem.num_devices):
        mine = np.flatnonzero(placement == device)
        order = mine[np.lexsort((trace.op_end_s[mine], trace.op_start_s[mine]))]
        assert (trace.op_start_s[order[1:]] >= trace.op_end_s[order[:-1]]).all()
        # What a device does takes at least as long as it takes.
        assert trace.step_time_s >= taken_s[mine].sum() * (1 - 1e-12)
    in_turn = problem.schedule == "sequential"  # copies are those of visits, and some gradients travel with others
    arrival_s = dict[tuple[int, int], float]()
    for k, (tensor, target) in enumerate(zip(trace.transfer_tensor, trace.transfer_destination, strict=True)):
        assert in_turn or (tensor, target) not in arrival_s  # sent there once
        arrival_s.setdefault((tensor, target), trace.transfer_end_s[k])
        assert trace.transfer_start_s[k] >= trace.op_end_s[graph.tensor_producer[tensor]]
    needed = set()
    for tensor, producer, reader in zip(graph.edge_tensor, graph.edge_producer, graph.consumers, strict=True):
        if placement[producer] == placement[reader]:
            assert trace.op_start_s[reader] >= trace.op_end_s[producer]
        else:
            needed.add((tensor, placement[reader]))
            carried = in_turn and graph.phase[producer] > 0
            assert carried or trace.op_start_s[reader] >= arrival_s[tensor, placement[reader]]
    assert needed >= set(arrival_s) if in_turn else needed == set(arrival_s)
    on_direction: dict[int, list[tuple[float, float]]] = {}
    for k, directions in enumerate(trace.transfer_directions(problem.cluster)):
        for direction in directions:
            on_direction.setdefault(direction, []).append((trace.transfer_start_s[k], trace.transfer_end_s[k]))
    for spans in on_direction.values():
        for (_, end), (start, _) in itertools.pairwise(sorted(spans)):
            assert start >= end
    for device, used in enumerate(trace.memory_bytes):
        assert trace.peak_memory_bytes[device] == used.max()
        assert used.min() >= 0
        at_rest = problem.graph.resident_bytes.sum(axis=1)[placement == device].sum()
        assert used[-1] == at_rest or trace.step_time_s == 0  # everything is released in the end


def check_bounds(problem: PlacementProblem, placement: np.ndarray) -> None:
    """No step is shorter than its longest path, each op where it is and nothing in the way."""
    graph = problem.graph
    taken_s = problem.op_time_s[placement, np.arange(graph.num_ops)]
    end_s = taken_s.copy()
    # Edges ascend by producer, so all that leads to a producer has been counted when its own edges come.
    for producer, reader in zip(graph.edge_producer, graph.consumers, strict=True):
        end_s[reader] = max(end_s[reader], end_s[producer] + taken_s[reader])
    step_time_s = simulate(problem.simulator_input, placement).step_time_s
    assert step_time_s >= end_s.max() * (1 - 1e-12)


@FEW
@given(placed(problems()))
def test_kernel_plain_and_definition_agree_to_the_last_bit(case: tuple[PlacementProblem, np.ndarray]) -> None:
    check_agreement(*case)


@pytest.mark.slow
@MANY
@given(placed(problems()))
def test_kernel_plain_and_definition_agree_on_thousands(case: tuple[PlacementProblem, np.ndarray]) -> None:
    check_agreement(*case)


@FEW
@given(placed(problems()))
def test_a_trace_is_feasible_and_no_shorter_than_its_paths(case: tuple[PlacementProblem, np.ndarray]) -> None:
    check_feasible(*case)
    check_bounds(*case)


@pytest.mark.slow
@MANY
@given(placed(problems()))
def test_thousands_of_traces_are_feasible(case: tuple[PlacementProblem, np.ndarray]) -> None:
    check_feasible(*case)
    check_bounds(*case)


@FEW
@given(problems(restrict=False))
def test_one_device_takes_the_sum_of_its_op_times(problem: PlacementProblem) -> None:
    for device in range(problem.num_devices):
        trace = simulate(problem.simulator_input, np.full(problem.graph.num_ops, device))
        assert trace.step_time_s == pytest.approx(problem.op_time_s[device].sum(), rel=1e-12)
        assert trace.num_transfers == 0


@FEW
@given(placed(problems(clusters(SPECS[:1], complete=True))), st.randoms(use_true_random=False))
def test_relabelling_like_devices_permutes_the_answer(
    case: tuple[PlacementProblem, np.ndarray], random: Random
) -> None:
    """Where every pair has a link of its own; on shared links the order of destinations is the order of devices."""
    problem, placement = case
    labels = list(range(problem.num_devices))
    random.shuffle(labels)
    relabelled = np.array(labels)[placement]
    before, after = (simulate(problem.simulator_input, p) for p in (placement, relabelled))
    assert before.step_time_s == after.step_time_s
    np.testing.assert_array_equal(before.peak_memory_bytes, after.peak_memory_bytes[labels])
    np.testing.assert_array_equal(before.op_start_s, after.op_start_s)


@FEW
@given(problems(), st.integers(0, 2**32 - 1))
def test_batch_order_and_threads_change_nothing(problem: PlacementProblem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    placements = rng.integers(0, problem.num_devices, size=(9, problem.graph.num_ops))
    alone = [simulate_batch(problem.simulator_input, p[None], threads=1) for p in placements]
    for threads in (1, 2, 5, 20):
        order = rng.permutation(9)
        step_time_s, peak = simulate_batch(problem.simulator_input, placements[order], threads=threads)
        for row, b in enumerate(order):
            assert step_time_s[row] == alone[b][0][0]
            np.testing.assert_array_equal(peak[row], alone[b][1][0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_larger_random_graphs_agree_with_the_plain_version(schedule: str) -> None:
    """Beyond 4096 ops the trees of ready ops have three levels, beyond 8 devices there are several blocks of events."""
    for num_ops, devices, seed in ((5000, 5, 0), (700, 12, 1), (300, 64, 2)):
        graph = random_graph(num_ops, seed=seed, locality=40, resident_bytes=10**6)
        problem = PlacementProblem(graph, one_group_an_op(graph), star(devices), schedule)
        placement = np.random.default_rng(seed).integers(0, devices, size=num_ops)
        assert_same_trace(
            simulate(problem.simulator_input, placement), simulate_plain(problem.simulator_input, placement)
        )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", ["ties", "no time", "wide", "alone", "blocks"])
def test_graphs_that_take_every_way_through_the_kernel_agree_with_the_plain_version(shape: str, schedule: str) -> None:
    """Many things at once, many rounds an instant, many ops ready at once in disorder, and devices that run alone."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        devices, num_ops = 2 + seed, 300
        if shape == "wide":
            # Two layers of ops that end together; each op of the next reads a few of them, in no order.
            width = 100
            readers = [[width + int(r) for r in rng.permutation(width)[:40]] for _ in range(width)]
            tensors = [(i, int(rng.integers(0, 3)), sorted(readers[i])) for i in range(width)]
            times_s = [1.0] * width + [0.0, 1.0] * (width // 2)
            graph, num_ops = graph_of(times_s, tensors), 2 * width
        else:
            graph = random_graph(num_ops, seed=seed, locality=[3, 30, 300][seed % 3], resident_bytes=10**6)
            if shape in ("ties", "no time"):
                odds = [0.0, 1e-3, 2e-3, 2e-3] if shape == "ties" else [0.0, 0.0, 0.0, 1e-3]
                drawn_s = rng.choice(odds, size=num_ops)
                graph = replace(graph, time_s=dict.fromkeys(("unit", "k80", "xeon"), drawn_s))
        where = star(devices) if shape in ("alone", "blocks") else hub(devices, bytes_per_s=1e9 if seed % 2 else 1e12)
        problem = PlacementProblem(graph, one_group_an_op(graph), where, schedule)
        placement = rng.integers(0, devices, size=num_ops)
        if shape == "alone":
            placement[:] = seed % devices
        elif shape == "blocks":
            placement = np.arange(num_ops) * devices // num_ops
        plain = simulate_plain(problem.simulator_input, placement)
        assert_same_trace(simulate(problem.simulator_input, placement), plain)
        bounds_s = plain.step_time_s * np.array([np.inf, 0.7, 1.0, 0.999, np.inf])
        step_time_s, peak = simulate_batch(
            problem.simulator_input, np.tile(placement, (5, 1)), threads=1, abort_above_s=bounds_s
        )
        assert step_time_s[[0, 2, 4]].tolist() == [plain.step_time_s] * 3
        np.testing.assert_array_equal(peak[[0, 2, 4]], np.tile(plain.peak_memory_bytes, (3, 1)))
        assert (np.isinf(step_time_s[[1, 3]]) | (step_time_s[[1, 3]] == plain.step_time_s)).all()


def test_an_input_survives_pickling() -> None:
    graph = random_graph(50, seed=1)
    problem = PlacementProblem(graph, one_group_an_op(graph), star(3))
    placement = np.arange(50) % 3
    before = simulate(problem.simulator_input, placement)
    copy = pickle.loads(pickle.dumps(problem.simulator_input))
    assert_same_trace(simulate(copy, placement), before)
    arrays = [getattr(copy, f.name) for f in fields(copy)]
    assert all(not a.flags.writeable for a in arrays if isinstance(a, np.ndarray))


@FEW
@given(placed(problems(restrict=False)), st.sampled_from([0.0, 0.5, 0.9, 0.999999, 1.0, 1.0, 1.1, np.inf]))
def test_a_bound_stops_only_what_is_slower(case: tuple[PlacementProblem, np.ndarray], share: float) -> None:
    problem, placement = case
    true_s = simulate(problem.simulator_input, placement).step_time_s
    bound_s = true_s * share if share < np.inf else np.inf
    rows = np.stack([placement, placement, placement])
    bounds = np.array([np.inf, bound_s, np.inf])  # the steps before and after, in the same workspace, stay exact
    step_time_s, _ = simulate_batch(problem.simulator_input, rows, threads=1, abort_above_s=bounds)
    assert step_time_s[0] == step_time_s[2] == true_s
    assert step_time_s[1] in (true_s, np.inf)
    if bound_s >= true_s:
        assert step_time_s[1] == true_s
    elif bound_s == 0:
        assert step_time_s[1] == np.inf  # some path or device takes longer than no time


def test_a_bound_says_where_it_stopped_and_spares_what_may_not_run_there() -> None:
    graph = random_graph(400, seed=3)
    problem = PlacementProblem(graph, one_group_an_op(graph), star(3))
    placements = np.random.default_rng(0).integers(0, 3, size=(40, 400))
    free = problem.evaluate(placements)
    bound_s = np.full(40, np.median(free.step_time_s))
    held = problem.evaluate(placements, abort_above_s=bound_s)
    assert 5 < held.aborted.sum() <= (free.step_time_s > bound_s).sum()
    assert (free.step_time_s[held.aborted] > bound_s[held.aborted]).all()
    assert not held.feasible[held.aborted].any()
    for key in ("step_time_s", "peak_memory_bytes", "feasible"):
        np.testing.assert_array_equal(getattr(held, key)[~held.aborted], getattr(free, key)[~held.aborted])
    # An op where it may not be can be faster than any path of allowed ones: there is no bound then.
    ops = [OpRecord("a", "add", allowed_kinds=["cpu"], time_s={"xeon": 9.0, "k80": 1.0})]
    only = build("cpu only", ops, [])
    restricted = PlacementProblem(only, one_group_an_op(only), star(2))
    assert restricted.evaluate(np.array([[1]]), abort_above_s=2.0).step_time_s == 1.0
    assert restricted.evaluate(np.array([[0]]), abort_above_s=2.0).aborted
