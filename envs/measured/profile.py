"""Profiles a machine with real steps of a graph: seconds of each op on each device, and what copies between them cost.

Some placements are run (`envs.measured.process`): each device alone, then random ones and their complements, so that
every op is timed on every device while the others work, too: with the caches, the memory bandwidth and the interpreter
as shared as in the steps that a placement is wanted for. An op's time is the mean (but for the extreme fiftieths) over
all steps of those placements and over all ops of the same type, shapes, dtype and size, plus the device's dispatch
time: what passes between a task and the next one, where that need not be waited for. Nothing is fitted to the
placements that are evaluated later. No torch is loaded here.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster, Device, Link
from envs.cost_model import PROFILE_ENDS
from envs.measured.machine import RealDevice
from envs.measured.problem import interquartile_mean, machine_cluster
from envs.measured.process import MeasuringProcess
from envs.measured.protocol import Failed, Measured, Protocol
from graphs.colocation.groups import Groups
from graphs.computation_graph import ComputationGraph
from graphs.errors import NoFeasiblePlacementError

Floats = NDArray[np.float64]

_LONGEST_DISPATCH_S = 5e-5
"""A longer pause between two tasks of a device is taken for a wait."""

ALONE, BESIDE = PROFILE_ENDS
"""How the names end under which a profile has a spec's op times while the other devices idle, and while they work."""

_HICCUPS = 0.02
"""Of the times of an op at either end: what is left out of its mean."""

MOST_RUNS, AGREE = 6, 0.05
"""A placement is run until its two fastest runs differ by no more than this; at most so many times."""

_LEAST_SHARE = 0.25
"""Where devices worked at the same time for less than this, that tells little of what it costs."""

_LEAST_BYTES = 1 << 16
"""A copy of less tells nothing about bandwidth."""


@dataclass(frozen=True, eq=False)
class Observation:
    """The steps of one placement, task by task.

    Attributes:
        op_device: ``int32[N]``.
        step_times_s: ``float64[R]``, of ``R`` steps.
        start_s: ``float64[R, N + C]``, of each op, then each copy; NaN for what does nothing.
        end_s: ``float64[R, N + C]``.
        copies: ``int64[C, 4]``: the op that made the content, the device it is from, the one that copies, the bytes.
    """

    op_device: NDArray[np.int32]
    step_times_s: Floats
    start_s: Floats
    end_s: Floats
    copies: NDArray[np.int64]

    @property
    def num_ops(self) -> int:
        """``N``."""
        return len(self.op_device)

    @property
    def task_device(self) -> NDArray[np.int64]:
        """``int64[N + C]``."""
        return np.concatenate([self.op_device, self.copies[:, 2]]).astype(np.int64)

    @property
    def seconds(self) -> Floats:
        """``float64[R, N + C]``: how long each task ran."""
        return self.end_s - self.start_s

    def pauses_s(self, device: int) -> tuple[NDArray[np.int64], Floats]:
        """Of each step and each task of a device but its first: the task, and the time since the one before.

        Returns:
            ``(tasks int64[R, K], pauses float64[R, K])``.
        """
        tasks = np.flatnonzero((self.task_device == device) & ~np.isnan(self.start_s[0]))
        order = np.argsort(self.start_s[:, tasks], axis=1, kind="stable")
        sorted_tasks = tasks[order]
        start = np.take_along_axis(self.start_s, sorted_tasks, axis=1)
        end = np.take_along_axis(self.end_s, sorted_tasks, axis=1)
        return sorted_tasks[:, 1:], start[:, 1:] - end[:, :-1]


@dataclass(frozen=True, eq=False)
class Profile:
    """What a graph's ops and copies cost on a machine.

    Attributes:
        graph: The graph, with `time_s` of each device's spec.
        cluster: The devices and links that were measured.
        dispatch_s: ``float64[D]``, between a task and the next, contained in the op times.
        contention: ``float64[D]``: how much longer ops take while the other devices work.
        solo_step_s: ``float64[D]``: the step on each device alone.
    """

    graph: ComputationGraph
    cluster: Cluster
    dispatch_s: Floats
    contention: Floats
    solo_step_s: Floats


