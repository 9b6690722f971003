"""Chains of moves that learn, while they walk, which moves pay; from coarse units down to single ops.

A chain holds one placement of ops. Which units move when, at what temperatures, and how often from coarse to fine, is
the plan's to say (`plan`); chains go their own ways until, at the end, they move single ops. A move
gives a unit (some groups, a group, or what the graph's constraints leave of one: an op, mostly), or a run of units
along one of two orders, another device; the chain accepts it by Metropolis' rule at a temperature that falls. Which
unit and which device is drawn from a softmax over linear scores of eleven features (they stand in `kernel`):
what the unit adds to the critical path of the step, what it waits for there and makes wait, transfers that the move
would spare, load, the policy's opinion. **The weights are learned by REINFORCE during the walk**: the action is the
move, the reward is the step time that an accepted move saves, in units of the temperature and between -1 and 1, and 0
where the move is rejected; a move that loses time costs as much as undoing it earns, so nothing is won by going back
and forth. The baseline is a running mean. What kind of move (one unit, a run, a segment, a swap, ...) is learned
likewise.

References:
    Williams, "Simple statistical gradient-following algorithms", 1992.
    Kirkpatrick, Gelatt and Vecchi, "Optimization by simulated annealing", 1983, doi:10.1126/science.220.4598.671.
    Shaw, "Using constraint programming and local search methods to solve vehicle routing problems", 1998, for
    neighbourhoods that a model of the problem chooses.

Letters: ``N`` ops, ``U`` units, ``G`` groups, ``D`` devices, ``T`` tensors, ``F`` features, ``K`` kinds of move.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from envs.simulator.workspace import available_cores
from placement.move_search import kernel
from placement.move_search.chain import Found, Ops, Walker
from placement.move_search.config import MoveConfig
from placement.move_search.leg import Ground, Leg, walk
from placement.move_search.plan import Plan, goes_by_types, make_plan, rounds_within
from placement.placers.best import missing_share, ranked

SHARE_OF_A_STEP = 0.6
"""What a move takes of the time of a whole simulated step, about: the simulator stops where it is proven too slow."""

THIN_OUT_AT = 0.25
"""Share of a round after which only the best chains go on: when the coarse stages, which decide the most, are over."""

FIRST_SCATTERED = 2
"""Number of the first chain that begins elsewhere than the run: at a random placement, and by types where that pays."""

SCATTERED_FROM = 0.5
"""Moves of each op that a run must have room for, or no chain begins at a random placement: it would not catch up."""


DRAWS_LEARNED_UP_TO = 200.0
"""Evaluations of each op, expected of a run, from which on all moves are drawn uniformly: learned draws find nothing
better by then (docs/results/learning.md), and what following the critical path takes goes to more moves."""


class MoveSearch:
    """The chains, from coarse to fine.

    Args:
        problem: What to place.
        config: How.
        seed: Of the chains' random numbers.
        cores: Where its chains walk; by default those of this process.

    Attributes:
        evaluations: Placements simulated so far.
        best: The best that any chain met, or was given; None before `offer`.
        plan: Of the first chain, which goes from coarse to fine once.
        plan_in_rounds: Of the others; the same where there is time for one round only.
        draws_learned: Whether moves are drawn by what was learned, a share of them.
        plan_by_types: Of chains from `FIRST_SCATTERED` on where these begin with types of op; None where they do not.
    """

    def __init__(self, problem: PlacementProblem, *, config: MoveConfig, seed: int, cores: int | None = None) -> None:
        self.problem = problem
        self.cores = cores or available_cores()
        self.config = config
        self.seed = seed
        self.best: Found | None = None
        self._walkers = [Walker(problem, config, [seed, 1, i]) for i in range(config.chains)]
        self._walking = list(range(config.chains))  # numbers of the chains that still walk
        self.plan = self.plan_in_rounds = make_plan(problem, finest=config.finest, evaluations=np.inf)
        self.plan_by_types: Plan | None = None
        self.draws_learned = config.uniform_share < 1.0
        self._scatters = True
        self._round = 0
        self._home: Found | None = None  # where the first round began
        self.ground = Ground(problem)

    @property
    def best_ops(self) -> Ops | None:
        """``int32[N]`` of `best`."""
        return None if self.best is None else self.best.ops

    @property
    def best_cost_s(self) -> float:
        """What `best` is charged; infinite before there is one."""
        return np.inf if self.best is None else self.best.cost_s(self.reference_s)

    @property
    def reference_s(self) -> float:
        """What is charged goes by this: the best feasible step, or what no step exceeds while none is known."""
        return self.ground.reference_s(self.best)

    @property
    def evaluations(self) -> int:
        """Placements simulated so far."""
        return sum(int(walker.counts[kernel.EVALUATIONS]) for walker in self._walkers)

    def take_seconds(self) -> float:
        """Seconds that the chains walked since this was asked last, mean over those that still walk."""
        seconds = sum(walker.seconds for walker in self._walkers) / len(self._walking)
        for walker in self._walkers:
            walker.seconds = 0.0
        return seconds

    @property
    def weights(self) -> dict[str, float]:
        """The learned weight of each feature of a move, mean over the chains that still walk."""
        mean = np.mean([self._walkers[i].weights for i in self._walking], axis=0)
        return dict(zip(kernel.FEATURE_NAMES, mean.tolist(), strict=True))

    @property
    def mean_cost_s(self) -> float:
        """What the chains' placements cost now, mean over those that have walked; NaN before."""
        walking = [self._walkers[i] for i in self._walking]
        costs = [float(w.scalars[kernel.COST]) for w in walking if w.counts[kernel.EVALUATIONS]]
        return float(np.mean(costs)) if costs else float("nan")

    @property
    def acceptance(self) -> float:
        """Share of the simulated moves that were accepted."""
        accepted = sum(int(walker.counts[kernel.ACCEPTED]) for walker in self._walkers)
        return accepted / max(self.evaluations, 1)

    def expect(self, evaluations: float, *, in_time: bool = False) -> None:
        """Plan for a run of about so many evaluations, which time limits where it is `in_time`.

        Finer stages for which they are too few are left out, and so are beginnings at random. Where they are many, the
        first chain goes from coarse to fine once, slowly, and the others in several rounds, each from other placements;
        where they are more than `DRAWS_LEARNED_UP_TO` for each op, moves are drawn uniformly. Infinite: not known.
        """
        many = np.isfinite(evaluations) and evaluations > DRAWS_LEARNED_UP_TO * self.problem.graph.num_ops
        self.draws_learned = self.config.uniform_share < 1.0 and not many
        for walker in self._walkers:
            walker.scalars[kernel.UNIFORM_SHARE] = self.config.uniform_share if self.draws_learned else 1.0
        finest, chains = self.config.finest, min(self.config.chains, self.config.num_surviving)
        by_types = self.config.chains > FIRST_SCATTERED and goes_by_types(
            self.problem, finest=finest, evaluations=evaluations
        )
        rounds = rounds_within(evaluations, self.problem, by_types=by_types) if chains > 1 else 1
        self._scatters = evaluations >= SCATTERED_FROM * self.problem.graph.num_ops
        plan = partial(make_plan, self.problem, finest=finest, evaluations=evaluations, in_time=in_time)
        self.plan, self.plan_in_rounds = plan(), plan(rounds=rounds)
        self.plan_by_types = plan(rounds=rounds, by_types=True) if by_types else None

    def expect_seconds(self, limit_s: float) -> float:
        """The same by the clock: as many evaluations as the cores that the surviving chains use manage in a time.

        Returns:
            Seconds that simulating a step takes; 0 where no placement is known to measure by.
        """
        if self.best_ops is None:
            return 0.0
        took_s = np.inf
        for _ in range(3):
            began = time.perf_counter()
            self.problem.evaluate_ops(self.best_ops[None], threads=1)
            took_s = min(took_s, time.perf_counter() - began)
        cores = min(self.cores, self.config.num_surviving)
        self.expect(cores * limit_s / (SHARE_OF_A_STEP * took_s), in_time=True)
        return took_s

    def offer(self, ops: Ops, step_s: float, missing: float) -> None:
        """Tell of a placement of ops; cycles begin from the best that is known.

        Args:
            ops: ``int32[N]``.
            step_s: Its step time.
            missing: The memory that it lacks, `placement.placers.best.missing_share`; 0 where it fits.
        """
        found = Found(ops, step_s, missing)
        if self.best is None or found.beats(self.best):
            self.best = found._replace(ops=ops.copy())

    def offer_best_of(self, placements: NDArray[np.integer], evaluation: Evaluation) -> None:
        """Tell of the best of some placements, ``int[B, G]`` or ``int[B, N]``, by what they came to."""
        memories = self.problem.cluster.memories
        row, missing = int(ranked(evaluation, memories)[0]), missing_share(evaluation, memories)
        ops = self.problem.to_ops(placements[row])
        self.offer(ops, float(evaluation.step_time_s[row]), float(missing[row]))

    def start(
        self,
        moves: int,
        *,
        progress: Callable[[float], float],
        should_stop: Callable[[], bool],
        log_probability: NDArray[np.float32] | None,
        executor: Executor,
        chains: int | None = None,
    ) -> list[Future[None]]:
        """Let the chains begin to make some moves, side by side; `finish` waits for them.

        Args:
            moves: Of each chain.
            progress: Of the whole run (from 0 to 1, and on), by the share of these moves that is done.
            should_stop: Asked between blocks of moves.
            log_probability: ``float32[G, D]``, what the policy says, or None.
            executor: Runs the chains, one thread each.
            chains: How many of them walk; None for all.
        """
        legs = self.legs(moves, log_probability=log_probability)[:chains]
        walkers = [self._walkers[leg.chain] for leg in legs]
        return [
            executor.submit(walk, walker, leg, self.ground, progress=progress, should_stop=should_stop)
            for walker, leg in zip(walkers, legs, strict=True)
        ]

    def legs(self, moves: int, *, log_probability: NDArray[np.float32] | None) -> list[Leg]:
        """What each chain that walks is to do next, as plain data.

        Args:
            moves: Of each chain.
            log_probability: ``float32[G, D]``, what the policy says, or None.
        """
        assert self.best is not None, "a first placement must be offered"
        if self._home is None:
            self._home = self.best
        return [self.leg(i, moves, log_probability) for i in self._walking]

    def leg(self, chain: int, moves: int, log_probability: NDArray[np.float32] | None = None) -> Leg:
        """What a chain is to do next; the first two begin a round where the run began, the others at random."""
        plan = self.plan_in_rounds
        if chain == 0:
            plan = self.plan
        elif self.plan_by_types and chain >= FIRST_SCATTERED:
            plan = self.plan_by_types
        assert self.best is not None
        home = self.best if self._round == 0 else self._home
        return Leg(
            chain=chain,
            moves=moves,
            plan=plan,
            round=0 if chain == 0 else self._round,
            first=self.best,
            home=None if chain >= FIRST_SCATTERED and self._scatters else home,
            drawn_by=(self.seed, 2, self._round, chain),
            log_probability=log_probability,
        )

    def state_of(self, chain: int) -> dict[str, Any]:
        """All of a chain that its next leg depends on."""
        return self._walkers[chain].state()

    def take(self, chain: int, state: Mapping[str, Any], seconds: float) -> None:
        """Take over a chain that has walked its leg elsewhere, in so many seconds."""
        self._walkers[chain].restore(state)
        self._walkers[chain].seconds += seconds

    @property
    def num_walking(self) -> int:
        """How many chains still walk."""
        return len(self._walking)

    def go_on(self, progress: float) -> None:
        """Where the run has come so far, begin a round that is due, and leave off the chains that stand worst in it.

        The first chain, where it has a plan of its own, walks on in any case. Where chains go by types, the best of
        these does, whatever the others found: how they stand then says little about where they end.

        Where a placement that fits is known and none of the chains stands at one, all go back to it.
        """
        number, done = self.plan_in_rounds.round_at(progress)
        own_plan, by_types = len(self.plan_in_rounds.rounds) > 1, self.plan_by_types is not None
        if number > self._round and progress < 1.0:
            self._round = number
            self._walking = list(range(self.config.chains))
            for walker in self._walkers[1:]:
                walker.forget()
        if own_plan and by_types:  # one chain on one core goes as always, those by types share the other
            self._walking = [i for i in self._walking if i == 0 or i >= FIRST_SCATTERED]
        if done >= THIN_OUT_AT and self.num_walking > self.config.num_surviving:
            best = {i: self._walkers[i].best for i in self._walking}
            ranked = sorted(self._walking, key=lambda i: (i > 0 or not own_plan, best[i].missing, best[i].step_s))
            if by_types:
                firsts = {i < FIRST_SCATTERED: i for i in reversed(ranked)}
                ranked.sort(key=lambda i: i not in firsts.values())
            self._walking = sorted(ranked[: self.config.num_surviving])
        if self.best is not None and self.best.fits and all(self._walkers[i].is_lost for i in self._walking):
            for i in self._walking:
                self._walkers[i].go_home(self.best)

    def begin_again(self) -> None:
        """Let every chain begin its next moves at the best placement that is known, wherever it was."""
        self._home = None
        for walker in self._walkers:
            walker.forget()

    def finish(self, started: Sequence[Future[None]]) -> None:
        """Wait for the chains, and take over the best that they met."""
        for future in started:
            future.result()
        for walker in self._walkers:
            if not np.isfinite(walker.best.step_s):
                continue
            if self.problem.simulator_input.receives:  # which the chains do not know
                ops = walker.best.ops.copy()
                self.offer_best_of(ops[None], self.problem.evaluate_ops(ops[None], threads=1))
            else:
                self.offer(*walker.best)

    def state(self) -> dict[str, Any]:
        """All that changes and that later moves depend on: arrays, numbers, strings and lists and dicts of them."""
        return {
            "best": None if self.best is None else list(self.best),
            "chains": [walker.state() for walker in self._walkers],
            "walking": list(self._walking),
            "round": self._round,
            "home": None if self._home is None else list(self._home),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, as if there had been no interruption."""
        self.best = None if state["best"] is None else Found(*state["best"])
        self._walking, self._round = list(state["walking"]), state["round"]
        self._home = None if state["home"] is None else Found(*state["home"])
        for walker, saved in zip(self._walkers, state["chains"], strict=True):
            walker.restore(saved)
