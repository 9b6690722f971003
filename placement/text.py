"""Numbers and tables as people read them; numbers are converted for people here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.table import Table

_BARS = " ▁▂▃▄▅▆▇█"


def table(*columns: str, title: str | None = None, right: Sequence[str] = ()) -> Table:
    """A table without frames; columns named in `right` hold numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        number = column in right
        made.add_column(column, justify="right" if number else "left", no_wrap=number, header_style="dim")
    return made


def seconds(value_s: float | None, *, digits: int = 3) -> str:
    """A duration in the unit that suits it, with so many digits: ``"12.3 ms"``."""
    if value_s is None or not math.isfinite(value_s):
        return "-"
    if value_s == 0:
        return "0 s"
    scale, unit = next((u for u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if value_s >= u[0] * 0.9995), (1e-9, "ns"))
    scaled = value_s / scale
    return f"{scaled:,.{max(0, digits - len(str(int(scaled))))}f} {unit}"


def size(value_bytes: float) -> str:
    """Bytes in units of 1000: ``"11.4 GB"``, ``"57 MB"``."""
    if value_bytes >= 0.9995e9:
        return f"{value_bytes / 1e9:,.1f} GB"
    return f"{value_bytes / 1e6:,.0f} MB" if value_bytes >= 0.9995e6 else f"{value_bytes / 1e3:,.0f} kB"


def tokens_a_second(tokens: int, step_time_s: float | None) -> str:
    """The rate of a step that reads or makes so many tokens: ``"12.3"``; ``"-"`` where there is no such step."""
    return f"{tokens / step_time_s:,.4g}" if step_time_s else "-"


def clock(value_s: float) -> str:
    """Minutes and seconds: ``"1:05"``."""
    minutes, rest = divmod(max(round(value_s), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def bar(share: float) -> str:
    """One character whose height is a share of 1."""
    return _BARS[min(max(round(share * 8), 1 if share > 0 else 0), 8)]


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as a line of bars, the last `width` buckets of them; lower is lower."""
    if len(values) == 0:
        return ""
    buckets = np.array_split(np.asarray(values, dtype=np.float64), min(width, len(values)))
    means = np.array([bucket.mean() for bucket in buckets])
    low, high = means.min(), means.max()
    share = (means - low) / (high - low) if high > low else np.full(len(means), 0.5)
    return "".join(_BARS[1 + round(float(s) * 7)] for s in share)


def short(name: str, most: int = 120) -> str:
    """A name that is no longer than a line has room for: a longer one loses its middle."""
    return name if len(name) <= most else f"{name[: most * 2 // 3]}…{name[-(most // 3 - 1) :]}"