def calibration_placements(groups: Groups, num_devices: int, count: int, seed: int) -> list[NDArray[np.int32]]:
    """Placements of ops, ``int32[N]``: each device alone, then about `count` random ones, shifted over all devices."""
    rng = np.random.default_rng(seed)
    alone = [np.full(groups.num_groups, device) for device in range(num_devices)]
    drawn: list[NDArray[Any]] = []
    while num_devices > 1 and len(drawn) < count:
        first = rng.integers(num_devices, size=groups.num_groups)
        drawn += [(first + shift) % num_devices for shift in range(num_devices)]
    return [groups.to_ops(placement).astype(np.int32) for placement in [*alone, *drawn]]


def observe(
    process: MeasuringProcess, op_device: NDArray[np.int32], *, schedule: str, steps: int, time_limit_s: float
) -> Observation:
    """Run a placement and keep when each of its tasks ran.

    Raises:
        NoFeasiblePlacementError: It could not be run.
    """
    how = Protocol(steps=steps, short_steps=steps, least_steps=1)
    reply = process.measure(op_device, schedule=schedule, time_limit_s=time_limit_s, how=how, keep_tasks=True)
    if isinstance(reply, Failed):
        raise NoFeasiblePlacementError(f"a step to profile cannot be run: {reply.reason}")
    return _observation(op_device, reply)


def _settled(
    process: MeasuringProcess, op_device: NDArray[np.int32], *, schedule: str, steps: int, time_limit_s: float
) -> Observation:
    """Observe a placement until its two fastest runs agree; the fastest. What disturbs a machine only slows it."""
    runs: list[tuple[float, Observation]] = []
    while len(runs) < MOST_RUNS:
        each = observe(process, op_device, schedule=schedule, steps=steps, time_limit_s=time_limit_s)
        runs.append((interquartile_mean(tuple(each.step_times_s)), each))
        runs.sort(key=lambda run: run[0])
        if len(runs) > 1 and runs[1][0] <= runs[0][0] * (1 + AGREE):
            break
    return runs[0][1]


def _observation(op_device: NDArray[np.int32], reply: Measured) -> Observation:
    runs = len(reply.step_times_s)
    return Observation(
        np.asarray(op_device, dtype=np.int32),
        np.array(reply.step_times_s),
        np.frombuffer(reply.task_start_s).reshape(runs, -1),
        np.frombuffer(reply.task_end_s).reshape(runs, -1),
        np.frombuffer(reply.copies, dtype=np.int64).reshape(-1, 4),
    )


def profile(
    graph: ComputationGraph,
    groups: Groups,
    devices: tuple[RealDevice, ...],
    process: MeasuringProcess,
    *,
    schedule: str = "priority",
    placements: int = 8,
    steps: int = 10,
    seed: int = 0,
    time_limit_s: float = 60.0,
    on_observe: Callable[[Observation], None] | None = None,
) -> Profile:
    """Run calibration placements, and say what they tell of the machine.

    Args:
        graph: What is run.
        groups: What random placements place.
        devices: Where.
        process: What runs them; of this graph and these devices.
        schedule: Which ready op a device runs first.
        placements: About how many random ones.
        steps: Steps of each that count; one more goes before them.
        seed: Of the random placements.
        time_limit_s: Seconds that one placement may take.
        on_observe: Called after each.

    Raises:
        NoFeasiblePlacementError: A placement could not be run.
    """
    observed = []
    for op_device in calibration_placements(groups, len(devices), placements, seed):
        observed.append(_settled(process, op_device, schedule=schedule, steps=steps, time_limit_s=time_limit_s))
        if on_observe is not None:
            on_observe(observed[-1])
    return profile_of(graph, devices, observed)


def profile_of(graph: ComputationGraph, devices: tuple[RealDevice, ...], observed: Sequence[Observation]) -> Profile:
    """What observations tell: the first ``D`` are of each device alone, the others of all devices at work."""
    count = len(devices)
    alone, loaded = observed[:count], observed[count:] or observed[:count]
    dispatch_s = np.array([_dispatch_s(loaded, device) for device in range(count)])
    signature = op_signatures(graph)
    op_time_s = np.stack([_op_times_s(loaded, alone, device, signature) for device in range(count)])  # [D, N]
    solo_s = np.array([interquartile_mean(tuple(each.step_times_s)) for each in alone])
    contention = np.ones(count)
    for number in range(count):
        mine = alone[number].seconds[:, : graph.num_ops].mean(axis=0)
        both = ~np.isnan(mine) & ~np.isnan(op_time_s[number])
        contention[number] = op_time_s[number][both].sum() / max(mine[both].sum(), 1e-12)
    alone_s = np.stack([_op_times_s(alone, alone, device, signature) for device in range(count)])
    cluster = _profiled_cluster(devices, observed)
    share = _loaded_share(loaded, count)
    beside_s = alone_s + (op_time_s - alone_s) / max(share, _LEAST_SHARE)
    times = {}
    for i, device in enumerate(cluster.devices):
        for end, seconds in (("", op_time_s[i]), (ALONE, alone_s[i]), (BESIDE, np.maximum(beside_s[i], 0.0))):
            times[device.spec.name + end] = np.where(np.isnan(seconds), 0.0, seconds + dispatch_s[i])
    return Profile(replace(graph, time_s=times), cluster, dispatch_s, contention, solo_s)


