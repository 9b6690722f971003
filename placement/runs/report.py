"""The page that a run leaves: its placement with reasons, the comparison, the learning curve, and the commands."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from graphs.files import write_atomically
from placement.results.comparison import Comparison
from placement.results.comparison_file import read_record, rows_of
from placement.results.page.content import MOST_POINTS, Curve, PageContent
from placement.results.page.html import make_page
from placement.results.reasons.explanation import Explanation
from placement.runs import directory
from placement.runs.directory import RunConfig

_MOST_EVENT_BYTES = 2**24
"""Bytes of TensorBoard's events that are read for a learning curve, about a second's reading."""


def write_report(run_dir: Path, explanation: Explanation, *, out: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        run_dir: The run.
        explanation: Of its placement.
        out: The file; by default `report.html` in the run's directory.

    Raises:
        InputError: A file of the run is damaged, or the page cannot be written.
        NotServedError: Bokeh is not installed.
    """
    config = directory.read_config(run_dir)
    comparison = None
    path = run_dir / directory.COMPARISON
    if path.exists():
        record = read_record(path, remedy="delete it")
        rows = rows_of(record, explanation.problem)
        comparison = Comparison(explanation.problem, record.seed, record.lower_bound_s, rows)
    commands = (train_command(config), f"placement explain {shlex.quote(str(run_dir))}")
    content = PageContent(explanation, comparison, learning_curve(run_dir), commands)
    out = out or run_dir / directory.REPORT
    write_atomically(out, make_page(content))
    return out


def train_command(config: RunConfig) -> str:
    """The command line that a run was made by; of one that Python made, one that would make it of the same names."""
    words = ["placement", "train", config.graph, "--cluster", config.cluster]
    for option, value, default in (
        ("--schedule", config.schedule, "priority"),
        ("--groups", config.groups, 256),
        ("--preset", config.preset, "default"),
        ("--updates", config.updates, None),
        ("--time-limit-s", config.time_limit_s, None),
    ):
        if value != default:
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    words += ["--seed", str(config.seed)]
    for option in ("pin", "forbid", "reserve"):
        for text in getattr(config.constraints, option):
            words += [f"--{option}", text]
    if config.start_file is not None:
        words += ["--start", config.start_file]
    return shlex.join(words)


def learning_curve(run_dir: Path) -> Curve | None:
    """How a run's learning went, from TensorBoard's events; None where it has none, or too many to read quickly."""
    files = list(run_dir.glob("events.out.tfevents.*"))
    if not files or sum(file.stat().st_size for file in files) > _MOST_EVENT_BYTES:
        return None
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

    events = EventAccumulator(str(run_dir), size_guidance={SCALARS: MOST_POINTS, IMAGES: 1})
    events.Reload()
    known = set(events.Tags()[SCALARS])
    found = {
        name: {event.step: event.value for event in events.Scalars(tag)}
        for name, tag in (("best", "step_time/best_s"), ("mean", "step_time/mean_s"), ("greedy", "step_time/greedy_s"))
        if tag in known
    }
    updates = sorted(set().union(*found.values())) if found else []
    if not updates:
        return None
    values = {
        name: np.array([by_update.get(update, np.nan) for update in updates]) for name, by_update in found.items()
    }
    return Curve(np.array(updates, dtype=np.float64), values)
