"""Learning where evaluations are few and expensive: a model of the evaluator is asked first, and costs nothing.

A measured step takes seconds, so a hundred evaluations are all there is. A *model*, a simulator that does not quite
know the machine, can be asked as often as one likes. So chains of moves walk on the model (`placement.move_search`:
they learn by REINFORCE which moves pay), from coarse units to single ops, in rounds of one cooling each; what a round
ends with is evaluated; the next round begins at the best placement by the evaluator.

The model is never the evaluator. For a measured problem it is the simulator. For a simulated problem it is the same
problem with the time of each op on each kind of device perturbed, `perturbed`, by a factor drawn once.

References:
    Booker et al., "A rigorous framework for optimization of expensive functions by surrogates", Structural Optimization
    17, 1999, doi:10.1007/BF01197708: search on a model, evaluate what it finds, go on from the best.

Letters: ``B`` placements in a batch, ``N`` ops, ``G`` groups, ``D`` devices, ``S`` distinct device specs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Simulated
from envs.problem import PlacementProblem
from envs.simulator.input import make_input
from placement.learning.config import LearningConfig
from placement.learning.warm_start import heuristic_start
from placement.move_search.plan import Cycle
from placement.move_search.search import MoveSearch
from placement.placers.best import BestKnown, as_groups, ranked

MOST_EVALUATIONS = 2000
"""Where the budget is larger, the evaluator itself is searched: by then it is worth more than a model."""

HEURISTICS_SHARE = 0.1
"""Share of the evaluations that the heuristics' placements get, the best by the model first; but `LEAST_HEURISTICS`."""

LEAST_HEURISTICS = 4

STEPS_A_ROUND = 1000
"""Steps of the model in a round for each chain at 100 evaluations, on a graph of up to `OPS_A_STEP` ops; fewer on
larger ones; their number grows with the fourth root of the evaluations."""

OPS_A_STEP = 4_000

HOT_SHARE = 0.5
"""Share of a round that passes before its placements are candidates."""

LEAST_STEPS = 64
"""Steps of the model in a round, however large the graph."""

MOST_FURTHER_ROUNDS = 4
"""Where the rounds came to fewer new placements than they may evaluate, the last one is walked so often again."""

_SEED_STEP = 7919
_BEFORE_END = 0.999  # at its very end the next cycle would begin

Ops = NDArray[np.int32]


def with_op_times(problem: PlacementProblem, spec_time_s: NDArray[np.float64]) -> PlacementProblem:
    """A model of a problem: the simulator with op times of its own.

    The order in which devices prefer ready ops is the problem's: under the schedule ``priority`` it is handed to the
    runtime, which follows it whatever the ops really take, so it is known.

    Args:
        problem: What is modelled.
        spec_time_s: ``float64[S, N]``, seconds of each op by distinct device spec, in the problem's order of specs.
    """
    known = problem.simulator_input
    own = make_input(
        problem.graph, problem.cluster, spec_time_s, known.device_spec, problem.op_allowed, problem.schedule
    )
    # Paths also bound what is left of a step, so they are scaled until none is longer than it is here.
    takes_time = known.remaining_path_s > 0
    scale = np.min(own.remaining_path_s[takes_time] / known.remaining_path_s[takes_time], initial=1.0)
    given = replace(own, remaining_path_s=known.remaining_path_s * scale)
    return replace(problem.simulated, evaluator=Simulated(given))


def perturbed(problem: PlacementProblem, share: float, rng: np.random.Generator) -> PlacementProblem:
    """A model that does not quite know the machine.

    Args:
        problem: The truth.
        share: The time of each op on each device spec is multiplied by a factor from ``1 - share`` to ``1 + share``.
        rng: Draws the factors.
    """
    times = problem.simulator_input.op_time_s
    return with_op_times(problem, times * rng.uniform(1.0 - share, 1.0 + share, times.shape))


def model_of(problem: PlacementProblem, noise: float, rng: np.random.Generator) -> PlacementProblem:
    """What is asked in a problem's place: of a measured one the simulator, of a simulated one a perturbed copy."""
    if problem.evaluator.measures:
        return with_op_times(problem, problem.simulator_input.op_time_s)
    return perturbed(problem, noise, rng)


