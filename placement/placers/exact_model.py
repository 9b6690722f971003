"""The constraint model behind the placer ``exact``: a relaxation of the simulator's rules.

What the model has in common with `envs.simulator`: op times, groups, where ops may be, one op at a time on a device,
one transfer at a time on each direction of a link, a tensor sent once to each device that reads it, memory over time.
What it leaves open: the order of ops and transfers is free (the simulator's follows from the schedule), a transfer may
wait, an op that takes no time never waits for its device. Times and bytes are rounded in the model's favour. So its
optimum is never above the simulator's.

Letters: ``N`` ops, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from envs.problem import PlacementProblem

TICKS = 1 << 20
"""Whole numbers from 0 to this stand for the times from 0 to the best step time that is known."""

MEMORY_UNITS = 1 << 20
"""Whole numbers from 0 to this stand for the bytes from 0 to a device's memory."""


@dataclass(frozen=True, eq=False)
class Solved:
    """What one run of the solver found.

    Attributes:
        placement: ``int64[G]``, or None where it found none that is faster than asked for.
        bound_s: No placement that is not excluded has a shorter step.
        exhausted: True where it is proven that there is no further placement faster than asked for.
    """

    placement: NDArray[np.int64] | None
    bound_s: float
    exhausted: bool


class ExactModel:
    """Builds the constraints once; `exclude` adds to them."""

    def __init__(self, problem: PlacementProblem, *, horizon_s: float) -> None:
        self.problem = problem
        self.model = cp_model.CpModel()
        self.tick_s = max(float(problem.op_time_s.min(axis=0).sum()), horizon_s / 1000.0, 1e-12) / TICKS
        self.horizon = math.ceil(horizon_s / self.tick_s)
        self._on = [
            [self.model.new_bool_var(f"on_{g}_{d}") for d in range(problem.num_devices)]
            for g in range(problem.num_groups)
        ]
        for group, row in enumerate(self._on):
            self.model.add_exactly_one(row)
            for device, literal in enumerate(row):
                if not problem.allowed[group, device]:
                    self.model.add(literal == 0)
        self._directions: dict[int, list[Any]] = {}
        self._held: list[tuple[list[Any], list[int]]] = [([], []) for _ in range(problem.num_devices)]
        self._memory_binds = self._may_overflow()
        self.makespan = self.model.new_int_var(0, self.horizon, "makespan")
        self._start, self._end = self._add_ops()
        self._add_tensors()
        self._add_memory()
        self.model.minimize(self.makespan)

    def hint(self, placement: NDArray[np.int64]) -> None:
        """Tell the solver where to look first."""
        for group, row in enumerate(self._on):
            for device, literal in enumerate(row):
                self.model.add_hint(literal, int(placement[group] == device))

    def exclude(self, placement: NDArray[np.int64]) -> None:
        """Never answer this placement again."""
        self.model.add_bool_or([~self._on[group][device] for group, device in enumerate(placement.tolist())])

    def solve(self, *, below_s: float, time_limit_s: float, seed: int) -> Solved:
        """Look for the placement with the shortest step below a time.

        Args:
            below_s: Only steps up to this are of interest; may be infinite.
            time_limit_s: Seconds to spend.
            seed: Of the solver.
        """
        limit = self.horizon if math.isinf(below_s) else min(math.floor(below_s / self.tick_s), self.horizon)
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = time_limit_s
        solver.parameters.num_workers = 1  # the only number of workers for which the same seed gives the same answer
        solver.parameters.random_seed = seed
        bounded = self.model.clone()
        bounded.add(bounded.get_int_var_from_proto_index(self.makespan.index) <= limit)
        status = solver.solve(bounded)
        if status == cp_model.INFEASIBLE:
            return Solved(None, below_s if math.isfinite(below_s) else 0.0, True)
        bound_s = max(float(solver.best_objective_bound), 0.0) * self.tick_s
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Solved(None, bound_s, False)
        chosen = [[solver.boolean_value(literal) for literal in row] for row in self._on]
        return Solved(np.array(chosen).argmax(axis=1).astype(np.int64), bound_s, False)

    def _ticks(self, seconds: float) -> int:
        return math.floor(seconds / self.tick_s)

    def _add_ops(self) -> tuple[list[Any], list[Any]]:
        """One op at a time on a device; the makespan is no earlier than any op's end."""
        problem, model = self.problem, self.model
        starts, ends = [], []
        intervals: list[list[Any]] = [[] for _ in range(problem.num_devices)]
        for op in range(problem.graph.num_ops):
            group = int(problem.groups.group_of_op[op])
            start = model.new_int_var(0, self.horizon, f"start_{op}")
            end = model.new_int_var(0, self.horizon, f"end_{op}")
            for device, on in enumerate(self._on[group]):
                ticks = self._ticks(float(problem.op_time_s[device, op]))
                name = f"op_{op}_{device}"
                interval = model.new_optional_interval_var(start, ticks, end, on, name)
                if ticks:
                    intervals[device].append(interval)
            model.add(self.makespan >= end)
            starts.append(start)
            ends.append(end)
        for row in intervals:
            model.add_no_overlap(row)
        return starts, ends

    def _add_tensors(self) -> None:
        """Readers on the producer's device wait for its end; readers elsewhere for a transfer to their device."""
        graph, model = self.problem.graph, self.model
        group_of_op = self.problem.groups.group_of_op
        for tensor in range(graph.num_tensors):
            producer = int(graph.tensor_producer[tensor])
            readers = [
                int(r) for r in graph.consumers[graph.consumer_offsets[tensor] : graph.consumer_offsets[tensor + 1]]
            ]
            for reader in readers:
                model.add(self._start[reader] >= self._end[producer])
            source = int(group_of_op[producer])
            away = [r for r in readers if group_of_op[r] != source]
            departures = []
            for device in range(self.problem.num_devices):
                departures += self._add_copies(tensor, producer, away, device)
            if self._memory_binds and not graph.tensor_resident[tensor]:
                for device, on in enumerate(self._on[source]):
                    last = model.new_int_var(0, self.horizon, f"last_{tensor}_{device}")
                    model.add(last >= self._end[producer])
                    for reader in readers:
                        here = self._on[int(group_of_op[reader])][device]
                        model.add(last >= self._end[reader]).only_enforce_if(on, here)
                    for sent, end in departures:
                        model.add(last >= end).only_enforce_if(on, sent)
                    self._hold(device, self._start[producer], last, on, int(graph.tensor_bytes[tensor]))

    def _add_copies(self, tensor: int, producer: int, away: list[int], target: int) -> list[tuple[Any, Any]]:
        """Transfers of a tensor to one device, from each device that it may be made on: (whether, end)."""
        problem, model = self.problem, self.model
        group_of_op, routes = problem.groups.group_of_op, problem.cluster.routes
        groups = sorted({int(group_of_op[r]) for r in away})
        if not groups:
            return []
        needed = model.new_bool_var(f"needed_{tensor}_{target}")
        model.add_max_equality(needed, [self._on[g][target] for g in groups])
        copies = []
        for origin, made_here in enumerate(self._on[int(group_of_op[producer])]):
            if origin == target:
                continue
            sent = model.new_bool_var(f"sent_{tensor}_{origin}_{target}")
            model.add_bool_and([made_here, needed]).only_enforce_if(sent)
            model.add_bool_or([sent, ~made_here, ~needed])
            seconds = routes.latency_s[origin, target] + problem.graph.tensor_bytes[tensor] / float(
                routes.bytes_per_s[origin, target]
            )
            given_s = float(problem.graph.tensor_transfer_s[tensor])
            ticks = self._ticks(float(seconds) if math.isnan(given_s) else given_s)
            start = model.new_int_var(0, self.horizon, f"send_{tensor}_{origin}_{target}")
            end = model.new_int_var(0, self.horizon, f"sent_end_{tensor}_{origin}_{target}")
            interval = model.new_optional_interval_var(start, ticks, end, sent, f"transfer_{tensor}_{origin}_{target}")
            model.add(start >= self._end[producer]).only_enforce_if(sent)
            for reader in away:
                here = self._on[int(group_of_op[reader])][target]
                model.add(self._start[reader] >= end).only_enforce_if(sent, here)
            if ticks:
                route = origin * problem.num_devices + target
                for direction in routes.directions[routes.offsets[route] : routes.offsets[route + 1]]:
                    self._directions.setdefault(int(direction), []).append(interval)
            if self._memory_binds:
                last = model.new_int_var(0, self.horizon, f"kept_{tensor}_{origin}_{target}")
                model.add(last >= end).only_enforce_if(sent)
                for reader in away:
                    here = self._on[int(group_of_op[reader])][target]
                    model.add(last >= self._end[reader]).only_enforce_if(sent, here)
                self._hold(target, start, last, sent, int(problem.graph.tensor_bytes[tensor]))
            copies.append((sent, end))
        return copies

    def _add_memory(self) -> None:
        """Transfers on a direction one at a time; on each device what is resident or alive stays within its memory."""
        for intervals in self._directions.values():
            self.model.add_no_overlap(intervals)
        if not self._memory_binds:
            return
        for group, size in enumerate(self.problem.group_resident_bytes.tolist()):
            for device, on in enumerate(self._on[group]):
                self._hold(device, 0, self.horizon, on, int(size))
        for intervals, demands in self._held:
            self.model.add_cumulative(intervals, demands, MEMORY_UNITS)

    def _hold(self, device: int, start: Any, end: Any, literal: Any, size: int) -> None:
        """Bytes that a device holds from a start to an end."""
        units = size * MEMORY_UNITS // max(int(self.problem.cluster.memory_bytes[device]), 1)
        if units == 0:
            return
        length = self.model.new_int_var(0, self.horizon, "")
        intervals, demands = self._held[device]
        intervals.append(self.model.new_optional_interval_var(start, length, end, literal, ""))
        demands.append(units)

    def _may_overflow(self) -> bool:
        """Whether any device could be too small for everything at once."""
        graph = self.problem.graph
        copies = np.minimum(np.diff(graph.consumer_offsets), self.problem.num_devices) + 1
        most = int(self.problem.group_resident_bytes.sum()) + int((graph.tensor_bytes * copies).sum())
        return most > int(self.problem.cluster.memory_bytes.min())
