"""Simulated against measured step times of pipelines on two cores of this machine.

    python scripts/pipeline_fidelity.py --page docs/results/fidelity.md     # profile, measure, fill the page's part
    python scripts/pipeline_fidelity.py --report --page docs/results/fidelity.md    # from what was measured

Two models are each cut in several ways and trained under several orders by two processes, one a core, by
`placement.pipeline` over gloo. What ops take on these cores is profiled with steps of one micro-batch (`placement
profile`), what a message takes by sending some; nothing is fitted to the pipelines. All pipelines of a model are run
one after the other, in several rounds, each in an order of its own; the two fastest rounds of a pipeline count, as what
disturbs a machine only slows it. Give it a quiet machine.

What was measured is kept in the ``--out`` folder, pipeline by pipeline: a run that was stopped goes on, and another
folder begins anew.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

import placement
from envs.clusters.cluster import Cluster, Link
from envs.clusters.device_specs import DEVICE_SPECS
from envs.clusters.file import load_cluster_file
from envs.pipelines.cuts import find_segments
from envs.pipelines.segments import Segments
from graphs.errors import InputError
from graphs.files import load_graph_file, write_atomically
from graphs.microbatch import repeat
from placement.exports.stages import encode_stages, read_stages, to_stages
from placement.placers.pipeline_stages import evaluate
from scripts.fidelity_study.report import fit_of
from scripts.many_workers.page import fill, table, where
from scripts.pipeline_models import BATCH, MICRO_BATCHES, decoder, pictures

if TYPE_CHECKING:  # slow to load
    from placement.pipelines.run import Pipeline

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("runs") / "pipeline_fidelity"
DEVICES = "cpu:0,cpu:1"
WARM_UP = 1
LIMIT_S = 900.0
"""Seconds that the processes of one model may take."""

MODELS = {"decoder": decoder, "pictures": pictures}

# Where stages but the first begin, 1 to 6 before a block and 7 before the head, and what runs them.
CASES: tuple[tuple[tuple[int, ...], str], ...] = (
    *(((cut,), order) for cut in (2, 4, 5, 6) for order in ("gpipe", "1f1b", "zb_h1")),
    ((2, 4, 6), "interleaved"),
    ((1, 4, 6), "interleaved"),
    ((3, 5, 7), "list"),
)


class Row(msgspec.Struct, frozen=True):
    """One pipeline.

    Attributes:
        model: A key of `MODELS`.
        cuts: Where its stages but the first begin, as in `CASES`.
        order: What runs them.
        simulated_s: The step time, simulated.
        rounds_s: Measured, of each round the median step.
    """

    model: str
    cuts: tuple[int, ...]
    order: str
    simulated_s: float
    rounds_s: tuple[float, ...]

    @property
    def measured_s(self) -> float:
        """The mean of the two fastest rounds."""
        return statistics.mean(sorted(self.rounds_s)[:2])

    @property
    def spread(self) -> float:
        """How far the second fastest round is above the fastest."""
        first, *others = sorted(self.rounds_s)[:2]
        return others[0] / first - 1 if others else 0.0

    @property
    def error(self) -> float:
        """Of the simulation, relative to what was measured."""
        return self.simulated_s / self.measured_s - 1


class Message(msgspec.Struct, frozen=True):
    """What a message between the two processes takes."""

    latency_s: float
    bytes_per_s: float


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="with commas between: %(default)s")
    parser.add_argument("--cases", type=int, default=len(CASES), help="pipelines of each model: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is run: %(default)s")
    parser.add_argument("--steps", type=int, default=3, help="steps of each round that count: %(default)s")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of what was measured: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="fill the table between the page's markers")
    parser.add_argument("--report", action="store_true", help="measure nothing; report what there is")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args(args)
    if min(asked.cases, asked.rounds, asked.steps) < 1:
        parser.error("--cases, --rounds and --steps must be at least 1")
    cases = list(range(min(asked.cases, len(CASES))))
    if asked.worker is not None:
        return work(asked.out, asked.worker, cases, asked.rounds, asked.steps)
    asked.out.mkdir(parents=True, exist_ok=True)
    try:
        rows = []
        for model in asked.models.split(","):
            if model not in MODELS:
                parser.error(f"--models has '{model}'; known: {', '.join(MODELS)}")
            if not asked.report:
                measure(model, cases, asked)
            rows += rows_of(asked.out, model)
        if not rows:
            parser.error(f"'{asked.out}' has no pipelines that were measured; leave out --report")
        text = report(rows)
        print(text)
        if asked.json is not None:
            write_atomically(asked.json, msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n")
        if asked.page is not None:
            fill(asked.page, Path(__file__).name, text)
    except InputError as error:
        print(f"pipeline_fidelity: {error}", file=sys.stderr)
        return 2
    return 0


def measure(model: str, cases: Sequence[int], asked: argparse.Namespace) -> None:
    """Profile, simulate and run what is missing of a model."""
    folder: Path = asked.out
    graph_file, cluster_file = folder / f"{model}.graph.json.gz", folder / f"{model}.yaml"
    if not cluster_file.exists():
        print(f"{model}: profiling {DEVICES}", flush=True)
        source = f"python:scripts.pipeline_models:{model}_part"
        placement.profile(source, DEVICES, graph_file, cluster_out=cluster_file, placements=6, steps=6)
    if not (folder / "message.json").exists():
        run_workers(folder, "", asked)
    message = msgspec.json.decode((folder / "message.json").read_bytes(), type=Message)
    print(f"a message: {message.latency_s * 1e6:.0f} us and {message.bytes_per_s / 1e9:.2f} GB/s", flush=True)
    profiled = load_cluster_file(cluster_file, DEVICE_SPECS)
    cluster = two_cores(profiled, message)
    segments = find_segments(repeat(load_graph_file(graph_file), MICRO_BATCHES), cluster)
    simulate_all(segments, model, cases, folder)
    wanting = [number for number in cases if len(_rounds(folder, model, number)) < asked.rounds]
    if wanting:
        print(f"{model}: running {len(wanting)} pipelines", flush=True)
        run_workers(folder, model, asked)


def two_cores(profiled: Cluster, message: Message) -> Cluster:
    """The profiled cores with a link that takes as long as gloo does."""
    a, b = profiled.device_names
    return replace(profiled, links=(Link(a, b, message.bytes_per_s, message.latency_s),))


def simulate_all(segments: Segments, model: str, cases: Sequence[int], folder: Path) -> None:
    """Write the stages of all cases, with their step times, to the folder."""
    for number in cases:
        blocks, order = CASES[number]
        cuts = [_segment_of(segments, "head" if block == 7 else f"blocks.{block - 1}") for block in blocks]
        placed = evaluate(segments, cuts, [s % 2 for s in range(len(cuts) + 1)], order)
        stages = to_stages(segments, placed, graph=model, batch=BATCH)
        write_atomically(folder / f"{model}-{number}.json", encode_stages(stages))


def _segment_of(segments: Segments, path: str) -> int:
    """The segment that begins with a module, or with the first part of it."""
    return next(k for k, modules in enumerate(segments.modules) if f"{modules[0]}.".startswith(f"{path}."))


def rows_of(folder: Path, model: str) -> list[Row]:
    """What was simulated and measured of a model."""
    rows = []
    for number, (cuts, order) in enumerate(CASES):
        rounds_s = _rounds(folder, model, number)
        if rounds_s:
            simulated_s = read_stages(folder / f"{model}-{number}.json").step_time_s
            assert simulated_s is not None
            rows.append(Row(model, cuts, order, simulated_s, tuple(rounds_s)))
    return rows


def _rounds(folder: Path, model: str, number: int) -> list[float]:
    """Seconds of a step in each round of a pipeline so far."""
    file = folder / f"{model}-{number}.times.json"
    return msgspec.json.decode(file.read_bytes(), type=list[float]) if file.exists() else []


def run_workers(folder: Path, model: str, asked: argparse.Namespace) -> None:
    """Start two processes that run what is missing of a model, or send messages where no model is given.

    Raises:
        InputError: They failed, or did not end in time; what they had measured is kept.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    command += ["--worker", model, "--out", str(folder.resolve()), "--cases", str(asked.cases)]
    command += ["--rounds", str(asked.rounds), "--steps", str(asked.steps)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        code = process.wait(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise InputError(f"the processes of '{model}' took more than {LIMIT_S:g} s; start the script again") from None
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its processes
            process.wait()
    if code:
        raise InputError(f"the processes of '{model}' ended with code {code}; see what they said, and start again")


def work(folder: Path, model: str, cases: Sequence[int], rounds: int, steps: int) -> int:
    """What one of the two processes does."""
    rank = int(os.environ["RANK"])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if not model:
        small, large = (message_s(size) for size in (1 << 10, 1 << 22))
        found = Message(small, ((1 << 22) - (1 << 10)) / (large - small))
        if rank == 0:
            write_atomically(folder / "message.json", msgspec.json.encode(found))
    else:
        run_rounds(folder, model, cases, rounds, steps)
    dist.destroy_process_group()
    return 0


def run_rounds(folder: Path, model: str, cases: Sequence[int], rounds: int, steps: int) -> None:
    """Run what is missing, and keep each round of a pipeline when it ends."""
    known: list[list[list[float]]] = [[_rounds(folder, model, number) for number in cases]]
    dist.broadcast_object_list(known)  # both processes go by what the first one read
    left = {number: rounds - len(found) for number, found in zip(cases, known[0], strict=True)}
    pipes: dict[int, Pipeline] = {}
    _, batch, loss = MODELS[model](BATCH)
    for turn in range(rounds):
        for number in random.Random(turn).sample(list(cases), len(cases)):
            if left[number] <= 0:
                continue
            if number not in pipes:
                stages = read_stages(folder / f"{model}-{number}.json")
                pipes[number] = placement.pipeline(MODELS[model](BATCH)[0], stages, batch, loss)
            took_s = step_s(pipes[number], batch, steps)
            left[number] -= 1
            if dist.get_rank() == 0:
                file = folder / f"{model}-{number}.times.json"
                write_atomically(file, msgspec.json.encode([*_rounds(folder, model, number), took_s]))


def message_s(size: int) -> float:
    """Seconds of a message of so many bytes, the median of there and back."""
    data, times = torch.zeros(size // 4), []
    for _ in range(60):
        dist.barrier()
        start = time.perf_counter()
        if dist.get_rank() == 0:
            dist.send(data, 1)
            dist.recv(data, 1)
        else:
            dist.recv(data, 0)
            dist.send(data, 0)
        times.append((time.perf_counter() - start) / 2)
    return statistics.median(times[10:])


def step_s(pipe: Pipeline, batch: Any, steps: int) -> float:
    """The median seconds of a step, as long as the slower process takes."""
    optimizer = torch.optim.SGD(pipe.parameters(), lr=1e-3)
    times = []
    for _ in range(WARM_UP + steps):
        optimizer.zero_grad()
        dist.barrier()
        start = time.perf_counter()
        pipe.step(batch)
        optimizer.step()
        took = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
        times.append(float(took))
    optimizer.zero_grad()  # many pipelines are kept
    return statistics.median(times[WARM_UP:])


def report(rows: Sequence[Row]) -> str:
    """Tables of what the pipelines come to, and of each of them."""
    kinds = [("all", list(rows))]
    kinds += [(name, [row for row in rows if row.model == name]) for name in dict.fromkeys(row.model for row in rows)]
    orders = dict.fromkeys(row.order for row in rows)
    kinds += [(f"`{name}`", [row for row in rows if row.order == name]) for name in orders]
    lines = [_summary(name, chosen) for name, chosen in kinds]
    heads = ("pipelines", "number", "median error", "worst", "mean, with its sign", "Spearman", "two rounds differ by")
    each = [
        (
            row.model,
            ", ".join(map(str, row.cuts)),
            f"`{row.order}`",
            f"{row.simulated_s * 1e3:.0f} ms",
            f"{row.measured_s * 1e3:.0f} ms",
            f"{row.error:+.1%}",
        )
        for row in rows
    ]
    return "\n\n".join(
        [
            f"Made on {where()}.",
            table(heads, lines),
            table(("model", "blocks that later stages begin with", "order", "simulated", "measured", "error"), each),
        ]
    )


def _summary(name: str, rows: Sequence[Row]) -> list[str]:
    simulated, measured = (np.array([getattr(row, key) for row in rows]) for key in ("simulated_s", "measured_s"))
    errors = np.abs(simulated / measured - 1)
    spearman = f"{fit_of(simulated, measured).spearman:.3f}" if len(set(simulated)) > 2 else ""
    mean = f"{statistics.mean(row.error for row in rows):+.1%}"
    differ = f"{statistics.median(row.spread for row in rows):.1%}"
    return [name, str(len(rows)), f"{np.median(errors):.1%}", f"{errors.max():.1%}", mean, spearman, differ]


if __name__ == "__main__":
    sys.exit(main())
