"""Several placers on one problem under one budget, and what their placements are worth.

What a placer claims is not believed: every placement is evaluated again by the problem.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.bounds import lower_bound_s
from envs.problem import PlacementProblem
from graphs.errors import InputError, NoFeasiblePlacementError
from placement.placers import PLACERS, get_placer
from placement.placers.base import Budget, Placed
from placement.placers.single_device import single_device_placements
from placement.simulated import describe_short

SINGLE_DEVICE = "single_device"
"""The placer that the comparison shows once for each device."""


@dataclass(frozen=True, eq=False)
class Row:
    """What one placer came to.

    Attributes:
        placer: Its name; for one device ``"single_device:gpu:0"``.
        step_time_s: Simulated seconds; None where the placer gave no placement. Of an infeasible placement: what it
            would take if memory were no limit.
        feasible: False too where there is no placement.
        peak_memory_bytes: ``int64[D]``; None where there is no placement.
        busy_share: ``float64[D]``, the share of the step for which each device computes; None likewise.
        placement: ``int64[G]``; None likewise.
        search_s: Wall-clock seconds that the placer took.
        evaluations: Placements that it evaluated.
        note: One line: what it chose, or why it gave nothing.
    """

    placer: str
    step_time_s: float | None
    feasible: bool
    peak_memory_bytes: NDArray[np.int64] | None
    busy_share: NDArray[np.float64] | None
    placement: NDArray[np.int64] | None
    search_s: float
    evaluations: int
    note: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows of several placers on one problem.

    Attributes:
        problem: What was placed.
        seed: The seed that every placer was given.
        lower_bound_s: Seconds that no placement can beat.
        rows: In the order in which the placers ran.
    """

    problem: PlacementProblem
    seed: int
    lower_bound_s: float
    rows: tuple[Row, ...]

    def with_row(self, row: Row) -> Comparison:
        """The same with one more row."""
        return Comparison(self.problem, self.seed, self.lower_bound_s, (*self.rows, row))

    def ranked(self) -> list[Row]:
        """The rows, fastest first; then the infeasible by how much memory they lack; then those without a placement."""

        def key(row: Row) -> tuple[int, float, float]:
            if row.step_time_s is None:
                return (2, 0.0, 0.0)
            over = 0.0 if row.feasible else float(self.short_bytes(row).sum())
            return (0 if row.feasible else 1, over, row.step_time_s)

        return sorted(self.rows, key=key)

    @property
    def best(self) -> Row | None:
        """The fastest feasible row, None where there is none."""
        first = next(iter(self.ranked()), None)
        return first if first is not None and first.feasible else None

    @cached_property
    def best_single_device_s(self) -> float | None:
        """Step time of the best single device, whether it has a row or not; None where no single device holds it."""
        placements = np.stack([placement for _, placement in single_device_placements(self.problem)])
        best_s = float(self.problem.evaluate(placements).cost_s().min())
        return best_s if np.isfinite(best_s) else None

    def short_bytes(self, row: Row) -> NDArray[np.int64]:
        """``int64[D]``: by how much the row's peak exceeds each device's memory; zeros where it has no placement."""
        memory = self.problem.cluster.memory_bytes
        return np.zeros_like(memory) if row.peak_memory_bytes is None else np.maximum(row.peak_memory_bytes - memory, 0)

    def check_feasible(self) -> None:
        """Raise where no row is feasible.

        Raises:
            NoFeasiblePlacementError: The message says how much the nearest placement lacks, and where.
        """
        if self.best is not None:
            return
        tried = [row for row in self.ranked() if row.peak_memory_bytes is not None]
        if not tried or tried[0].peak_memory_bytes is None:
            reasons = "; ".join(f"{row.placer}: {row.note}" for row in self.rows)
            raise InputError(f"none of the placers gave a placement ({reasons}); choose others")
        raise NoFeasiblePlacementError(
            f"no placer found a placement that fits cluster '{self.problem.cluster.name}': the nearest, "
            f"{tried[0].placer}'s, {describe_short(self.problem, tried[0].peak_memory_bytes)}"
        )


def choose_placers(text: str) -> list[str]:
    """The placers that a user means by ``"heft,etf"`` or ``"all"``.

    Raises:
        InputError: A name is unknown, or there is none.
    """
    names = list(PLACERS) if text.strip() == "all" else [n.strip() for n in text.split(",") if n.strip()]
    if not names:
        raise InputError(f"--placers names no placer; known: all, {', '.join(PLACERS)}")
    for name in names:
        get_placer(name)
    return list(dict.fromkeys(names))


def quick_placers() -> list[str]:
    """Names of the placers that answer any problem as soon as they are done, and so need no time limit."""
    return [name for name, info in PLACERS.items() if not info.searches and not info.exact]


