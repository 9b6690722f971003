"""Every rule of `envs.simulator` on an example worked by hand. Unless said otherwise links carry 1 byte/s, no latency.

Ops are called a, b, c, ...; tensors are given as (producer, bytes, readers).
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from envs.simulator.plain import simulate_plain
from envs.simulator.simulate import simulate
from envs.simulator.trace import Trace
from envs.simulator.trace_file import write_chrome_trace
from graphs.colocation.groups import one_group_an_op
from graphs.computation_graph import OpRecord, build
from tests.envs.simulator.simulator_by_definition import simulate_by_definition
from tests.envs.simulator.simulator_problems import SPEC, graph_of, hub, line, problem_of, timed

A, B, C, D, E, F = range(6)
GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(params=["kernel", "plain", "definition"])
def run(request: pytest.FixtureRequest) -> Callable[[PlacementProblem, list[int]], Trace]:
    """All three simulators must know the answers."""
    if request.param == "definition":
        return simulate_by_definition
    function = simulate if request.param == "kernel" else simulate_plain
    return lambda problem, placement: function(problem.simulator_input, np.array(placement))


Run = Callable[[PlacementProblem, list[int]], Trace]


def sent(trace: Trace) -> list[tuple[int, int, int, float, float]]:
    """``(tensor, source, destination, start, end)`` of every transfer, in the order of their reservation."""
    columns = ("tensor", "source", "destination", "start_s", "end_s")
    return list(zip(*(getattr(trace, f"transfer_{c}").tolist() for c in columns), strict=True))


def memory(trace: Trace, device: int) -> list[tuple[float, int]]:
    return list(zip(trace.memory_time_s[device].tolist(), trace.memory_bytes[device].tolist(), strict=True))


def test_a_chain_on_one_device_takes_the_sum(run: Run) -> None:
    trace = run(problem_of(graph_of([1, 2, 4], [(A, 5, [B]), (B, 5, [C])]), hub(2)), [0, 0, 0])
    assert trace.op_start_s.tolist() == [0, 1, 3]
    assert trace.step_time_s == 7
    assert sent(trace) == []


def test_a_transfer_takes_all_latencies_and_the_smallest_bandwidth(run: Run) -> None:
    """a ends at 1; links of 0.5 s and 0.25 s latency, 2 and 4 bytes/s: 0.75 + 8 / 2 = 4.75 s; b runs 5.75 to 6.75."""
    devices = tuple(Device(f"gpu:{i}", SPEC) for i in range(2))
    links = (Link("gpu:0", "s", 2.0, 0.5), Link("s", "gpu:1", 4.0, 0.25))
    problem = problem_of(graph_of([1, 1], [(A, 8, [B])]), Cluster("two links", devices, links, ("s",)))
    trace = run(problem, [0, 1])
    assert sent(trace) == [(0, 0, 1, 1, 5.75)]
    assert trace.step_time_s == 6.75


def test_computing_overlaps_sending(run: Run) -> None:
    """c needs nothing and runs 1 to 4 on gpu:0 while a's tensor travels 1 to 3; b runs 3 to 4."""
    trace = run(problem_of(graph_of([1, 1, 3], [(A, 2, [B])]), hub(2), "program_order"), [0, 1, 0])
    assert trace.op_start_s.tolist() == [0, 3, 1]
    assert trace.step_time_s == 4


def test_priority_runs_the_longest_remaining_path_first(run: Run) -> None:
    """Remaining: a 1, b 1 + 5, c 5. b goes before a; when b ends c's 5 beats a's 1."""
    problem = problem_of(graph_of([1, 1, 5], [(B, 1, [C])]), hub(1))
    trace = run(problem, [0, 0, 0])
    assert trace.op_start_s.tolist() == [6, 0, 1]


def test_priority_breaks_ties_by_op_index(run: Run) -> None:
    trace = run(problem_of(graph_of([1, 1, 1], []), hub(1)), [0, 0, 0])
    assert trace.op_start_s.tolist() == [0, 1, 2]


