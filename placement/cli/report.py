"""What people see of a comparison and of a simulated step, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from envs.problem import PlacementProblem
from graphs.computation_graph import ComputationGraph
from placement.results.comparison import SINGLE_DEVICE, Comparison, Row
from placement.results.layer_split import describe_fit, describe_layers
from placement.results.simulated import Simulated, describe_short
from placement.text import bar, seconds, short, size, table, tokens_a_second


def problem_heading(problem: PlacementProblem) -> RenderableType:
    """What is placed and where to."""
    graph, cluster = problem.graph, problem.cluster
    what = (
        f"{graph.num_ops:,} ops in {problem.num_groups:,} groups, {size(graph.parameter_bytes)} of parameters, "
        f"{graph.total_flops / 1e9:,.1f} GFLOP a step; {problem.num_devices} devices, schedule {problem.schedule}"
        + (f", target {problem.target}" if problem.target != "engine" else "")
    )
    return Group(Text(f"{short(graph.name)} on {short(cluster.name)}", style="bold"), Text(what, style="dim"))


_LEAST_NOTE = 16
"""Columns that a note is worth showing in."""


def comparison_report(
    comparison: Comparison, *, width: int, detailed: int | None = None, always: Row | None = None
) -> RenderableType:
    """The rows, fastest first, with their ratios; then each device's share; then why rows failed.

    Placers that are not on offer for the problem have no row; one line names them.

    Args:
        comparison: What to show.
        width: Columns of the terminal.
        detailed: Rows, from the fastest, whose devices are shown one by one; None for all.
        always: A row whose devices are shown whatever its rank.
    """
    rows = merge_like_devices(comparison)
    by_reason: dict[str, list[str]] = {}
    for label, row in rows:
        if row.not_served:
            by_reason.setdefault(row.not_served, []).append(label)
    left_out = [f"{' and '.join(labels)} ({reason})" for reason, labels in by_reason.items()]
    rows = [(label, row) for label, row in rows if not row.not_served]
    parts: list[RenderableType] = [_ratio_table(comparison, rows, width=width)]
    placed = [(label, row) for label, row in rows if row.peak_memory_bytes is not None]
    shown = [entry for i, entry in enumerate(placed) if detailed is None or i < detailed or entry[1] is always]
    if shown:
        parts += ["", *_device_tables(comparison, shown, width)]
    notes = _notes(comparison, rows)
    if notes:
        parts += ["", *notes]
    if left_out:
        parts += ["", Text(f"left out: {', '.join(left_out)}", style="dim")]
    return Group(*parts)


def comparison_so_far(comparison: Comparison, *, most_rows: int) -> RenderableType:
    """The rows that are done, fastest first, as many as there is room for."""
    rows = [(label, row) for label, row in merge_like_devices(comparison) if not row.not_served]
    parts: list[RenderableType] = [_ratio_table(comparison, rows[:most_rows])]
    if len(rows) > most_rows:
        parts.append(Text(f"slower ones: {len(rows) - most_rows}", style="dim"))
    return Group(*parts)


def summary(comparison: Comparison, row: Row) -> str:
    """How a row stands against the best single device, the best other placer and the lower bound, in one sentence."""
    assert row.step_time_s is not None
    parts = []
    single_s, bound_s = comparison.best_single_device_s, comparison.lower_bound_s
    if single_s is not None:
        parts.append(f"{_against(row.step_time_s, single_s)} on the best single device")
    else:
        parts.append("no single device holds it")
    others = [other for other in comparison.ranked() if other.feasible and other.placer != row.placer]
    if others and others[0].step_time_s is not None and not others[0].placer.startswith(SINGLE_DEVICE):
        parts.append(f"{_against(row.step_time_s, others[0].step_time_s)} with {others[0].placer}")
    if bound_s > 0:
        parts.append(f"{row.step_time_s / bound_s:.2f} times the lower bound")
    rate = tokens_rate(comparison.problem.graph, row.step_time_s)
    return f"A step takes {seconds(row.step_time_s, digits=4)}{rate}: {', '.join(parts)}."


def split_sentences(problem: PlacementProblem, row: Row) -> list[str]:
    """Of a language model's step: that it fits, with what each device holds, and which layers are where."""
    if not problem.graph.tokens or row.placement is None or row.peak_memory_bytes is None or not row.feasible:
        return []
    said = describe_fit(problem, row.peak_memory_bytes), describe_layers(problem, problem.to_ops(row.placement))
    return [sentence for sentence in said if sentence]


def tokens_rate(graph: ComputationGraph, step_time_s: float) -> str:
    """``", 12.3 tokens/s"`` of a step that reads or makes tokens; nothing of any other."""
    return f", {tokens_a_second(graph.tokens, step_time_s)} tokens/s" if graph.tokens and step_time_s > 0 else ""


