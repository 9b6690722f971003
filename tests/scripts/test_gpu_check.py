"""The checks that need a GPU, their logic run on two cores with a stand-in for the calls of CUDA."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from envs.measured.engine import Engine, Step
from envs.measured.machine import parse_devices
from envs.measured.problem import machine_cluster
from graphs.errors import InputError
from scripts import gpu_check
from tests import forked
from tests.envs.measured.measured_problems import NAMES, two_cores

TINY = "rnnlm:steps=2,hidden=16,vocabulary=20,batch=2,optimizer=sgd"


class StandIn:
    """Two cores in place of a core and a GPU."""

    host, gpu, streams = NAMES[0], NAMES[-1], (NAMES[0], NAMES[-1])

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limited = False
        self.peak = 0
        step, empty = Engine.step, torch.empty_strided

        def watched(engine: Engine, *args: Any, **named: Any) -> Step:
            found = step(engine, *args, **named)
            self.peak = max(self.peak, int(found.peak_memory_bytes.max()))
            return found

        def allocate(*args: Any, **named: Any) -> torch.Tensor:
            if self.limited:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return empty(*args, **named)

        monkeypatch.setattr(Engine, "step", watched)
        monkeypatch.setattr(torch, "empty_strided", allocate)

    def describe(self) -> str:
        return "a stand-in"

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    def reset_peak(self) -> int:
        self.peak = 0
        return 0

    def peak_bytes(self) -> int:
        return self.peak

    def limit(self, size: int | None) -> None:
        self.limited = size is not None

    def overlap(self) -> tuple[float, float, float]:
        return 1.0, 0.5, 1.1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Small sizes."""
    monkeypatch.setattr(gpu_check, "SMALL", {"rnnlm": TINY})
    monkeypatch.setattr(gpu_check, "LARGE", TINY)
    monkeypatch.setattr(gpu_check, "FIDELITY", TINY)
    monkeypatch.setattr(gpu_check, "_PLACEMENTS", 3)
    monkeypatch.setattr(gpu_check, "_LEARN_S", 0.5)
    return StandIn(monkeypatch)


def _run(machine: StandIn, out: Path, limit_s: float) -> dict[str, list[gpu_check.CheckRow]]:
    return gpu_check.run_checks(machine, out, until_s=time.monotonic() + limit_s, console=Console(quiet=True))


@pytest.mark.slow
@two_cores
def test_all_checks_are_made_once_and_written_down(
    small: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(small, tmp_path, -1.0) == {}
    assert "| memory | not done |" in (tmp_path / "table.md").read_text()
    done = _run(small, tmp_path, 600.0)
    assert list(done) == list(gpu_check.CHECKS)
    rows = {f"{name}: {row.what}": row for name, rows in done.items() for row in rows}
    judged = {what: row for what, row in rows.items() if not what.startswith("fidelity")}  # on a busy machine
    assert {what: row.found for what, row in judged.items() if not row.ok} == {}
    assert [len(done[name]) for name in ("results", "streams", "memory", "out of memory")] == [3, 2, 2, 2]
    assert rows["out of memory: a step that does not fit"].found.startswith("out of memory: ")
    assert {row.wanted for what, row in rows.items() if what.startswith("fidelity")} == {"<= 10%", ">= 0.9"}
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n") == 4 + sum(map(len, done.values()))
    assert "not done" not in table

    def refuse(*_: object) -> None:
        raise AssertionError("it was made again")

    monkeypatch.setattr(gpu_check, "CHECKS", dict.fromkeys(gpu_check.CHECKS, refuse))
    assert _run(small, tmp_path, 600.0) == done
    gpu_check.show(done, Console(quiet=True))


def test_a_check_that_raises_or_finds_otherwise_fails(
    small: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> list[gpu_check.CheckRow]:
        raise ValueError("no such stream")

    def too_short(*_: object) -> None:
        return None

    monkeypatch.setattr(gpu_check, "CHECKS", {"one": breaks, "two": too_short})
    done = _run(small, tmp_path, 60.0)
    (row,) = done["one"]
    assert (row.ok, row.found) == (False, "ValueError: no such stream")
    assert "two" not in done
    assert (
        "| one | the check itself | ValueError: no such stream | no error | **no** |"
        in (tmp_path / "table.md").read_text()
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    script = Path(gpu_check.__file__)
    found = forked.run([sys.executable, str(script)])
    assert found.returncode == 2
    assert "there is no GPU that PyTorch can use here" in found.stderr
    assert "Traceback" not in found.stderr


def test_streams_of_a_gpu_are_devices() -> None:
    devices = parse_devices("cpu:" + NAMES[0].removeprefix("cpu:") + ",cuda:1.0,cuda:1.1,cuda:0")
    assert [(d.name, d.kind, d.index) for d in devices[1:]] == [
        ("cuda:1.0", "cuda", 1),
        ("cuda:1.1", "cuda", 1),
        ("cuda:0", "cuda", 0),
    ]
    memory = [device.spec.memory_bytes for device in machine_cluster(devices).devices]
    assert memory[1] == memory[2] == memory[3] // 2
    with pytest.raises(InputError, match=r"'cuda:1\.0' is a stream of 'cuda:1', which is there, too"):
        parse_devices("cuda:1.0,cuda:1")
    with pytest.raises(InputError, match="both have"):
        parse_devices("cuda:1.0,cuda:1.0")
