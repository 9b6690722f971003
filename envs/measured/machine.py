"""Real devices by name: ``cpu:0`` (one core), ``cpu:0-3`` (a set of cores as one device), ``cuda:1``. No torch here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from graphs.errors import InputError


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
    return devices


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _parse(name: str) -> RealDevice:
    found = re.fullmatch(r"(cpu|cuda):(\d+)(?:-(\d+))?", name)
    if not found or (found[1] == "cuda" and found[3]):
        raise InputError(
            f"'{name}' is no device of a machine; write cpu:0 for a core, cpu:0-3 for several as one device, or cuda:0"
        )
    first = int(found[2])
    if found[1] == "cuda":
        return RealDevice(name, "cuda", index=first)
    last = int(found[3] or first)
    if last < first:
        raise InputError(f"device '{name}' has its cores backwards; write cpu:{last}-{first}")
    cores = tuple(range(first, last + 1))
    usable = usable_cores()
    missing = [core for core in cores if core not in usable]
    if missing:
        raise InputError(
            f"device '{name}': this process may not use core {missing[0]}, only "
            f"{', '.join(map(str, usable))}; name cores among these"
        )
    return RealDevice(name, "cpu", cores)
