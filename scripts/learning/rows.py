"""The files of `scripts/benchmark_learning.py`: a row for each placer's answer, and a curve of how it came about."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from graphs.errors import InputError
from graphs.files import write_atomically
from placement.placers.base import Progress

LEARNED = "reinforce"
"""The learned placer; what begins so is made of its parts."""

MOST_POINTS = 80
"""Points that are kept of a curve."""


@dataclass(frozen=True)
class Row:
    """What one placer came to; the fields are the keys of the JSON file.

    Attributes:
        graph: As named on the command line.
        cluster: As named on the command line; with ``/fifo`` behind it where the schedule is not `priority`.
        placer: Its name.
        seed: Of its random numbers.
        budget_s: Wall-clock seconds that it was given; None where only evaluations were limited.
        budget_evaluations: Evaluations that it was given; None where only time was limited.
        seconds: Wall-clock seconds that it took.
        evaluations: Placements that it evaluated, by its own count.
        step_time_s: Of its placement, as the simulator says; None where it gave none.
        feasible: Whether that fits.
    """

    graph: str
    cluster: str
    placer: str
    seed: int
    budget_s: float | None
    budget_evaluations: int | None
    seconds: float
    evaluations: int
    step_time_s: float | None
    feasible: bool

    @property
    def key(self) -> tuple[object, ...]:
        """What tells a row from all others."""
        return (self.graph, self.cluster, self.placer, self.seed, self.budget_s, self.budget_evaluations)


@dataclass(frozen=True)
class Curve:
    """How a row came about: points ``[seconds, evaluations, best_s, mean_s]``, None for what there was not."""

    graph: str
    cluster: str
    placer: str
    seed: int
    budget_s: float | None
    budget_evaluations: int | None
    points: list[list[float | None]]

    @property
    def key(self) -> tuple[object, ...]:
        """The key of its row."""
        return (self.graph, self.cluster, self.placer, self.seed, self.budget_s, self.budget_evaluations)


Entry = TypeVar("Entry")


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none where there is no file."""
    return [_made(Row, entry, path) for entry in _entries(path, "rows")]


def read_curves(path: Path) -> list[Curve]:
    """The curves of a file, none where there is no file."""
    return [_made(Curve, entry, path) for entry in _entries(path, "curves")]


def _entries(path: Path, key: str) -> list[dict[str, object]]:
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text())[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' cannot be read as {key} ({error!r}); move it away to start anew") from error
    if not isinstance(entries, list):
        raise InputError(f"'{path}': {key} is no list; move it away to start anew")
    return entries


def _made(kind: type[Entry], entry: dict[str, object], path: Path) -> Entry:
    try:
        return kind(**entry)
    except TypeError as error:
        raise InputError(f"'{path}' holds an entry of another form ({error}); move it away to start anew") from error


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Replace the file of rows, whole or not at all."""
    write_atomically(path, json.dumps({"rows": [asdict(row) for row in rows]}, indent=1).encode() + b"\n")


def write_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Replace the file of curves, whole or not at all."""
    write_atomically(path, json.dumps({"curves": [asdict(curve) for curve in curves]}).encode() + b"\n")


def thinned(points: Sequence[Progress]) -> list[list[float | None]]:
    """At most `MOST_POINTS` of a curve and its first: the last of each of so many intervals of equal ratios of time."""
    first_s, last_s = max(points[0].seconds, 1e-6), max(points[-1].seconds, 1e-6)
    width = max(math.log(last_s / first_s), 1e-9) / (MOST_POINTS - 1)
    last = {int(math.log(max(point.seconds, first_s) / first_s) / width): point for point in points}
    kept = list(last.values())
    if kept[0] is not points[0]:
        kept.insert(0, points[0])
    return [
        [
            round(p.seconds, 4),
            p.evaluations,
            *(float(f"{value:.6g}") if np.isfinite(value) else None for value in (p.best_s, p.mean_s)),
        ]
        for p in kept
    ]
