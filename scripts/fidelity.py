"""How well the simulator predicts measured steps: many placements of small workloads, simulated and measured.

    python scripts/fidelity.py                                   # profile, measure, report
    python scripts/fidelity.py --workloads rnnlm --placements 104 --out runs/fidelity
    python scripts/fidelity.py --json docs/data/fidelity.json --plot docs/images/fidelity.png   # report only

For each workload the machine is profiled with real steps; placements are drawn at random, in blocks,
by heuristics, and learned on the profiled graph; each is run, in random order, until two runs agree. What was measured
is kept in the ``--out`` folder and never measured twice: a run that was stopped goes on. Then the table: the relative
error of the simulated step time and the rank correlations, and what the error comes from.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envs.measured.profile import Observation

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from envs.clusters.device_specs import DEVICE_SPECS
from envs.clusters.file import cluster_to_yaml, load_cluster_file
from envs.measured.machine import parse_devices
from envs.measured.problem import machine_cluster
from envs.measured.process import MeasuringProcess
from envs.measured.profile import observe, profile
from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.files import load_graph_file, save_graph_file, write_atomically
from graphs.sources import load_graph
from placement import api
from placement.runs.training import compare_others, make_trainer
from placement.text import table
from scripts.fidelity_study.report import Measurements, Row, plot_rows, row_of
from scripts.fidelity_study.workloads import WORKLOADS

Placements = list[tuple[str, NDArray[np.int64]]]

_STEPS, _LIMIT_S, _SAVE_EVERY = 5, 60.0, 8


def main() -> int:
    """Measure what is missing, and report."""
    args = _arguments()
    console = Console(soft_wrap=True)
    rows = []
    for name in args.workloads:
        work = Workload(name, WORKLOADS.get(name, name), args.devices, args.out / folder_name(name), args.seed)
        work.measure(args.placements, args.learn_s, console)
        rows.append(row_of(name, args.devices, work.problem, work.load()))
    report(rows, console)
    if args.json is not None:
        write_atomically(args.json, encode(rows, args.model))
    if args.plot is not None:
        plot_rows(rows, args.plot)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--workloads", nargs="+", default=[*WORKLOADS], help="names, or sources of graphs")
    parser.add_argument("--devices", default="cpu:0,cpu:1")
    parser.add_argument("--placements", type=int, default=104, help="of each workload")
    parser.add_argument("--learn-s", type=float, default=12.0, help="seconds of learning on the profiled graph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fidelity"), help="folder of what was measured")
    parser.add_argument("--model", choices=("link", "receiver"), default="receiver", help="model of --json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.placements < 2:
        parser.error("--placements must be at least 2")
    return args


def folder_name(name: str) -> str:
    """A workload's name as one of a folder."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def encode(rows: list[Row], model: str) -> bytes:
    """The figures as JSON."""
    content = {"workloads": [row.record(model) for row in rows]}
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def report(rows: list[Row], console: Console) -> None:
    """Print the table."""
    right = ("placements", "median", "p95", "spearman", "kendall")
    made = table("graph", "model", *right, right=right)
    for row in rows:
        for model, fit in row.fits.items():
            made.add_row(
                row.graph,
                model,
                str(len(row.measured_s)),
                f"{fit.median_error:.1%}",
                f"{fit.p95_error:.1%}",
                f"{fit.spearman:.3f}",
                f"{fit.kendall:.3f}",
            )
    console.print(made)
    right = ("two runs differ", "their Spearman", "copies", "dispatch", "op times off by")
    made = table("graph", *right, right=right)
    for row in rows:
        shares = (row.repeat_error, row.copies_share, row.dispatch_share, row.load_error)
        first, *others = (f"{share:.1%}" for share in shares)
        made.add_row(row.graph, first, f"{row.repeat_spearman:.3f}", *others)
    console.print(made)


