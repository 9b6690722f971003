"""Everything about measured steps that needs a GPU, in one command of at most six minutes, which goes on where it was.

    python scripts/gpu_check.py                       # on cpu:0 and cuda:0, and on two streams of cuda:0
    python scripts/gpu_check.py --out runs/gpu_check --time-limit-s 340

Each check gives rows: what was compared, what was found, what it must be, and whether it is. They are kept in
``checks.json`` of the ``--out`` folder as soon as they are there and not made again; ``table.md`` is the table. What
there was no time for is done when the command is given again. It exits with 1 where a row is not as it must be.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.utils._pytree import tree_leaves

from envs.make_problem import make_problem
from envs.measured.child import failure_reason
from envs.measured.engine import Engine
from envs.measured.machine import parse_devices
from envs.measured.plain import make_plain_step
from envs.measured.problem import machine_cluster
from graphs.capture import Program, batch_tensors, capture_program
from graphs.capture.state import named_state
from graphs.colocation.rules import colocate
from graphs.errors import InputError
from graphs.files import write_atomically
from graphs.sources import load_model
from placement.text import table
from scripts.fidelity import Workload, folder_name
from scripts.fidelity_study.report import row_of

SMALL = {
    "rnnlm": "rnnlm:steps=6,hidden=256,vocabulary=1000,batch=16,optimizer=sgd",
    "moe_lm": "moe_lm:experts=4,layers=2,hidden=128,heads=4,length=32,vocabulary=500,batch=4,optimizer=sgd",
    "inception_v3": "inception_v3:image=96,aux=0,batch=2,optimizer=sgd",
}
"""Whose results are compared; the last one convolves."""

LARGE = "rnnlm:steps=12,hidden=1024,vocabulary=8000,batch=64"
"""Whose memory is compared: some 300 MB on one device."""

FIDELITY = "nmt:steps=8,hidden=256,vocabulary=4000,batch=16"

_STEPS, _LIMIT_S, _TOLERANCE = 3, 60.0, 2e-3
_PLACEMENTS, _LEARN_S = 40, 4.0


class Machine(Protocol):
    """The calls of CUDA that the checks need, so that their logic can be run where there is no GPU.

    Attributes:
        host: Name of the device beside the GPU.
        gpu: Name of the GPU.
        streams: Names of two streams of it as devices.
    """

    host: str
    gpu: str
    streams: tuple[str, str]

    def describe(self) -> str:
        """The GPU and PyTorch in words."""

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor where it can be compared."""

    def reset_peak(self) -> int:
        """Begin to watch how much is allocated; returns what is now, in bytes."""

    def peak_bytes(self) -> int:
        """The most that was allocated since."""

    def limit(self, size: int | None) -> None:
        """Let allocations fail beyond so many bytes; None takes the limit away."""

    def overlap(self) -> tuple[float, float, float]:
        """Seconds of computing alone, of a copy from the host alone, and of both on two streams."""


class Cuda:
    """The first GPU, by PyTorch."""

    host, gpu, streams = "cpu:0", "cuda:0", ("cuda:0.0", "cuda:0.1")

    def describe(self) -> str:
        """The GPU and PyTorch in words."""
        return f"{torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}"

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the CPU."""
        return tensor.detach().cpu()

    def reset_peak(self) -> int:
        """What is allocated now, without what is kept for later."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())

    def peak_bytes(self) -> int:
        """The most since `reset_peak`."""
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())

    def limit(self, size: int | None) -> None:
        """By the share of the GPU's memory that PyTorch may have."""
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if size is None else min(size / total, 1.0))

    def overlap(self) -> tuple[float, float, float]:
        """Products of two matrices, and 256 MB of pinned memory."""
        left = torch.randn(4096, 4096, device="cuda")
        sent = torch.empty(64 << 20).pin_memory()
        computing, copying = torch.cuda.Stream(), torch.cuda.Stream()

        def run(*, computes: bool, copies: bool) -> float:
            torch.cuda.synchronize()
            began_s = time.perf_counter()
            if copies:
                with torch.cuda.stream(copying):
                    sent.to("cuda", non_blocking=True)
            if computes:
                with torch.cuda.stream(computing):
                    for _ in range(8):
                        torch.mm(left, left)
            torch.cuda.synchronize()
            return time.perf_counter() - began_s

        run(computes=True, copies=True)
        ways = ({"computes": True, "copies": False}, {"computes": False, "copies": True})
        alone = [min(run(**way) for _ in range(5)) for way in ways]
        return alone[0], alone[1], min(run(computes=True, copies=True) for _ in range(5))


class CheckRow(msgspec.Struct):
    """What one comparison came to: what was compared, what was found, what it must be, and whether it is."""

    what: str
    found: str
    wanted: str
    ok: bool


Check = Callable[[Machine, Path, float], list[CheckRow] | None]
"""A check, given the machine, a folder of its own and a time (`time.monotonic`) to end by; None if it was too short."""


