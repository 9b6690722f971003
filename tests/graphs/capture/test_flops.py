"""FLOPs of what consists of products, against formulas by hand and PyTorch's own counter."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from graphs.capture import capture


class Apply(nn.Module):
    """A function of the input and, where it takes one, of a parameter."""

    def __init__(self, function, *shape, dtype=torch.float32):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype)) if shape else None

    def forward(self, x):
        return self.function(x) if self.weight is None else self.function(x, self.weight)


def flops_of(function, x, *shape, dtype=torch.float32, loss=None):
    model = Apply(function, *shape, dtype=dtype)
    return capture(model, x, loss, training=loss is not None).total_flops


def rows_of(graph):
    return {graph.type_names[graph.op_type[i]]: int(graph.batch[i]) for i in range(graph.num_ops) if graph.flops[i]}


@pytest.mark.parametrize(("n", "first", "second", "out"), [(1, 1, 1, 1), (12, 7, 9, 5), (5, 30, 2, 11)])
def test_a_bilinear_form_is_two_products(n, first, second, out):
    graph = capture(nn.Bilinear(first, second, out), ((torch.zeros(n, first), torch.zeros(n, second)),), training=False)
    assert graph.total_flops == 2 * n * out * first * second + 2 * n * out * second
    assert rows_of(graph) == {"_trilinear": n}


def test_the_gradients_of_a_bilinear_form_are_bilinear_forms():
    x = torch.zeros(16, 12)
    graph = capture(nn.Bilinear(12, 10, 8), ((x, torch.zeros(16, 10)),), torch.sum, optimizer="sgd")
    forward = 2 * 16 * 8 * 12 * 10
    assert 2 * forward <= graph.total_flops <= 3 * forward  # the inputs want no gradient
    assert rows_of(graph) == {"_trilinear": 16}


@pytest.mark.parametrize(
    ("p", "points", "per_pair"), [(2.0, 40, 2 * (8 + 2)), (2.0, 20, 3 * 8), (1.0, 40, 3 * 8), (3.5, 7, 3 * 8)]
)
def test_pairwise_distances(p, points, per_pair):
    x = torch.zeros(5, points, 8)
    assert flops_of(lambda a, b: torch.cdist(a, b, p=p), x, 5, 11, 8) == 5 * points * 11 * per_pair
    trained = flops_of(lambda a, b: torch.cdist(a, b, p=p), x, 5, 11, 8, loss=torch.sum)
    gradients = 2 * 2 * 8 if per_pair == 20 else 3 * 8  # of a product both inputs' are computed
    assert trained == 5 * points * 11 * (per_pair + gradients)
    assert flops_of(lambda a: F.pdist(a, p), torch.zeros(points, 8)) == points * (points - 1) // 2 * 3 * 8


@pytest.mark.parametrize(("batch", "n", "sides"), [(1, 1, 1), (3, 12, 5)])
def test_factorizations_and_solvers(batch, n, sides):
    a, b = torch.zeros(batch, n, n), torch.zeros(batch, n, sides)
    lu, cube = 2 * n**3 / 3, n**3
    expected = {
        torch.linalg.cholesky: cube / 3,
        torch.linalg.inv: 2 * cube,
        torch.linalg.det: lu,
        torch.linalg.lu_factor: lu,
        torch.linalg.eigh: 9 * cube,
        torch.linalg.eig: 25 * cube,
        torch.linalg.qr: 8 / 3 * cube,
        lambda m: torch.linalg.qr(m, mode="r")[1]: 4 / 3 * cube,
        lambda m: torch.linalg.solve(m, b): lu + 2 * n * n * sides,
        lambda m: torch.linalg.solve_triangular(m, b, upper=True): n * n * sides,
        lambda m: torch.linalg.solve_triangular(m, b.mT, upper=True, left=False): n * n * sides,
        lambda m: torch.cholesky_solve(b, m): 2 * n * n * sides,
        torch.cholesky_inverse: 2 / 3 * cube,
    }
    for function, each in expected.items():
        assert flops_of(function, a) == pytest.approx(batch * each, abs=1), function


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (30, 4), (5, 17)])
def test_factorizations_of_tall_and_wide_matrices(rows, columns):
    m, n = max(rows, columns), min(rows, columns)
    a = torch.zeros(3, rows, columns)
    assert flops_of(torch.linalg.lu, a) == pytest.approx(3 * (m * n**2 - n**3 / 3), abs=1)
    assert flops_of(lambda x: torch.linalg.qr(x, "r")[1], a) == pytest.approx(3 * 2 * n**2 * (m - n / 3), abs=1)
    reduced = min(14 * m * n**2 + 8 * n**3, 6 * m * n**2 + 20 * n**3)
    assert flops_of(lambda x: torch.linalg.svd(x, full_matrices=False), a) == pytest.approx(3 * reduced, abs=1)
    full = 4 * m**2 * n + 8 * m * n**2 + 9 * n**3
    assert flops_of(torch.linalg.svd, a) == pytest.approx(3 * full, abs=1)


@pytest.mark.parametrize("shape", [(4, 64), (3, 5, 60), (2, 1)])
def test_fourier_transforms(shape):
    real, numbers, length = torch.zeros(shape), math.prod(shape), shape[-1]
    complex_ = real.to(torch.complex64)
    assert flops_of(torch.fft.fft, complex_) == int(5 * numbers * math.log2(length))
    assert flops_of(torch.fft.rfft, real) == int(2.5 * numbers * math.log2(length))
    assert flops_of(lambda x: torch.fft.irfft(torch.fft.rfft(x), n=length), real) == 2 * int(
        2.5 * numbers * math.log2(length)
    )
    both = math.log2(shape[-1]) + math.log2(shape[-2])
    assert flops_of(torch.fft.fft2, complex_) == pytest.approx(5 * numbers * both, abs=2)


@pytest.mark.parametrize("equation", ["bij,jk->bik", "bij,bkj->bik", "bhij,bhkj->bhik", "bijk,klj->bil", "bi,ij,bj->b"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_einsum_and_complex_products(equation, dtype):
    """As PyTorch's counter says of the same step; four times as many if the numbers are complex."""
    sizes = dict(zip("bhijkl", (4, 2, 6, 8, 10, 12), strict=True))
    terms = equation.partition("->")[0].split(",")
    tensors = [torch.zeros([sizes[c] for c in term], dtype=dtype) for term in terms]
    with FlopCounterMode(display=False) as counter:
        torch.einsum(equation, *tensors)
    graph = capture(Apply(lambda xs: torch.einsum(equation, *xs)), {"x": tensors}, training=False)
    assert graph.total_flops == counter.get_total_flops() * (4 if dtype.is_complex else 1) > 0


