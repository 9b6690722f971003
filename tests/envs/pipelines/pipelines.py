"""Pipelines for tests: even chains, and any stages on any ranks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.clusters.routes import Routes
from envs.pipelines.actions import Pipeline


def switch(ports: int, latency_s: float, bytes_per_s: float, *, shared: bool = False) -> Routes:
    """A switch with a port for each device; or one bus for all of them."""
    pairs = [(a, b) for a in range(ports) for b in range(ports)]
    crossed = [[] if a == b else [0] if shared else [2 * a, 2 * b + 1] for a, b in pairs]
    same = np.eye(ports, dtype=bool)
    return Routes(
        np.where(same, 0.0, latency_s),
        np.where(same, np.inf, bytes_per_s),
        np.cumsum([0, *map(len, crossed)]).astype(np.int32),
        np.array([d for row in crossed for d in row], dtype=np.int32),
    )


def even_chain(stages: int, ranks: int, seconds: Sequence[float] = (1.0, 1.0, 1.0), *, saved: int = 100) -> Pipeline:
    """Stages of equal forward, input-gradient and weight-gradient times, dealt to ranks in turn; links cost nothing."""
    forward_s, input_s, weight_s = seconds
    return Pipeline(
        device_of_rank=np.arange(ranks, dtype=np.int32),
        rank_of_stage=np.arange(stages, dtype=np.int32) % ranks,
        action_s=np.tile([forward_s, input_s + weight_s, input_s, weight_s], (stages, 1)),
        update_s=np.zeros(stages),
        forward_bytes=np.ones(stages, dtype=np.int64),
        backward_bytes=np.ones(stages, dtype=np.int64),
        saved_bytes=np.full(stages, saved, dtype=np.int64),
        working_bytes=np.zeros((stages, 4), dtype=np.int64),
        fixed_bytes=np.zeros(stages, dtype=np.int64),
        routes=switch(ranks, 1e-6, 1e12),
    )


def any_pipeline(seed: int) -> tuple[Pipeline, int]:
    """Up to seven stages on up to five ranks in any way, and a number of micro-batches; some times are 0 or equal."""
    rng = np.random.default_rng(seed)
    ranks = int(rng.integers(1, 6))
    stages = int(rng.integers(ranks, 8))
    rank_of_stage = np.concatenate([np.arange(ranks), rng.integers(0, ranks, stages - ranks)])
    rng.shuffle(rank_of_stage)
    times = rng.choice([0.0, 0.5, 1.0, 1.5], (stages, 4)) if rng.random() < 0.5 else rng.random((stages, 4))
    times[:, 1] = times[:, 2] + times[:, 3]
    devices = ranks + int(rng.integers(0, 3))

    def size() -> NDArray[np.int64]:
        return rng.integers(0, 1000, stages)

    speed = float(rng.choice([500.0, 5000.0]))
    return (
        Pipeline(
            device_of_rank=rng.permutation(devices)[:ranks].astype(np.int32),
            rank_of_stage=rank_of_stage.astype(np.int32),
            action_s=times,
            update_s=rng.random(stages),
            forward_bytes=size(),
            backward_bytes=size(),
            saved_bytes=size(),
            working_bytes=rng.integers(0, 500, (stages, 4)),
            fixed_bytes=size(),
            routes=switch(devices, float(rng.choice([0.0, 0.25])), speed, shared=seed % 2 == 0),
        ),
        int(rng.integers(1, 7)),
    )