@dataclass
class Workload:
    """A graph, the folder of what was measured of it, and how to measure the rest.

    Nothing is measured after `until_s`, by `time.monotonic`; what is missing is measured when it is asked for again.
    """

    name: str
    source: str
    devices: str
    folder: Path
    seed: int
    until_s: float = float("inf")

    @property
    def problem(self) -> PlacementProblem:
        """The profiled problem."""
        graph = load_graph_file(self.folder / "profile.graph.json.gz")
        return api.make_problem(graph, load_cluster_file(self.folder / "cluster.yaml", DEVICE_SPECS))

    def load(self) -> Measurements:
        """What was measured so far."""
        with np.load(self.folder / "measured.npz", allow_pickle=False) as file:
            return Measurements(**{key: file[key] for key in file.files})

    def measure(self, count: int, learn_s: float, console: Console) -> None:
        """Profile, choose placements, and measure those that were not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "measured.npz").exists() and not self.load().wanting.size:
            return
        devices = parse_devices(self.devices)
        bare = load_graph(self.source)
        profiled = self.folder / "profile.graph.json.gz"
        guess = api.make_problem(bare, machine_cluster(devices))
        remaining = (self.problem if profiled.exists() else guess).simulator_input.remaining_path_s
        process = MeasuringProcess(self.source, bare.sha256, devices, remaining)
        if not profiled.exists():
            with process:
                observed: list[Observation] = []
                found = profile(bare, guess.groups, devices, process, seed=self.seed, on_observe=observed.append)
            for number, each in enumerate(observed):
                np.savez_compressed(self.folder / f"calibration-{number}.npz", **vars(each))
            write_atomically(self.folder / "cluster.yaml", cluster_to_yaml(found.cluster, DEVICE_SPECS).encode())
            save_graph_file(found.graph, profiled)
            console.print(f"{self.name}: profiled, {bare.num_ops} ops, alone {1e3 * found.solo_step_s.round(4)} ms")
            # Ready ops are taken in the order of the profiled times from here on.
            process = MeasuringProcess(self.source, bare.sha256, devices, self.problem.simulator_input.remaining_path_s)
        problem = self.problem
        if not (self.folder / "measured.npz").exists():
            chosen = choose_placements(problem, count, learn_s, self.seed)
            self._save(_nothing(problem, chosen, self.seed))
        with process:
            self._measure(process, problem, console)

    def _measure(self, process: MeasuringProcess, problem: PlacementProblem, console: Console) -> None:
        done = self.load()
        runs = 0
        while (left := done.wanting).size and time.monotonic() < self.until_s:
            each = observe(
                process,
                done.op_device[left[0]].astype(np.int32),
                schedule="priority",
                steps=_STEPS,
                time_limit_s=_LIMIT_S,
            )
            done.note(int(left[0]), each)
            runs += 1
            if runs % _SAVE_EVERY == 0 or not done.wanting.size:
                self._save(done)
        self._save(done)
        console.print(f"{self.name}: {len(done.step_s)} placements measured")

    def _save(self, measurements: Measurements) -> None:
        path = self.folder / "measured.npz"
        part = path.with_name("measured.part.npz")
        np.savez_compressed(part, **vars(measurements))
        part.replace(path)


def _nothing(problem: PlacementProblem, chosen: Placements, seed: int) -> Measurements:
    """Placements in random order, and no figures yet."""
    order = np.random.default_rng(seed).permutation(len(chosen))
    kinds = [chosen[i][0] for i in order]
    ops = np.stack([problem.groups.to_ops(chosen[i][1]) for i in order]).astype(np.int8)
    return Measurements.empty(ops, np.array(kinds), problem.num_devices)


def choose_placements(problem: PlacementProblem, count: int, learn_s: float, seed: int) -> Placements:
    """About equal shares of random, blocks, and what heuristics and learning find with their neighbourhood."""
    rng = np.random.default_rng(seed)
    allowed = problem.allowed
    fixed = np.where(allowed.sum(axis=1) == 1, allowed.argmax(axis=1), -1)
    made: Placements = []
    seen: set[bytes] = set()

    def add(kind: str, placement: NDArray[np.integer]) -> None:
        placed = np.where(fixed >= 0, fixed, placement)
        if len(made) < count and placed.tobytes() not in seen:
            seen.add(placed.tobytes())
            made.append((kind, placed))

    groups, devices = problem.num_groups, problem.num_devices
    best = _found(problem, learn_s, seed, add, most=count // 3)
    while len(made) < count // 2:  # the neighbourhood of the learned: some groups moved
        moved = best.copy()
        some = rng.choice(groups, size=1 + int(rng.integers(max(groups // 3, 1))), replace=False)
        moved[some] = rng.integers(devices, size=len(some))
        add("near learned", moved)
        if groups <= 6 and rng.random() < 0.02:  # so few groups that there may be no other
            break
    tries = 0
    while len(made) < count and tries < 100 * count:
        tries += 1
        if tries % 2:
            share = rng.dirichlet(np.ones(devices))
            add("random", rng.choice(devices, size=groups, p=share))
        else:
            cuts = np.sort(rng.integers(groups, size=1 + int(rng.integers(4))))
            add("blocks", (np.searchsorted(cuts, np.arange(groups), side="right") + rng.integers(devices)) % devices)
    return made


def _found(
    problem: PlacementProblem,
    learn_s: float,
    seed: int,
    add: Callable[[str, NDArray[np.integer]], None],
    *,
    most: int,
) -> NDArray[np.int64]:
    """Add what heuristics and learning on the profiled graph find; returns the best."""
    comparison = compare_others(problem, seed=seed, time_limit_s=learn_s)
    for row in comparison.ranked():
        if row.placement is not None:
            add("heuristic", row.placement)
    trainer = make_trainer(problem, comparison, preset="default", seed=seed, run_dir=None)
    trainer.run(time_limit_s=learn_s)
    # The very best may be one of single ops; its neighbours in the elite are of groups.
    learned = [placement for placement in trainer.best_placements() if len(placement) == problem.num_groups]
    for placement in learned[: max(most, 1)]:
        add("learned", placement)
    return np.asarray(learned[0], dtype=np.int64)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"fidelity: {error}", file=sys.stderr)
        sys.exit(2)
