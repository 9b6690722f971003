"""Pipelines measured on the machines of workers, by `torchrun` on each: two workers stand for two machines."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import pytest

import placement
from graphs.errors import InputError
from placement.cli.main import main
from placement.exports.stages import encode_stages
from placement.pipelines import on_hosts
from placement.pipelines.on_hosts import OnHost, _found, run_pipeline
from placement.pipelines.timing import TIMES, Said
from placement.workers import Done, Job, open_workers
from tests.placement.pipelines.measured_models import STAGES

MODELS = "python:tests.placement.pipelines.measured_models"


def left_behind() -> list[str]:
    """Processes of a pipeline that are still there after a while."""
    until = time.monotonic() + 20.0
    while True:
        found = [
            " ".join(process.info["cmdline"])
            for process in psutil.process_iter(["cmdline"])
            if "placement.pipelines.timing" in (process.info["cmdline"] or [])
        ]
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["1", "2", "3", "ray:2"])
def test_the_steps_of_a_pipeline_are_measured(spec: str) -> None:
    """On one machine, on two, and where one more has nothing to do."""
    found = placement.run_pipeline(f"{MODELS}:make", STAGES, workers=spec, steps=4, version=3)
    assert len(found.step_times_s) == 4
    assert 0.0 < min(found.step_times_s) <= found.step_time_s < 60.0
    assert found.hosts == (platform.node(),) * 2
    assert found.version == 3
    assert not left_behind()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("killed", "rank 1 was ended by signal 9"),
        ("stops", "rank 1 ended with status 7"),
        ("slips", "rank 1: ZeroDivisionError: a fault of the model"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_rank_that_dies_ends_the_pipeline_with_a_sentence(model: str, said: str, count: int) -> None:
    with pytest.raises(InputError, match=said) as raised:
        run_pipeline(f"{MODELS}:{model}", STAGES, workers=count)
    assert "\n" not in str(raised.value)
    assert not left_behind()


@pytest.mark.slow
def test_a_rank_that_hangs_is_ended_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_hosts, "START_LIMIT_S", 40.0)
    began = time.monotonic()
    with pytest.raises(InputError, match="has not ended within 42 s; give it more time, or fewer steps"):
        run_pipeline(f"{MODELS}:hangs", STAGES, workers=2, time_limit_s=2.0)
    assert time.monotonic() - began < 150.0
    assert not left_behind()


@pytest.mark.slow
def test_who_stops_waiting_leaves_no_process_behind() -> None:
    with open_workers(2) as workers:
        given = {
            "source": f"{MODELS}:hangs",
            "stages": encode_stages(STAGES),
            "steps": 1,
            "limit_s": 200.0,
            "nodes": 1,
            "node": 0,
            "meet": ("127.0.0.1", on_hosts.free_port()),
            "party": "one",
        }
        job = Job("ranks", "placement.pipelines.on_hosts:run_ranks", given)
        running = workers.run([job, Job("port", "placement.pipelines.on_hosts:free_port")])
        assert next(running).key == "port"
        until = time.monotonic() + 60.0
        while time.monotonic() < until and not any(
            "placement.pipelines.timing" in (process.info["cmdline"] or [])
            for process in psutil.process_iter(["cmdline"])
        ):
            time.sleep(0.2)
        running.close()  # type: ignore[attr-defined]
    assert not left_behind()


@dataclass
class Machines:
    """Workers on so many machines, whose jobs come to what is given."""

    found: list[OnHost]
    is_here: bool = False

    @property
    def count(self) -> int:
        return len(self.found)

    def hosts(self) -> list[str]:
        return [f"10.0.0.{i}" for i in range(self.count)]

    def run(self, jobs: list[Job]) -> list[Done]:
        self.jobs = jobs
        return [Done(job.key, self.found[job.arguments["node"]] if job.arguments else 4711) for job in reversed(jobs)]


def test_ranks_are_shared_out_among_machines_that_meet_at_the_first() -> None:
    machines = Machines([OnHost("a", (0.2, 0.1, 0.4)), OnHost("b")])
    found = run_pipeline(f"{MODELS}:make", STAGES, workers=machines, steps=3)  # type: ignore[arg-type]
    assert found.step_time_s == 0.2
    assert found.hosts == ("a", "b")
    assert [job.host for job in machines.jobs] == ["10.0.0.0", "10.0.0.1"]
    assert {job.arguments["meet"] for job in machines.jobs} == {("10.0.0.0", 4711)}
    assert all(job.time_limit_s is not None for job in machines.jobs)


def test_the_machine_that_knows_why_is_believed() -> None:
    lost = OnHost("a", said="rank 0 waited in vain", is_lost=True)
    machines = Machines([lost, OnHost("b", said="rank 1 was ended by signal 9; start it again")])
    with pytest.raises(InputError, match="could not be run on 'b': rank 1 was ended by signal 9"):
        run_pipeline(f"{MODELS}:make", STAGES, workers=machines)  # type: ignore[arg-type]


def test_ranks_that_cannot_be_shared_out_are_refused() -> None:
    plan = msgspec.structs.replace(STAGES, ranks=("cpu:0", "cpu:1", "cpu:2"))
    with pytest.raises(InputError, match="3 ranks, which 2 machines cannot share out evenly"):
        run_pipeline(f"{MODELS}:make", plan, workers=Machines([OnHost("a")] * 2))  # type: ignore[arg-type]


FAILURE = """
[0]:
  host      : here
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 10)
Root Cause (first observed failure):
[1]:
  host      : here
  rank      : 1 (local_rank: 1)
  exitcode  : {} (pid: 11)
