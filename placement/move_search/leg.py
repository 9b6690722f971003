"""A leg of a chain: its moves of one update, as plain data, so that it can be walked in another process.

What a leg comes to depends on the chain's state and on what is given here alone: not on who walks it, nor on how fast
the others are. Only where time ends it, or its temperature falls with time, does it matter how fast it is walked.

Letters: ``N`` ops, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from placement.move_search import kernel
from placement.move_search.chain import Found, Walker
from placement.move_search.field import Field, make_field
from placement.move_search.plan import Cycle, Plan, units_of
from placement.placers.best import LEAST_REFERENCE_S, step_limit_s
from placement.placers.random import draw

OPS_A_BLOCK = 500_000
"""Ops that are simulated, at most, between two looks at the clock."""


class Ground:
    """What chains of one problem share: the fields of its stages, and the longest step; made when first asked for."""

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self._fields: dict[str, Field] = {}
        self._lock = Lock()

    def field(self, stage: str) -> Field:
        """What moves in a stage."""
        with self._lock:  # two chains may come to a stage at once
            if stage not in self._fields:
                self._fields[stage] = make_field(self.problem, units_of(self.problem, stage))
            return self._fields[stage]

    @cached_property
    def step_limit_s(self) -> float:
        """Seconds that no step exceeds."""
        return step_limit_s(self.problem)

    def reference_s(self, known: Found | None) -> float:
        """What is charged goes by this: the best feasible step, or what no step exceeds while none is known."""
        return max(known.step_s, LEAST_REFERENCE_S) if known is not None and known.fits else self.step_limit_s


@dataclass(frozen=True)
class Reach:
    """How far a run is while a leg is walked, as plain data: by the share of its moves that is done, or by seconds.

    Attributes:
        begin: When it begins, from 0 to 1.
        a_leg: How much of the run the leg is, where the run goes by what is done; else 0.
        a_second: How much of the run a second is, where it goes by seconds; else 0.
        seconds: After which the leg ends; None for after its moves.
    """

    begin: float
    a_leg: float = 0.0
    a_second: float = 0.0
    seconds: float | None = None

    def at(self, share: float, seconds: float = 0.0) -> float:
        """Progress of the run after a share of the leg's moves, and so many seconds."""
        return self.begin + share * self.a_leg + seconds * self.a_second


@dataclass(frozen=True, eq=False)
class Leg:
    """What a chain is to walk.

    Attributes:
        chain: Its number.
        moves: How many, at most.
        plan: The chain's.
        round: That it is in.
        first: The best that is known, by whatever chain.
        home: Where it begins the round; None for a random placement.
        drawn_by: Seeds that placement.
        log_probability: ``float32[G, D]``, what the policy says, or None.
    """

    chain: int
    moves: int
    plan: Plan
    round: int
    first: Found
    home: Found | None
    drawn_by: tuple[int, ...]
    log_probability: NDArray[np.float32] | None = None

    def cycle_at(self, progress: float) -> Cycle:
        """The cycle at some progress of the run."""
        return self.plan.cycle_at(progress, min(self.round, len(self.plan.rounds) - 1))

    def first_of_round(self, field: Field) -> Found:
        """Where the chain begins the round."""
        if self.home is not None:
            return self.home
        rng = np.random.default_rng(self.drawn_by)
        return Found(draw(field.allowed, 1, rng)[0, field.unit_of_op].astype(np.int32), np.inf, np.inf)


def walk(
    walker: Walker,
    leg: Leg,
    ground: Ground,
    *,
    progress: Callable[[float], float],
    should_stop: Callable[[], bool],
) -> None:
    """Walk a leg.

    Args:
        walker: The chain.
        leg: What it is to walk.
        ground: Of the chain's problem.
        progress: Of the whole run (from 0 to 1, and on), by the share of the leg's moves that is done.
        should_stop: Asked between blocks of moves.
    """
    began = time.perf_counter()
    walker.go_on(ground.field)
    walker.advise(leg.log_probability)
    first, moves = leg.first, leg.moves
    block = max(OPS_A_BLOCK // ground.problem.graph.num_ops, 1)
    done = 0
    while done < moves and not should_stop():
        now = progress(done / moves)
        cycle = leg.cycle_at(now)
        field = ground.field(cycle.stage)
        if walker.cycle != cycle:
            own = walker.best
            if np.isinf(own.step_s):
                start = leg.first_of_round(field)
            elif cycle.alone or not first.beats(own):
                # Chains go their own ways: where they end differs more than how far they get.
                start = own
            else:
                start = first
            walker.begin(cycle, field, start.ops, leg.log_probability)
            walker.best = start
        # By what the chain itself may know now, so that nothing depends on how fast the others are.
        best = walker.best if walker.best.beats(first) else first
        reference_s = ground.reference_s(best)
        walker.scalars[kernel.REFERENCE] = reference_s
        best_s = best.cost_s(reference_s)
        unit_s = best_s / max(field.num_movable, 1)
        count = min(block, moves - done)
        walker.walk(count, cycle.temperature(now) * unit_s)
        done += count
    walker.seconds += time.perf_counter() - began


def walk_within(walker: Walker, leg: Leg, ground: Ground, reach: Reach) -> None:
    """Walk a leg whose progress is plain data; its seconds count from now."""
    began = time.perf_counter()

    def seconds() -> float:
        return time.perf_counter() - began

    walk(
        walker,
        leg,
        ground,
        progress=lambda share: reach.at(share, seconds()),
        should_stop=lambda: reach.seconds is not None and seconds() >= reach.seconds,
    )
