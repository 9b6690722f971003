"""What docs/guide/graphs.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphs.files import _Op, decode_graph
from graphs.networkx_graph import _NODE_ATTRIBUTES
from graphs.networkx_graph import __doc__ as networkx_text

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "graphs.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples_run(number: int) -> None:
    exec(compile(blocks("python")[number], f"graphs.md[{number}]", "exec"), {})


def test_the_graph_file_is_read() -> None:
    (text,) = blocks("json")
    graph = decode_graph(text.encode())
    assert graph.op_names == ("x", "w", "product")
    assert graph.time_s["v100"][2] == 0.9e-5


def test_every_field_is_explained() -> None:
    for field in _Op.__struct_fields__:
        assert re.search(rf"^\| [^|]*`{field}`", PAGE, re.MULTILINE), field
    for attribute in _NODE_ATTRIBUTES:
        assert f"``{attribute}``" in str(networkx_text)
