"""Training: it finds optima, repeats itself, survives interruption, and tells TensorBoard."""

from __future__ import annotations

import dataclasses
import math
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs.clusters.catalog import load_cluster
from envs.problem import PlacementProblem
from graphs import zoo
from graphs.colocation.rules import colocate
from graphs.errors import InputError
from placement.learning import parallel_search
from placement.learning.config import PRESETS, LearningConfig
from placement.learning.learner import LEARNED
from placement.learning.pace import TimedPace
from placement.learning.placer import place, place_paper
from placement.learning.stats import UpdateStats
from placement.learning.trainer import Trainer
from placement.learning.warm_start import Start, heuristic_start
from placement.move_search.kernel import FEATURE_NAMES
from placement.move_search.plan import MOVES_AN_OP
from placement.move_search.search import MoveSearch
from placement.placers.base import Budget
from placement.registry import PLACERS
from placement.runs import checkpoint
from placement.runs.checkpoint import FILE_NAME
from placement.runs.record import TrainingRecord, draw_from_s, resume_trainer
from placement.runs.telemetry import STEP_TAGS
from tests import forked
from tests.placement.problems import branches, optimum_s, with_settings

SMALL = with_settings(
    PRESETS["default"], hidden_size=16, embedding_size=4, samples=8, imitation_updates=3, search_moves=24
)
"""The default preset, small enough for tests."""

TINY_PAPER = with_settings(PRESETS["paper"], hidden_size=32, embedding_size=8, learning_rate=1e-3)
"""The paper's preset; sizes and the learning rate, on which the paper is silent, are for a problem of ten groups."""


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return list(trainer.policy.state_dict().values())


def same(a: Trainer, b: Trainer) -> None:
    assert a.updates == b.updates
    assert a.evaluations == b.evaluations
    assert a.best_s == b.best_s
    assert a.best_placement is not None
    assert b.best_placement is not None
    assert a.best_placement.tobytes() == b.best_placement.tobytes()
    for x, y in zip(weights(a), weights(b), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("seed", range(5))
def test_the_paper_preset_reaches_the_optimum_of_a_tiny_problem(seed: int) -> None:
    problem = branches(2, 4, seed=1)
    assert problem.num_groups == 10
    best = optimum_s(problem)
    trainer = Trainer(problem, config=TINY_PAPER, seed=seed)
    trainer.run(updates=400, should_stop=lambda: trainer.best_s <= best)
    assert trainer.best_s == best


def test_the_paper_preset_learns_and_does_not_only_stumble() -> None:
    """Of 1,024 placements one is best; the mean of its samples comes within 5% of it from 30% or more above."""
    problem = branches(2, 4, seed=1)
    stats: list[UpdateStats] = []
    Trainer(problem, config=TINY_PAPER, seed=1).run(updates=350, on_update=stats.append)
    best = optimum_s(problem)
    assert np.mean([s.mean_s for s in stats[:5]]) > 1.3 * best
    assert np.mean([s.mean_s for s in stats[-5:]]) < 1.05 * best


@pytest.mark.parametrize("config", [SMALL, TINY_PAPER], ids=["default", "paper"])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path, config: LearningConfig) -> None:
    problem = branches(5, 4, seed=2)
    whole = Trainer(problem, config=config, seed=7)
    whole.run(updates=20)
    first = Trainer(problem, config=config, seed=7)
    first.run(updates=10, observer=TrainingRecord(first, tmp_path))
    second = resume_trainer(problem, tmp_path)
    assert second.updates == 10
    second.run(updates=20)
    same(whole, second)


def test_a_run_that_needed_no_policy_keeps_none_and_a_resumed_one_makes_that_of_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = branches(5, 4, seed=2)
    first = Trainer(problem, config=SMALL, seed=7)
    with monkeypatch.context() as patched:
        patched.setattr(TimedPace, "policy_is_due", lambda pace: False)
        first.run(time_limit_s=0.05, observer=TrainingRecord(first, tmp_path))
    assert [getattr(first.state(), key) for key in LEARNED] == [None] * len(LEARNED)
    second = resume_trainer(problem, tmp_path)
    assert second.best_s == first.best_s < np.inf
    for mine, fresh in zip(weights(second), weights(Trainer(problem, config=SMALL, seed=7)), strict=True):
        assert torch.equal(mine, fresh)
    second.run(updates=second.updates + 2)
    resumed = second.state()
    assert resumed.policy is not None
    checkpoint.save(tmp_path, problem, replace(resumed, policy=None))
    with pytest.raises(InputError, match="policy"):
        checkpoint.load(tmp_path, problem)


