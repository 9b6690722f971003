"""The charts of a page, as Bokeh figures. Only this module and `html` import Bokeh, when they are imported.

The page's own buttons and text fields work on the figures by the names that they have here.

Letters: ``N`` ops, ``G`` groups, ``D`` devices, ``R`` bars.
"""

from __future__ import annotations

import re

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d
from bokeh.plotting import figure
from bokeh.transform import linear_cmap
from numpy.typing import NDArray

from graphs.colocation.groups import Groups
from graphs.computation_graph import PHASES
from placement.placers.best import nearest_groups
from placement.results.page.content import Curve, memory_lines, timeline
from placement.results.page.treemap import nested
from placement.results.reasons.explanation import Explanation
from placement.results.reasons.sentences import why
from placement.results.trace_plot import DEVICE_COLORS, PHASE_COLORS
from placement.text import seconds, short, size

TRANSFER_COLOR = "#8a63b0"
CURVE_COLORS = {"best": "#3a923a", "mean": "#8c8c8c", "greedy": "#e1812c"}

_TOOLS = "xpan,xwheel_zoom,xbox_zoom,reset"
_LABEL_CHARACTERS = 55.0
"""Characters that fit in a unit of the treemap's width, at 12 pixels."""

_MUCH = 0.4
"""Share of a memory from which its limit is shown; below it the lines would lie on each other."""

_MANY_FAMILIES = 40
_TO_FIRST_NUMBER = re.compile(r".*?\.\d+(?=\.|\+|$)")

_NAME = 80
"""Characters of a name; of longer ones the middle is left out."""


def device_color(device: int) -> str:
    """The colour of a device, the same in all charts."""
    return DEVICE_COLORS[device % len(DEVICE_COLORS)]


def kind_colors() -> list[str]:
    """The colours of the phases, then that of transfers."""
    return [*(PHASE_COLORS[phase] for phase in PHASES), TRANSFER_COLOR]


def timeline_figure(found: Explanation, x_range: Range1d) -> figure:
    """What each device and each busy link does when."""
    bars = timeline(found)
    source = ColumnDataSource(
        {
            "row": (len(bars.rows) - 1 - bars.row).astype(np.float32),
            "left": (bars.start_s * 1e3).astype(np.float32),
            "right": (bars.end_s * 1e3).astype(np.float32),
            "kind": bars.kind.astype(np.uint8),
            "alpha": (0.35 + 0.65 * bars.share).astype(np.float32),
            "share": bars.share.astype(np.float32),
            "name": [short(name, _NAME) for name in bars.names],
        },
        name="timeline_data",
    )
    made = _figure("timeline", height=44 + 30 * len(bars.rows), x_range=x_range, tools=_TOOLS)
    colors = kind_colors()
    fill = linear_cmap("kind", colors, -0.5, len(colors) - 0.5)
    made.hbar("row", 0.8, left="left", right="right", source=source, fill_color=fill, line_color=None, alpha="alpha")
    made.add_tools(HoverTool(tooltips=[("", "@name"), ("ms", "@left{0.000} to @right{0.000}")]))
    made.yaxis.ticker = list(range(len(bars.rows)))
    made.yaxis.major_label_overrides = {len(bars.rows) - 1 - i: short(row, 24) for i, row in enumerate(bars.rows)}
    made.y_range = Range1d(-0.6, len(bars.rows) - 0.4)
    made.ygrid.visible = False
    made.xaxis.axis_label = "ms"
    return made


def memory_figure(found: Explanation, x_range: Range1d) -> figure:
    """How much of its memory each device uses when."""
    made = _figure("memory", height=230, x_range=x_range, tools=_TOOLS)
    limits = found.problem.cluster.memory_bytes
    names = found.problem.cluster.device_names
    lines = memory_lines(found)
    for d, (times_s, used) in enumerate(lines):
        data = {
            "ms": (times_s * 1e3).astype(np.float32),
            "share": (used / max(int(limits[d]), 1)).astype(np.float32),
            "gb": (used / 1e9).astype(np.float32),
        }
        line = made.step(
            "ms", "share", source=ColumnDataSource(data), mode="after", color=device_color(d), line_width=2
        )
        made.add_tools(
            HoverTool(renderers=[line], tooltips=[(names[d], "@gb{0.00} GB, @share{0%}"), ("ms", "@ms{0.000}")])
        )
    made.line([0, found.step_time_s * 1e3], [1, 1], color="#c44e52", line_dash="dashed")
    most = max((float(used.max()) / max(int(limit), 1) for (_, used), limit in zip(lines, limits, strict=True)))
    made.y_range = Range1d(0, 1.1 * max(most, 1.0 if most > _MUCH else 0.01))
    made.yaxis.formatter = NumeralTickFormatter(format="0.[0]%")
    made.yaxis.axis_label = "of its memory"
    made.xaxis.axis_label = "ms"
    return made


