"""This machine as a cluster: found and measured once, and then taken from a file of the user's cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from platformdirs import user_cache_path

from envs.clusters.device_specs import DEVICE_SPECS
from envs.machine.child import Answer
from envs.machine.finding import find_gpus, find_host, hardware_key
from envs.machine.found import Found, merge
from envs.machine.measured import Measured
from envs.machine.to_cluster import MachineCluster, make_machine_cluster
from graphs.errors import InputError
from graphs.files import write_atomically
from graphs.reading import read_file

NAME = "this_machine"
"""What the cluster is called."""

_VERSION = 1
_MOST_SECONDS = 180.0


class _Kept(msgspec.Struct, frozen=True):
    """What the cache holds."""

    version: int
    found: Found
    measured: Measured


def this_machine(*, again: bool = False, on_measure: Callable[[], None] = lambda: None) -> MachineCluster:
    """The cluster that this machine is.

    It is measured once, which takes less than a minute, and again when its hardware or PyTorch has changed.

    Args:
        again: Measure in any case.
        on_measure: Called before it is measured.

    Raises:
        InputError: The process that measures failed.
    """
    path = _cache_path()
    kept = None if again else _read(path)
    if kept is None:
        on_measure()
        answer = _measure(merge([find_host(), find_gpus()]))
        kept = _Kept(_VERSION, answer.found, answer.measured)
        _write(path, kept)
    return make_machine_cluster(kept.found, DEVICE_SPECS, name=NAME, measured=kept.measured)


def _cache_path() -> Path:
    digest = hashlib.sha256(hardware_key().encode()).hexdigest()
    return user_cache_path("device-placement") / "machines" / f"{digest[:24]}.json"


def _read(path: Path) -> _Kept | None:
    """What is kept; None where nothing is, or nothing of use."""
    try:
        kept = msgspec.json.decode(read_file(path, "measurement"), type=_Kept)
    except (InputError, msgspec.DecodeError):
        return None
    return kept if kept.version == _VERSION else None


def _write(path: Path, kept: _Kept) -> None:
    """Keep what was measured; where the cache cannot be written, it is measured again the next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(kept)))
    except (OSError, InputError):
        return


def _measure(found: Found) -> Answer:
    """Ask a process of its own.

    Raises:
        InputError: It failed; the message ends with the last that it said.
    """
    root = Path(__file__).resolve().parent.parent.parent
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    remedy = "describe it in a cluster file and give that as --cluster"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "envs.machine.child"],
            input=msgspec.json.encode(found),
            capture_output=True,
            timeout=_MOST_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": path, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"measuring this machine took longer than {_MOST_SECONDS:.0f} s; {remedy}") from None
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason"]
        raise InputError(f"measuring this machine failed ({said[-1].strip()}); {remedy}")
    try:
        return msgspec.json.decode(done.stdout, type=Answer)
    except msgspec.DecodeError:
        raise InputError(f"measuring this machine gave no figures; {remedy}") from None
