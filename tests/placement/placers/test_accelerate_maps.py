"""Accelerate's own device maps as rows: those that Accelerate makes, on the groups of its target."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import placement
from envs.problem import PlacementProblem
from graphs.colocation.whole_modules import whole_modules
from graphs.errors import NotServedError
from placement.placers.base import Budget, Placed
from placement.registry import get_placer

LAYERS = 6
MODEL = f"""
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(16, width)
        self.outer = nn.Linear(width, 16)

    def forward(self, x):
        return x + self.outer(torch.relu(self.inner(x)))


class Blocks(nn.Module):
    _no_split_modules = ["Block"]

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.blocks = nn.ModuleList(Block(16 * (1 + i)) for i in range({LAYERS}))
        self.head = nn.Linear(16, 20)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make():
    return {{"model": Blocks(), "example_batch": {{"ids": torch.zeros(4, 3, dtype=torch.long)}}, "training": False}}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    name = f"blocks_of_{tmp_path.name}".replace("-", "_")
    Path(f"{name}.py").write_text(MODEL)
    return f"python:{name}:make"


def place(name: str, problem: PlacementProblem) -> Placed:
    return get_placer(name).function(problem, budget=Budget(), rng=np.random.default_rng(0))


def model_of(source: str) -> nn.Module:
    model: nn.Module = sys.modules[source.split(":")[1]].make()["model"]
    return model


@pytest.mark.parametrize("name", ["accelerate_balanced", "accelerate_sequential"])
def test_groups_are_where_accelerate_puts_their_modules(source: str, name: str) -> None:
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    problem = placement.make_problem(source, "k80x2:memory_bytes=40000", target="accelerate")
    placed = place(name, problem)
    model = model_of(source)
    limits: dict[int | str, int] = {0: 40000, 1: 40000, "cpu": 2**40}
    if name == "accelerate_balanced":
        limits = get_balanced_memory(model, limits, no_split_module_classes=["Block"])
    devices = infer_auto_device_map(model, limits, no_split_module_classes=["Block"])
    assert set(devices.values()) == {0, 1}
    groups = whole_modules(problem.graph)
    names = problem.cluster.device_names
    for path, device in devices.items():
        group = next(g for g, members in enumerate(groups.members) if path in members or f"{path}.0" in members)
        assert names[placed.placement[group]] == f"gpu:{device}", path
    assert placed.evaluations == 1
    assert "parts" not in placed.note


def test_rows_of_the_comparison_and_what_is_not_served(source: str) -> None:
    problem = placement.make_problem(source, "k80x2", target="accelerate")
    rows = placement.compare(problem, ["accelerate_balanced", "accelerate_sequential"], time_limit_s=1).rows
    balanced, sequential = rows
    assert balanced.feasible
    assert balanced.note == "auto is the same"
    assert (
        sequential.step_time_s
        == problem.evaluate_one(placement.simulate(problem, "single_device").op_placement).step_time_s[0]
    )
    engine = placement.make_problem(source, "k80x2")
    no_model = placement.make_problem(problem.graph, "k80x2", target="accelerate")
    small = placement.make_problem(source, "k80x2:memory_bytes=9000", target="accelerate")
    for other, said in ((engine, "for --target"), (no_model, "no model behind"), (small, "modules to the CPU")):
        with pytest.raises(NotServedError) as refused:
            place("accelerate_balanced", other)
        assert said in refused.value.reason
