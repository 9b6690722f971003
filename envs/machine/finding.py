"""What this machine is made of: from /proc and /sys, psutil and ``nvidia-smi`` or NVML. No torch here."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import psutil

from envs.machine.found import Found, FoundGpu, FoundLink, FoundNode, bus_address, merge, parse_cpus
from envs.machine.reading import parse_topology
from graphs.errors import InputError
from graphs.extras import is_installed

_MOST_SECONDS = 30.0
_UNLIMITED = 2**60

Run = Callable[[Sequence[str]], bytes | None]
"""Runs a program and gives what it printed; None where it is missing, failed or hung."""


def find_host(root: Path = Path("/")) -> Found:
    """The processors and memory.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    usable = usable_cores(root)
    usable = usable[: _processor_limit(root, len(usable))]
    memory = psutil.virtual_memory()
    limit = _memory_limit(root)
    return Found(
        cpu_name=_cpu_name(root),
        sockets=_sockets(root),
        cores=len(usable),
        usable_cpus=usable,
        memory_bytes=min(int(memory.total), limit),
        free_bytes=min(int(memory.available), max(0, limit - _memory_in_use(root))),
        nodes=_nodes(root),
    )


def usable_cores(root: Path = Path("/")) -> tuple[int, ...]:
    """The hardware threads that this process may use, one of each core.

    Args:
        root: Where ``sys`` is.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
    else:
        allowed = list(range(psutil.cpu_count(logical=False) or 1))
    taken: set[int] = set()
    cores = []
    for cpu in allowed:
        if cpu in taken:
            continue
        said = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        taken |= {cpu, *_cpus(said)}
        cores.append(cpu)
    return tuple(cores)


def find_gpus(run: Run | None = None) -> Found:
    """NVIDIA's GPUs and what joins them, as ``nvidia-smi`` or NVML says; empty where neither is there.

    Args:
        run: Runs a program; by default on this machine.
    """
    run = run or run_program
    parts = []
    for arguments in (("nvidia-smi", "-q", "-x"), ("nvidia-smi", "topo", "-m")):
        said = run(arguments)
        # What the driver prints where it does not work is not the machine's topology.
        with contextlib.suppress(InputError):
            if said is not None:
                parts.append(parse_topology(said, " ".join(arguments)))
    if parts:
        with contextlib.suppress(InputError):
            return merge(parts)
        return parts[0]
    return _by_nvml() if is_installed("pynvml") else Found()


def hardware_key() -> str:
    """What the hardware is, as far as it can be told at once: a machine that is measured again differs in it."""
    host = find_host()
    parts = [
        *(host.cpu_name, str(host.sockets), str(host.usable_cpus), str(host.memory_bytes), platform.platform()),
        *(
            str(sorted(_names(Path(path))))
            for path in ("/proc/driver/nvidia/gpus", "/sys/class/kfd/kfd/topology/nodes")
        ),
        *(os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")),
        importlib.metadata.version("torch"),
    ]
    return "\n".join(parts)


def usable(found: Found, seen: Sequence[FoundGpu]) -> Found:
    """The machine with the accelerators that PyTorch can use, in its order; all of them where it can use none.

    Args:
        found: What the drivers say.
        seen: What PyTorch sees.
    """
    if not seen:
        return found
    buses, ours = [gpu.bus for gpu in found.gpus], [gpu.bus for gpu in seen]
    if all(ours) and len(set(ours)) == len(ours) and set(ours) <= set(buses):
        kept = [buses.index(bus) for bus in ours]
    elif len(seen) == len(found.gpus) and not any(gpu.is_divided for gpu in found.gpus):
        kept = list(range(len(seen)))
    else:  # parts of a divided GPU, or another vendor's
        return msgspec.structs.replace(found, gpus=tuple(seen), links=(), paths=(), shared=())
    number = {old: new for new, old in enumerate(kept)} | {-1: -1}
    gpus = []
    for old, gpu in zip(kept, seen, strict=True):
        known = found.gpus[old]
        # A part of a divided GPU is called as PyTorch calls it; so is its memory.
        piece = known.is_divided
        gpus.append(gpu if piece else msgspec.structs.replace(known, kind=gpu.kind, free_bytes=gpu.free_bytes))
    links = [link for link in found.links if link.a in number and link.b in number]
    return msgspec.structs.replace(
        found,
        gpus=tuple(gpus),
        links=tuple(msgspec.structs.replace(link, a=number[link.a], b=number[link.b]) for link in links),
        paths=tuple(tuple(found.paths[i][j] for j in kept) for i in kept) if found.paths else (),
        shared=tuple(tuple(number[i] for i in group if i in number) for group in found.shared),
    )


def run_program(arguments: Sequence[str]) -> bytes | None:
    """What a program prints; None where it is missing, fails, or takes longer than half a minute."""
    if shutil.which(arguments[0]) is None:
        return None
    try:
        done = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MOST_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _by_nvml() -> Found:
    """NVIDIA's GPUs as NVML says, through nvidia-ml-py; empty where there is no driver."""
    import pynvml as nvml

    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return Found()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        gpus = []
        for handle in handles:
            name = nvml.nvmlDeviceGetName(handle)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            bus = nvml.nvmlDeviceGetPciInfo(handle).busId
            gpus.append(
                FoundGpu(
                    name=name if isinstance(name, str) else name.decode(),
                    memory_bytes=int(memory.total),
                    free_bytes=int(memory.free),
                    pcie_generation=_said(nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
                    pcie_lanes=_said(nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
                    bus=bus_address(bus if isinstance(bus, str) else bus.decode()),
                )
            )
        words = {10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}  # nvmlGpuTopologyLevel_t
        levels = [[_said(nvml.nvmlDeviceGetTopologyCommonAncestor, a, b) for b in handles] for a in handles]
        paths = tuple(
            tuple("" if i == j or level is None else words.get(level, "") for j, level in enumerate(row))
            for i, row in enumerate(levels)
        )
        links = _nvlinks(handles, [gpu.bus for gpu in gpus])
        return Found(gpus=tuple(gpus), paths=paths, links=links, said_by=("NVML",))
    finally:
        nvml.nvmlShutdown()


def _nvlinks(handles: Sequence[object], buses: Sequence[str]) -> tuple[FoundLink, ...]:
    """NVLinks by where NVML says that they lead: to another of the GPUs, or else to a switch."""
    import pynvml as nvml

    counts: Counter[tuple[int, int]] = Counter()
    for i, handle in enumerate(handles):
        for link in range(nvml.NVML_NVLINK_MAX_LINKS):
            if not _said(nvml.nvmlDeviceGetNvLinkState, handle, link):
                continue
            bus = nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId
            other = bus_address(bus if isinstance(bus, str) else bus.decode())
            j = buses.index(other) if other in buses else -1
            if j < 0 or i < j:
                counts[i, j] += 1
    return tuple(FoundLink(i, j, "nvlink", count) for (i, j), count in sorted(counts.items()))


def _said(ask: Callable[..., int], *arguments: object) -> int | None:
    """What NVML answers; None where it does not know."""
    import pynvml as nvml

    try:
        return int(ask(*arguments))
    except nvml.NVMLError:
        return None


def _cpu_name(root: Path) -> str:
    said = re.search(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    if said:
        return said[1].strip()
    if platform.system() == "Darwin":
        said_by_system = run_program(("sysctl", "-n", "machdep.cpu.brand_string"))
        return said_by_system.decode("utf-8", "replace").strip() if said_by_system else ""
    return platform.processor()


def _sockets(root: Path) -> int:
    packages = {_read(path) for path in root.glob("sys/devices/system/cpu/cpu*/topology/physical_package_id")}
    return max(1, len(packages - {""}))


def _nodes(root: Path) -> tuple[FoundNode, ...]:
    nodes = []
    for path in root.glob("sys/devices/system/node/node*"):
        number = re.fullmatch(r"node(\d{1,6})", path.name)
        total = re.search(r"MemTotal:\s*(\d{1,15}) kB", _read(path / "meminfo"))
        cpus = _cpus(_read(path / "cpulist"))
        if number and cpus:
            nodes.append(FoundNode(int(number[1]), cpus, int(total[1]) * 1024 if total else None))
    return tuple(sorted(nodes, key=lambda node: node.number))


def _memory_limit(root: Path) -> int:
    """What a container may use; a number that no machine reaches where there is no limit."""
    for path in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        said = _read(root / path)
        if re.fullmatch(r"\d{1,19}", said):
            return int(said)
    return _UNLIMITED


def _memory_in_use(root: Path) -> int:
    """What a container uses of it, without what the system keeps of files and gives back when it is needed."""
    said = _read(root / "sys/fs/cgroup/memory.current")
    kept = re.search(r"^inactive_file (\d{1,19})$", _read(root / "sys/fs/cgroup/memory.stat"), re.MULTILINE)
    if not re.fullmatch(r"\d{1,19}", said):
        return 0
    return max(0, int(said) - (int(kept[1]) if kept else 0))


def _processor_limit(root: Path, cores: int) -> int:
    """How many cores' time a container may use, at least one; all of them where there is no limit."""
    said = re.fullmatch(r"(\d{1,12}) (\d{1,12})", _read(root / "sys/fs/cgroup/cpu.max"))
    if said is None:
        each = (_read(root / f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
        said = re.fullmatch(r"(\d{1,12}) (\d{1,12})", " ".join(each))
    if said is None or not int(said[2]):
        return cores
    return min(cores, max(1, math.ceil(int(said[1]) / int(said[2]))))


def _cpus(text: str) -> tuple[int, ...]:
    with contextlib.suppress(InputError):
        return parse_cpus(text)
    return ()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