def op_signatures(graph: ComputationGraph) -> NDArray[np.int64]:
    """``int64[N]``: equal for ops of the same type, output shapes, dtype, FLOPs and bytes."""
    known: dict[object, int] = {}
    keys = zip(
        graph.op_type.tolist(),
        graph.output_shapes,
        graph.dtype.tolist(),
        graph.flops.tolist(),
        graph.bytes_accessed.tolist(),
        strict=True,
    )
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _op_times_s(
    loaded: Sequence[Observation], alone: Sequence[Observation], device: int, signature: NDArray[np.int64]
) -> Floats:
    """``float64[N]``: seconds of each op on a device, NaN for those that do nothing."""
    count = len(signature)
    kinds = int(signature.max()) + 1
    times = np.full(kinds, np.nan)
    # Under load on the device; else alone there; else on another device.
    for sources, anywhere in ((loaded, False), (alone, False), ([*loaded, *alone], True)):
        samples: list[tuple[NDArray[np.int64], Floats]] = []
        for each in sources:
            ops = np.flatnonzero(~np.isnan(each.start_s[0, :count]) & (anywhere | (each.op_device == device)))
            runs = len(each.step_times_s)
            samples.append((np.tile(signature[ops], runs), each.seconds[:, ops].ravel()))
        which = np.concatenate([s[0] for s in samples])
        seconds = np.concatenate([s[1] for s in samples])
        order = np.argsort(which, kind="stable")
        bounds = np.searchsorted(which[order], np.arange(kinds + 1))
        for kind in np.flatnonzero(np.isnan(times) & (np.diff(bounds) > 0)):
            times[kind] = _trimmed_mean(seconds[order[bounds[kind] : bounds[kind + 1]]])
    return times[signature]


def _loaded_share(loaded: Sequence[Observation], num_devices: int) -> float:
    """The share of the ops' time in which the other devices worked, too."""
    shared_s = lasted_s = 0.0
    for each in loaded:
        runs = np.flatnonzero(~np.isnan(each.start_s[0]))
        ops = runs < each.num_ops
        for start_s, end_s in zip(each.start_s[:, runs], each.end_s[:, runs], strict=True):
            share = others_share(start_s, end_s, each.task_device[runs], num_devices)
            shared_s += float((share * (end_s - start_s))[ops].sum())
            lasted_s += float((end_s - start_s)[ops].sum())
    return shared_s / max(lasted_s, 1e-12)


def others_share(start_s: Floats, end_s: Floats, device: NDArray[np.integer], num_devices: int) -> Floats:
    """``float64[N]``: the share of each task's time in which other devices work, a mean over these; 0 of no time.

    Args:
        start_s: ``float64[N]``; tasks of one device do not overlap.
        end_s: ``float64[N]``.
        device: ``int[N]``.
        num_devices: ``D``.
    """
    shared_s = np.zeros(len(start_s))
    for other in range(num_devices):
        mine = np.flatnonzero(device == other)
        mine = mine[np.argsort(start_s[mine], kind="stable")]
        # Work done until an instant is a broken line.
        instants = np.stack([start_s[mine], end_s[mine]], axis=1).ravel()
        worked_s = np.cumsum(np.stack([np.zeros(len(mine)), end_s[mine] - start_s[mine]], axis=1).ravel())
        if len(mine):
            until_s = np.interp(end_s, instants, worked_s) - np.interp(start_s, instants, worked_s)
            shared_s += np.where(device == other, 0.0, until_s)
    lasts_s = (end_s - start_s) * max(num_devices - 1, 1)
    share = np.divide(shared_s, lasts_s, out=np.zeros(len(start_s)), where=lasts_s > 0)
    return share.clip(0.0, 1.0)  # rounding must not make more of a short task than there is


