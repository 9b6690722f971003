"""Running models by placements, and learning from measured time, in Python and as a user types it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import placement
from envs.measured.engine import StepError
from envs.measured.machine import parse_devices
from envs.measured.problem import Measurement, machine_cluster
from envs.measured.updates import UpdateSettings
from graphs.capture import capture
from graphs.errors import InputError, NoFeasiblePlacementError
from graphs.files import save_graph_file
from placement.cli.main import main
from placement.results.placement_file import PlacementResult
from placement.runs.measured import train_measured
from placement.runs.observer import RunObserver
from tests.envs.measured.faulty_problems import alive, faulty_problem, placements
from tests.envs.measured.measured_problems import NAMES, two_cores
from tests.placement.runs.small_model import DEVICES, MODEL


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


class Recorder(RunObserver):
    """Keeps who proposed what was measured, and why it failed."""

    def __init__(self, told: list[tuple[str, str]]) -> None:
        self.told = told

    def on_measure(self, proposer: str, found: Measurement) -> None:
        self.told.append((proposer, found.reason))


def by_hand(model: nn.Module, batch: object, *, training: bool = True, seed: int = 0) -> PlacementResult:
    loss = F.cross_entropy if training else None
    graph = capture(model, batch, loss, training=training, optimizer="sgd")
    problem = placement.make_problem(graph, machine_cluster(parse_devices(NAMES)))
    drawn = np.random.default_rng(seed).integers(2, size=problem.num_groups)
    return placement.make_result(problem, drawn, placer="by hand", seed=0)


@two_cores
def test_a_model_of_ones_own_is_trained_by_a_placement() -> None:
    model, other = make_model(), make_model()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, fused=True)
    batches = [(torch.randn(4, 8), torch.randint(4, (4,))) for _ in range(3)]
    result = by_hand(model, batches[0])
    weights = [id(p) for p in model.parameters()]
    with placement.apply(
        model, result, batches[0], F.cross_entropy, optimizer="sgd", settings=UpdateSettings(lr=0.1)
    ) as step:
        for batch in batches:
            loss = step(batch)
            wanted = F.cross_entropy(other(batch[0]), batch[1])
            optimizer.zero_grad()
            wanted.backward()
            optimizer.step()
            torch.testing.assert_close(loss, wanted.detach(), rtol=1e-6, atol=1e-6)
        assert step.last is not None
        assert step.last.step_time_s > 0
    assert weights == [id(p) for p in model.parameters()]
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()  # it is an ordinary model, as before


@two_cores
def test_a_model_is_asked_by_a_placement(tmp_path: Path) -> None:
    model, x = make_model(), torch.randn(4, 8)
    path = tmp_path / "placement.json"
    placement.write_placement(path, by_hand(model, x, training=False))
    with placement.apply(model, path, x, devices=DEVICES, training=False, optimizer="sgd") as step:
        torch.testing.assert_close(step(x), model(x).detach(), rtol=1e-6, atol=1e-6)
        with pytest.raises(InputError, match=r"shape \[5, 8\]"):
            step(torch.ones(5, 8))
    with pytest.raises(StepError):
        step(x)


@two_cores
def test_what_cannot_be_applied() -> None:
    model, batch = make_model(), (torch.ones(4, 8), torch.zeros(4, dtype=torch.long))
    result = by_hand(model, batch)
    with pytest.raises(InputError, match=r"the placement is for 2 devices .* but 1 are given"):
        placement.apply(model, result, batch, F.cross_entropy, devices=NAMES[0], optimizer="sgd")
    with pytest.raises(InputError, match="give the optimizer that the graph was captured with"):
        placement.apply(model, result, batch, F.cross_entropy, optimizer="adam")
    elsewhere = placement.make_problem(capture(model, batch, F.cross_entropy, optimizer="sgd"), "k80x2")
    made = placement.make_result(elsewhere, np.zeros(elsewhere.num_groups, dtype=int), placer="x", seed=0)
    with pytest.raises(InputError, match="the placement is for devices cpu:0, gpu:0, gpu:1: 'gpu:0' is no device"):
        placement.apply(model, made, batch, F.cross_entropy, optimizer="sgd")


@two_cores
@pytest.mark.parametrize("screen", [False, True])
def test_learning_goes_on_beside_placements_that_kill(
    screen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULTY_DEVICE", NAMES[1])
    monkeypatch.setenv("FAULTY_HOW", "kill" if screen else "raise")
    told: list[tuple[str, str]] = []
    with faulty_problem(5.0) as problem:
        good, bad = placements(problem)
        run = train_measured(
            problem,
            time_limit_s=4,
            screen=screen,
            out=tmp_path / "run",
            observer=Recorder(told),
        )
        process = problem.measurer.process.process_id
        assert run.failures >= 1
        assert run.split.feasible
        op = problem.graph.op_names[int(np.flatnonzero(problem.groups.to_ops(bad) != problem.groups.to_ops(good))[0])]
        assert run.split.ops[op] == NAMES[0]
    assert process is None or not alive(process)
    assert {who for who, _ in told} >= {f"single_device:{NAMES[0]}"}
    assert any(reason for _, reason in told)
    assert run.rows[-1].step_time_s == run.split.step_time_s
    assert placement.read_placement(tmp_path / "run" / "placement.json") == run.result
    rows = json.loads((tmp_path / "run" / "measured.json").read_text())["rows"]
    assert rows[-1]["placer"] == "reinforce"
    with pytest.raises(InputError, match="holds a run already"):
        train_measured(problem, time_limit_s=1, out=tmp_path / "run")


@two_cores
def test_where_nothing_runs_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTY_DEVICE", "any")
    monkeypatch.setenv("FAULTY_HOW", "raise")
    with faulty_problem(5.0) as problem, pytest.raises(NoFeasiblePlacementError, match=r"could be run: .*it is broken"):
        train_measured(problem, time_limit_s=5)


@two_cores
@pytest.mark.slow
def test_the_page_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a narrower model and less time; what it types is what is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "guide" / "run-it.md").read_text()
    module, script = re.findall(r"^```python\n(.*?)^```$", page, flags=re.M | re.S)
    Path("towers.py").write_text(module.replace("1024", "32").replace("256", "8"))
    train, run = re.findall(r"^```\nplacement (.*?)\n", page, flags=re.M)[:2]
    train, run = (line.replace("cpu:0,cpu:1", DEVICES).split() for line in (train, run))
    train[train.index("--time-limit-s") + 1] = "4"
    assert main([*train, "--groups", "4"]) == 0
    said = capsys.readouterr()
    assert "placements run, 0 of them failed" in said.out
    assert f"single_device:{NAMES[0]}" in said.err
    assert main([*run, "--json", "steps.json"]) == 0
    assert "measured step time" in capsys.readouterr().out
    assert len(json.loads(Path("steps.json").read_text())["step_times_s"]) == 15
    exec(compile(script, "run-it.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.count("loss ") == 3


def test_bad_input_of_the_verbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a_model.py").write_text(MODEL)
    source, here = "python:a_model:make", NAMES[0]
    graph = capture(make_model(), torch.ones(4, 8), training=False, name="m")
    save_graph_file(graph, "m.graph.json")
    problem = placement.make_problem(graph, "k80x2")
    placement.write_placement(
        "p.json", placement.make_result(problem, np.zeros(problem.num_groups, dtype=int), placer="x", seed=0)
    )
    for args, message in (
        (["run", "m.graph.json", "--placement", "p.json", "--devices", here], "describes a step but cannot be run"),
        (["run", source, "--placement", "no.json", "--devices", here], "cannot read placement file 'no.json'"),
        (["run", source, "--placement", "p.json", "--devices", here], "the placement is for 3 (cpu:0, gpu:0, gpu:1)"),
        (["run", source, "--placement", "p.json", "--devices", "tpu:0"], "'tpu:0' is no device of a machine"),
        (["run", source, "--placement", "p.json", "--devices", here, "--steps", "0"], "--steps is 0"),
        (["run", source, "--placement", "p.json", "--devices", "cuda:0,cuda:1,cuda:2"], "place this graph again"),
        (["train", source, "--devices", here], "add --measured"),
        (["train", source, "--measured"], "needs a GRAPH and --devices"),
        (["train", source, "--measured", "--devices", here, "--updates", "3"], "limited by --time-limit-s"),
        (["train", source, "--measured", "--devices", here, "--preset", "paper"], "leave out --preset"),
        (["train", source, "--measured", "--devices", here, "--cluster", "k80x2"], "the same names in the same order"),
        (["train", "m.graph.json", "--measured", "--devices", here], "describes a step but cannot be run"),
    ):
        assert main(args) == 2, args
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("placement: ")
        assert message in said
