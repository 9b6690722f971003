"""The evaluations of a training run: counted, kept within a limit, and the best of them known.

Letters: ``B`` placements in a batch, ``N`` ops, ``G`` groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from placement.learning.timer import Timer
from placement.move_search.search import MoveSearch
from placement.placers.best import BestKnown, as_groups

IntArray = NDArray[np.int64]


class BudgetSpentError(Exception):
    """The wanted number of evaluations is reached in the middle of an update."""


class Scorer:
    """Evaluates placements and takes over what the chains evaluate.

    Args:
        problem: What is placed.
        elites: How many good placements are kept for the policy to imitate.
        chains: The search, which is told of the best placement of each batch.
        timer: Counts the time as ``simulate``.

    Attributes:
        evaluations: Placements evaluated so far, those of the chains and the heuristics included.
        most: Placements that may be evaluated in all; None for any number.
        known: The best placement so far, and the elite.
    """

    def __init__(self, problem: PlacementProblem, *, elites: int, chains: MoveSearch, timer: Timer) -> None:
        self.evaluations = 0
        self.most: int | None = None
        self.known = BestKnown(problem, elites)
        self._problem = problem
        self._chains = chains
        self._timer = timer
        self._counted = chains.evaluations  # of the chains, those that `evaluations` includes

    @property
    def left(self) -> int | None:
        """Placements that may still be evaluated; None for any number."""
        return None if self.most is None else max(self.most - self.evaluations, 0)

    def evaluate(self, placements: IntArray) -> Evaluation:
        """Evaluate ``int64[B, G]``, count them, and keep the best and the elite.

        Raises:
            BudgetSpentError: Only some of them, or none, could be evaluated within the wanted number of evaluations.
        """
        wanted = len(placements)
        placements = placements[: self.left]
        if len(placements):
            with self._timer.part("simulate"):
                evaluation = self._problem.evaluate(placements)
            self.evaluations += len(placements)
            self.known.keep(placements, evaluation)
            self._chains.offer_best_of(placements, evaluation)
        if len(placements) < wanted:
            raise BudgetSpentError
        return evaluation

    def evaluate_ops(self, placements: IntArray) -> None:
        """As `evaluate`, of placements that part groups, ``int64[B, N]``."""
        with self._timer.part("simulate"):
            evaluation = self._problem.evaluate_ops(placements)
        self.evaluations += len(placements)
        self.known.keep(placements, evaluation)
        self._chains.offer_best_of(placements, evaluation)

    def take_found(self) -> None:
        """Count what the chains evaluated since this was called last, and keep their best placement if it is better."""
        chains = self._chains
        found, self._counted = chains.evaluations - self._counted, chains.evaluations
        self.evaluations += found
        assert chains.best_ops is not None
        if chains.best_cost_s < self.known.step_time_s:
            evaluation = self._problem.evaluate_ops(chains.best_ops[None], threads=1)
            self.known.keep(as_groups(self._problem, chains.best_ops)[None], evaluation)

    def restore(self, evaluations: int) -> None:
        """Go on after so many evaluations, those of the restored chains included."""
        self.evaluations, self._counted = evaluations, self._chains.evaluations
