"""What graphs of 100,000 ops cost: capturing, grouping, saving, loading, simulating, and that in eight micro-batches.

    python scripts/scale.py

Each step runs in a process of its own on a graph of about 10,000 ops and on one of about 100,000, synthetic and real
(`rnnlm`, unrolled further). Printed are seconds (of grouping, saving and simulating the best of three) and the most
memory that the process ever had, imports and the loaded graph included. The last column is seconds per op against the
small graph's in the same run: 1 is linear, and n log n would be 1.25. `cut` makes the step in eight micro-batches, and
`whole` simulates it; behind it stands how many times that takes of the simulation of one micro-batch, both in seconds
of the processor and in the same process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.colocation.rules import colocate
from graphs.computation_graph import ComputationGraph
from graphs.files import load_graph_file, save_graph_file
from graphs.microbatch import microbatch
from graphs.synthetic import random_graph
from placement.api import make_problem

STEPS = ("make", "group", "save", "load", "simulate", "cut", "whole")
GROUPS = 300
MICRO_BATCHES = 8
SYNTHETIC, REAL = "synthetic", "real"
SIZES = {SYNTHETIC: (10_000, 100_000), REAL: (120, 1_200)}  # ops; time steps of rnnlm


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--step", choices=STEPS, help="run this step of --graph in this process, and print JSON")
    parser.add_argument("--graph", choices=SIZES)
    parser.add_argument("--size", type=int)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(_measure(options.step, options.graph, options.size, options.folder)))
        return
    print(f"{'graph':>10} {'step':>9} {'ops':>8} {'seconds':>9} {'peak MB':>8} {'per op':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for graph, sizes in SIZES.items():
            reference: dict[str, float] = {}
            for size in sizes:
                for step in STEPS:
                    found = _in_a_process(step, graph, size, Path(folder))
                    per_op = found["seconds"] / found["ops"]
                    ratio = per_op / reference.setdefault(step, per_op)
                    print(
                        f"{graph:>10} {step:>9} {found['ops']:>8,} {found['seconds']:>9.3f} "
                        f"{found['peak_bytes'] / 1e6:>8,.0f} {ratio:>7.2f}"
                        + (f"  {found['times']:.1f} times one micro-batch" if "times" in found else ""),
                        flush=True,
                    )


def _in_a_process(step: str, graph: str, size: int, folder: Path) -> dict[str, float]:
    arguments = ("--step", step, "--graph", graph, "--size", str(size), "--folder", str(folder))
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measure(step: str, graph: str, size: int, folder: Path) -> dict[str, float]:
    """Run one step; the graph travels from step to step as a file."""
    path = folder / f"{graph}-{size}.graph.json.gz"
    if step == "make":
        make = _maker(graph, size)
        began = time.perf_counter()
        made = make()
        found = _found(made.num_ops, began)
        save_graph_file(made, path)
        return found
    if step == "load":
        began = time.perf_counter()
        return _found(load_graph_file(path).num_ops, began)
    loaded = load_graph_file(path)
    ops = loaded.num_ops
    work: Callable[[], object]
    if step == "group":

        def work() -> object:
            return colocate(loaded, wanted_groups=GROUPS)

    elif step == "save":

        def work() -> object:
            save_graph_file(loaded, folder / "again.graph.json.gz")
            return None

    elif step == "cut":
        ops = microbatch(loaded, MICRO_BATCHES).graph.num_ops  # what it calls is imported and compiled

        def work() -> object:
            return microbatch(loaded, MICRO_BATCHES)

    else:
        problem = make_problem(loaded, "k80x4", groups=GROUPS)
        rng = np.random.default_rng(0)
        placement = np.array([[rng.choice(np.flatnonzero(row)) for row in problem.allowed]])
        problem.evaluate(placement)  # compiles

        if step == "whole":
            return _whole(problem, placement)

        def work() -> object:
            return problem.evaluate(placement)

    return min((_timed(work, ops) for _ in range(3)), key=lambda found: found["seconds"])


def _whole(part: PlacementProblem, placement: NDArray[np.int64]) -> dict[str, float]:
    """Simulate a step in micro-batches, and one micro-batch under the same placement of groups."""
    made = microbatch(part.graph, MICRO_BATCHES)
    problem = PlacementProblem(made.graph, made.groups(part.groups), part.cluster)
    problem.evaluate(placement)
    one_s, all_s = (min(_processor_s(each, placement) for _ in range(3)) for each in (part, problem))
    return {**_timed(lambda: problem.evaluate(placement), made.graph.num_ops), "times": all_s / one_s}


def _processor_s(problem: PlacementProblem, placement: NDArray[np.int64]) -> float:
    began = time.process_time()
    problem.evaluate(placement)
    return time.process_time() - began


def _timed(work: Callable[[], object], ops: int) -> dict[str, float]:
    began = time.perf_counter()
    work()
    return _found(ops, began)


def _maker(graph: str, size: int) -> Callable[[], ComputationGraph]:
    """What makes a graph, with everything imported that it needs."""
    if graph == SYNTHETIC:
        return lambda: random_graph(size, resident_bytes=10_000)
    import torch

    from graphs.capture import capture
    from graphs.zoo import build, parse

    workload, sizes = parse(f"rnnlm:steps={size}")
    with torch.device("meta"):
        model, batch = build(workload, sizes)
    return lambda: capture(model, batch)


def _found(ops: int, began: float) -> dict[str, float]:
    seconds = time.perf_counter() - began
    return {"ops": ops, "seconds": seconds, "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    """The most memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
