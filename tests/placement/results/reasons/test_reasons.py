"""Reasons are what the trace and the simulator say: every number is computed again here, by other means."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import placement
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from envs.simulator.trace import Trace
from graphs.colocation.groups import one_group_an_op
from graphs.errors import InputError
from placement.cli.main import main
from placement.results.placement_file import make_result, write_placement
from placement.results.reasons.encode import explanation_content
from placement.results.reasons.explain import explain
from placement.results.reasons.explanation import Explanation
from placement.results.reasons.moving import evaluate_moves
from placement.results.reasons.remedies import one_more
from placement.results.reasons.sentences import why
from placement.results.reasons.step_parts import (
    COMPUTING,
    DEVICE,
    LINK,
    TRANSFER,
    critical_path,
    device_parts,
    link_seconds,
)
from tests.placement.placer_problems import cluster, training_graph


def problem_of(seed: int, schedule: str = "priority", *, gpus: int = 2, gpu_bytes: int = 10**12) -> PlacementProblem:
    graph, groups = training_graph(10, seed=seed)
    return PlacementProblem(graph, groups, cluster(gpus, gpu_bytes=gpu_bytes), schedule)


def random_ops(problem: PlacementProblem, seed: int, *, of_ops: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    where = problem.with_groups(one_group_an_op(problem.graph)) if of_ops else problem
    return where.to_ops(np.where(where.allowed, rng.random(where.allowed.shape), -1).argmax(axis=1))


def arrived_s(trace: Trace, tensor: int, producer: int, reader: int) -> float:
    """When a tensor was there for an op, by looking through the transfers; of several copies the newest."""
    device = trace.op_device[reader]
    if trace.op_device[producer] == device:
        return float(trace.op_end_s[producer])
    sent = np.flatnonzero((trace.transfer_tensor == tensor) & (trace.transfer_destination == device))
    return float(max(end for end in trace.transfer_end_s[sent] if end <= trace.op_start_s[reader]))


CASES = list(itertools.product(range(3), SCHEDULES, (False, True)))


@pytest.mark.parametrize(("seed", "schedule", "of_ops"), CASES)
class TestTheStep:
    def test_the_path_is_the_step_to_the_last_bit(self, seed: int, schedule: str, of_ops: bool) -> None:
        problem = problem_of(seed, schedule)
        trace = problem.trace(random_ops(problem, seed, of_ops=of_ops))
        path = critical_path(problem, trace)
        assert path.start_s[0] == 0.0
        assert path.end_s[-1] == trace.step_time_s
        assert (path.end_s[:-1] == path.start_s[1:]).all()
        assert (path.end_s > path.start_s).all()
        assert math.isclose(sum(path.seconds.values()), trace.step_time_s, rel_tol=1e-12)

    def test_each_part_is_what_the_trace_says(self, seed: int, schedule: str, of_ops: bool) -> None:
        problem = problem_of(seed, schedule)
        graph = problem.graph
        trace = problem.trace(random_ops(problem, seed, of_ops=of_ops))
        path = critical_path(problem, trace)
        for kind, start_s, end_s, op, sent in zip(
            path.kind, path.start_s, path.end_s, path.op, path.transfer, strict=True
        ):
            inputs = np.flatnonzero(graph.consumers == op)
            times = [arrived_s(trace, int(graph.edge_tensor[e]), int(graph.edge_producer[e]), int(op)) for e in inputs]
            ready_s = max(times, default=0.0)
            if kind == COMPUTING:
                assert (start_s, end_s) == (trace.op_start_s[op], trace.op_end_s[op])
            elif kind == TRANSFER:
                assert (start_s, end_s) == (trace.transfer_start_s[sent], trace.transfer_end_s[sent])
                assert end_s == ready_s
            elif kind == LINK:
                assert end_s == trace.transfer_start_s[sent]
                assert start_s == trace.op_end_s[graph.tensor_producer[trace.transfer_tensor[sent]]]
            elif sent < 0:
                assert kind == DEVICE
                assert (start_s, end_s) == (ready_s, trace.op_start_s[op])
                if schedule in ("priority", "fifo"):  # the device was never idle meanwhile
                    here = trace.op_device == trace.op_device[op]
                    overlap = np.minimum(trace.op_end_s, end_s) - np.maximum(trace.op_start_s, start_s)
                    assert math.isclose(overlap[here].clip(min=0).sum(), end_s - start_s, rel_tol=1e-9)

    def test_what_devices_do_adds_up(self, seed: int, schedule: str, of_ops: bool) -> None:
        problem = problem_of(seed, schedule)
        trace = problem.trace(random_ops(problem, seed, of_ops=of_ops))
        parts = device_parts(problem, trace)
        assert np.allclose(parts.sum(axis=1), trace.step_time_s, rtol=1e-12)
        assert (parts >= -1e-15).all()
        for d in range(problem.num_devices):
            here = trace.op_device == d
            assert math.isclose(parts[d, 0], (trace.op_end_s - trace.op_start_s)[here].sum(), abs_tol=1e-15)
            last_s = trace.op_end_s[here].max(initial=0.0)
            assert parts[d, 3] == trace.step_time_s - last_s
            if schedule != "sequential":  # time with a transfer on its way here is at least the time waited for one
                under_way = [
                    (trace.op_end_s[problem.graph.tensor_producer[t]], end_s)
                    for t, end_s, to in zip(
                        trace.transfer_tensor, trace.transfer_end_s, trace.transfer_destination, strict=True
                    )
                    if to == d
                ]
                assert parts[d, 1] <= sum(end - begin for begin, end in under_way) + 1e-12

    def test_links(self, seed: int, schedule: str, of_ops: bool) -> None:
        problem = problem_of(seed, schedule)
        trace = problem.trace(random_ops(problem, seed, of_ops=of_ops))
        took_s = trace.transfer_end_s - trace.transfer_start_s  # each crosses one link up to the switch and one down
        in_use = link_seconds(problem, trace)
        for d in range(problem.num_devices):
            assert math.isclose(in_use[2 * d], took_s[trace.transfer_source == d].sum(), abs_tol=1e-15)
            assert math.isclose(in_use[2 * d + 1], took_s[trace.transfer_destination == d].sum(), abs_tol=1e-15)


def check_moves(found: Explanation) -> None:
    problem, ops = found.problem, found.op_placement
    memory = problem.cluster.memory_bytes
    for g in range(problem.num_groups):
        members = problem.groups.group_of_op == g
        for d in range(problem.num_devices):
            seconds = found.moves.step_time_s[g, d]
            if not problem.allowed[g, d]:
                assert math.isnan(seconds)
                continue
            moved = np.where(members, d, ops)
            trace = problem.trace(moved)
            short = np.maximum(trace.peak_memory_bytes - memory, 0).sum()
            assert seconds == trace.step_time_s
            assert found.moves.short_bytes[g, d] == short
            assert found.moves.feasible[g, d] == (short == 0)


@pytest.mark.parametrize(
    ("seed", "gpu_bytes", "of_ops"), [(0, 10**12, False), (1, 2 * 10**7, False), (2, 10**12, True)]
)
def test_every_number_is_the_simulators(seed: int, gpu_bytes: int, of_ops: bool) -> None:
    problem = problem_of(seed, gpu_bytes=gpu_bytes)
    ops = random_ops(problem, seed, of_ops=of_ops)
    other = random_ops(problem, seed + 10, of_ops=of_ops)
    found = explain(problem, ops, against=other, tries=40)
    trace = problem.trace(ops)
    assert found.step_time_s == trace.step_time_s
    check_moves(found)
    for remedy in found.remedies:
        assert remedy.unmoved_s == remedy.problem.trace(ops).step_time_s
        evaluation = remedy.problem.evaluate_ops(remedy.op_placement[None])
        assert remedy.step_time_s == evaluation.cost_s()[0]
        assert remedy.step_time_s <= remedy.problem.evaluate_ops(ops[None]).cost_s()[0]
    shares = {limit.kind: limit for limit in found.limits}
    assert shares["device"].seconds == trace.busy_s().max()
    assert shares["link"].seconds == link_seconds(problem, trace).max()
    alone = problem.with_groups(one_group_an_op(problem.graph))
    assert shares["path"].seconds == alone.simulator_input.remaining_path_s.max() <= found.step_time_s
    assert all(limit.seconds <= found.step_time_s for limit in found.limits)
    difference = found.difference
    assert difference is not None
    assert (difference.before_s, difference.after_s) == (problem.trace(other).step_time_s, trace.step_time_s)
    assert difference.ops_moved == (ops != other).sum()
    for g, alone_s, back_s in zip(difference.groups, difference.alone_s, difference.back_s, strict=True):
        members = problem.groups.group_of_op == g
        assert (ops[members] != other[members]).any()
        assert alone_s == problem.trace(np.where(members, ops, other)).step_time_s
        assert back_s == problem.trace(np.where(members, other, ops)).step_time_s
    json.dumps(explanation_content(found), allow_nan=False)


def test_reasons_of_groups_say_what_moves_cost() -> None:
    problem = problem_of(1)
    found = explain(problem, random_ops(problem, 3), tries=0)
    names = problem.cluster.device_names
    for g in range(problem.num_groups):
        said, home = why(found, g), int(found.moves.home[g])
        others = [found.moves.step_time_s[g, d] for d in np.flatnonzero(problem.allowed[g]) if d != home]
        assert said.startswith(f"on {names[home]}")
        if not others:
            assert said.endswith("it may be nowhere else")
        elif min(others) < found.step_time_s * 0.999:
            assert "though on" in said
        elif min(others) > found.step_time_s * 1.001:
            assert "would cost" in said


def test_memory_that_costs_time_is_a_limit() -> None:
    problem = problem_of(4, gpus=1, gpu_bytes=10**12)
    gpu = problem.allowed[:, 1].nonzero()[0]
    placement_of_groups = np.where(np.isin(np.arange(problem.num_groups), gpu), 1, 0)
    placement_of_groups[gpu[2]] = 0
    need = int(problem.trace(placement_of_groups).peak_memory_bytes[1])
    tight = replace(problem, cluster=cluster(1, gpu_bytes=need))
    found = explain(tight, placement_of_groups, tries=64)
    faster = found.moves.step_time_s[gpu[2], 1] < found.step_time_s
    limits = [limit.kind for limit in found.limits]
    assert ("memory" in limits) == (faster and not found.moves.feasible[gpu[2], 1])
    assert "memory" in limits
    assert any("does not fit" in sentence for sentence in found.sentences)
    by_name = {remedy.name: remedy for remedy in found.remedies}
    assert by_name["memory"].step_time_s <= found.moves.step_time_s[gpu[2], 1] or by_name["memory"].step_time_s < (
        by_name["as it is"].step_time_s
    )


def test_a_placement_that_does_not_fit_is_said_to_and_what_would_make_it_fit() -> None:
    problem = problem_of(3)
    ops = np.where(problem.op_allowed[:, 1], 1, problem.op_allowed.argmax(axis=1))
    need = int(problem.trace(ops).peak_memory_bytes[1])
    nearly = replace(problem, cluster=cluster(2, gpu_bytes=need - 1))
    found = explain(nearly, ops, tries=32)
    assert not found.feasible
    assert found.sentences[0].startswith("The placement cannot run: it needs ")
    assert "on gpu:0, which has" in found.sentences[0]
    assert not any("does not fit" in sentence for sentence in found.sentences[1:])
    assert any("no placement that fits takes less than" in sentence for sentence in found.sentences)
    moved = next(sentence for sentence in found.sentences if sentence.startswith("Moving "))
    fits = np.where(found.moves.elsewhere() & found.moves.feasible, found.moves.step_time_s, np.inf)
    group, device = np.unravel_index(int(fits.argmin()), fits.shape)
    assert f"{problem.groups.names[group]} to {problem.cluster.device_names[device]} makes it fit" in moved
    assert "the whole would fit, in" in why(found, int(group))
    assert "memory" not in [limit.kind for limit in found.limits]
    hopeless = replace(problem, cluster=cluster(2, gpu_bytes=1000, cpu_bytes=1000))
    found = explain(hopeless, ops, tries=32)
    assert any("were tried, and none fits" in sentence for sentence in found.sentences)
    assert any("in all would still be missing" in why(found, g) for g in range(problem.num_groups))


def test_one_more_device_is_linked_as_its_twin() -> None:
    before = cluster(2)
    after = one_more(before, 1)
    assert after.device_names == ("cpu:0", "gpu:0", "gpu:1", "gpu:2")
    assert after.routes.bytes_per_s[3, 0] == after.routes.bytes_per_s[1, 0]
    assert after.routes.bytes_per_s[3, 1] == after.routes.bytes_per_s[1, 2]


def test_a_time_limit_is_kept_and_leaves_out_what_is_not_known() -> None:
    problem = problem_of(2)
    found = explain(problem, random_ops(problem, 2), time_limit_s=0.0)
    assert found.moves.evaluations == 1
    assert np.isnan(found.moves.step_time_s).any()
    assert found.sentences
    assert all(why(found, g) for g in range(problem.num_groups))


class TestTheCommand:
    def test_a_run_and_a_placement(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        problem = problem_of(5)
        run = placement.train(problem, updates=1, out=tmp_path / "run")
        assert run.explanation is not None
        assert run.explanation.step_time_s == run.result.step_time_s
        assert main(["explain", "run", "--json", "why.json", "--tries", "16"]) == 0
        said = capsys.readouterr().out
        content = json.loads(Path("why.json").read_text())
        assert content["step_time_s"] == run.result.step_time_s
        assert " ".join(content["sentences"][0].split()) in " ".join(said.split())
        other = make_result(problem, random_ops(problem, 1), placer="test", seed=0)
        write_placement("other.json", other)
        assert main(["explain", "run", "--against", "other.json", "--tries", "0"]) == 0
        assert "elsewhere than in the other placement" in " ".join(capsys.readouterr().out.split())
        assert main(["explain", "other.json"]) == 2
        assert "explain of a placement file needs its GRAPH" in capsys.readouterr().err

    def test_the_function_takes_what_the_command_takes(self) -> None:
        problem = problem_of(5)
        ops = random_ops(problem, 1)
        result = make_result(problem, ops, placer="test", seed=0)
        assert (
            placement.explain(problem, result, tries=0).step_time_s
            == placement.explain(problem, ops, tries=0).step_time_s
        )
        with pytest.raises(InputError):
            placement.explain(problem, ops[:-1])


@pytest.mark.slow
def test_all_groups_of_nmt_on_all_of_four_devices_are_evaluated_in_two_seconds() -> None:
    """Exactly, in processor time, so that what else runs on the machine does not count."""
    problem = placement.make_problem("nmt", "k80x4")
    ops = random_ops(problem, 0)
    evaluate_moves(problem, ops, time_limit_s=0.0)  # compiles, or loads what was compiled
    problem.evaluate_ops(np.stack([ops, ops]))
    began_s = time.process_time()
    moves = evaluate_moves(problem, ops)
    took_s = time.process_time() - began_s
    asked = int(problem.allowed.sum())
    print(f"{moves.evaluations:,} placements of {problem.graph.num_ops:,} ops in {took_s:.2f} s")
    assert np.isfinite(moves.step_time_s).sum() >= asked - problem.num_groups
    assert took_s < 2
