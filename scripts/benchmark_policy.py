"""How many placements a second the policy samples and learns from, by part, against decoders that do it plainly.

    python scripts/benchmark_policy.py

An update samples a batch of placements, has them evaluated, scores them again and follows the gradient. Ours samples
without gradient, all that does not depend on the sample folded ahead of the loop, and scores all steps at once. The
plain decoders do as most published code does: one step after the other on `torch.nn.LSTMCell`, the gradient through
the sampling loop. `plain` has the policy's own attention, one product a step, and the policy's own weights, so its
log-probabilities and gradients are those of ours; `plain_bahdanau` has the attention of Bahdanau et al. (2015, arXiv
1409.0473), which the paper of 2017 used. Sizes, batch and number of threads (one) are equal. Seconds are the least of
some repetitions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

from envs.problem import PlacementProblem
from graphs.files import write_atomically
from placement.api import make_problem
from placement.learning.config import PRESETS, PolicyConfig
from placement.learning.features import make_features
from placement.learning.policy import (
    Encoded,
    FeatureTensors,
    Seq2SeqPolicy,
    chosen_log_probability,
    entropy,
    gumbel_noise,
)
from placement.learning.threads import one_torch_thread
from placement.learning.trainer import Trainer
from placement.text import table

GRAPHS = {100: "nmt", 300: "nmt:steps=60", 1000: "nmt:steps=180"}
"""By the number of groups: graphs that have as many."""

CLUSTER = "k80x4"


@dataclass(frozen=True)
class Timing:
    """Seconds of the parts of one update of `batch` placements.

    Attributes:
        graph: What is placed.
        groups: Its groups.
        batch: Placements.
        encode_s: Reading the graph.
        sample_s: Writing the placements.
        simulate_s: Evaluating them, on one core.
        learn_s: Scoring the placements, gradient.
        plain_s: The plain decoder with the same attention: reading, sampling and gradient in one.
        plain_bahdanau_s: The plain decoder with Bahdanau's attention: reading, sampling and gradient in one.
    """

    graph: str
    groups: int
    batch: int
    encode_s: float
    sample_s: float
    simulate_s: float
    learn_s: float
    plain_s: float
    plain_bahdanau_s: float

    @property
    def ours_s(self) -> float:
        """All that the plain decoders do."""
        return self.encode_s + self.sample_s + self.learn_s


class PlainDecoder(nn.Module):
    """Samples and keeps the graph of all steps; the policy's own attention, or Bahdanau's with weights of its own."""

    def __init__(self, policy: Seq2SeqPolicy, *, bahdanau: bool) -> None:
        super().__init__()
        hidden = policy.hidden_size
        self.policy = policy
        self.cell = nn.LSTMCell(hidden, hidden)
        for name, parameter in policy.decoder.named_parameters():
            setattr(self.cell, name.removesuffix("_l0"), parameter)
        self.bahdanau = bahdanau
        if bahdanau:
            self.query = nn.Linear(hidden, hidden)
            self.energy = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: FeatureTensors, gumbel: Tensor) -> tuple[Tensor, Tensor]:
        """Placements ``int64[B, G]`` and log-probabilities ``float32[B, G, D]`` with their gradient's graph.

        Args:
            x: The problem.
            gumbel: ``float32[B, G, D]`` noise.
        """
        encoded = self.policy.encode(x)
        batch, groups, devices = gumbel.shape
        state = (encoded.hidden.expand(batch, -1), encoded.cell.expand(batch, -1))
        none = torch.full((batch,), devices)
        placed: list[Tensor] = []
        rows = []
        for group in range(groups):
            step_input = encoded.inputs[group].expand(batch, -1)
            for slot, earlier in enumerate(encoded.context[:, group].tolist()):
                step_input = step_input + encoded.chosen[slot][none if earlier < 0 else placed[earlier]]
            state = self.cell(step_input, state)
            hidden = state[0]
            attention = torch.softmax(self._scores(encoded, hidden), dim=1)  # [B, G]
            output = torch.tanh(self.policy.output(hidden) + attention @ encoded.attention_values)
            logits = output @ encoded.device_keys + encoded.bias[group]
            placed.append((logits.detach() + gumbel[:, group]).argmax(dim=1))
            rows.append(torch.log_softmax(logits, dim=1))
        return torch.stack(placed, dim=1), torch.stack(rows, dim=1)

    def _scores(self, encoded: Encoded, hidden: Tensor) -> Tensor:
        """``float32[B, G]``."""
        if not self.bahdanau:
            return hidden @ encoded.attention_keys
        keys = encoded.attention_keys.T * math.sqrt(self.policy.hidden_size)  # [G, H]
        return self.energy(torch.tanh(self.query(hidden)[:, None] + keys))[:, :, 0]  # [B, G, H] inside


def loss_of(log_probabilities: Tensor, placements: Tensor) -> Tensor:
    """A loss of the form of REINFORCE's with an entropy bonus, with a fixed advantage a placement."""
    advantages = torch.linspace(-1.0, 1.0, len(placements))
    chosen = chosen_log_probability(log_probabilities, placements).sum(dim=1)
    return -(advantages * chosen).mean() - 0.01 * entropy(log_probabilities).sum(dim=1).mean()


