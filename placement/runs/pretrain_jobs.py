"""The rounds of a pretraining as jobs for workers: one problem, one version of the weights.

A job names its weights by their digest, its problem by a seed, and how many samples and rounds it has; back come
gradients. So whoever goes through the rounds, and however often a worker is lost over them, they come to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from safetensors.numpy import load, save

from placement.learning.threads import one_torch_thread
from placement.pretrained.config import PretrainConfig
from placement.pretrained.lessons import Asked, RolledOut, roll_out, validation_gain
from placement.pretrained.network import Weights
from placement.workers import Job, Workers

LIMIT_S = 900.0
"""Seconds after which a worker that goes through a problem's rounds is taken to hang: it may have to compile."""


class WorkersRollOut:
    """Workers that go through the rounds on problems; a `placement.pretrained.lessons.Rollers`.

    Args:
        workers: Who they are.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        for function in ("compile_heuristics", "compile_placing"):
            workers.load_first(f"placement.runs.compile_ahead:{function}", "priority")

    def roll_out(self, weights: Weights, asked: Sequence[Asked]) -> list[RolledOut]:
        """See `placement.pretrained.lessons.Rollers.roll_out`."""
        return self._all(weights, "do_roll_out", ({"asked": one} for one in asked))

    def validate(self, weights: Weights, numbers: Sequence[int], config: PretrainConfig) -> list[float]:
        """See `placement.pretrained.lessons.Rollers.validate`."""
        return self._all(weights, "do_validate", ({"number": number, "config": config} for number in numbers))

    def _all(self, weights: Weights, function: str, arguments: Iterable[dict[str, Any]]) -> list[Any]:
        """What a function comes to for each of some arguments, in their order."""
        shared = self._workers.share(save(dict(weights)), "placement.runs.pretrain_jobs:decode_weights")
        jobs = [
            Job(str(i), f"placement.runs.pretrain_jobs:{function}", given, shared, LIMIT_S)
            for i, given in enumerate(arguments)
        ]
        found = {done.key: done.result() for done in self._workers.run(jobs)}
        self._workers.forget(shared)
        return [found[job.key] for job in jobs]


def decode_weights(content: bytes) -> Weights:
    """What a worker keeps of a version of the weights."""
    weights: Weights = load(content)
    return weights


def do_roll_out(weights: Weights, *, asked: Asked) -> RolledOut:
    """Go through the rounds on a problem; what a worker runs."""
    with one_torch_thread():
        return roll_out(weights, asked)


def do_validate(weights: Weights, *, number: int, config: PretrainConfig) -> float:
    """Place a validation problem; what a worker runs."""
    with one_torch_thread():
        return validation_gain(weights, number, config)
