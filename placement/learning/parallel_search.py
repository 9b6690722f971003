"""The search of a training run: its chains walk in threads of their own, in parallel to the policy.

Chains and policy let go of Python's lock, so all cores are busy. What either computes does not depend on how fast the
other is, but for when a run that only time limits cools its search.

Letters: ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from placement.learning.clock import Work
from placement.learning.pace import MANY_MOVES, Pace
from placement.learning.scorer import Scorer
from placement.learning.timer import Timer
from placement.learning.warm_start import Start, heuristic_start
from placement.move_search.leg import Leg, Reach
from placement.move_search.search import MoveSearch
from placement.placers.best import nearest_groups

IntArray = NDArray[np.int64]

Advise = Callable[[IntArray], NDArray[np.float32]]
"""From a placement, ``int64[G]``, the policy's ``float32[G, D]``: log-probabilities of each group's device, had the
earlier groups those of the placement."""


class Walked(NamedTuple):
    """What came of a leg.

    Attributes:
        chain: Which chain walked it.
        state: The chain's, `placement.move_search.chain.Walker.state`.
        seconds: That it took.
    """

    chain: int
    state: Mapping[str, Any]
    seconds: float


class Walkers(Protocol):
    """Who walks legs in other processes; `placement.runs.chain_jobs` has them walked by workers.

    Attributes:
        count: How many legs are walked at the same time.
    """

    count: int

    def walk(self, legs: Sequence[tuple[Leg, Mapping[str, Any]]], reach: Callable[[], Reach]) -> Iterable[Walked]:
        """Walk legs, each from its chain's state; what they come to is given as they are done.

        Args:
            legs: With the states.
            reach: Asked when a leg is about to begin.
        """
        ...


class ParallelSearch:
    """Starts the chains in each update, and takes over what they found.

    Args:
        problem: What is placed.
        chains: The search.
        scorer: Counts what the chains evaluate, and keeps the best.
        timer: Counts the time as ``search``, and the waiting as ``wait``.
        walkers: Walk the chains in other processes; None walks them in threads of this one.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        *,
        chains: MoveSearch,
        scorer: Scorer,
        timer: Timer,
        walkers: Walkers | None = None,
    ) -> None:
        self._problem = problem
        self._chains = chains
        self._scorer = scorer
        self._timer = timer
        self._walkers = walkers
        self._advice: NDArray[np.float32] | None = None

    def start(
        self, pace: Pace, *, updates: int, executor: Executor, advise: Advise | None = None
    ) -> list[Future[None]]:
        """Let the chains walk for an update; `finish` waits for them.

        Args:
            pace: Of the run.
            updates: Updates so far.
            executor: Runs the chains, one thread each.
            advise: Asks the policy as it is now; None leaves the chains with what it said last.

        Returns:
            What runs; nothing where there is no search, or no evaluation left for it.
        """
        chains, evaluations = self._chains, self._scorer.evaluations
        chains.go_on(pace.clock.done(Work(updates, evaluations)))
        moves = pace.moves(evaluations=evaluations, chains=chains.num_walking)
        if moves <= 0 or chains.best_ops is None:
            return []
        if advise is not None:
            # What the policy would give each group, had it given the earlier ones what the search gives them.
            self._advice = advise(nearest_groups(self._problem, chains.best_ops))
        if self._walkers is not None:
            work = Work(updates, evaluations, moves=chains.num_walking * moves)
            legs = chains.legs(moves, log_probability=self._advice)
            return [executor.submit(self._walk_elsewhere, self._walkers, legs, pace, work)]
        return chains.start(
            moves,
            progress=self._progress(pace, updates, moves),
            should_stop=pace.end_of_moves(),
            log_probability=self._advice,
            executor=executor,
        )

    def _walk_elsewhere(self, walkers: Walkers, legs: Sequence[Leg], pace: Pace, work: Work) -> None:
        """Have legs walked, and take over each chain as its leg is done: in whatever order, they do not meet."""

        def reach() -> Reach:
            return replace(pace.clock.reach(work), seconds=pace.seconds_of_moves())

        begun = [(leg, self._chains.state_of(leg.chain)) for leg in legs]
        for walked in walkers.walk(begun, reach):
            self._chains.take(*walked)

    def finish(self, walking: list[Future[None]]) -> None:
        """Wait for what `start` began, and keep what the chains found."""
        if not walking:
            return
        with self._timer.part("wait"):
            self._chains.finish(walking)
        self._timer.seconds["search"] += self._chains.take_seconds()
        self._scorer.take_found()

    def ask_heuristics(self, pace: Pace, *, rng: np.random.Generator, executor: Executor) -> Start:
        """Ask the heuristics, which use one core; in a run that only time limits, a chain walks on another meanwhile.

        Args:
            pace: Of the run.
            rng: For heuristics that draw.
            executor: Runs the chain.
        """
        limit_s = pace.heuristics_s
        if limit_s is None:
            return heuristic_start(self._problem, evaluations=self._scorer.left, rng=rng)
        with self._one_chain(pace, executor) as begin:
            return heuristic_start(self._problem, evaluations=None, rng=rng, time_limit_s=limit_s, on_answer=begin)

    @contextlib.contextmanager
    def _one_chain(self, pace: Pace, executor: Executor) -> Iterator[Callable[[IntArray], None]]:
        """Let a chain walk on one core while something else works on another, until the block is left.

        Then all chains begin at the best placement that is known.

        Yields:
            A function that is told of placements, ``int64[G]``; the chain begins at the first.
        """
        left = False
        walking: list[Future[None]] = []
        progress = self._progress(pace, 0, MANY_MOVES)

        def begin(placement: IntArray) -> None:
            if not walking:
                self._scorer.evaluate(placement[None])
                walking[:] = self._chains.start(
                    MANY_MOVES,
                    progress=progress,
                    should_stop=lambda: left,
                    log_probability=None,
                    executor=executor,
                    chains=1,
                )

        try:
            yield begin
        finally:
            left = True
            self.finish(walking)
            self._chains.begin_again()
            pace.begin_search()

    def _progress(self, pace: Pace, updates: int, moves: int) -> Callable[[float], float]:
        """How far the run is, by the share of an update's moves that is done."""
        clock, evaluations, all_moves = pace.clock, self._scorer.evaluations, self._chains.num_walking * moves
        return lambda share: clock.done(Work(updates, evaluations, share, all_moves))
