"""The comparison as a picture: a bar of the step time for each placer, and the lower bound as a line."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from placement.comparison import Comparison
from placement.report import merge_like_devices
from placement.text import seconds

_LONGEST = 3.0
"""Bars are cut at this many times the best step time."""


def comparison_png(comparison: Comparison) -> bytes:
    """A PNG of the rows, fastest on top; those that do not fit are pale, those without a placement left out."""
    problem = comparison.problem
    rows = [(label, row) for label, row in merge_like_devices(comparison) if row.step_time_s is not None]
    labels = [label if row.feasible else f"{label} (does not fit)" for label, row in rows]
    times_s = [row.step_time_s or 0.0 for _, row in rows]
    figure = Figure(figsize=(9, 1.4 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ["#2a9d55" if row is comparison.best else "#4c78a8" if row.feasible else "#d5d9df" for _, row in rows]
    axes.barh(labels, [time_s * 1e3 for time_s in times_s], color=colours)
    # A row that is many times slower than the best would leave no room for the others: its bar is cut.
    limit_s = min(max(times_s, default=1.0), _LONGEST * min(times_s, default=1.0))
    for y, time_s in enumerate(times_s):
        cut = " »" if time_s > limit_s else ""
        axes.text(min(time_s, limit_s) * 1e3, y, f" {seconds(time_s, digits=4)}{cut}", va="center", fontsize=8)
    axes.set_xlim(0, limit_s * 1e3 * 1.15)
    axes.axvline(comparison.lower_bound_s * 1e3, color="#c44", linewidth=1, label="lower bound")
    axes.invert_yaxis()
    axes.set_xlabel(f"step time in ms, simulated, schedule {problem.schedule}")
    axes.set_title(f"{problem.graph.name} on {problem.cluster.name}", loc="left")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, metadata={"Software": None})
    return picture.getvalue()
