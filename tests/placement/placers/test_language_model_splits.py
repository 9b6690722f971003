"""How llama.cpp and Accelerate split a language model: by rules written down again, and asked for by themselves."""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from envs.make_problem import make_problem
from envs.problem import PlacementProblem, ProblemNames
from graphs.computation_graph import ComputationGraph
from graphs.errors import NotServedError
from graphs.layers import Layers, find_layers
from graphs.sources import load_graph
from graphs.synthetic import random_graph
from placement.placers import accelerate_maps, llama_cpp
from placement.placers.base import Budget, Placed
from placement.results.comparison import compare_placers, quick_placers
from tests.graphs.language_models import SMALL, source_of, two_cards_and_a_cpu
from tests.placement.placer_problems import training_problem


def f32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def as_llama_cpp_does(num_layers: int, ngl: int, free: list[int]) -> list[int]:
    """``load_tensors`` of llama.cpp, line by line: a device for each layer and the output, -1 for the CPU."""
    splits, total = [], 0.0
    for size in free:
        total = f32(total + f32(size))
        splits.append(total)
    splits = [f32(split / total) for split in splits]
    start = max(num_layers + 1 - ngl, 0)
    offloaded = min(ngl, num_layers + 1)
    return [
        -1 if i < start or i - start >= offloaded else bisect_right(splits, f32((i - start) / offloaded))
        for i in range(num_layers + 1)
    ]


@pytest.mark.parametrize("num_layers", [1, 2, 7, 32, 80])
@pytest.mark.parametrize("free", [[10], [24, 12], [1, 1, 1], [7, 3, 11, 5]])
def test_the_split_is_that_of_llama_cpp(num_layers: int, free: list[int]) -> None:
    layers = Layers("layers", num_layers, np.zeros(1, dtype=np.int64))
    sizes = [size * 10**9 for size in free]
    for ngl in range(num_layers + 2):
        made = llama_cpp.split(layers, ngl, np.array(sizes)).tolist()
        assert made == as_llama_cpp_does(num_layers, ngl, sizes)


def test_a_split_by_hand() -> None:
    layers = Layers("layers", 4, np.zeros(1, dtype=np.int64))
    assert llama_cpp.split(layers, 5, np.array([3, 1])).tolist() == [0, 0, 0, 0, 1]  # places 0, .2, .4, .6, .8
    assert llama_cpp.split(layers, 4, np.array([1, 1])).tolist() == [-1, 0, 0, 1, 1]
    assert llama_cpp.split(layers, 0, np.array([1, 1])).tolist() == [-1] * 5


SOURCE = source_of("phase=decode,context=512,batch=4", num_hidden_layers=12)


@cache
def captured() -> ComputationGraph:
    return load_graph(SOURCE)


@cache
def decoding(share: float) -> PlacementProblem:
    """A model of some 20 MB on two cards of 22.8 and 11.4 GB times a share, and a CPU; as if made by its name."""
    problem = make_problem(captured(), two_cards_and_a_cpu(share, 1.0), groups=16)
    return replace(problem, names=ProblemNames(SOURCE, None, 16))


def ask(problem: PlacementProblem, placer: object) -> Placed:
    return placer(problem, budget=Budget(), rng=np.random.default_rng(0))  # type: ignore[operator]


@pytest.mark.parametrize("share", [1.0, 5e-4, 2e-4])
def test_llama_cpp_offloads_the_most_layers_that_fit(share: float) -> None:
    problem = decoding(share)
    placed = ask(problem, llama_cpp.place)
    layers = find_layers(problem.graph)
    assert layers is not None
    ngl = int(placed.note.split()[1])
    wanted = as_llama_cpp_does(12, ngl, problem.cluster.memory_bytes[1:].tolist())
    ops = problem.to_ops(placed.placement)
    held = problem.graph.resident_bytes.sum(axis=1) > 0
    for i, gpu in enumerate(wanted):
        assert set(ops[held & (layers.of_op == i)]) == {gpu + 1}  # the CPU is device 0
    assert set(ops[held & (layers.of_op == -1)]) == {0}
    assert problem.evaluate_one(placed.placement).feasible[0]
    assert (ngl == 13) == (share == 1.0)
    if ngl < 13:  # one more does not fit: with it some card keeps more than it has, or the simulator says so
        more = as_llama_cpp_does(12, ngl + 1, problem.cluster.memory_bytes[1:].tolist())
        moved = ops.copy()
        for i, gpu in enumerate(more):
            moved[(layers.of_op == i) & problem.op_allowed[:, gpu + 1]] = gpu + 1
        assert not problem.evaluate_ops(moved[None]).feasible[0]


def test_llama_cpp_is_for_language_models_on_accelerators() -> None:
    with pytest.raises(NotServedError, match="language model's step"):
        ask(training_problem(6, 2, seed=1), llama_cpp.place)
    with pytest.raises(NotServedError, match="language model's step"):
        ask(make_problem(SOURCE, "cpu_cores:2"), llama_cpp.place)


@pytest.mark.parametrize("share", [1.0, 3e-4])
@pytest.mark.parametrize("balanced", [True, False])
def test_accelerate_is_asked_of_the_model_as_it_is_loaded(share: float, balanced: bool) -> None:
    accelerate = pytest.importorskip("accelerate")
    import torch
    from accelerate.utils import get_balanced_memory
    from transformers import AutoModelForCausalLM, LlamaConfig

    problem = decoding(share)
    sizes: dict[str, Any] = SMALL | {"num_hidden_layers": 12}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=torch.bfloat16)
    memory: dict[int | str, int] = dict(enumerate(problem.cluster.memory_bytes[1:].tolist()))
    memory["cpu"] = int(problem.cluster.memory_bytes[0])
    whole = ["LlamaDecoderLayer"]
    if balanced:
        memory = get_balanced_memory(model, memory, no_split_module_classes=whole)
    expected = accelerate.infer_auto_device_map(model, memory, no_split_module_classes=whole)
    placed = ask(problem, accelerate_maps.place_balanced if balanced else accelerate_maps.place_sequential)
    ops, graph = problem.to_ops(placed.placement), problem.graph
    index = {"cpu": 0, 0: 1, 1: 2}
    checked = 0
    for op, name in enumerate(graph.op_names):
        path = graph.module_names[graph.module[op]].removeprefix("model.")
        entries = [key for key in expected if key == "" or path == key or path.startswith(f"{key}.")]
        if graph.resident_bytes[op].any() and entries:
            assert ops[op] == index[expected[max(entries, key=len)]], name
            checked += 1
    assert checked > 50
    left = sum(device == "cpu" for device in expected.values())
    assert (left > 0) == (share < 1.0)
    assert ("to the CPU" in placed.note) == (left > 0)


def test_the_rows_stand_in_a_comparison() -> None:
    problem = decoding(3e-4)
    chosen = [i for i in quick_placers(problem) if i.name in ("llama_cpp", "accelerate_balanced", "contiguous")]
    assert len(chosen) == 3
    rows = {row.placer: row for row in compare_placers(problem, chosen, budget=Budget(evaluations=300)).rows}
    assert rows["llama_cpp"].feasible
    assert rows["contiguous"].feasible
    assert rows["accelerate_balanced"].step_time_s is not None


def test_other_graphs_have_no_such_rows() -> None:
    names = {info.name for info in quick_placers(make_problem(random_graph(10, seed=1), "k80x2"))}
    assert not names & {"llama_cpp", "accelerate_balanced", "accelerate_sequential"}
