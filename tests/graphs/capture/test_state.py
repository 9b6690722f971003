"""Which tensors are trained: the model's and the loss's, wherever they are met."""

import copy

import pytest
import torch
from torch import nn

import placement
from graphs.capture import capture
from graphs.capture.state import named_state
from graphs.errors import InputError


class Centers(nn.Module):
    """A loss that learns, with statistics of its own."""

    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.arange(4.0))
        self.inner = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, target=0.0):
        self.seen += 1
        return (self.inner(output) - self.centers - target).square().mean()


class NamedLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.loss = nn.Linear(8, 4)

    def forward(self, x):
        return self.loss(x)


class SharesTable(nn.Module):
    """A loss that has a weight of the model."""

    def __init__(self, model):
        super().__init__()
        self.table = model.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output):
        return (output @ self.table * self.scale).square().mean()


class Alias(nn.Module):
    """Meets its parameters in plain containers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)
        self.weights = [self.a.weight, self.b.weight]
        self.biases = {"all": (self.a.bias, self.b.bias)}

    def forward(self, x):
        biases = torch.stack(self.biases["all"])
        return x @ self.weights[0].t() + nn.functional.linear(input=x, weight=self.weights[1]) + biases.sum(0)


def updated(graph):
    return sorted(name.removesuffix("/sgd_update") for name in graph.op_names if name.endswith("_update"))


def penalised(model):
    return lambda output: output.square().mean() + sum(p.square().sum() for p in model.parameters())


def make_cases():
    torch.manual_seed(0)
    linear, table, alias = nn.Linear(8, 4), nn.Linear(8, 4), Alias()
    return {
        "trainable loss": (linear, Centers()),
        "model with a part called loss": (NamedLoss(), Centers()),
        "shared weight": (table, SharesTable(table)),
        "aliases": (alias, lambda output: output.square().mean()),
        "closure over the model's weights": (linear, penalised(linear)),
    }


NAMES = {
    "trainable loss": ["bias", "loss.centers", "loss.inner.bias", "loss.inner.weight", "weight"],
    "model with a part called loss": [
        *["loss.bias", "loss.weight"],
        *["loss_function.centers", "loss_function.inner.bias", "loss_function.inner.weight"],
    ],
    "shared weight": ["bias", "loss.scale", "weight"],
    "aliases": ["a.bias", "a.weight", "b.bias", "b.weight"],
    "closure over the model's weights": ["bias", "weight"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_all_that_is_trained_has_an_update(kind):
    model, loss = make_cases()[kind]
    graph = capture(model, torch.zeros(3, 8), loss, optimizer="sgd")
    assert updated(graph) == NAMES[kind]
    assert not any(name.startswith("constant") for name in graph.op_names)
    assert set(named_state(model, loss)) <= set(graph.op_names)


@pytest.mark.parametrize("kind", NAMES)
def test_a_placed_step_trains_the_loss_as_pytorch_does(kind):
    (model, loss), (other, other_loss) = make_cases()[kind], make_cases()[kind]
    if isinstance(loss, nn.Module):
        parameters = [*other.parameters(), *other_loss.parameters()]
    else:
        parameters = list(other.parameters())
    parameters = list({id(p): p for p in parameters}.values())
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    x = torch.randn(3, 8)
    graph = capture(model, x, loss, optimizer="sgd")
    problem = placement.make_problem(graph, "cpu_cores:1")
    result = placement.make_result(problem, [0] * problem.num_groups, placer="by hand", seed=0)
    with placement.apply(model, result, x, loss, optimizer="sgd") as step:
        for _ in range(3):
            found = step(x)
            optimizer.zero_grad()
            wanted = other_loss(other(x))
            wanted.backward()
            optimizer.step()
            torch.testing.assert_close(found, wanted.detach())
    expected = named_state(other, other_loss)
    for name, tensor in named_state(model, loss).items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_a_loss_is_no_part_of_inference():
    graph = capture(nn.Linear(8, 4), torch.zeros(3, 8), Centers(), training=False)
    assert "loss.centers" not in graph.op_names


def test_a_loss_alone_may_be_trained():
    model = nn.Linear(8, 4).requires_grad_(False)
    graph = capture(model, torch.zeros(3, 8), Centers(), optimizer="sgd")
    assert updated(graph) == ["loss.centers", "loss.inner.bias", "loss.inner.weight"]


def stray():
    hidden = Centers()
    return nn.Linear(8, 4), lambda output: hidden(output)


def unregistered():
    model = Alias()
    model.weights = [nn.Parameter(torch.ones(4, 8)), nn.Parameter(torch.ones(4, 8))]
    return model, torch.sum


@pytest.mark.parametrize("make", [stray, unregistered])
def test_a_gradient_that_nothing_would_use_is_refused(make):
    model, loss = make()
    with pytest.raises(
        InputError, match=r"a gradient for a tensor of shape .* that is no parameter of the model or the"
    ):
        capture(model, torch.zeros(3, 8), loss)
    capture(model, torch.zeros(3, 8), training=False)


def test_a_loss_that_cannot_be_captured_is_named():
    with pytest.raises(InputError, match="loss 'LazyLinear' has not initialised 'weight' yet"):
        capture(nn.Linear(8, 4), torch.zeros(3, 8), nn.LazyLinear(1))


def test_a_model_that_is_also_the_loss():
    model = nn.Linear(8, 8)
    twin = copy.deepcopy(model)

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, output):
            return self.model(output).sum()

    graph = capture(model, torch.zeros(3, 8), Again(), optimizer="sgd")
    assert updated(graph) == ["bias", "weight"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