"""


@pytest.mark.parametrize(
    ("code", "printed", "said", "expected", "is_lost"),
    [
        (1, FAILURE.format(-9), {0: Said("waited in vain", True)}, "rank 1 was ended by signal 9", False),
        (1, FAILURE.format(-15), {0: Said("waited in vain", True)}, "rank 0: waited in vain", True),
        (1, FAILURE.format(3), {0: Said("waited in vain", True)}, "rank 1 ended with status 3", False),
        (1, FAILURE.format(1), {0: Said("lost", True), 1: Said("no module 'x'")}, "rank 1: no module 'x'", False),
        (None, "", {}, "it has not ended within 9 s", False),
        (1, "first\nlast line\n", {}, "torchrun ended with status 1: last line", True),
    ],
)
def test_what_is_said_of_how_ranks_ended(
    tmp_path: Path, code: int | None, printed: str, said: dict[int, Said], expected: str, is_lost: bool
) -> None:
    (tmp_path / "printed").write_text(printed)
    for rank, one in said.items():
        (tmp_path / f"said-{rank}.json").write_bytes(msgspec.json.encode(one))
    found = _found(tmp_path, code, range(2), 9.0)
    assert found.said is not None
    assert found.said.startswith(expected)
    assert found.is_lost == is_lost
    (tmp_path / TIMES).write_text("[0.5, 1.0]")
    assert _found(tmp_path, 0, range(2), 9.0) == OnHost(platform.node(), (0.5, 1.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers", "none"], "workers 'none' is none of"),
        (["--devices", "cpu:0"], "--devices does not go with the stages of a pipeline"),
        (["--compile-regions"], "--compile-regions does not go with the stages of a pipeline"),
    ],
)
def test_what_does_not_go_with_stages(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], said: str
) -> None:
    (tmp_path / "stages.json").write_bytes(encode_stages(STAGES))
    for path in (tmp_path, tmp_path / "stages.json"):
        assert main(["run", f"{MODELS}:make", "--placement", str(path), *options]) == 2
        assert said in capsys.readouterr().err


def test_workers_are_for_the_stages_of_a_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "rnnlm", "--placement", "p.json", "--workers", "2"]) == 2
    assert "--workers is for the stages of a pipeline" in capsys.readouterr().err
