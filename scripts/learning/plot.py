"""Learning curves of `scripts/benchmark_learning.py`: the best so far against seconds and against evaluations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from scripts.learning.rows import LEARNED, Curve

COLOURS = {
    "reinforce": "#2a9d55",
    "reinforce_uniform": "#e07b39",
    "reinforce_paper": "#8c6bb1",
    "annealing": "#4c78a8",
    "annealing_ops": "#1f2f5c",
    "local_search": "#72b7b2",
    "local_search_ops": "#2f6d69",
    "genetic": "#b279a2",
    "cross_entropy": "#9d755d",
    "heuristics": "#999999",
}
_OTHER_COLOURS = ("#d62728", "#17becf", "#bcbd22", "#e377c2")


def plot_curves(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """A picture for each cell, of the budget of seconds (else of evaluations) that most runs had, or the largest."""
    folder.mkdir(parents=True, exist_ok=True)
    cells: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in curves:
        cells[curve.graph, curve.cluster].append(curve)
    written = []
    for (graph, cluster), mine in cells.items():
        runs = Counter((curve.budget_s or 0.0, curve.budget_evaluations or 0) for curve in mine)
        budget = max(runs, key=lambda budget: (budget[0] > 0, runs[budget], budget))
        drawn = [c for c in mine if (c.budget_s or 0.0, c.budget_evaluations or 0) == budget]
        name = "-".join(["learning", *(_file_name(part) for part in (graph, cluster))])
        limit = f"{budget[0]:g} s" if budget[0] else f"{budget[1]:,} evaluations"
        path = folder / f"{name}.png"
        _draw(drawn, f"{graph} on {cluster}", limit, path)
        written.append(path)
    return written


def _draw(curves: Sequence[Curve], title: str, limit: str, path: Path) -> None:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(curve.placer for curve in curves))
    spare = iter(_OTHER_COLOURS * len(names))
    final_s: list[float] = []
    for name in sorted(names, key=lambda name: (name == LEARNED, name)):  # the learned placer on top
        mine = [curve for curve in curves if curve.placer == name]
        colour = COLOURS.get(name) or next(spare)
        for column, axes in enumerate(panels):
            grid, band = _band(mine, column, value=2)
            if not len(grid):
                continue
            final_s.append(float(band[1, -1]))
            if len(mine[0].points) == 1:  # it answers at once, and is where the others start
                axes.axhline(band[1, -1], color=colour, linewidth=1.2, linestyle="--", label=name)
                continue
            axes.fill_between(grid, band[0], band[2], color=colour, alpha=0.15, linewidth=0, step="post")
            width = 2.2 if name == LEARNED else 1.3
            axes.plot(grid, band[1], color=colour, linewidth=width, label=name, drawstyle="steps-post")
            if name == LEARNED:
                _draw_mean(axes, mine, column, colour)
    _limit_axes(panels, final_s)
    panels[0].set(xscale="log", xlabel="seconds from the placer's start", ylabel="step time of the best so far, s")
    panels[1].set(xscale="log", xlabel="placements evaluated")
    panels[0].set_title(f"{title}, {limit}", loc="left", fontweight="bold")
    seeds = len({curve.seed for curve in curves})
    panels[1].set_title(
        f"median of {seeds} seeds, bands over all" if seeds > 1 else "one seed", loc="right", fontsize=9
    )
    _mark_unseen(panels[0])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False, fontsize=8)
    for axes in panels:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if value < 1e3 else f"{value / 1e3:g}k")
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _limit_axes(panels: Sequence[Axes], final_s: Sequence[float]) -> None:
    """From the best to where the worst placer ended, at most half more; and from when there was something to see."""
    if not final_s:
        return
    low, high = min(final_s), min(max(final_s), 1.5 * min(final_s))
    margin = max(0.1 * (high - low), 0.005 * low)
    panels[0].set_ylim(low - margin, high + 2 * margin)
    for axes in panels:
        seen = [x for line in axes.lines for x, y in _points_of(line) if y <= high + 2 * margin]
        if seen:
            axes.set_xlim(left=min(seen) * 0.9)


def _mark_unseen(axes: Axes) -> None:
    """Say in the legend which lines are above all that is shown."""
    top = axes.get_ylim()[1]
    for line in axes.lines:
        if not (np.asarray(line.get_ydata(), dtype=float) <= top).any():
            line.set_label(f"{line.get_label()} (above)")


def _points_of(line: Line2D) -> Iterable[tuple[float, float]]:
    """A curve's points; none of a line across."""
    xs, ys = (np.asarray(values, dtype=float) for values in line.get_data())
    return zip(xs, ys, strict=True) if len(xs) > 2 else ()


def _draw_mean(axes: Axes, curves: Sequence[Curve], column: int, colour: str) -> None:
    """The mean of what the policy sampled, as a thin dashed line."""
    grid, band = _band(curves, column, value=3)
    if len(grid):
        axes.plot(grid, band[1], color=colour, linewidth=0.9, linestyle=":", label="reinforce, mean of its samples")


def _band(curves: Sequence[Curve], column: int, *, value: int) -> tuple[np.ndarray, np.ndarray]:
    """``[X]`` seconds (column 0) or evaluations (column 1), and ``[3, X]``: least, median and most over the curves.

    Each curve is a staircase: between two points it has the value of the earlier one, and before its first none.
    """
    stairs = []
    for curve in curves:
        points = [(p[column], p[value]) for p in curve.points if p[value] is not None and (p[column] or 0) > 0]
        if points:
            stairs.append(np.array(points, dtype=float).T)  # [2, points]
    if not stairs:
        return np.empty(0), np.empty((3, 0))
    grid = np.geomspace(min(s[0, 0] for s in stairs), max(s[0, -1] for s in stairs), 200)
    values = np.full((len(stairs), len(grid)), np.inf)
    for i, stair in enumerate(stairs):
        at = np.searchsorted(stair[0], grid * (1 + 1e-9), side="right") - 1
        values[i, at >= 0] = stair[1, at[at >= 0]]
    there = np.isfinite(values).sum(axis=0) * 2 >= len(stairs)  # where most seeds have something to show
    band = np.stack([values.min(axis=0), np.median(values, axis=0), values.max(axis=0)])[:, there]
    band[2] = np.where(np.isfinite(band[2]), band[2], band[1])
    return grid[there], np.where(np.isfinite(band), band, np.nan)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "_" else "-" for c in text)
