"""The page of what was seen of workers; each script fills its own part."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from graphs.errors import InputError
from graphs.files import write_atomically

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "workers.md"


def fill(page: Path, script: str, text: str) -> None:
    """Write what a script found between its markers.

    Raises:
        InputError: The page cannot be read, or has not both markers.
    """
    begin, end = (f"<!-- written by scripts/{script}: {what} -->" for what in ("begin", "end"))
    try:
        content = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"page '{page}' cannot be read: {error}") from error
    before, found, rest = content.partition(begin)
    _, ends, after = rest.partition(end)
    if not found or not ends:
        raise InputError(f"page '{page}' lacks the lines '{begin}' and '{end}'; add them")
    write_atomically(page, f"{before}{begin}\n{text}\n{end}{after}".encode())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def where() -> str:
    """What it was measured on, and how busy that was at the end."""
    busy = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.system()} on {platform.machine()}, {cores} cores{busy}, Python {_python()}"


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def spec_of(kind: str, count: int) -> str:
    """What names so many workers, as `placement.workers.open_workers` takes it."""
    return f"ray:{count}" if kind == "ray" else str(count)