def measure(graph: str, problem: PlacementProblem, *, batch: int, hidden_size: int, repeats: int) -> Timing:
    """Time all parts on one problem."""
    features = make_features(problem)
    generator = torch.Generator().manual_seed(0)
    policy = Seq2SeqPolicy(features, config=PolicyConfig(hidden_size=hidden_size), generator=generator)
    x = policy.tensors(features)
    noise = gumbel_noise(batch, problem.num_groups, problem.num_devices, generator)
    placements = policy.sample(policy.encode(x), noise)

    def encode() -> Encoded:
        return policy.encode(x)

    def learn(encoded: Encoded) -> None:
        loss_of(policy.score(encoded, placements), placements).backward()

    def plain(decoder: PlainDecoder) -> Callable[[Encoded], None]:
        def update(_: Encoded) -> None:
            sampled, log_probabilities = decoder(x, noise)
            loss_of(log_probabilities, sampled).backward()

        return update

    work: dict[str, Callable[[Encoded], object]] = {
        "encode_s": lambda _: encode(),
        "sample_s": lambda encoded: policy.sample(encoded, noise),
        "simulate_s": lambda _: problem.evaluate(placements.numpy(), threads=1),
        "learn_s": learn,
        "plain_s": plain(PlainDecoder(policy, bahdanau=False)),
        "plain_bahdanau_s": plain(PlainDecoder(policy, bahdanau=True)),
    }
    best_s = dict.fromkeys(work, math.inf)
    for _ in range(repeats):  # round by round, so that a machine that is busy for a while is so for all
        for part, do in work.items():
            slow = part == "plain_bahdanau_s"
            best_s[part] = min(best_s[part], *(_seconds(do, encode()) for _ in range(1 if slow else 4)))
    return Timing(graph, problem.num_groups, batch, **best_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default="100,300,1000", help="numbers of groups: %(default)s")
    parser.add_argument("--graph", help="place this graph; by default nmt with as many time steps as the groups need")
    parser.add_argument("--batch", type=int, default=PRESETS["default"].update.samples, help="placements: %(default)s")
    parser.add_argument("--hidden", type=int, default=PRESETS["default"].policy.hidden_size, help="units: %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the seconds here")
    parser.add_argument("--train-s", type=float, help="instead, train so long on the first graph: is a core idle?")
    asked = parser.parse_args()
    timings = []
    for groups in (int(text) for text in asked.groups.split(",")):
        graph = asked.graph or GRAPHS.get(groups) or f"nmt:steps={max(groups // 6, 2)}"
        problem = make_problem(graph, CLUSTER, groups=groups)
        if asked.train_s is not None:
            show_training(problem, asked.train_s)
            return
        with one_torch_thread():
            timings.append(measure(graph, problem, batch=asked.batch, hidden_size=asked.hidden, repeats=asked.repeats))
    show(timings)
    if asked.json is not None:
        write_atomically(asked.json, json.dumps([asdict(t) for t in timings], indent=1).encode() + b"\n")


def show(timings: list[Timing]) -> None:
    """Milliseconds of each part, placements a second, and how many times the plain decoders' rate that is."""
    console = Console()
    if not console.is_terminal:
        console.width = 160
    columns = ("encode", "sample", "learn", "simulate", "plain", "plain_bahdanau")
    made = table("graph", "groups", *columns, "a second", "of plain", "of bahdanau", right=("groups", *columns))
    for t in timings:
        parts_s = (t.encode_s, t.sample_s, t.learn_s, t.simulate_s, t.plain_s, t.plain_bahdanau_s)
        ratios = (f"{t.plain_s / t.ours_s:.1f} x", f"{t.plain_bahdanau_s / t.ours_s:.1f} x")
        rate = f"{t.batch / (t.ours_s + t.simulate_s):,.0f}"
        made.add_row(t.graph, str(t.groups), *(f"{1e3 * part_s:.1f}" for part_s in parts_s), rate, *ratios)
    console.print(f"Milliseconds for {timings[0].batch} placements, one core; placements a second, simulator included")
    console.print(made)


def show_training(problem: PlacementProblem, limit_s: float) -> None:
    """Train with the default preset, and print what share of the cores was busy and where the time went."""
    trainer = Trainer(problem, config=PRESETS["default"])
    trainer.run(updates=2)  # imports, compiles
    before, began, used = dict(trainer.seconds), time.perf_counter(), time.process_time()
    evaluations, updates = trainer.evaluations, trainer.updates
    trainer.run(time_limit_s=limit_s)
    wall_s, used_s = time.perf_counter() - began, time.process_time() - used
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = ", ".join(f"{part} {(trainer.seconds[part] - before[part]) / wall_s:.0%}" for part in before)
    print(
        f"{problem.graph.name}, {problem.num_groups} groups: {trainer.updates - updates} updates and "
        f"{(trainer.evaluations - evaluations) / wall_s:,.0f} placements a second; {used_s / wall_s:.2f} of {cores} "
        f"cores busy; of the wall clock: {parts}"
    )


def _seconds(work: Callable[[Encoded], object], encoded: Encoded) -> float:
    began = time.perf_counter()
    work(encoded)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
