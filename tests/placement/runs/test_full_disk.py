"""A disk that is full while a run is written: one sentence, what stood stands, and with room the run goes on."""

import errno
import os
import sys
from pathlib import Path

import pytest

import placement
from graphs.errors import InputError
from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from placement.cli.main import main
from placement.runs import checkpoint, directory
from tests import forked

LIMITED = """
import resource, sys
from placement.cli.main import main
from placement.runs.compile_ahead import compile_ahead
from tests import forked
import torch.utils.tensorboard
compile_ahead("priority")  # what numba keeps is no part of the run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)  # writing past it fails as on a full disk
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_graph_file(random_graph(12, seed=1, name="small"), "g.graph.json")
    return tmp_path


@pytest.mark.parametrize(
    "limit_bytes", [pytest.param(0, marks=pytest.mark.slow), pytest.param(800, marks=pytest.mark.slow), 4_000, 40_000]
)
def test_a_run_without_room_ends_with_one_sentence_and_what_stood_stands(here: Path, limit_bytes: int) -> None:
    args = ["train", "g.graph.json", "--cluster", "k80x2", "--updates", "3", "--out", "run"]
    done = forked.run([sys.executable, "-c", LIMITED, str(limit_bytes), *args])
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be written (File too large)" in done.stderr.splitlines()[-1]
    for path in Path("run").iterdir():
        assert not path.name.endswith(".tmp")
    again = ["train", "--resume", "run"] if (here / "run" / directory.CONFIG).exists() else args
    assert main(again) == 0
    assert main([*args[:-1], "whole"]) == 0
    assert Path("run/placement.json").read_bytes() == Path("whole/placement.json").read_bytes()


def test_the_checkpoint_before_stands(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = placement.make_problem("g.graph.json", "k80x2")
    placement.train(problem, updates=2, out="run")
    before = Path("run", directory.CHECKPOINT).read_bytes()
    sync = os.fsync

    def full(file: int) -> None:
        if directory.CHECKPOINT in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"checkpoint.pt' cannot be written \(No space left on device\)"):
        placement.train(problem, updates=4, out="run", resume=True)
    monkeypatch.undo()
    os.chdir(here)
    assert Path("run", directory.CHECKPOINT).read_bytes() == before
    assert checkpoint.load(Path("run"), problem).updates == 2
    assert not list(Path("run").glob(".*.tmp"))
    placement.train(problem, updates=4, out="run", resume=True)
    assert placement.read_placement("run/placement.json") == placement.train(problem, updates=4).result
