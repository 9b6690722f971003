"""What workers do in studies of workers: they wait, or do what is asked but are killed over it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from placement.workers.base import find


def wait(*, seconds: float) -> dict[str, float]:
    """Wait, and say in which process: what a job that measures a step costs whoever asks for it."""
    time.sleep(seconds)
    return {"step_time_s": seconds, "process": os.getpid()}


def do_and_die(
    *args: Any, function: str, arguments: Mapping[str, Any], folder: str, name: str, deaths: int, seed: int
) -> Any:
    """Do what is asked, but be killed the first times: nine in ten anywhere in it, one in ten while answering.

    Args:
        args: What is shared, if anything.
        function: What is asked.
        arguments: Of it.
        folder: Holds a file for each time.
        name: Of the job, no two alike.
        deaths: How many times it is to be killed.
        seed: Draws when.
    """
    before = len(list(Path(folder).glob(f"{name}.*")))
    if before >= deaths:
        return find(function, ())(*args, **arguments)
    rng = random.Random(f"{seed} {name} {before}")
    answering = rng.random() < 0.1
    (Path(folder) / f"{name}.{before}{'.answering' if answering else ''}").touch()
    if not answering:
        _kill_after(rng.uniform(0.0, 0.05))
        found = find(function, ())(*args, **arguments)
        time.sleep(60.0)  # it was quicker: it dies all the same
        return found
    found = find(function, ())(*args, **arguments)
    _kill_after(rng.uniform(0.0, 0.002))  # while it is written down, sent, or has just been sent
    return found


def _kill_after(seconds: float) -> None:
    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
