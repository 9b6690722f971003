"""Chains of moves: true to the simulator, the constraints and the optimum; repeatable; and learning as they should."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.clusters.catalog import load_cluster
from envs.compiling import Packed, compiled
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from graphs import zoo
from graphs.colocation.groups import one_group_an_op
from graphs.colocation.rules import colocate
from graphs.computation_graph import ComputationGraph, OpRecord, TensorRecord, build
from graphs.synthetic import random_graph
from placement.move_search import kernel
from placement.move_search.chain import Chain, Walker
from placement.move_search.config import MoveConfig
from placement.move_search.field import Field, make_field
from placement.move_search.plan import (
    LEAST_TYPES_AN_ACCELERATOR,
    MANY_MOVES_AN_OP,
    MOST_OF_MANY_ROUNDS,
    MOST_ROUNDS,
    MOVES_AN_OP,
    MOVES_AN_OP_BY_TYPES,
    Cycle,
    goes_by_types,
    make_plan,
    rounds_within,
    units_of,
)
from placement.move_search.search import DRAWS_LEARNED_UP_TO, MoveSearch
from placement.placers.best import charged_s, step_limit_s
from placement.placers.random import draw
from tests.placement.move_search.critical_path_plain import critical_path
from tests.placement.placer_problems import cluster as host_and_gpus
from tests.placement.placer_problems import expensive_cuts, training_problem
from tests.placement.placer_problems import optimum_s as optimum_of_allowed_s
from tests.placement.problems import branches, cluster, optimum_s

UNTIL_THE_END = 16
"""Updates of `run` over which the search goes through all of its stages."""

OVERLAPPING = tuple(schedule for schedule in SCHEDULES if schedule != "sequential")
"""Schedules under which devices work at the same time."""


def first_ops(problem: PlacementProblem) -> NDArray[np.int32]:
    """Everything on the last device that it may be on."""
    last = problem.num_devices - 1 - problem.allowed[:, ::-1].argmax(axis=1)
    return problem.to_ops(last).astype(np.int32)


def cost_s(problem: PlacementProblem, ops: NDArray[np.int32]) -> float:
    """What a placement of ops is charged while nothing that fits is known."""
    evaluation = problem.evaluate_ops(ops[None])
    return float(charged_s(evaluation, problem.cluster.memories, reference_s=step_limit_s(problem))[0])


def new_search(problem: PlacementProblem, *, seed: int = 0, **config: Any) -> MoveSearch:
    search = MoveSearch(problem, config=MoveConfig(**config), seed=seed)
    ops = first_ops(problem)
    search.offer_best_of(ops[None], problem.evaluate_ops(ops[None]))
    return search


def _share_from(update: int) -> Callable[[float], float]:
    return lambda share: (update + share) / UNTIL_THE_END


def run(search: MoveSearch, *, moves: int, first: int = 0, last: int = UNTIL_THE_END) -> None:
    """Let the chains make `moves` moves an update, from update `first` to `last` of `UNTIL_THE_END`."""
    with ThreadPoolExecutor(search.config.chains) as executor:
        for update in range(first, last):
            search.finish(
                search.start(
                    moves,
                    progress=_share_from(update),
                    should_stop=lambda: False,
                    log_probability=None,
                    executor=executor,
                )
            )


def restricted_graph() -> ComputationGraph:
    """Four chains of ops, some for GPUs alone, some for the CPU; ops of different chains are bound together."""
    rng = np.random.default_rng(3)
    ops, tensors = [OpRecord("x", "input", output_shapes=((8,),))], [TensorRecord(0, 10**5, [1, 2, 3, 4])]
    for i in range(1, 41):
        kinds = {1: ("gpu",), 2: ("cpu",)}.get(i % 7)
        ops.append(OpRecord(f"op{i}", "mm", flops=int(10 ** rng.uniform(7, 9)), allowed_kinds=kinds))
        if i > 4:
            tensors.append(TensorRecord(i - 4, int(10 ** rng.uniform(4, 6)), [i]))
    return build("restricted", ops, tensors, colocation=[(3, 12, 21), (5, 40), (13, 6)])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("room", [None, 0.9, 0.05])
def test_the_best_cost_is_what_the_evaluator_says(schedule: str, room: float | None) -> None:
    """With memory to spare, with too little for one device, and with too little for all."""
    problem = training_problem(14, 2, seed=4, room=room, schedule=schedule)
    search = new_search(problem)
    start_s = search.best_cost_s
    run(search, moves=60)
    assert search.best_ops is not None
    evaluation = problem.evaluate_ops(search.best_ops[None])
    assert search.best_cost_s < start_s
    if room == 0.05:
        assert not evaluation.feasible[0]
        assert search.best_cost_s == cost_s(problem, search.best_ops)
    else:
        assert evaluation.feasible[0]
        assert search.best_cost_s == evaluation.step_time_s[0]


@pytest.mark.parametrize("schedule", OVERLAPPING)
@pytest.mark.parametrize("uniform_share", [0.1, 1.0])
def test_ops_stay_together_and_where_they_may_be(schedule: str, uniform_share: float) -> None:
    graph = restricted_graph()
    problem = PlacementProblem(graph, one_group_an_op(graph), host_and_gpus(2), schedule)
    search = new_search(problem, uniform_share=uniform_share)
    start_s, seen = search.best_cost_s, set()
    for update in range(UNTIL_THE_END):
        run(search, moves=30, first=update, last=update + 1)
        for ops in (search.best_ops, *(chain["ops"] for chain in search.state()["chains"])):
            seen.add(ops.tobytes())
            assert problem.op_allowed[np.arange(graph.num_ops), ops].all()
            for bound in range(graph.colocation.max() + 1):
                assert len(set(ops[graph.colocation == bound])) == 1
    assert len(seen) > UNTIL_THE_END
    assert search.best_ops is not None
    assert cost_s(problem, search.best_ops) == search.best_cost_s < start_s


@pytest.mark.parametrize("seed", range(5))
def test_it_reaches_the_optimum_of_a_tiny_problem(seed: int) -> None:
    problem = branches(2, 4, seed=1)
    search = new_search(problem, seed=seed)
    run(search, moves=300)
    assert search.best_cost_s == optimum_s(problem)


@pytest.mark.parametrize("seed", range(5))
def test_it_reaches_the_optimum_where_memory_is_short(seed: int) -> None:
    problem = training_problem(5, 2, seed=seed, room=0.9)
    search = new_search(problem, seed=seed, finest="groups")
    run(search, moves=300)
    assert search.best_cost_s == optimum_of_allowed_s(problem)


def test_single_ops_beat_groups_and_groups_only_never_parts_one() -> None:
    problem = training_problem(12, 2, seed=0)
    searches = {finest: new_search(problem, finest=finest) for finest in ("groups", "ops")}
    for search in searches.values():
        run(search, moves=200)
    assert searches["ops"].best_cost_s < searches["groups"].best_cost_s
    best = searches["groups"].best_ops
    assert best is not None
    for group in range(problem.num_groups):
        assert len(set(best[problem.groups.group_of_op == group])) == 1


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same, to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a.tobytes() == b.tobytes() if isinstance(a, np.ndarray) else a == b


@pytest.mark.parametrize("schedule", ["priority", "program_order"])
def test_a_search_goes_on_from_its_state_as_if_never_interrupted(schedule: str) -> None:
    """Wherever it is interrupted: at the start, within a stage, between two, and behind the last."""
    problem = training_problem(70, 2, seed=1, room=0.4, schedule=schedule)  # enough groups for a coarse stage
    whole, last = new_search(problem, seed=5), UNTIL_THE_END + 3
    states = []
    for update in range(last):
        states.append(pickle.dumps(whole.state()))
        run(whole, moves=25, first=update, last=update + 1)
    stages = {pickle.loads(state)["chains"][0]["cycle"][0] for state in states[1:]}
    assert stages >= {"coarse", "groups", "ops"}
    for update in range(last):
        other = MoveSearch(problem, config=whole.config, seed=99)
        other.restore(pickle.loads(states[update]))
        run(other, moves=25, first=update, last=last)
        assert equal(other.state(), whole.state()), f"interrupted after {update} updates"


def test_the_same_seed_walks_the_same_way_and_another_seed_another() -> None:
    problem = training_problem(20, 2, seed=1)
    searches = [new_search(problem, seed=seed) for seed in (1, 1, 2)]
    for search in searches:
        run(search, moves=40)
    assert equal(searches[0].state(), searches[1].state())
    assert not equal(searches[0].state(), searches[2].state())


# --- the compiled parts, each against a plain version


def walker_at(problem: PlacementProblem, ops: NDArray[np.int32], **config: Any) -> tuple[Walker, Field, Chain]:
    """A chain of single ops that stands at a placement and knows its critical path."""
    walker = Walker(problem, MoveConfig(**config), [0])
    field = make_field(problem, one_group_an_op(problem.graph))
    walker.begin(Cycle("ops", 0.0, 1.0, 1.0, alone=False), field, ops, None)
    assert walker.chain is not None
    return walker, field, walker.chain


def random_ops(problem: PlacementProblem, seed: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(problem.num_devices, size=problem.graph.num_ops).astype(np.int32)


def test_where_nothing_overlaps_all_is_on_the_critical_path() -> None:
    for seed in range(4):
        graph = random_graph(150, seed=seed, locality=15)
        problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x4"), "sequential")
        ops = random_ops(problem, seed)
        walker, field, chain = walker_at(problem, ops, uniform_share=0.5)
        ops = chain.op_device[0].copy()  # the target leaves the CPU out
        walker.walk(1, 1e-30)
        trace = problem.trace(ops)
        taken_s = np.bincount(field.unit_of_op, trace.op_end_s - trace.op_start_s, len(chain.critical_s))
        assert np.allclose(chain.critical_s, taken_s, rtol=1e-12, atol=0)
        sent_s = np.zeros_like(chain.transfer_s)
        assert trace.num_transfers > 20
        for tensor, source, to, start_s, end_s in zip(
            trace.transfer_tensor, trace.transfer_source, trace.transfer_destination, trace.transfer_start_s,
            trace.transfer_end_s, strict=True,
        ):  # fmt: skip
            sent_s[field.unit_of_op[graph.tensor_producer[tensor]], to] += 0.5 * (end_s - start_s)
            before = int(np.flatnonzero(trace.op_start_s >= end_s)[0])  # the op that it was sent for
            sent_s[field.unit_of_op[before], source] += 0.5 * (end_s - start_s)
        assert np.allclose(chain.transfer_s, sent_s, rtol=1e-9, atol=1e-15)
        assert chain.critical_s.sum() + chain.transfer_s.sum() == pytest.approx(trace.step_time_s)
        assert not chain.waited_s.any()
        assert not chain.delayed_s.any()


@pytest.mark.parametrize("schedule", OVERLAPPING)
@pytest.mark.parametrize("seed", range(8))
def test_the_critical_path_is_that_of_the_plain_version(seed: int, schedule: str) -> None:
    graph = random_graph(150, seed=seed, locality=15)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x4"), schedule)
    ops = random_ops(problem, seed)
    walker, field, chain = walker_at(problem, ops, uniform_share=0.5)
    walker.walk(1, 1e-30)  # simulates where it stands and sums up; then makes a move, which does not matter here
    trace = problem.trace(ops)
    plain = critical_path(problem, trace, field.unit_of_op)
    assert np.allclose(chain.critical_s, plain.computing_s, rtol=1e-12, atol=0)
    assert np.allclose(chain.transfer_s, plain.transfer_s, rtol=1e-12, atol=0)
    assert np.allclose(chain.waited_s, plain.waited_s, rtol=1e-12, atol=0)
    assert np.allclose(chain.delayed_s, plain.delayed_s, rtol=1e-12, atol=0)
    spent_s = plain.computing_s.sum() + plain.transfer_s.sum()
    assert spent_s == pytest.approx(trace.step_time_s, rel=1e-9)  # the path has no gaps
    assert plain.waited_s.sum() == pytest.approx(plain.delayed_s.sum())


def test_a_transfer_is_shared_and_who_waits_for_a_device_knows_who_holds_it() -> None:
    """`a` (2 ms) and `b` (3 ms) run on device 0, in turn; `c` (1 ms) on device 1 waits for `b` and 1 ms of copying."""
    ops = [OpRecord(name, "mm", flops=flops * 10**9) for name, flops in (("a", 2), ("b", 3), ("c", 1))]
    graph = build("three", ops, [TensorRecord(1, 10**6, [2])])
    fast = cluster(2)
    fast = dataclasses.replace(fast, links=tuple(dataclasses.replace(link, latency_s=0.0) for link in fast.links))
    problem = PlacementProblem(graph, one_group_an_op(graph), fast, "fifo")
    walker, _, chain = walker_at(problem, np.array([0, 0, 1], dtype=np.int32), uniform_share=0.5)
    walker.walk(1, 1e-30)
    assert chain.critical_s == pytest.approx([2e-3, 3e-3, 1e-3])
    assert chain.transfer_s == pytest.approx(np.array([[0, 0], [0, 0.5e-3], [0.5e-3, 0]]))
    assert chain.waited_s == pytest.approx([0, 2e-3, 0])
    assert chain.delayed_s == pytest.approx([2e-3, 0, 0])


def plain_features(problem: PlacementProblem, field: Field, chain: Chain, step_s: float) -> NDArray[np.float64]:
    """``float64[U, D, F]`` of every unit and device, by their definitions."""
    units, devices = field.allowed.shape
    every, placed, graph = np.arange(units), chain.placed, problem.graph
    routes = problem.cluster.routes
    apart = ~np.eye(devices, dtype=bool)
    latency_s, per_byte = np.median(routes.latency_s[apart]), np.median(1.0 / routes.bytes_per_s[apart])
    near_s, seen = np.zeros((units, units)), set()
    for producer, tensor, reader in zip(graph.edge_producer, graph.edge_tensor, graph.consumers, strict=True):
        a, b = int(field.unit_of_op[producer]), int(field.unit_of_op[reader])
        if a != b and (int(tensor), b) not in seen:
            seen.add((int(tensor), b))
            near_s[a, b] += latency_s + graph.tensor_bytes[tensor] * per_byte
    near_on_s = (near_s + near_s.T) @ np.eye(devices)[placed]
    alike = np.zeros((units, devices))
    for order in field.orders:
        for one, other in itertools.pairwise(order):
            alike[one, placed[other]] += 0.5
            alike[other, placed[one]] += 0.5
    busy_s = np.bincount(placed, field.time_s[every, placed], devices)
    here = (every, placed)
    x = np.empty((units, devices, kernel.NUM_FEATURES))
    x[:, :, kernel.CRITICAL] = 3 * np.sqrt(chain.critical_s / step_s)[:, None]
    x[:, :, kernel.WAITED] = 3 * np.sqrt(chain.waited_s / step_s)[:, None]
    x[:, :, kernel.DELAYED] = 3 * np.sqrt(chain.delayed_s / step_s)[:, None]
    x[:, :, kernel.TRANSFER] = 3 * np.sqrt(chain.transfer_s / step_s)
    x[:, :, kernel.AFFINITY] = np.clip((near_on_s - near_on_s[here][:, None]) / (0.02 * step_s), -3, 3)
    load = busy_s[placed][:, None] - busy_s[None] - field.time_s
    x[:, :, kernel.LOAD] = np.clip(load / (0.25 * step_s), -2, 2)
    log_time = np.log(field.time_s + 1e-9)
    x[:, :, kernel.SLOWER] = np.clip(log_time - log_time[here][:, None], -3, 3)
    x[:, :, kernel.ALIKE] = alike
    x[:, :, kernel.APART] = alike[here][:, None]
    x[:, :, kernel.REJECTED] = 0.5 * np.minimum(chain.rejected, 8)
    x[:, :, kernel.POLICY] = np.clip(chain.log_probability - chain.log_probability[here][:, None], -3, 3)
    return x


@compiled
def refresh(field: Any, chain: Any, step_s: float) -> int:
    """As the walk does; from Python there is no way in."""
    return kernel.refresh(field, chain, step_s)


@pytest.mark.parametrize("seed", range(4))
def test_shares_are_the_softmax_of_scores_and_expected_their_mean_features(seed: int) -> None:
    graph = random_graph(80, seed=seed, locality=15)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x4"))
    ops, rng = random_ops(problem, seed), np.random.default_rng(seed)
    walker, field, chain = walker_at(problem, ops, uniform_share=0.5)
    walker.walk(1, 1e-30)
    # Where the walk stood when it drew: the move that it made since is taken back.
    chain.placed[:] = field.from_ops(ops)
    units, devices = field.allowed.shape
    chain.busy_s[:] = np.bincount(chain.placed, field.time_s[np.arange(units), chain.placed], devices)
    chain.rejected[:] = rng.integers(0, 10, size=(units, devices))
    chain.log_probability[:] = np.log(rng.dirichlet(np.ones(devices), size=units))
    chain.weights[:] = rng.normal(size=kernel.NUM_FEATURES)
    step_s = problem.trace(ops).step_time_s
    count = refresh(Packed(field), Packed(chain), step_s)
    on_path = chain.critical_s + chain.waited_s + chain.delayed_s + chain.transfer_s.sum(axis=1) > 0
    assert chain.active[:count].tolist() == np.flatnonzero(on_path).tolist()
    assert 0 < count < units
    x = plain_features(problem, field, chain, step_s)
    may = field.allowed & (np.arange(devices) != chain.placed[:, None]) & on_path[:, None]
    share = np.where(may, np.exp(x @ chain.weights), 0.0)
    share /= share.sum()
    cumulative = chain.shares[: count * devices]
    drawn = np.diff(cumulative, prepend=0.0).reshape(count, devices) / cumulative[-1]
    assert np.allclose(drawn, share[on_path], rtol=1e-9, atol=1e-14)
    assert chain.expected == pytest.approx(np.einsum("ud,udf->f", share, x), rel=1e-9)


# --- learning


def test_the_mean_step_of_learning_is_the_exact_gradient_of_the_expected_reward() -> None:
    """On 2 units x 2 devices all moves are enumerated; thousands of walks of one move are averaged."""
    ops = [OpRecord("a", "mm", flops=2 * 10**9), OpRecord("b", "mm", flops=3 * 10**9)]
    graph = build("pair", ops, [TensorRecord(0, 10**6, [1])])
    problem = PlacementProblem(graph, one_group_an_op(graph), cluster(2, speeds=(1.0, 2.0)))
    here, temperature_s, baseline, rate, draws = np.zeros(2, dtype=np.int32), 1.5e-3, 0.2, 1e-3, 6000
    walker, field, chain = walker_at(problem, here, uniform_share=0.0, learning_rate=rate, kind_rate=rate)
    weights = np.random.default_rng(0).normal(scale=0.5, size=kernel.NUM_FEATURES)
    kinds = np.full(kernel.NUM_KINDS, -1000.0)
    kinds[kernel.SINGLE] = 0.0  # so that every move is of one unit
    steps = np.empty((draws, kernel.NUM_FEATURES))
    for i in range(draws):
        chain.placed[:], chain.op_device[0] = field.from_ops(here), here
        chain.rejected[:] = 0.0
        chain.weights[:], chain.kinds[:] = weights, kinds
        chain.scalars[kernel.BASELINE] = baseline
        walker.walk(1, temperature_s)
        steps[i] = (chain.weights - weights) / rate

    chain.placed[:], chain.rejected[:] = field.from_ops(here), 0.0
    now_s = problem.trace(here).step_time_s
    x = plain_features(problem, field, chain, now_s)[:, 1]  # [U, F]: either unit to the other device
    after_s = problem.evaluate_ops(np.array([[1, 0], [0, 1]], dtype=np.int32)).step_time_s
    accepted = np.minimum(np.exp((now_s - after_s) / temperature_s), 1.0)
    reward = accepted * np.clip((now_s - after_s) / temperature_s, -1, 1)
    assert reward.min() < 0 < reward.max()

    def expected_reward(w: NDArray[np.float64]) -> float:
        share = np.exp(x @ w)
        return float(share @ (reward - baseline) / share.sum())

    h = 1e-5
    nudges = h * np.eye(kernel.NUM_FEATURES)
    exact = np.array([(expected_reward(weights + e) - expected_reward(weights - e)) / (2 * h) for e in nudges])
    error = steps.std(axis=0) / np.sqrt(draws)
    assert (np.abs(steps.mean(axis=0) - exact) <= 4 * error + 1e-8).all()
    felt = np.abs(exact) > 1e-6
    assert (np.abs(exact)[felt] > 8 * error[felt]).any()  # the draws are enough to tell it from none


def saved_per_move(problem: PlacementProblem, *, learning_rate: float, seed: int) -> tuple[float, NDArray[np.float64]]:
    """Mean step time saved by a move over short descents from random placements, the second half of them; the weights.

    All weights are 0 at first: every move of an active unit is as likely as every other.
    """
    moves, descents = 60, 80
    walker, field, _ = walker_at(
        problem, random_ops(problem, seed), uniform_share=0.0, learning_rate=learning_rate, kind_rate=0.0
    )
    walker.weights[:] = 0.0
    walker.rng[0] = np.uint64(seed)
    saved = []
    for descent in range(descents):
        ops = random_ops(problem, 1000 * seed + descent)
        walker.begin(Cycle("ops", 0.0, 1.0, 1.0, alone=False), field, ops, None)
        assert walker.chain is not None
        before_s = cost_s(problem, ops)
        walker.walk(moves, before_s / 500)
        saved.append((before_s - float(walker.scalars[kernel.COST])) / before_s / moves)
    return float(np.mean(saved[descents // 2 :])), walker.weights.copy()


@pytest.mark.parametrize("seed", range(3))
def test_learning_raises_what_a_move_saves(seed: int) -> None:
    graph = random_graph(120, seed=1, locality=20)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster("k80x4"))
    frozen, zero = saved_per_move(problem, learning_rate=0.0, seed=seed)
    learned, weights = saved_per_move(problem, learning_rate=0.05, seed=seed)
    assert not zero.any()
    assert np.abs(weights).max() > 0.2
    assert weights[kernel.SLOWER] < 0  # which the hand-set weights say as well
    assert learned > 1.1 * frozen


def test_nothing_is_learned_where_all_moves_are_drawn_uniformly() -> None:
    problem = training_problem(20, 2, seed=1)
    searches = [new_search(problem, uniform_share=share, learning_rate=0.1, kind_rate=0.1) for share in (1.0, 0.5)]
    before = pickle.loads(pickle.dumps(searches[0].state()))["chains"]
    for search in searches:
        run(search, moves=40)
    for first, uniform, learned in zip(before, *(search.state()["chains"] for search in searches), strict=True):
        assert equal(first["weights"], uniform["weights"])
        assert equal(first["kinds"], uniform["kinds"])
        assert not equal(first["weights"], learned["weights"])
        assert not equal(first["kinds"], learned["kinds"])


@pytest.mark.parametrize("an_op", [100.0, DRAWS_LEARNED_UP_TO, DRAWS_LEARNED_UP_TO + 1.0, np.inf])
def test_where_each_op_is_evaluated_very_often_moves_are_drawn_uniformly(an_op: float) -> None:
    """As by the preset that learns nothing, move for move; infinite is a number that is not known."""
    problem = training_problem(20, 2, seed=1)
    evaluations = an_op * problem.graph.num_ops
    search, uniform = new_search(problem), new_search(problem, uniform_share=1.0)
    first = search.weights
    for each in (search, uniform):
        each.expect(evaluations)
        run(each, moves=40)
    assert not uniform.draws_learned
    assert uniform.weights == first
    assert search.draws_learned == (an_op == np.inf or an_op <= DRAWS_LEARNED_UP_TO)
    assert search.draws_learned == (search.weights != first)
    for mine, others in zip(search.state()["chains"], uniform.state()["chains"], strict=True):
        assert equal(mine["ops"], others["ops"]) or search.draws_learned
        assert (int(mine["rng"]) == int(others["rng"])) != search.draws_learned


def test_a_later_plan_learns_again() -> None:
    problem = training_problem(20, 2, seed=1)
    search = new_search(problem)
    search.expect(1e9)
    assert not search.draws_learned
    search.expect(100.0)
    before = search.weights
    run(search, moves=40)
    assert search.draws_learned
    assert search.weights != before


def test_half_of_the_uniform_moves_are_of_a_kind_that_learning_may_have_given_up() -> None:
    graph = random_graph(40, seed=3)
    problem = PlacementProblem(graph, one_group_an_op(graph), host_and_gpus(3))
    here, draws = random_ops(problem, 1), 3000
    given_up = np.where(np.arange(kernel.NUM_KINDS) == kernel.SINGLE, 0.0, -1000.0)  # all but moves of one unit

    def share_of_many(uniform_share: float, kinds: NDArray[np.float64]) -> float:
        """Of moves, that of those that give more than one unit another device."""
        walker, field, chain = walker_at(problem, here, uniform_share=uniform_share, learning_rate=0.0, kind_rate=0.0)
        placed, many = field.from_ops(here), 0
        for _ in range(draws):
            chain.placed[:], chain.op_device[0], chain.kinds[:] = placed, placed[field.unit_of_op], kinds
            walker.walk(1, 1e9)  # hot enough to accept whatever is drawn
            many += (chain.placed != placed).sum() > 1
        return many / draws

    assert share_of_many(0.0, given_up) == 0.0
    assert share_of_many(1.0, given_up) == pytest.approx(share_of_many(1.0, np.zeros(kernel.NUM_KINDS)) / 2, rel=0.15)


def test_what_the_policy_says_is_averaged_over_the_ops_of_a_unit() -> None:
    problem = training_problem(6, 2, seed=0)
    log_probability = np.random.default_rng(0).normal(size=(problem.num_groups, problem.num_devices)).astype(np.float32)
    by_groups = make_field(problem, problem.groups).of_groups(log_probability)
    assert by_groups == pytest.approx(log_probability, rel=1e-6)
    by_ops = make_field(problem, one_group_an_op(problem.graph)).of_groups(log_probability)
    assert by_ops == pytest.approx(log_probability[problem.groups.group_of_op], rel=1e-6)


def test_after_a_quarter_of_the_run_only_the_best_chains_walk_on() -> None:
    problem = training_problem(40, 3, seed=2)
    search = new_search(problem, chains=4, survivors=2)
    run(search, moves=20, last=4)
    search.go_on(0.24)
    assert search.num_walking == 4
    costs = [float(chain["scalars"][kernel.BEST]) for chain in search.state()["chains"]]
    search.go_on(0.25)
    assert search.num_walking == 2
    best = sorted(np.argsort(costs, kind="stable")[:2].tolist())
    assert search.state()["walking"] == best
    before = [int(chain["counts"][kernel.EVALUATIONS]) for chain in search.state()["chains"]]
    run(search, moves=20, first=4, last=5)
    after = [int(chain["counts"][kernel.EVALUATIONS]) for chain in search.state()["chains"]]
    assert [i for i in range(4) if after[i] > before[i]] == best
    resumed = new_search(problem, chains=4, survivors=2)
    resumed.restore(search.state())
    assert resumed.state()["walking"] == best


def test_rounds_follow_each_other_without_gaps_and_only_the_end_is_common() -> None:
    problem = training_problem(80, 3, seed=2)
    plan = make_plan(problem, finest="ops", evaluations=1e9, rounds=3)
    cycles = [cycle for cycles in plan.rounds for cycle in cycles]
    assert [a.end for a in cycles[:-1]] == pytest.approx([b.begin for b in cycles[1:]])
    assert cycles[0].begin == 0.0
    assert cycles[-1].end == pytest.approx(1.0)
    stages = [[cycle.stage for cycle in cycles] for cycles in plan.rounds]
    assert stages[0] == stages[1] == stages[2]
    assert stages[0][0] == "coarse"
    assert stages[0][-1] == "ops"
    assert {(cycle.stage, i) for i in range(3) for cycle in plan.rounds[i] if not cycle.alone} == {("ops", 2)}
    number, share = plan.round_at(0.5)
    assert number == 1
    assert share == pytest.approx(0.5)
    assert plan.round_at(1.2)[0] == 2
    assert plan.cycle_at(0.4, 0) is plan.rounds[0][-1]  # a round lasts until the next is begun
    assert plan.cycle_at(0.4, 1).begin <= 0.4 < plan.cycle_at(0.4, 1).end
    assert plan.cycle_at(1.3, 2).begin == pytest.approx(1.25)
    assert plan.cycle_at(1.3, 2).stage == "ops"


def test_a_run_has_as_many_rounds_as_it_can_move_all_ops_often() -> None:
    problem = training_problem(80, 3, seed=2)
    each = MOVES_AN_OP * problem.graph.num_ops
    assert [rounds_within(share * each, problem) for share in (0.1, 1.5, 2.5, 100.0)] == [1, 1, 2, MOST_ROUNDS]
    assert rounds_within(np.inf, problem) == 1
    assert rounds_within(np.inf, problem, by_types=True) == 1
    most = MANY_MOVES_AN_OP * problem.graph.num_ops
    assert [rounds_within(share * most, problem) for share in (4.0, 9.5, 1e6)] == [4, 9, MOST_OF_MANY_ROUNDS]
    two = 2 * MOVES_AN_OP_BY_TYPES * problem.graph.num_ops
    asked = (0.1 * two, two - 1, two, 2.5 * each, 3.5 * each, 100.0 * each)
    assert [rounds_within(count, problem, by_types=True) for count in asked] == [1, 1, 2, 2, 3, MOST_ROUNDS]


@pytest.mark.parametrize("gpus", [4, 8])
def test_chains_go_by_types_only_where_there_are_types_to_spread(gpus: int) -> None:
    """Chains that would begin with one or two units for many devices bring nothing, and others would not walk."""
    for types in (1, 2, LEAST_TYPES_AN_ACCELERATOR * gpus - 1, LEAST_TYPES_AN_ACCELERATOR * gpus):
        ops = [OpRecord(f"op{i}", f"type{i % types}", flops=10**9) for i in range(8 * types)]
        graph = build("typed", ops, [TensorRecord(i, 8, [i + 1]) for i in range(len(ops) - 1)])
        problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster(f"k80x{gpus}"))
        wanted = types >= LEAST_TYPES_AN_ACCELERATOR * gpus
        assert goes_by_types(problem, finest="ops", evaluations=1e9) is wanted


def test_in_rounds_the_first_chain_goes_on_and_the_others_begin_elsewhere() -> None:
    problem = training_problem(80, 3, seed=2)
    search = new_search(problem, chains=4, survivors=2)
    home = search.best_ops
    assert home is not None
    search.expect(2.5 * MOVES_AN_OP * problem.graph.num_ops)
    assert (len(search.plan.rounds), len(search.plan_in_rounds.rounds)) == (1, 2)

    def walk(first: int, last: int) -> None:
        for update in range(first, last):
            search.go_on(update / UNTIL_THE_END)
            run(search, moves=200, first=update, last=update + 1)

    field = make_field(problem, units_of(problem, "coarse"))
    starts = [search.leg(i, 1).first_of_round(field).ops for i in range(4)]
    assert starts[0].tolist() == starts[1].tolist() == home.tolist()
    assert starts[2].tolist() != starts[3].tolist()
    walk(0, 3)
    walking = search.state()["walking"]  # after a quarter of a round
    assert walking[0] == 0
    assert len(walking) == 2
    walk(3, 8)
    before = search.state()
    best_s = search.best_cost_s
    search.go_on(0.5)
    assert search.num_walking == 4
    after = search.state()
    assert after["round"] == 1
    assert after["chains"][0]["scalars"].tolist() == before["chains"][0]["scalars"].tolist()
    for old, new in zip(before["chains"][1:], after["chains"][1:], strict=True):
        assert np.isinf(new["scalars"][kernel.BEST_STEP])
        assert new["weights"].tolist() == old["weights"].tolist()
    assert search.best_ops is not None
    assert search.best is not None
    again = [search.leg(i, 1).first_of_round(field).ops for i in range(4)]
    assert again[1].tolist() == home.tolist() != search.best_ops.tolist()
    assert len({ops.tobytes() for ops in (*starts[2:], *again[2:])}) == 4
    assert all(problem.op_allowed[np.arange(len(ops)), ops].all() for ops in starts + again)
    resumed = new_search(problem, chains=4, survivors=2, seed=0)
    resumed.restore(after)
    resumed.expect(2.5 * MOVES_AN_OP * problem.graph.num_ops)
    for both in (search, resumed):
        run(both, moves=50, first=8, last=9)
    assert search.best_cost_s == resumed.best_cost_s <= best_s
    assert search.state()["chains"][3]["ops"].tolist() == resumed.state()["chains"][3]["ops"].tolist()
    walk(9, UNTIL_THE_END)
    assert search.num_walking == 2
    assert search.state()["walking"][0] == 0
    assert search.best_cost_s == cost_s(problem, search.best_ops)


def test_a_round_is_planned_for_the_evaluations_that_it_has() -> None:
    graph = zoo.load("rnnlm:layers=2,hidden=8,steps=8,vocabulary=9,batch=2")
    problem = PlacementProblem(graph, colocate(graph, wanted_groups=12), load_cluster("k80x2"))

    def stages(evaluations: float, rounds: int) -> list[list[str]]:
        plan = make_plan(problem, finest="ops", evaluations=evaluations, rounds=rounds)
        return [list(dict.fromkeys(cycle.stage for cycle in cycles)) for cycles in plan.rounds]

    assert stages(440, 1) == [["groups", "twofold", "sixfold"]]
    assert stages(440, 2) == [["groups", "twofold"]] * 2
    assert stages(880, 2) == stages(440, 1) * 2


def still_walk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], float]]:
    """Let chains stand still; what comes back fills with where they stand and the temperatures they are given."""
    seen: list[tuple[list[int], float]] = []

    def walk(self: Walker, moves: int, temperature_s: float) -> None:
        assert self.chain is not None
        seen.append((self.chain.op_device[0].tolist(), temperature_s))

    monkeypatch.setattr(Walker, "walk", walk)
    return seen


def test_temperatures_are_in_units_of_what_one_unit_adds_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = zoo.load("rnnlm:layers=2,hidden=8,steps=8,vocabulary=9,batch=2")
    problem = PlacementProblem(graph, colocate(graph, wanted_groups=12), load_cluster("k80x2"))
    seen = still_walk(monkeypatch)
    search = new_search(problem, chains=1)
    run(search, moves=1, first=0, last=UNTIL_THE_END)
    for stage in ("groups", "ops"):
        units = search.ground.field(stage).num_movable
        assert units > 256 or stage == "groups"
        cycles = [cycle for cycle in search.plan.rounds[0] if cycle.stage == stage]
        update = int(np.ceil(cycles[0].begin * UNTIL_THE_END))
        wanted = search.plan.cycle_at(update / UNTIL_THE_END, 0).temperature(update / UNTIL_THE_END)
        assert seen[update][1] == pytest.approx(wanted * search.best_cost_s / units)


def test_chains_go_their_own_ways_until_single_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = training_problem(80, 3, seed=2)
    seen = still_walk(monkeypatch)
    search = new_search(problem, chains=2)
    assert search.best_ops is not None
    own, best_s = search.best_ops, search.best_cost_s
    run(search, moves=1, first=0, last=1)
    elsewhere = problem.to_ops(problem.allowed.argmax(axis=1)).astype(np.int32)
    assert elsewhere.tolist() != own.tolist()
    search.offer(elsewhere, best_s / 2, 0.0)
    for stage, stand in (("groups", own), ("ops", elsewhere)):
        begin = next(cycle.begin for cycle in search.plan.rounds[0] if cycle.stage == stage)
        update = int(np.ceil(begin * UNTIL_THE_END))
        seen.clear()
        run(search, moves=1, first=update, last=update + 1)
        assert [place for place, _ in seen] == [stand.tolist()] * 2


def test_chains_begin_at_random_only_where_there_are_moves_enough_to_catch_up() -> None:
    problem = training_problem(80, 3, seed=2)
    search = new_search(problem, chains=4, survivors=2)
    field = make_field(problem, problem.groups)
    best_ops = search.best_ops
    assert best_ops is not None

    def begin_at_random(evaluations: float) -> list[bool]:
        search.expect(evaluations)
        return [search.leg(i, 1).first_of_round(field).ops is not best_ops for i in range(4)]

    assert begin_at_random(0.49 * problem.graph.num_ops) == [False] * 4
    assert begin_at_random(0.51 * problem.graph.num_ops) == [False, False, True, True]


def test_a_plan_of_more_rounds_begins_none_where_the_run_is_already_over() -> None:
    problem = training_problem(80, 3, seed=2)
    search = new_search(problem, chains=4, survivors=2)
    run(search, moves=20)
    search.expect(1e9)
    search.go_on(1.1)
    assert search.state()["round"] == 0
    assert all(np.isfinite(chain["scalars"][kernel.BEST]) for chain in search.state()["chains"])


def unrolled_problem(cluster_name: str = "k80x4", steps: int = 40) -> PlacementProblem:
    graph = zoo.load(f"rnnlm:layers=2,hidden=8,steps={steps},vocabulary=9,batch=2")
    return PlacementProblem(graph, colocate(graph), load_cluster(cluster_name))


def test_chains_go_by_types_where_a_network_is_unrolled_and_there_is_much_to_choose() -> None:
    problem = unrolled_problem()
    enough = MOVES_AN_OP_BY_TYPES * problem.graph.num_ops

    def by_types(problem: PlacementProblem, evaluations: float, **config: Any) -> bool:
        search = new_search(problem, **{"chains": 4, "survivors": 2, **config})
        search.expect(evaluations)
        return search.plan_by_types is not None

    assert by_types(problem, enough)
    assert not by_types(problem, enough - 1)
    assert not by_types(problem, np.inf)
    assert not by_types(problem, enough, finest="groups")
    assert not by_types(problem, enough, chains=2)
    assert not by_types(unrolled_problem("k80x2"), enough)
    assert not by_types(unrolled_problem(steps=4), enough)
    assert by_types(unrolled_problem(steps=24), enough)  # 77 groups, 46 types
    assert not by_types(unrolled_problem(steps=20), enough)  # 65 groups


def test_chains_that_go_by_types_move_all_ops_of_a_type_first_and_then_finer_units() -> None:
    problem = unrolled_problem()
    search = new_search(problem, chains=4, survivors=2)
    search.expect(MOVES_AN_OP_BY_TYPES * problem.graph.num_ops)
    stages = [
        list(dict.fromkeys(search.leg(chain, 1).cycle_at(progress).stage for progress in np.linspace(0.0, 0.99, 100)))
        for chain in range(4)
    ]
    assert stages[:2] == [["coarse", "groups", "twofold", "sixfold", "ops"]] * 2
    assert stages[2:] == [["types", "twofold", "sixfold", "ops"]] * 2
    run(search, moves=30, last=1)
    types = units_of(problem, "types").group_of_op
    placed = [chain["ops"] for chain in search.state()["chains"]]
    for ops in placed[2:]:
        assert all(len(set(ops[types == t].tolist())) == 1 for t in range(types.max() + 1))
    assert placed[2].tolist() != placed[3].tolist()


def test_the_best_chain_by_types_goes_on_even_where_the_others_stand_better() -> None:
    problem = unrolled_problem()
    search = new_search(problem, chains=4, survivors=2)
    search.expect(MOVES_AN_OP_BY_TYPES * problem.graph.num_ops)
    run(search, moves=5, last=1)
    for walker, best_s in zip(search._walkers, (2.0, 1.0, 4.0, 3.0), strict=True):
        walker.scalars[[kernel.BEST_STEP, kernel.BEST_MISSING]] = best_s, 0.0
    search.go_on(0.2)
    assert search.state()["walking"] == [0, 1, 2, 3]
    search.go_on(0.25)
    assert search.state()["walking"] == [1, 3]


def test_in_rounds_those_by_types_share_the_core_that_the_first_chain_leaves() -> None:
    problem = unrolled_problem()
    search = new_search(problem, chains=4, survivors=2)
    search.expect(2.5 * MOVES_AN_OP_BY_TYPES * problem.graph.num_ops)
    assert search.plan_by_types is not None
    assert (len(search.plan_by_types.rounds), len(search.plan_in_rounds.rounds)) == (2, 2)
    search.go_on(0.0)
    assert search.state()["walking"] == [0, 2, 3]
    run(search, moves=5, last=1)
    for walker, best_s in zip(search._walkers, (4.0, np.inf, 3.0, 2.0), strict=True):
        walker.scalars[[kernel.BEST_STEP, kernel.BEST_MISSING]] = best_s, 0.0
    search.go_on(0.2)
    assert search.state()["walking"] == [0, 3]
    search.go_on(0.5)
    assert search.state()["walking"] == [0, 2, 3]
    assert [search.leg(i, 1).cycle_at(0.5).stage for i in (2, 3)] == ["types", "types"]
    resumed = new_search(problem, chains=4, survivors=2)
    resumed.restore(search.state())
    resumed.expect(2.5 * MOVES_AN_OP_BY_TYPES * problem.graph.num_ops)
    for both in (search, resumed):
        run(both, moves=20, first=8, last=9)
    for key in ("ops", "best_ops", "rejected"):
        ends = [both.state()["chains"][3][key].tolist() for both in (search, resumed)]
        assert ends[0] == ends[1]


def test_between_groups_and_ops_units_of_a_few_ops_are_moved() -> None:
    graph = zoo.load("rnnlm:layers=2,hidden=8,steps=8,vocabulary=9,batch=2")
    problem = PlacementProblem(graph, colocate(graph, wanted_groups=12), load_cluster("k80x2"))
    search = new_search(problem)
    stages = list(dict.fromkeys(cycle.stage for cycle in search.plan.rounds[0]))
    assert stages == ["groups", "twofold", "sixfold", "ops"]
    units = [search.ground.field(stage).allowed.shape[0] for stage in stages]
    assert units == sorted(units)
    assert units[1] <= 24 < units[2] <= 72 < units[3] <= graph.num_ops
    fields = [search.ground.field(stage) for stage in stages]
    for before, after in itertools.pairwise(fields):  # a chain goes on from exactly the placement that it has
        ops = draw(before.allowed, 1, np.random.default_rng(0))[0, before.unit_of_op]
        assert after.from_ops(ops.astype(np.int32))[after.unit_of_op].tolist() == ops.tolist()
    by_groups = new_search(problem, finest="groups")
    assert {cycle.stage for cycle in by_groups.plan.rounds[0]} == {"groups"}
    few_ops = training_problem(70, 2, seed=1)  # a group has so few ops that single ones come next
    assert few_ops.graph.num_ops < 1.5 * 6 * few_ops.num_groups
    assert "sixfold" not in {cycle.stage for cycle in new_search(few_ops).plan.rounds[0]}


def test_stages_that_would_have_too_few_moves_for_their_units_are_left_out() -> None:
    graph = zoo.load("rnnlm:layers=2,hidden=8,steps=8,vocabulary=9,batch=2")
    problem = PlacementProblem(graph, colocate(graph, wanted_groups=12), load_cluster("k80x2"))
    search = new_search(problem)

    def stages(evaluations: float) -> list[str]:
        search.expect(evaluations)
        assert search.plan.rounds[0][0].begin == 0.0
        assert search.plan.rounds[0][-1].end == pytest.approx(1.0)
        return list(dict.fromkeys(cycle.stage for cycle in search.plan.rounds[0]))

    # Shares of the run: twofold 0.2 with 24 units, sixfold 0.25 with 72, ops 0.3; each unit must move 1.5 times.
    assert stages(170) == ["groups"]
    assert stages(190) == ["groups", "twofold"]
    assert stages(440) == ["groups", "twofold", "sixfold"]
    assert stages(1.6 * graph.num_ops / 0.3) == ["groups", "twofold", "sixfold", "ops"]
    search.expect_seconds(1e-9)
    assert {cycle.stage for cycle in search.plan.rounds[0]} == {"groups"}
    search.expect_seconds(1e3)
    assert search.plan.rounds[0][-1].stage == "ops"


@pytest.mark.parametrize("seed", range(3))
def test_chains_that_all_stand_where_nothing_fits_go_home(seed: int) -> None:
    """They are put on one GPU, where steps are far faster than any that fits."""
    problem = expensive_cuts(30, 3, seed=seed)
    search = MoveSearch(problem, config=MoveConfig(chains=2), seed=seed)
    home, lost = np.zeros(30, dtype=np.int32), np.ones(30, dtype=np.int32)
    search.offer_best_of(np.stack([lost, home]), problem.evaluate_ops(np.stack([lost, home])))
    assert search.best_ops is not None
    assert search.best_ops.tolist() == home.tolist()
    run(search, moves=1, last=1)
    field = make_field(problem, problem.groups)
    for number, walker in enumerate(search._walkers):
        search.go_on(0.1)
        assert walker.cycle is not None  # while another chain stands at what fits none is called back
        walker.begin(walker.cycle, field, lost, None)
        walker.walk(1, 1e-12)
        assert walker.is_lost, number
    search.go_on(0.1)
    assert [walker.cycle for walker in search._walkers] == [None, None]
    assert search.best_ops is not None
    best = search.best_ops.tolist()
    resumed = MoveSearch(problem, config=MoveConfig(chains=2), seed=seed)
    resumed.restore(search.state())
    for each in (search, resumed):
        run(each, moves=1, first=2, last=3)
        assert not any(walker.is_lost for walker in each._walkers)
        for chain in each.state()["chains"]:
            assert (chain["ops"] != best).sum() < 30 // 2
    assert search.state()["chains"][1]["ops"].tolist() == resumed.state()["chains"][1]["ops"].tolist()


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_where_cuts_are_expensive_chains_end_at_what_fits(schedule: str, cpu: bool) -> None:
    """From the host, or from one GPU, which is too small: no faster step that does not fit keeps them."""
    for seed in range(4):
        problem = expensive_cuts(40, 4, seed=seed, cpu=cpu, schedule=schedule)
        search = MoveSearch(problem, config=MoveConfig(chains=2), seed=seed)
        start = problem.evaluate(np.zeros((1, 40), dtype=np.int64))
        search.offer_best_of(np.zeros((1, 40), dtype=np.int64), start)
        run(search, moves=300)
        assert search.best is not None
        assert search.best.fits
        assert search.best_cost_s == problem.evaluate_ops(search.best.ops[None]).cost_s()[0]
        assert not any(walker.is_lost for walker in search._walkers)
        if cpu and problem.target == "engine":  # another target leaves the host's CPU out
            assert start.feasible[0]
            assert search.best_cost_s < start.step_time_s[0]
