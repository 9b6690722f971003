"""The verb ``what-if``: one table and one chart of a placement for each batch, number of devices and speed of links."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graphs.extras import check_plots
from graphs.files import write_atomically
from placement import scenarios
from placement.arguments import check_can_plot, check_can_write, check_positive
from placement.cli import verbs
from placement.cli.shared import chosen_cluster, make_console
from placement.scenarios import Cell, WhatIf
from placement.text import clock, seconds, short, table
from placement.workers import parse_workers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def what_if(verb: verbs.WhatIf) -> int:
    """Place each cell, show the table, and write it and the chart where asked to.

    Raises:
        InputError: Bad input; one sentence.
    """
    check_positive("--time-limit-s", verb.time_limit_s)
    check_can_write(verb.json, verb.plot)
    check_can_plot("--plot", verb.plot)
    batches = [] if verb.batch is None else scenarios.parse_numbers("--batch", verb.batch)
    devices = [] if verb.devices is None else scenarios.parse_numbers("--devices", verb.devices)
    links = scenarios.parse_factors("--links", verb.links)
    if verb.workers is not None:
        parse_workers(verb.workers)
    out, err = make_console(), make_console(stderr=True)
    cluster = chosen_cluster(verb.cluster, verb.topology)
    named = cluster if isinstance(cluster, str) else cluster.name
    out.print(Text(f"{short(verb.graph)} on {short(named)}", style="bold"))
    cells = max(1, len(batches)) * max(1, len(devices)) * len(links)
    in_all = f"{clock(cells * verb.time_limit_s)} in all" if verb.workers is None else f"on workers '{verb.workers}'"
    out.print(f"cells: {cells} x {verb.time_limit_s:g} s of search, {in_all}", style="dim")

    def show(done: WhatIf) -> None:
        cell = done.cells[-1]
        said = f"{_named(cell)}: {seconds(cell.step_time_s)}" if cell.step_time_s else f"{_named(cell)}: {cell.note}"
        err.print(f"{len(done.cells)} of {cells}  {said}", style="dim", soft_wrap=True)

    found = scenarios.what_if(
        verb.graph,
        cluster,
        batches=batches,
        devices=devices,
        links=links,
        placer=verb.placer,
        time_limit_s=verb.time_limit_s,
        schedule=verb.schedule,
        groups=verb.groups,
        seed=verb.seed,
        json=verb.json,
        restart=verb.restart,
        workers=verb.workers,
        on_cell=show,
    )
    out.print()
    out.print(what_if_report(found))
    if verb.json is not None:
        out.print(f"rows     {verb.json}", soft_wrap=True)
    if verb.plot is not None:
        write_atomically(verb.plot, what_if_png(found))
        out.print(f"picture  {verb.plot}", soft_wrap=True)
    return 0


def _named(cell: Cell) -> str:
    batch = "" if cell.batch is None else f"batch {cell.batch}, "
    return f"{batch}{cell.devices} devices, links x {cell.links:g}"


def what_if_report(found: WhatIf) -> RenderableType:
    """The cells as a table, those on the Pareto front marked, and below it why nothing fits where that is so."""
    front = found.front()
    tokens = any(cell.tokens for cell in found.cells)
    sample = "sample" if all(cell.batch is not None for cell in found.cells) else "step"
    columns = ["links", "batch", "devices", "step time", "fullest memory", f"{sample}s/s"]
    columns += [*(["tokens/s"] if tokens else []), f"device-s a {sample}"]
    made: Table = table(*columns, "front", right=columns)
    for cell in found.cells:
        line = [f"x {cell.links:g}", "-" if cell.batch is None else f"{cell.batch:,}", f"{cell.devices}"]
        rate, cost = cell.samples_per_s, cell.device_s_per_sample
        if cell.step_time_s is None or rate is None or cell.peak_memory_share is None:
            made.add_row(*line, "does not fit", *[""] * (len(columns) - 4), style="dim")
            continue
        line += [seconds(cell.step_time_s), f"{cell.peak_memory_share:.0%}", f"{rate:,.4g}"]
        line += [f"{cell.tokens / cell.step_time_s:,.4g}"] if tokens else []
        made.add_row(*line, seconds(cost), "*" if cell in front else "", style="green" if cell in front else "")
    hint = f"*: at this speed of links, no cell makes more {sample}s a second for as few device-seconds each."
    notes = {cell.note: cell for cell in found.cells if cell.note}
    return Group(
        made, "", Text(hint, style="dim"), *(Text(f"{_named(c)}: {n}", style="yellow") for n, c in notes.items())
    )


def what_if_png(found: WhatIf) -> bytes:
    """A PNG: step time, memory, throughput and device-seconds over the number of devices; the front has rings.

    Raises:
        NotServedError: Matplotlib is not installed.
    """
    check_plots("a picture of what-if")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    sample = "sample" if all(cell.batch is not None for cell in found.cells) else "step"
    values = {
        "step time, ms": lambda cell: cell.step_time_s * 1e3,
        "peak memory of the fullest device, %": lambda cell: cell.peak_memory_share * 100,
        f"{sample}s a second": lambda cell: cell.samples_per_s,
        f"device-seconds a {sample}": lambda cell: cell.device_s_per_sample,
    }
    front = found.front()
    counts = sorted({cell.devices for cell in found.cells})
    for axes, (title, value) in zip(panels.flat, values.items(), strict=True):
        for number, ((links, batch), cells) in enumerate(scenarios.cells_by_line(found.cells).items()):
            fits = sorted((c for c in cells if c.step_time_s is not None), key=lambda c: c.devices)
            label = f"links x {links:g}" + ("" if batch is None else f", batch {batch}")
            x, y = [c.devices for c in fits], [value(c) for c in fits]
            axes.plot(x, y, marker="o", markersize=4, color=f"C{number % 10}", label=label, zorder=2)
            _ring(axes, [(c.devices, value(c)) for c in fits if c in front])
        axes.set_title(title, fontsize=10)
        axes.set_xticks(counts)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    for axes in panels[1]:
        axes.set_xlabel("devices")
    panels[0][0].legend(fontsize=7)
    figure.suptitle(f"{short(found.graph, 60)} on {short(found.cluster, 40)}; rings: Pareto front", fontsize=11)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130, metadata={"Software": None})
    return drawn.getvalue()


def _ring(axes: Axes, points: list[tuple[int, float]]) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=90, facecolors="none", edgecolors="black", linewidths=1.1, zorder=3)