def test_remaining_paths_count_the_fastest_allowed_device(run: Run) -> None:
    """b may only run on the slow CPU (9 s), c anywhere (3 s at best): remaining a 2, b 9, c 3, so the CPU runs b, c, a.

    By their times on the CPU the order would be c 30, a 20, b 9; by the fastest of all devices c 3, a 2, b 1.
    """
    slow = DeviceSpec("slow", "cpu", 100, {"float32": 1.0}, 1.0)
    fast = DeviceSpec("fast", "gpu", 100, {"float32": 1.0}, 1.0)
    times = {"a": (20.0, 2.0), "b": (9.0, 1.0), "c": (30.0, 3.0)}
    ops = [OpRecord(n, "add", time_s={"slow": s, "fast": f}) for n, (s, f) in times.items()]
    ops[B].allowed_kinds = ["cpu"]
    devices = (Device("cpu:0", slow), Device("gpu:0", fast))
    cluster = Cluster("mixed", devices, (Link("cpu:0", "gpu:0", 1.0, 0.0),))
    trace = run(problem_of(build("kinds", ops, []), cluster), [0, 0, 0])
    assert trace.op_start_s.tolist() == [39, 0, 9]


def test_fifo_runs_what_became_ready_first(run: Run) -> None:
    """gpu:0's a ends at 2, making c and e ready; d is ready at 1.5, when gpu:1's b has sent its byte at 2 bytes/s."""
    graph = graph_of([2, 1, 1, 1, 1], [(A, 1, [C, E]), (B, 1, [D])])
    trace = run(problem_of(graph, hub(2, bytes_per_s=2.0), "fifo"), [0, 1, 0, 0, 0])
    assert sent(trace) == [(1, 1, 0, 1, 1.5)]
    assert trace.op_start_s.tolist() == [0, 0, 3, 2, 4]


def test_fifo_counts_rounds_of_one_instant_as_the_same_time(run: Run) -> None:
    """b (no time) ends at 1 and makes c ready in a later round than d, but at the same instant: c's index is smaller.

    a runs 0 to 1 on gpu:1 and makes b and d ready at 1. gpu:1 starts b; gpu:0 is busy with e until 3. b ends at 1 and
    makes c ready. At 3 gpu:0 takes c before d.
    """
    graph = graph_of([1, 0, 1, 1, 3], [(A, 0, [B, D]), (B, 0, [C])])
    trace = run(problem_of(graph, hub(2), "fifo"), [1, 1, 0, 0, 0])
    assert trace.op_start_s.tolist() == [0, 1, 3, 4, 0]


def test_program_order_waits_for_the_next_op(run: Run) -> None:
    """gpu:0 must run b before c, and b waits for a (0 to 2 on gpu:1) and its byte (2 to 3), though c is ready."""
    trace = run(problem_of(graph_of([2, 1, 5], [(A, 1, [B])]), hub(2), "program_order"), [1, 0, 0])
    assert trace.op_start_s.tolist() == [0, 3, 4]


def test_a_link_direction_serves_one_transfer_at_a_time(run: Run) -> None:
    """a and b end at 1 and send 2 and 3 bytes to gpu:2: the direction into gpu:2 is taken 1 to 3, then 3 to 6."""
    graph = graph_of([1, 1, 1, 1], [(A, 2, [C]), (B, 3, [D])])
    trace = run(problem_of(graph, hub(3)), [0, 1, 2, 2])
    assert sent(trace) == [(0, 0, 2, 1, 3), (1, 1, 2, 3, 6)]
    assert trace.op_start_s[[C, D]].tolist() == [3, 6]


def test_links_are_full_duplex(run: Run) -> None:
    """gpu:0 and gpu:1 send to each other at once, over the same two links."""
    graph = graph_of([1, 1, 1, 1], [(A, 2, [C]), (B, 2, [D])])
    trace = run(problem_of(graph, hub(2)), [0, 1, 1, 0])
    assert sent(trace) == [(0, 0, 1, 1, 3), (1, 1, 0, 1, 3)]


def test_a_route_is_reserved_whole_and_gaps_are_not_filled(run: Run) -> None:
    """In a row, a sends 3 bytes 0 -> 1 (1 to 4). b's byte 0 -> 2 needs that link too, so it takes both 4 to 5.

    c ends at 2 and sends a byte 1 -> 2. That link idles 1 to 4 but is promised 4 to 5, so c's byte goes 5 to 6.
    """
    graph = graph_of([1, 0, 2, 1, 1, 1], [(A, 3, [D]), (B, 1, [E]), (C, 1, [F])])
    trace = run(problem_of(graph, line(3), "program_order"), [0, 0, 1, 1, 2, 2])
    assert sent(trace) == [(0, 0, 1, 1, 4), (1, 0, 2, 4, 5), (2, 1, 2, 5, 6)]


