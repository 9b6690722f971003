"""A refusal names module, file, line and op, and a remedy that works: each is tried here."""

import copy
import inspect
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import placement
from graphs.capture import capture
from graphs.errors import InputError


class Step(nn.Module):
    """A layer, and then what it is told."""

    def __init__(self, function, **parts):
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.parts = nn.ModuleDict(parts)
        self.function = function

    def forward(self, x):
        return self.function(self, self.layer(x))


class Outer(nn.Module):
    """Has a step inside, so that its path is not the root."""

    def __init__(self, step):
        super().__init__()
        self.inner = nn.ModuleList([nn.Identity(), step])

    def forward(self, x):
        return self.inner[1](self.inner[0](x))


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def mask(n):
    return nn.Transformer.generate_square_subsequent_mask(n)


def categorical(**options):
    def function(self, y):
        distribution = torch.distributions.Categorical(logits=y, **options)
        return distribution.log_prob(torch.zeros(y.shape[:-1], dtype=torch.int64))

    return function


def normal(**options):
    return lambda self, y: torch.distributions.Normal(y, y.exp(), **options).log_prob(torch.ones(16))


def ctc(lengths):
    def function(self, y):
        log_probs = y.transpose(0, 1).log_softmax(-1)
        return F.ctc_loss(log_probs, torch.ones(2, 3, dtype=torch.int64), lengths([6, 6]), lengths([3, 3]))

    return function


def one_hot(*classes):
    return lambda self, y: y + F.one_hot(y.argmax(-1), *classes).sum()


def repeated(**options):
    return lambda self, y: y.repeat_interleave(torch.tensor([2] * 6) + y.sum().long() * 0, dim=1, **options)


def counted(self, y):
    return y + torch.bincount(y.argmax(-1).flatten(), minlength=16)


def counted_by_one_hot(self, y):
    return y + F.one_hot(y.argmax(-1).flatten(), 16).sum(0)


def packed(self, y):
    lengths = (y.sum((1, 2)) * 0 + 6).long()
    sequence = nn.utils.rnn.pack_padded_sequence(y, lengths, batch_first=True)
    return self.parts["rnn"](sequence)[0].data


def padded(self, y):
    return self.parts["rnn"](y)[0]