def treemap_figure(found: Explanation) -> figure:
    """The groups within their modules, as large as their work and memory, in the colours of their devices."""
    problem, groups = found.problem, found.problem.groups
    device = np.where(found.moves.home >= 0, found.moves.home, nearest_groups(problem, found.op_placement))
    time_s = problem.group_time_s[np.arange(problem.num_groups), device]
    held = problem.group_resident_bytes.astype(np.float64)
    weight = time_s / max(time_s.sum(), 1e-300) + held / max(held.sum(), 1.0)
    weight += max(weight.sum(), 1e-300) * 1e-4
    parent, parent_names = parents(groups)
    inner, outer = nested(weight, parent, width=2.4)
    names = problem.cluster.device_names
    source = ColumnDataSource(
        {
            **_sides(inner),
            "color": [device_color(int(d)) for d in device],
            "alpha": np.full(problem.num_groups, 0.85, dtype=np.float32),
            "name": [short(name, _NAME) for name in groups.names],
            "device": [names[d] if h >= 0 else "several" for d, h in zip(device, found.moves.home, strict=True)],
            "time": [seconds(float(t)) for t in time_s],
            "memory": [size(float(b)) for b in held],
            "why": [why(found, g) for g in range(problem.num_groups)],
        },
        name="treemap_data",
    )
    made = _figure("treemap", height=420, tools="pan,wheel_zoom,box_zoom,reset")
    made.quad(source=source, fill_color="color", line_color="white", line_width=0.5, fill_alpha="alpha", **_columns())
    made.quad(source=ColumnDataSource(_sides(outer)), fill_color=None, line_color="#222222", **_columns())
    tips = [("", "@name"), ("device", "@device"), ("computes", "@time"), ("resident", "@memory"), ("why", "@why")]
    made.add_tools(HoverTool(renderers=[made.renderers[0]], tooltips=tips))
    big = np.flatnonzero((outer[:, 2] - outer[:, 0] > 0.12) & (outer[:, 3] - outer[:, 1] > 0.06))
    made.text(
        x=outer[big, 0] + 0.008,
        y=outer[big, 3] - 0.01,
        text=[_label(parent_names[i] or "the model", outer[i, 2] - outer[i, 0]) for i in big.tolist()],
        text_baseline="top",
        text_font_size="12px",
        text_font_style="bold",
        text_color="#111111",
        name="treemap_labels",
    )
    made.axis.visible = False
    made.grid.visible = False
    made.x_range = Range1d(0, 2.4)
    made.y_range = Range1d(0, 1)
    return made


def parents(groups: Groups) -> tuple[NDArray[np.int64], list[str]]:
    """``int64[G]`` and names: what groups are drawn within: their families, or the layers of these where they are many.

    The layer of ``model.layers.3.mlp.up`` is ``model.layers.3``: the path up to its first number.
    """
    names = list(groups.family_names)
    if len(names) > _MANY_FAMILIES:
        names = [match[0] if (match := _TO_FIRST_NUMBER.match(name)) else name for name in names]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([number[names[family]] for family in groups.family.tolist()], dtype=np.int64), list(number)


def curve_figure(curve: Curve, others_s: dict[str, float]) -> figure:
    """Step times over the updates, and other step times as lines across."""
    made = _figure("curve", height=260, tools=_TOOLS)
    for name, values in curve.values.items():
        known = np.isfinite(values)
        data = {"update": curve.update[known].astype(np.float32), "ms": (values[known] * 1e3).astype(np.float32)}
        line = made.line(
            "update", "ms", source=ColumnDataSource(data), color=CURVE_COLORS[name], line_width=2, legend_label=name
        )
        made.add_tools(HoverTool(renderers=[line], tooltips=[(name, "@ms{0.000} ms"), ("update", "@update{0}")]))
    ends = [float(curve.update.min(initial=0)), float(curve.update.max(initial=1))]
    for (name, value), dash in zip(others_s.items(), ("dashed", "dotted", "dotdash"), strict=False):
        made.line(ends, [value * 1e3] * 2, color="#4c72b0", line_dash=dash, legend_label=name)
    made.xaxis.axis_label = "update"
    made.yaxis.axis_label = "ms"
    if made.legend:
        made.legend.background_fill_alpha = 0.6
        made.legend.click_policy = "hide"
    return made


def _figure(name: str, *, height: int, tools: str, x_range: Range1d | None = None) -> figure:
    given = {} if x_range is None else {"x_range": x_range}
    made = figure(
        name=name,
        height=height,
        sizing_mode="stretch_width",
        tools=tools,
        toolbar_location="above",
        background_fill_color=None,
        border_fill_color=None,
        **given,
    )
    made.toolbar.logo = None
    return made


def _label(name: str, width: float) -> str:
    """As much of a name as fits where the page is as wide as a laptop's screen; its end tells most."""
    most = max(int(width * _LABEL_CHARACTERS), 3)
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _sides(rectangles: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(("left", "bottom", "right", "top"), rectangles.T.astype(np.float32), strict=True))


def _columns() -> dict[str, str]:
    return {side: side for side in ("left", "bottom", "right", "top")}
