"""The command for the target torch_pipeline."""

from pathlib import Path

import pytest

from placement.cli.main import main
from placement.exports.stages import read_stages

MODEL = """
import torch
from torch import nn


def step():
    layers = [m for _ in range(4) for m in (nn.Linear(64, 64), nn.ReLU())]
    batch = torch.zeros(32, 64), torch.zeros(32).long()
    return nn.Sequential(*layers, nn.Linear(64, 5)), batch, nn.CrossEntropyLoss()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "layers_for_stages.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GIVEN = ["train", "python:layers_for_stages:step", "--cluster", "k80x4", "--target", "torch_pipeline"]


@pytest.mark.parametrize("order", ["gpipe", "1f1b", "interleaved", "zb_h1", "list"])
def test_it_leaves_the_stages_that_it_shows(order: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--micro-batches", "4", "--order", order, "--time-limit-s", "0.5", "--out", "run"]
    assert main([*GIVEN, *more]) == 0
    shown = capsys.readouterr().out
    stages = read_stages(here / "run" / "stages.json")
    assert (stages.order, stages.batch, stages.micro_batches) == (order, 32, 4)
    assert all(name in shown for name in ("search", "pipedream", "equal_segments", "equal_parameters", "lower bound"))
    assert all(f"{stage.modules[0]} " in shown for stage in stages.stages)
    assert main(["explain", "run"]) == 2
    assert "holds the stages of a pipeline" in capsys.readouterr().err
    listed = [path for stage in stages.stages for path in stage.modules]
    assert listed == [str(i) for i in range(9)] or listed == [""]


def test_it_says_what_it_chose_and_when_data_parallelism_is_faster(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GIVEN, "--micro-batches", "auto", "--objective", "throughput", "--time-limit-s", "0.2"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "micro-batches tried, and samples a second without a search: 1 x 1 batches " in shown
    assert all(name in shown for name in ("data_parallel", "replicated_pipelines", "pipedream_replicas"))
    assert "data parallelism is faster: " in shown
    assert "train with torch.nn.parallel.DistributedDataParallel" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GIVEN, "--micro-batches", "5"], "batch of 32, which 5 micro-batches do not divide"),
        ([*GIVEN, "--micro-batches", "0"], "--micro-batches is 0; it must be at least 1"),
        ([*GIVEN, "--updates", "3"], "--updates does not go with --target torch_pipeline"),
        ([*GIVEN, "--schedule", "fifo"], "for --target torch_pipeline give --order"),
        ([*GIVEN[:4], "--order", "gpipe"], "--order is for --target torch_pipeline"),
        ([*GIVEN[:4], "--objective", "step"], "--objective is for --target torch_pipeline"),
        ([*GIVEN[:4], "--micro-batches", "4"], "--micro-batches is for --target torch_pipeline"),
    ],
)
def test_settings_that_do_not_go_together(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
