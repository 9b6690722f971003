"""The measured problem: what it answers, and that no placement can take the program down or outlive it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from envs.measured.child import failure_reason
from envs.measured.machine import parse_devices
from envs.measured.problem import (
    MeasuredProblem,
    Measurement,
    interquartile_mean,
    machine_cluster,
    measured,
)
from graphs.errors import InputError
from graphs.sources import load_graph, load_model
from tests.envs.measured.faulty_problems import SOURCE, alive, faulty_problem, placements
from tests.envs.measured.measured_problems import NAMES, two_cores
from tests.forked import Popen

ROOT = Path(__file__).resolve().parents[3]


@two_cores
def test_it_answers_as_the_simulated_problem() -> None:
    seen: list[Measurement] = []
    with faulty_problem() as problem:
        problem.measurer.on_measure = lambda ops, schedule, measurement: seen.append(measurement)
        rows = np.stack([*placements(problem), placements(problem)[0]])
        evaluation = problem.evaluate(rows)
        assert evaluation.feasible.all()
        assert (evaluation.step_time_s > 0).all()
        assert evaluation.peak_memory_bytes.shape == (3, 2)
        assert evaluation.peak_memory_bytes[1, 1] > 0
        assert evaluation.step_time_s[0] == evaluation.step_time_s[2]  # measured once
        assert (len(seen), problem.measurer.count, problem.measurer.failures) == (2, 2, 0)
        assert len(seen[0].step_times_s) == 3
        assert problem.with_schedule("fifo").evaluate(rows[:1]).feasible.all()
        assert problem.measurer.count == 3
        simulated = problem.simulated.evaluate(rows)
        assert not isinstance(problem.simulated, MeasuredProblem)
        assert np.array_equal(simulated.step_time_s, problem.simulated.evaluate(rows).step_time_s)
        process_id = problem.measurer.process.process_id
        assert process_id is not None
        assert alive(process_id)
    assert not alive(process_id)
    with pytest.raises(InputError, match="closed"):
        problem.with_schedule("program_order").evaluate(rows)


@two_cores
@pytest.mark.parametrize(
    ("how", "reason", "starts"),
    [
        ("raise", f"failed on device '{NAMES[-1]}': ValueError: it is broken", 1),
        ("hang", f"device '{NAMES[-1]}' was in op 'middle/measured_tests.faulty_0'", 2),
        ("kill", "the measuring process was killed by SIGKILL", 2),
    ],
)
def test_a_worker_that_fails_is_infeasible_and_measuring_goes_on(
    monkeypatch: pytest.MonkeyPatch, how: str, reason: str, starts: int
) -> None:
    monkeypatch.setenv("FAULTY_DEVICE", NAMES[1])
    monkeypatch.setenv("FAULTY_HOW", how)
    limit_s = 3.0
    with faulty_problem(limit_s) as problem:
        good, bad = placements(problem)
        found: list[Measurement] = []
        problem.measurer.on_measure = lambda ops, schedule, measurement: found.append(measurement)
        problem.measurer.process.start()
        first = problem.measurer.process.process_id
        began_s = time.monotonic()
        evaluation = problem.evaluate(bad[None])
        assert time.monotonic() - began_s < limit_s + 60  # the time that a busy machine takes to end a process
        assert not evaluation.feasible[0]
        assert evaluation.step_time_s[0] == limit_s == problem.failing_s
        assert reason in found[0].reason
        assert problem.measurer.failures == 1
        assert problem.evaluate(good[None]).feasible[0]
        assert problem.measurer.process.starts == starts
        assert first is not None
        assert alive(first) == (starts == 1)


@two_cores
@pytest.mark.parametrize(
    ("how", "reason", "feasible"),
    [
        ("segfault", "killed by SIGSEGV", False),
        ("hold", "it was not done after 3 s", False),
        ("flood", "ValueError: after much ado", False),
        ("fork", "", True),
        ("fork_session", "", True),
        ("fork_and_die", "killed by SIGKILL", False),
    ],
)
def test_nothing_that_an_op_does_outlives_the_measurements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, reason: str, feasible: bool
) -> None:
    forked = tmp_path / "forked"
    forked.touch()
    monkeypatch.setenv("FAULTY_DEVICE", NAMES[1])
    monkeypatch.setenv("FAULTY_HOW", how)
    monkeypatch.setenv("FAULTY_FILE", str(forked))
    with faulty_problem(3.0 if how == "hold" else 600.0) as problem:
        found: list[Measurement] = []
        problem.measurer.on_measure = lambda ops, schedule, what: found.append(what)
        good, bad = placements(problem)
        problem.measurer.process.start()
        began_s = time.monotonic()
        assert problem.evaluate(bad[None]).feasible[0] == feasible
        assert reason in found[0].reason
        assert time.monotonic() - began_s < 300  # and not the whole time limit, though what was forked holds the pipe
        assert problem.evaluate(good[None]).feasible[0]
    processes = [int(line) for line in forked.read_text().split()]
    assert bool(processes) == how.startswith("fork")
    for _ in range(50):
        if not any(map(alive, processes)):
            break
        time.sleep(0.1)
    assert not any(map(alive, processes))


@two_cores
def test_a_process_that_started_in_a_thread_goes_on_when_the_thread_has_ended() -> None:
    with faulty_problem() as problem:
        good, _ = placements(problem)
        thread = threading.Thread(target=problem.measurer.process.start)
        thread.start()
        thread.join()
        time.sleep(0.3)
        assert problem.evaluate(good[None]).feasible[0]
        assert problem.measurer.process.starts == 1


def test_a_placement_that_is_not_allowed_is_not_run() -> None:
    problem = faulty_problem()
    rows = np.ones((1, problem.num_groups), dtype=np.int64) * (problem.num_devices - 1)
    if problem.num_devices > 1:
        evaluation = problem.evaluate(rows)  # the inputs start on the first device
        assert not evaluation.feasible[0]
        assert problem.measurer.process.starts == 0
    problem.close()


@two_cores
@pytest.mark.parametrize("how", ["", "hold", "fork"])
def test_nothing_outlives_a_program_that_is_killed(tmp_path: Path, how: str) -> None:
    """Also where an op holds the interpreter, so that nobody hears the end of the pipe, or has forked."""
    forked = tmp_path / "forked"
    forked.touch()
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import time
        import tests.envs.measured.faulty_problems as t
        problem = t.faulty_problem()
        print(problem.evaluate(t.placements(problem)[0][None]).feasible[0], flush=True)
        print(problem.measurer.process.process_id, flush=True)
        problem.evaluate(t.placements(problem)[1][None])
        time.sleep(100)
        """)
    )
    faults = {"FAULTY_DEVICE": NAMES[1] if how else "", "FAULTY_HOW": how, "FAULTY_FILE": str(forked)}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **faults}
    with Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "True\n"
        measuring = int(program.stdout.readline())
        assert alive(measuring)
        for _ in range(100 if how == "fork" else 10):
            time.sleep(0.1)
            if forked.read_text():
                break
        program.send_signal(signal.SIGKILL)
    started = [measuring, *map(int, forked.read_text().split())]
    assert (len(started) > 1) == (how == "fork")
    for _ in range(100):
        if not any(map(alive, started)):
            break
        time.sleep(0.1)
    assert not any(map(alive, started))


