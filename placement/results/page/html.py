"""The page put together: text, tables, charts, and the library that draws them, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from graphs.computation_graph import PHASES
from graphs.errors import printable
from graphs.extras import check_extra
from placement.results.comparison import Comparison
from placement.results.layer_split import describe_fit, describe_layers
from placement.results.page.content import MOST_BARS, PageContent
from placement.results.page.style import CSS, SCRIPT
from placement.results.reasons.explanation import Explanation
from placement.results.reasons.sentences import percent, why
from placement.text import seconds, short, size, tokens_a_second

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
"""What the browser may load: nothing from anywhere."""

MOST_GROUPS = 400
"""Groups in the table, those that the critical path waits for longest."""

_FEW_GROUPS = 40
"""So many rows are shown at once; more are behind a summary, which the filter opens."""

_NAME = 90


def check_can_draw() -> None:
    """Raise where Bokeh is missing.

    Raises:
        NotServedError: It is not installed; the message says how to install it.
    """
    check_extra("a report", module="bokeh", package="Bokeh", extra="report")


def make_page(content: PageContent) -> bytes:
    """The page, as a file in UTF-8.

    Raises:
        NotServedError: Bokeh is not installed.
    """
    check_can_draw()
    from bokeh.embed import components
    from bokeh.models import Range1d
    from bokeh.resources import Resources

    from placement.results.page import charts

    found = content.explanation
    problem = found.problem
    x_range = Range1d(0, max(found.step_time_s, 1e-12) * 1e3)
    figures = {
        "timeline": charts.timeline_figure(found, x_range),
        "memory": charts.memory_figure(found, x_range),
        "treemap": charts.treemap_figure(found),
    }
    if content.curve is not None and len(content.curve.update) > 1:
        others_s = {"lower bound": found.lower_bound_s or 0.0} if found.lower_bound_s else {}
        best = _best_other(content.comparison)
        if best is not None:
            others_s = {best[0]: best[1], **others_s}
        figures["curve"] = charts.curve_figure(content.curve, others_s)
    script, divs = components(figures)
    library = "".join(Resources(mode="inline", components=["bokeh"]).js_raw)
    title = f"{_text(problem.graph.name)} on {_text(problem.cluster.name)}"
    devices = [(name, charts.device_color(d)) for d, name in enumerate(problem.cluster.device_names)]
    phases = list(zip((*PHASES, "transfer"), charts.kind_colors(), strict=True))
    body = [
        f"<h1>{title}</h1>",
        f"<p class='dim'>{_heading(found)}</p>",
        "<nav aria-label='Parts of this page'>"
        + "".join(f"<a href='#{part}'>{name}</a>" for part, name in _contents(content, figures))
        + "</nav>",
        "<h2 id='reasons'>Reasons</h2>",
        f"<ul class='reasons'>{''.join(f'<li>{_text(sentence)}</li>' for sentence in _reasons(found))}</ul>",
        "<h2 id='time'>What runs when</h2>",
        _aggregated(found),
        _tools("timeline", with_filter=True),
        _legend(phases),
        _chart("timeline", divs["timeline"], _spoken(found), keys="timeline"),
        "<h2 id='memory-in-use'>Memory in use</h2>",
        _legend(devices),
        _chart("memory", divs["memory"], _spoken_memory(found), keys="timeline"),
        _devices(found),
        "<h2 id='model'>The model</h2>",
        "<p class='dim'>Groups within their modules, as large as their share of the work and of the memory, in the "
        "colour of their device.</p>",
        _legend(devices),
        _chart("treemap", divs["treemap"], "A treemap of the groups; the table below says the same."),
        _groups(found),
    ]
    if content.comparison is not None:
        body += ["<h2 id='placers'>Placers</h2>", _comparison(content.comparison)]
    if "curve" in figures:
        said = "Step times over the updates of the learning."
        body += ["<h2 id='learning'>Learning</h2>", _tools("curve"), _chart("curve", divs["curve"], said, keys="curve")]
    if found.remedies:
        body += ["<h2 id='remedies'>What would help</h2>", _remedies(found)]
    if content.commands:
        lines = "\n".join(_text(command) for command in content.commands)
        body += [
            "<h2 id='commands'>Made by</h2>",
            f"<pre tabindex='0' role='region' aria-label='Commands'>{lines}</pre>",
        ]
    page = (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{title}</title>\n<style>{CSS}</style>\n<script>{library}</script>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n<p id='said' role='status' class='dim'></p>\n</main>\n"
        + f"{script}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
    return page.encode()


def _text(text: str) -> str:
    return escape(printable(text))


def _heading(found: Explanation) -> str:
    problem = found.problem
    fits = "" if found.feasible else " if memory were no limit: this placement does not fit"
    tokens = problem.graph.tokens
    rate = f" ({tokens_a_second(tokens, found.step_time_s)} tokens/s)" if tokens else ""
    return (
        f"A step takes <strong>{seconds(found.step_time_s, digits=4)}</strong>{rate}{fits} (simulated). "
        f"{problem.graph.num_ops:,} ops in {problem.num_groups:,} groups, {size(problem.graph.parameter_bytes)} of "
        f"parameters, {problem.num_devices} devices, schedule {_text(problem.schedule)}."
    )


def _reasons(found: Explanation) -> Sequence[str]:
    """The sentences of an explanation; before them, of a language model's step, which layers are where."""
    if not found.problem.graph.tokens or not found.feasible:
        return found.sentences
    fit = describe_fit(found.problem, found.trace.peak_memory_bytes)
    layers = describe_layers(found.problem, found.op_placement)
    return [*(sentence for sentence in (fit, layers) if sentence), *found.sentences]


