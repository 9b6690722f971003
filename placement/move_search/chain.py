"""One chain of moves: its placement, its simulator, and the best that it met.

Letters: ``N`` ops, ``U`` units, ``G`` groups, ``D`` devices, ``T`` tensors, ``F`` features, ``K`` kinds of move.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.compiling import Packed, address_of, compile_for
from envs.problem import PlacementProblem
from envs.simulator.workspace import Workspace, make_workspace
from placement.move_search import kernel
from placement.move_search.config import MoveConfig
from placement.move_search.field import Field
from placement.move_search.paths import make_paths
from placement.move_search.plan import Cycle
from placement.placers.best import INFEASIBLE_RATIO

FIRST_WEIGHTS = np.array([1.0, 1.0, 0.7, 0.7, 0.7, 0.7, -0.7, 1.5, -0.5, -0.7, 0.0])
"""Weights of the features at first, set by hand; learning moves them (docs/concepts/learner.md)."""

Ops = NDArray[np.int32]


class Found(NamedTuple):
    """A placement of ops and what it came to.

    Attributes:
        ops: ``int32[N]``.
        step_s: Its step time in seconds; infinite where that is not known.
        missing: The memory that it lacks, as of `placement.placers.best.missing_share`: 0 where it fits, infinite where
            that is not known.
    """

    ops: Ops
    step_s: float
    missing: float

    @property
    def fits(self) -> bool:
        """Whether it is known to fit."""
        return self.missing == 0.0

    def beats(self, other: Found) -> bool:
        """Whether it is better: what lacks less memory is, and of what lacks equally little the faster."""
        return (self.missing, self.step_s) < (other.missing, other.step_s)

    def cost_s(self, reference_s: float) -> float:
        """What it is charged."""
        return self.step_s if self.fits else max(self.step_s, reference_s) * (INFEASIBLE_RATIO + self.missing)


class Chain(NamedTuple):
    """All that changes as a chain walks; the compiled walk reads and writes it."""

    placed: NDArray[np.int64]  # [U]
    op_device: Ops  # [1, N]
    simulated: (
        Ops  # [1, N], the same memory, read-only, as everybody gives it to the simulator: compiled once, not twice
    )
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
    start_s: NDArray[np.float64]  # [N]
    end_s: NDArray[np.float64]  # [N]
    arrival_s: NDArray[np.float64]  # [T * D]
    bucket: NDArray[np.int32]  # [N]
    next_in_bucket: NDArray[np.int32]  # [N]


class Traced(NamedTuple):
    """Views of a simulator's workspace: when ops and transfers of its last step ended."""

    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    sent_tensor: NDArray[np.uint32]
    sent_to: NDArray[np.uint32]
    sent_end_s: NDArray[np.float64]
    num_sent: NDArray[np.uint32]
    position: NDArray[np.uint32]  # [N], of each op in the first two
    tensors: NDArray[np.uint32]  # [T], what the numbers in `sent_tensor` mean


