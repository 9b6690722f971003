"""What docs/guide/clusters.md and docs/guide/environments.md show works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import envs.clusters.file
from envs.clusters.catalog import DEVICE_SPECS
from envs.clusters.file import _SpecRecord, parse_cluster

DOCS = Path(__file__).parents[2] / "docs" / "guide"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, i) for page in ("clusters.md", "environments.md") for i in range(len(blocks(page, "python")))],
)
def test_python_examples_run(page: str, number: int) -> None:
    exec(compile(blocks(page, "python")[number], f"{page}[{number}]", "exec"), {})


def test_the_cluster_file_is_read_and_is_the_one_of_the_docstring() -> None:
    (text,) = (block for block in blocks("clusters.md", "yaml") if block.startswith("format:"))
    (documented,) = re.findall(r"```yaml\n(.*?)```", str(envs.clusters.file.__doc__), re.DOTALL)
    assert parse_cluster(text, DEVICE_SPECS).sha256 == parse_cluster(documented, DEVICE_SPECS).sha256


def test_every_field_of_a_spec_is_explained() -> None:
    page = (DOCS / "clusters.md").read_text()
    for field in _SpecRecord.__struct_fields__:
        assert f"| `{field}` |" in page
