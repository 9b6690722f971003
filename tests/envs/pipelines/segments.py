"""Segments for tests, without a model."""

import numpy as np
from numpy.typing import NDArray

from envs.clusters.cluster import Cluster
from envs.clusters.known import cpu_cores
from envs.pipelines.segments import Segments


def any_segments(seed: int, *, count: int, devices: int, micro_batches: int = 3, alike: bool = False) -> Segments:
    """Segments of random times and sizes, on devices of which each may be slower than the next."""
    rng = np.random.default_rng(seed)
    cluster: Cluster = cpu_cores(devices)
    times = rng.uniform(0.5, 2.0, (count, 3)) * 1e-3
    slower = np.ones(devices) if alike else rng.uniform(1.0, 2.0, devices)

    def sizes(most: int) -> NDArray[np.int64]:
        made = rng.integers(0, most, count + 1)
        made[[0, -1]] = 0
        return made

    crossing, parameters = sizes(100_000), rng.integers(1, 250_000, count)
    return Segments(
        cluster=cluster,
        micro_batches=micro_batches,
        modules=tuple((f"layers.{k}",) for k in range(count)),
        action_s=times[None] * slower[:, None, None],
        add_s=times[None, :, 2] * slower[:, None] / 10,
        update_s=np.full((devices, count), 1e-4),
        crossing_bytes=crossing,
        gradient_bytes=crossing,
        output_bytes=crossing // 2,
        saved_bytes=rng.integers(0, 1_000_000, count),
        working_bytes=rng.integers(0, 1_000_000, (count, 2)),
        fixed_bytes=4 * parameters,
        summed_bytes=parameters,
    )
