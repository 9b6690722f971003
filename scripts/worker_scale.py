"""How many more results more workers give: on real cores, and where a job only waits, as one that measures a step does.

    python scripts/worker_scale.py --kinds local,ray --page docs/results/workers.md

Three figures: the placements a second of a training's chains on 1 and on 2 workers, one after the other several times;
with 1 to 64 workers whose jobs wait 50 ms, the share of what as many workers could do at most; and what a result costs
the process that asks, in milliseconds of its processor time. All processes are started before clocks are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

from envs.make_problem import make_problem
from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.move_search.config import MoveConfig
from placement.move_search.leg import Reach
from placement.move_search.search import MoveSearch
from placement.runs.chain_jobs import WorkersWalk
from placement.workers import Job, Workers, open_workers
from scripts.many_workers.page import fill, table, where

COUNTS = "1,2,4,8,16,32,64"
WAIT_S = 0.05
"""Seconds of a job that waits: a step that is measured."""

MOVES = 8192
"""Moves of a chain in an update."""

CHAINS = 4


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="local,ray", help="local, ray or both: %(default)s")
    parser.add_argument("--counts", default=COUNTS, help="workers whose jobs wait, or none: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="of 1 and 2 workers on real cores: %(default)s")
    parser.add_argument("--graph", default="nmt", help="for these: %(default)s")
    parser.add_argument("--page", type=Path, help="fill the table between this page's markers")
    asked = parser.parse_args(args)
    try:
        text = _study(asked)
        if asked.page is not None:
            fill(asked.page, "worker_scale.py", text)
    except InputError as error:
        print(f"worker_scale: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


def _study(asked: argparse.Namespace) -> str:
    kinds = asked.kinds.split(",")
    parts = [f"Measured on {where()}."]
    if asked.repeats > 0:
        problem = make_problem(asked.graph, "k80x4")
        rows = [[kind, *_real_cores(kind, problem, asked.seconds, asked.repeats)] for kind in kinds]
        head = ["workers", "1: placements/s", "2: placements/s", "2 over 1", "driver, a leg"]
        said = f"Placements that {CHAINS} chains of `{asked.graph}` on four K80 try, {MOVES:,} moves each an update:"
        parts += [said, table(head, rows)]
    counts = [] if asked.counts == "none" else [int(count) for count in asked.counts.split(",")]
    if counts:
        rows = []
        for kind in kinds:
            for count in counts:
                share, a_result_s = _waiting(kind, count, asked.seconds)
                rate = share * count / WAIT_S
                rows.append([kind, f"{count}", f"{rate:,.0f}", f"{share:.1%}", f"{a_result_s * 1e3:.2f} ms"])
                print("  ".join(rows[-1]), file=sys.stderr, flush=True)
        head = ["workers", "how many", "results/s", "of linear", "driver, a result"]
        parts += [f"Jobs that wait {WAIT_S * 1e3:g} ms:", table(head, rows)]
    return "\n\n".join(parts)


def _spec(kind: str, count: int) -> str:
    return f"ray:{count}" if kind == "ray" else str(count)


def _real_cores(kind: str, problem: PlacementProblem, seconds: float, repeats: int) -> list[str]:
    """Placements a second of chains on one and on two workers, the median ratio, and the driver's time a leg."""
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
    with open_workers(_spec(kind, count)) as workers:
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


def _waiting(kind: str, count: int, seconds: float) -> tuple[float, float]:
    """What workers whose jobs wait did, as a share of what they could at most; the driver's processor time a result."""
    with open_workers(_spec(kind, count), packages=("scripts",)) as workers:
        _begin_all(workers)
        jobs = count * max(int(seconds / WAIT_S), 1)
        began, cpu = time.perf_counter(), time.process_time()
        done = sum(1 for _ in workers.run(_waits(jobs, WAIT_S)))
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        assert done == jobs
        return jobs * WAIT_S / (took_s * count), cpu_s / jobs


def _begin_all(workers: Workers) -> None:
    """Let every worker's process begin."""
    pids: set[int] = set()
    until = time.monotonic() + 300.0
    while len(pids) < workers.count and time.monotonic() < until:
        pids |= {done.value["process"] for done in workers.run(_waits(2 * workers.count, 4 * WAIT_S))}


def _waits(count: int, seconds: float) -> list[Job]:
    return [Job(str(i), "scripts.many_workers.jobs:wait", {"seconds": seconds}) for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