class Screening:
    """A run under a budget of evaluations.

    Args:
        problem: What to place; its `evaluate` is what costs.
        config: How the chains learn; `ScreeningConfig.noise` is how far the model is off.
        evaluations: The most placements that may be evaluated.
        seed: Seeds all random numbers. The same seed and number of evaluations give the same placements.
        on_evaluated: Called after each batch of evaluations.
        should_stop: Asked between rounds.

    Attributes:
        evaluations: Placements evaluated so far.
        modelled: Steps of the model so far.
    """

    def __init__(
        self,
        problem: PlacementProblem,
        *,
        config: LearningConfig,
        evaluations: int,
        seed: int,
        on_evaluated: Callable[[Screening], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.problem = problem
        self.config = config
        self.most_evaluations = evaluations
        self.seed = seed
        self.evaluations = 0
        self.modelled = 0
        self._rng = np.random.default_rng([seed, 2])
        self._best = BestKnown(problem)
        self._known: set[bytes] = set()
        self._on_evaluated = on_evaluated
        self._should_stop = should_stop
        self._learned: list[dict[str, object]] = []
        self._chains = config.search.num_surviving
        self.model = model_of(problem, config.screening.noise, self._rng)

    @property
    def best_ops(self) -> Ops | None:
        """``int32[N]``, the best of what was evaluated; where none fits, what lacks least memory."""
        return None if self._best.placement is None else self._best.placement.astype(np.int32)

    @property
    def best_s(self) -> float:
        """Its step time, infinite where it does not fit."""
        return self._best.step_time_s

    @property
    def best_placement(self) -> NDArray[np.int64] | None:
        """``int64[G]``, or ``int64[N]`` where it parts groups; None before anything was evaluated."""
        return None if self.best_ops is None else as_groups(self.problem, self.best_ops)

    def run(self) -> None:
        """Spend the budget, or as much of it as there are different placements to evaluate."""
        start = heuristic_start(self.model, evaluations=None, rng=self._rng)
        placements = np.stack([self.problem.to_ops(placement) for placement in start.placements.values()])
        first = max(LEAST_HEURISTICS, round(HEURISTICS_SHARE * self.most_evaluations))
        self._evaluate(self._ranked(placements)[:first])
        cycles = self._search(0).plan.rounds[0]
        with ThreadPoolExecutor(self._chains) as executor:
            for number in range(len(cycles) + MOST_FURTHER_ROUNDS):
                left = self.most_evaluations - self.evaluations
                if left <= 0 or self.best_ops is None or self._should_stop():
                    break
                count = math.ceil(left / max(len(cycles) - number, 1))
                found = self._round(number, cycles[min(number, len(cycles) - 1)], count, executor)
                self._evaluate(self._ranked(found)[:count])

    def _search(self, number: int) -> MoveSearch:
        """Chains for a round, which know what those of the rounds before learned about which moves pay."""
        config = replace(self.config.search, chains=self._chains, survivors=None)
        search = MoveSearch(self.model, config=config, seed=self.seed + number * _SEED_STEP)
        if self._learned:
            state = search.state()
            for chain, last in zip(state["chains"], self._learned, strict=True):
                chain["weights"], chain["kinds"] = last["weights"], last["kinds"]
            search.restore(state)
        return search

    def _round(self, number: int, cycle: Cycle, count: int, executor: Executor) -> NDArray[np.int32]:
        """Cool once on the model, from the best placement; ``int32[B, N]``, where the chains were in the cold part."""
        assert self.best_ops is not None
        search = self._search(number)
        search.offer_best_of(self.best_ops[None], self.model.evaluate_ops(self.best_ops[None]))
        share = min(OPS_A_STEP / self.model.graph.num_ops, 1.0) * (self.most_evaluations / 100) ** 0.25
        steps = max(int(STEPS_A_ROUND * share) * self._chains, LEAST_STEPS)
        looks = math.ceil(count / self._chains)
        found: list[Ops] = []
        for look in range(looks + 1):
            until = HOT_SHARE + (1.0 - HOT_SHARE) * look / looks
            self._walk(search, steps, until, cycle, executor)
            if look:
                for chain in search.state()["chains"]:
                    found += [chain["best_ops"], chain["ops"]]
        self.modelled += search.evaluations
        self._learned = search.state()["chains"]
        return np.stack(found)

    def _walk(self, search: MoveSearch, steps: int, until: float, cycle: Cycle, executor: Executor) -> None:
        """Let the chains walk until a share of a round's steps is done."""
        chains = self._chains
        while (left := int(until * steps) - search.evaluations) > 0:
            before = search.evaluations
            moves = max(left // chains, 1)

            def progress(share: float, before: int = before, moves: int = moves) -> float:
                return cycle.begin + (cycle.end - cycle.begin) * min(
                    (before + share * chains * moves) / steps, _BEFORE_END
                )

            started = search.start(
                moves, progress=progress, should_stop=lambda: False, log_probability=None, executor=executor
            )
            search.finish(started)
            if search.evaluations == before:  # nothing can move
                break

    def _ranked(self, placements: NDArray[np.int32]) -> NDArray[np.int32]:
        """Those of ``int32[B, N]`` that were not evaluated yet, the best by the model first."""
        new = {row.tobytes(): row for row in placements if row.tobytes() not in self._known}
        if not new:
            return placements[:0]
        rows = np.stack(list(new.values()))
        evaluation = self.model.evaluate_ops(rows)
        return rows[ranked(evaluation, self.model.cluster.memories)]

    def _evaluate(self, placements: Iterable[Ops]) -> None:
        """Evaluate as many as the budget allows, count them, and keep the best."""
        rows = list(placements)[: self.most_evaluations - self.evaluations]
        if not rows:
            return
        evaluation = self.problem.evaluate_ops(np.stack(rows))
        self.evaluations += len(rows)
        self._known.update(row.tobytes() for row in rows)
        self._best.keep(np.stack(rows), evaluation)
        if self._on_evaluated is not None:
            self._on_evaluated(self)


def seconds_until(limit_s: float | None) -> Callable[[], bool]:
    """A `Screening.should_stop` that holds to a time limit from now on."""
    began = time.perf_counter()
    return lambda: limit_s is not None and time.perf_counter() - began >= limit_s
