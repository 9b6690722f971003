"""What a person watches while a placer searches: a live panel on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from placement.comparison import Comparison, Row
from placement.text import clock, seconds, sparkline

if TYPE_CHECKING:
    from placement.stats import UpdateStats

_LINE_EVERY_S = 5.0
_CURVE_WIDTH = 32
_CURVE_POINTS = 4096


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
        self._stats = stats
        if math.isfinite(stats.mean_s):
            self._curve.append(stats.mean_s)
            if len(self._curve) > _CURVE_POINTS:
                self._curve = self._curve[::2]
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
        return (
            f"update {stats.update:,}: best {seconds(stats.best_s, digits=4)}, mean {seconds(stats.mean_s, digits=4)}, "
            f"{stats.infeasible_rate:.0%} infeasible, {stats.placements_per_s:,.0f} placements/s, {self._left(stats)}"
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
            grid.add_row("infeasible", f"{stats.infeasible_rate:.0%}", "")
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
    """Says which placer is running and what those before it came to.

    Args:
        console: Where to.
        time_limit_s: Seconds that a searching placer may take, for the countdown.

    Attributes:
        running: The placer that runs, or was the last to.
        rows: What is done.
    """

    def __init__(self, console: Console, *, time_limit_s: float | None = None) -> None:
        self._console = console
        self._time_limit_s = time_limit_s
        self.running = ""
        self.rows: list[Row] = []
        self._since = 0.0
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
        self.running, self._since = placer, time.perf_counter()

    def row(self, row: Row) -> None:
        """A placer is done."""
        self.rows.append(row)
        if not self._console.is_terminal:
            self._console.print(self._line(row), soft_wrap=True)

    def _line(self, row: Row) -> str:
        if row.step_time_s is None:
            outcome = f"no placement: {row.note}"
        else:
            outcome = seconds(row.step_time_s, digits=4) if row.feasible else "does not fit"
        return f"  {row.placer:<24} {outcome}"

    def _render(self) -> RenderableType:
        limit = f" of at most {clock(self._time_limit_s)}" if self._time_limit_s is not None else ""
        self._spinner.update(text=Text(f"{self.running}, {clock(time.perf_counter() - self._since)}{limit}"))
        done = Text("\n".join(self._line(row) for row in self.rows), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(done, self._spinner) if self.rows else self._spinner
