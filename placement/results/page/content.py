"""What a page shows, and its parts as columns: nothing here draws.

Letters: ``N`` ops, ``D`` devices, ``K`` transfers, ``R`` bars, ``U`` updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from envs.simulator.trace_file import direction_name
from graphs.computation_graph import PHASES
from placement.results.comparison import Comparison
from placement.results.reasons.explanation import Explanation
from placement.results.reasons.step_parts import link_seconds

MOST_BARS = 16_000
"""Bars of a timeline; where a step has more ops, ops that are near each other share a bar."""

MOST_LINKS = 12
"""Directions of links that are shown, those that are longest in use."""

MOST_POINTS = 3_000
"""Points of a line."""


@dataclass(frozen=True, eq=False)
class Curve:
    """How the learning went, ``float64[U]`` each; a value that there was not is NaN.

    Attributes:
        update: Number of the update.
        values: Step times in seconds by what they are of: ``"best"``, ``"mean"``, ``"greedy"``.
    """

    update: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class PageContent:
    """What a page is about.

    Attributes:
        explanation: The placement and its reasons.
        comparison: The rows of other placers, if there are any.
        curve: How the learning went, if it did.
        commands: Command lines that make this again.
    """

    explanation: Explanation
    comparison: Comparison | None = None
    curve: Curve | None = None
    commands: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True, eq=False)
class Bars:
    """Bars of a timeline, ``[R]`` each.

    Attributes:
        row: Index of a row.
        start_s: Where a bar begins.
        end_s: Where it ends.
        kind: Index of a phase, or ``len(PHASES)`` for a transfer.
        share: How much of its length is used: 1 for a bar of one op.
        names: What it is.
        rows: Names of the rows, devices first.
    """

    row: NDArray[np.int32]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    kind: NDArray[np.int8]
    share: NDArray[np.float64]
    names: list[str]
    rows: tuple[str, ...]


def timeline(found: Explanation, *, most_bars: int = MOST_BARS) -> Bars:
    """The ops of each device and the transfers of the busiest links as bars."""
    problem, trace = found.problem, found.trace
    graph, cluster = problem.graph, problem.cluster
    in_use = link_seconds(problem, trace)
    shown = [int(d) for d in np.argsort(-in_use, kind="stable")[:MOST_LINKS] if in_use[d] > 0]
    row_of_direction = {direction: cluster.num_devices + i for i, direction in enumerate(shown)}
    crossed = [
        (k, row_of_direction[d])
        for k, directions in enumerate(trace.transfer_directions(cluster))
        for d in directions.tolist()
        if d in row_of_direction
    ]
    sent = np.array([k for k, _ in crossed], dtype=np.int64)
    ran = np.flatnonzero(trace.op_end_s > trace.op_start_s)
    tensor_of = trace.transfer_tensor[sent]
    maker = graph.tensor_producer[tensor_of] if len(sent) else np.zeros(0, dtype=np.int64)
    row = np.concatenate([trace.op_device[ran], np.array([r for _, r in crossed], dtype=np.int32)])
    start_s = np.concatenate([trace.op_start_s[ran], trace.transfer_start_s[sent]])
    end_s = np.concatenate([trace.op_end_s[ran], trace.transfer_end_s[sent]])
    kind = np.concatenate([graph.phase[ran], np.full(len(sent), len(PHASES))]).astype(np.int8)
    who = np.concatenate([ran, maker]).astype(np.int64)
    rows = (*cluster.device_names, *(direction_name(cluster, d) for d in shown))
    if len(row) <= most_bars:
        names = [graph.op_names[i] for i in who.tolist()]
        return Bars(row.astype(np.int32), start_s, end_s, kind, np.ones(len(row)), names, rows)
    return _merged(row, start_s, end_s, kind, who, rows, graph.op_names, found.step_time_s, most_bars)


def _merged(
    row: NDArray[np.integer],
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    kind: NDArray[np.int8],
    who: NDArray[np.int64],
    rows: tuple[str, ...],
    op_names: Sequence[str],
    step_s: float,
    most_bars: int,
) -> Bars:
    """Bars that begin in the same small part of the step, in one row, as one."""
    columns = max(most_bars // max(len(rows), 1), 1)
    column = np.minimum((start_s / max(step_s, 1e-300) * columns).astype(np.int64), columns - 1)
    key = row.astype(np.int64) * columns + column
    order = np.lexsort((end_s - start_s, key))  # the longest of each last
    _, first, count = np.unique(key[order], return_index=True, return_counts=True)
    last = order[first + count - 1]
    begin_s = np.minimum.reduceat(start_s[order], first)
    finish_s = np.maximum.reduceat(end_s[order], first)
    used_s = np.add.reduceat((end_s - start_s)[order], first)
    names = [
        op_names[w] if n == 1 else f"{op_names[w]} and {n - 1:,} more"
        for w, n in zip(who[last].tolist(), count.tolist(), strict=True)
    ]
    share = np.minimum(used_s / np.maximum(finish_s - begin_s, 1e-300), 1.0)
    return Bars(row[last].astype(np.int32), begin_s, finish_s, kind[last], share, names, rows)


def memory_lines(found: Explanation) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """For each device ``(seconds, bytes in use from then on)``, the peaks of what is too much to show kept."""
    lines = []
    for times_s, used in zip(found.trace.memory_time_s, found.trace.memory_bytes, strict=True):
        if len(times_s) > MOST_POINTS:
            first = np.linspace(0, len(times_s), MOST_POINTS, endpoint=False).astype(np.int64)
            times_s, used = times_s[first], np.maximum.reduceat(used, first)
        lines.append((np.append(times_s, found.step_time_s), np.append(used, used[-1])))
    return lines
