"""What a batch may be made of, and what a later batch may differ in."""

from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import placement
from graphs.capture import batch_tensors, capture, capture_program
from graphs.computation_graph import INPUT
from graphs.errors import InputError


@dataclass
class Plain:
    x: torch.Tensor
    rest: list = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    x: object
    note: str = "note"


@dataclass(slots=True)
class Slotted:
    x: torch.Tensor


@dataclass
class Derived(Plain):
    def __post_init__(self):
        self.later = {"y": self.x + 1}


Named = namedtuple("Named", "x y")


class Registered:
    def __init__(self, x):
        self.x = x


pytree.register_pytree_node(
    Registered,
    lambda r: ([r.x], None),
    lambda items, context: Registered(*items),
    serialized_type_name="test_batches.Registered",
)


class Opaque:
    def __init__(self, x):
        self.x = x


class Loose(UserDict):
    pass


class Reads(nn.Module):
    """Reads a tensor from whatever it is given."""

    def __init__(self, read):
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.read = read

    def forward(self, batch):
        return self.layer(self.read(batch))


def mean(output):
    return output.square().mean()


ONES = torch.ones(4, 8)
CONTAINERS = {
    "dataclass": (Plain, lambda b: b.x, "input/x"),
    "frozen dataclass": (Frozen, lambda b: b.x, "input/x"),
    "dataclass with slots": (Slotted, lambda b: b.x, "input/x"),
    "attribute of a dataclass": (Derived, lambda b: b.later["y"], "input/later/y"),
    "list in a dataclass": (lambda x: Plain(x, [x + 1, 2]), lambda b: b.rest[0], "input/rest/0"),
    "named tuple": (lambda x: {"batch": Named(x, x + 1)}, lambda b: b.y, "input/batch/1"),
    "registered": (Registered, lambda b: b.x, "input/0"),
    "nested": (lambda x: {"batch": [{"k": (Registered(x), 3)}]}, lambda b: b[0]["k"][0].x, "input/batch/0/k/0/0"),
    "ordered dict": (lambda x: {"batch": OrderedDict(a=x)}, lambda b: b["a"], "input/batch/a"),
    "default dict": (lambda x: {"batch": defaultdict(list, a=x)}, lambda b: b["a"] if b["c"] == [] else 0, None),
    "deque": (lambda x: {"batch": deque([x])}, lambda b: b.popleft(), "input/batch/0"),
    "mapping": (lambda x: {"batch": Loose(a=x)}, lambda b: b["a"], "input/batch/a"),
    "list": (lambda x: {"batch": [x]}, lambda b: (b + [1])[0], "input/batch/0"),  # noqa: RUF005 (fails on a tuple)
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_tensors_in_a_container_are_inputs(kind):
    make, read, name = CONTAINERS[kind]
    model, first, second = Reads(read), make(ONES), make(100 * ONES)
    graph = capture(model, first, mean, optimizer="sgd")
    kinds = [graph.type_names[t] for t in graph.op_type]
    used = {graph.op_names[c] for c in graph.consumers}
    assert not any(op_name.startswith("constant") for op_name in graph.op_names)
    assert INPUT in kinds
    if name is not None:
        product = next(i for i, op_name in enumerate(graph.op_names) if op_name.endswith("addmm_0"))
        edges = {graph.op_names[p] for p, c in zip(graph.edge_producer, graph.consumers, strict=True) if c == product}
        assert name in edges
    assert used
    problem = placement.make_problem(graph, "cpu_cores:1")
    result = placement.make_result(problem, [0] * problem.num_groups, placer="by hand", seed=0)
    call = (lambda b: model(**b)) if isinstance(second, dict) else model
    expected = float(mean(call(make(100 * ONES))).detach())
    with placement.apply(model, result, first, mean, optimizer="sgd") as step:
        assert float(step(second)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Opaque(ONES), "'input' of the batch is an object of class Opaque that holds tensors"),
        ({"batch": [Opaque(ONES)]}, "'input/batch/0' of the batch is an object of class Opaque"),
        (Opaque([{"deep": (ONES,)}]), "class Opaque that holds tensors"),
        (SimpleNamespace(x=ONES), "class SimpleNamespace that holds tensors"),
        (Frozen(Opaque(ONES)), "'input/x' of the batch is an object of class Opaque"),
        ({"batch": np.ones((4, 8))}, "'input/batch' of the batch is a NumPy array; give it as a tensor"),
        ((ONES, Opaque(ONES)), "'target/0' of the batch is an object of class Opaque"),
    ],
)
def test_objects_that_hold_tensors_unseen_are_refused(batch, message):
    for function in (capture, capture_program):
        with pytest.raises(InputError) as error:
            function(Reads(lambda b: b.x), batch, mean)
        assert message in str(error.value)


class Config:
    def __init__(self, scale):
        self.scale = scale


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x, **rest):
        return self.layer(x)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (2.0, 3.0, "'input/scale' of the batch is 3.0, but the step was captured with 2.0"),
        (True, False, "'input/scale' of the batch is False, but the step was captured with True"),
        (1, 1.0, "is 1.0, but the step was captured with 1,"),
        (None, "mean", "is 'mean', but the step was captured with None"),
        ([1, 2], [1, 3], "'input/scale/1' of the batch is 3, but"),
        ([1, 2], [1], "'input/scale/1' of the batch is missing, but the step was captured with 2"),
        ([1], [1, 2], "the batch has 'input/scale/1', which the example batch does not have"),
        (Config(1), Config(2), "an object of class Config with other contents"),
        (Config({"a": [1]}), Config({"a": [2]}), "an object of class Config with other contents"),
        (np.float32(1), np.float32(2), "is np.float32(2.0), but"),
        (2.0, ONES, "'input/scale' of the batch is missing, but"),
        (ONES + 1, 2.0, "the batch has no tensor 'input/scale', which the example batch has"),
    ],
)
def test_a_step_refuses_another_number_than_the_one_that_it_was_captured_with(first, second, message):
    form = capture_program(Scaled(), {"x": ONES, "scale": first}, mean).batch
    assert set(batch_tensors({"x": 2 * ONES, "scale": first}, True, form)) >= {"input/x"}
    with pytest.raises(InputError) as error:
        batch_tensors({"x": ONES, "scale": second}, True, form)
    assert message in str(error.value)


def test_a_number_that_changes_after_the_capture_is_noticed():
    config = Config(1)
    form = capture_program(Scaled(), {"x": ONES, "scale": config}, mean).batch
    config.scale = 2
    with pytest.raises(InputError, match="class Config with other contents"):
        batch_tensors({"x": ONES, "scale": config}, True, form)


def test_one_tensor_twice_stays_one_tensor():
    form = capture_program(nn.Linear(8, 8), (ONES, ONES), nn.MSELoss()).batch
    other = 2 * ONES
    assert batch_tensors((other, other), True, form)["target/0"] is other
    with pytest.raises(InputError, match="'target/0' and 'input' of the batch are two tensors but were one"):
        batch_tensors((ONES, other), True, form)
