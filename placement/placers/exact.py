"""The optimum by constraint programming, with a proof: OR-tools' CP-SAT, for small problems.

Perron and Furnon, OR-tools (https://developers.google.com/optimization). The model (`placement.placers.exact_model`)
chooses a placement and the best schedule for it, with links and memory. The simulator follows a fixed schedule, so the
model's optimum bounds every placement's simulated step time from below, but its placement need not be the simulator's
best. So the model is solved again and again, each time without the placements that were simulated already, until the
bound reaches the best simulated step time (logic-based Benders decomposition with no-good cuts: Hooker and Ottosson,
Mathematical Programming 96, 2003, doi:10.1007/s10107-003-0375-9).
"""

from __future__ import annotations

import numpy as np

from envs.problem import PlacementProblem
from graphs.errors import NotServedError
from graphs.extras import check_extra
from placement.placers import annealing
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions
from placement.placers.searching.starts import start_of

MOST_CHOICES = 2_000
"""Ops times devices; beyond it the model alone takes longer to build than searches take to find good placements."""

DEFAULT_TIME_LIMIT_S = 60.0
WARM_UP_SHARE = 0.2
WARM_UP_EVALUATIONS = 5_000

CLOSE = 1e-4
"""Relative gap between the bound and the best step time that counts as proven: times are rounded in the model."""


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Solve, simulate, exclude; until the bound reaches the best, or the budget is spent.

    Raises:
        NotServedError: OR-tools is not installed, or the problem is too large.
    """
    check_extra("placer 'exact'", module="ortools", package="OR-tools", extra="exact")
    choices = problem.graph.num_ops * problem.num_devices
    if choices > MOST_CHOICES:
        raise NotServedError(
            f"placer 'exact' serves at most {MOST_CHOICES:,} pairs of an op and a device, but graph "
            f"'{problem.graph.name}' on cluster '{problem.cluster.name}' has {choices:,}; use a search",
            reason=f"serves at most {MOST_CHOICES:,} pairs of an op and a device",
        )
    from placement.placers.exact_model import ExactModel

    time_limit_s = DEFAULT_TIME_LIMIT_S if budget.time_limit_s is None else budget.time_limit_s
    search = Search(problem, Budget(time_limit_s, budget.evaluations))
    # The solver is quick where little is left below the best that is known, so a search goes first.
    most = WARM_UP_EVALUATIONS if budget.evaluations is None else min(WARM_UP_EVALUATIONS, budget.evaluations)
    warm_up = Budget(time_limit_s * WARM_UP_SHARE, max(most - 1, 1))
    found = annealing.place(problem, budget=warm_up, rng=rng)
    search.evaluate(found.placement[None])
    search.evaluations += found.evaluations
    model = ExactModel(problem, horizon_s=search.known.reference_s)
    model.hint(start_of(search))
    seed = int(rng.integers(2**31))
    bound_s, proven = 0.0, False
    while not search.spent and not proven:
        left_s = time_limit_s - search.elapsed_s
        solved = model.solve(below_s=search.best_s, time_limit_s=max(left_s, 0.0), seed=seed)
        bound_s = max(bound_s, solved.bound_s)
        if solved.placement is not None:
            search.evaluate(solved.placement[None])
            model.exclude(solved.placement)
        proven = bound_s >= search.best_s * (1.0 - CLOSE) or (solved.placement is None and solved.exhausted)
    return search.placed(config={"seed": seed}, note=_note(search, bound_s, proven))


def _note(search: Search, bound_s: float, proven: bool) -> str:
    if search.best_placement is None:
        return "no placement fits: proven" if proven else "nothing that fits was found in time"
    if proven:
        return "optimal: proven"
    return f"not proven optimal: no placement is faster than {bound_s:.6g} s"