def check_results(machine: Machine, folder: Path, until_s: float) -> list[CheckRow]:
    """Losses and weights after three steps, by the engine on different devices, and by eager PyTorch on the CPU."""
    rows = []
    for name, source in SMALL.items():
        for devices in (machine.gpu, f"{machine.host},{machine.gpu}", ",".join(machine.streams)):
            model, batch, options = _model(source)
            plain = make_plain_step(*_model(source)[:2], **options)
            wanted = [float(plain().detach()) for _ in range(_STEPS)]
            with _engine(model, batch, options, devices) as (engine, program):
                engine.place(_placements(program, len(devices.split(",")), 1, seed=1)[0])
                inputs = batch_tensors(batch, program.training)
                found = [engine.step(inputs, time_limit_s=_LIMIT_S).loss for _ in range(_STEPS)]
            losses = [float(machine.to_host(loss)) for loss in found if loss is not None]
            error = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(losses, wanted, strict=True))
            rows.append(
                CheckRow(
                    f"{name} on {devices}: losses of {_STEPS} steps against eager, relative",
                    f"{error:.1e}",
                    f"<= {_TOLERANCE:.0e}",
                    error <= _TOLERANCE,
                )
            )
    return rows


def check_streams(machine: Machine, folder: Path, until_s: float) -> list[CheckRow]:
    """Whether a copy overlaps computing, and the same results however often a step is run on two streams."""
    computing_s, copying_s, both_s = machine.overlap()
    hidden = (computing_s + copying_s - both_s) / max(min(computing_s, copying_s), 1e-9)
    rows = [CheckRow("share of a copy that is hidden behind computing", f"{hidden:.2f}", ">= 0.5", hidden >= 0.5)]
    model, batch, options = _model(SMALL["rnnlm"] + ",training=0")
    different = 0
    with _engine(model, batch, options, ",".join(machine.streams)) as (engine, program):
        inputs, first = batch_tensors(batch, program.training), None
        for placement in _placements(program, 2, 3, seed=2):
            engine.place(placement)
            for _ in range(_STEPS):
                output = engine.step(inputs, time_limit_s=_LIMIT_S).output
                found = [machine.to_host(leaf) for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
                first = found if first is None else first
                different += not all(
                    torch.allclose(one, two, rtol=_TOLERANCE, atol=1e-5) for one, two in zip(found, first, strict=True)
                )
    rows.append(CheckRow("steps on two streams that differ from the first, of 9", str(different), "0", different == 0))
    return rows


def check_memory(machine: Machine, folder: Path, until_s: float) -> list[CheckRow]:
    """Peak memory of a step on the GPU: counted by the engine and simulated, against what was allocated."""
    model, batch, options = _model(LARGE)
    before = machine.reset_peak()
    with _engine(model, batch, options, machine.gpu) as (engine, program):
        placement = np.zeros(program.graph.num_ops, dtype=np.int64)
        engine.place(placement)
        inputs = batch_tensors(batch, program.training)
        counted = max(int(engine.step(inputs, time_limit_s=_LIMIT_S).peak_memory_bytes[0]) for _ in range(_STEPS))
    allocated = machine.peak_bytes() - before
    problem = make_problem(program.graph, machine_cluster(parse_devices(machine.gpu)))
    simulated = int(problem.evaluate_ops(placement[None]).peak_memory_bytes[0, 0])
    rows = []
    for what, size in (("counted by the engine", counted), ("simulated", simulated)):
        ratio = size / max(allocated, 1)
        said = f"{ratio:.2f} ({size / 1e6:.0f} MB of {allocated / 1e6:.0f} MB)"
        rows.append(
            CheckRow(f"peak memory {what}, over what was allocated", said, "0.85 to 1.15", 0.85 <= ratio <= 1.15)
        )
    return rows


def check_out_of_memory(machine: Machine, folder: Path, until_s: float) -> list[CheckRow]:
    """A placement for which the memory is too small is infeasible and says so; with enough memory it runs again."""
    model, batch, options = _model(LARGE)
    with _engine(model, batch, options, f"{machine.host},{machine.gpu}") as (engine, program):
        placement = _placements(program, 2, 1, seed=3)[0]
        inputs = batch_tensors(batch, program.training)
        reason = "it ran"
        machine.limit(32 << 20)
        try:
            engine.place(placement)
            engine.step(inputs, time_limit_s=_LIMIT_S)
        except RuntimeError as error:  # `StepError` is one, and so is PyTorch's own
            reason = failure_reason(error)
        finally:
            machine.limit(None)
        engine.place(placement)
        loss = engine.step(inputs, time_limit_s=_LIMIT_S).loss
    again = loss is not None and bool(torch.isfinite(machine.to_host(loss)))
    return [
        CheckRow("a step that does not fit", reason[:60], "out of memory: ...", reason.startswith("out of memory")),
        CheckRow("the same step with memory", "it ran" if again else "it did not", "it ran", again),
    ]


def check_fidelity(machine: Machine, folder: Path, until_s: float, *, devices: str) -> list[CheckRow] | None:
    """Profile, and compare simulated with measured steps of forty placements."""
    name = f"nmt on {devices}"
    work = Workload(name, FIDELITY, devices, folder / folder_name(devices), seed=0, until_s=until_s)
    work.measure(_PLACEMENTS, _LEARN_S, Console(stderr=True))
    found = work.load()
    if found.wanting.size:
        return None
    fit = row_of(name, devices, work.problem, found).fits["receiver"]
    count = f"{len(found.kind)} placements of {name}"
    return [
        CheckRow(f"{count}: median error", f"{fit.median_error:.1%}", "<= 10%", fit.median_error <= 0.10),
        CheckRow(f"{count}: Spearman", f"{fit.spearman:.3f}", ">= 0.9", fit.spearman >= 0.9),
    ]


def _with_gpu(machine: Machine, folder: Path, until_s: float) -> list[CheckRow] | None:
    return check_fidelity(machine, folder, until_s, devices=f"{machine.host},{machine.gpu}")


def _with_streams(machine: Machine, folder: Path, until_s: float) -> list[CheckRow] | None:
    return check_fidelity(machine, folder, until_s, devices=",".join(machine.streams))


CHECKS: dict[str, Check] = {
    "results": check_results,
    "streams": check_streams,
    "memory": check_memory,
    "out of memory": check_out_of_memory,
    "fidelity, a core and the GPU": _with_gpu,
    "fidelity, two streams": _with_streams,
}
"""In the order in which they are made."""


def run_checks(machine: Machine, out: Path, *, until_s: float, console: Console) -> dict[str, list[CheckRow]]:
    """Make the checks that were not made, and write what is known after each; a check that raises is a failed row.

    Args:
        machine: Where.
        out: The folder for files.
        until_s: When to end, by `time.monotonic`.
        console: Where to say what is being done.

    Returns:
        The rows by check, those of earlier calls among them.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "checks.json"
    done: dict[str, list[CheckRow]] = {}
    if kept.exists():
        done = msgspec.json.decode(kept.read_bytes(), type=dict[str, list[CheckRow]])
    for name, check in CHECKS.items():
        if name in done:
            continue
        if time.monotonic() >= until_s:
            console.print(f"{name}: no time left; give the command again")
            continue
        console.print(f"{name} ...")
        try:
            rows = check(machine, out, until_s)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            rows = [CheckRow("the check itself", f"{type(error).__name__}: {text}", "no error", ok=False)]
        if rows is None:
            console.print(f"{name}: the time was too short; give the command again")
            continue
        done[name] = rows
        write_atomically(kept, msgspec.json.format(msgspec.json.encode(done), indent=2) + b"\n")
    write_atomically(out / "table.md", as_markdown(machine.describe(), done).encode())
    return done


def as_markdown(machine: str, done: dict[str, list[CheckRow]]) -> str:
    """The table as text for the documentation."""
    lines = [f"Checked on {machine}.", "", "| check | what | found | wanted | |", "|---|---|---|---|---|"]
    for name in CHECKS:
        if name not in done:
            lines.append(f"| {name} | not done | | | |")
        for row in done.get(name, []):
            cells = (name, row.what, row.found, row.wanted, "yes" if row.ok else "**no**")
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def show(done: dict[str, list[CheckRow]], console: Console) -> None:
    """Print the table."""
    made = table("check", "what", "found", "wanted", "as wanted")
    for name in CHECKS:
        for row in done.get(name, [CheckRow("not done", "", "", ok=False)]):
            made.add_row(name, row.what, row.found, row.wanted, "yes" if row.ok else "NO")
    console.print(made)


def _model(source: str) -> tuple[torch.nn.Module, Any, dict[str, Any]]:
    options = load_model(source)
    options.pop("name")
    return options.pop("model"), options.pop("example_batch"), options


@contextmanager
def _engine(
    model: torch.nn.Module, batch: Any, options: dict[str, Any], devices: str
) -> Iterator[tuple[Engine, Program]]:
    program = capture_program(model, batch, **options)
    tensors = named_state(model, training=program.training)
    with Engine(program, parse_devices(devices), tensors) as engine:
        yield engine, program


def _placements(program: Program, devices: int, count: int, seed: int) -> list[NDArray[np.int32]]:
    """Random placements of ops."""
    groups = colocate(program.graph)
    rng = np.random.default_rng(seed)
    return [groups.to_ops(rng.integers(devices, size=groups.num_groups)) for _ in range(count)]


def main() -> int:
    """Check what was not checked, and show all of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument("--time-limit-s", type=float, default=340.0)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise InputError("there is no GPU that PyTorch can use here; run this where torch.cuda.is_available() is true")
    console = Console(width=150)
    done = run_checks(Cuda(), args.out, until_s=time.monotonic() + args.time_limit_s, console=console)
    show(done, console)
    return int(any(not row.ok for rows in done.values() for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        sys.exit(2)
