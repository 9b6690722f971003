"""Where it is decided how good a run of the search by moves ends: chains alone, from random placements.

    python scripts/chain_spread.py nmt/k80x4 --evaluations 30000,90000 --chains 12

Each chain goes from coarse to fine once, by the plan that a run of so many evaluations has, and none knows of another;
with --by-types they begin with types of op instead of coarse units and groups. Printed are, by stage, the median and
the best over the chains of the best step so far at the stage's end, and the rank correlation (Spearman) of that with
where the chain ends: where it is near 0, choosing among chains by then is drawing lots. Budgets are of evaluations and
times are the simulator's, so nothing here depends on the machine's speed; a placement that does not fit is charged
more than its step time, as in training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.simulator.workspace import available_cores
from graphs.errors import InputError
from placement.api import make_problem
from placement.move_search.config import MoveConfig
from placement.move_search.plan import make_plan
from placement.move_search.search import MoveSearch
from placement.placers.random import draw
from scripts.benchmark_learning import split_cell, whole

UPDATES = 200
"""Blocks of moves that a chain's run is cut into, about; a stage's end is seen after the block."""


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="+", help="GRAPH/CLUSTER[/SCHEDULE] ...")
    parser.add_argument("--evaluations", default="30000", help="of each chain, separated by commas: %(default)s")
    parser.add_argument("--chains", type=int, default=12, help="how many: %(default)s")
    parser.add_argument("--by-types", action="store_true", help="begin with types of op, not coarse units and groups")
    asked = parser.parse_args(args)
    try:
        if asked.chains < 3:
            raise InputError(f"--chains is {asked.chains}; a rank correlation needs at least 3")
        counts = [whole(text, "evaluations") for text in asked.evaluations.split(",")]
        if min(counts) == 0:
            raise InputError("--evaluations: 0 leaves a chain nothing to do; give a number above 0")
        for cell in asked.cells:
            graph, cluster, schedule = split_cell(cell)
            problem = make_problem(graph, cluster, schedule=schedule)
            for count in counts:
                print(f"{cell}, {asked.chains} chains of {count:,} evaluations", flush=True)
                _show(*spread(problem, evaluations=count, chains=asked.chains, by_types=asked.by_types))
    except InputError as error:
        print(f"chain_spread: {error}", file=sys.stderr)
        return 2
    return 0


def spread(
    problem: PlacementProblem, *, evaluations: int, chains: int, by_types: bool = False
) -> tuple[list[str], NDArray[np.float64]]:
    """The stages, and ``float64[chains, stages]``, what the best placement costs at the end of each, in seconds."""
    with ThreadPoolExecutor(available_cores()) as executor:
        found = list(executor.map(lambda seed: _go(problem, evaluations, seed, by_types), range(chains)))
    return list(found[0]), np.array([list(ends.values()) for ends in found])


def _go(problem: PlacementProblem, evaluations: int, seed: int, by_types: bool) -> dict[str, float]:
    """Let one chain go; what its best placement costs at the end of each stage, by the stage."""
    search = MoveSearch(problem, config=MoveConfig(chains=1), seed=seed)
    placement = draw(problem.allowed, 1, np.random.default_rng([seed, 4]))
    search.offer_best_of(placement, problem.evaluate(placement))
    start_s = search.best_cost_s
    search.expect(evaluations)
    if by_types:
        search.plan = make_plan(problem, finest="ops", evaluations=evaluations, by_types=True)
    costs_s: dict[str, float] = {}
    moves = max(evaluations // UPDATES, 1)
    with ThreadPoolExecutor(1) as executor:
        while (done := search.evaluations) < evaluations:
            progress = done / evaluations
            started = search.start(
                moves,
                progress=_always(progress),
                should_stop=lambda: False,
                log_probability=None,
                executor=executor,
            )
            search.finish(started)
            if search.evaluations == done:  # nothing can move
                break
            costs_s[search.plan.cycle_at(progress, 0).stage] = search.best_cost_s
    ends, last_s = {}, start_s
    for cycle in search.plan.rounds[0]:  # a stage that so few evaluations skipped ends as the one before it
        ends[cycle.stage] = last_s = costs_s.get(cycle.stage, last_s)
    return ends


def _always(share: float) -> Callable[[float], float]:
    return lambda _: share


def _show(stages: list[str], costs_s: NDArray[np.float64]) -> None:
    from scipy.stats import spearmanr  # slow to load

    print(f"  {'after':<10}{'median':>10}{'best':>10}{'correlation with the end':>26}")
    for stage, column in zip(stages, costs_s.T, strict=True):
        differ = np.ptp(column) > 0 and np.ptp(costs_s[:, -1]) > 0
        ranks = f"{float(spearmanr(column, costs_s[:, -1])[0]):.2f}" if differ else "all equal"
        print(f"  {stage:<10}{np.median(column) * 1e3:>7.1f} ms{column.min() * 1e3:>7.1f} ms{ranks:>26}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
