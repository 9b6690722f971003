"""The part of docs/results/speed.md that `scripts/benchmark_simulator.py --page` writes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from envs.simulator.input import SimulatorInput
from envs.simulator.simulate import simulate_batch
from envs.simulator.workspace import workspace
from graphs.colocation.groups import one_group_an_op
from graphs.synthetic import random_graph
from scripts.c_event_loop import loop_in_c
from scripts.many_workers.page import table, where

SCHEDULES = ("fifo", "priority", "program_order")
"""Those that overlap, as the loop in C does."""
PLACEMENTS = {"random": "scattered at random", "blocks": "in blocks", "one_device": "one device"}
SMALL, LARGE = 10_000, 1_000_000
"""Ops between which the time of an event grows."""

Case = dict[str, Any]


def placements_of(num_ops: int, num_devices: int) -> dict[str, NDArray[np.int64]]:
    """The placements that are timed, ``int64[N]``, by name."""
    return {
        "random": np.random.default_rng(0).integers(0, num_devices, size=num_ops),
        "blocks": np.arange(num_ops) * num_devices // num_ops,
        "one_device": np.ones(num_ops, dtype=np.int64),
    }


def bytes_an_entry(problem: SimulatorInput) -> float:
    """Bytes that simulating on one thread takes, input and workspace, an op plus edge."""
    with workspace(problem) as work:
        arrays = [a for part in (vars(problem).values(), work.parts) for a in part if isinstance(a, np.ndarray)]
    size = sum(a.nbytes for a in {id(a): a for a in arrays}.values())
    return float(size) / (problem.num_ops + len(problem.consumers))


def grow(
    cluster: str, library: ctypes.CDLL, fastest_s: Callable[..., list[float]], say: Callable[[str], None]
) -> list[Case]:
    """Time `SMALL` and `LARGE` graphs in turn; there the plain loop would take minutes.

    Args:
        cluster: Where they are placed.
        library: The loop in C.
        fastest_s: As of `scripts.benchmark_simulator`.
        say: Called with each line.
    """
    graphs = {size: random_graph(size, seed=0) for size in (SMALL, LARGE)}
    cases: list[Case] = []
    for schedule in SCHEDULES:
        problems = {
            size: PlacementProblem(graph, one_group_an_op(graph), load_cluster(cluster), schedule)
            for size, graph in graphs.items()
        }
        for kind in PLACEMENTS:
            runs, events = [], []
            for size, problem in problems.items():
                given, in_c = problem.simulator_input, loop_in_c(library, problem.simulator_input)
                one = placements_of(size, problem.num_devices)[kind].astype(np.int32)
                batch = np.tile(one, (max(LARGE // 20 // size, 1), 1))
                runs += [lambda g=given, b=batch: simulate_batch(g, b, threads=1), lambda f=in_c, b=batch: f(b)]
                events.append((size + in_c(batch[:1])[2]) * len(batch))
            ours_s, c_s = np.array(fastest_s(runs, rounds=4)).reshape(2, 2).T
            ns = ours_s / events * 1e9
            case: Case = {"schedule": schedule, "placement": kind, "small_ns": ns[0], "large_ns": ns[1]}
            case |= {"growth": ns[1] / ns[0], "growth_of_c": c_s[1] / events[1] / (c_s[0] / events[0])}
            case |= {"ratio_to_c": ours_s[1] / c_s[1], "seconds": ours_s[1]}
            case |= {"bytes": bytes_an_entry(problems[LARGE].simulator_input)}
            cases.append(case)
            say(
                f"{LARGE:>8} {schedule:<14}{kind:<11}{case['ratio_to_c']:>6.2f} of C, {case['growth']:.2f} times the "
                f"time an event (C {case['growth_of_c']:.2f}), {case['bytes']:.0f} bytes an op plus edge"
            )
    return cases


def page_text(cases: Sequence[Case], grown: Sequence[Case]) -> str:
    """What the page says of cases of `scripts.benchmark_simulator.measure` and of `grow`."""
    known = {(c["schedule"], c["ops"], c["placement"]): c["ratio_to_c"] for c in cases if "ratio_to_c" in c}
    known |= {(c["schedule"], LARGE, c["placement"]): c["ratio_to_c"] for c in grown}
    sizes = sorted({size for _, size, _ in known})
    rows = [
        [f"`{schedule}`", f"{size:,}", *(f"{known[schedule, size, kind]:.2f}" for kind in PLACEMENTS)]
        for schedule in SCHEDULES
        for size in sizes
    ]
    parts = [
        f"Measured on {where()}.",
        "Times as long as `scripts/event_loop.c` takes, one thread, least processor time of rounds in turn:",
        table(["schedule", "ops", *PLACEMENTS.values()], rows),
    ]
    if grown:
        of = {(c["schedule"], c["placement"]): c for c in grown}
        rows = []
        for schedule in SCHEDULES:
            each = [of[schedule, kind] for kind in PLACEMENTS]
            figures = [f"{c['small_ns']:.0f} to {c['large_ns']:.0f}: {c['growth']:.2f}" for c in each]
            rows.append([f"`{schedule}`", *figures, f"{each[0]['bytes']:.0f}"])
        least, most = (choose(c["growth_of_c"] for c in grown) for choose in (min, max))
        head = ["schedule", *PLACEMENTS.values(), f"bytes an op plus edge, {LARGE:,} ops"]
        parts += [
            f"Nanoseconds an event from {SMALL:,} to {LARGE:,} ops, whose data leave the fast caches; the loop in C "
            f"takes {least:.1f} to {most:.1f} times as long there:",
            table(head, rows),
        ]
    return "\n\n".join(parts)
