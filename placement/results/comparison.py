"""Several placers on one problem under one budget, and what their placements are worth.

What a placer claims is not believed: every placement is evaluated again by the problem.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.bounds import lower_bound_s
from envs.problem import PlacementProblem
from graphs.colocation.groups import one_group_an_op
from graphs.errors import InputError, NoFeasiblePlacementError, NotServedError
from graphs.sources import HF_PREFIX
from placement.placers import HEURISTICS, PlacerInfo
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, SearchOptions
from placement.placers.searching.starts import IN_TIME
from placement.placers.single_device import single_device_placements
from placement.placers.tables import has_tables
from placement.results.simulated import describe_short

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
        busy_share: ``float64[D]``, the share of the step for which each device computes; None where there is no
            placement.
        placement: ``int64[G]``, or ``int64[N]`` where single ops were moved; None where there is no placement, and
            where the row was read from a file.
        search_s: Wall-clock seconds that the placer took.
        evaluations: Placements that it evaluated.
        note: One line: what it chose, or why it gave nothing.
        not_served: In a few words, why the placer is not on offer for this problem or on this machine; empty where it
            is. Files do not hold it.
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
    not_served: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows of several placers on one problem.

    Attributes:
        problem: What was placed.
        seed: The seed that every placer was given.
        lower_bound_s: Seconds that no placement can beat that the graph's own constraints allow, single ops included.
        rows: In the order in which the placers ran.
        budget: What each placer might spend.
        options: How the searches went about it.
    """

    problem: PlacementProblem
    seed: int
    lower_bound_s: float
    rows: tuple[Row, ...]
    budget: Budget = field(default_factory=Budget)
    options: SearchOptions = field(default_factory=SearchOptions)

    def with_row(self, row: Row) -> Comparison:
        """The same with one more row."""
        return replace(self, rows=(*self.rows, row))

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

    def ratios(self, row: Row) -> tuple[float | None, float | None, float | None]:
        """A feasible row's step time over the best row's, the best single device's and the lower bound."""
        if row.step_time_s is None or not row.feasible:
            return None, None, None
        best_s = None if self.best is None else self.best.step_time_s
        to_best, to_one, to_bound = (
            row.step_time_s / other_s if other_s else None
            for other_s in (best_s, self.best_single_device_s, self.lower_bound_s)
        )
        return to_best, to_one, to_bound

    def short_bytes(self, row: Row) -> NDArray[np.int64]:
        """``int64[M]``: what each memory, of a device or shared, is short of; zeros where the row has no placement."""
        memories = self.problem.cluster.memories
        if row.peak_memory_bytes is None:
            return np.zeros_like(memories.limit_bytes)
        return memories.lacking(row.peak_memory_bytes[None])[0]

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


RowSource = Callable[
    [PlacementProblem, Sequence[PlacerInfo], Budget, int, SearchOptions],
    Iterator[tuple[PlacerInfo, Iterable[Row]]],
]
"""Makes the rows of some placers on a problem under a budget, from a seed; gives each placer's as they are done."""


def quick_placers(problem: PlacementProblem | None = None) -> list[PlacerInfo]:
    """The placers that answer any problem as soon as they are done, and so need no time limit.

    Args:
        problem: Leave out those that answer only others; None for all.
    """
    quick = [info for info in HEURISTICS.values() if not info.searches and not info.exact]
    if problem is None:
        return quick
    kinds = kinds_of(problem)
    return [info for info in quick if not info.only_for or kinds.intersection(info.only_for)]


def kinds_of(problem: PlacementProblem) -> set[str]:
    """What a problem is, for `PlacerInfo.only_for`.

    Its target; ``"hf:"`` where its graph is a step of a language model by its configuration; ``"tokens"`` where it is a
    step of any language model that reads or makes tokens; ``"tables"`` where most of what it keeps is embedding tables.
    """
    kinds = {problem.target}
    if problem.names is not None and (problem.names.graph or "").startswith(HF_PREFIX):
        kinds.add(HF_PREFIX)
    if problem.graph.tokens:
        kinds.add("tokens")
    if has_tables(problem.graph):
        kinds.add("tables")
    return kinds


def check_seed(seed: int) -> None:
    """Raise where a seed is none that all generators take.

    Raises:
        InputError: It is negative or too large.
    """
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed is {seed}; it must be from 0 to 2^63 - 1")


