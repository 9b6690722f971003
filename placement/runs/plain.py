"""What a model's step takes without a placement, on the same cores: by plain PyTorch, and on all cores as one device.

A placement on several devices is worth running only where it is faster than these, so measured runs say them. No torch
is loaded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from envs.measured.machine import RealDevice, as_one
from envs.measured.problem import interquartile_mean
from envs.measured.process import COMPILE_LIMIT_S, measure_plain
from envs.measured.protocol import Failed, Protocol
from placement.results.placement_file import PlacementResult
from placement.runs.observer import RunObserver

Plain = Literal["none", "eager", "compiled"]
"""Which plain PyTorch a measured run is compared with: ``"compiled"`` is both."""

EAGER, COMPILED = "plain PyTorch", "torch.compile"
ONE_DEVICE = "one_device"
"""The placer of a placement that has every op on one device."""

COMPILE_REGIONS = "compile_regions"
"""The setting that a placer's `config` has where the step time was measured with regions that were compiled."""


@dataclass(frozen=True)
class PlainSteps:
    """What plain PyTorch takes for a step.

    Attributes:
        name: `EAGER` or `COMPILED`.
        device: All cores of the run as one device.
        threads: With so many threads it computed.
        step_time_s: The interquartile mean; None where it failed.
        spread_s: From the first to the third quartile; None likewise.
        reason: Why it failed; empty where it did not.
    """

    name: str
    device: str
    threads: int
    step_time_s: float | None
    spread_s: float | None
    reason: str = ""


@dataclass(frozen=True)
class Beside:
    """What a placement is compared with: plain PyTorch, and all cores as one device of the engine.

    Attributes:
        plain: Of plain PyTorch; empty where it was not asked for.
        one_device: Every op on one device of all cores, with its measured step time; None where that was not run.
    """

    plain: tuple[PlainSteps, ...] = ()
    one_device: PlacementResult | None = None

    @property
    def fastest(self) -> PlainSteps | None:
        """The fastest of plain PyTorch; None where nothing was run."""
        ran = [each for each in self.plain if each.step_time_s is not None]
        return min(ran, key=lambda each: each.step_time_s or 0.0, default=None)


def compiles_regions(result: PlacementResult) -> bool:
    """Whether a placement's step time was measured with regions that were compiled."""
    return result.placer.config.get(COMPILE_REGIONS) is True


def plain_device(devices: Sequence[RealDevice]) -> RealDevice:
    """Where plain PyTorch runs: on all cores, or where there are GPUs on the first of these."""
    return as_one(devices) or next(device for device in devices if device.kind == "cuda")


def run_plain(
    source: str, devices: Sequence[RealDevice], *, time_limit_s: float, how: Protocol, is_compiled: bool = False
) -> PlainSteps:
    """Measure the step as PyTorch itself runs it.

    Raises:
        InputError: The model cannot be built.
    """
    device = plain_device(devices)
    reply = measure_plain(source, device, is_compiled=is_compiled, time_limit_s=time_limit_s, how=how)
    name, threads = (COMPILED if is_compiled else EAGER), max(len(device.cores), 1)
    if isinstance(reply, Failed):
        return PlainSteps(name, device.name, threads, None, None, reply.reason)
    low, high = np.percentile(reply.step_times_s, [25, 75])
    return PlainSteps(name, device.name, threads, interquartile_mean(tuple(reply.step_times_s)), float(high - low))


def can_be_one(devices: Sequence[RealDevice]) -> bool:
    """Whether devices are several and all of them cores."""
    return len(devices) > 1 and all(device.kind == "cpu" for device in devices)


def run_plain_beside(
    kind: Plain,
    source: str,
    devices: Sequence[RealDevice],
    *,
    time_limit_s: float,
    how: Protocol,
    observer: RunObserver,
) -> tuple[PlainSteps, ...]:
    """Measure plain PyTorch as `kind` asks for.

    Raises:
        InputError: The model cannot be built.
    """
    if kind == "none":
        return ()
    device = plain_device(devices)
    with observer.stage(f"running plain PyTorch on {device.name}"):
        found = [run_plain(source, devices, time_limit_s=time_limit_s, how=how)]
    if kind == "compiled":
        with observer.stage(f"compiling by torch.compile and running it on {device.name}"):
            found.append(run_plain(source, devices, time_limit_s=COMPILE_LIMIT_S, how=how, is_compiled=True))
    return tuple(found)
