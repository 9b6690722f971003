"""How the pretrained policy answers for a problem: rounds of placements, what each finds is known to the next.

Letters: ``B`` placements, ``G`` groups, ``N`` ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from graphs.colocation.coarsening import coarsen
from placement.placers.best import nearest_groups
from placement.placers.searching.moves import first_ops
from placement.pretrained import network
from placement.pretrained.decode import decode, gumbel
from placement.pretrained.features import Known, joined, read
from placement.pretrained.network import Weights

ROUNDS = 4
"""Rounds of sampling."""

SAMPLES = 64
"""Placements that the policy writes at most."""

MOST_GROUPS = 96
"""Groups that the policy places one by one; more are placed as that many units."""

_MOST_LOOKS = 8_000_000
"""Parts of groups that are scheduled in all while the policy looks at what its choices come to: a part of a second."""


def written(
    problem: PlacementProblem,
    placements: Sequence[NDArray[np.integer]],
    weights: Weights,
    *,
    rng: np.random.Generator,
    samples: int = SAMPLES,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[NDArray[np.int64], Evaluation]]:
    """Placements that the policy writes, ``int64[B, G]``, round by round, and what they come to.

    The first placement of each round is the likeliest one, the others are samples. How many there are depends on the
    problem's size alone.

    Args:
        problem: What to place.
        placements: What heuristics answered: ``int64[G]`` or ``int64[N]`` each.
        weights: The policy's.
        rng: Draws the samples.
        samples: Placements in all, fewer on large problems.
        should_stop: Asked before each round.
    """
    if samples == 0:
        return
    units = units_of(problem)
    unit_of_group = units.groups.group_of_op[first_ops(problem.groups)]
    known = read(units, [nearest_groups(units, problem.to_ops(placement)) for placement in placements])
    count = max(min(samples, _MOST_LOOKS // _looks(known)) // ROUNDS, 1)
    for _ in range(min(ROUNDS, samples)):
        if should_stop():
            return
        encoded = network.encode(weights, known.groups, known.pairs)
        noise = gumbel(rng, count, known)
        noise[0] = 0.0
        rows = decode(weights, known, encoded, noise).placements
        yield rows[:, unit_of_group], units.evaluate(rows)
        known = joined(known, rows, known.charged_s(rows))


def _looks(known: Known) -> int:
    """About how many parts of groups are scheduled while one placement is written."""
    picture = known.guide.picture
    return picture.group_time_s.size * len(picture.order)


def units_of(problem: PlacementProblem) -> PlacementProblem:
    """The same problem in about `MOST_GROUPS` groups at most: what the policy places."""
    if problem.num_groups <= MOST_GROUPS:
        return problem
    return problem.with_groups(problem.part(coarsen(problem.graph, problem.groups, MOST_GROUPS), by_group=True))