def compare_placers(
    problem: PlacementProblem,
    placers: Sequence[PlacerInfo],
    *,
    budget: Budget,
    seed: int = 0,
    options: SearchOptions = DEFAULT_OPTIONS,
    finished: Sequence[Row] = (),
    on_start: Callable[[str], None] | None = None,
    on_row: Callable[[Comparison], None] | None = None,
    source: RowSource | None = None,
) -> Comparison:
    """Run placers, each under the same budget and from the same seed.

    Args:
        problem: What to place.
        placers: Of `placement.registry.PLACERS`, or of one's own.
        budget: What each may spend.
        seed: Of each placer's random numbers, so that a row does not depend on which others were run.
        options: What the searches that only move and evaluate move, and where they start.
        finished: Rows of an earlier comparison of the same problem, seed, budget and options. They are taken over, and
            their placers not run again; those without a placement are: what was missing then may be there now.
        on_start: Called with a placer's name before it runs.
        on_row: Called after each finished row with the comparison so far, whose last row is the new one; and at first
            where there are `finished` rows.
        source: Makes the rows, at the same time where it can; by default they are made here, one placer after the
            other, on the same cores.

    Returns:
        The rows in the order of `placers`, those taken over first.

    Raises:
        InputError: The seed is out of range.
        NoFeasiblePlacementError: It is proven that no placement fits.
    """
    check_seed(seed)
    problem.check_can_fit()
    # First: it may prove that nothing fits. Answers may part groups, so the bound is that of single ops.
    fine = problem.with_groups(one_group_an_op(problem.graph))
    bound_s = float(lower_bound_s(fine, time_limit_s=budget.time_limit_s))
    # The simulator is compiled and its arrays are made here, so that the first row does not seem slow for that.
    problem.evaluate(problem.allowed.argmax(axis=1)[None])
    kept = [row for row in finished if row.step_time_s is not None]
    comparison = Comparison(problem, seed, bound_s, tuple(kept), budget, options)
    if kept and on_row is not None:
        on_row(comparison)
    done = {row.placer for row in kept}
    if done >= {f"{SINGLE_DEVICE}:{name}" for name in problem.cluster.device_names}:
        done.add(SINGLE_DEVICE)
    left = [info for info in placers if info.name not in done]
    if source is None:
        source = _one_after_the_other(on_start)
    elif on_start is not None and left:
        on_start(", ".join(info.name for info in left))
    order = {info.name: i for i, info in enumerate(placers)}
    for _, rows in source(problem, left, budget, seed, options):
        for row in rows:
            if row.placer in done:  # of a single device, where others were missing
                continue
            comparison = comparison.with_row(row)
            if on_row is not None:
                on_row(comparison)
    new = sorted(comparison.rows[len(kept) :], key=lambda row: order[row.placer.partition(":")[0]])
    return replace(comparison, rows=(*kept, *new))


def _one_after_the_other(on_start: Callable[[str], None] | None) -> RowSource:
    def rows(
        problem: PlacementProblem, placers: Sequence[PlacerInfo], budget: Budget, seed: int, options: SearchOptions
    ) -> Iterator[tuple[PlacerInfo, Iterable[Row]]]:
        for info in placers:
            if on_start is not None:
                on_start(info.name)
            yield info, rows_of_placer(problem, info, budget, seed, options)

    return rows


def rows_within(limit_s: float, on_start: Callable[[str], None] | None = None) -> RowSource:
    """Asks placers one after the other while there is time, the brief and the likely ones first; the rest is left out.

    Args:
        limit_s: Seconds for all of them; each gets no more than is left, and no more than its budget.
        on_start: Called with a placer's name before it runs.
    """
    likely = {name: i for i, name in enumerate((SINGLE_DEVICE, *IN_TIME))}

    def turn(info: PlacerInfo) -> int:
        return likely.get(info.name, len(likely)) if info.name in HEURISTICS else -1  # what was given comes first

    def rows(
        problem: PlacementProblem, placers: Sequence[PlacerInfo], budget: Budget, seed: int, options: SearchOptions
    ) -> Iterator[tuple[PlacerInfo, Iterable[Row]]]:
        until_s = time.perf_counter() + limit_s
        for info in sorted(placers, key=turn):
            left_s = until_s - time.perf_counter()
            if left_s <= 0.0 and turn(info) > 0:
                reason = "there was no time for it"
                yield info, [Row(info.name, None, False, None, None, None, 0.0, 0, reason, reason)]
                continue
            if on_start is not None:
                on_start(info.name)
            own_s = max(left_s, 0.0) if budget.time_limit_s is None else min(max(left_s, 0.0), budget.time_limit_s)
            made = rows_of_placer(problem, info, replace(budget, time_limit_s=own_s), seed, options)
            yield info, (_of_unlike_devices(problem, made, until_s) if info.name == SINGLE_DEVICE else made)

    return rows


def _of_unlike_devices(problem: PlacementProblem, rows: Iterator[Row], until_s: float) -> Iterator[Row]:
    """Rows of single devices until a time, by `time.perf_counter`, but at least until each kind of device has one."""
    specs = [device.spec for device in problem.cluster.devices]
    for count in range(len(specs)):
        if time.perf_counter() >= until_s and all(spec in specs[:count] for spec in specs[count:]):
            return
        yield next(rows)


def ask(
    problem: PlacementProblem, info: PlacerInfo, *, budget: Budget, rng: np.random.Generator, options: SearchOptions
) -> Placed:
    """What a placer answers; only those that heed `options` are given them, so that one's own may do without.

    Raises:
        InputError: The placer cannot serve the problem.
    """
    if info.moves:
        return info.function(problem, budget=budget, rng=rng, options=options)
    return info.function(problem, budget=budget, rng=rng)


def make_row(problem: PlacementProblem, name: str, placed: Placed) -> Row:
    """Evaluate a placer's answer once more and describe it."""
    evaluation = problem.evaluate_one(placed.placement)
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


def rows_of_placer(
    problem: PlacementProblem, info: PlacerInfo, budget: Budget, seed: int, options: SearchOptions
) -> Iterator[Row]:
    """The rows of one placer: one, or for single devices one each.

    Where the placer cannot serve the problem, its row says why.
    """
    name = info.name
    started = time.perf_counter()
    if name == SINGLE_DEVICE:
        for device, placement in single_device_placements(problem):
            problem.evaluate(placement[None])
            yield make_row(problem, f"{name}:{device}", Placed(placement, 1, time.perf_counter() - started))
            started = time.perf_counter()
        return
    try:
        placed = ask(problem, info, budget=budget, rng=np.random.default_rng(seed), options=options)
    except (InputError, NoFeasiblePlacementError) as error:
        reason = error.reason if isinstance(error, NotServedError) else ""
        yield Row(name, None, False, None, None, None, time.perf_counter() - started, 0, str(error), reason)
        return
    yield make_row(problem, name, placed)
