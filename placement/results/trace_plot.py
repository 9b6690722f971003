"""A picture of a trace: what each device and each link did when, and the memory in use.

A step has thousands of ops and a picture a thousand columns, so bars of ops would overlap into mud. Instead each column
of a device's row shows how much of its short time span went to which phase: its colour is the mean of the phases'
colours and of the blank of idling, weighted by time. A row that looks half as dark was half as busy.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster
from envs.simulator.trace import Trace
from envs.simulator.trace_file import direction_name
from graphs.computation_graph import PHASES, ComputationGraph
from graphs.extras import check_plots, is_installed
from graphs.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib comes with the extra `plots`: what draws imports it inside its function.

PHASE_COLORS = {"forward": "#3b76af", "backward": "#e1812c", "update": "#3a923a"}
"""Colours of phases that people with any kind of colour vision can tell apart in this order of darkness."""

_PHASE_RGB = np.array([[int(PHASE_COLORS[p][i : i + 2], 16) for i in (1, 3, 5)] for p in PHASES]) / 255.0
_IDLE_RGB = np.array([0.955, 0.955, 0.955])
DEVICE_COLORS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974")
"""Colours of devices, in their order and then again."""

_COLUMNS = 1400
_MOST_LINKS = 12
_FAINTEST = 0.35


def plot_trace(trace: Trace, graph: ComputationGraph, cluster: Cluster, *, title: str = "") -> Figure:
    """Draw a trace.

    Args:
        trace: What to draw.
        graph: The graph that was simulated.
        cluster: The cluster that it was simulated on.
        title: First line of the picture; by default the graph's and the cluster's names.

    Raises:
        NotServedError: Matplotlib is not installed.
    """
    check_plots("a picture of a trace")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    directions, link_rows, link_busy = _link_rows(trace, graph, cluster)
    shown = sorted(np.argsort(-link_busy, kind="stable")[:_MOST_LINKS].tolist())
    heights = [0.34 * cluster.num_devices + 0.1, 0.2 * max(len(shown), 1) + 0.1, 1.7]
    figure = Figure(figsize=(12.8, sum(heights) + 1.8), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    devices, links, memory = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": heights})
    scale, unit = _time_unit(trace.step_time_s)
    end = max(trace.step_time_s, 1e-12) * scale

    phase = graph.phase.astype(int)
    rows = [
        _shares(trace, trace.op_start_s, trace.op_end_s, phase, trace.op_device == d) for d in range(trace.num_devices)
    ]
    share = trace.busy_s() / max(trace.step_time_s, 1e-300)
    _draw_rows(devices, rows, list(cluster.device_names), [f"{s:.0%}" for s in share], end)
    _draw_rows(
        links,
        [link_rows[i] for i in shown],
        [direction_name(cluster, directions[i]) for i in shown],
        [f"{link_busy[i]:.0%}" for i in shown],
        end,
    )
    hidden = len(directions) - len(shown)
    devices.set_title("devices: computing, and share of the step", loc="left", fontsize=9, color="#444444")
    links.set_title(
        "links: sending, by the phase of the tensor's producer"
        + (f" (the {len(shown)} busiest; {hidden} more are not shown)" if hidden else "")
        + ("" if directions else ": nothing is sent"),
        loc="left",
        fontsize=9,
        color="#444444",
    )
    _draw_memory(memory, trace, cluster, scale)
    memory.set_xlim(0, end)
    memory.set_xlabel(f"time since the start of the step, {unit}", fontsize=9)

    heading = f"{title or f'{graph.name} on {cluster.name}'}:  step time {trace.step_time_s * scale:.4g} {unit}"
    top = 1.0 - 0.12 / figure.get_figheight()
    figure.text(0.012, top, heading, va="top", fontsize=12, fontweight="bold")
    handles = [Patch(color=PHASE_COLORS[p], label=p) for p in PHASES]
    handles.append(Patch(facecolor=tuple(_IDLE_RGB), edgecolor="#cccccc", label="idle"))
    figure.legend(
        handles=handles, loc="upper right", ncols=4, frameon=False, fontsize=9, bbox_to_anchor=(0.99, top + 0.005)
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    return figure


def trace_png(trace: Trace, graph: ComputationGraph, cluster: Cluster, *, title: str = "") -> bytes:
    """The picture of `plot_trace` as a PNG file's bytes."""
    buffer = io.BytesIO()
    # Without the version of matplotlib in the file, equal traces give equal bytes under equal libraries.
    plot_trace(trace, graph, cluster, title=title).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_trace_png(
    path: str | os.PathLike[str], trace: Trace, graph: ComputationGraph, cluster: Cluster, *, title: str = ""
) -> None:
    """Write the picture of `plot_trace`, at once or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    write_atomically(path, trace_png(trace, graph, cluster, title=title))


def load_drawing() -> None:
    """Load Matplotlib, where it is installed, so that the first picture does not take a second for that."""
    if is_installed("matplotlib"):
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401


def trace_image(trace: Trace, graph: ComputationGraph, cluster: Cluster, *, title: str = "") -> NDArray[np.uint8]:
    """The picture of `plot_trace` as pixels, ``uint8[height, width, 3]``, as TensorBoard's ``add_image`` takes it."""
    figure = plot_trace(trace, graph, cluster, title=title)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _time_unit(step_time_s: float) -> tuple[float, str]:
    if step_time_s >= 1:
        return 1.0, "s"
    return (1e3, "ms") if step_time_s >= 1e-3 else (1e6, "us")


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _shares(
    trace: Trace,
    start_s: NDArray[np.float64],
    end_s: NDArray[np.float64],
    phase: NDArray[np.int64],
    chosen: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """``float64[phases, columns]``: the share of each column's time span in which an interval of each phase runs."""
    width_s = max(trace.step_time_s, 1e-300) / _COLUMNS
    shares = np.zeros((len(PHASES), _COLUMNS))
    for p in range(len(PHASES)):
        of_phase = chosen & (phase == p)
        # Work done up to each column's edge, from intervals that do not overlap; its differences are the shares.
        starts, ends = np.sort(start_s[of_phase]), np.sort(end_s[of_phase])
        edges = np.linspace(0.0, width_s * _COLUMNS, _COLUMNS + 1)
        shares[p] = np.diff(_total_before(ends, edges) - _total_before(starts, edges)) / width_s
    return np.clip(shares, 0.0, 1.0)


def _total_before(times_s: NDArray[np.float64], edges_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over sorted `times_s` of ``min(time, edge)``, for each edge."""
    count = np.searchsorted(times_s, edges_s)
    sums: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(times_s)])
    total: NDArray[np.float64] = sums[count] + (len(times_s) - count) * edges_s
    return total


def _link_rows(
    trace: Trace, graph: ComputationGraph, cluster: Cluster
) -> tuple[list[int], list[NDArray[np.float64]], NDArray[np.float64]]:
    """The link directions that are used, the shares of each, and for which share of the step each is busy."""
    uses = trace.transfer_directions(cluster)
    number = np.repeat(np.arange(len(uses)), [len(u) for u in uses]) if uses else np.zeros(0, dtype=np.int64)
    direction = np.concatenate(uses) if uses else np.zeros(0, dtype=np.int64)
    phase = graph.phase[graph.tensor_producer[trace.transfer_tensor]].astype(int)
    start_s, end_s = trace.transfer_start_s, trace.transfer_end_s
    directions = np.unique(direction).tolist()
    rows, busy = [], []
    for d in directions:
        chosen = np.zeros(trace.num_transfers, dtype=np.bool_)
        chosen[number[direction == d]] = True
        shares = _shares(trace, start_s, end_s, phase, chosen)
        # Most transfers are far shorter than a column; what was sent at all must be seen.
        rows.append(np.where(shares > 0, np.maximum(shares, _FAINTEST), 0.0))
        busy.append(float((end_s - start_s)[chosen].sum()) / max(trace.step_time_s, 1e-300))
    return directions, rows, np.array(busy)


def _draw_rows(axes: Axes, rows: list[NDArray[np.float64]], names: list[str], notes: list[str], end: float) -> None:
    """Rows of shares as bands of colour, the first on top, with a name on the left and a note on the right."""
    for i, shares in enumerate(rows):
        idle = np.clip(1.0 - shares.sum(axis=0), 0.0, 1.0)
        pixels = shares.T @ _PHASE_RGB + idle[:, None] * _IDLE_RGB  # [columns, 3]
        axes.imshow(
            np.clip(pixels, 0, 1)[None],
            extent=(0.0, end, i + 0.42, i - 0.42),
            aspect="auto",
            interpolation="nearest",
        )
        axes.annotate(
            notes[i], (1.006, i), xycoords=("axes fraction", "data"), va="center", fontsize=8, color="#444444"
        )
    axes.set_ylim(len(rows) - 0.5 if rows else 0.5, -0.5)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.tick_params(length=0, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_memory(axes: Axes, trace: Trace, cluster: Cluster, scale: float) -> None:
    """Memory in use on each device over time, as a share of what it has."""
    end_s = trace.step_time_s
    highest = 0.0
    for d, name in enumerate(cluster.device_names):
        have = max(float(cluster.memory_bytes[d]), 1.0)
        times = np.append(trace.memory_time_s[d], end_s) * scale
        used = np.append(trace.memory_bytes[d], trace.memory_bytes[d][-1]) / have * 100.0
        highest = max(highest, float(used.max()))
        label = f"{name}  peak {_size(int(trace.peak_memory_bytes[d]))} of {_size(int(cluster.memory_bytes[d]))}"
        color = DEVICE_COLORS[d % len(DEVICE_COLORS)]
        axes.step(times, used, where="post", color=color, linewidth=1.1, label=label)
    if highest > 60.0:
        axes.axhline(100.0, color="#b22222", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_ylim(0, max(highest, 100.0) * 1.08)
    else:
        axes.set_ylim(0, max(highest, 1e-3) * 1.15)
    axes.set_title("memory in use, % of each device's", loc="left", fontsize=9, color="#444444")
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    columns = min(max(cluster.num_devices, 1), 5)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.36), ncols=columns, fontsize=8, frameon=False, handlelength=1.4
    )
