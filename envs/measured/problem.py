"""The question of `envs.problem` answered by running the step: `MeasuredProblem.evaluate`. No torch is loaded here.

A placement is run on real devices (`envs.measured.engine`) in a process of its own (`envs.measured.process`). Its step
time is the interquartile mean of the steps that count: neither a hiccup of the machine nor a lucky step decides.
A placement that cannot be run to the end in time, for whatever reason, is infeasible and costs the failing signal.

Reference:
    Mirhoseini et al., ICML 2017, section 4.2, arXiv 1706.04972: 10 steps, the first dropped, more where steps are
    short; the failing signal for placements that cannot be executed.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster, Device, DeviceSpec, Link
from envs.clusters.device_specs import CPU_CORES, DEVICE_SPECS, cpu_core
from envs.clusters.memories import Memories
from envs.evaluators import Evaluation
from envs.measured.machine import RealDevice, parse_devices
from envs.measured.process import MeasuringProcess
from envs.measured.protocol import Failed, Measured, Protocol
from envs.problem import PlacementProblem
from envs.simulator.checkpoints import StepCheckpoints
from envs.simulator.input import SimulatorInput
from graphs.errors import InputError

DEFAULT_LIMIT_S = 60.0
"""Seconds that one measurement may take where nothing else is said; it is the failing signal, too."""

_LEAST_LIMIT_S = 1.0
"""Where the time is nearly over, a last placement gets this long."""

_PCIE = (12e9, 15e-6)
_CORE_TO_CORE_LATENCY_S = 1e-6


@dataclass(frozen=True)
class Measurement:
    """What running one placement came to.

    Attributes:
        step_times_s: Of the steps that count; empty where it failed.
        peak_memory_bytes: By device; zeros where it failed.
        reason: Why it failed; empty where it did not.
        host: The machine that ran it last; empty for this one.
        version: Of whatever proposed it, see `Measurer.version`.
    """

    step_times_s: tuple[float, ...]
    peak_memory_bytes: tuple[int, ...]
    reason: str = ""
    host: str = ""
    version: int = 0

    @property
    def step_time_s(self) -> float:
        """The interquartile mean of the step times; NaN where it failed."""
        return interquartile_mean(self.step_times_s)

    @property
    def spread_s(self) -> float:
        """From the first to the third quartile of the step times; NaN where it failed."""
        if not self.step_times_s:
            return float("nan")
        low, high = np.percentile(self.step_times_s, [25, 75])
        return float(high - low)


def interquartile_mean(values: tuple[float, ...]) -> float:
    """The mean of the middle half of some numbers; NaN of none."""
    if not values:
        return float("nan")
    ordered = np.sort(np.array(values))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


class MeasurementsOverError(Exception):
    """The time for measuring is over; see `Measurer.until_s`."""


class Hosts(typing.Protocol):
    """Machines that measure placements in place of a `MeasuringProcess`; `placement.runs.measure_jobs` has some.

    Attributes:
        at_once: How many placements are measured at the same time.
    """

    at_once: int

    def start(self) -> None:
        """Build the model now, rather than with the first measurement."""
        ...

    def measure_many(
        self,
        op_placements: Sequence[NDArray[np.integer]],
        *,
        schedule: str,
        time_limit_s: float,
        how: Protocol | None = None,
        version: int = 0,
        compile_regions: bool = False,
        is_over: Callable[[], bool] = lambda: False,
    ) -> Generator[tuple[int, Measured | Failed, str, int], None, None]:
        """Run several; number, reply, machine and version of each as it is done; none is begun when it is over."""
        ...

    def on_devices(self, devices: Sequence[RealDevice]) -> Hosts:
        """The same machines with other devices of theirs."""
        ...


class Measurer:
    """The evaluator that runs placements, remembers what it has run, and tells who wants to know.

    Args:
        process: What runs them on this machine.
        time_limit_s: Seconds that one measurement may take.
        how: How many steps.
        hosts: What runs them in its place, on other machines.

    Attributes:
        count: Placements run so far.
        failures: How many of them failed.
        compile_regions: Whether placements are run with regions that are compiled, from now on; what was run in one way
            is not known in the other.
        on_measure: Called after each with the placement, ``int32[N]``, the schedule, and what it came to.
        version: Asked for the version of what proposes placements, a policy's number of updates: a measurement keeps
            it.
        until_s: When measuring ends, by `time.monotonic`; a placement that is asked for later raises
            `MeasurementsOverError`.
    """

    def __init__(
        self,
        process: MeasuringProcess,
        *,
        time_limit_s: float = DEFAULT_LIMIT_S,
        how: Protocol | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self.process = process
        self.hosts = hosts
        self.time_limit_s = time_limit_s
        self.how = how or Protocol()
        self.count = 0
        self.failures = 0
        self.compile_regions = False
        self.on_measure: Callable[[NDArray[np.int32], str, Measurement], None] | None = None
        self.version: Callable[[], int] = lambda: 0
        self.until_s = float("inf")
        self._known: dict[tuple[str, bool, bytes], Measurement] = {}

    def start(self) -> None:
        """Build the model now, rather than with the first measurement.

        Raises:
            InputError: It cannot be built, or its graph is another one.
        """
        (self.process if self.hosts is None else self.hosts).start()

    @property
    def at_once(self) -> int:
        """How many placements are measured at the same time."""
        return 1 if self.hosts is None else self.hosts.at_once

    def measure(self, op_placement: NDArray[np.integer], schedule: str, *, again: bool = False) -> Measurement:
        """Run a placement of ops, ``int[N]``; one that was run before only if asked to do it `again`.

        Where it is run again, the step times of both count, so that luck evens out.

        Raises:
            InputError: The model cannot be built, or the placement is not one of its graph.
            MeasurementsOverError: It was not run before, and the time is over.
        """
        placement = np.ascontiguousarray(op_placement, dtype=np.int32)
        key = self._key(placement, schedule)
        if key in self._known and not again:
            return self._known[key]
        left_s = self.until_s - time.monotonic()
        if left_s <= 0:
            raise MeasurementsOverError
        limit_s = min(self.time_limit_s, max(left_s, _LEAST_LIMIT_S))
        if self.hosts is not None:
            return self._measure_on([placement], schedule, self.time_limit_s)[0]
        reply = self.process.measure(
            placement,
            schedule=schedule,
            time_limit_s=limit_s,
            how=self.how,
            compile_regions=self.compile_regions,
        )
        if isinstance(reply, Failed) and limit_s < self.time_limit_s and time.monotonic() >= self.until_s:
            raise MeasurementsOverError  # it might have been done in the time that others have
        return self._take(placement, schedule, reply, "", self.version())

    def measure_ahead(self, op_placements: Sequence[NDArray[np.integer]], schedule: str) -> None:
        """Where several placements can be measured at the same time, run those that are not known: they are, then.

        Those that there is no time for are left out.

        Raises:
            InputError: The model cannot be built, or a placement is not one of its graph.
        """
        if self.hosts is None:
            return
        rows = {np.ascontiguousarray(ops, dtype=np.int32).tobytes() for ops in op_placements}
        new = [np.frombuffer(row, dtype=np.int32) for row in sorted(rows)]
        new = [row for row in new if self._key(row, schedule) not in self._known]
        if not new:
            return
        self._measure_on(new, schedule, self.time_limit_s, is_over=lambda: time.monotonic() >= self.until_s)

    def _measure_on(
        self,
        placements: Sequence[NDArray[np.int32]],
        schedule: str,
        limit_s: float,
        *,
        is_over: Callable[[], bool] = lambda: False,
    ) -> list[Measurement]:
        """Have other machines run placements; what they came to, as they were done."""
        assert self.hosts is not None
        running = self.hosts.measure_many(
            placements,
            schedule=schedule,
            time_limit_s=limit_s,
            how=self.how,
            version=self.version(),
            compile_regions=self.compile_regions,
            is_over=is_over,
        )
        with contextlib.closing(running):  # Ctrl-C ends what runs
            return [
                self._take(placements[number], schedule, reply, host, version)
                for number, reply, host, version in running
            ]

    def _take(
        self, placement: NDArray[np.int32], schedule: str, reply: Measured | Failed, host: str, version: int
    ) -> Measurement:
        """Know what running a placement came to, and tell of it."""
        key = self._key(placement, schedule)
        if isinstance(reply, Failed):
            found = Measurement((), (0,) * len(self.process.devices), reply.reason, host, version)
            self.failures += 1
        else:
            before = self._known[key].step_times_s if key in self._known else ()
            times_s = (*before, *reply.step_times_s)
            found = Measurement(times_s, tuple(reply.peak_memory_bytes), "", host, version)
        self.count += 1
        self._known[key] = found
        if self.on_measure is not None:
            self.on_measure(placement, schedule, found)
        return found

    @property
    def given(self) -> None:
        """None: what a measured problem simulates is its own graph and cluster."""

    @property
    def measures(self) -> bool:
        """True: steps are run."""
        return True

    def evaluate(
        self,
        given: SimulatorInput,
        ops: NDArray[np.int32],
        allowed: NDArray[np.bool_],
        memories: Memories,
        *,
        threads: int | None = None,
        abort_above_s: float | NDArray[np.float64] | None = None,
        checkpoints: StepCheckpoints | None = None,
    ) -> Evaluation:
        """As `envs.evaluators.Evaluator.evaluate`: run each placement that is allowed, one after another.

        Threads, bounds and checkpoints save nothing, since a step must be run to be known. What fails has the time
        limit as its step time.
        """
        count = len(ops)
        step_time_s = np.full(count, self.time_limit_s)
        peak = np.zeros((count, given.num_devices), dtype=np.int64)
        feasible = np.zeros(count, dtype=np.bool_)
        self.measure_ahead(list(ops[allowed]), given.schedule)
        for row in np.flatnonzero(allowed):
            found = self.measure(ops[row], given.schedule)
            peak[row] = found.peak_memory_bytes
            if not found.reason:
                step_time_s[row] = found.step_time_s
                feasible[row] = memories.fits(peak[row : row + 1])[0]
        return Evaluation(step_time_s, peak, feasible)

    def remember(self, op_placement: NDArray[np.integer], schedule: str, found: Measurement) -> None:
        """Take over what running a placement of ops, ``int[N]``, came to: it is run again only if asked to."""
        self.count += 1
        self.failures += bool(found.reason)
        self._known[self._key(op_placement, schedule)] = found

    def is_known(self, op_placement: NDArray[np.integer], schedule: str) -> bool:
        """Whether a placement of ops was run before."""
        return self._key(op_placement, schedule) in self._known

    def best(self, schedule: str) -> list[NDArray[np.int32]]:
        """The placements of ops, ``int32[N]``, that were run to the end under a schedule, fastest first."""
        wanted = (schedule, self.compile_regions)
        done = [(f.step_time_s, ops) for (*how, ops), f in self._known.items() if (*how,) == wanted and not f.reason]
        return [np.frombuffer(ops, dtype=np.int32) for _, ops in sorted(done)]

    def failed(self) -> list[Measurement]:
        """What failed."""
        return [found for found in self._known.values() if found.reason]

    def _key(self, op_placement: NDArray[np.integer], schedule: str) -> tuple[str, bool, bytes]:
        return schedule, self.compile_regions, np.ascontiguousarray(op_placement, dtype=np.int32).tobytes()

    def close(self) -> None:
        """End the process."""
        self.process.close()


@dataclass(frozen=True, eq=False)
class MeasuredProblem(PlacementProblem):
    """A problem that is evaluated by running the step. Everything else, also its `trace`, is that of the simulator.

    Make one with `measured`; end its process with `close`, or use it in a ``with`` statement.

    Attributes:
        evaluator: What runs the placements; shared with the problems that are made from this one.
    """

    evaluator: Measurer = field(kw_only=True)

    @property
    def measurer(self) -> Measurer:
        """What runs the placements."""
        return self.evaluator

    def __enter__(self) -> MeasuredProblem:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process that measures."""
        self.measurer.close()

    @property
    def failing_s(self) -> float:
        """The failing signal: what an infeasible placement is charged."""
        return self.measurer.time_limit_s


