"""`placement place` and `placement pretrain` as a user types them, and as functions."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import placement
from graphs.errors import InputError
from graphs.files import save_graph_file
from graphs.synthetic import random_graph
from placement.cli.main import main
from placement.placers.base import Budget
from placement.pretrained import network
from placement.pretrained.network import initial, load, save
from placement.results.comparison import compare_placers, quick_placers
from placement.runs import pretraining
from placement.runs.placing import Answer
from tests.placement.cli.test_cli import fails
from tests.placement.pretrained.small import TINY, problem


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    save_graph_file(random_graph(24, seed=1, locality=6, name="small"), "g.graph.json")
    save("w.safetensors", initial(0), {})
    return tmp_path


def test_place_answers_with_what_is_best(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("place", "g.graph.json", "--cluster", "k80x4", "--weights", "w.safetensors")
    assert main((*args, "--json", "a.json", "--out", "p.json")) == 0
    shown = capsys.readouterr().out
    assert "best heuristic (" in shown
    assert "pretrained policy " in shown
    figures = json.loads(Path("a.json").read_text())
    assert figures["feasible"]
    assert figures["step_time_s"] == min(figures["best_heuristic_s"], figures["policy_s"])
    assert figures["weights"] == network.digest(initial(0))
    assert main(("simulate", "g.graph.json", "--cluster", "k80x4", "--placement", "p.json", "--json", "s.json")) == 0
    assert json.loads(Path("s.json").read_text())["step_time_s"] == figures["step_time_s"]
    assert json.loads(Path("p.json").read_text())["placer"]["name"] == "place"


@pytest.mark.parametrize("seed", range(3))
def test_place_is_never_behind_the_heuristics_and_says_who_won(here: Path, seed: int) -> None:
    placed = problem(seed, ops=40)
    one, other = (placement.place(placed, weights="w.safetensors", seed=seed) for _ in range(2))
    assert isinstance(one, Answer)
    assert one.step_time_s == min(one.best_heuristic_s, one.policy_s)
    assert one.made_by.startswith(
        "the pretrained policy" if one.policy_s < one.best_heuristic_s else one.best_heuristic
    )
    np.testing.assert_array_equal(one.op_placement, other.op_placement)
    alone = placement.place(placed, weights="w.safetensors", samples=0)
    assert alone.policy_placements == 0
    assert alone.step_time_s == one.best_heuristic_s
    assert placed.evaluate_ops(one.op_placement[None]).step_time_s[0] == one.step_time_s
    compared = compare_placers(placed, quick_placers(placed), budget=Budget(), seed=seed)
    assert one.step_time_s <= min(row.step_time_s for row in compared.rows if row.feasible and row.step_time_s)


def test_place_says_which_memory_is_short(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_graph_file(random_graph(24, seed=1, resident_bytes=10**12, name="huge"), "huge.graph.json")
    said = fails(capsys, 3, "place", "huge.graph.json", "--cluster", "k80x2", "--weights", "w.safetensors")
    assert "short by" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--weights", "none.safetensors"), "cannot read file of weights 'none.safetensors': No such file"),
        (("--weights", "g.graph.json"), "g.graph.json: it is not a safetensors file, or it is damaged"),
        (("--weights", "w.safetensors", "--samples", "-1"), "--samples is -1; it must not be negative"),
        (("--weights", "w.safetensors", "--out", "no/such/p.json"), "no/such"),
        (("--weights", "w.safetensors", "--cluster", "k80x4x"), "k80x4x"),
    ],
)
def test_place_refuses_bad_input(
    here: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:  # fmt: skip
    cluster = () if "--cluster" in args else ("--cluster", "k80x4")
    assert said in fails(capsys, 2, "place", "g.graph.json", *cluster, *args)


def test_place_loads_no_torch(here: Path) -> None:
    program = (
        "import sys, placement; "
        "placement.place(placement.make_problem('g.graph.json', 'k80x2'), weights='w.safetensors', samples=4); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=here)


def test_pretrain_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    straight = pretraining.pretrain(tmp_path / "a", updates=3, config=TINY)
    assert straight.updates == 3
    assert straight.validation is not None
    assert not straight.interrupted

    def stop(stats: object) -> None:
        signal.raise_signal(signal.SIGINT)  # as Ctrl-C: the update under way is done, and what is best is kept

    first = pretraining.pretrain(tmp_path / "b", updates=3, config=TINY, on_update=stop)
    assert first.interrupted
    assert first.updates == 1
    load(first.weights)
    second = pretraining.pretrain(tmp_path / "b", updates=3, resume=True)
    assert second.updates == 3
    for name, array in load(straight.weights).items():
        np.testing.assert_array_equal(load(second.weights)[name], array)
    assert list((tmp_path / "b").glob("events.out.tfevents.*"))


def test_pretrain_says_that_its_directory_is_gone(tmp_path: Path) -> None:
    def remove(stats: object) -> None:
        shutil.rmtree(tmp_path / "a")

    with pytest.raises(InputError, match="cannot be written"):
        pretraining.pretrain(tmp_path / "a", updates=1, config=TINY, on_update=remove)


def test_pretrain_refuses_bad_input(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretraining.pretrain(here / "a", updates=1, config=TINY)
    assert "holds a training already" in fails(capsys, 2, "pretrain", "--out", "a", "--updates", "1")
    assert "holds no training to resume" in fails(capsys, 2, "pretrain", "--resume", "b")
    assert "--updates is 0" in fails(capsys, 2, "pretrain", "--updates", "0")
    assert "--time-limit-s is -1" in fails(capsys, 2, "pretrain", "--time-limit-s", "-1")
    assert "leave out --out and --seed" in fails(capsys, 2, "pretrain", "--resume", "a", "--seed", "1")
    whole = Path("a/checkpoint.pt").read_bytes()
    for damaged in (b"", whole[:1000], whole[:-1] + b"0"):
        Path("a/checkpoint.pt").write_bytes(damaged)
        assert "it is damaged" in fails(capsys, 2, "pretrain", "--resume", "a", "--updates", "2")
    Path("a/checkpoint.pt").write_bytes(whole)
    assert main(("pretrain", "--resume", "a", "--updates", "2")) == 0
    assert "weights     a/weights.safetensors" in capsys.readouterr().out
    Path("a/pretrain.json").write_text("{}")
    assert "a/pretrain.json: it is damaged" in fails(capsys, 2, "pretrain", "--resume", "a", "--updates", "2")
