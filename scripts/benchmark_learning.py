"""What learning buys: the learned placer and its ablation against search, at equal seconds and at equal evaluations.

    python scripts/benchmark_learning.py --cells rnnlm/k80x2 nmt/k80x4 --seeds 0,1,2 --budgets-s 10 --json learning.json

A cell is GRAPH/CLUSTER, or GRAPH/CLUSTER/fifo for another schedule than `priority`. Every row of the JSON file is one
placer's answer, evaluated again by the simulator, whatever the placer claims; `seconds` is the wall clock from the
placer's start to its answer, with the graph loaded and everything compiled. The file is written after every row: when
it is started again, the script runs only what is missing. FILE.curves.json, in the same directory, holds how each row
came about. Without --cells all cells are run; that takes days.

With --workers rows are made at the same time, on as many processes as cores or on the machines of a Ray cluster; a row
then has one core, so the file is not one to go on with without.

    python scripts/benchmark_learning.py --json docs/data/learning.json --report --plot docs/images
        --page docs/results/learning.md

runs nothing and shows what there is: tables on the terminal, learning curves, and the tables of a page.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

from envs.problem import PlacementProblem
from graphs.errors import InputError, NoFeasiblePlacementError, unknown_name
from graphs.synthetic import random_graph
from placement.api import make_problem
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Placer, Progress, SearchOptions
from placement.registry import PLACERS, get_placer
from placement.runs.problem_content import encode_problem
from placement.runs.row_jobs import LEAST_PATIENCE_S, PATIENCE
from placement.text import clock
from placement.workers import Job, Workers, open_workers, parse_workers
from scripts.learning.plot import plot_curves
from scripts.learning.report import fill_page, print_tables
from scripts.learning.rows import Curve, Row, read_curves, read_rows, thinned, write_curves, write_rows

PAPER_CELLS = tuple(f"{graph}/{k80}" for graph in ("rnnlm", "nmt", "inception_v3") for k80 in ("k80x2", "k80x4"))
# Short of memory: on one GPU they would need 1.6, 3.1 and 2.7 times what it has. All GPUs together have 1.2, 1.3 and
# 1.5 times what one would need, and a split needs copies as well.
MEMORY_CELLS = (
    "nmt:hidden=2048,batch=256/k80x2",
    "transformer_lm:layers=48,hidden=1600,heads=25,batch=3/k80x4",
    "transformer_lm:batch=24/k80x4",
)
LARGE_CELLS = ("nmt:layers=4,steps=64/k80x4", "nmt:layers=8,steps=165/v100x8")
CELLS = (
    *PAPER_CELLS,
    *(f"{cell}/fifo" for cell in PAPER_CELLS),
    "nasnet/k80x4",
    "moe_lm/mixed",
    "dlrm/mixed",
    "transformer_lm/a100x4",
    "nmt:layers=8/v100x8",
    *MEMORY_CELLS,
    *LARGE_CELLS,
)

HEURISTICS = "heuristics"
"""The name of a row: the best answer of the placers that neither search nor learn."""

LEARNED_PREFIX = "reinforce_"
"""A learned placer with another preset than `default`: reinforce_uniform, reinforce_paper, ..."""

OPS_SUFFIX = "_ops"
"""A search that may move single ops after groups, as ``--granularity op`` lets it: annealing_ops, ..."""

DEFAULT_PLACERS = (
    "reinforce,reinforce_uniform,annealing,annealing_ops,local_search,local_search_ops,genetic,cross_entropy,heuristics"
)

WARM_UP_S = 0.5
"""Seconds of each placer on a tiny problem before anything is measured."""


def main(args: Sequence[str] | None = None) -> int:
    asked = _parse(args)
    try:
        return _run(asked)
    except InputError as error:
        print(f"benchmark_learning: {error}", file=sys.stderr)
        return 2


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=list(CELLS), help="GRAPH/CLUSTER[/SCHEDULE] ...: %(default)s")
    parser.add_argument("--placers", default=DEFAULT_PLACERS, help="separated by commas: %(default)s")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="separated by commas: %(default)s")
    parser.add_argument("--budgets-s", default="10,120", help="seconds, separated by commas, or none: %(default)s")
    parser.add_argument("--budgets-evaluations", default="100,300,1000", help="limits in evaluations: %(default)s")
    parser.add_argument("--json", type=Path, default=Path("learning.json"), help="the file of rows: %(default)s")
    parser.add_argument("--workers", metavar="N|ray|ray://HOST:PORT", help="make rows at the same time")
    parser.add_argument("--forget", default="", help="placers whose rows are dropped and made again")
    parser.add_argument("--report", action="store_true", help="run nothing, show what the file holds")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw learning curves into this directory")
    parser.add_argument("--page", type=Path, metavar="FILE", help="fill the tables between the page's markers")
    return parser.parse_args(args)


def _run(asked: argparse.Namespace) -> int:
    path: Path = asked.json
    curves_path = path.with_suffix(".curves.json")
    if not path.resolve().parent.is_dir():
        raise InputError(f"cannot write '{path}': there is no directory '{path.parent}'; make it first")
    forgotten = {name for name in asked.forget.split(",") if name}
    rows = [row for row in read_rows(path) if row.placer not in forgotten]
    curves = [curve for curve in read_curves(curves_path) if curve.placer not in forgotten]
    if not asked.report:
        _measure(asked, rows, curves)
    if not rows:
        raise InputError(f"'{path}' holds no rows: run without --report first")
    print_tables(rows)
    if asked.plot is not None:
        for picture in plot_curves(curves, asked.plot):
            print(picture)
    if asked.page is not None:
        fill_page(asked.page, rows, json_name=path.name)
        print(asked.page)
    return 0


def _measure(asked: argparse.Namespace, rows: list[Row], curves: list[Curve]) -> None:
    """Run what is missing; `rows` and `curves` grow, and so do their files."""
    cells = [split_cell(cell) for cell in asked.cells]
    placers = {name: find_placer(name) for name in asked.placers.split(",") if name}
    seeds = [whole(seed, "seeds") for seed in asked.seeds.split(",")]
    budgets = [Budget(time_limit_s=_positive(text)) for text in _listed(asked.budgets_s)]
    counts = [whole(text, "budgets-evaluations") for text in _listed(asked.budgets_evaluations)]
    budgets += [Budget(evaluations=count) for count in counts]
    done = {row.key for row in rows}
    if asked.workers is not None:
        parse_workers(asked.workers)
    began = time.perf_counter()
    warm = False

    def keep(row: Row, curve: Curve) -> None:
        rows.append(row)
        curves[:] = [*(other for other in curves if other.key != curve.key), curve]
        # The curve first: where the script is killed in between, the row is missing and both are made again.
        write_curves(asked.json.with_suffix(".curves.json"), curves)
        write_rows(asked.json, rows)

    with contextlib.ExitStack() as opened:
        workers = None
        if asked.workers is not None:
            workers = opened.enter_context(open_workers(asked.workers, packages=("scripts",)))
        for graph, cluster, schedule in cells:
            label = cluster if schedule == "priority" else f"{cluster}/{schedule}"
            wanted = [
                (budget, seed, name)
                for budget in budgets
                for seed in seeds
                for name in placers  # one after the other, so that a machine that is slow for a while is so for all
                if (graph, label, name, seed, budget.time_limit_s, budget.evaluations) not in done
            ]
            if not wanted:
                continue
            problem = make_problem(graph, cluster, schedule=schedule)
            if workers is not None:
                for row, curve in _rows_of(workers, problem, wanted, tuple(placers), graph=graph, cluster=label):
                    _tell(began, row)
                    keep(row, curve)
                continue
            if not warm:
                _warm_up(placers)
                warm = True
            problem.evaluate(problem.allowed.argmax(axis=1)[None])  # what a problem computes once is not a placer's
            for budget, seed, name in wanted:
                row, curve = run_placer(problem, name, placers[name], budget, seed, graph=graph, cluster=label)
                _tell(began, row)
                keep(row, curve)


def _tell(began: float, row: Row) -> None:
    limit = f"{row.budget_s:g} s" if row.budget_s else f"{row.budget_evaluations} evaluations"
    said = f"{row.step_time_s or float('nan'):.4f} s{'' if row.feasible else ' does not fit'}"
    elapsed = clock(time.perf_counter() - began)
    print(f"{elapsed}  {row.graph} on {row.cluster}, {limit}, seed {row.seed}: {row.placer}  {said}", flush=True)


def _rows_of(
    workers: Workers,
    problem: PlacementProblem,
    wanted: Sequence[tuple[Budget, int, str]],
    names: tuple[str, ...],
    *,
    graph: str,
    cluster: str,
) -> Iterator[tuple[Row, Curve]]:
    """Rows and their curves from workers, as they are done."""
    shared = workers.share(encode_problem(problem), "placement.runs.problem_content:decode_problem")
    jobs = (
        Job(
            f"{name} {seed} {budget.time_limit_s} {budget.evaluations}",
            "scripts.benchmark_learning:make_row",
            {"name": name, "budget": budget, "seed": seed, "names": names, "graph": graph, "cluster": cluster},
            shared,
            None if budget.time_limit_s is None else PATIENCE * budget.time_limit_s + LEAST_PATIENCE_S,
        )
        for budget, seed, name in wanted
    )
    for done in workers.run(jobs):
        row, curve = done.result()
        yield row, curve


def make_row(
    problem: PlacementProblem,
    *,
    name: str,
    budget: Budget,
    seed: int,
    names: tuple[str, ...],
    graph: str,
    cluster: str,
) -> tuple[Row, Curve]:
    """One row and its curve; what a worker runs. All that placers compile is compiled before a first row's time."""
    _warm_up_once(names)
    problem.evaluate(problem.allowed.argmax(axis=1)[None])
    return run_placer(problem, name, find_placer(name), budget, seed, graph=graph, cluster=cluster)


