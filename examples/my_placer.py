"""A placer of your own, in a comparison with those of the package.

    python examples/my_placer.py --graph nmt --cluster k80x4

Longest processing time first: R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied
Mathematics 17(2), 1969, doi:10.1137/0117039. It knows nothing of transfers, so it loses where these matter.
What makes a placer one of the package's own is in docs/concepts/architecture.md.
"""

import argparse

import numpy as np

import placement
from envs.problem import PlacementProblem
from placement.placers import PlacerInfo
from placement.placers.base import DEFAULT_OPTIONS, Budget, Placed, Search, SearchOptions, accelerators_first


def place(
    problem: PlacementProblem, *, budget: Budget, rng: np.random.Generator, options: SearchOptions = DEFAULT_OPTIONS
) -> Placed:
    """Give each group, the longest first, to the accelerator that has least to do; then try random orders."""
    search = Search(problem, budget)
    allowed = accelerators_first(problem)  # bool[G, D]: where each group may be
    seconds = problem.group_time_s  # float64[G, D]
    order = np.argsort(-seconds.min(axis=1))  # the longest first
    for _ in range(256):
        if search.spent:
            break
        device_of = np.zeros(problem.num_groups, dtype=np.int64)
        load_s = np.zeros(problem.num_devices)
        for group in order:
            device = int(np.where(allowed[group], load_s + seconds[group], np.inf).argmin())
            device_of[group] = device
            load_s[device] += seconds[group, device]
        search.evaluate(device_of[None])
        order = rng.permutation(problem.num_groups)
    return search.placed(note="longest first")


LEAST_LOADED = PlacerInfo("least_loaded", f"{__name__}:place", "longest group first, to the least loaded")


def main() -> None:
    """Compare it with three others."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--graph", default="nmt")
    parser.add_argument("--cluster", default="k80x4")
    parser.add_argument("--seconds", type=float, default=5.0, help="that each placer may take")
    args = parser.parse_args()

    problem = placement.make_problem(args.graph, args.cluster)
    others = ("single_device", "round_robin", "heft")
    for row in placement.compare(problem, [LEAST_LOADED, *others], time_limit_s=args.seconds).ranked():
        step_time = "no placement" if row.step_time_s is None else f"{row.step_time_s * 1e3:.2f} ms"
        fits = "" if row.feasible else ", does not fit"
        print(f"{row.placer:<22} {step_time:>14}{fits}, {row.evaluations:,} evaluated")


if __name__ == "__main__":
    main()