def _contents(content: PageContent, figures: dict[str, object]) -> list[tuple[str, str]]:
    parts = [("reasons", "Reasons"), ("time", "Time"), ("memory-in-use", "Memory"), ("model", "Model")]
    if content.comparison is not None:
        parts.append(("placers", "Placers"))
    if "curve" in figures:
        parts.append(("learning", "Learning"))
    if content.explanation.remedies:
        parts.append(("remedies", "What would help"))
    return [*parts, ("commands", "Commands")] if content.commands else parts


def _aggregated(found: Explanation) -> str:
    if int((found.trace.op_end_s > found.trace.op_start_s).sum()) + found.trace.num_transfers <= MOST_BARS:
        return ""
    return "<p class='dim'>The step has so many ops that those near each other share a bar.</p>"


def _tools(chart: str, *, with_filter: bool = False) -> str:
    actions = (("in", "Zoom in"), ("out", "Zoom out"), ("left", "Earlier"), ("right", "Later"), ("all", "All"))
    buttons = "".join(
        f"<button type='button' data-chart='{chart}' data-action='{action}'>{name}</button>" for action, name in actions
    )
    field = (
        "<label for='filter'>Filter</label><input id='filter' type='search' "
        "placeholder='part of a name, as in softmax' autocomplete='off'>"
    )
    return f"<div class='tools' role='group' aria-label='Move and filter'>{buttons}{field if with_filter else ''}</div>"


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<li><span style='background:{color}'></span>{_text(name)}</li>" for name, color in entries)
    return f"<ul class='legend'>{items}</ul>"


def _chart(name: str, div: str, said: str, *, keys: str | None = None) -> str:
    focus = "" if keys is None else f" tabindex='0' data-keys='{keys}'"
    hint = "" if keys is None else " Keys: plus and minus zoom, arrows move, 0 shows all."
    role = "img" if keys is None else "application"  # which gives it the arrow keys while a screen reader runs
    return f"<div class='chart' id='chart-{name}' role='{role}' aria-label='{_text(said)}{hint}'{focus}>{div}</div>"


def _spoken(found: Explanation) -> str:
    busy = found.trace.busy_s() / max(found.step_time_s, 1e-300)
    names = found.problem.cluster.device_names
    return "A timeline. " + ", ".join(
        f"{name} computes {percent(float(b))}" for name, b in zip(names, busy, strict=True)
    )


def _spoken_memory(found: Explanation) -> str:
    names, peaks = found.problem.cluster.device_names, found.trace.peak_memory_bytes.tolist()
    return "Memory in use over time. Peaks: " + ", ".join(f"{n} {size(p)}" for n, p in zip(names, peaks, strict=True))


