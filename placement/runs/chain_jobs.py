"""The chains of a training as jobs for workers: one chain, one update.

A job holds the chain's state, and its result the state after the update's moves. So nothing of a chain is a worker's
own: whoever walks it, and however often a worker is lost over it, it comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.problem import PlacementProblem
from placement.learning.parallel_search import Walked
from placement.move_search.chain import Walker
from placement.move_search.config import MoveConfig
from placement.move_search.leg import Ground, Leg, Reach, walk_within
from placement.runs.problem_content import decode_problem, encode_problem
from placement.workers import Job, Workers

FIRST_LIMIT_S = 900.0
"""Seconds after which a worker that walks the first leg is taken to hang: it may have to compile the search."""

LEAST_LIMIT_S, PATIENCE = 60.0, 20.0
"""Later ones are taken to hang after so many times the longest leg so far, and a minute more."""


class WorkersWalk:
    """Workers that walk the chains of one problem; a `placement.learning.parallel_search.Walkers`.

    Args:
        workers: Who they are.
        problem: What is placed.

    Attributes:
        count: How many legs they walk at the same time.

    Raises:
        InputError: The problem's step times are not simulated.
    """

    def __init__(self, workers: Workers, problem: PlacementProblem) -> None:
        self.count = workers.count
        self._workers = workers
        self._shared = workers.share(encode_problem(problem), "placement.runs.chain_jobs:decode_site")
        self._longest_s: float | None = None
        workers.load_first("placement.runs.compile_ahead:compile_search", problem.schedule)

    def prepare(self) -> None:
        """Let workers read the problem and compile the search, so that this is no part of a run's time."""
        jobs = (Job(f"prepare {i}", "placement.runs.chain_jobs:prepare", {}, self._shared) for i in range(self.count))
        for done in self._workers.run(jobs):
            done.result()

    def walk(self, legs: Sequence[tuple[Leg, Mapping[str, Any]]], reach: Callable[[], Reach]) -> Iterator[Walked]:
        """Walk legs; see `placement.learning.parallel_search.Walkers.walk`."""
        limit_s = FIRST_LIMIT_S if self._longest_s is None else LEAST_LIMIT_S + PATIENCE * self._longest_s
        jobs = (
            Job(
                str(leg.chain),
                "placement.runs.chain_jobs:walk_leg",
                {"leg": leg, "state": state, "reach": reach()},
                self._shared,
                limit_s,
            )
            for leg, state in legs
        )
        for done in self._workers.run(jobs):
            walked: Walked = done.result()
            self._longest_s = max(walked.seconds, self._longest_s or 0.0)
            yield walked


@dataclass(eq=False)
class Site:
    """What a worker keeps of a problem between legs; nothing of a chain.

    Attributes:
        ground: What all chains share.
        walker: The simulator's memory, which whichever chain walks uses.
    """

    ground: Ground
    walker: Walker = field(init=False)

    def __post_init__(self) -> None:
        # What a chain learns by is in its state.
        self.walker = Walker(self.ground.problem, MoveConfig(), [0])


def decode_site(content: bytes) -> Site:
    """What a worker keeps, from `placement.runs.problem_content.encode_problem`."""
    return Site(Ground(decode_problem(content)))


def prepare(site: Site) -> None:
    """Compile the search, and simulate a step."""
    from placement.runs.compile_ahead import compile_search

    problem = site.ground.problem
    compile_search(problem.schedule)
    problem.evaluate(problem.allowed.argmax(axis=1)[None])


def walk_leg(site: Site, *, leg: Leg, state: Mapping[str, Any], reach: Reach) -> Walked:
    """Walk a leg from a chain's state; what a worker runs."""
    walker = site.walker
    walker.restore(state)
    walker.seconds = 0.0
    walk_within(walker, leg, site.ground, reach)
    return Walked(leg.chain, walker.state(), walker.seconds)
