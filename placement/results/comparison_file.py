"""The comparison as files: `comparison.json`, which is also what a comparison that was killed goes on from, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.constraints import Constraints
from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.reading import decode_json, exists, read_file
from placement.placers.base import DEFAULT_OPTIONS, Budget, Granularity, SearchOptions, StartAt
from placement.results.comparison import Comparison, Row
from placement.results.placement_file import Size

_REMEDY = "start anew with --restart, or give another file"


class RowRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row as files hold it: `Row` without the placement, its arrays by device name."""

    placer: str
    step_time_s: float | None
    feasible: bool
    peak_memory_bytes: dict[str, Size] | None
    busy_share: dict[str, float] | None
    search_s: float
    evaluations: Size
    note: str


class ComparisonRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of `comparison.json`.

    Attributes:
        graph: Its name.
        graph_sha256: Its digest.
        cluster: Its name.
        cluster_sha256: Its digest.
        schedule: The simulator's.
        groups: Co-location groups that were placed.
        seed: That every placer was given.
        time_limit_s: Seconds that each placer might spend; None where these did not limit it.
        evaluations: Placements that each might evaluate; None where these did not limit it.
        granularity: What the searches moved, see `placement.placers.base.SearchOptions`.
        start: Where they started.
        constraints: Pins, forbidden devices and reserved memory, as they were given.
        lower_bound_s: Seconds that no placement can beat.
        rows: One for each finished placer; one for each device for `single_device`.
    """

    format: Literal["device-placement-comparison"] = "device-placement-comparison"
    version: Literal[1] = 1
    graph: str
    graph_sha256: str
    cluster: str
    cluster_sha256: str
    schedule: str
    groups: Size
    seed: Size
    time_limit_s: float | None
    evaluations: Size | None
    lower_bound_s: float
    rows: tuple[RowRecord, ...]
    granularity: Granularity = "group"
    start: StartAt = "heuristics"
    constraints: Constraints = Constraints()


_RECORD = msgspec.json.Decoder(ComparisonRecord)


def make_record(comparison: Comparison) -> ComparisonRecord:
    """What a comparison's file holds."""
    problem = comparison.problem
    return ComparisonRecord(
        graph=problem.graph.name,
        graph_sha256=problem.graph.sha256,
        cluster=problem.cluster.name,
        cluster_sha256=problem.cluster.sha256,
        schedule=problem.schedule,
        groups=problem.num_groups,
        seed=comparison.seed,
        time_limit_s=comparison.budget.time_limit_s,
        evaluations=comparison.budget.evaluations,
        lower_bound_s=comparison.lower_bound_s,
        rows=tuple(_row_record(problem.cluster.device_names, row) for row in comparison.rows),
        granularity=comparison.options.granularity,
        start=comparison.options.start,
        constraints=problem.constraints,
    )


def rows_of(record: ComparisonRecord, problem: PlacementProblem) -> tuple[Row, ...]:
    """The rows of a record of this problem; they carry no placement.

    Raises:
        InputError: A row does not name the cluster's devices, or has one of its two figures for them alone.
    """
    names = problem.cluster.device_names
    for row in record.rows:
        if (row.peak_memory_bytes is None) != (row.busy_share is None):
            lacks = "busy_share" if row.busy_share is None else "peak_memory_bytes"
            raise InputError(f"the row of '{row.placer}' has no {lacks}")
        for by_device in (row.peak_memory_bytes, row.busy_share):
            if by_device is not None and set(by_device) != set(names):
                raise InputError(f"the row of '{row.placer}' does not name the devices of cluster '{record.cluster}'")
    return tuple(
        Row(
            row.placer,
            row.step_time_s,
            row.feasible,
            _by_index(row.peak_memory_bytes, names, np.int64),
            _by_index(row.busy_share, names, np.float64),
            None,
            row.search_s,
            row.evaluations,
            row.note,
        )
        for row in record.rows
    )


def encode_comparison(comparison: Comparison) -> bytes:
    """The bytes of a `comparison.json`."""
    return msgspec.json.format(msgspec.json.encode(make_record(comparison), order="sorted"), indent=2) + b"\n"


