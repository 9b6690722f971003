"""Attention as one op: what it computes and over how many rows, for every kernel of it that PyTorch has."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from graphs.capture.arguments import Arguments

_LENGTH_FIRST = ("_flash_attention", "_efficient_attention", "_varlen_attn")
"""Kernels whose tensors are ``[..., length, heads, width]``; in the others length comes after heads."""

_MANY_MORE_KEYS = 8


@dataclass(frozen=True, slots=True)
class Attention:
    """One call.

    Attributes:
        queries: Rows of queries: batch x heads x length.
        length_q: Queries of one sequence, or of all where their lengths differ.
        length_k: Keys that each query is multiplied with.
        width: Of a query and a key in one head.
        width_v: Of a value in one head.
        backward: Whether it computes the gradients.
    """

    queries: int
    length_q: int
    length_k: int
    width: int
    width_v: int
    backward: bool

    @property
    def flops(self) -> int:
        """Two products forward; backward five, because the scores are computed again (Dao 2022, arXiv 2205.14135).

        A mask saves nothing: neither does it in the products that the op replaces.
        """
        forward = self.width + self.width_v
        return 2 * self.queries * self.length_k * (forward + self.backward * (2 * self.width + self.width_v))

    @property
    def rows(self) -> int:
        """The rows that are rounded up to a tile: of queries, as in the products of queries and keys.

        The backward's products have a row for each query or each key; where keys are many more, kernels divide them.
        """
        if self.backward and self.length_k > _MANY_MORE_KEYS * self.length_q:
            return self.queries // self.length_q * self.length_k if self.length_q else 0
        return self.queries


def attention(kind: str, given: Arguments) -> Attention | None:
    """What an op does if it is attention in one op; None for any other.

    Args:
        kind: The op's type.
        given: Its arguments.
    """
    if "attention" not in kind and "_attn" not in kind:
        return None
    query, key, value = given.tensor("query", "q"), given.tensor("key", "k"), given.tensor("value", "v")
    if query is None or key is None or value is None or query.dim() < 2:
        return None
    axis = -3 if kind.rpartition(".")[2].startswith(_LENGTH_FIRST) and query.dim() > 2 else -2
    length_k = _length(given, key, axis, ("max_k", "max_seqlen_k"), ("cum_seq_k", "cu_seqlens_k", "cu_seq_k"))
    return Attention(
        queries=prod(query.shape[:-1]),
        length_q=int(query.shape[axis]),
        length_k=length_k,
        width=int(query.shape[-1]),
        width_v=int(value.shape[-1]),
        backward="backward" in kind,
    )


def _length(
    given: Arguments, tensor: torch.Tensor, axis: int, longest: tuple[str, ...], offsets: tuple[str, ...]
) -> int:
    """How long sequences are: the longest's length where they lie one after another in one tensor."""
    if given.tensor(*offsets) is not None:
        for name in longest:
            if isinstance(given.get(name), int):
                return int(given[name])
    return int(tensor.shape[axis])
