"""Runs for the target torch_pipeline: what is chosen where it is left open, and what is said of the batch."""

from pathlib import Path

import pytest

import placement
from envs.make_problem import make_problem
from graphs.errors import InputError
from placement.exports.stages import read_stages
from placement.runs.pipeline import MOST_BATCHES, Step, train_pipeline

MODEL = """
import torch
from torch import nn


def layers():
    stack = [m for _ in range(4) for m in (nn.Linear(256, 256), nn.ReLU())]
    batch = torch.zeros(48, 256), torch.zeros(48).long()
    return nn.Sequential(*stack, nn.Linear(256, 5)), batch, nn.CrossEntropyLoss()


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5000, 64)
        self.inner = nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)])
        self.head = nn.Linear(64, 5000, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.inner(self.table(x)))


def tied():
    words = torch.zeros(16, 32).long()
    return Words(), (words, words), lambda y, to: nn.functional.cross_entropy(y.flatten(0, 1), to.flatten())


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = x + 1
        kept = []
        for layer in self.down:
            kept.append(layer(x))
            x = kept[-1].relu()
        for layer in self.up:
            x = layer(x) + kept.pop()
        return x


def skips():
    return Skips(), (torch.zeros(8, 8), torch.zeros(8).long()), nn.CrossEntropyLoss()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models_for_runs.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_number_of_micro_batches_is_chosen(here: Path) -> None:
    run = placement.train_pipeline(
        "python:models_for_runs:layers",
        "k80x4",
        micro_batches="auto",
        evaluations=50,
        time_limit_s=None,
        out=here / "run",
    )
    assert [row.micro_batches for row in run.tried] == [1, 2, 4, 8, 16]  # 48 is no multiple of 32
    best = max(run.tried, key=lambda row: row.samples_per_s or 0)
    assert run.stages.micro_batches == best.micro_batches
    assert run.stages == read_stages(here / "run" / "stages.json")
    assert run.found.step_time_s <= (best.step_time_s or 0)
    for row in run.tried[:2]:
        alone = train_pipeline(
            "python:models_for_runs:layers", "k80x4", micro_batches=row.micro_batches, evaluations=1, time_limit_s=None
        )
        assert min(one.step_time_s for one in alone.opponents.values()) == row.step_time_s


def test_throughput_takes_more_batches_a_step() -> None:
    given = ("python:models_for_runs:layers", "k80x4")
    step = train_pipeline(*given, micro_batches=4, evaluations=20, time_limit_s=None)
    run = train_pipeline(*given, micro_batches=4, objective="throughput", evaluations=20, time_limit_s=None)
    assert [row.batches for row in run.tried] == [1, 2, 4, 8, 16]
    assert run.stages.batch == 48 * MOST_BATCHES  # nothing is too big here, and more batches share out the updates
    assert run.stages.micro_batches == 4 * MOST_BATCHES
    assert run.stages.batch / run.found.step_time_s > 48 / step.found.step_time_s
    assert run.tried[0].step_time_s == min(one.step_time_s for one in step.opponents.values())
    assert run.replicated["data_parallel"].micro_batches % 16 == 0


def test_a_step_of_several_batches_is_one_of_as_many_micro_batches() -> None:
    from envs.clusters.catalog import load_cluster

    step = Step("python:models_for_runs:layers", load_cluster("k80x4"))
    one, three = step.segments(4), step.segments(4, 3)
    assert (one.micro_batches, three.micro_batches) == (4, 12)
    assert one.action_s.tolist() == three.action_s.tolist()
    assert step.batch == 48
    assert step.parts(6, 3) is not None
    assert step.parts(7, 3) is None
    assert step.parts(15, 3) is None


def test_models_with_tied_weights_are_cut() -> None:
    run = train_pipeline("python:models_for_runs:tied", "k80x4", micro_batches=8, evaluations=100, time_limit_s=None)
    assert [one.name.rpartition("/")[2] for one in run.segments.tied] in (["table.weight"], ["weight"])
    assert run.segments.tied[0].segments == (0, run.segments.num_segments - 1)
    assert run.segments.tied[0].gradient_bytes == 5000 * 64 * 4
    assert run.segments.tied[0].fixed_bytes == 4 * 5000 * 64 * 4  # with Adam's moments
    spread = run.opponents["equal_segments"]
    assert run.found.step_time_s <= spread.step_time_s


def test_what_cannot_be_chosen_or_cut_is_said() -> None:
    with pytest.raises(InputError, match="cannot be cut into stages: no module begins where a single value crosses"):
        train_pipeline("python:models_for_runs:skips", "k80x4", micro_batches=2)
    with pytest.raises(InputError, match="unknown objective 'speed'"):
        train_pipeline("python:models_for_runs:layers", "k80x4", objective="speed")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"placement\.train_pipeline"):
        make_problem("rnnlm", "k80x4", target="torch_pipeline")
