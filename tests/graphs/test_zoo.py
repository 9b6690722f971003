import subprocess
import sys

import networkx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from graphs import zoo
from graphs.computation_graph import RESIDENT_PARTS
from graphs.errors import InputError
from graphs.zoo.cache import cache_file

SMALL = {
    "rnnlm": "rnnlm:hidden=16,steps=3,vocabulary=20,batch=4",
    "nmt": "nmt:hidden=16,steps=3,vocabulary=20,batch=4",
    "inception_v3": "inception_v3:batch=2,image=75,classes=10,aux=0",
    "resnet50": "resnet50:batch=2,image=32,classes=10",
}


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
    workload, sizes = zoo.parse(spec)
    module = __import__(f"graphs.zoo.{workload.name}", fromlist=["make"])
    with torch.device("meta"):
        model, batch = module.make(sizes)
        with FlopCounterMode(display=False) as counter:
            model.train(bool(sizes["training"]))
            output = model(**batch)
            if sizes["training"]:
                output.backward()
    return model, counter.get_total_flops()


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
        ("rnnml", "unknown workload 'rnnml' (did you mean 'rnnlm'?); known: inception_v3, "),
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
    # The model itself does no more than cut its inputs, join what modules give and average the loss.
    own = {graph.type_names[t] for t, m in zip(graph.op_type, graph.module, strict=True) if not graph.module_names[m]}
    assert own <= {"input", "new_zeros", "stack", "cat", "mean", "div", "ones_like", "add", "mul"} | {
        "nll_loss_forward",
        "nll_loss_backward",
        "_log_softmax",
        "_log_softmax_backward_data",
    }


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
