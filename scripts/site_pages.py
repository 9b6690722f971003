"""What MkDocs does to a page before it builds it: the help of every verb goes into docs/reference/cli.md.

`make docs` calls it, by the hooks in ``mkdocs.yml``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from typing import Any

PLACE = "<!-- the verbs' help -->"

_UNIT = re.compile(r"(\d) (?=(?:ms|s|us|ns|[kMGT]?B|GFLOP)\b)")
"""A figure and its unit, in a row of a table."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs asks for each page: the verbs' help goes where its place is, and figures in tables keep their units.

    Args:
        markdown: A page.
    """
    lines = [
        _UNIT.sub("\\1\N{NO-BREAK SPACE}", line) if line.startswith("|") else line for line in markdown.split("\n")
    ]
    markdown = "\n".join(lines)
    return markdown.replace(PLACE, verbs_help()) if PLACE in markdown else markdown


def verbs_help() -> str:
    """Markdown: a section a verb, with what ``placement VERB --help`` prints in 100 columns."""
    from placement.cli.verbs import VERBS

    return "\n\n".join(f"## placement {verb}\n\n```text\n{_help(verb)}\n```" for verb in VERBS)


def _help(verb: str) -> str:
    from placement.cli.main import parse

    said = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(said):
            parse([verb, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
    return "\n".join(line.rstrip() for line in plain.strip().splitlines())
