"""The comparison as a picture: a bar of the step time for each placer, the lower bound and the best single device."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from graphs.extras import check_plots
from placement.cli.report import merge_like_devices, outcome
from placement.registry import PLACERS
from placement.results.comparison import Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib comes with the extra `plots`: what draws imports it inside its function.

_LONGEST = 3.0
"""Bars are cut at this many times the best step time."""

_COLOURS = {"learns": "#2a9d55", "searches": "#4c78a8", "answers at once": "#9fb3c8", "does not fit": "#e3e6ea"}
"""By what a placer is."""


def comparison_png(comparison: Comparison) -> bytes:
    """A PNG of the rows, fastest on top; those that do not fit are pale, those without a placement left out.

    Raises:
        NotServedError: Matplotlib is not installed.
    """
    check_plots("a picture of a comparison")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    problem = comparison.problem
    rows = [(label, row) for label, row in merge_like_devices(comparison) if row.step_time_s is not None]
    figure = Figure(figsize=(9, 1.7 + 0.27 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    kinds = [_kind(row) for _, row in rows]
    times_s = [row.step_time_s or 0.0 for _, row in rows]
    # A row that is many times slower than the best would leave no room for the others: its bar is cut.
    best_s = comparison.best.step_time_s if comparison.best is not None else None
    limit_s = min(max(times_s, default=1.0), _LONGEST * (best_s or min(times_s, default=1.0)))
    named_s = best_s or limit_s  # the axis has the unit in which the best row's time is written
    scale, unit = (1.0, "s") if named_s >= 1 else (1e3, "ms") if named_s >= 1e-3 else (1e6, "us")
    axes.barh(
        range(len(rows)),
        [min(time_s, limit_s) * scale for time_s in times_s],
        color=[_COLOURS[kind] for kind in kinds],
        height=0.72,
        zorder=2,
    )
    for y, (_, row) in enumerate(rows):
        _label_bar(axes, y, comparison, row, limit_s, scale)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, limit_s * scale * 1.22)
    lines = [
        axes.axvline(comparison.lower_bound_s * scale, color="#c44", linewidth=1.2, zorder=2.5, label="lower bound")
    ]
    single_s = comparison.best_single_device_s
    if single_s is not None and single_s <= limit_s:
        line = axes.axvline(single_s * scale, color="#555", linewidth=1, linestyle="--", zorder=0.5)
        line.set_label("best single device")
        lines.append(line)
    patches = [Patch(color=colour, label=kind) for kind, colour in _COLOURS.items() if kind in kinds]
    handles = [*patches, *lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    axes.set_xlabel(f"simulated step time, {unit} (schedule {problem.schedule}); at the bars' ends: times the best")
    axes.set_title(f"{problem.graph.name} on {problem.cluster.name}", loc="left", fontweight="bold")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, metadata={"Software": None})
    return picture.getvalue()


def _kind(row: Row) -> str:
    info = PLACERS.get(row.placer.partition(":")[0])
    if not row.feasible:
        return "does not fit"
    if info is None:
        return "answers at once"
    return "learns" if info.learns else "searches" if info.searches else "answers at once"


def _label_bar(axes: Axes, y: int, comparison: Comparison, row: Row, limit_s: float, scale: float) -> None:
    time_s = row.step_time_s or 0.0
    to_best = comparison.ratios(row)[0]
    said = outcome(comparison, row) + ("" if to_best is None else f"  {to_best:.2f} x")
    axes.annotate(
        f"» {said}" if time_s > limit_s else said,
        (min(time_s, limit_s) * scale, y),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        fontweight="bold" if row is comparison.best else "normal",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},  # the lines do not run through the figures
        zorder=4,
    )
