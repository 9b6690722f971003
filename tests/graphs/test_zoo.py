import functools
import subprocess
import sys
from pathlib import Path

import networkx
import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from graphs import zoo
from graphs.colocation.rules import colocate
from graphs.computation_graph import DTYPES, RESIDENT_PARTS
from graphs.errors import InputError
from graphs.zoo.cache import cache_file
from graphs.zoo.figures import load_figures
from graphs.zoo.int8 import Int8Linear
from scripts.capture_models import ATTENTION
from scripts.workloads import figures_of
from tests.graphs.small_workloads import SMALL


@pytest.fixture(scope="module")
def shared_path(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def shared_cache(shared_path, monkeypatch):
    """One cache for all tests of this file, so that most of them capture nothing."""
    monkeypatch.setattr("graphs.zoo.cache.user_cache_path", lambda app: shared_path / app)


@pytest.fixture
def own_cache(tmp_path, monkeypatch, shared_cache):
    monkeypatch.setattr("graphs.zoo.cache.user_cache_path", lambda app: tmp_path / app)
    return tmp_path


def uncaptured_step(spec: str):
    """The model without a capture, and PyTorch's own FLOP count of its forward and backward pass."""
    return step_of_name(zoo.canonical_name(*zoo.parse(spec)))


@functools.cache
def step_of_name(name: str):
    workload, sizes = zoo.parse(name)
    training = bool(sizes["training"])
    with FakeTensorMode():
        model, batch = zoo.build(workload, sizes)
        model.train(training)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter, torch.set_grad_enabled(training):
            output = model(**batch)
            forward = counter.get_total_flops()
            if training:
                output.backward()
    total = counter.get_total_flops()
    if workload.name == "nasnet" and training:
        # PyTorch's count of a grouped convolution's backward ignores the groups: each gradient costs as the forward,
        # and the first convolution has no gradient of its input.
        total = 3 * forward - counter.get_flop_counts()["NASNet.stem.0"][torch.ops.aten.convolution]
    return model, total


def test_importing_the_zoo_loads_no_torch():
    code = "import sys, graphs.zoo; graphs.zoo.parse('nmt:layers=4'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", SMALL)
def test_small_workload_against_the_uncaptured_step(name):
    graph = zoo.load(SMALL[name])
    model, flops = uncaptured_step(SMALL[name])
    size = sum(4 * p.numel() for p in model.parameters())
    states = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adam": 2}[zoo.ZOO[name].optimizer]
    assert graph.total_flops == flops
    assert graph.parameter_bytes == size
    assert graph.resident_bytes[:, RESIDENT_PARTS.index("optimizer")].sum() == states * size
    views = {"t", "view", "expand", "transpose", "unbind", "unsafe_split", "detach", "select", "_unsafe_view", "empty"}
    assert not views & set(graph.type_names)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rnnml", "unknown workload 'rnnml' (did you mean 'rnnlm'?); known: bert, "),
        ("rnnlm:hiden=4", "unknown setting of workload 'rnnlm' 'hiden' (did you mean 'hidden'?); known: batch"),
        ("rnnlm:hidden=zero", "workload 'rnnlm': hidden is 'zero', but must be a whole number of at least 1"),
        ("rnnlm:steps=0", "steps is '0', but must be a whole number of at least 1"),
        ("rnnlm:steps", "write settings as key=value, not 'steps'"),
        ("rnnlm:steps=2,steps=3", "steps is set twice"),
        ("nmt:attention=left", "attention is 'left', but must be one of bottom, top"),
        ("inception_v3:image=128", "the auxiliary head needs image=299 or more, not 128; add aux=0"),
    ],
)
def test_bad_names_are_refused(spec, message):
    with pytest.raises(InputError) as error:
        zoo.load(spec)
    assert message in str(error.value)


def test_the_page_of_workloads_has_all_of_them():
    page = (Path(__file__).parents[2] / "docs" / "results" / "workloads.md").read_text()
    assert [name for name in zoo.ZOO if page.count(f"| `{name}` |") != 2] == []
    for knob in set.intersection(*(set(workload.knobs) for workload in zoo.ZOO.values())):
        assert f"| `{knob}` |" in page


@pytest.mark.parametrize("name", ["resnet50", "dlrm"])
def test_the_figures_that_are_listed_are_those_of_the_captures(name):
    figures = load_figures()
    assert list(figures) == list(zoo.ZOO)
    assert figures_of(zoo.load(name)) == figures[name], "run scripts/workloads.py"


def test_names_are_shortest():
    workload, sizes = zoo.parse("nmt:batch=64,layers=4")
    assert zoo.canonical_name(workload, sizes) == "nmt:layers=4"


