"""A placement taken over to another cluster, pins that placers and runs keep, a training that starts from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import placement
from envs.clusters.cluster import Cluster, Device
from envs.problem import PlacementProblem
from graphs.errors import InputError
from graphs.synthetic import random_graph
from placement.cli.main import main
from placement.placers.base import Budget
from placement.registry import PLACERS
from placement.results.carry_over import carry_over, given_start, match_devices
from placement.results.comparison import compare_placers
from placement.results.placement_file import PlacementResult, make_result
from tests.placement.placer_problems import GPU, cluster, training_graph

NO_LIMIT = Budget()
CLOCKLESS = Budget(evaluations=300)


def problem_on(where: Cluster, **asked: list[str]) -> PlacementProblem:
    graph, _ = training_graph(30, seed=3)
    return placement.make_problem(graph, where, groups=64, **asked)  # type: ignore[arg-type]


def scattered(problem: PlacementProblem, *, of_ops: bool, seed: int = 0) -> PlacementResult:
    """A random placement, of groups or of single ops within what must share a device."""
    rng = np.random.default_rng(seed)
    key = rng.random(problem.allowed.shape)
    made = np.where(problem.allowed, key, -1).argmax(axis=1)
    ops = problem.to_ops(made)
    if of_ops:
        free = np.flatnonzero((problem.graph.colocation < 0) & (problem.op_allowed.sum(axis=1) > 1))
        ops[free] = rng.integers(1, problem.num_devices, len(free))
    return make_result(problem, ops, placer="test", seed=0)


class TestDevices:
    def test_by_name_then_by_kind_in_order(self) -> None:
        where = cluster(3)
        assert match_devices(("cpu:0", "gpu:2", "gpu:0"), where) == {"cpu:0": 0, "gpu:2": 3, "gpu:0": 1}
        assert match_devices(("gpu:5", "gpu:1", "gpu:7", "gpu:8", "gpu:9"), where) == {
            "gpu:1": 2,
            "gpu:5": 1,
            "gpu:7": 3,
        }
        renamed = Cluster("renamed", (Device("left", GPU),), ())
        assert match_devices(("gpu:3", "npu:0"), renamed) == {"gpu:3": 0}


@pytest.mark.parametrize("of_ops", [False, True])
class TestCarryOver:
    def test_on_the_same_cluster_it_is_what_it_was(self, of_ops: bool) -> None:
        problem = problem_on(cluster(3))
        result = scattered(problem, of_ops=of_ops)
        carried = carry_over(result, problem, budget=NO_LIMIT, rng=np.random.default_rng(0))
        assert problem.evaluate_one(carried.placement).step_time_s[0] == result.step_time_s

    def test_what_was_on_a_device_that_died_goes_where_it_does_best_and_the_rest_stays(self, of_ops: bool) -> None:
        before, after = problem_on(cluster(3)), problem_on(cluster(2))
        result = scattered(before, of_ops=of_ops)
        carried = carry_over(result, after, budget=NO_LIMIT, rng=np.random.default_rng(0))
        ops = after.to_ops(carried.placement)
        names = after.cluster.device_names
        moved = np.array([result.ops[op] == "gpu:2" for op in after.graph.op_names])
        assert moved.any()
        assert [names[ops[i]] for i in np.flatnonzero(~moved)] == [
            result.ops[after.graph.op_names[i]] for i in np.flatnonzero(~moved)
        ]
        assert "without gpu:2" in carried.note
        for device in range(after.num_devices):  # no device for all that was lost is better than the choice made
            other = np.where(moved, device, ops)
            evaluation = after.evaluate_ops(other[None])
            assert after.evaluate_one(carried.placement).cost_s()[0] <= evaluation.cost_s()[0] + 1e-12

    def test_a_device_more_is_left_to_the_search(self, of_ops: bool) -> None:
        before, after = problem_on(cluster(2)), problem_on(cluster(4))
        result = scattered(before, of_ops=of_ops)
        carried = carry_over(result, after, budget=NO_LIMIT, rng=np.random.default_rng(0))
        ops = after.to_ops(carried.placement)
        assert [after.cluster.device_names[d] for d in ops] == [result.ops[op] for op in after.graph.op_names]

    def test_pins_come_first(self, of_ops: bool) -> None:
        before = problem_on(cluster(3))
        after = problem_on(cluster(3), pin=["layer0=gpu:1"])
        carried = carry_over(scattered(before, of_ops=of_ops), after, budget=NO_LIMIT, rng=np.random.default_rng(0))
        assert after.evaluate_one(carried.placement).feasible[0]

    def test_a_start_is_a_row_and_no_start_of_a_training_is_lost(self, of_ops: bool, tmp_path: Path) -> None:
        problem = problem_on(cluster(3))
        result = scattered(problem, of_ops=of_ops)
        rows = compare_placers(problem, [given_start(result)], budget=NO_LIMIT).rows
        assert (rows[0].placer, rows[0].step_time_s) == ("start", result.step_time_s)
        first = placement.train(problem, updates=2, out=tmp_path / "first")
        again = placement.train(problem, updates=1, seed=1, start=first.result, out=tmp_path / "again")
        assert again.result.step_time_s <= first.result.step_time_s
        kept = json.loads((tmp_path / "again" / "config.json").read_text())
        assert kept["start_file"] == "start.json"
        resumed = placement.train(out=tmp_path / "again", resume=True, updates=2)
        assert resumed.comparison.rows[0].placer == "start"


def test_a_start_of_another_graph_is_refused() -> None:
    problem = problem_on(cluster(2))
    other = placement.make_problem(random_graph(9, seed=1), cluster(2))
    with pytest.raises(InputError, match="does not place op"):
        placement.train(problem, updates=1, start=scattered(other, of_ops=False))
    with pytest.raises(InputError, match="starts from nothing"):
        placement.train(problem, updates=1, preset="paper", start=scattered(problem, of_ops=False))


PINS = {"pin": ["layer0=gpu:1", "layer[23]=gpu:0|gpu:2"], "forbid": ["layer4=gpu:*"], "reserve": ["gpu:0=1GB"]}


def keeps(problem: PlacementProblem, made: np.ndarray) -> None:
    graph, names = problem.graph, problem.cluster.device_names
    for op, device in zip(graph.op_names, problem.to_ops(made), strict=True):
        module = graph.module_names[graph.module[graph.op_names.index(op)]]
        allowed = {"layer0": {"gpu:1"}, "layer2": {"gpu:0", "gpu:2"}, "layer3": {"gpu:0", "gpu:2"}, "layer4": {"cpu:0"}}
        assert names[device] in allowed.get(module, names), op


@pytest.mark.parametrize("name", [name for name in PLACERS if name not in ("brute_force", "exact", "reinforce")])
def test_every_placer_keeps_pins(name: str) -> None:
    problem = problem_on(cluster(3), **PINS)
    row = compare_placers(problem, [PLACERS[name]], budget=CLOCKLESS).rows[-1]
    if row.placement is not None:
        assert row.feasible, row
        keeps(problem, row.placement)


def test_every_stage_of_the_search_can_move_each_unit_somewhere() -> None:
    from placement.move_search.field import make_field
    from placement.move_search.plan import units_of
    from placement.placers.searching.moves import coarse_units

    problem = problem_on(cluster(3), **PINS)
    for stage in ("coarse", "types", "groups", "ops"):
        assert make_field(problem, units_of(problem, stage)).allowed.any(axis=1).all(), stage
    for wanted in (1, 2, 5):
        assert coarse_units(problem, wanted).allowed.any(axis=1).all()


def test_a_run_keeps_its_pins(tmp_path: Path) -> None:
    problem = problem_on(cluster(3), **PINS)
    run = placement.train(problem, updates=2, out=tmp_path / "run")
    again = placement.load_problem(tmp_path / "run")
    assert again.constraints == problem.constraints
    assert (again.allowed == problem.allowed).all()
    assert again.cluster.memory_bytes.tolist() == problem.cluster.memory_bytes.tolist()
    resumed = placement.train(out=tmp_path / "run", resume=True, updates=3)
    for result in (run.result, resumed.result):
        keeps(problem, placement.check_placement(result, problem.graph, problem.cluster))


def test_workers_are_sent_pins() -> None:
    from placement.runs.problem_content import decode_problem, encode_problem

    problem = problem_on(cluster(3), **PINS)
    sent = decode_problem(encode_problem(problem))
    assert (sent.allowed == problem.allowed).all()
    assert sent.cluster.sha256 == problem.cluster.sha256


class TestTheCommand:
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        from graphs.files import save_graph_file

        save_graph_file(training_graph(8, seed=1)[0], "g.graph.json")

    def test_train_compare_and_simulate_take_pins(self, capsys: pytest.CaptureFixture[str]) -> None:
        pins = ("--pin", "layer0=gpu:1", "--pin", "layer1=gpu:0", "--forbid", "layer2=cpu:0", "--reserve", "gpu:0=2GB")
        assert main(["train", "g.graph.json", "--cluster", "k80x2", "--updates", "1", "--out", "run", *pins]) == 0
        ops = json.loads(Path("run/placement.json").read_text())["ops"]
        assert (ops["f0"], ops["f2"]) == ("gpu:1", "gpu:0")
        assert main(["train", "--resume", "run", "--updates", "2"]) == 0
        assert main(["export", "run", "--out", "ops.json"]) == 0
        asked = ["g.graph.json", "--cluster", "k80x2", *pins]
        assert main(["simulate", *asked, "--placement", "heft"]) == 0
        rows = ["--placers", "heft", "--json", "rows.json"]
        assert main(["compare", *asked, *rows]) == 0
        assert main(["compare", *asked[:-2], *rows]) == 2
        assert "constraints" in capsys.readouterr().err
        for start in ("run/placement.json", "run"):
            again = ["train", "g.graph.json", "--cluster", "k80x4", "--updates", "1", "--start", start]
            assert main([*again, "--out", f"again-{start.partition('/')[2]}"]) == 0
        assert main([*again[:-1], "."]) == 2
        assert "it is a folder" in capsys.readouterr().err

    def test_what_cannot_hold_is_said_in_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "g.graph.json", "--cluster", "k80x2", "--pin", "layr0=gpu:1"]) == 2
        assert "did you mean 'layer0'" in capsys.readouterr().err
        assert main(["train", "--resume", "nowhere", "--start", "p.json"]) == 2
        assert "leave out --start" in capsys.readouterr().err
