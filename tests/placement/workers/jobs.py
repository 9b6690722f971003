"""What workers are asked to do by their tests: things that can go wrong."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from graphs.errors import InputError


def decode(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.int64)


def decode_and_count(content: bytes) -> np.ndarray:
    """The bytes are the name of a folder, in which a file is made each time."""
    begin(content.decode(), 0)
    return np.zeros(1, dtype=np.int64)


def total(shared: np.ndarray, *, plus: int) -> int:
    return int(shared.sum()) + plus


def double(*, x: int) -> int:
    return 2 * x


def begin(folder: str, x: int) -> int:
    """How often a job was begun, this time included: a file for each."""
    made = Path(folder) / f"{x}-{os.getpid()}-{time.monotonic_ns()}"
    made.touch()
    return len(list(Path(folder).glob(f"{x}-*")))


def die_at_first(*, folder: str, x: int, how: str) -> int:
    if begin(folder, x) == 1:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            os._exit(3)
        time.sleep(1000)
    return 2 * x


def always_die() -> None:
    os._exit(3)


def refuse(*, x: int) -> None:
    raise InputError(f"{x} is no good; give another")


def slip() -> None:
    raise ZeroDivisionError("a fault of ours")


def wait_s(*, seconds: float) -> None:
    time.sleep(seconds)


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def turn_round(*, content: bytes) -> bytes:
    return content[::-1]


class Dies:
    """What ends its process while it is written down, half of it written."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __getstate__(self) -> dict[str, object]:
        return {"content": self.content, "last": Last()}


class Last:
    def __reduce__(self) -> tuple[object, ...]:
        os.kill(os.getpid(), signal.SIGKILL)
        return (Last, ())


class Lives(Dies):
    def __getstate__(self) -> dict[str, object]:
        return {"content": self.content}


def die_answering(*, folder: str, x: int) -> Dies:
    return (Dies if begin(folder, x) == 1 else Lives)(bytes(10**6))


def stop_at_first(*, folder: str) -> str:
    if begin(folder, 0) == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


def hold_lease(*, folder: str, x: int) -> None:
    """Have the machine's devices for a moment; when it was is left in a file."""
    from placement.runs.measure_jobs import lease

    with lease(60.0):
        began = time.monotonic_ns()
        time.sleep(0.03)
        Path(folder, str(x)).write_text(f"{began} {time.monotonic_ns()}")


def loaded() -> tuple[object, ...]:
    """Whether a module was there before, how many cores there are, and some variables of the environment."""
    variables = [os.environ.get(name) for name in ("PYTHONPATH", "SAID_LATER", "PLACEMENT_TEMPLATE_CALLS")]
    return ("graphs.synthetic" in sys.modules, len(os.sched_getaffinity(0)), *variables)
