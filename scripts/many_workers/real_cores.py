"""Chains of a training on one and on two workers, that have a core each."""

from __future__ import annotations

import statistics
import sys
import time

from envs.make_problem import make_problem
from envs.problem import PlacementProblem
from placement.move_search.config import MoveConfig
from placement.move_search.leg import Reach
from placement.move_search.search import MoveSearch
from placement.runs.chain_jobs import WorkersWalk
from placement.workers import open_workers
from scripts.many_workers.page import spec_of

CHAINS = 4

MOVES = 8192
"""Moves of a chain in an update."""


def real_cores(kind: str, graph: str, seconds: float, repeats: int) -> list[str]:
    """Placements a second of chains on one and on two workers, the median ratio, and the driver's time a leg."""
    problem = make_problem(graph, "k80x4")
    found: dict[int, list[float]] = {1: [], 2: []}
    a_leg_s: list[float] = []
    for _ in range(repeats):
        for count in (1, 2):
            rate, leg_s = _walk_for(kind, count, problem, seconds)
            found[count].append(rate)
            a_leg_s.append(leg_s)
            print(f"{kind} {count}: {rate:,.0f} placements/s", file=sys.stderr, flush=True)
    ratio = statistics.median(two / one for one, two in zip(found[1], found[2], strict=True))
    rates = [f"{statistics.median(found[count]):,.0f}" for count in (1, 2)]
    return [*rates, f"{ratio:.2f}", f"{statistics.median(a_leg_s) * 1e3:.1f} ms"]


def _walk_for(kind: str, count: int, problem: PlacementProblem, seconds: float) -> tuple[float, float]:
    """Placements a second of chains that go on for some seconds, and the driver's processor time a leg."""
    search = MoveSearch(problem, config=MoveConfig(chains=CHAINS), seed=0, cores=count)
    placement = problem.allowed.argmax(axis=1)[None]
    search.offer_best_of(placement, problem.evaluate(placement))
    with open_workers(spec_of(kind, count)) as workers:
        walkers = WorkersWalk(workers, problem)
        walkers.prepare()
        began, cpu, legs, update, before = 0.0, 0.0, 0, 0, 0
        while update < 2 or time.perf_counter() - began < seconds:
            if update == 1:  # the first update makes what chains keep
                began, cpu, legs, before = time.perf_counter(), time.process_time(), 0, search.evaluations
            reach = Reach(0.3 + update * 1e-4, a_leg=1e-4)
            begun = [(leg, search.state_of(leg.chain)) for leg in search.legs(MOVES, log_probability=None)]
            for walked in walkers.walk(begun, lambda reach=reach: reach):  # type: ignore[misc]
                search.take(*walked)
            search.finish([])
            legs += len(begun)
            update += 1
        took_s = time.perf_counter() - began
        return (search.evaluations - before) / took_s, (time.process_time() - cpu) / legs
