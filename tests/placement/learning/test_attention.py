"""Attention in blocks against the plain product, forward and backward."""

from __future__ import annotations

import pytest
import torch

from placement.learning import attention
from placement.learning.attention import attend, attend_in_blocks


def plain(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.softmax(queries @ keys, dim=-1) @ values


@pytest.mark.parametrize("block", [1, 64, 10_000])
def test_values_and_gradients_are_those_of_the_plain_product(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK_WEIGHTS", block)
    generator = torch.Generator().manual_seed(0)
    shapes = ((37, 8), (8, 11), (11, 8))
    ours = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    weight = torch.randn(37, 8, generator=generator)
    attended, expected = attend_in_blocks(*ours), plain(*theirs)
    torch.testing.assert_close(attended, expected, rtol=1e-5, atol=1e-6)
    (attended * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_the_choice_between_the_two_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    arguments = [torch.randn(shape, generator=generator) for shape in ((3, 7, 8), (8, 5), (5, 8))]
    before = attend(*arguments)
    monkeypatch.setattr(attention, "MOST_WEIGHTS", 10)
    after = attend(*arguments)
    assert after.shape == before.shape == (3, 7, 8)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