REFUSED = {
    "causal mask": (
        lambda: Step(lambda s, y: s.parts["encoder"](y, mask=mask(6)), encoder=encoder()),
        lambda: Step(lambda s, y: s.parts["encoder"](y, mask=mask(6), is_causal=True), encoder=encoder()),
        ["in module 'inner.1.parts.encoder' (TransformerEncoder)", "pass is_causal=True", "_local_scalar_dense"],
    ),
    "other mask": (
        lambda: Step(lambda s, y: s.parts["encoder"](y, mask=torch.zeros(6, 6)), encoder=encoder()),
        lambda: Step(lambda s, y: s.parts["encoder"](y, mask=torch.zeros(6, 6), is_causal=False), encoder=encoder()),
        ["in module 'inner.1.parts.encoder' (TransformerEncoder)", "is_causal=False beside another"],
    ),
    "categorical": (
        lambda: Step(categorical()),
        lambda: Step(categorical(validate_args=False)),
        ["in module 'inner.1' (Step)", "make the distribution with validate_args=False"],
    ),
    "normal": (
        lambda: Step(normal()),
        lambda: Step(normal(validate_args=False)),
        ["in module 'inner.1' (Step)", "make the distribution with validate_args=False"],
    ),
    "ctc": (
        lambda: Step(ctc(torch.tensor)),
        lambda: Step(ctc(tuple)),
        ["ctc_loss", "give input_lengths and target_lengths as tuples of numbers"],
    ),
    "one-hot": (lambda: Step(one_hot()), lambda: Step(one_hot(16)), ["one_hot (aten.", "give it num_classes"]),
    "repeat": (lambda: Step(repeated()), lambda: Step(repeated(output_size=12)), ["repeat_int", "give it output_size"]),
    "count": (lambda: Step(counted), lambda: Step(counted_by_one_hot), ["aten.bincount", "one_hot(x, n).sum(0)"]),
    "packed": (
        lambda: Step(packed, rnn=nn.GRU(16, 16, batch_first=True)),
        lambda: Step(padded, rnn=nn.GRU(16, 16, batch_first=True)),
        ["give the padded sequence to the recurrent layer"],
    ),
    "value": (
        lambda: Step(lambda s, y: y * y.sum().item()),
        lambda: Step(lambda s, y: y * y.sum()),
        ["item (aten._local_scalar_dense.default) looks at a tensor's value", "by tensor ops"],
    ),
    "control flow": (
        lambda: Step(lambda s, y: y if y.sum() > 0 else -y),
        lambda: Step(lambda s, y: torch.where(y.sum() > 0, y, -y)),
        ["__bool__ (aten._local_scalar_dense.default) looks at a tensor's value", "such as torch.where"],
    ),
    "cond": (
        lambda: Step(lambda s, y: torch.cond(y.sum() > 0, torch.sin, torch.cos, (y,))),
        lambda: Step(lambda s, y: torch.where(y.sum() > 0, torch.sin(y), torch.cos(y))),
        ["cond runs functions that a graph of ops cannot hold", "choose by torch.where"],
    ),
    "map": (
        lambda: Step(lambda s, y: torch._higher_order_ops.map(torch.sin, y)),  # type: ignore[arg-type]
        lambda: Step(lambda s, y: torch.func.vmap(torch.sin)(y)),
        ["map runs functions", "use torch.func.vmap"],
    ),
    "boolean mask": (
        lambda: Step(lambda s, y: y[y > 0]),
        lambda: Step(lambda s, y: torch.where(y > 0, y, 0)),
        ["depends on values (a boolean mask", "such as torch.where", "aten.index.Tensor"],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_says_where_and_its_remedy_works(kind, capfd, caplog):
    refused, mended, words = REFUSED[kind]
    with pytest.raises(InputError) as error:
        capture(Outer(refused()), torch.zeros(2, 6, 16), torch.sum)
    message = str(error.value)
    assert message.startswith("model 'Outer' cannot be traced: ")
    for word in [*words, "in module 'inner.1", "test_refusals.py:"]:
        assert word in message
    assert "\n" not in message
    assert capfd.readouterr().err == ""
    assert not caplog.records
    assert capture(Outer(mended()), torch.zeros(2, 6, 16), torch.sum).num_ops > 3


def fails(self, y):
    z = y + 1
    return z @ y[0, :3]


def test_the_line_is_the_one_that_failed():
    with pytest.raises(InputError) as error:
        capture(Outer(Step(fails)), torch.zeros(2, 6, 16), torch.sum)
    line = inspect.getsourcelines(fails)[1] + 2
    assert f"test_refusals.py:{line}" in str(error.value)
    assert "RuntimeError: " in str(error.value)


def test_the_backward_is_named_by_the_module_of_the_forward():
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.sum().item()

    with pytest.raises(InputError) as error:
        capture(Outer(Step(lambda s, y: Bad.apply(y))), torch.zeros(2, 6, 16), torch.sum)
    assert "in module 'inner.1'" in str(error.value)
    assert "test_refusals.py:" in str(error.value)


def test_a_refusal_of_a_sparse_tensor_says_where():
    with pytest.raises(InputError, match=r"\(in module 'inner\.1' \(Step\) at .*test_refusals\.py:\d+\)$"):
        capture(Outer(Step(lambda s, y: y.to_sparse())), torch.zeros(2, 6, 16), torch.sum)


def test_experts_in_groups_are_refused_with_the_setting_that_helps(capfd):
    transformers = pytest.importorskip("transformers")

    def make(**options):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 16}
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        config = transformers.Qwen3MoeConfig(
            num_hidden_layers=1, num_key_value_heads=2, vocab_size=100, use_cache=False, **sizes, **experts
        )
        for key, value in options.items():
            setattr(config, key, value)
        return transformers.Qwen3MoeForCausalLM(config)

    ids = torch.zeros(2, 8, dtype=torch.int64)
    model = make()
    capfd.readouterr()
    with pytest.raises(InputError) as error:
        capture(model, {"input_ids": ids, "labels": ids})
    message = str(error.value)
    for word in [
        "_grouped_mm",
        "mlp.experts' (Qwen3MoeExperts)",
        "config._experts_implementation = 'batched_mm'",
        ".py:",
    ]:
        assert word in message
    assert "Traceback" not in capfd.readouterr().err
    assert capture(make(_experts_implementation="batched_mm"), {"input_ids": ids, "labels": ids}).num_ops > 50


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


@torch.jit.script
def warmed(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize("function", [scripted, warmed])
def test_a_torchscript_function_gives_the_same_graph_each_time(function):
    if function is warmed:
        for _ in range(4):
            function(torch.randn(4, 16, requires_grad=True)).sum().backward()
    model, x = Outer(Step(lambda s, y: function(y))), torch.randn(4, 16)
    graphs = [capture(model, x, torch.sum, optimizer="sgd") for _ in range(4)]
    assert len({graph.sha256 for graph in graphs}) == 1
    plain = capture(Outer(Step(lambda s, y: y * torch.sigmoid(1.702 * y))), x, torch.sum, optimizer="sgd")
    assert graphs[0].total_flops == plain.total_flops
    problem = placement.make_problem(graphs[0], "cpu_cores:1")
    result = placement.make_result(problem, [0] * problem.num_groups, placer="by hand", seed=0)
    expected = float(model(x).sum().detach())
    with placement.apply(model, result, x, torch.sum, optimizer="sgd") as step:
        assert float(step(x)) == pytest.approx(expected, rel=1e-4)


def exported(model):
    return torch.export.export(model, (torch.zeros(4, 16),))


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_program_is_captured_as_the_module_that_it_was_made_from(training):
    source = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).train(training)
    module = exported(source).module()
    modes = [m.training for m in module.modules()]
    graphs = [capture(m, torch.zeros(4, 16), torch.sum, training=training) for m in (module, copy.deepcopy(source))]
    assert [graphs[0].type_names[t] for t in graphs[0].op_type] == [graphs[1].type_names[t] for t in graphs[1].op_type]
    assert graphs[0].total_flops == graphs[1].total_flops
    assert [m.training for m in module.modules()] == modes


def test_an_empty_batch_is_refused():
    with pytest.raises(InputError, match=re.escape("the example batch is empty: its first tensor has shape [0, 4]")):
        capture(nn.Linear(4, 2), torch.zeros(0, 4), torch.sum)


def test_what_is_no_module_is_refused_in_a_sentence():
    program = exported(nn.Linear(16, 4))
    with pytest.raises(InputError, match=r"an ExportedProgram is no module; capture its \.module\(\)"):
        capture(program, torch.zeros(4, 16), torch.sum)
    script = torch.jit.script(nn.Linear(16, 4))
    for model in (script, torch.jit.trace(nn.Linear(16, 4), torch.zeros(4, 16)), nn.Sequential(script)):
        with pytest.raises(InputError, match=r"compiled by torch\.jit; capture the module that it was made from"):
            capture(model, torch.zeros(4, 16), torch.sum)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("targets", [torch.tensor([[1, 2, 3], [3, 1, 0]]), torch.tensor([1, 2, 3, 3, 1])])
def test_a_ctc_loss_is_that_of_pytorch(targets, reduction):
    def loss(output):
        log_probs = output.transpose(0, 1).log_softmax(-1)
        return F.ctc_loss(log_probs, targets, (6, 5), (3, 2), reduction=reduction).sum()

    torch.manual_seed(0)
    model, x = nn.Linear(16, 4), torch.randn(2, 6, 16)
    other = copy.deepcopy(model)
    wanted = loss(other(x))
    wanted.backward()
    graph = capture(model, x, loss, optimizer="sgd")
    problem = placement.make_problem(graph, "cpu_cores:1")
    result = placement.make_result(problem, [0] * problem.num_groups, placer="by hand", seed=0)
    with placement.apply(model, result, x, loss, optimizer="sgd") as step:
        torch.testing.assert_close(step(x), wanted.detach())
    for found, before in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), (before - 1e-3 * before.grad).detach())
