"""What a person watches while a placer searches: a live panel on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from placement.cli.report import comparison_so_far, outcome
from placement.registry import PLACERS
from placement.results.comparison import Comparison, Row
from placement.text import clock, seconds, sparkline

if TYPE_CHECKING:
    from placement.learning.stats import UpdateStats

_LINE_EVERY_S = 5.0
_CURVE_WIDTH = 32
_CURVE_POINTS = 4096
_AROUND_THE_ROWS = 7
"""Lines of the live table that are no rows: what is running, the head, the bound, and room for the prompt."""


class TrainingDisplay:
    """Shows a training run; on a terminal in place, elsewhere as lines every few seconds.

    Args:
        console: Where to.
        comparison: The other placers' rows, to set the best step time against.
        updates: Updates at which the run ends; None where only the time does.
        time_limit_s: Seconds after which it ends; None where only the updates do.
        spent_s: Seconds of these that are over.
    """

    def __init__(
        self,
        console: Console,
        comparison: Comparison,
        *,
        updates: int | None,
        time_limit_s: float | None,
        spent_s: float = 0.0,
    ) -> None:
        self._console = console
        self._comparison = comparison
        self._updates = updates
        self._time_limit_s = time_limit_s
        self._started = time.perf_counter() - spent_s
        self._last_line_s = -math.inf
        self._stats: UpdateStats | None = None
        self._first_update = 0
        self._curve: list[float] = []
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> TrainingDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
        if self._stats is not None:
            self._console.print(self._line(self._stats), soft_wrap=True)

    def update(self, stats: UpdateStats) -> None:
        """Take in what the trainer says after an update."""
        if self._stats is None:
            self._first_update = stats.update - 1
        if math.isnan(stats.infeasible_rate) and self._stats is not None:
            # Nothing was sampled this time: what was said of the samples last still stands.
            stats = replace(stats, mean_s=self._stats.mean_s, infeasible_rate=self._stats.infeasible_rate)
        elif math.isfinite(stats.mean_s):
            self._curve.append(stats.mean_s)
            if len(self._curve) > _CURVE_POINTS:
                self._curve = self._curve[::2]
        self._stats = stats
        elapsed_s = time.perf_counter() - self._started
        if not self._console.is_terminal and elapsed_s - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = elapsed_s
            self._console.print(self._line(stats), soft_wrap=True)

    def _share_done(self, stats: UpdateStats | None) -> float:
        shares = [0.0]
        if self._time_limit_s:
            shares.append((time.perf_counter() - self._started) / self._time_limit_s)
        if self._updates and stats is not None and self._updates > self._first_update:
            shares.append((stats.update - self._first_update) / (self._updates - self._first_update))
        return min(max(shares), 1.0)

    def _left(self, stats: UpdateStats | None) -> str:
        elapsed_s = time.perf_counter() - self._started
        share = self._share_done(stats)
        if share <= 0:
            return f"{clock(elapsed_s)} so far"
        return f"{clock(elapsed_s)} so far, {clock(elapsed_s / share - elapsed_s)} left"

    def _line(self, stats: UpdateStats) -> str:
        best, mean = seconds(stats.best_s, digits=4), seconds(stats.mean_s, digits=4)
        return (
            f"update {stats.update:,}: best {best}, mean {mean}, {_share(stats.infeasible_rate)} infeasible, "
            f"{stats.placements_per_s:,.0f} placements/s, {self._left(stats)}"
        )

    def _render(self) -> RenderableType:
        stats = self._stats
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim")
        grid.add_column(justify="right")
        grid.add_column(overflow="ellipsis", no_wrap=True)
        if stats is None:
            grid.add_row("best", Text("-"), Text("the first update is under way", style="dim"))
        else:
            grid.add_row(
                "best", Text(seconds(stats.best_s, digits=4), style="bold green"), self._against_others(stats.best_s)
            )
            grid.add_row(
                "mean", seconds(stats.mean_s, digits=4), Text(sparkline(self._curve, _CURVE_WIDTH), style="cyan")
            )
            grid.add_row("greedy", seconds(stats.greedy_s, digits=4), "")
            grid.add_row("infeasible", _share(stats.infeasible_rate), "")
            grid.add_row(
                "placements/s",
                f"{stats.placements_per_s:,.0f}",
                Text(f"update {stats.update:,}" + (f" of {self._updates:,}" if self._updates else ""), style="dim"),
            )
        foot = Table.grid(padding=(0, 2, 0, 0))
        foot.add_row(ProgressBar(total=1.0, completed=self._share_done(stats), width=40), self._left(stats))
        hint = "Ctrl-C stops after the update under way and keeps the best placement"
        return Group("", grid, "", foot, Text(hint, style="dim"))

    def _against_others(self, best_s: float) -> Text:
        best, bound_s = self._comparison.best, self._comparison.lower_bound_s
        if not math.isfinite(best_s):
            return Text("nothing that fits yet", style="dim")
        parts = []
        if best is not None and best.step_time_s:
            parts.append(f"{best_s / best.step_time_s:.2f} x {best.placer} ({seconds(best.step_time_s)})")
        if bound_s > 0:
            parts.append(f"{best_s / bound_s:.2f} x lower bound")
        return Text(", ".join(parts), style="dim")


class ComparisonDisplay:
    """Says which placer is running, and shows the table of those before it: live on a terminal, elsewhere a line each.

    Args:
        console: Where to.
        placers: Names of those that will run, for the count; empty where nobody wants to know.
        time_limit_s: Seconds that a searching placer may take, for the countdown.

    Attributes:
        placer: The placer that is asked, or was the last to be.
        comparison: What is done; None before the first row.
    """

    def __init__(self, console: Console, placers: Sequence[str] = (), *, time_limit_s: float | None = None) -> None:
        self._console = console
        self._placers = list(placers)
        self._time_limit_s = time_limit_s
        self.placer = ""
        self.comparison: Comparison | None = None
        self._since = time.perf_counter()
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> ComparisonDisplay:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def start(self, placer: str) -> None:
        """A placer begins."""
        self.placer, self._since = placer, time.perf_counter()

    def row(self, comparison: Comparison) -> None:
        """A placer is done, or rows of an earlier start were taken over."""
        before = 0 if self.comparison is None else len(self.comparison.rows)
        self.comparison = comparison
        if not self._console.is_terminal:
            for row in comparison.rows[before:]:
                if row.not_served:  # the report names these placers in one line
                    continue
                self._console.print(self._line(comparison, row), soft_wrap=True)

    def _line(self, comparison: Comparison, row: Row) -> str:
        return f"  {row.placer:<24} {outcome(comparison, row):<12} {row.note}".rstrip()

    def _render(self) -> RenderableType:
        self._spinner.update(text=Text(self._now_running(), no_wrap=True, overflow="ellipsis"))
        if self.comparison is None:
            return self._spinner
        # What is running stands on top: where the terminal is low, the slowest rows are left out, not this.
        most_rows = max(self._console.height - _AROUND_THE_ROWS, 1)
        return Group(self._spinner, "", comparison_so_far(self.comparison, most_rows=most_rows))

    def _now_running(self) -> str:
        if not self.placer:
            return "computing the lower bound"
        since_s = time.perf_counter() - self._since
        searches = self._time_limit_s is not None and PLACERS[self.placer].searches
        limit = f" of {clock(self._time_limit_s)}" if searches and self._time_limit_s is not None else ""
        counted = ""
        if self.placer in self._placers:
            counted = f" ({self._placers.index(self.placer) + 1} of {len(self._placers)})"
        return f"{self.placer}{counted}, {clock(since_s)}{limit}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"
