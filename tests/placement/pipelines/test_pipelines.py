"""Models trained in stages on several processes: the loss and the gradients are those of one process."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from graphs.errors import InputError
from placement.exports.stages import Stage, Stages, schedule_csv
from placement.pipelines.batches import Form, check_rows, split_batch
from tests import forked
from tests.pages import GUIDE, blocks
from tests.placement.pipelines import train_in_stages

ROOT = Path(__file__).parents[3]
SCRIPT = str(Path(train_in_stages.__file__))

GPT = "gpt/{}/4/0:embed+places+blocks.0,1:blocks.1+blocks.2+blocks.3+head"
CHUNKS = "bert/interleaved/4/0:embed+places,1:blocks.0,0:blocks.1+blocks.2,1:blocks.3+head"
CONV = "conv/{}/{}/0:stem+layers.0+layers.1,1:layers.2+head"
TURNS = "conv/list/4/0:stem,0:layers.0,1:layers.1,1:layers.2+head"
TIED = "tied/1f1b/4/0:embed+places+blocks.0,1:blocks.1+blocks.2+blocks.3+head"
TIED_V = "tied/list/4/0:embed+places,1:blocks.0+blocks.1+blocks.2+blocks.3,0:head"
MASKED = "masked/{}/4/0:embed+blocks.0,1:blocks.1,{}:blocks.2,{}:blocks.3+head"
NORMED = "normed/{}/4/0:convs.0+norms.0,1:convs.1+norms.1+convs.2+norms.2+head"
THREE = "bert/{}/4/0:embed+places+blocks.0,1:blocks.1,2:blocks.2+blocks.3+head"


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def start_ranks(options: list[list[str]]) -> list[forked.Popen]:
    """A process for each rank, as torchrun starts them, with the options of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    about = {"WORLD_SIZE": str(len(options)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        forked.Popen(
            [sys.executable, SCRIPT, *more],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **about),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, more in enumerate(options)
    ]


def said_by(processes: list[forked.Popen]) -> list[tuple[str, str]]:
    """What each said when all have ended."""
    try:
        return [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()


def run_in_stages(count: int, cases: list[str]) -> None:
    """Every process compares its own gradients and says so."""
    processes = start_ranks([cases] * count)
    for rank, (process, (out, error)) in enumerate(zip(processes, said_by(processes), strict=True)):
        assert process.returncode == 0, out + error
        assert f"rank {rank} agrees in " in out
        for case in cases:
            assert f"parameters on {case}" in out, out


def test_two_processes_train_as_one() -> None:
    run_in_stages(2, [GPT.format("1f1b"), CHUNKS, CONV.format("gpipe", 2), TURNS, TIED, TIED_V])


def test_masks_that_all_layers_read_several_targets_and_statistics() -> None:
    run_in_stages(2, [MASKED.format("interleaved", 0, 1), MASKED.format("list", 0, 1), NORMED.format("1f1b")])


@pytest.mark.slow
def test_three_processes_train_as_one() -> None:
    run_in_stages(3, ["gpt/1f1b/2/0:embed+places+blocks.0,1:blocks.1+blocks.2,2:blocks.3+head"])  # fewer than stages
    run_in_stages(3, ["gpt/zb_h1/4/0:embed+places+blocks.0,1:blocks.1+blocks.2,2:blocks.3+head"])


@pytest.mark.slow
def test_every_order_trains_every_model() -> None:
    run_in_stages(2, [GPT.format("gpipe"), GPT.format("zb_h1"), CONV.format("1f1b", 4), CONV.format("zb_h1", 8)])
    run_in_stages(3, [THREE.format(order) for order in ("gpipe", "1f1b", "zb_h1")])


@pytest.mark.slow
def test_the_guide_trains_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, writer = blocks(GUIDE / "pipelines.md", "python")
    (tmp_path / "train_in_stages.py").write_text(script.replace("range(20)", "range(6)"))
    (line,) = [line for line in blocks(GUIDE / "pipelines.md", "")[0].splitlines() if line.startswith("torchrun ")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *line.split()[1:]]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=400, env=environment(), check=False
    )
    assert run.returncode == 0, run.stderr
    losses = [float(value) for value in re.findall(r"step \d+: loss ([\d.]+)", run.stdout)]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(f"{script.replace('__main__', 'no')}\n{writer}", "pipelines.md", "exec"), {"__name__": "page"})


def test_a_process_that_dies_ends_the_others_with_a_sentence() -> None:
    """Without torchrun, which would end the others itself."""
    processes = start_ranks([["--die" if rank else "--live", GPT.format("1f1b")] for rank in range(2)])
    said = [error for _, error in said_by(processes)]
    assert processes[1].returncode == 3
    assert processes[0].returncode == 1
    last = said[0].strip().splitlines()[-1]
    assert "rank 0 waited in vain for another rank in step 1" in last


