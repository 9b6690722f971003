"""What an agent of others learns in `DevicePlacement-v1`, and how many steps a second its vector environment makes.

    python scripts/benchmark_environments.py --json environments.json --plot environments.png --page page.md

Runs `examples/learn_with_guidance.py` (sb3-contrib's MaskablePPO, default hyperparameters) for each cell and seed,
then measures steps with random actions; then draws the curves and fills the page's tables. Rows that
the file of rows holds are not made again; with --report nothing is run. A run's seconds are processor time, rates are
by the clock: nothing else should be on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

from envs.guided.vector import GuidedPlacementVectorEnv
from graphs.files import write_atomically
from placement.api import make_problem
from placement.learning.warm_start import heuristic_placements

ROOT = Path(__file__).resolve().parent.parent
CELLS = ("rnnlm/k80x4", "nmt/k80x4", "inception_v3/k80x4", "nasnet/k80x4", "moe_lm/mixed", "nmt:layers=8/v100x8")
GROUPS = 64
COPIES = 256
BEGIN = "<!-- written by scripts/benchmark_environments.py: begin -->"
END = "<!-- written by scripts/benchmark_environments.py: end -->"

Row = dict[str, Any]


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), help="GRAPH/CLUSTER ...: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of a core each: %(default)s")
    parser.add_argument("--rate-s", type=float, default=3.0, help="seconds of each rate: %(default)s")
    parser.add_argument("--json", type=Path, default=Path("environments.json"), help="the file of rows: %(default)s")
    parser.add_argument("--report", action="store_true", help="run nothing, show what the file holds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves into this picture")
    parser.add_argument("--page", type=Path, metavar="FILE", help="fill the tables between the page's markers")
    asked = parser.parse_args(args)
    kept: dict[str, list[Row]] = {"runs": [], "rates": []}
    if asked.json.exists():
        kept = json.loads(asked.json.read_text())
    if not asked.report:
        done = {(f"{row['graph']}/{row['cluster']}", row["seed"]) for row in kept["runs"]}
        wanted = [(cell, seed) for seed in asked.seeds for cell in asked.cells if (cell, seed) not in done]
        with ThreadPoolExecutor(asked.jobs) as pool:
            for row in pool.map(lambda job: learn(job[0], job[1], asked.seconds), wanted):
                kept["runs"].append(row)
                write_atomically(asked.json, json.dumps(kept, indent=1).encode())
        for cell in asked.cells:
            for credit in ("outlook", "simulated"):
                if not any((f"{r['graph']}/{r['cluster']}", r["credit"]) == (cell, credit) for r in kept["rates"]):
                    kept["rates"].append(rate(cell, credit, asked.rate_s))
                    write_atomically(asked.json, json.dumps(kept, indent=1).encode())
    tables = f"{runs_table(kept['runs'])}\n\n{rates_table(kept['rates'])}"
    print(tables)
    if asked.plot is not None:
        plot(kept["runs"], asked.plot)
    if asked.page is not None:
        before, _, rest = asked.page.read_text().partition(BEGIN)
        write_atomically(asked.page, f"{before}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}".encode())
    return 0


def learn(cell: str, seed: int, seconds: float) -> Row:
    """One run of the example in a process of its own."""
    graph, _, cluster = cell.partition("/")
    out = Path(f"learn_with_guidance.{graph}.{cluster}.{seed}.json").resolve()
    command = [sys.executable, str(ROOT / "examples" / "learn_with_guidance.py"), "--graph", graph]
    command += ["--cluster", cluster, "--groups", str(GROUPS), "--seconds", str(seconds), "--seed", str(seed)]
    command += ["--json", str(out)]
    subprocess.run(command, check=True)
    row: Row = json.loads(out.read_text())
    out.unlink()
    return row


def rate(cell: str, credit: Any, seconds: float) -> Row:
    """Steps a second of the vector environment on all cores, actions drawn uniformly among the allowed ones."""
    graph, _, cluster = cell.partition("/")
    problem = make_problem(graph, cluster, groups=GROUPS)
    copies = GuidedPlacementVectorEnv(COPIES, problem, votes=heuristic_placements, credit=credit)
    copies.reset(seed=0)
    rng = np.random.default_rng(0)
    draws = rng.random((problem.num_groups, COPIES, problem.num_devices))
    steps, began, spent_s = 0, 0.0, 0.0
    for number in range(10**9):
        mask = copies.action_masks()
        actions = np.where(mask, draws[number % len(draws)], -1.0).argmax(axis=1)
        started = time.perf_counter()
        copies.step(actions)
        if number >= problem.num_groups:  # the first episode compiles
            spent_s += time.perf_counter() - started
            steps += COPIES
        else:
            began = time.perf_counter()
        if number >= problem.num_groups and time.perf_counter() - began > seconds:
            break
    about = {"graph": graph, "cluster": cluster, "credit": credit, "groups": problem.num_groups}
    return about | {"ops": problem.graph.num_ops, "steps_per_s": steps / spent_s}


def runs_table(runs: list[Row]) -> str:
    """Markdown: what the policy's placements take on average, against the best heuristic."""
    heads = ("graph", "cluster", "groups", "best heuristic", "ms", "policy's mean, ms", "over the heuristic")
    lines = [f"| {' | '.join((*heads, 'likeliest', 'steps'))} |", "|---|---|--:|---|--:|--:|--:|--:|--:|"]
    won = 0
    for mine in _cells(runs).values():
        first = mine[0]
        ratios = [row["mean_s"] / row["heuristic_s"] for row in mine]
        likeliest = statistics.mean(row["greedy_s"] / row["heuristic_s"] for row in mine)
        mean_ratio = statistics.mean(ratios)
        won += mean_ratio < 1
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        steps = statistics.mean(row["steps"] for row in mine)
        mean_ms = statistics.mean(row["mean_s"] for row in mine) * 1e3
        lines.append(
            f"| {first['graph']} | {first['cluster']} | {first['groups']} | {first['heuristic']} | "
            f"{first['heuristic_s'] * 1e3:.2f} | {mean_ms:.2f} | {mean_ratio:.3f} ({spread}) | {likeliest:.3f} | "
            f"{steps:,.0f} |"
        )
    seeds = max((len(mine) for mine in _cells(runs).values()), default=0)
    lines += ["", f"{seeds} seeds; the mean is below the best heuristic on {won} of {len(_cells(runs))} cells."]
    return "\n".join(lines)


