"""The file stages.json: written and read back, and what is wrong with one is said by field."""

from pathlib import Path

import msgspec
import pytest

from envs.pipelines.orders import lists_of
from graphs.errors import InputError
from placement.exports.stages import Stage, Stages, encode_stages, read_stages

GOOD = Stages(
    graph="bert:batch=8",
    cluster="a100x4",
    ranks=("gpu:0", "gpu:1"),
    stages=(Stage(0, ("embeddings", "layers.0")), Stage(1, ("layers.1", "head"))),
    order="1f1b",
    batch=32,
    micro_batches=4,
    step_time_s=0.25,
)


def read_back(stages: Stages, folder: Path) -> Stages:
    path = folder / "stages.json"
    path.write_bytes(encode_stages(stages))
    return read_stages(path)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_back(GOOD, tmp_path) == GOOD
    assert GOOD.lists() is None
    rows = lists_of("1f1b", [0, 1], 4)
    listed = msgspec.structs.replace(GOOD, order="list", actions=tuple(tuple(map(str, row)) for row in rows))
    assert read_back(listed, tmp_path).lists() == rows


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": 30}, "batch is 30 and micro_batches is 4"),
        ({"ranks": ()}, "at least one entry"),
        ({"ranks": ("a", "b", "c")}, "rank 2 \\('c'\\) has no stage"),
        ({"ranks": ("a",)}, "stages\\[1\\].rank is 1"),
        ({"order": "interleaved", "stages": (Stage(1, ("a",)), Stage(0, ("b",)))}, "'interleaved', so stage i must"),
        ({"stages": (Stage(1, ("a",)), Stage(0, ("b",)))}, "'1f1b', so stage i must be on rank i"),
        ({"stages": (Stage(0, ("a",)), Stage(1, ()))}, "stages\\[1\\].modules is empty"),
        ({"stages": (Stage(0, ("a",)), Stage(1, ("a",)))}, "'a' is listed twice, in stages 0 and 1"),
        ({"stages": (Stage(0, ("a",)), Stage(1, ("a.b",)))}, "'a.b', which is inside 'a'"),
        ({"order": "list"}, "actions must be given where order is 'list'"),
        ({"actions": ((), ())}, "null elsewhere"),
        ({"order": "list", "actions": (("0F0",), ())}, "must run 0F0 and either 0B0"),
        ({"order": "list", "actions": (("first",), ())}, "'first' is no action"),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_back(msgspec.structs.replace(GOOD, **changed), tmp_path)
    assert str(tmp_path / "stages.json") in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "other"}', b"\xff", encode_stages(GOOD)[:-9]])
def test_what_is_no_such_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"stages\.json' is not valid: .*; export it again"):
        read_stages(path)
