"""Sparse gradients, as the indices and values that they consist of.

On fake tensors PyTorch does not know how many entries the result of a sparse op has, so the ops that occur in training
are done here by ops on indices and values, as PyTorch itself does them.
"""

from __future__ import annotations

from typing import Any

import torch

from graphs.errors import InputError


def is_sparse(value: Any) -> bool:
    """Whether a value is a sparse tensor of coordinates."""
    return isinstance(value, torch.Tensor) and value.layout == torch.sparse_coo


def sparse_sum(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """As PyTorch adds sparse tensors: all entries of both, uncoalesced."""
    indices = torch.cat([first._indices(), second._indices()], dim=1)
    values = torch.cat([first._values(), second._values()])
    return torch.sparse_coo_tensor(indices, values, first.shape, check_invariants=False)


def sparse_bag_gradient(grad_output: torch.Tensor, indices: torch.Tensor, num_rows: int) -> torch.Tensor:
    """The sparse gradient of a bag of embeddings: for each index the gradient of the bag that it is in."""
    # Which bag that is does not matter to shapes, so the indices stand in for the bags' numbers.
    values = grad_output.index_select(0, indices)
    shape = (num_rows, grad_output.shape[1])
    return torch.sparse_coo_tensor(indices.unsqueeze(0), values, shape, check_invariants=False)


def check_sparse(kind: str, out: Any) -> None:
    """Refuse a sparse result of which the number of entries is not known.

    Raises:
        InputError: The op makes one.
    """
    if is_sparse(out) and out._nnz() == 0:
        raise InputError(f"how many entries the sparse result of {kind} has depends on values; use dense tensors")
