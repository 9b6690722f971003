"""How long a step lasts at least from each op on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.compiling import compile_for, compiled, is_at_hand

AT_MOST = 100_000
"""Ops and edges for which a loop in Python takes less time than compiling one."""


def remaining_paths_s(
    time_s: NDArray[np.float64],
    tensor_offsets: NDArray[np.int32],
    consumer_offsets: NDArray[np.int32],
    consumers: NDArray[np.int32],
) -> NDArray[np.float64]:
    """``float64[N]``: for each op the longest sum of times along a path that starts with it.

    Args:
        time_s: ``float64[N]``.
        tensor_offsets: ``int32[N + 1]``, the tensors that each op makes.
        consumer_offsets: ``int32[T + 1]``, of the readers of each tensor
        consumers: ``int32[E]``, which come after the op.
    """
    if len(time_s) + len(consumers) <= AT_MOST and not is_at_hand(remaining_paths):
        return _in_python(time_s, consumer_offsets[tensor_offsets], consumers)
    remaining_s = np.empty(len(time_s))
    remaining_paths(time_s, tensor_offsets, consumer_offsets, consumers, remaining_s)
    return remaining_s


def compile_ahead() -> None:
    """Compile the loop, so that it is at hand from now on."""
    offsets = np.zeros(2, dtype=np.int32)
    compile_for(remaining_paths, np.zeros(1), offsets, offsets, offsets[:0], np.zeros(1))


def _in_python(
    time_s: NDArray[np.float64], offsets: NDArray[np.int32], consumers: NDArray[np.int32]
) -> NDArray[np.float64]:
    """As `remaining_paths`, equal to the last bit; `offsets` are of the readers of each op's tensors."""
    seconds, first, readers = time_s.tolist(), offsets.tolist(), consumers.tolist()
    remaining_s = [0.0] * len(seconds)
    for op in range(len(seconds) - 1, -1, -1):
        longest = max([0.0, *(remaining_s[reader] for reader in readers[first[op] : first[op + 1]])])
        remaining_s[op] = seconds[op] + longest
    return np.array(remaining_s, dtype=np.float64)


@compiled
def remaining_paths(
    time_s: NDArray[np.float64],
    tensor_offsets: NDArray[np.int32],
    consumer_offsets: NDArray[np.int32],
    consumers: NDArray[np.int32],
    remaining_s: NDArray[np.float64],
) -> None:
    """Fill `remaining_s` ``[N]``: for each op the longest sum of `time_s` along a path that starts with it."""
    for op in range(len(time_s) - 1, -1, -1):
        longest = 0.0
        for e in range(consumer_offsets[tensor_offsets[op]], consumer_offsets[tensor_offsets[op + 1]]):
            longest = max(longest, remaining_s[consumers[e]])
        remaining_s[op] = time_s[op] + longest
