"""The placements that a training on measured time has run, one a line, written as they come.

A line is a JSON object (`_Line`). Only ever a line is added, so whatever ends the process, all that was measured before
is there to go on from; the last line may be cut short and is then dropped.
"""

from __future__ import annotations

import base64
import binascii
import os
import zlib
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.measured.problem import MeasuredProblem, Measurement
from graphs.errors import InputError
from graphs.reading import is_missing, read_file
from placement.results.placement_file import Size


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One placement that was run.

    Attributes:
        placer: Who proposed it.
        schedule: Which ready op a device ran first.
        placement: ``int32[N]``, device numbers: little-endian, compressed by zlib, in base64.
        step_times_s: Seconds of every step of this placement that counts, those of earlier lines included.
        peak_memory_bytes: By device.
        reason: Why it failed; empty where it did not.
        elapsed_s: Seconds of the training so far.
        compile_regions: Whether it was run with regions that were compiled.
        update: How many updates the policy had made when the placement was proposed.
        host: The machine that ran it; empty for the one that the training ran on.
    """

    placer: str
    schedule: str
    placement: str
    step_times_s: tuple[float, ...]
    peak_memory_bytes: tuple[Size, ...]
    reason: str
    elapsed_s: float
    compile_regions: bool = False
    update: int = 0
    host: str = ""


class MeasurementFile:
    """Where the measurements of a run are written; to be used in a ``with`` statement.

    Args:
        path: The file; it is made where it does not exist, and added to where it does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab")

    def __enter__(self) -> MeasurementFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(
        self,
        placer: str,
        op_placement: NDArray[np.int32],
        schedule: str,
        found: Measurement,
        *,
        elapsed_s: float,
        compile_regions: bool = False,
    ) -> None:
        """Add what running a placement of ops, ``int32[N]``, came to; it is on the disk when this returns.

        Raises:
            InputError: It cannot be written, for example because the disk is full.
        """
        packed = base64.b64encode(zlib.compress(np.ascontiguousarray(op_placement, dtype="<i4").tobytes()))
        line = _Line(
            placer,
            schedule,
            packed.decode(),
            found.step_times_s,
            found.peak_memory_bytes,
            found.reason,
            elapsed_s,
            compile_regions,
            found.version,
            found.host,
        )
        try:
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"'{self._path}' cannot be written ({error.strerror}); make room there") from error


def read_measurements(path: Path, problem: MeasuredProblem) -> float:
    """Let a problem know what an earlier process of its run has measured.

    Args:
        path: The file; where there is none, nothing was measured.
        problem: Its measurer then answers those placements without running them.

    Returns:
        Seconds of the training until the last measurement.

    Raises:
        InputError: The file is damaged, or of another graph or cluster.
    """
    try:
        data = read_file(path, "measurements")
    except InputError as error:
        if is_missing(error):
            return 0.0
        raise
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:  # the process was killed while it wrote the last line
        os.truncate(path, len(whole))
    elapsed_s = 0.0
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = msgspec.json.decode(text, type=_Line)
            placement = np.frombuffer(_unpacked(line.placement, problem.graph.num_ops), dtype="<i4")
        except (msgspec.DecodeError, RecursionError, binascii.Error, zlib.error, ValueError) as error:
            raise InputError(f"'{path}', line {number}, is not a measurement ({error}); start a new run") from error
        devices = problem.num_devices
        fits = placement.shape == (problem.graph.num_ops,) and len(line.peak_memory_bytes) == devices
        if not fits or not 0 <= placement.min() <= placement.max() < devices:
            raise InputError(f"'{path}', line {number}, is of another graph or cluster; start a new run")
        found = Measurement(line.step_times_s, line.peak_memory_bytes, line.reason, line.host, line.update)
        problem.measurer.compile_regions = line.compile_regions
        problem.measurer.remember(placement, line.schedule, found)
        problem.measurer.compile_regions = False
        elapsed_s = line.elapsed_s
    return elapsed_s


def _unpacked(placement: str, num_ops: int) -> bytes:
    """The bytes of a line's placement, and no more of them than one more than it may have."""
    return zlib.decompressobj().decompress(base64.b64decode(placement, validate=True), 4 * num_ops + 4)