def _dispatch_s(observed: Sequence[Observation], device: int) -> float:
    """Mean pause between two tasks of a device where the second was there already."""
    pauses = np.concatenate([each.pauses_s(device)[1].ravel() for each in observed])
    pauses = pauses[pauses < _LONGEST_DISPATCH_S]
    return float(pauses.mean()) if pauses.size else 0.0


def _profiled_cluster(devices: tuple[RealDevice, ...], observed: Sequence[Observation]) -> Cluster:
    """The devices, each with a spec of its own, and a link for each pair, as fast as copies were."""
    guess = machine_cluster(devices)
    described = machine_description(devices)
    made = tuple(
        Device(d.name, replace(d.spec, name=f"profiled_{d.name.replace(':', '_')}", source=f"profiled on {described}"))
        for d in guess.devices
    )
    links = []
    for a in range(len(devices)):
        for b in range(a + 1, len(devices)):
            latency_s, bytes_per_s = _copy_cost(observed, a, b) or _copy_cost(observed) or _guessed(guess, a)
            copies = devices[a].kind == devices[b].kind == "cpu"  # the worker that receives makes the copy
            links.append(Link(devices[a].name, devices[b].name, bytes_per_s, latency_s, receiver_copies=copies))
    return Cluster(name=f"{guess.name}-profiled", devices=made, links=tuple(links), source=f"profiled on {described}")


def _guessed(guess: Cluster, device: int) -> tuple[float, float]:
    link = guess.links[device]
    return link.latency_s, link.bytes_per_s


def _copy_cost(observed: Sequence[Observation], a: int = -1, b: int = -1) -> tuple[float, float] | None:
    """``(latency_s, bytes_per_s)`` of copies between two devices, or between any.

    Bandwidth is that of the copies themselves. Latency is what passes from the end of an op until a copy of what it
    made is there, beyond the time for its bytes, where the receiver had nothing else to do: to wake it, mostly.
    """
    sizes, seconds, delays = [], [], []
    for each in observed:
        source, receiver = each.copies[:, 1], each.copies[:, 2]
        wanted = (a < 0) | ((source == a) & (receiver == b)) | ((source == b) & (receiver == a))
        chosen = np.flatnonzero(np.broadcast_to(wanted, len(source)))
        if not chosen.size:
            continue
        tasks = each.num_ops + chosen
        sizes.append(np.tile(each.copies[chosen, 3], len(each.step_times_s)))
        seconds.append(each.seconds[:, tasks].ravel())
        made_s = each.end_s[:, each.copies[chosen, 0]]
        idle_s = np.full(each.start_s.shape, np.inf)  # by task: since when its device had been idle
        for device in np.unique(receiver):
            mine, pauses = each.pauses_s(int(device))
            start = np.take_along_axis(each.start_s, mine, axis=1)
            np.put_along_axis(idle_s, mine, start - pauses, axis=1)
        waited = idle_s[:, tasks] <= made_s
        delays.append(np.where(waited, each.end_s[:, tasks] - made_s, np.nan).ravel())
    if not sizes:
        return None
    size, second, delay = np.concatenate(sizes).astype(np.float64), np.concatenate(seconds), np.concatenate(delays)
    small = size < _LEAST_BYTES
    least = float(np.median(second[small])) if small.any() else float(second.min())
    large = ~small
    moved_s = (second[large] - least).clip(1e-9).sum()
    bytes_per_s = float(size[large].sum() / moved_s) if large.any() else 1e10
    beyond = (delay - size / bytes_per_s)[~np.isnan(delay)]
    latency_s = float(np.median(beyond).clip(least)) if beyond.size else least
    return latency_s, bytes_per_s


def machine_description(devices: Sequence[RealDevice]) -> str:
    """The machine in words: its processor, the instructions that matter, memory and PyTorch."""
    model, flags = platform.processor() or platform.machine(), ""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.partition(":") for line in file]
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
        flags = next((value for key, _, value in lines if key.strip() == "flags"), "")
    except OSError:
        pass  # not Linux
    vector = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine()
    names = ", ".join(device.name for device in devices)
    return f"{names} of {model}, {vector}; torch {version('torch')}"


def _trimmed_mean(values: Floats) -> float:
    """The mean without hiccups. Not a median: times of an op are skewed, and a step is a sum, so tails count."""
    ordered = np.sort(values)
    cut = int(len(ordered) * _HICCUPS)
    return float(ordered[cut : len(ordered) - cut].mean())