def plan(*stages: tuple[int, list[str]], batch: int = 8, order: str = "1f1b") -> Stages:
    made = tuple(Stage(rank, tuple(modules)) for rank, modules in stages)
    ranks = tuple(f"gpu:{i}" for i in range(max(rank for rank, _ in stages) + 1))
    return Stages(graph="g", cluster="c", ranks=ranks, stages=made, order=order, batch=batch, micro_batches=2)  # type: ignore[arg-type]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.embed(x)))


class Depends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.a(x)
        return self.b(made) if float(made.sum()) > 0 else made


def test_what_cannot_be_cut_is_refused_in_a_sentence() -> None:
    from placement.pipelines.cut import cut  # slow to load, as torch.distributed.pipelining is

    ids, x = torch.zeros(8, 3, dtype=torch.long), torch.zeros(8, 4)
    with pytest.raises(InputError, match=r"stages\[1\].modules has 'tail', which the model has not"):
        cut(Tied(), plan((0, ["embed"]), (1, ["tail"])), (ids,), {})
    model = Depends()
    with pytest.raises(InputError, match="PyTorch cannot trace Depends in stages"):
        cut(model, plan((0, ["a"]), (1, ["b"])), (x,), {})
    assert "forward" not in model.b.__dict__
    with pytest.raises(InputError, match=r"shape \[8, 3\], but the stages are for 6 samples"):
        check_rows(ids, 6)
    with pytest.raises(InputError, match="no tensor among the inputs"):
        split_batch(({"a": 1}, x))


class Chain(nn.Module):
    """What is read later than by the next module, or returned, is said by `way`."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> object:
        first = self.a(x)
        made = self.c(self.b(first))
        if self.way == "skips":
            return made + first
        return (made, first) if self.way == "returns" else made


IN_THREE = plan((0, ["a"]), (1, ["b"]), (2, ["c"]))


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("skips", "stage 2 of Chain, from 'c' on, reads what stage 0 makes"),
        ("returns", "returns a value that its last stage does not make"),
    ],
)
def test_a_value_that_skips_over_a_stage_is_refused(way: str, said: str) -> None:
    from placement.pipelines.cut import cut

    with pytest.raises(InputError, match=said):
        cut(Chain(way), IN_THREE, (torch.zeros(8, 4),), {})


def test_compiled_modules_are_refused() -> None:
    from placement.pipelines.cut import cut

    with pytest.raises(InputError, match=r"the model is compiled by torch\.compile"):
        cut(torch.compile(Chain("")), IN_THREE, (torch.zeros(8, 4),), {})  # type: ignore[arg-type]
    inside, apart = Chain(""), Chain("")
    inside.b.compile()
    apart.c = torch.compile(apart.c)  # type: ignore[assignment]
    for model, path in ((inside, "b"), (apart, "c")):
        with pytest.raises(InputError, match=f"module '{path}' is compiled"):
            cut(model, IN_THREE, (torch.zeros(8, 4),), {})


def test_batches_are_of_the_form_of_the_example() -> None:
    x, ids = torch.zeros(8, 4), torch.zeros(8, dtype=torch.long)
    form = Form.of(({"x": x, "scale": 0.5}, ids))
    form.check([{"scale": 0.5, "x": torch.ones(8, 4)}, ids])  # a list as a tuple, names in any order
    for batch, said in (
        (
            ({"x": torch.zeros(8, 5), "scale": 0.5}, ids),
            r"\['x'\] is a tensor \[8, 5\] of float32, but a tensor \[8, 4\]",
        ),
        (({"x": x.double(), "scale": 0.5}, ids), "of float64, but a tensor"),
        (({"x": x, "scale": 0.25}, ids), r"\['scale'\] is 0.25, but 0.5 in the example batch"),
        (({"x": x, "scale": 0.5}, ids, ids), "other parts than the example batch"),
    ):
        with pytest.raises(InputError, match=said):
            form.check(batch)


def test_stages_have_the_parameters_of_the_model_also_those_that_several_use() -> None:
    from placement.pipelines.cut import cut

    model = Tied()
    words = (torch.zeros(8, 3, dtype=torch.long),)
    pipe, users, _ = cut(model, plan((0, ["embed", "middle"]), (1, ["head"])), words, {})
    assert users == {"embed.weight": (0, 1)}
    stages = [set(map(id, pipe.get_stage_module(number).parameters())) for number in range(2)]
    assert stages[0] & stages[1] == {id(model.embed.weight)}
    assert stages[0] | stages[1] == set(map(id, model.parameters()))
    apart, users, _ = cut(model, plan((0, ["embed"]), (1, ["middle", "head"])), words, {})
    assert apart.num_stages == 2
    assert users == {"embed.weight": (0, 1)}


def test_schedules_are_written_as_pytorch_reads_them() -> None:
    text = schedule_csv(plan((0, ["a"]), (1, ["b"]), order="zb_h1"))
    assert text == "0F0,0F1,0I0,0W0,0I1,0W1\n1F0,1I0,1F1,1I1,1W0,1W1\n"
