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
from dataclasses import astuple, dataclass
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.simulator.workspace import available_cores, make_workspace
from placement.move_search import kernel
from placement.move_search.field import Field, make_field
from placement.move_search.plan import Cycle, Plan, goes_by_types, make_plan, rounds_within, units_of
from placement.placers.random import draw

FIRST_WEIGHTS = np.array([1.0, 1.0, 0.7, 0.7, 0.7, 0.7, -0.7, 1.5, -0.5, -0.7, 0.0])
"""Weights of the features at first, set by hand; learning moves them (docs/concepts/learner.md)."""

SHARE_OF_A_STEP = 0.6
"""What a move takes of the time of a whole simulated step, about: the simulator stops where it is proven too slow."""

THIN_OUT_AT = 0.25
"""Share of a round after which only the best chains go on: when the coarse stages, which decide the most, are over."""

FIRST_SCATTERED = 2
"""Number of the first chain that begins elsewhere than the run: at a random placement, and by types where that pays."""

SCATTERED_FROM = 0.5
"""Moves of each op that a run must have room for, or no chain begins at a random placement: it would not catch up."""

OPS_A_BLOCK = 500_000
"""Ops that are simulated, at most, between two looks at the clock."""

Ops = NDArray[np.int32]


class Chain(NamedTuple):
    """All that changes as a chain walks; the compiled walk reads and writes it."""

    placed: NDArray[np.int64]  # [U]
    op_device: Ops  # [1, N]
    best_ops: Ops  # [N]
    busy_s: NDArray[np.float64]  # [D]
    weights: NDArray[np.float64]  # [F]
    kinds: NDArray[np.float64]  # [K], logits
    kind_share: NDArray[np.float64]  # [K]
    rejected: NDArray[np.float32]  # [U, D], moves there that were rejected; halved when the unit moves
    log_probability: NDArray[np.float32]  # [U, D], the policy's
    scalars: NDArray[np.float64]
    counts: NDArray[np.int64]
    rng: NDArray[np.uint64]  # [1]
    active: NDArray[np.int64]  # [U], units worth moving
    shares: NDArray[np.float64]  # [U * D]
    expected: NDArray[np.float64]  # [F]
    x: NDArray[np.float64]  # [D, F]
    near_on_s: NDArray[np.float64]  # [D]
    moved: NDArray[np.int64]  # [U]
    kept: NDArray[np.int64]  # [U]
    critical_s: NDArray[np.float64]  # [U]
    transfer_s: NDArray[np.float64]  # [U, D]
    waited_s: NDArray[np.float64]  # [U]
    delayed_s: NDArray[np.float64]  # [U]
    step_time_s: NDArray[np.float64]  # [1]
    bounds_s: NDArray[np.float64]  # [1]
    peak: NDArray[np.int64]  # [1, D]
    arrival_s: NDArray[np.float64]  # [T * D]
    bucket: NDArray[np.int32]  # [N]
    next_in_bucket: NDArray[np.int32]  # [N]


class _Traced(NamedTuple):
    """Views of a simulator's workspace: when ops and transfers of its last step ended."""

    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    sent_tensor: NDArray[np.uint32]
    sent_to: NDArray[np.uint32]
    sent_end_s: NDArray[np.float64]
    num_sent: NDArray[np.uint32]


@dataclass(frozen=True)
class MoveConfig:
    """How the chains go about it.

    Attributes:
        chains: How many begin, each on a core of its own where there are so many.
        survivors: Of these, how many go on after `THIN_OUT_AT` of a round; None for all.
        learning_rate: Of the features' weights; 0 keeps those that were set by hand.
        kind_rate: Of the kinds of move; 0 keeps all equally likely.
        uniform_share: Share of the moves whose unit and device are drawn uniformly, and for half of which the kind is,
            too; 1 leaves learning out.
        finest: Last stage: ``"groups"`` moves groups only, ``"ops"`` what the graph's constraints allow.
    """

    chains: int = 2
    survivors: int | None = None
    learning_rate: float = 0.1
    kind_rate: float = 0.02
    uniform_share: float = 0.5
    finest: str = "ops"


