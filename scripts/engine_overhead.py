"""How much longer a step takes by the engine, on one device, than by eager PyTorch: pairs of steps in one process.

    python scripts/engine_overhead.py
    python scripts/engine_overhead.py --workloads nmt bert --pairs 40 --device cpu:0-1 --json overhead.json
    python scripts/engine_overhead.py --workloads rnnlm --compile

All have the same cores, threads and allocator, and run in turn, so what disturbs the machine disturbs all: what counts
is the ratio within a round, of which median and quartiles are shown. With ``--compile`` the engine with regions that
are compiled and `torch.compile` run, too. Losses are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
ENGINE, EAGER, REGIONS, COMPILED = "engine", "eager", "engine, regions compiled", "torch.compile"
_RATIOS = ((ENGINE, EAGER), (REGIONS, EAGER), (REGIONS, COMPILED), (COMPILED, EAGER))


class Overhead(msgspec.Struct):
    """Of a workload: its ops, and the seconds of each round's step, by the way in which it ran."""

    graph: str
    ops: int
    steps_s: dict[str, list[float]]

    def ratios(self, way: str, other: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """One way over another, of each round."""
        return np.array(self.steps_s[way]) / np.array(self.steps_s[other])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--workloads", nargs="+", default=[*WORKLOADS], help="names, or sources of graphs")
    parser.add_argument("--device", default="cpu:0", help="one device, of one core or several")
    parser.add_argument("--pairs", type=int, default=30, help="rounds")
    parser.add_argument("--compile", action="store_true", help="compiled regions and torch.compile, too: minutes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    (device,) = parse_devices(args.device)
    if args.pairs < 1:
        parser.error("--pairs must be at least 1")
    ways = (ENGINE, EAGER, REGIONS, COMPILED) if args.compile else (ENGINE, EAGER)
    found = [measure_pairs(name, WORKLOADS.get(name, name), device, args.pairs, ways) for name in args.workloads]
    right = ("ops", "takes", "over", "ratio", "quartiles")
    made = table("graph", "way", *right, right=right)
    for each in found:
        for way, other in _RATIOS:
            if way in ways and other in ways:
                low, middle, high = np.percentile(each.ratios(way, other), [25, 50, 75])
                took = seconds(float(np.median(each.steps_s[way])), digits=4)
                over = f"{other}, {seconds(float(np.median(each.steps_s[other])), digits=4)}"
                made.add_row(each.graph, way, f"{each.ops:,}", took, over, f"{middle:.3f}", f"{low:.3f}, {high:.3f}")
    Console(width=140).print(made)
    if args.json is not None:
        write_atomically(args.json, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    return 0


def measure_pairs(
    name: str, source: str, device: RealDevice, pairs: int, ways: Sequence[str] = (ENGINE, EAGER)
) -> Overhead:
    """Run steps in rounds, every other round the other way round.

    Raises:
        RuntimeError: The losses of the ways differ.
    """
    with contextlib.ExitStack() as opened:
        steps: dict[str, Callable[[], tuple[float, Any]]] = {}
        ops = 0
        for way in ways:
            options = load_model(source)
            model, batch = options.pop("model"), options.pop("example_batch")
            if way in (EAGER, COMPILED):
                options.pop("name", None)
                steps[way] = partial(_by_torch, make_plain_step(model, batch, is_compiled=way == COMPILED, **options))
                continue
            program = capture_program(model, batch, **options)
            tensors = named_state(model, options.get("loss"), training=program.training)
            engine = opened.enter_context(Engine(program, (device,), tensors, compile_regions=way == REGIONS))
            engine.place(np.zeros(program.graph.num_ops, dtype=np.int64))
            steps[way] = partial(_by_engine, engine, batch_tensors(batch, program.training))
            ops = program.graph.num_ops
        found = Overhead(name, ops, {way: [] for way in ways})

        def work() -> None:
            for number in range(_WARM + pairs):
                losses: dict[str, Any] = {}
                for way in ways[:: 1 if number % 2 else -1]:
                    took_s, losses[way] = steps[way]()
                    if number >= _WARM:
                        found.steps_s[way].append(took_s)
                if number == 1:  # the first step in regions; rounding grows from step to step
                    _check_same(losses)

        run_pinned(device, work)
    return found


def _by_engine(engine: Engine, inputs: dict[str, torch.Tensor]) -> tuple[float, Any]:
    step = engine.step(inputs)
    return step.step_time_s, step.loss


def _by_torch(step: Callable[[], Any]) -> tuple[float, Any]:
    found: list[Any] = []
    took_s = timed(lambda: found.append(step()))
    return took_s, found[0]


def _check_same(losses: dict[str, Any]) -> None:
    """Raise where losses differ by more than rounding.

    Raises:
        RuntimeError: They do.
    """
    first, wanted = next(iter(losses.items()))
    for way, loss in losses.items():
        if isinstance(loss, torch.Tensor) and not torch.allclose(wanted.detach(), loss.detach(), rtol=1e-4, atol=1e-6):
            raise RuntimeError(f"the loss of the second step is {float(wanted)} by {first} and {float(loss)} by {way}")


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in _ALLOCATOR.items()):
        # As the process that measures has it; the allocator reads this when it starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_ALLOCATOR})
    try:
        sys.exit(main())
    except InputError as error:
        print(f"engine_overhead: {error}", file=sys.stderr)
        sys.exit(2)
