"""How fast the step simulator is, against tight event loops in plain Python and in C in the same run.

    python scripts/benchmark_simulator.py [--quick] [--json FILE] [--page docs/results/speed.md]

An event is the end of an op or of a transfer. Times are the least of several rounds, in which the simulators take
turns, because other work on the machine can only add to them. Absolute times are this machine's; compare ratios: how
many times faster than Python, and how many times as long as `scripts/event_loop.c` takes, which is compiled where there
is a C compiler. That loop knows ``fifo`` alone, to whose step times it must agree to the last digit, so under other
schedules its step is another, though nearly as many events.
`--quick` measures only the 10,000-op cases; `--page` measures what the page holds, graphs of a million ops, too, and
writes it there. Without it there are also 1,000 and 100,000 ops with growth exponents,
memory, the first user's compile time, and what checkpoints and bounds save a search (which captures `nmt` and
`inception_v3`, once).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # a clone runs without being installed

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from envs.simulator.input import SCHEDULES
from envs.simulator.simulate import simulate_batch
from envs.simulator.workspace import available_cores, workspace
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from scripts.c_event_loop import compile_loop, compiler, loop_in_c
from scripts.many_workers.page import fill
from scripts.plain_event_loop import as_lists, simulate_in_a_loop
from scripts.simulator_page import bytes_an_entry, grow, page_text, placements_of

CLUSTER = "k80x4"  # four GPUs and a CPU: five devices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the 10,000-op cases, in under 40 s")
    parser.add_argument("--json", type=Path, help="write the cases to this file")
    parser.add_argument("--page", type=Path, help="fill the tables between this page's markers; needs a C compiler")
    options = parser.parse_args()
    if options.page and compiler() is None:
        parser.error("--page compares with C, and there is no C compiler here; install one, for example gcc")
    sizes = (10_000,) if options.quick else (1_000, 10_000, 100_000)
    threads = [1] if options.page else sorted({1, available_cores()})
    print(
        f"{'ops':>7} {'schedule':<14}{'placement':<11}{'threads':>7} {'us/evaluation':>14} {'ns/event':>9} "
        f"{'x Python':>9} {'of C':>6}"
    )
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        library = compile_loop(Path(folder)) if compiler() is not None else None
        for num_ops in sizes:
            for schedule in SCHEDULES:
                cases += measure(num_ops, schedule, threads, library)
        if options.page and library is not None:
            fill(options.page, Path(__file__).name, page_text(cases, grow(CLUSTER, library, fastest_s, print)))
    ratios = [case["ratio_to_c"] for case in cases if "ratio_to_c" in case]
    if ratios:
        print(
            f"\nof C, one thread: {min(ratios):.2f} to {max(ratios):.2f}, geometric mean {geometric_mean(ratios):.2f}"
        )
    if not options.quick and not options.page:
        print_growth(cases)
        print_memory()
        print_compile_time()
        print_moves()
        for name in ("nmt", "inception_v3"):
            print_bound(name)
    if options.json:
        options.json.write_text(json.dumps({"cases": cases}, indent=1) + "\n")


def geometric_mean(values: list[float]) -> float:
    """Of positive values."""
    return float(np.exp(np.mean(np.log(values))))


def measure(num_ops: int, schedule: str, thread_counts: list[int], library: ctypes.CDLL | None) -> list[dict[str, Any]]:
    """The cases of one size and schedule.

    Args:
        num_ops: Of a random graph.
        schedule: One of `SCHEDULES`.
        thread_counts: Threads of the simulator, rising, each a case; time of several is wall-clock time.
        library: The loop in C; None leaves it out.

    Raises:
        RuntimeError: The simulators disagree.
    """
    graph = random_graph(num_ops, seed=0)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster(CLUSTER), schedule)
    given, lists = problem.simulator_input, as_lists(problem.simulator_input)
    devices = problem.num_devices
    cases = []
    in_c = None if library is None else loop_in_c(library, given)
    for kind, placement in placements_of(num_ops, devices).items():
        as_list = placement.tolist()
        step_time_s, peak, transfers = simulate_in_a_loop(lists, as_list)
        batch = np.tile(placement, (max(20_000 // num_ops, 1) * max(thread_counts), 1)).astype(np.int32)
        answers = simulate_batch(given, batch[:1])
        if (answers[0][0], answers[1][0].tolist()) != (step_time_s, peak):
            raise RuntimeError(f"the simulators disagree on {num_ops} ops, {kind}, {schedule}")
        runs: list[Callable[[], object]] = [lambda a=as_list: simulate_in_a_loop(lists, a)]  # type: ignore[misc]
        runs.append(lambda b=batch: simulate_batch(given, b, threads=1))  # type: ignore[misc]
        threaded: list[Callable[[], object]] = [
            partial(simulate_batch, given, batch, threads=t) for t in thread_counts if t > 1
        ]
        if in_c is not None:
            if schedule == "fifo" and in_c(batch[:1])[0][0] != step_time_s:
                raise RuntimeError(f"the loop in C disagrees on {num_ops} ops, {kind}")
            part = batch[: len(batch) // max(thread_counts)]
            runs.append(lambda b=part: in_c(b))  # type: ignore[misc]
        rounds = 4 if num_ops >= 100_000 else 15
        plain_s, one_thread_s, *c_s = fastest_s(runs, rounds=rounds)
        batch_s = [one_thread_s] * thread_counts.count(1)
        batch_s += fastest_s(threaded, rounds=rounds, clock=time.perf_counter)
        for threads, seconds in zip(thread_counts, batch_s, strict=True):
            one_s = seconds / len(batch)
            case = {"ops": num_ops, "edges": graph.num_edges, "devices": devices, "placement": kind}
            case |= {"schedule": schedule, "threads": threads, "us_per_evaluation": one_s * 1e6}
            case |= {"ns_per_event": one_s * 1e9 / (num_ops + transfers), "ratio_to_plain": plain_s / one_s}
            of_c = ""
            if in_c is not None and threads == 1:
                case["ratio_to_c"] = one_s / (c_s[0] / len(part))
                of_c = f"{case['ratio_to_c']:>7.2f}"
            cases.append(case)
            print(
                f"{num_ops:>7} {schedule:<14}{kind:<11}{threads:>7} {case['us_per_evaluation']:>14.1f} "
                f"{case['ns_per_event']:>9.1f} {case['ratio_to_plain']:>9.1f}{of_c}"
            )
    return cases


def fastest_s(
    runs: list[Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.process_time
) -> list[float]:
    """The least seconds of each, over rounds in which they take turns; of this process, whatever else runs."""
    least = [np.inf] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            started = clock()
            run()
            least[i] = min(least[i], clock() - started)
    return least


def print_growth(cases: list[dict[str, Any]]) -> None:
    """How the time of an evaluation grows with events: the exponent is 1 where it is proportional."""
    print("\ngrowth exponents (time against events, one thread)")
    for schedule in SCHEDULES:
        for kind in ("random", "blocks", "one_device"):
            rows = [c for c in cases if (c["schedule"], c["placement"], c["threads"]) == (schedule, kind, 1)]
            micros = np.array([c["us_per_evaluation"] for c in rows])
            events = micros / np.array([c["ns_per_event"] for c in rows])
            print(f"  {schedule:<14}{kind:<11} {np.polyfit(np.log(events), np.log(micros), 1)[0]:.3f}")


def print_memory() -> None:
    graph = random_graph(100_000, seed=0)
    problem = PlacementProblem(graph, one_group_an_op(graph), load_cluster(CLUSTER))
    print(f"\nmemory at 100,000 ops, one thread: {bytes_an_entry(problem.simulator_input):.0f} bytes an op plus edge")


def print_compile_time() -> None:
    """The first call in a new process, with an empty and with a full cache of machine code."""
    code = (
        "import time, numpy as np\n"
        "from graphs.synthetic import random_graph; from graphs.colocation.groups import one_group_an_op\n"
        "from envs.clusters.catalog import load_cluster; from envs.problem import PlacementProblem\n"
        "g = random_graph(50); p = PlacementProblem(g, one_group_an_op(g), load_cluster('k80x2'))\n"
        "t = time.perf_counter(); p.evaluate(np.ones((1, 50), int)); print(time.perf_counter() - t)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(Path(__file__).parents[1])}
        seconds = [
            float(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
            for _ in range(2)
        ]
    print(f"first evaluation of a process: {seconds[0]:.1f} s where it compiles, {seconds[1]:.2f} s from the cache")


def print_bound(name: str) -> None:
    """What `abort_above_s` saves a simulated annealing, early, midway and late."""
    from graphs.colocation.rules import colocate
    from graphs.sources import load_graph

    graph = load_graph(name)
    problem = PlacementProblem(graph, colocate(graph), load_cluster(CLUSTER))
    proposals, bounds_s, times_s = anneal(problem, 3_000)
    print(f"\n{name} on {CLUSTER}: {graph.num_ops} ops, {problem.num_groups} groups, 3,000 proposals of an annealing")
    for title, part in (("early", slice(0, 1000)), ("midway", slice(1000, 2000)), ("late", slice(2000, 3000))):
        p, b = proposals[part], bounds_s[part]
        full_s, bounded_s = fastest_s(
            [
                lambda p=p: problem.evaluate(p, threads=1),  # type: ignore[misc]
                lambda p=p, b=b: problem.evaluate(p, threads=1, abort_above_s=b),  # type: ignore[misc]
            ],
            rounds=3,
        )
        aborted = problem.evaluate(p, abort_above_s=b).aborted
        print(
            f"  {title:<7} slower than the bound {(times_s[part] > b).mean():.0%}, stopped {aborted.mean():.0%}, "
            f"after {run_share(problem, p[aborted], b[aborted]):.0%} of the ops, {full_s / bounded_s:.2f} times faster"
        )


def run_share(problem: PlacementProblem, placements: NDArray[Any], bounds_s: NDArray[Any]) -> float:
    """The mean share of ops that had ended when each evaluation was stopped."""
    given, ended = problem.simulator_input, []
    for placement, bound_s in zip(problem.groups.to_ops(placements), bounds_s, strict=True):
        simulate_batch(given, placement[None], threads=1, abort_above_s=bound_s)
        with workspace(given) as work:
            ended.append(int(work.state[0]["ended"]))
    return float(np.mean(ended)) / given.num_ops if ended else 0.0


def anneal(problem: PlacementProblem, steps: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Proposals ``[steps, G]``, their bounds and true step times.

    Half of the proposals move one group, half a run of groups in program or family order.
    """
    rng = np.random.default_rng(0)
    groups, gpus = problem.num_groups, problem.num_devices - 1
    here = in_blocks(problem)
    here_s = problem.evaluate(here[None]).step_time_s[0]
    temperature_s = here_s * 0.03
    proposals, bounds_s, times_s = [], [], []
    for _ in range(steps):
        order = (problem.groups.program_order, problem.groups.family_order)[rng.integers(2)]
        begin, length = rng.integers(groups), 1 if rng.random() < 0.5 else rng.integers(2, 64)
        proposal = here.copy()
        proposal[order[begin : begin + length]] = 1 + rng.integers(gpus)
        proposal = repaired(problem, proposal)
        bounds_s.append(here_s - temperature_s * np.log(rng.random()))
        evaluation = problem.evaluate(proposal[None], threads=1)
        proposals.append(proposal)
        times_s.append(evaluation.step_time_s[0])
        if evaluation.feasible[0] and times_s[-1] <= bounds_s[-1]:
            here, here_s = proposal, times_s[-1]
        temperature_s *= 0.998
    return np.array(proposals), np.array(bounds_s), np.array(times_s)


