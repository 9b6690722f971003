"""The process that measures a machine: ``python -m envs.machine.child`` reads what was found, and writes figures.

PyTorch's threads, the cores they run on and a GPU's context are this process's own, and end with it.
"""

from __future__ import annotations

import datetime
import os
import sys
import time

import msgspec
import psutil

from envs.machine.found import Found, FoundGpu
from envs.machine.measured import Measured


class Answer(msgspec.Struct, frozen=True):
    """What the process answers.

    Attributes:
        seen: Accelerators that PyTorch can use.
        found: The machine with these in the drivers' place.
        measured: Figures.
    """

    seen: tuple[FoundGpu, ...]
    found: Found
    measured: Measured


def main() -> None:
    """Answer one request on the standard streams."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Found)
    # What a library prints on the standard output must not be taken for a part of the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    start = time.monotonic()
    load = psutil.getloadavg()[0]
    import torch

    from envs.machine.finding import usable
    from envs.machine.measure import measure, seen_gpus
    from envs.machine.parts import parts_of

    seen = tuple(seen_gpus())
    if seen and seen[0].shares_memory:
        seen = tuple(msgspec.structs.replace(gpu, name=request.cpu_name) for gpu in seen)
    found = usable(request, seen)
    parts = parts_of(found)
    # Accelerators that PyTorch cannot use stay unmeasured.
    devices, copies = measure([part for part in parts if part.card < 0 or seen])
    measured = Measured(
        devices,
        copies,
        when=datetime.date.today().isoformat(),
        took_s=round(time.monotonic() - start, 1),
        torch=str(torch.__version__),
        load=round(load, 1),
    )
    with os.fdopen(answer, "wb") as out:
        out.write(msgspec.json.encode(Answer(seen, found, measured)))


if __name__ == "__main__":
    main()
