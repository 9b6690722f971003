"""What every placer is given and gives back.

A placer is a function ``place(problem, *, budget, rng, options=DEFAULT_OPTIONS) -> Placed``: see `Placer`. It asks the
problem only through a `Search`, which counts evaluations, keeps the best feasible placement and says when the budget is
spent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from graphs.errors import unknown_name
from placement.placers.best import BestKnown, charged_s


@dataclass(frozen=True)
class Progress:
    """How far a placer has come.

    Attributes:
        seconds: Since it began.
        evaluations: Placements evaluated so far.
        best_s: Step time of the best feasible placement so far; infinite while there is none.
        mean_s: Mean step time of the feasible ones of the placements that were sampled last; NaN where nothing is
            sampled.
    """

    seconds: float
    evaluations: int
    best_s: float
    mean_s: float = math.nan


@dataclass(frozen=True)
class Budget:
    """How much a placer may spend; what is None is not limited.

    Attributes:
        time_limit_s: Wall-clock seconds, from the placer's start to its answer.
        evaluations: Placements that it may evaluate.
        on_progress: Called, on the placer's own time, by a placer that searches whenever it finds a better placement,
            and by one that learns after each update.
    """

    time_limit_s: float | None = None
    evaluations: int | None = None
    on_progress: Callable[[Progress], None] | None = field(default=None, compare=False, repr=False)


Granularity = Literal["group", "op"]
StartAt = Literal["heuristics", "scratch"]


@dataclass(frozen=True)
class SearchOptions:
    """How the searches that only move and evaluate go about it; other placers have no such choice and ignore it.

    Attributes:
        granularity: What is moved: co-location groups; or, after these, single ops within the graph's hard constraints,
            if the target can run that.
        start: From the quick heuristics' best placement, or from a random one.

    Raises:
        InputError: There is no such choice.
    """

    granularity: Granularity = "group"
    start: StartAt = "heuristics"

    def __post_init__(self) -> None:
        for field_name, known in (("granularity", get_args(Granularity)), ("start", get_args(StartAt))):
            if getattr(self, field_name) not in known:
                raise unknown_name(field_name, getattr(self, field_name), known)


DEFAULT_OPTIONS = SearchOptions()


@dataclass(frozen=True, eq=False)
class Placed:
    """A placer's answer.

    Attributes:
        placement: ``int64[G]``, device indices; ``int64[N]``, of ops, where single ops were moved. May be infeasible
            where the placer found nothing that fits.
        evaluations: Placements that it evaluated.
        search_s: Wall-clock seconds that it took.
        config: Its settings, as they go into the result file.
        note: One line for people: what it chose, or why it failed.
    """

    placement: NDArray[np.int64]
    evaluations: int
    search_s: float
    config: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


class Placer(Protocol):
    """Anything that makes a placement: the one signature that all placers share."""

    def __call__(
        self,
        problem: PlacementProblem,
        *,
        budget: Budget,
        rng: np.random.Generator,
        options: SearchOptions = DEFAULT_OPTIONS,
    ) -> Placed:
        """Place the problem's groups; or its ops, where `options` ask for that and the placer searches by moves.

        Args:
            problem: What to place.
            budget: What the placer may spend.
            rng: Where all of its random numbers come from.
            options: What a search moves, and where it starts; placers that do not search by moves ignore it.

        Raises:
            InputError: The placer cannot serve this problem; the message says why.
        """
        ...


def accelerators_first(problem: PlacementProblem, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """``bool[G, D]``: the accelerators that each group may be on; all its devices where it may be on no accelerator.

    Args:
        problem: The problem.
        allowed: ``bool[U, D]`` of other units than the problem's groups.
    """
    allowed = problem.allowed if allowed is None else allowed
    preferred = allowed & np.array([device.spec.kind != "cpu" for device in problem.cluster.devices])
    nowhere = ~preferred.any(axis=1)
    preferred[nowhere] = allowed[nowhere]
    return preferred


_ENOUGH_FOR_A_RATE = 200
"""Evaluations after which a search's rate is taken from them; until then from the time that evaluating alone took."""


