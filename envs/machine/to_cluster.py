"""From what was found of a machine, and measured of it, to a cluster. Pure functions.

How it becomes devices is in `envs.machine.parts`, how links in `envs.machine.to_links`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from envs.clusters.cluster import Cluster, Device, DeviceSpec
from envs.clusters.memories import SharedMemory
from envs.machine.found import Found, FoundGpu
from envs.machine.measured import DeviceFigures, Measured, best_of
from envs.machine.parts import Part, parts_of
from envs.machine.spec_names import need_spec, spec_of
from envs.machine.to_links import core_links, machine_links, note
from graphs.errors import InputError, unknown_name

USABLE = 0.95
"""Share of a device's memory that ops can use; the rest is the driver's and the allocator's."""

_QUIET = 0.5
"""Load of a core up to which figures are taken to be those of a quiet machine."""

_CORE_FLOPS_PER_S = 2.5e9 * 32
_CORE_BYTES_PER_S = 3e9
_CORE_MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Like:
    """What a user says of devices that nobody named.

    Attributes:
        gpu: Name of a known spec for every GPU.
        gpus: The same for single ones, by number.
        cpu: Name of a known spec for every CPU device.
        memory_bytes: Of the host.
    """

    gpu: str | None = None
    gpus: Mapping[int, str] | None = None
    cpu: str | None = None
    memory_bytes: float | None = None


@dataclass(frozen=True, eq=False)
class MachineCluster:
    """A machine as a cluster.

    Attributes:
        cluster: Its devices and links.
        notes: What was assumed, a sentence each.
        found: What was found of it.
        measured: What was measured of it; None where it is another machine, or was not measured.
    """

    cluster: Cluster
    notes: tuple[str, ...]
    found: Found
    measured: Measured | None = None


def make_machine_cluster(
    found: Found,
    specs: Mapping[str, DeviceSpec],
    *,
    name: str,
    like: Like = Like(),
    measured: Measured | None = None,
) -> MachineCluster:
    """The cluster that a machine is.

    Args:
        found: What was found of it.
        specs: The catalogue's specs by name.
        name: The cluster's name.
        like: Specs for devices that nobody named, or that the catalogue lacks.
        measured: Figures of its devices and of copies between them, by the names of `parts_of`; what was not measured
            is the catalogue's.

    Raises:
        InputError: A device is not in the catalogue and was not measured; the message says how to name it.
    """
    _check_like(like, found)
    found = _called(found, like)
    parts = parts_of(found)
    notes: list[str] = []
    if measured is not None and measured.load > _QUIET * max(1, found.cores or 1):
        note(
            notes,
            f"The machine was busy when it was measured (load {measured.load:g} on {found.cores} cores), so its "
            "figures are too low: measure it again when it is quiet.",
        )
    devices = tuple(Device(part.name, _spec(found, part, parts, specs, like, measured, notes)) for part in parts)
    if parts[-1].card < 0:
        links, switches = core_links(devices, measured, notes)
    else:
        links, switches = machine_links(found, parts, measured, notes)
    said = f"{', '.join(found.said_by) or 'this machine'}"
    if measured is not None:
        said += f"; devices and copies measured on {measured.when} with PyTorch {measured.torch}"
    source = f"From {said}. {' '.join(notes)}".strip()
    cluster = Cluster(name, devices, links, switches, source, shared_memories=_shared_memories(found, parts, devices))
    return MachineCluster(cluster, tuple(notes), found, measured)


def _shared_memories(found: Found, parts: Sequence[Part], devices: Sequence[Device]) -> tuple[SharedMemory, ...]:
    """The host's memory, where several devices use it: all that are cores, and the GPU of a chip of Apple's."""
    using = [
        (device, part.card)
        for device, part in zip(devices, parts, strict=True)
        if part.card < 0 or found.gpus[part.card].shares_memory
    ]
    size = max((device.spec.memory_bytes for device, card in using if card < 0), default=0)
    return (SharedMemory("host", tuple(device.name for device, _ in using), size),) if len(using) > 1 else ()


def _check_like(like: Like, found: Found) -> None:
    """Raise where a user names the spec of a GPU that is not there.

    Raises:
        InputError: There is no such GPU.
    """
    for number in like.gpus or {}:
        if number >= len(found.gpus):
            raise InputError(f"gpu.{number} is given a spec, but there are {len(found.gpus)} GPUs, from gpu.0 on")


