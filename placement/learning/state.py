"""All of a trainer that changes: what the rest of a run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from placement.learning.config import LearningConfig


@dataclass(frozen=True)
class State:
    """All of a trainer that changes; see `placement.learning.trainer.Trainer` for the meaning of each.

    What the learner has (`policy`, `optimizer`, `generator`, `baseline`) is None where no update has needed it yet:
    then it is what the seed makes it.
    """

    config: LearningConfig
    seed: int
    updates: int
    evaluations: int
    elapsed_s: float
    seconds: Mapping[str, float]
    policy: Mapping[str, torch.Tensor] | None
    optimizer: dict[str, Any] | None
    generator: torch.Tensor | None
    rng: Mapping[str, Any]
    baseline: float | None
    best_s: float
    best_placement: NDArray[np.int64] | None
    least_overflow: float
    elite: list[tuple[float, NDArray[np.int64]]]
    search: Mapping[str, Any]
