"""Trains a policy on one problem: samples placements, evaluates them, learns, keeps the best, can be interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.learning.config import LearningConfig
from placement.learning.learner import LEARNED, Learner, Learns
from placement.learning.pace import Limits, Pace, PolicyTime, make_pace
from placement.learning.parallel_search import ParallelSearch, Walkers
from placement.learning.scorer import BudgetSpentError, Scorer
from placement.learning.state import State
from placement.learning.stats import NO_POLICY, UpdateStats, sample_numbers
from placement.learning.threads import deferred_interrupt, one_torch_thread
from placement.learning.timer import Timer
from placement.learning.warm_start import Start
from placement.move_search.search import MoveSearch
from placement.placers.best import BestKnown
from placement.placers.quick_lists import quick_placements

IntArray = NDArray[np.int64]

MakeLearner = Callable[[PlacementProblem, LearningConfig, int, BestKnown], Learns]
"""Makes what learns, of the problem, the settings, the seed and what is known of the problem as the run goes on."""


class Observer(Protocol):
    """Who is told how a training goes on: `placement.runs` keeps it in files; the trainer itself knows none."""

    def on_update(self, stats: UpdateStats) -> None:
        """An update is done."""
        ...

    def on_end(self, *, whole: bool) -> None:
        """The run is over; `whole` is False where it ended in the middle of an update."""
        ...


class Trainer:
    """A policy that learns (`placement.learning.learner`), the search in parallel, and the best placement so far.

    All randomness comes from generators of its own, made from the seed; all torch work runs on one thread. So the
    same seed and number of updates give the same placements, byte for byte, whatever else runs.

    Args:
        problem: What to place.
        config: How to learn.
        seed: Seeds all random numbers.
        start: What the heuristics answered, where they were asked before; what that took counts as the trainer's. None
            lets the trainer ask them.
        walkers: Walk the chains in other processes; None walks them in threads of this one.
        make_learner: Makes what learns; by default `placement.learning.learner.Learner`.

    Attributes:
        updates: Updates done so far.
        elapsed_s: Seconds of training so far.
        interrupted: True where the last `run` was ended by Ctrl-C.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        *,
        config: LearningConfig,
        seed: int = 0,
        start: Start | None = None,
        walkers: Walkers | None = None,
        make_learner: MakeLearner | None = None,
    ) -> None:
        self.problem = problem
        self.config = config
        self.seed = seed
        self.updates = 0
        self.elapsed_s = 0.0
        self.interrupted = False
        self._rng = np.random.default_rng(seed)
        self._timer = Timer()
        cores = None if walkers is None else walkers.count
        self._chains = MoveSearch(problem, config=config.search, seed=seed, cores=cores)
        self._scorer = Scorer(problem, elites=config.update.elites, chains=self._chains, timer=self._timer)
        self._search = ParallelSearch(
            problem, chains=self._chains, scorer=self._scorer, timer=self._timer, walkers=walkers
        )
        self._policy_time = PolicyTime()
        self._start = start
        self._make_learner = make_learner
        self._started = False

    @cached_property
    def _learner(self) -> Learns:
        """Made when it is first needed: a short run on a large graph has no time for it."""
        if self._make_learner is not None:
            return self._make_learner(self.problem, self.config, self.seed, self._scorer.known)
        return Learner(self.problem, config=self.config, seed=self.seed)

    @classmethod
    def resume(
        cls,
        problem: PlacementProblem,
        state: State,
        *,
        walkers: Walkers | None = None,
        make_learner: MakeLearner | None = None,
    ) -> Trainer:
        """Go on from a trainer's `state`, to the same result as a run that was never interrupted."""
        trainer = cls(problem, config=state.config, seed=state.seed, walkers=walkers, make_learner=make_learner)
        trainer._restore(state)
        return trainer

    def run(
        self,
        *,
        updates: int | None = None,
        time_limit_s: float | None = None,
        evaluations: int | None = None,
        on_update: Callable[[UpdateStats], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Train until one of the limits is reached; limits that are None do not hold.

        Ctrl-C ends the run after the update under way: the best placement is kept, and `interrupted` set. (A
        second Ctrl-C does not wait for the update; the observer is told that the state is not that of a whole one.)

        Args:
            updates: Updates in all, those before this call included: running to 10 and then to 20 is running to 20.
            time_limit_s: Seconds that this call may take; a first update is made however short they are. How many
                updates fit is the machine's affair, so only `updates` and `evaluations` promise the same result twice.
            evaluations: Placements evaluated in all, those before this call included.
            on_update: Called after every update.
            should_stop: Asked before every update.
            observer: Told of every update before `on_update`, and of the end.

        Raises:
            InputError: There is no limit, and nothing that could stop the run.
        """
        if updates is None and time_limit_s is None and evaluations is None and should_stop is None:
            raise InputError("training needs a limit: give a time limit, a number of updates or of evaluations")
        limits = Limits(updates, time_limit_s, evaluations)
        began_s = last_s = time.perf_counter()
        self.interrupted = False
        self._scorer.most = evaluations
        pace = make_pace(
            self.config,
            limits,
            num_ops=self.problem.graph.num_ops,
            num_groups=self.problem.num_groups,
            began_s=began_s,
            policy=self._policy_time,
            goes_on=self._chains.evaluations > 0,
        )
        planned = False
        whole = True  # False while an update is under way: its state must not be kept
        try:
            with (
                one_torch_thread(),
                deferred_interrupt() as interrupt,
                ThreadPoolExecutor(self.config.search.chains) as executor,
            ):
                while not (self._is_over(limits, began_s) or interrupt.is_set() or (should_stop and should_stop())):
                    whole = False
                    self._begin(pace, executor)
                    if not planned:  # only now is there a step to measure by
                        pace.plan(self._chains)
                        planned = True
                    numbers = self._update(pace, executor)
                    self.updates += 1
                    self.elapsed_s, last_s = self.elapsed_s + time.perf_counter() - last_s, time.perf_counter()
                    whole = True
                    stats = self._stats(numbers)
                    if observer is not None:
                        observer.on_update(stats)
                    if on_update is not None:
                        on_update(stats)
                self.interrupted = interrupt.is_set()
        except KeyboardInterrupt:
            self.interrupted = True
        except BudgetSpentError:
            pass
        finally:
            self.elapsed_s += time.perf_counter() - last_s
            if observer is not None:
                observer.on_end(whole=whole)

    def _is_over(self, limits: Limits, began_s: float) -> bool:
        # A first update is made however short the time is.
        seconds = time.perf_counter() - began_s if self._started else -1.0
        return limits.reached(updates=self.updates, evaluations=self.evaluations, seconds=seconds)

    def _begin(self, pace: Pace, executor: Executor) -> None:
        """Before the first update: evaluate the heuristics, where the preset starts from them."""
        if self._started:
            return
        if self.config.warm_start:
            start = self._start
            if start is None:
                start = self._search.ask_heuristics(pace, rng=self._rng, executor=executor)
                placements = list(start.placements.values())
            else:
                self.elapsed_s += start.search_s  # heuristics that this run asks are in its time anyway
                placements = list(start.placements.values())
                if pace.heuristics_s is not None and not self.problem.evaluator.measures:
                    # Those that gave it may have had no time for each of these.
                    until_s = time.perf_counter() + pace.heuristics_s
                    quick = quick_placements(self.problem, should_stop=lambda: time.perf_counter() > until_s)
                    placements += quick.values()
            self._timer.seconds["heuristics"] += start.search_s
            self._scorer.evaluations += start.evaluations
            of_groups = [p for p in placements if len(p) == self.problem.num_groups]
            if of_groups:
                self._scorer.evaluate(np.unique(np.stack(of_groups), axis=0))
            for placement in placements:
                if len(placement) != self.problem.num_groups:
                    self._scorer.evaluate_ops(placement[None])
        self._started = True

    def _update(self, pace: Pace, executor: Executor) -> dict[str, float]:
        """Sample, evaluate and learn, while the search walks; returns the policy's fields of `UpdateStats`."""
        if not self.config.learns or not pace.policy_is_due():
            walking = self._search.start(pace, updates=self.updates, executor=executor)
            if not walking:
                raise BudgetSpentError
            self._search.finish(walking)
            return NO_POLICY
        walking = []
        try:
            with self._policy_time.turn():
                with self._timer.part("sample"):
                    encoded = self._learner.encode()  # what is sampled is learned from by these weights
                    advise = partial(self._learner.advise, encoded) if self.config.search_advice else None
                    walking = self._search.start(pace, updates=self.updates, executor=executor, advise=advise)
                    sampled = self._learner.sample(encoded)
                evaluation = self._scorer.evaluate(sampled.numpy())
                with self._timer.part("learn"):
                    known = self._scorer.known
                    numbers = self._learner.learn(encoded, sampled[1:], _without_first(evaluation), known, self.updates)
        finally:
            self._search.finish(walking)
        return numbers | sample_numbers(evaluation)

    def _stats(self, numbers: dict[str, float]) -> UpdateStats:
        chains = self._chains
        return UpdateStats(
            update=self.updates,
            elapsed_s=self.elapsed_s,
            best_s=self.best_s,
            evaluations=self.evaluations,
            placements_per_s=self.evaluations / max(self.elapsed_s, 1e-9),
            seconds=dict(self.seconds),
            search_acceptance=chains.acceptance if chains.evaluations else math.nan,
            search_mean_s=chains.mean_cost_s,
            search_weights=chains.weights if chains.evaluations else {},
            **numbers,
        )

    @property
    def evaluations(self) -> int:
        """Placements evaluated so far, those of the heuristics and the search included."""
        return self._scorer.evaluations

    @property
    def draws_learned(self) -> bool:
        """Whether the search draws moves by what it learned; not where the preset or the plan of the run forbids it."""
        return self._chains.draws_learned

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds so far by `placement.learning.timer.PARTS`."""
        return self._timer.seconds

    @property
    def policy(self) -> torch.nn.Module:
        """The policy; its weights are those after the last update."""
        return self._learner.policy

    @property
    def best_placement(self) -> IntArray | None:
        """The best feasible placement so far, ``int64[G]``, or ``int64[N]`` where it parts groups.

        Where none was feasible, the one that exceeds memory least; None before anything was evaluated.
        """
        return self._scorer.known.placement

    @property
    def best_s(self) -> float:
        """The best placement's step time, infinite where it is not feasible."""
        return self._scorer.known.step_time_s

    def best_placements(self) -> list[IntArray]:
        """The best placement, ``int64[G]`` or ``int64[N]``, and behind it the elite, ``int64[G]`` each, best first."""
        return self._scorer.known.placements()

    def state(self) -> State:
        """All that the rest of a run depends on, for a checkpoint; a learner that was not needed yet is not made."""
        learned = self._learner.state() if "_learner" in self.__dict__ else dict.fromkeys(LEARNED)
        return State(
            config=self.config,
            seed=self.seed,
            updates=self.updates,
            evaluations=self.evaluations,
            elapsed_s=self.elapsed_s,
            seconds=self.seconds,
            rng=self._rng.bit_generator.state,
            best_s=self.best_s,
            best_placement=self.best_placement,
            least_overflow=self._scorer.known.least_overflow,
            elite=self._scorer.known.elite,
            search=self._chains.state(),
            **learned,
        )

    def _restore(self, state: State) -> None:
        known = self._scorer.known
        self.updates = state.updates
        self.elapsed_s = state.elapsed_s
        self._timer.seconds = dict(state.seconds)
        if state.policy is not None:
            self._learner.restore(state)
        self._rng.bit_generator.state = state.rng
        known.step_time_s, known.placement = state.best_s, state.best_placement
        known.least_overflow, known.elite = state.least_overflow, list(state.elite)
        self._chains.restore(state.search)
        self._scorer.restore(state.evaluations)
        self._started = True


def _without_first(evaluation: Evaluation) -> Evaluation:
    return Evaluation(evaluation.step_time_s[1:], evaluation.peak_memory_bytes[1:], evaluation.feasible[1:])