def _called(found: Found, like: Like) -> Found:
    """The same with names for accelerators that nobody named: those of the specs that they are like."""
    said = [(like.gpus or {}).get(i, like.gpu) for i in range(len(found.gpus))]
    gpus = tuple(
        gpu if gpu.name or name is None else msgspec.structs.replace(gpu, name=name)
        for gpu, name in zip(found.gpus, said, strict=True)
    )
    return msgspec.structs.replace(found, gpus=gpus)


def _spec(
    found: Found,
    part: Part,
    parts: Sequence[Part],
    specs: Mapping[str, DeviceSpec],
    like: Like,
    measured: Measured | None,
    notes: list[str],
) -> DeviceSpec:
    alike = [] if measured is None else [measured.devices[name] for name in _alike(found, part, parts, measured)]
    figures = best_of(alike) if alike else None
    if measured is not None and figures is None:
        note(notes, f"{part.name} was not measured: its figures are the catalogue's.")
    if part.card >= 0:
        return _gpu_spec(found.gpus[part.card], part, specs, like, figures, measured)
    return _cpu_spec(found, part, parts, specs, like, figures, measured, notes)


def _alike(found: Found, part: Part, parts: Sequence[Part], measured: Measured) -> list[str]:
    """The names of measured devices of one model with a device, its own among them."""

    def model(other: Part) -> object:
        if other.card < 0:
            return other.cores
        gpu = found.gpus[other.card]
        return gpu.name, gpu.memory_bytes, other.piece >= 0

    if part.name not in measured.devices:
        return []
    is_core = part.card < 0
    same = [other for other in parts if (other.card < 0) == is_core and model(other) == model(part)]
    return [other.name for other in same if other.name in measured.devices]


def _gpu_spec(
    gpu: FoundGpu,
    part: Part,
    specs: Mapping[str, DeviceSpec],
    like: Like,
    figures: DeviceFigures | None,
    measured: Measured | None,
) -> DeviceSpec:
    said = (like.gpus or {}).get(part.card, like.gpu)
    if said is not None:
        known: DeviceSpec | None = _named(said, specs)
    elif figures is not None:
        known = spec_of(gpu.name, gpu.kind, gpu.memory_bytes)
    else:
        option = f"gpu.{part.card}=NAME"
        known = need_spec(gpu.name, gpu.kind, gpu.memory_bytes, what=f"GPU {part.card}", option=option)
    usable = _usable(gpu.memory_bytes, gpu.free_bytes)
    memory = usable if usable is not None else known.memory_bytes if known is not None else 0
    if figures is not None:
        return _measured_spec(gpu.name, gpu.kind, memory, figures, known, measured)
    assert known is not None
    if gpu.memory_bytes is None or _is_near(memory, known.memory_bytes):
        memory = known.memory_bytes
    if part.piece < 0:
        return replace(known, memory_bytes=memory)
    piece = gpu.slices[part.piece]
    share = min(1.0, piece.memory_bytes / (gpu.memory_bytes or known.memory_bytes / USABLE))
    return replace(
        known,
        name=f"{known.name}_{piece.name or 'part'}".replace(".", "_"),
        memory_bytes=round(piece.memory_bytes * USABLE),
        peak_flops_per_s={dtype: rate * piece.compute for dtype, rate in known.peak_flops_per_s.items()},
        memory_bytes_per_s=known.memory_bytes_per_s * share,
        source=f"{piece.compute:.0%} of the arithmetic and {share:.0%} of the memory and bandwidth of {known.name}.",
    )


def _named(name: str, specs: Mapping[str, DeviceSpec]) -> DeviceSpec:
    if name not in specs:
        raise unknown_name("device spec", name, specs)
    return specs[name]


def _usable(total: int | None, free: int | None) -> int | None:
    """What ops can use of a memory: most of it, and no more than is free; in whole millions of bytes."""
    if total is None:
        return None
    most = round(total * USABLE)
    return (most if free is None else min(most, free)) // 10**6 * 10**6


def _is_near(a: float, b: float) -> bool:
    return abs(a - b) <= 0.1 * b


