"""Attention of many queries over the same few keys, without ever holding all of its weights.

The plain version is ``softmax(queries @ keys) @ values``. For ``B`` placements of ``G`` groups that is a matrix of
``B * G * G`` weights, written and read several times: for a thousand groups the time goes into memory. Here queries are
taken in blocks whose weights stay in the cache, and weights are computed again on the way back (Dao et al.,
"FlashAttention", NeurIPS 2022, arXiv 2205.14135, without its blocks of keys: these fit).

Letters: ``Q`` queries, ``G`` keys, ``H`` units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_WEIGHTS = 2**18
"""Weights of a block, about: a megabyte."""

MOST_WEIGHTS = 2**23
"""Up to so many weights (32 MB) the plain version, which computes nothing twice, is faster."""


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """``softmax(queries @ keys) @ values``: ``float32[..., H]``.

    Args:
        queries: ``float32[..., H]``.
        keys: ``float32[H, G]``.
        values: ``float32[G, H]``.
    """
    rows = queries.numel() // queries.shape[-1]
    if rows * keys.shape[1] <= MOST_WEIGHTS:
        return torch.softmax(queries @ keys, dim=-1) @ values
    return attend_in_blocks(queries.reshape(rows, -1), keys, values).view(*queries.shape[:-1], -1)


def attend_in_blocks(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """``softmax(queries @ keys) @ values`` of ``float32[Q, H]`` queries, block by block: ``float32[Q, H]``.

    Args:
        queries: ``float32[Q, H]``.
        keys: ``float32[H, G]``.
        values: ``float32[G, H]``.
    """
    attended: Tensor = _Attend.apply(queries, keys, values)
    return attended


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        attended = torch.empty(len(queries), values.shape[1], dtype=values.dtype)
        for block in _blocks(len(queries), keys.shape[1]):
            torch.mm(torch.softmax(queries[block] @ keys, dim=1), values, out=attended[block])
        ctx.save_for_backward(queries, keys, values, attended)
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, attended = ctx.saved_tensors
        gradient = gradients[0].contiguous()  # [Q, H]
        for_queries = torch.empty_like(queries)
        for_keys, for_values = torch.zeros_like(keys), torch.zeros_like(values)
        # Of the softmax: weight * (its own gradient - the mean gradient by weights), and that mean is this product.
        mean = (gradient * attended).sum(dim=1, keepdim=True)  # [Q, 1]
        for block in _blocks(len(queries), keys.shape[1]):
            weights = torch.softmax(queries[block] @ keys, dim=1)
            for_values.addmm_(weights.T, gradient[block])
            weights.mul_((gradient[block] @ values.T).sub_(mean[block]))  # now the scores' gradient
            torch.mm(weights, keys.T, out=for_queries[block])
            for_keys.addmm_(queries[block].T, weights)
        return for_queries, for_keys, for_values


def _blocks(queries: int, keys: int) -> list[slice]:
    size = max(BLOCK_WEIGHTS // keys, 1)
    return [slice(start, start + size) for start in range(0, queries, size)]