def test_a_tensor_goes_to_each_device_once_in_device_order(run: Run) -> None:
    """Readers b, d on gpu:2 and c on gpu:1: first to gpu:1 (1 to 3), then to gpu:2 (3 to 5), for both readers."""
    graph = graph_of([1, 1, 1, 1], [(A, 2, [B, C, D])])
    trace = run(problem_of(graph, hub(3)), [0, 2, 1, 2])
    assert sent(trace) == [(0, 0, 1, 1, 3), (0, 0, 2, 3, 5)]
    assert trace.op_start_s.tolist() == [0, 5, 3, 6]


def test_tensors_of_an_op_are_sent_in_their_order(run: Run) -> None:
    graph = graph_of([1, 1, 1], [(A, 4, [C]), (A, 1, [B])])
    trace = run(problem_of(graph, hub(2)), [0, 1, 1])
    assert sent(trace) == [(0, 0, 1, 1, 5), (1, 0, 1, 5, 6)]
    assert trace.op_start_s.tolist() == [0, 6, 5]


def test_a_tensor_of_no_bytes_still_takes_the_latency(run: Run) -> None:
    trace = run(problem_of(graph_of([1, 1], [(A, 0, [B])]), hub(2, latency_s=0.25)), [0, 1])
    assert sent(trace) == [(0, 0, 1, 1, 1.5)]
    # Without latency it arrives in the round in which it leaves, and b starts at the same instant.
    trace = run(problem_of(graph_of([1, 1], [(A, 0, [B])]), hub(2)), [0, 1])
    assert trace.op_start_s.tolist() == [0, 1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_given_seconds_replace_latency_and_bytes_on_any_route(run: Run, schedule: str) -> None:
    """gpu:0 to gpu:2 crosses two links of 1 s each: by bytes 2 + 8 = 10 s; the second tensor takes 0.5 s instead.

    Both keep the link from gpu:0 busy meanwhile, and each holds its 8 bytes where it is and where it goes.
    """
    graph = timed(graph_of([1, 1], [(A, 8, [B]), (A, 8, [B])]), {1: 0.5})
    trace = run(problem_of(graph, line(3, latency_s=1.0), schedule), [0, 2])
    assert sent(trace) == [(0, 0, 2, 1, 11), (1, 0, 2, 11, 11.5)]
    assert trace.peak_memory_bytes.tolist() == [16, 0, 16]
    free = run(problem_of(timed(graph, {0: 0.0, 1: 0.0}), line(3, latency_s=1.0), schedule), [0, 2])
    assert free.op_start_s.tolist() == [0, 1]


def test_ops_that_end_together_reserve_by_op_index(run: Run) -> None:
    """b on gpu:0 and a on gpu:1 end at 1: a reserves first, though its device comes later."""
    graph = graph_of([1, 1, 1, 1], [(A, 2, [C]), (B, 2, [D])])
    assert sent(run(problem_of(graph, hub(3)), [1, 0, 2, 2])) == [(0, 1, 2, 1, 3), (1, 0, 2, 3, 5)]


def test_an_earlier_round_reserves_before_a_smaller_index(run: Run) -> None:
    """c ends at 1 in the first round; b takes no time, starts in that round and ends in the second, at 1 too."""
    graph = graph_of([1, 0, 1, 1, 1], [(B, 2, [D]), (C, 2, [E])])
    trace = run(problem_of(graph, hub(3), "program_order"), [0, 0, 1, 2, 2])
    assert sent(trace) == [(1, 1, 2, 1, 3), (0, 0, 2, 3, 5)]


def test_a_tensor_lives_from_its_producers_start_to_its_last_use(run: Run) -> None:
    """a (0 to 1) makes 5 bytes for b (1 to 2) and c (2 to 3), b makes 3 for c: 5, then 8, then none."""
    trace = run(problem_of(graph_of([1, 1, 1], [(A, 5, [B, C]), (B, 3, [C])]), hub(1)), [0, 0, 0])
    assert memory(trace, 0) == [(0, 5), (1, 8), (3, 0)]
    assert trace.peak_memory_bytes.tolist() == [8]


def test_what_ends_makes_room_for_what_starts(run: Run) -> None:
    """a's 5 bytes die with b at 2, when c's 7 are born: never 12. d reads nothing and has no bytes."""
    trace = run(problem_of(graph_of([1, 1, 1], [(A, 5, [B]), (C, 7, [])]), hub(1), "program_order"), [0, 0, 0])
    assert memory(trace, 0) == [(0, 5), (2, 7), (3, 0)]
    assert trace.peak_memory_bytes.tolist() == [7]


def test_departures_keep_a_tensor_and_copies_live_from_the_transfers_start(run: Run) -> None:
    """a's 2 bytes leave 1 to 3 for gpu:1 and 3 to 5 for gpu:2: at home until 5. b reads gpu:1's copy 3 to 4."""
    graph = graph_of([1, 1, 1], [(A, 2, [B, C])])
    trace = run(problem_of(graph, hub(3)), [0, 1, 2])
    assert memory(trace, 0) == [(0, 2), (5, 0)]
    assert memory(trace, 1) == [(0, 0), (1, 2), (4, 0)]
    assert memory(trace, 2) == [(0, 0), (3, 2), (6, 0)]


def test_residents_stay_and_only_their_copies_take_more(run: Run) -> None:
    """a keeps 10 bytes on gpu:0 whatever happens; the copy for b (sent 0 to 10, read 10 to 11) takes 10 on gpu:1."""
    graph = graph_of([0, 1, 1], [(A, 10, [B, C])], resident={A: 10}, resident_tensors=(0,))
    trace = run(problem_of(graph, hub(2)), [0, 1, 0])
    assert memory(trace, 0) == [(0, 10)]
    assert memory(trace, 1) == [(0, 10), (11, 0)]
    assert trace.peak_memory_bytes.tolist() == [10, 10]


def test_a_life_of_no_length_takes_no_room(run: Run) -> None:
    """a and b take no time: a's 99 bytes live from 0 to 0. The step takes no time, so residents are the peak."""
    trace = run(problem_of(graph_of([0, 0], [(A, 99, [B])], resident={B: 4}), hub(1)), [0, 0])
    assert trace.step_time_s == 0
    assert memory(trace, 0) == [(0, 4)]
    assert trace.peak_memory_bytes.tolist() == [4]


def test_a_placement_is_infeasible_where_memory_or_kinds_forbid_it() -> None:
    """a's 5 bytes and b's 4 residents do not fit 8 bytes together, though apart; c may not be on a GPU."""
    small = DeviceSpec("unit", "gpu", 8, {"float32": 1.0}, 1.0)
    devices = (Device("gpu:0", small), Device("gpu:1", small))
    cluster = Cluster("small", devices, (Link("gpu:0", "gpu:1", 1.0, 0.0),))
    problem = problem_of(graph_of([1, 1], [(A, 5, [])], resident={B: 4}), cluster)
    evaluation = problem.evaluate(np.array([[0, 0], [0, 1]]))
    assert evaluation.peak_memory_bytes.tolist() == [[9, 0], [5, 4]]
    assert evaluation.feasible.tolist() == [False, True]
    assert evaluation.step_time_s.tolist() == [2, 1]

    xeon = DeviceSpec("xeon", "cpu", 8, {"float32": 1.0}, 1.0)
    cluster = Cluster("mixed", (Device("cpu:0", xeon), devices[0]), (Link("cpu:0", "gpu:0", 1.0, 0.0),))
    graph = build("kinds", [OpRecord("c", "add", allowed_kinds=["cpu"], time_s={"xeon": 3.0, "unit": 1.0})], [])
    evaluation = PlacementProblem(graph, one_group_an_op(graph), cluster).evaluate(np.array([[0], [1]]))
    assert evaluation.feasible.tolist() == [True, False]
    assert evaluation.step_time_s.tolist() == [3, 1]


@pytest.mark.parametrize("schedule", ["priority", "fifo", "program_order"])
def test_golden_traces(schedule: str, tmp_path: Path) -> None:
    """Weights, two inputs that each fan out to three ops, and a way back, on three devices in a row.

    Regenerate after a wanted change: copy the file that the failure names over the golden one, and say why.
    """
    weights, left, right, *wide = range(9)
    graph = graph_of(
        [0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 0.5, 3.0, 1.0, 0.25, 4.0, 0.125],
        [
            (weights, 4, [*wide, 11]),
            (left, 2, wide[:3]),
            (right, 2, wide[3:]),
            *((op, size, [9 + op % 2]) for op, size in zip(wide, (3, 1, 0, 2, 5, 1), strict=True)),
            (9, 4, [11]),
            (10, 4, [11]),
        ],
        resident={weights: 12},
        resident_tensors=(0,),
    )
    problem = problem_of(graph, line(3, bytes_per_s=4.0, latency_s=0.125), schedule)
    placement = np.array([1, 1, 2, 2, 1, 1, 1, 2, 0, 2, 2, 0])  # the schedules take 11.75, 10.75 and 11.375 s
    made = tmp_path / f"trace_{schedule}.json"
    write_chrome_trace(made, problem.trace(placement), problem.graph, problem.cluster)
    golden = GOLDEN / made.name
    assert json.loads(made.read_bytes()) == json.loads(golden.read_bytes()), f"{made} differs from {golden}"
