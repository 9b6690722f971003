"""Where the time of a training run goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PARTS = ("heuristics", "sample", "learn", "simulate", "wait", "search")
"""Parts of the time that a training run tells apart; the search runs in parallel to the others, but for ``wait``."""


class Timer:
    """Adds up the seconds of each part.

    Attributes:
        seconds: So far, by `PARTS`.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as that of a part."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began