def measured(
    problem: PlacementProblem,
    source: str,
    devices: str | tuple[RealDevice, ...],
    *,
    time_limit_s: float = DEFAULT_LIMIT_S,
    how: Protocol | None = None,
    compile_regions: bool = False,
    hosts: Hosts | None = None,
) -> MeasuredProblem:
    """The same problem, evaluated by running the step on real devices.

    Args:
        problem: Its cluster's devices are called as the real ones; `machine_cluster` makes such a cluster.
        source: What the model is built from: a workload of the zoo or ``python:module:function``.
        devices: Names of real devices, ``"cpu:0,cpu:1"``.
        time_limit_s: Seconds that one measurement may take; the failing signal.
        how: How many steps.
        compile_regions: Placements will be asked for with regions that are compiled, see `Measurer.compile_regions`.
        hosts: What runs them on other machines; by default a process of this machine does.

    Raises:
        InputError: The devices are not those of the cluster, or do not exist.
    """
    real = parse_devices(devices) if isinstance(devices, str) else devices
    names = tuple(device.name for device in real)
    if names != problem.cluster.device_names:
        raise InputError(
            f"the devices to run on are {', '.join(names)}, but those of cluster '{problem.cluster.name}' are "
            f"{', '.join(problem.cluster.device_names)}; give the same names in the same order"
        )
    if not 0 < time_limit_s < float("inf"):
        raise InputError(f"the time limit of a measurement is {time_limit_s}; it must be positive")
    process = MeasuringProcess(
        source,
        problem.graph.untimed.sha256,
        real,
        problem.simulator_input.remaining_path_s,
        compile_regions=compile_regions,
    )
    measurer = Measurer(process, time_limit_s=time_limit_s, how=how, hosts=hosts)
    return MeasuredProblem(
        problem.graph,
        problem.groups,
        problem.cluster,
        problem.schedule,
        evaluator=measurer,
        names=problem.names,
        constraints=problem.constraints,
    )


