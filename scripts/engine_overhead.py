"""How much longer a step takes by the engine, on one device, than by eager PyTorch: pairs of steps in one process.

    python scripts/engine_overhead.py
    python scripts/engine_overhead.py --workloads nmt bert --pairs 40 --device cpu:0-1 --json overhead.json

Both have the same cores, threads and allocator, and run in turn, so what disturbs the machine disturbs both: what
counts is the ratio of a pair, engine over eager, of which median and quartiles are shown. Losses are compared, too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np
import torch
from rich.console import Console

from envs.measured.engine import Engine
from envs.measured.machine import RealDevice, parse_devices
from envs.measured.plain import make_plain_step, run_pinned, timed
from graphs.capture import batch_tensors, capture_program
from graphs.capture.state import named_state
from graphs.errors import InputError
from graphs.files import write_atomically
from graphs.sources import load_model
from placement.text import seconds, table
from scripts.fidelity_study.workloads import WORKLOADS

_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
_WARM = 3


class Overhead(msgspec.Struct):
    """Of a workload: its ops, and the seconds of each pair of steps."""

    graph: str
    ops: int
    engine_s: list[float]
    eager_s: list[float]

    @property
    def ratios(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Engine over eager, of each pair."""
        return np.array(self.engine_s) / np.array(self.eager_s)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--workloads", nargs="+", default=[*WORKLOADS], help="names, or sources of graphs")
    parser.add_argument("--device", default="cpu:0", help="one device, of one core or several")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    (device,) = parse_devices(args.device)
    if args.pairs < 1:
        parser.error("--pairs must be at least 1")
    found = [measure_pairs(name, WORKLOADS.get(name, name), device, args.pairs) for name in args.workloads]
    right = ("ops", "engine", "eager", "engine over eager", "quartiles")
    made = table("graph", *right, right=right)
    for each in found:
        low, middle, high = np.percentile(each.ratios, [25, 50, 75])
        times = (seconds(float(np.median(values)), digits=4) for values in (each.engine_s, each.eager_s))
        made.add_row(each.graph, f"{each.ops:,}", *times, f"{middle:.3f}", f"{low:.3f}, {high:.3f}")
    Console(width=120).print(made)
    if args.json is not None:
        write_atomically(args.json, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    return 0


def measure_pairs(name: str, source: str, device: RealDevice, pairs: int) -> Overhead:
    """Run steps in pairs, every other pair the other way round.

    Raises:
        RuntimeError: The losses of the two differ.
    """
    options, eager_options = load_model(source), load_model(source)
    model, batch = options.pop("model"), options.pop("example_batch")
    program = capture_program(model, batch, **options)
    eager_options.pop("name", None)
    plain = make_plain_step(eager_options.pop("model"), eager_options.pop("example_batch"), **eager_options)
    tensors = named_state(model, options.get("loss"), training=program.training)
    inputs = batch_tensors(batch, program.training)
    found = Overhead(name, program.graph.num_ops, [], [])
    with Engine(program, (device,), tensors) as engine:
        engine.place(np.zeros(program.graph.num_ops, dtype=np.int64))

        def by_engine() -> float:
            return engine.step(inputs).step_time_s

        def by_eager() -> float:
            return timed(plain)

        def work() -> None:
            for number in range(_WARM + pairs):
                ways: list[tuple[Callable[[], float], list[float]]] = [
                    (by_engine, found.engine_s),
                    (by_eager, found.eager_s),
                ]
                for run, times in ways[:: 1 if number % 2 else -1]:
                    took_s = run()
                    if number >= _WARM:
                        times.append(took_s)
            one, two = engine.step(inputs).loss, plain()
            if isinstance(one, torch.Tensor) and not torch.allclose(one, two.detach(), rtol=1e-3, atol=1e-5):
                raise RuntimeError(f"the loss is {float(one)} by the engine and {float(two)} by eager PyTorch")

        run_pinned(device, work)
    return found


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in _ALLOCATOR.items()):
        # As the process that measures has it; the allocator reads this when it starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ALLOCATOR})
    try:
        sys.exit(main())
    except InputError as error:
        print(f"engine_overhead: {error}", file=sys.stderr)
        sys.exit(2)
