"""A damaged or made-up checkpoint is one sentence; one from before there was a digest is taken."""

from __future__ import annotations

import copy
import io
import math
import random
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.learning.reinforce import PRESETS
from placement.learning.trainer import Trainer
from placement.runs.checkpoint import FILE_NAME
from placement.runs.record import TrainingRecord, resume_trainer
from tests.placement.problems import branches

SMALL = replace(
    PRESETS["default"], hidden_size=8, samples=4, search_moves=64, search_chains=2, search_survivors=1, elites=2
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlacementProblem, bytes]:
    """A problem, and a checkpoint of it."""
    run_dir = tmp_path_factory.mktemp("run")
    problem = branches(3, 2)
    trainer = Trainer(problem, config=SMALL)
    trainer.run(updates=2, observer=TrainingRecord(trainer, run_dir))
    return problem, (run_dir / FILE_NAME).read_bytes()


def resumed(problem: PlacementProblem, run_dir: Path, data: bytes) -> Trainer:
    (run_dir / FILE_NAME).write_bytes(data)
    return resume_trainer(problem, run_dir)


def without_digest(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save({key: value for key, value in content.items() if key != "digest"}, file)
    return file.getvalue()


def test_every_flipped_bit_and_every_cut_is_noticed(run: tuple[PlacementProblem, bytes], tmp_path: Path) -> None:
    problem, data = run
    assert resumed(problem, tmp_path, data).updates == 2
    draw = random.Random(1)
    last = 8 * (len(data) - 120)  # the archive's end, the digest
    bits = [draw.randrange(8 * len(data)) for _ in range(60)] + [draw.randrange(last, 8 * len(data)) for _ in range(60)]
    damaged = []
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    damaged += [data[: draw.randrange(len(data))] for _ in range(10)] + [data + b"\0", data + data]
    for content in damaged:
        with pytest.raises(InputError, match=r"checkpoint.pt: it is not a checkpoint, or it is damaged"):
            resumed(problem, tmp_path, content)


def test_one_from_before_there_was_a_digest_is_taken(run: tuple[PlacementProblem, bytes], tmp_path: Path) -> None:
    problem, data = run
    content = torch.load(io.BytesIO(data), weights_only=True)
    old = resumed(problem, tmp_path, without_digest(content))
    new = resumed(problem, tmp_path, data)
    old.run(updates=3)
    new.run(updates=3)
    assert (old.best_s, old.evaluations) == (new.best_s, new.evaluations)
    with pytest.raises(InputError, match="damaged"):  # and one that says it has a digest needs it
        resumed(problem, tmp_path, without_digest(content | {"digesT": 1}).replace(b"digesT", b"digest"))


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested dicts and lists."""
    if isinstance(value, dict):
        inner = list(value.items())
    else:
        inner = list(enumerate(value)) if isinstance(value, list) else []
    return [*([at] if at else []), *(place for key, item in inner for place in places(item, (*at, key)))]


ODD: list[Any] = [
    None,
    True,
    -1,
    2**70,
    math.nan,
    "",
    "x" * 100,
    b"",
    [],
    {},
    {"a": 1},
    torch.zeros(0),
    torch.full((3,), 10**6),
]
ODD += [torch.zeros(1).expand(10**9), torch.zeros(2, 2, dtype=torch.int32), [[[[[[[[[[1]]]]]]]]]], 1e300]


def test_what_is_made_up_is_one_sentence(run: tuple[PlacementProblem, bytes], tmp_path: Path) -> None:
    """Each entry at any depth left out, or replaced by something odd: refused, or taken and gone on with."""
    problem, data = run
    content = torch.load(io.BytesIO(data), weights_only=True)
    every, draw = places(content), random.Random(0)
    for number in range(40):
        changed = copy.deepcopy(content)
        *above, last = draw.choice(every)
        inner = changed
        for key in above:
            inner = inner[key]
        if draw.random() < 0.2:
            del inner[last]
        elif draw.random() < 0.2 and isinstance(inner[last], torch.Tensor) and inner[last].numel():
            inner[last] = inner[last] * 1000 + 7
        else:
            inner[last] = draw.choice(ODD)
        try:
            trainer = resumed(problem, tmp_path, without_digest(changed))
        except InputError as error:
            assert "checkpoint.pt" in str(error)  # noqa: PT017
            assert len(str(error)) < 600  # noqa: PT017
            continue
        assert trainer.best_placement is None or trainer.best_placement.max() < problem.num_devices
        if number % 20 == 0:
            trainer.run(updates=trainer.updates + 1)
            assert np.isfinite(trainer.best_s)


def test_an_archive_that_unpacks_to_more_than_it_is_is_not_unpacked(
    run: tuple[PlacementProblem, bytes], tmp_path: Path
) -> None:
    problem, data = run
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
        bomb.writestr("archive/data/bomb", bytes(10**7))
    with pytest.raises(InputError, match="damaged"):
        resumed(problem, tmp_path, packed.getvalue())
