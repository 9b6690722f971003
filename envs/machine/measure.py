"""Measuring this machine's devices with PyTorch: products, memory, empty ops, and copies between every pair.

`envs.machine.child` runs this in a process of its own. Every figure is the best of several tries: what others do on the
machine meanwhile makes it smaller, never larger. Devices that are cores are measured all at once, since that is how
they will work; so is their memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from envs.machine.found import FoundGpu, bus_address
from envs.machine.measured import CopyFigures, DeviceFigures
from envs.machine.parts import Part

MOST_S = 45.0
"""Seconds after which nothing new is measured."""

_TRIES = 3
_MOST_TRIES = 50
_TRYING_S = 0.15
_WANTED_S = 0.02
_LEAST_SIZE = 256
_MOST_SIZE = {"cpu": 2048, "gpu": 8192}
_COPY_BYTES = {"cpu": 2**25, "gpu": 2**28}
_PAIR_BYTES = 2**25
_TINY_BYTES = 4096
_EMPTY_OPS = 200
_DTYPES = ("float32", "float64", "bfloat16", "float16")


def seen_gpus() -> list[FoundGpu]:
    """The accelerators that PyTorch can use."""
    if torch.cuda.is_available():
        found = []
        for i in range(torch.cuda.device_count()):
            has = torch.cuda.get_device_properties(i)
            bus = getattr(has, "pci_bus_id", None)
            domain, slot = getattr(has, "pci_domain_id", 0), getattr(has, "pci_device_id", 0)
            found.append(
                FoundGpu(
                    name=has.name,
                    memory_bytes=int(has.total_memory),
                    free_bytes=int(torch.cuda.mem_get_info(i)[0]),
                    bus=bus_address(f"{domain:x}:{bus:02x}:{slot:02x}.0") if isinstance(bus, int) else "",
                )
            )
        return found
    if torch.backends.mps.is_available():
        memory = int(torch.mps.recommended_max_memory())
        return [FoundGpu(name="", memory_bytes=memory, shares_memory=True)]
    return []


def torch_device(part: Part) -> torch.device:
    """What PyTorch calls a device."""
    if part.card < 0:
        return torch.device("cpu")
    return torch.device("cuda", part.card) if torch.cuda.is_available() else torch.device("mps", part.card)


def measure(parts: Sequence[Part]) -> tuple[dict[str, DeviceFigures], tuple[CopyFigures, ...]]:
    """Measure devices and copies between them.

    Args:
        parts: What the machine consists of; accelerators are numbered as PyTorch numbers them.
    """
    until_s = time.monotonic() + MOST_S
    cores = [part for part in parts if part.card < 0]
    figures = _at_once(cores)
    for part in parts:
        if part.card >= 0 and time.monotonic() < until_s:
            # Where others have its memory, or its driver fails, the catalogue's figures stand in, and a note says so.
            with contextlib.suppress(RuntimeError):
                figures[part.name] = device_figures(torch_device(part))
    copies = []
    for a, b in itertools.permutations(parts, 2):
        if time.monotonic() > until_s:
            break
        if a.card < 0 and b.card < 0:
            copies.append(_core_copy(a, b))
        elif a.name in figures and b.name in figures:
            with contextlib.suppress(RuntimeError):
                copies.append(_copy(a, b))
    return {part.name: figures[part.name] for part in parts if part.name in figures}, tuple(copies)


def device_figures(device: torch.device, together: Callable[[], object] = lambda: None) -> DeviceFigures:
    """Measure one device.

    Args:
        device: Which.
        together: Called before each measurement, to wait for others that measure at the same time.
    """
    kind = "cpu" if device.type == "cpu" else "gpu"
    rates = {}
    for dtype in _DTYPES:
        if device.type == "mps" and dtype == "float64":
            continue
        together()
        try:
            rates[dtype] = _product_flops_per_s(device, getattr(torch, dtype), _MOST_SIZE[kind])
        except RuntimeError:
            if dtype == "float32":
                raise
            # Older cards multiply in fewer dtypes; what is absent runs at float32's rate in a spec.
    classes = {}
    for name, run in (("convolution", _convolution), ("attention", _attention)):
        together()
        classes[name] = run(device)
    together()
    size = _COPY_BYTES[kind]
    source, target = _bytes(size, device), _bytes(size, device)
    bytes_per_s = 2 * size / _best_s(lambda: target.copy_(source), device)
    together()
    one = torch.zeros(1, device=device)
    empty_s = _best_s(lambda: [one.add_(1.0) for _ in range(_EMPTY_OPS)], device) / _EMPTY_OPS
    return DeviceFigures(
        flops_per_s={dtype: _shown(rate) for dtype, rate in rates.items()},
        class_flops_per_s={name: _shown(rate) for name, rate in classes.items()},
        memory_bytes_per_s=_shown(bytes_per_s),
        launch_overhead_s=_shown(empty_s),
    )


def _at_once(cores: Sequence[Part]) -> dict[str, DeviceFigures]:
    """Measure devices that are cores while all of them work, each on the cores that it has."""
    found: dict[str, DeviceFigures] = {}
    failed: list[BaseException] = []
    barrier = threading.Barrier(len(cores)) if cores else None

    def work(part: Part) -> None:
        try:
            _bind(part)
            assert barrier is not None
            found[part.name] = device_figures(torch.device("cpu"), barrier.wait)
        except BaseException as error:
            failed.append(error)
            if barrier is not None:
                barrier.abort()

    threads = [threading.Thread(target=work, args=(part,)) for part in cores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


def _bind(part: Part) -> None:
    """Let this thread, and those that it starts, run on a part's cores only."""
    if part.cpus and hasattr(os, "sched_setaffinity"):
        allowed = set(part.cpus) & os.sched_getaffinity(0)
        if allowed:
            os.sched_setaffinity(0, allowed)
    torch.set_num_threads(max(1, round(part.cores)))


