"""The list schedulers that search nothing, one after the other on one graph of the groups: what a search starts from.

On 10,000 ops all of them together take about a tenth of a second, where each placer by itself builds its graph anew, of
single ops, too, and repairs what does not fit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from envs.problem import PlacementProblem
from envs.task_graph import of_groups
from placement.placers import etf, heft, m_etf, peft
from placement.placers.list_scheduling.schedule import Rule, groups_placed

RULES: tuple[tuple[str, Rule, bool], ...] = (
    ("heft", heft.rule, False),
    ("heft", heft.rule, True),
    ("etf", etf.rule, False),
    ("m_etf", m_etf.rule, True),
    ("peft", peft.rule, False),
    ("peft", peft.rule, True),
)
"""``(placer, rule, whether transfers queue)``, the most promising first."""

ALWAYS = 2
"""HEFT's rules are asked however short the time is."""


def quick_placements(
    problem: PlacementProblem, *, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, NDArray[np.int64]]:
    """Placements ``int64[G]`` by what made them; those that do not fit are left as they are.

    Args:
        problem: What to place.
        should_stop: Asked before each rule but the first `ALWAYS`: a search that begins without them is behind them
            for longer than they take.
    """
    placements: dict[str, NDArray[np.int64]] = {}
    tasks = of_groups(problem)
    for number, (name, rule, ports) in enumerate(RULES):
        if number >= ALWAYS and should_stop():
            break
        label = f"{name} on groups" + (", transfers queueing" if ports else "")
        placements[label] = groups_placed(problem, tasks, rule(problem, tasks, ports))
    return placements