def _cpu_spec(
    found: Found,
    part: Part,
    parts: Sequence[Part],
    specs: Mapping[str, DeviceSpec],
    like: Like,
    figures: DeviceFigures | None,
    measured: Measured | None,
    notes: list[str],
) -> DeviceSpec:
    cpus = [other for other in parts if other.card < 0]
    all_cores = sum(other.cores for other in cpus)
    host_bytes = found.memory_bytes if like.memory_bytes is None else int(like.memory_bytes)
    if host_bytes is None and found.nodes and all(node.memory_bytes is not None for node in found.nodes):
        host_bytes = sum(node.memory_bytes or 0 for node in found.nodes)
    whole = _usable(host_bytes, found.free_bytes)
    known = _named(like.cpu, specs) if like.cpu is not None else spec_of(found.cpu_name, "cpu")
    if whole is None:
        whole = known.memory_bytes * len(cpus) if known else int(all_cores * _CORE_MEMORY_BYTES)
        note(
            notes,
            f"Nobody said how much memory the host has: {whole / 1e9:.0f} GB are assumed (say it behind the file: "
            "memory_bytes=256e9).",
        )
    if figures is not None:
        named = f"{_without_clock(found.cpu_name) or 'cpu'} {part.cores:g}c"
        return _measured_spec(named, "cpu", whole, figures, known, measured)
    if known is not None:
        sockets = max(1, found.sockets or 1) if like.cpu is None and not re.search(r"_\dx\d+c", known.name) else 1
        share = sockets / len(cpus) if like.cpu is None else 1.0
        return replace(
            known,
            name=known.name if share == 1 else f"{known.name}_x{share:g}",
            memory_bytes=whole,
            peak_flops_per_s={dtype: rate * share for dtype, rate in known.peak_flops_per_s.items()},
            memory_bytes_per_s=known.memory_bytes_per_s * share,
        )
    why = f"'{found.cpu_name}' is not in the catalogue" if found.cpu_name else "Nobody said what the processor is"
    note(
        notes,
        f"{why}: {part.cores:g} cores of 80 GFLOP/s and 3 GB/s each are assumed for each CPU "
        "device (say it behind the file: cpu=NAME).",
    )
    rate = part.cores * _CORE_FLOPS_PER_S
    return DeviceSpec(
        name=f"cpu_{part.cores:g}c",
        kind="cpu",
        memory_bytes=whole,
        peak_flops_per_s={"float32": rate, "float64": rate / 2},
        memory_bytes_per_s=max(20e9, part.cores * _CORE_BYTES_PER_S),
        launch_overhead_s=3e-6,
        efficiency={"product": 0.4, "convolution": 0.4, "attention": 0.4},
        source=f"Assumed: {part.cores:g} cores at 2.5 GHz x 32 FLOP a cycle, 3 GB/s of memory bandwidth each.",
    )


def _measured_spec(
    called: str,
    kind: str,
    memory_bytes: int,
    figures: DeviceFigures,
    known: DeviceSpec | None,
    measured: Measured | None,
) -> DeviceSpec:
    """A spec of measured figures. Its peak is the best rate of any class of op; products then reach a share of it."""
    rates = dict(figures.flops_per_s)
    product = rates["float32"]
    best = max(product, *figures.class_flops_per_s.values()) if figures.class_flops_per_s else product
    classes = {"product": product, **figures.class_flops_per_s}
    efficiency = {name: min(1.0, rate / best) for name, rate in classes.items()}
    scale = best / product  # rates of other dtypes were measured with products as well
    when = f" on {measured.when} with PyTorch {measured.torch}" if measured is not None else ""
    source = (
        f"Measured{when}: products by dtype, convolution and attention in float32, memory bandwidth, the time of an "
        "empty op. Memory: 95% of what it has, and no more than was free."
    )
    if known is not None:
        source += f" In the catalogue it is {known.name}."
    return DeviceSpec(
        name=f"{slug(called)}_measured",
        kind=kind,
        memory_bytes=memory_bytes,
        peak_flops_per_s={dtype: rate * scale for dtype, rate in rates.items()},
        memory_bytes_per_s=figures.memory_bytes_per_s,
        launch_overhead_s=figures.launch_overhead_s,
        efficiency=efficiency,
        tile=known.tile if known is not None else 32 if kind == "gpu" else 1,
        source=source,
    )


def _without_clock(name: str) -> str:
    return re.sub(r"\b(?:CPU|Processor)\b|\d+-Cores?\b|@.*", " ", name).strip()


def slug(name: str) -> str:
    """A device's name as one word: ``nvidia_a100_sxm4_80gb``."""
    plain = re.sub(r"\((?:r|tm|c)\)", " ", name.lower())
    return "_".join(re.findall(r"[a-z0-9.]+", plain)) or "device"