def check_seed(seed: int) -> None:
    """Raise where a seed is none that all generators take.

    Raises:
        InputError: It is negative or too large.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed is {seed}; it must be from 0 to 2^63 - 1")


def compare_placers(
    problem: PlacementProblem,
    placers: Sequence[str],
    *,
    budget: Budget,
    seed: int = 0,
    on_start: Callable[[str], None] | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> Comparison:
    """Run placers one after the other, each under the same budget and from the same seed.

    Args:
        problem: What to place.
        placers: Names in `placement.placers.PLACERS`.
        budget: What each may spend.
        seed: Of each placer's random numbers, so that a row does not depend on which others were run.
        on_start: Called with a placer's name before it runs.
        on_row: Called with each finished row.

    Raises:
        InputError: A name is unknown, or the seed is out of range.
        NoFeasiblePlacementError: It is proven that no placement fits.
    """
    check_seed(seed)
    for name in placers:
        get_placer(name)
    problem.check_can_fit()
    bound_s = float(lower_bound_s(problem))  # first: it may prove that nothing fits
    rows = []
    for name in placers:
        if on_start is not None:
            on_start(name)
        for row in _run(problem, name, budget, seed):
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return Comparison(problem, seed, bound_s, tuple(rows))


def make_row(problem: PlacementProblem, name: str, placed: Placed) -> Row:
    """Evaluate a placer's answer once more and describe it."""
    evaluation = problem.evaluate(placed.placement[None])
    trace = problem.trace(placed.placement)
    step_time_s = float(evaluation.step_time_s[0])
    return Row(
        placer=name,
        step_time_s=step_time_s,
        feasible=bool(evaluation.feasible[0]),
        peak_memory_bytes=evaluation.peak_memory_bytes[0],
        busy_share=trace.busy_s() / step_time_s if step_time_s > 0 else trace.busy_s(),
        placement=placed.placement,
        search_s=placed.search_s,
        evaluations=placed.evaluations,
        note=placed.note,
    )


def _run(problem: PlacementProblem, name: str, budget: Budget, seed: int) -> Iterator[Row]:
    started = time.perf_counter()
    if name == SINGLE_DEVICE:
        for device, placement in single_device_placements(problem):
            elapsed_s, started = time.perf_counter() - started, time.perf_counter()
            yield make_row(problem, f"{name}:{device}", Placed(placement, 1, elapsed_s))
        return
    try:
        placed = get_placer(name).function(problem, budget=budget, rng=np.random.default_rng(seed))
    except (InputError, NoFeasiblePlacementError) as error:
        yield Row(name, None, False, None, None, None, time.perf_counter() - started, 0, str(error))
        return
    yield make_row(problem, name, placed)


class _RowRecord(msgspec.Struct, frozen=True):
    """A row as `comparison.json` holds it."""

    placer: str
    step_time_s: float | None
    feasible: bool
    peak_memory_bytes: dict[str, int] | None
    search_s: float
    evaluations: int
    note: str


def _records(comparison: Comparison) -> list[_RowRecord]:
    names = comparison.problem.cluster.device_names
    return [
        _RowRecord(
            row.placer,
            row.step_time_s,
            row.feasible,
            None
            if row.peak_memory_bytes is None
            else {name: int(peak) for name, peak in zip(names, row.peak_memory_bytes, strict=True)},
            row.search_s,
            row.evaluations,
            row.note,
        )
        for row in comparison.rows
    ]


def encode_comparison(comparison: Comparison) -> bytes:
    """The bytes of a `comparison.json`."""
    problem = comparison.problem
    content = {
        "graph": problem.graph.name,
        "cluster": problem.cluster.name,
        "schedule": problem.schedule,
        "seed": comparison.seed,
        "lower_bound_s": comparison.lower_bound_s,
        "rows": _records(comparison),
    }
    return msgspec.json.format(msgspec.json.encode(content, order="sorted"), indent=2) + b"\n"


def encode_comparison_csv(comparison: Comparison) -> bytes:
    """The rows as CSV, one column a device for the peak memory."""
    names = comparison.problem.cluster.device_names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    memory = [f"peak_memory_bytes:{name}" for name in names]
    writer.writerow(["placer", "step_time_s", "feasible", *memory, "search_s", "evaluations", "note"])
    for row in _records(comparison):
        peaks = [None] * len(names) if row.peak_memory_bytes is None else list(row.peak_memory_bytes.values())
        writer.writerow([row.placer, row.step_time_s, row.feasible, *peaks, row.search_s, row.evaluations, row.note])
    return text.getvalue().encode()