def _table(name: str, caption: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table; heads that begin with ``#`` are of numbers; a row is its class and its cells as HTML."""
    numbers = [head.startswith("#") for head in heads]

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if number else ''}>{value}</{tag}>"
            for value, number in zip(values, numbers, strict=True)
        )

    head = cells("th", [_text(head.lstrip("#")) for head in heads])
    lines = "".join(f"<tr class='{kind}'>{cells('td', values)}</tr>" for kind, values in rows)
    return (
        f"<div class='wide' tabindex='0' role='region' aria-label='{_text(caption)}'><table id='{name}'>"
        f"<caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _devices(found: Explanation) -> str:
    step_s, memory = max(found.step_time_s, 1e-300), found.problem.cluster.memory_bytes
    rows = []
    for d, device in enumerate(found.problem.cluster.devices):
        parts = [f"{seconds(float(s))} ({percent(float(s) / step_s)})" for s in found.device_s[d]]
        peak = f"{size(int(found.trace.peak_memory_bytes[d]))} of {size(int(memory[d]))}"
        rows.append(("", [_text(f"{device.name} ({device.spec.name})"), *parts, peak]))
    heads = ("device", "#computes", "#waits for transfers", "#for other devices", "#has nothing left", "#peak memory")
    return _table("devices", "What each device does in a step", heads, rows)


def _groups(found: Explanation) -> str:
    problem = found.problem
    on_path_s = found.group_s.sum(axis=1)
    order = np.argsort(-on_path_s, kind="stable")[:MOST_GROUPS].tolist()
    rows = [
        ("", [_text(short(problem.groups.names[g], _NAME)), seconds(float(on_path_s[g])), _text(why(found, g))])
        for g in order
    ]
    more = problem.num_groups - len(order)
    caption = "Why each group is where it is" + (f" ({more:,} more: placement explain --json)" if more else "")
    table = _table("groups", caption, ("group", "#on the critical path", "why"), rows)
    state = " open" if len(order) <= _FEW_GROUPS else ""
    summary = f"<summary>{len(order):,} groups, and why each is there</summary>"
    return f"<details id='all-groups'{state}>{summary}{table}</details>"


def _comparison(comparison: Comparison) -> str:
    ranked, tokens = comparison.ranked(), comparison.problem.graph.tokens
    slowest = max((row.step_time_s or 0.0 for row in ranked if row.feasible), default=0.0)
    rows = []
    for row in ranked:
        if row.not_served:
            continue
        ratios = ["-" if ratio is None else f"{ratio:.2f}" for ratio in comparison.ratios(row)]
        if row.step_time_s is None:
            said, bar = "no placement", ""
        elif not row.feasible:
            said, bar = "does not fit", ""
        else:
            said = seconds(row.step_time_s, digits=4)
            width = f"{100 * row.step_time_s / slowest:.1f}%" if slowest else "0%"
            bar = f"<div class='bar' style='--w:{width}'></div>"
        kind = "best" if row is comparison.best else "" if row.feasible else "no"
        made = [tokens_a_second(tokens, row.step_time_s if row.feasible else None)] if tokens else []
        rows.append(
            (kind, [_text(row.placer), said, *made, bar, *ratios, f"{row.evaluations:,}", seconds(row.search_s)])
        )
    bound = seconds(comparison.lower_bound_s, digits=4)
    rate = ("#tokens/s",) if tokens else ()
    heads = ("placer", "#step time", *rate, "", "#x best", "#x one device", "#x bound", "#evaluated", "#search")
    return _table("placers-table", f"Step times by placer; no placement takes less than {bound}", heads, rows)


def _best_other(comparison: Comparison | None) -> tuple[str, float] | None:
    """The best row but the last one, which is the learned placer's."""
    rows = [] if comparison is None else comparison.ranked()
    last = None if comparison is None or not comparison.rows else comparison.rows[-1]
    for row in rows:
        if row is not last and row.feasible and row.step_time_s is not None:
            return row.placer, row.step_time_s
    return None


def _remedies(found: Explanation) -> str:
    rows = [
        ("", [_text(r.what), seconds(r.unmoved_s, digits=4), seconds(r.step_time_s, digits=4), f"{r.evaluations:,}"])
        for r in found.remedies
    ]
    heads = ("cluster", "#as placed", "#after some tries", "#tried")
    return _table("remedies-table", "Better clusters, simulated", heads, rows)
