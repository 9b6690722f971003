"""Measurements as jobs for workers: each runs the steps of one placement while it alone has its machine's devices.

Times of different machines are compared only where the machines are alike: all hosts must be of one kind, by what
`envs.machine` says of them. A measurement has a lease on its machine, which the kernel takes back when the process
ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.machine.finding import hardware_key
from envs.measured.machine import RealDevice, parse_devices
from envs.measured.process import COMPILE_LIMIT_S, START_LIMIT_S, MeasuringProcess
from envs.measured.protocol import Failed, Measured, Protocol
from graphs.errors import InputError
from placement.workers import Job, Workers

LEASE_LIMIT_S = 1800.0
"""Seconds that a measurement waits for its machine, which others may be using."""

_LOOK_EVERY_S = 0.02


@dataclass(frozen=True)
class OnHost:
    """What a job found, and where.

    Attributes:
        host: The machine's name.
        kind: What it is, as of `envs.machine.finding.hardware_key`.
        version: Of the policy that proposed the placement, as the job was given it.
        reply: What the steps came to; None where none were asked for.
    """

    host: str
    kind: str
    version: int
    reply: Measured | Failed | None = None


class HostsMeasure:
    """Measures placements of one graph on the machines of workers; in place of a `MeasuringProcess`.

    Args:
        workers: One for each machine; more of one machine wait for each other.
        source: As of `MeasuringProcess`; so are the rest.
        graph_sha256: Of the graph that placements are for.
        devices: Which each machine has, by these names.
        remaining_path_s: ``float64[N]``.
        compile_regions: Placements will be asked for with regions that are compiled.

    Attributes:
        at_once: How many placements are measured at the same time.
        hosts: Names of the machines that have answered.
    """

    def __init__(
        self,
        workers: Workers,
        source: str,
        graph_sha256: str,
        devices: Sequence[RealDevice],
        remaining_path_s: NDArray[np.float64],
        compile_regions: bool = False,
    ) -> None:
        self.at_once = workers.count
        self.hosts: set[str] = set()
        self._kind: tuple[str, str] | None = None
        self._workers = workers
        # Processes of this machine share its cores out; a measurement has them all.
        cores = sorted(os.sched_getaffinity(0)) if workers.is_here and hasattr(os, "sched_getaffinity") else None
        load = _Load(
            source,
            graph_sha256,
            tuple(device.name for device in devices),
            np.ascontiguousarray(remaining_path_s, dtype=np.float64).tobytes(),
            cores,
            compile_regions,
        )
        self._load = load
        self._shared = workers.share(msgspec.msgpack.encode(load), "placement.runs.measure_jobs:decode_site")

    def start(self) -> None:
        """Let each worker build the model.

        Raises:
            InputError: The model cannot be built somewhere, or the machines are of different kinds.
        """
        jobs = (self._job(f"start {i}", "begin", {}, START_LIMIT_S) for i in range(self.at_once))
        for done in self._workers.run(jobs):
            self._take(done.result())

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
        """Run placements of ops, ``int[N]`` each; number, reply, machine and version of each as it is done.

        Args:
            op_placements: Different ones.
            schedule: Which ready op a device runs first.
            time_limit_s: Of each.
            how: How many steps.
            version: Of what proposed them; the result has it, too.
            compile_regions: Let regions be compiled.
            is_over: Asked before each is begun; those that are not begun are left out.

        Raises:
            InputError: The model cannot be built, or a machine is of another kind than the first.
        """
        how = how or Protocol()
        limit_s = START_LIMIT_S + LEASE_LIMIT_S + 2 * time_limit_s + COMPILE_LIMIT_S * compile_regions

        def jobs() -> Iterator[Job]:
            for number, placement in enumerate(op_placements):
                if is_over():
                    return
                arguments = {
                    "op_placement": np.ascontiguousarray(placement, dtype=np.int32),
                    "schedule": schedule,
                    "time_limit_s": time_limit_s,
                    "how": how,
                    "version": version,
                    "compile_regions": compile_regions,
                }
                yield self._job(str(number), "measure", arguments, limit_s)

        for done in self._workers.run(jobs()):
            found = self._take(done.result())
            assert found.reply is not None
            yield int(done.key), found.reply, found.host, found.version

    def on_devices(self, devices: Sequence[RealDevice]) -> HostsMeasure:
        """The same machines with other devices of theirs, for the same graph."""
        load = self._load
        path_s = np.frombuffer(load.remaining_path_s, dtype=np.float64)
        made = HostsMeasure(self._workers, load.source, load.graph_sha256, devices, path_s, load.compile_regions)
        made._kind = self._kind
        return made

    def close(self) -> None:
        """Nothing: the workers are of whoever opened them."""

    def _job(self, key: str, function: str, arguments: dict[str, Any], limit_s: float) -> Job:
        return Job(key, f"placement.runs.measure_jobs:{function}", arguments, self._shared, limit_s)

    def _take(self, found: OnHost) -> OnHost:
        """Take note of a machine.

        Raises:
            InputError: It is of another kind than the first.
        """
        self.hosts.add(found.host)
        if self._kind is None:
            self._kind = (found.host, found.kind)
        first, kind = self._kind
        if found.kind != kind:
            raise InputError(
                f"workers are on machines of different kinds, '{first}' and '{found.host}', whose times cannot be "
                f"compared ({_difference(kind, found.kind)}); give workers on machines of one kind"
            )
        return found


class _Load(msgspec.Struct, frozen=True):
    """What a worker measures; the fields are those of `MeasuringProcess`, and the cores that it may use."""

    source: str
    graph_sha256: str
    devices: tuple[str, ...]
    remaining_path_s: bytes
    cores: list[int] | None
    compile_regions: bool


class Site:
    """What a worker keeps: the process that measures, which holds the model."""

    def __init__(self, load: _Load) -> None:
        if load.cores is not None:
            os.sched_setaffinity(0, load.cores)
        self.process = MeasuringProcess(
            load.source,
            load.graph_sha256,
            parse_devices(load.devices),
            np.frombuffer(load.remaining_path_s, dtype=np.float64),
            compile_regions=load.compile_regions,
        )


def decode_site(content: bytes) -> Site:
    """What a worker keeps, from what `HostsMeasure` shares.

    Raises:
        InputError: The machine has no such devices.
    """
    return Site(msgspec.msgpack.decode(content, type=_Load))


def begin(site: Site) -> OnHost:
    """Build the model; what a worker runs first."""
    site.process.start()
    return OnHost(platform.node(), hardware_key(), 0)


def measure(
    site: Site,
    *,
    op_placement: NDArray[np.int32],
    schedule: str,
    time_limit_s: float,
    how: Protocol,
    version: int,
    compile_regions: bool,
) -> OnHost:
    """Run a placement's steps with the machine's devices for itself; what a worker runs."""
    site.process.start()  # the model is built before, not while others wait
    with lease(LEASE_LIMIT_S):
        reply = site.process.measure(
            op_placement, schedule=schedule, time_limit_s=time_limit_s, how=how, compile_regions=compile_regions
        )
    return OnHost(platform.node(), hardware_key(), version, reply)


@contextlib.contextmanager
def lease(limit_s: float, party: str | None = None) -> Iterator[None]:
    """Have this machine's devices alone, among the processes of this user that ask for it.

    Args:
        limit_s: How long to wait for them.
        party: Processes that give the same name have the devices together, as those of one pipeline do; None shares
            them with nobody.

    Raises:
        InputError: Others have had them for too long.
    """
    path = Path(tempfile.gettempdir()) / f"placement-devices-{os.getuid()}.lock"
    until = time.monotonic() + limit_s
    with path.open("a+") as file, path.with_suffix(".door").open("a") as door:
        while not _is_taken(file, door, party):
            if time.monotonic() >= until:
                raise InputError(
                    f"another process measures on '{platform.node()}' and has not ended within {limit_s:g} s; "
                    "wait for it, or stop it"
                )
            time.sleep(_LOOK_EVERY_S)
        yield


def _is_taken(file: IO[str], door: IO[str], party: str | None) -> bool:
    """Lock a file that says which party has it; whether that went. One process at a time is at the door."""
    fcntl.flock(door, fcntl.LOCK_EX)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            if party is None or file.read() != party:
                return False
        else:
            file.truncate(0)
            file.write(party or "")
            file.flush()
        if party is not None:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        fcntl.flock(door, fcntl.LOCK_UN)


def _difference(one: str, other: str) -> str:
    """The first line in which two kinds differ."""
    pairs = zip(one.split("\n"), other.split("\n"), strict=False)
    return next((f"{a or 'nothing'} and {b or 'nothing'}" for a, b in pairs if a != b), "more is said of one")