def test_complex_products_are_four_real_ones_backward_too():
    x, weight = torch.zeros(32, 16, dtype=torch.complex64), (16, 24)
    loss = lambda out: out.abs().sum()  # noqa: E731
    assert flops_of(torch.matmul, x, *weight, dtype=torch.complex64, loss=loss) == 2 * (8 * 32 * 16 * 24)
    assert flops_of(torch.mv, x, 16, dtype=torch.complex64) == 8 * 32 * 16
    signal = torch.zeros(2, 3, 20, dtype=torch.complex64)
    assert flops_of(F.conv1d, signal, 5, 3, 4, dtype=torch.complex64) == 3 * 2 * (2 * 5 * 17) * (
        3 * 4
    )  # of three real ones


@pytest.mark.parametrize("rows", [1, 48, 64])
def test_a_grouped_product_meets_each_row_once(rows):
    """Rows that are sorted by expert, each with one of 4 weights; each counts once, as do those of the gradients."""
    offsets = torch.tensor([rows // 4, rows // 2, rows // 2, rows], dtype=torch.int32)

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 32, 16, dtype=torch.bfloat16))
            self.register_buffer("offsets", offsets)

        def forward(self, x):
            return F.grouped_mm(x, self.weight, offs=self.offsets)

    x = torch.zeros(rows, 32, dtype=torch.bfloat16, requires_grad=True)
    graph = capture(Experts(), x, lambda out: out.float().sum())
    once = 2 * rows * 32 * 16
    assert sorted(graph.flops[graph.flops > 0].tolist())[:2] == [once, once]
    assert rows_of(graph) == {"_grouped_mm": rows}


def test_other_products():
    x = torch.zeros(3, 5, 8)
    assert flops_of(lambda a, w: torch.addbmm(a.new_zeros(5, 6), a, w), x, 3, 8, 6) == 2 * 3 * 5 * 8 * 6
    assert flops_of(lambda a, w: a.new_zeros(3, 5, 6).baddbmm_(a, w), x, 3, 8, 6) == 2 * 3 * 5 * 8 * 6
    assert flops_of(lambda a, w: a.new_zeros(5, 6).addmm_(a[0], w), x, 8, 6) == 2 * 5 * 8 * 6
    bias = torch.zeros(7)
    graph = capture(Apply(lambda a, w: torch.conv_tbc(a, w, bias, 1), 3, 8, 7), x, training=False)
    assert graph.total_flops == 2 * (3 * 5 * 7) * (3 * 8)
    assert rows_of(graph) == {"conv_tbc": 3 * 5}