def _against(step_time_s: float, other_s: float) -> str:
    share = step_time_s / other_s - 1
    if abs(share) < 0.0005:
        return "as long as"
    return f"{abs(share):.1%} {'less' if share < 0 else 'more'} than"


def merge_like_devices(comparison: Comparison) -> list[tuple[str, Row]]:
    """Ranked rows with their labels; single devices that do equally well become one row."""
    merged: list[tuple[list[str], Row]] = []
    for row in comparison.ranked():
        name, _, device = row.placer.partition(":")
        if name == SINGLE_DEVICE and device:
            like = next(
                (m for m in merged if m[1].placer.startswith(f"{name}:") and _does_equally(m[1], row)),
                None,
            )
            if like is not None:
                like[0].append(device)
                continue
        merged.append(([device] if name == SINGLE_DEVICE and device else [], row))
    labels = [f"{SINGLE_DEVICE} {_device_range(devices)}" if devices else row.placer for devices, row in merged]
    return [(label, row) for label, (_, row) in zip(labels, merged, strict=True)]


def _does_equally(a: Row, b: Row) -> bool:
    if a.step_time_s != b.step_time_s or a.feasible != b.feasible:
        return False
    if a.peak_memory_bytes is None or b.peak_memory_bytes is None:
        return False
    return sorted(a.peak_memory_bytes.tolist()) == sorted(b.peak_memory_bytes.tolist())


def _device_range(names: Sequence[str]) -> str:
    """``["gpu:0", "gpu:1", "gpu:2"]`` as ``"gpu:0-2"``; other names joined by commas."""
    ordered = sorted(names, key=lambda n: (n.rpartition(":")[0], len(n), n))
    kind = ordered[0].rpartition(":")[0]
    numbers = [n.rpartition(":")[2] for n in ordered]
    same_kind = all(n.rpartition(":")[0] == kind for n in ordered) and all(n.isdigit() for n in numbers)
    if len(ordered) > 1 and same_kind and int(numbers[-1]) - int(numbers[0]) == len(ordered) - 1:
        return f"{kind}:{numbers[0]}-{numbers[-1]}"
    return ",".join(ordered)


def _ratio_table(comparison: Comparison, rows: Sequence[tuple[str, Row]], *, width: int = 0) -> Table:
    """One line a row; what its placer says about the placement stands at its end where `width` columns leave room."""
    graph = comparison.problem.graph
    rate = ("tokens/s",) if graph.tokens else ()
    head = ("placer", "step time", *rate, "x best", "x one\ndevice", "x bound", "evaluated", "search")
    lines = []
    for label, row in rows:
        ratios = ["-" if ratio is None else f"{ratio:.2f}" for ratio in comparison.ratios(row)]
        tokens = [tokens_a_second(graph.tokens, row.step_time_s if row.feasible else None)] if rate else []
        cells = [*tokens, *ratios, f"{row.evaluations:,}", seconds(row.search_s)]
        lines.append([label, outcome(comparison, row), *cells])
    bound = seconds(comparison.lower_bound_s, digits=4)
    most = [tokens_a_second(graph.tokens, comparison.lower_bound_s)] if rate else []
    lines.append(["lower bound", bound, *most, *_bound_ratios(comparison), "", ""])
    styles = ["bold green" if row is comparison.best else "" if row.feasible else "dim" for _, row in rows]
    columns = [
        max(len(cell) for cell in (*title.split("\n"), *cells)) for title, *cells in zip(head, *lines, strict=True)
    ]
    room = width - sum(columns) - 2 * len(columns)
    made = table(*head, *(["note"] if room >= _LEAST_NOTE else []), right=head[1:])
    made.columns[0].no_wrap = True
    notes = [row.note if row.step_time_s is not None else "see below" for _, row in rows]
    for line, note, style in zip(lines, [*notes, ""], [*styles, "dim italic"], strict=True):
        cut = Text(note if len(note) <= room else f"{note[: room - 1]}…", style="dim")
        made.add_row(*line, *([cut] if room >= _LEAST_NOTE else []), style=style)
    return made


def outcome(comparison: Comparison, row: Row) -> str:
    """The step time of a row, or by how much memory it does not fit, or that it has no placement."""
    if row.step_time_s is None:
        return "no placement"
    if row.feasible:
        return seconds(row.step_time_s, digits=4)
    short_bytes = int(comparison.short_bytes(row).sum())
    return f"short {size(short_bytes)}" if short_bytes else "not allowed"


def _bound_ratios(comparison: Comparison) -> list[str]:
    best, single_s, bound_s = comparison.best, comparison.best_single_device_s, comparison.lower_bound_s
    best_s = best.step_time_s if best is not None else None
    return [f"{bound_s / best_s:.2f}" if best_s else "-", f"{bound_s / single_s:.2f}" if single_s else "-", "1.00"]


