"""Looks at memory as chains of views give the same numbers as looks by size, stride and offset."""

import numpy as np
import pytest
import torch

from envs.measured.compiled.views import aten, find_look, memory_order
from graphs.capture.program import Layout


def drawn_view(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A tensor seen through up to four views, drawn from those that models use."""
    for _ in range(rng.integers(1, 5)):
        kind, dim = rng.integers(7), int(rng.integers(max(x.dim(), 1)))
        if kind == 0 and x.dim():
            first = int(rng.integers(x.shape[dim]))
            x = x.narrow(dim, first, int(rng.integers(1, x.shape[dim] - first + 1)))
        elif kind == 1 and x.dim():
            x = x.select(dim, int(rng.integers(x.shape[dim])))
        elif kind == 2:
            x = x.permute(*rng.permutation(x.dim()).tolist()) if x.dim() else x
        elif kind == 3:
            x = x.unsqueeze(dim)
        elif kind == 4:
            x = x.unsqueeze(0).expand(3, *x.shape)
        elif kind == 5 and x.is_contiguous():
            x = x.flatten()
        elif kind == 6 and x.dim() and x.shape[dim] % 2 == 0:
            x = x.unflatten(dim, (2, -1))
    return x


@pytest.mark.parametrize("seed", range(8))
def test_a_look_by_views_has_the_numbers_of_the_look_by_strides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    by_strides = 0
    for _ in range(150):
        size = rng.choice([1, 2, 3, 4, 6], size=rng.integers(1, 5)).tolist()
        base = torch.arange(float(np.prod(size))).reshape(size)
        base = base.permute(*rng.permutation(len(size)).tolist())
        wanted = drawn_view(base, rng)
        look = find_look(Layout.of(base), Layout.of(wanted))
        assert look is not None
        found, written = base, base.clone()
        assert written.stride() == base.stride()
        for function, rest in look.ops:
            found = function(found, *rest)
            by_strides += function is aten.as_strided.default
        assert torch.equal(found, wanted)
        assert found.shape == wanted.shape
        if all(s != 0 for s in wanted.stride()):  # through it one may write
            through = written
            for function, rest in look.to_write:
                through = function(through, *rest)
            through.fill_(-1.0)
            expected = base.clone()
            expected.as_strided(wanted.shape, wanted.stride(), wanted.storage_offset()).fill_(-1.0)
            assert torch.equal(written, expected)
    assert by_strides < 150 * 0.05  # a look by strides keeps a compiler from computing through it


def test_looks_that_views_cannot_have() -> None:
    base = torch.arange(12.0)
    diagonal = base.view(3, 4).diagonal()
    look = find_look(Layout.of(base), Layout.of(diagonal))
    assert look is not None
    assert [function for function, _ in look.ops] == [aten.as_strided.default]
    for have, wanted in (
        (base[::2], base[:2]),  # with gaps
        (base[2:4], base[:2]),  # before it
        (base[:4], base[2:8]),  # beyond it
        (base, base.view(torch.int32)),
        (base, base[:0]),
    ):
        assert find_look(Layout.of(have), Layout.of(wanted)) is None
    assert memory_order(Layout.of(base.view(3, 4).t())) == [1, 0]
    assert memory_order(Layout.of(base[::2])) is None
