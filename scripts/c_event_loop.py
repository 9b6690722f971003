"""`scripts/event_loop.c` compiled and called: the loop in C that `scripts/benchmark_simulator.py` measures against."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs.simulator.input import SimulatorInput

MOST_DEVICES = 64
"""A set of devices is one word in C."""

SOURCE = Path(__file__).with_name("event_loop.c")

Simulate = Callable[[NDArray[np.int32]], tuple[NDArray[np.float64], NDArray[np.int64], int]]
"""From placements of ops ``int32[B, N]``: step times in seconds ``[B]``, peaks ``[B, D]`` (an upper estimate), and the
number of transfers of the last one."""

_INTS = ("num_ops", "num_devices", "num_tensors", "num_directions")
_ARRAYS = (
    "tensor_offsets", "consumer_offsets", "consumers", "input_offsets", "inputs", "tensor_bytes", "home_bytes",
    "resident_bytes", "op_time_s", "latency_s", "bytes_per_s", "route_offsets", "route_directions",
)  # fmt: skip


class _Step(ctypes.Structure):
    """The C struct of the same name."""

    _fields_ = [*((name, ctypes.c_int32) for name in _INTS), *((name, ctypes.c_void_p) for name in _ARRAYS)]


def compiler() -> str | None:
    """The C compiler; None where there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compile_loop(folder: Path) -> ctypes.CDLL:
    """Compile the loop into a folder, optimised, for this processor, and with sums as they are written.

    Raises:
        RuntimeError: There is no C compiler.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("there is no C compiler here; install one, for example gcc")
    library = folder / "event_loop.so"
    flags = ["-O3", "-march=native", "-ffp-contract=off", "-std=gnu11", "-shared", "-fPIC"]
    subprocess.run([command, *flags, "-o", str(library), str(SOURCE)], check=True)
    return ctypes.CDLL(str(library))


def loop_in_c(library: ctypes.CDLL, problem: SimulatorInput) -> Simulate:
    """The loop for one problem, which it simulates under ``fifo``, whatever its schedule.

    Raises:
        ValueError: It has more than `MOST_DEVICES` devices.
    """
    if problem.num_devices > MOST_DEVICES:
        raise ValueError(f"{problem.num_devices} devices; the loop in C knows at most {MOST_DEVICES}")
    edge_tensor = np.repeat(np.arange(len(problem.tensor_bytes)), np.diff(problem.consumer_offsets))
    arrays = {
        "tensor_offsets": problem.tensor_offsets.astype(np.int32),
        "consumer_offsets": problem.consumer_offsets.astype(np.int32),
        "consumers": problem.consumers.astype(np.int32),
        "input_offsets": problem.input_offsets.astype(np.int32),
        "inputs": edge_tensor[problem.input_edges].astype(np.int32),
        "tensor_bytes": problem.tensor_bytes.astype(np.int64),
        "home_bytes": np.where(problem.tensor_resident, 0, problem.tensor_bytes).astype(np.int64),
        "resident_bytes": problem.resident_bytes.astype(np.int64),
        "op_time_s": np.ascontiguousarray(problem.op_time_s[problem.device_spec]),
        "latency_s": np.ascontiguousarray(problem.route_latency_s),
        "bytes_per_s": np.ascontiguousarray(problem.route_bytes_per_s),
        "route_offsets": problem.route_offsets.astype(np.int32),
        "route_directions": problem.route_directions.astype(np.int32),
    }
    numbers = (problem.num_ops, problem.num_devices, len(problem.tensor_bytes), problem.num_directions)
    step = _Step(*numbers, *(arrays[name].ctypes.data for name in _ARRAYS))

    def simulate(placements: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        assert arrays, "kept as long as the struct points to them"
        placements = np.ascontiguousarray(placements, dtype=np.int32)
        step_s = np.empty(len(placements))
        peaks = np.empty((len(placements), problem.num_devices), dtype=np.int64)
        to = [ctypes.c_void_p(array.ctypes.data) for array in (placements, step_s, peaks)]
        sent = library.simulate(ctypes.byref(step), to[0], ctypes.c_int32(len(placements)), to[1], to[2])
        if sent < 0:
            raise MemoryError("the loop in C found no memory")
        return step_s, peaks, int(sent)

    return simulate