class Walker:
    """One chain with its simulator."""

    def __init__(self, problem: PlacementProblem, config: MoveConfig, seed: Sequence[int]) -> None:
        self.problem = problem
        self._simulator: Workspace | None = None
        self._simulate_at: int | None = None  # address of its code
        self._traced: Any = None  # these and `field` and `chain` are packed, for compiled code
        self._paths: Any = None
        self._field: Any = None
        self._chain: Any = None
        self.weights = FIRST_WEIGHTS.copy()
        self.kinds = np.zeros(kernel.NUM_KINDS)
        self.scalars = np.zeros(kernel.NUM_SCALARS)
        self.scalars[[kernel.BEST_STEP, kernel.BEST_MISSING, kernel.BEST]] = np.inf
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
        self._saved: Mapping[str, Any] | None = None

    def begin(self, cycle: Cycle, field: Field, ops: Ops, log_probability: NDArray[np.float32] | None) -> None:
        """Go on from a placement of ops, ``int32[N]``, by moves of a field's units."""
        problem = self.problem
        if self._simulator is None:  # where chains walk elsewhere, it is not needed here
            self._simulator = make_workspace(problem.simulator_input)
            traced = Traced(*self._simulator.views)
            self._traced = Packed(traced)
            self._paths = Packed(make_paths(problem, self._simulator.left_s, traced.position))
        units, devices = field.allowed.shape
        ops_in, tensors = problem.graph.num_ops, problem.graph.num_tensors
        placed = field.from_ops(ops)
        op_device = placed[field.unit_of_op][None].astype(np.int32)
        simulated = op_device.view()
        simulated.setflags(write=False)
        self.cycle, self.field, self._saved = cycle, field, None
        self.counts[kernel.TRACED] = kernel.UNKNOWN
        self.chain = Chain(
            placed=placed,
            op_device=op_device,
            simulated=simulated,
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
            start_s=np.zeros(ops_in),
            end_s=np.zeros(ops_in),
            arrival_s=np.zeros(tensors * devices),
            bucket=np.zeros(ops_in, dtype=np.int32),
            next_in_bucket=np.zeros(ops_in, dtype=np.int32),
        )
        self._field, self._chain = Packed(field), Packed(self.chain)
        self.advise(log_probability)

    def advise(self, log_probability: NDArray[np.float32] | None) -> None:
        """Take over the policy's log-probabilities of devices, ``float32[G, D]``."""
        if log_probability is not None and self.chain is not None and self.field is not None:
            self.chain.log_probability[:] = self.field.of_groups(log_probability)

    @property
    def best(self) -> Found:
        """The best that the chain met since it began a round, or began it with."""
        step_s, missing = self.scalars[[kernel.BEST_STEP, kernel.BEST_MISSING]].tolist()
        return Found(self.best_ops, step_s, missing)

    @best.setter
    def best(self, found: Found) -> None:
        self.scalars[kernel.BEST_STEP], self.scalars[kernel.BEST_MISSING] = found.step_s, found.missing
        self.best_ops[:] = found.ops

    @property
    def is_lost(self) -> bool:
        """Whether the chain has walked and its placement does not fit."""
        return bool(self.counts[kernel.TRACED] != kernel.UNKNOWN and self.scalars[kernel.MISSING] > 0.0)

    def forget(self) -> None:
        """Begin the next cycle where a round begins, whatever was met before; what was learned stays."""
        self.cycle = None
        self.scalars[[kernel.BEST_STEP, kernel.BEST_MISSING]] = np.inf

    def go_home(self, home: Found) -> None:
        """Begin a cycle anew at a placement, whatever was met before."""
        self.cycle = None
        self.best = home

    def state(self) -> dict[str, Any]:
        """All that later moves depend on."""
        chain, saved = self.chain, self._saved
        if chain is not None:
            saved = {"ops": chain.op_device[0].copy(), "rejected": chain.rejected.copy()}
        return {
            "weights": self.weights.copy(),
            "kinds": self.kinds.copy(),
            "scalars": self.scalars.copy(),
            "counts": self.counts.copy(),
            "rng": str(self.rng[0]),  # 64 bits
            "best_ops": self.best_ops.copy(),
            "cycle": None if self.cycle is None else list(astuple(self.cycle)),
            "ops": None if saved is None else saved["ops"],
            "rejected": None if saved is None else saved["rejected"],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand where a `state` says; `go_on` walks from there."""
        for key in ("weights", "kinds", "scalars", "counts", "best_ops"):
            getattr(self, key)[:] = state[key]
        self.rng[0] = np.uint64(state["rng"])
        self.cycle = None if state["cycle"] is None else Cycle(*state["cycle"])
        self.field = self.chain = None
        kept = {key: state[key] for key in ("ops", "rejected") if state[key] is not None}
        self._saved = {key: np.array(value) for key, value in kept.items()} or None  # what is sent may be read-only

    def go_on(self, field_of: Callable[[str], Field]) -> None:
        """Begin again where a state was restored, if there was one, as if there had been no interruption."""
        if self.chain is not None or self.cycle is None:
            return
        assert self._saved is not None
        ops, rejected = self._saved["ops"], self._saved["rejected"]
        self.begin(self.cycle, field_of(self.cycle.stage), ops, None)
        assert self.chain is not None
        self.chain.rejected[:] = rejected
        self.counts[kernel.TRACED] = kernel.RESTORED

    def walk(self, moves: int, temperature_s: float) -> None:
        """Make some moves at a temperature."""
        assert self._simulator is not None
        assert self.chain is not None
        if self._simulate_at is None:
            chain = self.chain
            simulated = chain.simulated, chain.bounds_s, chain.step_time_s, chain.peak
            self._simulate_at = address_of(self._simulator.simulate_many, self._simulator.work, *simulated)
        kernel.walk(*self._arguments(self._simulate_at, moves, temperature_s))

    def compile_walk(self) -> None:
        """Compile what `walk` calls, but for the simulator; nothing is moved."""
        compile_for(kernel.walk, *self._arguments(0, 0, 0.0))

    def _arguments(self, simulate_at: int, moves: int, temperature_s: float) -> tuple[Any, ...]:
        assert self._simulator is not None
        in_turn = self.problem.simulator_input.schedule == "sequential"
        places = self._field, self._chain, self._traced, self._paths
        return simulate_at, self._simulator.work.address, in_turn, *places, moves, temperature_s