def rates_table(rates: list[Row]) -> str:
    """Markdown: steps a second of the vector environment."""
    lines = ['| graph | cluster | ops | groups | `credit="outlook"`, steps/s | `credit="simulated"`, steps/s |']
    lines += ["|---|---|--:|--:|--:|--:|"]
    for mine in _cells(rates).values():
        by = {row["credit"]: f"{row['steps_per_s']:,.0f}" for row in mine}
        first = mine[0]
        lines.append(
            f"| {first['graph']} | {first['cluster']} | {first['ops']:,} | {first['groups']} | "
            f"{by.get('outlook', '-')} | {by.get('simulated', '-')} |"
        )
    return "\n".join([*lines, "", f"{COPIES} copies, two cores, actions drawn uniformly among those allowed."])


def plot(runs: list[Row], path: Path) -> None:
    """The mean step time of each update's placements over the best heuristic's, against seconds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = _cells(runs)
    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3).ravel()
    for axes, (cell, mine) in zip(panels, cells.items(), strict=False):
        for row in mine:
            curve = np.array(row["curve"]).reshape(-1, 3)
            axes.plot(curve[:, 0], curve[:, 2] / row["heuristic_s"], linewidth=1.2, label=f"seed {row['seed']}")
        axes.axhline(1.0, color="#999999", linestyle="--", linewidth=1)
        axes.set(title=cell, xlabel="seconds", ylabel="mean step time / best heuristic", ylim=(0.85, 1.6))
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    print(path)


def _cells(rows: list[Row]) -> dict[str, list[Row]]:
    by: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by[f"{row['graph']}/{row['cluster']}"].append(row)
    return by


if __name__ == "__main__":
    sys.exit(main())
