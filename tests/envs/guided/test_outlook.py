"""The compiled outlook and observations against their definition, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.clusters.catalog import load_cluster
from envs.guided.guide import Guide, make_guide
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.errors import InputError
from tests.envs.guided.by_definition import observe, outlook
from tests.envs.simulator.random_problems import FEW, problems
from tests.placement.placer_problems import training_problem


def check_rows(guide: Guide, seed: int) -> None:
    """Compare what is seen of every group, with none, some and all of the others placed."""
    problem, rng = guide.problem, np.random.default_rng(seed)
    devices = problem.num_devices + int(rng.integers(2))
    placement = rng.integers(problem.num_devices, size=problem.num_groups)
    assert guide.outlooks_s(placement[None])[0] == outlook(guide.picture, placement.tolist())[0]
    for known in {0, int(rng.integers(problem.num_groups + 1)), problem.num_groups}:
        rows = guide.rows(placement, known, devices)
        for group in range(problem.num_groups):
            view, mask, _ = observe(guide.picture, placement.tolist(), known, group, devices)
            assert rows.view[group].tobytes() == view.tobytes()
            assert rows.mask[group].tolist() == mask


@given(problems(), st.integers(0, 2**32))
@settings(FEW, max_examples=40)
def test_the_compiled_outlook_is_its_definition_on_random_problems(problem: PlacementProblem, seed: int) -> None:
    rng = np.random.default_rng(seed)
    votes = {str(i): rng.integers(problem.num_devices, size=problem.num_groups) for i in range(rng.integers(3))}
    check_rows(make_guide(problem, votes), seed)


@pytest.mark.parametrize("room", [None, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_compiled_outlook_is_its_definition_on_training_steps(seed: int, room: float | None) -> None:
    check_rows(make_guide(training_problem(12, 3, seed=seed, room=room)), seed)


def test_the_outlook_of_two_lanes_is_worked_by_hand() -> None:
    """Two products of 10 GFLOP without traffic, and a join: on two GPUs the first two run side by side."""
    ops = [OpRecord(f"lane{i}", "mm", flops=10**10, bytes_accessed=1000) for i in range(2)]
    graph = build("lanes", [*ops, OpRecord("join", "mm", flops=10**10, bytes_accessed=1000)],
                  [TensorRecord(0, 10**6, (2,)), TensorRecord(1, 10**6, (2,))])  # fmt: skip
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x2"))
    guide = make_guide(problem)
    op_s = float(problem.op_time_s[1, 0])
    routes = problem.cluster.routes
    sent_s = float(routes.latency_s[1, 2] + 1e6 / routes.bytes_per_s[1, 2])
    one, two = guide.outlooks_s(np.array([[1, 1, 1], [1, 2, 2]]))
    assert one == pytest.approx(3 * op_s)
    assert two == pytest.approx(2 * op_s + sent_s)
    assert guide.reference_s == pytest.approx(min(one, two))


def test_the_reference_is_the_best_of_the_votes_by_the_simulator() -> None:
    problem = training_problem(10, 3, seed=4)
    rng = np.random.default_rng(0)
    rows = [np.where(problem.allowed.all(axis=1), rng.integers(1, 4, size=problem.num_groups), 0) for _ in range(20)]
    guide = make_guide(problem, {str(i): row for i, row in enumerate(rows)})
    answers = problem.evaluate(np.stack([*rows, guide.reference])).step_time_s
    assert guide.reference_s == answers[-1] == guide.votes_s.min()
    assert guide.reference_s <= answers.min()
    assert guide.names[-2:] == ("the best single device", "earliest finish")


def test_the_votes_that_are_always_there_fit_and_use_more_than_one_device() -> None:
    for seed in range(4):
        problem = training_problem(16, 3, seed=seed)
        guide = make_guide(problem)
        earliest = guide.picture.votes[-1]
        assert problem.allowed[np.arange(problem.num_groups), earliest].all()
        assert len(set(earliest.tolist())) > 1
        assert guide.votes_s.max() < guide.failing_s


def test_votes_that_are_no_placements_are_refused() -> None:
    problem = training_problem(6, 2, seed=0)
    with pytest.raises(InputError, match=r"votes\['mine'\] is int64 of shape \[2\]; give a device index for each of"):
        make_guide(problem, {"mine": np.zeros(2, dtype=np.int64)})
    with pytest.raises(InputError, match=r"votes\['mine'\] names device 0 to 6; there are devices 0 to 2"):
        make_guide(problem, lambda problem: {"mine": np.arange(problem.num_groups) % 10})