def test_the_middle_half_counts() -> None:
    assert interquartile_mean((1.0, 2.0, 3.0, 100.0)) == 2.5
    assert interquartile_mean((5.0,)) == 5.0
    assert np.isnan(interquartile_mean(()))
    assert Measurement((1.0, 2.0, 3.0, 4.0, 5.0), (0,)).spread_s == 2.0
    assert np.isnan(Measurement((), (0,), "broken").spread_s)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no devices are given; write for example cpu:0,cpu:1"),
        ("gpu:0", "'gpu:0' is no device of a machine; write cpu:0 for a core"),
        ("cpu:0,cpu:0-1", "devices 'cpu:0' and 'cpu:0-1' both have core 0"),
        ("cuda:0,cuda:0", "devices 'cuda:0' and 'cuda:0' both have 'cuda:0'"),
        ("cpu:3-2", "device 'cpu:3-2' has its cores backwards; write cpu:2-3"),
        ("cpu:9999", "device 'cpu:9999': this process may not use core 9999, only 0"),
    ],
)
def test_devices_that_there_are_not(monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setattr("envs.measured.machine.usable_cores", lambda: (0, 1))
    with pytest.raises(InputError) as error:
        parse_devices(text)
    assert message in str(error.value)


def test_sets_of_cores_are_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.measured.machine.usable_cores", lambda: tuple(range(8)))
    devices = parse_devices("cpu:0-2,cpu:3,cuda:1")
    assert [(d.name, d.kind, d.cores, d.index) for d in devices] == [
        ("cpu:0-2", "cpu", (0, 1, 2), 0),
        ("cpu:3", "cpu", (3,), 0),
        ("cuda:1", "cuda", (), 1),
    ]
    cluster = machine_cluster(devices, memory_bytes=10_000_000_000)
    assert cluster.device_names == ("cpu:0-2", "cpu:3", "cuda:1")
    assert [d.spec.kind for d in cluster.devices] == ["cpu", "cpu", "gpu"]
    assert cluster.memory_bytes[:2].tolist() == [5_000_000_000] * 2
    assert cluster.devices[0].spec.rate_flops_per_s("float32") == 3 * cluster.devices[1].spec.rate_flops_per_s(
        "float32"
    )


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    problem = faulty_problem().simulated
    with pytest.raises(InputError, match="give the same names in the same order"):
        measured(problem, SOURCE, "cpu:0" if problem.num_devices > 1 else "cuda:0")
    with pytest.raises(InputError, match="must be positive"):
        measured(problem, SOURCE, parse_devices(NAMES), time_limit_s=0)
    other = measured(problem, "rnnlm:hidden=8,steps=2,vocabulary=20,batch=2", parse_devices(NAMES))
    with other, pytest.raises(InputError, match="gives another graph"):
        other.evaluate(placements(problem)[0][None])
    with pytest.raises(InputError, match="is a file, which describes a step but cannot be run"):
        load_model("model.graph.json")


def test_a_model_is_loaded_with_its_weights_and_the_same_each_time() -> None:
    spec = "rnnlm:hidden=8,steps=2,vocabulary=20,batch=2"
    one, two = load_model(spec), load_model(spec)
    assert one["name"] == load_graph(spec).name
    for first, second in zip(one["model"].parameters(), two["model"].parameters(), strict=True):
        assert not first.is_meta
        assert np.array_equal(first.detach().numpy(), second.detach().numpy())


@pytest.mark.parametrize(
    "text",
    ["CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory: 9", "MemoryError"],
)
def test_memory_that_is_short_is_called_so(text: str) -> None:
    assert failure_reason(RuntimeError(text)).startswith("out of memory: ")
    assert failure_reason(RuntimeError("something else")) == "something else"


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, envs, envs.measured.problem; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
