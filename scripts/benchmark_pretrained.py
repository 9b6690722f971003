"""What the pretrained policy answers at once, beside the best heuristic and a search in the same seconds.

    python scripts/benchmark_pretrained.py --json docs/data/pretrained.json --page docs/results/pretrained.md

Problems are drawn from seeds that no training uses (`placement.pretrained.split`): of families that are trained on, and
of families held out; then captured models of the zoo on clusters of the catalogue. For each problem and seed,
`placement place` answers; then `reinforce`, which starts from the same heuristics and searches, gets the seconds that
this took, in the same process. The best heuristic is the best of all placers that neither learn nor search, each as
long as it takes. Problems that the file of rows holds are not run again; with --report nothing is run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

from envs.problem import PlacementProblem
from graphs.files import write_atomically
from placement.api import make_problem
from placement.placers.base import Budget
from placement.pretrained.network import Weights, digest, initial, load
from placement.pretrained.problems import draw
from placement.pretrained.split import FIRST_TEST_SEED, HELD_OUT, TRAINED_ON
from placement.registry import PLACERS
from placement.results.comparison import compare_placers, quick_placers
from placement.runs.compile_ahead import compile_for, compile_placing
from placement.runs.placing import place

BEGIN = "<!-- written by scripts/benchmark_pretrained.py: begin -->"
END = "<!-- written by scripts/benchmark_pretrained.py: end -->"
KINDS = {"trained": "families that are trained on", "held out": "families held out", "captured": "captured models"}
CAPTURED = (
    "rnnlm/k80x4", "nmt/k80x4", "inception_v3/k80x4", "moe_lm/mixed", "nasnet/k80x4", "transformer_lm/a100x4",
    "nmt/p100x4", "rnnlm/v100x8", "inception_v3/v100x8", "moe_lm/v100x8",
)  # fmt: skip

Row = dict[str, Any]


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=4, help="drawn of each held-out family: %(default)s")
    parser.add_argument("--trained", type=int, default=40, help="drawn of families trained on: %(default)s")
    parser.add_argument("--captured", nargs="*", default=list(CAPTURED), help="GRAPH/CLUSTER ...: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", type=int, default=256, help="wanted groups: %(default)s")
    parser.add_argument("--weights", type=Path, help="by default those of this release")
    parser.add_argument("--json", type=Path, default=Path("pretrained.json"), help="the file of rows: %(default)s")
    parser.add_argument("--report", action="store_true", help="run nothing, show what the file holds")
    parser.add_argument("--page", type=Path, metavar="FILE", help="fill the tables between the page's markers")
    asked = parser.parse_args(args)
    weights = load(asked.weights)
    rows: list[Row] = json.loads(asked.json.read_text()) if asked.json.exists() else []
    if not asked.report:
        done = {row["name"] for row in rows if row["weights"] == digest(weights)}
        rows = [row for row in rows if row["name"] in done]
        for kind, family, name, make in _cells(asked):
            if name not in done:
                rows.append(measure(make(), weights, asked.seeds) | {"kind": kind, "family": family, "name": name})
                write_atomically(asked.json, json.dumps(rows, indent=1).encode() + b"\n")
                print(f"{name}: {_line(rows[-1])}", flush=True)
    table = report(rows)
    print(table)
    if asked.page is not None:
        before, _, rest = asked.page.read_text().partition(BEGIN)
        write_atomically(asked.page, f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}".encode())
    return 0


def _cells(asked: argparse.Namespace) -> Iterator[tuple[str, str, str, Any]]:
    """Kind, family, name, and what makes the problem."""
    for number in range(asked.problems):
        for place_of, family in enumerate(HELD_OUT):
            seed = FIRST_TEST_SEED + number * len(HELD_OUT) + place_of
            yield (
                "held out",
                family,
                f"{family}, seed {seed}",
                lambda seed=seed, family=family: draw(seed, families=[family], groups=asked.groups).problem,
            )
    for seed in range(FIRST_TEST_SEED, FIRST_TEST_SEED + asked.trained):
        drawn = draw(seed, families=TRAINED_ON, groups=asked.groups)
        yield "trained", drawn.family, f"{drawn.family}, seed {seed}", lambda drawn=drawn: drawn.problem
    for name in asked.captured:
        graph, _, cluster = name.partition("/")
        yield (
            "captured",
            graph,
            name,
            lambda graph=graph, cluster=cluster: make_problem(graph, cluster, groups=asked.groups),
        )


def measure(problem: PlacementProblem, weights: Weights, seeds: Sequence[int]) -> Row:
    """Step times in seconds of the best heuristic, and for each seed of the answer and of a search as long."""
    placers = quick_placers(problem)
    search = PLACERS["reinforce"]
    compile_placing(problem.schedule)
    compile_for([*placers, search], problem.schedule)
    compared = compare_placers(problem, placers, budget=Budget(), seed=0)
    heuristics = [(row.step_time_s, row.placer) for row in compared.rows if row.feasible and row.step_time_s]
    best_s, best = min(heuristics) if heuristics else (None, "")
    row: Row = {
        "weights": digest(weights),
        "graph": problem.graph.name,
        "cluster": problem.cluster.name,
        "ops": problem.graph.num_ops,
        "groups": problem.num_groups,
        "devices": problem.num_devices,
        "best_heuristic": best,
        "best_heuristic_s": best_s,
        "seconds": [],
        "asked_heuristics_s": [],
        "untrained_s": [],
        "policy_s": [],
        "place_s": [],
        "search_s": [],
    }
    for seed in seeds:
        began_s = time.perf_counter()
        answer = place(problem, weights=weights, seed=seed)
        took_s = time.perf_counter() - began_s
        placed = search.function(problem, budget=Budget(time_limit_s=took_s), rng=np.random.default_rng(seed))
        if not row["untrained_s"]:
            row["untrained_s"].append(_known(place(problem, weights=initial(0), seed=seed).policy_s))
        row["seconds"].append(took_s)
        row["asked_heuristics_s"].append(_known(answer.best_heuristic_s))
        row["policy_s"].append(_known(answer.policy_s))
        row["place_s"].append(answer.step_time_s if answer.feasible else None)
        row["search_s"].append(_known(float(problem.evaluate_one(placed.placement).cost_s()[0])))
    return row


def report(rows: Sequence[Row]) -> str:
    """Two tables in Markdown: by kind of problem, and by held-out family."""
    lines = [
        "| problems | | untrained policy | policy | `placement place` | heuristics, then search | "
        "ahead of the heuristics | ahead of the search | seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, said in KINDS.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        if of_kind:
            lines.append(f"| {said} | {len(of_kind)} | {' | '.join(_cell_texts(of_kind))} |")
    lines += ["", "| held-out family | | untrained policy | policy | `placement place` | heuristics, then search |"]
    lines += ["|---|--:|--:|--:|--:|--:|"]
    for family in HELD_OUT:
        of_family = [row for row in rows if row["kind"] == "held out" and row["family"] == family]
        if of_family:
            lines.append(f"| {family} | {len(of_family)} | {' | '.join(_cell_texts(of_family)[:4])} |")
    captured = [row for row in rows if row["kind"] == "captured"]
    if captured:
        lines += ["", "| captured model | cluster | best heuristic | untrained policy | policy | `placement place` | "
                  "heuristics, then search |", "|---|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    for row in captured:
        if row["best_heuristic_s"] is None:
            continue
        graph, _, cluster = row["name"].partition("/")
        best = f"{row['best_heuristic_s'] * 1e3:.1f} ms ({row['best_heuristic']})"
        lines.append(f"| {graph} | {cluster} | {best} | {' | '.join(_cell_texts([row])[:4])} |")
    return "\n".join(lines)


def _cell_texts(rows: Sequence[Row]) -> list[str]:
    """Geometric means over problems of step times over the best heuristic's, with the least and most of the seeds."""
    usable = [row for row in rows if row["best_heuristic_s"] is not None]
    texts = []
    for column in ("untrained_s", "policy_s", "place_s", "search_s"):
        by_seed = []
        for seed in range(min((len(row[column]) for row in usable), default=0)):
            ratios = [_ratio(row, column, seed) for row in usable]
            by_seed.append(math.exp(statistics.mean(math.log(ratio) for ratio in ratios)))
        whole = math.exp(statistics.mean(math.log(value) for value in by_seed)) if by_seed else math.nan
        texts.append(f"{whole:.3f} ({min(by_seed):.3f} to {max(by_seed):.3f})" if by_seed else "-")
    pairs = [(row, seed) for row in usable for seed in range(len(row["place_s"]))]
    ahead = [_ratio(row, "place_s", seed) < 0.99 for row, seed in pairs]
    of_search = [_ratio(row, "place_s", seed) < _ratio(row, "search_s", seed) for row, seed in pairs]
    seconds = [row["seconds"][seed] for row, seed in pairs]
    texts += [f"{sum(ahead) / max(len(ahead), 1):.0%}", f"{sum(of_search) / max(len(of_search), 1):.0%}"]
    return [*texts, f"{statistics.median(seconds):.2f}" if seconds else "-"]


def _known(seconds: float) -> float | None:
    """Seconds, or None for what does not fit: JSON has no infinity."""
    return seconds if math.isfinite(seconds) else None


def _ratio(row: Row, column: str, seed: int) -> float:
    """A step time over the best heuristic's, 2 at most; what does not fit counts as 2."""
    value = row[column][seed]
    return 2.0 if value is None else min(value / row["best_heuristic_s"], 2.0)


def _line(row: Row) -> str:
    if row["best_heuristic_s"] is None:
        return "no heuristic's placement fits"
    return f"{_cell_texts([row])[1:4]}, {statistics.mean(row['seconds']):.2f} s"


if __name__ == "__main__":
    sys.exit(main())
