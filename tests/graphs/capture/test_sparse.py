"""Tensors count by what they store: entries, integers and scales; what is not known to store what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nested import as_nested_tensor as make_nested
from torch.utils._pytree import tree_map_only

from graphs.capture import capture, capture_program
from graphs.errors import InputError
from tests import forked

ROOT = Path(__file__).resolve().parents[3]


def entries(rows, columns, count, dtype=torch.float32):
    """Of a matrix with `count` entries at random places."""
    places = torch.randperm(rows * columns)[:count]
    indices = torch.stack([places // columns, places % columns])
    return torch.sparse_coo_tensor(indices, torch.ones(count, dtype=dtype), (rows, columns)).coalesce()


class Convolution(nn.Module):
    """One layer of a graph convolution; the adjacency matrix is an input, a buffer or a plain attribute."""

    def __init__(self, product, width=8, *, buffer=None, attribute=None):
        super().__init__()
        self.layer, self.product, self.attribute = nn.Linear(width, width), product, [attribute]
        self.register_buffer("adjacency", buffer)

    def forward(self, x, adjacency=None):
        own = self.adjacency if self.adjacency is not None else self.attribute[0]
        return self.product(own if adjacency is None else adjacency, self.layer(x))


def total(graph, types):
    ops = [i for i in range(graph.num_ops) if graph.type_names[graph.op_type[i]] in types]
    return int(graph.flops[ops].sum())


PRODUCTS = ("mm", "addmm", "_sparse_addmm", "mv")


@pytest.mark.parametrize(("rows", "columns", "count", "width"), [(40, 40, 100, 8), (50, 20, 7, 3), (99, 99, 999, 1)])
def test_bytes_and_flops_are_those_of_the_entries(rows, columns, count, width):
    adjacency = entries(rows, columns, count)
    graph = capture(Convolution(torch.sparse.mm, width), ((torch.zeros(columns, width), adjacency),), torch.sum)
    dense = 2 * columns * width * width  # the layer, and the gradient of its weight
    assert graph.total_flops == 2 * dense + 2 * (2 * count * width)
    op = graph.op_names.index("input/1")
    stored = [int(b) for b, producer in zip(graph.tensor_bytes, graph.tensor_producer, strict=True) if producer == op]
    assert sorted(stored) == sorted([count * 16, count * 4])
    sparse = next(i for i in range(graph.num_ops) if graph.type_names[graph.op_type[i]] == "_sparse_addmm")
    assert graph.batch[sparse] == rows
    assert graph.bytes_accessed[sparse] <= 4 * (2 * rows + columns) * width + 20 * count + 4


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("matmul", lambda a, x: a @ x),
        ("of a vector", lambda a, x: a @ x.sum(1)),
        ("transposed", lambda a, x: a.t() @ x),
        ("scaled", lambda a, x: (a * 2).mm(x)),
        ("added", lambda a, x: torch.addmm(torch.zeros(30, 8), a, x)),
        ("from the right", lambda a, x: x.t() @ a),
        ("coalesced", lambda a, x: torch.sparse.mm(a.coalesce(), x)),
        ("in double", lambda a, x: a.to(torch.float64) @ x.double()),
        ("in two layers", lambda a, x: a @ (a @ x)),
    ],
)
def test_every_product_with_entries_forward_and_backward(name, product):
    adjacency = entries(30, 30, 50)
    graph = capture(Convolution(product), ((torch.zeros(30, 8), adjacency),), torch.sum)
    times = 4 if name == "in two layers" else 2
    columns = 1 if name == "of a vector" else 8
    layer = 2 * 30 * 8 * 8
    assert total(graph, PRODUCTS) == 2 * layer + times * 2 * 50 * columns


@pytest.mark.parametrize("place", ["buffer", "attribute"])
def test_a_matrix_that_the_model_holds_is_resident_by_its_entries(place):
    adjacency = entries(100, 100, 64)
    graph = capture(Convolution(torch.sparse.mm, **{place: adjacency}), torch.zeros(100, 8), torch.sum)
    constant = sum(int(row.sum()) for row in graph.resident_bytes) - 3 * graph.parameter_bytes
    assert constant == 64 * 20
    assert total(graph, ("_sparse_addmm", "mm")) == 2 * (2 * 64 * 8) + 2 * 100 * 8 * 8


def test_a_dense_copy_is_dense():
    graph = capture(Convolution(lambda a, x: a.to_dense() @ x), ((torch.zeros(30, 8), entries(30, 30, 50)),), torch.sum)
    assert graph.total_flops == 2 * (2 * 30 * 8 * 8) + 2 * (2 * 30 * 30 * 8)


class Wrapped(torch.Tensor):
    """A weight that is kept as 8-bit integers and a scale, as quantizing libraries do it."""

    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self):
        return ["numbers", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, metadata, size, stride):
        return cls(inner["numbers"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(func(args[0].numbers), func(args[0].scale))
        args, kwargs = tree_map_only(cls, lambda t: t.numbers.to(t.scale.dtype) * t.scale, (args, kwargs or {}))
        return func(*args, **kwargs)


def wrapped(numbers=None):
    return Wrapped(torch.zeros(8, 8, dtype=torch.int8) if numbers is None else numbers, torch.ones(8, 1))


def with_weight(weight, requires_grad=False):
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[0].weight = nn.Parameter(weight, requires_grad=requires_grad)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_a_weight_that_wraps_others_is_what_it_wraps(training):
    model = with_weight(wrapped())
    weight = model[0].weight
    graph = capture(model, torch.zeros(4, 8), torch.sum, training=training, optimizer="adam")
    assert model[0].weight is weight
    assert type(weight.numbers) is torch.Tensor
    op = graph.op_names.index("0.weight")
    assert graph.resident_bytes[op].sum() == 8 * 8 + 8 * 4
    stored = [int(b) for b, producer in zip(graph.tensor_bytes, graph.tensor_producer, strict=True) if producer == op]
    assert sorted(stored) == [8 * 4, 8 * 8]
    assert total(graph, PRODUCTS) == (3 if training else 2) * 2 * 4 * 8 * 8
    assert "mul" in {graph.type_names[kind] for kind in graph.op_type}  # the scale


@pytest.mark.parametrize("held", ["attribute", "input"])
def test_what_wraps_others_is_seen_wherever_it_is(held):
    product = lambda a, x: x @ a  # noqa: E731
    model = Convolution(product, attribute=wrapped() if held == "attribute" else None)
    batch = torch.zeros(8, 8) if held == "attribute" else ((torch.zeros(8, 8), wrapped()),)
    graph = capture(model, batch, training=False)
    assert total(graph, PRODUCTS) == 2 * 2 * 8 * 8 * 8
    assert 8 * 8 in graph.tensor_bytes.tolist()


def test_a_step_with_a_weight_that_wraps_others_is_captured_but_not_run():
    with pytest.raises(InputError, match=r"parameter '0.weight' is a .*Wrapped.*not run by a placement"):
        capture_program(with_weight(wrapped()), torch.zeros(4, 8), training=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Int8WeightOnly", "Int8DynamicActivationInt8Weight", "Float8WeightOnly"])
def test_weights_that_torchao_quantized_count_by_what_it_stores(name):
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(256, 128, bias=False), nn.ReLU(), nn.Linear(128, 64, bias=False))
    quantization.quantize_(model.to(torch.bfloat16), getattr(quantization, f"{name}Config")())
    graph = capture(model, torch.zeros(4, 256, dtype=torch.bfloat16), training=False)
    weights = model[0].weight, model[2].weight
    inner = [getattr(weight, key) for weight in weights for key in weight.__tensor_flatten__()[0]]
    assert graph.parameter_bytes == sum(part.nbytes for part in inner)
    assert graph.total_flops == 2 * 4 * (256 * 128 + 128 * 64)


REFUSED = {
    "CSR": (lambda: (nn.Linear(8, 8), entries(8, 8, 5).to_sparse_csr()), r"'input' of the batch.*to_sparse_coo\(\)"),
    "nested": (
        lambda: (nn.Linear(8, 8), make_nested([torch.zeros(3, 8)] * 2, layout=torch.jagged)),
        "'input' of the batch is a nested tensor.*padded",
    ),
    "old nested": (
        lambda: (nn.Linear(8, 8), make_nested([torch.zeros(3, 8)] * 2)),
        "'input' of the batch is a nested tensor.*padded",
    ),
    "wrapped weight that is trained": (
        lambda: (with_weight(wrapped(), requires_grad=True), torch.zeros(4, 8)),
        r"parameter '0.weight' is a .*Wrapped.*wants a gradient; freeze it",
    ),
    "wrapped CSR": (
        lambda: (with_weight(wrapped(entries(8, 8, 5).to_sparse_csr())), torch.zeros(4, 8)),
        r"'numbers' of parameter '0.weight' is of layout sparse_csr",
    ),
    "quantized": (
        lambda: (nn.Linear(8, 8), torch.quantize_per_tensor(torch.zeros(4, 8), 0.1, 0, torch.qint8)),
        r"'input' of the batch is quantized, of torch.qint8",
    ),
    "CSR buffer": (
        lambda: (Convolution(torch.mm, buffer=entries(8, 8, 5).to_sparse_csr()), torch.zeros(8, 8)),
        r"buffer 'adjacency' is of layout sparse_csr",
    ),
    "CSR attribute": (
        lambda: (Convolution(torch.mm, attribute=entries(8, 8, 5).to_sparse_csr()), torch.zeros(8, 8)),
        r"of layout sparse_csr.*Convolution",
    ),
    "nested inside": (
        lambda: (
            Convolution(lambda a, x: torch.nested.as_nested_tensor([x, x], layout=torch.jagged)),
            torch.zeros(8, 8),
        ),
        "nested tensor",
    ),
    "CSR inside": (lambda: (Convolution(lambda a, x: x.to_sparse_csr()), torch.zeros(8, 8)), "sparse|values"),
    "both sparse": (
        lambda: (Convolution(lambda a, x: torch.sparse.mm(a, a)), ((torch.zeros(8, 8), entries(8, 8, 5)),)),
        "how many entries",
    ),
    "wants a gradient": (
        lambda: (Convolution(torch.sparse.mm), ((torch.zeros(8, 8), entries(8, 8, 5).requires_grad_()),)),
        "'input/1' of the batch is sparse and wants a gradient",
    ),
}


def test_a_nested_tensor_is_refused_by_name_also_where_it_is_the_first_of_the_program():
    code = (
        "from graphs.capture import capture; import tests.graphs.capture.test_sparse as t; "
        "model, batch = t.REFUSED['nested inside'][0](); capture(model, batch, training=False)"
    )
    ran = forked.run([sys.executable, "-c", code], cwd=ROOT)
    last = ran.stderr.strip().split("\n")[-1]
    assert "makes a nested tensor, whose sizes are not fixed" in last
    assert "use a padded tensor and a mask" in last


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_counted_is_refused_by_name(name):
    make, message = REFUSED[name]
    model, batch = make()
    with pytest.raises(InputError, match=message):
        capture(model, batch, training=False)


def test_a_sparse_input_is_captured_but_not_run():
    batch = ((torch.zeros(8, 8), entries(8, 8, 5)),)
    with pytest.raises(InputError, match=r"'input/1' of the batch is sparse.*not run by a placement"):
        capture_program(Convolution(torch.sparse.mm), batch, torch.sum)