@functools.cache
def _warm_up_once(names: tuple[str, ...]) -> None:
    _warm_up({name: find_placer(name) for name in names})


def run_placer(
    problem: PlacementProblem, name: str, placer: Placer, budget: Budget, seed: int, *, graph: str, cluster: str
) -> tuple[Row, Curve]:
    """One row and its curve."""
    points: list[Progress] = []
    budget = Budget(budget.time_limit_s, budget.evaluations, points.append)
    began = time.perf_counter()
    placed = None
    try:
        placed = placer(problem, budget=budget, rng=np.random.default_rng(seed))
    except (InputError, NoFeasiblePlacementError) as error:
        print(f"{name}: {error}")
    taken_s = time.perf_counter() - began
    step_time_s, feasible, evaluations = None, False, 0
    end_s = np.inf
    if placed is not None:
        evaluation = problem.evaluate_one(placed.placement)
        step_time_s, feasible = float(evaluation.step_time_s[0]), bool(evaluation.feasible[0])
        end_s = step_time_s if feasible else np.inf
        evaluations = placed.evaluations
    about = (graph, cluster, name, seed, budget.time_limit_s, budget.evaluations)
    row = Row(*about, round(taken_s, 4), evaluations, step_time_s, feasible)
    return row, Curve(*about, thinned([*points, Progress(taken_s, evaluations, end_s)]))


