"""Files that are no files, or that become far more than they are, are refused at once, whatever reads them."""

from __future__ import annotations

import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envs.clusters.catalog import load_cluster
from graphs.errors import LONGEST, InputError, NoFeasiblePlacementError
from graphs.files import load_graph_file
from graphs.onnx_import.importer import load_onnx_file
from graphs.reading import MOST_BYTES, gunzip, read_file
from placement.results.comparison_file import read_record
from placement.results.placement_file import read_placement
from placement.runs.directory import read_config
from tests.memory import growth

READERS: dict[str, Callable[[Path], object]] = {
    "x.graph.json": load_graph_file,
    "x.graph.json.gz": load_graph_file,
    "x.json": read_placement,
    "y.json": read_record,
    "config.json": lambda path: read_config(path.parent),
    "x.yaml": lambda path: load_cluster(str(path)),
    "x.onnx": load_onnx_file,
}
READERS_OF_TEXT = [name for name in READERS if not name.endswith((".gz", ".onnx"))]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge", "loop"])
def test_what_is_no_regular_file_of_bounded_size_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with path.open("wb") as file:  # takes no space
            file.truncate(2**40)
    began = time.process_time()
    if kind == "huge" and name.endswith(".onnx"):
        return  # up to 2 GiB are read: what the format allows
    with growth() as grown, pytest.raises(InputError, match="cannot read") as caught:
        READERS[name](path)
    assert name in str(caught.value)
    assert time.process_time() - began < 10
    assert max(grown, default=0) < 10**9


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """One gibibyte of spaces, in several parts."""
    part = gzip.compress(b" " * 2**26)
    path = tmp_path / "bomb.graph.json.gz"
    path.write_bytes(part * 16)
    with pytest.raises(InputError, match=r"bomb.graph.json.gz': it unpacks to more than 256 MiB"):
        load_graph_file(path)


def test_gzip_of_several_parts_and_padding_is_whole() -> None:
    assert gunzip(gzip.compress(b"ab") + gzip.compress(b"") + gzip.compress(b"c") + b"\0" * 9) == b"abc"
    for data in (b"", b"\x1f", gzip.compress(b"ab")[:-1], gzip.compress(b"ab") + b"c"):
        with pytest.raises(InputError, match="is not a whole gzip file"):
            gunzip(data)


@pytest.mark.parametrize("name", READERS_OF_TEXT)
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 250_000,
        b'{"a":' * 250_000,
        b'{"ops": [' + b"[]," * 30_000_000,
        b'{"format": "\\ud800"}',
        b"\xff\xfe\x00",
        b"1" * 10_000,
        b'{"version": 1' + b"0" * 5000 + b"}",
        b"",
    ],
    ids=["lists", "objects", "many", "surrogate", "utf16", "integer", "version", "nothing"],
)
def test_text_that_would_not_end_is_one_short_sentence(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        READERS[name](path)
    assert len(str(caught.value)) <= LONGEST
    assert str(caught.value).isprintable()
    assert time.process_time() - began < 20


def test_merge_keys_of_a_few_lines_do_not_become_millions_of_pairs(tmp_path: Path) -> None:
    lines = ["a0: &a0 {" + ", ".join(f"k{i}: {i}" for i in range(10)) + "}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 10)]
    path = tmp_path / "merged.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="unknown field 'a0'"):
        load_cluster(str(path))


def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path: Path) -> None:
    for name in ("a" * 300, "a/" * 3000, "\ud800"):
        with pytest.raises(InputError, match="cannot read thing"):
            read_file(tmp_path / name, "thing")
    with pytest.raises(InputError, match="no file can have such a name"):
        read_file("a\0b", "thing")
    assert MOST_BYTES == 2**28


@pytest.mark.parametrize("kind", [InputError, NoFeasiblePlacementError])
def test_messages_are_printable_and_short_and_keep_their_ends(kind: type[Exception]) -> None:
    message = str(kind(f"graph '\x1b]0;pwn\x07{'x' * 10**6}' is bad; rename it"))
    assert message.startswith(r"graph '\x1b]0;pwn\x07xxx")
    assert message.endswith("xxx' is bad; rename it")
    assert message.isprintable()
    assert len(message) <= LONGEST