def read_record(path: Path, *, remedy: str = _REMEDY) -> ComparisonRecord:
    """Read a `comparison.json`.

    Args:
        path: The file.
        remedy: What a user is told to do where it is none.

    Raises:
        InputError: It cannot be read or is not one.
    """
    try:
        return decode_json(read_file(path, "comparison"), _RECORD)
    except msgspec.DecodeError as error:
        raise InputError(f"'{path}' is not a comparison ({error}); {remedy}") from error


def read_finished(
    path: Path, problem: PlacementProblem, *, seed: int, budget: Budget, options: SearchOptions = DEFAULT_OPTIONS
) -> tuple[Row, ...]:
    """The rows that an earlier comparison of the same settings left in a file; none where there is no file.

    Raises:
        InputError: The file is no comparison, or one with other settings; the message says which.
    """
    if not exists(path):
        return ()
    return finished_rows(read_record(path), path, problem, seed=seed, budget=budget, options=options)


def finished_rows(
    record: ComparisonRecord,
    path: Path,
    problem: PlacementProblem,
    *,
    seed: int,
    budget: Budget,
    options: SearchOptions = DEFAULT_OPTIONS,
) -> tuple[Row, ...]:
    """The rows of a record, which must be of the same settings; `path` is where it was read.

    Raises:
        InputError: It is one with other settings, or contradicts itself; the message says how.
    """
    wanted = make_record(Comparison(problem, seed, 0.0, (), budget, options))
    for field, shown in (
        ("graph_sha256", "graph"),
        ("constraints", "constraints"),  # before the cluster, whose digest holds what is reserved
        ("cluster_sha256", "cluster"),
        ("schedule", "schedule"),
        ("groups", "groups"),
        ("seed", "seed"),
        ("time_limit_s", "time_limit_s"),
        ("evaluations", "evaluations"),
        ("granularity", "granularity"),
        ("start", "start"),
    ):
        was, now = getattr(record, field), getattr(wanted, field)
        if was != now:
            same_name = getattr(record, shown) == getattr(wanted, shown)
            differs = (
                f"{shown} '{getattr(record, shown)}' was another then"
                if same_name
                else f"{shown} was {getattr(record, shown)} and is {getattr(wanted, shown)} now"
            )
            raise InputError(f"'{path}' holds a comparison with other settings: {differs}; {_REMEDY}")
    try:
        return rows_of(record, problem)
    except InputError as error:
        raise InputError(f"'{path}' contradicts itself: {error}; {_REMEDY}") from error


def encode_comparison_csv(comparison: Comparison) -> bytes:
    """The rows as CSV, fastest first, with their ratios; two columns a device, for its peak memory and busy share."""
    names = comparison.problem.cluster.device_names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("placer", "step_time_s", "feasible", "ratio_to_best", "ratio_to_one_device", "ratio_to_lower_bound"),
            *(f"peak_memory_bytes:{name}" for name in names),
            *(f"busy_share:{name}" for name in names),
            *("search_s", "evaluations", "note"),
        ]
    )
    for row in comparison.ranked():
        record = _row_record(names, row)
        peaks, shares = record.peak_memory_bytes or {}, record.busy_share or {}
        writer.writerow(
            [
                *(row.placer, row.step_time_s, row.feasible, *comparison.ratios(row)),
                *(peaks.get(name) for name in names),
                *(shares.get(name) for name in names),
                *(row.search_s, row.evaluations, row.note),
            ]
        )
    return text.getvalue().encode()


def _row_record(names: tuple[str, ...], row: Row) -> RowRecord:
    peaks, shares = row.peak_memory_bytes, row.busy_share
    return RowRecord(
        row.placer,
        row.step_time_s,
        row.feasible,
        None if peaks is None else dict(zip(names, peaks.tolist(), strict=True)),
        None if shares is None else dict(zip(names, shares.tolist(), strict=True)),
        row.search_s,
        row.evaluations,
        row.note,
    )


def _by_index(values: Mapping[str, Any] | None, names: tuple[str, ...], kind: type) -> NDArray[Any] | None:
    return None if values is None else np.array([values[name] for name in names], dtype=kind)
