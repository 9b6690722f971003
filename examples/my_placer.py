"""A placer of your own, in a comparison with those of the package.

    python examples/my_placer.py --graph nmt --cluster k80x4

Longest processing time first (Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied Mathematics
17(2), 1969, doi:10.1137/0117039): the groups of ops, longest first, each to the device that would be done first.
It knows nothing of transfers, so it loses where these matter. To add a placer to the package, put `place` into
`placement/placers/NAME.py` and a line into `HEURISTICS` of `placement/placers/__init__.py`.
"""

import argparse

import numpy as np

import placement
from envs.problem import PlacementProblem
from placement.placers import PlacerInfo
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Place all groups by their times alone: ``G`` groups, ``D`` devices."""
    search = Search(problem, budget)
    time_s = np.where(problem.allowed, problem.group_time_s, np.inf)  # [G, D]
    busy_s = np.zeros(problem.num_devices)  # [D]
    device_of = np.zeros(problem.num_groups, dtype=np.int64)  # [G]
    for group in np.argsort(-time_s.min(axis=1), kind="stable"):
        device = int(np.argmin(busy_s + time_s[group]))
        device_of[group] = device
        busy_s[device] += time_s[group, device]
    search.evaluate(device_of[None])
    return search.placed(note=f"busiest device: {busy_s.max() * 1e3:.2f} ms")


LONGEST_FIRST = PlacerInfo("longest_first", f"{__name__}:place", "longest processing time first (Graham, 1969)")


def main() -> None:
    """Compare it with three others."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--graph", default="nmt")
    parser.add_argument("--cluster", default="k80x4")
    args = parser.parse_args()

    problem = placement.make_problem(args.graph, args.cluster)
    comparison = placement.compare(problem, [LONGEST_FIRST, "single_device", "round_robin", "heft"])
    for row in comparison.ranked():
        step_time = "no placement" if row.step_time_s is None else f"{row.step_time_s * 1e3:.2f} ms"
        print(f"{row.placer:<22} {step_time:>14}{'' if row.feasible else '  does not fit'}  {row.note}".rstrip())


if __name__ == "__main__":
    main()
