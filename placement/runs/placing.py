"""Answers at once: by the quick heuristics, and by placements that the pretrained policy writes.

How much is tried depends on the problem's size alone, so that the same seed gives the same answer on every machine.
Importing this, and answering, loads no torch.

Letters: ``N`` ops, ``G`` groups, ``D`` devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from graphs.errors import InputError
from placement.placers.base import Budget
from placement.placers.best import BestKnown
from placement.placers.quick_lists import quick_placements
from placement.placers.single_device import single_device_placements
from placement.pretrained import network
from placement.pretrained.answering import SAMPLES, written
from placement.pretrained.network import Weights
from placement.results.comparison import quick_placers
from placement.results.placement_file import PlacementResult, make_result
from placement.results.simulated import Simulated, encode_simulated, simulate_ops

MANY_OPS = 3000
"""On graphs of more ops the heuristics that schedule single ops, or try many placements, would take a second alone."""


@dataclass(frozen=True, eq=False)
class Answer(Simulated):
    """A placement that was found at once, with its simulated step.

    Attributes:
        best_heuristic: The heuristic with the shortest feasible step.
        best_heuristic_s: Its step time in seconds; infinite where no heuristic's placement fits.
        policy_s: The shortest feasible step of the policy's own placements in seconds; infinite where none fits.
        policy_placements: How many placements the policy wrote.
        weights: A short name for its weights, by their content.
    """

    best_heuristic: str = ""
    best_heuristic_s: float = np.inf
    policy_s: float = np.inf
    policy_placements: int = 0
    weights: str = ""


def place(problem: PlacementProblem, *, weights: Weights, seed: int = 0, samples: int = SAMPLES) -> Answer:
    """The best of the heuristics' placements and the policy's.

    Args:
        problem: What to place.
        weights: The policy's.
        seed: Of the policy's samples, and of heuristics that draw.
        samples: Placements that the policy may write; on large problems it writes fewer. 0 asks the heuristics only.

    Raises:
        NoFeasiblePlacementError: Residents alone prove that nothing fits.
    """
    problem.check_can_fit()
    heuristics = BestKnown(problem)
    found: list[NDArray[np.int64]] = []
    best_heuristic = ""
    for name, placement in _heuristics(problem, seed):
        if heuristics.keep(placement[None], problem.evaluate_one(placement)) or not best_heuristic:
            best_heuristic = name
        found.append(placement)
    policy, count = BestKnown(problem), 0
    for rows, evaluation in written(problem, found, weights, rng=np.random.default_rng([seed, 3]), samples=samples):
        policy.keep(rows, evaluation)
        count += len(rows)
    assert heuristics.placement is not None
    best, made_by = heuristics, f"{best_heuristic}, the best of the heuristics"
    lacks_less = heuristics.step_time_s == np.inf and policy.least_overflow < heuristics.least_overflow
    if policy.placement is not None and (policy.step_time_s < heuristics.step_time_s or lacks_less):
        best, made_by = policy, f"the pretrained policy, the best of {count} placements"
    assert best.placement is not None
    simulated = simulate_ops(problem, problem.to_ops(best.placement), made_by=made_by)
    return Answer(
        **vars(simulated),
        best_heuristic=best_heuristic,
        best_heuristic_s=heuristics.step_time_s,
        policy_s=policy.step_time_s,
        policy_placements=count,
        weights=network.digest(weights),
    )


def _heuristics(problem: PlacementProblem, seed: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Placements ``int64[G]``, or ``int64[N]``, of the heuristics that are quick on a graph of this size.

    On graphs of no more than `MANY_OPS` ops these are all placers that neither learn nor search.
    """
    for device, placement in single_device_placements(problem):
        yield f"everything on {device}", placement
    yield from quick_placements(problem).items()
    for info in quick_placers(problem) if problem.graph.num_ops <= MANY_OPS else ():
        try:
            placed = info.function(problem, budget=Budget(), rng=np.random.default_rng(seed))
        except InputError:  # for example: no expert's rule for this graph
            continue
        yield info.name, placed.placement


def result_of(answer: Answer, *, seed: int) -> PlacementResult:
    """The content of a placement file."""
    config = {
        "made_by": answer.made_by,
        "best_heuristic": answer.best_heuristic,
        "policy_placements": answer.policy_placements,
        "weights": answer.weights,
    }
    return make_result(answer.problem, answer.op_placement, placer="place", seed=seed, config=config)


def encode_answer(answer: Answer) -> bytes:
    """The figures as JSON: those of `placement.results.simulated`, and what the heuristics and the policy came to."""
    content = msgspec.json.decode(encode_simulated(answer))
    content |= {
        "best_heuristic": answer.best_heuristic,
        "best_heuristic_s": answer.best_heuristic_s,  # what is infinite becomes null
        "policy_s": answer.policy_s,
        "policy_placements": answer.policy_placements,
        "weights": answer.weights,
    }
    return msgspec.json.format(msgspec.json.encode(content, order="sorted"), indent=2) + b"\n"
