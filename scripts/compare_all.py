"""Compare all placers on all workloads and clusters: fills a page of docs, and a JSON file with every row.

They are `docs/results/results.md` and `docs/data/results.json`; another --out has its own JSON file next to it.

    python scripts/compare_all.py --graphs rnnlm,nmt --clusters k80x2,k80x4 --time-limit-s 60 --seeds 0,1,2
    python scripts/compare_all.py --cells nmt@k80x4,bert@v100x8 --rerun reinforce

The JSON file is written after every finished row. Started again with the same budget, after a kill or with more graphs,
clusters, placers or seeds, the script runs only what is missing; --rerun names placers whose rows are rebuilt, all
others are kept. Another budget is refused unless --restart is given.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

from graphs.errors import InputError, NoFeasiblePlacementError
from graphs.files import write_atomically
from graphs.zoo import ZOO
from placement.api import make_problem
from placement.placers.base import Budget
from placement.registry import PLACERS, choose_placers
from placement.results.comparison import SINGLE_DEVICE, Comparison, RowSource, compare_placers
from placement.results.comparison_file import ComparisonRecord, RowRecord, finished_rows, make_record
from placement.runs.row_jobs import row_source
from placement.text import clock, seconds
from placement.workers import open_workers

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "results.md"
ROWS = ROOT / "docs" / "data" / "results.json"


class Cell(msgspec.Struct, frozen=True):
    """One graph on one cluster with one seed, as they were named on the command line, and what the placers came to."""

    graph: str
    cluster: str
    comparison: ComparisonRecord


class Results(msgspec.Struct, frozen=True):
    """The content of `results.json`."""

    cells: tuple[Cell, ...] = ()
    format: Literal["device-placement-results"] = "device-placement-results"
    version: Literal[1] = 1


def main(args: Sequence[str] | None = None) -> int:
    asked = _parse(args)
    try:
        return _run(asked)
    except InputError as error:
        print(f"compare_all: {error}", file=sys.stderr)
        return 2


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", default=",".join(ZOO), help="graphs, separated by spaces or by commas: %(default)s")
    parser.add_argument("--clusters", default="k80x2,k80x4", help="clusters, separated by commas: %(default)s")
    parser.add_argument(
        "--cells", help="graph@cluster, separated by commas, in place of each of --graphs on each of --clusters"
    )
    parser.add_argument("--placers", default="all", help="placers, separated by commas, or all")
    parser.add_argument("--time-limit-s", type=float, default=60.0, help="seconds for each search: %(default)s")
    parser.add_argument("--seeds", default="0", help="seeds, separated by commas: %(default)s")
    parser.add_argument("--schedule", default="priority", help="the simulator's: %(default)s")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write: %(default)s")
    parser.add_argument("--rerun", default="", help="placers, separated by commas, whose finished rows are run again")
    parser.add_argument("--workers", help="run placers at the same time: a number of processes, ray, ray://HOST:PORT")
    parser.add_argument("--restart", action="store_true", help="forget what the results file holds")
    return parser.parse_args(args)


def _run(asked: argparse.Namespace) -> int:
    out: Path = asked.out
    raw = ROWS if out.resolve() == PAGE else out.with_suffix(".json")
    placers = choose_placers(asked.placers)
    placers = [SINGLE_DEVICE, *(name for name in placers if name != SINGLE_DEVICE)]  # without it no table is honest
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    budget = Budget(time_limit_s=asked.time_limit_s)
    if not out.parent.is_dir():
        raise InputError(f"cannot write '{out}': there is no directory '{out.parent}'; make it first")
    results = Results() if asked.restart or not raw.exists() else _read(raw)
    for cell in results.cells:
        was = cell.comparison.time_limit_s
        if was != asked.time_limit_s:  # one page, one budget
            raise InputError(
                f"'{raw}' holds comparisons with other settings: time_limit_s was {was} and is {asked.time_limit_s} "
                "now; start anew with --restart, or give another --out"
            )
    again = choose_placers(asked.rerun) if asked.rerun else []
    with contextlib.ExitStack() as opened:
        source = row_source(opened.enter_context(open_workers(asked.workers))) if asked.workers else None
        _fill(asked, results, raw=raw, placers=placers, seeds=seeds, budget=budget, again=again, source=source)
    print(f"{out}, {raw}")
    return 0


def _fill(
    asked: argparse.Namespace,
    results: Results,
    *,
    raw: Path,
    placers: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    again: Sequence[str],
    source: RowSource | None,
) -> None:
    """Run what is missing, and write the rows after each, and the page after each cell."""
    out: Path = asked.out
    began = time.perf_counter()
    for graph, cluster in _cells(asked):
        problem = make_problem(graph, cluster, schedule=asked.schedule)
        for seed in seeds:
            name = f"{graph} on {cluster}, seed {seed}"
            before = _find(results, graph, cluster, seed)
            finished = finished_rows(before, raw, problem, seed=seed, budget=budget) if before else ()

            def keep(comparison: Comparison, graph: str = graph, cluster: str = cluster, seed: int = seed) -> None:
                nonlocal results
                results = _with(results, Cell(graph, cluster, make_record(comparison)), seed)
                write_atomically(raw, msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")

            def say(placer: str, name: str = name) -> None:
                print(f"{clock(time.perf_counter() - began)}  {name}: {placer}", flush=True)

            try:
                compare_placers(
                    problem,
                    [PLACERS[placer] for placer in placers],
                    budget=budget,
                    seed=seed,
                    finished=[row for row in finished if row.placer not in again],
                    on_start=say,
                    on_row=keep,
                    source=source,
                )
            except NoFeasiblePlacementError as error:
                print(f"{name}: left out, {error}", flush=True)
        write_atomically(out, page(results, os.path.relpath(raw, out.parent)).encode())


def _cells(asked: argparse.Namespace) -> list[tuple[str, str]]:
    """The graphs and clusters that the command line means, as they are named there."""
    if asked.cells is None:
        return [(graph, cluster) for graph in _names(asked.graphs) for cluster in _names(asked.clusters)]
    cells = []
    for name in _names(asked.cells):
        graph, _, cluster = name.rpartition("@")
        if not graph or not cluster:
            raise InputError(f"--cells has '{name}'; write graph@cluster, as in nmt@k80x4")
        cells.append((graph, cluster))
    return cells


def page(results: Results, raw: str) -> str:
    """The Markdown: what makes it, an overview with a line a cell, a table a cell; `raw` is the JSON file's path."""
    problems = list(dict.fromkeys((cell.graph, cell.cluster) for cell in results.cells))
    records = {
        key: [cell.comparison for cell in results.cells if (cell.graph, cell.cluster) == key] for key in problems
    }
    limit_s = results.cells[0].comparison.time_limit_s
    lines = [
        "# Results",
        "",
        "Simulated step times of every placer, made by",
        "",
        "```",
        _command(results, problems),
        "```",
        "",
        f"A placer that searches or learns has {limit_s:g} s on the same cores, one after the other; "
        "the others answer as soon as they are done. With several seeds, a figure is the mean over them, ± half of the "
        "spread. Every placement is evaluated again by the simulator, whatever its placer claims. How much a search "
        "finds in a time depends on the machine: compare within a table. Every row is in "
        f"[{Path(raw).name}]({raw}).",
        "",
        "| graph | cluster | one device | best that answers at once | best search | learned | lower bound |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_overview(graph, cluster, records[graph, cluster]) for graph, cluster in problems]
    for graph, cluster in problems:
        lines += ["", *_table(graph, cluster, records[graph, cluster])]
    return "\n".join(lines) + "\n"


def _command(results: Results, problems: Sequence[tuple[str, str]]) -> str:
    """The command that makes these results from nothing."""
    graphs, clusters = (list(dict.fromkeys(names)) for names in zip(*problems, strict=True))
    if sorted(problems) == sorted((graph, cluster) for graph in graphs for cluster in clusters):
        what = f"--graphs '{' '.join(graphs)}' --clusters '{' '.join(clusters)}'"
    else:
        what = f"--cells '{' '.join(f'{graph}@{cluster}' for graph, cluster in problems)}'"
    records = [cell.comparison for cell in results.cells]
    ran = {row.placer.partition(":")[0] for record in records for row in record.rows}
    placers = "all" if ran >= set(PLACERS) else ",".join(n for n in PLACERS if n in ran and n != SINGLE_DEVICE)
    seeds = ",".join(str(seed) for seed in sorted({record.seed for record in records}))
    return (
        f"python scripts/compare_all.py {what} --placers {placers} --time-limit-s {records[0].time_limit_s:g} "
        f"--seeds {seeds} --schedule {records[0].schedule}"
    )


def _overview(graph: str, cluster: str, records: Sequence[ComparisonRecord]) -> str:
    times = _times(records)
    single_s = _single_s(records)
    kinds = {
        "at once": [n for n in times if not PLACERS[n].searches and not PLACERS[n].exact],
        "search": [n for n in times if (PLACERS[n].searches or PLACERS[n].exact) and not PLACERS[n].learns],
        "learned": [n for n in times if PLACERS[n].learns],
    }
    shown = [seconds(single_s) if single_s is not None else "does not fit"]
    for names in kinds.values():
        best = min(names, key=lambda name: statistics.fmean(times[name]), default=None)
        shown.append("-" if best is None else f"{seconds(statistics.fmean(times[best]), digits=4)} ({best})")
    return f"| {graph} | {cluster} | {' | '.join(shown)} | {seconds(records[0].lower_bound_s)} |"


def _table(graph: str, cluster: str, records: Sequence[ComparisonRecord]) -> list[str]:
    times = _times(records)
    single_s, bound_s = _single_s(records), records[0].lower_bound_s
    means = {name: statistics.fmean(values) for name, values in times.items()}
    best_s = min([*means.values(), *([] if single_s is None else [single_s])], default=None)
    entries: list[tuple[float, str]] = []
    if single_s is not None:
        entries.append((single_s, _entry("best single device", [single_s], (best_s, single_s, bound_s), "", "")))
    for name, values in times.items():
        rows = _rows(records, name)
        evaluations = f"{statistics.fmean(row.evaluations for row in rows):,.0f}"
        failed = len(rows) - len(values)
        note = f"no placement that fits from {failed} of {len(rows)} seeds" if failed else rows[0].note
        entries.append((means[name], _entry(name, values, (best_s, single_s, bound_s), evaluations, note)))
    lines = [
        f"## {graph} on {cluster}",
        "",
        f"{records[0].groups} groups; schedule {records[0].schedule}; lower bound {seconds(bound_s, digits=4)}.",
        "",
        "| placer | step time | to the best | to one device | to the bound | evaluated | note |",
        "|---|---|---|---|---|---|---|",
        *(entry for _, entry in sorted(entries)),
    ]
    for name in dict.fromkeys(row.placer for row in records[0].rows if not row.placer.startswith(SINGLE_DEVICE)):
        rows = _rows(records, name)
        if name not in times and rows:
            why = rows[0].note if rows[0].step_time_s is None else "its placement does not fit"
            lines.append(_entry(name, [], (), f"{rows[0].evaluations:,}", why))
    return lines


def _entry(name: str, values: Sequence[float], references_s: Sequence[float | None], evaluated: str, note: str) -> str:
    """A line of a table: the mean of the seeds' step times and its ratios to the best, one device and the bound."""
    cells = [name, "-", "-", "-", "-", evaluated, note.replace("|", "/")]
    if values:
        mean_s = statistics.fmean(values)
        half = (max(values) - min(values)) / 2 / mean_s if mean_s else 0.0
        cells[1] = seconds(mean_s, digits=4) + (f" ±{half:.1%}" if half >= 0.0005 else "")
        cells[2:5] = [f"{mean_s / other_s:.3f}" if other_s else "-" for other_s in references_s]
    return f"| {' | '.join(cells)} |"


def _times(records: Sequence[ComparisonRecord]) -> dict[str, list[float]]:
    """Feasible step times by placer, one a seed; without the single devices."""
    times: dict[str, list[float]] = {}
    for record in records:
        for row in record.rows:
            if row.feasible and row.step_time_s is not None and not row.placer.startswith(SINGLE_DEVICE):
                times.setdefault(row.placer, []).append(row.step_time_s)
    return times


def _rows(records: Sequence[ComparisonRecord], placer: str) -> list[RowRecord]:
    return [row for record in records for row in record.rows if row.placer == placer]


def _single_s(records: Sequence[ComparisonRecord]) -> float | None:
    rows = [row for row in records[0].rows if row.placer.startswith(SINGLE_DEVICE) and row.feasible]
    return min((row.step_time_s for row in rows if row.step_time_s is not None), default=None)


def _read(raw: Path) -> Results:
    try:
        return msgspec.json.decode(raw.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"'{raw}' cannot be read as results ({error}); start anew with --restart") from error


def _find(results: Results, graph: str, cluster: str, seed: int) -> ComparisonRecord | None:
    for cell in results.cells:
        if (cell.graph, cell.cluster, cell.comparison.seed) == (graph, cluster, seed):
            return cell.comparison
    return None


def _with(results: Results, new: Cell, seed: int) -> Results:
    """The results with one cell replaced, or added."""
    others = [c for c in results.cells if (c.graph, c.cluster, c.comparison.seed) != (new.graph, new.cluster, seed)]
    return Results((*others, new))


def _names(text: str) -> list[str]:
    """Names separated by spaces, or by commas where no name has sizes of its own (nmt:layers=4,batch=8)."""
    if " " in text.strip() or "=" in text:
        return text.split()
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(main())
