"""The table of Mirhoseini et al. (ICML 2017, arXiv 1706.04972): our simulated step times next to the published ones.

    python scripts/reproduce_paper.py --json paper.json

The paper's six cells under the schedule `fifo`, the dataflow executor that it measured: one CPU, one GPU, Scotch,
MinCut (METIS), the expert, and the learned placer with the preset `paper`, the method as published, and `default`.
A gain is what the best of the others takes, over ours, less one. The JSON file is written after every row; started
again, the script runs only what is missing. With `--link-bytes-per-s 2.5e9` links are as slow as a TensorFlow of 2017
had them out of PCIe.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.files import write_atomically
from placement.api import make_problem
from placement.placers.base import Budget
from placement.placers.single_device import single_device_placements
from placement.registry import get_placer
from placement.text import table

SCHEDULE = "fifo"
OTHERS = ("one_cpu", "one_gpu", "scotch", "mincut", "expert")
LEARNED = ("paper", "default")


@dataclass(frozen=True)
class Published:
    """A line of the paper's table 2, in seconds; None for what ran out of memory."""

    one_cpu: float
    one_gpu: float | None
    scotch: float
    mincut: float
    expert: float
    learned: float
    gain: float


PUBLISHED = {
    ("rnnlm", "k80x2"): Published(6.89, 1.57, 13.43, 11.94, 3.81, 1.57, 0.0),
    ("rnnlm", "k80x4"): Published(6.89, 1.57, 11.52, 10.44, 4.46, 1.57, 0.0),
    ("nmt", "k80x2"): Published(10.72, None, 14.19, 11.54, 4.99, 4.04, 0.235),
    ("nmt", "k80x4"): Published(10.72, None, 11.23, 11.78, 4.73, 3.92, 0.206),
    ("inception_v3", "k80x2"): Published(26.21, 4.60, 25.24, 22.88, 11.22, 4.60, 0.0),
    ("inception_v3", "k80x4"): Published(26.21, 4.60, 23.41, 24.52, 10.65, 3.85, 0.19),
}
"""By graph and cluster."""