def print_moves() -> None:
    """What checkpoints save evaluations of one move, by where in the graph it is, and a whole local search."""
    from graphs.colocation.rules import colocate
    from graphs.sources import load_graph

    cluster = load_cluster(CLUSTER)
    print("\nmoves of one group from checkpoints: times faster than whole evaluations, and a local search of 4,000")
    print(f"{'':<31}{'early':>7}{'middle':>8}{'late':>7}   search: checkpoints, bounds, both")
    for name in ("random", "nmt:training=0", "inception_v3:training=0", "nmt", "inception_v3"):
        graph = random_graph(10_000, seed=0) if name == "random" else load_graph(name)
        for what, groups in (("ops", one_group_an_op(graph)), ("groups", colocate(graph))):
            if name == "random" and what == "groups":
                continue
            problem = PlacementProblem(graph, groups, cluster)
            parts = [moves_ratio(problem, part) for part in ((0.0, 0.1), (0.45, 0.55), (0.9, 1.0))]
            ends = {}
            for resume, bound in ((False, False), (True, False), (False, True), (True, True)):
                runs = [local_search(problem, 4_000, resume=resume, bound=bound) for _ in range(2)]
                ends[resume, bound] = min(seconds for seconds, _ in runs), runs[0][1]
            if len({step_time_s for _, step_time_s in ends.values()}) > 1:
                raise RuntimeError(f"the searches of {name} differ")
            plain_s = ends[False, False][0]
            ratios = [plain_s / ends[how][0] for how in ((True, False), (False, True), (True, True))]
            print(
                f"  {name:<22} {what:<6}{parts[0]:>7.2f}{parts[1]:>8.2f}{parts[2]:>7.2f}"
                f"   {ratios[0]:>19.2f}{ratios[1]:>8.2f}{ratios[2]:>6.2f}"
            )


