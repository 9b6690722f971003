"""How long a step lasts at least from each op on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.compiling import compiled


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