def numpy_state() -> np.ndarray:
    """The state of NumPy's global generator."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(state, dict)
    return np.asarray(state["state"]["key"])


def test_the_same_seed_is_the_same_run_and_touches_no_global_generator() -> None:
    problem = branches(4, 3, seed=3)
    runs = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        np.random.default_rng(noise)
        before = torch.get_rng_state(), numpy_state().copy()
        threads = torch.get_num_threads()
        trainer = Trainer(problem, config=SMALL, seed=5)
        trainer.run(updates=8)
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == numpy_state()).all()
        assert torch.get_num_threads() == threads
        runs.append(trainer)
    same(*runs)
    other = Trainer(problem, config=SMALL, seed=6)
    other.run(updates=8)
    assert not torch.equal(weights(other)[0], weights(runs[0])[0])


CHILD = """
import sys
from pathlib import Path
from placement.learning.trainer import Trainer
from tests.placement.problems import branches
from placement.runs.record import TrainingRecord
from tests.placement.learning.test_trainer import SMALL
trainer = Trainer(branches(5, 4, seed=2), config=SMALL, seed=7)
record = TrainingRecord(trainer, Path(sys.argv[1]), interval_s=0.0)
trainer.run(updates=100000, on_update=lambda stats: print(stats.update, flush=True), observer=record)
print("interrupted" if trainer.interrupted else "done", trainer.updates, flush=True)
"""


def start_child(run_dir: Path, *, until: int) -> subprocess.Popen[str]:
    """A training run in a process of its own that has done at least `until` updates."""
    child = forked.Popen([sys.executable, "-c", CHILD, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= until:
            break
    return child


def test_a_killed_run_leaves_a_whole_checkpoint_and_resumes_to_the_same_result(tmp_path: Path) -> None:
    child = start_child(tmp_path, until=6)
    child.send_signal(signal.SIGKILL)
    child.wait()
    problem = branches(5, 4, seed=2)
    resumed = resume_trainer(problem, tmp_path)
    assert resumed.updates >= 5
    target = resumed.updates + 5
    resumed.run(updates=target, observer=TrainingRecord(resumed, tmp_path))
    whole = Trainer(problem, config=SMALL, seed=7)
    whole.run(updates=target)
    same(whole, resumed)
    steps = [event.step for event in events(tmp_path).Scalars("step_time/best_s")]
    assert steps == list(range(1, target + 1)), "no update is shown twice, or missing"


def test_ctrl_c_ends_the_update_and_keeps_everything(tmp_path: Path) -> None:
    child = start_child(tmp_path, until=3)
    child.send_signal(signal.SIGINT)
    assert child.stdout is not None
    last = child.stdout.read().split("\n")[-2]
    assert child.wait() == 0
    word, updates = last.split()
    assert word == "interrupted"
    resumed = resume_trainer(branches(5, 4, seed=2), tmp_path)
    assert resumed.updates == int(updates)
    assert np.isfinite(resumed.best_s)


def test_a_keyboard_interrupt_from_the_callback_ends_the_run_cleanly(tmp_path: Path) -> None:
    def stop(stats: UpdateStats) -> None:
        if stats.update == 4:
            raise KeyboardInterrupt

    trainer = Trainer(branches(3, 2), config=SMALL)
    trainer.run(updates=50, on_update=stop, observer=TrainingRecord(trainer, tmp_path))
    assert trainer.interrupted
    assert trainer.updates == 4
    assert resume_trainer(branches(3, 2), tmp_path).updates == 4


def test_a_time_limit_and_should_stop_end_the_run() -> None:
    problem = branches(4, 3)
    trainer = Trainer(problem, config=SMALL)
    trainer.run(updates=1)
    started = time.perf_counter()
    trainer.run(time_limit_s=0.3)
    assert time.perf_counter() - started < 60.0  # on a busy machine; without the limit it would never end
    count = trainer.updates
    assert count > 1
    trainer.run(updates=10**6, should_stop=lambda: True)
    assert trainer.updates == count
    with pytest.raises(InputError, match="limit"):
        trainer.run()


def test_a_graph_of_many_ops_gets_a_shorter_search(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = branches(5, 4)
    counts = []
    for ops in (50, 500):
        monkeypatch.setattr("placement.learning.pace.OPS_AN_UPDATE", ops * problem.graph.num_ops)
        trainer = Trainer(problem, config=replace(SMALL, search_moves=512))
        trainer.run(updates=1)
        before = trainer.evaluations
        trainer.run(updates=2)
        counts.append(trainer.evaluations - before - SMALL.update.samples - 1)
    assert 50 < counts[0] <= SMALL.search.chains * (50 + 1)
    assert 500 < counts[1] <= SMALL.search.chains * (500 + 1)


@pytest.mark.parametrize("evaluations", [3, 40, 101])
def test_a_number_of_evaluations_is_kept_to_exactly(evaluations: int) -> None:
    trainer = Trainer(branches(5, 3), config=SMALL)
    trainer.run(evaluations=evaluations)
    assert trainer.evaluations == evaluations
    assert trainer.best_placement is not None


def test_a_checkpoint_of_another_problem_is_refused(tmp_path: Path) -> None:
    problem = branches(3, 2)
    with pytest.raises(InputError, match="no checkpoint"):
        resume_trainer(problem, tmp_path)
    trainer = Trainer(problem, config=SMALL)
    trainer.run(updates=1, observer=TrainingRecord(trainer, tmp_path))
    with pytest.raises(InputError, match="another graph"):
        resume_trainer(branches(3, 2, seed=9), tmp_path)
    with pytest.raises(InputError, match=r"another schedule.*'priority'"):
        resume_trainer(problem.with_schedule("fifo"), tmp_path)
    slower = replace(problem.cluster, links=tuple(replace(x, latency_s=1.0) for x in problem.cluster.links))
    with pytest.raises(InputError, match="another cluster"):
        resume_trainer(replace(problem, cluster=slower), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "text", "pickle"])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: str) -> None:
    problem = branches(3, 2)
    path = tmp_path / FILE_NAME
    trainer = Trainer(problem, config=SMALL)
    trainer.run(updates=1, observer=TrainingRecord(trainer, tmp_path))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "text":
        path.write_text("not a checkpoint")
    else:
        torch.save({"format": Path}, path)  # needs a class to be imported: refused, not executed
    with pytest.raises(InputError, match="damaged"):
        resume_trainer(problem, tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def events(run_dir: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    accumulator.Reload()
    return accumulator


def test_every_documented_tag_is_written_at_every_update(tmp_path: Path) -> None:
    problem = branches(3, 2)
    stats: list[UpdateStats] = []
    trainer = Trainer(problem, config=SMALL)
    record = TrainingRecord(trainer, tmp_path, draw_from_s=0.0)
    trainer.run(updates=5, on_update=stats.append, observer=record)
    written = events(tmp_path)
    assert set(STEP_TAGS) <= set(written.Tags()["scalars"])
    for tag, key in STEP_TAGS.items():
        values = [event.value for event in written.Scalars(tag)]
        assert values == pytest.approx([getattr(s, key) for s in stats], rel=1e-6)
    for feature in FEATURE_NAMES:
        values = [event.value for event in written.Scalars(f"search/weight/{feature}")]
        assert values == pytest.approx([s.search_weights[feature] for s in stats], rel=1e-5, abs=1e-7)
    assert trainer.best_placement is not None
    assert [image.step for image in written.Images("trace/best")] == [5]
    for d, name in enumerate(problem.cluster.device_names):
        busy_s = problem.op_time_s[d, problem.to_ops(trainer.best_placement) == d].sum()
        busy = written.Scalars(f"device/{name}/busy")[-1].value
        assert busy == pytest.approx(busy_s / trainer.best_s, rel=1e-6)
        peak = problem.evaluate_one(trainer.best_placement).peak_memory_bytes[0, d]
        assert written.Scalars(f"device/{name}/peak_memory_bytes")[-1].value == pytest.approx(float(peak), rel=1e-6)


def test_a_brief_training_leaves_no_picture(tmp_path: Path) -> None:
    trainer = Trainer(branches(3, 2), config=SMALL)
    trainer.run(updates=1, observer=TrainingRecord(trainer, tmp_path, draw_from_s=draw_from_s(None)))
    assert events(tmp_path).Tags()["images"] == []
    assert [draw_from_s(limit_s) for limit_s in (None, 14.9, 15.0, 60.0)] == [15.0, math.inf, 0.0, 0.0]


def test_tensorboard_has_charts_of_what_belongs_together_and_settings_to_compare(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    problem = branches(3, 2)
    trainer = Trainer(problem, config=SMALL, seed=7)
    reference_s = {"step_time/other_s": 0.25, "step_time/lower_bound_s": 0.125}
    trainer.run(updates=2, observer=TrainingRecord(trainer, tmp_path, reference_s=reference_s))
    written = events(tmp_path)
    for tag, value in reference_s.items():
        assert [event.value for event in written.Scalars(tag)] == [value, value]
    (name,) = written.PluginTagToContent("custom_scalars")
    layout = layout_pb2.Layout.FromString(written.Tensors(name)[-1].tensor_proto.string_val[0])
    known = written.Tags()["scalars"]
    shown: dict[str, set[str]] = {}
    for category in layout.category:
        for chart in category.chart:
            shown[chart.title] = {tag for tag in known for p in chart.multiline.tag if re.fullmatch(p, tag)}
            assert shown[chart.title], chart.title
    devices = problem.cluster.device_names
    assert shown["busy (share of the step)"] == {f"device/{device}/busy" for device in devices}
    assert shown["memory (share of each device's)"] == {f"device/{device}/memory_share" for device in devices}
    assert set(reference_s) < shown["step time (s)"]
    begin = plugin_data_pb2.HParamsPluginData.FromString(
        written.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    )
    settings = begin.session_start_info.hparams
    assert settings["seed"].number_value == 7
    assert settings["cluster"].string_value == problem.cluster.name
    for d, device in enumerate(devices):
        peak = written.Scalars(f"device/{device}/peak_memory_bytes")[-1].value
        share = written.Scalars(f"device/{device}/memory_share")[-1].value
        assert share == pytest.approx(peak / problem.cluster.memory_bytes[d], rel=1e-6)


def test_the_default_preset_is_never_behind_what_it_starts_from() -> None:
    problem = branches(6, 4, seed=4)
    start = heuristic_start(problem, evaluations=None, rng=np.random.default_rng(0))
    names = {name for name, info in PLACERS.items() if not info.learns and not info.searches}
    assert {"single_device", "round_robin", "random", "heft", "etf"} <= set(start.placements) <= names
    best = problem.evaluate(np.stack(list(start.placements.values()))).cost_s().min()
    trainer = Trainer(problem, config=SMALL)
    trainer.run(updates=1)
    assert trainer.best_s <= best


def short_of_memory() -> PlacementProblem:
    """Two devices that each hold a little more than half of the parameters."""
    problem = branches(4, 2, seed=1, resident_bytes=10**8)
    small = tuple(replace(d, spec=replace(d.spec, memory_bytes=450 * 10**6)) for d in problem.cluster.devices)
    return replace(problem, cluster=replace(problem.cluster, devices=small))


def test_a_chain_walks_while_the_heuristics_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = branches(6, 4, seed=4)
    asked = threading.Event()
    walks: list[tuple[int, bool]] = []
    own = MoveSearch.start

    def start(self: MoveSearch, moves: int, **given: Any) -> list[Future[None]]:
        begun = own(self, moves, **given)
        walks.append((len(begun), asked.is_set()))
        return begun

    def slow_start(*args: Any, **given: Any) -> Start:
        answers = heuristic_start(*args, **given)
        time.sleep(0.2)  # the chain must not need to be waited for
        asked.set()
        return answers

    monkeypatch.setattr(MoveSearch, "start", start)
    monkeypatch.setattr(parallel_search, "heuristic_start", slow_start)
    trainer = Trainer(problem, config=PRESETS["moves"])
    trainer.run(time_limit_s=0.5)
    assert walks[0] == (1, False)
    assert walks[1][1], "the run of the chains begins with the answers"
    assert walks[1][0] > 1  # fewer than all where a busy machine has left little time
    assert trainer.evaluations > 100
    assert trainer.best_placement is not None
    assert problem.evaluate_one(trainer.best_placement).step_time_s[0] == trainer.best_s


def test_a_run_too_short_for_single_ops_does_not_search_them(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = zoo.load("rnnlm:layers=2,hidden=8,steps=8,vocabulary=9,batch=2")
    problem = PlacementProblem(graph, colocate(graph, wanted_groups=12), load_cluster("k80x2"))
    trainer = Trainer(problem, config=PRESETS["moves"])
    trainer.run(evaluations=170)
    assert {cycle.stage for cycle in trainer._chains.plan.rounds[0]} == {"groups"}
    trainer.run(evaluations=100_000, updates=trainer.updates + 1)
    assert trainer._chains.plan.rounds[0][-1].stage == "ops"
    asked: list[float] = []

    def expect(search: MoveSearch, limit_s: float) -> float:
        asked.append(limit_s)
        return 1e-4

    monkeypatch.setattr(MoveSearch, "expect_seconds", expect)
    Trainer(problem, config=PRESETS["moves"]).run(time_limit_s=1.2)
    Trainer(problem, config=PRESETS["paper"]).run(time_limit_s=0.1)
    assert asked == [1.2], "once a run, and only where there is a search"


def test_a_long_run_goes_through_its_rounds_and_a_resumed_one_goes_on_in_them(tmp_path: Path) -> None:
    graph = zoo.load("rnnlm:layers=1,hidden=4,steps=2,vocabulary=5,batch=1")
    problem = PlacementProblem(graph, colocate(graph, wanted_groups=12), load_cluster("k80x2"))
    config = dataclasses.replace(PRESETS["moves"], search_moves=100)
    evaluations = int(2.5 * MOVES_AN_OP * graph.num_ops)
    walking: list[tuple[int, int]] = []

    def look(stats: UpdateStats) -> None:
        walking.append((whole._chains.state()["round"], whole._chains.num_walking))

    whole = Trainer(problem, config=config)
    whole.run(evaluations=evaluations, on_update=look)
    assert list(dict.fromkeys(walking)) == [(0, 4), (0, 2), (1, 4), (1, 2)]
    stopped = Trainer(problem, config=config)
    stopped.run(
        evaluations=evaluations,
        should_stop=lambda: stopped.updates >= walking.index((1, 4)) + 1,
        observer=TrainingRecord(stopped, tmp_path),
    )
    resumed = resume_trainer(problem, tmp_path)
    resumed.run(evaluations=evaluations)
    assert (resumed.updates, resumed.best_s) == (whole.updates, whole.best_s)
    assert resumed.best_placement is not None
    assert whole.best_placement is not None
    assert np.array_equal(resumed.best_placement, whole.best_placement)


def test_memory_is_learned_too() -> None:
    problem = short_of_memory()
    stats: list[UpdateStats] = []
    trainer = Trainer(problem, config=TINY_PAPER, seed=0)
    trainer.run(updates=80, on_update=stats.append)
    assert trainer.best_s <= 1.05 * optimum_s(problem)
    assert trainer.best_placement is not None
    assert problem.evaluate_one(trainer.best_placement).feasible.all()
    assert np.mean([s.infeasible_rate for s in stats[-10:]]) < 0.5 * np.mean([s.infeasible_rate for s in stats[:5]])


def test_where_nothing_fits_the_least_infeasible_is_kept() -> None:
    problem = short_of_memory()
    tiny = tuple(replace(d, spec=replace(d.spec, memory_bytes=350 * 10**6)) for d in problem.cluster.devices)
    problem = replace(problem, cluster=replace(problem.cluster, devices=tiny))
    trainer = Trainer(problem, config=SMALL)
    trainer.run(updates=10)
    assert trainer.best_s == np.inf
    assert trainer.best_placement is not None
    peak = problem.evaluate_one(trainer.best_placement).peak_memory_bytes[0]
    assert np.maximum(peak - 350 * 10**6, 0).sum() < 150 * 10**6


def test_the_placers_answer_with_what_training_found() -> None:
    problem = branches(3, 2)
    for function in (place, place_paper):
        placed = function(problem, budget=Budget(evaluations=60), rng=np.random.default_rng(0))
        again = function(problem, budget=Budget(evaluations=60), rng=np.random.default_rng(0))
        assert 0 < placed.evaluations <= 60  # a model may run out of new placements to propose
        assert placed.placement.tolist() == again.placement.tolist()
        assert problem.evaluate_one(placed.placement).feasible.all()
    assert placed.config["preset"] == "paper"


def test_without_the_policy_the_search_goes_on_alone_and_no_weight_changes() -> None:
    problem = branches(3, 3)
    trainer = Trainer(problem, config=PRESETS["uniform"], seed=4)
    before = [parameter.clone() for parameter in trainer.policy.parameters()]
    stats: list[UpdateStats] = []
    trainer.run(evaluations=700, on_update=stats.append)
    assert trainer.evaluations <= 700
    assert trainer.best_s == pytest.approx(optimum_s(problem))
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.parameters(), strict=True))
    assert math.isnan(stats[-1].entropy)