class _Walker:
    """One chain with its simulator."""

    def __init__(self, problem: PlacementProblem, config: MoveConfig, seed: Sequence[int]) -> None:
        self.problem = problem
        self._work, traced = make_workspace(problem.simulator_input)
        self._traced = _Traced(*traced)
        self.weights = FIRST_WEIGHTS.copy()
        self.kinds = np.zeros(kernel.NUM_KINDS)
        self.scalars = np.zeros(kernel.NUM_SCALARS)
        self.scalars[kernel.BEST] = np.inf
        self.scalars[kernel.LEARNING_RATE] = config.learning_rate
        self.scalars[kernel.KIND_RATE] = config.kind_rate
        self.scalars[kernel.UNIFORM_SHARE] = config.uniform_share
        self.counts = np.zeros(kernel.NUM_COUNTS, dtype=np.int64)
        self.rng = np.random.default_rng(seed).integers(2**63, size=1).astype(np.uint64)
        self.best_ops = np.zeros(problem.graph.num_ops, dtype=np.int32)
        self.seconds = 0.0
        self.cycle: Cycle | None = None
        self.field: Field | None = None
        self.chain: Chain | None = None

    def begin(self, cycle: Cycle, field: Field, ops: Ops, log_probability: NDArray[np.float32] | None) -> None:
        """Go on from a placement of ops, ``int32[N]``, by moves of a field's units."""
        problem = self.problem
        units, devices = field.allowed.shape
        ops_in, tensors = problem.graph.num_ops, problem.graph.num_tensors
        placed = field.from_ops(ops)
        self.cycle, self.field = cycle, field
        self.counts[kernel.TRACED] = kernel.UNKNOWN
        self.chain = Chain(
            placed=placed,
            op_device=placed[field.unit_of_op][None].astype(np.int32),
            best_ops=self.best_ops,
            busy_s=np.bincount(placed, field.time_s[np.arange(units), placed], devices).astype(np.float64),
            weights=self.weights,
            kinds=self.kinds,
            kind_share=np.zeros(kernel.NUM_KINDS),
            rejected=np.zeros((units, devices), dtype=np.float32),
            log_probability=np.zeros((units, devices), dtype=np.float32),
            scalars=self.scalars,
            counts=self.counts,
            rng=self.rng,
            active=np.zeros(units, dtype=np.int64),
            shares=np.zeros(units * devices),
            expected=np.zeros(kernel.NUM_FEATURES),
            x=np.zeros((devices, kernel.NUM_FEATURES)),
            near_on_s=np.zeros(devices),
            moved=np.zeros(units, dtype=np.int64),
            kept=np.zeros(units, dtype=np.int64),
            critical_s=np.zeros(units),
            transfer_s=np.zeros((units, devices)),
            waited_s=np.zeros(units),
            delayed_s=np.zeros(units),
            step_time_s=np.zeros(1),
            bounds_s=np.zeros(1),
            peak=np.zeros((1, devices), dtype=np.int64),
            arrival_s=np.zeros(tensors * devices),
            bucket=np.zeros(ops_in, dtype=np.int32),
            next_in_bucket=np.zeros(ops_in, dtype=np.int32),
        )
        self.advise(log_probability)

    def advise(self, log_probability: NDArray[np.float32] | None) -> None:
        """Take over the policy's log-probabilities of devices, ``float32[G, D]``."""
        if log_probability is not None and self.chain is not None and self.field is not None:
            self.chain.log_probability[:] = self.field.of_groups(log_probability)

    def forget(self) -> None:
        """Begin the next cycle where a round begins, whatever was met before; what was learned stays."""
        self.cycle = None
        self.scalars[kernel.BEST] = np.inf

    def state(self) -> dict[str, Any]:
        """All that later moves depend on."""
        chain = self.chain
        return {
            "weights": self.weights.copy(),
            "kinds": self.kinds.copy(),
            "scalars": self.scalars.copy(),
            "counts": self.counts.copy(),
            "rng": str(self.rng[0]),  # 64 bits
            "best_ops": self.best_ops.copy(),
            "cycle": None if self.cycle is None else list(astuple(self.cycle)),
            "ops": None if chain is None else chain.op_device[0].copy(),
            "rejected": None if chain is None else chain.rejected.copy(),
        }

    def restore(self, state: Mapping[str, Any], field_of: Callable[[str], Field]) -> None:
        """Go on from a `state`."""
        for key in ("weights", "kinds", "scalars", "counts", "best_ops"):
            getattr(self, key)[:] = state[key]
        self.rng[0] = np.uint64(state["rng"])
        if state["cycle"] is not None:
            cycle = Cycle(*state["cycle"])
            self.begin(cycle, field_of(cycle.stage), state["ops"], None)
            assert self.chain is not None
            self.chain.rejected[:] = state["rejected"]
            self.counts[kernel.TRACED] = kernel.RESTORED

    def walk(self, moves: int, temperature_s: float) -> None:
        """Make some moves at a temperature."""
        kernel.walk(self._work, self.field, self.chain, self._traced, moves, temperature_s)


