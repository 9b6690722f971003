"""Measuring on the machines of workers: one at a time on each, and only on machines that are alike."""

from __future__ import annotations

import itertools
import json
import platform
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import placement
from envs.measured.machine import RealDevice, usable_cores
from envs.measured.protocol import Failed, Measured
from graphs.errors import InputError
from placement.runs.measure_jobs import HostsMeasure, OnHost, lease
from placement.workers import Done, Job, Shared, open_workers

CORE = f"cpu:{usable_cores()[0]}"


class Pretended:
    """Workers on machines that are not there."""

    is_here = False

    def __init__(self, *kinds: str) -> None:
        self.count = len(kinds)
        self.kinds = itertools.cycle(enumerate(kinds))
        self.jobs: list[Job] = []

    def hosts(self) -> list[str]:
        return []

    def load_first(self, function: str, argument: str) -> None:
        pass

    def share(self, content: bytes, decoder: str) -> Shared:
        return Shared("0", decoder)

    def forget(self, shared: Shared) -> None:
        pass

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        for job in jobs:
            self.jobs.append(job)
            number, kind = next(self.kinds)
            version = job.arguments.get("version", 0)
            reply = Measured([0.1 * number], [0]) if number % 2 else Failed("no")
            yield Done(job.key, OnHost(f"host{number}", kind, version, reply))


def hosts_of(workers: Any) -> HostsMeasure:
    return HostsMeasure(workers, "rnnlm", "0" * 64, [RealDevice(CORE, "cpu", (0,))], np.zeros(3))


def test_machines_of_one_kind_measure_and_others_are_refused() -> None:
    alike = hosts_of(Pretended("a\nb", "a\nb"))
    alike.start()
    assert alike.hosts == {"host0", "host1"}
    mixed = hosts_of(Pretended("cpu x\nlinux", "cpu y\nlinux"))
    with pytest.raises(InputError, match=r"machines of different kinds, 'host0' and 'host1', .* \(cpu x and cpu y\)"):
        mixed.start()


def test_one_device_of_all_cores_is_measured_on_the_same_machines() -> None:
    workers = Pretended("a", "a")
    hosts = hosts_of(workers)
    hosts.start()
    wide = hosts.on_devices([RealDevice("cpu:0-1", "cpu", (0, 1))])
    assert [host for _, _, host, _ in wide.measure_many([np.zeros(3, int)], schedule="fifo", time_limit_s=7.0)] == [
        "host0"
    ]
    assert workers.jobs[-1].shared is not None
    workers.kinds = iter([(2, "b")])  # type: ignore[assignment]
    with pytest.raises(InputError, match="machines of different kinds"):
        list(wide.measure_many([np.zeros(3, int)], schedule="fifo", time_limit_s=7.0))


def test_each_result_says_which_policy_and_which_machine_it_is_of() -> None:
    workers = Pretended("a", "a", "a")
    hosts = hosts_of(workers)
    placements = [np.full(3, i) for i in range(5)]
    done = list(hosts.measure_many(placements, schedule="fifo", time_limit_s=7.0, version=3))
    assert [(number, host, version) for number, _, host, version in done] == [(i, f"host{i % 3}", 3) for i in range(5)]
    assert all(job.time_limit_s is not None and job.time_limit_s > 7.0 for job in workers.jobs)
    begun = len(workers.jobs)
    few = hosts.measure_many(
        placements, schedule="fifo", time_limit_s=7.0, is_over=lambda: len(workers.jobs) >= begun + 2
    )
    assert [number for number, *_ in few] == [0, 1]


def test_one_process_at_a_time_has_a_machine(tmp_path: Path) -> None:
    with open_workers(3, packages=("tests",)) as workers:
        jobs = [
            Job(str(x), "tests.placement.workers.jobs:hold_lease", {"folder": str(tmp_path), "x": x}) for x in range(9)
        ]
        assert len(list(workers.run(jobs))) == 9
    spans = sorted(tuple(map(int, path.read_text().split())) for path in tmp_path.iterdir())
    assert len(spans) == 9
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_who_waits_too_long_for_a_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with lease(1.0), pytest.raises(InputError, match="another process measures on"), lease(0.05):
        pass


@pytest.mark.slow
@pytest.mark.skipif(len(usable_cores()) < 2, reason="two devices are needed")
@pytest.mark.parametrize("screen", [False, True])
def test_a_training_learns_from_what_workers_measure(tmp_path: Path, screen: bool) -> None:
    cores = usable_cores()
    run = placement.train_measured(
        "rnnlm:layers=1,hidden=32,steps=4,batch=4,vocabulary=50",
        f"cpu:{cores[0]},cpu:{cores[1]}",
        time_limit_s=20.0,
        groups=12,
        screen=screen,
        out=tmp_path / "run",
        plain="none",
        workers=2,
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "measurements.jsonl").read_text().splitlines()]
    assert len(lines) == run.measured >= 4
    assert {line["host"] for line in lines} == {platform.node()}
    updates = [line.get("update", 0) for line in lines]
    assert updates == sorted(updates)
    assert updates[0] == 0
    assert {line["placer"] for line in lines} >= {"again", f"single_device:cpu:{cores[0]}"}
    assert not any(line["reason"] for line in lines)
    assert run.result.feasible
