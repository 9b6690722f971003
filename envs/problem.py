"""One placement problem, and the one question that everything asks of it: how long does a step take?

Letters: ``B`` placements in a batch, ``N`` ops, ``G`` co-location groups, ``D`` devices, ``S`` distinct device specs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.allowed import UNCONSTRAINED, allowed_devices, busy, check_profiles, part_groups
from envs.clusters.cluster import Cluster, DeviceSpec
from envs.constraints import Constraints
from envs.cost_model import op_times_s
from envs.evaluators import Evaluation, Evaluator, Simulated
from envs.simulator.checkpoints import StepCheckpoints
from envs.simulator.input import SCHEDULES, SimulatorInput, make_input
from envs.simulator.simulate import simulate, simulate_once
from envs.simulator.trace import Trace
from envs.targets import target_of
from graphs.colocation.groups import Groups
from graphs.computation_graph import DTYPES, ComputationGraph
from graphs.errors import InputError, NoFeasiblePlacementError, unknown_name

_MOST_INDICES = 2**24
"""How many device indices of ops are made at once: 64 MiB."""


@dataclass(frozen=True)
class ProblemNames:
    """What a problem was made from, in the words of whoever asked for it (`envs.make_problem`).

    Attributes:
        graph: What named the graph, see `graphs.sources.load_graph`; None where it was given as an object.
        cluster: What named the cluster, see `envs.clusters.catalog.load_cluster`; None likewise.
        groups: Wanted number of co-location groups.
    """

    graph: str | None
    cluster: str | None
    groups: int


@dataclass(frozen=True, eq=False)
class PlacementProblem:
    """A graph, its co-location groups, a cluster and a schedule: what a placer is given.

    Attributes:
        graph: The step to place.
        groups: What is placed: a placement is ``int[G]``, a device index for each group.
        cluster: Where to.
        schedule: Which ready op a device runs first: one of `envs.simulator.SCHEDULES`.
        evaluator: What answers how long a step takes; by default the simulator.
        names: What graph, cluster and groups were made from; None where they were put together by hand. The same names
            make the same problem again.
        constraints: Where ops must or must not be (`envs.constraints`). What is reserved of memory is the cluster's:
            `envs.make_problem` puts it there.

    Raises:
        InputError: The schedule is unknown, no accelerator computes in the graph's dtypes, or a group has no device
            that it may be on.
    """

    graph: ComputationGraph
    groups: Groups
    cluster: Cluster
    schedule: str = "priority"
    evaluator: Evaluator = field(default=Simulated(), kw_only=True)
    names: ProblemNames | None = field(default=None, kw_only=True)
    constraints: Constraints = field(default=UNCONSTRAINED, kw_only=True)

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)
        if len(self.groups.group_of_op) != self.graph.num_ops:
            raise InputError(
                f"the groups cover {len(self.groups.group_of_op)} ops, but graph '{self.graph.name}' has "
                f"{self.graph.num_ops}; group this graph again"
            )
        self._check_dtypes()
        check_profiles(self.graph, self.cluster, self.op_allowed)
        nowhere = np.flatnonzero(~self.allowed.any(axis=1))
        if nowhere.size:
            op = int(np.flatnonzero(self.groups.group_of_op == nowhere[0])[0])
            raise InputError(
                f"group '{self.groups.names[nowhere[0]]}' (op '{self.graph.op_names[op]}' and others) may be on no "
                f"device of cluster '{self.cluster.name}': its ops' allowed device kinds, dtypes and profiled "
                f"times{' and what pin and forbid say' if self.constraints else ''} leave none"
            )
        if self.constraints:
            self._check_pins_fit()

    @property
    def target(self) -> str:
        """What runs the step; see `envs.targets`."""
        return target_of(self.schedule)

    @property
    def can_part_groups(self) -> bool:
        """Whether the target runs placements of single ops; one that does not keeps whole groups together."""
        return self.target == "engine"

    @property
    def num_groups(self) -> int:
        """``G``."""
        return self.groups.num_groups

    @property
    def num_devices(self) -> int:
        """``D``."""
        return self.cluster.num_devices

    @cached_property
    def op_time_s(self) -> NDArray[np.float64]:
        """``float64[D, N]``: seconds that each op takes on each device (rows of like devices share memory)."""
        return self.simulator_input.op_time_s[self.simulator_input.device_spec]

    @cached_property
    def group_time_s(self) -> NDArray[np.float64]:
        """``float64[G, D]``: sum of the op times of each group on each device."""
        columns = [np.bincount(self.groups.group_of_op, times, self.num_groups) for times in self.op_time_s]
        return np.stack(columns, axis=1)

    @cached_property
    def group_resident_bytes(self) -> NDArray[np.int64]:
        """``int64[G]``: bytes that stay where the group is over the whole step."""
        resident = np.zeros(self.num_groups, dtype=np.int64)
        np.add.at(resident, self.groups.group_of_op, self.graph.resident_bytes.sum(axis=1))
        return resident

    @cached_property
    def op_allowed(self) -> NDArray[np.bool_]:
        """``bool[N, D]``: True where the op may run; see `envs.allowed.allowed_devices`."""
        return allowed_devices(self.graph, self.cluster, self.target, self.constraints)

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """``bool[G, D]``: True where every op of the group may run."""
        allowed = np.ones((self.num_groups, self.num_devices), dtype=np.bool_)
        np.logical_and.at(allowed, self.groups.group_of_op, self.op_allowed)
        return allowed

    @cached_property
    def simulator_input(self) -> SimulatorInput:
        """The arrays that the simulator reads."""
        given = self.evaluator.given
        if given is not None:
            return given if given.schedule == self.schedule else given.with_schedule(self.schedule, self.graph)
        specs: list[DeviceSpec] = []
        for device in self.cluster.devices:
            if device.spec not in specs:
                specs.append(device.spec)
        device_spec = np.array([specs.index(d.spec) for d in self.cluster.devices], dtype=np.int32)
        times = np.stack([op_times_s(self.graph, spec) for spec in specs])  # [S, N]
        return make_input(self.graph, self.cluster, times, device_spec, self.op_allowed, self.schedule)

    def evaluate(
        self,
        placements: NDArray[np.integer],
        *,
        threads: int | None = None,
        abort_above_s: float | NDArray[np.float64] | None = None,
        checkpoints: StepCheckpoints | None = None,
    ) -> Evaluation:
        """Step time, peak memory and feasibility of a batch of placements of groups.

        Args:
            placements: ``int[B, G]``, device indices.
            threads: Cores to use; by default all that this process may use. The result does not depend on it.
            abort_above_s: Seconds, one figure or ``float64[B]``: a search that would reject any slower placement lets
                the simulator stop as soon as it is proven slower. Step times that are returned are exact all the same;
                `Evaluation.aborted` says where it stopped.
            checkpoints: Of `checkpoints`: each step is simulated from the last of them before it differs from theirs,
                with the same result, on one core.

        Raises:
            InputError: The shape or a device index is wrong, a bound is not a number, or the checkpoints are of another
                problem.
        """
        placements = self._checked(placements, self.num_groups)
        if checkpoints is not None and checkpoints.given is not self.simulator_input:
            raise InputError("the checkpoints are of another problem; make them with checkpoints() of this one")
        allowed = self.allowed[np.arange(self.num_groups), placements].all(axis=1)
        bounds_s = None if abort_above_s is None else np.broadcast_to(abort_above_s, len(placements))
        # Expanded to ops a batch can be large, so it is expanded in parts.
        rows = max(_MOST_INDICES // self.graph.num_ops, 1)
        parts = [
            self.evaluator.evaluate(
                self.simulator_input,
                self.groups.to_ops(placements[i : i + rows]),
                allowed[i : i + rows],
                self.cluster.memories,
                threads=threads,
                abort_above_s=None if bounds_s is None else bounds_s[i : i + rows],
                checkpoints=checkpoints,
            )
            for i in range(0, max(len(placements), 1), rows)
        ]
        if len(parts) == 1:
            return parts[0]
        return Evaluation(
            np.concatenate([p.step_time_s for p in parts]),
            np.concatenate([p.peak_memory_bytes for p in parts]),
            np.concatenate([p.feasible for p in parts]),
        )

    def evaluate_ops(
        self,
        placements: NDArray[np.integer],
        *,
        threads: int | None = None,
        abort_above_s: float | NDArray[np.float64] | None = None,
    ) -> Evaluation:
        """As `evaluate`, for placements of single ops, ``int[B, N]``."""
        placements = self._checked(placements, self.graph.num_ops)
        feasible = self.op_allowed[np.arange(self.graph.num_ops), placements].all(axis=1)
        return self.evaluator.evaluate(
            self.simulator_input,
            placements.astype(np.int32),
            feasible,
            self.cluster.memories,
            threads=threads,
            abort_above_s=abort_above_s,
        )

    def checkpoints(self, placement: NDArray[np.integer]) -> StepCheckpoints:
        """Simulate one placement of groups, ``int[G]``, for `evaluate` to go on from with others that differ little.

        Raises:
            InputError: The shape or a device index is wrong.
        """
        placement = self._checked(np.asarray(placement)[None], self.num_groups)
        return StepCheckpoints(self.simulator_input, self.groups.to_ops(placement)[0])

    def to_ops(self, placement: NDArray[np.integer]) -> NDArray[np.int32]:
        """``int32[N]`` from a placement of groups, ``int[G]``, or of ops, ``int[N]``.

        Raises:
            InputError: The shape or a device index is wrong.
        """
        placement = np.asarray(placement)
        if placement.shape == (self.num_groups,):
            return self.groups.to_ops(self._checked(placement[None], self.num_groups))[0]
        return self._checked(placement[None], self.graph.num_ops)[0].astype(np.int32)

    def evaluate_one(self, placement: NDArray[np.integer]) -> Evaluation:
        """As `evaluate`, of one placement of groups, ``int[G]``, or of ops, ``int[N]``; ``B`` is 1."""
        if np.shape(placement) == (self.num_groups,):
            return self.evaluate(np.asarray(placement)[None])
        return self.evaluate_ops(np.asarray(placement)[None])

    def trace(self, placement: NDArray[np.integer]) -> Trace:
        """Start and end of every op and transfer under one placement of groups, ``int[G]``, or of ops, ``int[N]``.

        Raises:
            InputError: The shape or a device index is wrong.
        """
        return simulate(self.simulator_input, self.to_ops(placement))

    def trace_once(self, placement: NDArray[np.integer]) -> Trace:
        """As `trace`, where the process may simulate no other step: it does not wait for a compilation."""
        return simulate_once(self.simulator_input, self.to_ops(placement))

    def with_schedule(self, schedule: str) -> PlacementProblem:
        """The same problem under another schedule."""
        return replace(self, schedule=schedule)

    def with_groups(self, groups: Groups) -> PlacementProblem:
        """The same problem with other groups, coarser or finer."""
        return replace(self, groups=groups, names=None)

    @property
    def simulated(self) -> PlacementProblem:
        """The same problem, evaluated by the simulator with the op times of its graph and cluster."""
        return PlacementProblem(
            self.graph, self.groups, self.cluster, self.schedule, names=self.names, constraints=self.constraints
        )

    def part(self, groups: Groups, *, by_group: bool = False) -> Groups:
        """Coarser or finer groups, those parted that could be nowhere; see `envs.allowed.part_groups`.

        Args:
            groups: Of the same graph.
            by_group: The groups are unions of the problem's: these are not parted.
        """
        allowed = self.allowed[self.groups.group_of_op] if by_group else self.op_allowed
        return part_groups(self.graph, groups, allowed)

    def check_can_fit(self) -> None:
        """Raise where residents alone prove that no placement fits.

        Raises:
            NoFeasiblePlacementError: The message says which memory is short by how much.
        """
        memory = self.cluster.memory_bytes
        for group, size in enumerate(self.group_resident_bytes):
            best = int(np.where(self.allowed[group], memory, -1).max())
            if size > best:
                raise NoFeasiblePlacementError(
                    f"group '{self.groups.names[group]}' keeps {size / 1e9:.2f} GB resident, but the largest device it "
                    f"may be on has {best / 1e9:.2f} GB: short by {(size - best) / 1e9:.2f} GB"
                )
        need, have = int(self.group_resident_bytes.sum()), self.cluster.all_memory_bytes
        if need > have:
            raise NoFeasiblePlacementError(
                f"graph '{self.graph.name}' keeps {need / 1e9:.2f} GB resident, but the {self.num_devices} devices of "
                f"cluster '{self.cluster.name}' have {have / 1e9:.2f} GB in all: short by {(need - have) / 1e9:.2f} GB"
            )

    def _check_pins_fit(self) -> None:
        """Raise where what is bound to one device keeps more resident there than it has."""
        only = self.allowed.sum(axis=1) == 1
        device = self.allowed.argmax(axis=1)
        held = np.bincount(device[only], self.group_resident_bytes[only], self.num_devices)
        for d in np.flatnonzero(held > self.cluster.memory_bytes):
            have = int(self.cluster.memory_bytes[d])
            asked = [f"{word} '{text}'" for word, texts in vars(self.constraints).items() for text in texts]
            raise InputError(
                f"{' and '.join(asked)} cannot hold: what must then be on '{self.cluster.device_names[d]}' keeps "
                f"{held[d] / 1e9:.2f} GB resident, and it has {have / 1e9:.2f} GB: short by "
                f"{(held[d] - have) / 1e9:.2f} GB; pin less there"
            )

    def _check_dtypes(self) -> None:
        """Raise where every accelerator is there for nothing, as one that knows only int8 is for a float graph."""
        specs = [d.spec for d in self.cluster.devices if d.spec.kind != "cpu"]
        matter = self.graph.flops > 0 if self.graph.flops.any() else busy(self.graph)
        dtypes = [DTYPES[i] for i in np.unique(self.graph.dtype[matter])]
        if specs and dtypes and not any(spec.computes(dtype) for spec in specs for dtype in dtypes):
            known = sorted({dtype for spec in specs for dtype in spec.peak_flops_per_s})
            raise InputError(
                f"graph '{self.graph.name}' computes in {', '.join(dtypes)}, but the accelerators of cluster "
                f"'{self.cluster.name}' only in {', '.join(known)}: choose another cluster, or a graph of a model that "
                "is quantised for inference"
            )

    def _checked(self, placements: NDArray[np.integer], width: int) -> NDArray[np.integer]:
        placements = np.asarray(placements)
        if placements.ndim != 2 or placements.shape[1] != width or placements.dtype.kind not in "iu":
            raise InputError(
                f"placements must be integers of shape [B, {width}], not {placements.dtype} of shape "
                f"{list(placements.shape)}"
            )
        if placements.size and not 0 <= placements.min() <= placements.max() < self.num_devices:
            raise InputError(
                f"a placement names device {placements.min()} to {placements.max()}; cluster '{self.cluster.name}' has "
                f"devices 0 to {self.num_devices - 1}"
            )
        return placements
