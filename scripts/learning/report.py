"""Tables and learning curves from the rows of `scripts/benchmark_learning.py`."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from graphs.errors import InputError
from graphs.files import write_atomically
from placement.text import seconds, table
from scripts.learning.rows import LEARNED, Row

BEGIN = "<!-- written by scripts/benchmark_learning.py: begin -->"
END = "<!-- written by scripts/benchmark_learning.py: end -->"

Setting = tuple[str, str, float | None, int | None]
"""Graph, cluster, seconds, evaluations."""


@dataclass(frozen=True)
class Standing:
    """One cell under one budget, over all seeds.

    Attributes:
        graph: As named on the command line.
        cluster: As named on the command line, with ``/fifo`` behind it where the schedule is not `priority`.
        budget_s: Seconds; None where evaluations are limited.
        budget_evaluations: Evaluations; None where time is limited.
        times_s: Step times by placer, one a seed, sorted; infinite where nothing that fits was found.
        overrun: The longest that any placer took, over `budget_s`; None without such a limit.
    """

    graph: str
    cluster: str
    budget_s: float | None
    budget_evaluations: int | None
    times_s: dict[str, list[float]]
    overrun: float | None

    @property
    def budget(self) -> str:
        """For people; with the schedule where it is another than `priority`."""
        limit = f"{self.budget_s:g} s" if self.budget_s is not None else f"{self.budget_evaluations:,} evaluations"
        return f"{limit}, schedule {self.schedule}" if self.schedule else limit

    @property
    def schedule(self) -> str:
        """The schedule, which stands behind the cluster's name; empty for `priority`."""
        return self.cluster.partition("/")[2]

    def median_s(self, placer: str) -> float:
        """Median over the seeds."""
        return statistics.median(self.times_s[placer])

    @property
    def best_other(self) -> str | None:
        """The placer of the least median that is neither the learned one nor made of its parts."""
        others = [name for name in self.times_s if not name.startswith(LEARNED)]
        return min(others, key=self.median_s, default=None)

    @property
    def ratio(self) -> float | None:
        """The learned median over that of the best other; None where one of the two is missing."""
        other = self.best_other
        if other is None or LEARNED not in self.times_s:
            return None
        return _ratio(self.median_s(LEARNED), self.median_s(other))

    @property
    def verdict(self) -> str:
        """Who wins.

        ``ahead`` or ``behind`` where the medians differ by more than half of the spread (slowest less fastest seed) of
        either placer, else ``level``; ``one seed`` where neither has more, and so no spread.
        """
        other, ratio = self.best_other, self.ratio
        if other is None or ratio is None:
            return ""
        ours, theirs = self.times_s[LEARNED], self.times_s[other]
        if len(ours) == len(theirs) == 1 and np.isfinite(ours[0]) and np.isfinite(theirs[0]):
            return "one seed"
        spread_s = max(_spread_s(ours), _spread_s(theirs)) / 2
        gap_s = self.median_s(other) - self.median_s(LEARNED)
        if np.isnan(gap_s) or abs(gap_s) <= spread_s:
            return "level"
        return "ahead" if gap_s > 0 else "behind"


def standings(rows: Iterable[Row]) -> list[Standing]:
    """The rows by cell and budget, in the order in which they came; time budgets first, small ones first."""
    grouped: dict[Setting, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    longest: dict[Setting, float] = defaultdict(float)
    for row in rows:
        setting = (row.graph, row.cluster, row.budget_s, row.budget_evaluations)
        fits = row.feasible and row.step_time_s is not None
        grouped[setting][row.placer].append(row.step_time_s if fits and row.step_time_s is not None else np.inf)
        longest[setting] = max(longest[setting], row.seconds)
    cells = list(dict.fromkeys(setting[:2] for setting in grouped))
    made = [
        Standing(
            *setting,
            times_s={name: sorted(times) for name, times in by_placer.items()},
            overrun=None if setting[2] is None else longest[setting] / setting[2],
        )
        for setting, by_placer in grouped.items()
    ]
    return sorted(
        made,
        key=lambda s: (
            s.budget_s is None,
            s.budget_s or 0,
            s.budget_evaluations or 0,
            s.schedule,
            cells.index((s.graph, s.cluster)),
        ),
    )


_LEGEND = (
    "Of each placer, the median over the seeds of the step time, over the best placer's median and, in brackets, the "
    "same of the slowest seed. Ratio: reinforce over the best placer that does not learn, medians; it is ahead or "
    "behind where they differ by more than half of the seeds' spread (slowest less fastest, of the placer that varies "
    "more). Entries without brackets are of one seed; where both have only one, nobody is called ahead."
)


def print_tables(rows: Sequence[Row]) -> None:
    """A table for each budget, and a line that counts who wins."""
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe: nothing is gained by cutting
    for budget, group in _by_budget(standings(rows)):
        names = _placers(group)
        made = table("cell", "best", *names, "ratio", "", title=f"\n{budget}", right=("best", *names, "ratio"))
        for standing in group:
            made.add_row(f"{standing.graph}/{standing.cluster}", *_entries(standing, names), *_outcome(standing))
        console.print(made)
        console.print(_summary(group))
    console.print(f"\n{_LEGEND}")


def fill_page(page: Path, rows: Sequence[Row], *, json_name: str) -> None:
    """Write the tables between the page's markers.

    Raises:
        InputError: The page cannot be read, or has not both markers.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"page '{page}' cannot be read: {error}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"page '{page}' lacks the lines '{BEGIN}' and '{END}', between which the tables go; add them")
    write_atomically(page, f"{before}{BEGIN}\n{tables_text(rows, json_name=json_name)}\n{END}{after}".encode())


def tables_text(rows: Sequence[Row], *, json_name: str) -> str:
    """The tables as Markdown."""
    lines: list[str] = []
    for budget, group in _by_budget(standings(rows)):
        names = _placers(group)
        counts = {len(times) for standing in group for times in standing.times_s.values()}
        shown = f"{'at most ' if len(counts) > 1 else ''}{max(counts)} seed{'s' if max(counts) > 1 else ''}"
        lines += [
            f"### {budget}",
            "",
            f"| graph | cluster | best | {' | '.join(names)} | ratio | {shown} |",
            f"|---|---|--:|{'--:|' * len(names)}--:|---|",
        ]
        for standing in group:
            cells = [standing.graph, standing.cluster, *_entries(standing, names), *_outcome(standing)]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", _summary(group), ""]
    return "\n".join([_LEGEND, "", *lines, "Made by", "", "```", _command(rows, json_name), "```"])


def _command(rows: Sequence[Row], json_name: str) -> str:
    """What makes these rows; where not every combination was run, the rows are fewer than the command's."""

    def listed(values: Iterable[object]) -> str:
        return (
            ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in dict.fromkeys(values))
            or "none"
        )

    cells = " ".join(dict.fromkeys(f"{row.graph}/{row.cluster}" for row in rows))
    return (
        f"python scripts/benchmark_learning.py --cells {cells} --placers {listed(row.placer for row in rows)} "
        f"--seeds {listed(sorted({row.seed for row in rows}))} "
        f"--budgets-s {listed(sorted({row.budget_s for row in rows if row.budget_s is not None}))} "
        "--budgets-evaluations "
        f"{listed(sorted({row.budget_evaluations for row in rows if row.budget_evaluations is not None}))} "
        f"--json {json_name}"
    )


