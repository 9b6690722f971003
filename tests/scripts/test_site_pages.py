"""The reference of the command is what the verbs' own help says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from placement.cli.verbs import VERBS
from scripts.site_pages import PLACE, on_page_markdown

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def test_every_verb_and_flag_is_on_the_page() -> None:
    page = on_page_markdown(PAGE.read_text(encoding="utf-8"))
    assert PLACE not in page
    for name, verb in VERBS.items():
        section = page.partition(f"## placement {name}\n")[2].partition("\n## ")[0]
        for field in fields(verb):  # type: ignore[arg-type]  # a dataclass, for mypy any callable
            flag = rf"--{field.name.replace('_', '-')}\b"
            assert re.search(flag, section) or field.name.upper() in section.upper(), field.name
        assert "\x1b" not in section


def test_other_pages_are_left_alone() -> None:
    assert on_page_markdown("# Groups\n\nAfter 10 s.") == "# Groups\n\nAfter 10 s."


def test_a_figure_keeps_its_unit_in_a_table() -> None:
    assert on_page_markdown("| nmt | 1.16 s | 680.7 ms (contiguous) |") == (
        "| nmt | 1.16\N{NO-BREAK SPACE}s | 680.7\N{NO-BREAK SPACE}ms (contiguous) |"
    )
