"""Real devices by name: ``cpu:0`` (one core), ``cpu:0-3+6`` (cores as one device), ``cuda:1``, ``cuda:1.0``.

``cuda:1.0`` and ``cuda:1.1`` are two streams of one GPU as two devices. No torch here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from graphs.errors import InputError

_MOST_CORES = 4096


@dataclass(frozen=True)
class RealDevice:
    """A device of this machine.

    Attributes:
        name: What placements call it.
        kind: ``"cpu"`` or ``"cuda"``.
        cores: The cores of a ``cpu`` device, to which its worker is pinned; it computes with as many threads.
        index: The number of a ``cuda`` device.
    """

    name: str
    kind: str
    cores: tuple[int, ...] = ()
    index: int = 0


def parse_devices(text: str | Sequence[str]) -> tuple[RealDevice, ...]:
    """The devices that a text like ``"cpu:0,cpu:1"`` names, in its order.

    Raises:
        InputError: A name is not one of a device, this process may not use the core, or a device is there twice.
    """
    names = [name.strip() for name in (text.split(",") if isinstance(text, str) else text)]
    if not any(names):
        raise InputError("no devices are given; write for example cpu:0,cpu:1")
    devices = tuple(_parse(name) for name in names)
    seen: dict[object, str] = {}
    for device in devices:
        for part in device.cores or (device.name,):
            if part in seen:
                what = f"core {part}" if device.cores else f"'{device.name}'"
                raise InputError(
                    f"devices '{seen[part]}' and '{device.name}' both have {what}; give each device cores of its own"
                )
            seen[part] = device.name
    for device in devices:
        if device.kind == "cuda" and "." in device.name and f"cuda:{device.index}" in seen:
            raise InputError(
                f"device '{device.name}' is a stream of 'cuda:{device.index}', which is there, too; give each stream a "
                f"number of its own, as in cuda:{device.index}.0,cuda:{device.index}.1"
            )
    return devices


def as_one(devices: Sequence[RealDevice]) -> RealDevice | None:
    """All cores of some ``cpu`` devices as one device, ``cpu:0-1`` of ``cpu:0`` and ``cpu:1``; None with a GPU."""
    if any(device.kind != "cpu" for device in devices):
        return None
    cores = sorted(core for device in devices for core in device.cores)
    runs: list[list[int]] = []
    for core in cores:
        if runs and runs[-1][-1] == core - 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    spans = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return RealDevice(f"cpu:{'+'.join(spans)}", "cpu", tuple(cores))


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _parse(name: str) -> RealDevice:
    found = re.fullmatch(r"cuda:(\d{1,9})(?:\.(\d{1,9}))?|cpu:(\d{1,9}(?:-\d{1,9})?(?:\+\d{1,9}(?:-\d{1,9})?)*)", name)
    if not found:
        raise InputError(
            f"'{name}' is no device of a machine; write cpu:0 for a core, cpu:0-3 for several as one device, or cuda:0"
        )
    if found[1]:
        return RealDevice(name, "cuda", index=int(found[1]))
    cores: tuple[int, ...] = ()
    for span in found[3].split("+"):
        first, _, last = span.partition("-")
        if int(last or first) < int(first):
            raise InputError(f"device '{name}' has its cores backwards; write cpu:{last}-{first}")
        if int(last or first) - int(first) >= _MOST_CORES:
            raise InputError(f"device '{name}' has more than {_MOST_CORES} cores; name those that are there")
        cores += tuple(range(int(first), int(last or first) + 1))
    if len(set(cores)) < len(cores):
        raise InputError(f"device '{name}' names a core twice; name each once")
    usable = usable_cores()
    missing = [core for core in cores if core not in usable]
    if missing:
        raise InputError(
            f"device '{name}': this process may not use core {missing[0]}, only "
            f"{', '.join(map(str, usable))}; name cores among these"
        )
    return RealDevice(name, "cpu", cores)
