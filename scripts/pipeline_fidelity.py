"""Simulated against measured step times of pipelines on two cores of this machine.

    python scripts/pipeline_fidelity.py [--steps 12] [--json FILE]

Two models are each cut in several ways and trained under several orders by two processes, one a core, by
`placement.pipeline` over gloo. What ops take on these cores is profiled with steps of one micro-batch (`placement
profile`), what a message takes by sending some; nothing is fitted to the pipelines. It prints each pair of times, the
median error and Spearman's rank correlation. Give it a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

import placement
from envs.clusters.cluster import Cluster, Link
from envs.pipelines.cuts import find_segments
from envs.pipelines.segments import Segments
from graphs.microbatch import repeat
from placement.exports.stages import Stages, encode_stages, read_stages, to_stages
from placement.placers.pipeline_stages import evaluate

ROOT = Path(__file__).resolve().parent.parent
MICRO_BATCHES = 8
BATCH = 32
WARM_UP = 3

Step = tuple[nn.Module, tuple[torch.Tensor, torch.Tensor], Any]


class Block(nn.Module):
    """A block of a decoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, H]`` -> ``[B, T, H]``."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class Decoder(nn.Module):
    """An embedding, six blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(2000, 256)
        self.blocks = nn.ModuleList(Block(256) for _ in range(6))
        self.head = nn.Linear(256, 2000)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """``[B, T]`` -> ``[B, T, 2000]``."""
        x = self.embed(words)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Residual(nn.Module):
    """Two convolutions and what they are added to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As large as `x`."""
        return x + self.second(F.relu(self.norm(self.first(x))))


class Pictures(nn.Module):
    """A stem, six residual blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Residual(64) for _ in range(6))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, 3, 64, 64]`` -> ``[B, 10]``."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def words_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of next words."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def decoder(batch: int = BATCH // MICRO_BATCHES) -> Step:
    """The decoder, a batch and its loss; by default one micro-batch."""
    torch.manual_seed(0)
    words = torch.randint(0, 2000, (batch, 64))
    return Decoder(), (words, words.roll(-1, 1)), words_loss


def pictures(batch: int = BATCH // MICRO_BATCHES) -> Step:
    """The convolutional model likewise."""
    torch.manual_seed(0)
    return Pictures(), (torch.randn(batch, 3, 64, 64), torch.randint(0, 10, (batch,))), F.cross_entropy


MODELS = {"decoder": decoder, "pictures": pictures}

# The first segment of each stage but the first, of eight, and what runs them.
CASES = [
    *(((cut,), order) for cut in (2, 4, 5, 6) for order in ("gpipe", "1f1b", "zb_h1")),
    ((2, 4, 6), "interleaved"),
    ((1, 4, 6), "interleaved"),
    ((3, 5, 7), "list"),
]


def of_one(function: Any) -> Any:
    """A step of one micro-batch under SGD, for the profile."""
    model, batch, loss = function()
    return {"model": model, "example_batch": batch, "loss": loss, "optimizer": "sgd"}


def decoder_part() -> dict[str, Any]:
    """One micro-batch of the decoder."""
    return of_one(decoder)


def pictures_part() -> dict[str, Any]:
    """One micro-batch of the convolutional model."""
    return of_one(pictures)


def two_cores(profiled: Cluster, message: tuple[float, float]) -> Cluster:
    """The profiled cores with a link that takes as long as gloo does, given latency and bandwidth."""
    a, b = profiled.device_names
    return replace(profiled, links=(Link(a, b, message[1], message[0]),))


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of each pipeline that count: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(args)
    if asked.worker is not None:
        return work(asked.worker, asked.steps)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        message = run_workers(folder, asked.steps)[0]
        print(f"a message: {message[0] * 1e6:.0f} us and {message[1] / 1e9:.2f} GB/s")
        for model in MODELS:
            found = placement.profile(
                f"python:scripts.pipeline_fidelity:{model}_part", "cpu:0,cpu:1", folder / f"{model}.graph.json.gz"
            ).found
            segments = find_segments(
                repeat(found.graph, MICRO_BATCHES), two_cores(found.cluster, (message[0], message[1]))
            )
            if segments.num_segments != 8:
                raise SystemExit(f"{model} falls into {segments.num_segments} segments, not 8")
            simulated = simulate_all(segments, model, folder)
            measured = run_workers(folder, asked.steps, model)
            rows += [
                {"model": model, "cuts": cuts, "order": order, "simulated_s": own, "measured_s": real[0]}
                for (cuts, order), own, real in zip(CASES, simulated, measured, strict=True)
            ]
    report(rows)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def simulate_all(segments: Segments, model: str, folder: Path) -> list[float]:
    """The step times of all cases, whose stages are written to the folder."""
    times = []
    for number, (cuts, order) in enumerate(CASES):
        devices = [s % 2 for s in range(len(cuts) + 1)]
        placed = evaluate(segments, cuts, devices, order)
        stages = to_stages(segments, placed, graph=model, batch=BATCH)
        (folder / f"{model}-{number}.json").write_bytes(encode_stages(stages))
        times.append(placed.step_time_s)
    return times


def run_workers(folder: Path, steps: int, model: str = "") -> list[list[float]]:
    """Start two processes, and read what the first one wrote."""
    (folder / "model").write_text(model)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    command += ["--worker", str(folder), "--steps", str(steps)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    read: list[list[float]] = json.loads((folder / "times.json").read_text())
    return read


def work(folder: Path, steps: int) -> int:
    """What one of the two processes does."""
    rank = int(os.environ["RANK"])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = (folder / "model").read_text()
    if model:
        times = [[measure(model, read_stages(folder / f"{model}-{i}.json"), steps)] for i in range(len(CASES))]
    else:
        small, large = (message_s(size) for size in (1 << 10, 1 << 22))
        per_byte = (large - small) / ((1 << 22) - (1 << 10))
        times = [[small, 1 / per_byte]]
    if rank == 0:
        (folder / "times.json").write_text(json.dumps(times))
    dist.destroy_process_group()
    return 0


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


def measure(model: str, stages: Stages, steps: int) -> float:
    """The median seconds of a step, as long as the slower process takes."""
    made, batch, loss = MODELS[model](BATCH)
    pipe = placement.pipeline(made, stages, batch, loss)
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
    return statistics.median(times[WARM_UP:])


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print the pairs, and what they come to."""
    for row in rows:
        error = row["simulated_s"] / row["measured_s"] - 1
        print(
            f"{row['model']:9} {row['cuts']!s:10} {row['order']:12} simulated {row['simulated_s'] * 1e3:7.1f} ms, "
            f"measured {row['measured_s'] * 1e3:7.1f} ms, {error:+.1%}"
        )
    simulated, measured = (np.array([row[key] for row in rows]) for key in ("simulated_s", "measured_s"))
    errors = np.abs(simulated / measured - 1)
    print(
        f"{len(rows)} pipelines: median error {np.median(errors):.1%}, worst {errors.max():.1%}; Spearman "
        f"{_rank_correlation(simulated, measured):.3f}"
    )


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's."""
    return float(np.corrcoef(a.argsort().argsort().astype(np.float64), b.argsort().argsort().astype(np.float64))[0, 1])


if __name__ == "__main__":
    sys.exit(main())