def _device_tables(comparison: Comparison, rows: Sequence[tuple[str, Row]], width: int) -> list[RenderableType]:
    """Share of the step for which each device computes, and its peak memory; as many tables as the width needs."""
    cluster = comparison.problem.cluster
    label_width = max(len(label) for label, _ in rows) + 2
    cell_width = max(15, *(len(name) + 2 for name in cluster.device_names))
    at_once = max(1, (width - label_width) // cell_width)
    used = [d for d in range(cluster.num_devices) if any(_is_used(row, d) for _, row in rows)]
    tables: list[RenderableType] = []
    at_once = math.ceil(len(used) / math.ceil(len(used) / at_once))  # tables of like width
    for first in range(0, len(used), at_once):
        devices = used[first : first + at_once]
        names = [cluster.device_names[d] for d in devices]
        if tables:
            tables.append("")
        made = table("busy, peak memory", *names, right=names)
        made.columns[0].no_wrap = True
        made.add_row("memory", *(size(cluster.memory_bytes[d]) for d in devices), style="dim")
        for label, row in rows:
            made.add_row(label, *(_device_cell(comparison, row, d) for d in devices))
        tables.append(made)
    if len(used) < cluster.num_devices:
        idle = [name for d, name in enumerate(cluster.device_names) if d not in used]
        tables.append(Text(f"{_device_range(idle)}: not used by these placements", style="dim"))
    return tables


def _is_used(row: Row, device: int) -> bool:
    assert row.peak_memory_bytes is not None
    assert row.busy_share is not None
    return bool(row.busy_share[device] > 0 or row.peak_memory_bytes[device] > 0)


def _device_cell(comparison: Comparison, row: Row, device: int) -> Text:
    assert row.busy_share is not None
    assert row.peak_memory_bytes is not None
    share, peak = float(row.busy_share[device]), int(row.peak_memory_bytes[device])
    if not _is_used(row, device):
        return Text("-", style="dim")
    short = peak > comparison.problem.cluster.memory_bytes[device]
    cell = Text(f"{bar(share)}{share:4.0%} ", style="" if row.feasible else "dim")
    cell.append(size(peak).rjust(7), style="bold red" if short else "")
    return cell


def _notes(comparison: Comparison, rows: Sequence[tuple[str, Row]]) -> list[Text]:
    notes = []
    for label, row in rows:
        if row.step_time_s is None:
            text = row.note
        elif not row.feasible and row.peak_memory_bytes is not None:
            text = describe_short(comparison.problem, row.peak_memory_bytes)
        else:
            continue
        notes.append(Text.assemble((f"{label}: ", "yellow"), text))
    return notes


def simulated_report(simulated: Simulated) -> RenderableType:
    """The step time, and for each device its ops, its share of computing, its transfers and its peak memory."""
    problem, trace = simulated.problem, simulated.trace
    memory = problem.cluster.memory_bytes
    busy_s, sizes = trace.busy_s(), simulated.transfer_bytes
    right = ("ops", "computes", "busy", "sends", "receives", "peak memory", "of")
    made = table("device", *right, right=right)
    for d, device in enumerate(problem.cluster.devices):
        share = busy_s[d] / simulated.step_time_s if simulated.step_time_s > 0 else 0.0
        peak = int(trace.peak_memory_bytes[d])
        made.add_row(
            f"{device.name} ({device.spec.name})",
            f"{int((simulated.op_placement == d).sum()):,}",
            seconds(float(busy_s[d])),
            f"{bar(share)}{share:4.0%}",
            size(int(sizes[trace.transfer_source == d].sum())),
            size(int(sizes[trace.transfer_destination == d].sum())),
            Text(size(peak), style="bold red" if peak > memory[d] else ""),
            size(int(memory[d])),
        )
    memories = problem.cluster.memories
    used = memories.used(trace.peak_memory_bytes[None])[0]
    for m, shared in enumerate(problem.cluster.shared_memories, problem.num_devices):
        style = "bold red" if used[m] > memories.limit_bytes[m] else ""
        label = f"{shared.name} (shared by {len(shared.devices)})"
        made.add_row(label, *[""] * 5, Text(size(int(used[m])), style=style), size(int(memories.limit_bytes[m])))
    heading = Text.assemble(
        ("step time  ", "dim"),
        (seconds(simulated.step_time_s, digits=4), "bold green" if simulated.feasible else "bold red"),
        tokens_rate(problem.graph, simulated.step_time_s),
        "" if simulated.feasible else " if memory were no limit",
        (f"  (placed by {simulated.made_by})", "dim"),
    )
    transfers = f"{trace.num_transfers:,} transfers, {size(int(sizes.sum()))}"
    return Group(problem_heading(problem), "", heading, "", made, "", Text(transfers, style="dim"))
