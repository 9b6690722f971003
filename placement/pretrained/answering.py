"""How the pretrained policy answers for a problem: rounds of placements, what each finds is known to the next.

Groups come first. Where they are few, and the target runs placements of single ops, finer units follow: parts of the
groups, up to as many as the policy places.

Letters: ``B`` placements, ``G`` groups, ``U`` units, ``N`` ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from envs.evaluators import Evaluation
from envs.problem import PlacementProblem
from graphs.colocation.coarsening import coarsen
from graphs.colocation.groups import one_group_an_op
from placement.placers.best import nearest_groups
from placement.placers.searching.moves import first_ops
from placement.pretrained import network
from placement.pretrained.decode import decode, gumbel
from placement.pretrained.features import Known, joined, read
from placement.pretrained.network import Weights

ROUNDS = 4
"""Rounds of sampling, of the groups and then of the finer units."""

SAMPLES = 64
"""Placements that the policy writes at most."""

MOST_GROUPS = 96
"""Groups that the policy places one by one; more are placed as that many units."""

LEAST_PARTS = 1.5
"""Finer units follow where there are so many times as many as groups."""

_MOST_LOOKS = 6_000_000
"""Parts of groups that are scheduled in all while the policy looks at what its choices come to: a part of a second."""


def written(
    problem: PlacementProblem,
    placements: Sequence[NDArray[np.integer]],
    weights: Weights,
    *,
    rng: np.random.Generator,
    samples: int = SAMPLES,
    by_parts: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[NDArray[np.int64], Evaluation]]:
    """Placements that the policy writes, ``int64[B, G]`` or ``int64[B, N]``, round by round, and what they come to.

    The first placement of each round is the likeliest one, the others are samples. How many there are depends on the
    problem's size alone.

    Args:
        problem: What to place.
        placements: What heuristics answered: ``int64[G]`` or ``int64[N]`` each.
        weights: The policy's.
        rng: Draws the samples.
        samples: Placements in all, fewer on large problems.
        by_parts: Place parts of groups, too, where groups are few; otherwise all placements are of groups.
        should_stop: Asked before each round.
    """
    groups = units_of(problem)
    parts = _parts_of(problem) if by_parts and groups is problem else None
    found = [problem.to_ops(placement) for placement in placements]
    left = samples
    for units, share in ((groups, 1.0),) if parts is None else ((groups, 0.5), (parts, 1.0)):
        known = read(units, [nearest_groups(units, ops) for ops in found])
        count = min(max(int(min(left * share, _MOST_LOOKS * share // _looks(known))) // ROUNDS, 1), left)
        for _ in range(min(ROUNDS, left)):
            if should_stop() or left == 0:
                return
            encoded = network.encode(weights, known.groups, known.pairs)
            noise = gumbel(rng, count, known)
            noise[0] = 0.0
            rows = decode(weights, known, encoded, noise).placements
            left -= count
            whole = units.groups.to_ops(rows).astype(np.int64)
            yield whole if units is parts else whole[:, first_ops(problem.groups)], units.evaluate(rows)
            known = joined(known, rows, known.charged_s(rows))
        found += [units.to_ops(row) for row in known.guide.picture.votes]


def _looks(known: Known) -> int:
    """About how many parts of groups are scheduled while one placement is written."""
    picture = known.guide.picture
    return picture.group_time_s.size * len(picture.order)


def units_of(problem: PlacementProblem) -> PlacementProblem:
    """The same problem in about `MOST_GROUPS` groups at most: what the policy places."""
    if problem.num_groups <= MOST_GROUPS:
        return problem
    return problem.with_groups(problem.part(coarsen(problem.graph, problem.groups, MOST_GROUPS), by_group=True))


def _parts_of(problem: PlacementProblem) -> PlacementProblem | None:
    """The same problem in parts of its groups, `MOST_GROUPS` at most; None where these would be hardly more."""
    if not problem.can_part_groups or problem.num_groups * LEAST_PARTS > MOST_GROUPS:
        return None
    finest = one_group_an_op(problem.graph)
    parts = coarsen(problem.graph, finest, MOST_GROUPS, within=problem.groups)
    if parts.num_groups < problem.num_groups * LEAST_PARTS:
        return None
    return problem.with_groups(parts)