def test_a_second_load_comes_from_the_cache_and_is_equal(own_cache, monkeypatch):
    first = zoo.load(SMALL["rnnlm"])
    monkeypatch.setattr(zoo, "_capture", lambda *args: pytest.fail("captured again"))
    again = zoo.load("rnnlm:batch=4,vocabulary=20,steps=3,hidden=16")
    assert (again.name, again.sha256) == (first.name, first.sha256)


@pytest.mark.parametrize("damage", [b"", b"no gzip"])
def test_a_damaged_cache_file_is_replaced(damage, own_cache, caplog):
    first = zoo.load(SMALL["rnnlm"])
    path = cache_file(first.name)
    whole = path.read_bytes()
    path.write_bytes(damage or whole[: len(whole) // 2])
    assert zoo.load(SMALL["rnnlm"]).sha256 == first.sha256
    assert path.read_bytes() == whole
    assert "capturing again" in caplog.text


def test_a_cache_that_cannot_be_written_costs_no_result(own_cache, caplog):
    (own_cache / "device-placement").write_text("a file where the directory should be")
    assert zoo.load(SMALL["rnnlm"]).num_ops > 0
    assert "is not cached" in caplog.text


def test_the_cache_depends_on_sizes_torch_and_source(monkeypatch):
    names = {cache_file("rnnlm"), cache_file("rnnlm:batch=4")}
    monkeypatch.setattr("graphs.zoo.cache.version", lambda package: "9.9")
    names.add(cache_file("rnnlm"))
    monkeypatch.setattr("graphs.zoo.cache._source_digest", lambda: "other source")
    names.add(cache_file("rnnlm"))
    assert len(names) == 4


def calls(graph, module):
    return {int(graph.module_call[i]) for i in range(graph.num_ops) if graph.module_names[graph.module[i]] == module}


@pytest.mark.parametrize(("name", "training"), [(name, t) for name in SMALL for t in (0, 1)])
def test_every_op_is_in_a_module_of_the_model(name, training):
    graph = zoo.load(f"{SMALL[name]},training={training}")
    model, flops = uncaptured_step(f"{SMALL[name]},training={training}")
    assert set(graph.module_names) <= {path for path, _ in model.named_modules()}
    assert graph.total_flops == flops
    if not training:
        assert (graph.phase == 0).all()
    # The model itself does no more than cut its inputs, join what modules give, activate it, and make the loss of it.
    own = {graph.type_names[t] for t, m in zip(graph.op_type, graph.module, strict=True) if not graph.module_names[m]}
    allowed = {"input", "new_zeros", "stack", "cat", "mean", "div", "div_", "ones_like", "add", "mul", "sub", "relu"}
    allowed |= {"threshold_backward", "sigmoid", "binary_cross_entropy_with_logits"}
    allowed |= {"nll_loss_forward", "nll_loss_backward", "_log_softmax", "_log_softmax_backward_data"}
    assert own <= allowed


@pytest.mark.parametrize("name", SMALL)
def test_half_precision_halves_the_bytes(name):
    whole, half = zoo.load(SMALL[name]), zoo.load(f"{SMALL[name]},dtype=bfloat16")
    assert half.parameter_bytes * 2 == whole.parameter_bytes
    assert half.total_flops == whole.total_flops
    assert {DTYPES[i] for i in half.dtype[half.flops > 0]} == {"bfloat16"}


@pytest.mark.parametrize("name", ["transformer_lm", "bert", "moe_lm", "dlrm"])
def test_int8_products(name):
    graph = zoo.load(f"{SMALL[name]},training=0,dtype=int8")
    whole = zoo.load(f"{SMALL[name]},training=0")
    kinds = np.array(graph.type_names)[graph.op_type]
    # Attention and DLRM's interaction multiply what they have just computed; the rest are products with weights.
    by_dtype = {
        DTYPES[i]: set(kinds[(graph.dtype == i) & (graph.flops > 0)]) for i in set(graph.dtype[graph.flops > 0])
    }
    other = "bmm" if name == "dlrm" else "_scaled_dot_product_flash_attention_for_cpu"
    assert by_dtype == {"int8": {"_int_mm"}, "bfloat16": {other}}
    assert graph.total_flops == whole.total_flops
    with pytest.raises(InputError, match="int8 is for inference; add training=0"):
        zoo.load(f"{SMALL[name]},dtype=int8")


def test_an_int8_layer_computes_about_what_the_layer_did():
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    x = torch.randn(5, 7, 64)
    wanted, got = layer(x), Int8Linear(layer)(x)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_small_models_run_and_learn():
    torch.manual_seed(0)
    for name, spec in SMALL.items():
        workload, sizes = zoo.parse(spec)
        model, batch = zoo.build(workload, sizes)
        batch = {
            key: torch.randint_like(t, 2) if t.dtype == torch.int64 else torch.rand_like(t) for key, t in batch.items()
        }
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        losses = []
        for _ in range(5):
            loss = model(**batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert min(losses[-3:]) < losses[0], name


def test_the_gradient_of_a_table_is_the_rows_that_were_looked_up():
    graph = zoo.load(SMALL["dlrm"])
    update = graph.op_names.index("tables.0.weight/sgd_update")
    indices, rows = 16 * 8, 16 * 8 * 4
    assert graph.bytes_accessed[update] == indices + 3 * rows
    # Ten times the rows change what is resident, and nothing that a step does.
    larger = zoo.load(SMALL["dlrm"].replace("rows=100", "rows=1000"))
    assert larger.parameter_bytes > graph.parameter_bytes + 13 * 800 * 8 * 4
    assert np.array_equal(larger.bytes_accessed, graph.bytes_accessed)


def test_each_expert_is_a_module_that_gets_its_own_tokens_only():
    graph = zoo.load(f"{SMALL['moe_lm']},training=0")
    names = [graph.module_names[m] for m in graph.module]
    for expert in range(4):
        path = f"blocks.1.feed_forward.experts.{expert}"
        inside = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{path}.")]
        assert sum(graph.flops[inside]) == 2 * 2 * 8 * 16 * 64  # two products of its 8 tokens
        received = [
            int(graph.tensor_bytes[t])
            for t, p, c in zip(graph.edge_tensor, graph.edge_producer, graph.consumers, strict=True)
            if c in inside and p not in inside
        ]
        assert received == [8 * 16 * 4]


def test_parts_that_can_be_placed_apart_are_groups():
    def names(name, training=1):
        return set(colocate(zoo.load(f"{SMALL[name]},training={training}"), wanted_groups=10_000).names)

    experts = {f"blocks.{block}.feed_forward.experts.{i}" for block in range(2) for i in range(4)}
    assert experts <= names("moe_lm")
    assert {f"tables.{i}" for i in range(26)} <= names("dlrm")
    assert {"layers.1.attention", "layers.1.feed_forward", "word_head", "sentence_head"} <= names("bert")
    assert {"blocks.1.attention", "blocks.1.feed_forward", "head"} <= names("transformer_lm")
    assert {"cells.3.left.0.0", "cells.3.left.0.1", "cells.3.right.0.0", "cells.3.squeeze"} <= names("nasnet")
    # In inference nobody reads the counts of batches; they are no groups of their own.
    assert not any(name.endswith("/parameters") for name in names("resnet50", training=0))


def test_unrolled_steps_are_calls():
    graph = zoo.load(SMALL["nmt"])
    steps = {"encoder.0", "encoder.1", "attention", "decoder.0", "decoder.1", "softmax"}
    assert {module: calls(graph, module) for module in steps} == {module: {0, 1, 2} for module in steps}
    assert calls(graph, "encoder_embedding") == calls(graph, "attention_keys") == {0}


@pytest.mark.parametrize(("variant", "waits"), [("top", True), ("bottom", False)])
def test_whether_attention_waits_for_the_top_layer(variant, waits):
    graph = zoo.load(f"{SMALL['nmt']},attention={variant},training=0")
    names = [f"{graph.module_names[m]}@{c}" for m, c in zip(graph.module, graph.module_call, strict=True)]
    edges = networkx.DiGraph(zip(graph.edge_producer.tolist(), graph.consumers.tolist(), strict=True))
    attention = [i for i, name in enumerate(names) if name == "attention@2"][-1]
    before = {names[i] for i in networkx.ancestors(edges, attention)}
    assert "decoder.0@1" in before
    assert ("decoder.1@1" in before) == waits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "ops", "gflop", "parameter_mb"),
    [
        ("rnnlm", 3294, 1341.1, 432.4),
        ("nmt", 7115, 1618.9, 683.9),
        ("inception_v3", 1653, 1096.8, 108.6),
        ("inception_v3:aux=0", 1601, 1095.7, 95.3),
        ("resnet50", 891, 777.6, 102.2),
        ("nasnet", 5681, 1141.3, 355.0),
        ("transformer_lm", 673, 7154.2, 497.8),
        ("bert", 728, 2247.4, 439.2),
        ("moe_lm", 1413, 2988.8, 2349.5),
        ("dlrm", 227, 120.7, 186877.0),
    ],
)
def test_sizes_of_the_paper(spec, ops, gflop, parameter_mb):
    graph = zoo.load(spec)
    _, flops = uncaptured_step(spec)
    assert graph.total_flops == flops
    assert round(graph.total_flops / 1e9, 1) == gflop
    assert round(graph.parameter_bytes / 1e6, 1) == parameter_mb
    # Other versions of PyTorch may have an op more or less here and there.
    assert graph.num_ops == pytest.approx(ops, rel=0.05)
