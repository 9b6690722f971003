"""Trains a policy on one problem: samples placements, evaluates them, learns, keeps the best, can be interrupted."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.learning.clock import Clock, EvaluationsClock, SecondsClock, UpdatesClock
from placement.learning.learner import Learner
from placement.learning.policy import Encoded, Seq2SeqPolicy
from placement.learning.reinforce import ReinforceConfig
from placement.learning.state import State
from placement.learning.stats import UpdateStats
from placement.learning.threads import deferred_interrupt, one_torch_thread
from placement.learning.warm_start import Start, heuristic_start
from placement.move_search.chain import MoveConfig
from placement.move_search.search import MoveSearch
from placement.placers.best import BestKnown, as_groups, nearest_groups

OPS_AN_UPDATE = 32_000_000
"""Ops that each chain of the search may simulate in an update, as long as that leaves it some moves."""

LEAST_MOVES = 16
"""Moves of a chain in an update, however large the graph."""

POLICY_SHARE = 0.03
"""Seconds of the policy for each second and surviving chain, in a run that only the clock limits; the search takes the
rest."""

START_SHARE = 0.1
"""Share of the time of such a run in which heuristics are asked, the quick ones first."""

TIMED_UPDATE_S = 0.5
"""Seconds of an update of such a run, or the policy's part of it where that takes longer."""

PARTS = ("heuristics", "sample", "learn", "simulate", "wait", "search")
"""Parts of the time that `UpdateStats.seconds` tells apart; the search runs beside the others, but for ``wait``."""

_MANY_MOVES = 10**9

IntArray = NDArray[np.int64]


class _BudgetSpentError(Exception):
    """The wanted number of evaluations is reached in the middle of an update."""


class Observer(Protocol):
    """Who is told how a training goes on: `placement.runs` keeps it in files; the trainer itself knows none."""

    def on_update(self, stats: UpdateStats) -> None:
        """An update is done."""
        ...

    def on_end(self, *, whole: bool) -> None:
        """The run is over; `whole` is False where it ended in the middle of an update."""
        ...


