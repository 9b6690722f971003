"""What training reports after every update, for the progress display and TensorBoard. Importing it loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from envs.evaluators import Evaluation


@dataclass(frozen=True)
class UpdateStats:
    """One update, and the run so far.

    Attributes:
        update: Its number, from 1.
        elapsed_s: Seconds of training so far, those before a resumption included.
        best_s: Step time of the best feasible placement so far; infinite while there is none.
        mean_s: Mean step time of the update's feasible samples; NaN where there was none.
        greedy_s: Step time of the policy's likeliest placement; NaN where it is infeasible.
        infeasible_rate: Share of the update's samples that were infeasible.
        evaluations: Placements evaluated so far.
        placements_per_s: Those a second of `elapsed_s`.
        loss: Of the update.
        entropy: Mean over samples and groups, in nats.
        advantage_std: Spread of the advantages before they are normalised.
        grad_norm: Norm of the gradient before it is clipped.
        baseline: Mean of the baseline, in units of the reward.
        seconds: Seconds so far by part: ``heuristics``, ``sample`` (encode and write placements), ``simulate``
            (evaluate them), ``learn`` (score them, gradient, Adam), ``wait`` (for the search to end), and in
            parallel to all of these ``search`` (propose moves and evaluate them).
        search_acceptance: Share of the search's moves so far that were accepted; NaN where there was none.
        search_mean_s: Mean over the chains of what their placements cost now; NaN where they have none.
        search_weights: What the chains have learned so far, by feature of a move; mean over the chains.
    """

    update: int
    elapsed_s: float
    best_s: float
    mean_s: float
    greedy_s: float
    infeasible_rate: float
    evaluations: int
    placements_per_s: float
    loss: float
    entropy: float
    advantage_std: float
    grad_norm: float
    baseline: float
    seconds: Mapping[str, float]
    search_acceptance: float
    search_mean_s: float
    search_weights: Mapping[str, float]


POLICY_FIELDS = ("mean_s", "greedy_s", "infeasible_rate", "loss", "entropy", "advantage_std", "grad_norm", "baseline")
"""Fields of `UpdateStats` that tell of the policy's part of an update."""

NO_POLICY = dict.fromkeys(POLICY_FIELDS, math.nan)
"""Their values, all NaN, in an update in which the policy does not work."""


def sample_numbers(evaluation: Evaluation) -> dict[str, float]:
    """Mean and greedy step time and infeasible share of an update's samples; the first is the greedy one."""
    times, feasible = evaluation.step_time_s, evaluation.feasible
    sampled = times[1:][feasible[1:]]
    return {
        "mean_s": float(sampled.mean()) if len(sampled) else math.nan,
        "greedy_s": float(times[0]) if feasible[0] else math.nan,
        "infeasible_rate": float(1.0 - feasible[1:].mean()),
    }
