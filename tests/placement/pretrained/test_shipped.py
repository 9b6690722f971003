"""The weights that are shipped, and going on from them on one problem."""

from pathlib import Path

import numpy as np
import pytest
import torch

import placement
from graphs.errors import InputError
from placement.placers.base import Budget
from placement.pretrained.network import FILE, digest, load, shapes
from placement.registry import PLACERS
from placement.runs.directory import load_problem, read_config
from placement.runs.record import resume_trainer
from placement.runs.training import train
from tests.placement.pretrained.small import problem


def test_weights_are_shipped_with_a_card() -> None:
    weights = load()
    assert FILE.stat().st_size < 10 * 2**20
    card = (FILE.parent / "README.md").read_text()
    assert digest(weights) in card
    assert set(weights) == set(shapes())


def test_the_policy_is_a_placer_beside_the_others() -> None:
    placed = problem(2, ops=30)
    compared = placement.compare(placed, ["heft", "pretrained"])
    by_name = {row.placer: row for row in compared.rows}
    assert by_name["pretrained"].feasible
    mine_s, heft_s = by_name["pretrained"].step_time_s, by_name["heft"].step_time_s
    assert mine_s is not None
    assert heft_s is not None
    assert mine_s <= heft_s
    assert "placements written" in by_name["pretrained"].note
    few = PLACERS["pretrained"].function(placed, budget=Budget(evaluations=12), rng=np.random.default_rng(0))
    assert few.evaluations <= 12


def test_reinforce_goes_on_from_the_weights_and_is_resumed_to_the_same_result(tmp_path: Path) -> None:
    placed = problem(1, ops=30)
    straight = train(placed, preset="pretrained", updates=4, seed=1)
    first = train(placed, preset="pretrained", updates=2, seed=1, run_dir=tmp_path / "run")
    assert first.updates == 2
    done = placement.train(updates=4, resume=True, out=tmp_path / "run")
    assert done.result.step_time_s == straight.result.step_time_s
    assert done.result.ops == straight.result.ops
    assert read_config(tmp_path / "run").preset == "pretrained"
    trainer = resume_trainer(load_problem(tmp_path / "run", read_config(tmp_path / "run")), tmp_path / "run")
    learned = trainer.policy.state_dict()
    shipped = load()
    assert len(learned) == len(shapes())
    assert any(
        not torch.equal(tensor, torch.from_numpy(shipped[name]))
        for name, tensor in zip(shapes(), learned.values(), strict=True)
    )


def test_a_run_of_the_preset_has_no_chains() -> None:
    with pytest.raises(InputError, match="has no search"):
        train(problem(), preset="pretrained", updates=1, chains=2)