def _by_budget(made: Sequence[Standing]) -> list[tuple[str, list[Standing]]]:
    groups: dict[str, list[Standing]] = {}
    for standing in made:
        groups.setdefault(standing.budget, []).append(standing)
    return list(groups.items())


def _placers(group: Sequence[Standing]) -> list[str]:
    names = dict.fromkeys(name for standing in group for name in standing.times_s)
    learned = sorted(name for name in names if name.startswith(LEARNED))
    return [*learned, *(name for name in names if name not in learned)]


def _entries(standing: Standing, names: Sequence[str]) -> list[str]:
    """The best median, and each placer's median and slowest seed over it."""
    best_s = min(standing.median_s(name) for name in standing.times_s)
    entries = [seconds(best_s, digits=4)]
    for name in names:
        times = standing.times_s.get(name)
        if times is None:
            entries.append("-")
            continue
        shown = [
            f"{value / best_s:.3f}" if np.isfinite(value) else "none" for value in (standing.median_s(name), times[-1])
        ]
        entries.append(shown[0] if len(times) == 1 else f"{shown[0]} ({shown[1]})")
    return entries


def _outcome(standing: Standing) -> tuple[str, str]:
    ratio = standing.ratio
    if ratio is None:
        return "-", ""
    preposition = {"ahead": "of", "level": "with", "behind": "", "one seed": "against"}[standing.verdict]
    note = " ".join(word for word in (standing.verdict, preposition, standing.best_other or "") if word)
    if standing.overrun is not None and standing.overrun > 1.1:
        note += f"; took up to {standing.overrun:.2f} of the time"
    return f"{ratio:.4f}", note


def _summary(group: Sequence[Standing]) -> str:
    """Counts over the cells of one budget."""
    compared = [standing for standing in group if standing.ratio is not None]
    if not compared:
        return f"{len(group)} cells; nothing to compare."
    ratios = [ratio for standing in compared if (ratio := standing.ratio) is not None]
    count = Counter(standing.verdict for standing in compared)
    alone = f", of one seed in {count['one seed']}" if count["one seed"] else ""
    cells = f"{len(compared)} cell{'s' if len(compared) > 1 else ''}"
    text = (
        f"{cells}: reinforce is ahead in {count['ahead']}, level in {count['level']}, behind in "
        f"{count['behind']}{alone}; its median is faster in {sum(ratio < 1 for ratio in ratios)}; ratio from "
        f"{min(ratios):.4f} to {max(ratios):.4f}, geometric mean {_geometric_mean(ratios):.4f}"
    )
    for name in _placers(compared):
        against = [_ratio(s.median_s(LEARNED), s.median_s(name)) for s in compared if name in s.times_s]
        if name.startswith(f"{LEARNED}_") and against:
            faster = sum(ratio < 1 for ratio in against)
            text += f". Against {name}: faster in {faster} of {len(against)}, mean ratio {_geometric_mean(against):.4f}"
    return f"{text}."


def _ratio(ours_s: float, theirs_s: float) -> float:
    """Infinite where only ours is, 0 where only theirs is, 1 where both are."""
    if np.isinf(ours_s) and np.isinf(theirs_s):
        return 1.0
    return ours_s / theirs_s


def _geometric_mean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(ratios, 1e-9)))))


def _spread_s(times_s: Sequence[float]) -> float:
    """Slowest less fastest seed; 0 where none fits."""
    return times_s[-1] - times_s[0] if np.isfinite(times_s[0]) else 0.0