def _product_flops_per_s(device: torch.device, dtype: torch.dtype, most: int) -> float:
    """The best rate of square products, of sizes that double until one takes long enough to be measured well."""
    size, best = _LEAST_SIZE, 0.0
    while True:
        a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        taken_s = _best_s(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
        best = max(best, 2 * size**3 / taken_s)
        if taken_s > _WANTED_S or size >= most:
            return best
        size *= 2


def _convolution(device: torch.device) -> float:
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device).requires_grad_(False)
    images = torch.ones(8 if device.type == "cpu" else 64, 64, 56, 56, device=device)
    flops = 2 * images.numel() * 64 * 9
    return flops / _best_s(lambda: layer(images), device)


def _attention(device: torch.device) -> float:
    batch = 1 if device.type == "cpu" else 16
    q, k, v = (torch.ones(batch, 8, 512, 64, device=device) for _ in range(3))
    flops = 4 * batch * 8 * 512 * 512 * 64
    return flops / _best_s(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v), device)


def _copy(a: Part, b: Part) -> CopyFigures:
    """Copies from a device to another, of which one is an accelerator."""
    source, target = torch_device(a), torch_device(b)

    def seconds(size: int) -> float:
        data = _bytes(size, source)
        if source.type == "cpu" and target.type == "cuda":
            data = data.pin_memory()
        into = _bytes(size, target)
        if target.type == "cpu" and source.type == "cuda":
            into = into.pin_memory()
        return _best_s(lambda: into.copy_(data), source, target)

    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    _bind(a if a.card < 0 else b if b.card < 0 else Part(""))
    try:
        return _copy_figures(a, b, seconds)
    finally:
        if bound is not None:
            os.sched_setaffinity(0, bound)


def _core_copy(a: Part, b: Part) -> CopyFigures:
    """Copies from the cores of one device to those of another: one writes, the other copies, in turn."""
    times: dict[int, float] = {}
    data = {size: (_bytes(size), _bytes(size)) for size in (_TINY_BYTES, _PAIR_BYTES)}
    rounds = {_TINY_BYTES: _MOST_TRIES, _PAIR_BYTES: _TRIES + 1}
    wrote, took = threading.Semaphore(0), threading.Semaphore(0)
    started_s = [0.0]

    def write() -> None:
        _bind(a)
        for size in data:
            for i in range(rounds[size]):
                data[size][0].fill_(i)
                started_s[0] = time.perf_counter()
                wrote.release()
                took.acquire()

    def take() -> None:
        _bind(b)
        for size, (source, target) in data.items():
            for _ in range(rounds[size]):
                wrote.acquire()
                target.copy_(source)
                times[size] = min(times.get(size, float("inf")), time.perf_counter() - started_s[0])
                took.release()

    threads = [threading.Thread(target=write), threading.Thread(target=take)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _copy_figures(a, b, times.__getitem__)


def _copy_figures(a: Part, b: Part, seconds: Callable[[int], float]) -> CopyFigures:
    tiny_s, large_s = seconds(_TINY_BYTES), seconds(_PAIR_BYTES)
    return CopyFigures(a.name, b.name, _shown(_PAIR_BYTES / max(large_s - tiny_s, large_s / 2)), _shown(tiny_s))


def _bytes(size: int, device: torch.device | None = None) -> Tensor:
    return torch.ones(size, dtype=torch.uint8, device=device)


def _best_s(run: Callable[[], object], *devices: torch.device) -> float:
    """The shortest of several times of a run, after one that does not count."""
    best, spent = float("inf"), 0.0
    for i in range(_MOST_TRIES + 1):
        _wait(devices)
        start = time.perf_counter()
        run()
        _wait(devices)
        taken = time.perf_counter() - start
        spent += taken
        if i:
            best = min(best, taken)
        elif taken > 1.0:  # far too slow to be tried again
            return taken
        if i >= _TRIES and spent > _TRYING_S:
            break
    return max(best, 1e-9)


def _wait(devices: Sequence[torch.device]) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


def _shown(value: float) -> float:
    """A figure of three digits; more are noise."""
    return float(f"{value:.3g}")