class MoveSearch:
    """The chains, from coarse to fine.

    Args:
        problem: What to place.
        config: How.
        seed: Of the chains' random numbers.

    Attributes:
        evaluations: Placements simulated so far.
        best_ops: ``int32[N]``, the best that any chain met, or was given; None before `offer`.
        best_cost_s: What it is charged (`placement.learning.reinforce.charged_s`).
        plan: Of the first chain, which goes from coarse to fine once.
        plan_in_rounds: Of the others; the same where there is time for one round only.
        plan_by_types: Of chains from `FIRST_SCATTERED` on where these begin with types of op; None where they do not.
    """

    def __init__(self, problem: PlacementProblem, *, config: MoveConfig, seed: int) -> None:
        self.problem = problem
        self.config = config
        self.seed = seed
        self.best_ops: Ops | None = None
        self.best_cost_s = np.inf
        self._walkers = [_Walker(problem, config, [seed, 1, i]) for i in range(config.chains)]
        self._walking = list(range(config.chains))  # numbers of the chains that still walk
        self.plan = self.plan_in_rounds = make_plan(problem, finest=config.finest, evaluations=np.inf)
        self.plan_by_types: Plan | None = None
        self._scatters = True
        self._round = 0
        self._home: tuple[Ops, float] | None = None  # where the first round began, and its cost
        self._fields: dict[str, Field] = {}
        self._lock = Lock()

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

    def expect(self, evaluations: float) -> None:
        """Plan for a run of about so many evaluations.

        Finer stages for which they are too few are left out, and so are beginnings at random. Where they are many, the
        first chain goes from coarse to fine once, slowly, and the others in several rounds, each from other placements.
        """
        finest, chains = self.config.finest, min(self.config.chains, self._survivors)
        by_types = self.config.chains > FIRST_SCATTERED and goes_by_types(
            self.problem, finest=finest, evaluations=evaluations
        )
        rounds = rounds_within(evaluations, self.problem, by_types=by_types) if chains > 1 else 1
        self._scatters = evaluations >= SCATTERED_FROM * self.problem.graph.num_ops
        self.plan = make_plan(self.problem, finest=finest, evaluations=evaluations)
        self.plan_in_rounds = make_plan(self.problem, finest=finest, evaluations=evaluations, rounds=rounds)
        self.plan_by_types = None
        if by_types:
            self.plan_by_types = make_plan(
                self.problem, finest=finest, evaluations=evaluations, rounds=rounds, by_types=True
            )

    def expect_seconds(self, limit_s: float) -> None:
        """The same by the clock: as many evaluations as the cores that the surviving chains use manage in a time."""
        if self.best_ops is None:
            return
        took_s = np.inf
        for _ in range(3):
            began = time.perf_counter()
            self.problem.evaluate_ops(self.best_ops[None], threads=1)
            took_s = min(took_s, time.perf_counter() - began)
        cores = min(available_cores(), self._survivors)
        self.expect(cores * limit_s / (SHARE_OF_A_STEP * took_s))

    def offer(self, ops: Ops, cost_s: float) -> None:
        """Tell of a placement of ops, ``int32[N]``, and its cost; cycles begin from the best that is known."""
        if cost_s < self.best_cost_s:
            self.best_ops, self.best_cost_s = ops.copy(), cost_s

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
        assert self.best_ops is not None, "a first placement must be offered"
        first = self.best_ops, self.best_cost_s
        if self._home is None:
            self._home = self.best_ops.copy(), self.best_cost_s
        for i in self._walking:
            self._walkers[i].advise(log_probability)
        return [
            executor.submit(self._walk, i, moves, first, progress, should_stop, log_probability)
            for i in self._walking[:chains]
        ]

    @property
    def num_walking(self) -> int:
        """How many chains still walk."""
        return len(self._walking)

    def go_on(self, progress: float) -> None:
        """Where the run has come so far, begin a round that is due, and leave off the chains that stand worst in it.

        The first chain, where it has a plan of its own, walks on in any case. Where chains go by types, the best of
        these does, whatever the others found: how they stand then says little about where they end.
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
        if done >= THIN_OUT_AT and self.num_walking > self._survivors:
            best = {i: float(self._walkers[i].scalars[kernel.BEST]) for i in self._walking}
            ranked = sorted(self._walking, key=lambda i: (i > 0 or not own_plan, best[i]))
            if by_types:
                firsts = {i < FIRST_SCATTERED: i for i in reversed(ranked)}
                ranked.sort(key=lambda i: i not in firsts.values())
            self._walking = sorted(ranked[: self._survivors])

    def begin_again(self) -> None:
        """Let every chain begin its next moves at the best placement that is known, wherever it was."""
        self._home = None
        for walker in self._walkers:
            walker.forget()

    def finish(self, started: list[Future[None]]) -> None:
        """Wait for the chains, and take over the best that they met."""
        for future in started:
            future.result()
        for walker in self._walkers:
            self.offer(walker.best_ops, float(walker.scalars[kernel.BEST]))

    def _walk(
        self,
        number: int,
        moves: int,
        first: tuple[Ops, float],
        progress: Callable[[float], float],
        should_stop: Callable[[], bool],
        log_probability: NDArray[np.float32] | None,
    ) -> None:
        began = time.perf_counter()
        walker = self._walkers[number]
        block = max(OPS_A_BLOCK // self.problem.graph.num_ops, 1)
        done = 0
        while done < moves and not should_stop():
            now = progress(done / moves)
            cycle = self._cycle_at(now, number)
            field = self._field(cycle.stage)
            if walker.cycle != cycle:
                own_s = float(walker.scalars[kernel.BEST])
                if np.isinf(own_s):
                    start, cost_s = self._first_of_round(number, field, first)
                elif cycle.alone or own_s <= first[1]:
                    # Chains go their own ways: where they end differs more than how far they get.
                    start, cost_s = walker.best_ops.copy(), own_s
                else:
                    start, cost_s = first
                walker.begin(cycle, field, start, log_probability)
                walker.scalars[kernel.BEST], walker.best_ops[:] = cost_s, start
            best_s = min(first[1], float(walker.scalars[kernel.BEST]))
            unit_s = best_s / max(field.num_movable, 1)
            count = min(block, moves - done)
            walker.walk(count, cycle.temperature(now) * unit_s)
            done += count
        walker.seconds += time.perf_counter() - began

    @property
    def _survivors(self) -> int:
        return self.config.survivors or self.config.chains

    def _cycle_at(self, progress: float, chain: int) -> Cycle:
        if chain == 0:
            return self.plan.cycle_at(progress, 0)
        plan = self.plan_by_types if self.plan_by_types and chain >= FIRST_SCATTERED else self.plan_in_rounds
        return plan.cycle_at(progress, min(self._round, len(plan.rounds) - 1))

    def _first_of_round(self, chain: int, field: Field, first: tuple[Ops, float]) -> tuple[Ops, float]:
        """Where a chain begins a round, and its cost: the first two where the run began, the others at random."""
        if chain < FIRST_SCATTERED or not self._scatters:
            if self._round == 0:
                return first
            assert self._home is not None
            return self._home
        rng = np.random.default_rng([self.seed, 2, self._round, chain])
        return draw(field.allowed, 1, rng)[0, field.unit_of_op].astype(np.int32), np.inf

    def state(self) -> dict[str, Any]:
        """All that changes and that later moves depend on: arrays, numbers, strings and lists and dicts of them."""
        return {
            "best_ops": None if self.best_ops is None else self.best_ops.copy(),
            "best_cost_s": self.best_cost_s,
            "chains": [walker.state() for walker in self._walkers],
            "walking": list(self._walking),
            "round": self._round,
            "home": None if self._home is None else [self._home[0].copy(), self._home[1]],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, as if there had been no interruption."""
        self.best_ops, self.best_cost_s = state["best_ops"], state["best_cost_s"]
        self._walking, self._round = list(state["walking"]), state["round"]
        self._home = None if state["home"] is None else (state["home"][0], state["home"][1])
        for walker, saved in zip(self._walkers, state["chains"], strict=True):
            walker.restore(saved, self._field)

    def _field(self, stage: str) -> Field:
        with self._lock:  # two chains may come to a stage at once
            if stage not in self._fields:
                self._fields[stage] = make_field(self.problem, units_of(self.problem, stage))
            return self._fields[stage]