def find_placer(name: str) -> Placer:
    """A placer of the package, a search of single ops, the heuristics as one, or the learned placer with a preset."""
    if name == HEURISTICS:
        return best_heuristic
    if name.endswith(OPS_SUFFIX) and not name.startswith(LEARNED_PREFIX):
        info = get_placer(name.removesuffix(OPS_SUFFIX))
        if not info.moves:
            raise InputError(f"--placers: '{info.name}' does not move what it is told to; leave out '{OPS_SUFFIX}'")
        return partial(info.function, options=SearchOptions(granularity="op"))
    if not name.startswith(LEARNED_PREFIX):
        return get_placer(name).function
    from placement.learning.config import PRESETS
    from placement.learning.placer import place_with

    preset = name.removeprefix(LEARNED_PREFIX)
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)

    def place(
        problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
    ) -> Placed:
        return place_with(problem, budget=budget, rng=rng, config=PRESETS[preset])

    return place


def best_heuristic(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """The best answer of all that neither search nor learn; a limit on evaluations is shared out among them."""
    began = time.perf_counter()
    names = [name for name, info in PLACERS.items() if not (info.searches or info.learns or info.exact)]
    share = None if budget.evaluations is None else max(budget.evaluations // len(names) - 1, 1)
    answers, evaluations = [], 0
    for name in names:
        try:
            placed = PLACERS[name].function(problem, budget=Budget(budget.time_limit_s, share), rng=rng)
        except InputError:  # for example: no expert rule for this workload
            continue
        answers.append((name, placed.placement))
        evaluations += placed.evaluations
    evaluation = problem.evaluate(np.stack([placement for _, placement in answers]))
    best = int(np.argmin(np.where(evaluation.feasible, 0.0, 1e9) + evaluation.step_time_s))
    taken_s = time.perf_counter() - began
    return Placed(answers[best][1], evaluations + len(answers), taken_s, note=answers[best][0])


def _warm_up(placers: dict[str, Placer]) -> None:
    """Import and compile everything on a tiny problem."""
    for schedule in ("priority", "fifo"):
        problem = make_problem(random_graph(30, seed=1), "k80x2", schedule=schedule)
        for name, placer in placers.items():
            run_placer(problem, name, placer, Budget(evaluations=200), 0, graph="", cluster="")
    for name, placer in placers.items():  # few evaluations and a time limit import different things
        run_placer(problem, name, placer, Budget(time_limit_s=WARM_UP_S), 0, graph="", cluster="")


def split_cell(cell: str) -> tuple[str, str, str]:
    """Graph, cluster and schedule of a cell's name; a path may stand for the graph."""
    parts = cell.rsplit("/", 2)
    if len(parts) == 3 and parts[2] in ("fifo", "program_order", "priority"):
        return parts[0], parts[1], parts[2]
    graph, slash, cluster = cell.rpartition("/")
    if not slash or not graph or not cluster:
        raise InputError(f"cell '{cell}' is not of the form GRAPH/CLUSTER or GRAPH/CLUSTER/SCHEDULE")
    return graph, cluster, "priority"


def _listed(text: str) -> list[str]:
    return [] if text in ("", "none") else text.split(",")


def whole(text: str, what: str) -> int:
    if not text.strip().isdigit():
        raise InputError(f"--{what}: '{text}' is no whole number")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"--budgets-s: '{text}' is no number of seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