def moves_ratio(problem: PlacementProblem, part: tuple[float, float]) -> float:
    """How many times faster moves of groups in a part of the program order are evaluated from checkpoints."""
    rng, groups, gpus = np.random.default_rng(0), problem.num_groups, problem.num_devices - 1
    here = in_blocks(problem)
    rows = np.tile(here, (200, 1))
    each = np.arange(len(rows))
    group = problem.groups.program_order[rng.integers(int(part[0] * groups), int(part[1] * groups), len(rows))]
    rows[each, group] = 1 + (rows[each, group] - 1 + rng.integers(1, gpus, len(rows))) % gpus
    rows = np.where(problem.allowed[np.arange(groups), rows], rows, here)
    kept = problem.checkpoints(here)
    whole, resumed = problem.evaluate(rows), problem.evaluate(rows, checkpoints=kept)
    if (whole.step_time_s != resumed.step_time_s).any():
        raise RuntimeError("an evaluation from a checkpoint differs")
    whole_s, resumed_s = fastest_s(
        [lambda: problem.evaluate(rows, threads=1), lambda: problem.evaluate(rows, checkpoints=kept)], rounds=5
    )
    return whole_s / resumed_s


def local_search(problem: PlacementProblem, moves: int, *, resume: bool, bound: bool) -> tuple[float, float]:
    """Seconds that random moves of one group take, and the step time that they come to; the same one either way.

    Eight moves are evaluated together; the best of them is kept if it is better.
    """
    rng, groups, gpus = np.random.default_rng(0), problem.num_groups, problem.num_devices - 1
    here = in_blocks(problem)
    here_s = problem.evaluate(here[None], threads=1).step_time_s[0]
    draws = rng.integers(groups, size=(moves // 8, 8)), 1 + rng.integers(gpus, size=(moves // 8, 8))
    started = time.perf_counter()
    kept = problem.checkpoints(here) if resume else None
    for group, device in zip(*draws, strict=True):
        rows = np.tile(here, (8, 1))
        rows[np.arange(8), group] = device
        rows = np.where(problem.allowed[np.arange(groups), rows], rows, here)
        bound_s = here_s if bound else None
        cost_s = problem.evaluate(rows, threads=1, abort_above_s=bound_s, checkpoints=kept).cost_s()
        if cost_s.min() < here_s:
            here, here_s = rows[cost_s.argmin()], cost_s.min()
            if kept is not None:
                kept.restart(problem.groups.to_ops(here[None])[0])
    return time.perf_counter() - started, float(here_s)


def in_blocks(problem: PlacementProblem) -> NDArray[np.int64]:
    """The groups cut into one run a GPU, in program order."""
    return repaired(problem, 1 + np.arange(problem.num_groups) * (problem.num_devices - 1) // problem.num_groups)


def repaired(problem: PlacementProblem, placement: NDArray[np.int64]) -> NDArray[np.int64]:
    """The placement with every group that may not be where it is on its first allowed device."""
    fine = problem.allowed[np.arange(problem.num_groups), placement]
    return np.where(fine, placement, problem.allowed.argmax(axis=1))


if __name__ == "__main__":
    main()
