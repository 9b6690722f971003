"""How many more results more workers give: on real cores, and where a job only waits, as one that measures a step does.

    python scripts/worker_scale.py --kinds local,ray --page docs/results/workers.md

Three figures: the placements a second of a training's chains on 1 and on 2 workers, one after the other several times;
with 1 to 64 workers whose jobs wait 50 ms, the share of what as many workers could do at most; and what a result costs
the process that asks, in milliseconds of its processor time. All processes are started before clocks are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a clone runs without being installed

from graphs.errors import InputError
from placement.workers import Job, Workers, open_workers
from scripts.many_workers.page import fill, spec_of, table, where

COUNTS = "1,2,4,8,16,32,64"
WAIT_S = 0.05
"""Seconds of a job that waits: a step that is measured."""


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
        # Workers import this file anew: those that only wait should not have to load the search.
        from scripts.many_workers.real_cores import CHAINS, MOVES, real_cores

        rows = [[kind, *real_cores(kind, asked.graph, asked.seconds, asked.repeats)] for kind in kinds]
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


def _waiting(kind: str, count: int, seconds: float) -> tuple[float, float]:
    """What workers whose jobs wait did, as a share of what they could at most; the driver's processor time a result."""
    with open_workers(spec_of(kind, count), packages=("scripts",)) as workers:
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
