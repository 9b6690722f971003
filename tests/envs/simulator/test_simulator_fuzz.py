"""Extreme figures in the simulator's input: a sentence that names the culprit, or an answer that both versions give.

`tests/envs/test_fuzz.py` has malformed placements, files and clusters, and the odd shapes of graphs.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.cost_model import op_times_s
from envs.simulator.input import SCHEDULES, make_input
from envs.simulator.plain import simulate_plain
from envs.simulator.simulate import simulate
from graphs.computation_graph import OpRecord, TensorRecord, build
from graphs.errors import InputError
from tests.envs.simulator.simulator_problems import assert_same_trace, graph_of, hub, problem_of

BYTES = (0, 1, 10**9, 2**40, 2**61, 2**63 - 1)
SECONDS = (0.0, 5e-324, 1e-300, 1e-9, 1.0, 1e300, 1.7e308)
RATES = (5e-324, 1e-300, 1e-9, 1.0, 1e9, 1e300, 1.7e308)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_extreme_figures_give_a_sentence_or_a_right_answer(data: st.DataObject) -> None:
    pick = lambda values: data.draw(st.sampled_from(values))  # noqa: E731
    count, devices = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    try:
        spec = DeviceSpec("x", "gpu", pick(BYTES), {"float32": pick(RATES)}, pick(RATES), pick(SECONDS))
        ops = [
            OpRecord(f"op{i}", "mm", flops=pick(BYTES), bytes_accessed=pick(BYTES), batch=pick((0, 1, 33)))
            for i in range(count)
        ]
        for op in ops:
            op.resident_bytes = {"parameter": pick(BYTES)}
            op.time_s = {"x": pick(SECONDS)} if data.draw(st.booleans()) else {}
        tensors = [TensorRecord(i, pick(BYTES), list(range(i + 1, count))) for i in range(count)]
        made = tuple(Device(f"d{i}", spec) for i in range(devices))
        links = tuple(Link(d.name, "s", pick(RATES), pick(SECONDS)) for d in made)
        graph = build("extreme", ops, tensors)
        problem = problem_of(graph, Cluster("extreme", made, links, ("s",)), pick(SCHEDULES))
        placement = np.array([pick(range(devices)) for _ in range(count)])
        evaluation = problem.evaluate(placement[None])
    except InputError:
        return  # what the sentences say, the other tests check
    assert np.isfinite(evaluation.step_time_s).all()
    assert (evaluation.peak_memory_bytes >= 0).all()
    assert_same_trace(simulate(problem.simulator_input, placement), simulate_plain(problem.simulator_input, placement))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_an_op_time_that_is_no_time_names_the_op_and_the_device(bad: float) -> None:
    problem = problem_of(graph_of([1, 1], [(0, 1, [1])]), hub(2))
    times = op_times_s(problem.graph, problem.cluster.devices[0].spec)[None].copy()
    times[0, 1] = bad
    with pytest.raises(InputError, match=r"op 'b' would take .* s on device 'gpu:0'; op times must be finite"):
        make_input(problem.graph, problem.cluster, times, np.zeros(2, np.int32), problem.op_allowed, "fifo")


def test_a_step_too_long_or_too_large_to_count_names_the_culprit() -> None:
    with pytest.raises(InputError, match=r"op 'b' alone 1\.7e\+308 s"):
        problem_of(graph_of([1, 1.7e308, 1.7e308], []), hub(2)).evaluate(np.zeros((1, 3), int))
    with pytest.raises(InputError, match=r"too many for int64; the op with the most is 'a'"):
        problem_of(graph_of([1, 1], [(0, 2**62, [1])]), hub(2)).evaluate(np.zeros((1, 2), int))


def test_an_unknown_schedule_and_a_bound_that_is_no_number_are_refused() -> None:
    problem = problem_of(graph_of([1], []), hub(1))
    with pytest.raises(InputError, match=r"unknown schedule 'lifo' \(did you mean 'fifo'\?\)"):
        problem.with_schedule("lifo")
    with pytest.raises(InputError, match="abort_above_s is not a number"):
        problem.evaluate(np.array([[0]]), abort_above_s=np.nan)