def machine_cluster(
    devices: tuple[RealDevice, ...], *, memory_bytes: int | None = None, names: tuple[str, ...] | None = None
) -> Cluster:
    """A cluster of these devices with the catalogue's figures: a guess, where nobody has profiled the machine.

    Args:
        devices: What it consists of.
        memory_bytes: Memory of the host; by default what it has. Devices that are cores share it equally.
        names: What the cluster calls the devices; by default as they are called.
    """
    cores = sum(len(device.cores) for device in devices)
    cpus = sum(device.kind == "cpu" for device in devices)
    host_bytes = memory_bytes or host_memory_bytes()
    core = cpu_core(min(max(cores, 1), CPU_CORES))
    made, links = [], []
    for device, name in zip(devices, names or [device.name for device in devices], strict=True):
        if device.kind == "cpu":
            width = len(device.cores)
            spec = DeviceSpec(
                name=f"{core.name}_x{width}",
                kind="cpu",
                memory_bytes=host_bytes // cpus,
                peak_flops_per_s={dtype: rate * width for dtype, rate in core.peak_flops_per_s.items()},
                memory_bytes_per_s=core.memory_bytes_per_s * width,
                launch_overhead_s=core.launch_overhead_s,
                efficiency=core.efficiency,
                source="The catalogue's core; not measured.",
            )
            links.append(Link(name, "memory:0", spec.memory_bytes_per_s / 2, _CORE_TO_CORE_LATENCY_S))
        else:
            spec = DEVICE_SPECS["a100"]
            streams = sum(other.kind == "cuda" and other.index == device.index for other in devices)
            if streams > 1:  # they share the memory
                spec = replace(spec, name=f"{spec.name}_of_{streams}", memory_bytes=spec.memory_bytes // streams)
            links.append(Link(name, "memory:0", *_PCIE))
        made.append(Device(name, spec))
    return Cluster(
        name="+".join(device.name for device in devices),
        devices=tuple(made),
        links=tuple(links),
        switches=("memory:0",),
        source="This machine's devices with figures of the catalogue: a guess, not a profile.",
    )


def host_memory_bytes() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
