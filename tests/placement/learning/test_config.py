"""Settings: presets, checks, and the flat form in which result files and checkpoints hold them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from graphs.errors import InputError
from placement.learning.config import PRESETS, LearningConfig, PolicyConfig, UpdateConfig, flatten, unflatten
from placement.learning.placer import place_with
from placement.learning.trainer import Trainer
from placement.move_search.config import MoveConfig
from placement.placers.base import Budget
from placement.runs.record import TrainingRecord, resume_trainer
from tests.placement.problems import branches, with_settings

FLAT = {
    "preset": "default",
    "paper_policy": False,
    "hidden_size": 64,
    "embedding_size": 16,
    "samples": 32,
    "learning_rate": 3e-3,
    "clip_norm": 1.0,
    "entropy_bonus": 0.01,
    "entropy_half_life": 300,
    "reward": "log",
    "baseline": "leave_one_out",
    "baseline_decay": 0.9,
    "normalise_advantage": True,
    "failing_ratio": 0.0,
    "feasible_only_after": 0,
    "warm_start": True,
    "imitation_updates": 20,
    "imitation_weight": 0.3,
    "elites": 8,
    "search_moves": 16384,
    "search_chains": 4,
    "search_survivors": 2,
    "search_learning_rate": 0.1,
    "search_kind_rate": 0.02,
    "search_uniform_share": 0.5,
    "search_finest": "ops",
    "search_advice": True,
    "learns": True,
    "screen_noise": 0.2,
}
"""The default preset as the files of 0.1.0 hold it: these names are a file format."""


def test_files_hold_the_settings_as_in_0_1_0() -> None:
    assert flatten(PRESETS["default"]) == FLAT
    assert all(flatten(preset).keys() == FLAT.keys() for preset in PRESETS.values())
    assert flatten(PRESETS["paper"])["paper_policy"] is True
    assert flatten(PRESETS["groups"])["search_finest"] == "groups"


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_a_file(preset: str) -> None:
    config = PRESETS[preset]
    assert config.preset == preset
    assert unflatten(msgspec.json.decode(msgspec.json.encode(flatten(config))), LearningConfig()) == config


def other_value(value: Any) -> Any:
    """A valid setting that differs from a default."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return {"log": "sqrt", "leave_one_out": "moving_average", "ops": "groups"}.get(value, "own")
    return value + 1 if isinstance(value, int) else value / 2 + 0.125


@pytest.mark.parametrize("name", [name for name in FLAT if name != "learns"])
def test_each_setting_has_a_place_of_its_own(name: str) -> None:
    changed = with_settings(LearningConfig(), **{name: other_value(FLAT[name])})
    assert changed != LearningConfig()
    assert flatten(changed) == FLAT | {name: other_value(FLAT[name])}
    parts = [key.name for key in fields(changed) if getattr(changed, key.name) != getattr(LearningConfig(), key.name)]
    assert len(parts) == 1


def test_a_setting_too_many_or_too_few_is_named() -> None:
    with pytest.raises(InputError, match="no setting search_depth"):
        unflatten(FLAT | {"search_depth": 3}, LearningConfig())
    with pytest.raises(InputError, match="missing: samples, search_chains"):
        unflatten({k: v for k, v in FLAT.items() if k not in ("samples", "search_chains")}, LearningConfig())


@pytest.mark.parametrize("survivors", [1, None])
def test_a_checkpoint_and_a_result_hold_them_flat(tmp_path: Path, survivors: int | None) -> None:
    problem = branches(3, 2)
    small = with_settings(PRESETS["default"], hidden_size=8, samples=4, search_chains=2, search_moves=16)
    config = with_settings(small, search_survivors=survivors)
    trainer = Trainer(problem, config=config)
    trainer.run(updates=1, observer=TrainingRecord(trainer, tmp_path))
    assert resume_trainer(problem, tmp_path).config == config
    for evaluations in (40, 3000):  # with a model that finds what to evaluate, and without
        budget = Budget(evaluations=evaluations)
        placed = place_with(problem, budget=budget, rng=np.random.default_rng(0), config=config)
        assert placed.config == flatten(config)
    assert not any(is_dataclass(value) for value in placed.config.values())


def test_the_paper_preset_is_as_published_and_starts_from_nothing() -> None:
    paper = PRESETS["paper"]
    update = paper.update
    assert (update.reward, update.baseline, update.failing_ratio) == ("sqrt", "moving_average", 4.0)
    assert (update.feasible_only_after, update.elites) == (5000, 0)
    assert (paper.warm_start, paper.search_moves) == (False, 0)
    assert paper.policy.paper


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        (UpdateConfig(), "reward", "cube"),
        (UpdateConfig(), "baseline", "critic"),
        (UpdateConfig(), "samples", 1),
        (UpdateConfig(), "learning_rate", 0.0),
        (UpdateConfig(), "elites", -1),
        (UpdateConfig(), "baseline_decay", 1.0),
        (PolicyConfig(), "hidden_size", 0),
        (MoveConfig(), "chains", 0),
        (MoveConfig(), "survivors", 3),
        (MoveConfig(), "survivors", 0),
        (MoveConfig(), "uniform_share", 1.5),
        (MoveConfig(), "finest", "kernels"),
        (LearningConfig(), "search_moves", -1),
        (LearningConfig(), "learns", False),
    ],
)
def test_a_bad_setting_is_named(settings: Any, name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        replace(settings, **{name: value})
