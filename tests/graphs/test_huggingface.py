"""A language model by its configuration: the cache and stored weights are what arithmetic says, and no code is run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster
from envs.make_problem import make_problem
from graphs.computation_graph import RESIDENT_PARTS, ComputationGraph
from graphs.errors import InputError
from graphs.files import load_graph_file, save_graph_file
from graphs.sources import check_can_run, load_graph
from placement.placers import contiguous
from placement.placers.base import Budget
from tests.graphs.language_models import LLAMA_70B, SMALL, source_of, two_cards_and_a_cpu
from tests.memory import growth


def named(settings: str, kind: str = "llama", **sizes: int) -> ComputationGraph:
    return load_graph(source_of(settings, kind, **sizes))


def resident(graph: ComputationGraph, part: str, ends: str = "") -> int:
    column = graph.resident_bytes[:, RESIDENT_PARTS.index(part)]
    return int(sum(column[i] for i, name in enumerate(graph.op_names) if name.endswith(ends)))


def matrices(config: dict[str, int]) -> int:
    """Weights in the linear layers of all blocks of a Llama."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    return config["num_hidden_layers"] * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner)


def stored_bytes(config: dict[str, int], weights: str) -> float:
    """Bytes of a Llama in bfloat16 whose blocks' matrices are stored in few bits, without biases."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    rest = 2 * (2 * config["vocab_size"] * hidden + (2 * layers + 1) * hidden)
    rows = layers * (2 * hidden + 2 * kv + 2 * inner + hidden)
    each = {"": 2 * matrices(config), "int8": matrices(config) + 2 * rows, "int4": matrices(config) * (0.5 + 4 / 64)}
    return rest + each[weights]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("weights", ["", "int8", "int4"])
def test_weights_cache_and_flops_are_those_of_arithmetic(phase: str, weights: str) -> None:
    batch, context = 4, 128
    setting = f",weights={weights}" if weights else ""
    graph = named(f"phase={phase},batch={batch},context={context}{setting}")
    assert graph.parameter_bytes == stored_bytes(SMALL, weights)
    for what in ("key_cache", "value_cache"):
        assert (
            resident(graph, "constant", what) == 2 * 2 * batch * 2 * context * 32
        )  # layers, bytes, B, heads, S, width
    read = batch * (context if phase == "prefill" else 1)
    assert graph.tokens == read
    head = 2 * batch * 256 * 1000  # only the last position of each sequence
    attention = 2 * 4 * batch * 8 * (read // batch) * context * 32
    assert graph.total_flops == 2 * read * matrices(SMALL) + head + attention
    if phase == "decode":  # each weight and the cache are read once
        assert graph.bytes_accessed.sum() >= 0.9 * graph.parameter_bytes - 1000 * 256 * 2


def test_a_cache_stays_where_it_is_written() -> None:
    graph = named("phase=decode,context=64")
    caches = [i for i, name in enumerate(graph.op_names) if name.endswith("_cache")]
    assert len(caches) == 4
    for i in caches:
        together = np.flatnonzero(graph.colocation == graph.colocation[i])
        assert graph.colocation[i] >= 0
        assert any(graph.type_names[graph.op_type[j]].startswith("copy") for j in together)
        assert graph.module_names[graph.module[i]].endswith("self_attn")


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("mistral", {}),
        ("qwen3", {}),
        ("gemma2", {"head_dim": 32}),
        ("mixtral", {"num_local_experts": 4}),
    ],
)
def test_other_architectures_have_a_cache_too(kind: str, sizes: dict[str, int]) -> None:
    graph = named("phase=decode,batch=2,context=64", kind, **sizes)
    assert sum(name.endswith("key_cache") for name in graph.op_names) == 2
    assert graph.tokens == 2
    assert graph.total_flops > 0


def test_a_folder_is_read_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    config: dict[str, Any] = {"model_type": "llama", **SMALL, "dtype": "float16", "quantization_config": {"bits": 4}}
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    config |= {"_attn_implementation": "someone/kernels", "attn_implementation": "someone/kernels"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    for source in (f"hf:{tmp_path}:context=64", f"hf:{tmp_path / 'config.json'}:context=64"):
        graph = load_graph(source)
        assert graph.name == source
        assert graph.parameter_bytes == stored_bytes(SMALL, "int4")
    config["model_type"] = "evil"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is 'evil', which is no architecture"):
        load_graph(f"hf:{tmp_path}")


def test_the_number_of_tokens_survives_files(tmp_path: Path) -> None:
    graph = named("phase=decode,batch=3,context=32")
    save_graph_file(graph, tmp_path / "g.graph.json")
    again = load_graph_file(tmp_path / "g.graph.json")
    assert (again.tokens, again.sha256) == (3, graph.sha256)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("hf:", ["names no configuration", "hf:FOLDER"]),
        ("hf:lama", ["'lama'", "did you mean 'llama'"]),
        ("hf:/no/where", ["there is no /no/where/config.json", "nothing is downloaded"]),
        ("hf:llama:phase=train", ["'train'", "decode, prefill"]),
        ("hf:llama:weights=int3", ["'int3'", "int4, int8"]),
        ("hf:llama:batch=0", ["batch is '0'", "whole number from 1"]),
        ("hf:llama:batch=1,batch=2", ["'batch=2'", "write each once"]),
        ("hf:llama:layers=2", ["'layers'", "num_hidden_layers"]),
        ("hf:llama:context=999999", ["more than the 2048 positions", "context=2048"]),
        ("hf:t5", ["no causal language model", "python:module:function"]),
        ("hf:mamba:num_hidden_layers=1", ["no step with a static cache", "python:module:function"]),
        ("hf:gpt2:n_layer=1,weights=int4", ["a matrix outside a linear layer", "leave it out"]),
    ],
)
def test_what_is_wrong_is_one_sentence(source: str, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        load_graph(source)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": 3}', "{}", "[" * 100_000])
def test_a_bad_config_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError) as error:
        load_graph(f"hf:{tmp_path}")
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_it_cannot_be_run() -> None:
    with pytest.raises(InputError, match="without weights"):
        check_can_run("hf:llama")


def plan(source: str, cluster: Cluster, evaluations: int) -> NDArray[np.int64]:
    """Place a model that the cards do not hold; returns what each device holds, added up by hand."""
    graph = load_graph(source)
    problem = make_problem(graph, cluster)
    placed = contiguous.place(problem, budget=Budget(evaluations=evaluations), rng=np.random.default_rng(0))
    assert placed.placement is not None
    evaluation = problem.evaluate(np.stack([placed.placement, np.zeros_like(placed.placement)]))
    assert bool(evaluation.feasible[0])
    assert evaluation.step_time_s[0] <= evaluation.step_time_s[1]  # of all on the CPU, were it to fit
    device = placed.placement[problem.groups.group_of_op]
    held = np.array([graph.resident_bytes[device == d].sum() for d in range(3)])
    assert held.sum() == graph.resident_bytes.sum() > cluster.memory_bytes[1:].sum()
    assert (held <= cluster.memory_bytes).all()
    return held


def test_a_model_that_no_card_holds_is_planned_on_two_unequal_ones_and_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B | {"num_hidden_layers": 8}))
    held = plan(f"hf:{tmp_path}:phase=decode,context=8192,batch=4,weights=int4", two_cards_and_a_cpu(0.17, 0.085), 1500)
    assert (held > 0).all()  # no two of them would do


@pytest.mark.slow
def test_seventy_billion_parameters_are_captured_in_a_minute_and_4_gb(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    source = f"hf:{tmp_path}:phase=decode,context=8192,batch=4,weights=int4"
    start_s = time.process_time()
    with growth() as grown:
        graph = load_graph(source)
    assert time.process_time() - start_s < 60
    assert max(grown, default=0) < 3.5e9  # a process that has captured nothing holds half a gigabyte
    assert graph.parameter_bytes == stored_bytes({k: v for k, v in LLAMA_70B.items() if isinstance(v, int)}, "int4")
    assert resident(graph, "constant", "_cache") == 2 * 2 * 80 * 4 * 8 * 8192 * 128
    plan(source, two_cards_and_a_cpu(1, 1), 3000)