@dataclass(frozen=True)
class Row:
    """One placer in one cell.

    Attributes:
        graph: The workload.
        cluster: With its overrides.
        placer: One of `OTHERS` or `LEARNED`.
        seed: Of its random numbers.
        budget_s: Seconds that a learned placer was given; None for the others.
        seconds: Seconds that it took.
        step_time_s: None where there is no placement.
        feasible: Whether it fits.
        note: Why there is none.
    """

    graph: str
    cluster: str
    placer: str
    seed: int
    budget_s: float | None
    seconds: float
    step_time_s: float | None
    feasible: bool
    note: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What tells it from all others."""
        return (self.graph, self.cluster, self.placer, self.seed, self.budget_s)

    @property
    def fits_s(self) -> float:
        """The step time, infinite where there is none that fits."""
        return self.step_time_s if self.feasible and self.step_time_s is not None else np.inf


def main(args: Sequence[str] | None = None) -> int:
    asked = _parse(args)
    try:
        return _run(asked)
    except InputError as error:
        print(f"reproduce_paper: {error}", file=sys.stderr)
        return 2


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cells = [f"{graph}/{cluster}" for graph, cluster in PUBLISHED]
    parser.add_argument("--cells", nargs="+", default=cells, help="of the paper's: %(default)s")
    parser.add_argument("--presets", default=",".join(LEARNED), help="of the learned placer: %(default)s")
    parser.add_argument("--time-limit-s", type=float, default=40.0, help="of each learned placer: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--link-bytes-per-s", help="bandwidth of every link, in place of the catalogue's 10e9")
    parser.add_argument("--sizes", default="", help="sizes of the workloads, as steps=10,batch=8; none are the paper's")
    parser.add_argument("--json", type=Path, default=Path("paper.json"), help="the file of rows: %(default)s")
    return parser.parse_args(args)


def _run(asked: argparse.Namespace) -> int:
    cells = [_cell(name) for name in asked.cells]
    presets = [name for name in asked.presets.split(",") if name]
    for name in presets:
        if name not in LEARNED:
            raise InputError(f"--presets: '{name}' is none of {', '.join(LEARNED)}")
    if not asked.json.resolve().parent.is_dir():
        raise InputError(f"cannot write '{asked.json}': there is no directory '{asked.json.parent}'; make it first")
    rows = read_rows(asked.json)
    done = {row.key for row in rows}
    shown: list[tuple[tuple[str, str], list[Row]]] = []
    for graph, cluster in cells:
        named = f"{cluster}:link_bytes_per_s={asked.link_bytes_per_s}" if asked.link_bytes_per_s else cluster
        source = f"{graph}:{asked.sizes}" if asked.sizes else graph
        mine = []
        problem: PlacementProblem | None = None
        for placer in (*OTHERS, *presets):
            budget_s = asked.time_limit_s if placer in LEARNED else None
            key = (source, named, placer, asked.seed, budget_s)
            if key not in done:
                problem = problem or make_problem(source, named, schedule=SCHEDULE)
                print(f"{source} on {named}: {placer}", file=sys.stderr, flush=True)
                rows.append(run_placer(problem, placer, key))
                done.add(key)
                write_atomically(
                    asked.json, json.dumps({"rows": [asdict(row) for row in rows]}, indent=1).encode() + b"\n"
                )
            mine.append(next(row for row in rows if row.key == key))
        shown.append(((graph, cluster), mine))
    show(shown)
    return 0


def run_placer(problem: PlacementProblem, placer: str, key: tuple[str, str, str, int, float | None]) -> Row:
    """Ask one placer, and evaluate its answer again."""
    seed, budget_s = key[3:]
    began = time.perf_counter()
    rng = np.random.default_rng(seed)
    try:
        if placer in ("one_cpu", "one_gpu"):
            name = "cpu:0" if placer == "one_cpu" else "gpu:0"
            placement = dict(single_device_placements(problem))[name]
        elif placer in LEARNED:
            from placement.learning.config import PRESETS
            from placement.learning.placer import place_with

            placed = place_with(problem, budget=Budget(time_limit_s=budget_s), rng=rng, config=PRESETS[placer])
            placement = placed.placement
        else:
            placement = get_placer(placer).function(problem, budget=Budget(), rng=rng).placement
    except InputError as error:
        return Row(*key, time.perf_counter() - began, None, False, str(error))
    taken_s = time.perf_counter() - began
    evaluation = problem.evaluate_one(placement)
    return Row(*key, round(taken_s, 3), float(evaluation.step_time_s[0]), bool(evaluation.feasible[0]))


def show(cells: Sequence[tuple[tuple[str, str], Sequence[Row]]]) -> None:
    """Ours above the published figures, gains next to each other, and where the order of placers is another one."""
    console = Console()
    if not console.is_terminal:
        console.width = 140
    presets = [row.placer for row in cells[0][1] if row.placer in LEARNED]
    learned = [f"RL {name}" for name in presets]
    gains = [f"gain {name}" for name in presets]
    columns = ("one CPU", "one GPU", "Scotch", "MinCut", "expert", *learned, *gains)
    made = table("cell", "", *columns, right=columns)
    total_s = 0.0
    for (graph, cluster), rows in cells:
        by_name = {row.placer: row for row in rows}
        best_s = best_other_s(rows)
        entries = [_step(by_name[name]) for name in (*OTHERS, *presets)]
        entries += [f"{gain(by_name[name], best_s):.1%}" for name in presets]
        made.add_row(f"{graph}/{cluster}", "ours", *entries)
        published = PUBLISHED[graph, cluster]
        figures = [getattr(published, name) for name in OTHERS]
        paper = ["memory" if value is None else f"{value:.2f}" for value in figures]
        paper += ["" if name == "default" else f"{published.learned:.2f}" for name in presets]
        paper += ["" if name == "default" else f"{published.gain:.1%}" for name in presets]
        made.add_row("", "published", *paper)
        total_s += sum(row.seconds for row in rows)
    console.print("Seconds a step, schedule fifo; gain: the best of the first five over RL, less one")
    console.print(made)
    lines = [line for cell, rows in cells for line in differences(cell, rows)]
    for line in [*lines, *(reason for reason in _REASONS if any(line.endswith(reason[:3]) for line in lines))]:
        console.print(line, markup=False)
    console.print(f"All of it took {total_s:.0f} s (published: 12 to 27 hours a cell).")


def best_other_s(rows: Sequence[Row]) -> float:
    """Step time of the best that is not learned, infinite where none fits."""
    return min((row.fits_s for row in rows if row.placer in OTHERS), default=np.inf)


def gain(row: Row, best_s: float) -> float:
    """``best other / ours - 1``; -1 where ours does not fit."""
    return -1.0 if np.isinf(row.fits_s) else best_s / row.fits_s - 1.0


def differences(cell: tuple[str, str], rows: Sequence[Row]) -> list[str]:
    """Where the placers that do not learn come in another order than published, each with the number of the reason."""
    graph, cluster = cell
    published = {name: getattr(PUBLISHED[cell], name) for name in OTHERS}
    ours = {row.placer: row.fits_s for row in rows if row.placer in OTHERS}
    theirs_best = min((name for name in OTHERS if published[name] is not None), key=lambda name: published[name])
    ours_best = min(ours, key=lambda name: ours[name])
    lines = []
    if not np.isfinite(ours[theirs_best]):
        lines.append(
            f"{graph}/{cluster}: {theirs_best}, the best of the others as published, does not fit here{_MEMORY}"
        )
    elif ours_best != theirs_best:
        lines.append(
            f"{graph}/{cluster}: best of the others is {ours_best} ({ours[ours_best]:.3f} s), published {theirs_best} "
            f"({published[theirs_best]:.2f} s){_SPLIT}"
        )
    if published["one_gpu"] is None and np.isfinite(ours["one_gpu"]):
        lines.append(f"{graph}/{cluster}: one GPU holds the step here, published: out of memory{_MEMORY}")
    worse = [name for name in ("scotch", "mincut") if published[name] > published["one_cpu"]]
    better = [name for name in worse if ours[name] < ours["one_cpu"]]
    if better:
        lines.append(f"{graph}/{cluster}: {' and '.join(better)} beat one CPU here, published: slower{_SPLIT}")
    return lines


_SPLIT, _MEMORY = " [1]", " [2]"
_REASONS = (
    "[1] A simulated transfer costs its latency and its bytes over the bandwidth, and overlaps computing. As published,"
    " a split cost more than its bytes: the expert's two parts of Inception-V3 took 2.4 times as long as one GPU.",
    "[2] Memory is that of tensors alive under the schedule, freed at the last reader, without the runtime's buffers.",
)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none where there is no file."""
    if not path.exists():
        return []
    try:
        return [Row(**entry) for entry in json.loads(path.read_text())["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' cannot be read as rows ({error!r}); move it away to start anew") from error


def _cell(name: str) -> tuple[str, str]:
    graph, _, cluster = name.partition("/")
    if (graph, cluster) not in PUBLISHED:
        known = ", ".join("/".join(cell) for cell in PUBLISHED)
        raise InputError(f"cell '{name}' is none of the paper's: {known}")
    return graph, cluster


def _step(row: Row) -> str:
    if row.step_time_s is None:
        return "-"
    return f"{row.step_time_s:.3f}" if row.feasible else "memory"


if __name__ == "__main__":
    sys.exit(main())