class Search:
    """Evaluates for a placer: counts, remembers the best, and knows when the budget is spent."""

    def __init__(self, problem: PlacementProblem, budget: Budget) -> None:
        self.problem = problem
        self.budget = budget
        self.evaluations = 0
        self.known = BestKnown(problem)
        self._evaluating_s, self._timed = 0.0, 0
        self._begun = 0, 0.0
        self._started = time.perf_counter()

    @property
    def best_placement(self) -> NDArray[np.int64] | None:
        """The best feasible placement so far; None while there is none."""
        return None if np.isinf(self.known.step_time_s) else self.known.placement

    @property
    def best_s(self) -> float:
        """Its step time; infinite while there is none."""
        return self.known.step_time_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the search began."""
        return time.perf_counter() - self._started

    @property
    def spent(self) -> bool:
        """True when the time or the evaluations are used up."""
        limit, most = self.budget.time_limit_s, self.budget.evaluations
        return (limit is not None and self.elapsed_s >= limit) or (most is not None and self.evaluations >= most)

    @property
    def spent_share(self) -> float:
        """Share of the budget that is spent: of time or of evaluations, whichever is more; 0 without a limit."""
        limit, most = self.budget.time_limit_s, self.budget.evaluations
        time_share = 0.0 if limit is None else self.elapsed_s / max(limit, 1e-9)
        return max(time_share, 0.0 if most is None else self.evaluations / max(most, 1))

    @property
    def evaluations_left(self) -> float:
        """Evaluations that the budget still allows, at the rate of the search so far where it limits time."""
        limit, most = self.budget.time_limit_s, self.budget.evaluations
        by_count = np.inf if most is None else float(most - self.evaluations)
        if limit is None:
            return max(by_count, 0.0)
        counted, took_s = self.evaluations - self._begun[0], self.elapsed_s - self._begun[1]
        if counted < _ENOUGH_FOR_A_RATE:
            counted, took_s = self._timed, self._evaluating_s
        return max(min(by_count, (limit - self.elapsed_s) * counted / max(took_s, 1e-9)), 0.0)

    def begin_search(self) -> None:
        """Say that the search proper begins: what came before does not tell how quick it will be."""
        self._begun = self.evaluations, self.elapsed_s

    def evaluate(
        self, placements: NDArray[np.integer], *, abort_above_s: float | NDArray[np.float64] | None = None
    ) -> Evaluation:
        """Evaluate ``int[B, G]`` placements; with a limit on evaluations, only the first that still fit in it.

        Args:
            placements: The placements.
            abort_above_s: As in `PlacementProblem.evaluate`, a cost as of `charged_s`: the caller promises to treat
                everything above it alike.
        """
        if self.budget.evaluations is not None:
            placements = placements[: max(self.budget.evaluations - self.evaluations, 0)]
            if isinstance(abort_above_s, np.ndarray):
                abort_above_s = abort_above_s[: len(placements)]
        began = time.perf_counter()
        evaluation = self.problem.evaluate(placements, abort_above_s=abort_above_s)
        self._evaluating_s += time.perf_counter() - began
        self._timed += len(placements)
        self.evaluations += len(placements)
        if len(placements) == 0:
            return evaluation
        if self.known.keep(placements, evaluation) and self.budget.on_progress is not None:
            self.budget.on_progress(Progress(self.elapsed_s, self.evaluations, self.best_s))
        return evaluation

    def charged_s(self, evaluation: Evaluation) -> NDArray[np.float64]:
        """``float64[B]``: the step time, and for what does not fit more than any step, by the memory missing.

        A search that compares these numbers walks downhill to what fits, and from then on downhill in time. The charge
        is that of `placement.placers.best`. What it goes by stays what no step exceeds, so that numbers from the whole
        search compare, and a descent that begins anew gets to what fits although a better step is known from elsewhere.
        Infinite where the evaluation was aborted.
        """
        if evaluation.feasible.all():
            return evaluation.step_time_s
        return charged_s(evaluation, self.problem.cluster.memories, reference_s=self.known.step_limit_s)

    def placed(self, *, config: Mapping[str, Any] | None = None, note: str = "") -> Placed:
        """The answer: the best feasible placement, or where none was found the one that exceeds memory least."""
        placement = self.known.placement
        if placement is None:
            placement = self.problem.allowed.argmax(axis=1).astype(np.int64)
            note = note or "the budget was spent before anything was evaluated"
        return Placed(placement, self.evaluations, self.elapsed_s, config or {}, note)