class Trainer:
    """A policy that learns (`placement.learning.learner`), the search beside it, and the best placement so far.

    All randomness comes from generators of its own, made from the seed; all torch work runs on one thread. So the
    same seed and number of updates give the same placements, byte for byte, whatever else runs.

    Args:
        problem: What to place.
        config: How to learn.
        seed: Of all random numbers.
        start: What the heuristics answered, where they were asked before; what that took counts as the trainer's. None
            lets the trainer ask them.

    Attributes:
        evaluations: Placements evaluated so far.
        updates: Updates done so far.
        elapsed_s: Seconds of training so far.
        seconds: Seconds so far by `PARTS`.
        interrupted: True where the last `run` was ended by Ctrl-C.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        *,
        config: ReinforceConfig,
        seed: int = 0,
        start: Start | None = None,
    ) -> None:
        self.problem = problem
        self.config = config
        self.seed = seed
        self.evaluations = 0
        self.updates = 0
        self.elapsed_s = 0.0
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.interrupted = False
        self._rng = np.random.default_rng(seed)
        self._learner = Learner(problem, config=config, seed=seed)
        self._known = BestKnown(problem, config.elites)
        self._search = MoveSearch(
            problem,
            config=MoveConfig(
                chains=config.search_chains,
                survivors=config.search_survivors,
                learning_rate=config.search_learning_rate,
                kind_rate=config.search_kind_rate,
                uniform_share=config.search_uniform_share,
                finest=config.search_finest,
            ),
            seed=seed,
        )
        self._searched = 0  # evaluations of the search that are counted
        self._policy_s = self._policy_in_run_s = 0.0  # seconds of the policy: of its last turn, and in this run
        self._policy_works = False
        self._advice: NDArray[np.float32] | None = None
        self._clock: Clock = UpdatesClock()
        self._start_from = start
        self._started = False
        self._most_evaluations: int | None = None

    @classmethod
    def resume(cls, problem: PlacementProblem, state: State) -> Trainer:
        """Go on from a trainer's `state`, to the same result as a run that was never interrupted."""
        trainer = cls(problem, config=state.config, seed=state.seed)
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
        self._most_evaluations = evaluations
        self.interrupted = False
        called_s = last_s = time.perf_counter()
        # Without any other limit the search cools by the clock; else by what has been done, which repeats itself.
        timed = time_limit_s is not None and updates is None and evaluations is None
        if timed and time_limit_s is not None:
            self._clock = SecondsClock(time_limit_s, first=1.0 if self._searched else 0.0, began_s=called_s)
        else:
            self._clock = UpdatesClock() if evaluations is None else EvaluationsClock(evaluations)
        self._policy_in_run_s = 0.0
        self._search.expect(math.inf if evaluations is None else evaluations)
        planned = self.config.search_moves == 0
        whole = True  # False while an update is under way: its state must not be kept
        try:
            with (
                one_torch_thread(),
                deferred_interrupt() as interrupt,
                ThreadPoolExecutor(self.config.search_chains) as beside,
            ):
                while True:
                    done = updates is not None and self.updates >= updates
                    spent = evaluations is not None and self.evaluations >= evaluations
                    taken_s = time.perf_counter() - called_s
                    late = time_limit_s is not None and taken_s >= time_limit_s and self._started
                    if done or spent or late or interrupt.is_set() or (should_stop is not None and should_stop()):
                        break
                    whole = False
                    self._start(beside)
                    if isinstance(self._clock, SecondsClock) and not planned:  # only now is there a step to go by
                        self._search.expect_seconds(self._clock.limit_s)
                        planned = True
                    numbers = self._update(beside)
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
        except _BudgetSpentError:
            pass
        finally:
            self.elapsed_s += time.perf_counter() - last_s
            if observer is not None:
                observer.on_end(whole=whole)

    def _start(self, beside: Executor) -> None:
        """Before the first update: evaluate the heuristics, where the preset starts from them."""
        if self._started:
            return
        if self.config.warm_start:
            left = None if self._most_evaluations is None else self._most_evaluations - self.evaluations
            start = self._start_from
            if start is not None:
                self.elapsed_s += start.search_s  # what is asked here, the clock counts
            elif (
                isinstance(self._clock, SecondsClock) and self.config.search_moves > 0 and self.config.search_chains > 1
            ):
                start = self._ask_while_a_chain_walks(beside, self._clock)
            else:
                start = heuristic_start(self.problem, evaluations=left, rng=self._rng)
            self.seconds["heuristics"] += start.search_s
            self.evaluations += start.evaluations
            self._evaluate(np.unique(np.stack(list(start.placements.values())), axis=0))
        self._started = True

    def _ask_while_a_chain_walks(self, beside: Executor, clock: SecondsClock) -> Start:
        """Ask the heuristics, which use one core, while a chain walks on another from the first of their answers on."""
        answered = False
        progress, _ = self._progress(_MANY_MOVES)
        walk: list[Future[None]] = []

        def begin(placement: IntArray) -> None:
            if not walk:
                self._evaluate(placement[None])
                walk[:] = self._search.start(
                    _MANY_MOVES,
                    progress=progress,
                    should_stop=lambda: answered,
                    log_probability=None,
                    executor=beside,
                    chains=1,
                )

        try:
            return heuristic_start(
                self.problem, evaluations=None, rng=self._rng, time_limit_s=START_SHARE * clock.limit_s, on_answer=begin
            )
        finally:
            answered = True
            self._finish_search(walk)
            self._search.begin_again()
            clock.begin_again()

    def _update(self, beside: Executor) -> dict[str, float]:
        """Sample, evaluate, learn, and search beside it; returns the update's own fields of `UpdateStats`."""
        config = self.config
        if not config.learns or not self._policy_has_time():
            return self._search_alone(beside)
        began = time.perf_counter()
        self._policy_works = True
        with self._timed("sample"):
            encoded = self._learner.encode()  # read once: what is sampled is learned from by these weights
            search = self._start_search(beside, encoded)
            sampled = self._learner.sample(encoded)
        try:
            evaluation = self._evaluate(sampled.numpy())
            with self._timed("learn"):
                numbers = self._learner.learn(
                    encoded, sampled[1:], _without_first(evaluation), self._known, self.updates
                )
            self._policy_s = time.perf_counter() - began
            self._policy_in_run_s += self._policy_s
        finally:
            self._policy_works = False
            self._finish_search(search)
        feasible = evaluation.feasible[1:]
        times = evaluation.step_time_s[1:][feasible]
        numbers["mean_s"] = float(times.mean()) if len(times) else math.nan
        numbers["greedy_s"] = float(evaluation.step_time_s[0]) if evaluation.feasible[0] else math.nan
        numbers["infeasible_rate"] = float(1.0 - feasible.mean())
        return numbers

    def _policy_has_time(self) -> bool:
        """Whether it is the policy's turn: always, but in a run that only the clock limits not for more than its share.

        Such a run is there to find the best placement in its time, and to that the search adds more.
        """
        if not isinstance(self._clock, SecondsClock) or self.config.search_moves == 0 or self._policy_s == 0:
            return True
        gone_s = time.perf_counter() - self._clock.began_s
        due = self._policy_in_run_s <= POLICY_SHARE * self.config.search_survivors * gone_s
        return due and gone_s + 3 * self._policy_s < self._clock.limit_s

    def _search_alone(self, beside: Executor) -> dict[str, float]:
        """The search's part of an update; there is nothing to say of the policy."""
        search = self._start_search(beside, None)
        if not search:
            raise _BudgetSpentError
        self._finish_search(search)
        own = ("mean_s", "greedy_s", "infeasible_rate", "loss", "entropy", "advantage_std", "grad_norm", "baseline")
        return dict.fromkeys(own, math.nan)

    def _start_search(self, beside: Executor, encoded: Encoded | None) -> list[Future[None]]:
        """Let the chains walk while the policy samples and learns; they hear what the policy would do as it is now.

        Chains and policy let go of Python's lock, so all cores are busy. What either computes does not depend on how
        fast the other is, but for when a run with a time limit alone cools its search.
        """
        config = self.config
        self._search.go_on(self._run_done())
        moves = min(config.search_moves, max(OPS_AN_UPDATE // self.problem.graph.num_ops, LEAST_MOVES))
        if self._most_evaluations is not None:
            left = self._most_evaluations - self.evaluations - (config.samples + 1) * config.learns
            # A block of moves may simulate its first placement once more.
            moves = min(moves, left // (2 * self._search.num_walking))
        elif isinstance(self._clock, SecondsClock):
            moves = _MANY_MOVES  # the clock ends them
        if config.search_moves == 0 or moves <= 0 or self._search.best_ops is None:
            return []
        if encoded is not None and config.search_advice:
            # What the policy would give each group, had it given the earlier ones what the search gives them.
            self._advice = self._learner.advise(encoded, nearest_groups(self.problem, self._search.best_ops))
        progress, late = self._progress(moves)
        return self._search.start(
            moves, progress=progress, should_stop=late, log_probability=self._advice, executor=beside
        )

    def _progress(self, moves: int) -> tuple[Callable[[float], float], Callable[[], bool]]:
        """How far the run is, by the share of an update's moves that is done, and whether its time is over."""
        clock = self._clock
        updates, evaluations, all_moves = self.updates, self.evaluations, self._search.num_walking * moves

        def done(share: float) -> float:
            return clock.done_within(share, updates=updates, evaluations=evaluations, moves=all_moves)

        if not isinstance(clock, SecondsClock):
            return done, lambda: False
        until_s, enough_s = clock.until_s, time.perf_counter() + TIMED_UPDATE_S

        def over() -> bool:
            now = time.perf_counter()
            return now >= until_s or (now >= enough_s and not self._policy_works)

        return done, over

    def _run_done(self) -> float:
        """How much of the run is done: from 0 to 1 by its limit, and on where it goes on after that."""
        return self._clock.done(updates=self.updates, evaluations=self.evaluations)

    def _finish_search(self, search: list[Future[None]]) -> None:
        """Wait for the chains and keep what they found."""
        if not search:
            return
        with self._timed("wait"):
            self._search.finish(search)
        self.seconds["search"] += self._search.take_seconds()
        found, self._searched = self._search.evaluations - self._searched, self._search.evaluations
        self.evaluations += found
        assert self._search.best_ops is not None
        if self._search.best_cost_s < self.best_s:
            evaluation = self.problem.evaluate_ops(self._search.best_ops[None], threads=1)
            self._known.keep(as_groups(self.problem, self._search.best_ops)[None], evaluation)

    def _evaluate(self, placements: IntArray) -> Evaluation:
        """Evaluate ``int64[B, G]``, count them, and keep the best and the elite.

        Raises:
            _BudgetSpentError: Only some of them, or none, could be evaluated within the wanted number of evaluations.
        """
        most = self._most_evaluations
        wanted = len(placements)
        if most is not None:
            placements = placements[: max(most - self.evaluations, 0)]
        if len(placements):
            with self._timed("simulate"):
                evaluation = self.problem.evaluate(placements)
            self.evaluations += len(placements)
            self._known.keep(placements, evaluation)
            self._search.offer_best_of(placements, evaluation)
        if len(placements) < wanted:
            raise _BudgetSpentError
        return evaluation

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def _stats(self, numbers: dict[str, float]) -> UpdateStats:
        return UpdateStats(
            update=self.updates,
            elapsed_s=self.elapsed_s,
            best_s=self.best_s,
            mean_s=numbers["mean_s"],
            greedy_s=numbers["greedy_s"],
            infeasible_rate=numbers["infeasible_rate"],
            evaluations=self.evaluations,
            placements_per_s=self.evaluations / max(self.elapsed_s, 1e-9),
            loss=numbers["loss"],
            entropy=numbers["entropy"],
            advantage_std=numbers["advantage_std"],
            grad_norm=numbers["grad_norm"],
            baseline=numbers["baseline"],
            seconds=dict(self.seconds),
            search_acceptance=self._search.acceptance if self._searched else math.nan,
            search_mean_s=self._search.mean_cost_s,
            search_weights=self._search.weights if self._searched else {},
        )

    @property
    def policy(self) -> Seq2SeqPolicy:
        """The policy; its weights are those after the last update."""
        return self._learner.policy

    @property
    def best_placement(self) -> IntArray | None:
        """The best feasible placement so far, ``int64[G]``, or ``int64[N]`` where it parts groups.

        Where none was feasible, the one that exceeds memory least; None before anything was evaluated.
        """
        return self._known.placement

    @property
    def best_s(self) -> float:
        """The best placement's step time, infinite where it is not feasible."""
        return self._known.step_time_s

    def best_placements(self) -> list[IntArray]:
        """The best placement, ``int64[G]`` or ``int64[N]``, and behind it the elite, ``int64[G]`` each, best first."""
        return self._known.placements()

    def state(self) -> State:
        """All that the rest of a run depends on, for a checkpoint."""
        return State(
            config=self.config,
            seed=self.seed,
            updates=self.updates,
            evaluations=self.evaluations,
            elapsed_s=self.elapsed_s,
            seconds=self.seconds,
            policy=self.policy.state_dict(),
            optimizer=self._learner.optimizer.state_dict(),
            generator=self._learner.generator.get_state(),
            rng=self._rng.bit_generator.state,
            baseline=self._learner.baseline,
            best_s=self.best_s,
            best_placement=self.best_placement,
            least_overflow=self._known.least_overflow,
            elite=self._known.elite,
            search=self._search.state(),
        )

    def _restore(self, state: State) -> None:
        self.updates = state.updates
        self.evaluations = state.evaluations
        self.elapsed_s = state.elapsed_s
        self.seconds = dict(state.seconds)
        self.policy.load_state_dict(state.policy)
        self._learner.optimizer.load_state_dict(state.optimizer)
        self._learner.generator.set_state(state.generator)
        self._learner.baseline = state.baseline
        self._rng.bit_generator.state = state.rng
        self._known.step_time_s, self._known.placement = state.best_s, state.best_placement
        self._known.least_overflow, self._known.elite = state.least_overflow, list(state.elite)
        self._search.restore(state.search)
        self._searched = self._search.evaluations
        self._started = True


def _without_first(evaluation: Evaluation) -> Evaluation:
    return Evaluation(evaluation.step_time_s[1:], evaluation.peak_memory_bytes[1:], evaluation.feasible[1:])
